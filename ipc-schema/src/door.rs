//! What the ring records between a worker and a local program mean.
//!
//! A program connects to a worker's door (a Unix socket), sends a [`Hello`] with its token, and gets back a status and,
//! when welcome, the two rings. Then every record has a tag and an argument:
//!
//! | direction | tag | argument | payload |
//! |---|---|---|---|
//! | program -> worker | [`PUT_DATA`] | offset of the first byte | next bytes of the content, in order |
//! | program -> worker | [`PUT_END`] | size of the whole | none |
//! | program -> worker | [`READ`] | [`pack_range`] of chunks | none; each chunk comes as [`DATA`] |
//! | program -> worker | [`WANT`] | [`pack_range`] of chunks | none; fetch these first |
//! | program -> worker | [`FOLLOW`] | [`pack_range`] of chunks | none; those that come from now on follow as [`DATA`] unasked |
//! | worker -> program | [`HELD`] | [`pack_range`] of chunks | none; verified here, so they can be read from this worker |
//! | worker -> program | [`DURABLE`] | [`pack_range`] of chunks | none; they survive a power loss |
//! | worker -> program | [`DATA`] | offset of the chunk in the content | the chunk's bytes |
//! | worker -> program | [`PUT_DONE`] | size | the content id, 32 bytes |
//! | worker -> program | [`FAILED`] | [`FailureCode`](crate::failure::FailureCode) number | a sentence, UTF-8 |
//!
//! What a program follows is sent as it comes, while the ring has room; of the rest it is told with [`HELD`], and asks for it
//! when it has room again. A worker that is older than this says so in its [`Welcome`].
//!
//! A program never sees a byte of a chunk that has not been checked against the content id.

use crate::content::{CHUNKS_MAX, ChunkIndex};
use crate::ids::Token;

/// Next bytes of a put.
pub const PUT_DATA: u32 = 1;
/// The put is complete.
pub const PUT_END: u32 = 2;
/// Send these chunks.
pub const READ: u32 = 3;
/// Fetch these chunks before others: a reader waits for them.
pub const WANT: u32 = 4;
/// Send these chunks as they come: who takes everything in any order need not be told first, and ask.
pub const FOLLOW: u32 = 5;
/// These chunks are verified and can be read.
pub const HELD: u32 = 16;
/// These chunks are on disk, synced.
pub const DURABLE: u32 = 17;
/// One chunk.
pub const DATA: u32 = 18;
/// The put is verified, synced and known by its id.
pub const PUT_DONE: u32 = 19;
/// Nothing more will come, and why.
pub const FAILED: u32 = 20;

/// Bytes of a ring that carries chunks: 4 MiB, 15 chunks; larger ones fall out of the cache (measured on 1, 4, 16 MiB).
pub const DATA_RING_BYTES: u32 = 4 << 20;

/// Bytes of a ring that carries only requests or notices.
pub const NOTICE_RING_BYTES: u32 = 64 << 10;

/// Bytes in a [`Hello`].
pub const HELLO_LEN: usize = 24;

/// Bytes in a [`Welcome`]'s head; a refusal's text follows it.
pub const WELCOME_LEN: usize = 8;

const MAGIC: [u8; 6] = *b"pgdoor";
const VERSION: u16 = 1;

/// The first bytes that a program sends to a worker's door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The token that the controller gave.
    pub token: Token,
}

impl Hello {
    /// The wire form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        let fields = MAGIC.iter().chain(&VERSION.to_le_bytes()).chain(&self.token.0).copied().collect::<Vec<u8>>();
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        bytes
    }

    /// Reads the wire form; `None` for anything that no program of this version sends.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HELLO_LEN]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (version, token) = rest.split_first_chunk::<2>()?;
        if u16::from_le_bytes(*version) != VERSION {
            return None;
        }
        Some(Self { token: Token(token.try_into().ok()?) })
    }
}

/// A worker's answer to a [`Hello`]: 0 and the rings, or a failure's code and the length of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// 0 = welcome, the rings follow; else a [`FailureCode`](crate::failure::FailureCode) number.
    pub code: u16,
    /// Bytes of text that follow a refusal.
    pub text_len: u16,
    /// The worker knows [`FOLLOW`].
    pub follows: bool,
}

impl Welcome {
    /// The wire form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; WELCOME_LEN] {
        let [c0, c1] = self.code.to_le_bytes();
        let [t0, t1] = self.text_len.to_le_bytes();
        [c0, c1, t0, t1, self.follows.into(), 0, 0, 0]
    }

    /// Reads the wire form.
    #[must_use]
    pub fn from_bytes(bytes: [u8; WELCOME_LEN]) -> Self {
        let [c0, c1, t0, t1, follows, ..] = bytes;
        Self { code: u16::from_le_bytes([c0, c1]), text_len: u16::from_le_bytes([t0, t1]), follows: follows != 0 }
    }
}

/// A range of chunks as one record argument: first chunk in the upper half, count in the lower.
#[must_use]
pub fn pack_range(chunks: std::ops::Range<ChunkIndex>) -> u64 {
    u64::from(chunks.start) << 32 | u64::from(chunks.end.saturating_sub(chunks.start))
}

/// Reads [`pack_range`]; `None` for a range that no content has.
#[must_use]
pub fn unpack_range(argument: u64) -> Option<std::ops::Range<ChunkIndex>> {
    let first = u32::try_from(argument >> 32).ok()?;
    let count = u32::try_from(argument & u64::from(u32::MAX)).ok()?;
    let end = first.checked_add(count)?;
    (end <= CHUNKS_MAX).then_some(first..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_survive_the_wire() {
        let hello = Hello { token: Token([9; 16]) };
        assert_eq!(Hello::from_bytes(&hello.to_bytes()), Some(hello));
        let mut wrong = hello.to_bytes();
        wrong[6] = 99;
        assert_eq!(Hello::from_bytes(&wrong), None, "another version");
        assert_eq!(Hello::from_bytes(&[0; HELLO_LEN]), None);
        for follows in [false, true] {
            let welcome = Welcome { code: 7, text_len: 300, follows };
            assert_eq!(Welcome::from_bytes(welcome.to_bytes()), welcome);
        }
    }

    #[test]
    fn ranges_survive_a_record_and_impossible_ones_are_refused() {
        assert_eq!(unpack_range(pack_range(3..17)), Some(3..17));
        assert_eq!(unpack_range(pack_range(0..CHUNKS_MAX)), Some(0..CHUNKS_MAX));
        assert_eq!(unpack_range(u64::MAX), None);
        assert_eq!(unpack_range(pack_range(CHUNKS_MAX..CHUNKS_MAX + 1)), None);
    }
}
