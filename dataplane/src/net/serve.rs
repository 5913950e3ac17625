//! Answers the chunk requests of peers.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryFutureExt;
use pangea_dataplane_core::congestion::Known;
use pangea_dataplane_core::frame::{Answer, Part, REQUEST_LEN, Refusal, Request, SYMBOL_HEADER_LEN};
use pangea_dataplane_core::redundancy::{Delivery, Parity, Situation, choose};
use pangea_fec::{ChunkShape, SYMBOL_LEN_MAX, SYMBOL_LEN_MIN};
use pangea_ipc::content::Manifest;
use pangea_ipc::counter::Id;
use pangea_ipc::ids::NodeId;
use pangea_ipc::policy::CongestionLaw;
use pangea_ipc::worker::{KnownPath, Pin};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Mutex, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::congestion::{self, PathView};
use super::connections::{CLOSE_LIMIT, CLOSE_PROTOCOL, CLOSE_STALLED, CLOSE_UNPINNED};
use super::pace::Pace;
use super::pulse::{Heard, Pulse};
use super::symbols::SymbolSender;
use super::tls::shown_key;
use crate::buffer::{Buffer, Shared};
use crate::worker::Worker;

/// How long a peer may keep this worker waiting. What a peer holds meanwhile is bounded by its share of the buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A peer that has opened a stream asks within this time; 10 s by default.
    pub request: Duration,
    /// A peer that gets a chunk as symbols is waited for this long in all, however often it asks again; 30 s by default.
    pub repair: Duration,
    /// A peer to which nothing can be sent for this long, since it neither reads nor acknowledges, loses its connection,
    /// however alive it seems otherwise; 30 s by default.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { request: Duration::from_secs(10), repair: Duration::from_secs(30), stall: Duration::from_secs(30) }
    }
}

/// Transfers remembered as begun, so that the copy of a request is served once: as many as there can be streams, twice.
const BEGUN_MAX: usize = 256;
/// Transfers begun by a copy that wait for their stream at most; further ones wait for it unserved.
const EARLY_MAX: usize = 8;

/// Accepts connections until the endpoint is closed.
pub async fn serve(worker: Rc<Worker>) {
    while let Some(incoming) = worker.connections.endpoint().accept().await {
        let worker = Rc::clone(&worker);
        let span = tracing::info_span!("peer", node = Empty, address = %incoming.remote_address());
        let work = async move {
            let connecting = std::future::ready(worker.connections.accept(incoming));
            match connecting.and_then(|connecting| connecting).await {
                Ok(connection) => serve_connection(&worker, connection).await,
                Err(error) => {
                    worker.counters.add(Id::PeersRefused, 1);
                    tracing::debug!(%error, "a connection was refused");
                }
            }
        };
        tokio::task::spawn_local(work.instrument(span));
    }
}

/// What the requests of one connection share.
pub(super) struct Path {
    pub(super) connection: Connection,
    node: NodeId,
    view: Arc<PathView>,
    /// Chunks are sent one after another, in the order in which they were asked for.
    turn: Mutex<()>,
    /// Priority of the next stream: each is sent, and what was lost of it sent again, before those after it.
    priority: Cell<i32>,
    transfers: RefCell<Transfers>,
    pulse: Pulse,
    pub(super) pace: Pace,
}

/// Requests of which a copy may come, or came first.
#[derive(Default)]
struct Transfers {
    /// Those begun last.
    begun: VecDeque<u32>,
    /// Those begun by their copy, whose stream has not come yet: what was sent, as soon as it is, and since when.
    early: HashMap<u32, (oneshot::Receiver<SymbolSender>, Instant)>,
}

impl Transfers {
    /// Begins a transfer; `false` = it was begun before.
    fn begin(&mut self, transfer: u32) -> bool {
        if self.begun.contains(&transfer) {
            return false;
        }
        if self.begun.len() >= BEGUN_MAX {
            self.begun.pop_front();
        }
        self.begun.push_back(transfer);
        true
    }

    /// Gives up those begun by a copy whose stream has not come in `patience`; says how many.
    fn give_up_early(&mut self, patience: Duration, now: Instant) -> u64 {
        let before = self.early.len();
        self.early.retain(|_, (_, since)| now.saturating_duration_since(*since) < patience);
        (before - self.early.len()) as u64
    }

