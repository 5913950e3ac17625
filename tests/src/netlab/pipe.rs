//! The model of one direction: packets and the time go in, packets and times come out. It has no hands: no clock, no
//! devices, no bytes of packets. Whoever drives it keeps the packets, and gives it something to know each by.
//!
//! ```text
//! offer ---> queue, drop tail ---> sent at the rate ---> lost? ---> delay and jitter ---> poll
//! ```
//!
//! The times at which packets are sent and arrive follow from the times at which they were offered alone: a driver that
//! calls late gets the same answers later.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::chance::{Chance, Loss};
use super::counters::Counters;
use super::link::Link;

/// Nanoseconds since the start of a lab.
pub type Nanos = u64;

/// Packets for which there is memory from the beginning.
const PACKETS: usize = 4096;

/// What becomes of a packet that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It is in the queue.
    Taken,
    /// It is in the queue, which was long: mark it.
    Marked,
    /// The queue has no room: it is gone.
    Dropped,
}

/// A packet leaves the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure<P> {
    /// It arrived.
    Arrived {
        /// Which.
        packet: P,
        /// When; not after the time of the poll.
        at: Nanos,
    },
    /// It was lost by chance.
    Lost {
        /// Which.
        packet: P,
    },
}

#[derive(Debug)]
struct Waiting<P> {
    packet: P,
    bytes: u32,
}

/// Sent, not lost, not yet there.
#[derive(Debug)]
struct Flying<P> {
    arrives: Nanos,
    /// Packets that arrive at one time do so in the order in which they were sent.
    order: u64,
    bytes: u32,
    packet: P,
}

impl<P> Ord for Flying<P> {
    /// The one that arrives first is the greatest, as the heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.arrives, other.order).cmp(&(self.arrives, self.order))
    }
}

impl<P> PartialOrd for Flying<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> PartialEq for Flying<P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<P> Eq for Flying<P> {}

/// One direction of a link. Times given to it never go back.
#[derive(Debug)]
pub struct Pipe<P> {
    link: Link,
    queue_bytes_max: u64,
    /// 0 = as fast as they come.
    nanos_per_byte: f64,
    /// The front is being sent.
    queue: VecDeque<Waiting<P>>,
    queue_bytes: u64,
    /// When the front of the queue has been sent; means nothing while the queue is empty.
    front_sent_at: Nanos,
    flying: BinaryHeap<Flying<P>>,
    /// No packet arrives before this unless it may overtake.
    last_arrival: Nanos,
    lost: VecDeque<P>,
    loss: Loss,
    /// Apart from `loss`, so that jitter does not change which packets are lost.
    jitter: Chance,
    counters: Counters,
    queue_byte_nanos: u128,
    queue_known_at: Nanos,
}

impl<P> Pipe<P> {
    /// A direction that is `link`, where packets of the other direction take `back`. Of the same seed, other streams
    /// have chance of their own.
    #[must_use]
    pub fn new(link: Link, back: Duration, seed: u64, stream: u64) -> Self {
        Self {
            queue_bytes_max: link.queue_bytes_max(back),
            nanos_per_byte: nanos_per_byte(&link),
            queue: VecDeque::with_capacity(PACKETS),
            queue_bytes: 0,
            front_sent_at: 0,
            flying: BinaryHeap::with_capacity(PACKETS),
            last_arrival: 0,
            lost: VecDeque::with_capacity(PACKETS),
            loss: Loss::new(Chance::new(seed, 2 * stream), link.loss_pct, link.burst),
            jitter: Chance::new(seed, 2 * stream + 1),
            counters: Counters::default(),
            queue_byte_nanos: 0,
            queue_known_at: 0,
            link,
        }
    }

    /// What it is now.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Packets that have neither arrived nor been lost.
    #[must_use]
    pub fn packets(&self) -> usize {
        self.queue.len() + self.flying.len() + self.lost.len()
    }

    /// What it did until `now`.
    #[must_use]
    pub fn counters(&mut self, now: Nanos) -> Counters {
        self.send_until(now);
        let mut counters = self.counters.clone();
        counters.at = Duration::from_nanos(now);
        counters.queue_byte_s = self.queue_byte_nanos as f64 / 1e9;
        counters
    }

    /// A packet of `bytes` came to the queue.
    pub fn offer(&mut self, packet: P, bytes: u32, ecn_capable: bool, now: Nanos) -> Offer {
        self.send_until(now);
        self.counters.offered_packets += 1;
        self.counters.offered_bytes += u64::from(bytes);
        let queued = self.queue_bytes;
        if self.queue.is_empty() {
            self.front_sent_at = now + self.send_nanos(bytes);
        } else if queued + u64::from(bytes) > self.queue_bytes_max {
            self.counters.dropped_packets += 1;
            return Offer::Dropped;
        }
        self.queue.push_back(Waiting { packet, bytes });
        self.queue_bytes += u64::from(bytes);
        self.counters.queue_bytes_max = self.counters.queue_bytes_max.max(self.queue_bytes);
        if ecn_capable && self.link.ecn_bytes.is_some_and(|threshold| queued > threshold) {
            self.counters.marked_packets += 1;
            return Offer::Marked;
        }
        Offer::Taken
    }

