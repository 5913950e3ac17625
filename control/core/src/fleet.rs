//! When a worker that ended is started again: soon the first time, later and later when it keeps ending.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pangea_ipc::ids::WorkerIndex;

/// Pause before the first new start.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A worker that ran this long counts as healthy: its next end is a first one again.
const HEALTHY_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
struct Slot {
    started: Instant,
    ends_in_a_row: u32,
    restarts: u32,
}

/// The workers that this controller starts.
#[derive(Debug, Default)]
pub struct Fleet {
    slots: BTreeMap<WorkerIndex, Slot>,
}

impl Fleet {
    /// A worker was started, or found running.
    pub fn handle_started(&mut self, worker: WorkerIndex, now: Instant) {
        let slot = self.slots.entry(worker).or_insert(Slot { started: now, ends_in_a_row: 0, restarts: 0 });
        slot.started = now;
    }

    /// A worker ended that should not have; says after which pause to start it again. `chance`: uniform in 0..1, so that
    /// the workers of a machine in trouble do not all start at once.
    pub fn handle_ended(&mut self, worker: WorkerIndex, chance: f64, now: Instant) -> Duration {
        let slot = self.slots.entry(worker).or_insert(Slot { started: now, ends_in_a_row: 0, restarts: 0 });
        if now.saturating_duration_since(slot.started) >= HEALTHY_AFTER {
            slot.ends_in_a_row = 0;
        }
        let pause = (PAUSE_MIN * (1 << slot.ends_in_a_row.min(10))).min(PAUSE_MAX);
        slot.ends_in_a_row += 1;
        slot.restarts += 1;
        pause.mul_f64(0.75 + 0.5 * chance.clamp(0.0, 1.0))
    }

    /// A worker is not wanted any more.
    pub fn remove(&mut self, worker: WorkerIndex) {
        self.slots.remove(&worker);
    }

    /// How often a worker was started again.
    #[must_use]
    pub fn restarts(&self, worker: WorkerIndex) -> u32 {
        self.slots.get(&worker).map_or(0, |slot| slot.restarts)
    }

    /// The lowest number that no worker has.
    #[must_use]
    pub fn free_index(&self, taken: impl Fn(WorkerIndex) -> bool) -> WorkerIndex {
        let free = (0..u16::MAX).map(WorkerIndex).find(|index| !self.slots.contains_key(index) && !taken(*index));
        free.unwrap_or(WorkerIndex(u16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_the_worker_was_healthy_for_a_while() {
        #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
        let mut now = Instant::now();
        let mut fleet = Fleet::default();
        let worker = WorkerIndex(0);
        fleet.handle_started(worker, now);
        let pauses: Vec<_> = (0..8).map(|_| fleet.handle_ended(worker, 0.5, now).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        now += HEALTHY_AFTER;
        assert_eq!(fleet.handle_ended(worker, 0.5, now), PAUSE_MIN);
        assert_eq!(fleet.restarts(worker), 9);
        assert!(fleet.handle_ended(worker, 0.0, now) < fleet.handle_ended(worker, 1.0, now));
    }

    #[test]
    fn a_new_worker_gets_the_lowest_free_number() {
        #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
        let now = Instant::now();
        let mut fleet = Fleet::default();
        fleet.handle_started(WorkerIndex(0), now);
        assert_eq!(fleet.free_index(|index| index == WorkerIndex(1)), WorkerIndex(2));
        fleet.remove(WorkerIndex(0));
        assert_eq!(fleet.free_index(|_| false), WorkerIndex(0));
    }
}
