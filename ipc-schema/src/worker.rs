//! The conversation between a controller and a worker: two enums.
//!
//! A worker connects to the controller's worker socket and says who it is ([`Registration`]). From then on the
//! controller sends [`Command`]s, each answered by a [`Reply`], and the worker reports [`Event`]s. Workers never call
//! into control for a decision; when the controller is away they finish what they have and register again, with what
//! they hold and do.

use std::net::SocketAddr;

use crate::address::Endpoint;
use crate::chunk_set::ChunkSet;
use crate::content::ChainingValue;
use crate::failure::Failure;
use crate::ids::{ContentId, JobId, NodeId, Revision, Token, WorkerIndex, WorkerKey};
use crate::policy::Revised;

/// Pins in one command at most: peers times their workers.
pub const PINS_MAX: usize = 4096;
/// Sources in one fetch plan at most.
pub const SOURCES_MAX: usize = 32;
/// Endpoints of one source, and workers of one node, at most.
pub const WORKERS_MAX: usize = 64;
/// Jobs that one worker carries at once at most.
pub const JOBS_MAX: usize = 1024;
/// Events in one report at most.
pub const EVENTS_MAX: usize = 64;
/// Contents in one inventory page at most.
pub const INVENTORY_PAGE_MAX: usize = 512;

/// What a worker says of itself when it connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its number; at most one worker of each number is registered.
    pub worker: WorkerIndex,
    /// Its process.
    pub pid: u32,
    /// Version of its program.
    pub version: String,
    /// Where its QUIC endpoint listens.
    pub address: SocketAddr,
    /// The key that its QUIC endpoint shows.
    pub key: WorkerKey,
    /// Path of its door socket.
    pub door: String,
    /// Name of its counters segment.
    pub counters: String,
    /// The CPU it is pinned to, if any.
    pub cpu: Option<u16>,
    /// The policy it runs under; revision 0 = none yet.
    pub revision: Revision,
    /// What it does.
    pub jobs: Vec<JobStatus>,
    /// Events of which no controller has taken notice yet.
    pub unreported: Vec<Event>,
    /// The keys that an earlier controller had it let in.
    pub pins: Vec<Pin>,
}

/// What a controller answers to a registration that it accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The policy to run under.
    pub policy: Revised,
    /// This node.
    pub node: NodeId,
}

/// What a controller may ask of a worker. Every command is answered at once, but for
/// [`ManifestPage`](Self::ManifestPage), which waits for a peer; long work reports by [`Event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Replace the whole policy. Allowed always; an older revision than the one in force is refused.
    ApplyPolicy(Revised),
    /// Replace the set of QUIC keys that may connect, and whose they are. Allowed always.
    SetPins(Vec<Pin>),
    /// Let the bearer of the token stream one content in. Refused while draining.
    Put(PutPlan),
    /// Let a put use more of the disk, in all. Refused for an unknown job.
    Allow {
        /// The put.
        job: JobId,
        /// Bytes it may store in all.
        allowance: u64,
    },
    /// Let the bearer of the token read one content, as its chunks become available. Refused while draining.
    Read(ReadPlan),
    /// Bring chunks here from other nodes. Refused while draining.
    Fetch(FetchPlan),
    /// Replace the sources of a fetch under way. Refused for an unknown job.
    SetSources {
        /// The fetch.
        job: JobId,
        /// All of its sources, new and old.
        sources: Vec<Source>,
    },
    /// End a job; its verified chunks stay. Allowed always, also for a job that has ended.
    Cancel(JobId),
    /// Stop using a content, and delete its files too. Refused while a job of this worker uses it.
    Remove {
        /// The content.
        content: ContentId,
        /// Whether this worker is the one that deletes the files; the others only let go of them.
        delete: bool,
    },
    /// List contents in the store, ascending by id, after the given one.
    Inventory {
        /// Start after this one.
        after: Option<ContentId>,
    },
    /// Read a content's held chunks again; wrong ones are dropped and reported by [`Event::Verified`].
    Verify {
        /// The job that this work goes by.
        job: JobId,
        /// The content.
        content: ContentId,
    },
    /// Which of a content's chunks are here.
    Holdings(ContentId),
    /// What this worker does.
    Status,
    /// Take no new jobs, finish those under way, then report [`Event::Drained`].
    Drain,
    /// Sync what is verified and exit.
    Shutdown,
    /// Connect to these workers of peers, of whom something will soon be asked. Allowed always; what fails, fails when
    /// it is asked.
    Connect(Vec<Endpoint>),
    /// Bring a page of a content's manifest from a worker of a peer. Answered when it is here, unproven.
    ManifestPage(ManifestPage),
}

