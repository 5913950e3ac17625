//! Every message survives the wire; what is beyond a bound does not get through; garbage brings nothing down.

use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use proptest::prelude::*;

use super::{CodecError, node, peer, worker};
use crate::address::{Endpoint, PeerAddress};
use crate::chunk_set::ChunkSet;
use crate::content::CHUNKS_MAX;
use crate::failure::Failure;
use crate::generated::{node_capnp, peer_capnp, worker_capnp};
use crate::ids::{ContentId, JobId, NodeId, Revision, Token, WorkerIndex, WorkerKey};
use crate::node::{self as n, Request, Response};
use crate::peer::{self as p, PeerRequest, PeerResponse};
use crate::policy::{Policy, Revised};
use crate::worker::{self as w, Command, Event, Reply};

const ID: ContentId = ContentId([1; 32]);
const NODE: NodeId = NodeId([2; 32]);
const JOB: JobId = JobId(u64::MAX);

macro_rules! round_trip {
    ($name:ident, $value:ty, $module:ident, $root:path, $write:ident, $read:ident) => {
        fn $name(value: &$value) -> Result<$value, CodecError> {
            let mut message = Builder::new(HeapAllocator::new());
            $module::$write(value, message.init_root::<$root>())?;
            $module::$read(message.into_reader().get_root()?)
        }
    };
}

