//! The temporary folder of a demonstration: locked while it lives, so that the next one can tell what a dead one left.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use pangea_ipc::failure::FailureCode;
use pangea_ipc::runtime;
use pangea_ring::reap_stale;

use super::output::CtlError;

/// Start of the names of all such folders.
const PREFIX: &str = "pangea-demo-";
/// Folders of the two nodes in it.
pub(super) const NODES: [&str; 2] = ["a", "b"];
/// Runtime folder of a node in its folder.
pub(super) const RUNTIME: &str = "run";

/// A folder of this demonstration; gone when dropped.
pub(super) struct Folder {
    path: PathBuf,
    /// Held as long as this process lives, however it ends; children do not inherit it.
    _lock: File,
}

impl Folder {
    /// Makes a fresh one.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn create() -> Result<Self, CtlError> {
        Self::create_in(&std::env::temp_dir())
    }

    fn create_in(place: &Path) -> Result<Self, CtlError> {
        loop {
            let number = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
            let path = place.join(format!("{PREFIX}{number:016x}"));
            let failed = |error: io::Error| CtlError::new(FailureCode::Storage, format!("{}: {error}", path.display()));
            DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
            // Another one that sweeps may have been faster than the lock: then the folder goes, and a new one is made.
            match File::open(&path).and_then(|lock| lock.lock().map(|()| lock)) {
                Ok(lock) if path.exists() => return Ok(Self { path, _lock: lock }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folders and shared memory of demonstrations of this user that have died; says which.
    pub(super) fn sweep() -> Vec<PathBuf> {
        Self::sweep_in(&std::env::temp_dir())
    }

    fn sweep_in(place: &Path) -> Vec<PathBuf> {
        // What cannot be read or removed is left for another time: it is in nobody's way.
        let Ok(entries) = std::fs::read_dir(place) else { return Vec::new() };
        let named = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
        named.map(|entry| entry.path()).filter(|path| sweep_one(path).unwrap_or(false)).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("pangeactl: {} could not be removed: {error}", self.path.display());
        }
    }
}

/// Removes a folder when neither its demonstration nor a controller or worker of its nodes lives; says whether it did.
fn sweep_one(path: &Path) -> io::Result<bool> {
    let metadata = path.symlink_metadata()?;
    if !metadata.is_dir() || metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Ok(false);
    }
    // Held until the folder is gone, so that nobody takes it for its own meanwhile.
    let lock = File::open(path)?;
    if is_held(&lock)? {
        return Ok(false);
    }
    for node in NODES {
        let runtime_dir = path.join(node).join(RUNTIME);
        let files = match std::fs::read_dir(&runtime_dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for file in files {
            let file = file?.path();
            if file.extension().is_some_and(|extension| extension == "lock") && is_held(&File::open(file)?)? {
                return Ok(false);
            }
        }
        reap_stale(&runtime::counters_prefix(&runtime_dir));
    }
    std::fs::remove_dir_all(path)?;
    Ok(true)
}

/// Whether another process holds a lock; takes it when nobody does.
fn is_held(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_provably_dead_is_swept() {
        let place = tempfile::tempdir().unwrap();
        let living = Folder::create_in(place.path()).unwrap();
        let make = |name: &str| {
            let runtime_dir = place.path().join(name).join(NODES[1]).join(RUNTIME);
            std::fs::create_dir_all(&runtime_dir).unwrap();
            runtime_dir
        };
        // Killed, but its controller still ends; killed, and all its processes gone; somebody else's.
        let ending = make("pangea-demo-1");
        let lock = File::create(ending.join("controller.lock")).unwrap();
        lock.lock().unwrap();
        let dead = make("pangea-demo-2");
        File::create(dead.join("controller.lock")).unwrap();
        make("pangea-other-3");
        std::os::unix::fs::symlink(place.path().join("pangea-other-3"), place.path().join("pangea-demo-4")).unwrap();
        assert_eq!(Folder::sweep_in(place.path()), [place.path().join("pangea-demo-2")]);
        assert!(living.path().exists() && ending.exists() && place.path().join("pangea-other-3/b/run").exists());
        drop(lock);
        assert_eq!(Folder::sweep_in(place.path()), [place.path().join("pangea-demo-1")]);
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }
}
