//! How a chunk is cut: both sides compute the same from its length and the symbol length.

use std::ops::Range;

/// Symbols in a block at most, data and parity: one for each non-zero element of GF(2^8).
pub const SYMBOLS_MAX: usize = 255;

/// Data symbols in a block at most: leaves room for 55 parity symbols, more than a quarter.
pub const K_MAX: usize = 200;

/// Shortest symbol: shorter ones would carry more header than data.
pub const SYMBOL_LEN_MIN: usize = 256;

/// Longest symbol: what a UDP datagram carries, less QUIC's share.
pub const SYMBOL_LEN_MAX: usize = 65_000;

/// Longest chunk: the number of blocks stays within a byte at the shortest symbol.
pub const CHUNK_LEN_MAX: usize = 1 << 23;

const _: () = assert!(CHUNK_LEN_MAX / SYMBOL_LEN_MIN / K_MAX < 255);

/// Why a chunk cannot be cut so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// The symbol length is out of bounds.
    #[error("symbols cannot have {len} bytes: from {SYMBOL_LEN_MIN} to {SYMBOL_LEN_MAX} are possible")]
    SymbolLen {
        /// Bytes.
        len: usize,
    },
    /// The chunk is empty or too long.
    #[error("a chunk of {len} bytes cannot be cut into symbols")]
    ChunkLen {
        /// Bytes.
        len: usize,
    },
}

/// How one chunk is cut into blocks and symbols. Valid by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkShape {
    chunk_len: usize,
    symbol_len: usize,
    blocks: usize,
}

/// One block of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockShape {
    /// Number of its first data symbol in the chunk.
    pub first: usize,
    /// Its data symbols; at most [`K_MAX`].
    pub k: usize,
}

impl BlockShape {
    /// Parity symbols that there can be.
    #[must_use]
    pub fn parity_max(self) -> usize {
        SYMBOLS_MAX - self.k
    }
}

impl ChunkShape {
    /// Cuts a chunk of `chunk_len` bytes into symbols of `symbol_len` bytes; the last is padded with zeros.
    ///
    /// # Errors
    /// When a length is out of bounds.
    pub fn new(chunk_len: usize, symbol_len: usize) -> Result<Self, ShapeError> {
        if !(SYMBOL_LEN_MIN..=SYMBOL_LEN_MAX).contains(&symbol_len) {
            return Err(ShapeError::SymbolLen { len: symbol_len });
        }
        if !(1..=CHUNK_LEN_MAX).contains(&chunk_len) {
            return Err(ShapeError::ChunkLen { len: chunk_len });
        }
        let blocks = chunk_len.div_ceil(symbol_len).div_ceil(K_MAX);
        Ok(Self { chunk_len, symbol_len, blocks })
    }

    /// Bytes in the chunk.
    #[must_use]
    pub fn chunk_len(self) -> usize {
        self.chunk_len
    }

    /// Bytes in a symbol.
    #[must_use]
    pub fn symbol_len(self) -> usize {
        self.symbol_len
    }

    /// Data symbols in the chunk.
    #[must_use]
    pub fn data_symbols(self) -> usize {
        self.chunk_len.div_ceil(self.symbol_len)
    }

    /// Blocks in the chunk.
    #[must_use]
    pub fn blocks(self) -> usize {
        self.blocks
    }

    /// A block; `None` when there is no such one. The sizes of any two differ by one symbol at most.
    #[must_use]
    pub fn block(self, block: usize) -> Option<BlockShape> {
        if block >= self.blocks {
            return None;
        }
        let (small, larger) = (self.data_symbols() / self.blocks, self.data_symbols() % self.blocks);
        let k = small + usize::from(block < larger);
        Some(BlockShape { first: block * small + block.min(larger), k })
    }

    /// Bytes of the chunk that a data symbol carries; shorter than a symbol only for the last of the chunk. `None` when
    /// the block has no such data symbol.
    #[must_use]
    pub fn bytes(self, block: usize, symbol: usize) -> Option<Range<usize>> {
        let shape = self.block(block)?;
        if symbol >= shape.k {
            return None;
        }
        let start = (shape.first + symbol) * self.symbol_len;
        Some(start..self.chunk_len.min(start + self.symbol_len))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_is_in_exactly_one_symbol(chunk_len in 1_usize..300_000, symbol_len in 256_usize..2000) {
            let shape = ChunkShape::new(chunk_len, symbol_len).unwrap();
            let mut next = 0;
            for index in 0..shape.blocks() {
                let block = shape.block(index).unwrap();
                prop_assert!((1..=K_MAX).contains(&block.k));
                for symbol in 0..block.k {
                    let bytes = shape.bytes(index, symbol).unwrap();
                    prop_assert_eq!(bytes.start, next);
                    prop_assert!(!bytes.is_empty() && bytes.len() <= symbol_len);
                    next = bytes.end;
                }
                prop_assert_eq!(shape.bytes(index, block.k), None);
            }
            prop_assert_eq!(next, chunk_len);
            prop_assert_eq!(shape.block(shape.blocks()), None);
        }
    }

    #[test]
    fn a_whole_chunk_at_the_usual_sizes() {
        let shape = ChunkShape::new(256 << 10, 1200).unwrap();
        assert_eq!((shape.data_symbols(), shape.blocks()), (219, 2));
        assert_eq!((shape.block(0).unwrap().k, shape.block(1).unwrap().k), (110, 109));
        assert!(
            ChunkShape::new(0, 1200).is_err()
                && ChunkShape::new(1, 255).is_err()
                && ChunkShape::new(1, 65_001).is_err()
        );
    }
}
