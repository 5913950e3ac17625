//! What contents are here and elsewhere, and which of them make room for others.

use std::collections::{BTreeMap, HashMap};

use pangea_ipc::content::Geometry;
use pangea_ipc::ids::{ContentId, JobId, NodeId};
use pangea_ipc::node::{ContentReport, LISTING_PAGE_MAX};

/// Nodes remembered as holders of one content at most; the one heard of longest ago gives way.
pub const PROVIDERS_MAX: usize = 32;

/// What is known of one content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The name given at put; empty when it has none.
    pub name: String,
    /// Bytes in the whole.
    pub size: u64,
    /// Chunks that are here; 0 = only heard of.
    pub chunks_held: u32,
    /// Bytes that its files take on disk.
    pub disk_bytes: u64,
    /// All of it was here at some time, and has not been removed since: what is missing now is lost.
    pub was_whole: bool,
    /// Never evicted.
    pub pinned: bool,
    /// When it was last put or got, in seconds since 1970.
    pub used_s: u64,
    /// Who said to hold it.
    pub providers: BTreeMap<NodeId, Claim>,
}

/// What a node said of a content that it holds. Nothing of it is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// When it was said, in seconds since 1970.
    pub at_s: u64,
    /// Bytes in the whole; 0 = not said, or none.
    pub size: u64,
}

impl Record {
    /// Chunks in the whole.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        Geometry::new(self.size).map_or(0, Geometry::chunk_count)
    }

    /// Every chunk is here.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.chunks_held > 0 && self.chunks_held == self.chunks()
    }

    /// Notes that a node holds it.
    pub fn note_provider(&mut self, node: NodeId, claim: Claim) {
        self.providers.insert(node, claim);
        while self.providers.len() > PROVIDERS_MAX {
            let oldest = self.providers.iter().min_by_key(|(_, claim)| claim.at_s).map(|(node, _)| *node);
            if let Some(oldest) = oldest {
                self.providers.remove(&oldest);
            }
        }
    }
}

/// There is no room, even if everything that may go went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{needed} more bytes do not fit: the quota is {quota}, {used} are taken and only {evictable} of them may go; \
     raise store.quota, unpin or remove contents"
)]
pub struct NoRoom {
    /// Bytes asked for.
    pub needed: u64,
    /// Bytes allowed.
    pub quota: u64,
    /// Bytes taken.
    pub used: u64,
    /// Of these, bytes that could go.
    pub evictable: u64,
}

/// All contents, and the room that jobs have reserved.
#[derive(Debug, Default)]
pub struct Catalog {
    records: BTreeMap<ContentId, Record>,
    reserved: HashMap<JobId, u64>,
}

impl Catalog {
    /// What is known of a content.
    #[must_use]
    pub fn get(&self, id: ContentId) -> Option<&Record> {
        self.records.get(&id)
    }

    /// Changes what is known of a content, which is made known by it. Says the new record.
    pub fn update(&mut self, id: ContentId, change: impl FnOnce(&mut Record)) -> &Record {
        let record = self.records.entry(id).or_default();
        change(record);
        let gone = record.chunks_held == 0 && record.disk_bytes == 0;
        record.was_whole = record.is_complete() || record.was_whole && !gone;
        record
    }

    /// Forgets a content.
    pub fn remove(&mut self, id: ContentId) -> Option<Record> {
        self.records.remove(&id)
    }

    /// Every content that is known.
    pub fn iter(&self) -> impl Iterator<Item = (&ContentId, &Record)> {
        self.records.iter()
    }

    /// Contents that are here, at least in part.
    #[must_use]
    pub fn count_here(&self) -> u64 {
        self.records.values().filter(|record| record.chunks_held > 0).count() as u64
    }

    /// A page of the contents that are here, ascending, after the given one.
    #[must_use]
    pub fn page(&self, after: Option<ContentId>) -> Vec<ContentReport> {
        let here = self.records.iter().filter(|(id, record)| record.chunks_held > 0 && after.is_none_or(|a| **id > a));
        let report = |(id, record): (&ContentId, &Record)| ContentReport {
            id: *id,
            name: record.name.clone(),
            size: record.size,
            chunks: record.chunks(),
            chunks_held: record.chunks_held,
            pinned: record.pinned,
            used_s: record.used_s,
        };
        here.take(LISTING_PAGE_MAX).map(report).collect()
    }

