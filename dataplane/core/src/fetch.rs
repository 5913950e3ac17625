//! One fetch of one worker: which chunk to ask of which source next.
//!
//! Chunks are asked for in ascending order, those first that a reader waits for. Each source has a window of chunks
//! under way; whoever answers faster has room again sooner, so the work divides itself by speed. Near the end a chunk
//! that is late at one source is asked of another too, and the first that verifies wins.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::ChunkIndex;

/// Number of a source in its fetch; never used again within it.
pub type SourceId = u32;

/// Wrong chunks of one source after which it is dropped: one is proof enough.
const BAD_MAX: u32 = 1;
/// First pause after a source failed in passing.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Failures in a row after which a source is given up.
const FAILURES_MAX: u32 = 8;
/// As many failures is one that took seconds: four tries, so that a peer with several workers is tried at each of some.
const UNREACHABLE_FAILURES: u32 = 2;
/// A chunk is late when it takes this many times as long as the source's chunks took lately.
const LATE_FACTOR: u32 = 3;
/// No chunk is late before this: short paths have long tails.
const LATE_MIN: Duration = Duration::from_millis(200);
/// Nor before this at a source that has not delivered anything yet: it may be far, or just being connected to.
const LATE_FIRST: Duration = Duration::from_secs(1);
/// Sources that may have the same chunk under way at once.
const COPIES_MAX: usize = 2;
/// Chunks that are the end of a fetch at least.
pub const END_MIN: u32 = 2;
/// Chunks that are asked of a source before it is known how many arrive in a while: 8 MiB keep a path of 300 Mbit/s and
/// 150 ms busy from the start. More, and a fetch of a few dozen would have asked for its end before it knows what that is.
const WINDOW_START: usize = 32;
/// Once it is known, so many times as many as arrive in two round trips: start-up doubles in each, and what is asked for
/// now is sent in the one after the next.
const WINDOW_ENDS: usize = 4;

/// Why a chunk did not come from a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// In passing: busy, connection lost, too slow.
    Transient,
    /// No connection came up within the time for one: seconds went by.
    Unreachable,
    /// The source does not hold this chunk.
    NotHeld,
    /// The bytes were wrong.
    BadBytes,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask this source for this chunk.
    Ask {
        /// The source.
        source: SourceId,
        /// The chunk.
        chunk: ChunkIndex,
        /// Somebody waits for it, or hardly anything else is left to come: a lost packet of it costs a round trip.
        soon: bool,
    },
    /// Stop asking this source for this chunk: another was faster.
    Forget {
        /// The source.
        source: SourceId,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// This source is given up. `misbehaved`: it sent wrong bytes.
    Drop {
        /// The source.
        source: SourceId,
        /// It sent wrong bytes.
        misbehaved: bool,
    },
}

#[derive(Debug)]
struct Source {
    held: ChunkSet,
    /// Chunks under way, and since when.
    asked: BTreeMap<ChunkIndex, Instant>,
    /// Smoothed time from asking to having.
    pace: Option<Duration>,
    failures: u32,
    bad: u32,
    not_before: Instant,
}

/// The state of one fetch.
#[derive(Debug)]
pub struct Fetch {
    missing: ChunkSet,
    /// Of these, what is asked of no source.
    free: ChunkSet,
    /// No chunk below is free: where to look from.
    free_from: ChunkIndex,
    window: usize,
    sources: BTreeMap<SourceId, Source>,
    priority: VecDeque<Range<ChunkIndex>>,
    steps: VecDeque<Step>,
    next_source: SourceId,
    /// Chunks left to ask for when the end begins.
    end: u32,
}

/// Ranges that readers wait for, kept at most; older ones give way.
const PRIORITIES_MAX: usize = 16;

impl Fetch {
    /// A fetch of `missing`, with at most `window` chunks under way at each source, and no more than are of use there.
    #[must_use]
    pub fn new(missing: ChunkSet, window: usize) -> Self {
        Self {
            free: missing.clone(),
            missing,
            free_from: 0,
            window: window.max(1),
            sources: BTreeMap::new(),
            priority: VecDeque::new(),
            steps: VecDeque::new(),
            next_source: 0,
            end: END_MIN,
        }
    }

