//! The benchmark as a command. Needs root; without it these tests say so and do nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pangea_ipc::runtime::counters_prefix;
use pangea_tests::netlab::skipped;
use pangea_tests::node::runtime_dir_in;

/// Two nodes are up within this time, in a debug build on a busy machine.
const START_TIME: Duration = Duration::from_secs(60);

/// Names in a folder; none when it is not there.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_signal_takes_away_programs_namespaces_and_folders() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.args(["lossy", "--only", "lossy 5 %", "--peer-seconds", "0"]).env("TMPDIR", folder.path());
    let mut bench = bench.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let ours = format!("netlab-{}-", bench.id());
    let namespaces = || names(Path::new("/run/netns")).into_iter().filter(|name| name.starts_with(&ours)).count();
    // The second node's folder is made last; nobody tells of it.
    let nodes = || names(folder.path()).iter().map(|name| names(&folder.path().join(name)).len()).sum::<usize>();
    let prefixes = || -> Vec<String> {
        let nodes = names(folder.path()).into_iter().flat_map(|bench| {
            let bench = folder.path().join(bench);
            names(&bench).into_iter().map(move |node| runtime_dir_in(&bench.join(node)))
        });
        nodes.map(|run| counters_prefix(&run)).collect()
    };
    let counters = |prefixes: &[String]| {
        let ours = |name: &String| prefixes.iter().any(|prefix| name.starts_with(prefix));
        names(Path::new("/dev/shm")).into_iter().filter(ours).count()
    };
    let started = Instant::now();
    while (namespaces(), nodes(), counters(&prefixes())) != (2, 2, 2) {
        assert!(started.elapsed() < START_TIME && bench.try_wait().unwrap().is_none(), "no nodes");
        std::thread::sleep(Duration::from_millis(20));
    }
    let prefixes = prefixes();
    kill(Pid::from_raw(bench.id().cast_signed()), Signal::SIGTERM).unwrap();
    let output = bench.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + Signal::SIGTERM as i32), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).ends_with("ended by SIGTERM; what was measured is lost\n"));
    assert_eq!((namespaces(), names(folder.path()), counters(&prefixes)), (0, Vec::new(), 0));
}
