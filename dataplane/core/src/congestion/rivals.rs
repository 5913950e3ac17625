//! What shares a path with ours: TCP's CUBIC and its BBR, simulated as Linux has them, in seconds and packets.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::rate::Sampler;
use super::simulation::MTU;

/// CUBIC (RFC 9438), with HyStart: a rival that leaves slow start early is the weaker one.
#[derive(Clone)]
pub(super) struct Cubic {
    window: f64,
    max: f64,
    /// The window that Reno would have (section 4.3).
    reno: f64,
    /// When it last gave way; `None` = in slow start.
    since: Option<f64>,
    /// The shortest round trip, in seconds: slow start ends when one is an eighth longer (HyStart, as Linux has it).
    shortest: f64,
}

impl Cubic {
    pub(super) fn new() -> Self {
        Self { window: 10.0, max: 0.0, reno: 0.0, since: None, shortest: f64::MAX }
    }

    pub(super) fn window(&self) -> f64 {
        self.window
    }

    pub(super) fn handle_ack(&mut self, now: f64, rtt: f64) {
        self.shortest = self.shortest.min(rtt);
        let Some(since) = self.since else {
            self.window += 1.0;
            if self.window > 16.0 && rtt > self.shortest + (self.shortest / 8.0).clamp(0.004, 0.016) {
                (self.max, self.reno, self.since) = (self.window, self.window, Some(now));
            }
            return;
        };
        let k = (self.max * 0.3 / 0.4).cbrt();
        let target = 0.4 * (now - since - k).powi(3) + self.max;
        self.window += ((target - self.window) / self.window).clamp(0.01 / self.window, 0.5);
        // As fast as Reno with the same decrease, on average: 3 (1 - 0.7) / (1 + 0.7).
        self.reno += if self.reno < self.max { 0.53 } else { 1.0 } / self.window;
        self.window = self.window.max(self.reno);
    }

    pub(super) fn handle_lost(&mut self, sent: f64, now: f64) {
        if self.since.is_none_or(|since| sent > since) {
            (self.max, self.window, self.since) = (self.window, (self.window * 0.7).max(2.0), Some(now));
            self.reno = self.window;
        }
    }
}

/// Gain of start-up: 2 / ln 2.
const HIGH_GAIN: f64 = 2.885;
/// Pacing gains of a cycle; each lasts a shortest round trip.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// Packets that the window has on top of its gain: three bursts of segmentation offload.
const BURSTS: f64 = 30.0;
/// Rounds whose highest rate counts.
const RATE_ROUNDS: u64 = 10;
/// A shortest round trip is looked for anew after so many seconds…
const RTT_SECONDS: f64 = 10.0;
/// …with four packets for so many.
const PROBE_RTT_SECONDS: f64 = 0.2;

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Startup,
    Drain,
    Cycle {
        at: usize,
        since: f64,
    },
    /// `until` is known once no more than four packets are in flight.
    ProbeRtt {
        until: Option<f64>,
    },
}

/// BBR (draft-cardwell-iccrg-bbr-congestion-control-00), with packets conserved for a round after a loss and without its search for
/// policers. It does not give way to losses.
#[derive(Clone)]
pub(super) struct Bbr {
    zero: Instant,
    sampler: Sampler,
    /// Number of the round, and its highest rate in bytes a second, of the last [`RATE_ROUNDS`].
    rates: VecDeque<(u64, f64)>,
    round: u64,
    round_ends_at: u64,
    /// The highest rate of start-up, and rounds since it grew by a quarter.
    plateau: (f64, u32),
    shortest: f64,
    shortest_at: f64,
    phase: Phase,
    window: f64,
    /// Window to go back to, the packet whose arrival ends the recovery, and the round for which packets are conserved.
    recovery: Option<(f64, u64, u64)>,
    lost_in_phase: bool,
}

impl Bbr {
    pub(super) fn new(zero: Instant) -> Self {
        Self {
            zero,
            sampler: Sampler::new(zero),
            rates: VecDeque::new(),
            round: 0,
            round_ends_at: 0,
            plateau: (0.0, 0),
            shortest: f64::MAX,
            shortest_at: 0.0,
            phase: Phase::Startup,
            window: 10.0,
            recovery: None,
            lost_in_phase: false,
        }
    }

    fn instant(&self, seconds: f64) -> Instant {
        self.zero + Duration::from_secs_f64(seconds)
    }

