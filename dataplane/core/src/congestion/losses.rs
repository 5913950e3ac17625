//! How losses lie: evenly, or in bursts. Parity has to cover what a block may lose, not what it loses on average.

use std::collections::VecDeque;
use std::time::Instant;

/// Packets in a window of sending: about a block of symbols, so that its spread is that of a block.
const WINDOW_PACKETS: u64 = 128;
/// Windows whose losses are not all known yet, kept at most; older ones count as they are.
const OPEN_MAX: usize = 512;
/// Factor at each window: the last hundred or so count.
const FADE: f64 = 0.99;
/// What is believed before the path has shown anything: a spread twice that of independent losses…
const PRIOR_DISPERSION: f64 = 2.0;
/// …with the weight of so many windows.
const PRIOR_WINDOWS: f64 = 2.0;
/// Bounds of the dispersion: independent losses, and bursts of sixteen.
const DISPERSION_MAX: f64 = 32.0;

/// What a path loses by itself.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Loss {
    /// Share of packets, 0 to 1.
    pub share: f64,
    /// Variance of the number lost in a block over its mean: 1 = independent; bursts of mean length b have about 2 b - 1.
    pub dispersion: f64,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    began: Instant,
    sent: u64,
    lost: u64,
}

/// Losses by windows of sending.
#[derive(Debug, Clone, Default)]
pub(super) struct Windows {
    open: VecDeque<Window>,
    count: f64,
    sum: f64,
    squares: f64,
}

impl Windows {
    /// Bytes were sent, in packets of `mtu` bytes.
    pub(super) fn handle_sent(&mut self, now: Instant, bytes: u64, mtu: u64) {
        let full = self.open.back().is_none_or(|window| window.sent >= WINDOW_PACKETS * mtu);
        if full {
            if self.open.len() >= OPEN_MAX {
                self.open.pop_front();
            }
            self.open.push_back(Window { began: now, sent: 0, lost: 0 });
        }
        if let Some(window) = self.open.back_mut() {
            window.sent += bytes;
        }
    }

    /// Bytes were lost; the newest of them were sent at `sent`.
    pub(super) fn handle_lost(&mut self, sent: Instant, bytes: u64) {
        let at = self.open.partition_point(|window| window.began <= sent);
        if let Some(window) = self.open.get_mut(at.saturating_sub(1)) {
            window.lost += bytes;
        }
    }

    /// A packet sent at `sent` has arrived: what was lost of the windows before its own is known. `counts`: they were
    /// sent in rounds that say something of the path.
    pub(super) fn handle_arrived(&mut self, sent: Instant, mtu: u64, counts: bool) {
        // The losses that this acknowledgement shows are told of after it: one window more is left open.
        while self.open.get(2).is_some_and(|later| later.began <= sent) {
            if let Some(window) = self.open.pop_front()
                && counts
            {
                let lost = window.lost as f64 / mtu as f64;
                self.count = self.count * FADE + 1.0;
                self.sum = self.sum * FADE + lost;
                self.squares = self.squares * FADE + lost * lost;
            }
        }
    }

    /// Variance over mean of the number lost in a window.
    #[must_use]
    pub(super) fn dispersion(&self) -> f64 {
        let shown = if self.sum > 0.0 {
            let mean = self.sum / self.count;
            (self.squares / self.count - mean * mean) / mean
        } else {
            PRIOR_DISPERSION
        };
        let mixed = (shown * self.count + PRIOR_DISPERSION * PRIOR_WINDOWS) / (self.count + PRIOR_WINDOWS);
        mixed.clamp(1.0, DISPERSION_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::simulation::Chance;
    use super::*;

    const MTU: u64 = 1400;

    /// Sends packets a millisecond apart, of which `loses` says the fate; losses are known 50 ms later.
    fn shown(packets: u64, mut loses: impl FnMut() -> bool) -> f64 {
        #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
        let start = Instant::now();
        let at = |n: u64| start + Duration::from_millis(n);
        let mut windows = Windows::default();
        let mut fates = VecDeque::new();
        for n in 0..packets {
            windows.handle_sent(at(n), MTU, MTU);
            fates.push_back(loses());
            if n >= 50 {
                let sent = at(n - 50);
                match fates.pop_front() {
                    Some(true) => windows.handle_lost(sent, MTU),
                    _ => windows.handle_arrived(sent, MTU, true),
                }
            }
        }
        windows.dispersion()
    }

    #[test]
    fn independent_losses_and_bursts_are_told_apart() {
        let mut chance = Chance(7);
        let even = shown(40_000, || chance.next() < 0.05);
        assert!((1.0..1.6).contains(&even), "{even}");
        let mut in_burst = false;
        let bursts = shown(40_000, || {
            // Mean length 8, 5 % in all.
            in_burst = if in_burst { chance.next() >= 0.125 } else { chance.next() < 0.125 * 0.05 / 0.95 };
            in_burst
        });
        assert!((8.0..20.0).contains(&bursts), "{bursts}");
        assert!((shown(500, || false) - PRIOR_DISPERSION).abs() < 0.01);
    }
}
