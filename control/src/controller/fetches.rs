//! Bringing chunks here: divide the work over workers and holders, mend what breaks, tell the catalog.
//!
//! A fetch belongs to a content, not to a program: all who want the same chunks share it, and it ends when its chunks
//! are durable or nobody wants them any more.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::{FutureExt, LocalBoxFuture};
use pangea_control_core::plan;
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::CHUNK_SIZE;
use pangea_ipc::failure::{Failure, FailureCode};
use pangea_ipc::ids::{ContentId, JobId, NodeId, WorkerIndex};
use pangea_ipc::node::ShareReport;
use pangea_ipc::peer::FoundHere;
use pangea_ipc::worker::{Command, FetchPlan, Share, Source};
use tokio::sync::{Notify, watch};
use tracing::Instrument;

use super::holders::{Search, Wait, find};
use super::node::{Job, Node, command, fresh_job, now_s};

/// A fetch for which nobody has some chunk fails after this time; one that has brought nothing for as long believes no
/// more that a source whose controller is silent will deliver.
const STARVED_TIME: Duration = Duration::from_secs(10);
/// Shares of each worker that failed since the last chunk came, at most: what fails as often does not get better by itself.
const FAILURES_MAX: usize = 8;
/// Nodes whose trouble a failure tells at most.
const TROUBLES_MAX: usize = 3;
/// How often peers are asked again what they hold, while a fetch runs.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How a fetch stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Under way.
    Running,
    /// Every chunk is durable.
    Done,
    /// Ended without its goal.
    Failed(Failure),
}

/// What one worker brings.
#[derive(Debug)]
struct WorkerShare {
    job: JobId,
    worker: WorkerIndex,
    chunks: ChunkSet,
    held: u32,
    durable: u32,
    by_node: BTreeMap<NodeId, Share>,
    /// Still under way; one that has ended keeps its figures.
    running: bool,
}

/// A fetch under way.
pub struct Fetch {
    /// The room that is kept for it goes by this id.
    pub id: JobId,
    /// The content.
    pub content: ContentId,
    /// Every chunk that it brings.
    pub chunks: ChunkSet,
    /// How it stands.
    pub state: watch::Sender<State>,
    /// Bytes in the whole, as far as is known.
    pub size: u64,
    shares: RefCell<Vec<WorkerShare>>,
    /// Chunks that are nobody's share.
    unassigned: RefCell<ChunkSet>,
    users: Cell<u32>,
    news: Notify,
    starved_since: Cell<Option<Instant>>,
    /// When the last chunk came.
    came_at: Cell<Instant>,
    /// Shares that have failed since then.
    failures: Cell<usize>,
    /// Whom the workers draw from.
    sources: RefCell<Rc<Vec<Source>>>,
    /// Sources that a worker gave up since it was last told whom to ask.
    given_up: RefCell<BTreeSet<NodeId>>,
    /// Nodes that were sources and are none any more.
    former: RefCell<BTreeSet<NodeId>>,
    banned: RefCell<BTreeSet<NodeId>>,
    trouble: RefCell<String>,
}

/// What a worker reports of its share.
#[derive(Debug)]
pub enum News {
    /// Figures.
    Progress {
        /// Verified chunks.
        chunks_held: u32,
        /// Durable chunks.
        chunks_durable: u32,
        /// By source.
        shares: Vec<(NodeId, Share)>,
    },
    /// All chunks are durable.
    Done,
    /// Nobody has some of them.
    Starved,
    /// A source was given up.
    SourceLost {
        /// Who.
        peer: NodeId,
        /// Why; [`FailureCode::Corrupt`]: it sent wrong bytes.
        why: Failure,
    },
    /// The share has ended.
    Failed(Failure),
}

impl Fetch {
    /// Some get waits for it.
    pub fn is_wanted(&self) -> bool {
        self.users.get() > 0
    }

    /// The nodes that it draws from.
    pub fn source_nodes(&self) -> Vec<NodeId> {
        self.sources.borrow().iter().map(|source| source.node).collect()
    }

    /// One more job wants it.
    pub fn join(&self) {
        self.users.set(self.users.get() + 1);
    }

    /// A job wants it no more.
    pub fn leave(&self) {
        self.users.set(self.users.get().saturating_sub(1));
        self.news.notify_one();
    }
}

