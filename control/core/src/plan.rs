//! Which worker brings which chunks from whom.

use pangea_ipc::address::Endpoint;
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::ids::WorkerIndex;
use pangea_ipc::worker::{SOURCES_MAX, Source};

/// Neighbouring chunks that go to the same worker: 1 MiB, so that an in-order reader soon hears from all workers and
/// each still writes in long runs.
pub const STRIPE_CHUNKS: u32 = 4;

/// Divides chunks over workers in stripes, round robin. Workers without a share are left out.
#[must_use]
pub fn stripe(missing: &ChunkSet, workers: &[WorkerIndex]) -> Vec<(WorkerIndex, ChunkSet)> {
    let mut shares: Vec<(WorkerIndex, ChunkSet)> =
        workers.iter().map(|worker| (*worker, ChunkSet::empty(missing.bound()))).collect();
    if shares.is_empty() {
        return shares;
    }
    // By rank among the missing, not by number: also a set with holes divides evenly.
    for (rank, chunk) in missing.iter().enumerate() {
        let at = rank / STRIPE_CHUNKS as usize % shares.len();
        if let Some((_, share)) = shares.get_mut(at) {
            share.insert(chunk);
        }
    }
    shares.retain(|(_, share)| !share.is_empty());
    shares
}

/// Whom of a peer's workers a worker talks to: that of the same number, so that all of both nodes are used. `None` when it
/// has none.
#[must_use]
pub fn partner(theirs: &[Endpoint], ours: WorkerIndex) -> Option<Endpoint> {
    theirs.get(usize::from(ours.0).checked_rem(theirs.len())?).copied()
}

/// The sources worth telling workers of: those that hold something that is missing, those that hold most first, at most
/// [`SOURCES_MAX`].
#[must_use]
pub fn sources(mut holders: Vec<Source>, missing: &ChunkSet) -> Vec<Source> {
    let useful = |source: &Source| {
        let mut useful = source.held.clone();
        useful.intersect_with(missing);
        useful.count()
    };
    holders.retain(|source| !source.endpoints.is_empty() && useful(source) > 0);
    holders.sort_by_key(|source| (std::cmp::Reverse(useful(source)), source.node));
    holders.truncate(SOURCES_MAX);
    holders
}

#[cfg(test)]
mod tests {
    use pangea_ipc::ids::{NodeId, WorkerKey};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_chunk_has_exactly_one_worker_and_shares_are_even(
            chunks in prop::collection::btree_set(0_u32..2000, 0..600),
            workers in 1_u16..9,
        ) {
            let mut missing = ChunkSet::empty(2000);
            for chunk in &chunks {
                missing.insert(*chunk);
            }
            let workers: Vec<_> = (0..workers).map(WorkerIndex).collect();
            let shares = stripe(&missing, &workers);
            let mut union = ChunkSet::empty(2000);
            for (_, share) in &shares {
                prop_assert!(!share.is_empty());
                union.union_with(share);
            }
            let total: u32 = shares.iter().map(|(_, share)| share.count()).sum();
            prop_assert_eq!((&union, total), (&missing, missing.count()));
            let most = shares.iter().map(|(_, share)| share.count()).max().unwrap_or(0);
            prop_assert!(most <= missing.count() / workers.len() as u32 + STRIPE_CHUNKS);
        }
    }

    fn source(node: u8, held: std::ops::Range<u32>, endpoints: usize) -> Source {
        let endpoint =
            Endpoint { worker: WorkerIndex(0), address: "127.0.0.1:1".parse().unwrap(), key: WorkerKey([node; 32]) };
        Source { node: NodeId([node; 32]), held: ChunkSet::of_range(10, held), endpoints: vec![endpoint; endpoints] }
    }

    #[test]
    fn without_workers_there_is_no_plan() {
        assert!(stripe(&ChunkSet::full(3), &[]).is_empty());
    }

    #[test]
    fn sources_that_cannot_help_are_left_out_and_the_best_come_first() {
        let missing = ChunkSet::of_range(10, 5..10);
        let holders = vec![source(1, 0..5, 1), source(2, 0..6, 1), source(3, 0..10, 1), source(4, 0..10, 0)];
        let told: Vec<_> = sources(holders, &missing).iter().map(|source| source.node.0[0]).collect();
        assert_eq!(told, [3, 2]);
        let many = (0..100).map(|node| source(node, 0..10, 1)).collect();
        assert_eq!(sources(many, &missing).len(), SOURCES_MAX);
    }
}
