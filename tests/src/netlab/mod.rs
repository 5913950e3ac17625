//! A link of our choice between two network namespaces, for kernels without `sch_netem`.
//!
//! ```text
//!  namespace A                    this process                          namespace B
//!  10.77.0.1  link0 (TUN) ---> queue > rate > loss > delay ---> link0 (TUN)  10.77.0.2
//!                         <--- delay < loss < rate < queue <---
//! ```
//!
//! | file | job |
//! |---|---|
//! | `link.rs` | what a link is like: [`Settings`], [`Link`], [`Change`], their bounds |
//! | `chance.rs` | seeded chance, and loss that is independent or comes in bursts |
//! | `pipe.rs` | the model of one direction, without hands: packets and the time in, packets and times out |
//! | `counters.rs` | what one direction did |
//! | `packet.rs` | the ECN bits of an IP packet |
//! | `namespaces.rs` | [`Pair`]: two namespaces that a cable joins, and what runs in them |
//! | `engine.rs` | the thread that carries packets between the TUN devices, as the model says |
//! | `error.rs` | why there is no lab |
//! | `lab.rs` | [`Lab`]: all of it together |
//!
//! # The model
//!
//! A packet that arrives joins a drop-tail queue measured in bytes, or is dropped when that has no room. The link sends
//! the front of the queue at its rate, counting bytes of IP packets and nothing below them. A packet that has been sent
//! is lost by chance or not; a lost packet has used its share of the link. What is left arrives after the delay. Jitter
//! moves each delay by an equal chance between minus and plus its amount; without `reorder` no packet overtakes another,
//! so that at a high rate packets gather behind the slowest and the mean delay comes close to delay plus jitter.
//! A packet that is ECN capable and finds the queue longer than `ecn_bytes` is marked (Congestion Experienced).
//!
//! A seed fixes which packets are lost: the same seed and settings lose the packets of the same positions, counted among
//! those that a direction has sent. Each direction has its own chance.
//!
//! # What it is not
//!
//! The devices offer no offloads: the kernel cuts what TSO and UDP GSO would have cut before packets come here, and
//! nothing joins them again at the other end. The thread looks at the devices at once while there is little to do, and
//! every [`TICK`] while there is much: at a high rate packets leave in groups of a few, up to a tick late. It asks for
//! real-time priority, so that programs under test cannot starve it. How late it was, is in the [`Counters`].
//!
//! ```no_run
//! use pangea_tests::netlab::{Direction, Lab, Link, Settings};
//! use std::time::Duration;
//!
//! let link = Link { rate_mbit: Some(100.0), delay: Duration::from_millis(25), loss_pct: 2.0, ..Link::default() };
//! let lab = Lab::start(Settings::both_ways(link.clone())).unwrap();
//! let status = lab.command_a("ping").args(["-c", "3", &lab.address_b().to_string()]).status().unwrap();
//! lab.change(Direction::AToB, Link { rate_mbit: Some(20.0), ..link }).unwrap();
//! println!("{status}, {:?}", lab.counters().a_to_b);
//! ```

mod chance;
mod counters;
mod engine;
mod error;
mod lab;
mod link;
mod namespaces;
mod packet;
mod pipe;

pub use counters::{Counters, Report};
pub use engine::TICK;
pub use error::{Error, skipped, unavailable};
pub use lab::Lab;
pub use link::{
    Change, DELAY_MAX, Direction, Link, LinkError, MTU_DEFAULT, MTU_MAX, MTU_MIN, Queue, RATE_MBIT_MAX, RATE_MBIT_MIN,
    Settings,
};
pub use namespaces::{Pair, Side, remove_namespaces};
pub use pipe::{Departure, Nanos, Offer, Pipe};
