//! The worker: owns everything below and ties it together. Nothing below knows its siblings; they meet here.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use pangea_fec::Codec;
use pangea_ipc::counter;
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, JobId, NodeId, Revision, Token, WorkerIndex, WorkerKey};
use pangea_ipc::policy::{Policy, Revised};
use pangea_ipc::worker::{Event, JOBS_MAX, JobKind, JobStatus, PutPlan, ReadPlan, Source};
use tokio::sync::{Notify, mpsc, watch};

use crate::buffer::{Pool, Shares};
use crate::counters::Counters;
use crate::cpu::Allowed;
use crate::events::Events;
use crate::net::connections::Connections;
use crate::net::serve::Patience;
use crate::net::tls::Pins;
use crate::store::Store;

/// Chunk buffers for fetches, puts and reads: 56 MiB.
pub const BUFFERS_MAX: usize = 224;
/// Chunk buffers for answering peers: 32 MiB. Apart from the others, so that slow peers never hold up local work.
pub const SERVE_BUFFERS_MAX: usize = 128;
/// Of these, buffers that one peer's node may hold at a time, so that a node that takes nothing of what it asks for leaves
/// some to the others. As many as a node asks for at once by default (`transfer.inflight_chunks`).
pub const SERVE_BUFFERS_EACH: usize = 96;

/// Sources' keys known at most: a few bytes each, and more than this worker keeps connections.
const KNOWN_SOURCES_MAX: usize = 4096;

/// What a door's token opens.
#[derive(Debug, Clone)]
pub enum Errand {
    /// A put.
    Put(PutPlan),
    /// A read.
    Read(ReadPlan),
}

/// What a job under way can be told.
#[derive(Debug)]
pub struct JobEntry {
    /// What it does.
    pub kind: JobKind,
    /// The content, once known.
    pub content: Option<ContentId>,
    /// Chunks done and in all.
    pub progress: Cell<(u32, u32)>,
    /// Ends it.
    pub cancel: Rc<Notify>,
    /// A put's allowance in bytes.
    pub allowance: Option<watch::Sender<u64>>,
    /// New sources for a fetch.
    pub sources: Option<mpsc::UnboundedSender<Vec<Source>>>,
    /// Chunks that a local reader waits for, for a fetch.
    pub wanted: Option<mpsc::UnboundedSender<std::ops::Range<u32>>>,
}

/// All state of the worker. One thread, no locks.
pub struct Worker {
    /// Its number.
    pub index: WorkerIndex,
    /// The chunk store.
    pub store: Store,
    /// Chunk buffers for local work.
    pub buffers: Pool,
    /// Chunk buffers for answering peers.
    pub serve_buffers: Shares,
    /// How long a peer that is answered may keep this worker waiting.
    pub patience: Patience,
    /// Connections to peers' workers.
    pub connections: Connections,
    /// Who may connect.
    pub pins: Pins,
    /// What it tells the controller.
    pub events: Events,
    /// What it counts.
    pub counters: Counters,
    /// Makes parity and rebuilds symbols.
    pub codec: RefCell<Codec>,
    /// CPUs that it may use; `None` when the system does not say.
    pub allowed_cpus: Option<Allowed>,
    /// The CPU that it is pinned to.
    pub cpu: Cell<Option<u16>>,
    policy: watch::Sender<Revised>,
    jobs: RefCell<HashMap<(JobId, JobKind), Rc<JobEntry>>>,
    errands: RefCell<HashMap<Token, (Errand, JobGuard)>>,
    /// Whose workers it was told to fetch from: those need not be pinned to be asked.
    sources: RefCell<HashMap<WorkerKey, NodeId>>,
    /// Verified bytes by node since the last sample.
    received: RefCell<HashMap<NodeId, u64>>,
    draining: Cell<bool>,
    stop: Notify,
}