    /// The last `chunks` chunks to be asked for, and at least [`END_MIN`], are the end: as many as arrive while what was
    /// lost before them is sent again, which takes two round trips. How many are asked for at once follows it.
    pub fn set_end(&mut self, chunks: u32) {
        self.end = chunks.max(END_MIN);
    }

    /// Chunks that are still to come.
    #[must_use]
    pub fn missing(&self) -> &ChunkSet {
        &self.missing
    }

    /// Every chunk is here.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.missing.is_empty()
    }

    /// Changes the window.
    pub fn set_window(&mut self, window: usize) {
        self.window = window.max(1);
    }

    /// A further source, and what it holds.
    pub fn add_source(&mut self, held: ChunkSet, now: Instant) -> SourceId {
        let id = self.next_source;
        self.next_source += 1;
        let source = Source { held, asked: BTreeMap::new(), pace: None, failures: 0, bad: 0, not_before: now };
        self.sources.insert(id, source);
        id
    }

    /// A source holds more, or less, than was known.
    pub fn set_held(&mut self, source: SourceId, held: ChunkSet) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.held = held;
        }
    }

    /// A source is no more; what was under way there is asked of others.
    pub fn remove_source(&mut self, source: SourceId) {
        for chunk in self.sources.remove(&source).into_iter().flat_map(|source| source.asked.into_keys()) {
            self.set_free(chunk);
        }
    }

    /// A chunk is no longer asked of a source.
    fn set_free(&mut self, chunk: ChunkIndex) {
        let asked = self.sources.values().any(|source| source.asked.contains_key(&chunk));
        if self.missing.contains(chunk) && !asked {
            self.free.insert(chunk);
            self.free_from = self.free_from.min(chunk);
        }
    }

    /// A reader waits for these chunks: they come first. The newest wish stands in front.
    pub fn prioritise(&mut self, chunks: Range<ChunkIndex>) {
        self.priority.push_front(chunks);
        self.priority.truncate(PRIORITIES_MAX);
    }

    /// A chunk is here by another way.
    pub fn handle_held(&mut self, chunk: ChunkIndex) {
        if self.missing.remove(chunk) {
            self.free.remove(chunk);
            for (id, source) in &mut self.sources {
                if source.asked.remove(&chunk).is_some() {
                    self.steps.push_back(Step::Forget { source: *id, chunk });
                }
            }
        }
    }

    /// A chunk came and is verified. Says whether it was still missing.
    pub fn handle_verified(&mut self, source: SourceId, chunk: ChunkIndex, now: Instant) -> bool {
        if let Some(state) = self.sources.get_mut(&source) {
            if let Some(since) = state.asked.remove(&chunk) {
                let took = now.saturating_duration_since(since);
                state.pace = Some(state.pace.map_or(took, |pace| (pace * 7 + took) / 8));
            }
            state.failures = 0;
        }
        let news = self.missing.contains(chunk);
        self.handle_held(chunk);
        news
    }

    /// A chunk did not come from a source.
    pub fn handle_failed(&mut self, source: SourceId, chunk: ChunkIndex, why: Failed, now: Instant) {
        let Some(state) = self.sources.get_mut(&source) else { return };
        state.asked.remove(&chunk);
        match why {
            Failed::NotHeld => {
                state.held.remove(chunk);
            }
            Failed::BadBytes => state.bad += 1,
            Failed::Transient | Failed::Unreachable => {
                // Many chunks that fail at once, as when a connection breaks, are one failure.
                if state.not_before <= now {
                    state.failures += if why == Failed::Unreachable { UNREACHABLE_FAILURES } else { 1 };
                    let pause = BACKOFF_MIN * (1 << (state.failures - 1).min(6));
                    state.not_before = now + pause.min(BACKOFF_MAX);
                }
            }
        }
        let misbehaved = state.bad >= BAD_MAX;
        if misbehaved || state.failures >= FAILURES_MAX {
            self.remove_source(source);
            self.steps.push_back(Step::Drop { source, misbehaved });
        }
        self.set_free(chunk);
    }

    /// What to do next; `None` when there is nothing before something happens or [`poll_timeout`](Self::poll_timeout).
    pub fn poll_step(&mut self, now: Instant) -> Option<Step> {
        if let Some(step) = self.steps.pop_front() {
            return Some(step);
        }
        if self.missing.is_empty() {
            return None;
        }
        let window = self.window.min(WINDOW_START.max(self.end as usize * WINDOW_ENDS));
        // The source with the smallest share of its window in use first, so that all start at once.
        let mut ready: Vec<(usize, SourceId)> = self
            .sources
            .iter()
            .filter(|(_, source)| source.asked.len() < window && source.not_before <= now)
            .map(|(id, source)| (source.asked.len(), *id))
            .collect();
        ready.sort_unstable();
        for (_, id) in ready {
            let chunk = self.next_for(id).or_else(|| self.late_for(id, now));
            let Some(chunk) = chunk else { continue };
            let waited_for = self.priority.iter().any(|range| range.contains(&chunk));
            let asked: usize = self.sources.values().map(|source| source.asked.len()).sum();
            let left = (self.missing.count() as usize).saturating_sub(asked);
            if let Some(source) = self.sources.get_mut(&id) {
                source.asked.insert(chunk, now);
                self.free.remove(chunk);
                return Some(Step::Ask { source: id, chunk, soon: waited_for || left <= self.end as usize });
            }
        }
        None
    }

    /// When to call [`poll_step`](Self::poll_step) though nothing has happened; `None` = no need.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let resume = self.sources.values().map(|source| source.not_before).filter(|at| *at > now);
        let late = self
            .sources
            .values()
            .flat_map(|source| source.asked.values().map(|since| *since + lateness(source)).filter(|at| *at > now));
        resume.chain(late).min()
    }

    /// Chunks that no source has, or that are nobody's because there is no source.
    #[must_use]
    pub fn unobtainable(&self) -> ChunkSet {
        let mut lacking = self.missing.clone();
        for source in self.sources.values() {
            lacking.subtract(&source.held);
        }
        lacking
    }

    /// The next chunk that a source holds and nobody was asked for.
    fn next_for(&mut self, source: SourceId) -> Option<ChunkIndex> {
        let held = &self.sources.get(&source)?.held;
        let urgent = self
            .priority
            .iter()
            .find_map(|range| self.free.next_in_both(held, range.start).filter(|chunk| *chunk < range.end));
        if urgent.is_some() {
            return urgent;
        }
        self.free_from = self.free.next_from(self.free_from)?;
        self.free.next_in_both(held, self.free_from)
    }

    /// A chunk that is late elsewhere and that this source holds. Only when nothing else is left to ask for.
    fn late_for(&self, source: SourceId, now: Instant) -> Option<ChunkIndex> {
        let held = &self.sources.get(&source)?.held;
        let others = self.sources.iter().filter(|(id, _)| **id != source);
        let late = others.flat_map(|(_, other)| {
            let late = move |since: &Instant| now.saturating_duration_since(*since) >= lateness(other);
            other.asked.iter().filter(move |(_, since)| late(since)).map(|(chunk, _)| *chunk)
        });
        let copies =
            |chunk: ChunkIndex| self.sources.values().filter(|source| source.asked.contains_key(&chunk)).count();
        late.filter(|chunk| held.contains(*chunk) && copies(*chunk) < COPIES_MAX).min()
    }
}

