//! `demo`: two nodes on this machine, a file goes from one to the other, and nothing is left behind.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pangea_client::{Client, GetOptions, PutOptions};
use pangea_ipc::address::PeerAddress;
use pangea_ipc::failure::FailureCode;
use pangea_ipc::ids::WorkerIndex;
use pangea_ipc::node::{JobReport, Request, Response, StatusReport, WorkerState};
use pangea_ipc::ticket::Ticket;
use serde_json::json;

use super::arguments::DemoOptions;
use super::demo_folder::{Folder, NODES, RUNTIME};
use super::inspect::status_of;
use super::output::{CtlError, Output, rate, size};
use super::transfer::interrupt_flag;
use crate::controller::settings::FAULTS_VARIABLE;

/// Workers of each node.
const WORKERS: u16 = 2;
/// A node is up within this time.
const START_TIME: Duration = Duration::from_secs(20);
/// A node ends within this time; then it is killed.
const END_TIME: Duration = Duration::from_secs(15);
/// Seconds that workers live on when even their controller is killed.
const ORPHAN_S: &str = "10";
/// How often the state of a child is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What is said of it after an interrupt: unlike a get, it leaves nothing to go on with.
const INTERRUPTED: &str = "interrupted; nothing is left behind";

/// Runs the demonstration.
///
/// # Errors
/// When anything goes wrong, above all when the bytes that arrive are others.
pub fn run(out: &Output, options: &DemoOptions) -> Result<(), CtlError> {
    if !(0.0..=50.0).contains(&options.loss) {
        return Err(CtlError::usage(format!("--loss {}: from 0 to 50 percent", options.loss)));
    }
    // Said before two nodes are started.
    if let Some(path) = &options.file {
        readable(path)?;
    }
    let interrupted = interrupt_flag()?;
    let say = |text: &str| {
        if !out.json {
            eprintln!("{text}");
        }
    };
    for left in Folder::sweep() {
        say(&format!("removed {}, which a demo that was killed had left", left.display()));
    }
    let folder = Folder::create()?;
    let moved =
        options.file.as_ref().and_then(|path| std::fs::metadata(path).ok()).map_or(options.size, |file| file.len());
    has_room(folder.path(), moved)?;
    let source = match &options.file {
        Some(path) => path.clone(),
        None => {
            say(&format!("making {} of random bytes", size(options.size)));
            let path = folder.path().join("random");
            make_file(&path, options.size, &interrupted)?;
            path
        }
    };
    let loss =
        if options.loss > 0.0 { format!(", {} % of the packets lost each way", options.loss) } else { String::new() };
    say(&format!("starting nodes A and B, {WORKERS} workers each{loss}"));
    let a = Node::start(&folder.path().join(NODES[0]), options.loss, &interrupted)?;
    let b = Node::start(&folder.path().join(NODES[1]), options.loss, &interrupted)?;
    a.admit(&b)?;
    let result = transfer(out, folder.path(), &source, &a, &b, &interrupted);
    let logs = || format!("; log of A:\n{}\nlog of B:\n{}", a.log(), b.log());
    let result = result.map_err(|error| match error.code {
        FailureCode::Cancelled => CtlError::new(FailureCode::Cancelled, INTERRUPTED),
        _ => CtlError { text: format!("{}{}", error.text, logs()), ..error },
    });
    // In this order also when the transfer failed: processes first, then the folder that they use.
    drop((a, b));
    let outcome = result?;
    drop(folder);
    out.print(&outcome.document(options.loss), || outcome.text())
}

/// What the demonstration showed.
struct Outcome {
    id: String,
    bytes: u64,
    put: Duration,
    get: Duration,
    report: JobReport,
}

impl Outcome {
    fn sum(&self, figure: impl Fn(&pangea_ipc::node::ShareReport) -> u64) -> u64 {
        self.report.shares.iter().map(figure).sum()
    }

    fn by_worker(&self) -> Vec<(WorkerIndex, u64)> {
        let mut workers: Vec<(WorkerIndex, u64)> = Vec::new();
        for share in &self.report.shares {
            match workers.iter_mut().find(|(worker, _)| *worker == share.worker) {
                Some((_, bytes)) => *bytes += share.bytes,
                None => workers.push((share.worker, share.bytes)),
            }
        }
        workers.sort_unstable();
        workers
    }

    fn document(&self, loss: f64) -> serde_json::Value {
        let workers: Vec<_> = self.by_worker().iter().map(|(w, bytes)| json!({"worker": w, "bytes": bytes})).collect();
        json!({
            "id": self.id,
            "bytes": self.bytes,
            "loss_pct": loss,
            "put_seconds": self.put.as_secs_f64(),
            "get_seconds": self.get.as_secs_f64(),
            "get_bytes_per_second": self.bytes as f64 / self.get.as_secs_f64().max(1e-9),
            "workers": workers,
            "chunks_by_stream": self.sum(|share| share.chunks_by_stream.into()),
            "chunks_by_fec": self.sum(|share| share.chunks_by_fec.into()),
            "symbols_received": self.sum(|share| share.symbols_received),
            "symbols_repaired": self.sum(|share| share.symbols_repaired),
            "symbols_asked_again": self.sum(|share| share.symbols_asked_again),
            "equal": true,
        })
    }

