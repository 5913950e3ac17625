//! Congestion control for paths on which loss is not congestion.
//!
//! The window follows a model of the path, as in BBR (draft-ietf-ccwg-bbr): the highest rate at which packets arrived
//! lately times the shortest round trip. Unlike BBR it moves in cycles of two kinds of round:
//!
//! - in **full** rounds the window is a little larger than the path holds, so that a standing queue of a fraction of a
//!   round trip keeps the bottleneck busy and a path that got faster shows it;
//! - in **low** rounds it is just what the path holds: the queue drains, which shows the true round trip, and what is
//!   lost now is lost to the path and not to a full queue.
//!
//! Both have some time worth of queue on top, for pauses of hosts: `SLACK`. On a short path that is more than all else,
//! and may be more than the queue holds; so once something is lost, low rounds have little of it (`Congestion::slack`).
//!
//! Loss is taken for congestion only as far as full rounds lose more than low ones, or low ones more than those of them that find
//! no queue; then the surplus is given up, step by step. So random loss costs nothing, and a queue that is too short for the
//! surplus, or that others fill, is not flooded. Beside others who keep the queue full whatever is lost (`HEEDLESS`) half of it is
//! kept: they would take it, and lose no less.
//! Marks (ECN) are congestion always, and bound the window as CUBIC's would be: `marks`.
//! The transport paces at 1.25 windows a round trip whatever is said here, so the window is the only lever.

mod history;
mod losses;
mod marks;
mod rate;
#[cfg(test)]
mod rivals;
mod rtt;
#[cfg(test)]
mod simulation;

use std::time::{Duration, Instant};

use history::{Kind, Rounds};
pub use losses::Loss;
use losses::Windows;
use marks::Marks;
use rate::Sampler;
use rtt::Rtt;

