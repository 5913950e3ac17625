//! A content on its way in: bytes are hashed and written as they come, the id is known at the end.

use std::path::{Path, PathBuf};

use pangea_ipc::content::{CHUNK_SIZE, ChunkIndex, Manifest};
use pangea_ipc::ids::{JobId, WorkerIndex};

use super::StoreError;
#[cfg(not(test))]
use super::disk;
use super::disk::Located;
use super::files::{INCOMING_PREFIX, TRASH_PREFIX, create_incoming, finish_put};
#[cfg(test)]
use super::machine as disk;

/// The folder of one put. Dropped unfinished, it is deleted.
#[derive(Debug)]
pub struct Incoming {
    store: PathBuf,
    folder: PathBuf,
    data: Located,
}

impl Incoming {
    /// Makes the folder. Waits for the disk.
    ///
    /// # Errors
    /// What the disk says.
    pub fn create(store: &Path, worker: WorkerIndex, job: JobId) -> Result<Self, StoreError> {
        let folder = store.join(format!("{}{job}", incoming_prefix(worker)));
        let data = create_incoming(&folder)?;
        Ok(Self { store: store.to_owned(), folder, data })
    }

    /// Writes a chunk's bytes at their place.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write(&self, chunk: ChunkIndex, bytes: &[u8]) -> Result<(), StoreError> {
        let offset = u64::from(chunk) * u64::from(CHUNK_SIZE);
        disk::write_at(&self.data, bytes, offset)
    }

    /// Makes everything durable and moves it in place. Waits for the disk.
    ///
    /// # Errors
    /// What the disk says; what was put is deleted then.
    pub fn finish(&self, manifest: &Manifest) -> Result<(), StoreError> {
        finish_put(&self.store, &self.folder, &self.data, manifest)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After a finished put the folder is elsewhere; what cannot be deleted now is swept at the next start.
        let _ = disk::remove_all(&self.folder);
    }
}

fn incoming_prefix(worker: WorkerIndex) -> String {
    format!("{INCOMING_PREFIX}w{worker}-")
}

/// Deletes what this worker's puts and anyone's removals left behind when they were cut short.
///
/// # Errors
/// What the disk says.
pub fn sweep(store: &Path, worker: WorkerIndex) -> Result<(), StoreError> {
    let own = incoming_prefix(worker);
    for entry in std::fs::read_dir(store).map_err(StoreError::at(store))? {
        let entry = entry.map_err(StoreError::at(store))?;
        let name = entry.file_name();
        let left_behind = name.to_str().is_some_and(|name| name.starts_with(&own) || name.starts_with(TRASH_PREFIX));
        if left_behind {
            disk::remove_all(&entry.path())?;
        }
    }
    Ok(())
}
