//! Seeded chance, and loss that is independent or comes in bursts.

/// A stream of chance that its seed fixes (SplitMix64: one addition and a mixer of 64 bits).
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Chance {
    /// Streams of other numbers share nothing, also with the same seed.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed.wrapping_add(mix(stream + 1))))
    }

    /// 0 to below 1.
    pub(super) fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // The 53 bits that a float holds.
        (mix(self.0) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn happens(&mut self, share: f64) -> bool {
        self.share() < share
    }
}

/// Decides which packets are lost.
#[derive(Debug, Clone)]
pub(super) struct Loss {
    chance: Chance,
    model: Model,
}

#[derive(Debug, Clone, Copy)]
enum Model {
    Independent {
        share: f64,
    },
    /// Every packet is lost while `bad`; the state may change after each packet.
    Burst {
        bad: bool,
        become_bad: f64,
        become_good: f64,
    },
}

impl Loss {
    pub(super) fn new(chance: Chance, loss_pct: f64, burst: Option<f64>) -> Self {
        let mut loss = Self { chance, model: Model::Independent { share: 0.0 } };
        loss.change(loss_pct, burst);
        loss
    }

    /// Other averages from the next packet on; a burst under way ends by the new ones.
    pub(super) fn change(&mut self, loss_pct: f64, burst: Option<f64>) {
        let share = loss_pct / 100.0;
        self.model = match burst {
            Some(burst) if share < 1.0 => {
                // A bad state lasts 1 / become_good packets; the share of time in it is
                // become_bad / (become_bad + become_good).
                let become_good = 1.0 / burst;
                let become_bad = become_good * share / (1.0 - share);
                let bad = match self.model {
                    Model::Burst { bad, .. } => bad,
                    Model::Independent { .. } => self.chance.happens(share),
                };
                Model::Burst { bad, become_bad, become_good }
            }
            _ => Model::Independent { share },
        };
    }

    /// Whether the next packet is lost.
    pub(super) fn strikes(&mut self) -> bool {
        match &mut self.model {
            Model::Independent { share } => self.chance.happens(*share),
            Model::Burst { bad, become_bad, become_good } => {
                let strikes = *bad;
                let turns = if strikes { *become_good } else { *become_bad };
                *bad ^= self.chance.happens(turns);
                strikes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: usize = 1_000_000;

    /// Share of lost packets and mean length of a row of them.
    fn measure(loss_pct: f64, burst: Option<f64>, seed: u64) -> (f64, f64) {
        let mut loss = Loss::new(Chance::new(seed, 0), loss_pct, burst);
        let (mut lost, mut rows, mut before) = (0_u32, 0_u32, false);
        for _ in 0..PACKETS {
            let now = loss.strikes();
            lost += u32::from(now);
            rows += u32::from(now && !before);
            before = now;
        }
        (f64::from(lost) / PACKETS as f64, f64::from(lost) / f64::from(rows.max(1)))
    }

    fn near(found: f64, wanted: f64, part: f64) {
        assert!((found - wanted).abs() <= wanted * part, "{found}, not {wanted}");
    }

    #[test]
    fn independent_loss_keeps_its_average_and_comes_in_the_rows_of_pure_chance() {
        for (loss_pct, seed) in [(0.1, 1), (2.0, 2), (10.0, 3), (50.0, 4)] {
            let (share, row) = measure(loss_pct, None, seed);
            let wanted = loss_pct / 100.0;
            near(share, wanted, if loss_pct < 1.0 { 0.12 } else { 0.03 });
            near(row, 1.0 / (1.0 - wanted), 0.02);
        }
    }

    #[test]
    fn bursts_keep_the_average_and_have_the_wanted_mean_length() {
        for (loss_pct, burst) in [(1.0, 4.0), (5.0, 4.0), (10.0, 20.0), (30.0, 1.5), (60.0, 3.0)] {
            let (share, row) = measure(loss_pct, Some(burst), 7);
            near(share, loss_pct / 100.0, 0.1);
            near(row, burst, 0.05);
        }
    }

    #[test]
    fn bursts_of_one_never_touch() {
        let (share, row) = measure(20.0, Some(1.0), 5);
        near(share, 0.2, 0.03);
        assert!(row <= 1.0, "{row}");
    }

    #[test]
    fn nothing_and_everything_are_exact() {
        assert!(measure(0.0, None, 1).0 <= 0.0);
        assert!(measure(0.0, Some(8.0), 1).0 <= 0.0);
        assert!(measure(100.0, None, 1).0 >= 1.0);
        assert!(measure(100.0, Some(8.0), 1).0 >= 1.0);
    }

    #[test]
    fn a_seed_fixes_the_losses_and_streams_share_nothing() {
        let run = |seed, stream| {
            let mut loss = Loss::new(Chance::new(seed, stream), 50.0, None);
            (0..64).map(|_| loss.strikes()).collect::<Vec<_>>()
        };
        assert_eq!(run(1, 0), run(1, 0));
        assert_ne!(run(1, 0), run(2, 0));
        assert_ne!(run(1, 0), run(1, 1));
    }
}
