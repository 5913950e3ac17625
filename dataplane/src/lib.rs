//! The data plane: `pangea-worker` moves, verifies and stores chunks.
//!
//! The life of a chunk, and the files it passes through:
//!
//! | way | files |
//! |---|---|
//! | in from a local program | [`jobs::door`] -> [`jobs::put`] -> [`store`] |
//! | in from a peer | [`jobs::fetch`] -> [`net`] -> [`store`] |
//! | out to a local program | [`store`] -> [`jobs::read`] -> [`jobs::door`] |
//! | out to a peer | [`store`] -> [`net::serve`] |
//!
//! [`worker`] owns all of it; [`link`] is the conversation with the controller. Two threads: the network thread runs
//! everything asynchronous, the store thread checks, writes and reads chunks (those for peers only if they are not in the
//! page cache); single disk operations that may take long (sync, open, delete) go to blocking tasks.

pub mod buffer;
pub mod commands;
pub mod counters;
pub mod cpu;
pub mod events;
pub mod jobs;
pub mod link;
pub mod net;
pub mod run;
pub mod settings;
pub mod store;
pub mod worker;