    /// Begins a transfer by its copy: where to put what was sent of it. `None` = it was begun before, or too many wait.
    fn begin_early(&mut self, transfer: u32, now: Instant) -> Option<oneshot::Sender<SymbolSender>> {
        if self.early.len() >= EARLY_MAX || !self.begin(transfer) {
            return None;
        }
        let (sent, receive) = oneshot::channel();
        self.early.insert(transfer, (receive, now));
        Some(sent)
    }
}

async fn serve_connection(worker: &Rc<Worker>, connection: Connection) {
    // The handshake has checked the pin; it may have been withdrawn since.
    let Some(Pin { key, node, known }) = shown_key(&connection).and_then(|key| worker.pins.pin(key)) else {
        return connection.close(CLOSE_UNPINNED, b"key not admitted");
    };
    if !worker.connections.note_incoming(key, &connection) {
        worker.counters.add(Id::PeersRefused, 1);
        return connection.close(CLOSE_LIMIT, b"too many connections");
    }
    Span::current().record("node", tracing::field::display(node));
    tracing::debug!("a peer connected");
    let view = congestion::view(&connection);
    if let Some(KnownPath { rate, rtt_us, loss_ppm }) = known {
        let (rtt, loss) = (Duration::from_micros(rtt_us.into()), f64::from(loss_ppm) / 1e6);
        view.set_known(Known { rate: rate as f64, rtt, loss });
    }
    let path = Rc::new(Path {
        pace: Pace::new(&connection, &view),
        view,
        connection: connection.clone(),
        node,
        turn: Mutex::default(),
        priority: Cell::new(-1),
        transfers: RefCell::default(),
        pulse: Pulse::start(&connection, Heard::Acks),
    });
    let mut time = std::pin::pin!(path.pace.keep());
    let patience = worker.patience.repair;
    let mut tick = interval(patience);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            never = &mut time => never,
            _ = tick.tick() => {
                let given_up = path.transfers.borrow_mut().give_up_early(patience, Instant::now());
                worker.counters.add(Id::RequestsStalled, given_up);
            }
            stream = connection.accept_bi() => {
                let Ok((send, recv)) = stream else { break };
                let (worker, path) = (Rc::clone(worker), Rc::clone(&path));
                let work = async move {
                    let result = answer(&worker, &path, send, recv).await;
                    judge(&worker, &path, result);
                };
                tokio::task::spawn_local(work.in_current_span());
            }
            datagram = connection.read_datagram() => {
                let Ok(datagram) = datagram else { break };
                take_copy(worker, &path, &datagram);
            }
        }
    }
    worker.connections.forget_incoming(&connection);
    tracing::debug!("a peer disconnected");
}

fn judge(worker: &Worker, path: &Path, result: Result<(), ServeError>) {
    match result {
        Err(ServeError::Protocol(what)) => {
            worker.counters.add(Id::PeersProtocol, 1);
            tracing::warn!(what, "a peer broke the protocol; its connection is closed");
            path.connection.close(CLOSE_PROTOCOL, what.as_bytes());
        }
        Err(ServeError::Stalled) => {
            worker.counters.add(Id::RequestsStalled, 1);
            tracing::warn!("a peer takes nothing of what it asked for; its connection is closed");
            path.connection.close(CLOSE_STALLED, b"nothing is taken");
        }
        Err(ServeError::Silent) => worker.counters.add(Id::RequestsStalled, 1),
        Err(ServeError::Gone) | Ok(()) => {} // gone: it got the chunk elsewhere, or is no more
    }
}

