//! What a link is like: whole values, checked before anything is built from them.

use std::time::Duration;

/// MTU of the devices without another wish, in bytes: what is left of 1500 after a tunnel or two.
pub const MTU_DEFAULT: u32 = 1400;
/// Smallest MTU, in bytes: what every IPv4 host must take.
pub const MTU_MIN: u32 = 576;
/// Largest MTU, in bytes: a jumbo frame.
pub const MTU_MAX: u32 = 9000;
/// Slowest link, in Mbit/s.
pub const RATE_MBIT_MIN: f64 = 0.01;
/// Fastest link that has a rate at all, in Mbit/s.
pub const RATE_MBIT_MAX: f64 = 100_000.0;
/// Longest delay of one direction.
pub const DELAY_MAX: Duration = Duration::from_secs(10);

/// The round trip for which a queue is made when the link has no delay.
const QUEUE_TIME_WITHOUT_DELAY: Duration = Duration::from_millis(50);
/// A queue made from the bandwidth-delay product holds at least two packets of this size, in bytes.
const QUEUE_BYTES_MIN: u64 = 2 * MTU_DEFAULT as u64;

/// How much one direction of a link queues before it drops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Queue {
    /// This many bandwidth-delay products, above 0: the direction's rate times the delays of both directions (50 ms when
    /// there is none). It follows when rate or delay change.
    Bdp(f64),
    /// This many bytes. One packet always finds room in an empty queue.
    Bytes(u64),
}

/// One direction of a link.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// Mbit/s of IP packets, [`RATE_MBIT_MIN`] to [`RATE_MBIT_MAX`]; `None` = as fast as they come, without a queue.
    pub rate_mbit: Option<f64>,
    /// How much it queues.
    pub queue: Queue,
    /// Time from sent to arrived, 0 to [`DELAY_MAX`].
    pub delay: Duration,
    /// How much sooner or later than `delay` a packet may arrive, 0 to `delay`; all amounts have the same chance.
    pub jitter: Duration,
    /// Whether jitter lets a packet overtake another.
    pub reorder: bool,
    /// Packets lost by chance, of 100, on average.
    pub loss_pct: f64,
    /// How many packets are lost in a row on average, 1 and more: a chain of two states, one of which loses everything
    /// (Gilbert). `None` = each packet has its own chance.
    pub burst: Option<f64>,
    /// Bytes in the queue above which packets that are ECN capable are marked; `None` = never.
    pub ecn_bytes: Option<u64>,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            rate_mbit: None,
            queue: Queue::Bdp(1.0),
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            reorder: false,
            loss_pct: 0.0,
            burst: None,
            ecn_bytes: None,
        }
    }
}

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From namespace A to B.
    AToB,
    /// From namespace B to A.
    BToA,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::AToB, Self::BToA];

    /// Its place in pairs.
    pub(super) fn index(self) -> usize {
        match self {
            Self::AToB => 0,
            Self::BToA => 1,
        }
    }
}

/// A direction becomes another link at a given time.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// When, counted from the start of the lab.
    pub at: Duration,
    /// Which way.
    pub direction: Direction,
    /// What it is from then on, all of it.
    pub link: Link,
}

/// A whole lab.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The way from A to B.
    pub a_to_b: Link,
    /// The way from B to A.
    pub b_to_a: Link,
    /// MTU of the devices in bytes, [`MTU_MIN`] to [`MTU_MAX`].
    pub mtu: u32,
    /// Fixes all chance.
    pub seed: u64,
    /// Changes over time, in any order.
    pub schedule: Vec<Change>,
}

impl Settings {
    /// The same link both ways, with seed 1 and nothing that changes.
    #[must_use]
    pub fn both_ways(link: Link) -> Self {
        Self { a_to_b: link.clone(), b_to_a: link, mtu: MTU_DEFAULT, seed: 1, schedule: Vec::new() }
    }

    /// Whether all of it can be.
    ///
    /// # Errors
    /// What cannot be.
    pub fn check(&self) -> Result<(), LinkError> {
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return Err(LinkError::Mtu { mtu: self.mtu });
        }
        self.a_to_b.check()?;
        self.b_to_a.check()?;
        self.schedule.iter().try_for_each(|change| change.link.check())
    }
}

