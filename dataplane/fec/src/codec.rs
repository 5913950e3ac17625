//! The codec: parity out of data, missing data out of parity.
//!
//! This one is `reed-solomon-erasure`: slow when a loss pattern is new (it inverts k x k), right everywhere. A faster
//! kernel takes its place behind the same three calls.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::shape::ChunkShape;

/// Code matrices kept at most: a few block sizes times a few parity counts are in use at once.
const CODES_MAX: usize = 32;

/// Why symbols are not made or rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum FecError {
    /// The chunk has no such block, or the block no such symbol.
    #[error("block {block} has no symbol {symbol}")]
    NoSuchSymbol {
        /// The block.
        block: usize,
        /// The symbol.
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
    /// The code says no where it must not: a fault of this program.
    #[error("the code failed: {0}")]
    Code(reed_solomon_erasure::Error),
}

/// Makes parity and rebuilds data. Keeps the code matrices that it used last.
#[derive(Debug, Default)]
pub struct Codec {
    codes: VecDeque<((usize, usize), Rc<ReedSolomon>)>,
}

impl Codec {
    /// A codec that has not computed anything yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
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
        expect_len(out.len(), parity.len() * symbol_len)?;
        let k = shape.block(block).ok_or(FecError::NoSuchSymbol { block, symbol: 0 })?;
        if parity.end > k.parity_max() {
            return Err(FecError::NoSuchSymbol { block, symbol: k.k + parity.end });
        }
        if parity.is_empty() {
            return Ok(());
        }
        let data = padded_block(shape, chunk, block, k.k);
        let data: Vec<&[u8]> = data.chunks(symbol_len).collect();
        let mut all = vec![0; parity.end * symbol_len];
        let mut rows: Vec<&mut [u8]> = all.chunks_mut(symbol_len).collect();
        self.code(k.k, parity.end)?.encode_sep(&data, &mut rows).map_err(FecError::Code)?;
        out.copy_from_slice(all.get(parity.start * symbol_len..).unwrap_or_default());
        Ok(())
    }

    /// Rebuilds the missing data symbols of a block in place. `have(symbol)` tells which data symbols are in `chunk`;
    /// `parity` holds parity symbols by number. Says how many were rebuilt; does nothing when none is missing.
    ///
    /// # Errors
    /// [`FecError::TooFew`], or when a buffer has the wrong length.
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
        let missing: Vec<usize> = (0..k).filter(|symbol| !have(*symbol)).collect();
        if missing.is_empty() {
            return Ok(0);
        }
        let usable = parity.get(..missing.len()).ok_or(FecError::TooFew {
            block,
            have: k - missing.len() + parity.len(),
            need: k,
        })?;
        let rows = usable.iter().map(|(number, _)| number + 1).max().unwrap_or(1);
        let code = self.code(k, rows)?;
        let data = padded_block(shape, chunk, block, k);
        let mut shards: Vec<Option<Vec<u8>>> =
            data.chunks(symbol_len).enumerate().map(|(at, bytes)| have(at).then(|| bytes.to_vec())).collect();
        shards.resize(k + rows, None);
        for (number, bytes) in usable {
            expect_len(bytes.len(), symbol_len)?;
            if let Some(shard) = shards.get_mut(k + number) {
                *shard = Some(bytes.to_vec());
            }
        }
        code.reconstruct_data(&mut shards).map_err(FecError::Code)?;
        for symbol in &missing {
            let bytes = shape.bytes(block, *symbol).unwrap_or_default();
            let rebuilt = shards.get(*symbol).and_then(Option::as_ref).and_then(|shard| shard.get(..bytes.len()));
            if let (Some(to), Some(from)) = (chunk.get_mut(bytes), rebuilt) {
                to.copy_from_slice(from);
            }
        }
        Ok(missing.len())
    }

    fn code(&mut self, k: usize, m: usize) -> Result<Rc<ReedSolomon>, FecError> {
        let found = self.codes.iter().position(|(shape, _)| *shape == (k, m)).and_then(|at| self.codes.remove(at));
        let entry = match found {
            Some(entry) => entry,
            None => ((k, m), Rc::new(ReedSolomon::new(k, m).map_err(FecError::Code)?)),
        };
        let code = Rc::clone(&entry.1);
        self.codes.truncate(CODES_MAX - 1);
        self.codes.push_front(entry);
        Ok(code)
    }
}

fn expect_len(found: usize, expected: usize) -> Result<(), FecError> {
    if found == expected { Ok(()) } else { Err(FecError::Length { found, expected }) }
}

/// The bytes of a block's data symbols, the last padded with zeros where it is short.
fn padded_block(shape: ChunkShape, chunk: &[u8], block: usize, k: usize) -> Vec<u8> {
    let start = shape.bytes(block, 0).map_or(0, |bytes| bytes.start);
    let end = shape.bytes(block, k - 1).map_or(0, |bytes| bytes.end);
    let mut data = chunk.get(start..end).unwrap_or_default().to_vec();
    data.resize(k * shape.symbol_len(), 0);
    data
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
