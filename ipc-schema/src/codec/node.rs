//! `node.capnp`.

use super::common::{
    read_failure, read_optional, read_peer, read_policy, write_failure, write_optional, write_peer, write_policy,
};
use super::{CodecError, Result, bytes, checked, count, list, optional_bytes, or_empty, text};
use crate::counter;
use crate::generated::node_capnp as wire;
use crate::ids::{ContentId, JobId, NodeId, Revision, Token, WorkerIndex};
use crate::node::{
    ASSIGNMENTS_MAX, ContentReport, DAMAGED_MAX, Damage, Door, HISTORY_MAX, JobReport, JobState, LISTING_PAGE_MAX,
    Opened, PeerReport, PeerState, Request, Response, ShareReport, StatusReport, TEXT_MAX, WorkerReport, WorkerState,
};
use crate::peer::HOLDERS_MAX;
use crate::ticket::{NAME_MAX, TICKET_CHARS_MAX};
use crate::worker::{SOURCES_MAX, WORKERS_MAX};

/// Shares in one job report at most: each source through each worker.
const SHARES_MAX: usize = SOURCES_MAX * WORKERS_MAX;
/// Counters of one worker at most; a newer version may have more than this one.
const COUNTERS_MAX: usize = 256;
/// The wire's "unlimited".
const UNLIMITED: u64 = u64::MAX;

fn content_id(data: &[u8]) -> Result<ContentId> {
    bytes("content id", data).map(ContentId)
}

fn node_id(data: &[u8]) -> Result<NodeId> {
    bytes("node id", data).map(NodeId)
}

pub(crate) fn write_request(request: &Request, mut to: wire::request::Builder<'_>) -> Result<()> {
    match request {
        Request::Put { name, size } => {
            let mut to = to.init_put();
            to.set_name(checked("name", name, NAME_MAX)?);
            match size {
                None => to.get_size().set_unknown(()),
                Some(size) => to.get_size().set_known(*size),
            }
        }
        Request::Get { content, peers, range } => {
            let mut to = to.init_get();
            to.set_content(&content.0);
            let mut list = to.reborrow().init_peers(count("peers", peers.len(), HOLDERS_MAX)?);
            for (index, peer) in (0..).zip(peers) {
                write_peer(peer, list.reborrow().get(index));
            }
            match range {
                None => to.get_range().set_whole(()),
                Some(range) => {
                    let mut to = to.get_range().init_bytes();
                    to.set_start(range.start);
                    to.set_end(range.end);
                }
            }
        }
        Request::Watch { job, seen } => {
            let mut to = to.init_watch();
            to.set_job(job.0);
            to.set_seen(*seen);
        }
        Request::Cancel(job) => to.set_cancel(job.0),
        Request::List { after } => to.set_list(or_empty(after.as_ref(), |id| &id.0)),
        Request::Remove(content) => to.set_remove(&content.0),
        Request::Pin(content) => to.set_pin(&content.0),
        Request::Unpin(content) => to.set_unpin(&content.0),
        Request::Verify(content) => to.set_verify(or_empty(content.as_ref(), |id| &id.0)),
        Request::Ticket { content, valid_s } => {
            let mut to = to.init_ticket();
            to.set_content(&content.0);
            to.set_valid_s(*valid_s);
        }
        Request::PeerAdd(peer) => write_peer(peer, to.init_peer_add()),
        Request::PeerRemove(node) => to.set_peer_remove(&node.0),
        Request::Peers => to.set_peers(()),
        Request::PolicyShow => to.set_policy_show(()),
        Request::PolicySet(assignments) => {
            let mut list = to.init_policy_set(count("policy changes", assignments.len(), ASSIGNMENTS_MAX)?);
            for (index, assignment) in (0..).zip(assignments) {
                list.set(index, checked("policy change", assignment, TEXT_MAX)?);
            }
        }
        Request::PolicyHistory => to.set_policy_history(()),
        Request::PolicyRollback(revision) => to.set_policy_rollback(revision.0),
        Request::PolicyWatch { seen } => to.set_policy_watch(seen.0),
        Request::Workers => to.set_workers(()),
        Request::WorkerAdd => to.set_worker_add(()),
        Request::WorkerDrain(worker) => to.set_worker_drain(worker.0),
        Request::Status => to.set_status(()),
    }
    Ok(())
}