/// Takes notice of what a worker reports. A share that nobody knows was begun under an earlier controller.
pub fn handle(node: &Rc<Node>, job: JobId, news: News) {
    let fetch =
        node.fetches.borrow().iter().find(|fetch| fetch.shares.borrow().iter().any(|share| share.job == job)).cloned();
    let Some(fetch) = fetch else {
        if matches!(news, News::Done | News::Failed(_)) {
            let node = Rc::clone(node);
            tokio::task::spawn_local(async move { super::contents::reconcile(&node).await });
        }
        return;
    };
    {
        let mut shares = fetch.shares.borrow_mut();
        let Some(share) = shares.iter_mut().find(|share| share.job == job) else { return };
        match news {
            News::Progress { chunks_held, chunks_durable, shares } => {
                if chunks_held > share.held {
                    fetch.starved_since.set(None);
                    fetch.came_at.set(Instant::now());
                    fetch.failures.set(0);
                }
                (share.held, share.durable) = (chunks_held, chunks_durable);
                share.by_node = shares.into_iter().collect();
            }
            News::Done => {
                share.running = false;
                (share.held, share.durable) = (share.chunks.count(), share.chunks.count());
            }
            News::Starved => {
                if fetch.starved_since.get().is_none() {
                    fetch.starved_since.set(Some(Instant::now()));
                }
            }
            News::SourceLost { peer, why } => {
                if why.code == FailureCode::Corrupt {
                    fetch.banned.borrow_mut().insert(peer);
                }
                fetch.given_up.borrow_mut().insert(peer);
                *fetch.trouble.borrow_mut() = why.text;
            }
            News::Failed(why) => {
                share.running = false;
                fetch.failures.set(fetch.failures.get() + 1);
                // The disk is the same for all workers: another would fail alike.
                let all_alike = matches!(why.code, FailureCode::Full | FailureCode::Storage);
                if all_alike || fetch.failures.get() > FAILURES_MAX * node.running().len().max(1) {
                    fetch.state.send_if_modified(|state| {
                        let running = *state == State::Running;
                        if running {
                            *state = State::Failed(why);
                        }
                        running
                    });
                } else {
                    *fetch.trouble.borrow_mut() = why.text;
                    fetch.unassigned.borrow_mut().union_with(&share.chunks);
                }
            }
        }
    }
    fetch.news.notify_one();
    update_jobs(node, &fetch);
}

/// A worker has gone: what it had not brought is somebody else's now.
pub fn worker_lost(node: &Rc<Node>, worker: WorkerIndex) {
    for fetch in node.fetches.borrow().iter() {
        for share in fetch.shares.borrow_mut().iter_mut().filter(|share| share.worker == worker && share.running) {
            share.running = false;
            fetch.unassigned.borrow_mut().union_with(&share.chunks);
        }
        fetch.news.notify_one();
    }
}

/// A worker came with shares of fetches that this controller did not plan. They go on: whoever waits for them reads
/// from the worker itself. One that does belong to a fetch here was given to others when the worker seemed lost.
pub fn adopt(node: &Rc<Node>, worker: WorkerIndex, orphans: Vec<(JobId, Option<ContentId>)>) {
    for (job, content) in orphans {
        tracing::info!(%worker, %job, ?content, "a fetch of an earlier controller goes on");
        node.orphans.borrow_mut().push((worker, job, content));
    }
}

/// Ends what an earlier controller began for a content: a new plan takes its place.
pub async fn cancel_orphans(node: &Rc<Node>, content: ContentId) {
    let mine: Vec<_> = node.orphans.borrow().iter().filter(|(_, _, of)| *of == Some(content)).copied().collect();
    node.orphans.borrow_mut().retain(|(_, _, of)| *of != Some(content));
    for (worker, job, _) in mine {
        let client = node.workers.borrow().get(&worker).map(|worker| worker.client.clone());
        if let Some(client) = client {
            // It may have ended meanwhile, which is as good.
            let _ = command(&client, &Command::Cancel(job)).await;
        }
    }
}

