//! The round trip to reckon with: the shortest seen, or a mean where samples scatter or the path has become longer.

use std::time::{Duration, Instant};

use super::SLACK;

/// Samples in a span: few enough to fit between two changes of a queue, enough to quarter the deviation of their mean.
const SPAN: u32 = 16;
/// A queue of start-up's own shows in a round trip longer by this factor…
const QUEUED: f64 = 1.0625;
/// …and by this much, or by what chance makes of scattered samples (as in HyStart++, RFC 9406, which waits for an eighth; the
/// sooner, the less is sent that has to queue).
const NOISE: Duration = Duration::from_millis(3);
/// Deviations that chance seldom exceeds.
const DEVIATIONS: u32 = 3;
/// The round trip of a whole cycle above this multiple of the shortest, and [`SLACK`]: the path has become longer, or others keep
/// a queue in it. Either way it is the round trip to reckon with: a window for the old one would not fill the longer path, and
/// would yield to the others until nothing is left. Two flows of this kind stay below it.
const CHANGED: f64 = 1.3;
/// Which of the two it was is looked into after this time, and again and again with twice the pause. Until then the
/// window counts the queue of others as path, at their cost: with twice this a CUBIC rival at 5 Mbit/s is left 0.10 to 0.12, with this
/// 0.22 to 0.27 (`bench fair`).
const PROBE_AFTER: Duration = Duration::from_secs(5);
/// Beside others who do not heed losses, that is as seldom as a BBR looks (RTpropFilterLen of
/// draft-cardwell-iccrg-bbr-congestion-control-00), since each time the other takes what is left for it: it had 67 to 71 % of the path
/// with 5 s, and 60 to 64 and once 72 with this (`bench fair`).
const PROBE_AFTER_HEEDLESS: Duration = Duration::from_secs(10);
/// The first round trip of all is looked into sooner: who comes last to a path takes the queue of the others for part of it. Later,
/// so that most transfers are over by then.
const PROBE_FIRST: Duration = Duration::from_secs(8);
const PROBE_AFTER_MAX: Duration = Duration::from_secs(60);
/// Found to be no queue again after such a pause, it is the path's own.
const PROBE_SURE: Duration = Duration::from_secs(20);
/// A probe that finds the round trip shorter than by this factor has found a queue.
const PROBE_FOUND: f64 = 0.9;

/// So many samples running.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Span {
    mean: Duration,
    /// How far a sample is from the mean, by how unlike the steps from one to the next are (after von Neumann, 1941): what grows
    /// evenly does not scatter.
    deviation: Duration,
    /// Mean of its first half.
    first_half: Duration,
    /// The second half is longer than the first by a deviation at most, which is twice what chance makes of halves.
    level: bool,
}

/// Takes samples by spans.
#[derive(Debug, Clone, Copy, Default)]
struct Spans {
    /// The one with the least mean.
    least: Option<Span>,
    /// Of the span that is not full yet: samples, their sum, that of the first half of a span, the first and the last of them, and
    /// the squares of the steps from one to the next in s².
    count: u32,
    sum: Duration,
    first_half: Duration,
    first: Duration,
    last: Option<Duration>,
    squares: f64,
}

impl Spans {
    /// Takes a sample; says the span that it completes.
    fn take(&mut self, sample: Duration) -> Option<Span> {
        self.sum = self.sum.saturating_add(sample);
        self.count += 1;
        if self.count == SPAN / 2 {
            self.first_half = self.sum;
        }
        match self.last.replace(sample) {
            Some(last) => self.squares += sample.abs_diff(last).as_secs_f64().powi(2),
            None => self.first = sample,
        }
        if self.count < SPAN {
            return None;
        }
        let (mean, deviation) = (self.sum / SPAN, self.deviation());
        let second_half = self.sum.saturating_sub(self.first_half);
        let grown = second_half.saturating_sub(self.first_half) / (SPAN / 2);
        let span = Span { mean, deviation, first_half: self.first_half / (SPAN / 2), level: grown <= deviation };
        *self = Self { least: self.least.filter(|least| least.mean <= mean).or(Some(span)), ..Self::default() };
        Some(span)
    }

