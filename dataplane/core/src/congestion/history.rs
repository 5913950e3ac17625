//! What the rounds of late have shown: rates, and losses of full and of low rounds.

use std::collections::VecDeque;
use std::time::Instant;

/// Rounds kept: the losses of a round are known a round or two after it.
const ROUNDS_MAX: usize = 24;
/// The highest rate of so many rounds counts: a cycle and a bit, so that each maximum includes a full round.
const RATE_ROUNDS: usize = 10;
/// A round's losses are complete so many rounds after it.
const SETTLED: usize = 1;
/// A round of fewer bytes says nothing of excess: one lost packet of two is no collapse, nor is a burst of eight of thirty.
const EXCESS_BYTES_MIN: u64 = 64 << 10;
/// What is older than a few cycles counts for little: factor at each round.
const FADE: f64 = 0.97;

/// What the window was like in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Growing, or draining what it had grown to: says nothing of the path's own losses.
    Start,
    /// More than the path holds.
    Full,
    /// What the path holds.
    Low,
}

#[derive(Debug, Clone, Copy)]
struct Round {
    began: Instant,
    sent: u64,
    lost: u64,
    rate: f64,
    limited: bool,
    kind: Kind,
}

/// Bytes sent and lost, fading.
#[derive(Debug, Clone, Copy, Default)]
struct Losses {
    sent: f64,
    lost: f64,
    rounds: f64,
}

impl Losses {
    fn add(&mut self, sent: u64, lost: u64) {
        self.sent += sent as f64;
        self.lost += lost as f64;
        self.rounds += 1.0;
    }

    fn fade(&mut self) {
        self.sent *= FADE;
        self.lost *= FADE;
        self.rounds *= FADE;
    }

    fn share(self) -> f64 {
        if self.sent > 0.0 { (self.lost / self.sent).min(1.0) } else { 0.0 }
    }
}

/// A round that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    /// The highest rate in it.
    pub(super) rate: f64,
    /// The sender had too little to send.
    pub(super) limited_by_sender: bool,
    /// Share of bytes that the newest round whose losses are known lost beyond what the path does; 0 for a round of less
    /// than [`EXCESS_BYTES_MIN`].
    pub(super) excess: f64,
}

/// The rounds of late.
#[derive(Debug, Clone, Default)]
pub(super) struct Rounds {
    rounds: VecDeque<Round>,
    start: Losses,
    full: Losses,
    low: Losses,
    highest: f64,
    /// The highest rate of the running round that the sender limited: better than nothing.
    now: (f64, bool),
}

impl Rounds {
    /// Bytes a second: the highest rate of late.
    #[must_use]
    pub(super) fn rate(&self) -> f64 {
        self.highest.max(self.now.0)
    }

    /// Share of bytes that the path loses whether its queue is full or not; 0 before a low round was seen.
    #[must_use]
    pub(super) fn loss(&self) -> f64 {
        if self.full.rounds < 1.0 { self.low.share() } else { self.low.share().min(self.full.share()) }
    }

    /// What the path lost when it was last used: what is sent first is protected by it, and what is then seen outweighs
    /// it soon.
    pub(super) fn set_known_loss(&mut self, share: f64) {
        /// About the first flight of an object.
        const WEIGHT: f64 = 256.0 * 1024.0;
        if self.low.rounds <= 0.0 {
            self.low = Losses { sent: WEIGHT, lost: WEIGHT * share.clamp(0.0, 1.0), rounds: 0.5 };
        }
    }

    /// A packet was sent.
    pub(super) fn handle_sent(&mut self, now: Instant, bytes: u64) {
        if self.rounds.is_empty() {
            self.begin(now, Kind::Start);
        }
        if let Some(round) = self.rounds.back_mut() {
            round.sent += bytes;
        }
    }

    /// Packets were lost, the newest of which was sent at `sent`.
    pub(super) fn handle_lost(&mut self, sent: Instant, bytes: u64) {
        let at = self.rounds.partition_point(|round| round.began <= sent);
        if let Some(round) = self.rounds.get_mut(at.saturating_sub(1)) {
            round.lost += bytes;
        }
    }

    /// A rate was sampled.
    pub(super) fn handle_rate(&mut self, rate: f64, limited_by_sender: bool) {
        if let Some(round) = self.rounds.back_mut()
            && rate > round.rate
        {
            (round.rate, round.limited) = (rate, limited_by_sender);
        }
        // A rate that the sender limited counts where it is higher than what is known.
        if rate > self.now.0 {
            self.now = (rate, limited_by_sender);
        }
    }

    /// A round has ended, which was of this kind, and the next begins.
    pub(super) fn end_round(&mut self, now: Instant, kind: Kind) -> Ended {
        let mut ended = Ended { rate: 0.0, limited_by_sender: true, excess: 0.0 };
        if let Some(round) = self.rounds.back_mut() {
            // A sender that had too little to send left no queue of its own: what was lost was lost to the path.
            round.kind = if round.limited { Kind::Low } else { kind };
            (ended.rate, ended.limited_by_sender) = (round.rate, round.limited);
        }
        self.full.fade();
        self.low.fade();
        let usual = if kind == Kind::Start { self.start.share() } else { self.loss() };
        if let Some(settled) = self.rounds.len().checked_sub(1 + SETTLED).and_then(|at| self.rounds.get(at)) {
            let losses = match settled.kind {
                Kind::Start => &mut self.start,
                Kind::Full => &mut self.full,
                Kind::Low => &mut self.low,
            };
            losses.add(settled.sent, settled.lost);
            if settled.sent >= EXCESS_BYTES_MIN {
                ended.excess = settled.lost as f64 / settled.sent as f64 - usual;
            }
        }
        self.begin(now, kind);
        let rates = self.rounds.iter().rev().take(RATE_ROUNDS);
        let free = rates.clone().filter(|round| !round.limited).map(|round| round.rate).fold(0.0, f64::max);
        let limited = rates.map(|round| round.rate).fold(0.0, f64::max);
        // Idle rounds do not make the path slower: what was known stays known as long as nothing better is.
        self.highest = if free > 0.0 { free.max(limited) } else { self.highest.max(limited) };
        self.now = (0.0, true);
        ended
    }

    /// The path has become slower: rates of before do not count.
    pub(super) fn forget_rates(&mut self, rate: f64) {
        for round in &mut self.rounds {
            round.rate = round.rate.min(rate);
        }
        self.highest = rate;
    }

    /// Whether full rounds lose more than low ones by at least `share`, beyond what chance makes likely.
    #[must_use]
    pub(super) fn full_lose_more(&self, share: f64) -> bool {
        if self.low.rounds < 1.0 || self.full.rounds < 1.0 {
            return false;
        }
        /// Bytes in a packet, to count independent losses by.
        const PACKET: f64 = 1400.0;
        /// Losses come in bursts: fewer of them are independent.
        const BURST: f64 = 4.0;
        let (low, full) = (self.low.share(), self.full.share());
        let both = (self.low.lost + self.full.lost) / (self.low.sent + self.full.sent).max(1.0);
        let spread = |sent: f64| both * (1.0 - both) * BURST / (sent / PACKET).max(1.0);
        let chance = 2.0 * (spread(self.low.sent) + spread(self.full.sent)).sqrt();
        full - low > share + chance
    }

    fn begin(&mut self, now: Instant, kind: Kind) {
        if self.rounds.len() >= ROUNDS_MAX {
            self.rounds.pop_front();
        }
        self.rounds.push_back(Round { began: now, sent: 0, lost: 0, rate: 0.0, limited: true, kind });
    }
}
