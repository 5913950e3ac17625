//! Who has a TCP or UDP port, as far as the system tells: for the error that says that it is taken.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

/// What a port is a port of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Sessions, metrics.
    Tcp,
    /// Chunks.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// A sentence about the process that listens on a port, or nothing when the system does not tell.
#[must_use]
pub fn describe(protocol: Protocol, address: SocketAddr) -> String {
    // With the kernel's number for a socket that listens; one of UDP is always "closed".
    let (tables, state) = match protocol {
        Protocol::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], "0A"),
        Protocol::Udp => (["/proc/net/udp", "/proc/net/udp6"], "07"),
    };
    let found = tables.iter().find_map(|table| listening_inode(table, state, address.port()));
    match found.and_then(process_with_socket) {
        Some((pid, name)) => format!(" (process {pid}, {name}, has it)"),
        None => String::new(),
    }
}

/// The inode of the socket that listens on `port`. Columns: number, local address, remote address, state, …, inode.
fn listening_inode(table: &str, listening: &str, port: u16) -> Option<u64> {
    let text = std::fs::read_to_string(table).ok()?;
    text.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let local = columns.nth(1)?;
        let state = columns.nth(1)?;
        let inode = columns.nth(5)?;
        let local_port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (state == listening && local_port == port).then(|| inode.parse().ok())?
    })
}

fn process_with_socket(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let has_socket = |process: &Path| {
        let descriptors = std::fs::read_dir(process.join("fd")).ok()?;
        let mut links = descriptors.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.any(|link| link.as_os_str() == wanted.as_str()).then_some(())
    };
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        has_socket(&entry.path())?;
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        Some((pid, name.trim().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let text = describe(Protocol::Tcp, listener.local_addr().unwrap());
        assert!(text.contains(&std::process::id().to_string()), "{text:?}");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let text = describe(Protocol::Udp, socket.local_addr().unwrap());
        assert!(text.contains(&std::process::id().to_string()), "{text:?}");
        let free = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
        assert_eq!(describe(Protocol::Tcp, free), "");
    }
}
