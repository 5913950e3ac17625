//! One worker that a transfer takes chunks from: what it has, and what it was asked for.

use std::collections::VecDeque;
use std::ops::Range;

use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::ChunkIndex;
use pangea_ipc::door::{self, pack_range};
use pangea_ring::RingError;

use crate::door::OpenDoor;
use crate::error::ClientError;

#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) door: OpenDoor,
    /// Chunks that it can give.
    pub(crate) held: ChunkSet,
    /// Chunks asked for, in order.
    pub(crate) asked: VecDeque<ChunkIndex>,
    /// Of these, how many at the front are not wanted any more.
    pub(crate) stale: usize,
    /// What comes is sent unasked.
    pub(crate) followed: bool,
}

/// What became of a record for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Yes,
    NoRoom,
    /// There is nobody to tell: met again when its records are taken.
    Gone,
}

impl Source {
    /// A worker of which nothing is known yet, for a content of `bound` chunks.
    pub(crate) fn new(door: OpenDoor, bound: u32) -> Self {
        Self { door, held: ChunkSet::empty(bound), asked: VecDeque::new(), stale: 0, followed: false }
    }

    /// Tells the worker something about chunks.
    ///
    /// # Errors
    /// When it breaks the ring protocol.
    pub(crate) fn tell(&mut self, tag: u32, chunks: Range<ChunkIndex>) -> Result<Told, ClientError> {
        match self.door.channel.producer.try_push(tag, pack_range(chunks), &[]) {
            Ok(true) => Ok(Told::Yes),
            Ok(false) => Ok(Told::NoRoom),
            Err(RingError::Closed | RingError::PeerGone) => Ok(Told::Gone),
            Err(other) => Err(ClientError::Ring(other)),
        }
    }

    /// Lets chunks of a range be sent as they come, unasked, by a worker that knows how.
    ///
    /// # Errors
    /// As [`tell`](Self::tell).
    pub(crate) fn follow(&mut self, chunks: Range<ChunkIndex>) -> Result<(), ClientError> {
        self.followed = self.door.follows && self.tell(door::FOLLOW, chunks)? == Told::Yes;
        Ok(())
    }
}
