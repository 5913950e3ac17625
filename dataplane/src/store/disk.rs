//! Every change that the store makes on disk, one function each: a crash falls before, between or within these.
//!
//! In this crate's tests `machine.rs` stands in front of them, which loses power, or fails, at a chosen one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};

use super::StoreError;

/// Mode of every file in the store: the node's user alone.
const FILE_MODE: u32 = 0o600;

/// An open file and where it is.
#[derive(Debug)]
pub struct Located {
    /// Where it was opened.
    pub path: PathBuf,
    /// The file.
    pub file: File,
}

/// Opens a file for reading and writing; makes it when it is missing, says whether it did.
///
/// # Errors
/// What the disk says.
pub fn open(path: &Path) -> Result<(Located, bool), StoreError> {
    let options = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(FILE_MODE);
        options
    };
    let opened = match options().open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            options().create(true).truncate(false).open(path).map(|file| (file, true))
        }
        other => other.map(|file| (file, false)),
    };
    let (file, made) = opened.map_err(StoreError::at(path))?;
    Ok((Located { path: path.to_owned(), file }, made))
}

/// Writes all of `bytes` from `offset` on.
///
/// # Errors
/// What the disk says.
pub fn write_at(to: &Located, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
    to.file.write_all_at(bytes, offset).map_err(StoreError::at(&to.path))
}

/// Gives a file its length; what is added is a hole.
///
/// # Errors
/// What the disk says.
pub fn set_len(of: &Located, len: u64) -> Result<(), StoreError> {
    of.file.set_len(len).map_err(StoreError::at(&of.path))
}

/// Asks for room on disk for bytes that will be written soon. Where the file system cannot give it, or has none, nothing
/// changes: the write asks again, and says so.
pub fn reserve(of: &Located, offset: u64, len: u64) {
    if let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) {
        let _ = fallocate(&of.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len);
    }
}

/// Makes what was written to a file durable.
///
/// # Errors
/// [`StoreError::Sync`].
pub fn sync(of: &Located) -> Result<(), StoreError> {
    of.file.sync_data().map_err(|source| StoreError::Sync { path: of.path.clone(), source })
}

/// Makes a folder.
///
/// # Errors
/// What the disk says.
pub fn create_folder(path: &Path) -> Result<(), StoreError> {
    std::fs::create_dir(path).map_err(StoreError::at(path))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// [`StoreError::Sync`].
pub fn sync_folder(path: &Path) -> Result<(), StoreError> {
    let folder = File::open(path).map_err(StoreError::at(path))?;
    folder.sync_all().map_err(|source| StoreError::Sync { path: path.to_owned(), source })
}

/// Moves a folder.
///
/// # Errors
/// What the disk says: that the other place is taken, or that there is nothing to move, too.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Deletes a folder and all that is in it; one that is not there is no error.
///
/// # Errors
/// What the disk says.
pub fn remove_all(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::at(path)(error)),
        _ => Ok(()),
    }
}
