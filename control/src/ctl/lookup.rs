//! Peers as people write them: `NODEID`, `NODEID@IP:PORT`, or `NODEID@HOST:PORT` with a name that is looked up once.

use std::net::{SocketAddr, ToSocketAddrs};

use pangea_ipc::address::{AddressError, PeerAddress};

/// Reads a peer; looks the host up when it is a name. Who answers there must prove to be the node, so a wrong answer to
/// the lookup costs a connection and nothing else.
///
/// # Errors
/// A sentence that names the part that is wrong.
pub fn peer(text: &str) -> Result<PeerAddress, String> {
    let malformed = match text.parse::<PeerAddress>() {
        Err(error @ AddressError::Socket { .. }) => error,
        other => return other.map_err(|error| error.to_string()),
    };
    let name = text.split_once('@').and_then(|(node, rest)| {
        let (host, port) = rest.rsplit_once(':')?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
        let named = host.chars().all(plain) && host.chars().any(|c| c.is_ascii_alphabetic());
        Some((node, host, port.parse::<u16>().ok()?)).filter(|_| named)
    });
    let Some((node, host, port)) = name else { return Err(malformed.to_string()) };
    let found: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("host {host:?} cannot be looked up: {error}"))?
        .collect();
    let first = found.first().ok_or_else(|| format!("host {host:?} has no address"))?;
    format!("{node}@{first}").parse().map_err(|error: AddressError| error.to_string())
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
        for wrong in ["localhost", "localhost:99999", "localhost:", "1.2.3:5", "[::1:5", "a b:5", ":5", ""] {
            let error = peer(&format!("{node}@{wrong}")).unwrap_err();
            assert!(error.contains("is not IP:PORT"), "{wrong}: {error}");
        }
        let error = peer(&format!("{node}@no.such.host.invalid:5")).unwrap_err();
        assert!(error.contains("no.such.host.invalid"), "{error}");
        assert!(peer("nobody@localhost:5").unwrap_err().contains("node id"));
    }
}
