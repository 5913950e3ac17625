//! SSSE3: two table reads by shuffling for each 16 bytes, one for their low halves and one for their high halves.

use std::arch::x86_64::*;

use super::tile::{Job, Lanes, run};
use crate::gf::NIBBLES;

/// # Safety
/// As of [`run`], with SSSE3.
#[target_feature(enable = "ssse3")]
pub(super) unsafe fn multiply(job: Job<'_>, outputs: &mut [&mut [u8]]) {
    // SAFETY: what the caller promised.
    unsafe { run::<Xmm, 4, 2>(job, outputs) }
}

struct Xmm;

// SAFETY: `load` and `store` touch 16 bytes.
unsafe impl Lanes for Xmm {
    type Sum = __m128i;
    /// Low and high halves of the bytes.
    type Source = (__m128i, __m128i);
    /// The products with either.
    type Factor = (__m128i, __m128i);
    const WIDTH: usize = 16;
    const PAIRS: bool = false;

    #[inline]
    #[target_feature(enable = "ssse3")]
    unsafe fn zero() -> __m128i {
        _mm_setzero_si128()
    }

    #[inline]
    #[target_feature(enable = "ssse3")]
    unsafe fn load(from: *const u8) -> Self::Source {
        // SAFETY: the caller gives 16 bytes; they need not be aligned.
        let bytes = unsafe { _mm_loadu_si128(from.cast()) };
        let half = _mm_set1_epi8(15);
        (_mm_and_si128(bytes, half), _mm_and_si128(_mm_srli_epi64::<4>(bytes), half))
    }

    #[inline]
    #[target_feature(enable = "ssse3")]
    unsafe fn factor(coefficient: u8) -> Self::Factor {
        let [low, high] = NIBBLES.of(coefficient);
        // SAFETY: these are 16 bytes.
        let low = unsafe { _mm_loadu_si128(low.as_ptr().cast()) };
        // SAFETY: as above.
        let high = unsafe { _mm_loadu_si128(high.as_ptr().cast()) };
        (low, high)
    }

    #[inline]
    #[target_feature(enable = "ssse3")]
    unsafe fn add_product(sum: __m128i, factor: Self::Factor, source: Self::Source) -> __m128i {
        let (low, high) = (_mm_shuffle_epi8(factor.0, source.0), _mm_shuffle_epi8(factor.1, source.1));
        _mm_xor_si128(sum, _mm_xor_si128(low, high))
    }

    #[inline]
    #[target_feature(enable = "ssse3")]
    unsafe fn store(to: *mut u8, sum: __m128i) {
        // SAFETY: the caller gives 16 bytes; they need not be aligned.
        unsafe { _mm_storeu_si128(to.cast(), sum) }
    }
}
