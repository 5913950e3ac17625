//! The worker's door: a Unix socket where a local program shows its token and gets its rings.
//!
//! The socket stays open as long as the program uses the rings: its end is how the worker learns that the program has
//! gone, however it went.

use std::os::fd::AsFd;
use std::rc::Rc;

use pangea_ipc::door::{DATA_RING_BYTES, HELLO_LEN, Hello, NOTICE_RING_BYTES, Welcome};
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::Token;
use pangea_ipc::worker::{Event, JobKind};
use pangea_ipc::{counter, rpc};
use pangea_ring::Channel;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Duration, timeout};
use tracing::Instrument;

use super::rings::Rings;
use super::{put, read, span};
use crate::worker::{Errand, JobEntry, Worker};

/// A token that no program brings within this time is forgotten, and its job has failed.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(30);
/// A program that has connected says hello within this time.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// Pause after the system refused a connection (out of descriptors), so that the refusal does not fill the log.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Begins a job that waits for the program with this token.
///
/// # Errors
/// When the worker takes no more jobs.
pub fn expect(worker: &Rc<Worker>, token: Token, errand: Errand, entry: JobEntry) -> Result<(), Failure> {
    let job = match &errand {
        Errand::Put(plan) => plan.job,
        Errand::Read(plan) => plan.job,
    };
    let guard = worker.begin(job, entry)?;
    worker.expect(token, errand, guard);
    let worker = Rc::downgrade(worker);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(TOKEN_LIFETIME).await;
        let Some(worker) = worker.upgrade() else { return };
        if let Some((_, guard)) = worker.redeem(token) {
            let why = Failure::unavailable(format!("no program came for job {job} within {TOKEN_LIFETIME:?}"));
            worker.report(Event::Failed { job, why });
            drop(guard);
        }
    });
    Ok(())
}

/// Serves the door until the worker ends.
pub async fn serve(worker: Rc<Worker>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let worker = Rc::clone(&worker);
                tokio::task::spawn_local(async move { greet(&worker, socket).await }.in_current_span());
            }
            Err(error) => {
                tracing::warn!(%error, "a program could not be let in");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn greet(worker: &Rc<Worker>, mut socket: UnixStream) {
    match admit(worker, &mut socket).await {
        Ok((errand, guard)) => {
            let rings = match hand_over(&errand, &mut socket).await {
                Ok(channel) => Rings::new(channel, socket),
                Err(error) => Err(error),
            };
            match (errand, rings) {
                (Errand::Put(plan), Ok(rings)) => {
                    let span = span(JobKind::Put, plan.job);
                    put::run(guard, plan, rings).instrument(span).await;
                }
                (Errand::Read(plan), Ok(rings)) => {
                    let span = span(JobKind::Read, plan.job);
                    read::run(guard, plan, rings).instrument(span).await;
                }
                (_, Err(error)) => {
                    let why = Failure::internal(format!("rings could not be handed over: {error}"));
                    tracing::warn!(job = %guard.job(), %error, "rings could not be handed over");
                    worker.report(Event::Failed { job: guard.job(), why });
                }
            }
        }
        Err(why) => {
            worker.counters.add(counter::Id::RingsRefused, 1);
            tracing::debug!(%why, "a program was turned away");
            refuse(&mut socket, &why).await;
        }
    }
}

async fn admit(worker: &Worker, socket: &mut UnixStream) -> Result<(Errand, crate::worker::JobGuard), Failure> {
    rpc::check_peer(socket).map_err(|error| Failure::denied(error.to_string()))?;
    let mut hello = [0; HELLO_LEN];
    match timeout(HELLO_TIME, socket.read_exact(&mut hello)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(Failure::protocol(format!("no greeting: {error}"))),
        Err(_) => return Err(Failure::protocol("no greeting came in time")),
    }
    let hello = Hello::from_bytes(&hello)
        .ok_or_else(|| Failure::protocol("not a greeting of this version; use programs of the same version"))?;
    worker.redeem(hello.token).ok_or_else(|| Failure::denied("unknown or spent token; run the command again"))
}

async fn hand_over(errand: &Errand, socket: &mut UnixStream) -> std::io::Result<Channel> {
    let (to_program, to_worker) = match errand {
        Errand::Put(_) => (NOTICE_RING_BYTES, DATA_RING_BYTES),
        Errand::Read(_) => (DATA_RING_BYTES, NOTICE_RING_BYTES),
    };
    socket.write_all(&Welcome { code: 0, text_len: 0, follows: true }.to_bytes()).await?;
    let (channel, handover) = Channel::create(to_program, to_worker).map_err(std::io::Error::other)?;
    handover.send(socket.as_fd()).map_err(std::io::Error::other)?;
    Ok(channel)
}

async fn refuse(socket: &mut UnixStream, why: &Failure) {
    let text_len = u16::try_from(why.text.len()).unwrap_or(0);
    let welcome = Welcome { code: why.code.number(), text_len, follows: true };
    let mut bytes = welcome.to_bytes().to_vec();
    bytes.extend(why.text.bytes().take(usize::from(text_len)));
    // A program that has gone does not need to be told.
    let _ = timeout(HELLO_TIME, socket.write_all(&bytes)).await;
}
