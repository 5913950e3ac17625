//! Which of the sizes that nodes tell of a content to believe first.
//!
//! A manifest proves itself, but not the size: that of one chunk merges to the content id whatever it says, and of any
//! content only the last chunk, verified, shows where it ends. Until then a size is a claim, and one under which the last
//! chunk could not be had is in doubt.

use std::collections::{BTreeMap, VecDeque};

use pangea_ipc::ids::ContentId;

/// Sizes in doubt remembered at most; the oldest gives way.
const DOUBTS_MAX: usize = 1024;

/// Sizes under which a content's last chunk could not be had.
#[derive(Debug, Default)]
pub struct Doubts(VecDeque<(ContentId, u64)>);

impl Doubts {
    /// The last chunk could not be had under this size.
    pub fn note(&mut self, id: ContentId, size: u64) {
        if !self.contains(id, size) {
            self.0.push_back((id, size));
        }
        while self.0.len() > DOUBTS_MAX {
            self.0.pop_front();
        }
    }

    /// The size of a content is proven, or the content is of no interest any more.
    pub fn forget(&mut self, id: ContentId) {
        self.0.retain(|(doubted, _)| *doubted != id);
    }

    /// Whether a size is in doubt.
    #[must_use]
    pub fn contains(&self, id: ContentId, size: u64) -> bool {
        self.0.contains(&(id, size))
    }

    /// The sizes that are told of a content, each once, those to believe first in front: what is not in doubt before what
    /// is, then what more nodes tell. Second: how many of them deserve to be tried before the first is believed; 1 when
    /// there is nothing to decide.
    #[must_use]
    pub fn ranked(&self, id: ContentId, told: impl IntoIterator<Item = u64>) -> (Vec<u64>, usize) {
        let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
        for size in told {
            *votes.entry(size).or_default() += 1;
        }
        let mut sizes: Vec<u64> = votes.keys().copied().collect();
        sizes.sort_by_key(|size| (self.contains(id, *size), std::cmp::Reverse(votes.get(size).copied())));
        let undoubted = sizes.iter().filter(|size| !self.contains(id, **size)).count();
        let equal = if undoubted == 0 { sizes.len() } else { undoubted };
        (sizes, equal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_in_doubt_comes_first_and_then_what_most_tell() {
        let id = ContentId([1; 32]);
        let mut doubts = Doubts::default();
        assert_eq!(doubts.ranked(id, [5, 7, 7]), (vec![7, 5], 2));
        assert_eq!(doubts.ranked(id, [7, 7]), (vec![7], 1));
        doubts.note(id, 7);
        assert_eq!(doubts.ranked(id, [5, 7, 7]), (vec![5, 7], 1), "one is left to believe");
        assert_eq!(doubts.ranked(ContentId([2; 32]), [5, 7, 7]).0, [7, 5], "another content's doubts are its own");
        doubts.note(id, 5);
        assert_eq!(doubts.ranked(id, [5, 7, 7]), (vec![7, 5], 2), "in doubt is not refused");
        doubts.forget(id);
        assert!(!doubts.contains(id, 7));
        assert_eq!(doubts.ranked(id, []), (vec![], 0));
    }

    #[test]
    fn doubts_are_bounded() {
        let mut doubts = Doubts::default();
        for size in 0..=DOUBTS_MAX as u64 {
            doubts.note(ContentId([1; 32]), size);
            doubts.note(ContentId([1; 32]), size);
        }
        assert!(!doubts.contains(ContentId([1; 32]), 0) && doubts.contains(ContentId([1; 32]), 1));
    }
}