/// A worker's answer to a [`Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done,
    /// To [`Command::ApplyPolicy`].
    Applied {
        /// The revision now in force.
        revision: Revision,
        /// The CPU that the worker is pinned to by it.
        cpu: Option<u16>,
    },
    /// To [`Command::Inventory`]: at most [`INVENTORY_PAGE_MAX`]; an empty page ends the list.
    Inventory(Vec<StoredContent>),
    /// To [`Command::Holdings`]: `None` when nothing of it is here.
    Holdings(Option<Holdings>),
    /// To [`Command::Status`].
    Status(Vec<JobStatus>),
    /// To [`Command::ManifestPage`]: as many values as the page has.
    ManifestPage(Vec<ChainingValue>),
    /// Not done, and why.
    Refused(Failure),
}

/// A page of a manifest that a peer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManifestPage {
    /// The content.
    pub content: ContentId,
    /// Bytes in it, as far as is known.
    pub size: u64,
    /// The page, from 0.
    pub page: u32,
    /// Who is asked.
    pub from: Endpoint,
}

/// Which chunks of a content are on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Bytes in the whole content.
    pub size: u64,
    /// Chunks that are verified and durable.
    pub held: ChunkSet,
}

/// One content in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredContent {
    /// Its id.
    pub content: ContentId,
    /// Bytes in the whole.
    pub size: u64,
    /// Chunks that are here, verified and durable.
    pub chunks_held: u32,
    /// Bytes that its files take on disk.
    pub disk_bytes: u64,
}

/// A QUIC key that may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The key.
    pub key: WorkerKey,
    /// The node whose worker shows it.
    pub node: NodeId,
    /// What the path to that node carried lately.
    pub known: Option<KnownPath>,
}

/// What a path carried, from this side to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownPath {
    /// Bytes a second.
    pub rate: u64,
    /// Its shortest round trip.
    pub rtt_us: u32,
    /// Packets of a million that it lost by itself; more than a million counts as a million.
    pub loss_ppm: u32,
}

/// One content on its way in from a local program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutPlan {
    /// The job.
    pub job: JobId,
    /// Opens the worker's door, once.
    pub token: Token,
    /// Bytes that the put may store; more must be asked for by [`Event::AllowanceLow`].
    pub allowance: u64,
}

/// One content on its way out to a local program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadPlan {
    /// The job.
    pub job: JobId,
    /// Opens the worker's door, once.
    pub token: Token,
    /// The content; its manifest is in the store.
    pub content: ContentId,
}

/// Chunks to bring here. The content's manifest is in the store before any worker gets its plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPlan {
    /// The job; the same for all workers that share it.
    pub job: JobId,
    /// The content.
    pub content: ContentId,
    /// This worker's share.
    pub chunks: ChunkSet,
    /// Who holds what.
    pub sources: Vec<Source>,
}

/// One node that holds chunks of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The node.
    pub node: NodeId,
    /// Chunks that it holds.
    pub held: ChunkSet,
    /// Its workers.
    pub endpoints: Vec<Endpoint>,
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// A put.
    Put,
    /// A local program reads.
    Read,
    /// A fetch from other nodes.
    Fetch,
    /// A verify.
    Verify,
}

/// A job under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobStatus {
    /// The job.
    pub job: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The content; unknown for a put.
    pub content: Option<ContentId>,
    /// Chunks of this worker's share that are verified.
    pub chunks_done: u32,
    /// Chunks of this worker's share.
    pub chunks_total: u32,
}

