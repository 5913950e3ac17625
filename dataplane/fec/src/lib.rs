//! Forward error correction: the data symbols of a block and its parity symbols, and nothing else.
//!
//! A chunk is cut into symbols, its symbols into blocks of at most [`K_MAX`] ([`shape`]). Each block is protected by a
//! systematic Reed-Solomon code over GF(2^8) with the polynomial 0x11D: from any `k` of a block's symbols all are
//! rebuilt. The code is that of the crate `reed-solomon-erasure`, which is also the reference and the portable path
//! ([`codec`]).
//!
//! Parity symbol `j` depends on `k` and `j` alone, not on how many there are: its row of the code matrix is row `k + j`
//! of a Vandermonde matrix times the inverse of the first `k` rows. So parity can be made later, on demand.

pub mod codec;
pub mod shape;

pub use codec::{Codec, FecError};
pub use shape::{BlockShape, ChunkShape, K_MAX, SYMBOL_LEN_MAX, SYMBOL_LEN_MIN, SYMBOLS_MAX, ShapeError};
