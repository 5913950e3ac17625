//! The figures of `docs/BENCHMARKS.md`, as lines, JSON, a Markdown table and plots, with peers in the same run.
//!
//! `cargo run --release -p pangea-tests --bin bench -- [CASE...]`. Programs must be built before (`cargo build
//! --release`). Nodes have temporary folders (`TMPDIR` says where). Cases over an emulated path need root.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use pangea_tests::bench::{Bench, Case, bare, report};
use pangea_tests::signals::clean_up_when_ended;

/// Benchmarks of whole nodes against peers. Ends with 1 when `short` misses a bound, with 2 when a case that was asked
/// for cannot be measured here.
#[derive(Parser)]
#[command(name = "bench", version)]
struct Arguments {
    /// What to measure; all but `short` without one
    cases: Vec<Case>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write results.json and results.md into this folder, and plots of the cases `lossy` and `objects`
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Repeat each measurement and take the median
    #[arg(long, default_value_t = 3, value_parser = at_least(1))]
    runs: u64,
    /// The same for peers on emulated paths, where each may take as long as --peer-seconds
    #[arg(long, default_value_t = 3, value_parser = at_least(1))]
    peer_runs: u64,
    /// Measure only what has this in its name: "lossy 5 % pangea", "objects no loss TCP BBR", "fair alone"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// MiB to move on loopback and veth
    #[arg(long, default_value_t = 1024, value_parser = at_least(1))]
    mib: u64,
    /// Objects to count
    #[arg(long, default_value_t = 100, value_parser = at_least(1))]
    objects: u64,
    /// Seconds to share a bottleneck with TCP
    #[arg(long, default_value_t = 60, value_parser = at_least(2))]
    seconds: u64,
    /// Seconds after which a peer is stopped; 0 = no peers on emulated paths
    #[arg(long, default_value_t = 60)]
    peer_seconds: u64,
}

fn at_least(least: u64) -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(least..)
}

fn main() -> ExitCode {
    if bare::played() {
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    let refuse = |why: String| {
        eprintln!("bench: {why}");
        ExitCode::from(2)
    };
    if arguments.only.is_some() && arguments.cases.contains(&Case::Short) {
        return refuse("`short` is measured whole: leave --only out".to_owned());
    }
    // Tried before anything is measured: it would be lost.
    if let Some(folder) = &arguments.out
        && let Err(error) = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder))
    {
        return refuse(format!("nothing can be written to --out {}: {error}; give another folder", folder.display()));
    }
    // All temporary folders are made in this one.
    let scratch = match tempfile::Builder::new().prefix("pangea-bench-").tempdir() {
        Ok(scratch) => scratch,
        Err(error) => return refuse(format!("no temporary folder: {error}; set TMPDIR")),
    };
    if tempfile::env::override_temp_dir(scratch.path()).is_err() {
        return refuse("temporary folders are made elsewhere already".to_owned());
    }
    if let Err(error) = clean_up_when_ended(scratch.path().to_owned()) {
        return refuse(format!("signals cannot be listened to: {error}"));
    }
    let mut bench = Bench {
        mib: arguments.mib,
        runs: arguments.runs as usize,
        peer_runs: arguments.peer_runs as usize,
        objects: arguments.objects as usize,
        seconds: arguments.seconds,
        peer_seconds: arguments.peer_seconds,
        only: arguments.only,
        rows: Vec::new(),
        goodput: Vec::new(),
        times: Vec::new(),
    };
    let named = !arguments.cases.is_empty();
    let cases = if named { arguments.cases } else { Case::ALL.to_vec() };
    let (mut refused, mut skipped) = (false, false);
    eprintln!("{}", report::head());
    for &case in &cases {
        if let Some(why) = case.unavailable() {
            eprintln!("{case:?} is skipped: {why}");
            skipped = true;
            // CI may run `short` anywhere; whoever names another case wants it measured.
            refused |= named && case != Case::Short;
            continue;
        }
        bench.run(case);
    }
    if bench.rows.is_empty() && !skipped {
        let only = bench.only.unwrap_or_default();
        return refuse(format!("nothing has {only:?} in its name; see the names in docs/benchmarks/results.md"));
    }
    if arguments.json {
        println!("{:#}", bench.json());
    } else {
        print!("{}", report::markdown(&bench.rows, &report::machine()));
    }
    if let Some(folder) = arguments.out
        && let Err(error) = bench.write(&folder)
    {
        return refuse(format!("{}: {error}", folder.display()));
    }
    match (refused, cases.contains(&Case::Short) && !bench.passes()) {
        (true, _) => ExitCode::from(2),
        (_, true) => ExitCode::from(1),
        _ => ExitCode::SUCCESS,
    }
}
