//! Shared-memory rings between a worker and a local program: single producer, single consumer, two processes.
//!
//! The other side is a stranger. Each word of it is read once, judged, and only the copy is used; an impossible value
//! ends that ring and nothing else. No Rust reference ever points at payload that the other process can write.
//!
//! # Who may change what
//!
//! | word | written by | meaning | forbidden, and why |
//! |---|---|---|---|
//! | magic, version, capacity | creator, before the hand-over | what this memory is | any later change: both sides keep their own copy |
//! | `tail` | producer | bytes published since the start | going back: the consumer may have read up to it |
//! | `head` | consumer | bytes released since the start | going back, passing `tail`: the producer may have written there |
//! | `closed` (one each) | its side | nothing more will come, or be taken | opening again: the other side may have gone |
//! | `asleep` (one each) | its side | ring my bell when you move | none: at worst a bell rings in vain |
//! | records between `head` and `tail` | producer, before `tail` covers them | payload | a change after that is the producer's loss: copies are judged, not the ring |
//!
//! # Life of a record
//!
//! claim (room is there) -> fill (copied in, or read from a file straight into the ring) -> publish (`tail` moves) ->
//! peek -> copy out (or write to a file straight from the ring) -> release (`head` moves).
//!
//! # Going to sleep
//!
//! Announce (`asleep = 1`), full fence, look again, and only then wait on the bell. The other side moves its position,
//! full fence, looks at `asleep`. Whichever fence comes first, one of the two sees the other.
//!
//! ```
//! use pangea_ring::Channel;
//!
//! let (socket, other) = std::os::unix::net::UnixStream::pair()?;
//! let (mut worker, handover) = Channel::create(1 << 16, 1 << 16)?;
//! handover.send(&socket)?;
//! let mut program = Channel::receive(&other)?;
//!
//! assert!(worker.producer.try_push(7, 42, b"hello")?);
//! let record = program.consumer.try_peek()?.expect("one record");
//! let mut bytes = [0; 5];
//! record.copy_to(&mut bytes);
//! assert_eq!((record.tag(), record.arg(), &bytes), (7, 42, b"hello"));
//! record.release();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | [`layout`] | header, offsets, record form |
//! | [`segment`] | the sealed memory |
//! | [`producer`], [`consumer`] | the two ends |
//! | [`doorbell`] | wake the other side; wait for it, or for its death |
//! | [`channel`] | a ring each way, and its hand-over |
//! | [`counters`] | the named segment with a worker's live counters |

mod atomics;
#[cfg(not(loom))]
pub mod channel;
pub mod consumer;
#[cfg(not(loom))]
pub mod counters;
#[cfg(not(loom))]
pub mod doorbell;
mod error;
pub mod layout;
pub mod producer;
#[cfg(loom)]
mod segment;
#[cfg(not(loom))]
pub mod segment;

#[cfg(not(loom))]
pub use channel::{Channel, Handover};
pub use consumer::{Consumer, Record};
#[cfg(not(loom))]
pub use counters::{CountersSegment, CountersView, reap_stale};
pub use error::RingError;
pub use layout::{CAPACITY_MAX, CAPACITY_MIN, RECORD_MAX};
pub use producer::{Claim, Producer};

/// Both ends of a ring of `capacity` bytes on the heap, for loom.
#[cfg(loom)]
pub fn loom_ring(capacity: u32) -> (Producer, Consumer) {
    let segment = segment::Segment::create(capacity);
    (Producer::new(segment.clone()), Consumer::new(segment))
}
