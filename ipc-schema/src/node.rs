//! The conversation between a local program and its node's controller.
//!
//! One [`Request`], one [`Response`]. Waiting is asking with what one has seen last (`seen`): the answer comes when
//! there is something newer, or unchanged after [`WATCH_MS_MAX`]. Jobs belong to the connection that asked for them;
//! when it ends, what nobody else waits for is cancelled.

use std::net::SocketAddr;
use std::ops::Range;

use serde::Serialize;

use crate::address::PeerAddress;
use crate::failure::Failure;
use crate::ids::{ContentId, JobId, NodeId, Revision, Token, WorkerIndex};
use crate::policy::Revised;

/// A watching request is answered after this time at the latest.
pub const WATCH_MS_MAX: u32 = 20_000;
/// Entries in one listing at most; a longer listing is read in pages.
pub const LISTING_PAGE_MAX: usize = 1024;
/// Assignments in one policy change at most.
pub const ASSIGNMENTS_MAX: usize = 64;
/// Damaged contents that one job report names at most; it counts them all.
pub const DAMAGED_MAX: usize = 1024;
/// Bytes of one text (path, name, assignment) at most.
pub const TEXT_MAX: usize = 4096;
/// Policies in one history at most.
pub const HISTORY_MAX: usize = 256;

/// What a local program asks. Every one may be answered by [`Response::Failed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Stream a content in. Answered by `Opened` with one door.
    Put {
        /// Its name, for listings, tickets and `get` without `-o`; may be empty.
        name: String,
        /// Its bytes, when known beforehand.
        size: Option<u64>,
    },
    /// Make a content available and open doors to read it. Answered by `Opened`.
    Get {
        /// The content.
        content: ContentId,
        /// Nodes that may hold it: from a ticket or from the user. They are admitted for this session.
        peers: Vec<PeerAddress>,
        /// Bytes wanted, `start..end`; the chunks around them are fetched, no others.
        range: Option<Range<u64>>,
    },
    /// How a job of this connection stands. Answered by `Job`.
    Watch {
        /// The job.
        job: JobId,
        /// The version seen last; 0 = none.
        seen: u64,
    },
    /// End a job. Answered by `Done`.
    Cancel(JobId),
    /// Contents after the given one. Answered by `Contents`.
    List {
        /// Start after this one.
        after: Option<ContentId>,
    },
    /// Forget a content and delete it. Answered by `Done`; refused when pinned or in use.
    Remove(ContentId),
    /// Keep a content whatever the quota. Answered by `Done`.
    Pin(ContentId),
    /// The reverse. Answered by `Done`.
    Unpin(ContentId),
    /// Read one content again from the disk, or all, and repair from peers. Answered by `Opened` without doors.
    Verify(Option<ContentId>),
    /// A ticket for a content that is here. Answered by `Ticket`.
    Ticket {
        /// The content.
        content: ContentId,
        /// Seconds from now after which it is refused; 0 = never.
        valid_s: u64,
    },
    /// Admit and remember a peer. Answered by `Done`.
    PeerAdd(PeerAddress),
    /// Forget a peer, end its session. Answered by `Done`.
    PeerRemove(NodeId),
    /// The node store. Answered by `Peers`.
    Peers,
    /// The policy in force. Answered by `Policy`.
    PolicyShow,
    /// Change keys, all or none. Answered by `Policy` when every worker has acknowledged.
    PolicySet(Vec<String>),
    /// Earlier policies, newest first. Answered by `History`.
    PolicyHistory,
    /// Make an earlier policy the newest. Answered by `Policy`.
    PolicyRollback(Revision),
    /// Answered by `Policy` when the revision differs from `seen`.
    PolicyWatch {
        /// The revision seen last.
        seen: Revision,
    },
    /// Answered by `Workers`.
    Workers,
    /// Start one more worker. Answered by `Workers`.
    WorkerAdd,
    /// Finish a worker's jobs, then stop it. Answered by `Done` when it has stopped.
    WorkerDrain(WorkerIndex),
    /// Answered by `Status`.
    Status,
}

/// An answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// Done, nothing to tell.
    Done,
    /// A job has begun.
    Opened(Opened),
    /// How a job stands.
    Job(JobReport),
    /// A page of contents; an empty page ends the listing.
    Contents(Vec<ContentReport>),
    /// One line of text, see [`crate::ticket`].
    Ticket(String),
    /// The node store.
    Peers(Vec<PeerReport>),
    /// A policy.
    Policy(Revised),
    /// Earlier policies, newest first.
    History(Vec<Revised>),
    /// The workers.
    Workers(Vec<WorkerReport>),
    /// The node.
    Status(StatusReport),
    /// No, and why.
    Failed(Failure),
}

/// A job and the doors through which its bytes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The job.
    pub job: JobId,
    /// Bytes in the whole content; 0 for a put of unknown size.
    pub size: u64,
    /// The content's name; empty when it has none.
    pub name: String,
    /// One for a put, one for each worker that can serve a get.
    pub doors: Vec<Door>,
}

/// A worker's door and the token that opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// The worker.
    pub worker: WorkerIndex,
    /// Path of its socket.
    pub path: String,
    /// Opens it once.
    pub token: Token,
}

/// State of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Under way.
    Running,
    /// Every byte verified and synced.
    Done,
    /// Ended without its goal.
    Failed,
}

