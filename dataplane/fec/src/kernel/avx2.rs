//! AVX2: two table reads by shuffling for each 32 bytes, one for their low halves and one for their high halves.

use std::arch::x86_64::*;

use super::tile::{Job, Lanes, run};
use crate::gf::NIBBLES;

/// # Safety
/// As of [`run`], with AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn multiply(job: Job<'_>, outputs: &mut [&mut [u8]]) {
    // SAFETY: what the caller promised.
    unsafe { run::<Ymm, 4, 2>(job, outputs) }
}

struct Ymm;

// SAFETY: `load` and `store` touch 32 bytes.
unsafe impl Lanes for Ymm {
    type Sum = __m256i;
    /// Low and high halves of the bytes.
    type Source = (__m256i, __m256i);
    /// The products with either.
    type Factor = (__m256i, __m256i);
    const WIDTH: usize = 32;
    const PAIRS: bool = false;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn zero() -> __m256i {
        _mm256_setzero_si256()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(from: *const u8) -> Self::Source {
        // SAFETY: the caller gives 32 bytes; they need not be aligned.
        let bytes = unsafe { _mm256_loadu_si256(from.cast()) };
        let half = _mm256_set1_epi8(15);
        (_mm256_and_si256(bytes, half), _mm256_and_si256(_mm256_srli_epi64::<4>(bytes), half))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn factor(coefficient: u8) -> Self::Factor {
        let [low, high] = NIBBLES.of(coefficient);
        // SAFETY: these are 16 bytes.
        let low = unsafe { _mm_loadu_si128(low.as_ptr().cast()) };
        // SAFETY: as above.
        let high = unsafe { _mm_loadu_si128(high.as_ptr().cast()) };
        (_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn add_product(sum: __m256i, factor: Self::Factor, source: Self::Source) -> __m256i {
        let (low, high) = (_mm256_shuffle_epi8(factor.0, source.0), _mm256_shuffle_epi8(factor.1, source.1));
        _mm256_xor_si256(sum, _mm256_xor_si256(low, high))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store(to: *mut u8, sum: __m256i) {
        // SAFETY: the caller gives 32 bytes; they need not be aligned.
        unsafe { _mm256_storeu_si256(to.cast(), sum) }
    }
}
