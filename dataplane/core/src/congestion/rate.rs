//! Samples of the rate at which packets arrive (draft-ietf-ccwg-bbr, section 4.1): how much arrived between the sending
//! of a packet and its acknowledgement, over the longer of the times that sending and acknowledging it took.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Moments of sending kept at most; the transport sends bursts that share one.
const MOMENTS_MAX: usize = 65_536;

/// What was true when packets were sent.
#[derive(Debug, Clone, Copy)]
struct Moment {
    sent: Instant,
    /// Bytes that had arrived by then, and when the last of them did.
    delivered: u64,
    delivered_at: Instant,
    /// When the first of the packets then in flight was sent.
    first_sent: Instant,
    limited: bool,
}

/// A rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Bytes a second.
    pub(super) rate: f64,
    /// The sender had nothing more to send: the path may carry more.
    pub(super) limited_by_sender: bool,
}

/// Takes the samples of one path.
#[derive(Debug, Clone)]
pub(super) struct Sampler {
    moments: VecDeque<Moment>,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    /// Until this much has arrived, what is in flight was sent by a sender without enough to send.
    limited_until: Option<u64>,
    /// The newest packet acknowledged since the last sample.
    newest: Option<Moment>,
    /// The first acknowledgement since nothing was in flight.
    train: Option<Train>,
}

/// Where a train of packets begins. A flight that is over before its first acknowledgement comes would be measured
/// over a whole round trip; between its own acknowledgements it shows the rate (packet trains: Jain and Routhier, 1986).
#[derive(Debug, Clone, Copy)]
struct Train {
    at: Instant,
    sent: Instant,
    delivered: u64,
}

impl Sampler {
    /// Nothing sent yet.
    #[must_use]
    pub(super) fn new(now: Instant) -> Self {
        Self {
            moments: VecDeque::new(),
            delivered: 0,
            delivered_at: now,
            first_sent: now,
            limited_until: None,
            newest: None,
            train: None,
        }
    }

    /// A packet was sent. `alone`: nothing else was in flight.
    pub(super) fn handle_sent(&mut self, now: Instant, alone: bool) {
        if alone {
            (self.first_sent, self.delivered_at) = (now, now);
            self.train = None;
        }
        if self.moments.back().is_some_and(|last| last.sent == now) {
            return;
        }
        if self.moments.len() >= MOMENTS_MAX {
            self.moments.pop_front();
        }
        self.moments.push_back(Moment {
            sent: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            limited: self.limited_until.is_some_and(|until| self.delivered <= until),
        });
    }

    /// A packet sent at `sent` has arrived.
    pub(super) fn handle_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        self.delivered_at = now;
        if self.newest.is_some_and(|newest| newest.sent >= sent) {
            return;
        }
        // The transport tells nothing of sending probes of the packet size, only of their arrival. The moment before makes their sample
        // slower than it was; the one after may be a microsecond ago, and made 274 Mbit/s of a path of 5.
        let after = self.moments.partition_point(|moment| moment.sent <= sent);
        if let Some(moment) = after.checked_sub(1).and_then(|at| self.moments.get(at)) {
            self.newest = Some(*moment);
        }
    }

    /// The rate that the packets acknowledged since the last call have shown. `idle`: there is nothing more to send than
    /// these bytes in flight.
    pub(super) fn sample(&mut self, now: Instant, idle: Option<u64>) -> Option<Sample> {
        if let Some(in_flight) = idle {
            self.limited_until = Some(self.delivered + in_flight);
        }
        let newest = self.newest.take()?;
        self.first_sent = newest.sent;
        // Older moments are only for packets that come late or never.
        while self.moments.front().is_some_and(|oldest| oldest.sent + KEEP < newest.sent) {
            self.moments.pop_front();
        }
        let sending = newest.sent.saturating_duration_since(newest.first_sent);
        let acking = now.saturating_duration_since(newest.delivered_at);
        let took = sending.max(acking);
        if took < TOO_SHORT {
            return None;
        }
        let rate = (self.delivered - newest.delivered) as f64 / took.as_secs_f64();
        // In a flight that goes on, the train is history; in one that ends, all there is.
        let train = self.train_rate(now, newest.sent);
        let rate = if idle.is_some() { rate.max(train) } else { rate };
        Some(Sample { rate, limited_by_sender: newest.limited })
    }

    /// The rate since the train began; 0 while it is short. The slower of sending and arriving counts.
    fn train_rate(&mut self, now: Instant, sent: Instant) -> f64 {
        let delivered = self.delivered;
        let train = *self.train.get_or_insert(Train { at: now, sent, delivered });
        let took = now.saturating_duration_since(train.at).max(sent.saturating_duration_since(train.sent));
        let bytes = delivered - train.delivered;
        if bytes < TRAIN_MIN || took < TOO_SHORT { 0.0 } else { bytes as f64 / took.as_secs_f64() }
    }
}

/// Bytes that make a train: shorter ones measure the grain of acknowledgements.
const TRAIN_MIN: u64 = 64 << 10;
/// Packets that come later than this after newer ones count without a sample.
const KEEP: Duration = Duration::from_secs(2);
/// Shorter times say nothing of a rate.
const TOO_SHORT: Duration = Duration::from_micros(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn a_packet_of_whose_sending_nothing_was_told_shows_no_higher_rate() {
        let zero = Instant::now();
        let at = |ms: f64| zero + Duration::from_secs_f64(ms / 1e3);
        let mut sampler = Sampler::new(zero);
        sampler.handle_sent(at(1.0), true);
        // A probe is sent after 2 ms, and a packet 30 us before the acknowledgement of the two comes.
        sampler.handle_sent(at(31.97), false);
        sampler.handle_ack(at(32.0), at(1.0), 1200);
        sampler.handle_ack(at(32.0), at(2.0), 1400);
        let sample = sampler.sample(at(32.0), None).unwrap();
        assert_eq!(sample.rate.round(), (2600.0 / 0.031_f64).round());

        // Before anything that was told of, it shows nothing.
        let mut sampler = Sampler::new(zero);
        sampler.handle_sent(at(31.97), true);
        sampler.handle_ack(at(32.0), at(2.0), 1400);
        assert_eq!(sampler.sample(at(32.0), None), None);
    }
}
