//! The codec: parity out of data, missing data out of parity, both straight from and into the chunk.
//!
//! Either is one pass of a matrix over symbols (`matrix` makes it, a [`Kernel`] multiplies): for parity, over
//! the data symbols; for missing data, over the data symbols that are here and as many parity symbols as are missing.

use std::ops::Range;

use crate::kernel::Kernel;
use crate::list::List;
use crate::matrix::Code;
use crate::reference::Reference;
use crate::shape::{ChunkShape, K_MAX, SYMBOLS_MAX};

/// Why symbols are not made or rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum FecError {
    /// The chunk has no such block, or the block no such symbol.
    #[error("block {block} has no symbol {symbol}")]
    NoSuchSymbol {
        /// The block.
        block: usize,
        /// The symbol: parity symbol `j` of a block with `k` data symbols is `k + j`.
        symbol: usize,
    },
    /// A buffer has the wrong length.
    #[error("a buffer of {found} bytes was given where {expected} are needed")]
    Length {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        expected: usize,
    },
    /// Fewer symbols than data symbols are here.
    #[error("block {block} has {have} symbols of {need} needed")]
    TooFew {
        /// The block.
        block: usize,
        /// Symbols here.
        have: usize,
        /// Symbols needed.
        need: usize,
    },
    /// The same parity symbol is there twice.
    #[error("symbol {symbol} of block {block} was given twice")]
    Twice {
        /// The block.
        block: usize,
        /// The symbol.
        symbol: usize,
    },
    /// The reference code says no where it must not: a fault of this program.
    #[error("the code failed: {0}")]
    Code(reed_solomon_erasure::Error),
}

/// Makes parity and rebuilds data. Keeps the codes and the memory that it used, so that it allocates nothing once every
/// block size was seen: at most 2.5 MB of coefficients and two symbols.
#[derive(Debug)]
pub struct Codec {
    path: Path,
    /// The last data symbol of a chunk, padded with zeros.
    padded: Vec<u8>,
}

#[derive(Debug)]
enum Path {
    Own {
        kernel: Kernel,
        /// By k - 1; each is made when first needed.
        codes: Vec<Option<Box<Code>>>,
        /// Coefficients of the pass that runs.
        space: Vec<u8>,
    },
    Reference(Reference),
}

impl Default for Codec {
    fn default() -> Self {
        Self::new()
    }
}

impl Codec {
    /// A codec with the fastest kernel that this CPU has.
    #[must_use]
    pub fn new() -> Self {
        Self::with_kernel(Kernel::best())
    }

    /// A codec with a certain kernel.
    #[must_use]
    pub fn with_kernel(kernel: Kernel) -> Self {
        Self { path: Path::Own { kernel, codes: Vec::new(), space: Vec::new() }, padded: Vec::new() }
    }

    /// The same by the crate `reed-solomon-erasure`: slow, and independent of everything in this one. For tests and
    /// benchmarks, as a peer whose symbols must be the same.
    #[must_use]
    pub fn reference() -> Self {
        Self { path: Path::Reference(Reference::default()), padded: Vec::new() }
    }

    /// Writes the parity symbols `parity` of a block, one after another, to `out` (`parity.len() * symbol_len` bytes).
    ///
    /// # Errors
    /// When the block or its parity symbols are not there, or a buffer has the wrong length.
    pub fn encode(
        &mut self,
        shape: ChunkShape,
        chunk: &[u8],
        block: usize,
        parity: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), FecError> {
        let symbol_len = shape.symbol_len();
        expect_len(chunk.len(), shape.chunk_len())?;
        let k = shape.block(block).ok_or(FecError::NoSuchSymbol { block, symbol: 0 })?;
        if parity.end > k.parity_max() {
            return Err(FecError::NoSuchSymbol { block, symbol: k.k.saturating_add(parity.end) });
        }
        expect_len(out.len(), parity.len() * symbol_len)?;
        if parity.is_empty() {
            return Ok(());
        }
        let mut sources = List::<&[u8], K_MAX>::new();
        let mut padded = Some(&mut self.padded);
        for bytes in chunk.get(block_bytes(shape, block, k.k)).unwrap_or_default().chunks(symbol_len) {
            let padding = padded.take_if(|_| bytes.len() < symbol_len);
            sources.push(padding.map_or(bytes, |padding| pad(padding, bytes, symbol_len)));
        }
        let mut outputs = List::<&mut [u8], SYMBOLS_MAX>::new();
        out.chunks_exact_mut(symbol_len).for_each(|output| outputs.push(output));
        match &mut self.path {
            Path::Own { kernel, codes, .. } => {
                kernel.multiply(code(codes, k.k).parity(parity.start), sources.all(), outputs.all_mut());
                Ok(())
            }
            Path::Reference(reference) => reference.encode(sources.all(), parity.start, outputs.all_mut()),
        }
    }

