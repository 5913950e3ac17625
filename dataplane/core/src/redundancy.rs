//! How much parity: pure functions of what the path has shown and what the policy allows.

use std::time::{Duration, Instant};

use pangea_ipc::policy::FecMode;

use crate::frame::Mode;

/// A sample counts only when this many packets were sent: fewer say nothing of a loss of a percent or two.
pub const SAMPLE_PACKETS_MIN: u64 = 64;
/// Weight of a new sample (RFC 6298 uses the same for round-trip times).
const SAMPLE_WEIGHT: f64 = 0.125;
/// A path that has shown no loss for this long is clean again.
const FORGET_AFTER: Duration = Duration::from_secs(30);

/// What share of the packets a path loses, from the sender's counts.
#[derive(Debug, Clone, Default)]
pub struct PathLoss {
    /// Smoothed share, 0 to 1; `None` before the first sample.
    share: Option<f64>,
    /// Counts at the last sample.
    sent: u64,
    lost: u64,
    last_loss: Option<Instant>,
}

impl PathLoss {
    /// Takes the connection's totals: packets sent, and of these, lost.
    pub fn handle_totals(&mut self, sent: u64, lost: u64, now: Instant) {
        let (new_sent, new_lost) = (sent.saturating_sub(self.sent), lost.saturating_sub(self.lost));
        if new_sent < SAMPLE_PACKETS_MIN {
            return;
        }
        (self.sent, self.lost) = (sent, lost);
        let sample = (new_lost as f64 / new_sent as f64).min(1.0);
        if new_lost > 0 {
            self.last_loss = Some(now);
        }
        self.share = Some(match self.share {
            None => sample,
            Some(share) => share + SAMPLE_WEIGHT * (sample - share),
        });
    }

    /// The share, in hundredths of a percent; 0 before the first sample and when the last loss is long ago.
    #[must_use]
    pub fn basis_points(&self, now: Instant) -> u16 {
        let recent = self.last_loss.is_some_and(|at| now.saturating_duration_since(at) < FORGET_AFTER);
        if !recent {
            return 0;
        }
        // A float-to-integer cast saturates; the share is within 0 to 1.
        (self.share.unwrap_or(0.0) * 10_000.0).round() as u16
    }
}

/// How a chunk goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// By stream.
    Stream,
    /// As symbols, with this many parity symbols for each 10,000 data symbols, rounded up for each block.
    Fec {
        /// Parity share in hundredths of a percent.
        parity_bp: u16,
    },
}

impl Delivery {
    /// Parity symbols for a block of `k` data symbols.
    #[must_use]
    pub fn parity(self, k: usize) -> usize {
        match self {
            Self::Stream => 0,
            Self::Fec { parity_bp } => (k * usize::from(parity_bp)).div_ceil(10_000),
        }
    }
}

/// What decides on a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// The server's policy.
    pub policy: FecMode,
    /// What the requester wants.
    pub wanted: Mode,
    /// Measured loss, in hundredths of a percent.
    pub loss_bp: u16,
    /// Loss below which `auto` uses streams.
    pub loss_min_bp: u16,
    /// Ceiling on parity, the lower of both sides', in percent.
    pub overhead_max_pct: u8,
    /// Symbols fit this path: its datagrams are long enough.
    pub possible: bool,
}

/// Decides. Parity is 1.5 times the measured loss: the mean would fail every second block. It never exceeds the ceiling,
/// and whoever asks for FEC gets at least one parity symbol a block, unless the ceiling is 0.
#[must_use]
pub fn choose(situation: Situation) -> Delivery {
    let Situation { policy, wanted, loss_bp, loss_min_bp, overhead_max_pct, possible } = situation;
    let forced = policy == FecMode::Always || wanted == Mode::Fec;
    let refused = policy == FecMode::Off || wanted == Mode::Stream || !possible;
    let lossy = loss_bp > 0 && loss_bp >= loss_min_bp;
    if refused || !(forced || lossy) {
        return Delivery::Stream;
    }
    let ceiling = u16::from(overhead_max_pct) * 100;
    let wanted = loss_bp.saturating_add(loss_bp / 2).max(1);
    Delivery::Fec { parity_bp: wanted.min(ceiling) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn situation() -> Situation {
        Situation {
            policy: FecMode::Auto,
            wanted: Mode::Auto,
            loss_bp: 0,
            loss_min_bp: 20,
            overhead_max_pct: 25,
            possible: true,
        }
    }

    #[test]
    fn the_table_of_decisions() {
        let stream = Delivery::Stream;
        let fec = |parity_bp| Delivery::Fec { parity_bp };
        let s = situation();
        for (situation, expected) in [
            (s, stream),
            (Situation { loss_bp: 19, ..s }, stream),
            (Situation { loss_bp: 20, ..s }, fec(30)),
            (Situation { loss_bp: 500, ..s }, fec(750)),
            (Situation { loss_bp: 5000, ..s }, fec(2500)),
            (Situation { loss_bp: 500, overhead_max_pct: 0, ..s }, fec(0)),
            (Situation { loss_bp: 500, policy: FecMode::Off, ..s }, stream),
            (Situation { loss_bp: 500, wanted: Mode::Stream, ..s }, stream),
            (Situation { loss_bp: 500, possible: false, ..s }, stream),
            (Situation { policy: FecMode::Always, ..s }, fec(1)),
            (Situation { wanted: Mode::Fec, ..s }, fec(1)),
            (Situation { wanted: Mode::Fec, policy: FecMode::Off, ..s }, stream),
            (Situation { loss_min_bp: 0, ..s }, stream),
        ] {
            assert_eq!(choose(situation), expected, "{situation:?}");
        }
        assert_eq!(fec(1).parity(110), 1);
        assert_eq!(fec(750).parity(110), 9);
        assert_eq!(fec(0).parity(110), 0);
    }

    #[test]
    fn loss_is_smoothed_and_forgotten() {
        let start = Instant::now_for_test();
        let mut path = PathLoss::default();
        path.handle_totals(63, 63, start);
        assert_eq!(path.basis_points(start), 0, "too few packets say nothing");
        path.handle_totals(1000, 50, start);
        assert_eq!(path.basis_points(start), 500);
        path.handle_totals(2000, 50, start);
        assert_eq!(path.basis_points(start), 438);
        assert_eq!(path.basis_points(start + FORGET_AFTER), 0);
        path.handle_totals(10, 0, start); // a new connection counts from the start again
        assert_eq!(path.basis_points(start), 438);
    }

    trait ForTest {
        fn now_for_test() -> Self;
    }

    impl ForTest for Instant {
        #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
        fn now_for_test() -> Self {
            Self::now()
        }
    }
}
