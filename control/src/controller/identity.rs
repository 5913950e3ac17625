//! The node's key: made once, kept in a file that only its user can read.

use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use pangea_ipc::ids::NodeId;
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};

/// Name of the key file in the state folder.
pub const KEY_FILE: &str = "node.key";
const FILE_MODE: u32 = 0o600;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may read it.
    #[error("{} may be read by others (mode {mode:o}); if nobody has, run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is not a key.
    #[error("{} is not a node key (64 hex digits); restore it from a backup, or move it away to become a new node", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// No random bytes, or no X25519.
    #[error("no key can be made: {0}")]
    Crypto(String),
}

/// The node's static X25519 key pair.
#[derive(Clone)]
pub struct Identity {
    private: [u8; 32],
    /// The public half: who this node is.
    pub node: NodeId,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.node)
    }
}

impl Identity {
    /// Reads the node's key, or makes one at the first start.
    ///
    /// # Errors
    /// When the file cannot be used as it is.
    pub fn load_or_create(state_dir: &Path) -> Result<Self, IdentityError> {
        let path = state_dir.join(KEY_FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let metadata = std::fs::metadata(&path).map_err(file(&path))?;
                let mode = metadata.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(IdentityError::Exposed { path, mode });
                }
                let private = HEXLOWER.decode(text.trim().as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
                Self::from_private(private.ok_or(IdentityError::Damaged { path })?)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Self::generate()?;
                identity.save(&path)?;
                Ok(identity)
            }
            Err(source) if source.kind() == io::ErrorKind::InvalidData => Err(IdentityError::Damaged { path }),
            Err(source) => Err(IdentityError::File { path, source }),
        }
    }

    /// A fresh key.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut private = [0; 32];
        getrandom::fill(&mut private).map_err(|error| IdentityError::Crypto(error.to_string()))?;
        Self::from_private(private)
    }

    fn from_private(private: [u8; 32]) -> Result<Self, IdentityError> {
        let none = || IdentityError::Crypto("X25519 is missing".to_owned());
        let mut curve = DefaultResolver.resolve_dh(&DHChoice::Curve25519).ok_or_else(none)?;
        curve.set(&private);
        let public = curve.pubkey().try_into().map_err(|_| none())?;
        Ok(Self { private, node: NodeId(public) })
    }

    /// The private half, for the handshake.
    #[must_use]
    pub fn private(&self) -> &[u8] {
        &self.private
    }

    /// Written whole under another name first: a crash leaves no half key.
    fn save(&self, path: &Path) -> Result<(), IdentityError> {
        let fresh = path.with_extension("key.new");
        let _ = std::fs::remove_file(&fresh); // left by a crash
        let options = std::fs::OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&fresh);
        let mut out = options.map_err(file(&fresh))?;
        writeln!(out, "{}", HEXLOWER.encode(&self.private)).map_err(file(&fresh))?;
        out.sync_all().map_err(file(&fresh))?;
        std::fs::rename(&fresh, path).map_err(file(path))
    }
}

fn file(path: &Path) -> impl Fn(io::Error) -> IdentityError {
    move |source| IdentityError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_only_its_user_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(folder.path()).unwrap();
        let again = Identity::load_or_create(folder.path()).unwrap();
        assert_eq!(first.node, again.node);
        let path = folder.path().join(KEY_FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load_or_create(folder.path()), Err(IdentityError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn a_damaged_key_is_never_replaced_in_silence() {
        let folder = tempfile::tempdir().unwrap();
        for bad in [&b"abc"[..], b"", &[0xff; 64]] {
            let path = folder.path().join(KEY_FILE);
            std::fs::write(&path, bad).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(Identity::load_or_create(folder.path()), Err(IdentityError::Damaged { .. })));
            assert_eq!(std::fs::read(&path).unwrap(), bad);
        }
    }
}
