//! The end that fills a ring: claim, fill, publish.

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

/// The filling end of a ring. `Send`, not `Sync`: one thread at a time.
#[derive(Debug)]
pub struct Producer {
    segment: Segment,
    /// Bytes published; our own copy of the word that only we write.
    tail: u64,
    /// The consumer's position as last seen; looked at again only when the ring seems full.
    head_seen: u64,
    over: Option<RingError>,
    announced: bool,
    #[cfg(not(loom))]
    own_bell: Bell,
    #[cfg(not(loom))]
    other_bell: Bell,
    #[cfg(loom)]
    rang: std::cell::Cell<bool>,
}

impl Producer {
    #[cfg(not(loom))]
    pub(crate) fn new(segment: Segment, own_bell: Bell, other_bell: Bell) -> Self {
        Self { segment, tail: 0, head_seen: 0, over: None, announced: false, own_bell, other_bell }
    }

    /// An end on the heap, for loom.
    #[cfg(loom)]
    pub(crate) fn new(segment: Segment) -> Self {
        Self { segment, tail: 0, head_seen: 0, over: None, announced: false, rang: std::cell::Cell::new(false) }
    }

    fn header(&self) -> &Header {
        self.segment.header()
    }

    /// Bytes of payload in a record at most.
    #[must_use]
    pub fn record_max(&self) -> usize {
        record_max(self.segment.capacity())
    }

