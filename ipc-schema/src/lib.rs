//! The words that two Pangea processes must agree on.
//!
//! Domain types first, each parsed at the border and valid ever after; then the codec that carries them over Cap'n
//! Proto. No other crate touches generated code.
//!
//! | file | what it holds |
//! |---|---|
//! | [`ids`] | content, node, job, worker and token identifiers: parse and print |
//! | [`content`] | chunk geometry and the [`Manifest`](content::Manifest) that proves itself |
//! | [`chunk_set`] | a set of chunk numbers as a bitmap |
//! | [`address`] | where a node listens, and what a worker's QUIC key is |
//! | [`ticket`] | one line of text that says what to get and from whom |
//! | [`failure`] | the one way in which any request says no |
//! | [`policy`] | one whole value with a revision; parsing is validating |
//! | [`worker`] | the conversation controller-worker: [`Command`](worker::Command), [`Event`](worker::Event) |
//! | [`node`] | the conversation program-controller: [`Request`](node::Request), [`Response`](node::Response) |
//! | [`peer`] | the conversation controller-controller, inside a Noise session |
//! | [`door`] | tags of the ring records between a worker and a local program |
//! | [`counter`] | name, unit and sentence of every published number |
//! | [`runtime`] | names in a node's folders |
//! | [`log_filter`] | what `--log` takes |
//! | [`rpc`] | Cap'n Proto RPC over any byte stream, typed on both sides |

pub mod address;
pub mod chunk_set;
mod codec;
pub mod content;
pub mod counter;
pub mod door;
pub mod failure;
mod generated;
pub mod ids;
pub mod log_filter;
pub mod node;
pub mod peer;
pub mod policy;
pub mod rpc;
pub mod runtime;
pub mod ticket;
mod unix;
pub mod worker;

pub use codec::CodecError;
