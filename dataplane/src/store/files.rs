//! The files of one content: `data`, `manifest` and `have`.
//!
//! `have` is the bitmap of chunks that are verified and durable. Every worker of the node may hold chunks of the same
//! content, so the bitmap is changed only under the file's lock, read before it is written: a claim is never lost and
//! never made up. Order on disk: data, sync, then the claim. All but [`ContentFiles::read_cached`] wait for the disk; they
//! run on the store thread or on a blocking task, never on the network thread.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::unistd::{Whence, lseek};
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::{CONTENT_SIZE_MAX, ChunkIndex, Manifest};
use pangea_ipc::ids::ContentId;
use rustix::io::{ReadWriteFlags, preadv2};

use super::StoreError;
#[cfg(not(test))]
use super::disk;
use super::disk::Located;
#[cfg(test)]
use super::machine as disk;

const HAVE_MAGIC: &[u8; 8] = b"PGHAVE01";
/// Bytes before the bits: magic, bound (u32, little-endian), four zero bytes.
const HAVE_HEADER_LEN: usize = 16;

/// Chunks that room on disk is asked for at once at most: 64 MiB. Writing to blocks that the file system has to find one by
/// one takes a third more processor time (0.27 instead of 0.20 s for a GiB on ext4).
const RESERVE_MAX: u32 = 256;

const DATA: &str = "data";
const MANIFEST: &str = "manifest";
const HAVE: &str = "have";

/// An open content: its proven manifest and its files. Shared by the network and the store thread.
#[derive(Debug)]
pub struct ContentFiles {
    folder: PathBuf,
    manifest: Manifest,
    data: Located,
    have: Located,
    /// Chunks for which there is room on disk, as far as this worker knows.
    reserved: Mutex<ChunkSet>,
    /// The names of these files, and of their folder, are durable.
    named: AtomicBool,
}

impl ContentFiles {
    /// Opens a content whose manifest is in the store; makes the other files when they are missing.
    ///
    /// # Errors
    /// [`StoreError::NotHere`] without a manifest, [`StoreError::Damaged`] for one that proves nothing, else what the
    /// disk says.
    pub fn open(store: &Path, id: ContentId) -> Result<Self, StoreError> {
        let folder = store.join(id.to_string());
        let manifest = read_manifest(&folder, id)?;
        let (data, _) = disk::open(&folder.join(DATA))?;
        let size = manifest.geometry().size();
        if data.file.metadata().map_err(StoreError::at(&folder))?.len() != size {
            disk::set_len(&data, size)?;
        }
        let (have, _) = disk::open(&folder.join(HAVE))?;
        let reserved = Mutex::new(ChunkSet::empty(manifest.geometry().chunk_count()));
        Ok(Self { folder, manifest, data, have, reserved, named: AtomicBool::new(false) })
    }