pub(crate) fn read_request(from: wire::request::Reader<'_>) -> Result<Request> {
    use wire::request as w;
    Ok(match from.which().map_err(CodecError::unknown("request"))? {
        w::Put(put) => {
            let put = put?;
            let size = match put.get_size().which().map_err(CodecError::unknown("put size"))? {
                wire::put::size::Unknown(()) => None,
                wire::put::size::Known(size) => Some(size),
            };
            Request::Put { name: text("name", put.get_name()?, NAME_MAX)?, size }
        }
        w::Get(get) => {
            let get = get?;
            let range = match get.get_range().which().map_err(CodecError::unknown("range"))? {
                wire::get::range::Whole(()) => None,
                wire::get::range::Bytes(range) => {
                    let range = range?;
                    Some(range.get_start()..range.get_end())
                }
            };
            let peers = list("peers", get.get_peers()?, HOLDERS_MAX, read_peer)?;
            Request::Get { content: content_id(get.get_content()?)?, peers, range }
        }
        w::Watch(watch) => {
            let watch = watch?;
            Request::Watch { job: JobId(watch.get_job()), seen: watch.get_seen() }
        }
        w::Cancel(job) => Request::Cancel(JobId(job)),
        w::List(after) => Request::List { after: optional_bytes("content id", after?)?.map(ContentId) },
        w::Remove(content) => Request::Remove(content_id(content?)?),
        w::Pin(content) => Request::Pin(content_id(content?)?),
        w::Unpin(content) => Request::Unpin(content_id(content?)?),
        w::Verify(content) => Request::Verify(optional_bytes("content id", content?)?.map(ContentId)),
        w::Ticket(ticket) => {
            let ticket = ticket?;
            Request::Ticket { content: content_id(ticket.get_content()?)?, valid_s: ticket.get_valid_s() }
        }
        w::PeerAdd(peer) => Request::PeerAdd(read_peer(peer?)?),
        w::PeerRemove(node) => Request::PeerRemove(node_id(node?)?),
        w::Peers(()) => Request::Peers,
        w::PolicyShow(()) => Request::PolicyShow,
        w::PolicySet(assignments) => {
            let assignments = assignments?;
            count("policy changes", assignments.len() as usize, ASSIGNMENTS_MAX)?;
            let read = |assignment: capnp::Result<_>| text("policy change", assignment?, TEXT_MAX);
            Request::PolicySet(assignments.iter().map(read).collect::<Result<_>>()?)
        }
        w::PolicyHistory(()) => Request::PolicyHistory,
        w::PolicyRollback(revision) => Request::PolicyRollback(Revision(revision)),
        w::PolicyWatch(seen) => Request::PolicyWatch { seen: Revision(seen) },
        w::Workers(()) => Request::Workers,
        w::WorkerAdd(()) => Request::WorkerAdd,
        w::WorkerDrain(worker) => Request::WorkerDrain(WorkerIndex(worker)),
        w::Status(()) => Request::Status,
    })
}

