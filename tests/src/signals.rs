//! Signals that end a command of ours, and what has to be taken away then.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{self, SignalKind};

use crate::netlab::remove_namespaces;
use crate::node::{remove_counters, runtime_dir_in};

/// Signals that end a command.
#[derive(Debug)]
pub struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    /// From now on they are waited for. Programs that are started do not inherit that, as they would a mask.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hangup: unix::signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hangup.recv() => Signal::SIGHUP,
        }
    }
}

/// The exit status that shells give a command that a signal ended.
#[must_use]
pub fn status_of(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(1)
}

/// From now on a signal ends all programs that this process has started, and theirs, removes its network namespaces and
/// `folder` with the nodes in it, and ends it. Without this they stay, since nothing is dropped then.
///
/// # Errors
/// What the system says.
pub fn clean_up_when_ended(folder: PathBuf) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = runtime.block_on(async { Signals::listen() })?;
    let clean_up = move || {
        let signal = runtime.block_on(signals.next());
        // Whoever waits for one of those programs fails now; it has nothing to tell, and must not end the process first.
        std::panic::set_hook(Box::new(|_| {
            loop {
                std::thread::park();
            }
        }));
        for pid in descendants() {
            let _ = kill(pid, Signal::SIGKILL); // gone already, or of another user: not ours to end
        }
        remove_namespaces();
        for node in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            remove_counters(&runtime_dir_in(&node.path()));
        }
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            eprintln!("{} is left: {error}", folder.display());
        }
        eprintln!("ended by {signal}; what was measured is lost");
        std::process::exit(status_of(signal as i32).into());
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(clean_up).map(drop)
}

/// All programs that this process has started, and theirs.
fn descendants() -> BTreeSet<Pid> {
    let mut found = BTreeSet::new();
    let mut unseen = vec![Pid::this()];
    while let Some(parent) = unseen.pop() {
        for thread in std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let fresh = children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
            unseen.extend(fresh.filter(|pid| found.insert(*pid)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn programs_of_programs_are_found() {
        use std::io::{BufRead, BufReader};
        let mut shell =
            Command::new("sh").args(["-c", "sleep 60 & echo $!; wait"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let found = descendants();
        let grandchild = Pid::from_raw(line.trim().parse().unwrap());
        kill(grandchild, Signal::SIGKILL).unwrap();
        shell.wait().unwrap();
        assert!(found.contains(&Pid::from_raw(shell.id().cast_signed())));
        assert!(found.contains(&grandchild));
        assert!(!found.contains(&Pid::this()));
    }
}