/// A copy of a request that came before its stream is served at once, unless it is served better on the stream.
fn take_copy(worker: &Rc<Worker>, path: &Rc<Path>, datagram: &[u8]) {
    if datagram.is_empty() {
        return; // a pulse
    }
    let request = match Request::parse_copy(datagram) {
        Ok(request) => request,
        Err(error) => return judge(worker, path, Err(ServeError::Protocol(error.to_string()))),
    };
    let Some(sent) = path.transfers.borrow_mut().begin_early(request.transfer, Instant::now()) else { return };
    let (worker, path) = (Rc::clone(worker), Rc::clone(path));
    let work = async move {
        let _debt = path.pulse.owe();
        let result = async {
            let turn = path.turn.lock().await;
            let chunk = part(&worker, &path, &request).await;
            // What cannot go as symbols is refused or sent on the stream, when that comes.
            let Ok(buffer) = chunk else { return Ok(()) };
            let Some((shape, parity)) = plan(&worker, &path, &request, buffer.len()) else { return Ok(()) };
            let mut symbols = SymbolSender::new(&worker, &path, shape, request.transfer, buffer);
            symbols.send_all(parity).await?;
            drop(turn);
            worker.counters.add(Id::RequestsByCopy, 1);
            let _ = sent.send(symbols); // nobody waits when the requester had enough
            Ok(())
        };
        let result = result.await;
        judge(&worker, &path, result);
    };
    tokio::task::spawn_local(work.in_current_span());
}

/// Why a request was not answered to its end.
pub(super) enum ServeError {
    /// The peer sent what no peer sends.
    Protocol(String),
    /// The peer takes nothing of what is sent to it.
    Stalled,
    /// The peer neither asks for more nor says that it has enough.
    Silent,
    /// The peer does not wait for the rest.
    Gone,
}

pub(super) fn gone<E>(_: E) -> ServeError {
    ServeError::Gone
}

async fn answer(
    worker: &Rc<Worker>,
    path: &Rc<Path>,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), ServeError> {
    let mut bytes = [0; REQUEST_LEN];
    timeout(worker.patience.request, recv.read_exact(&mut bytes))
        .await
        .map_err(|_| ServeError::Silent)?
        .map_err(gone)?;
    let request = Request::parse(&bytes).map_err(|error| ServeError::Protocol(error.to_string()))?;
    let _debt = path.pulse.owe();
    path.transfers.borrow_mut().begin(request.transfer);
    let early = path.transfers.borrow_mut().early.remove(&request.transfer);
    if let Some((sent, _)) = early
        && let Ok(symbols) = sent.await
    {
        return symbols.follow_up(&mut send, &mut recv).await;
    }
    // A chunk is read right before it is sent, and is still in the cache then: to read it when it is asked for takes a
    // fifth more of a sender's processor time (docs/BENCHMARKS.md). Those who wait for the turn hold no buffer.
    let turn = path.turn.lock().await;
    let chunk = part(worker, path, &request).await;
    let buffer = match chunk {
        Ok(buffer) => buffer,
        Err(refusal) => {
            drop(turn);
            worker.counters.add(Id::RequestsRefused, 1);
            send.write_all(&Answer::Refused(refusal).to_bytes()).await.map_err(gone)?;
            let _ = send.finish();
            return Ok(());
        }
    };
    match plan(worker, path, &request, buffer.len()) {
        None => {
            worker.counters.add(Id::RequestsServed, 1);
            worker.counters.add(Id::BytesServed, buffer.len() as u64);
            let len = u32::try_from(buffer.len()).map_err(gone)?;
            let priority = path.priority.get();
            path.priority.set(priority.checked_sub(1).unwrap_or(-1));
            let _ = send.set_priority(priority); // fails only when the peer has stopped the stream, as writing will
            send.write_all(&Answer::Stream { len }.to_bytes()).await.map_err(gone)?;
            path.write(worker, &mut send, Bytes::from_owner(buffer)).await?;
            drop(turn);
            let _ = send.finish();
            let _ = timeout(worker.patience.stall, send.stopped()).await; // all of it has arrived, or the peer has had enough
            Ok(())
        }
        Some((shape, parity)) => {
            let mut symbols = SymbolSender::new(worker, path, shape, request.transfer, buffer);
            symbols.send_all(parity).await?;
            drop(turn);
            symbols.follow_up(&mut send, &mut recv).await
        }
    }
}