pub(crate) fn write_response(response: &Response, mut to: wire::response::Builder<'_>) -> Result<()> {
    match response {
        Response::Done => to.set_done(()),
        Response::Opened(opened) => {
            let mut to = to.init_opened();
            to.set_job(opened.job.0);
            to.set_size(opened.size);
            to.set_name(checked("name", &opened.name, NAME_MAX)?);
            let mut list = to.init_doors(count("doors", opened.doors.len(), WORKERS_MAX)?);
            for (index, door) in (0..).zip(&opened.doors) {
                let mut to = list.reborrow().get(index);
                to.set_worker(door.worker.0);
                to.set_path(checked("door path", &door.path, TEXT_MAX)?);
                to.set_token(&door.token.0);
            }
        }
        Response::Job(report) => write_job(report, to.init_job())?,
        Response::Contents(contents) => {
            let mut list = to.init_contents(count("contents", contents.len(), LISTING_PAGE_MAX)?);
            for (index, content) in (0..).zip(contents) {
                let mut to = list.reborrow().get(index);
                to.set_id(&content.id.0);
                to.set_name(checked("name", &content.name, NAME_MAX)?);
                to.set_size(content.size);
                to.set_chunks(content.chunks);
                to.set_chunks_held(content.chunks_held);
                to.set_pinned(content.pinned);
                to.set_used_s(content.used_s);
            }
        }
        Response::Ticket(ticket) => to.set_ticket(checked("ticket", ticket, TICKET_CHARS_MAX)?),
        Response::Peers(peers) => {
            let mut list = to.init_peers(count("peers", peers.len(), LISTING_PAGE_MAX)?);
            for (index, peer) in (0..).zip(peers) {
                write_peer_report(peer, list.reborrow().get(index))?;
            }
        }
        Response::Policy(policy) => write_policy(policy, to.init_policy())?,
        Response::History(policies) => {
            let mut list = to.init_history(count("history", policies.len(), HISTORY_MAX)?);
            for (index, policy) in (0..).zip(policies) {
                write_policy(policy, list.reborrow().get(index))?;
            }
        }
        Response::Workers(workers) => write_workers(workers, |count| to.init_workers(count))?,
        Response::Status(status) => write_status(status, to.init_status())?,
        Response::Failed(failure) => write_failure(failure, to.init_failed()),
    }
    Ok(())
}

pub(crate) fn read_response(from: wire::response::Reader<'_>) -> Result<Response> {
    use wire::response as w;
    Ok(match from.which().map_err(CodecError::unknown("response"))? {
        w::Done(()) => Response::Done,
        w::Opened(opened) => {
            let opened = opened?;
            Response::Opened(Opened {
                job: JobId(opened.get_job()),
                size: opened.get_size(),
                name: text("name", opened.get_name()?, NAME_MAX)?,
                doors: list("doors", opened.get_doors()?, WORKERS_MAX, |door| {
                    Ok(Door {
                        worker: WorkerIndex(door.get_worker()),
                        path: text("door path", door.get_path()?, TEXT_MAX)?,
                        token: Token(bytes("token", door.get_token()?)?),
                    })
                })?,
            })
        }
        w::Job(report) => Response::Job(read_job(report?)?),
        w::Contents(contents) => Response::Contents(list("contents", contents?, LISTING_PAGE_MAX, |content| {
            Ok(ContentReport {
                id: content_id(content.get_id()?)?,
                name: text("name", content.get_name()?, NAME_MAX)?,
                size: content.get_size(),
                chunks: content.get_chunks(),
                chunks_held: content.get_chunks_held(),
                pinned: content.get_pinned(),
                used_s: content.get_used_s(),
            })
        })?),
        w::Ticket(ticket) => Response::Ticket(text("ticket", ticket?, TICKET_CHARS_MAX)?),
        w::Peers(peers) => Response::Peers(list("peers", peers?, LISTING_PAGE_MAX, read_peer_report)?),
        w::Policy(policy) => Response::Policy(read_policy(policy?)?),
        w::History(policies) => Response::History(list("history", policies?, HISTORY_MAX, read_policy)?),
        w::Workers(workers) => Response::Workers(list("workers", workers?, WORKERS_MAX, read_worker)?),
        w::Status(status) => Response::Status(read_status(status?)?),
        w::Failed(failure) => Response::Failed(read_failure(failure?)?),
    })
}

