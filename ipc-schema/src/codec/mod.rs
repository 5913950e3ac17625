//! Domain values to and from Cap'n Proto; the only files that name generated code.
//!
//! Reading is judging: every length, list and union member of a message from outside is checked against its bound
//! before anything is allocated for it. Writing a value that is beyond its bound is an error too, never a panic.

#[cfg(test)]
mod bounds;
pub(crate) mod common;
pub(crate) mod node;
pub(crate) mod peer;
#[cfg(test)]
mod tests;
pub(crate) mod worker;

use crate::address::AddressError;
use crate::chunk_set::ChunkSetError;
use crate::policy::PolicyError;

/// Why a message is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A list or text is longer than it may be.
    #[error("{what} has {found} entries or bytes; at most {max} are allowed")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The most.
        max: usize,
    },
    /// Bytes of a fixed length have another.
    #[error("{what} has {found} bytes; it must have {expected}")]
    Length {
        /// Which.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The right one.
        expected: usize,
    },
    /// A union member or enumerator that this version does not know.
    #[error("{what} {number} is unknown to this version; upgrade this program first")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// Its number.
        number: u16,
    },
    /// A value that makes no sense.
    #[error("{what} cannot be {value}")]
    Impossible {
        /// Which.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// A chunk set that is none.
    #[error(transparent)]
    ChunkSet(#[from] ChunkSetError),
    /// A policy that is none.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// An address that is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8")]
    Utf8 {
        /// Which.
        what: &'static str,
    },
    /// The message itself is damaged or too large.
    #[error("malformed message: {0}")]
    Message(#[from] capnp::Error),
}

impl CodecError {
    pub(crate) fn unknown(what: &'static str) -> impl Fn(capnp::NotInSchema) -> Self {
        move |capnp::NotInSchema(number)| Self::Unknown { what, number }
    }
}

pub(crate) type Result<T> = std::result::Result<T, CodecError>;

/// A list's length in the wire's type, within its bound.
pub(crate) fn count(what: &'static str, found: usize, max: usize) -> Result<u32> {
    if found > max {
        return Err(CodecError::TooLong { what, found, max });
    }
    u32::try_from(found).map_err(|_| CodecError::TooLong { what, found, max })
}

/// Reads a list of structs, within its bound.
pub(crate) fn list<'a, R, T>(
    what: &'static str,
    list: capnp::struct_list::Reader<'a, R>,
    max: usize,
    read: impl Fn(R::Reader<'a>) -> Result<T>,
) -> Result<Vec<T>>
where
    R: capnp::traits::OwnedStruct,
{
    count(what, list.len() as usize, max)?;
    list.iter().map(read).collect()
}

/// Reads a text, within its bound.
pub(crate) fn text(what: &'static str, reader: capnp::text::Reader<'_>, max: usize) -> Result<String> {
    count(what, reader.len(), max)?;
    reader.to_str().map(str::to_owned).map_err(|_| CodecError::Utf8 { what })
}

/// A text to write, within its bound.
pub(crate) fn checked<'a>(what: &'static str, value: &'a str, max: usize) -> Result<&'a str> {
    count(what, value.len(), max)?;
    Ok(value)
}

/// Reads bytes of a fixed length.
pub(crate) fn bytes<const N: usize>(what: &'static str, data: &[u8]) -> Result<[u8; N]> {
    data.try_into().map_err(|_| CodecError::Length { what, found: data.len(), expected: N })
}

/// Reads bytes of a fixed length, or none.
pub(crate) fn optional_bytes<const N: usize>(what: &'static str, data: &[u8]) -> Result<Option<[u8; N]>> {
    if data.is_empty() { Ok(None) } else { bytes(what, data).map(Some) }
}

/// The bytes of an optional id: none when there is none.
pub(crate) fn or_empty<T>(id: Option<&T>, bytes: impl Fn(&T) -> &[u8]) -> &[u8] {
    id.map(bytes).unwrap_or_default()
}
