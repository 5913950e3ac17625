//! Why there is no lab.

use std::io::{self, Write};
use std::process::Command;

use super::link::LinkError;

/// The device that makes TUN devices.
pub(super) const TUN_MAKER: &str = "/dev/net/tun";

/// Why there is no lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Namespaces and devices belong to root.
    #[error("network namespaces and TUN devices need root; run this as root (sudo)")]
    NotRoot,
    /// The kernel has no TUN devices, or this container may not have them.
    #[error("there is no {TUN_MAKER}; load the kernel module (modprobe tun), or give the device to this container")]
    NoTun,
    /// iproute2 is missing.
    #[error("there is no program ip; install iproute2")]
    NoIp,
    /// The settings cannot be.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// `ip` refused to do it.
    #[error("ip {arguments}: {said}")]
    Ip {
        /// What it was to do.
        arguments: String,
        /// What it said.
        said: String,
    },
    /// The operating system refused to do it.
    #[error("{what}: {source}")]
    System {
        /// What it was to do.
        what: String,
        /// What it said.
        source: io::Error,
    },
}

/// Why this machine cannot have a lab, if so: for tests that are then skipped.
#[must_use]
pub fn unavailable() -> Option<Error> {
    if !nix::unistd::geteuid().is_root() {
        return Some(Error::NotRoot);
    }
    if Command::new("ip").arg("-V").output().is_err() {
        return Some(Error::NoIp);
    }
    (!std::path::Path::new(TUN_MAKER).exists()).then_some(Error::NoTun)
}

/// Whether this machine cannot run tests that need a lab; says why.
#[must_use]
pub fn skipped() -> bool {
    let why = unavailable();
    if let Some(why) = &why {
        // Not through a macro: what those print, the test runner keeps to itself when a test passes.
        let _ = writeln!(io::stderr(), "SKIPPED: {why}");
    }
    why.is_some()
}
