//! The chunk store: what of which content is on disk, and the road of every chunk to it and from it.
//!
//! `store/<content id>/{data,manifest,have}`, see [`files`]. Chunks are checked on the store thread, right before they
//! are written and right after they are read for a program ([`thread`]), so no unchecked byte is ever stored or handed to a
//! program; what is read for a peer, who checks it anyway, is not checked again. What was checked to be written goes to a
//! program that waits for it from memory. [`content`] keeps what this worker knows of an open content.

pub mod changes;
pub mod content;
#[cfg(test)]
mod crashes;
pub mod disk;
pub mod files;
#[cfg(test)]
mod machine;
pub mod put;
pub mod thread;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::{ChainingValue, ChunkIndex, Manifest};
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, JobId, WorkerIndex};
use pangea_ipc::worker::{INVENTORY_PAGE_MAX, StoredContent};
use tokio::sync::watch;

use self::content::Content;
use self::files::ContentFiles;
use self::put::Incoming;
use self::thread::StoreThread;
use crate::buffer::Buffer;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No manifest of it is here.
    #[error("content {id} is not in the store")]
    NotHere {
        /// The content.
        id: ContentId,
    },
    /// The bytes are not those of the chunk.
    #[error("chunk {chunk} of content {id} does not match its manifest")]
    WrongBytes {
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
    },
    /// The disk or the user's share of it is full.
    #[error("no space left for {}: {source}; free some or raise store.quota, then run the command again", path.display())]
    Full {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what this program left.
    #[error("{} is {what}; remove the content and get it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The disk could not promise that data is safe. What it holds now is unknown, so the store stops writing.
    #[error("syncing {} failed: {source}; the store writes no more: check the disk, then restart the worker", path.display())]
    Sync {
        /// What was to be made durable.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk failed otherwise.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A sync or write failed earlier.
    #[error("the store has stopped writing: {why}")]
    Latched {
        /// What failed first.
        why: String,
    },
    /// The content is larger than this version carries.
    #[error(transparent)]
    Content(#[from] pangea_ipc::content::ContentError),
}

impl StoreError {
    /// Turns what the system said of a path into an error.
    pub fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source },
                _ => Self::Io { path, source },
            }
        }
    }

    /// Whether nothing may be written any more: what the disk holds is unknown.
    #[must_use]
    pub fn latches(&self) -> bool {
        matches!(self, Self::Sync { .. } | Self::Io { .. })
    }

    /// For the controller and for programs.
    #[must_use]
    pub fn to_failure(&self) -> Failure {
        let text = self.to_string();
        match self {
            Self::NotHere { .. } => Failure::not_found(text),
            Self::WrongBytes { .. } | Self::Damaged { .. } => Failure::corrupt(text),
            Self::Full { .. } => Failure::full(text),
            Self::Sync { .. } | Self::Io { .. } | Self::Latched { .. } => Failure::storage(text),
            Self::Content(_) => Failure::invalid(text),
        }
    }
}

/// Contents kept open after their last use, so that serving a chunk opens no file. Each takes two file descriptors and
/// its manifest (32 bytes a chunk).
pub const OPEN_MAX: usize = 32;

/// Chunks that came lately and stay in memory for the local program that gets them: 16 MiB, what arrives in 20 ms at
/// 0.8 GB/s, a few turns of a program that shares its CPU. Chunks beyond are read from the page cache: programs take the
/// oldest first, so these are the last to go.
const FRESH_MAX: usize = 64;
/// A program that has not asked for a chunk after this time is in no hurry.
const FRESH_TIME: Duration = Duration::from_secs(1);

/// A chunk that came lately.
struct Fresh {
    content: ContentId,
    chunk: ChunkIndex,
    buffer: Buffer,
    since: Instant,
}

/// The store of this worker. Belongs to the network thread.
pub struct Store {
    root: PathBuf,
    worker: WorkerIndex,
    thread: StoreThread,
    open: RefCell<VecDeque<Rc<Content>>>,
    /// Checked chunks, oldest first, so that a program that waits for them costs neither a read nor a second check.
    fresh: RefCell<VecDeque<Fresh>>,
    failure: watch::Sender<Option<Failure>>,
}

