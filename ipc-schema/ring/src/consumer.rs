//! The end that empties a ring: peek, copy out, release.

#[cfg(not(loom))]
use std::os::fd::BorrowedFd;
#[cfg(not(loom))]
use std::time::{Duration, Instant};

use crate::atomics::{Ordering, fence};
#[cfg(not(loom))]
use crate::doorbell::{Bell, SPINS_BEFORE_SLEEP, wait};
use crate::error::RingError;
use crate::layout::{Header, PADDING_TAG, RECORD_ALIGN, RECORD_HEADER, record_max, stride};
use crate::segment::Segment;

/// The emptying end of a ring. `Send`, not `Sync`: one thread at a time.
#[derive(Debug)]
pub struct Consumer {
    segment: Segment,
    /// Bytes released; our own copy of the word that only we write.
    head: u64,
    /// The producer's position as last seen; looked at again only when the ring seems empty.
    tail_seen: u64,
    over: Option<RingError>,
    announced: bool,
    #[cfg(not(loom))]
    own_bell: Bell,
    #[cfg(not(loom))]
    other_bell: Bell,
    #[cfg(loom)]
    rang: std::cell::Cell<bool>,
}

/// A record's header, judged: it lies within what was published.
#[derive(Debug, Clone, Copy)]
struct Judged {
    len: usize,
    tag: u32,
    arg: u64,
}

impl Consumer {
    #[cfg(not(loom))]
    pub(crate) fn new(segment: Segment, own_bell: Bell, other_bell: Bell) -> Self {
        Self { segment, head: 0, tail_seen: 0, over: None, announced: false, own_bell, other_bell }
    }

    /// An end on the heap, for loom.
    #[cfg(loom)]
    pub(crate) fn new(segment: Segment) -> Self {
        Self { segment, head: 0, tail_seen: 0, over: None, announced: false, rang: std::cell::Cell::new(false) }
    }

    fn header(&self) -> &Header {
        self.segment.header()
    }

    /// The oldest record; `None` when the ring is empty.
    ///
    /// # Errors
    /// [`RingError::Closed`] when it is empty and the producer has ended, [`RingError::Corrupt`] from then on when the
    /// producer wrote what no producer writes.
    pub fn try_peek(&mut self) -> Result<Option<Record<'_>>, RingError> {
        self.announced_no_more();
        let judged = self.front()?;
        Ok(judged.map(|judged| Record { consumer: self, judged }))
    }

    /// Judges the oldest record, skipping padding: at most one, since a producer pads only at the end of the memory.
    fn front(&mut self) -> Result<Option<Judged>, RingError> {
        if let Some(over) = self.over {
            return Err(over);
        }
        for _ in 0..2 {
            if self.head == self.tail_seen && !self.look_at_tail()? {
                return Ok(None);
            }
            let judged = self.judge()?;
            if judged.tag != PADDING_TAG {
                return Ok(Some(judged));
            }
            let to_end = self.segment.capacity() as usize - self.place();
            if stride(judged.len) != to_end {
                return Err(self.corrupt("length of padding", judged.len as u64));
            }
            self.advance(to_end);
        }
        Err(self.corrupt("second padding in a row", 0))
    }

    /// Whether the producer has published more than was seen.
    fn look_at_tail(&mut self) -> Result<bool, RingError> {
        let closed = self.header().producer.closed.load(Ordering::Acquire);
        // Acquire pairs with the producer's Release in `advance`: records below this position are whole.
        let tail = self.header().producer.position.load(Ordering::Acquire);
        let published = tail.wrapping_sub(self.head);
        let possible = tail >= self.tail_seen
            && published <= u64::from(self.segment.capacity())
            && tail.is_multiple_of(RECORD_ALIGN as u64);
        if !possible {
            return Err(self.corrupt("producer position", tail));
        }
        self.tail_seen = tail;
        if published == 0 && closed != 0 {
            return Err(*self.over.insert(RingError::Closed));
        }
        Ok(published != 0)
    }

    /// Reads the front record's header once and judges the copy. At least one record is published.
    fn judge(&mut self) -> Result<Judged, RingError> {
        let mut header = [0; RECORD_HEADER];
        self.segment.copy_out(self.place(), &mut header);
        let [l0, l1, l2, l3, t0, t1, t2, t3, arg @ ..] = header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let tag = u32::from_ne_bytes([t0, t1, t2, t3]);
        let arg = u64::from_ne_bytes(arg);
        let to_end = self.segment.capacity() as usize - self.place();
        let published = self.tail_seen - self.head;
        let fits = stride(len) <= to_end && stride(len) as u64 <= published;
        if !fits || (tag != PADDING_TAG && len > record_max(self.segment.capacity())) {
            return Err(self.corrupt("record length", len as u64));
        }
        Ok(Judged { len, tag, arg })
    }

    fn corrupt(&mut self, what: &'static str, value: u64) -> RingError {
        *self.over.insert(RingError::Corrupt { what, value })
    }

    fn place(&self) -> usize {
        usize::try_from(self.head % u64::from(self.segment.capacity())).unwrap_or(0)
    }

    fn advance(&mut self, bytes: usize) {
        self.head += bytes as u64;
        // Release pairs with the producer's Acquire in `look_at_head`: our reads of the record are done.
        self.header().consumer.position.store(self.head, Ordering::Release);
        // Pairs with the fence in the producer's `arm`: either we see its announcement, or it sees our position.
        fence(Ordering::SeqCst);
        if self.header().producer.asleep.load(Ordering::Relaxed) != 0 {
            self.ring_other();
        }
    }

    fn ring_other(&self) {
        #[cfg(not(loom))]
        self.other_bell.ring();
        #[cfg(loom)]
        self.rang.set(true);
    }

    /// Whether this end has rung the other's bell.
    #[cfg(loom)]
    pub fn rang(&self) -> bool {
        self.rang.get()
    }

    /// Announces that this side sleeps until there is a record. `false`: there is one now; do not sleep. After `true`,
    /// wait for [`bell`](Self::bell).
    ///
    /// # Errors
    /// As [`try_peek`](Self::try_peek).
    pub fn arm(&mut self) -> Result<bool, RingError> {
        self.header().consumer.asleep.store(1, Ordering::Relaxed);
        self.announced = true;
        // Pairs with the fence in the producer's `wake`.
        fence(Ordering::SeqCst);
        let empty = self.front()?.is_none();
        if !empty {
            self.announced_no_more();
        }
        Ok(empty)
    }

    fn announced_no_more(&mut self) {
        if self.announced {
            self.announced = false;
            self.header().consumer.asleep.store(0, Ordering::Relaxed);
        }
    }

    /// Tells the producer that nothing more will be taken.
    pub fn close(&mut self) {
        if self.over.is_none() {
            self.over = Some(RingError::Closed);
        }
        self.header().consumer.closed.store(1, Ordering::Release);
        self.ring_other();
    }
}

