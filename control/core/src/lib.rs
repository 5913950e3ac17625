//! The decisions of the controller, without hands: no socket, file, clock, task or chance of its own.
//!
//! | file | what it decides |
//! |---|---|
//! | [`catalog`] | what is here, what may go when room is needed |
//! | [`plan`] | which worker brings which chunks from whom |
//! | [`neighbours`] | who is admitted, how good the paths are, when to dial and to ping |
//! | [`fleet`] | when a worker is started again |
//! | [`sizes`] | which size of a content to believe |
//! | [`history`] | the policies that were in force |

pub mod catalog;
pub mod fleet;
pub mod history;
pub mod neighbours;
pub mod plan;
pub mod sizes;
