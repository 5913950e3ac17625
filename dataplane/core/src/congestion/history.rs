//! What the rounds of late have shown: rates, and losses of full and of low rounds.

use std::collections::VecDeque;
use std::time::Instant;

/// Rounds kept: the losses of a round are known a round or two after it.
const ROUNDS_MAX: usize = 24;
/// The highest rate of so many rounds counts: a cycle and a bit, so that each maximum includes a full round.
const RATE_ROUNDS: usize = 10;
/// Where round trips scatter, so do the rates of single samples, and the highest of them is too high: by up to a quarter at 5
/// Mbit/s, 30 ms and a jitter of 10. The mean of so many rounds running is not. With three a tenth more overflows there, with eight a
/// tenth less, but of a path that delays unevenly by a fifth of its round trip 0.65 is filled at worst and not 0.84 (simulated).
const RATE_MEAN_ROUNDS: usize = 4;
/// A round's losses are complete so many rounds after it.
const SETTLED: usize = 1;
/// A round of fewer bytes says nothing of excess: one lost packet of two is no collapse, nor is a burst of eight of thirty.
const EXCESS_BYTES_MIN: u64 = 64 << 10;
/// Share that low rounds may lose more than those without a queue before the surplus is given up and no more is made up for. Several
/// flows of this kind lose 15 to 60 % of what they send without that; a BBR rival makes a few percent overflow, and without those
/// kept 67 to 77 % of the path (`bench fair`).
const CROWDED: f64 = 0.05;
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
    arrived: u64,
    rate: f64,
    limited: bool,
    kind: Kind,
    /// Its round trips had no queue in them.
    clear: bool,
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
    /// Of those low rounds that found no queue.
    clear: Losses,
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

    /// Share of bytes that the path loses by itself: in low rounds that find no queue, so that no full one is the cause, and
    /// [`CROWDED`] more, which may be its own too. Where others keep the queue full, low rounds lose packets too: to make up for
    /// those as for the path's own let two flows at 50 Mbit/s and 20 ms send 1.4 times what arrived, and eight at 100 Mbit/s and
    /// 50 ms 1.6 times (simulated).
    #[must_use]
    pub(super) fn own_loss(&self) -> f64 {
        self.loss().min(self.clear.share() + CROWDED)
    }

    /// Share of bytes that rounds of both kinds lose beyond low ones that find no queue.
    #[must_use]
    pub(super) fn unexplained(&self) -> f64 {
        self.both() - self.clear.share()
    }

    /// Share of bytes that rounds of both kinds lose.
    fn both(&self) -> f64 {
        (self.low.lost + self.full.lost) / (self.low.sent + self.full.sent).max(1.0)
    }

    /// What the path lost when it was last used: what is sent first is protected by it, and what is then seen outweighs
    /// it soon.
    pub(super) fn set_known_loss(&mut self, share: f64) {
        /// About the first flight of an object.
        const WEIGHT: f64 = 256.0 * 1024.0;
        if self.low.rounds <= 0.0 {
            self.low = Losses { sent: WEIGHT, lost: WEIGHT * share.clamp(0.0, 1.0), rounds: 0.5 };
            // It was the path's own when it was learnt.
            self.clear = self.low;
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

    /// So many bytes have arrived.
    pub(super) fn handle_arrived(&mut self, bytes: u64) {
        if let Some(round) = self.rounds.back_mut() {
            round.arrived += bytes;
        }
    }

    /// Bytes a second that arrived in [`RATE_MEAN_ROUNDS`] rounds running that the sender did not limit, the most of late; `None`
    /// when there were none.
    #[must_use]
    pub(super) fn mean_rate(&self) -> Option<f64> {
        // The running round is not over.
        let last = self.rounds.len().checked_sub(1)?;
        let rate = |end: usize| {
            let begin = end.checked_sub(RATE_MEAN_ROUNDS)?;
            let rounds = self.rounds.range(begin..end);
            let took = self.rounds.get(end)?.began.saturating_duration_since(self.rounds.get(begin)?.began);
            let free = !took.is_zero() && rounds.clone().all(|round| !round.limited);
            free.then(|| rounds.map(|round| round.arrived as f64).sum::<f64>() / took.as_secs_f64())
        };
        (last.saturating_sub(RATE_ROUNDS)..=last).filter_map(rate).reduce(f64::max)
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

    /// A round has ended, which was of this kind, and the next begins. `clear`: its round trips had no queue in them.
    pub(super) fn end_round(&mut self, now: Instant, kind: Kind, clear: bool) -> Ended {
        let mut ended = Ended { rate: 0.0, limited_by_sender: true, excess: 0.0 };
        if let Some(round) = self.rounds.back_mut() {
            // A sender that had too little to send left no queue of its own: what was lost was lost to the path.
            round.kind = if round.limited { Kind::Low } else { kind };
            round.clear = clear;
            (ended.rate, ended.limited_by_sender) = (round.rate, round.limited);
        }
        self.full.fade();
        self.low.fade();
        self.clear.fade();
        let usual = if kind == Kind::Start { self.start.share() } else { self.loss() };
        if let Some(settled) = self.rounds.len().checked_sub(1 + SETTLED).and_then(|at| self.rounds.get(at)) {
            let losses = match settled.kind {
                Kind::Start => &mut self.start,
                Kind::Full => &mut self.full,
                Kind::Low => &mut self.low,
            };
            losses.add(settled.sent, settled.lost);
            if settled.kind == Kind::Low && settled.clear {
                self.clear.add(settled.sent, settled.lost);
            }
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

    /// Whether full rounds lose more than low ones by at least `share`, or both more than the path does by itself by at least
    /// [`CROWDED`], beyond what chance makes likely: a queue has no room for the surplus, ours or that of others.
    #[must_use]
    pub(super) fn congested(&self, share: f64) -> bool {
        if self.low.rounds < 1.0 || self.full.rounds < 1.0 {
            return false;
        }
        let (low, full) = (self.low.share(), self.full.share());
        let both = self.both();
        let chance = 2.0 * (spread(both, self.low.sent) + spread(both, self.full.sent)).sqrt();
        // Where no low round of late was clear, there is nothing for chance to have made less.
        let clear = if self.clear.rounds < 1.0 { 0.0 } else { spread(both, self.clear.sent) };
        let crowded = self.loss() - self.clear.share();
        full - low > share + chance || crowded > CROWDED + 2.0 * (spread(both, self.low.sent) + clear).sqrt()
    }

    fn begin(&mut self, now: Instant, kind: Kind) {
        if self.rounds.len() >= ROUNDS_MAX {
            self.rounds.pop_front();
        }
        let round = Round { began: now, sent: 0, lost: 0, arrived: 0, rate: 0.0, limited: true, kind, clear: false };
        self.rounds.push_back(round);
    }
}

/// Variance of the share that is lost of so many bytes where each packet is lost with this chance.
fn spread(chance: f64, sent: f64) -> f64 {
    /// Bytes in a packet, to count independent losses by.
    const PACKET: f64 = 1400.0;
    /// Losses come in bursts: fewer of them are independent.
    const BURST: f64 = 4.0;
    chance * (1.0 - chance) * BURST / (sent / PACKET).max(1.0)
}