fn write_job(report: &JobReport, mut to: wire::job_report::Builder<'_>) -> Result<()> {
    to.set_job(report.job.0);
    to.set_version(report.version);
    to.set_state(match report.state {
        JobState::Running => wire::JobState::Running,
        JobState::Done => wire::JobState::Done,
        JobState::Failed => wire::JobState::Failed,
    });
    match &report.failure {
        None => to.reborrow().get_failure().set_none(()),
        Some(failure) => write_failure(failure, to.reborrow().get_failure().init_some()),
    }
    to.set_content(or_empty(report.content.as_ref(), |id| &id.0));
    to.set_size(report.size);
    to.set_chunks_wanted(report.chunks_wanted);
    to.set_chunks_before(report.chunks_before);
    to.set_chunks_held(report.chunks_held);
    to.set_chunks_durable(report.chunks_durable);
    to.set_chunks_bad(report.chunks_bad);
    to.set_chunks_lost(report.chunks_lost);
    to.set_contents_damaged(report.contents_damaged);
    let mut list = to.reborrow().init_damaged(count("damaged contents", report.damaged.len(), DAMAGED_MAX)?);
    for (index, damage) in (0..).zip(&report.damaged) {
        let mut to = list.reborrow().get(index);
        to.set_content(&damage.content.0);
        to.set_chunks_bad(damage.chunks_bad);
        to.set_chunks_lost(damage.chunks_lost);
        match &damage.failure {
            None => to.get_failure().set_none(()),
            Some(failure) => write_failure(failure, to.get_failure().init_some()),
        }
    }
    let mut list = to.init_shares(count("shares", report.shares.len(), SHARES_MAX)?);
    for (index, share) in (0..).zip(&report.shares) {
        let mut to = list.reborrow().get(index);
        to.set_worker(share.worker.0);
        to.set_node(&share.node.0);
        to.set_bytes(share.bytes);
        to.set_chunks_by_stream(share.chunks_by_stream);
        to.set_chunks_by_fec(share.chunks_by_fec);
        to.set_symbols_sent(share.symbols_sent);
        to.set_symbols_lost(share.symbols_lost);
        to.set_symbols_received(share.symbols_received);
        to.set_symbols_repaired(share.symbols_repaired);
        to.set_symbols_asked_again(share.symbols_asked_again);
        to.set_parity_unused(share.parity_unused);
        to.set_chunks_bad(share.chunks_bad);
    }
    Ok(())
}

fn read_job(from: wire::job_report::Reader<'_>) -> Result<JobReport> {
    use wire::job_report::failure::{None, Some};
    Ok(JobReport {
        job: JobId(from.get_job()),
        version: from.get_version(),
        state: match from.get_state().map_err(CodecError::unknown("job state"))? {
            wire::JobState::Running => JobState::Running,
            wire::JobState::Done => JobState::Done,
            wire::JobState::Failed => JobState::Failed,
        },
        failure: match from.get_failure().which().map_err(CodecError::unknown("job failure"))? {
            None(()) => Option::None,
            Some(failure) => Option::Some(read_failure(failure?)?),
        },
        content: optional_bytes("content id", from.get_content()?)?.map(ContentId),
        size: from.get_size(),
        chunks_wanted: from.get_chunks_wanted(),
        chunks_before: from.get_chunks_before(),
        chunks_held: from.get_chunks_held(),
        chunks_durable: from.get_chunks_durable(),
        chunks_bad: from.get_chunks_bad(),
        chunks_lost: from.get_chunks_lost(),
        shares: list("shares", from.get_shares()?, SHARES_MAX, |share| {
            Ok(ShareReport {
                worker: WorkerIndex(share.get_worker()),
                node: node_id(share.get_node()?)?,
                bytes: share.get_bytes(),
                chunks_by_stream: share.get_chunks_by_stream(),
                chunks_by_fec: share.get_chunks_by_fec(),
                symbols_sent: share.get_symbols_sent(),
                symbols_lost: share.get_symbols_lost(),
                symbols_received: share.get_symbols_received(),
                symbols_repaired: share.get_symbols_repaired(),
                symbols_asked_again: share.get_symbols_asked_again(),
                parity_unused: share.get_parity_unused(),
                chunks_bad: share.get_chunks_bad(),
            })
        })?,
        contents_damaged: from.get_contents_damaged(),
        damaged: list("damaged contents", from.get_damaged()?, DAMAGED_MAX, read_damage)?,
    })
}

