//! What one direction did, counted by the thread that did it and copied out on demand.

use std::time::Duration;

use serde_json::{Value, json};

/// What one direction of a link did since it began.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counters {
    /// When these were true, counted from the start of the lab.
    pub at: Duration,
    /// Packets that came to the queue.
    pub offered_packets: u64,
    /// Bytes that came to the queue.
    pub offered_bytes: u64,
    /// Packets the link has sent: those that arrive and those lost by chance.
    pub sent_packets: u64,
    /// Bytes the link has sent.
    pub sent_bytes: u64,
    /// Packets that arrived.
    pub delivered_packets: u64,
    /// Bytes that arrived.
    pub delivered_bytes: u64,
    /// Packets lost by chance.
    pub lost_packets: u64,
    /// Packets that found no room in the queue.
    pub dropped_packets: u64,
    /// Packets marked as having met congestion.
    pub marked_packets: u64,
    /// Most bytes that were in the queue at once, the packet being sent among them.
    pub queue_bytes_max: u64,
    /// Bytes in the queue, summed up over time, in byte seconds.
    pub queue_byte_s: f64,
    /// Packets the emulator itself could not carry; 0 in a measurement that holds.
    pub failed_packets: u64,
    /// How late packets arrived because the emulator did not wake in time, summed up.
    pub late_sum: Duration,
    /// The latest that a packet arrived for that reason.
    pub late_max: Duration,
}

impl Counters {
    /// Bytes in the queue, averaged over time.
    #[must_use]
    pub fn queue_bytes_mean(&self) -> f64 {
        if self.at.is_zero() { 0.0 } else { self.queue_byte_s / self.at.as_secs_f64() }
    }

    /// How late packets arrived on average because the emulator did not wake in time.
    #[must_use]
    pub fn late_mean(&self) -> Duration {
        let packets = self.delivered_packets.max(1);
        Duration::from_nanos(u64::try_from(self.late_sum.as_nanos()).unwrap_or(u64::MAX) / packets)
    }

    /// What happened after `earlier`. The maxima stay those since the beginning.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            at: self.at.saturating_sub(earlier.at),
            offered_packets: self.offered_packets - earlier.offered_packets,
            offered_bytes: self.offered_bytes - earlier.offered_bytes,
            sent_packets: self.sent_packets - earlier.sent_packets,
            sent_bytes: self.sent_bytes - earlier.sent_bytes,
            delivered_packets: self.delivered_packets - earlier.delivered_packets,
            delivered_bytes: self.delivered_bytes - earlier.delivered_bytes,
            lost_packets: self.lost_packets - earlier.lost_packets,
            dropped_packets: self.dropped_packets - earlier.dropped_packets,
            marked_packets: self.marked_packets - earlier.marked_packets,
            queue_bytes_max: self.queue_bytes_max,
            queue_byte_s: self.queue_byte_s - earlier.queue_byte_s,
            failed_packets: self.failed_packets - earlier.failed_packets,
            late_sum: self.late_sum.saturating_sub(earlier.late_sum),
            late_max: self.late_max,
        }
    }

    /// The same as JSON, times in microseconds.
    #[must_use]
    pub fn json(&self) -> Value {
        let micros = |time: Duration| time.as_nanos() as f64 / 1e3;
        json!({
            "offered_packets": self.offered_packets,
            "offered_bytes": self.offered_bytes,
            "sent_packets": self.sent_packets,
            "sent_bytes": self.sent_bytes,
            "delivered_packets": self.delivered_packets,
            "delivered_bytes": self.delivered_bytes,
            "lost_packets": self.lost_packets,
            "dropped_packets": self.dropped_packets,
            "marked_packets": self.marked_packets,
            "queue_bytes_mean": self.queue_bytes_mean().round(),
            "queue_bytes_max": self.queue_bytes_max,
            "failed_packets": self.failed_packets,
            "late_mean_us": micros(self.late_mean()),
            "late_max_us": micros(self.late_max),
        })
    }
}

/// What a lab did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The way from A to B.
    pub a_to_b: Counters,
    /// The way from B to A.
    pub b_to_a: Counters,
    /// CPU time of the thread that carries the packets, the kernel's share of it included.
    pub cpu: Duration,
}

impl Report {
    /// What happened after `earlier`; see [`Counters::since`].
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            a_to_b: self.a_to_b.since(&earlier.a_to_b),
            b_to_a: self.b_to_a.since(&earlier.b_to_a),
            cpu: self.cpu.saturating_sub(earlier.cpu),
        }
    }

    /// The same as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "seconds": self.a_to_b.at.as_secs_f64(),
            "cpu_seconds": self.cpu.as_secs_f64(),
            "a_to_b": self.a_to_b.json(),
            "b_to_a": self.b_to_a.json(),
        })
    }
}
