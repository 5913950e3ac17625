//! Galois field instructions: one for a whole multiplication, given as a matrix of bits.

use std::arch::x86_64::*;

use super::tile::{Job, Lanes, run};
use crate::gf::AFFINE;

/// # Safety
/// As of [`run`], with GFNI and AVX-512.
#[target_feature(enable = "gfni,avx512f")]
pub(super) unsafe fn multiply_avx512(job: Job<'_>, outputs: &mut [&mut [u8]]) {
    // SAFETY: what the caller promised.
    unsafe { run::<Zmm, 8, 2>(job, outputs) }
}

/// # Safety
/// As of [`run`], with GFNI and AVX2.
#[target_feature(enable = "gfni,avx2")]
pub(super) unsafe fn multiply_avx2(job: Job<'_>, outputs: &mut [&mut [u8]]) {
    // SAFETY: what the caller promised.
    unsafe { run::<Ymm, 6, 2>(job, outputs) }
}

struct Zmm;

// SAFETY: `load` and `store` touch 64 bytes.
unsafe impl Lanes for Zmm {
    type Sum = __m512i;
    type Source = __m512i;
    type Factor = __m512i;
    const WIDTH: usize = 64;
    const PAIRS: bool = true;

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    unsafe fn zero() -> __m512i {
        _mm512_setzero_si512()
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: the caller gives 64 bytes; they need not be aligned.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    unsafe fn factor(coefficient: u8) -> __m512i {
        _mm512_set1_epi64(AFFINE.of(coefficient).cast_signed())
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    unsafe fn add_product(sum: __m512i, factor: __m512i, source: __m512i) -> __m512i {
        _mm512_xor_si512(sum, _mm512_gf2p8affine_epi64_epi8::<0>(source, factor))
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    unsafe fn add_products(sum: __m512i, first: (__m512i, __m512i), second: (__m512i, __m512i)) -> __m512i {
        let first = _mm512_gf2p8affine_epi64_epi8::<0>(first.1, first.0);
        let second = _mm512_gf2p8affine_epi64_epi8::<0>(second.1, second.0);
        // Its truth table says: the xor of all three.
        _mm512_ternarylogic_epi64::<0b1001_0110>(sum, first, second)
    }

    #[inline]
    #[target_feature(enable = "gfni,avx512f")]
    unsafe fn store(to: *mut u8, sum: __m512i) {
        // SAFETY: the caller gives 64 bytes; they need not be aligned.
        unsafe { _mm512_storeu_si512(to.cast(), sum) }
    }
}

struct Ymm;

// SAFETY: `load` and `store` touch 32 bytes.
unsafe impl Lanes for Ymm {
    type Sum = __m256i;
    type Source = __m256i;
    type Factor = __m256i;
    const WIDTH: usize = 32;
    const PAIRS: bool = true;

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    unsafe fn zero() -> __m256i {
        _mm256_setzero_si256()
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    unsafe fn load(from: *const u8) -> __m256i {
        // SAFETY: the caller gives 32 bytes; they need not be aligned.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    unsafe fn factor(coefficient: u8) -> __m256i {
        _mm256_set1_epi64x(AFFINE.of(coefficient).cast_signed())
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    unsafe fn add_product(sum: __m256i, factor: __m256i, source: __m256i) -> __m256i {
        _mm256_xor_si256(sum, _mm256_gf2p8affine_epi64_epi8::<0>(source, factor))
    }

    #[inline]
    #[target_feature(enable = "gfni,avx2")]
    unsafe fn store(to: *mut u8, sum: __m256i) {
        // SAFETY: the caller gives 32 bytes; they need not be aligned.
        unsafe { _mm256_storeu_si256(to.cast(), sum) }
    }
}