fn read_damage(from: wire::damage::Reader<'_>) -> Result<Damage> {
    use wire::damage::failure::{None, Some};
    Ok(Damage {
        content: content_id(from.get_content()?)?,
        chunks_bad: from.get_chunks_bad(),
        chunks_lost: from.get_chunks_lost(),
        failure: match from.get_failure().which().map_err(CodecError::unknown("failure of a damaged content"))? {
            None(()) => Option::None,
            Some(failure) => Option::Some(read_failure(failure?)?),
        },
    })
}

/// The wire's form of a figure that may not be known yet: -1 when it is not.
fn or_minus_one(value: Option<u64>) -> i64 {
    value.map_or(-1, |value| i64::try_from(value).unwrap_or(i64::MAX))
}

fn figure<T: TryFrom<i64>>(what: &'static str, value: i64) -> Result<Option<T>> {
    if value == -1 {
        return Ok(None);
    }
    T::try_from(value).map(Some).map_err(|_| CodecError::Impossible { what, value: value.to_string() })
}

fn write_peer_report(peer: &PeerReport, mut to: wire::peer_report::Builder<'_>) -> Result<()> {
    to.set_node(&peer.node.0);
    to.set_state(match peer.state {
        PeerState::Unknown => wire::PeerState::Unknown,
        PeerState::Active => wire::PeerState::Active,
        PeerState::Degraded => wire::PeerState::Degraded,
        PeerState::Dead => wire::PeerState::Dead,
    });
    to.set_trouble(checked("trouble", &peer.trouble, TEXT_MAX)?);
    to.set_workers(peer.workers);
    to.set_latency_us(or_minus_one(peer.latency_us.map(u64::from)));
    to.set_jitter_us(or_minus_one(peer.jitter_us.map(u64::from)));
    to.set_loss_bp(or_minus_one(peer.loss_bp.map(u64::from)));
    to.set_throughput_bps(or_minus_one(peer.throughput_bytes_per_s));
    to.set_sample_age_ms(or_minus_one(peer.sample_age_ms));
    to.set_offences(peer.offences);
    write_optional(peer.address, to.init_address());
    Ok(())
}

fn read_peer_report(from: wire::peer_report::Reader<'_>) -> Result<PeerReport> {
    Ok(PeerReport {
        node: node_id(from.get_node()?)?,
        address: read_optional(from.get_address()?)?,
        state: match from.get_state().map_err(CodecError::unknown("peer state"))? {
            wire::PeerState::Unknown => PeerState::Unknown,
            wire::PeerState::Active => PeerState::Active,
            wire::PeerState::Degraded => PeerState::Degraded,
            wire::PeerState::Dead => PeerState::Dead,
        },
        trouble: text("trouble", from.get_trouble()?, TEXT_MAX)?,
        workers: from.get_workers(),
        latency_us: figure("latency", from.get_latency_us())?,
        jitter_us: figure("jitter", from.get_jitter_us())?,
        loss_bp: figure("loss", from.get_loss_bp())?,
        throughput_bytes_per_s: figure("throughput", from.get_throughput_bps())?,
        sample_age_ms: figure("sample age", from.get_sample_age_ms())?,
        offences: from.get_offences(),
    })
}

