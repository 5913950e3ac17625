//! Any CPU: eight bytes in an integer, multiplied bit by bit of each byte.
//!
//! The bits of one place of all eight bytes, times the factor's product with that place, are eight products without a
//! carry from one to the next. That is twice as fast as reading a table for each byte, and needs no cache.

use super::tile::{Job, Lanes, run};
use crate::gf::PLANES;

/// # Safety
/// As of [`run`].
pub(super) unsafe fn multiply(job: Job<'_>, outputs: &mut [&mut [u8]]) {
    // SAFETY: what the caller promised.
    unsafe { run::<Word, 4, 1>(job, outputs) }
}

/// The lowest bit of each byte.
const ONES: u64 = u64::MAX / 255;

struct Word;

// SAFETY: `load` and `store` touch 8 bytes.
unsafe impl Lanes for Word {
    type Sum = u64;
    /// The bits of each place.
    type Source = [u64; 8];
    /// The product with each place.
    type Factor = [u8; 8];
    const WIDTH: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> u64 {
        0
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> [u64; 8] {
        // SAFETY: the caller gives 8 bytes; they need not be aligned.
        let bytes = unsafe { from.cast::<u64>().read_unaligned() };
        std::array::from_fn(|place| (bytes >> place) & ONES)
    }

    #[inline(always)]
    unsafe fn factor(coefficient: u8) -> [u8; 8] {
        PLANES.of(coefficient).to_le_bytes()
    }

    #[inline(always)]
    unsafe fn add_product(sum: u64, factor: [u8; 8], source: [u64; 8]) -> u64 {
        source.into_iter().zip(factor).fold(sum, |sum, (bits, product)| sum ^ (bits * u64::from(product)))
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, sum: u64) {
        // SAFETY: the caller gives 8 bytes; they need not be aligned.
        unsafe { to.cast::<u64>().write_unaligned(sum) }
    }
}