    /// What the content is and how its chunks are checked.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Writes a checked chunk's bytes. Not durable before [`claim`](Self::claim).
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self, chunk: ChunkIndex, bytes: &[u8]) -> Result<(), StoreError> {
        self.reserve(chunk);
        disk::write_at(&self.data, bytes, self.offset(chunk))
    }

    /// Asks for room for a chunk, and for as many after it as lie right before it: what is written in order soon gets room
    /// in large pieces, and what is not takes no more than twice its size.
    fn reserve(&self, chunk: ChunkIndex) {
        let geometry = self.manifest.geometry();
        let range = {
            let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
            if reserved.contains(chunk) {
                return;
            }
            let before = (0..chunk).rev().take(RESERVE_MAX as usize).take_while(|before| reserved.contains(*before));
            let len = u32::try_from(before.count()).unwrap_or(0).max(1);
            let range = chunk..chunk.saturating_add(len).min(geometry.chunk_count());
            reserved.insert_range(range.clone());
            range
        };
        let (start, end) = (self.offset(range.start), self.offset(range.end).min(geometry.size()));
        disk::reserve(&self.data, start, end.saturating_sub(start));
    }

    /// Reads a chunk into the front of `space`; says its length. The bytes are not checked.
    ///
    /// # Errors
    /// What the disk says; the end of the file before the end of the chunk is [`StoreError::Damaged`].
    pub fn read(&self, chunk: ChunkIndex, space: &mut [u8]) -> Result<usize, StoreError> {
        let len = self.manifest.geometry().chunk_len(chunk) as usize;
        let Some(part) = space.get_mut(..len) else {
            return Err(StoreError::Damaged { path: self.folder.clone(), what: "a chunk larger than its buffer" });
        };
        match self.data.file.read_exact_at(part, self.offset(chunk)) {
            Ok(()) => Ok(len),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(StoreError::Damaged { path: self.folder.join(DATA), what: "a data file that ends too early" })
            }
            Err(error) => Err(StoreError::at(&self.folder)(error)),
        }
    }

    /// Reads a chunk as [`read`](Self::read) does, if all of it is in the page cache; never waits for the disk. `None` also
    /// where the file system cannot tell.
    pub fn read_cached(&self, chunk: ChunkIndex, space: &mut [u8]) -> Option<usize> {
        let len = self.manifest.geometry().chunk_len(chunk) as usize;
        let part = IoSliceMut::new(space.get_mut(..len)?);
        let read = preadv2(&self.data.file, &mut [part], self.offset(chunk), ReadWriteFlags::NOWAIT);
        (read == Ok(len)).then_some(len)
    }

    /// Whether the file has anything where a chunk lies; a hole has not.
    #[must_use]
    pub fn is_written(&self, chunk: ChunkIndex) -> bool {
        let start = self.offset(chunk);
        let end = start + u64::from(self.manifest.geometry().chunk_len(chunk));
        let Ok(from) = i64::try_from(start) else { return false };
        // A file system without holes answers with the offset itself: then the chunk is read and checked in vain.
        lseek(&self.data.file, from, Whence::SeekData).is_ok_and(|found| u64::try_from(found).is_ok_and(|at| at < end))
    }

    /// Makes all data written so far durable, then claims `chunks`, which must be among it.
    ///
    /// # Errors
    /// [`StoreError::Sync`] when the disk could not promise; the claim is not made then.
    pub fn claim(&self, chunks: &ChunkSet) -> Result<(), StoreError> {
        disk::sync(&self.data)?;
        if !self.named.load(Ordering::Relaxed) {
            // Once is enough; to do it twice at the same time does no harm.
            disk::sync_folder(&self.folder)?;
            self.folder.parent().map_or(Ok(()), disk::sync_folder)?;
            self.named.store(true, Ordering::Relaxed);
        }
        let mut news = chunks.clone();
        self.change_held(|held| {
            news.subtract(held);
            held.union_with(chunks);
        })?;
        disk::sync(&self.have).inspect_err(|_| {
            // What could not be synced may still be read back until power fails: it must not look durable.
            let _ = self.change_held(|held| held.subtract(&news));
        })
    }

    /// Takes back the claim on `chunks`, which were found wrong, for good.
    ///
    /// # Errors
    /// What the disk says.
    pub fn disclaim(&self, chunks: &ChunkSet) -> Result<(), StoreError> {
        self.change_held(|held| held.subtract(chunks))?;
        disk::sync(&self.have)
    }

    /// The chunks that any worker of this node has claimed.
    ///
    /// # Errors
    /// What the disk says; a bitmap that makes no sense counts as empty, so its chunks are checked again.
    pub fn held(&self) -> Result<ChunkSet, StoreError> {
        read_held(&self.have.file, self.manifest.geometry().chunk_count()).map_err(StoreError::at(&self.folder))
    }

    fn change_held(&self, change: impl FnOnce(&mut ChunkSet)) -> Result<(), StoreError> {
        let at = || StoreError::at(&self.folder);
        let bound = self.manifest.geometry().chunk_count();
        self.have.file.lock().map_err(at())?;
        let result = read_held(&self.have.file, bound).map_err(at()).and_then(|mut held| {
            change(&mut held);
            disk::write_at(&self.have, &have_bytes(&held), 0)
        });
        self.have.file.unlock().map_err(at())?;
        result
    }

    fn offset(&self, chunk: ChunkIndex) -> u64 {
        self.manifest.geometry().chunk_offset(chunk)
    }
}

