//! The emulated paths that are measured, and what each could carry at best.

use std::time::Duration;

use crate::netlab::{Error, Lab, Link, MTU_DEFAULT, Queue, Settings};

/// Bytes of an IPv4 and a UDP header.
const IP_UDP: f64 = 28.0;
/// A short QUIC header: one byte of flags, a connection id of 8 bytes, a packet number of mostly 2.
const QUIC_HEADER: f64 = 11.0;
/// The tag of the packet's authenticated encryption.
const AEAD_TAG: f64 = 16.0;
/// Type, stream id, offset and length of a stream frame.
const STREAM_FRAME: f64 = 8.0;

/// Share of an IP packet of the lab's MTU that can be content: what QUIC must carry with it is not. 0.955 at 1400 bytes.
#[must_use]
pub fn payload_share() -> f64 {
    let mtu = f64::from(MTU_DEFAULT);
    (mtu - IP_UDP - QUIC_HEADER - AEAD_TAG - STREAM_FRAME) / mtu
}

/// A path, the same both ways.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// Mbit/s of IP packets.
    pub rate_mbit: f64,
    /// Round trip in ms.
    pub rtt_ms: u64,
    /// Packets lost by chance, of 100, each way.
    pub loss_pct: f64,
    /// Mean length of a loss; `None` = independent.
    pub burst: Option<f64>,
    /// Room of the queue in bandwidth-delay products.
    pub queue_bdp: f64,
    /// Queue above which packets are marked (ECN), in bandwidth-delay products; `None` = never.
    pub marks_bdp: Option<f64>,
    /// How early or late a packet may be in ms, each way, and whether it overtakes others then.
    pub jitter_ms: u64,
    /// See `jitter_ms`.
    pub reorder: bool,
}

impl Path {
    /// A path with a queue of one bandwidth-delay product that loses nothing by chance.
    #[must_use]
    pub fn new(rate_mbit: f64, rtt_ms: u64) -> Self {
        Self {
            rate_mbit,
            rtt_ms,
            loss_pct: 0.0,
            burst: None,
            queue_bdp: 1.0,
            marks_bdp: None,
            jitter_ms: 0,
            reorder: false,
        }
    }

    /// The same with independent loss.
    #[must_use]
    pub fn loss(self, loss_pct: f64) -> Self {
        Self { loss_pct, ..self }
    }

    /// One direction of it.
    #[must_use]
    pub fn link(&self) -> Link {
        Link {
            rate_mbit: Some(self.rate_mbit),
            queue: Queue::Bdp(self.queue_bdp),
            delay: Duration::from_micros(self.rtt_ms * 500),
            loss_pct: self.loss_pct,
            burst: self.burst,
            ecn_bytes: self.marks_bdp.map(|share| (share * self.bdp_bytes()) as u64),
            jitter: Duration::from_millis(self.jitter_ms),
            reorder: self.reorder,
        }
    }

    /// Brings it up.
    ///
    /// # Errors
    /// Not root, or a refusal of the operating system.
    pub fn lab(&self, seed: u64) -> Result<Lab, Error> {
        Lab::start(Settings { seed, ..Settings::both_ways(self.link()) })
    }

    /// Mbit/s of content that it can carry: rate x (1 - loss) x payload share.
    #[must_use]
    pub fn capacity_mbit(&self) -> f64 {
        self.rate_mbit * (1.0 - self.loss_pct / 100.0) * payload_share()
    }

    /// Its bandwidth-delay product in bytes.
    #[must_use]
    pub fn bdp_bytes(&self) -> f64 {
        self.rate_mbit * 1e6 / 8.0 * self.rtt_ms as f64 / 1e3
    }

    /// Its loss in words.
    #[must_use]
    pub fn loss_words(&self) -> String {
        match self.burst {
            Some(burst) => format!("{} % in bursts of {burst}", self.loss_pct),
            None if self.loss_pct > 0.0 => format!("{} %", self.loss_pct),
            None => "no loss".to_owned(),
        }
    }
}
