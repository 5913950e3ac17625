//! The state that all parts of the controller share. One thread, no locks; no borrow is held across an await.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pangea_control_core::catalog::{Catalog, Record};
use pangea_control_core::fleet::Fleet;
use pangea_control_core::history::History;
use pangea_control_core::neighbours::Neighbours;
use pangea_control_core::sizes::Doubts;
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, JobId, NodeId, WorkerIndex};
use pangea_ipc::node::{JobReport, JobState};
use pangea_ipc::peer::Introduction;
use pangea_ipc::policy::Revised;
use pangea_ipc::rpc::{PeerClient, WorkerClient};
use pangea_ipc::worker::{Command, Holdings, Registration, Reply};
use pangea_ring::CountersView;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::timeout;

use super::catalog_db::{CatalogDb, DbError, Stored};
use super::fetches::Fetch;
use super::identity::Identity;
use super::settings::Settings;

/// A worker that does not answer a command within this time is wedged.
pub const COMMAND_TIME: Duration = Duration::from_secs(10);
/// How long a request waits for a worker to be there, right after a start or a crash.
const WORKER_WAIT: Duration = Duration::from_secs(10);

/// A registered worker.
#[derive(Clone)]
pub struct Worker {
    /// Commands it.
    pub client: WorkerClient,
    /// What it said of itself.
    pub registration: Registration,
    /// It takes no new jobs.
    pub draining: bool,
    /// Its counters, as long as this is kept: it takes their name away when it ends. `None` = the system refused.
    pub counters: Option<Rc<CountersView>>,
}

/// A session with a peer.
#[derive(Clone)]
pub struct Session {
    /// Asks it.
    pub client: PeerClient,
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Whether this node opened it.
    pub opened_here: bool,
    /// Ends it.
    pub close: Rc<Notify>,
}

/// What a program waits for.
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// How it stands.
    pub report: watch::Sender<JobReport>,
    /// What it shares with others.
    pub fetches: RefCell<Vec<Rc<Fetch>>>,
}

impl Job {
    /// A job that has just begun.
    #[must_use]
    pub fn new(id: JobId, content: Option<ContentId>, size: u64) -> Rc<Self> {
        let report = JobReport {
            job: id,
            version: 1,
            state: JobState::Running,
            failure: None,
            content,
            size,
            chunks_wanted: 0,
            chunks_before: 0,
            chunks_held: 0,
            chunks_durable: 0,
            chunks_bad: 0,
            chunks_lost: 0,
            shares: Vec::new(),
            contents_damaged: 0,
            damaged: Vec::new(),
        };
        Rc::new(Self { id, report: watch::Sender::new(report), fetches: RefCell::default() })
    }

    /// Changes how it stands, and tells who waits, when that is news.
    pub fn change(&self, change: impl FnOnce(&mut JobReport)) {
        self.report.send_if_modified(|report| {
            let before = report.clone();
            change(report);
            let news = *report != before;
            report.version += u64::from(news);
            news
        });
    }

    /// Ends it.
    pub fn end(&self, result: Result<(), Failure>) {
        self.change(|report| match result {
            Ok(()) => report.state = JobState::Done,
            Err(failure) => {
                report.state = JobState::Failed;
                report.failure = Some(failure);
            }
        });
    }
}

/// What a verify of one content found: chunks that were right, and those that were wrong.
pub type Verified = Result<(u32, ChunkSet), Failure>;

