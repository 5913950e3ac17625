//! A put: bytes go from a file or stream straight into a worker's ring; the content id comes back.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use pangea_ipc::content::CHUNK_SIZE;
use pangea_ipc::door;
use pangea_ipc::failure::FailureCode;
use pangea_ipc::ids::ContentId;
use pangea_ipc::node::Request;
use pangea_ring::RingError;

use crate::client::Client;
use crate::door::{OpenDoor, failure_in};
use crate::error::ClientError;

/// Bytes in one record of a put: large enough to be cheap, small enough that the worker starts early.
const RECORD: usize = CHUNK_SIZE as usize;

/// How often a put asks whether to go on while the worker takes or says nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is known of a put beforehand.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// A name for listings, tickets and downloads; may be empty.
    pub name: String,
    /// Bytes to come, when known: room is made for them before the first.
    pub size: Option<u64>,
}

/// A put that is verified and synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOutcome {
    /// What the bytes are called from now on.
    pub content: ContentId,
    /// How many there were.
    pub size: u64,
}

impl Client {
    /// Puts everything that `source` gives from where it stands to its end. `progress` sees the bytes sent so far, again
    /// ten times a second while the worker is slow, and says whether to go on.
    ///
    /// # Errors
    /// When `source` cannot be read, is a file that changes meanwhile, there is no room, the worker goes away, or
    /// `progress` says to stop; then nothing was kept, unless all had been sent.
    pub fn put(
        &self,
        source: impl AsFd,
        options: PutOptions,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<PutOutcome, ClientError> {
        let opened = self.opened(Request::Put { name: options.name, size: options.size })?;
        let door = opened.doors.first().ok_or(ClientError::Unexpected)?;
        let mut door = OpenDoor::open(door)?;
        let outcome = match send(&mut door, source.as_fd(), progress) {
            Ok(sent) => finish(&mut door, &mut || progress(sent)),
            // The worker has said why before it closed, if it could.
            Err(ClientError::Ring(RingError::Closed | RingError::PeerGone)) => finish(&mut door, &mut || true),
            Err(error) => Err(error),
        };
        let outcome = match outcome {
            // Only the controller cancels it, and has said why in the job's report.
            Err(ClientError::Refused(failure)) if failure.code == FailureCode::Cancelled => {
                return Err(self.wait(opened.job, &mut |_| {}).err().unwrap_or(ClientError::Refused(failure)));
            }
            outcome => outcome?,
        };
        // The content is safe. That the catalog knows it too is worth waiting for, but not worth failing for.
        match self.wait(opened.job, &mut |_| {}) {
            Ok(_) | Err(ClientError::ControllerGone) => Ok(outcome),
            Err(error) => Err(error),
        }
    }
}

/// What differs after a regular file was written to; other sources have none.
#[derive(PartialEq, Eq)]
struct Fingerprint(Option<(u64, i64, i64)>);

impl Fingerprint {
    fn of(source: BorrowedFd<'_>) -> Result<Self, ClientError> {
        let metadata = source.try_clone_to_owned().and_then(|source| File::from(source).metadata());
        let metadata = metadata.map_err(ClientError::io("looking at what is to be put"))?;
        Ok(Self(metadata.is_file().then(|| (metadata.len(), metadata.mtime(), metadata.mtime_nsec()))))
    }
}

/// Sends all bytes and the end; says how many there were.
fn send(
    door: &mut OpenDoor,
    source: BorrowedFd<'_>,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<u64, ClientError> {
    let before = Fingerprint::of(source)?;
    let producer = &mut door.channel.producer;
    let mut sent: u64 = 0;
    loop {
        let claim = producer.try_claim(door::PUT_DATA, sent, RECORD).map_err(ClientError::Ring)?;
        let Some(mut claim) = claim else {
            go_on(producer.wait_space(RECORD, door.alive.as_fd(), Some(LOOK_AGAIN)), &mut || progress(sent))?;
            continue;
        };
        let mut filled = 0;
        while filled < RECORD {
            match claim.read_from(filled, source, None) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(RingError::System { errno: nix::errno::Errno::EINTR, .. }) => {}
                Err(RingError::System { errno, .. }) => {
                    let source = std::io::Error::from_raw_os_error(errno as i32);
                    return Err(ClientError::Io { what: "reading what is to be put".to_owned(), source });
                }
                Err(other) => return Err(ClientError::Ring(other)),
            }
        }
        if filled == 0 {
            break; // a claim that is not published was never there
        }
        claim.publish(filled);
        sent += filled as u64;
        if !progress(sent) {
            return Err(ClientError::PutInterrupted);
        }
    }
    // Without the end the worker keeps nothing: what was read may be some mixture of old and new that nobody wants.
    if Fingerprint::of(source)? != before {
        return Err(ClientError::Changed);
    }
    loop {
        if producer.try_push(door::PUT_END, sent, &[]).map_err(ClientError::Ring)? {
            return Ok(sent);
        }
        go_on(producer.wait_space(0, door.alive.as_fd(), Some(LOOK_AGAIN)), &mut || progress(sent))?;
    }
}

/// After a wait: the caller may stop now, also where the worker is slow.
fn go_on(waited: Result<(), RingError>, progress: &mut dyn FnMut() -> bool) -> Result<(), ClientError> {
    match waited {
        Ok(()) => Ok(()),
        Err(RingError::TimedOut) if progress() => Ok(()),
        Err(RingError::TimedOut) => Err(ClientError::PutInterrupted),
        Err(other) => Err(ClientError::Ring(other)),
    }
}

fn finish(door: &mut OpenDoor, progress: &mut dyn FnMut() -> bool) -> Result<PutOutcome, ClientError> {
    let consumer = &mut door.channel.consumer;
    loop {
        match go_on(consumer.wait_record(door.alive.as_fd(), Some(LOOK_AGAIN)), progress) {
            Err(ClientError::Ring(RingError::Closed | RingError::PeerGone)) => return Err(ClientError::PutLost),
            other => other?,
        }
        let Some(record) = consumer.try_peek().map_err(ClientError::Ring)? else { continue };
        let (tag, arg) = (record.tag(), record.arg());
        let mut payload = vec![0; record.len()];
        record.copy_to(&mut payload);
        record.release();
        match tag {
            door::PUT_DONE => {
                let id =
                    payload.try_into().map_err(|_| ClientError::Protocol("a content id of wrong length".to_owned()))?;
                return Ok(PutOutcome { content: ContentId(id), size: arg });
            }
            door::FAILED => return Err(failure_in(arg, &payload).into()),
            other => return Err(ClientError::Protocol(format!("tag {other} in a put"))),
        }
    }
}
