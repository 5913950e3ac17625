//! A set of chunk numbers below a fixed bound, as a bitmap: what is held, what is wanted, what is whose share.

use std::ops::Range;

use crate::content::{CHUNKS_MAX, ChunkIndex};

/// Why bytes are not a chunk set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkSetError {
    /// More chunks than a content can have.
    #[error("chunk set for {chunks} chunks is larger than the most a content has ({CHUNKS_MAX})")]
    TooLarge {
        /// Chunks claimed.
        chunks: u32,
    },
    /// The number of bytes does not fit the number of chunks.
    #[error("chunk set for {chunks} chunks has {found} bytes; it must have {expected}")]
    Length {
        /// Chunks claimed.
        chunks: u32,
        /// Bytes found.
        found: usize,
        /// Bytes that such a set has.
        expected: usize,
    },
    /// Bits are set beyond the last chunk.
    #[error("chunk set for {chunks} chunks has bits beyond its last chunk")]
    Beyond {
        /// Chunks claimed.
        chunks: u32,
    },
}

/// Which of the chunks `0..bound()` are in. One bit each; bits beyond the bound are always 0.
#[derive(Clone, PartialEq, Eq)]
pub struct ChunkSet {
    bound: u32,
    /// Chunks that are in, so that whoever asks after each chunk does not go through the whole set (512 KiB at a TiB).
    count: u32,
    words: Vec<u64>,
}

impl std::fmt::Debug for ChunkSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChunkSet({} of {})", self.count(), self.bound)
    }
}

impl ChunkSet {
    /// The empty set of chunks below `bound`, clipped to [`CHUNKS_MAX`].
    #[must_use]
    pub fn empty(bound: u32) -> Self {
        let bound = bound.min(CHUNKS_MAX);
        Self { bound, count: 0, words: vec![0; bound.div_ceil(64) as usize] }
    }

    /// All chunks below `bound`.
    #[must_use]
    pub fn full(bound: u32) -> Self {
        let mut set = Self::empty(bound);
        set.insert_range(0..set.bound);
        set
    }

    /// The chunks in `range`, of a content with `bound` chunks.
    #[must_use]
    pub fn of_range(bound: u32, range: Range<ChunkIndex>) -> Self {
        let mut set = Self::empty(bound);
        set.insert_range(range);
        set
    }

    /// Reads the form that [`to_bytes`](Self::to_bytes) writes.
    ///
    /// # Errors
    /// When the bound is too large, the length does not fit it or bits are set beyond it.
    pub fn from_bytes(bound: u32, bytes: &[u8]) -> Result<Self, ChunkSetError> {
        if bound > CHUNKS_MAX {
            return Err(ChunkSetError::TooLarge { chunks: bound });
        }
        let expected = bound.div_ceil(8) as usize;
        if bytes.len() != expected {
            return Err(ChunkSetError::Length { chunks: bound, found: bytes.len(), expected });
        }
        let words = bytes
            .chunks(8)
            .map(|part| {
                let mut word = [0; 8];
                for (to, from) in word.iter_mut().zip(part) {
                    *to = *from;
                }
                u64::from_le_bytes(word)
            })
            .collect();
        let mut set = Self { bound, count: 0, words };
        set.count_again();
        let beyond = set.words.last().is_some_and(|last| last & !set.last_mask() != 0);
        if beyond { Err(ChunkSetError::Beyond { chunks: bound }) } else { Ok(set) }
    }

