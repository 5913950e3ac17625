//! The control plane of a Pangea node.
//!
//! | module | program |
//! |---|---|
//! | [`controller`] | `pangea-controller`: sessions, catalog, policy, planning, worker supervision |
//! | [`ctl`] | `pangeactl`: the operator's hand on a node |

pub mod controller;
pub mod ctl;
