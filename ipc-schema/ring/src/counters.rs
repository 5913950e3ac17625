//! A worker's live counters: a small segment with a name, which others read even when the worker is wedged.
//!
//! The worker writes 64-bit words, others read them; each word stands for itself. The segment has mode 0600 and the
//! name of its owner's choice. It outlives a `kill -9`, but the owner's lock on it does not: by that [`reap_stale`] tells
//! the living from the dead, also where processes cannot see each other (`ProtectProc=`, containers).

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use shared_memory::{Shmem, ShmemConf, ShmemError};

use crate::atomics::{AtomicU64, Ordering};

/// Words of counters in a segment at most.
pub const WORDS_MAX: usize = 1024;

/// Where named segments live on Linux.
const SHM_FOLDER: &str = "/dev/shm";

/// `PANGEACT`.
const MAGIC: u64 = u64::from_be_bytes(*b"PANGEACT");
/// Words before the counters: magic, count, process id, heartbeat.
const HEADER_WORDS: usize = 4;
const COUNT: usize = 1;
const PID: usize = 2;
const BEAT: usize = 3;

/// Why there is no counters segment.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    /// The system refuses.
    #[error("counters segment {name}: {source}")]
    System {
        /// The segment.
        name: String,
        /// What the system said.
        source: ShmemError,
    },
    /// The segment cannot be locked.
    #[error("counters segment {name} cannot be locked: {source}")]
    Lock {
        /// The segment.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// More words than a segment has.
    #[error("counters segment {name}: {words} words are more than the most ({WORDS_MAX})")]
    TooMany {
        /// The segment.
        name: String,
        /// Words asked for.
        words: usize,
    },
    /// What has this name is not a counters segment of this version.
    #[error("counters segment {name} is not one of this version")]
    Foreign {
        /// The segment.
        name: String,
    },
}

struct Words(Shmem);

// SAFETY: the mapping belongs to no thread; all access to it is through atomics.
unsafe impl Send for Words {}

impl Words {
    fn get(&self, index: usize) -> Option<&AtomicU64> {
        if (index + 1).checked_mul(8)? > self.0.len() {
            return None;
        }
        // SAFETY: the mapping is page-aligned and at least `(index + 1) * 8` bytes long (checked); any bytes are a
        // valid AtomicU64, which other processes may change; the mapping lives as long as `self`.
        Some(unsafe { &*self.0.as_ptr().cast::<AtomicU64>().add(index) })
    }

    fn load(&self, index: usize) -> u64 {
        self.get(index).map_or(0, |word| word.load(Ordering::Acquire))
    }
}

/// The owner's side. Dropped, the segment is gone.
pub struct CountersSegment {
    words: Words,
    count: usize,
    /// Locked as long as the owner lives, however it ends.
    _lock: File,
}

impl std::fmt::Debug for CountersSegment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CountersSegment({})", self.words.0.get_os_id())
    }
}

impl CountersSegment {
    /// Makes a segment of `words` counters, all 0. One of the same name that a dead process left is replaced.
    ///
    /// # Errors
    /// When a living process has it, there are too many words, or the system refuses.
    pub fn create(name: &str, words: usize) -> Result<Self, CountersError> {
        if words > WORDS_MAX {
            return Err(CountersError::TooMany { name: name.to_owned(), words });
        }
        let _ = reap_stale(name);
        let shmem = ShmemConf::new()
            .os_id(format!("/{name}"))
            .size((HEADER_WORDS + words) * 8)
            .create()
            .map_err(|source| CountersError::System { name: name.to_owned(), source })?;
        let lock = File::open(path(name)).and_then(|file| file.lock().map(|()| file));
        let lock = lock.map_err(|source| CountersError::Lock { name: name.to_owned(), source })?;
        let segment = Self { words: Words(shmem), count: words, _lock: lock };
        // The magic last: until then others take the segment for one in the making.
        let header = [(COUNT, words as u64), (PID, u64::from(std::process::id())), (0, MAGIC)];
        for (index, value) in header {
            if let Some(word) = segment.words.get(index) {
                word.store(value, Ordering::Release);
            }
        }
        Ok(segment)
    }

    /// Sets a counter. One that the segment does not have is left out.
    pub fn set(&self, index: usize, value: u64) {
        if index < self.count
            && let Some(word) = self.words.get(HEADER_WORDS + index)
        {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Shows that the owner is alive and at work.
    pub fn beat(&self) {
        if let Some(word) = self.words.get(BEAT) {
            word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        }
    }
}

/// A reader's side.
pub struct CountersView {
    words: Words,
    count: usize,
}

impl std::fmt::Debug for CountersView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CountersView({})", self.words.0.get_os_id())
    }
}

impl CountersView {
    /// Opens a segment by name.
    ///
    /// # Errors
    /// When there is none, or it is not one of this version.
    pub fn open(name: &str) -> Result<Self, CountersError> {
        let shmem = ShmemConf::new()
            .os_id(format!("/{name}"))
            .open()
            .map_err(|source| CountersError::System { name: name.to_owned(), source })?;
        let words = Words(shmem);
        let count = usize::try_from(words.load(COUNT)).unwrap_or(usize::MAX);
        let whole = count <= WORDS_MAX && (HEADER_WORDS + count) * 8 <= words.0.len();
        if words.load(0) != MAGIC || !whole {
            return Err(CountersError::Foreign { name: name.to_owned() });
        }
        Ok(Self { words, count })
    }

    /// Every counter's value now.
    #[must_use]
    pub fn read(&self) -> Vec<u64> {
        (0..self.count).map(|index| self.words.load(HEADER_WORDS + index)).collect()
    }

    /// Process that owns it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        u32::try_from(self.words.load(PID)).unwrap_or(0)
    }

    /// Grows as long as the owner is at work.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.words.load(BEAT)
    }
}

/// Removes the segments whose name starts with `prefix` and whose owner is dead; says their names.
pub fn reap_stale(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(SHM_FOLDER) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mine = names.filter(|name| name.starts_with(prefix));
    // A segment that cannot be read is in the making or not ours: it is left alone.
    let stale = mine.filter(|name| CountersView::open(name).is_ok() && owner_is_dead(name));
    stale.filter(|name| std::fs::remove_file(path(name)).is_ok()).collect()
}

fn path(name: &str) -> PathBuf {
    Path::new(SHM_FOLDER).join(name)
}

/// Whether nobody holds the owner's lock. What cannot be told counts as alive.
fn owner_is_dead(name: &str) -> bool {
    match File::open(path(name)).map(|file| file.try_lock_shared()) {
        Ok(Ok(())) => true,
        Ok(Err(TryLockError::WouldBlock | TryLockError::Error(_))) | Err(_) => false,
    }
}