/// Why a link cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LinkError {
    /// The rate is out of bounds.
    #[error("a rate of {rate_mbit} Mbit/s; it must be {RATE_MBIT_MIN} to {RATE_MBIT_MAX}")]
    Rate {
        /// Mbit/s.
        rate_mbit: f64,
    },
    /// The delay is out of bounds.
    #[error("a delay of {delay:?}; the most is {DELAY_MAX:?}")]
    Delay {
        /// The delay.
        delay: Duration,
    },
    /// A packet would arrive before it was sent.
    #[error("a jitter of {jitter:?} needs a delay at least as long, not {delay:?}")]
    Jitter {
        /// The jitter.
        jitter: Duration,
        /// The delay.
        delay: Duration,
    },
    /// The loss is out of bounds.
    #[error("a loss of {loss_pct} %; it must be 0 to 100")]
    Loss {
        /// Per cent.
        loss_pct: f64,
    },
    /// No chain of two states loses so much in so short bursts.
    #[error(
        "a loss of {loss_pct} % cannot come in bursts of {burst} packets: bursts must be 1 or more, and longer for a loss above 50 %"
    )]
    Burst {
        /// Per cent.
        loss_pct: f64,
        /// Packets.
        burst: f64,
    },
    /// The queue holds nothing.
    #[error("a queue of {bdp} bandwidth-delay products; it must be above 0, and below 1000")]
    Queue {
        /// Bandwidth-delay products.
        bdp: f64,
    },
    /// The MTU is out of bounds.
    #[error("an MTU of {mtu} bytes; it must be {MTU_MIN} to {MTU_MAX}")]
    Mtu {
        /// Bytes.
        mtu: u32,
    },
}

impl Link {
    /// Whether this can be.
    ///
    /// # Errors
    /// What cannot be.
    pub fn check(&self) -> Result<(), LinkError> {
        if let Some(rate_mbit) = self.rate_mbit
            && !(RATE_MBIT_MIN..=RATE_MBIT_MAX).contains(&rate_mbit)
        {
            return Err(LinkError::Rate { rate_mbit });
        }
        if self.delay > DELAY_MAX {
            return Err(LinkError::Delay { delay: self.delay });
        }
        if self.jitter > self.delay {
            return Err(LinkError::Jitter { jitter: self.jitter, delay: self.delay });
        }
        if !(0.0..=100.0).contains(&self.loss_pct) {
            return Err(LinkError::Loss { loss_pct: self.loss_pct });
        }
        if let Some(burst) = self.burst {
            let share = self.loss_pct / 100.0;
            // Between two bursts at least one packet arrives.
            let possible = burst.is_finite() && burst >= 1.0 && (share >= 1.0 || share <= burst / (burst + 1.0));
            if !possible {
                return Err(LinkError::Burst { loss_pct: self.loss_pct, burst });
            }
        }
        match self.queue {
            Queue::Bdp(bdp) if !(bdp > 0.0 && bdp < 1000.0) => Err(LinkError::Queue { bdp }),
            Queue::Bdp(_) | Queue::Bytes(_) => Ok(()),
        }
    }

    /// Bytes this direction queues when the other one has the delay `back`.
    #[must_use]
    pub fn queue_bytes_max(&self, back: Duration) -> u64 {
        match (self.queue, self.rate_mbit) {
            (Queue::Bytes(bytes), _) => bytes,
            // It sends whatever comes at once.
            (Queue::Bdp(_), None) => u64::MAX,
            (Queue::Bdp(bdp), Some(rate_mbit)) => {
                let round_trip = match self.delay + back {
                    Duration::ZERO => QUEUE_TIME_WITHOUT_DELAY,
                    round_trip => round_trip,
                };
                let bytes = bdp * rate_mbit * 1e6 / 8.0 * round_trip.as_secs_f64();
                (bytes as u64).max(QUEUE_BYTES_MIN)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(rate_mbit: f64, delay_ms: u64) -> Link {
        Link { rate_mbit: Some(rate_mbit), delay: Duration::from_millis(delay_ms), ..Link::default() }
    }

    #[test]
    fn the_queue_is_one_bandwidth_delay_product_of_the_round_trip() {
        assert_eq!(link(100.0, 25).queue_bytes_max(Duration::from_millis(25)), 625_000);
        assert_eq!(link(100.0, 0).queue_bytes_max(Duration::ZERO), 625_000, "50 ms when there is no delay");
        assert_eq!(link(0.01, 1).queue_bytes_max(Duration::ZERO), 2800, "two packets at least");
        let half = Link { queue: Queue::Bdp(0.5), ..link(100.0, 25) };
        assert_eq!(half.queue_bytes_max(Duration::from_millis(75)), 625_000);
        assert_eq!(Link { queue: Queue::Bytes(9), ..link(100.0, 25) }.queue_bytes_max(Duration::ZERO), 9);
    }

    #[test]
    fn links_that_cannot_be_are_refused() {
        assert_eq!(link(100.0, 25).check(), Ok(()));
        for bad in [
            link(0.0, 0),
            link(f64::NAN, 0),
            link(1.0, 10_001),
            Link { jitter: Duration::from_millis(2), ..link(1.0, 1) },
            Link { loss_pct: 100.1, ..Link::default() },
            Link { loss_pct: -1.0, ..Link::default() },
            Link { loss_pct: 60.0, burst: Some(1.0), ..Link::default() },
            Link { loss_pct: 1.0, burst: Some(0.5), ..Link::default() },
            Link { queue: Queue::Bdp(0.0), ..Link::default() },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        let settings = Settings::both_ways(Link::default());
        assert!(Settings { mtu: 100, ..settings.clone() }.check().is_err());
        let change = Change { at: Duration::ZERO, direction: Direction::AToB, link: link(0.0, 0) };
        assert!(Settings { schedule: vec![change], ..settings }.check().is_err());
    }
}
