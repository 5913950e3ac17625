//! A fetch: this worker's share of a content comes from peers, chunk by chunk, verified, stored, synced.
//!
//! [`pangea_dataplane_core::fetch`] decides what to ask of whom; this file has the hands.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use futures::StreamExt;
use futures::future::{AbortHandle, Abortable, FutureExt, LocalBoxFuture};
use futures::stream::FuturesUnordered;
use pangea_dataplane_core::assembly::Tally;
use pangea_dataplane_core::fetch::{Failed, Fetch, SourceId, Step};
use pangea_dataplane_core::frame::{Mode, Part};
use pangea_ipc::address::Endpoint;
use pangea_ipc::content::{ChunkIndex, Geometry};
use pangea_ipc::counter::Id;
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, NodeId};
use pangea_ipc::policy::FecMode;
use pangea_ipc::worker::{Event, FetchPlan, JobKind, Share, Source};
use tokio::sync::mpsc;
use tokio::time::{Duration, MissedTickBehavior, interval, sleep_until};
use tracing::Instrument;

use super::span;
use crate::commands::entry;
use crate::net::ask::{AskError, Came, Question, ask};
use crate::net::connections::ConnectError;
use crate::store::StoreError;
use crate::store::content::Content;
use crate::worker::{JobEntry, JobGuard, Worker};

/// Chunks that may wait for a sync before one is started: 32 MiB.
const SYNC_CHUNKS: u32 = 128;
/// How often figures are reported, and what is written is synced, while a fetch runs.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// Round trips that the end of a fetch lasts: one in which the losses before it become known and are sent again, and half
/// of one for those that are lost again.
const END_RTTS: u32 = 2;

/// Starts a fetch.
///
/// # Errors
/// When the worker takes no more jobs.
pub fn start(worker: &Rc<Worker>, plan: FetchPlan) -> Result<(), Failure> {
    let (sources, new_sources) = mpsc::unbounded_channel();
    let (wanted, wishes) = mpsc::unbounded_channel();
    let guard = worker.begin(
        plan.job,
        JobEntry { content: Some(plan.content), sources: Some(sources), wanted: Some(wanted), ..entry(JobKind::Fetch) },
    )?;
    let span = span(JobKind::Fetch, plan.job);
    let work = async move {
        let (worker, job) = (Rc::clone(guard.worker()), plan.job);
        let cancel = Rc::clone(&guard.entry.cancel);
        let result = tokio::select! {
            result = run(&worker, &guard, plan, new_sources, wishes) => result,
            () = cancel.notified() => Err(Failure::cancelled("the fetch was cancelled")),
        };
        worker.report(match result {
            Ok(()) => Event::FetchDone(job),
            Err(why) => {
                tracing::info!(%why, "fetch ended");
                Event::Failed { job, why }
            }
        });
    };
    tokio::task::spawn_local(work.instrument(span));
    Ok(())
}

