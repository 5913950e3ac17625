//! Put, get and open content of a Pangea node from Rust programs. `pangeactl` uses nothing else.
//!
//! ```no_run
//! use std::io::{Read, Seek, SeekFrom};
//! use pangea_client::{Client, GetOptions, PutOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Client::connect("/run/pangea".as_ref())?;
//! let file = std::fs::File::open("model.bin")?;
//! let put = node.put(&file, PutOptions::default(), &mut |_| true)?;
//!
//! let mut reader = node.open(put.content, GetOptions::default())?;
//! let mut tail = Vec::new();
//! reader.seek(SeekFrom::End(-16))?;
//! reader.read_to_end(&mut tail)?;
//! # Ok(())
//! # }
//! ```
//!
//! Requests go to the controller, bytes go through shared-memory rings straight from a worker. A transfer that has
//! begun goes on when the controller goes away, and when one of several workers does. Calls block; inside an async
//! runtime use [`asynchronous::AsyncClient`].
//!
//! | file | what it holds |
//! |---|---|
//! | [`Client`] (`client.rs`) | the connection, and every request as a method |
//! | `door.rs` | a worker's door and the rings behind it |
//! | `put.rs` | bytes in |
//! | `source.rs` | one worker of a transfer |
//! | [`transfer`] | chunks out, over several doors at once |
//! | [`reader`] | `Read + Seek` over a transfer |
//! | [`asynchronous`] | the same for async programs |

pub mod asynchronous;
mod client;
mod door;
mod error;
mod put;
pub mod reader;
mod source;
pub mod transfer;

pub use client::{Client, GetOptions};
pub use error::ClientError;
pub use pangea_ipc as ipc;
pub use put::{PutOptions, PutOutcome};
pub use reader::Reader;
pub use transfer::{Progress, Transfer};
