//! The policies that were in force, newest last; a change appends, a rollback too.

use pangea_ipc::ids::Revision;
use pangea_ipc::node::HISTORY_MAX;
use pangea_ipc::policy::{Policy, Revised};

/// The policies that were in force. Never empty.
#[derive(Debug, Clone)]
pub struct History {
    policies: Vec<Revised>,
}

/// A revision that is not, or no more, in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy revision {wanted} in the history, which reaches from {oldest} to {newest}")]
pub struct NoSuchRevision {
    /// The revision asked for.
    pub wanted: Revision,
    /// The oldest that is kept.
    pub oldest: Revision,
    /// The newest.
    pub newest: Revision,
}

impl History {
    /// Takes up a stored history; a node that has none begins with `first` as revision 1.
    #[must_use]
    pub fn new(mut stored: Vec<Revised>, first: Policy) -> Self {
        stored.sort_by_key(|revised| revised.revision);
        if stored.is_empty() {
            stored.push(Revised { revision: Revision(1), policy: first });
        }
        Self { policies: stored }
    }

    /// The policy in force.
    #[must_use]
    pub fn newest(&self) -> Revised {
        // Never empty; were it, the defaults as revision 0 would do no harm.
        let none = || Revised { revision: Revision(0), policy: Policy::default() };
        self.policies.last().cloned().unwrap_or_else(none)
    }

    /// All, newest first.
    #[must_use]
    pub fn newest_first(&self) -> Vec<Revised> {
        self.policies.iter().rev().cloned().collect()
    }

    /// Puts a policy in force; says it with its revision, and the revisions that are kept no more. One that changes
    /// nothing gets no revision.
    pub fn append(&mut self, policy: Policy) -> (Revised, Vec<Revision>) {
        let newest = self.newest();
        if newest.policy == policy {
            return (newest, Vec::new());
        }
        let revised = Revised { revision: newest.revision.next(), policy };
        self.policies.push(revised.clone());
        let excess = self.policies.len().saturating_sub(HISTORY_MAX);
        let dropped = self.policies.drain(..excess).map(|old| old.revision).collect();
        (revised, dropped)
    }

    /// An earlier policy.
    ///
    /// # Errors
    /// When it is not in the history.
    pub fn find(&self, wanted: Revision) -> Result<Policy, NoSuchRevision> {
        let found = self.policies.iter().find(|revised| revised.revision == wanted);
        let oldest = self.policies.first().map_or(Revision(0), |revised| revised.revision);
        found.map(|revised| revised.policy.clone()).ok_or(NoSuchRevision {
            wanted,
            oldest,
            newest: self.newest().revision,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overhead(pct: u8) -> Policy {
        Policy { fec_max_overhead_pct: pct, ..Policy::default() }
    }

    #[test]
    fn a_rollback_is_another_revision() {
        let mut history = History::new(Vec::new(), overhead(1));
        assert_eq!(history.newest().revision, Revision(1));
        assert_eq!(history.append(overhead(2)).0.revision, Revision(2));
        assert_eq!(history.append(overhead(2)).0.revision, Revision(2), "nothing changes");
        let old = history.find(Revision(1)).unwrap();
        assert_eq!(history.append(old).0, Revised { revision: Revision(3), policy: overhead(1) });
        assert_eq!(history.newest_first().len(), 3);
        let error = history.find(Revision(9)).unwrap_err();
        assert_eq!((error.oldest, error.newest), (Revision(1), Revision(3)));
    }

    #[test]
    fn the_history_is_bounded() {
        let mut history = History::new(Vec::new(), overhead(0));
        let mut dropped = Vec::new();
        for n in 1..=HISTORY_MAX + 1 {
            dropped.extend(history.append(overhead((n % 2) as u8)).1);
        }
        assert_eq!(history.newest_first().len(), HISTORY_MAX);
        assert_eq!(dropped, [Revision(1), Revision(2)]);
        let stored = history.newest_first();
        assert_eq!(History::new(stored, overhead(9)).newest(), history.newest());
    }
}
