//! Where a node keeps its things when nobody says otherwise: the system's folders for root, the user's (XDG) for others.

use std::path::PathBuf;

/// Name of the environment variable that stands in for `--runtime-dir`.
pub const RUNTIME_VARIABLE: &str = "PANGEA_RUNTIME_DIR";

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn from_environment(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Folder of sockets: `$PANGEA_RUNTIME_DIR`, `/run/pangea` for root, `$XDG_RUNTIME_DIR/pangea` for others.
#[must_use]
pub fn runtime_dir() -> PathBuf {
    if let Some(named) = std::env::var_os(RUNTIME_VARIABLE).filter(|name| !name.is_empty()) {
        return PathBuf::from(named);
    }
    if is_root() {
        return PathBuf::from("/run/pangea");
    }
    // Without a session manager there is no runtime folder: then the state folder's is as good.
    from_environment("XDG_RUNTIME_DIR").map_or_else(|| state_dir().join("run"), |folder| folder.join("pangea"))
}

/// Folder of key, catalog and store: `/var/lib/pangea` for root, `$XDG_STATE_HOME/pangea` or `~/.local/state/pangea`
/// for others.
#[must_use]
pub fn state_dir() -> PathBuf {
    if is_root() {
        return PathBuf::from("/var/lib/pangea");
    }
    let home = || from_environment("HOME").unwrap_or_else(|| PathBuf::from("/tmp")).join(".local/state");
    from_environment("XDG_STATE_HOME").unwrap_or_else(home).join("pangea")
}
