//! What routers ask for by marking packets (ECN, RFC 3168): a window that falls and grows as CUBIC's (RFC 9438) does, so that
//! ours and a TCP that heeds marks leave each other room. The model alone would go on filling the queue above which is marked.

use std::time::{Duration, Instant};

/// Share of the window that is left by a mark (RFC 9438, 4.6).
const DECREASE: f64 = 0.7;
/// Packets by which the window grows, times the third power of seconds (RFC 9438, 5.1).
const GROWTH: f64 = 0.4;
/// Packets a round by which Reno's would grow with the same decrease, on average (RFC 9438, 4.3).
const RENO_GROWTH: f64 = 3.0 * (1.0 - DECREASE) / (1.0 + DECREASE);

/// The last mark that was answered, and the largest window since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    at: Instant,
    window: f64,
    /// Window that the answer fell from, in packets.
    from: f64,
    /// Window that it grows back to before it looks for more.
    most: f64,
}

impl Marks {
    /// Answers a mark: `window`, in packets, was too much.
    pub(super) fn answer(before: Option<Self>, now: Instant, window: f64) -> Self {
        // One that did not get back to where it was makes room for those who came since (RFC 9438, 4.7).
        let yields = before.is_some_and(|before| window < before.most);
        let most = if yields { window * (1.0 + DECREASE) / 2.0 } else { window };
        Self { at: now, window: window * DECREASE, from: window, most }
    }

    /// Whether a packet was sent before the answer: its mark asks for nothing more.
    pub(super) fn is_answered(&self, sent: Instant) -> bool {
        sent <= self.at
    }

    /// The largest window, in packets.
    pub(super) fn window(&self) -> f64 {
        self.window
    }

    /// Time has passed.
    pub(super) fn grow(&mut self, now: Instant, rtt: Duration) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        let least = self.from * DECREASE;
        let until = ((self.most - least).max(0.0) / GROWTH).cbrt();
        let cubic = self.most + GROWTH * (seconds - until).powi(3);
        let reno = least + RENO_GROWTH * seconds / rtt.as_secs_f64().max(1e-6);
        self.window = cubic.max(reno);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_takes_a_third_and_time_gives_it_back() {
        #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
        let now = Instant::now();
        let (rtt, after) = (Duration::from_millis(50), |seconds| now + Duration::from_secs_f64(seconds));
        let grown = |mut marks: Marks, at, rtt| {
            marks.grow(at, rtt);
            marks.window()
        };
        let marks = Marks::answer(None, now, 1000.0);
        assert!((marks.window() - 700.0).abs() < 1e-6 && (grown(marks, now, rtt) - 700.0).abs() < 1e-6);
        assert!(marks.is_answered(now) && !marks.is_answered(after(0.001)));
        // The third root of 300 / 0.4.
        assert!((grown(marks, after(9.086), rtt) - 1000.0).abs() < 0.1);
        assert!(grown(marks, after(15.0), rtt) > 1050.0);
        // A second one, before that: it grows back to less.
        let again = Marks::answer(Some(marks), after(1.0), 800.0);
        assert!((grown(again, after(1.0), rtt) - 560.0).abs() < 1e-6);
        assert!((grown(again, after(1.0 + (120.0_f64 / 0.4).cbrt()), rtt) - 680.0).abs() < 0.1);
        // On a short path Reno's way is the faster one: 0.53 packets a round.
        let short = Marks::answer(None, now, 20.0);
        assert!((grown(short, after(0.1), Duration::from_millis(1)) - (14.0 + 52.9)).abs() < 0.1);
    }
}