    /// `bound / 8` bytes, rounded up; chunk `i` is bit `i % 8` of byte `i / 8`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.bound.div_ceil(8) as usize);
        bytes
    }

    /// Every chunk in the set is below this.
    #[must_use]
    pub fn bound(&self) -> u32 {
        self.bound
    }

    /// How many chunks are in.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    fn count_again(&mut self) {
        self.count = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// No chunk is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Every chunk below the bound is in.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == self.bound
    }

    /// Whether a chunk is in; never for one beyond the bound.
    #[must_use]
    pub fn contains(&self, chunk: ChunkIndex) -> bool {
        self.words.get(chunk as usize / 64).is_some_and(|word| word >> (chunk % 64) & 1 == 1)
    }

    /// Adds a chunk; says whether it is new. A chunk beyond the bound is never added.
    pub fn insert(&mut self, chunk: ChunkIndex) -> bool {
        if chunk >= self.bound || self.contains(chunk) {
            return false;
        }
        if let Some(word) = self.words.get_mut(chunk as usize / 64) {
            *word |= 1 << (chunk % 64);
            self.count += 1;
        }
        true
    }

    /// Takes a chunk out; says whether it was in.
    pub fn remove(&mut self, chunk: ChunkIndex) -> bool {
        let was_in = self.contains(chunk);
        if let (true, Some(word)) = (was_in, self.words.get_mut(chunk as usize / 64)) {
            *word &= !(1 << (chunk % 64));
            self.count -= 1;
        }
        was_in
    }

    /// Adds a range, clipped to the bound.
    pub fn insert_range(&mut self, range: Range<ChunkIndex>) {
        let end = range.end.min(self.bound);
        let mut at = range.start;
        while at < end {
            let next = (at / 64 + 1) * 64;
            let low = u64::MAX << (at % 64);
            let mask = if end < next { low & !(u64::MAX << (end % 64)) } else { low };
            if let Some(word) = self.words.get_mut(at as usize / 64) {
                self.count += (mask & !*word).count_ones();
                *word |= mask;
            }
            at = next;
        }
    }

    /// Adds every chunk of another set, clipped to this one's bound.
    pub fn union_with(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
        let mask = self.last_mask();
        if let Some(last) = self.words.last_mut() {
            *last &= mask;
        }
        self.count_again();
    }

    /// Takes every chunk of another set out.
    pub fn subtract(&mut self, other: &Self) {
        for (word, less) in self.words.iter_mut().zip(&other.words) {
            *word &= !less;
        }
        self.count_again();
    }

    /// Keeps only chunks that are in the other set too.
    pub fn intersect_with(&mut self, other: &Self) {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        for (word, keep) in self.words.iter_mut().zip(others) {
            *word &= keep;
        }
        self.count_again();
    }

    /// Every chunk of this set is in the other too.
    #[must_use]
    pub fn is_subset_of(&self, other: &Self) -> bool {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        self.words.iter().zip(others).all(|(word, other)| word & !other == 0)
    }

    /// The first chunk at or after `from` that is in.
    #[must_use]
    pub fn next_from(&self, from: ChunkIndex) -> Option<ChunkIndex> {
        next_bit(|at| self.words.get(at).copied(), from)
    }

    /// The first chunk at or after `from` that is in this set and the other.
    #[must_use]
    pub fn next_in_both(&self, other: &Self, from: ChunkIndex) -> Option<ChunkIndex> {
        next_bit(|at| Some(self.words.get(at)? & other.words.get(at)?), from)
    }

    /// The chunks in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let chunk = self.next_from(next)?;
            next = chunk + 1;
            Some(chunk)
        })
    }

    /// The runs of neighbouring chunks in the set, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<ChunkIndex>> + '_ {
        runs(|at| self.words.get(at).copied(), 0..self.bound)
    }

    /// The runs of neighbouring chunks of `range` that are in this set and not in the other, ascending. Looks at `range` only.
    pub fn ranges_beyond<'a>(
        &'a self,
        other: &'a Self,
        range: Range<ChunkIndex>,
    ) -> impl Iterator<Item = Range<ChunkIndex>> + 'a {
        let word = |at: usize| Some(self.words.get(at)? & !other.words.get(at).copied().unwrap_or(0));
        runs(word, range.start..range.end.min(self.bound))
    }

    fn last_mask(&self) -> u64 {
        match self.bound % 64 {
            0 => u64::MAX,
            bits => (1 << bits) - 1,
        }
    }
}

/// The first bit at or after `from` that is set in words, `None` beyond the last.
fn next_bit(word: impl Fn(usize) -> Option<u64>, from: ChunkIndex) -> Option<ChunkIndex> {
    let mut at = from as usize / 64;
    let mut bits = word(at)? & (u64::MAX << (from % 64));
    while bits == 0 {
        at += 1;
        bits = word(at)?;
    }
    u32::try_from(at * 64).ok().map(|base| base + bits.trailing_zeros())
}

