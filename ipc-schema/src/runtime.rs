//! Names in a node's runtime folder and state folder, on which controller, workers and programs agree.

use std::path::{Path, PathBuf};

use crate::ids::WorkerIndex;

/// A folder as somebody finds it who works in another one.
///
/// # Errors
/// A sentence that names the option when there is no current folder, or no name.
pub fn absolute(option: &str, folder: &Path) -> Result<PathBuf, String> {
    std::path::absolute(folder).map_err(|error| format!("{option} {}: {error}", folder.display()))
}

/// The controller's socket for programs.
#[must_use]
pub fn controller_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("controller.sock")
}

/// The controller's socket for workers.
#[must_use]
pub fn workers_socket(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("workers.sock")
}

/// Held by the controller as long as it lives.
#[must_use]
pub fn controller_lock(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("controller.lock")
}

/// A worker's socket for programs.
#[must_use]
pub fn worker_door(runtime_dir: &Path, worker: WorkerIndex) -> PathBuf {
    runtime_dir.join(format!("worker-{worker}.sock"))
}

/// Held by a worker as long as it lives; it holds the worker's process id as text.
#[must_use]
pub fn worker_lock(runtime_dir: &Path, worker: WorkerIndex) -> PathBuf {
    runtime_dir.join(format!("worker-{worker}.lock"))
}

/// Start of the names of the counters segments of a node: its runtime folder tells nodes of one machine apart.
#[must_use]
pub fn counters_prefix(runtime_dir: &Path) -> String {
    let folder = runtime_dir.canonicalize().unwrap_or_else(|_| runtime_dir.to_owned());
    let hash = blake3::hash(folder.as_os_str().as_encoded_bytes()).to_hex();
    format!("pangea-{}-", hash.as_str().get(..8).unwrap_or_default())
}

/// Name of a worker's counters segment.
#[must_use]
pub fn counters_name(runtime_dir: &Path, worker: WorkerIndex) -> String {
    format!("{}w{worker}", counters_prefix(runtime_dir))
}

/// The folder of contents.
#[must_use]
pub fn store(state_dir: &Path) -> PathBuf {
    state_dir.join("store")
}

/// A content's manifest in the store.
#[must_use]
pub fn manifest(state_dir: &Path, content: crate::ids::ContentId) -> PathBuf {
    store(state_dir).join(content.to_string()).join("manifest")
}

/// A content's bytes in the store.
#[must_use]
pub fn data(state_dir: &Path, content: crate::ids::ContentId) -> PathBuf {
    manifest(state_dir, content).with_file_name("data")
}