    fn text(&self) -> String {
        let workers: Vec<String> =
            self.by_worker().iter().map(|(worker, bytes)| format!("worker {worker}: {}", size(*bytes))).collect();
        let lines = [
            format!("content id           {}", self.id),
            format!("size                 {} ({} bytes)", size(self.bytes), self.bytes),
            format!("put on A             {:.2} s, {}", self.put.as_secs_f64(), rate(self.bytes, self.put)),
            format!("get on B             {:.2} s, {}", self.get.as_secs_f64(), rate(self.bytes, self.get)),
            format!("bytes by worker      {}", workers.join(", ")),
            format!("chunks by stream     {}", self.sum(|share| share.chunks_by_stream.into())),
            format!("chunks by FEC        {}", self.sum(|share| share.chunks_by_fec.into())),
            format!("symbols repaired     {}", self.sum(|share| share.symbols_repaired)),
            format!("symbols asked again  {}", self.sum(|share| share.symbols_asked_again)),
            "the file on B is equal to the file put on A".to_owned(),
        ];
        lines.join("\n")
    }
}

/// Looks whether there is room for the file, for it in both stores, and for what arrives.
fn has_room(folder: &Path, moved: u64) -> Result<(), CtlError> {
    const COPIES: u64 = 4;
    let Ok(disk) = nix::sys::statvfs::statvfs(folder) else { return Ok(()) }; // then writing tells
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    let needed = moved.saturating_mul(COPIES);
    if needed <= free {
        return Ok(());
    }
    let (place, needed, free) = (folder.display(), size(needed), size(free));
    let text = format!("{place}: the demo needs {needed} and {free} are free; move less (--size), or set TMPDIR");
    Err(CtlError::new(FailureCode::Full, text))
}

fn readable(path: &Path) -> Result<(), CtlError> {
    let metadata = File::open(path).and_then(|file| file.metadata());
    if metadata.map_err(|error| CtlError::input(path, &error))?.is_file() {
        return Ok(());
    }
    Err(CtlError::new(FailureCode::Invalid, format!("{} is not a file; demo moves one file", path.display())))
}

