//! Arithmetic in GF(2^8), all of it tables made while compiling.
//!
//! The field is that of `reed-solomon-erasure`: bytes are polynomials over GF(2) modulo 0x11D, addition is xor, and 2
//! generates all 255 elements but zero. (The CPU's own `gf2p8mulb` has the polynomial 0x11B of AES and is of no use
//! here; its `gf2p8affineqb` applies any 8 x 8 matrix of bits, thus also a multiplication in this field.)

#![allow(clippy::indexing_slicing, reason = "an index out of bounds would not compile: tables are constants")]

/// x^8 + x^4 + x^3 + x^2 + 1.
const POLYNOMIAL: u16 = 0x11d;

/// Elements other than zero: the period of the powers of 2.
pub(crate) const ORDER: usize = 255;

/// `EXP[i]` is 2^i, for every sum of three logarithms or their negations ([`ORDER`] - log).
pub(crate) static EXP: [u8; 3 * ORDER + 1] = exp_table();

/// `LOG[x]` is the i < 255 with 2^i = x. `LOG[0]` is 0, as that of 1: a product of differences "of all but this one"
/// becomes one of all.
pub(crate) static LOG: [u8; 256] = log_table();

/// Something for each factor, so that no index can be out of bounds.
pub(crate) struct ByFactor<T>([T; 256]);

impl<T: Copy> ByFactor<T> {
    #[inline(always)]
    pub(crate) fn of(&self, factor: u8) -> T {
        self.0[usize::from(factor)]
    }
}

/// For each factor its products with 0..16, then its products with 16 times 0..16: what byte shuffles look up.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", test))]
pub(crate) static NIBBLES: ByFactor<[[u8; 16]; 2]> = ByFactor(nibble_table());

/// For each factor its products with 1, 2, 4 .. 128, the first in the lowest byte.
pub(crate) static PLANES: ByFactor<u64> = ByFactor(plane_table());

/// For each factor its multiplication as a matrix of bits, as `gf2p8affineqb` wants it: the row that makes bit `i` of
/// the product is byte 7 - `i`.
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) static AFFINE: ByFactor<u64> = ByFactor(affine_table());

/// The product of two elements, bit by bit; for making tables and for checking kernels.
pub(crate) const fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a as u16, b, 0);
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        a <<= 1;
        if a > 0xff {
            a ^= POLYNOMIAL;
        }
        b >>= 1;
    }
    product as u8
}

const fn exp_table() -> [u8; 3 * ORDER + 1] {
    let mut table = [1; 3 * ORDER + 1];
    let mut i = 1;
    while i < table.len() {
        table[i] = multiply(table[i - 1], 2);
        i += 1;
    }
    table
}

const fn log_table() -> [u8; 256] {
    let exp = exp_table();
    let mut table = [0; 256];
    let mut i = 0;
    while i < ORDER {
        table[exp[i] as usize] = i as u8;
        i += 1;
    }
    table
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", test))]
const fn nibble_table() -> [[[u8; 16]; 2]; 256] {
    let mut table = [[[0; 16]; 2]; 256];
    let mut factor = 0;
    while factor < 256 {
        let mut nibble = 0;
        while nibble < 16 {
            table[factor][0][nibble] = multiply(nibble as u8, factor as u8);
            table[factor][1][nibble] = multiply((nibble << 4) as u8, factor as u8);
            nibble += 1;
        }
        factor += 1;
    }
    table
}

const fn plane_table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut factor = 0;
    while factor < 256 {
        let mut bit = 0;
        while bit < 8 {
            table[factor] |= (multiply(factor as u8, 1 << bit) as u64) << (8 * bit);
            bit += 1;
        }
        factor += 1;
    }
    table
}

#[cfg(any(target_arch = "x86_64", test))]
const fn affine_table() -> [u64; 256] {
    let planes = plane_table();
    let mut table = [0; 256];
    let mut factor = 0;
    while factor < 256 {
        let mut at = 0;
        while at < 64 {
            // Byte 7 - i, bit j of the matrix is bit i of the factor's product with 2^j.
            let (row, column) = (at / 8, at % 8);
            table[factor] |= (planes[factor] >> (8 * column + row) & 1) << (8 * (7 - row) + column);
            at += 1;
        }
        factor += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_agree_with_the_multiplication() {
        for a in 0..=255_u8 {
            for b in 0..=255_u8 {
                let product = multiply(a, b);
                let log = usize::from(LOG[usize::from(a)]) + usize::from(LOG[usize::from(b)]);
                assert_eq!(product, if a == 0 || b == 0 { 0 } else { EXP[log] });
                let [low, high] = NIBBLES.of(a);
                assert_eq!(product, low[usize::from(b & 15)] ^ high[usize::from(b >> 4)]);
                let rows = AFFINE.of(a).to_be_bytes();
                let affine = (0..8).map(|i| ((rows[i] & b).count_ones() as u8 & 1) << i).sum();
                assert_eq!(product, affine);
            }
            assert_eq!(PLANES.of(a).to_le_bytes(), std::array::from_fn(|bit| multiply(a, 1 << bit)));
        }
    }

    #[test]
    fn the_field_is_that_of_the_crate() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(multiply(a, b), reed_solomon_erasure::galois_8::mul(a, b));
            }
        }
    }
}
