//! A ticket: one line of text that says what to get and from whom.
//!
//! `pangea1` and base32 (lower case) of: content id, size, node id, expiry, name, addresses, and four bytes of BLAKE3
//! over all of that against typing errors. Integers are little-endian. A ticket grants nothing: the node it names
//! still decides whom it serves.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, DecodeKind};
use serde::{Serialize, Serializer};

use crate::ids::{ContentId, NodeId};

/// What every ticket of this version starts with.
pub const TICKET_PREFIX: &str = "pangea1";

/// Addresses in a ticket at most.
pub const TICKET_ADDRESSES_MAX: usize = 8;

/// Bytes in a content's name at most, as in most file systems.
pub const NAME_MAX: usize = 255;

/// Characters in a ticket at most; all limits above together stay below it.
pub const TICKET_CHARS_MAX: usize = 1024;

const CHECK_LEN: usize = 4;

/// What to get and from whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// What to get.
    pub content: ContentId,
    /// Its bytes, for progress and quota before the first answer; proven only by the last chunk.
    pub size: u64,
    /// Who held it when the ticket was made.
    pub node: NodeId,
    /// Where that node's controller listened.
    pub addresses: Vec<SocketAddr>,
    /// Seconds since 1970 after which the ticket is refused; 0 = never.
    pub expires_s: u64,
    /// The name given at put; empty when there was none. See [`checked_name`].
    pub name: String,
}

/// Why a text is not a ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// The prefix is missing.
    #[error("a ticket starts with {TICKET_PREFIX}")]
    Prefix,
    /// It is longer than any ticket.
    #[error("ticket of {chars} characters is longer than any ticket ({TICKET_CHARS_MAX})")]
    TooLong {
        /// Its characters.
        chars: usize,
    },
    /// A character is no base32 digit.
    #[error("ticket has a character that is not base32 (a-z, 2-7); copy it again whole")]
    Alphabet,
    /// A character was lost, added or changed.
    #[error("ticket does not match its check sum; copy it again whole")]
    Check,
    /// The fields make no sense though the check sum is right.
    #[error("ticket is of a form that this version does not know")]
    Form,
}

impl Ticket {
    /// Whether it is too late for this ticket. `now_s`: seconds since 1970.
    #[must_use]
    pub fn is_expired(&self, now_s: u64) -> bool {
        self.expires_s != 0 && now_s > self.expires_s
    }
}

/// A name that is safe as a file name in the current folder: no `/`, no control characters, not `.` or `..`, at most
/// [`NAME_MAX`] bytes. `None` when nothing safe is left.
#[must_use]
pub fn checked_name(raw: &str) -> Option<String> {
    let last = raw.rsplit('/').next().unwrap_or(raw);
    let mut name: String = last.chars().filter(|c| !c.is_control()).collect();
    name.truncate(name.floor_char_boundary(NAME_MAX));
    let name = name.trim();
    if name.is_empty() || name == "." || name == ".." { None } else { Some(name.to_owned()) }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(self.content.0);
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(self.node.0);
        bytes.extend(self.expires_s.to_le_bytes());
        let name = self.name.get(..self.name.floor_char_boundary(NAME_MAX)).unwrap_or_default();
        bytes.push(u8::try_from(name.len()).unwrap_or(0)); // NAME_MAX is 255
        bytes.extend(name.as_bytes());
        for address in self.addresses.iter().take(TICKET_ADDRESSES_MAX) {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(address.port().to_le_bytes());
        }
        bytes.extend(check_sum(&bytes));
        write!(f, "{TICKET_PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        if text.len() > TICKET_CHARS_MAX {
            return Err(TicketError::TooLong { chars: text.len() });
        }
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.strip_prefix(TICKET_PREFIX).ok_or(TicketError::Prefix)?;
        let bytes = BASE32_NOPAD.decode(digits.to_ascii_uppercase().as_bytes()).map_err(|error| match error.kind {
            DecodeKind::Symbol => TicketError::Alphabet,
            _ => TicketError::Check, // no ticket has this many characters
        })?;
        let (fields, check) = bytes.split_last_chunk::<CHECK_LEN>().ok_or(TicketError::Check)?;
        if check_sum(fields) != *check {
            return Err(TicketError::Check);
        }
        parse_fields(fields).ok_or(TicketError::Form)
    }
}

