//! Unix sockets: connect with an error that says what is wrong, listen without stealing, know who is there.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Mode of a socket: this user alone.
const SOCKET_MODE: u32 = 0o600;

/// Why a socket cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The folder is not there.
    #[error("there is no runtime folder {}: is the path right, and has pangea-controller been started?", folder.display())]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// The socket is not there.
    #[error("no pangea-controller runs with the runtime folder {} (there is no {}); start one", folder.display(), socket)]
    NotRunning {
        /// The folder.
        folder: PathBuf,
        /// Name of the socket.
        socket: String,
    },
    /// The socket is there but nobody listens.
    #[error("nobody answers on {}: its program has ended without cleaning up; start pangea-controller again", path.display())]
    Stale {
        /// The socket.
        path: PathBuf,
    },
    /// This user may not.
    #[error("this user may not use {}: run the command as the user of the node, or as root", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The system says otherwise.
    #[error("cannot connect to {}: {source}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// Connects to a socket in a runtime folder.
///
/// # Errors
/// Says which of the usual things is wrong.
pub async fn connect_unix(path: &Path) -> Result<UnixStream, ConnectError> {
    let folder = || path.parent().unwrap_or(path).to_owned();
    UnixStream::connect(path).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound if folder().is_dir() => ConnectError::NotRunning {
            folder: folder(),
            socket: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        },
        io::ErrorKind::NotFound => ConnectError::NoFolder { folder: folder() },
        io::ErrorKind::ConnectionRefused => ConnectError::Stale { path: path.to_owned() },
        io::ErrorKind::PermissionDenied => ConnectError::Denied { path: path.to_owned() },
        _ => ConnectError::System { path: path.to_owned(), source },
    })
}

/// Why a socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers on it.
    #[error("another program answers on {}; use another runtime folder or stop it", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The system says no.
    #[error("cannot listen on {}: {source}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// Listens on a socket, replacing one on which nobody answers.
///
/// # Errors
/// When somebody answers on it, or the system says no.
pub async fn listen_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::System { path: path.to_owned(), source };
    match UnixStream::connect(path).await {
        Ok(_) => return Err(ListenError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed)?;
        }
        Err(_) => {} // not there; or binding will say what is wrong
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    Ok(listener)
}

/// Why a program is turned away.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Another user.
    #[error("user {uid} is not the user of this node (nor root)")]
    OtherUser {
        /// Who.
        uid: u32,
    },
    /// The system does not say who it is.
    #[error("the system does not say who connected: {0}")]
    Unknown(#[from] io::Error),
}

/// Admits the user of this process and root.
///
/// # Errors
/// For anyone else.
pub fn check_peer(stream: &UnixStream) -> Result<(), PeerError> {
    let uid = stream.peer_cred()?.uid();
    if uid == 0 || uid == own_uid()? {
        return Ok(());
    }
    Err(PeerError::OtherUser { uid })
}

/// The user of this process: the owner of its folder under `/proc`.
fn own_uid() -> io::Result<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map(|metadata| metadata.uid())
}
