//! Chunk buffers: taken at need, given back on drop, never more than the pool's limit.
//!
//! Every chunk that is in this process lies in one of these, so the limit is the bound on payload memory. Buffers
//! cross threads and outlive their task (QUIC holds one until it is acknowledged), hence the lock; it is taken once a
//! chunk.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pangea_ipc::content::CHUNK_SIZE;
use pangea_ipc::ids::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes in a buffer.
pub const BUFFER_LEN: usize = CHUNK_SIZE as usize;

/// A pool of chunk buffers; clones share it.
#[derive(Debug, Clone)]
pub struct Pool {
    kept: Arc<Kept>,
    permits: Arc<Semaphore>,
}

#[derive(Debug)]
struct Kept {
    /// Buffers that were used and are free; empty at first, so that an idle worker takes no memory.
    free: Mutex<Vec<Box<[u8]>>>,
}

impl Pool {
    /// A pool of at most `buffers_max` buffers of [`BUFFER_LEN`] bytes.
    #[must_use]
    pub fn new(buffers_max: usize) -> Self {
        let kept = Arc::new(Kept { free: Mutex::new(Vec::with_capacity(buffers_max)) });
        Self { kept, permits: Arc::new(Semaphore::new(buffers_max)) }
    }

    /// A buffer, as soon as one is free. It has memory from the first call of [`Buffer::space`] on: the memory that was used
    /// last, which may still be in the cache.
    pub async fn take(&self) -> Buffer {
        // The semaphore is never closed; were it, an unlimited buffer would be worse than a panic.
        #[expect(clippy::expect_used, reason = "nothing closes the semaphore")]
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("an open semaphore");
        self.with(permit)
    }

    /// A buffer, if one is free now.
    #[must_use]
    pub fn try_take(&self) -> Option<Buffer> {
        Arc::clone(&self.permits).try_acquire_owned().ok().map(|permit| self.with(permit))
    }

    /// Buffers that could be taken now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.permits.available_permits()
    }

    fn with(&self, permit: OwnedSemaphorePermit) -> Buffer {
        Buffer { bytes: Box::default(), len: 0, kept: Arc::clone(&self.kept), _permit: permit }
    }
}

/// Memory for one chunk, of which the first [`len`](Self::len) bytes count.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    kept: Arc<Kept>,
    _permit: OwnedSemaphorePermit,
}

impl Buffer {
    /// Bytes that count.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// No byte counts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lets the first `len` bytes count; clipped to [`BUFFER_LEN`].
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(BUFFER_LEN);
    }

    /// The whole memory, whatever counts; its bytes are whatever was there before.
    pub fn space(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            let kept = self.kept.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            self.bytes = kept.unwrap_or_else(|| vec![0; BUFFER_LEN].into_boxed_slice());
        }
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if !bytes.is_empty() {
            self.kept.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        }
    }
}

/// A pool of which one node holds a share at most: whoever takes buffers and never gives them back stops itself alone.
#[derive(Debug)]
pub struct Shares {
    pool: Pool,
    each: usize,
    /// Room in the shares of the nodes that hold or wait for a buffer.
    nodes: RefCell<HashMap<NodeId, Weak<Semaphore>>>,
}

impl Shares {
    /// A pool of at most `buffers_max` buffers, of which a node holds at most `each`.
    #[must_use]
    pub fn new(buffers_max: usize, each: usize) -> Self {
        Self { pool: Pool::new(buffers_max), each, nodes: RefCell::default() }
    }

    /// A buffer for a node, as soon as there is one and its share has room; in the order in which it was asked for.
    pub async fn take(&self, node: NodeId) -> Shared {
        let room = self.room(node);
        #[expect(clippy::expect_used, reason = "nothing closes the semaphore")]
        let share = room.acquire_owned().await.expect("an open semaphore");
        Shared { buffer: self.pool.take().await, share }
    }

    /// Buffers that could be taken now by nodes with room in their share.
    #[must_use]
    pub fn free(&self) -> usize {
        self.pool.free()
    }

    fn room(&self, node: NodeId) -> Arc<Semaphore> {
        let mut nodes = self.nodes.borrow_mut();
        if let Some(room) = nodes.get(&node).and_then(Weak::upgrade) {
            return room;
        }
        nodes.retain(|_, room| room.strong_count() > 0);
        let room = Arc::new(Semaphore::new(self.each));
        nodes.insert(node, Arc::downgrade(&room));
        room
    }
}

/// A buffer that counts in its node's share.
#[derive(Debug)]
pub struct Shared {
    buffer: Buffer,
    share: OwnedSemaphorePermit,
}

impl Shared {
    /// Puts together what [`into_parts`](Self::into_parts) has taken apart.
    #[must_use]
    pub fn new(buffer: Buffer, share: OwnedSemaphorePermit) -> Self {
        Self { buffer, share }
    }

    /// The buffer, and what counts it in its node's share as long as it is kept.
    pub fn into_parts(self) -> (Buffer, OwnedSemaphorePermit) {
        (self.buffer, self.share)
    }

    /// Bytes that count.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// No byte counts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_pool_never_gives_more_than_its_limit_and_takes_back_what_is_dropped() {
        let pool = Pool::new(2);
        let first = pool.take().await;
        let second = pool.take().await;
        assert!(pool.try_take().is_none());
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.take().await.len() }
        });
        drop(first);
        assert_eq!(waiting.await.unwrap(), 0, "the waiter gets the buffer that was given back, with no byte counting");
        drop(second);
        assert_eq!(pool.free(), 2);
    }

    #[tokio::test]
    async fn a_node_that_gives_nothing_back_stops_itself_alone() {
        let shares = Shares::new(3, 2);
        let (greedy, modest) = (NodeId([1; 32]), NodeId([2; 32]));
        let first = shares.take(greedy).await;
        let _second = shares.take(greedy).await;
        let mut third = std::pin::pin!(shares.take(greedy));
        assert!(third.as_mut().now_or_never().is_none(), "its share is used up, though a buffer is free");
        drop(shares.take(modest).await);
        drop(first);
        assert!(third.now_or_never().is_some());
        assert_eq!(shares.nodes.borrow().len(), 2);
        // Shares that nobody uses are forgotten.
        let _other = shares.take(NodeId([3; 32])).await;
        assert!(!shares.nodes.borrow().contains_key(&modest));
    }

    #[tokio::test]
    async fn only_bytes_that_count_are_seen() {
        let pool = Pool::new(1);
        let mut buffer = pool.take().await;
        buffer.space()[..3].copy_from_slice(b"abc");
        assert!(buffer.as_ref().is_empty());
        buffer.set_len(3);
        assert_eq!(buffer.as_ref(), b"abc");
        buffer.set_len(usize::MAX);
        assert_eq!(buffer.len(), BUFFER_LEN);
    }
}
