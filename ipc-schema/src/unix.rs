//! Unix sockets: connect with an error that says what is wrong, listen without stealing, know who is there.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Mode of a socket: this user alone.
const SOCKET_MODE: u32 = 0o600;

/// Bytes in a socket's path at most: `sun_path` of Linux, without the zero at its end.
pub const SOCKET_PATH_MAX: usize = 107;

/// A socket's path does not fit the system's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the path {} has {len} bytes, and a socket's at most {SOCKET_PATH_MAX}; use a shorter --runtime-dir (PANGEA_RUNTIME_DIR)",
    path.display()
)]
pub struct PathTooLong {
    /// The socket.
    pub path: PathBuf,
    /// Bytes in its path.
    pub len: usize,
}

/// Looks whether a socket may have this path.
///
/// # Errors
/// [`PathTooLong`].
pub fn check_path(path: &Path) -> Result<(), PathTooLong> {
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_MAX {
        return Err(PathTooLong { path: path.to_owned(), len });
    }
    Ok(())
}

/// Why a socket cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There can be no such socket.
    #[error(transparent)]
    TooLong(#[from] PathTooLong),
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
    check_path(path)?;
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
    /// There can be no such socket.
    #[error(transparent)]
    TooLong(#[from] PathTooLong),
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
    check_path(path)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_is_as_long_as_the_system_lets_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let path = |len: usize| folder.path().join("x".repeat(len - folder.path().as_os_str().len() - 1));
        let longest = path(SOCKET_PATH_MAX);
        let _listener = listen_unix(&longest).await.unwrap();
        connect_unix(&longest).await.unwrap();
        let longer = path(SOCKET_PATH_MAX + 1);
        let refused = listen_unix(&longer).await.unwrap_err().to_string();
        assert!(refused.contains("has 108 bytes") && refused.contains("at most 107"), "{refused}");
        assert!(refused.contains(longer.to_str().unwrap()) && refused.contains("shorter --runtime-dir"), "{refused}");
        assert_eq!(connect_unix(&longer).await.unwrap_err().to_string(), refused);
    }
}