/// Tells the jobs that share a fetch how far it is.
fn update_jobs(node: &Node, fetch: &Fetch) {
    let sharing: Vec<Rc<Job>> = {
        let jobs = node.jobs.borrow();
        let shares = |job: &&Rc<Job>| job.fetches.borrow().iter().any(|shared| shared.id == fetch.id);
        jobs.values().filter(shares).cloned().collect()
    };
    for job in sharing {
        let fetches = job.fetches.borrow();
        let (mut held, mut durable, mut reports) = (0, 0, Vec::new());
        for fetch in fetches.iter() {
            for share in fetch.shares.borrow().iter() {
                held += share.held;
                durable += share.durable;
                reports.extend(share.by_node.iter().map(|(node, figures)| report(share.worker, *node, figures)));
            }
        }
        job.change(|report| {
            report.chunks_held = report.chunks_wanted.min(report.chunks_before + held);
            report.chunks_durable = report.chunks_wanted.min(report.chunks_before + durable);
            report.shares = reports;
        });
    }
}

fn report(worker: WorkerIndex, node: NodeId, share: &Share) -> ShareReport {
    ShareReport {
        worker,
        node,
        bytes: share.bytes,
        chunks_by_stream: share.chunks_by_stream,
        chunks_by_fec: share.chunks_by_fec,
        symbols_sent: share.symbols_sent,
        symbols_lost: share.symbols_lost,
        symbols_received: share.symbols_received,
        symbols_repaired: share.symbols_repaired,
        symbols_asked_again: share.symbols_asked_again,
        parity_unused: share.parity_unused,
        chunks_bad: share.chunks_bad,
    }
}

/// Starts a fetch of `chunks`, for which room is kept under `id`. `found`: who was just found to hold it, if anyone was
/// asked.
pub fn start(
    node: &Rc<Node>,
    id: JobId,
    content: ContentId,
    size: u64,
    chunks: ChunkSet,
    found: Vec<(NodeId, FoundHere)>,
) -> Rc<Fetch> {
    let fetch = Rc::new(Fetch {
        id,
        content,
        unassigned: RefCell::new(chunks.clone()),
        chunks,
        state: watch::Sender::new(State::Running),
        size,
        shares: RefCell::default(),
        users: Cell::new(1),
        news: Notify::new(),
        starved_since: Cell::new(None),
        came_at: Cell::new(Instant::now()),
        failures: Cell::new(0),
        sources: RefCell::default(),
        given_up: RefCell::default(),
        former: RefCell::default(),
        banned: RefCell::default(),
        trouble: RefCell::default(),
    });
    node.fetches.borrow_mut().push(Rc::clone(&fetch));
    let (node, driven) = (Rc::clone(node), Rc::clone(&fetch));
    let span = tracing::info_span!("job", kind = "fetch", %id, %content);
    tokio::task::spawn_local(async move { drive(&node, &driven, found).await }.instrument(span));
    fetch
}

async fn drive(node: &Rc<Node>, fetch: &Rc<Fetch>, found: Vec<(NodeId, FoundHere)>) {
    let result = bring(node, fetch, found).await;
    let left: Vec<_> = {
        let shares = fetch.shares.borrow();
        shares.iter().filter(|share| share.running).map(|share| (share.worker, share.job)).collect()
    };
    for (worker, job) in left {
        let client = node.workers.borrow().get(&worker).map(|worker| worker.client.clone());
        if let Some(client) = client {
            let _ = command(&client, &Command::Cancel(job)).await; // gone is as good as cancelled
        }
    }
    node.refresh_content(fetch.content).await;
    node.update_content(fetch.content, |record| record.used_s = now_s());
    node.catalog.borrow_mut().release(fetch.id);
    super::sizes::note_end(node, fetch, &result).await;
    let complete = node.catalog.borrow().get(fetch.content).is_some_and(|record| record.is_complete());
    if complete {
        super::sessions::announce(node, fetch.content, fetch.size);
    }
    node.fetches.borrow_mut().retain(|other| other.id != fetch.id);
    tracing::info!(?result, "fetch ended");
    fetch.state.send_replace(match result {
        Ok(()) => State::Done,
        Err(failure) => State::Failed(failure),
    });
}

