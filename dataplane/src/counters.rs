//! What this worker counts: plain words on the network thread, copied to the named segment at an interval.

use std::cell::Cell;

use pangea_ipc::counter::{self, Id};
use pangea_ring::CountersSegment;

/// The counters. Belong to the network thread.
pub struct Counters {
    words: Vec<Cell<u64>>,
    segment: Option<CountersSegment>,
}

impl Counters {
    /// All zero. Without a segment nobody outside sees them.
    #[must_use]
    pub fn new(segment: Option<CountersSegment>) -> Self {
        Self { words: vec![Cell::new(0); counter::count()], segment }
    }

    /// Counts.
    pub fn add(&self, id: Id, more: u64) {
        if let Some(word) = self.words.get(id as usize) {
            word.set(word.get().wrapping_add(more));
        }
    }

    /// Sets a figure that moves both ways.
    pub fn set(&self, id: Id, value: u64) {
        if let Some(word) = self.words.get(id as usize) {
            word.set(value);
        }
    }

    /// A counter's value.
    #[must_use]
    pub fn get(&self, id: Id) -> u64 {
        self.words.get(id as usize).map_or(0, Cell::get)
    }

    /// Copies them to the segment and shows that the worker is at work.
    pub fn publish(&self) {
        if let Some(segment) = &self.segment {
            for (index, word) in self.words.iter().enumerate() {
                segment.set(index, word.get());
            }
            segment.beat();
        }
    }
}