/// The controller's state.
pub struct Node {
    /// What it runs with.
    pub settings: Settings,
    /// Its key.
    pub identity: Identity,
    /// What survives a restart.
    pub db: CatalogDb,
    /// Contents.
    pub catalog: RefCell<Catalog>,
    /// Names of puts under way.
    pub puts: RefCell<BTreeMap<JobId, String>>,
    /// Which worker takes which put.
    pub put_workers: RefCell<BTreeMap<JobId, WorkerIndex>>,
    /// Policies.
    pub history: RefCell<History>,
    /// The policy in force.
    pub policy: watch::Sender<Revised>,
    /// The node store.
    pub neighbours: RefCell<Neighbours>,
    /// Sessions with peers.
    pub sessions: RefCell<HashMap<NodeId, Session>>,
    /// Nodes that are being dialled.
    pub dialling: RefCell<BTreeSet<NodeId>>,
    /// A session began or ended.
    pub sessions_changed: watch::Sender<u64>,
    /// Registered workers.
    pub workers: RefCell<BTreeMap<WorkerIndex, Worker>>,
    /// A worker came or went.
    pub workers_changed: watch::Sender<u64>,
    /// Workers that this controller keeps running.
    pub wanted: RefCell<Vec<WorkerIndex>>,
    /// Processes of the workers that this controller started and that have not ended.
    pub children: RefCell<BTreeMap<WorkerIndex, u32>>,
    /// When to start workers again.
    pub fleet: RefCell<Fleet>,
    /// Counters of workers that have ended, summed.
    pub retired: RefCell<Vec<u64>>,
    /// Jobs of programs.
    pub jobs: RefCell<HashMap<JobId, Rc<Job>>>,
    /// Fetches under way.
    pub fetches: RefCell<Vec<Rc<Fetch>>>,
    /// Fetches that an earlier controller began and that go on.
    pub orphans: RefCell<Vec<(WorkerIndex, JobId, Option<ContentId>)>>,
    /// Sizes of contents that nodes told and that are in doubt.
    pub doubts: RefCell<Doubts>,
    /// Contents that are being read again and repaired.
    pub verifying: RefCell<Vec<ContentId>>,
    /// Who waits for which verify.
    pub verifies: RefCell<HashMap<JobId, oneshot::Sender<Verified>>>,
    /// Where the controller listens for peers.
    pub listen: Cell<Option<SocketAddr>>,
    /// Where metrics are served.
    pub metrics: Cell<Option<SocketAddr>>,
    /// Why the store has stopped writing; empty when it has not.
    pub store_failure: RefCell<String>,
    /// Why the catalog could not be written the last time; empty when it could.
    pub catalog_failure: RefCell<String>,
    /// Contents of which the catalog on disk knows less than the one in memory.
    unsaved: RefCell<BTreeSet<ContentId>>,
    /// Something that pins depend on has changed.
    pub pins_changed: Notify,
    /// The controller is asked to end.
    pub stop: Notify,
    /// What it counts.
    pub counts: Counts,
    next_worker: Cell<usize>,
}

/// What the controller itself counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Peers refused at the Noise layer.
    pub peers_refused: Cell<u64>,
    /// Handshakes that failed.
    pub handshakes_failed: Cell<u64>,
    /// Requests of programs.
    pub requests: Cell<u64>,
    /// Contents evicted.
    pub evicted: Cell<u64>,
    /// Programs turned away.
    pub programs_refused: Cell<u64>,
}

/// Counts one more.
pub fn count(counter: &Cell<u64>) {
    counter.set(counter.get().saturating_add(1));
}

/// Seconds since 1970.
#[must_use]
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A number in 0..1. Without random bytes from the system, 0.5: then only the jitter is missing.
#[must_use]
pub fn chance() -> f64 {
    getrandom::u32().map_or(0.5, |draw| f64::from(draw) / f64::from(u32::MAX))
}

/// A fresh job id.
///
/// # Errors
/// When the system gives no random bytes.
pub fn fresh_job() -> Result<JobId, Failure> {
    JobId::random().map_err(|error| Failure::internal(format!("the system gives no random bytes: {error}")))
}