    /// Rebuilds the missing data symbols of a block in place. `have(symbol)` tells which data symbols are in `chunk`;
    /// `parity` holds parity symbols by number, in any order and any number. Says how many were rebuilt; does nothing,
    /// and looks at no parity, when none is missing.
    ///
    /// # Errors
    /// [`FecError::TooFew`], or when a buffer has the wrong length or a parity symbol cannot be or is given twice. The
    /// chunk is then as it was.
    pub fn rebuild(
        &mut self,
        shape: ChunkShape,
        chunk: &mut [u8],
        block: usize,
        have: impl Fn(usize) -> bool,
        parity: &[(usize, &[u8])],
    ) -> Result<usize, FecError> {
        let symbol_len = shape.symbol_len();
        expect_len(chunk.len(), shape.chunk_len())?;
        let k = shape.block(block).ok_or(FecError::NoSuchSymbol { block, symbol: 0 })?.k;
        let mut lost = List::<usize, K_MAX>::new();
        (0..k).filter(|symbol| !have(*symbol)).for_each(|symbol| lost.push(symbol));
        let missing = lost.all().len();
        if missing == 0 {
            return Ok(0);
        }
        check_parity(shape, block, k, parity)?;
        let too_few = FecError::TooFew { block, have: k - missing + parity.len(), need: k };
        let parity = parity.get(..missing).ok_or(too_few)?;

        let mut sources = List::<&[u8], K_MAX>::new();
        let mut outputs = List::<&mut [u8], K_MAX>::new();
        // The chunk's last symbol may be short: then its padded copy takes part for it.
        let mut short_output = None;
        let mut padded = Some(&mut self.padded);
        let symbols = chunk.get_mut(block_bytes(shape, block, k)).unwrap_or_default().chunks_mut(symbol_len);
        let mut lost_next = lost.all().iter().peekable();
        for (symbol, bytes) in symbols.enumerate() {
            let is_lost = lost_next.next_if_eq(&&symbol).is_some();
            let padding = padded.take_if(|_| bytes.len() < symbol_len);
            match (is_lost, padding) {
                (true, None) => outputs.push(bytes),
                (true, Some(padding)) => {
                    outputs.push(pad(padding, &[], symbol_len));
                    short_output = Some(bytes);
                }
                (false, None) => sources.push(bytes),
                (false, Some(padding)) => sources.push(pad(padding, bytes, symbol_len)),
            }
        }
        let mut numbers = List::<usize, K_MAX>::new();
        for (number, bytes) in parity {
            numbers.push(k + number);
            sources.push(bytes);
        }
        match &mut self.path {
            Path::Own { kernel, codes, space } => {
                let matrix = code(codes, k).rebuild(lost.all(), numbers.all(), space);
                kernel.multiply(matrix, sources.all(), outputs.all_mut());
            }
            Path::Reference(reference) => {
                reference.rebuild(lost.all(), numbers.all(), sources.all(), outputs.all_mut())?;
            }
        }
        if let Some(short) = short_output {
            let len = short.len();
            short.copy_from_slice(self.padded.get(..len).unwrap_or_default());
        }
        Ok(missing)
    }
}

fn expect_len(found: usize, expected: usize) -> Result<(), FecError> {
    if found == expected { Ok(()) } else { Err(FecError::Length { found, expected }) }
}

/// Each symbol can be, has the right length and is there once.
fn check_parity(shape: ChunkShape, block: usize, k: usize, parity: &[(usize, &[u8])]) -> Result<(), FecError> {
    let mut seen = [false; SYMBOLS_MAX];
    for (number, bytes) in parity {
        let symbol = k.saturating_add(*number);
        let seen = seen.get_mut(symbol).ok_or(FecError::NoSuchSymbol { block, symbol })?;
        if std::mem::replace(seen, true) {
            return Err(FecError::Twice { block, symbol });
        }
        expect_len(bytes.len(), shape.symbol_len())?;
    }
    Ok(())
}

/// The bytes of a block in the chunk.
fn block_bytes(shape: ChunkShape, block: usize, k: usize) -> Range<usize> {
    let start = shape.bytes(block, 0).map_or(0, |bytes| bytes.start);
    let end = shape.bytes(block, k - 1).map_or(0, |bytes| bytes.end);
    start..end
}