/// Bytes that a content's files take on disk; holes take none.
#[must_use]
pub fn disk_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    /// `st_blocks` counts in units of 512 bytes whatever the file system's block size.
    const STAT_BLOCK: u64 = 512;
    [DATA, MANIFEST, HAVE]
        .iter()
        .filter_map(|name| std::fs::metadata(folder.join(name)).ok())
        .map(|metadata| metadata.blocks() * STAT_BLOCK)
        .sum()
}

/// Reads and proves a manifest from a content's folder.
///
/// # Errors
/// [`StoreError::NotHere`] without one, [`StoreError::Damaged`] when it proves nothing, else what the disk says.
pub fn read_manifest(folder: &Path, id: ContentId) -> Result<Manifest, StoreError> {
    let path = folder.join(MANIFEST);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::NotHere { id }),
        Err(error) => return Err(StoreError::at(&path)(error)),
    };
    /// No manifest is larger: 32 bytes for each chunk of the largest content, and the head.
    const MANIFEST_FILE_MAX: u64 = CONTENT_SIZE_MAX / 8192 + 64;
    let damaged = || StoreError::Damaged { path: path.clone(), what: "a manifest that does not prove its content" };
    if file.metadata().map_err(StoreError::at(&path))?.len() > MANIFEST_FILE_MAX {
        return Err(damaged());
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut &file, &mut bytes).map_err(StoreError::at(&path))?;
    Manifest::from_file_bytes(id, &bytes).map_err(|_| damaged())
}

/// Makes an empty folder with an empty `data` file in it, for a put.
///
/// # Errors
/// What the disk says.
pub fn create_incoming(folder: &Path) -> Result<Located, StoreError> {
    disk::create_folder(folder)?;
    Ok(disk::open(&folder.join(DATA))?.0)
}

/// Completes a put: makes data, manifest and full bitmap durable in `incoming`, then moves it in place. Where the
/// content is already in part, its missing chunks are filled in instead.
///
/// # Errors
/// What the disk says.
pub fn finish_put(store: &Path, incoming: &Path, data: &Located, manifest: &Manifest) -> Result<(), StoreError> {
    disk::sync(data)?;
    let full = ChunkSet::full(manifest.geometry().chunk_count());
    write_synced(&incoming.join(MANIFEST), &manifest.to_file_bytes())?;
    write_synced(&incoming.join(HAVE), &have_bytes(&full))?;
    disk::sync_folder(incoming)?;
    let place = store.join(manifest.id().to_string());
    let move_in = || disk::rename(incoming, &place);
    match move_in() {
        Ok(()) => disk::sync_folder(store),
        // A folder that is not empty cannot be replaced: the content, or a part of it, is here.
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            match fill_in(store, manifest, &data.file) {
                // What a get left that was cut short before its manifest was whole: of no use to anyone.
                Err(StoreError::NotHere { .. } | StoreError::Damaged { .. }) => {
                    remove(store, manifest.id())?;
                    move_in().map_err(StoreError::at(&place))?;
                    disk::sync_folder(store)
                }
                Err(error) => Err(error),
                Ok(()) => disk::remove_all(incoming),
            }
        }
        Err(error) => Err(StoreError::at(&place)(error)),
    }
}