#[cfg(not(loom))]
impl Consumer {
    /// What to wait on after [`arm`](Self::arm): readable when the producer has moved.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.own_bell.fd()
    }

    /// Takes a ringing back after [`bell`](Self::bell) was readable.
    pub fn drain_bell(&self) {
        self.own_bell.drain();
    }

    /// Waits until there is a record. `alive`: the socket over which the ring was handed.
    ///
    /// # Errors
    /// [`RingError::PeerGone`] when the ring is empty and the other process has gone, [`RingError::TimedOut`], else as
    /// [`try_peek`](Self::try_peek).
    pub fn wait_record(&mut self, alive: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<(), RingError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            for _ in 0..SPINS_BEFORE_SLEEP {
                if self.front()?.is_some() {
                    self.announced_no_more();
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            if !self.arm()? {
                return Ok(());
            }
            match wait(&self.own_bell, alive, deadline) {
                // It may have published its last records right before it went.
                Err(RingError::PeerGone) if self.front()?.is_some() => return Ok(()),
                result => result?,
            }
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.close();
    }
}

/// The oldest record of a ring. Dropped without [`release`](Self::release), it is there again at the next peek.
#[derive(Debug)]
pub struct Record<'a> {
    consumer: &'a mut Consumer,
    judged: Judged,
}

impl Record<'_> {
    /// What kind of record it is; the meaning is the users'.
    #[must_use]
    pub fn tag(&self) -> u32 {
        self.judged.tag
    }

    /// Its argument; the meaning is the users'.
    #[must_use]
    pub fn arg(&self) -> u64 {
        self.judged.arg
    }

    /// Bytes of payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.judged.len
    }

    /// Whether it has no payload.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.judged.len == 0
    }

    /// Copies the front of the payload: as many bytes as `to` has.
    ///
    /// # Panics
    /// When `to` is longer than the payload: a fault of the caller.
    pub fn copy_to(&self, to: &mut [u8]) {
        self.copy_range_to(0, to);
    }

    /// Copies payload from `at` on: as many bytes as `to` has.
    ///
    /// # Panics
    /// When that is beyond the payload: a fault of the caller.
    pub fn copy_range_to(&self, at: usize, to: &mut [u8]) {
        assert!(at.checked_add(to.len()).is_some_and(|end| end <= self.len()), "beyond the record");
        if !to.is_empty() {
            self.consumer.segment.copy_out(self.consumer.place() + RECORD_HEADER + at, to);
        }
    }

    /// Lets the kernel write `len` bytes of payload from `at` on straight to a file; says how many it took. `to`:
    /// offset in the file; `None` = where the file stands.
    ///
    /// # Errors
    /// [`RingError::System`] with what the file says.
    ///
    /// # Panics
    /// When that is beyond the payload: a fault of the caller.
    #[cfg(not(loom))]
    pub fn write_to(&self, at: usize, len: usize, file: BorrowedFd<'_>, to: Option<u64>) -> Result<usize, RingError> {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len()), "beyond the record");
        self.consumer.segment.write_out(self.consumer.place() + RECORD_HEADER + at, len, file, to)
    }

    /// Gives the record's memory back to the producer.
    pub fn release(self) {
        self.consumer.advance(stride(self.judged.len));
    }
}