async fn run(
    worker: &Worker,
    guard: &JobGuard,
    plan: FetchPlan,
    mut new_sources: mpsc::UnboundedReceiver<Vec<Source>>,
    mut wishes: mpsc::UnboundedReceiver<std::ops::Range<ChunkIndex>>,
) -> Result<(), Failure> {
    let content = worker.store.content(plan.content).await.map_err(|error| error.to_failure())?;
    if plan.chunks.bound() != content.manifest().geometry().chunk_count() {
        return Err(Failure::invalid(format!("the plan is for {} chunks", plan.chunks.bound())));
    }
    content.recover(&plan.chunks).await.map_err(|error| error.to_failure())?;
    let mut driver = Driver::new(worker, guard, &plan, &content);
    driver.set_sources(plan.sources);
    let mut tick = interval(REPORT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sync: Option<LocalBoxFuture<'_, Result<(), StoreError>>> = None;
    let mut sync_due = false;
    let mut whole = false;
    loop {
        driver.take_steps();
        let done = driver.fetch.is_done();
        if done && !std::mem::replace(&mut whole, true) {
            tracing::debug!(unsynced = content.unsynced(), "every chunk is here");
        }
        let unsynced = content.unsynced();
        if sync.is_none() && unsynced > 0 && (done || sync_due || unsynced >= SYNC_CHUNKS) {
            sync_due = false;
            sync = Some(worker.store.sync(&content).boxed_local());
        }
        if done && sync.is_none() {
            driver.report();
            return Ok(());
        }
        let timeout = driver.fetch.poll_timeout(Instant::now());
        tokio::select! {
            Some((source, chunk, outcome)) = driver.asks.next(), if !driver.asks.is_empty() => {
                driver.handle(source, chunk, outcome)?;
            }
            Some(result) = async { Some(sync.as_mut()?.await) } => {
                sync = None;
                result.map_err(|error| error.to_failure())?;
            }
            Some(sources) = new_sources.recv() => driver.set_sources(sources),
            Some(chunks) = wishes.recv() => driver.fetch.prioritise(chunks),
            _ = tick.tick() => {
                sync_due = true;
                driver.fetch.set_window(usize::from(worker.policy().policy.transfer_inflight_chunks));
                driver.report();
            }
            () = async { sleep_until(timeout.unwrap_or_else(Instant::now).into()).await }, if timeout.is_some() => {}
        }
    }
}

/// A node that holds chunks, and which of its workers is asked.
struct Peer {
    id: SourceId,
    endpoints: Vec<Endpoint>,
    /// The endpoint in use; another is tried when it cannot be reached.
    at: Rc<RefCell<usize>>,
}

type Asked<'a> = LocalBoxFuture<'a, (SourceId, ChunkIndex, Result<(Came, u64, Duration), AskFailed>)>;

enum AskFailed {
    Peer(AskError),
    Connect(ConnectError),
    Store(StoreError),
    Forgotten,
}

struct Driver<'a> {
    worker: &'a Worker,
    guard: &'a JobGuard,
    content: &'a Rc<Content>,
    fetch: Fetch,
    chunks_total: u32,
    peers: BTreeMap<NodeId, Peer>,
    asks: FuturesUnordered<Asked<'a>>,
    aborts: HashMap<(SourceId, ChunkIndex), AbortHandle>,
    shares: BTreeMap<NodeId, Share>,
    /// What the controller was told is unobtainable, so that it is told once.
    starved: u32,
    troubles: BTreeMap<SourceId, String>,
    /// When chunks came lately.
    came: VecDeque<Instant>,
    /// The longest round trip to a source.
    rtt: Duration,
}

impl<'a> Driver<'a> {
    fn new(worker: &'a Worker, guard: &'a JobGuard, plan: &FetchPlan, content: &'a Rc<Content>) -> Self {
        let mut missing = plan.chunks.clone();
        missing.subtract(&content.held());
        let window = usize::from(worker.policy().policy.transfer_inflight_chunks);
        Self {
            worker,
            guard,
            content,
            chunks_total: plan.chunks.count(),
            fetch: Fetch::new(missing, window),
            peers: BTreeMap::new(),
            asks: FuturesUnordered::new(),
            aborts: HashMap::new(),
            shares: BTreeMap::new(),
            starved: 0,
            troubles: BTreeMap::new(),
            came: VecDeque::new(),
            rtt: Duration::ZERO,
        }
    }

    /// Takes the controller's word for who holds what; what goes on with known sources goes on.
    fn set_sources(&mut self, sources: Vec<Source>) {
        let now = Instant::now();
        let gone: Vec<NodeId> =
            self.peers.keys().filter(|node| !sources.iter().any(|source| source.node == **node)).copied().collect();
        for node in gone {
            if let Some(peer) = self.peers.remove(&node) {
                self.fetch.remove_source(peer.id);
            }
        }
        for source in sources {
            if source.endpoints.is_empty() {
                continue;
            }
            match self.peers.get_mut(&source.node) {
                Some(peer) => {
                    self.fetch.set_held(peer.id, source.held);
                    peer.endpoints = source.endpoints;
                }
                None => {
                    let id = self.fetch.add_source(source.held, now);
                    // Workers of the same number talk to each other, so that all of both nodes are used.
                    let at = Rc::new(RefCell::new(usize::from(self.worker.index.0)));
                    self.peers.insert(source.node, Peer { id, endpoints: source.endpoints, at });
                }
            }
        }
        self.starved = 0;
    }

