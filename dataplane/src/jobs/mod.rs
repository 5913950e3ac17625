//! The jobs of a worker, one file a kind. A job is a task; it ends by reporting an event, whatever happens to it.

pub mod door;
pub mod fetch;
pub mod manifest;
pub mod put;
pub mod read;
pub mod rings;
pub mod verify;

use pangea_ipc::ids::JobId;
use pangea_ipc::worker::JobKind;

/// What the log lines of a job stand under.
fn span(kind: JobKind, job: JobId) -> tracing::Span {
    tracing::info_span!("job", ?kind, id = %job)
}