fn check_sum(bytes: &[u8]) -> [u8; CHECK_LEN] {
    let hash = blake3::hash(bytes);
    hash.as_bytes().first_chunk().copied().unwrap_or_default() // 32 bytes hold 4
}

fn parse_fields(mut rest: &[u8]) -> Option<Ticket> {
    let content = ContentId(take(&mut rest)?);
    let size = u64::from_le_bytes(take(&mut rest)?);
    let node = NodeId(take(&mut rest)?);
    let expires_s = u64::from_le_bytes(take(&mut rest)?);
    let [name_len] = take(&mut rest)?;
    let (name, after) = rest.split_at_checked(usize::from(name_len))?;
    let name = std::str::from_utf8(name).ok()?.to_owned();
    rest = after;
    let mut addresses = Vec::new();
    while !rest.is_empty() && addresses.len() < TICKET_ADDRESSES_MAX {
        let ip: IpAddr = match take(&mut rest)? {
            [4] => Ipv4Addr::from(take::<4>(&mut rest)?).into(),
            [6] => Ipv6Addr::from(take::<16>(&mut rest)?).into(),
            _ => return None,
        };
        addresses.push(SocketAddr::new(ip, u16::from_le_bytes(take(&mut rest)?)));
    }
    rest.is_empty().then_some(Ticket { content, size, node, addresses, expires_s, name })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

impl Serialize for Ticket {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            content: ContentId([1; 32]),
            size: 1 << 30,
            node: NodeId([2; 32]),
            addresses: vec!["127.0.0.1:7440".parse().unwrap(), "[2001:db8::1]:65535".parse().unwrap()],
            expires_s: 0,
            name: "böse datei.tar".to_owned(),
        }
    }

    #[test]
    fn a_ticket_prints_on_one_line_and_parses_back() {
        let text = ticket().to_string();
        assert!(text.starts_with("pangea1") && !text.contains(char::is_whitespace));
        assert_eq!(text.parse(), Ok(ticket()));
        assert_eq!(format!(" {text}\n").parse(), Ok(ticket()));
        let largest = Ticket {
            addresses: vec!["[::1]:1".parse().unwrap(); TICKET_ADDRESSES_MAX],
            name: "x".repeat(NAME_MAX),
            ..ticket()
        };
        assert_eq!(largest.to_string().parse(), Ok(largest));
    }

    #[test]
    fn every_single_wrong_character_is_noticed() {
        let text = ticket().to_string();
        for at in TICKET_PREFIX.len()..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'a' { b'b' } else { b'a' };
            assert!(String::from_utf8(wrong).unwrap().parse::<Ticket>().is_err(), "position {at}");
        }
        assert_eq!("nonsense".parse::<Ticket>(), Err(TicketError::Prefix));
        assert_eq!("pangea1".parse::<Ticket>(), Err(TicketError::Check));
        assert!(matches!(format!("pangea1{}", "a".repeat(5000)).parse::<Ticket>(), Err(TicketError::TooLong { .. })));
    }

    #[test]
    fn names_are_made_safe() {
        assert_eq!(checked_name("../../etc/passwd").as_deref(), Some("passwd"));
        assert_eq!(checked_name("a\x1b[31mb\n").as_deref(), Some("a[31mb"));
        for bad in ["", ".", "..", "/", "a/..", "\n"] {
            assert_eq!(checked_name(bad), None, "{bad:?}");
        }
        assert_eq!(checked_name(&"ü".repeat(300)).map(|name| name.len()), Some(254));
    }

    #[test]
    fn a_ticket_expires() {
        let ticket = Ticket { expires_s: 100, ..ticket() };
        assert!(!ticket.is_expired(100) && ticket.is_expired(101));
        assert!(!self::ticket().is_expired(u64::MAX));
    }

    proptest! {
        #[test]
        fn no_text_brings_the_parser_down(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = text.parse::<Ticket>();
            let _ = parse_fields(&bytes);
        }
    }
}
