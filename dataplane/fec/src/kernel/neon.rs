//! NEON: two table reads for each 16 bytes, one for their low halves and one for their high halves.

use std::arch::aarch64::*;

use super::tile::{Job, Lanes, run};
use crate::gf::NIBBLES;

/// # Safety
/// As of [`run`], with NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply(job: Job<'_>, outputs: &mut [&mut [u8]]) {
    // SAFETY: what the caller promised.
    unsafe { run::<Quad, 8, 2>(job, outputs) }
}

struct Quad;

// SAFETY: `load` and `store` touch 16 bytes.
unsafe impl Lanes for Quad {
    type Sum = uint8x16_t;
    /// Low and high halves of the bytes.
    type Source = (uint8x16_t, uint8x16_t);
    /// The products with either.
    type Factor = (uint8x16_t, uint8x16_t);
    const WIDTH: usize = 16;
    const PAIRS: bool = true;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn zero() -> uint8x16_t {
        vdupq_n_u8(0)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(from: *const u8) -> Self::Source {
        // SAFETY: the caller gives 16 bytes; they need not be aligned.
        let bytes = unsafe { vld1q_u8(from) };
        (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn factor(coefficient: u8) -> Self::Factor {
        let [low, high] = NIBBLES.of(coefficient);
        // SAFETY: these are 16 bytes.
        let low = unsafe { vld1q_u8(low.as_ptr()) };
        // SAFETY: as above.
        let high = unsafe { vld1q_u8(high.as_ptr()) };
        (low, high)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add_product(sum: uint8x16_t, factor: Self::Factor, source: Self::Source) -> uint8x16_t {
        let (low, high) = (vqtbl1q_u8(factor.0, source.0), vqtbl1q_u8(factor.1, source.1));
        veorq_u8(sum, veorq_u8(low, high))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn store(to: *mut u8, sum: uint8x16_t) {
        // SAFETY: the caller gives 16 bytes; they need not be aligned.
        unsafe { vst1q_u8(to, sum) }
    }
}
