//! Where a node and its workers can be reached.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::ids::{IdError, NodeId, WorkerIndex, WorkerKey, quoted};

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The part before `@` is not a node id.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The part after `@` is not `IP:PORT`.
    #[error("address {text:?} is not IP:PORT (or, of a peer, HOST:PORT), such as 192.0.2.7:7440 or [2001:db8::7]:7440")]
    Socket {
        /// The text, shortened.
        text: String,
    },
    /// The address of nowhere in particular.
    #[error("address {address} cannot be dialled: write the node's own IP and port, such as 192.0.2.7:7440")]
    Unspecific {
        /// The address.
        address: SocketAddr,
    },
}

/// A node and, when known, where its controller listens: `NODEID` or `NODEID@IP:PORT`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    /// Who must answer.
    pub node: NodeId,
    /// Where to knock; a node without an address is admitted but never dialled.
    pub address: Option<SocketAddr>,
}

/// Reads `IP:PORT`.
///
/// # Errors
/// [`AddressError::Socket`].
pub fn parse_socket(text: &str) -> Result<SocketAddr, AddressError> {
    text.parse().map_err(|_| AddressError::Socket { text: quoted(text) })
}

impl FromStr for PeerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once('@') {
            None => Ok(Self { node: text.parse()?, address: None }),
            Some((node, address)) => {
                let address = parse_socket(address)?;
                if address.ip().is_unspecified() || address.port() == 0 {
                    return Err(AddressError::Unspecific { address });
                }
                Ok(Self { node: node.parse()?, address: Some(address) })
            }
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            None => fmt::Display::fmt(&self.node, f),
            Some(address) => write!(f, "{}@{address}", self.node),
        }
    }
}

impl fmt::Debug for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PeerAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One worker as another node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Its number on its node.
    pub worker: WorkerIndex,
    /// Where its QUIC endpoint listens.
    pub address: SocketAddr,
    /// The key it must show.
    pub key: WorkerKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_addresses_print_and_parse_back() {
        let node = NodeId([3; 32]);
        for address in [None, Some("127.0.0.1:7440".parse().unwrap()), Some("[::1]:1".parse().unwrap())] {
            let peer = PeerAddress { node, address };
            assert_eq!(peer.to_string().parse(), Ok(peer));
        }
    }

    #[test]
    fn a_wrong_address_says_what_to_write() {
        let node = NodeId([3; 32]);
        let error = format!("{node}@example:99999").parse::<PeerAddress>().unwrap_err();
        assert!(error.to_string().contains("IP:PORT"), "{error}");
        assert!(matches!("x@1.2.3.4:5".parse::<PeerAddress>(), Err(AddressError::Id(_))));
    }
}
