//! Peers as people write them: `NODEID`, `NODEID@IP:PORT`, or `NODEID@HOST:PORT` with a name that is looked up once.
//!
//! Who answers there must prove to be the node, so a wrong answer to the lookup costs a connection and nothing else.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use pangea_ipc::address::{AddressError, PeerAddress};
use pangea_ipc::ids::NodeId;

/// A peer as it was written; a host name is not looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// With an IP address, or none.
    Address(PeerAddress),
    /// With the name of a host.
    Name {
        /// Who must answer.
        node: NodeId,
        /// The name.
        host: String,
        /// Where to knock there.
        port: u16,
    },
}

impl FromStr for Written {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let malformed = match text.parse::<PeerAddress>() {
            Err(error @ AddressError::Socket { .. }) => error,
            other => return other.map(Self::Address),
        };
        let name = text.split_once('@').and_then(|(node, rest)| {
            let (host, port) = rest.rsplit_once(':')?;
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
            let named = host.chars().all(plain) && host.chars().any(|c| c.is_ascii_alphabetic());
            Some((node, host, port.parse::<u16>().ok().filter(|port| *port != 0)?)).filter(|_| named)
        });
        let (node, host, port) = name.ok_or(malformed)?;
        Ok(Self::Name { node: node.parse()?, host: host.to_owned(), port })
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(peer) => fmt::Display::fmt(peer, f),
            Self::Name { node, host, port } => write!(f, "{node}@{host}:{port}"),
        }
    }
}

impl Written {
    /// Who must answer.
    #[must_use]
    pub fn node(&self) -> NodeId {
        match self {
            Self::Address(peer) => peer.node,
            Self::Name { node, .. } => *node,
        }
    }

    /// Looks a host name up. Waits for whom the system asks.
    ///
    /// # Errors
    /// A sentence that names the host and says what is wrong.
    pub fn look_up(&self) -> Result<PeerAddress, String> {
        let (node, host, port) = match self {
            Self::Address(peer) => return Ok(*peer),
            Self::Name { node, host, port } => (*node, host.as_str(), *port),
        };
        let found: Vec<SocketAddr> = (host, port)
            .to_socket_addrs()
            .map_err(|error| format!("host {host:?} cannot be looked up: {error}"))?
            .collect();
        let first = found.first().copied().ok_or_else(|| format!("host {host:?} has no address"))?;
        if first.ip().is_unspecified() {
            return Err(AddressError::Unspecific { address: first }.to_string());
        }
        Ok(PeerAddress { node, address: Some(first) })
    }
}

/// Reads a peer; looks the host up when it is a name.
///
/// # Errors
/// A sentence that names the part that is wrong.
pub fn peer(text: &str) -> Result<PeerAddress, String> {
    text.parse::<Written>().map_err(|error| error.to_string())?.look_up()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_and_what_is_neither_name_nor_address_is_refused() {
        let node = "a".repeat(52);
        let found = peer(&format!("{node}@localhost:7440")).unwrap().address.unwrap();
        assert!(found.ip().is_loopback() && found.port() == 7440, "{found}");
        assert_eq!(peer(&format!("{node}@[::1]:5")).unwrap().address.unwrap().port(), 5);
        assert_eq!(peer(&node).unwrap().address, None);
        for wrong in
            ["localhost", "localhost:99999", "localhost:", "localhost:0", "1.2.3:5", "[::1:5", "a b:5", ":5", ""]
        {
            let error = peer(&format!("{node}@{wrong}")).unwrap_err();
            assert!(error.contains("is not IP:PORT"), "{wrong}: {error}");
        }
        let error = peer(&format!("{node}@no.such.host.invalid:5")).unwrap_err();
        assert!(error.contains("no.such.host.invalid"), "{error}");
        assert!(peer("nobody@localhost:5").unwrap_err().contains("node id"));
        let written: Written = format!("{node}@localhost:7440").parse().unwrap();
        assert_eq!(written.to_string(), format!("{node}@localhost:7440"), "not looked up before it is needed");
    }
}
