//! The network side of a worker: QUIC to and from other nodes' workers.
//!
//! | file | job |
//! |---|---|
//! | [`tls`] | who may connect |
//! | [`endpoint`] | the UDP port and the transport parameters |
//! | [`socket`] | joins sends of ten packets to larger ones |
//! | [`congestion`] | how fast each connection sends |
//! | [`pace`] | keeps the transport sending, and knows what it holds |
//! | [`pulse`] | breaks the silence after a burst of losses |
//! | [`fault`] | loses datagrams on purpose |
//! | [`connections`] | one connection to each worker that this one asks |
//! | [`datagrams`] | arriving symbols find their transfer |
//! | [`ask`] | one chunk from a peer, by stream or as FEC symbols |
//! | [`serve`] | answers the chunk requests of peers |
//! | `symbols` | sends one chunk as FEC symbols |

pub mod ask;
pub mod congestion;
pub mod connections;
pub mod datagrams;
pub mod endpoint;
pub mod fault;
pub mod pace;
pub mod pulse;
pub mod serve;
pub mod socket;
mod symbols;
pub mod tls;