/// How a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobReport {
    /// The job.
    pub job: JobId,
    /// Grows with each change.
    pub version: u64,
    /// Its state.
    pub state: JobState,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The content; unknown for a put that is not done.
    pub content: Option<ContentId>,
    /// Bytes in the whole content, as far as known.
    pub size: u64,
    /// Chunks that the job needs.
    pub chunks_wanted: u32,
    /// Of these, chunks that were here before it began.
    pub chunks_before: u32,
    /// Of these, chunks that are here now, verified.
    pub chunks_held: u32,
    /// Of these, chunks that are durable.
    pub chunks_durable: u32,
    /// Chunks found wrong (verify).
    pub chunks_bad: u32,
    /// Chunks that nobody could give back (verify).
    pub chunks_lost: u32,
    /// What came through which worker from which node.
    pub shares: Vec<ShareReport>,
    /// Contents that were damaged or could not be read (verify).
    pub contents_damaged: u32,
    /// These, the first [`DAMAGED_MAX`] of them (verify).
    pub damaged: Vec<Damage>,
}

/// A content that a verify found damaged, or could not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The content.
    pub content: ContentId,
    /// Chunks found wrong.
    pub chunks_bad: u32,
    /// Of these, chunks that nobody could give back.
    pub chunks_lost: u32,
    /// Why it is not whole again; `None` when it is.
    pub failure: Option<Failure>,
}

/// What came through one worker from one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShareReport {
    /// The local worker.
    pub worker: WorkerIndex,
    /// The node it came from.
    pub node: NodeId,
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
    /// Symbols received.
    pub symbols_received: u64,
    /// Data symbols rebuilt from parity.
    pub symbols_repaired: u64,
    /// Symbols asked for again.
    pub symbols_asked_again: u64,
    /// Parity symbols that were not needed.
    pub parity_unused: u64,
    /// Chunks whose bytes were wrong.
    pub chunks_bad: u32,
}

/// One content of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContentReport {
    /// Its id.
    pub id: ContentId,
    /// Its name; empty when it has none.
    pub name: String,
    /// Bytes in the whole.
    pub size: u64,
    /// Chunks in the whole.
    pub chunks: u32,
    /// Chunks that are here.
    pub chunks_held: u32,
    /// Never evicted.
    pub pinned: bool,
    /// When it was last put or got, in seconds since 1970.
    pub used_s: u64,
}

/// State of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerState {
    /// No session has stood yet.
    Unknown,
    /// A session stands and pings are answered.
    Active,
    /// A session stands but pings are missed or the path is bad.
    Degraded,
    /// No session.
    Dead,
}

/// One peer in the node store.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerReport {
    /// Who.
    pub node: NodeId,
    /// Where it is dialled, if it is.
    pub address: Option<SocketAddr>,
    /// Its state.
    pub state: PeerState,
    /// Why there is no session, in words; empty when there is one.
    pub trouble: String,
    /// Its workers.
    pub workers: u16,
    /// Smoothed round-trip time of pings; `None` before the first answer.
    pub latency_us: Option<u32>,
    /// Smoothed difference between successive round-trip times.
    pub jitter_us: Option<u32>,
    /// Smoothed loss of data packets to it, in hundredths of a percent.
    pub loss_bp: Option<u16>,
    /// Smoothed rate of verified bytes from it while transfers ran, in bytes a second.
    pub throughput_bytes_per_s: Option<u64>,
    /// Age of the newest sample.
    pub sample_age_ms: Option<u64>,
    /// Times that a fetch gave it up because it sent wrong bytes or broke the protocol, since this controller started.
    pub offences: u32,
}

impl Eq for PeerReport {}

/// State of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Started, not yet registered.
    Starting,
    /// Registered.
    Running,
    /// Finishes its jobs.
    Draining,
    /// Ended; will be started again after a pause.
    Dead,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerReport {
    /// Its number; also its NIC queue.
    pub worker: WorkerIndex,
    /// Its state.
    pub state: WorkerState,
    /// Its process; 0 when there is none.
    pub pid: u32,
    /// The CPU that it is pinned to.
    pub cpu: Option<u16>,
    /// Where its QUIC endpoint listens.
    pub address: Option<SocketAddr>,
    /// The policy revision that it runs under.
    pub revision: Revision,
    /// How often it was started again.
    pub restarts: u32,
    /// Its counters, name and value, in the order of [`crate::counter::ALL`].
    pub counters: Vec<(String, u64)>,
}

/// The node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusReport {
    /// This node.
    pub node: NodeId,
    /// Version of the controller.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Where the controller listens for peers.
    pub listen: Option<SocketAddr>,
    /// Where Prometheus text is served.
    pub metrics: Option<SocketAddr>,
    /// The policy in force.
    pub revision: Revision,
    /// Contents known.
    pub contents: u64,
    /// Bytes that they take on disk, room kept for jobs included.
    pub store_bytes: u64,
    /// Bytes that they may take; `None` = unlimited.
    pub store_quota_bytes: Option<u64>,
    /// Why the store has stopped writing; empty when it has not.
    pub store_failure: String,
    /// Peers with a session.
    pub peers_active: u32,
    /// Peers known.
    pub peers: u32,
    /// Jobs under way.
    pub jobs: u32,
    /// The workers.
    pub workers: Vec<WorkerReport>,
}
