//! Why a ring does not do what was asked.

use nix::errno::Errno;

/// Why a ring does not do what was asked. An end that has once answered [`Corrupt`](Self::Corrupt) stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The other side has closed its end, and everything that it published was taken.
    #[error("the other side has closed the ring")]
    Closed,
    /// The other process has gone, and everything that it published was taken.
    #[error("the other process has gone")]
    PeerGone,
    /// The other side wrote what no correct program writes.
    #[error("the other side wrote an impossible {what} ({value:#x}); this ring is over")]
    Corrupt {
        /// Which word.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A record longer than this ring carries.
    #[error("a record of {len} bytes is longer than this ring carries ({max})")]
    TooLong {
        /// Bytes asked for.
        len: usize,
        /// Bytes at most.
        max: usize,
    },
    /// A capacity that no ring has.
    #[error("a ring cannot have {bytes} bytes: it takes a power of two from {min} to {max}")]
    Capacity {
        /// Bytes asked for.
        bytes: u64,
        /// Bytes at least.
        min: u32,
        /// Bytes at most.
        max: u32,
    },
    /// What was handed over is not a ring of this version.
    #[error("what was handed over is not a ring: {0}")]
    NotARing(&'static str),
    /// The time given has passed.
    #[error("the other side did not move in the time given")]
    TimedOut,
    /// The system refuses.
    #[error("{what}: {errno}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        errno: Errno,
    },
}

impl RingError {
    pub(crate) fn system(what: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::System { what, errno }
    }
}