    /// Of the samples of the span that is not full.
    fn deviation(&self) -> Duration {
        let steps = f64::from(self.count.saturating_sub(1).max(1));
        let step = self.last.unwrap_or_default().abs_diff(self.first).as_secs_f64() / steps;
        let variance = (self.squares / steps - step * step).max(0.0) / 2.0;
        Duration::try_from_secs_f64(variance.sqrt()).unwrap_or_default()
    }

    /// The least mean; that of fewer samples as long as there are no more; `None` before the first.
    fn least_mean(&self) -> Option<Duration> {
        self.least.map(|span| span.mean).or(self.sum.checked_div(self.count))
    }
}

/// The round trips of a path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rtt {
    /// The one to reckon with; `None` before the first.
    shortest: Option<Duration>,
    /// Samples scatter. It is a mean, so only means can be shorter: single samples may be by far, and do not come often.
    scatters: bool,
    /// That of the path while nobody queues, as far as it has shown; it does not follow what others add to the usual one.
    unqueued: Option<Duration>,
    /// The sum of the samples of this round, and how many there were; and the longest mean of a round.
    round: (Duration, u32),
    longest: Duration,
    /// A cycle has passed whose samples did not scatter.
    steady: bool,
    /// The probe is to show the usual round trip of samples that scatter.
    probe_for_mean: bool,
    /// Of this cycle, or of the last round of a probe.
    phase: Spans,
    /// The last span of start-up.
    start_up: Option<Span>,
    /// The mean of the last span of start-up that was level, and so was not filling a queue.
    level: Option<Duration>,
    /// The one to reckon with when the probe began.
    before_probe: Duration,
    /// When to probe whether the shortest is the path's own, and the pause after that.
    probe_at: Instant,
    pause: Duration,
    /// The shortest was taken from a path that had become longer, or fuller, and which of them it was is not sure.
    adopted: bool,
}

