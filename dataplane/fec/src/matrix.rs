//! The code matrix, by interpolation.
//!
//! A block's k data symbols are, byte by byte, the values of a polynomial of degree below k at the points 0 .. k - 1;
//! parity symbol j is its value at k + j. That is the systematic Vandermonde matrix of `reed-solomon-erasure`: row
//! k + j of a Vandermonde matrix times the inverse of its first k rows. And it has no need of inversions, neither for
//! parity nor for what is lost: the value at `x` out of the values at k known points `p` is (Lagrange)
//!
//! ```text
//!     f(x) = sum over p of  f(p) * A(x) / ((x - p) * A(p))      A(y) = product over known q other than y of (y - q)
//! ```
//!
//! which never divides by zero as long as no point is known twice: any k symbols give back all. With subtraction being
//! xor and products being sums of logarithms, each coefficient costs two table reads.

use crate::gf::{EXP, LOG, ORDER};
use crate::shape::{K_MAX, SYMBOLS_MAX};

const _: () = assert!(K_MAX < SYMBOLS_MAX && SYMBOLS_MAX <= ORDER);

/// Coefficients of a product matrix * symbols, column by column: all that one source symbol is multiplied with lie
/// together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Columns<'a> {
    /// That of row `r` and source `s` is at `s * stride + r`.
    pub(crate) bytes: &'a [u8],
    /// From one column to the next.
    pub(crate) stride: usize,
}

impl Columns<'_> {
    /// The same without its first `rows` rows.
    pub(crate) fn below(self, rows: usize) -> Self {
        Self { bytes: self.bytes.get(rows..).unwrap_or_default(), ..self }
    }
}

/// The code for blocks of k data symbols.
#[derive(Debug)]
pub(crate) struct Code {
    k: usize,
    /// log A(y) of every point, data and parity, with the data symbols known.
    logs: [u8; SYMBOLS_MAX],
    /// The coefficients of every parity symbol.
    parity: Vec<u8>,
}

impl Code {
    /// The code for `k` data symbols, from 1 to [`K_MAX`]. Takes some 50 us for the longest.
    pub(crate) fn new(k: usize) -> Self {
        debug_assert!((1..=K_MAX).contains(&k));
        let mut logs = [0; SYMBOLS_MAX];
        for (y, log) in (0..).zip(&mut logs) {
            let sum: usize = (0..k).map(|q| log_of(y ^ q)).sum();
            *log = (sum % ORDER) as u8;
        }
        let mut code = Self { k, logs, parity: Vec::new() };
        let mut parity = Vec::new();
        fill(&code.logs, 0..k, k..SYMBOLS_MAX, &mut parity);
        code.parity = parity;
        code
    }

    /// What the data symbols are multiplied with for parity symbols `first` and on.
    pub(crate) fn parity(&self, first: usize) -> Columns<'_> {
        Columns { bytes: &self.parity, stride: SYMBOLS_MAX - self.k }.below(first)
    }

    /// What symbols are multiplied with for the data symbols `lost`: first the other data symbols in their order, then
    /// as many parity symbols, each given by its number in the block, k + j. The result goes to `space`.
    pub(crate) fn rebuild<'a>(&self, lost: &[usize], parity: &[usize], space: &'a mut Vec<u8>) -> Columns<'a> {
        debug_assert_eq!(lost.len(), parity.len());
        // Known now are these parity symbols and not the lost ones: their differences come in, or go.
        let mut logs = self.logs;
        for y in (0..self.k).chain(parity.iter().copied()) {
            let come: usize = parity.iter().map(|q| log_of(y ^ q)).sum();
            let gone: usize = lost.iter().map(|q| ORDER - log_of(y ^ q)).sum();
            if let Some(log) = logs.get_mut(y) {
                *log = ((usize::from(*log) + come + gone) % ORDER) as u8;
            }
        }
        let mut lost_next = lost.iter().copied().peekable();
        let survivors = (0..self.k).filter(|symbol| lost_next.next_if_eq(symbol).is_none());
        fill(&logs, survivors.chain(parity.iter().copied()), lost.iter().copied(), space);
        Columns { bytes: space, stride: lost.len() }
    }
}

/// The coefficients of the values at `known` points for those at `wanted` ones.
fn fill(
    logs: &[u8; SYMBOLS_MAX],
    known: impl Iterator<Item = usize>,
    wanted: impl Iterator<Item = usize> + Clone,
    space: &mut Vec<u8>,
) {
    space.clear();
    let log = |point: usize| usize::from(logs.get(point).copied().unwrap_or_default());
    for p in known {
        let divisor = ORDER - log(p);
        let coefficient = |x: usize| {
            let exponent = log(x) + ORDER - log_of(x ^ p) + divisor;
            EXP.get(exponent).copied().unwrap_or_default()
        };
        space.extend(wanted.clone().map(coefficient));
    }
}

/// The logarithm of a difference of two points, 0 for that of a point with itself.
fn log_of(difference: usize) -> usize {
    debug_assert!(difference <= ORDER);
    LOG.get(difference).copied().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reed_solomon_erasure::galois_8::ReedSolomon;

    use super::*;
    use crate::gf::multiply;

    #[test]
    fn every_parity_row_is_that_of_the_crate() {
        for k in 1..=K_MAX {
            let reference = ReedSolomon::new(k, SYMBOLS_MAX - k).unwrap();
            // Byte `s` of data symbol `s` is 1 and all others 0: parity symbols are then the rows of the matrix.
            let unit: Vec<Vec<u8>> = (0..k).map(|s| (0..k).map(|at| u8::from(at == s)).collect()).collect();
            let mut rows = vec![vec![0; k]; SYMBOLS_MAX - k];
            reference.encode_sep(&unit, &mut rows).unwrap();
            let code = Code::new(k);
            let Columns { bytes, stride } = code.parity(0);
            assert_eq!(bytes.len(), k * stride);
            for (j, row) in rows.iter().enumerate() {
                for (s, coefficient) in row.iter().enumerate() {
                    assert_eq!(bytes[s * stride + j], *coefficient, "k {k} parity {j} symbol {s}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_rebuilt_of_unit_vectors_is_the_unit_matrix(k in 1_usize..=K_MAX, seed in any::<u64>()) {
            let pick = |salt: u64, n: usize| {
                let mut all: Vec<usize> = (0..n).collect();
                all.sort_by_key(|at| (*at as u64 ^ seed ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
                all
            };
            let count = 1 + seed as usize % k.min(SYMBOLS_MAX - k);
            let mut lost = pick(1, k)[..count].to_vec();
            lost.sort_unstable();
            let parity: Vec<usize> = pick(2, SYMBOLS_MAX - k)[..count].iter().map(|j| k + j).collect();
            let (code, mut space) = (Code::new(k), Vec::new());
            let rebuild = code.rebuild(&lost, &parity, &mut space);
            let encode = code.parity(0);
            let known: Vec<usize> = (0..k).filter(|s| !lost.contains(s)).chain(parity).collect();
            prop_assert_eq!(rebuild.bytes.len(), k * count);
            for unit in 0..k {
                let symbol = |s: usize| match s.checked_sub(k) {
                    None => u8::from(s == unit),
                    Some(j) => encode.bytes[unit * encode.stride + j],
                };
                for (row, lost) in lost.iter().enumerate() {
                    let value = known.iter().enumerate().fold(0, |sum, (at, s)| {
                        sum ^ multiply(rebuild.bytes[at * count + row], symbol(*s))
                    });
                    prop_assert_eq!(value, u8::from(*lost == unit));
                }
            }
        }
    }
}
