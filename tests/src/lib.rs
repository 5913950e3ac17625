//! Whole nodes under test: real controllers and workers on loopback, driven through `pangeactl` as a user would.
//!
//! | file | what it shows |
//! |---|---|
//! | `tests/main_job.rs` | put on one node, get on another, resume, share, stripe |
//! | `tests/bad_input.rs` | a clear error and nothing lost |
//! | `tests/kills.rs` | `kill -9` of any process at any moment |
//! | `tests/demo.rs` | the demonstration leaves nothing behind |
//! | `tests/strangers.rs` | unknown and hostile peers |
//! | `tests/swarm.rs` | parts are served, peers tell of other holders |
//! | `../dataplane/tests/hostile.rs` | a worker and admitted peers that abuse it |
//! | `fuzz/` | strangers' bytes: fuzz targets, their corpus and its replay |
//! | `tests/netlab.rs` | the emulated link is what its settings say (needs root) |
//! | `tests/tidy.rs` | rules that compilers do not check |
//! | `src/netlab/` | a link of our choice between two network namespaces |
//! | `src/bin/netlab.rs` | the same as a command |
//! | `src/signals.rs` | what a signal to one of these commands takes away |
//! | `src/bench/` | what is measured, against whom, and how it is shown |
//! | `src/bin/bench.rs` | the same as a command: the figures of `docs/BENCHMARKS.md` |

pub mod bench;
pub mod impostor;
pub mod netlab;
pub mod node;
pub mod sample;
pub mod signals;

pub use node::{Node, NodeOptions, Run};