impl Store {
    /// Opens the store in `root`, making it when it is missing, and sweeps what earlier runs left behind.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn open(root: PathBuf, worker: WorkerIndex) -> Result<Self, StoreError> {
        let folder = root.clone();
        content::blocking(move || {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(FOLDER_MODE)
                .create(&folder)
                .map_err(StoreError::at(&folder))?;
            put::sweep(&folder, worker)
        })
        .await?;
        let thread = StoreThread::start().map_err(StoreError::at(&root))?;
        Ok(Self {
            root,
            worker,
            thread,
            open: RefCell::default(),
            fresh: RefCell::default(),
            failure: watch::Sender::new(None),
        })
    }

    /// Why the store has stopped writing; `None` while it has not.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.failure.subscribe()
    }

    /// An open content.
    ///
    /// # Errors
    /// [`StoreError::NotHere`] when its manifest is not in the store; else what the disk says.
    pub async fn content(&self, id: ContentId) -> Result<Rc<Content>, StoreError> {
        if let Some(content) = self.opened(id) {
            return Ok(content);
        }
        let content = Rc::new(Content::open(&self.root, id).await?);
        // Someone else may have opened it meanwhile: there is one of each, so that all see the same chunks.
        if let Some(first) = self.opened(id) {
            return Ok(first);
        }
        let mut open = self.open.borrow_mut();
        while open.len() >= OPEN_MAX {
            // The least recently used that nobody uses; when all are used, one more stays open.
            let Some(idle) = open.iter().position(|content| Rc::strong_count(content) == 1) else { break };
            open.remove(idle);
        }
        open.push_back(Rc::clone(&content));
        Ok(content)
    }

    fn opened(&self, id: ContentId) -> Option<Rc<Content>> {
        let mut open = self.open.borrow_mut();
        let at = open.iter().position(|content| content.manifest().id() == id)?;
        let content = open.remove(at)?;
        open.push_back(Rc::clone(&content));
        Some(content)
    }

    /// Checks a chunk from outside, writes it and notes that it is held. While a local program gets the content, the chunk
    /// stays in memory for it.
    ///
    /// # Errors
    /// [`StoreError::WrongBytes`] and nothing written; else what the disk says.
    pub async fn write(&self, content: &Content, chunk: ChunkIndex, buffer: Buffer) -> Result<(), StoreError> {
        self.writable()?;
        let buffer = self.noted(self.thread.write(content.files(), chunk, buffer).await)?;
        if content.is_watched() {
            let (mut fresh, now) = (self.fresh.borrow_mut(), Instant::now());
            while fresh.front().is_some_and(|oldest| now.saturating_duration_since(oldest.since) > FRESH_TIME) {
                fresh.pop_front();
            }
            if fresh.len() < FRESH_MAX {
                fresh.push_back(Fresh { content: content.manifest().id(), chunk, buffer, since: now });
            }
        }
        content.note_written(chunk);
        Ok(())
    }

    /// The oldest checked chunk for which `wanted`, of those that are still in memory since they came; once.
    #[must_use]
    pub fn take_fresh(&self, content: &Content, wanted: impl Fn(ChunkIndex) -> bool) -> Option<(ChunkIndex, Buffer)> {
        let id = content.manifest().id();
        let mut fresh = self.fresh.borrow_mut();
        let at = fresh.iter().position(|one| one.content == id && wanted(one.chunk))?;
        fresh.remove(at).map(|one| (one.chunk, one.buffer))
    }

    /// Reads a chunk for a local program, checked. One that the disk has not kept is given up.
    ///
    /// # Errors
    /// [`StoreError::WrongBytes`]; else what the disk says.
    pub async fn read(&self, content: &Content, chunk: ChunkIndex, buffer: Buffer) -> Result<Buffer, StoreError> {
        let result = self.thread.read(content.files(), chunk, buffer).await;
        if matches!(result, Err(StoreError::WrongBytes { .. } | StoreError::Damaged { .. })) {
            let bound = content.manifest().geometry().chunk_count();
            content.disclaim(ChunkSet::of_range(bound, chunk..chunk + 1)).await?;
        }
        result
    }

    /// Reads a chunk for a peer, who checks it anyway; waits for the disk on the store thread.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn read_for_peer(
        &self,
        content: &Content,
        chunk: ChunkIndex,
        buffer: Buffer,
    ) -> Result<Buffer, StoreError> {
        self.thread.read_for_peer(content.files(), chunk, buffer).await
    }

    /// Makes what is written of a content durable.
    ///
    /// # Errors
    /// What the disk says; the store stops writing then.
    pub async fn sync(&self, content: &Content) -> Result<(), StoreError> {
        self.writable()?;
        self.noted(content.sync().await)
    }

    /// Begins a put.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn begin_put(&self, job: JobId) -> Result<Arc<Incoming>, StoreError> {
        self.writable()?;
        let (root, worker) = (self.root.clone(), self.worker);
        let incoming = content::blocking(move || Incoming::create(&root, worker, job)).await;
        self.noted(incoming).map(Arc::new)
    }

    /// Hashes and writes a put's next chunk.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn append(
        &self,
        put: &Arc<Incoming>,
        chunk: ChunkIndex,
        single: bool,
        buffer: Buffer,
    ) -> Result<ChainingValue, StoreError> {
        self.writable()?;
        self.noted(self.thread.append(Arc::clone(put), chunk, single, buffer).await)
    }

    /// Makes a put durable and moves it in place.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn finish_put(&self, put: Arc<Incoming>, manifest: Manifest) -> Result<(), StoreError> {
        self.writable()?;
        let id = manifest.id();
        self.noted(content::blocking(move || put.finish(&manifest)).await)?;
        match self.opened(id) {
            Some(content) => content.refresh_now().await,
            None => Ok(()),
        }
    }

    /// Lets go of a content and, when asked, deletes its files.
    ///
    /// # Errors
    /// A failure of code `Busy` while a job uses it; else what the disk says.
    pub async fn remove(&self, id: ContentId, delete: bool) -> Result<(), Failure> {
        {
            let mut open = self.open.borrow_mut();
            if let Some(at) = open.iter().position(|content| content.manifest().id() == id) {
                if open.get(at).is_some_and(|content| Rc::strong_count(content) > 1) {
                    return Err(Failure::busy(format!(
                        "content {id} is in use; try again when its transfers have ended"
                    )));
                }
                open.remove(at);
            }
        }
        if !delete {
            return Ok(());
        }
        let root = self.root.clone();
        content::blocking(move || files::remove(&root, id)).await.map_err(|error| error.to_failure())
    }

    /// The contents in the store after `after`, ascending, one page.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn inventory(&self, after: Option<ContentId>) -> Result<Vec<StoredContent>, StoreError> {
        let root = self.root.clone();
        content::blocking(move || inventory(&root, after)).await
    }

    /// Makes everything that is written durable, as far as the disk lets; before the worker ends.
    pub async fn sync_all(&self) {
        let open: Vec<Rc<Content>> = self.open.borrow().iter().cloned().collect();
        for content in open {
            if let Err(error) = self.sync(&content).await {
                tracing::warn!(%error, "not all that was written is safe; it will be checked again");
            }
        }
    }

    fn writable(&self) -> Result<(), StoreError> {
        match &*self.failure.borrow() {
            None => Ok(()),
            Some(failure) => Err(StoreError::Latched { why: failure.text.clone() }),
        }
    }

    /// Latches the store when a write or sync failed in a way that leaves the disk's state unknown.
    fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && error.latches()
        {
            let failure = error.to_failure();
            tracing::error!(%error, "the store has stopped writing");
            self.failure.send_if_modified(|known| {
                let first = known.is_none();
                known.get_or_insert(failure);
                first
            });
        }
        result
    }
}

/// Mode of every folder in the store: the node's user alone.
const FOLDER_MODE: u32 = 0o700;

fn inventory(root: &Path, after: Option<ContentId>) -> Result<Vec<StoredContent>, StoreError> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(root).map_err(StoreError::at(root))? {
        let name = entry.map_err(StoreError::at(root))?.file_name();
        let id = name.to_str().and_then(|name| name.parse::<ContentId>().ok());
        ids.extend(id.filter(|id| after.is_none_or(|after| *id > after)));
    }
    ids.sort_unstable();
    let mut page = Vec::new();
    for id in ids {
        if page.len() == INVENTORY_PAGE_MAX {
            break;
        }
        let opened = ContentFiles::open(root, id).and_then(|files| files.held().map(|held| (files, held)));
        match opened {
            Ok((files, held)) => page.push(StoredContent {
                content: id,
                size: files.manifest().geometry().size(),
                chunks_held: held.count(),
                disk_bytes: files::disk_bytes(&root.join(id.to_string())),
            }),
            // A folder without a manifest that proves it is nothing anyone could use; it is not listed.
            Err(error) => tracing::warn!(%id, %error, "skipping a content that cannot be read"),
        }
    }
    Ok(page)
}
