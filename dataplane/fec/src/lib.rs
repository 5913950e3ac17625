//! Forward error correction: the data symbols of a block and its parity symbols, and nothing else.
//!
//! A chunk is cut into symbols, its symbols into blocks of at most [`K_MAX`] ([`shape`]). Each block is protected by a
//! systematic Reed-Solomon code over GF(2^8) with the polynomial 0x11D: from any `k` of a block's symbols all are
//! rebuilt ([`codec`]).
//!
//! Parity symbol `j` depends on `k` and `j` alone, not on how many there are, so parity can be made later, on demand.
//! The code is that of the crate `reed-solomon-erasure`, and [`Codec::reference`] is that crate: both make the same
//! symbols and decode each other's.
//!
//! ```text
//!     shape    which bytes of a chunk are which symbol
//!     codec    chunk and parity in, parity or missing data out
//!     matrix   the coefficients for that, by interpolation     gf  the field they are of
//!     kernel   coefficients times symbols, by what the CPU has: GFNI, AVX2, SSSE3, NEON or nothing special
//!     reference    the same as codec, matrix and kernel, by the crate
//!     list     which symbols take part in a pass
//! ```

pub mod codec;
mod gf;
pub mod kernel;
mod list;
mod matrix;
mod reference;
pub mod shape;

pub use codec::{Codec, FecError};
pub use kernel::Kernel;
pub use shape::{BlockShape, ChunkShape, K_MAX, SYMBOL_LEN_MAX, SYMBOL_LEN_MIN, SYMBOLS_MAX, ShapeError};