    fn node_of(&self, source: SourceId) -> Option<NodeId> {
        self.peers.iter().find(|(_, peer)| peer.id == source).map(|(node, _)| *node)
    }

    fn take_steps(&mut self) {
        while let Some(step) = self.fetch.poll_step(Instant::now()) {
            match step {
                Step::Ask { source, chunk, soon } => self.start_asking(source, chunk, soon),
                Step::Forget { source, chunk } => {
                    if let Some(abort) = self.aborts.get(&(source, chunk)) {
                        abort.abort();
                    }
                }
                Step::Drop { source, misbehaved } => self.drop_source(source, misbehaved),
            }
        }
        if !self.asks.is_empty() {
            return;
        }
        let lacking = self.fetch.unobtainable();
        if lacking.count() != self.starved {
            self.starved = lacking.count();
            if !lacking.is_empty() {
                // What has come is told first: progress that is told later would take this back.
                self.report();
                self.worker.report(Event::Starved { job: self.guard.job(), missing: lacking });
            }
        }
    }

    fn drop_source(&mut self, source: SourceId, misbehaved: bool) {
        let Some(node) = self.node_of(source) else { return };
        self.peers.remove(&node);
        let text = self.troubles.remove(&source).unwrap_or_default();
        let why = if misbehaved {
            Failure::corrupt(format!("node {node} sent wrong bytes: {text}"))
        } else {
            Failure::unavailable(format!("node {node} does not deliver: {text}"))
        };
        tracing::warn!(%node, %why, "source given up");
        self.worker.report(Event::SourceLost { job: self.guard.job(), node, why });
    }

    fn start_asking(&mut self, source: SourceId, chunk: ChunkIndex, soon: bool) {
        let Some(peer) = self.peers.values().find(|peer| peer.id == source) else {
            self.fetch.remove_source(source);
            return;
        };
        let count = peer.endpoints.len().max(1);
        let tried = *peer.at.borrow();
        let Some(endpoint) = peer.endpoints.get(tried % count).copied() else { return };
        let (worker, content, at) = (self.worker, self.content, Rc::clone(&peer.at));
        let (id, geometry) = (content.manifest().id(), content.manifest().geometry());
        let question = question(worker, id, geometry, Part::Chunk(chunk), soon);
        let one = async move {
            let connection = worker.connections.to(endpoint).await.map_err(|error| {
                // Once for all who fail alike.
                let _ = at.replace_with(|at| if *at == tried { tried.wrapping_add(1) } else { *at });
                AskFailed::Connect(error)
            })?;
            let buffer = match worker.buffers.try_take() {
                Some(buffer) => buffer,
                None => {
                    worker.counters.add(Id::BufferWaits, 1);
                    worker.buffers.take().await
                }
            };
            let (buffer, came) = ask(&connection, question, buffer, &worker.codec).await.map_err(AskFailed::Peer)?;
            let len = buffer.len() as u64;
            worker.store.write(content, chunk, buffer).await.map_err(AskFailed::Store)?;
            Ok((came, len, connection.quic.rtt()))
        };
        let (abort, registration) = AbortHandle::new_pair();
        self.aborts.insert((source, chunk), abort);
        let one = Abortable::new(one, registration);
        self.asks.push(async move { (source, chunk, one.await.unwrap_or(Err(AskFailed::Forgotten))) }.boxed_local());
    }

    /// What comes within [`END_RTTS`] is the end: by then what was lost before it has been sent again.
    fn note_came(&mut self, now: Instant) {
        self.came.push_back(now);
        while self.came.front().is_some_and(|at| *at + self.rtt * END_RTTS < now) {
            self.came.pop_front();
        }
        self.fetch.set_end(u32::try_from(self.came.len()).unwrap_or(u32::MAX));
    }

