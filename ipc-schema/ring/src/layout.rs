//! Where what lies in a ring's memory.
//!
//! One page of header, then `capacity` bytes of records. A record is a header of [`RECORD_HEADER`] bytes and its
//! payload, rounded up to [`RECORD_ALIGN`]; it never wraps: where one would, a padding record fills the rest.

use crate::atomics::{AtomicU32, AtomicU64};
use crate::error::RingError;

/// Bytes of payload in a record at most: one chunk.
pub const RECORD_MAX: usize = 256 * 1024;

/// Smallest capacity: 4 KiB, one page.
pub const CAPACITY_MIN: u32 = 1 << 12;

/// Largest capacity: 64 MiB; larger rings only fall out of the cache.
pub const CAPACITY_MAX: u32 = 1 << 26;

/// Bytes of a record before its payload: length (u32), tag (u32), argument (u64), in this machine's byte order.
pub const RECORD_HEADER: usize = 16;

/// Every record starts at a multiple of this, a cache line, so that no two records share one.
pub const RECORD_ALIGN: usize = 64;

/// Tag of a record that only fills the memory up to its end.
pub(crate) const PADDING_TAG: u32 = u32::MAX;

/// Bytes before the first record: one page.
#[cfg(not(loom))]
pub(crate) const HEADER_LEN: usize = 4096;

/// `PANGEARG`.
pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"PANGEARG");

/// Changes with every change of this file.
pub(crate) const VERSION: u32 = 1;

/// What one side writes. Alone on its 128 bytes: two cache lines, since CPUs fetch them in pairs.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Line {
    /// The producer's `tail` or the consumer's `head`: bytes since the start, only ever growing.
    pub(crate) position: AtomicU64,
    /// 1 = this side has ended.
    pub(crate) closed: AtomicU32,
    /// 1 = this side waits on its bell.
    pub(crate) asleep: AtomicU32,
}

/// The head of a ring's memory.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Header {
    pub(crate) magic: AtomicU64,
    pub(crate) version: AtomicU32,
    pub(crate) capacity: AtomicU32,
    pub(crate) producer: Line,
    pub(crate) consumer: Line,
}

#[cfg(not(loom))]
const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(offset_of!(Header, magic) == 0);
    assert!(offset_of!(Header, version) == 8);
    assert!(offset_of!(Header, capacity) == 12);
    assert!(offset_of!(Header, producer) == 128);
    assert!(offset_of!(Header, consumer) == 256);
    assert!(offset_of!(Line, position) == 0 && offset_of!(Line, closed) == 8 && offset_of!(Line, asleep) == 12);
    assert!(size_of::<Header>() == 384 && size_of::<Header>() <= HEADER_LEN);
    assert!(RECORD_ALIGN.is_power_of_two() && RECORD_ALIGN >= RECORD_HEADER);
    assert!(CAPACITY_MIN.is_power_of_two() && CAPACITY_MAX.is_power_of_two());
    assert!(CAPACITY_MIN as usize >= 4 * RECORD_ALIGN && HEADER_LEN.is_multiple_of(RECORD_ALIGN));
};

/// Bytes that a record with `len` bytes of payload takes in the ring.
pub(crate) const fn stride(len: usize) -> usize {
    (RECORD_HEADER + len).next_multiple_of(RECORD_ALIGN)
}

/// Bytes of payload at most in a ring of `capacity` bytes: two of the longest records fit, so that one can be filled
/// while the other is read.
#[must_use]
pub const fn record_max(capacity: u32) -> usize {
    let half = capacity as usize / 2 - RECORD_HEADER;
    if half < RECORD_MAX { half } else { RECORD_MAX }
}

pub(crate) fn checked_capacity(bytes: u64) -> Result<u32, RingError> {
    let wrong = RingError::Capacity { bytes, min: CAPACITY_MIN, max: CAPACITY_MAX };
    let capacity = u32::try_from(bytes).map_err(|_| wrong)?;
    if cfg!(not(loom)) && (!(CAPACITY_MIN..=CAPACITY_MAX).contains(&capacity) || !capacity.is_power_of_two()) {
        return Err(wrong);
    }
    Ok(capacity)
}