impl Path {
    /// Gives a chunk to the transport, as it takes it, and lets the transport send what it may.
    ///
    /// # Errors
    /// [`ServeError::Stalled`] when it takes nothing for too long.
    async fn write(&self, worker: &Worker, send: &mut SendStream, mut chunk: Bytes) -> Result<(), ServeError> {
        let stall = worker.patience.stall;
        while !chunk.is_empty() {
            let law = worker.policy().policy.congestion;
            let mut rest = [chunk.split_to(piece(law).min(chunk.len()))];
            self.pace.allow(rest.iter().map(Bytes::len).sum(), law).await;
            self.pace.note_given(rest.iter().map(Bytes::len).sum());
            while rest.iter().any(|rest| !rest.is_empty()) {
                timeout(stall, send.write_chunks(&mut rest)).await.map_err(|_| ServeError::Stalled)?.map_err(gone)?;
            }
        }
        // The worker's tasks take turns of many with the transport's: without this, chunks pile up before any is sent.
        tokio::task::yield_now().await;
        Ok(())
    }
}

/// Bytes given to the transport at a time: all of a chunk, or, at a fixed rate, what that sends in some milliseconds.
fn piece(law: CongestionLaw) -> usize {
    /// Pieces a second.
    const PIECES: u64 = 200;
    /// A packet.
    const PIECE_MIN: u64 = 1200;
    match law {
        CongestionLaw::Rate { bits_per_s } => {
            usize::try_from((bits_per_s / 8 / PIECES).max(PIECE_MIN)).unwrap_or(usize::MAX)
        }
        CongestionLaw::Auto | CongestionLaw::Cubic => usize::MAX,
    }
}

/// The part asked for, or why not.
async fn part(worker: &Worker, path: &Path, request: &Request) -> Result<Shared, Refusal> {
    let content = worker.store.content(request.content).await.map_err(|_| Refusal::NotHeld)?;
    if content.manifest().geometry().size() != request.size {
        return Err(Refusal::OtherSize);
    }
    let chunk = match request.part {
        Part::Chunk(chunk) => chunk,
        Part::Manifest(page) => {
            let (mut buffer, share) = worker.serve_buffers.take(path.node).await.into_parts();
            copy_page(content.manifest(), page, &mut buffer);
            return Ok(Shared::new(buffer, share));
        }
    };
    if !content.holds(chunk) {
        // Another worker of this node may have claimed it meanwhile.
        content.refresh().await.map_err(|_| Refusal::Unreadable)?;
        if !content.holds(chunk) {
            return Err(Refusal::NotHeld);
        }
    }
    let (mut buffer, share) = worker.serve_buffers.take(path.node).await.into_parts();
    if content.read_cached(chunk, &mut buffer) {
        return Ok(Shared::new(buffer, share));
    }
    worker.counters.add(Id::RequestsFromDisk, 1);
    let read = worker.store.read_for_peer(&content, chunk, buffer).await.map_err(|error| {
        tracing::warn!(content = %request.content, chunk, %error, "a chunk cannot be read");
        Refusal::Unreadable
    });
    read.map(|buffer| Shared::new(buffer, share))
}

fn copy_page(manifest: &Manifest, page: u32, to: &mut Buffer) {
    let chunks = manifest.geometry().manifest_page(page);
    let values = manifest.values().get(chunks.start as usize..chunks.end as usize).unwrap_or_default().as_flattened();
    if let Some(space) = to.space().get_mut(..values.len()) {
        space.copy_from_slice(values);
    }
    to.set_len(values.len());
}

/// How the chunk goes out: `None` = by stream.
fn plan(worker: &Worker, path: &Path, request: &Request, len: usize) -> Option<(ChunkShape, Parity)> {
    let room = path.connection.max_datagram_size().unwrap_or(0).saturating_sub(SYMBOL_HEADER_LEN);
    let symbol_len = room.min(usize::from(request.symbol_len_max)).min(SYMBOL_LEN_MAX);
    let shape = ChunkShape::new(len, symbol_len).ok();
    let policy = worker.policy();
    let situation = Situation {
        policy: policy.policy.fec_mode,
        wanted: request.mode,
        soon: request.soon,
        loss: path.view.loss(),
        loss_min_bp: policy.policy.fec_min_loss_bp,
        overhead_max_pct: policy.policy.fec_max_overhead_pct.min(request.overhead_max_pct),
        possible: symbol_len >= SYMBOL_LEN_MIN && shape.is_some(),
    };
    match choose(situation) {
        Delivery::Stream => None,
        Delivery::Fec(parity) => shape.map(|shape| (shape, parity)),
    }
}