    fn rate(&self) -> f64 {
        self.rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max)
    }

    /// What the path holds, in packets.
    fn held(&self) -> f64 {
        self.rate() * self.shortest / MTU as f64
    }

    pub(super) fn window(&self) -> f64 {
        if matches!(self.phase, Phase::ProbeRtt { .. }) { self.window.min(4.0) } else { self.window }
    }

    /// Bytes a second to send at; `None` before the first rate is known.
    pub(super) fn pacing(&self) -> Option<f64> {
        let gain = match self.phase {
            Phase::Startup => HIGH_GAIN,
            Phase::Drain => 1.0 / HIGH_GAIN,
            Phase::Cycle { at, .. } => CYCLE[at],
            Phase::ProbeRtt { .. } => 1.0,
        };
        Some(0.99 * gain * self.rate()).filter(|rate| *rate > 0.0)
    }

    pub(super) fn handle_sent(&mut self, now: f64, alone: bool) {
        self.sampler.handle_sent(self.instant(now), alone);
    }

    pub(super) fn handle_ack(&mut self, now: f64, sent: f64) {
        self.sampler.handle_ack(self.instant(now), self.instant(sent), MTU);
        let (rtt, expired) = (now - sent, now > self.shortest_at + RTT_SECONDS);
        if expired && !matches!(self.phase, Phase::ProbeRtt { .. }) {
            self.phase = Phase::ProbeRtt { until: None };
        }
        if rtt < self.shortest || expired {
            (self.shortest, self.shortest_at) = (rtt, now);
        }
    }

    /// The acknowledgement is over. Packets: `acked` and `lost` by it, `in_flight` now, the newest that arrived and that was sent.
    pub(super) fn handle_acks_end(
        &mut self,
        now: f64,
        (acked, lost, in_flight): (f64, f64, f64),
        largest: u64,
        last_sent: u64,
    ) {
        let new_round = largest >= self.round_ends_at;
        if new_round {
            self.round += 1;
            self.round_ends_at = last_sent + 1;
        }
        if let Some(sample) = self.sampler.sample(self.instant(now), None) {
            self.rates.push_back((self.round, sample.rate));
            let oldest = self.round.saturating_sub(RATE_ROUNDS);
            self.rates.retain(|(round, _)| *round > oldest);
            // Only those that may be the highest some time.
            while self.rates.len() > 1 && self.rates[self.rates.len() - 2].1 <= sample.rate {
                let at = self.rates.len() - 2;
                self.rates.remove(at);
            }
        }
        self.change_phase(now, in_flight, new_round);
        self.set_window((acked, lost, in_flight), largest, last_sent);
    }

    fn change_phase(&mut self, now: f64, in_flight: f64, new_round: bool) {
        let held = self.held();
        match self.phase {
            Phase::Startup if new_round => {
                let (highest, rounds) = self.plateau;
                self.plateau = if self.rate() >= highest * 1.25 { (self.rate(), 0) } else { (highest, rounds + 1) };
                if self.plateau.1 >= 3 {
                    self.phase = Phase::Drain;
                }
            }
            Phase::Drain if in_flight <= held => self.phase = Phase::Cycle { at: 2, since: now },
            Phase::Cycle { at, since } => {
                let over = now - since > self.shortest;
                let next = match at {
                    0 => over && (self.lost_in_phase || in_flight >= 1.25 * held),
                    1 => over || in_flight <= held,
                    _ => over,
                };
                if next {
                    self.phase = Phase::Cycle { at: (at + 1) % CYCLE.len(), since: now };
                    self.lost_in_phase = false;
                }
            }
            Phase::ProbeRtt { until: None } if in_flight <= 4.0 => {
                self.phase = Phase::ProbeRtt { until: Some(now + PROBE_RTT_SECONDS) };
            }
            Phase::ProbeRtt { until: Some(until) } if now >= until => {
                self.shortest_at = now;
                self.phase = if self.plateau.1 >= 3 { Phase::Cycle { at: 2, since: now } } else { Phase::Startup };
            }
            _ => {}
        }
    }

    fn set_window(&mut self, (acked, lost, in_flight): (f64, f64, f64), largest: u64, last_sent: u64) {
        self.lost_in_phase |= lost > 0.0;
        self.window = (self.window - lost).max(1.0);
        match self.recovery {
            Some((before, until, _)) if largest >= until && lost == 0.0 => {
                self.window = self.window.max(before);
                self.recovery = None;
            }
            None if lost > 0.0 => {
                self.recovery = Some((self.window + lost, last_sent, self.round));
                self.window = in_flight + acked;
            }
            _ => {}
        }
        if self.recovery.is_some_and(|(.., round)| round == self.round) {
            self.window = self.window.max(in_flight + acked);
            return;
        }
        let gain = if matches!(self.phase, Phase::Startup | Phase::Drain) { HIGH_GAIN } else { 2.0 };
        let target = gain * self.held() + BURSTS;
        self.window = if self.plateau.1 >= 3 { (self.window + acked).min(target) } else { self.window + acked };
        self.window = self.window.max(4.0);
    }
}
