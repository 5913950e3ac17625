//! sendme (iroh-blobs) as a peer, where it is installed: `cargo install sendme`.
//!
//! It is a program for one transfer, so that its time includes its start and its handshake. It is not pinned to a CPU, as
//! a node is here, and runs with what it does by itself but for the relay servers, which these paths do not reach.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::flow::Flow;
use crate::netlab::{Pair, Side};
use crate::sample;

const PROGRAM: &str = "sendme";
/// How often it is looked whether the receiver has ended, and how much it has: below a thousandth of any transfer here.
const LOOK_EVERY: Duration = Duration::from_millis(2);
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// Both ends of a path for sendme.
pub struct Sendme<'a> {
    pair: &'a Pair,
}

impl<'a> Sendme<'a> {
    /// `None` = it is not installed.
    #[must_use]
    pub fn find(pair: &'a Pair) -> Option<Self> {
        let version = Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success()).then_some(Self { pair })
    }

    /// Sends a fresh file from A to B, for a limited time.
    ///
    /// # Panics
    /// When the system refuses a process or a file.
    #[must_use]
    pub fn fetch(&self, bytes: u64, limit: Duration) -> Flow {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        sample::write_file(&from.path().join("file"), bytes, 1).unwrap();
        let mut sender = Running(self.start(Side::A, &from, &["send", "file", "--ticket-type", "addresses"]));
        let lines = BufReader::new(sender.0.stdout.take().unwrap()).lines();
        let ticket = lines.map_while(Result::ok).find_map(|line| {
            let (_, ticket) = line.split_once("sendme receive ")?;
            Some(ticket.trim().to_owned())
        });
        let Some(ticket) = ticket else {
            return Flow { failure: Some("its sender gave no ticket".to_owned()), ..Flow::default() };
        };
        let started = Instant::now();
        let mut receiver = Running(self.start(Side::B, &to, &["receive", &ticket]));
        let mut flow = Flow { samples: vec![(Duration::ZERO, 0)], ..Flow::default() };
        let ended = loop {
            if let Some(status) = receiver.0.try_wait().unwrap() {
                break Some(status);
            }
            if started.elapsed() >= limit {
                break None;
            }
            if flow.samples.last().is_some_and(|last| last.0 + SAMPLE_EVERY <= started.elapsed()) {
                flow.samples.push((started.elapsed(), on_disk(to.path()).min(bytes)));
            }
            std::thread::sleep(LOOK_EVERY);
        };
        flow.took = started.elapsed();
        match ended {
            Some(status) if status.success() => {
                let arrived = std::fs::metadata(to.path().join("file")).map_or(0, |file| file.len());
                (flow.bytes, flow.whole) = (arrived, arrived == bytes);
            }
            Some(status) => flow.failure = Some(format!("its receiver ended: {status}")),
            None => flow.bytes = on_disk(to.path()).min(bytes),
        }
        flow
    }

    fn start(&self, side: Side, folder: &TempDir, arguments: &[&str]) -> Child {
        let mut command = self.pair.command(side, PROGRAM);
        command.args(arguments).args(["--relay", "disabled", "--no-progress"]).current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }
}

/// A process that ends when it is dropped: asked first, since it removes what it has made.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        /// It takes a moment to tell the other side.
        const PATIENCE: Duration = Duration::from_secs(3);
        let pid = Pid::from_raw(self.0.id().cast_signed());
        let _ = kill(pid, Signal::SIGINT); // fails when it has ended
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bytes that the files below a folder take: what has come of a transfer that did not end.
fn on_disk(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => on_disk(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
