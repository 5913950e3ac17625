//! The fault switch: a UDP socket that loses datagrams, so that repair can be seen and tested on any machine.
//!
//! Losing on arrival at both ends of a path loses in both directions. Which datagrams are lost is fixed by the seed and
//! their order of arrival. Programs refuse the switch unless a demonstration or a test turns it on.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// How much to lose, and the seed of which.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// Datagrams lost of each 100.
    pub loss_pct: f64,
    /// Makes the same run lose the same datagrams.
    pub seed: u64,
}

/// Decides datagram by datagram.
#[derive(Debug)]
struct Dice {
    state: u64,
    /// A draw below this is a loss.
    threshold: u64,
}

impl Dice {
    fn new(fault: Fault) -> Self {
        /// 2^64 as a float: a draw is uniform below it.
        const DRAWS: f64 = 18_446_744_073_709_551_616.0;
        let share = (fault.loss_pct / 100.0).clamp(0.0, 1.0);
        // A float-to-integer cast saturates, so 100 % is the largest threshold.
        Self { state: fault.seed, threshold: (share * DRAWS) as u64 }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): one addition and three multiplications a draw, good enough for dice.
    fn loses(&mut self) -> bool {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) < self.threshold
    }
}

/// A socket that loses some of what arrives.
pub struct FaultSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    dice: Mutex<Dice>,
    dropped: Arc<AtomicU64>,
}

impl FaultSocket {
    /// Wraps a socket. `dropped` counts what it loses.
    #[must_use]
    pub fn new(inner: Arc<dyn AsyncUdpSocket>, fault: Fault, dropped: Arc<AtomicU64>) -> Self {
        Self { inner, dice: Mutex::new(Dice::new(fault)), dropped }
    }
}

impl fmt::Debug for FaultSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultSocket({:?})", self.inner)
    }
}

impl AsyncUdpSocket for FaultSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(received) = self.inner.poll_recv(cx, bufs, meta)? else { return Poll::Pending };
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dropped = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta.iter_mut()).take(received) {
            dropped += lose(buffer, meta, || dice.loses());
        }
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Takes lost datagrams out of a buffer that holds one or (with GRO) several, closing the gaps; says how many.
fn lose(buffer: &mut [u8], meta: &mut RecvMeta, mut loses: impl FnMut() -> bool) -> u64 {
    let len = meta.len.min(buffer.len());
    let stride = meta.stride.max(1);
    let (mut kept, mut dropped, mut start) = (0, 0, 0);
    while start < len {
        let end = len.min(start + stride);
        if loses() {
            dropped += 1;
        } else {
            buffer.copy_within(start..end, kept);
            kept += end - start;
        }
        start = end;
    }
    meta.len = kept;
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_close_the_gap_in_a_batch() {
        let mut buffer = *b"aaabbbcccd";
        let mut meta = RecvMeta { len: 10, stride: 3, ..RecvMeta::default() };
        let mut fates = [false, true, false, false].into_iter();
        assert_eq!(lose(&mut buffer, &mut meta, || fates.next().unwrap()), 1);
        assert_eq!(&buffer[..meta.len], b"aaacccd");
        let mut meta = RecvMeta { len: 10, stride: 3, ..RecvMeta::default() };
        assert_eq!(lose(&mut buffer, &mut meta, || true), 4);
        assert_eq!(meta.len, 0);
    }

    #[test]
    fn the_share_lost_is_the_share_asked_for_and_repeats_with_the_seed() {
        for loss_pct in [0.0, 0.5, 5.0, 100.0] {
            let draw = |seed| {
                let mut dice = Dice::new(Fault { loss_pct, seed });
                (0..200_000).filter(|_| dice.loses()).count()
            };
            let share = draw(1) as f64 / 2000.0;
            assert!((share - loss_pct).abs() < 0.2, "{share} % lost of {loss_pct} % asked");
            assert_eq!(draw(7), draw(7));
        }
    }
}
