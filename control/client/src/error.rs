//! Why a client's call did not do what was asked.

use std::io;
use std::path::PathBuf;

use pangea_ipc::failure::{Failure, FailureCode};
use pangea_ipc::rpc::{ConnectError, RpcError};
use pangea_ring::RingError;

/// Why a call did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no controller to talk to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The controller, or a worker, said no.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The controller went away before it answered.
    #[error(
        "pangea-controller went away before it answered; start it again (under systemd it does by itself) and run the command again"
    )]
    ControllerGone,
    /// The call itself failed.
    #[error(transparent)]
    Rpc(RpcError),
    /// The answer was not one to this request.
    #[error("the controller answered something else than was asked; use programs of the same version")]
    Unexpected,
    /// A worker's door could not be opened.
    #[error("worker door {}: {source}; when its worker has just gone, run the command again", path.display())]
    Door {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// All workers that had the content went away.
    #[error("every worker that served this went away; what is here stays: run the command again to go on")]
    WorkersGone,
    /// The worker that took a put went away.
    #[error("the worker that took this went away; nothing was kept: run the command again")]
    PutLost,
    /// A ring broke.
    #[error(transparent)]
    Ring(RingError),
    /// A worker sent what no worker sends.
    #[error("a worker broke the ring protocol: {0}")]
    Protocol(String),
    /// A file or stream of the caller.
    #[error("{what}: {source}")]
    Io {
        /// What was read or written.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// What was to be put changed while it was read.
    #[error("it changed while it was put; nothing was kept: put it again when it is still")]
    Changed,
    /// The system gives no thread or descriptor.
    #[error("the system refuses: {0}")]
    System(#[from] io::Error),
    /// The caller's callback asked to stop.
    #[error("interrupted; what is here stays: run the command again to go on")]
    Interrupted,
    /// The caller's callback asked to stop a put.
    #[error("interrupted; nothing was kept")]
    PutInterrupted,
}

impl ClientError {
    /// For programs: what kind of no.
    #[must_use]
    pub fn code(&self) -> FailureCode {
        match self {
            Self::Refused(failure) => failure.code,
            Self::Connect(ConnectError::Denied { .. }) => FailureCode::Denied,
            Self::Connect(ConnectError::TooLong(_)) => FailureCode::Invalid,
            Self::Connect(_) | Self::ControllerGone | Self::WorkersGone | Self::PutLost | Self::Door { .. } => {
                FailureCode::Unavailable
            }
            Self::Rpc(_) | Self::Unexpected | Self::Ring(_) | Self::Protocol(_) => FailureCode::Protocol,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => FailureCode::NotFound,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureCode::Full,
                io::ErrorKind::PermissionDenied => FailureCode::Denied,
                _ => FailureCode::Storage,
            },
            Self::Changed => FailureCode::Busy,
            Self::System(_) => FailureCode::Internal,
            Self::Interrupted | Self::PutInterrupted => FailureCode::Cancelled,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }
}

impl From<RpcError> for ClientError {
    fn from(error: RpcError) -> Self {
        if error.is_disconnected() { Self::ControllerGone } else { Self::Rpc(error) }
    }
}