impl Node {
    /// A node with what was stored, and no workers, sessions or jobs yet.
    #[must_use]
    pub fn new(settings: Settings, identity: Identity, db: CatalogDb, stored: Stored, history: History) -> Rc<Self> {
        let mut catalog = Catalog::default();
        for (id, record) in stored.contents {
            catalog.update(id, |known| *known = record);
        }
        let policy = watch::Sender::new(history.newest());
        Rc::new(Self {
            settings,
            identity,
            db,
            catalog: RefCell::new(catalog),
            puts: RefCell::new(stored.puts),
            put_workers: RefCell::default(),
            history: RefCell::new(history),
            policy,
            neighbours: RefCell::default(),
            sessions: RefCell::default(),
            dialling: RefCell::default(),
            sessions_changed: watch::Sender::new(0),
            workers: RefCell::default(),
            workers_changed: watch::Sender::new(0),
            wanted: RefCell::default(),
            children: RefCell::default(),
            fleet: RefCell::default(),
            retired: RefCell::default(),
            jobs: RefCell::default(),
            fetches: RefCell::default(),
            orphans: RefCell::default(),
            doubts: RefCell::default(),
            verifying: RefCell::default(),
            verifies: RefCell::default(),
            listen: Cell::new(None),
            metrics: Cell::new(None),
            store_failure: RefCell::default(),
            catalog_failure: RefCell::default(),
            unsaved: RefCell::default(),
            pins_changed: Notify::new(),
            stop: Notify::new(),
            counts: Counts::default(),
            next_worker: Cell::new(0),
        })
    }

    /// Workers that take jobs.
    #[must_use]
    pub fn running(&self) -> Vec<(WorkerIndex, WorkerClient)> {
        let workers = self.workers.borrow();
        let running = workers.iter().filter(|(_, worker)| !worker.draining);
        running.map(|(index, worker)| (*index, worker.client.clone())).collect()
    }

    /// Workers that take jobs; waits a while for the first.
    ///
    /// # Errors
    /// When there is none.
    pub async fn await_running(&self) -> Result<Vec<(WorkerIndex, WorkerClient)>, Failure> {
        let mut changes = self.workers_changed.subscribe();
        let wait = async {
            loop {
                let running = self.running();
                if !running.is_empty() || changes.changed().await.is_err() {
                    return running;
                }
            }
        };
        let running = timeout(WORKER_WAIT, wait).await.unwrap_or_default();
        if running.is_empty() {
            return Err(Failure::unavailable("no worker is running; see: pangeactl workers"));
        }
        Ok(running)
    }

    /// One worker that takes jobs, each in turn.
    ///
    /// # Errors
    /// When there is none.
    pub async fn any_worker(&self) -> Result<(WorkerIndex, WorkerClient), Failure> {
        let running = self.await_running().await?;
        let turn = self.next_worker.get();
        self.next_worker.set(turn.wrapping_add(1));
        let none = || Failure::unavailable("no worker is running");
        running.get(turn % running.len()).cloned().ok_or_else(none)
    }

    /// Which chunks of a content are on disk; `None` when nothing of it is here.
    ///
    /// # Errors
    /// When no worker answers.
    pub async fn holdings(&self, content: ContentId) -> Result<Option<Holdings>, Failure> {
        let (_, worker) = self.any_worker().await?;
        match command(&worker, &Command::Holdings(content)).await? {
            Reply::Holdings(holdings) => Ok(holdings),
            other => Err(unexpected(&other)),
        }
    }

    /// Changes what is known of a content, in memory and on disk.
    pub fn update_content(&self, id: ContentId, change: impl FnOnce(&mut Record)) {
        self.catalog.borrow_mut().update(id, change);
        self.unsaved.borrow_mut().insert(id);
        while let Some(id) = self.next_unsaved() {
            let result = match self.catalog.borrow().get(id) {
                Some(record) => self.db.set_content(id, Some(record)),
                None => Ok(()),
            };
            let is_saved = result.is_ok();
            self.stored(result);
            if !is_saved {
                return;
            }
            self.unsaved.borrow_mut().remove(&id);
        }
    }

    fn next_unsaved(&self) -> Option<ContentId> {
        self.unsaved.borrow().first().copied()
    }

