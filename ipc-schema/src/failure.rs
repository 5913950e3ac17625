//! The one way in which any request says no: a code for programs, a sentence for people.

use serde::Serialize;

/// What kind of no. The numbers are the wire form and the ring form; they never change meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u16)]
pub enum FailureCode {
    /// The request itself makes no sense: malformed, out of range, unknown key.
    Invalid = 1,
    /// No such content, peer, job, worker or revision.
    NotFound = 2,
    /// Not allowed: unknown node, wrong user, expired ticket, spent token.
    Denied = 3,
    /// The quota or the disk is full.
    Full = 4,
    /// Cannot be had now: no holder reachable, no worker running, draining. May work later.
    Unavailable = 5,
    /// In use or pinned, so it cannot be changed.
    Busy = 6,
    /// A named limit is reached.
    Limit = 7,
    /// The disk failed; the store has stopped writing.
    Storage = 8,
    /// Bytes that do not match their hash.
    Corrupt = 9,
    /// Cancelled by the one who asked.
    Cancelled = 10,
    /// The other side speaks another version or breaks the protocol.
    Protocol = 11,
    /// A fault of this program.
    Internal = 12,
}

impl FailureCode {
    /// Every code.
    pub const ALL: [Self; 12] = [
        Self::Invalid,
        Self::NotFound,
        Self::Denied,
        Self::Full,
        Self::Unavailable,
        Self::Busy,
        Self::Limit,
        Self::Storage,
        Self::Corrupt,
        Self::Cancelled,
        Self::Protocol,
        Self::Internal,
    ];

    /// The wire form.
    #[must_use]
    pub fn number(self) -> u16 {
        self as u16
    }

    /// Reads the wire form; a number of a later version is [`FailureCode::Internal`].
    #[must_use]
    pub fn from_number(number: u16) -> Self {
        Self::ALL.into_iter().find(|code| code.number() == number).unwrap_or(Self::Internal)
    }
}

/// A request that was not done, and why. The text names the thing, the value and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[error("{text}")]
pub struct Failure {
    /// For programs.
    pub code: FailureCode,
    /// For people; at most [`FAILURE_TEXT_MAX`] bytes.
    pub text: String,
}

/// Bytes in a failure's text at most; longer ones are cut at a character.
pub const FAILURE_TEXT_MAX: usize = 1024;

impl Failure {
    /// A failure; the text is cut to [`FAILURE_TEXT_MAX`].
    #[must_use]
    pub fn new(code: FailureCode, text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.len() > FAILURE_TEXT_MAX {
            text.truncate(text.floor_char_boundary(FAILURE_TEXT_MAX));
        }
        Self { code, text }
    }
}

macro_rules! constructors {
    ($($name:ident => $code:ident),*) => {
        impl Failure {$(
            #[doc = concat!("A failure of code [`FailureCode::", stringify!($code), "`].")]
            #[must_use]
            pub fn $name(text: impl Into<String>) -> Self {
                Self::new(FailureCode::$code, text)
            }
        )*}
    };
}

constructors!(
    invalid => Invalid,
    not_found => NotFound,
    denied => Denied,
    full => Full,
    unavailable => Unavailable,
    busy => Busy,
    limit => Limit,
    storage => Storage,
    corrupt => Corrupt,
    cancelled => Cancelled,
    protocol => Protocol,
    internal => Internal
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire_and_unknown_ones_are_internal() {
        for code in FailureCode::ALL {
            assert_eq!(FailureCode::from_number(code.number()), code);
        }
        assert_eq!(FailureCode::from_number(60_000), FailureCode::Internal);
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let failure = Failure::invalid("ü".repeat(FAILURE_TEXT_MAX));
        assert!(failure.text.len() <= FAILURE_TEXT_MAX && failure.text.starts_with("üü"));
    }
}
