//! Any CPU: plain integers, bit by bit of each byte, without a table read for each.
//!
//! Each place of a byte becomes a mask, of ones where the bit is set; a product is the sum of the factor's products with
//! the places, each under its mask. Masks are made once for all rows, and the compiler finds the baseline's vectors for
//! them.

use super::tile::{Job, Lanes, run};
use crate::gf::PLANES;

/// # Safety
/// As of [`run`].
pub(super) unsafe fn multiply(job: Job<'_>, outputs: &mut [&mut [u8]]) {
    // SAFETY: what the caller promised.
    unsafe { run::<Words, 8, 1>(job, outputs) }
}

/// The lowest bit of each byte.
const ONES: u64 = u64::MAX / 255;

/// Words in a vector.
const WORDS: usize = 8;

struct Words;

// SAFETY: `load` and `store` touch 8 * WORDS bytes.
unsafe impl Lanes for Words {
    type Sum = [u64; WORDS];
    /// A mask for each place.
    type Source = [[u64; WORDS]; 8];
    /// The product with each place, in all bytes of a word.
    type Factor = [u64; 8];
    const WIDTH: usize = 8 * WORDS;
    const PAIRS: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self::Sum {
        [0; WORDS]
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Source {
        // SAFETY: the caller gives so many bytes; they need not be aligned.
        let words = unsafe { from.cast::<[u64; WORDS]>().read_unaligned() };
        std::array::from_fn(|place| {
            words.map(|word| {
                let bits = (word >> place) & ONES;
                (bits << 8).wrapping_sub(bits)
            })
        })
    }

    #[inline(always)]
    unsafe fn factor(coefficient: u8) -> [u64; 8] {
        PLANES.of(coefficient).to_le_bytes().map(|product| u64::from(product) * ONES)
    }

    #[inline(always)]
    unsafe fn add_product(mut sum: Self::Sum, factor: [u64; 8], source: Self::Source) -> Self::Sum {
        for (masks, product) in source.into_iter().zip(factor) {
            for (sum, mask) in sum.iter_mut().zip(masks) {
                *sum ^= mask & product;
            }
        }
        sum
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, sum: Self::Sum) {
        // SAFETY: the caller gives so many bytes; they need not be aligned.
        unsafe { to.cast::<[u64; WORDS]>().write_unaligned(sum) }
    }
}