    /// Takes the store's word for what is here of a content.
    pub async fn refresh_content(&self, id: ContentId) {
        let Ok((_, worker)) = self.any_worker().await else { return };
        // The inventory page that starts right before it has it first, if it is here.
        let page = command(&worker, &Command::Inventory { after: predecessor(id) }).await;
        let Ok(Reply::Inventory(page)) = page else { return };
        let stored = page.into_iter().find(|stored| stored.content == id);
        self.update_content(id, |record| match &stored {
            Some(stored) => {
                record.size = stored.size;
                record.chunks_held = stored.chunks_held;
                record.disk_bytes = stored.disk_bytes;
            }
            None => (record.chunks_held, record.disk_bytes) = (0, 0),
        });
    }

    /// Notes how a change was stored, for the log and the status. One that nobody waits for goes on without: contents are
    /// found again in the store.
    pub fn stored(&self, result: Result<(), DbError>) {
        let _ = self.must_store(result); // it is noted
    }

    /// The same for a change that is not made when it cannot be stored.
    ///
    /// # Errors
    /// What the program that asked for it is told.
    pub fn must_store(&self, result: Result<(), DbError>) -> Result<(), Failure> {
        self.catalog_failure.replace(result.as_ref().err().map(ToString::to_string).unwrap_or_default());
        result.map_err(|error| {
            tracing::error!(%error, "the catalog could not be written");
            error.to_failure()
        })
    }

    /// Whether anything under way needs a content.
    #[must_use]
    pub fn in_use(&self, id: ContentId) -> bool {
        let fetched = self.fetches.borrow().iter().any(|fetch| fetch.content == id);
        fetched
            || self.verifying.borrow().contains(&id)
            || self.jobs.borrow().values().any(|job| {
                let report = job.report.borrow();
                report.content == Some(id) && report.state == JobState::Running
            })
    }

    /// What this node tells peers of itself.
    #[must_use]
    pub fn introduction(&self) -> Introduction {
        let workers = self.workers.borrow();
        Introduction {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: self.listen.get(),
            workers: workers
                .values()
                .map(|worker| pangea_ipc::address::Endpoint {
                    worker: worker.registration.worker,
                    address: worker.registration.address,
                    key: worker.registration.key,
                })
                .collect(),
        }
    }

    /// How long pins outlive their session.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_secs(u64::from(self.policy.borrow().policy.session_grace_s))
    }
}

/// Commands a worker; a refusal is an error.
///
/// # Errors
/// When the worker refuses, has gone, or does not answer in time.
pub async fn command(worker: &WorkerClient, command: &Command) -> Result<Reply, Failure> {
    match timeout(COMMAND_TIME, worker.perform(command)).await {
        Ok(Ok(Reply::Refused(failure))) => Err(failure),
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err(error.to_failure()),
        Err(_) => Err(Failure::unavailable(format!("a worker did not answer within {COMMAND_TIME:?}"))),
    }
}

/// An answer of the wrong kind.
#[must_use]
pub fn unexpected(answer: &impl std::fmt::Debug) -> Failure {
    Failure::protocol(format!("unexpected answer {answer:?}"))
}

/// The largest id below this one.
fn predecessor(id: ContentId) -> Option<ContentId> {
    let mut bytes = id.0;
    for byte in bytes.iter_mut().rev() {
        let (less, borrow) = byte.overflowing_sub(1);
        *byte = less;
        if !borrow {
            return Some(ContentId(bytes));
        }
    }
    None // the smallest id has none: a page from the start has it first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_predecessor_is_the_next_smaller_id() {
        assert_eq!(predecessor(ContentId([0; 32])), None);
        let mut one = [0; 32];
        one[30] = 1;
        let mut below = [0; 32];
        below[31] = 0xff;
        assert_eq!(predecessor(ContentId(one)), Some(ContentId(below)));
    }
}