    fn handle(
        &mut self,
        source: SourceId,
        chunk: ChunkIndex,
        outcome: Result<(Came, u64, Duration), AskFailed>,
    ) -> Result<(), Failure> {
        self.aborts.remove(&(source, chunk));
        let now = Instant::now();
        match outcome {
            Ok((came, len, rtt)) => {
                tracing::trace!(chunk, ?came, "a chunk came");
                self.rtt = self.rtt.max(rtt);
                self.note_came(now);
                if self.fetch.handle_verified(source, chunk, now) {
                    self.count(source, came, len);
                }
                let done = self.chunks_total.saturating_sub(self.fetch.missing().count());
                self.guard.entry.progress.set((done, self.chunks_total));
            }
            Err(AskFailed::Forgotten) => {}
            Err(AskFailed::Store(StoreError::WrongBytes { .. })) => {
                self.worker.counters.add(Id::ChunksBad, 1);
                if let Some(node) = self.node_of(source) {
                    self.shares.entry(node).or_default().chunks_bad += 1;
                }
                self.troubles.insert(source, format!("chunk {chunk} does not match the content id"));
                self.fetch.handle_failed(source, chunk, Failed::BadBytes, now);
            }
            Err(AskFailed::Store(error)) => {
                if matches!(error, StoreError::Full { .. }) {
                    self.worker.counters.add(Id::DiskFull, 1);
                }
                return Err(error.to_failure());
            }
            Err(AskFailed::Connect(error)) => {
                // Each try is told of once: all who waited for it fail alike.
                let text = error.to_string();
                match error {
                    ConnectError::SameTry(_) => tracing::debug!(%text, "no connection"),
                    _ => tracing::warn!(%text, "no connection"),
                }
                let seconds = matches!(error, ConnectError::TimedOut { .. });
                self.troubles.insert(source, text);
                let why = if seconds { Failed::Unreachable } else { Failed::Transient };
                self.fetch.handle_failed(source, chunk, why, now);
            }
            Err(AskFailed::Peer(error)) => {
                tracing::debug!(chunk, %error, "a chunk did not come");
                let kind = error.kind();
                if kind == Failed::BadBytes {
                    self.worker.counters.add(Id::AnswersRefused, 1);
                }
                self.troubles.insert(source, error.to_string());
                self.fetch.handle_failed(source, chunk, kind, now);
            }
        }
        Ok(())
    }

    fn count(&mut self, source: SourceId, came: Came, len: u64) {
        let counters = &self.worker.counters;
        counters.add(Id::BytesFetched, len);
        let Some(node) = self.node_of(source) else { return };
        self.worker.note_received(node, len);
        let share = self.shares.entry(node).or_default();
        share.bytes += len;
        match came {
            Came::ByStream => {
                counters.add(Id::ChunksByStream, 1);
                share.chunks_by_stream += 1;
            }
            Came::BySymbols(Tally { sent, lost, received, repaired, asked_again, parity_unused }) => {
                counters.add(Id::ChunksByFec, 1);
                counters.add(Id::SymbolsReceived, received);
                counters.add(Id::SymbolsLost, lost);
                counters.add(Id::SymbolsRepaired, repaired);
                counters.add(Id::SymbolsAskedAgain, asked_again);
                counters.add(Id::SymbolsUnused, parity_unused);
                share.chunks_by_fec += 1;
                share.symbols_sent += sent;
                share.symbols_lost += lost;
                share.symbols_received += received;
                share.symbols_repaired += repaired;
                share.symbols_asked_again += asked_again;
                share.parity_unused += parity_unused;
            }
        }
    }

    fn report(&self) {
        let held = self.chunks_total.saturating_sub(self.fetch.missing().count());
        self.worker.report(Event::Progress {
            job: self.guard.job(),
            chunks_held: held,
            chunks_durable: held.saturating_sub(self.content.unsynced()),
            shares: self.shares.iter().map(|(node, share)| (*node, *share)).collect(),
        });
    }
}

/// A question for a part of a content, by this node's policy.
pub fn question(worker: &Worker, content: ContentId, geometry: Geometry, part: Part, soon: bool) -> Question {
    let policy = worker.policy();
    Question {
        content,
        geometry,
        part,
        mode: match policy.policy.fec_mode {
            FecMode::Auto => Mode::Auto,
            FecMode::Off => Mode::Stream,
            FecMode::Always => Mode::Fec,
        },
        soon,
        overhead_max_pct: policy.policy.fec_max_overhead_pct,
    }
}