round_trip!(command, Command, worker, worker_capnp::command::Builder<'_>, write_command, read_command);
round_trip!(reply, Reply, worker, worker_capnp::reply::Builder<'_>, write_reply, read_reply);
round_trip!(
    registration,
    w::Registration,
    worker,
    worker_capnp::registration::Builder<'_>,
    write_registration,
    read_registration
);
round_trip!(request, Request, node, node_capnp::request::Builder<'_>, write_request, read_request);
round_trip!(response, Response, node, node_capnp::response::Builder<'_>, write_response, read_response);
round_trip!(peer_request, PeerRequest, peer, peer_capnp::request::Builder<'_>, write_request, read_request);
round_trip!(peer_response, PeerResponse, peer, peer_capnp::response::Builder<'_>, write_response, read_response);

fn policy() -> Revised {
    Revised { revision: Revision(7), policy: Policy { fec_max_overhead_pct: 3, ..Policy::default() } }
}

fn endpoint() -> Endpoint {
    Endpoint { worker: WorkerIndex(3), address: "[::1]:9".parse().unwrap(), key: WorkerKey([4; 32]) }
}

fn source() -> w::Source {
    w::Source { node: NODE, held: ChunkSet::of_range(100, 3..70), endpoints: vec![endpoint(); 2] }
}

fn events() -> Vec<Event> {
    let why = Failure::corrupt("x");
    let share = w::Share {
        bytes: 1,
        chunks_by_stream: 2,
        chunks_by_fec: 3,
        symbols_sent: 4,
        symbols_lost: 5,
        symbols_received: 6,
        symbols_repaired: 7,
        symbols_asked_again: 8,
        parity_unused: 9,
        chunks_bad: 10,
    };
    let known = w::KnownPath { rate: 6, rtt_us: 7, loss_ppm: 8 };
    let sample = w::PathSample {
        rtt_us: 1,
        packets_sent: 2,
        packets_lost: 3,
        bytes_received: 4,
        elapsed_ms: 5,
        known: Some(known),
    };
    vec![
        Event::PutDone { job: JOB, content: ID, size: 5 },
        Event::AllowanceLow { job: JOB, stored: 6 },
        Event::Progress { job: JOB, chunks_held: 1, chunks_durable: 2, shares: vec![(NODE, share)] },
        Event::FetchDone(JOB),
        Event::Starved { job: JOB, missing: ChunkSet::full(9) },
        Event::SourceLost { job: JOB, node: NODE, why: why.clone() },
        Event::Failed { job: JOB, why: why.clone() },
        Event::ReadDone(JOB),
        Event::Verified { job: JOB, content: ID, good: 1, bad: ChunkSet::empty(8) },
        Event::Path { node: NODE, sample },
        Event::StoreFailed(why),
        Event::Drained,
    ]
}

fn jobs() -> Vec<w::JobStatus> {
    let kinds = [w::JobKind::Put, w::JobKind::Read, w::JobKind::Fetch, w::JobKind::Verify];
    let status = |kind| w::JobStatus { job: JOB, kind, content: Some(ID), chunks_done: 1, chunks_total: 2 };
    kinds.map(status).to_vec()
}

#[test]
fn every_worker_message_survives_the_wire() {
    let plan = w::FetchPlan { job: JOB, content: ID, chunks: ChunkSet::full(100), sources: vec![source()] };
    let commands = [
        Command::ApplyPolicy(policy()),
        Command::SetPins(vec![
            w::Pin { key: WorkerKey([1; 32]), node: NODE, known: None },
            w::Pin {
                key: WorkerKey([2; 32]),
                node: NODE,
                known: Some(w::KnownPath { rate: 1, rtt_us: 2, loss_ppm: 3 }),
            },
        ]),
        Command::Put(w::PutPlan { job: JOB, token: Token([3; 16]), allowance: 9 }),
        Command::Allow { job: JOB, allowance: 10 },
        Command::Read(w::ReadPlan { job: JOB, token: Token([3; 16]), content: ID }),
        Command::Fetch(plan),
        Command::SetSources { job: JOB, sources: vec![source(), source()] },
        Command::Cancel(JOB),
        Command::Remove { content: ID, delete: true },
        Command::Inventory { after: None },
        Command::Inventory { after: Some(ID) },
        Command::Verify { job: JOB, content: ID },
        Command::Holdings(ID),
        Command::ManifestPage(w::ManifestPage { content: ID, size: 1, page: 2, from: endpoint() }),
        Command::Status,
        Command::Drain,
        Command::Shutdown,
    ];
    for value in commands {
        assert_eq!(command(&value).unwrap(), value);
    }
    let replies = [
        Reply::Done,
        Reply::Applied { revision: Revision(4), cpu: None },
        Reply::Applied { revision: Revision(5), cpu: Some(3) },
        Reply::Inventory(vec![w::StoredContent { content: ID, size: 1, chunks_held: 2, disk_bytes: 3 }]),
        Reply::Holdings(None),
        Reply::ManifestPage(vec![[1; 32], [2; 32]]),
        Reply::Holdings(Some(w::Holdings { size: 1, held: ChunkSet::full(1) })),
        Reply::Status(jobs()),
        Reply::Refused(Failure::busy("b")),
    ];
    for value in replies {
        assert_eq!(reply(&value).unwrap(), value);
    }
    let value = w::Registration {
        worker: WorkerIndex(1),
        pid: 2,
        version: "v".into(),
        address: "1.2.3.4:5".parse().unwrap(),
        key: WorkerKey([5; 32]),
        door: "/d".into(),
        counters: "c".into(),
        cpu: Some(3),
        revision: Revision(1),
        jobs: jobs(),
        unreported: events(),
        pins: vec![w::Pin { key: WorkerKey([6; 32]), node: NodeId([7; 32]), known: None }],
    };
    assert_eq!(registration(&value).unwrap(), value);
    let unpinned = w::Registration { cpu: None, ..value };
    assert_eq!(registration(&unpinned).unwrap(), unpinned);
}

#[test]
fn every_peer_message_survives_the_wire() {
    let introduction = p::Introduction { version: "1".into(), listen: None, workers: vec![endpoint()] };
    let requests = [
        PeerRequest::Introduce(introduction.clone()),
        PeerRequest::Ping(1),
        PeerRequest::Find(ID),
        PeerRequest::Announce { content: ID, size: 3, name: "n".into() },
    ];
    for value in requests {
        assert_eq!(peer_request(&value).unwrap(), value);
    }
    let other = PeerAddress { node: NODE, address: Some("1.2.3.4:5".parse().unwrap()) };
    let here = p::FoundHere { size: 9, held: ChunkSet::full(1), name: "n".into(), values: vec![[7; 32]; 2] };
    let responses = [
        PeerResponse::Introduction(introduction),
        PeerResponse::Pong(1),
        PeerResponse::Found(p::Found { here: Some(here), others: vec![other] }),
        PeerResponse::Found(p::Found::default()),
        PeerResponse::Noted,
        PeerResponse::Refused(Failure::denied("d")),
    ];
    for value in responses {
        assert_eq!(peer_response(&value).unwrap(), value);
    }
}

#[test]
fn every_program_message_survives_the_wire() {
    let peer = PeerAddress { node: NODE, address: None };
    let requests = [
        Request::Put { name: "n".into(), size: Some(1) },
        Request::Put { name: String::new(), size: None },
        Request::Get { content: ID, peers: vec![peer], range: Some(1..2) },
        Request::Get { content: ID, peers: vec![], range: None },
        Request::Watch { job: JOB, seen: 1 },
        Request::Cancel(JOB),
        Request::List { after: Some(ID) },
        Request::Remove(ID),
        Request::Pin(ID),
        Request::Unpin(ID),
        Request::Verify(None),
        Request::Ticket { content: ID, valid_s: 5 },
        Request::PeerAdd(peer),
        Request::PeerRemove(NODE),
        Request::Peers,
        Request::PolicyShow,
        Request::PolicySet(vec!["a=b".into()]),
        Request::PolicyHistory,
        Request::PolicyRollback(Revision(1)),
        Request::PolicyWatch { seen: Revision(2) },
        Request::Workers,
        Request::WorkerAdd,
        Request::WorkerDrain(WorkerIndex(1)),
        Request::Status,
    ];
    for value in requests {
        assert_eq!(request(&value).unwrap(), value);
    }
    let share = n::ShareReport {
        worker: WorkerIndex(1),
        node: NODE,
        bytes: 1,
        chunks_by_stream: 2,
        chunks_by_fec: 3,
        symbols_sent: 4,
        symbols_lost: 5,
        symbols_received: 6,
        symbols_repaired: 7,
        symbols_asked_again: 8,
        parity_unused: 9,
        chunks_bad: 10,
    };
    let job = n::JobReport {
        job: JOB,
        version: 1,
        state: n::JobState::Failed,
        failure: Some(Failure::full("f")),
        content: None,
        size: 2,
        chunks_wanted: 3,
        chunks_before: 4,
        chunks_held: 5,
        chunks_durable: 6,
        chunks_bad: 7,
        chunks_lost: 8,
        shares: vec![share],
        contents_damaged: 9,
        damaged: vec![
            n::Damage { content: ID, chunks_bad: 2, chunks_lost: 1, failure: Some(Failure::corrupt("c")) },
            n::Damage { content: ID, chunks_bad: 3, chunks_lost: 0, failure: None },
        ],
    };
    let known = n::PeerReport {
        node: NODE,
        address: None,
        state: n::PeerState::Degraded,
        trouble: "t".into(),
        workers: 1,
        latency_us: Some(2),
        jitter_us: None,
        loss_bp: Some(3),
        throughput_bytes_per_s: Some(4),
        sample_age_ms: None,
        offences: 3,
    };
    let one = n::WorkerReport {
        worker: WorkerIndex(1),
        state: n::WorkerState::Draining,
        pid: 2,
        cpu: None,
        address: Some("1.2.3.4:5".parse().unwrap()),
        revision: Revision(3),
        restarts: 4,
        counters: vec![("c".into(), 5)],
    };
    let status = n::StatusReport {
        node: NODE,
        version: "v".into(),
        pid: 1,
        listen: None,
        metrics: None,
        revision: Revision(2),
        contents: 3,
        store_bytes: 4,
        store_quota_bytes: None,
        store_failure: String::new(),
        peers_active: 5,
        peers: 6,
        jobs: 7,
        workers: vec![one.clone()],
    };
    let content =
        n::ContentReport { id: ID, name: "n".into(), size: 1, chunks: 2, chunks_held: 3, pinned: true, used_s: 4 };
    let door = n::Door { worker: WorkerIndex(0), path: "/p".into(), token: Token([9; 16]) };
    let responses = [
        Response::Done,
        Response::Opened(n::Opened { job: JOB, size: 1, name: "n".into(), doors: vec![door] }),
        Response::Job(job),
        Response::Contents(vec![content]),
        Response::Ticket("pangea1".into()),
        Response::Peers(vec![known]),
        Response::Policy(policy()),
        Response::History(vec![policy(); 2]),
        Response::Workers(vec![one]),
        Response::Status(status),
        Response::Failed(Failure::limit("l")),
    ];
    for value in responses {
        assert_eq!(response(&value).unwrap(), value);
    }
}

#[test]
fn what_is_beyond_a_bound_does_not_get_through() {
    let too_long = |result: Result<(), CodecError>| assert!(matches!(result, Err(CodecError::TooLong { .. })));
    let pin = w::Pin { key: WorkerKey([1; 32]), node: NODE, known: None };
    too_long(command(&Command::SetPins(vec![pin; w::PINS_MAX + 1])).map(drop));
    let sources = vec![source(); w::SOURCES_MAX + 1];
    too_long(command(&Command::SetSources { job: JOB, sources }).map(drop));
    let crowded = w::Source { endpoints: vec![endpoint(); w::WORKERS_MAX + 1], ..source() };
    too_long(command(&Command::SetSources { job: JOB, sources: vec![crowded] }).map(drop));
    too_long(reply(&Reply::Status(vec![jobs()[0].clone(); w::JOBS_MAX + 1])).map(drop));
    too_long(reply(&Reply::ManifestPage(vec![[0; 32]; crate::content::MANIFEST_PAGE as usize + 1])).map(drop));
    too_long(request(&Request::PolicySet(vec![String::new(); n::ASSIGNMENTS_MAX + 1])).map(drop));
    too_long(request(&Request::PolicySet(vec!["x".repeat(n::TEXT_MAX + 1)])).map(drop));
    too_long(request(&Request::Put { name: "x".repeat(256), size: None }).map(drop));
    too_long(response(&Response::History(vec![policy(); n::HISTORY_MAX + 1])).map(drop));

    // A chunk set that lies about its bound.
    let mut message = Builder::new(HeapAllocator::new());
    let mut set = message.init_root::<worker_capnp::command::Builder<'_>>().init_fetch().init_chunks();
    set.set_bound(CHUNKS_MAX + 1);
    set.set_bits(&[0; 4]);
    let reader = message.into_reader();
    assert!(worker::read_command(reader.get_root().unwrap()).is_err());
}

proptest! {
    #[test]
    fn garbage_brings_no_reader_down(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut framed = vec![0, 0, 0, 0];
        framed.extend(u32::try_from(bytes.len() / 8).unwrap().to_le_bytes());
        framed.extend(&bytes[..bytes.len() / 8 * 8]);
        if let Ok(message) = capnp::serialize::read_message(&framed[..], ReaderOptions::new()) {
            let _ = message.get_root().map_err(CodecError::from).and_then(worker::read_command);
            let _ = message.get_root().map_err(CodecError::from).and_then(worker::read_reply);
            let _ = message.get_root().map_err(CodecError::from).and_then(worker::read_registration);
            let _ = message.get_root().map_err(CodecError::from).and_then(node::read_request);
            let _ = message.get_root().map_err(CodecError::from).and_then(node::read_response);
            let _ = message.get_root().map_err(CodecError::from).and_then(peer::read_request);
            let _ = message.get_root().map_err(CodecError::from).and_then(peer::read_response);
        }
    }
}
