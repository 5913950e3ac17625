//! The files of one content: `data`, `manifest` and `have`.
//!
//! `have` is the bitmap of chunks that are verified and durable. Every worker of the node may hold chunks of the same
//! content, so the bitmap is changed only under the file's lock, read before it is written: a claim is never lost and
//! never made up. Order on disk: data, sync, then the claim. These functions wait for the disk; they run on the store
//! thread or on a blocking task, never on the network thread.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Whence, lseek};
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::{CONTENT_SIZE_MAX, ChunkIndex, Manifest};
use pangea_ipc::ids::ContentId;

use super::StoreError;

const HAVE_MAGIC: &[u8; 8] = b"PGHAVE01";
/// Bytes before the bits: magic, bound (u32, little-endian), four zero bytes.
const HAVE_HEADER_LEN: usize = 16;

const DATA: &str = "data";
const MANIFEST: &str = "manifest";
const HAVE: &str = "have";

/// Mode of every file in the store: the node's user alone.
const FILE_MODE: u32 = 0o600;

/// An open content: its proven manifest and its files. Shared by the network and the store thread.
#[derive(Debug)]
pub struct ContentFiles {
    folder: PathBuf,
    manifest: Manifest,
    data: File,
    have: File,
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
        let data = open_file(&folder.join(DATA))?;
        let size = manifest.geometry().size();
        if data.metadata().map_err(StoreError::at(&folder))?.len() != size {
            data.set_len(size).map_err(StoreError::at(&folder))?;
        }
        let have = open_file(&folder.join(HAVE))?;
        Ok(Self { folder, manifest, data, have })
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
        self.data.write_all_at(bytes, self.offset(chunk)).map_err(StoreError::at(&self.folder))
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
        match self.data.read_exact_at(part, self.offset(chunk)) {
            Ok(()) => Ok(len),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(StoreError::Damaged { path: self.folder.join(DATA), what: "a data file that ends too early" })
            }
            Err(error) => Err(StoreError::at(&self.folder)(error)),
        }
    }

    /// Whether the file has anything where a chunk lies; a hole has not.
    #[must_use]
    pub fn is_written(&self, chunk: ChunkIndex) -> bool {
        let start = self.offset(chunk);
        let end = start + u64::from(self.manifest.geometry().chunk_len(chunk));
        let Ok(from) = i64::try_from(start) else { return false };
        // A file system without holes answers with the offset itself: then the chunk is read and checked in vain.
        lseek(&self.data, from, Whence::SeekData).is_ok_and(|found| u64::try_from(found).is_ok_and(|at| at < end))
    }

    /// Makes all data written so far durable, then claims `chunks`, which must be among it.
    ///
    /// # Errors
    /// [`StoreError::Sync`] when the disk could not promise; the claim is not made then.
    pub fn claim(&self, chunks: &ChunkSet) -> Result<(), StoreError> {
        let failed = |source| StoreError::Sync { path: self.folder.clone(), source };
        self.data.sync_data().map_err(failed)?;
        self.change_held(|held| held.union_with(chunks))?;
        self.have.sync_data().map_err(failed)
    }

    /// Takes back the claim on `chunks`, which were found wrong.
    ///
    /// # Errors
    /// What the disk says.
    pub fn disclaim(&self, chunks: &ChunkSet) -> Result<(), StoreError> {
        self.change_held(|held| held.subtract(chunks))
    }

    /// The chunks that any worker of this node has claimed.
    ///
    /// # Errors
    /// What the disk says; a bitmap that makes no sense counts as empty, so its chunks are checked again.
    pub fn held(&self) -> Result<ChunkSet, StoreError> {
        read_held(&self.have, self.manifest.geometry().chunk_count()).map_err(StoreError::at(&self.folder))
    }

    fn change_held(&self, change: impl FnOnce(&mut ChunkSet)) -> Result<(), StoreError> {
        let at = || StoreError::at(&self.folder);
        let bound = self.manifest.geometry().chunk_count();
        self.have.lock().map_err(at())?;
        let result = read_held(&self.have, bound).and_then(|mut held| {
            change(&mut held);
            self.have.write_all_at(&have_bytes(&held), 0)
        });
        self.have.unlock().map_err(at())?;
        result.map_err(at())
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
pub fn create_incoming(folder: &Path) -> Result<File, StoreError> {
    std::fs::create_dir(folder).map_err(StoreError::at(folder))?;
    open_file(&folder.join(DATA))
}

/// Completes a put: makes data, manifest and full bitmap durable in `incoming`, then moves it in place. Where the
/// content is already in part, its missing chunks are filled in instead.
///
/// # Errors
/// What the disk says.
pub fn finish_put(store: &Path, incoming: &Path, data: &File, manifest: &Manifest) -> Result<(), StoreError> {
    let sync_failed = |source| StoreError::Sync { path: incoming.to_owned(), source };
    data.sync_data().map_err(sync_failed)?;
    let full = ChunkSet::full(manifest.geometry().chunk_count());
    write_synced(&incoming.join(MANIFEST), &manifest.to_file_bytes())?;
    write_synced(&incoming.join(HAVE), &have_bytes(&full))?;
    sync_folder(incoming)?;
    let place = store.join(manifest.id().to_string());
    match std::fs::rename(incoming, &place) {
        Ok(()) => sync_folder(store),
        // A folder that is not empty cannot be replaced: the content, or a part of it, is here.
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            fill_in(store, manifest, data)?;
            std::fs::remove_dir_all(incoming).map_err(StoreError::at(incoming))
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
    if missing.is_empty() { Ok(()) } else { content.claim(&missing) }
}

/// Deletes a content's files. They leave the store at once; their space follows.
///
/// # Errors
/// What the disk says; a content that is not here is no error.
pub fn remove(store: &Path, id: ContentId) -> Result<(), StoreError> {
    let trash = store.join(format!("{TRASH_PREFIX}{id}"));
    match std::fs::rename(store.join(id.to_string()), &trash) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StoreError::at(store)(error)),
    }
    sync_folder(store)?;
    std::fs::remove_dir_all(&trash).map_err(StoreError::at(&trash))
}

/// Start of the name of a folder that is being deleted.
pub const TRASH_PREFIX: &str = "trash-";
/// Start of the name of a folder that a put fills.
pub const INCOMING_PREFIX: &str = "incoming-";

fn open_file(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)
        .map_err(StoreError::at(path))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = open_file(path)?;
    file.write_all(bytes).map_err(StoreError::at(path))?;
    file.sync_data().map_err(|source| StoreError::Sync { path: path.to_owned(), source })
}

fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    let file = File::open(folder).map_err(StoreError::at(folder))?;
    file.sync_all().map_err(|source| StoreError::Sync { path: folder.to_owned(), source })
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
