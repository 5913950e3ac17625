//! Made by `capnp` from `schema/*.capnp`; see `tests/generated.rs` for how to make it anew.
#![allow(
    missing_docs,
    unreachable_pub,
    unused,
    clippy::all,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unimplemented,
    reason = "generated code"
)]

#[rustfmt::skip]
pub mod common_capnp;
#[rustfmt::skip]
pub mod node_capnp;
#[rustfmt::skip]
pub mod peer_capnp;
#[rustfmt::skip]
pub mod worker_capnp;
