//! The protocol logic of the data plane, without hands: no socket, file, clock, task or chance of its own.
//!
//! The life of a chunk on its way here: [`fetch`] decides which chunk to ask of whom; the question and its answer are
//! [`frame`]s; the answer is the chunk by stream, or symbols by datagram, in the order of [`spread`] and with as much
//! parity as [`redundancy`] finds right, which [`assembly`] puts together, asking for exactly what is missing.

pub mod assembly;
pub mod congestion;
pub mod fetch;
pub mod frame;
pub mod redundancy;
pub mod spread;