/// Packets in the first window, before the round trip is known. RFC 6928 has ten; content delivery networks run 32.
const INITIAL_PACKETS: u64 = 32;
/// Bytes a second that a path is taken to carry as soon as its round trip is known: 30 Mbit/s, which is about what
/// today's access lines carry upstream. A rate, since a window says nothing without a round trip: it is 134 packets at
/// 50 ms and fills a satellite path at once. Each doubling saves a round trip of start-up.
const INITIAL_RATE: f64 = 30e6 / 8.0;
/// First window at most, in packets: a round trip of seconds says more of a full queue than of a long path.
const INITIAL_PACKETS_MAX: u64 = 512;
/// The window never falls below this many packets: fewer would not get past a burst of losses.
const MIN_PACKETS: u64 = 8;
/// Bytes that each byte which arrived adds to the window in start-up: twice the window in a round (RFC 9002, 7.3.1).
/// 1.25 gains a hundredth and overflows the queue by twice as much.
const STARTUP_GROWTH: f64 = 1.0;
/// Start-up ends when the rate has not grown by this factor…
const GROWTH: f64 = 1.25;
/// …for so many rounds (as in BBR).
const GROWTH_ROUNDS: u32 = 3;
/// Or when so many acknowledgements running show a queue ([`Rtt::is_queue`]): hosts have pauses of their own.
const STARTUP_RTT_ACKS: u32 = 3;
/// Window of full rounds, in rate times round trip. Against one CUBIC flow it holds 40 to 61 % of the path, whoever began
/// first and when (simulated; 61 to 81 % with 1.33, which leaves the rival too little).
const FULL_GAIN: f64 = 1.25;
/// Window of low rounds.
const LOW_GAIN: f64 = 1.0;
/// Rounds of each kind in a cycle. A window takes a round to become what the path holds, so low rounds come in twos.
const FULL_ROUNDS: u32 = 6;
const LOW_ROUNDS: u32 = 2;
/// Full rounds are one fewer, as many or one more in so many cycles each: two flows whose cycles are equally long would be full
/// together for ever, or never, and of two at 300 Mbit/s and 100 ms one kept 88 % for 40 s (now 67 at most, simulated).
const FULL_ROUNDS_VARY: u64 = 3;
/// Time worth of queue that is allowed on a path that loses nothing: hosts have pauses of their own, and acknowledgements
/// wait a millisecond.
const SLACK: Duration = Duration::from_millis(5);
/// Slack that is never given up, as a share of the round trip; all of it from 34 ms on. Without any at 50 ms a BBR rival left
/// 26 % (with it 32 to 49 %, `bench fair`). A share of the round trip and not of what the path holds: for single objects the
/// rate is known late, and they need the slack to show it.
const SLACK_LEAST: f64 = 0.15;
/// Low rounds have no more than that once they lose [`EXCESS`], and as long as no more than this share of the surplus is used,
/// so that they go on without while it comes back. Without this a path of 2 ms and a queue of one bandwidth-delay product show
/// 2 % as the path's own loss (simulated); 0.95 is as good.
const SLACK_SURPLUS: f64 = 0.45;
/// Share of [`SLACK`] that is kept beside others who give way to losses. From 17 ms on [`SLACK_LEAST`] is more. Acknowledgements
/// wait a millisecond, and timers another: on a path shorter than that a window without slack carries less in each round than in the
/// one before, until it has [`MIN_PACKETS`].
const SLACK_BESIDE: f64 = 0.5;
/// Packets on top: the smaller of two flows gains relatively more by it, which makes them meet.
const EXTRA_PACKETS: u64 = 8;
/// Share of the round trip that they take at most: at 5 Mbit/s eight are 18 ms. With all of them there one flow overflowed a queue
/// of half a bandwidth-delay product with 32 packets of a hundred, two one of a whole one with 36 (simulated, RTT 30 ms). With 0.25 a
/// CUBIC rival at 10 Mbit/s and 20 ms was left 13 to 43 %, by who began when; with this it is 24 to 73 %.
const EXTRA_MOST: f64 = 0.15;
/// Whether the shortest round trip is the path's own, or has somebody's queue in it, is looked into by so many rounds…
const PROBE_ROUNDS: u32 = 2;
/// …of this window (as in BBRv3), which lets a queue of one's own run off.
const PROBE_GAIN: f64 = 0.5;
/// Share of packets that full rounds may lose more than low ones before the surplus is taken for the cause, and that low
/// ones may lose before their slack is.
const EXCESS: f64 = 0.01;
/// Share of packets lost in all rounds, beyond what low ones without a queue lose, from which on others keep the queue full whatever
/// is lost, up to [`COLLAPSE`], which is more than one rival makes. Beside a BBR it is 3 to 6 % for ever, however little we send, and 4
/// to 15 simulated; beside a CUBIC under 0.1 % (`bench fair`), 0.2 to 0.7 simulated. With 0.04 a BBR left 0.29 twice, with this 0.38.
const HEEDLESS: f64 = 0.02;
/// Share of the surplus that is kept beside those: they take what is given up and lose no less. Without this a BBR rival leaves 19 % at
/// 50 ms, with it 36 % (simulated, means of eight and six starts).
const HEEDLESS_SURPLUS: f64 = 0.5;
/// A round that loses this much more than the path does: something has changed for the worse, now.
const COLLAPSE: f64 = 0.2;
/// Most of the path's own loss that the window makes up for: what was lost is in flight too until it is known to be lost. The rest
/// is left to the surplus, which suffices to 20 %; what is taken for the path's own by mistake does no more harm than that.
const LOSS_MAX: f64 = 0.15;

/// What was learnt of a path before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    /// Bytes a second that it carried.
    pub rate: f64,
    /// Its shortest round trip.
    pub rtt: Duration,
    /// Share of packets that it lost by itself, 0 to 1.
    pub loss: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Startup,
    /// What start-up has left in the queue is let run off.
    Drain,
    Full,
    Low,
    /// Half a window, to see whether the round trip is the path's own.
    Probe,
}

