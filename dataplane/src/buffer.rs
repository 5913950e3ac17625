//! Chunk buffers: taken at need, given back on drop, never more than the pool's limit.
//!
//! Every chunk that is in this process lies in one of these, so the limit is the bound on payload memory. Buffers
//! cross threads and outlive their task (QUIC holds one until it is acknowledged), hence the lock; it is taken once a
//! chunk.

use std::sync::{Arc, Mutex, PoisonError};

use pangea_ipc::content::CHUNK_SIZE;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes in a buffer.
pub const BUFFER_LEN: usize = CHUNK_SIZE as usize;

/// A pool of chunk buffers; clones share it.
#[derive(Debug, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
}

#[derive(Debug)]
struct Shared {
    /// Buffers that were used and are free; empty at first, so that an idle worker takes no memory.
    free: Mutex<Vec<Box<[u8]>>>,
}

impl Pool {
    /// A pool of at most `buffers_max` buffers of [`BUFFER_LEN`] bytes.
    #[must_use]
    pub fn new(buffers_max: usize) -> Self {
        let shared = Arc::new(Shared { free: Mutex::new(Vec::with_capacity(buffers_max)) });
        Self { shared, permits: Arc::new(Semaphore::new(buffers_max)) }
    }

    /// A buffer, as soon as one is free. Its bytes are whatever was there before.
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
        let kept = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = kept.unwrap_or_else(|| vec![0; BUFFER_LEN].into_boxed_slice());
        Buffer { bytes, len: 0, shared: Arc::clone(&self.shared), _permit: permit }
    }
}

/// Memory for one chunk, of which the first [`len`](Self::len) bytes count.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    shared: Arc<Shared>,
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

    /// The whole memory, whatever counts.
    pub fn space(&mut self) -> &mut [u8] {
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
        self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

#[cfg(test)]
mod tests {
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