    /// Room for a record with `len` bytes of payload; `None` when the ring is full.
    ///
    /// # Errors
    /// [`RingError::TooLong`], [`RingError::Closed`], or [`RingError::Corrupt`] from then on.
    pub fn try_claim(&mut self, tag: u32, arg: u64, len: usize) -> Result<Option<Claim<'_>>, RingError> {
        self.announced_no_more();
        match self.room(len)? {
            None => Ok(None),
            Some(padding) => {
                if padding > 0 {
                    self.pad(padding);
                }
                Ok(Some(Claim { tag, arg, len, producer: self }))
            }
        }
    }

    /// Publishes a record if there is room; says whether there was.
    ///
    /// # Errors
    /// As [`try_claim`](Self::try_claim).
    pub fn try_push(&mut self, tag: u32, arg: u64, payload: &[u8]) -> Result<bool, RingError> {
        let Some(mut claim) = self.try_claim(tag, arg, payload.len())? else { return Ok(false) };
        claim.write(0, payload);
        claim.publish(payload.len());
        Ok(true)
    }

    /// Whether a record with `len` bytes fits now: `Some(bytes of padding before it)`.
    fn room(&mut self, len: usize) -> Result<Option<usize>, RingError> {
        if let Some(over) = self.over {
            return Err(over);
        }
        let max = self.record_max();
        if len > max {
            return Err(RingError::TooLong { len, max });
        }
        let capacity = u64::from(self.segment.capacity());
        let to_end = usize::try_from(capacity - self.tail % capacity).unwrap_or(0);
        let padding = if stride(len) > to_end { to_end } else { 0 };
        let needed = (padding + stride(len)) as u64;
        if capacity - (self.tail - self.head_seen) >= needed {
            return Ok(Some(padding));
        }
        self.look_at_head()?;
        if self.header().consumer.closed.load(Ordering::Acquire) != 0 {
            return Err(RingError::Closed);
        }
        Ok((capacity - (self.tail - self.head_seen) >= needed).then_some(padding))
    }

    fn look_at_head(&mut self) -> Result<(), RingError> {
        // Acquire pairs with the consumer's Release in `release`: it has finished reading below this position.
        let head = self.header().consumer.position.load(Ordering::Acquire);
        let possible = (self.head_seen..=self.tail).contains(&head) && head.is_multiple_of(RECORD_ALIGN as u64);
        if !possible {
            return Err(*self.over.insert(RingError::Corrupt { what: "consumer position", value: head }));
        }
        self.head_seen = head;
        Ok(())
    }

    fn pad(&mut self, padding: usize) {
        self.write_header(padding - RECORD_HEADER, PADDING_TAG, 0);
        self.advance(padding);
    }

    fn place(&self) -> usize {
        usize::try_from(self.tail % u64::from(self.segment.capacity())).unwrap_or(0)
    }

    fn write_header(&self, len: usize, tag: u32, arg: u64) {
        let mut header = [0; RECORD_HEADER];
        let fields = u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes().into_iter().chain(tag.to_ne_bytes());
        for (to, from) in header.iter_mut().zip(fields.chain(arg.to_ne_bytes())) {
            *to = from;
        }
        self.segment.copy_in(self.place(), &header);
    }

    fn advance(&mut self, bytes: usize) {
        self.tail += bytes as u64;
        // Release pairs with the consumer's Acquire in `look_at_tail`: it sees the record whole.
        self.header().producer.position.store(self.tail, Ordering::Release);
    }

    /// Rings the consumer's bell if it sleeps.
    fn wake(&self) {
        // Pairs with the fence in the consumer's `arm`: either we see its announcement, or it sees our position.
        fence(Ordering::SeqCst);
        if self.header().consumer.asleep.load(Ordering::Relaxed) != 0 {
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

    /// Announces that this side sleeps until there is room for `len` bytes. `false`: there is room now, or the ring is
    /// over; do not sleep. After `true`, wait for [`bell`](Self::bell).
    ///
    /// # Errors
    /// As [`try_claim`](Self::try_claim).
    pub fn arm(&mut self, len: usize) -> Result<bool, RingError> {
        self.header().producer.asleep.store(1, Ordering::Relaxed);
        self.announced = true;
        // Pairs with the fence in the consumer's `wake`.
        fence(Ordering::SeqCst);
        match self.room(len) {
            Ok(None) => Ok(true),
            Ok(Some(_)) => {
                self.announced_no_more();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn announced_no_more(&mut self) {
        if self.announced {
            self.announced = false;
            self.header().producer.asleep.store(0, Ordering::Relaxed);
        }
    }

    /// Tells the consumer that nothing more will come. It still gets what was published.
    pub fn close(&mut self) {
        if self.over.is_none() {
            self.over = Some(RingError::Closed);
        }
        // Release pairs with the consumer's Acquire: whoever sees the end sees all that was published before it.
        self.header().producer.closed.store(1, Ordering::Release);
        self.ring_other();
    }
}

#[cfg(not(loom))]
impl Producer {
    /// What to wait on after [`arm`](Self::arm): readable when the consumer has moved.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.own_bell.fd()
    }

    /// Takes a ringing back after [`bell`](Self::bell) was readable.
    pub fn drain_bell(&self) {
        self.own_bell.drain();
    }

    /// Waits until there is room for `len` bytes. `alive`: the socket over which the ring was handed.
    ///
    /// # Errors
    /// [`RingError::PeerGone`], [`RingError::TimedOut`], else as [`try_claim`](Self::try_claim).
    pub fn wait_space(
        &mut self,
        len: usize,
        alive: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> Result<(), RingError> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            for _ in 0..SPINS_BEFORE_SLEEP {
                if self.room(len)?.is_some() {
                    self.announced_no_more();
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            if self.arm(len)? {
                wait(&self.own_bell, alive, deadline)?;
            }
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.close();
    }
}

/// Room for one record. Dropped without [`publish`](Self::publish), it was never there.
#[derive(Debug)]
pub struct Claim<'a> {
    producer: &'a mut Producer,
    tag: u32,
    arg: u64,
    len: usize,
}

impl Claim<'_> {
    /// Bytes of payload that fit.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the record has no payload.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes to `at` in the payload.
    ///
    /// # Panics
    /// When they do not fit: a fault of the caller.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "beyond the claim");
        if !bytes.is_empty() {
            self.producer.segment.copy_in(self.producer.place() + RECORD_HEADER + at, bytes);
        }
    }

    /// Lets the kernel read from a file straight into the payload from `at` to its end; says how many bytes it gave
    /// (0 = end of the file). `from`: offset in the file; `None` = where the file stands.
    ///
    /// # Errors
    /// [`RingError::System`] with what the file says.
    ///
    /// # Panics
    /// When `at` is beyond the claim: a fault of the caller.
    #[cfg(not(loom))]
    pub fn read_from(&mut self, at: usize, file: BorrowedFd<'_>, from: Option<u64>) -> Result<usize, RingError> {
        assert!(at <= self.len, "beyond the claim");
        let place = self.producer.place() + RECORD_HEADER + at;
        self.producer.segment.read_in(place, self.len - at, file, from)
    }

    /// Changes the argument.
    pub fn set_arg(&mut self, arg: u64) {
        self.arg = arg;
    }

    /// Makes the record, with its first `len` bytes, visible to the consumer.
    ///
    /// # Panics
    /// When `len` is more than was claimed: a fault of the caller.
    pub fn publish(self, len: usize) {
        assert!(len <= self.len, "more than was claimed");
        self.producer.write_header(len, self.tag, self.arg);
        self.producer.advance(stride(len));
        self.producer.wake();
    }
}
