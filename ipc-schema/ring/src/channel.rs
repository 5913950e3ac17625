//! A ring each way between a worker and a program, and its hand-over through a Unix socket.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::consumer::Consumer;
use crate::doorbell::Bell;
use crate::error::RingError;
use crate::layout::{MAGIC, VERSION};
use crate::producer::Producer;
use crate::segment::Segment;

/// Descriptors in a hand-over: a memory and two bells for each ring.
const FDS: usize = 6;
/// Bytes that go with them: magic, version, four zero bytes.
const MESSAGE_LEN: usize = 16;
/// A hand-over that takes longer has failed.
const HANDOVER_MS: u16 = 5_000;

/// One side's ends of the two rings.
#[derive(Debug)]
pub struct Channel {
    /// What this side sends.
    pub producer: Producer,
    /// What this side receives.
    pub consumer: Consumer,
}

/// The other side's ends, as descriptors. They are closed when this is dropped.
#[derive(Debug)]
pub struct Handover {
    fds: [OwnedFd; FDS],
}

struct Ring {
    segment: Segment,
    record_bell: Bell,
    space_bell: Bell,
}

impl Ring {
    fn create(capacity: u32) -> Result<Self, RingError> {
        Ok(Self { segment: Segment::create(capacity)?, record_bell: Bell::create()?, space_bell: Bell::create()? })
    }

    fn fds(&self) -> Result<[OwnedFd; 3], RingError> {
        Ok([dup(self.segment.fd())?, dup(self.record_bell.fd())?, dup(self.space_bell.fd())?])
    }

    fn producer(self) -> Producer {
        Producer::new(self.segment, self.space_bell, self.record_bell)
    }

    fn consumer(self) -> Consumer {
        Consumer::new(self.segment, self.record_bell, self.space_bell)
    }
}

impl Channel {
    /// Two fresh rings, of these capacities in bytes (powers of two): this side's ends, and the other side's.
    ///
    /// # Errors
    /// When a capacity is out of bounds or the system refuses.
    pub fn create(to_other: u32, from_other: u32) -> Result<(Self, Handover), RingError> {
        let (out, back) = (Ring::create(to_other)?, Ring::create(from_other)?);
        let ([a, b, c], [d, e, f]) = (out.fds()?, back.fds()?);
        Ok((Self { producer: out.producer(), consumer: back.consumer() }, Handover { fds: [a, b, c, d, e, f] }))
    }

    /// Takes the rings that the other side sends over `socket`, blocking or not. Nothing of them is believed before it
    /// was checked; descriptors in excess are closed.
    ///
    /// # Errors
    /// [`RingError::NotARing`] for anything but a hand-over, [`RingError::PeerGone`], [`RingError::TimedOut`].
    pub fn receive(socket: impl AsFd) -> Result<Self, RingError> {
        let fds = receive_fds(socket.as_fd())?;
        let Ok([out, out_record, out_space, back, back_record, back_space]) = <[OwnedFd; FDS]>::try_from(fds) else {
            return Err(RingError::NotARing("the wrong number of descriptors"));
        };
        // What the maker sends, this side receives.
        let from_maker = Ring {
            segment: Segment::open(out)?,
            record_bell: Bell::from_fd(out_record),
            space_bell: Bell::from_fd(out_space),
        };
        let to_maker = Ring {
            segment: Segment::open(back)?,
            record_bell: Bell::from_fd(back_record),
            space_bell: Bell::from_fd(back_space),
        };
        Ok(Self { producer: to_maker.producer(), consumer: from_maker.consumer() })
    }
}

impl Handover {
    /// Sends the other side its ends over `socket`, blocking or not.
    ///
    /// # Errors
    /// [`RingError::PeerGone`], [`RingError::TimedOut`], or what the system says.
    pub fn send(&self, socket: impl AsFd) -> Result<(), RingError> {
        let socket = socket.as_fd();
        let mut message = [0; MESSAGE_LEN];
        for (to, from) in message.iter_mut().zip(MAGIC.to_le_bytes().into_iter().chain(VERSION.to_le_bytes())) {
            *to = from;
        }
        let raw: Vec<RawFd> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        loop {
            let flags = MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&message)], &control, flags, None) {
                Ok(MESSAGE_LEN) => return Ok(()),
                Ok(_) => return Err(RingError::System { what: "handing a ring over", errno: Errno::EMSGSIZE }),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => wait(socket, PollFlags::POLLOUT)?,
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(RingError::PeerGone),
                Err(errno) => return Err(RingError::System { what: "handing a ring over", errno }),
            }
        }
    }
}

fn receive_fds(socket: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, RingError> {
    let mut message = [0; MESSAGE_LEN];
    // Room for more than is expected, so that a stranger's extra descriptors are seen and closed, not cut off.
    let mut control = nix::cmsg_space!([RawFd; 2 * FDS]);
    let (len, fds) = loop {
        let mut parts = [IoSliceMut::new(&mut message)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Ok(received) => {
                let mut fds = Vec::new();
                for part in received.cmsgs().map_err(RingError::system("reading a hand-over"))? {
                    if let ControlMessageOwned::ScmRights(raw) = part {
                        // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
                        fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                break (received.bytes, fds);
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait(socket, PollFlags::POLLIN)?,
            Err(Errno::ECONNRESET) => return Err(RingError::PeerGone),
            Err(errno) => return Err(RingError::System { what: "receiving a ring", errno }),
        }
    };
    if len == 0 {
        return Err(RingError::PeerGone);
    }
    let expected = MAGIC.to_le_bytes().into_iter().chain(VERSION.to_le_bytes()).chain([0; 4]);
    if len != MESSAGE_LEN || !message.into_iter().eq(expected) {
        return Err(RingError::NotARing("not a hand-over of this version; use programs of the same version"));
    }
    Ok(fds)
}

fn wait(socket: BorrowedFd<'_>, event: PollFlags) -> Result<(), RingError> {
    let mut fds = [PollFd::new(socket, event)];
    match poll(&mut fds, PollTimeout::from(HANDOVER_MS)) {
        Ok(0) => Err(RingError::TimedOut),
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(RingError::System { what: "poll on a hand-over", errno }),
    }
}

fn dup(fd: BorrowedFd<'_>) -> Result<OwnedFd, RingError> {
    let errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw);
    fd.try_clone_to_owned()
        .map_err(|error| RingError::System { what: "dup of a ring's descriptor", errno: errno(error) })
}
