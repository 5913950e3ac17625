//! The worker's end of a program's rings, asynchronous: waits on the bells and on the program's death at once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pangea_ipc::door;
use pangea_ipc::failure::Failure;
use pangea_ring::{Channel, Consumer, Producer, RingError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// Why a program's rings have ended.
#[derive(Debug, thiserror::Error)]
pub enum RingsEnd {
    /// The program closed its end, or died.
    #[error("the program has gone")]
    Gone,
    /// The program wrote what no program writes.
    #[error("the program broke the ring protocol: {0}")]
    Broken(String),
    /// The system refuses to wait.
    #[error("waiting for the program failed: {0}")]
    System(#[from] std::io::Error),
}

impl From<RingError> for RingsEnd {
    fn from(error: RingError) -> Self {
        match error {
            RingError::Closed | RingError::PeerGone => Self::Gone,
            other => Self::Broken(other.to_string()),
        }
    }
}

/// What a program asks, out of one record.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Bytes of a put: their offset; `len` of them were copied.
    Data {
        /// Where they belong.
        offset: u64,
        /// How many.
        len: usize,
    },
    /// The put is complete, with this many bytes.
    End {
        /// Bytes in all.
        size: u64,
    },
    /// Send these chunks.
    Read(std::ops::Range<u32>),
    /// Fetch these chunks first.
    Want(std::ops::Range<u32>),
    /// Send these chunks as they come.
    Follow(std::ops::Range<u32>),
}

/// The two rings and the socket over which they were handed.
pub struct Rings {
    from_program: Consumer,
    to_program: Producer,
    record_bell: AsyncFd<OwnedFd>,
    space_bell: AsyncFd<OwnedFd>,
    /// Open as long as the program lives.
    alive: UnixStream,
}

impl Rings {
    /// Wraps a channel whose other end the program has.
    ///
    /// # Errors
    /// When the system gives no descriptors.
    pub fn new(channel: Channel, alive: UnixStream) -> std::io::Result<Self> {
        let Channel { producer, consumer } = channel;
        let watch = |bell: BorrowedFd<'_>| {
            let bell = bell.try_clone_to_owned()?;
            #[expect(deprecated, reason = "its replacement is unsafe; an owned eventfd never becomes another file")]
            AsyncFd::with_interest(bell, Interest::READABLE)
        };
        let record_bell = watch(consumer.bell())?;
        let space_bell = watch(producer.bell())?;
        Ok(Self { from_program: consumer, to_program: producer, record_bell, space_bell, alive })
    }

    /// The next record of the program, as soon as there is one. Payload goes to the front of `space`.
    ///
    /// # Errors
    /// When the program has gone or breaks the protocol.
    pub async fn next(&mut self, space: &mut [u8]) -> Result<Asked, RingsEnd> {
        self.wait_record().await?;
        self.take(space)?.ok_or_else(|| RingsEnd::Broken("a record vanished".to_owned()))
    }

    /// Returns when there is a record.
    ///
    /// # Errors
    /// When the program has gone or breaks the protocol.
    pub async fn wait_record(&mut self) -> Result<(), RingsEnd> {
        loop {
            if self.from_program.try_peek()?.is_some() {
                return Ok(());
            }
            if self.from_program.arm()? {
                wait(&self.record_bell, &self.alive).await?;
                self.from_program.drain_bell();
            }
        }
    }

    /// The next record of the program, if there is one.
    ///
    /// # Errors
    /// When the program has gone or breaks the protocol.
    pub fn take(&mut self, space: &mut [u8]) -> Result<Option<Asked>, RingsEnd> {
        let Some(record) = self.from_program.try_peek()? else { return Ok(None) };
        let (tag, argument, len) = (record.tag(), record.arg(), record.len());
        let range = || {
            door::unpack_range(argument)
                .ok_or_else(|| RingsEnd::Broken(format!("chunk range {argument:#x} that no content has")))
        };
        let asked = match tag {
            door::PUT_DATA => {
                let Some(to) = space.get_mut(..len) else {
                    return Err(RingsEnd::Broken(format!("{len} bytes of data where {} fit", space.len())));
                };
                record.copy_to(to);
                Asked::Data { offset: argument, len }
            }
            door::PUT_END => Asked::End { size: argument },
            door::READ => Asked::Read(range()?),
            door::WANT => Asked::Want(range()?),
            door::FOLLOW => Asked::Follow(range()?),
            other => return Err(RingsEnd::Broken(format!("a record with the unknown tag {other}"))),
        };
        record.release();
        Ok(Some(asked))
    }

    /// Sends a record, as soon as there is room.
    ///
    /// # Errors
    /// When the program has gone or breaks the protocol.
    pub async fn send(&mut self, tag: u32, argument: u64, payload: &[u8]) -> Result<(), RingsEnd> {
        loop {
            if self.try_send(tag, argument, payload)? {
                return Ok(());
            }
            if self.to_program.arm(payload.len())? {
                wait(&self.space_bell, &self.alive).await?;
                self.to_program.drain_bell();
            }
        }
    }

    /// Sends a record if there is room now; says whether there was.
    ///
    /// # Errors
    /// When the program has gone or breaks the protocol.
    pub fn try_send(&mut self, tag: u32, argument: u64, payload: &[u8]) -> Result<bool, RingsEnd> {
        Ok(self.to_program.try_push(tag, argument, payload)?)
    }

    /// Whether a record with so many bytes has room now.
    ///
    /// # Errors
    /// When the program has gone or breaks the protocol.
    pub fn has_room(&mut self, len: usize) -> Result<bool, RingsEnd> {
        Ok(self.to_program.try_claim(door::DATA, 0, len)?.is_some())
    }

    /// Tells the program why nothing more will come.
    pub async fn fail(&mut self, failure: &Failure) {
        // A program that has gone does not need to be told.
        let _ = self.send(door::FAILED, u64::from(failure.code.number()), failure.text.as_bytes()).await;
    }
}

/// Returns when the bell rang; fails when the program's end of the socket is closed.
async fn wait(bell: &AsyncFd<OwnedFd>, alive: &UnixStream) -> Result<(), RingsEnd> {
    tokio::select! {
        ready = bell.readable() => { ready?.clear_ready(); Ok(()) }
        () = closed(alive) => Err(RingsEnd::Gone),
    }
}

/// Returns when the other end of a socket, on which nothing is ever sent any more, is closed.
async fn closed(alive: &UnixStream) {
    let mut byte = [0];
    loop {
        if alive.readable().await.is_err() {
            return;
        }
        match alive.try_read(&mut byte) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            // The end, an error, or bytes where none belong: either way there is nobody to serve.
            _ => return,
        }
    }
}

impl AsFd for Rings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.alive.as_fd()
    }
}
