//! The control plane of a Pangea node.
//!
//! | module | program |
//! |---|---|
//! | [`controller`] | `pangea-controller`: sessions, catalog, policy, planning, worker supervision |
//! | [`folders`] | both: where things are when nobody says otherwise |
//! | [`lookup`] | both: peers as people write them |
//! | [`ctl`] | `pangeactl`: the operator's hand on a node |

pub mod controller;
pub mod ctl;
pub mod folders;
pub mod lookup;