/// A symbol of full length, in `space`, that begins with `bytes` and goes on with zeros.
fn pad<'a>(space: &'a mut Vec<u8>, bytes: &[u8], symbol_len: usize) -> &'a mut [u8] {
    space.clear();
    space.extend_from_slice(bytes);
    space.resize(symbol_len, 0);
    space
}

/// The code for `k` data symbols, made when it is not there.
fn code(codes: &mut Vec<Option<Box<Code>>>, k: usize) -> &Code {
    if codes.len() < k {
        codes.resize_with(k, || None);
    }
    #[expect(clippy::indexing_slicing, reason = "just made long enough, and k is at least 1")]
    codes[k - 1].get_or_insert_with(|| Box::new(Code::new(k)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_k_of_a_blocks_symbols_give_back_the_chunk(
            chunk_len in 1_usize..40_000,
            symbol_len in 256_usize..1500,
            parity_count in 0_usize..30,
            seed in any::<u64>(),
        ) {
            let shape = ChunkShape::new(chunk_len, symbol_len).unwrap();
            let chunk = bytes(chunk_len, seed);
            let mut codec = Codec::new();
            let mut damaged = chunk.clone();
            for block in 0..shape.blocks() {
                let k = shape.block(block).unwrap().k;
                let mut parity = vec![0; parity_count * symbol_len];
                codec.encode(shape, &chunk, block, 0..parity_count, &mut parity).unwrap();
                let lost: Vec<usize> = (0..k).filter(|symbol| (seed >> (symbol % 61)) & 3 == 0).take(parity_count).collect();
                for symbol in &lost {
                    damaged[shape.bytes(block, *symbol).unwrap()].fill(0xee);
                }
                // The parity symbols arrive in some other order, and more than are needed.
                let mut arrived: Vec<(usize, &[u8])> = parity.chunks(symbol_len).enumerate().collect();
                arrived.rotate_left(if parity_count == 0 { 0 } else { seed as usize % parity_count });
                let rebuilt = codec.rebuild(shape, &mut damaged, block, |symbol| !lost.contains(&symbol), &arrived);
                prop_assert_eq!(rebuilt, Ok(lost.len()));
                if !lost.is_empty() {
                    let too_few = codec.rebuild(shape, &mut damaged, block, |s| !lost.contains(&s), &arrived[..lost.len() - 1]);
                    let refused = matches!(too_few, Err(FecError::TooFew { .. }));
                    prop_assert!(refused);
                }
            }
            prop_assert_eq!(damaged, chunk);
        }

        #[test]
        fn parity_is_a_prefix_of_more_parity(k in 1_usize..=200, more in 2_usize..=55, seed in any::<u64>()) {
            let shape = ChunkShape::new(k * 256, 256).unwrap();
            prop_assume!(shape.blocks() == 1);
            let chunk = bytes(k * 256, seed);
            let fewer = 1 + seed as usize % (more - 1);
            let (mut long, mut short, mut tail) = (vec![0; more * 256], vec![0; fewer * 256], vec![0; (more - fewer) * 256]);
            let mut codec = Codec::new();
            codec.encode(shape, &chunk, 0, 0..more, &mut long).unwrap();
            codec.encode(shape, &chunk, 0, 0..fewer, &mut short).unwrap();
            codec.encode(shape, &chunk, 0, fewer..more, &mut tail).unwrap();
            prop_assert_eq!(&long[..fewer * 256], &short[..]);
            prop_assert_eq!(&long[fewer * 256..], &tail[..]);
        }
    }

    #[test]
    fn wrong_lengths_and_symbols_that_are_not_there_are_refused() {
        let shape = ChunkShape::new(10_000, 1000).unwrap();
        let mut codec = Codec::new();
        let chunk = bytes(10_000, 1);
        assert!(matches!(codec.encode(shape, &chunk[1..], 0, 0..1, &mut [0; 1000]), Err(FecError::Length { .. })));
        assert!(matches!(codec.encode(shape, &chunk, 0, 0..1, &mut [0; 999]), Err(FecError::Length { .. })));
        assert!(matches!(codec.encode(shape, &chunk, 1, 0..1, &mut [0; 1000]), Err(FecError::NoSuchSymbol { .. })));
        let mut out = vec![0; 246 * 1000];
        assert!(matches!(codec.encode(shape, &chunk, 0, 0..246, &mut out), Err(FecError::NoSuchSymbol { .. })));
        let wrong = [0; 999];
        let result = codec.rebuild(shape, &mut chunk.clone(), 0, |symbol| symbol != 3, &[(0, &wrong)]);
        assert!(matches!(result, Err(FecError::Length { .. })));
    }
}