fn write_workers<'a>(
    workers: &[WorkerReport],
    init: impl FnOnce(u32) -> capnp::struct_list::Builder<'a, wire::worker_report::Owned>,
) -> Result<()> {
    let mut list = init(count("workers", workers.len(), WORKERS_MAX)?);
    for (index, worker) in (0..).zip(workers) {
        let mut to = list.reborrow().get(index);
        to.set_worker(worker.worker.0);
        to.set_state(match worker.state {
            WorkerState::Starting => wire::WorkerState::Starting,
            WorkerState::Running => wire::WorkerState::Running,
            WorkerState::Draining => wire::WorkerState::Draining,
            WorkerState::Dead => wire::WorkerState::Dead,
        });
        to.set_pid(worker.pid);
        to.set_cpu(worker.cpu.map_or(-1, i32::from));
        to.set_revision(worker.revision.0);
        to.set_restarts(worker.restarts);
        write_optional(worker.address, to.reborrow().init_address());
        let mut counters = to.init_counters(count("counters", worker.counters.len(), COUNTERS_MAX)?);
        for (index, (name, value)) in (0..).zip(&worker.counters) {
            let mut to = counters.reborrow().get(index);
            to.set_name(checked("counter name", name, TEXT_MAX)?);
            to.set_value(*value);
        }
    }
    Ok(())
}

fn read_worker(from: wire::worker_report::Reader<'_>) -> Result<WorkerReport> {
    let cpu = from.get_cpu();
    Ok(WorkerReport {
        worker: WorkerIndex(from.get_worker()),
        state: match from.get_state().map_err(CodecError::unknown("worker state"))? {
            wire::WorkerState::Starting => WorkerState::Starting,
            wire::WorkerState::Running => WorkerState::Running,
            wire::WorkerState::Draining => WorkerState::Draining,
            wire::WorkerState::Dead => WorkerState::Dead,
        },
        pid: from.get_pid(),
        cpu: figure("CPU", i64::from(cpu))?,
        address: read_optional(from.get_address()?)?,
        revision: Revision(from.get_revision()),
        restarts: from.get_restarts(),
        counters: list("counters", from.get_counters()?, COUNTERS_MAX, |counter| {
            Ok((text("counter name", counter.get_name()?, TEXT_MAX)?, counter.get_value()))
        })?,
    })
}

fn write_status(status: &StatusReport, mut to: wire::status_report::Builder<'_>) -> Result<()> {
    to.set_node(&status.node.0);
    to.set_version(checked("version", &status.version, TEXT_MAX)?);
    to.set_pid(status.pid);
    to.set_revision(status.revision.0);
    to.set_contents(status.contents);
    to.set_store_bytes(status.store_bytes);
    to.set_store_quota_bytes(status.store_quota_bytes.unwrap_or(UNLIMITED));
    to.set_store_failure(checked("store failure", &status.store_failure, TEXT_MAX)?);
    to.set_peers_active(status.peers_active);
    to.set_peers(status.peers);
    to.set_jobs(status.jobs);
    write_optional(status.listen, to.reborrow().init_listen());
    write_optional(status.metrics, to.reborrow().init_metrics());
    write_workers(&status.workers, |count| to.init_workers(count))
}

fn read_status(from: wire::status_report::Reader<'_>) -> Result<StatusReport> {
    Ok(StatusReport {
        node: node_id(from.get_node()?)?,
        version: text("version", from.get_version()?, TEXT_MAX)?,
        pid: from.get_pid(),
        listen: read_optional(from.get_listen()?)?,
        metrics: read_optional(from.get_metrics()?)?,
        revision: Revision(from.get_revision()),
        contents: from.get_contents(),
        store_bytes: from.get_store_bytes(),
        store_quota_bytes: Some(from.get_store_quota_bytes()).filter(|bytes| *bytes != UNLIMITED),
        store_failure: text("store failure", from.get_store_failure()?, TEXT_MAX)?,
        peers_active: from.get_peers_active(),
        peers: from.get_peers(),
        jobs: from.get_jobs(),
        workers: list("workers", from.get_workers()?, WORKERS_MAX, read_worker)?,
    })
}

const _: () = assert!(counter::ALL.len() <= COUNTERS_MAX);