    /// Bytes on disk and reserved.
    #[must_use]
    pub fn used(&self) -> u64 {
        let stored: u64 = self.records.values().map(|record| record.disk_bytes).sum();
        self.reserved.values().fold(stored, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// What must go so that `needed` more bytes fit: least recently used first, never pinned, never in use, no more
    /// than needed, and nothing at all when it would not suffice.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn victims(
        &self,
        needed: u64,
        quota: u64,
        in_use: impl Fn(ContentId) -> bool,
    ) -> Result<Vec<ContentId>, NoRoom> {
        let used = self.used();
        let mut excess = used.saturating_add(needed).saturating_sub(quota);
        let mut candidates: Vec<(&ContentId, &Record)> = self
            .records
            .iter()
            .filter(|(id, record)| record.disk_bytes > 0 && !record.pinned && !in_use(**id))
            .collect();
        candidates.sort_by_key(|(id, record)| (record.used_s, **id));
        let evictable = candidates.iter().map(|(_, record)| record.disk_bytes).sum();
        if excess > evictable {
            return Err(NoRoom { needed, quota, used, evictable });
        }
        let mut victims = Vec::new();
        for (id, record) in candidates {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(record.disk_bytes);
            victims.push(*id);
        }
        Ok(victims)
    }

    /// Keeps room for a job, in all; replaces what it had.
    pub fn reserve(&mut self, job: JobId, bytes: u64) {
        self.reserved.insert(job, bytes);
    }

    /// Room that is kept for a job.
    #[must_use]
    pub fn reserved(&self, job: JobId) -> u64 {
        self.reserved.get(&job).copied().unwrap_or(0)
    }

    /// Gives a job's room back: it has ended, or what it stored counts as stored now.
    pub fn release(&mut self, job: JobId) {
        self.reserved.remove(&job);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u8) -> ContentId {
        ContentId([n; 32])
    }

    proptest! {
        #[test]
        fn eviction_makes_just_enough_room_and_spares_what_must_stay(
            records in prop::collection::vec((0_u64..100, any::<bool>(), any::<bool>(), 0_u64..10), 0..20),
            needed in 0_u64..500,
            quota in 0_u64..1000,
        ) {
            let mut catalog = Catalog::default();
            for (n, (disk_bytes, pinned, _, used_s)) in (0_u8..).zip(&records) {
                catalog.update(id(n), |record| {
                    (record.disk_bytes, record.pinned, record.used_s) = (*disk_bytes, *pinned, *used_s);
                });
            }
            let in_use = |id: ContentId| records[usize::from(id.0[0])].2;
            let used = catalog.used();
            match catalog.victims(needed, quota, in_use) {
                Ok(victims) => {
                    let freed: u64 = victims.iter().map(|id| catalog.get(*id).unwrap().disk_bytes).sum();
                    prop_assert!(used - freed + needed <= quota || (victims.is_empty() && used + needed <= quota));
                    for victim in &victims {
                        prop_assert!(!catalog.get(*victim).unwrap().pinned && !in_use(*victim));
                    }
                    if let Some((last, rest)) = victims.split_last() {
                        let less: u64 = rest.iter().map(|id| catalog.get(*id).unwrap().disk_bytes).sum();
                        prop_assert!(used - less + needed > quota, "{last} had to go too");
                    }
                }
                Err(no_room) => prop_assert!(used + needed > quota + no_room.evictable),
            }
        }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_reservations_count() {
        let mut catalog = Catalog::default();
        for (n, used_s) in [(1, 30), (2, 10), (3, 20)] {
            catalog.update(id(n), |record| (record.disk_bytes, record.used_s) = (100, used_s));
        }
        catalog.reserve(JobId(1), 50);
        assert_eq!(catalog.used(), 350);
        assert_eq!(catalog.victims(100, 300, |_| false), Ok(vec![id(2), id(3)]));
        catalog.release(JobId(1));
        assert_eq!(catalog.victims(100, 300, |_| false), Ok(vec![id(2)]));
        assert_eq!(catalog.victims(u64::MAX, 300, |_| false).unwrap_err().evictable, 300);
    }

    #[test]
    fn providers_are_bounded_and_the_oldest_gives_way() {
        let mut record = Record::default();
        for n in 0..=PROVIDERS_MAX {
            record.note_provider(NodeId([n as u8; 32]), Claim { at_s: n as u64, size: 1 });
        }
        assert_eq!(record.providers.len(), PROVIDERS_MAX);
        assert!(!record.providers.contains_key(&NodeId([0; 32])));
    }

    #[test]
    fn only_what_is_here_is_listed() {
        let mut catalog = Catalog::default();
        catalog.update(id(1), |record| record.note_provider(NodeId([9; 32]), Claim { at_s: 1, size: 1 }));
        catalog.update(id(2), |record| (record.size, record.chunks_held) = (1, 1));
        assert_eq!(catalog.page(None).iter().map(|report| report.id).collect::<Vec<_>>(), [id(2)]);
        assert!(catalog.page(Some(id(2))).is_empty());
        assert!(catalog.get(id(2)).unwrap().is_complete() && !catalog.get(id(1)).unwrap().is_complete());
    }
}
