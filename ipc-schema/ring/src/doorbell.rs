//! Waking the other side, and waiting for it or for its death.
//!
//! A bell is an eventfd: the side that waits owns one, the other rings it, and only after it has seen the announcement
//! that someone sleeps. The `alive` socket is the one over which the ring was handed: when it ends, the other process
//! has gone, however it went.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::RingError;

/// How often a position is looked at before sleeping: a wake-up costs 50 to 110 us, a look 2 to 100 ns.
pub const SPINS_BEFORE_SLEEP: u32 = 2_000;

/// One side's bell.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub(crate) fn create() -> Result<Self, RingError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        EventFd::from_value_and_flags(0, flags).map(|fd| Self(fd.into())).map_err(RingError::system("eventfd"))
    }

    /// A bell that was handed over. One that is no eventfd wakes nobody and does no other harm.
    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Wakes the other side. A bell that is rung already, or that the stranger made unusable, is left alone: the
    /// stranger harms itself alone.
    pub(crate) fn ring(&self) {
        let _ = nix::unistd::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes the ringing back, so that the next wait waits.
    pub(crate) fn drain(&self) {
        let mut count = [0; 8];
        let _ = nix::unistd::read(&self.0, &mut count); // nothing to take back is fine
    }
}

/// Waits until the bell rings, the other process goes, or the time is over.
pub(crate) fn wait(bell: &Bell, alive: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<(), RingError> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(RingError::TimedOut);
        }
        let timeout = match left {
            None => PollTimeout::NONE,
            // Rounded up, so that the last wait is not a busy one.
            Some(left) => PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
        };
        let mut fds = [PollFd::new(bell.fd(), PollFlags::POLLIN), PollFd::new(alive, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(RingError::System { what: "poll on a ring", errno }),
            Ok(_) => {}
        }
        let [bell_fd, alive_fd] = fds;
        if bell_fd.any() == Some(true) {
            bell.drain();
            return Ok(());
        }
        // Nothing is ever sent on that socket: whatever it has to say is its end.
        if alive_fd.any() == Some(true) {
            return Err(RingError::PeerGone);
        }
    }
}
