//! A worker's door: show the token, get the rings.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use pangea_ipc::door::{Hello, WELCOME_LEN, Welcome};
use pangea_ipc::failure::{FAILURE_TEXT_MAX, Failure, FailureCode};
use pangea_ipc::node::Door;
use pangea_ring::Channel;

use crate::error::ClientError;

/// Open rings to a worker. The socket stays open as long as they are used.
#[derive(Debug)]
pub(crate) struct OpenDoor {
    pub(crate) channel: Channel,
    pub(crate) alive: UnixStream,
    /// The worker knows [`FOLLOW`](pangea_ipc::door::FOLLOW).
    pub(crate) follows: bool,
}

impl OpenDoor {
    pub(crate) fn open(door: &Door) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Door { path: PathBuf::from(&door.path), source };
        let mut alive = UnixStream::connect(&door.path).map_err(failed)?;
        alive.write_all(&Hello { token: door.token }.to_bytes()).map_err(failed)?;
        let mut welcome = [0; WELCOME_LEN];
        alive.read_exact(&mut welcome).map_err(failed)?;
        let welcome = Welcome::from_bytes(welcome);
        if welcome.code != 0 {
            let mut text = vec![0; usize::from(welcome.text_len).min(FAILURE_TEXT_MAX)];
            alive.read_exact(&mut text).map_err(failed)?;
            let code = FailureCode::from_number(welcome.code);
            return Err(Failure::new(code, String::from_utf8_lossy(&text)).into());
        }
        let channel = Channel::receive(&alive).map_err(ClientError::Ring)?;
        Ok(Self { channel, alive, follows: welcome.follows })
    }
}

/// What a worker said before it closed its end.
pub(crate) fn failure_in(arg: u64, text: &[u8]) -> Failure {
    let code = FailureCode::from_number(u16::try_from(arg).unwrap_or(0));
    Failure::new(code, String::from_utf8_lossy(text))
}