/// The congestion controller of one path. Windows and sizes are in bytes.
#[derive(Debug, Clone)]
pub struct Congestion {
    mtu: u64,
    window: u64,
    phase: Phase,
    /// Rounds that the phase has lasted, and those that full ones last in this cycle.
    phase_rounds: u32,
    full_rounds: u32,
    /// Share of the surplus of full rounds that is used, 0 to 1.
    surplus: f64,
    /// Others keep the queue full whatever is lost ([`HEEDLESS`]).
    heedless: bool,
    /// What marks have left of the window; it grows each round.
    marks: Option<Marks>,
    /// Highest rate, and rounds since it grew, in start-up.
    plateau: (f64, u32),
    rtt: Rtt,
    /// The packets now in flight were sent after a rest.
    rested: bool,
    rate: Sampler,
    rounds: Rounds,
    windows: Windows,
    /// Bytes a second that the operator says the path carries; then nothing is probed.
    fixed_rate: Option<f64>,
    /// When start-up and its queue were over.
    started_at: Option<Instant>,
    /// Acknowledgements running that showed a queue in start-up.
    queue_acks: u32,
    /// A round ends when a packet sent after its start is acknowledged.
    round_ends_at: u64,
    last_sent: u64,
    last_sent_at: Instant,
    newest_acked: Option<Instant>,
    /// Bytes that arrived since the last acknowledgement ended.
    arrived: u64,
    in_flight: u64,
}

impl Congestion {
    /// Starts on a path. `known`: what it carried when it was last used.
    #[must_use]
    pub fn new(now: Instant, mtu: u16, known: Option<Known>) -> Self {
        let mtu = u64::from(mtu).max(1);
        let mut congestion = Self {
            mtu,
            window: INITIAL_PACKETS * mtu,
            phase: Phase::Startup,
            phase_rounds: 0,
            full_rounds: FULL_ROUNDS,
            surplus: 1.0,
            heedless: false,
            marks: None,
            plateau: (0.0, 0),
            rtt: Rtt::new(now),
            rested: false,
            last_sent_at: now,
            rate: Sampler::new(now),
            rounds: Rounds::default(),
            windows: Windows::default(),
            fixed_rate: None,
            started_at: None,
            queue_acks: 0,
            round_ends_at: 0,
            last_sent: 0,
            newest_acked: None,
            arrived: 0,
            in_flight: 0,
        };
        if let Some(known) = known {
            congestion.set_known(known);
        }
        congestion
    }

    /// What the path carried when it was last used. Half of that is safe if it has not changed, and one round from the
    /// rest (draft-ietf-tsvwg-careful-resume). Of no effect once start-up is over, or when the round trip is another.
    pub fn set_known(&mut self, known: Known) {
        let same = self.rtt().is_none_or(|rtt| rtt < known.rtt * 2 && known.rtt < rtt * 2);
        if self.phase == Phase::Startup && same {
            self.window = self.window.max((known.rate * known.rtt.as_secs_f64() / 2.0) as u64);
            self.rounds.set_known_loss(known.loss);
        }
    }

    /// Sends at this rate in bytes a second, whatever the path shows; `None` = by the model.
    pub fn set_fixed_rate(&mut self, rate: Option<f64>) {
        self.fixed_rate = rate;
        self.set_window();
    }

