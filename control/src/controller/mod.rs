//! `pangea-controller`: sessions, catalog, policy, planning, worker supervision. No payload byte passes through it.
//!
//! | file | what it holds |
//! |---|---|
//! | [`settings`] | command line and configuration file |
//! | [`identity`] | the node's key |
//! | [`noise`] | a stream to another node that is who it says it is |
//! | [`sessions`] | one session with each peer: dial, accept, ping, ask, answer |
//! | [`ahead`] | connections between workers before anything is asked for |
//! | [`workers`] | the workers: start, register, command, listen to |
//! | [`front_door`] | programs' requests |
//! | [`put`], [`get`], [`verify`], [`contents`] | what these requests do |
//! | [`holders`] | who holds a content, and its manifest |
//! | [`fetches`] | bringing chunks here, from plan to catalog |
//! | [`sizes`] | the size of a content, until its last chunk proves it |
//! | [`catalog_db`] | what survives a restart |
//! | [`paths`] | when what the paths to peers carried is stored there |
//! | [`metrics`] | Prometheus text |
//! | [`node`] | the state that all of these share |
//! | [`run`] | puts it together |

pub mod ahead;
pub mod catalog_db;
pub mod contents;
pub mod fetches;
pub mod front_door;
pub mod get;
pub mod holders;
pub mod identity;
pub mod metrics;
pub mod node;
pub mod noise;
pub mod paths;
pub mod policies;
pub mod port_owner;
pub mod put;
pub mod run;
pub mod sessions;
pub mod settings;
pub mod sizes;
pub mod verify;
pub mod workers;