impl Rtt {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            shortest: None,
            scatters: false,
            unqueued: None,
            round: (Duration::ZERO, 0),
            longest: Duration::ZERO,
            steady: false,
            probe_for_mean: false,
            phase: Spans::default(),
            start_up: None,
            level: None,
            before_probe: Duration::MAX,
            probe_at: now + PROBE_FIRST,
            pause: PROBE_FIRST,
            adopted: false,
        }
    }

    /// The round trip to reckon with; `None` before the first.
    pub(super) fn shortest(&self) -> Option<Duration> {
        self.shortest
    }

    /// Others may keep a queue in the path, which is longer than it was for a reason that is not sure yet. Where samples scatter, a mean is no sign of that.
    pub(super) fn crowded(&self) -> bool {
        self.adopted && !self.scatters
    }

    /// Samples scatter, and the round trip to reckon with is a mean.
    pub(super) fn scatters(&self) -> bool {
        self.scatters
    }

    /// The round trip of the path while nobody queues, as far as it is known; 0 before the first.
    pub(super) fn unqueued(&self) -> Duration {
        self.unqueued.unwrap_or_default()
    }

    /// A round is over. `extra`: what a window adds to the round trip that makes no queue but its slack. Says whether there was no
    /// other, so that what was lost then was lost to the path: on average its round trips were no longer than that, and in the
    /// lower half of all that rounds have shown (who comes to a full queue knows no shorter ones).
    pub(super) fn end_round(&mut self, extra: Duration) -> bool {
        let (sum, count) = std::mem::take(&mut self.round);
        let Some(mean) = sum.checked_div(count) else { return false };
        self.longest = self.longest.max(mean);
        let unqueued = self.unqueued();
        let half = (unqueued + self.longest) / 2;
        mean <= (unqueued + extra).mul_f64(QUEUED) && mean <= half.max(unqueued.mul_f64(QUEUED) + NOISE)
    }

    /// Takes a sample. `rested`: it was sent after a rest, so that no queue of ours is in it, as after a probe.
    pub(super) fn take(&mut self, now: Instant, sample: Duration, start_up: bool, rested: bool) {
        if rested && !self.adopted {
            self.probe_at = self.probe_at.max(now + self.pause);
        }
        self.round = (self.round.0.saturating_add(sample), self.round.1 + 1);
        let span = self.phase.take(sample);
        if let (true, Some(span)) = (start_up, span) {
            if span.level {
                self.level = Some(span.mean);
            } else if self.start_up.is_none() && span.deviation * DEVIATIONS > NOISE {
                // Better than the shortest of samples that scatter, and soon exceeded where a queue fills.
                self.level = Some(span.first_half);
            }
            self.start_up = Some(span);
        }
        if !self.scatters {
            self.shorten(sample);
        } else if let Some(span) = span {
            // Of many means, the least falls short of the usual one by about that much.
            self.shorten(span.mean + span.deviation);
        }
    }

    /// Whether a sample of start-up shows a queue. A path whose samples scatter has a usual round trip far above the shortest, and
    /// samples far above that; how far is not known before the first span is full.
    pub(super) fn is_queue(&self, sample: Duration) -> bool {
        let Some(usual) = self.usual() else { return false };
        let noise = self.start_up.map_or(self.phase.deviation(), |span| span.deviation) * DEVIATIONS;
        let told = self.start_up.is_some() || noise <= NOISE;
        told && sample > usual.mul_f64(QUEUED) + NOISE.max(noise)
    }

    /// Start-up begins anew: what an earlier one has shown says nothing.
    pub(super) fn begin_start_up(&mut self) {
        (self.start_up, self.level, self.phase) = (None, None, Spans::default());
    }

    /// Start-up has found a queue. `explained`: the round trip that a window for the shortest makes. Usual ones above that are
    /// those to reckon with.
    pub(super) fn end_start_up(&mut self, now: Instant, explained: Duration) {
        if let Some(usual) = self.usual().filter(|usual| *usual > explained.mul_f64(QUEUED)) {
            self.adopt_mean(now, usual);
            self.unqueued = Some(usual);
        }
    }

    /// Low rounds have shown the path without a queue of ours. `explained`: the round trip that their window makes of the
    /// shortest. `heedless`: others keep the queue full whatever is lost. Says whether it is time to probe.
    pub(super) fn end_cycle(&mut self, now: Instant, explained: Duration, heedless: bool) -> bool {
        let cycle = std::mem::take(&mut self.phase);
        if let (Some(least), Some(shortest)) = (cycle.least_mean(), self.shortest) {
            let changed = least > shortest.mul_f64(CHANGED) + SLACK;
            let unexplained = least > explained.mul_f64(QUEUED);
            if cycle.least.is_some_and(|span| span.deviation * DEVIATIONS > SLACK) {
                // What scatters, and how much of it a queue is, is told without one only.
                self.probe_for_mean = changed || (unexplained && !self.scatters);
            } else {
                self.steady |= !self.scatters;
                if changed && unexplained {
                    self.adopt(now, least, probe_after(heedless));
                }
            }
            self.before_probe = self.shortest.unwrap_or(least);
        }
        self.probe_for_mean || self.probe_at <= now
    }

    /// Only the last round of a probe has a queue that ran off.
    pub(super) fn begin_last_round_of_probe(&mut self) {
        self.phase = Spans::default();
    }

    /// A probe is over. `heedless`: as in [`end_cycle`](Self::end_cycle).
    pub(super) fn end_probe(&mut self, now: Instant, heedless: bool) {
        let found = std::mem::take(&mut self.phase).least_mean();
        if let (true, Some(usual)) = (std::mem::take(&mut self.probe_for_mean), found) {
            self.adopt_mean(now, usual);
            if !self.steady {
                self.unqueued = found;
            }
            return;
        }
        found.into_iter().for_each(|found| self.shorten(found));
        let queue = found.is_some_and(|found| found < self.before_probe.mul_f64(PROBE_FOUND));
        if !queue && self.pause >= PROBE_SURE {
            (self.unqueued, self.adopted) = (self.shortest, false);
        }
        self.pause = if queue { probe_after(heedless) } else { (self.pause * 2).min(PROBE_AFTER_MAX) };
        self.probe_at = now + self.pause;
    }

    fn usual(&self) -> Option<Duration> {
        self.shortest.map(|shortest| self.level.map_or(shortest, |level| level.max(shortest)))
    }

    fn shorten(&mut self, found: Duration) {
        self.shortest = Some(self.shortest.map_or(found, |shortest| shortest.min(found)));
        self.unqueued = Some(self.unqueued.map_or(found, |unqueued| unqueued.min(found)));
    }

    /// Samples scatter about this.
    fn adopt_mean(&mut self, now: Instant, usual: Duration) {
        self.adopt(now, usual, PROBE_AFTER);
        self.scatters = true;
    }

    fn adopt(&mut self, now: Instant, usual: Duration, pause: Duration) {
        self.shortest = Some(usual);
        self.adopted = true;
        (self.probe_at, self.pause) = (now + pause, pause);
    }
}