/// What [`Worker::new`] puts together.
pub struct Parts {
    /// Its number.
    pub index: WorkerIndex,
    /// The chunk store.
    pub store: Store,
    /// Connections to peers' workers.
    pub connections: Connections,
    /// Who may connect.
    pub pins: Pins,
    /// What it counts.
    pub counters: Counters,
    /// CPUs that it may use.
    pub allowed_cpus: Option<Allowed>,
    /// How long a peer that is answered may keep this worker waiting.
    pub patience: Patience,
}

impl Worker {
    /// A worker without a policy revision and without jobs.
    #[must_use]
    pub fn new(parts: Parts) -> Rc<Self> {
        let first = Revised { revision: Revision(0), policy: Policy::default() };
        Rc::new(Self {
            index: parts.index,
            store: parts.store,
            buffers: Pool::new(BUFFERS_MAX),
            serve_buffers: Shares::new(SERVE_BUFFERS_MAX, SERVE_BUFFERS_EACH),
            patience: parts.patience,
            connections: parts.connections,
            pins: parts.pins,
            events: Events::default(),
            counters: parts.counters,
            codec: RefCell::new(Codec::new()),
            sources: RefCell::default(),
            received: RefCell::default(),
            allowed_cpus: parts.allowed_cpus,
            cpu: Cell::new(None),
            policy: watch::Sender::new(first),
            jobs: RefCell::default(),
            errands: RefCell::default(),
            draining: Cell::new(false),
            stop: Notify::new(),
        })
    }