    /// It is another link from now on. The rest of the packet being sent goes at the new rate; packets under way keep
    /// their time of arrival; packets in a queue that became too small stay.
    pub fn change(&mut self, link: Link, back: Duration, now: Nanos) {
        self.send_until(now);
        let nanos_per_byte = nanos_per_byte(&link);
        if !self.queue.is_empty() && self.nanos_per_byte > 0.0 {
            let rest_bytes = self.front_sent_at.saturating_sub(now) as f64 / self.nanos_per_byte;
            self.front_sent_at = now + (rest_bytes * nanos_per_byte) as Nanos;
        }
        self.nanos_per_byte = nanos_per_byte;
        self.queue_bytes_max = link.queue_bytes_max(back);
        if (link.loss_pct, link.burst) != (self.link.loss_pct, self.link.burst) {
            self.loss.change(link.loss_pct, link.burst);
        }
        self.link = link;
    }

    /// The next packet that has arrived or was lost; packets that arrived come in the order of their arrival.
    pub fn poll(&mut self, now: Nanos) -> Option<Departure<P>> {
        self.send_until(now);
        if let Some(packet) = self.lost.pop_front() {
            return Some(Departure::Lost { packet });
        }
        if self.flying.peek()?.arrives > now {
            return None;
        }
        let Flying { packet, arrives, bytes, .. } = self.flying.pop()?;
        self.counters.delivered_packets += 1;
        self.counters.delivered_bytes += u64::from(bytes);
        let late = Duration::from_nanos(now - arrives);
        self.counters.late_sum += late;
        self.counters.late_max = self.counters.late_max.max(late);
        Some(Departure::Arrived { packet, at: arrives })
    }

    /// When to poll again: no packet arrives before. `None` = there is none.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Nanos> {
        let flying = self.flying.peek().map(|first| first.arrives);
        let soonest = nanos(self.link.delay.saturating_sub(self.link.jitter));
        let waiting = (!self.queue.is_empty()).then_some(self.front_sent_at + soonest);
        flying.into_iter().chain(waiting).min()
    }

    /// Sends what the link has sent by then, each packet at its own time.
    fn send_until(&mut self, now: Nanos) {
        while self.front_sent_at <= now
            && let Some(Waiting { packet, bytes }) = self.queue.pop_front()
        {
            let sent_at = self.front_sent_at;
            self.sum_up_queue(sent_at);
            self.queue_bytes -= u64::from(bytes);
            if let Some(next) = self.queue.front() {
                self.front_sent_at = sent_at + self.send_nanos(next.bytes);
            }
            self.leave(packet, bytes, sent_at);
        }
        self.sum_up_queue(now);
    }

    fn leave(&mut self, packet: P, bytes: u32, sent_at: Nanos) {
        let order = self.counters.sent_packets;
        self.counters.sent_packets += 1;
        self.counters.sent_bytes += u64::from(bytes);
        if self.loss.strikes() {
            self.counters.lost_packets += 1;
            self.lost.push_back(packet);
            return;
        }
        let mut arrives = sent_at + nanos(self.link.delay);
        if !self.link.jitter.is_zero() {
            let jitter = nanos(self.link.jitter);
            arrives = arrives - jitter + (self.jitter.share() * 2.0 * jitter as f64) as Nanos;
        }
        if !self.link.reorder {
            arrives = arrives.max(self.last_arrival);
        }
        self.last_arrival = self.last_arrival.max(arrives);
        self.flying.push(Flying { arrives, order, bytes, packet });
    }

    fn send_nanos(&self, bytes: u32) -> Nanos {
        (f64::from(bytes) * self.nanos_per_byte).round() as Nanos
    }

    fn sum_up_queue(&mut self, until: Nanos) {
        let since = until.saturating_sub(self.queue_known_at);
        self.queue_byte_nanos += u128::from(self.queue_bytes) * u128::from(since);
        self.queue_known_at = self.queue_known_at.max(until);
    }
}

fn nanos_per_byte(link: &Link) -> f64 {
    link.rate_mbit.map_or(0.0, |rate_mbit| 8e3 / rate_mbit)
}

fn nanos(time: Duration) -> Nanos {
    Nanos::try_from(time.as_nanos()).unwrap_or(Nanos::MAX)
}

#[cfg(test)]
#[path = "pipe_tests.rs"]
mod tests;