fn probe_after(heedless: bool) -> Duration {
    if heedless { PROBE_AFTER_HEEDLESS } else { PROBE_AFTER }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Chance;
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    fn spans(mut sample: impl FnMut(u32) -> f64) -> Vec<Span> {
        let mut spans = Spans::default();
        (0..40 * SPAN).filter_map(|n| spans.take(ms(sample(n)))).collect()
    }

    #[test]
    fn what_scatters_is_level_and_what_grows_does_not_scatter() {
        let mut chance = Chance(5);
        let scattered = spans(|_| 40.0 + 20.0 * chance.next());
        assert_eq!(scattered.len(), 40);
        assert!(scattered.iter().filter(|span| span.level).count() >= 36);
        // Evenly over 20 ms: 5.8.
        let deviation = scattered.iter().map(|span| span.deviation.as_secs_f64() * 1e3 / 40.0).sum::<f64>();
        assert!((5.0..6.5).contains(&deviation), "{deviation}");
        let growing = spans(|n| 40.0 + f64::from(n));
        assert!(growing.iter().all(|span| !span.level && span.deviation < ms(1.0)), "{growing:?}");
        let still = spans(|_| 40.0);
        assert!(still.iter().all(|span| span.level && span.deviation.is_zero()), "{still:?}");
    }

    #[test]
    fn single_samples_do_not_undo_a_mean() {
        #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
        let start = Instant::now();
        let mut rtt = Rtt::new(start);
        let mut chance = Chance(1);
        let cycle = |rtt: &mut Rtt, chance: &mut Chance| {
            for _ in 0..200 {
                rtt.take(start, ms(30.0 + 40.0 * chance.next()), false, false);
            }
            rtt.end_cycle(start, rtt.shortest().unwrap() + SLACK, false)
        };
        rtt.take(start, ms(30.0), false, false);
        assert_eq!(rtt.shortest(), Some(ms(30.0)));
        assert!(cycle(&mut rtt, &mut chance), "the usual one is looked for");
        rtt.begin_last_round_of_probe();
        (0..20).for_each(|_| rtt.take(start, ms(30.0 + 40.0 * chance.next()), false, false));
        rtt.end_probe(start, false);
        let usual = rtt.shortest().unwrap();
        assert!((ms(40.0)..ms(50.0)).contains(&usual), "{usual:?}");
        cycle(&mut rtt, &mut chance);
        assert!(rtt.shortest().unwrap() > ms(38.0), "{:?}", rtt.shortest());
        // A path that has become shorter is seen.
        for _ in 0..SPAN {
            rtt.take(start, ms(20.0), false, false);
        }
        assert!(rtt.shortest().unwrap() < ms(38.0));
    }
}