    /// The policy in force.
    pub fn policy(&self) -> watch::Ref<'_, Revised> {
        self.policy.borrow()
    }

    /// Switches to a policy between two turns; an older revision than the one in force is refused.
    ///
    /// # Errors
    /// A failure of code `Invalid` for an older revision.
    pub fn apply_policy(&self, new: Revised) -> Result<Revision, Failure> {
        let (old_revision, old_cpus) = {
            let old = self.policy.borrow();
            (old.revision, old.policy.workers_cpus.clone())
        };
        if new.revision < old_revision {
            return Err(Failure::invalid(format!("policy {} is older than {old_revision:?} in force", new.revision)));
        }
        let revision = new.revision;
        if old_revision == Revision(0) || new.policy.workers_cpus != old_cpus {
            let cpu = self.allowed_cpus.as_ref().and_then(|cpus| cpus.pin(self.index, &new.policy.workers_cpus));
            self.cpu.set(cpu);
        }
        self.connections.law().set(new.policy.congestion);
        self.policy.send_replace(new);
        Ok(revision)
    }

    /// Tells the controller; counts what had to be left out.
    pub fn report(&self, event: Event) {
        if self.events.push(event) {
            self.counters.add(counter::Id::EventsDropped, 1);
        }
    }

    /// Notes whose workers a fetch asks.
    pub fn note_sources(&self, sources: &[Source]) {
        let mut known = self.sources.borrow_mut();
        if known.len() >= KNOWN_SOURCES_MAX {
            // Those still asked are named again with the next change of sources; until then their path has no name.
            known.clear();
        }
        for source in sources {
            known.extend(source.endpoints.iter().map(|endpoint| (endpoint.key, source.node)));
        }
    }

    /// Whose worker has a key: an admitted node's, or a source's.
    #[must_use]
    pub fn node_of(&self, key: WorkerKey) -> Option<NodeId> {
        self.pins.node(key).or_else(|| self.sources.borrow().get(&key).copied())
    }

    /// Notes verified bytes that came from a node.
    pub fn note_received(&self, node: NodeId, bytes: u64) {
        *self.received.borrow_mut().entry(node).or_default() += bytes;
    }

    /// Verified bytes by node since this was last asked.
    pub fn take_received(&self) -> HashMap<NodeId, u64> {
        self.received.take()
    }

    /// Notes a new job.
    ///
    /// # Errors
    /// While draining, when there are [`JOBS_MAX`], or when the job is under way already.
    pub fn begin(self: &Rc<Self>, job: JobId, entry: JobEntry) -> Result<JobGuard, Failure> {
        if self.draining.get() && entry.kind != JobKind::Verify {
            return Err(Failure::unavailable(format!("worker {} is draining", self.index)));
        }
        let key = (job, entry.kind);
        let entry = Rc::new(entry);
        {
            let mut jobs = self.jobs.borrow_mut();
            if jobs.len() >= JOBS_MAX {
                return Err(Failure::limit(format!("worker {} has {JOBS_MAX} jobs, the most it carries", self.index)));
            }
            if jobs.contains_key(&key) {
                return Err(Failure::invalid(format!("job {job} is under way already")));
            }
            jobs.insert(key, Rc::clone(&entry));
        }
        self.counters.set(counter::Id::Jobs, self.jobs.borrow().len() as u64);
        Ok(JobGuard { worker: Rc::clone(self), key, entry })
    }

    /// A job under way.
    #[must_use]
    pub fn job(&self, job: JobId, kind: JobKind) -> Option<Rc<JobEntry>> {
        self.jobs.borrow().get(&(job, kind)).cloned()
    }

    /// Ends whatever goes by this job id. The jobs end at their next turn.
    pub fn cancel(&self, job: JobId) {
        let waiting: Vec<Token> = {
            let errands = self.errands.borrow();
            errands.iter().filter(|(_, (_, guard))| guard.job() == job).map(|(token, _)| *token).collect()
        };
        for token in waiting {
            drop(self.redeem(token));
        }
        for (_, entry) in self.jobs.borrow().iter().filter(|((id, _), _)| *id == job) {
            entry.cancel.notify_one();
        }
    }

    /// Fetches of a content that a local reader can hurry.
    pub fn want(&self, content: ContentId, chunks: &std::ops::Range<u32>) {
        for entry in self.jobs.borrow().values().filter(|entry| entry.content == Some(content)) {
            if let Some(wanted) = &entry.wanted {
                let _ = wanted.send(chunks.clone()); // a fetch that has just ended wants nothing
            }
        }
    }

    /// The jobs under way.
    #[must_use]
    pub fn job_statuses(&self) -> Vec<JobStatus> {
        let jobs = self.jobs.borrow();
        let status = |((job, kind), entry): (&(JobId, JobKind), &Rc<JobEntry>)| {
            let (chunks_done, chunks_total) = entry.progress.get();
            JobStatus { job: *job, kind: *kind, content: entry.content, chunks_done, chunks_total }
        };
        jobs.iter().map(status).collect()
    }

    /// Lets the bearer of a token in, once.
    pub fn expect(&self, token: Token, errand: Errand, guard: JobGuard) {
        self.errands.borrow_mut().insert(token, (errand, guard));
    }

    /// What a token opens; a token works once.
    pub fn redeem(&self, token: Token) -> Option<(Errand, JobGuard)> {
        self.errands.borrow_mut().remove(&token)
    }

    /// Takes no new jobs; reports when the last one has ended.
    pub fn drain(&self) {
        self.draining.set(true);
        self.report_if_drained();
    }

    fn report_if_drained(&self) {
        if self.draining.get() && self.jobs.borrow().is_empty() {
            self.report(Event::Drained);
        }
    }

    /// Asks the worker to end.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// Returns when the worker was asked to end.
    pub async fn stopped(&self) {
        self.stop.notified().await;
    }
}

/// A job under way; dropped, it has ended.
pub struct JobGuard {
    worker: Rc<Worker>,
    key: (JobId, JobKind),
    /// What it can be told.
    pub entry: Rc<JobEntry>,
}

impl JobGuard {
    /// Its worker.
    #[must_use]
    pub fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// Its id.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.key.0
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        self.worker.jobs.borrow_mut().remove(&self.key);
        self.worker.counters.set(counter::Id::Jobs, self.worker.jobs.borrow().len() as u64);
        self.worker.report_if_drained();
    }
}
