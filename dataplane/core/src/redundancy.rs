//! Stream or symbols, and how much parity: pure functions of what the path has shown, of what the policy allows, and of
//! where the chunk stands in its transfer.
//!
//! In the bulk of a transfer a lost packet costs nothing but itself: others are under way while it is sent again, and the
//! transport does that as soon as it knows. At the end, for a single object, or for a reader who waits, nothing else is
//! under way, and each loss costs a round trip: there parity is sent with the chunk. (Symbols without parity in the bulk,
//! asked for again by the requester, were measured: 1 to 2 % slower, docs/decisions/0005.)

use pangea_ipc::policy::FecMode;

use crate::congestion::Loss;
use crate::frame::Mode;

/// Standard deviations of the number lost in a block that parity covers beyond the mean. Losses are skewed, so 3 leaves
/// about 3 blocks in 1000 of a path with independent losses that must ask again (binomial, 220 symbols at 5 %).
const COVER: f64 = 3.0;

/// How a chunk goes out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Delivery {
    /// By stream.
    Stream,
    /// As symbols.
    Fec(Parity),
}

/// How many parity symbols a block gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parity {
    loss: Loss,
    cover: f64,
    min: usize,
    overhead_max_pct: u8,
}

impl Parity {
    /// Parity symbols for a block of `k` data symbols: as many as a block of that size loses, which includes the parity
    /// itself, with the deviations to be covered; within the ceiling.
    #[must_use]
    pub fn count(self, k: usize) -> usize {
        let ceiling = (k * usize::from(self.overhead_max_pct)).div_ceil(100);
        let Loss { share, dispersion } = self.loss;
        let mut count = 0.0;
        // Each pass counts the losses of the parity that the one before added; three reach the last symbol.
        for _ in 0..3 {
            let mean = (k as f64 + count) * share;
            count = mean + self.cover * (mean * (1.0 - share) * dispersion).sqrt();
        }
        // A float-to-integer cast saturates.
        (count.ceil() as usize).max(self.min).min(ceiling)
    }
}

/// What decides on a delivery.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Situation {
    /// The server's policy.
    pub policy: FecMode,
    /// What the requester wants.
    pub wanted: Mode,
    /// Nothing else is under way that would hide a loss: the end of a transfer, a single object, a reader who waits.
    pub soon: bool,
    /// What the path loses.
    pub loss: Loss,
    /// Loss below which `auto` uses streams, in hundredths of a percent.
    pub loss_min_bp: u16,
    /// Ceiling on parity, the lower of both sides', in percent.
    pub overhead_max_pct: u8,
    /// Symbols fit this path: its datagrams are long enough.
    pub possible: bool,
}

/// Decides.
#[must_use]
pub fn choose(situation: Situation) -> Delivery {
    let Situation { policy, wanted, soon, loss, loss_min_bp, overhead_max_pct, possible } = situation;
    let forced = policy == FecMode::Always || wanted == Mode::Fec;
    let refused = policy == FecMode::Off || wanted == Mode::Stream || !possible;
    let lossy = loss.share > 0.0 && loss.share * 10_000.0 >= f64::from(loss_min_bp);
    if refused || !(forced || lossy && soon) {
        return Delivery::Stream;
    }
    // Who insists on symbols in the bulk gets what the path loses on average.
    let cover = if soon { COVER } else { 0.0 };
    Delivery::Fec(Parity { loss, cover, min: usize::from(forced), overhead_max_pct })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(pct: f64) -> Loss {
        Loss { share: pct / 100.0, dispersion: 1.0 }
    }

    #[test]
    fn the_table_of_decisions() {
        let s = Situation {
            policy: FecMode::Auto,
            wanted: Mode::Auto,
            soon: true,
            loss: loss(5.0),
            loss_min_bp: 20,
            overhead_max_pct: 25,
            possible: true,
        };
        let burst = Loss { share: 0.05, dispersion: 15.0 };
        // `None`: by stream; otherwise parity for blocks of 197, 110 and 1 data symbols.
        for (what, situation, expected) in [
            ("a lossy path, soon", s, Some([21, 14, 1])),
            ("a tenth of the loss", Situation { loss: loss(0.5), ..s }, Some([5, 3, 1])),
            ("in bursts: up to the ceiling", Situation { loss: burst, ..s }, Some([50, 28, 1])),
            ("a higher ceiling", Situation { loss: burst, overhead_max_pct: 100, ..s }, Some([53, 39, 1])),
            ("hopeless", Situation { loss: loss(60.0), ..s }, Some([50, 28, 1])),
            ("a ceiling of nothing", Situation { overhead_max_pct: 0, ..s }, Some([0, 0, 0])),
            ("in the bulk", Situation { soon: false, ..s }, None),
            ("hardly any loss", Situation { loss: loss(0.19), ..s }, None),
            ("no loss", Situation { loss: loss(0.0), ..s }, None),
            ("no loss, no threshold", Situation { loss: loss(0.0), loss_min_bp: 0, ..s }, None),
            ("policy off", Situation { policy: FecMode::Off, ..s }, None),
            ("streams wanted", Situation { wanted: Mode::Stream, ..s }, None),
            ("symbols do not fit", Situation { possible: false, ..s }, None),
            ("always, no loss", Situation { policy: FecMode::Always, loss: loss(0.0), ..s }, Some([1, 1, 1])),
            ("always, in the bulk", Situation { policy: FecMode::Always, soon: false, ..s }, Some([11, 6, 1])),
            ("wanted, no loss", Situation { wanted: Mode::Fec, loss: loss(0.0), ..s }, Some([1, 1, 1])),
            ("wanted, policy off", Situation { wanted: Mode::Fec, policy: FecMode::Off, ..s }, None),
        ] {
            let parity = match choose(situation) {
                Delivery::Stream => None,
                Delivery::Fec(parity) => Some([197, 110, 1].map(|k| parity.count(k))),
            };
            assert_eq!(parity, expected, "{what}");
        }
    }
}