/// The runs of set bits within `range`, ascending.
fn runs(word: impl Fn(usize) -> Option<u64>, range: Range<ChunkIndex>) -> impl Iterator<Item = Range<ChunkIndex>> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        let start = next_bit(&word, next).filter(|start| *start < range.end)?;
        let end = next_bit(|at| word(at).map(|bits| !bits), start).unwrap_or(range.end).min(range.end);
        next = end;
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_plain_set(bound in 1u32..300, ops in prop::collection::vec((0u32..320, any::<bool>()), 0..200)) {
            let mut set = ChunkSet::empty(bound);
            let mut model = BTreeSet::new();
            for (chunk, add) in ops {
                if add {
                    prop_assert_eq!(set.insert(chunk), chunk < bound && model.insert(chunk));
                } else {
                    prop_assert_eq!(set.remove(chunk), model.remove(&chunk));
                }
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.count() as usize, model.len());
            prop_assert_eq!(set.ranges().flatten().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(ChunkSet::from_bytes(bound, &set.to_bytes()), Ok(set));
        }

        #[test]
        fn set_algebra_holds(bound in 1u32..200, a in prop::collection::vec(0u32..200, 0..100), b in prop::collection::vec(0u32..200, 0..100)) {
            let make = |items: &[u32]| { let mut set = ChunkSet::empty(bound); for i in items { set.insert(*i); } set };
            let (a, b) = (make(&a), make(&b));
            let mut union = a.clone(); union.union_with(&b);
            let mut both = a.clone(); both.intersect_with(&b);
            let mut only_a = a.clone(); only_a.subtract(&b);
            for i in 0..bound {
                prop_assert_eq!(union.contains(i), a.contains(i) || b.contains(i));
                prop_assert_eq!(both.contains(i), a.contains(i) && b.contains(i));
                prop_assert_eq!(only_a.contains(i), a.contains(i) && !b.contains(i));
            }
            prop_assert!(both.is_subset_of(&a) && a.is_subset_of(&union));
            let range = bound / 5..bound * 2 / 3 + 70;
            let mut filled = a.clone(); filled.insert_range(range.clone());
            for i in 0..bound {
                prop_assert_eq!(filled.contains(i), a.contains(i) || range.contains(&i));
            }
            for set in [&union, &both, &only_a, &filled] {
                prop_assert_eq!(set.count() as usize, set.iter().count());
            }
            for from in 0..=bound {
                prop_assert_eq!(a.next_in_both(&b, from), both.next_from(from));
            }
            let within = bound / 3..bound - bound / 4 + 9;
            let beyond: Vec<_> = a.ranges_beyond(&b, within.clone()).collect();
            prop_assert!(beyond.windows(2).all(|pair| pair[0].end < pair[1].start));
            let expected: Vec<_> = only_a.iter().filter(|chunk| within.contains(chunk)).collect();
            prop_assert_eq!(beyond.into_iter().flatten().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn foreign_bytes_are_checked() {
        assert!(matches!(ChunkSet::from_bytes(CHUNKS_MAX + 1, &[]), Err(ChunkSetError::TooLarge { .. })));
        assert!(matches!(ChunkSet::from_bytes(9, &[0]), Err(ChunkSetError::Length { expected: 2, .. })));
        assert!(matches!(ChunkSet::from_bytes(9, &[0, 0b10]), Err(ChunkSetError::Beyond { .. })));
        assert_eq!(ChunkSet::from_bytes(9, &[0xff, 1]), Ok(ChunkSet::full(9)));
    }

    #[test]
    fn a_larger_set_never_leaks_bits_beyond_the_bound() {
        let mut small = ChunkSet::empty(3);
        small.union_with(&ChunkSet::full(64));
        assert_eq!(small, ChunkSet::full(3));
        assert!(small.is_full() && !small.contains(3));
    }
}