fn lateness(source: &Source) -> Duration {
    source.pace.map_or(LATE_FIRST, |pace| (pace * LATE_FACTOR).max(LATE_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
    fn start() -> Instant {
        Instant::now()
    }

    fn asks(fetch: &mut Fetch, now: Instant) -> Vec<(SourceId, ChunkIndex)> {
        std::iter::from_fn(|| match fetch.poll_step(now) {
            Some(Step::Ask { source, chunk, .. }) => Some((source, chunk)),
            other => {
                assert_eq!(other, None);
                None
            }
        })
        .collect()
    }

    /// On a path of 20 Mbit/s and 300 ms, 64 chunks were asked for at once, of which two were the end instead of six.
    #[test]
    fn the_end_is_asked_for_when_it_is_known_what_that_is() {
        let now = start();
        let mut fetch = Fetch::new(ChunkSet::full(64), 96);
        fetch.add_source(ChunkSet::full(64), now);
        let mut under_way = VecDeque::new();
        let mut soon = 0;
        let mut came = 0;
        loop {
            while let Some(step) = fetch.poll_step(now) {
                let Step::Ask { chunk, soon: end, .. } = step else { panic!("{step:?}") };
                under_way.push_back(chunk);
                soon += u32::from(end);
            }
            assert!(under_way.len() <= WINDOW_START);
            let Some(chunk) = under_way.pop_front() else { break };
            came += 1;
            fetch.set_end(came.min(6));
            fetch.handle_verified(0, chunk, now);
        }
        assert_eq!((came, soon), (64, 6));
        let mut fast = Fetch::new(ChunkSet::full(400), 96);
        fast.add_source(ChunkSet::full(400), now);
        fast.set_end(100);
        assert_eq!(std::iter::from_fn(|| fast.poll_step(now)).count(), 96);
    }

    #[test]
    fn chunks_are_asked_for_in_order_within_the_window_of_each_source() {
        let now = start();
        let mut fetch = Fetch::new(ChunkSet::full(10), 2);
        let a = fetch.add_source(ChunkSet::full(10), now);
        let b = fetch.add_source(ChunkSet::of_range(10, 5..10), now);
        assert_eq!(asks(&mut fetch, now), [(a, 0), (b, 5), (a, 1), (b, 6)]);
        assert!(fetch.handle_verified(b, 5, now));
        assert_eq!(asks(&mut fetch, now), [(b, 7)]);
        assert!(!fetch.handle_verified(b, 5, now), "a chunk counts once");
    }

    proptest::proptest! {
        #[test]
        fn what_is_free_is_what_is_missing_and_not_under_way(seed in proptest::collection::vec((0u32..4, 0u32..90), 1..300)) {
            let mut now = start();
            let mut fetch = Fetch::new(ChunkSet::of_range(90, 3..80), 5);
            for (what, number) in seed {
                let source = number % fetch.next_source.max(1);
                match what {
                    0 if fetch.sources.len() < 4 => {
                        fetch.add_source(ChunkSet::of_range(90, number / 2..90), now);
                    }
                    0 => fetch.remove_source(source),
                    1 => {
                        while let Some(step) = fetch.poll_step(now) {
                            let Step::Ask { source, chunk, .. } = step else { continue };
                            proptest::prop_assert!(fetch.sources[&source].held.contains(chunk));
                        }
                    }
                    2 => {
                        fetch.handle_verified(source, number, now);
                    }
                    _ => fetch.handle_failed(source, number, Failed::Transient, now),
                }
                now += Duration::from_millis(u64::from(number));
                let mut free = fetch.missing.clone();
                for chunk in fetch.sources.values().flat_map(|source| source.asked.keys()) {
                    free.remove(*chunk);
                }
                proptest::prop_assert_eq!(&fetch.free, &free);
                proptest::prop_assert!(free.next_from(0).is_none_or(|first| fetch.free_from <= first));
            }
        }
    }

    #[test]
    fn what_a_reader_waits_for_comes_first() {
        let now = start();
        let mut fetch = Fetch::new(ChunkSet::full(100), 3);
        let a = fetch.add_source(ChunkSet::full(100), now);
        fetch.prioritise(50..52);
        assert_eq!(asks(&mut fetch, now), [(a, 50), (a, 51), (a, 0)]);
    }

    #[test]
    fn a_source_that_lies_is_dropped_and_its_chunks_are_asked_of_others() {
        let now = start();
        let mut fetch = Fetch::new(ChunkSet::full(2), 4);
        let liar = fetch.add_source(ChunkSet::full(2), now);
        assert_eq!(asks(&mut fetch, now), [(liar, 0), (liar, 1)]);
        fetch.handle_failed(liar, 0, Failed::BadBytes, now);
        assert_eq!(fetch.poll_step(now), Some(Step::Drop { source: liar, misbehaved: true }));
        assert_eq!(fetch.unobtainable().count(), 2);
        let honest = fetch.add_source(ChunkSet::full(2), now);
        assert_eq!(asks(&mut fetch, now), [(honest, 0), (honest, 1)]);
    }

    #[test]
    fn a_source_without_the_chunk_is_not_asked_for_it_again() {
        let now = start();
        let mut fetch = Fetch::new(ChunkSet::full(1), 4);
        let a = fetch.add_source(ChunkSet::full(1), now);
        assert_eq!(asks(&mut fetch, now), [(a, 0)]);
        fetch.handle_failed(a, 0, Failed::NotHeld, now);
        assert_eq!(asks(&mut fetch, now), []);
        assert_eq!(fetch.unobtainable().count(), 1);
        fetch.set_held(a, ChunkSet::full(1));
        assert_eq!(asks(&mut fetch, now), [(a, 0)]);
    }

    #[test]
    fn a_failing_source_is_left_in_peace_longer_and_longer_and_then_given_up() {
        let mut now = start();
        let mut fetch = Fetch::new(ChunkSet::full(1), 1);
        let a = fetch.add_source(ChunkSet::full(1), now);
        let mut pauses = Vec::new();
        loop {
            match fetch.poll_step(now) {
                Some(Step::Ask { .. }) => fetch.handle_failed(a, 0, Failed::Transient, now),
                Some(Step::Drop { source, misbehaved }) => {
                    assert_eq!((source, misbehaved), (a, false));
                    break;
                }
                None => {
                    let next = fetch.poll_timeout(now).unwrap();
                    pauses.push(next - now);
                    now = next;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(pauses.len() as u32, FAILURES_MAX - 1);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]) && pauses.last() <= Some(&BACKOFF_MAX));
    }

    #[test]
    fn a_source_that_cannot_be_reached_is_given_up_after_four_tries() {
        let mut now = start();
        let mut fetch = Fetch::new(ChunkSet::full(9), 9);
        let a = fetch.add_source(ChunkSet::full(9), now);
        for round in 1.. {
            let asked = asks(&mut fetch, now);
            assert_eq!(asked.len(), 9, "round {round}");
            now += Duration::from_secs(5);
            for (source, chunk) in asked {
                fetch.handle_failed(source, chunk, Failed::Unreachable, now);
            }
            if round == FAILURES_MAX / UNREACHABLE_FAILURES {
                break;
            }
            now = fetch.poll_timeout(now).unwrap();
        }
        assert_eq!(fetch.poll_step(now), Some(Step::Drop { source: a, misbehaved: false }));
    }

    #[test]
    fn a_late_chunk_is_asked_of_a_second_source_and_the_loser_is_told() {
        let mut now = start();
        let mut fetch = Fetch::new(ChunkSet::full(2), 1);
        let slow = fetch.add_source(ChunkSet::full(2), now);
        let fast = fetch.add_source(ChunkSet::full(2), now);
        assert_eq!(asks(&mut fetch, now), [(slow, 0), (fast, 1)]);
        now += Duration::from_millis(10);
        fetch.handle_verified(fast, 1, now);
        assert_eq!(asks(&mut fetch, now), [], "not late yet");
        now = fetch.poll_timeout(now).unwrap();
        assert_eq!(asks(&mut fetch, now), [(fast, 0)]);
        assert!(fetch.handle_verified(fast, 0, now));
        assert_eq!(fetch.poll_step(now), Some(Step::Forget { source: slow, chunk: 0 }));
        assert!(fetch.is_done() && fetch.poll_step(now).is_none());
    }

    #[test]
    fn work_divides_itself_by_speed() {
        // Source 0 takes 40 ms a chunk, source 1 takes 10 ms; each works on its window one after another.
        let mut now = start();
        let mut fetch = Fetch::new(ChunkSet::full(400), 4);
        let sources =
            [(fetch.add_source(ChunkSet::full(400), now), 40), (fetch.add_source(ChunkSet::full(400), now), 10)];
        let mut busy_until = [now; 2];
        let mut done = [0; 2];
        let mut events: BTreeMap<(Instant, SourceId, ChunkIndex), ()> = BTreeMap::new();
        while !fetch.is_done() {
            while let Some(step) = fetch.poll_step(now) {
                if let Step::Ask { source, chunk, .. } = step {
                    let ms = sources.iter().find(|(id, _)| *id == source).unwrap().1;
                    let free = &mut busy_until[source as usize];
                    *free = (*free).max(now) + Duration::from_millis(ms);
                    events.insert((*free, source, chunk), ());
                }
            }
            let ((at, source, chunk), ()) = events.pop_first().expect("something is under way");
            now = at;
            done[source as usize] += usize::from(fetch.handle_verified(source, chunk, now));
            assert!(fetch.sources.values().all(|source| source.asked.len() <= 4));
        }
        assert_eq!(done[0] + done[1], 400, "each chunk counts once");
        assert!((70..=90).contains(&done[0]), "a fifth of the work: {done:?}");
    }
}