    /// Bytes in the first window.
    #[must_use]
    pub fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.mtu
    }

    /// Bytes that may be in flight.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Bytes a second that the path carries, as far as it has shown; 0 before the first round.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rounds.rate()
    }

    /// What is worth remembering of the path: `None` while so little was sent that it has shown no more than what is
    /// assumed of any path.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        let told = self.started_at.is_some() || self.rate() > INITIAL_RATE;
        self.rtt().filter(|_| told).map(|rtt| Known { rate: self.rate(), rtt, loss: self.rounds.loss() })
    }

    /// The shortest round trip; `None` before the first.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt.shortest()
    }

    /// What the path loses by itself.
    #[must_use]
    pub fn loss(&self) -> Loss {
        Loss { share: self.rounds.loss(), dispersion: self.windows.dispersion() }
    }

    /// The path takes larger packets, or only smaller ones.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu).max(1);
        self.window = self.window.max(MIN_PACKETS * self.mtu);
    }

    /// A packet was sent.
    pub fn handle_sent(&mut self, now: Instant, bytes: u64, packet: u64) {
        // A lone acknowledgement that was sent meanwhile may count as in flight.
        if self.in_flight < self.mtu && self.rtt().is_some_and(|rtt| self.last_sent_at + rtt < now) {
            self.rested = true;
        }
        self.in_flight += bytes;
        self.last_sent = packet;
        self.last_sent_at = now;
        self.rate.handle_sent(now, self.in_flight == bytes);
        self.rounds.handle_sent(now, bytes);
        self.windows.handle_sent(now, bytes, self.mtu);
    }

    /// A packet has arrived. Several may be told of before [`handle_acks_end`](Self::handle_acks_end).
    pub fn handle_ack(&mut self, now: Instant, sent: Instant, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.rate.handle_ack(now, sent, bytes);
        self.arrived += bytes;
        if self.newest_acked.is_none_or(|newest| sent > newest) {
            self.newest_acked = Some(sent);
        }
    }

    /// The acknowledgement is over. `idle`: there was nothing more to send. `largest`: number of the newest packet.
    pub fn handle_acks_end(&mut self, now: Instant, in_flight: u64, idle: bool, largest: u64) {
        self.in_flight = in_flight;
        let arrived = std::mem::take(&mut self.arrived);
        self.rounds.handle_arrived(arrived);
        let Some(sent) = self.newest_acked.take() else { return };
        let rtt = now.saturating_duration_since(sent);
        self.take_rtt(now, rtt);
        // What start-up has sent too much of is lost to the queue. A sender with little to send has sent nothing too much.
        let start_up = !idle && self.started_at.is_none_or(|at| sent < at);
        self.windows.handle_arrived(sent, self.mtu, !start_up);
        if self.phase == Phase::Startup {
            // A few packets on a path that is kept open for later have made no queue: whatever made it is not ours.
            let ours = arrived + in_flight >= MIN_PACKETS * self.mtu;
            self.queue_acks = if ours && self.rtt.is_queue(rtt) { self.queue_acks + 1 } else { 0 };
            if self.queue_acks >= STARTUP_RTT_ACKS {
                self.rtt.end_start_up(now, self.explained());
                self.enter(Phase::Drain);
                self.set_window();
            } else if !idle {
                self.window += (arrived as f64 * STARTUP_GROWTH) as u64;
            }
        }
        if let Some(sample) = self.rate.sample(now, idle.then_some(in_flight)) {
            self.rounds.handle_rate(sample.rate, sample.limited_by_sender);
        }
        if largest >= self.round_ends_at {
            self.round_ends_at = self.last_sent + 1;
            self.end_round(now, idle);
        }
    }

    /// Packets were lost. `sent`: when the newest of them was.
    pub fn handle_lost(&mut self, sent: Instant, bytes: u64, persistent: bool) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.rounds.handle_lost(sent, bytes);
        self.windows.handle_lost(sent, bytes);
        if persistent {
            // Nothing at all came through for several round trips: the path that was measured is no more.
            self.rounds = Rounds::default();
            self.plateau = (0.0, 0);
            self.enter(Phase::Startup);
            self.rtt.begin_start_up();
            self.marks = None;
            self.window = MIN_PACKETS * self.mtu;
        }
    }

    /// A router says that its queue grows (ECN, RFC 3168): the window falls as CUBIC's does. `sent`: when the newest packet was that
    /// the mark was told with; those of before the last answer ask for nothing more.
    pub fn handle_marked(&mut self, now: Instant, sent: Instant) {
        if self.marks.is_some_and(|marks| marks.is_answered(sent)) {
            return;
        }
        if self.phase == Phase::Startup {
            self.enter(Phase::Drain);
        }
        // Not what start-up had grown to falls, but what the path holds.
        self.set_window();
        self.marks = Some(Marks::answer(self.marks, now, self.window as f64 / self.mtu as f64));
        self.set_window();
    }

    fn take_rtt(&mut self, now: Instant, sample: Duration) {
        if self.rtt().is_none() {
            let assumed = INITIAL_RATE * sample.as_secs_f64();
            self.window = self.window.max((assumed as u64).min(INITIAL_PACKETS_MAX * self.mtu));
        }
        self.rtt.take(now, sample, self.phase == Phase::Startup, std::mem::take(&mut self.rested));
    }

    fn end_round(&mut self, now: Instant, idle: bool) {
        let kind = match self.phase {
            Phase::Startup | Phase::Drain => Kind::Start,
            Phase::Full => Kind::Full,
            Phase::Low | Phase::Probe => Kind::Low,
        };
        if let (Some(marks), Some(rtt)) = (&mut self.marks, self.rtt.shortest()) {
            marks.grow(now, rtt);
        }
        let clear = self.rtt.end_round(self.extra_time(self.rtt.unqueued()));
        let ended = self.rounds.end_round(now, kind, clear);
        self.phase_rounds += 1;
        match self.phase {
            Phase::Startup => {
                if !idle && !ended.limited_by_sender {
                    let (highest, rounds) = self.plateau;
                    self.plateau = if ended.rate >= highest * GROWTH { (ended.rate, 0) } else { (highest, rounds + 1) };
                }
                if self.plateau.1 >= GROWTH_ROUNDS || ended.excess > COLLAPSE {
                    self.enter(Phase::Drain);
                } else if let Some(rtt) = self.rtt() {
                    // A sender that has little to send at a time grows too, by the rate that it was seen to arrive at.
                    let doubled = 2.0 * self.rounds.rate() * rtt.as_secs_f64();
                    self.window = self.window.max(doubled as u64);
                }
            }
            Phase::Drain => {
                if self.phase_rounds >= LOW_ROUNDS {
                    self.started_at = Some(now);
                    self.enter(Phase::Full);
                    // Low rounds tell what the path loses: soon, but not while the transport still paces by the round
                    // trips of start-up's queue, with which it would leave the path idle.
                    self.phase_rounds = FULL_ROUNDS / 2;
                }
            }
            Phase::Full => {
                let collapsed = ended.excess > COLLAPSE && self.phase_rounds > 1;
                if collapsed {
                    self.rounds.forget_rates(ended.rate);
                }
                if collapsed || self.phase_rounds >= self.full_rounds {
                    self.enter(Phase::Low);
                }
            }
            Phase::Low => {
                if self.phase_rounds >= LOW_ROUNDS {
                    self.end_cycle(now);
                }
            }
            Phase::Probe => {
                if self.phase_rounds >= PROBE_ROUNDS {
                    self.rtt.end_probe(now, self.heedless);
                    self.enter(Phase::Full);
                } else {
                    self.rtt.begin_last_round_of_probe();
                }
            }
        }
        self.set_window();
    }

    /// Low rounds have shown the path without a queue of ours.
    fn end_cycle(&mut self, now: Instant) {
        self.heedless = (HEEDLESS..COLLAPSE).contains(&self.rounds.unexplained());
        let probe = self.rtt.end_cycle(now, self.explained(), self.heedless);
        // Down by half of the surplus, up by a tenth of what is missing of it.
        if self.rounds.congested(EXCESS) {
            self.surplus /= 2.0;
        } else {
            self.surplus += (1.0 - self.surplus) / 10.0;
        }
        if self.heedless && self.rtt.crowded() {
            self.surplus = self.surplus.max(HEEDLESS_SURPLUS);
        }
        self.enter(if probe { Phase::Probe } else { Phase::Full });
    }

    /// The longest round trip that says nothing new: a window for the shortest makes it, with all slack and so many packets.
    fn explained(&self) -> Duration {
        self.rtt().unwrap_or_default() + SLACK + self.extra_packets_time()
    }

    /// What all slack and the extra packets of a window for this round trip add to it.
    fn extra_time(&self, rtt: Duration) -> Duration {
        SLACK + self.extra_packets_time().min(rtt.mul_f64(EXTRA_MOST))
    }

    /// How long the path takes for all of [`EXTRA_PACKETS`].
    fn extra_packets_time(&self) -> Duration {
        Duration::from_secs_f64((EXTRA_PACKETS * self.mtu) as f64 / self.rate().max(1.0))
    }

    /// Share that is used of [`SLACK`] and [`EXTRA_PACKETS`]. What is more than [`SLACK_LEAST`] of the round trip is given up
    /// with the surplus, and low rounds do without as soon as there is a loss that it may be the cause of: a queue that cannot
    /// hold it overflows in full rounds only then, which tells it from the path's own loss.
    ///
    /// Beside others who keep a queue and give way to losses, as CUBIC does, there is no more than the larger of
    /// [`SLACK_LEAST`] and [`SLACK_BESIDE`] either.
    fn slack(&self, shortest: Duration) -> f64 {
        let least = (shortest.as_secs_f64() * SLACK_LEAST / SLACK.as_secs_f64()).min(1.0);
        let lossless = self.surplus > SLACK_SURPLUS && self.rounds.loss() < EXCESS;
        match self.phase {
            _ if self.fixed_rate.is_some() => 1.0,
            // Of a slow path that delays unevenly it is too much even so.
            Phase::Low | Phase::Probe if !lossless && self.rtt.scatters() => least / 2.0,
            Phase::Low | Phase::Probe if !lossless => least,
            _ if self.leaves_room() => least.max(SLACK_BESIDE),
            _ => least + (1.0 - least) * self.surplus,
        }
    }

    /// Others keep a queue and give way to losses: slack and extra packets would only make them yield.
    fn leaves_room(&self) -> bool {
        self.rtt.crowded() && !self.heedless
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_rounds = 0;
        // Any number will do that other flows do not have. The upper bits of a product with the golden ratio (Knuth, vol. 3, 6.4).
        let number = self.last_sent.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        self.full_rounds = FULL_ROUNDS - 1 + (number % FULL_ROUNDS_VARY) as u32;
    }

    /// The rate to reckon with: the highest, or a mean where samples scatter.
    fn usual_rate(&self) -> f64 {
        let mean = if self.rtt.scatters() { self.rounds.mean_rate() } else { None };
        mean.map_or(self.rate(), |mean| mean.min(self.rate()))
    }

    fn set_window(&mut self) {
        let Some(shortest) = self.rtt() else { return };
        let gain = match self.phase {
            _ if self.fixed_rate.is_some() => LOW_GAIN,
            Phase::Startup => return, // it grows by what arrives
            // Drained by a window of full rounds, since with less the transport, which paces by a round trip that still
            // counts the queue, would leave the path idle.
            Phase::Drain | Phase::Full => LOW_GAIN + (FULL_GAIN - LOW_GAIN) * self.surplus,
            Phase::Low => LOW_GAIN,
            Phase::Probe => PROBE_GAIN,
        };
        let rate = self.fixed_rate.unwrap_or_else(|| self.usual_rate());
        if rate <= 0.0 {
            return;
        }
        let slack = self.slack(shortest);
        let shortest = shortest.as_secs_f64();
        // A CUBIC rival at 20 Mbit/s and 40 ms is left 14 % with them, and 44 % without (simulated, means of eight and six starts).
        let packets = if self.leaves_room() { 0 } else { EXTRA_PACKETS };
        let extra = ((packets * self.mtu) as f64).min(rate * shortest * EXTRA_MOST);
        let held = rate * (shortest * gain + SLACK.as_secs_f64() * slack) + extra * slack;
        let with_lost = held / (1.0 - self.rounds.own_loss().min(LOSS_MAX));
        let marks = self.marks.filter(|_| self.fixed_rate.is_none());
        let most = marks.map_or(f64::INFINITY, |marks| marks.window() * self.mtu as f64);
        // Float-to-integer casts saturate.
        self.window = (with_lost.min(most) as u64).max(MIN_PACKETS * self.mtu);
    }
}

#[cfg(test)]
mod tests;