async fn bring(node: &Rc<Node>, fetch: &Rc<Fetch>, found: Vec<(NodeId, FoundHere)>) -> Result<(), Failure> {
    fetch.sources.replace(Rc::new(sources_of(node, fetch, found)));
    // An object comes from whoever is known to have it; for more it is worth to know of everybody who has some.
    let known = !fetch.sources.borrow().is_empty() && fetch.size <= u64::from(CHUNK_SIZE);
    let mut asked_at: Option<Instant> = known.then(Instant::now);
    let mut asking: Option<LocalBoxFuture<'_, (Vec<Source>, bool)>> = None;
    let mut hope = true;
    let mut changes = node.sessions_changed.subscribe();
    let mut workers_changed = node.workers_changed.subscribe();
    loop {
        if let State::Failed(failure) = &*fetch.state.borrow() {
            return Err(failure.clone());
        }
        if fetch.users.get() == 0 {
            return Err(Failure::cancelled("nobody waits for it any more; what is here stays"));
        }
        let found_out = {
            let (mut sources, banned) = (fetch.sources.borrow_mut(), fetch.banned.borrow());
            let found_out = sources.iter().any(|source| banned.contains(&source.node));
            if found_out {
                Rc::make_mut(&mut sources).retain(|source| !banned.contains(&source.node));
            }
            found_out
        };
        let sources = Rc::clone(&fetch.sources.borrow());
        // A peer that answers late, or never, must not hold up the fetch.
        if asking.is_none() && (found_out || asked_at.is_none_or(|at| at.elapsed() >= ASK_AGAIN)) {
            asked_at = Some(Instant::now());
            asking = Some(current_sources(node, fetch).boxed_local());
        }
        assign(node, fetch, &sources).await?;
        let settled = fetch.unassigned.borrow().is_empty();
        if settled && fetch.shares.borrow().iter().all(|share| !share.running) {
            return Ok(());
        }
        if sources.is_empty() && asking.is_none() {
            if !hope {
                return Err(starved(node, fetch, &sources));
            }
            if fetch.starved_since.get().is_none() {
                fetch.starved_since.set(Some(Instant::now()));
            }
        }
        if let Some(since) = fetch.starved_since.get()
            && since.elapsed() >= STARVED_TIME
        {
            return Err(starved(node, fetch, &sources));
        }
        tokio::select! {
            () = fetch.news.notified() => {}
            Some((news, more)) = async { Some(asking.as_mut()?.await) } => {
                (asking, hope) = (None, more);
                // One that a worker gave up and that says again to hold something gets another try.
                let given_up = fetch.given_up.take();
                fetch.former.borrow_mut().extend(sources.iter().map(|source| source.node));
                if news != *sources || news.iter().any(|source| given_up.contains(&source.node)) {
                    set_sources(node, fetch, &news).await;
                    fetch.sources.replace(Rc::new(news));
                }
            }
            _ = changes.changed() => asked_at = None,
            _ = workers_changed.changed() => {}
            () = tokio::time::sleep(ASK_AGAIN) => {}
        }
    }
}

fn starved(node: &Node, fetch: &Fetch, sources: &[Source]) -> Failure {
    let sessions = node.sessions.borrow().len();
    let banned = fetch.banned.borrow();
    let mut text = format!(
        "no reachable node has all of content {} (connected peers: {sessions}, with something of it: {})",
        fetch.content,
        sources.len()
    );
    let trouble = fetch.trouble.borrow();
    if !trouble.is_empty() {
        text.push_str(&format!("; last trouble: {trouble}"));
    }
    let (former, neighbours) = (fetch.former.borrow(), node.neighbours.borrow());
    let why = |peer: &NodeId| match neighbours.is_known(*peer) {
        true => Some((*peer, neighbours.trouble(*peer)?)),
        false => Some((*peer, "it is no peer any more")),
    };
    for (peer, why) in former.iter().filter_map(why).take(TROUBLES_MAX) {
        // What became of dialling it names it already.
        let name = if why.starts_with("node ") { String::new() } else { format!("node {peer}: ") };
        text.push_str(&format!("; {name}{why}"));
    }
    text.push_str(
        "; what is here stays: run the command again when a holder is reachable (pangeactl peer ls), or name one with \
         get --peer",
    );
    let code = if banned.is_empty() { FailureCode::Unavailable } else { FailureCode::Corrupt };
    Failure::new(code, text)
}

/// Who holds what, as far as peers say now, and have said who do not answer. Second: whether it is worth waiting for
/// more. It is not when everybody who is known has answered, or has been found not to, and nobody has any of it.
async fn current_sources(node: &Rc<Node>, fetch: &Fetch) -> (Vec<Source>, bool) {
    let search = find(node, fetch.content, Wait::All).await;
    let silent = search.silent() > 0;
    let unheard = unheard_sources(node, fetch, &search);
    let mut holders = holders_of(node, fetch, search.found);
    holders.extend(unheard);
    // Who has some of it may be getting the rest, or its workers may be away for a moment.
    let hope = !holders.is_empty() || silent || node.neighbours.borrow().may_come(STARVED_TIME, Instant::now());
    (plan::sources(holders, &fetch.chunks), hope)
}

