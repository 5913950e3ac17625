//! Bytes over time: what every transfer, ours or a peer's, is reduced to.

use std::time::Duration;

/// A transfer that has ended.
#[derive(Debug, Clone, Default)]
pub struct Flow {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From asking to the end.
    pub took: Duration,
    /// Bytes that had arrived at times after asking.
    pub samples: Vec<(Duration, u64)>,
    /// Whether all of it arrived.
    pub whole: bool,
    /// Why it broke, when it did.
    pub failure: Option<String>,
}

/// Mbit/s.
#[must_use]
pub fn mbit(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8e-6 / time.as_secs_f64()
}

/// GB/s.
#[must_use]
pub fn gbps(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

/// Seconds that the threads of a process have run so far, in it and in the kernel for it.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    /// Linux counts in hundredths whatever its own clock does.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may have blanks; the two sums are the 14th and 15th word.
    let words = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    words.map(|ticks| ticks.parse::<f64>().unwrap() / TICKS).sum()
}

impl Flow {
    /// Goodput in Mbit/s, everything included.
    #[must_use]
    pub fn mbit(&self) -> f64 {
        mbit(self.bytes, self.took)
    }

    /// Goodput between a quarter and 95 % of the bytes, in Mbit/s: without start-up and end.
    #[must_use]
    pub fn mbit_inside(&self) -> f64 {
        let reached = |share: f64| {
            let wanted = self.bytes as f64 * share;
            self.samples.iter().find(|sample| sample.1 as f64 >= wanted).copied().unwrap_or((self.took, self.bytes))
        };
        let (from, to) = (reached(0.25), reached(0.95));
        mbit(to.1 - from.1, to.0.saturating_sub(from.0))
    }

    /// Bytes that had arrived at a time.
    #[must_use]
    pub fn bytes_at(&self, time: Duration) -> u64 {
        let after = self.samples.partition_point(|sample| sample.0 <= time);
        after.checked_sub(1).map_or(0, |last| self.samples[last].1)
    }

    /// Goodput between two times, in Mbit/s.
    #[must_use]
    pub fn mbit_between(&self, from: Duration, to: Duration) -> f64 {
        mbit(self.bytes_at(to) - self.bytes_at(from), to - from)
    }

    /// How it ended, when not as it should; empty otherwise.
    #[must_use]
    pub fn trouble(&self) -> String {
        match &self.failure {
            Some(failure) => failure.clone(),
            None if !self.whole => format!("stopped after {:.0} s", self.took.as_secs_f64()),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_within_a_flow_leave_out_what_lies_outside() {
        // Nothing for a second, then 1 MB each 100 ms.
        let at = |step: u64| Duration::from_millis(1000 + 100 * step);
        let samples: Vec<_> = (0..=100).map(|step| (at(step), step * 1_000_000)).collect();
        let flow = Flow { bytes: 100_000_000, took: at(100), samples, whole: true, failure: None };
        assert!((flow.mbit() - 800.0 / 11.0).abs() < 0.01);
        assert!((flow.mbit_inside() - 80.0).abs() < 0.01);
        assert!((flow.mbit_between(at(10), at(20)) - 80.0).abs() < 0.01);
        assert_eq!(flow.bytes_at(Duration::from_millis(500)), 0);
    }
}
