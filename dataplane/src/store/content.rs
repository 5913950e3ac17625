//! An open content as this worker knows it: which chunks can be read, which are durable, which wait for a sync.
//!
//! `held` = claimed on disk by any worker, or checked and written by this one. Whoever waits for chunks has a [`Watch`],
//! which says where something has changed.

use std::cell::{Cell, Ref, RefCell};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::{ChunkIndex, Manifest};

use super::StoreError;
use super::changes::{Watch, Watches};
use super::files::ContentFiles;
use crate::buffer::Buffer;

/// The bitmap on disk is read again for chunks of other workers at most this often.
pub const REFRESH_MIN: Duration = Duration::from_millis(50);

/// One open content. Belongs to the network thread.
#[derive(Debug)]
pub struct Content {
    files: Arc<ContentFiles>,
    known: RefCell<Known>,
    watches: Watches,
    syncing: tokio::sync::Mutex<()>,
    refreshed: Cell<Instant>,
}

#[derive(Debug)]
struct Known {
    /// Claimed, or written by this worker.
    held: ChunkSet,
    /// Of these, on disk and claimed.
    durable: ChunkSet,
}

impl Known {
    /// Written by this worker, not yet claimed.
    fn written(&self) -> ChunkSet {
        let mut written = self.held.clone();
        written.subtract(&self.durable);
        written
    }
}

impl Content {
    /// Opens the files. Waits for the disk on a blocking thread.
    ///
    /// # Errors
    /// As [`ContentFiles::open`].
    pub async fn open(store: &std::path::Path, id: pangea_ipc::ids::ContentId) -> Result<Self, StoreError> {
        let store = store.to_owned();
        let (files, durable) = blocking(move || {
            let files = ContentFiles::open(&store, id)?;
            let held = files.held()?;
            Ok((files, held))
        })
        .await?;
        Ok(Self {
            files: Arc::new(files),
            known: RefCell::new(Known { held: durable.clone(), durable }),
            watches: Watches::default(),
            syncing: tokio::sync::Mutex::new(()),
            refreshed: Cell::new(Instant::now()),
        })
    }

    /// What it is and how its chunks are checked.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.files.manifest()
    }

    /// Its files, for the store thread.
    #[must_use]
    pub fn files(&self) -> Arc<ContentFiles> {
        Arc::clone(&self.files)
    }

    /// Reads a chunk for a peer, who checks it anyway, if the page cache has all of it; waits for nothing. Says whether it had.
    #[must_use]
    pub fn read_cached(&self, chunk: ChunkIndex, to: &mut Buffer) -> bool {
        let read = self.files.read_cached(chunk, to.space());
        if let Some(len) = read {
            to.set_len(len);
        }
        read.is_some()
    }

    /// Whether a chunk can be read.
    #[must_use]
    pub fn holds(&self, chunk: ChunkIndex) -> bool {
        self.known.borrow().held.contains(chunk)
    }

    /// Every chunk that can be read.
    #[must_use]
    pub fn held(&self) -> Ref<'_, ChunkSet> {
        Ref::map(self.known.borrow(), |known| &known.held)
    }

    /// Every chunk that survives a power loss.
    #[must_use]
    pub fn durable(&self) -> Ref<'_, ChunkSet> {
        Ref::map(self.known.borrow(), |known| &known.durable)
    }

    /// Chunks that this worker has written and not yet claimed.
    #[must_use]
    pub fn unsynced(&self) -> u32 {
        let known = self.known.borrow();
        known.held.count() - known.durable.count()
    }

    /// Whether somebody waits for changes: a local program that gets this content.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watches.any()
    }

    /// Tells of each change of what is held or durable from now on.
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.watches.watch(self.all())
    }

    /// Notes a chunk that the store thread has checked and written.
    pub fn note_written(&self, chunk: ChunkIndex) {
        self.known.borrow_mut().held.insert(chunk);
        self.watches.tell(&(chunk..chunk.saturating_add(1)));
    }

    /// Makes every chunk written so far durable and claims it.
    ///
    /// # Errors
    /// What the disk says; the chunks stay unclaimed then.
    pub async fn sync(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.syncing.lock().await;
        if self.unsynced() == 0 {
            return Ok(());
        }
        let (files, written) = (self.files(), self.known.borrow().written());
        let claimed = blocking(move || files.claim(&written).map(|()| written)).await?;
        self.known.borrow_mut().durable.union_with(&claimed);
        self.watches.tell(&self.all());
        Ok(())
    }

    /// Takes notice of what other workers of this node have claimed, unless that was done a moment ago.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        if self.refreshed.get().elapsed() < REFRESH_MIN {
            return Ok(());
        }
        self.refresh_now().await
    }

    /// Takes notice of what other workers of this node have claimed or disclaimed.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn refresh_now(&self) -> Result<(), StoreError> {
        let _no_claim_meanwhile = self.syncing.lock().await;
        self.refreshed.set(Instant::now());
        let files = self.files();
        let durable = blocking(move || files.held()).await?;
        let news = self.known.borrow().durable != durable;
        if news {
            let mut known = self.known.borrow_mut();
            known.held = known.written();
            known.held.union_with(&durable);
            known.durable = durable;
            drop(known);
            self.watches.tell(&self.all());
        }
        Ok(())
    }

    /// Gives up chunks that were found wrong on disk.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn disclaim(&self, bad: ChunkSet) -> Result<(), StoreError> {
        let _no_claim_meanwhile = self.syncing.lock().await;
        {
            let mut known = self.known.borrow_mut();
            known.durable.subtract(&bad);
            known.held.subtract(&bad);
        }
        self.watches.tell(&self.all());
        let files = self.files();
        blocking(move || files.disclaim(&bad)).await
    }

    /// Checks chunks of `share` that an earlier run wrote but did not live to claim; those that are right are held.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn recover(&self, share: &ChunkSet) -> Result<(), StoreError> {
        let mut unclaimed = share.clone();
        unclaimed.subtract(&self.held());
        let files = self.files();
        let right = blocking(move || {
            let mut right = ChunkSet::empty(unclaimed.bound());
            let mut space = vec![0; pangea_ipc::content::CHUNK_SIZE as usize];
            for chunk in unclaimed.iter().filter(|chunk| files.is_written(*chunk)) {
                let len = files.read(chunk, &mut space)?;
                let bytes = space.get(..len).unwrap_or_default();
                if files.manifest().check(chunk, bytes).is_ok() {
                    // After a sync that failed the system takes what it holds for written: only writing it again makes
                    // the next sync tell the truth.
                    files.write(chunk, bytes)?;
                    right.insert(chunk);
                }
            }
            Ok(right)
        })
        .await?;
        if !right.is_empty() {
            self.known.borrow_mut().held.union_with(&right);
            self.watches.tell(&self.all());
        }
        Ok(())
    }

    fn all(&self) -> Range<ChunkIndex> {
        0..self.manifest().geometry().chunk_count()
    }
}

/// Runs what waits for the disk away from the network thread.
///
/// # Errors
/// What `work` says; a panic in it is [`StoreError::Latched`].
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Latched { why: format!("a disk task ended early: {error}") }),
    }
}
