//! Identifiers: newtypes that parse and print in exactly one way.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Serialize, Serializer};

/// Why a text is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text has the wrong number of characters.
    #[error("{kind} {text:?} has {found} characters; it must have {expected}")]
    Length {
        /// What was to be parsed.
        kind: &'static str,
        /// The text, shortened.
        text: String,
        /// Characters found.
        found: usize,
        /// Characters of a valid one.
        expected: usize,
    },
    /// The text has a character outside the alphabet.
    #[error("{kind} {text:?} is not {alphabet}")]
    Alphabet {
        /// What was to be parsed.
        kind: &'static str,
        /// The text, shortened.
        text: String,
        /// The alphabet in words.
        alphabet: &'static str,
    },
}

/// At most this many characters of a foreign text are repeated in an error.
const QUOTED_CHARS_MAX: usize = 80;

pub(crate) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

macro_rules! serialize_as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

/// BLAKE3-256 of a content's bytes; as text 64 hex digits, the same as `b3sum FILE` prints.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub [u8; 32]);

/// A node's static X25519 public key; as text 52 lower-case base32 digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

/// A worker's Ed25519 public key for QUIC, fresh at each start; as text 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerKey(pub [u8; 32]);

/// One put, read, fetch or verify; drawn at random so that no controller restart can repeat one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// Opens one ring, once: the controller gives it to the program and to the worker.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 16]);

/// Worker number on its node: 0, 1, …; also its offset from the base UDP port and its NIC queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct WorkerIndex(pub u16);

/// Policy revision; grows by one with each change, a rollback included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

serialize_as_text!(ContentId, NodeId, WorkerKey, JobId);

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Display for WorkerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)") // a secret: never in a log
    }
}

impl fmt::Display for WorkerIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for WorkerIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}", self.0)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision {}", self.0)
    }
}

fn length_checked(kind: &'static str, text: &str, expected: usize) -> Result<(), IdError> {
    let found = text.chars().count();
    if found == expected {
        return Ok(());
    }
    Err(IdError::Length { kind, text: quoted(text), found, expected })
}

impl FromStr for ContentId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        const KIND: &str = "content id";
        length_checked(KIND, text, 64)?;
        let wrong = || IdError::Alphabet { kind: KIND, text: quoted(text), alphabet: "hexadecimal (0-9, a-f)" };
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| wrong())?;
        Ok(Self(bytes.try_into().map_err(|_| wrong())?))
    }
}

impl FromStr for NodeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        const KIND: &str = "node id";
        length_checked(KIND, text, 52)?;
        let wrong = || IdError::Alphabet { kind: KIND, text: quoted(text), alphabet: "base32 (a-z, 2-7)" };
        let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| wrong())?;
        Ok(Self(bytes.try_into().map_err(|_| wrong())?))
    }
}

impl JobId {
    /// A fresh one.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn random() -> Result<Self, getrandom::Error> {
        getrandom::u64().map(Self)
    }
}

impl Token {
    /// A fresh one.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Revision {
    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse_back() {
        let content = ContentId([0xa5; 32]);
        assert_eq!(content.to_string().parse(), Ok(content));
        let node = NodeId([0x5a; 32]);
        assert_eq!(node.to_string().len(), 52);
        assert_eq!(node.to_string().parse(), Ok(node));
        assert_eq!(node.to_string().to_uppercase().parse(), Ok(node));
    }

    #[test]
    fn a_wrong_id_says_what_is_wrong() {
        assert!(matches!("abc".parse::<ContentId>(), Err(IdError::Length { found: 3, expected: 64, .. })));
        assert!(matches!("g".repeat(64).parse::<ContentId>(), Err(IdError::Alphabet { .. })));
        assert!(matches!("ü".repeat(64).parse::<ContentId>(), Err(IdError::Alphabet { .. })));
        assert!(matches!("1".repeat(52).parse::<NodeId>(), Err(IdError::Alphabet { .. })));
        let long = "x".repeat(10_000).parse::<NodeId>().unwrap_err().to_string();
        assert!(long.len() < 300, "a foreign text is not repeated whole");
    }

    #[test]
    fn a_node_id_has_one_spelling() {
        // 52 base32 digits carry 260 bits; the four trailing ones must be zero, else two texts would name one node.
        let mut text = NodeId([0; 32]).to_string();
        text.pop();
        text.push('b');
        assert!(text.parse::<NodeId>().is_err());
    }

    #[test]
    fn a_token_never_shows_in_a_log() {
        assert_eq!(format!("{:?}", Token([7; 16])), "Token(…)");
    }
}