fn transfer(
    out: &Output,
    folder: &Path,
    source: &Path,
    a: &Node,
    b: &Node,
    interrupted: &AtomicBool,
) -> Result<Outcome, CtlError> {
    let file = File::open(source).map_err(storage(source))?;
    let bytes = file.metadata().map_err(storage(source))?.len();
    let started = Instant::now();
    let bar = out.bar(Some(bytes), "put on A");
    let name = source.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let put = a.client.put(&file, PutOptions { name, size: Some(bytes) }, &mut |sent| {
        bar.set_position(sent);
        !interrupted.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    let put = put?;
    let put_time = started.elapsed();

    let ticket = match a.client.call(Request::Ticket { content: put.content, valid_s: 0 })? {
        Response::Ticket(ticket) => ticket,
        _ => return Err(pangea_client::ClientError::Unexpected.into()),
    };
    let ticket: Ticket = ticket.parse().map_err(|error| CtlError::new(FailureCode::Internal, format!("{error}")))?;
    let peers = ticket.addresses.iter().map(|address| PeerAddress { node: ticket.node, address: Some(*address) });
    let started = Instant::now();
    let mut transfer = b.client.get(ticket.content, GetOptions { peers: peers.collect(), range: None })?;
    let bar = out.bar(Some(bytes), "get on B");
    let arrived = folder.join("arrived");
    let target =
        File::options().read(true).write(true).create(true).truncate(true).open(&arrived).map_err(storage(&arrived))?;
    let result = transfer.write_to_file(&target, &mut |progress| {
        bar.set_position(progress.delivered);
        !interrupted.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    result?;
    let get_time = started.elapsed();
    let report = final_report(b, &transfer)?;
    compare(source, &arrived, interrupted)?;
    Ok(Outcome { id: put.content.to_string(), bytes, put: put_time, get: get_time, report })
}

/// The last figures come with the end of the job, which the controller tells a moment after the last byte.
fn final_report(b: &Node, transfer: &pangea_client::Transfer) -> Result<JobReport, CtlError> {
    let unexpected = || CtlError::from(pangea_client::ClientError::Unexpected);
    let job = transfer.report().map(|report| report.job).ok_or_else(unexpected)?;
    Ok(b.client.wait(job, &mut |_| {})?)
}

fn compare(expected: &Path, found: &Path, interrupted: &AtomicBool) -> Result<(), CtlError> {
    let open = |path: &Path| File::open(path).map(BufReader::new).map_err(storage(path));
    let (mut expected_file, mut found_file) = (open(expected)?, open(found)?);
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let len = fill(&mut expected_file, &mut left).map_err(storage(expected))?;
        let other = fill(&mut found_file, &mut right).map_err(storage(found))?;
        if left.get(..len) != right.get(..other) {
            let text = format!("{} and what arrived differ: this must never happen", expected.display());
            return Err(CtlError::new(FailureCode::Corrupt, text));
        }
        if len == 0 {
            return Ok(());
        }
        go_on(interrupted)?;
    }
}

/// After an interrupt nothing more is begun.
fn go_on(interrupted: &AtomicBool) -> Result<(), CtlError> {
    if interrupted.load(Ordering::Relaxed) {
        return Err(CtlError::new(FailureCode::Cancelled, INTERRUPTED));
    }
    Ok(())
}

fn fill(from: &mut impl Read, space: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = space.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(filled)
}

fn make_file(path: &Path, len: u64, interrupted: &AtomicBool) -> Result<(), CtlError> {
    let failed = storage(path);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(&failed)?);
    let mut block = vec![0; 1 << 16];
    let mut rest = len;
    while rest > 0 {
        go_on(interrupted)?;
        getrandom::fill(&mut block).map_err(io::Error::other).map_err(&failed)?;
        let part = block.len().min(usize::try_from(rest).unwrap_or(usize::MAX));
        file.write_all(block.get(..part).unwrap_or_default()).map_err(&failed)?;
        rest -= part as u64;
    }
    file.flush().map_err(failed)
}

fn storage(path: &Path) -> impl Fn(io::Error) -> CtlError {
    move |error| CtlError::new(FailureCode::Storage, format!("{}: {error}", path.display()))
}

/// One of the two nodes; ended when dropped.
struct Node {
    controller: Child,
    /// Its end tells the controller to end: also when this program is killed.
    stdin: Option<ChildStdin>,
    folder: PathBuf,
    client: Client,
    status: StatusReport,
}

impl Node {
    fn start(folder: &Path, loss: f64, interrupted: &AtomicBool) -> Result<Self, CtlError> {
        std::fs::create_dir(folder).map_err(storage(folder))?;
        let system = |error: io::Error| CtlError::new(FailureCode::Internal, format!("pangea-controller: {error}"));
        let program = std::env::current_exe().map_err(system)?.with_file_name("pangea-controller");
        let log = File::create(folder.join("log")).map_err(storage(folder))?;
        let mut command = Command::new(&program);
        command.arg("--state-dir").arg(folder.join("state")).arg("--runtime-dir").arg(folder.join(RUNTIME));
        command.args(["--listen", "127.0.0.1:0", "--data-listen", "127.0.0.1:0", "--until-stdin-closes"]);
        command.arg("--workers").arg(WORKERS.to_string()).args(["--orphan-s", ORPHAN_S]);
        if loss > 0.0 {
            command.env(FAULTS_VARIABLE, "1").arg("--fault-loss").arg(loss.to_string());
        }
        // An interrupt at the terminal is this program's to deal with.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn();
        let mut controller =
            spawned.map_err(|error| CtlError::new(FailureCode::NotFound, format!("{}: {error}", program.display())))?;
        let stdin = controller.stdin.take();
        match wait_ready(&mut controller, folder, interrupted) {
            Ok((client, status)) => Ok(Self { controller, stdin, folder: folder.to_owned(), client, status }),
            Err(error) => {
                drop(stdin);
                end(&mut controller);
                Err(error)
            }
        }
    }

    /// Lets another node in.
    fn admit(&self, other: &Self) -> Result<(), CtlError> {
        let peer = PeerAddress { node: other.status.node, address: None };
        self.client.call(Request::PeerAdd(peer))?;
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

fn wait_ready(
    controller: &mut Child,
    folder: &Path,
    interrupted: &AtomicBool,
) -> Result<(Client, StatusReport), CtlError> {
    let deadline = Instant::now() + START_TIME;
    loop {
        if let Ok(client) = Client::connect(&folder.join(RUNTIME))
            && let Ok(status) = status_of(&client)
        {
            let running = status.workers.iter().filter(|worker| worker.state == WorkerState::Running).count();
            if running == usize::from(WORKERS) {
                return Ok((client, status));
            }
        }
        let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        if let Ok(Some(status)) = controller.try_wait() {
            let text = format!("pangea-controller ended with {status}:\n{}", log());
            return Err(CtlError::new(FailureCode::Internal, text));
        }
        go_on(interrupted)?;
        if Instant::now() > deadline {
            let text = format!("a node was not up within {START_TIME:?}:\n{}", log());
            return Err(CtlError::new(FailureCode::Unavailable, text));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn end(controller: &mut Child) {
    let deadline = Instant::now() + END_TIME;
    while matches!(controller.try_wait(), Ok(None)) {
        if Instant::now() > deadline {
            let _ = controller.kill();
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.stdin.take());
        end(&mut self.controller);
    }
}