/// Sources from which nothing was heard now: their controllers have gone, or are slow. Their workers deliver all the same,
/// so they stay sources while chunks come.
fn unheard_sources(node: &Node, fetch: &Fetch, search: &Search) -> Vec<Source> {
    if fetch.came_at.get().elapsed() >= STARVED_TIME {
        return Vec::new();
    }
    let (neighbours, banned, given_up) = (node.neighbours.borrow(), fetch.banned.borrow(), fetch.given_up.borrow());
    let stays = |source: &&Source| {
        let peer = source.node;
        // One that the operator removed meanwhile is not known any more.
        !search.answered.contains(&peer)
            && neighbours.is_known(peer)
            && !banned.contains(&peer)
            && !given_up.contains(&peer)
    };
    fetch.sources.borrow().iter().filter(stays).cloned().collect()
}

/// Whether what a peer says to hold is of this content, and the peer has not been found out.
fn counts(fetch: &Fetch, peer: NodeId, here: &FoundHere) -> bool {
    !fetch.banned.borrow().contains(&peer) && here.size == fetch.size
}

fn sources_of(node: &Node, fetch: &Fetch, found: Vec<(NodeId, FoundHere)>) -> Vec<Source> {
    plan::sources(holders_of(node, fetch, found), &fetch.chunks)
}

fn holders_of(node: &Node, fetch: &Fetch, found: Vec<(NodeId, FoundHere)>) -> Vec<Source> {
    let mut holders = Vec::new();
    for (peer, here) in found {
        if !counts(fetch, peer, &here) {
            continue;
        }
        let endpoints = node.neighbours.borrow().workers(peer).to_vec();
        holders.push(Source { node: peer, held: here.held, endpoints });
    }
    holders
}

async fn set_sources(node: &Rc<Node>, fetch: &Fetch, sources: &[Source]) {
    let running: Vec<_> = {
        let shares = fetch.shares.borrow();
        shares.iter().filter(|share| share.running).map(|share| (share.worker, share.job)).collect()
    };
    for (worker, job) in running {
        let client = node.workers.borrow().get(&worker).map(|worker| worker.client.clone());
        if let Some(client) = client {
            // A share that has just ended needs none.
            let _ = command(&client, &Command::SetSources { job, sources: sources.to_vec() }).await;
        }
    }
}

/// Gives chunks that are nobody's share to the workers that run.
async fn assign(node: &Rc<Node>, fetch: &Fetch, sources: &[Source]) -> Result<(), Failure> {
    if fetch.unassigned.borrow().is_empty() || sources.is_empty() {
        return Ok(());
    }
    // A worker that was lost may have claimed chunks before it went.
    let lost_some = !fetch.shares.borrow().is_empty();
    if lost_some && let Some(holdings) = node.holdings(fetch.content).await? {
        fetch.unassigned.borrow_mut().subtract(&holdings.held);
    }
    let workers = node.await_running().await?;
    let indexes: Vec<WorkerIndex> = workers.iter().map(|(index, _)| *index).collect();
    let missing = fetch.unassigned.replace(ChunkSet::empty(fetch.chunks.bound()));
    for (index, chunks) in plan::stripe(&missing, &indexes) {
        let Some((_, client)) = workers.iter().find(|(worker, _)| *worker == index) else { continue };
        let job = fresh_job()?;
        let share = WorkerShare {
            job,
            worker: index,
            chunks: chunks.clone(),
            held: 0,
            durable: 0,
            by_node: BTreeMap::new(),
            running: true,
        };
        fetch.shares.borrow_mut().push(share);
        let plan = FetchPlan { job, content: fetch.content, chunks: chunks.clone(), sources: sources.to_vec() };
        if let Err(failure) = command(client, &Command::Fetch(plan)).await {
            tracing::warn!(worker = %index, %failure, "a worker did not take its share");
            fetch.shares.borrow_mut().retain(|share| share.job != job);
            fetch.unassigned.borrow_mut().union_with(&chunks);
            fetch.trouble.replace(failure.text);
        }
    }
    Ok(())
}