/// Writes the chunks that a partial content lacks, from a file that has them all.
fn fill_in(store: &Path, manifest: &Manifest, data: &File) -> Result<(), StoreError> {
    let content = ContentFiles::open(store, manifest.id())?;
    let mut missing = ChunkSet::full(manifest.geometry().chunk_count());
    missing.subtract(&content.held()?);
    let mut space = vec![0; pangea_ipc::content::CHUNK_SIZE as usize];
    for chunk in missing.iter() {
        let len = manifest.geometry().chunk_len(chunk) as usize;
        let part = space.get_mut(..len).unwrap_or_default();
        data.read_exact_at(part, manifest.geometry().chunk_offset(chunk)).map_err(StoreError::at(store))?;
        content.write(chunk, part)?;
    }
    // Also when nothing is missing: what an earlier put moved in place may not be durable yet.
    content.claim(&ChunkSet::full(manifest.geometry().chunk_count()))
}

/// Deletes a content's files. They leave the store at once; their space follows.
///
/// # Errors
/// What the disk says; a content that is not here is no error.
pub fn remove(store: &Path, id: ContentId) -> Result<(), StoreError> {
    let trash = store.join(format!("{TRASH_PREFIX}{id}"));
    disk::remove_all(&trash)?; // of a removal that was cut short
    match disk::rename(&store.join(id.to_string()), &trash) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::at(store)(error)),
    }
    disk::sync_folder(store)?;
    disk::remove_all(&trash)
}

/// Start of the name of a folder that is being deleted.
pub const TRASH_PREFIX: &str = "trash-";
/// Start of the name of a folder that a put fills.
pub const INCOMING_PREFIX: &str = "incoming-";

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let (file, _) = disk::open(path)?;
    disk::write_at(&file, bytes, 0)?;
    disk::sync(&file)
}

fn have_bytes(held: &ChunkSet) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HAVE_HEADER_LEN + held.bound() as usize / 8 + 1);
    bytes.extend(HAVE_MAGIC);
    bytes.extend(held.bound().to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(held.to_bytes());
    bytes
}

fn read_held(have: &File, bound: u32) -> io::Result<ChunkSet> {
    let expected = HAVE_HEADER_LEN + bound.div_ceil(8) as usize;
    let mut bytes = vec![0; expected];
    match have.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(ChunkSet::empty(bound)),
        Err(error) => return Err(error),
    }
    let bits = bytes
        .strip_prefix(HAVE_MAGIC)
        .and_then(|rest| rest.strip_prefix(&bound.to_le_bytes()))
        .and_then(|rest| rest.split_at_checked(4))
        .and_then(|(_, bits)| ChunkSet::from_bytes(bound, bits).ok());
    Ok(bits.unwrap_or_else(|| ChunkSet::empty(bound)))
}

#[cfg(test)]
mod tests {
    use pangea_ipc::content::CHUNK_SIZE;

    use super::*;

    #[test]
    fn room_is_asked_for_ahead_of_what_is_written_in_order_and_not_of_what_is_not() {
        const CHUNK: u64 = CHUNK_SIZE as u64;
        let store = tempfile::tempdir().unwrap();
        let manifest = Manifest::seal(64 * CHUNK, vec![[0; 32]; 64]).unwrap();
        let folder = store.path().join(manifest.id().to_string());
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(MANIFEST), manifest.to_file_bytes()).unwrap();
        let files = ContentFiles::open(store.path(), manifest.id()).unwrap();
        let chunk = vec![1; CHUNK_SIZE as usize];
        let chunks_of_room = || {
            files.data.file.sync_all().unwrap();
            disk_bytes(&folder) / CHUNK
        };
        for (written, room) in [(0, 1), (1, 2), (2, 4), (3, 4), (4, 8), (40, 9), (42, 10), (8, 16 + 2)] {
            files.write(written, &chunk).unwrap();
            assert_eq!(chunks_of_room(), room, "after chunk {written}");
        }
        assert_eq!(files.data.file.metadata().unwrap().len(), 64 * CHUNK);
        assert!(files.is_written(4) && !files.is_written(20));
        let mut space = vec![0; CHUNK_SIZE as usize];
        assert_eq!(files.read_cached(4, &mut space[1..]), None, "less room than the chunk takes");
        if let Some(len) = files.read_cached(4, &mut space) {
            assert!(space[..len] == chunk, "just written, so in the cache, where that can be told");
        }
    }
}