/// How much of a fetch came from where and how. All figures are totals since the job began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    /// Verified bytes.
    pub bytes: u64,
    /// Verified chunks that came by QUIC stream.
    pub chunks_by_stream: u32,
    /// Verified chunks that came as FEC symbols.
    pub chunks_by_fec: u32,
    /// Symbols that must have been sent: the data, parity up to the last that came, and what was asked for again.
    pub symbols_sent: u64,
    /// Of these, symbols that had not come when their chunk was whole.
    pub symbols_lost: u64,
    /// Symbols that were received.
    pub symbols_received: u64,
    /// Data symbols that were rebuilt from parity.
    pub symbols_repaired: u64,
    /// Symbols that were asked for again.
    pub symbols_asked_again: u64,
    /// Parity symbols that came and were not needed.
    pub parity_unused: u64,
    /// Chunks whose bytes were wrong.
    pub chunks_bad: u32,
}

impl Share {
    /// Adds another share's figures.
    pub fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.chunks_by_stream += other.chunks_by_stream;
        self.chunks_by_fec += other.chunks_by_fec;
        self.symbols_sent += other.symbols_sent;
        self.symbols_lost += other.symbols_lost;
        self.symbols_received += other.symbols_received;
        self.symbols_repaired += other.symbols_repaired;
        self.symbols_asked_again += other.symbols_asked_again;
        self.parity_unused += other.parity_unused;
        self.chunks_bad += other.chunks_bad;
    }
}

/// What one path to a peer's worker showed lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathSample {
    /// Smoothed round-trip time.
    pub rtt_us: u32,
    /// Packets that this side sent since the last sample.
    pub packets_sent: u64,
    /// Of these, lost.
    pub packets_lost: u64,
    /// Verified bytes that came since the last sample.
    pub bytes_received: u64,
    /// Time since the last sample.
    pub elapsed_ms: u32,
    /// What the path carries; `None` before it has shown anything.
    pub known: Option<KnownPath>,
}

/// What a worker reports. Events of one worker arrive in order, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A put is verified, synced and in the store.
    PutDone {
        /// The put.
        job: JobId,
        /// Its content.
        content: ContentId,
        /// Bytes in it.
        size: u64,
    },
    /// A put of unknown size will soon need more than its allowance.
    AllowanceLow {
        /// The put.
        job: JobId,
        /// Bytes that it has stored.
        stored: u64,
    },
    /// A fetch's figures so far; at most a few a second for each job.
    Progress {
        /// The fetch.
        job: JobId,
        /// Chunks of this worker's share that are verified.
        chunks_held: u32,
        /// Of these, chunks that are durable.
        chunks_durable: u32,
        /// By source.
        shares: Vec<(NodeId, Share)>,
    },
    /// Every chunk of this worker's share is verified and durable.
    FetchDone(JobId),
    /// No source is left for some chunks of the share. The fetch waits for [`Command::SetSources`].
    Starved {
        /// The fetch.
        job: JobId,
        /// Chunks that nobody has.
        missing: ChunkSet,
    },
    /// A source was given up for this job.
    SourceLost {
        /// The fetch.
        job: JobId,
        /// The node.
        node: NodeId,
        /// Why; [`FailureCode::Corrupt`](crate::failure::FailureCode::Corrupt) = it sent wrong bytes.
        why: Failure,
    },
    /// A job ended without its goal.
    Failed {
        /// The job.
        job: JobId,
        /// Why.
        why: Failure,
    },
    /// A local program has let go of a content.
    ReadDone(JobId),
    /// A verify has ended.
    Verified {
        /// The verify.
        job: JobId,
        /// The content.
        content: ContentId,
        /// Chunks that were right.
        good: u32,
        /// Chunks that were wrong and are held no more.
        bad: ChunkSet,
    },
    /// What a path showed; about once a second for each path that is used.
    Path {
        /// The peer.
        node: NodeId,
        /// The figures.
        sample: PathSample,
    },
    /// The store has stopped writing.
    StoreFailed(Failure),
    /// Nothing is under way any more after [`Command::Drain`].
    Drained,
}
