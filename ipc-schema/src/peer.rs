//! The conversation between two controllers, inside a Noise session.
//!
//! Both sides may ask; every [`PeerRequest`] is answered by one [`PeerResponse`]. The session has proven who the other
//! side is before the first request is read.

use std::net::SocketAddr;

use crate::address::{Endpoint, PeerAddress};
use crate::chunk_set::ChunkSet;
use crate::content::ChainingValue;
use crate::failure::Failure;
use crate::ids::ContentId;

/// Chaining values that come with [`FoundHere`] at most, 8 KiB: contents up to 64 MiB need not ask for their manifest.
/// More would not fit the first flight of a TCP connection (RFC 6928), nor what losses leave of it.
pub const MANIFEST_SHORT_MAX: usize = 256;
/// Other holders told in one answer at most.
pub const HOLDERS_MAX: usize = 16;

/// What a node tells a peer of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Version of its program.
    pub version: String,
    /// Where its controller listens, as seen by itself; the port matters more than the address.
    pub listen: Option<SocketAddr>,
    /// Its workers and their keys. An unspecified address (0.0.0.0) means: the address this session comes from.
    pub workers: Vec<Endpoint>,
}

/// What one controller asks another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerRequest {
    /// The asker's workers, at the start of a session and whenever they change. Answered by `Introduction`.
    Introduce(Introduction),
    /// Are you there? Answered by `Pong`.
    Ping(u64),
    /// What do you know of this content? Answered by `Found`.
    Find(ContentId),
    /// The asker now holds this content whole. Answered by `Noted`.
    Announce {
        /// The content.
        content: ContentId,
        /// Bytes in it.
        size: u64,
        /// The name given at put; empty when there was none.
        name: String,
    },
}

/// An answer to a [`PeerRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerResponse {
    /// To `Introduce`.
    Introduction(Introduction),
    /// To `Ping`: the same number.
    Pong(u64),
    /// To `Find`.
    Found(Found),
    /// To `Announce`.
    Noted,
    /// No, and why.
    Refused(Failure),
}

/// What a node knows of a content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// What it holds itself.
    pub here: Option<FoundHere>,
    /// Others that it believes hold it.
    pub others: Vec<PeerAddress>,
}

/// What a node holds of a content itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundHere {
    /// Bytes in the whole.
    pub size: u64,
    /// Chunks that are here.
    pub held: ChunkSet,
    /// The name given at put; empty when there was none.
    pub name: String,
    /// The whole manifest when it has at most [`MANIFEST_SHORT_MAX`] values; else empty.
    pub values: Vec<ChainingValue>,
}
