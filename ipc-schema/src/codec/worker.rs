//! `worker.capnp`.

use super::common::{
    read_address, read_chunks, read_endpoint, read_endpoints, read_failure, read_policy, read_values, write_address,
    write_chunks, write_endpoint, write_endpoints, write_failure, write_policy,
};
use super::{CodecError, Result, bytes, checked, count, list, optional_bytes, or_empty, text};
use crate::content::MANIFEST_PAGE;
use crate::generated::worker_capnp as wire;
use crate::ids::{ContentId, JobId, NodeId, Revision, Token, WorkerIndex, WorkerKey};
use crate::node::TEXT_MAX;
use crate::worker::{
    Command, EVENTS_MAX, Event, FetchPlan, Holdings, INVENTORY_PAGE_MAX, JOBS_MAX, JobKind, JobStatus, KnownPath,
    ManifestPage, PINS_MAX, PathSample, Pin, PutPlan, ReadPlan, Registration, Reply, SOURCES_MAX, Share, Source,
    StoredContent,
};

fn content_id(data: &[u8]) -> Result<ContentId> {
    bytes("content id", data).map(ContentId)
}

fn node_id(data: &[u8]) -> Result<NodeId> {
    bytes("node id", data).map(NodeId)
}

fn token(data: &[u8]) -> Result<Token> {
    bytes("token", data).map(Token)
}

fn cpu_number(cpu: i32) -> Result<Option<u16>> {
    match cpu {
        -1 => Ok(None),
        _ => u16::try_from(cpu).map(Some).map_err(|_| CodecError::Impossible { what: "CPU", value: cpu.to_string() }),
    }
}

pub(crate) fn write_registration(value: &Registration, mut to: wire::registration::Builder<'_>) -> Result<()> {
    to.set_worker(value.worker.0);
    to.set_pid(value.pid);
    to.set_version(checked("version", &value.version, TEXT_MAX)?);
    to.set_key(&value.key.0);
    to.set_door(checked("door path", &value.door, TEXT_MAX)?);
    to.set_counters(checked("counters name", &value.counters, TEXT_MAX)?);
    to.set_cpu(value.cpu.map_or(-1, i32::from));
    to.set_revision(value.revision.0);
    write_address(value.address, to.reborrow().init_address());
    let jobs = count("jobs", value.jobs.len(), JOBS_MAX)?;
    write_jobs(&value.jobs, to.reborrow().init_jobs(jobs));
    write_events(&value.unreported, |count| to.reborrow().init_unreported(count))?;
    write_pins(&value.pins, |count| to.init_pins(count))
}

pub(crate) fn read_registration(from: wire::registration::Reader<'_>) -> Result<Registration> {
    Ok(Registration {
        worker: WorkerIndex(from.get_worker()),
        pid: from.get_pid(),
        version: text("version", from.get_version()?, TEXT_MAX)?,
        address: read_address(from.get_address()?)?,
        key: WorkerKey(bytes("worker key", from.get_key()?)?),
        door: text("door path", from.get_door()?, TEXT_MAX)?,
        counters: text("counters name", from.get_counters()?, TEXT_MAX)?,
        cpu: cpu_number(from.get_cpu())?,
        revision: Revision(from.get_revision()),
        jobs: read_jobs(from.get_jobs()?)?,
        unreported: read_events(from.get_unreported()?)?,
        pins: read_pins(from.get_pins()?)?,
    })
}

type PinsBuilder<'a> = capnp::struct_list::Builder<'a, wire::pin::Owned>;

fn write_pins<'a>(pins: &[Pin], init: impl FnOnce(u32) -> PinsBuilder<'a>) -> Result<()> {
    let mut list = init(count("pins", pins.len(), PINS_MAX)?);
    for (index, pin) in (0..).zip(pins) {
        let mut to = list.reborrow().get(index);
        to.set_key(&pin.key.0);
        to.set_node(&pin.node.0);
        to.set_known_rate(pin.known.map_or(0, |known| known.rate));
        to.set_known_rtt_us(pin.known.map_or(0, |known| known.rtt_us));
        to.set_known_loss_ppm(pin.known.map_or(0, |known| known.loss_ppm));
    }
    Ok(())
}

fn read_pins(from: capnp::struct_list::Reader<'_, wire::pin::Owned>) -> Result<Vec<Pin>> {
    list("pins", from, PINS_MAX, |pin| {
        Ok(Pin {
            key: WorkerKey(bytes("worker key", pin.get_key()?)?),
            node: node_id(pin.get_node()?)?,
            known: known_path(pin.get_known_rate(), pin.get_known_rtt_us(), pin.get_known_loss_ppm()),
        })
    })
}

fn write_jobs(jobs: &[JobStatus], mut to: capnp::struct_list::Builder<'_, wire::job_status::Owned>) {
    for (index, job) in (0..to.len()).zip(jobs) {
        let mut to = to.reborrow().get(index);
        to.set_job(job.job.0);
        to.set_kind(match job.kind {
            JobKind::Put => wire::JobKind::Put,
            JobKind::Read => wire::JobKind::Read,
            JobKind::Fetch => wire::JobKind::Fetch,
            JobKind::Verify => wire::JobKind::Verify,
        });
        to.set_content(or_empty(job.content.as_ref(), |id| &id.0));
        to.set_chunks_done(job.chunks_done);
        to.set_chunks_total(job.chunks_total);
    }
}

fn read_jobs(from: capnp::struct_list::Reader<'_, wire::job_status::Owned>) -> Result<Vec<JobStatus>> {
    list("jobs", from, JOBS_MAX, |job| {
        Ok(JobStatus {
            job: JobId(job.get_job()),
            kind: match job.get_kind().map_err(CodecError::unknown("job kind"))? {
                wire::JobKind::Put => JobKind::Put,
                wire::JobKind::Read => JobKind::Read,
                wire::JobKind::Fetch => JobKind::Fetch,
                wire::JobKind::Verify => JobKind::Verify,
            },
            content: optional_bytes("content id", job.get_content()?)?.map(ContentId),
            chunks_done: job.get_chunks_done(),
            chunks_total: job.get_chunks_total(),
        })
    })
}

fn write_sources<'a>(
    sources: &[Source],
    init: impl FnOnce(u32) -> capnp::struct_list::Builder<'a, wire::source::Owned>,
) -> Result<()> {
    let mut to = init(count("sources", sources.len(), SOURCES_MAX)?);
    for (index, source) in (0..).zip(sources) {
        let mut to = to.reborrow().get(index);
        to.set_node(&source.node.0);
        write_chunks(&source.held, to.reborrow().init_held());
        write_endpoints(&source.endpoints, |count| to.init_endpoints(count))?;
    }
    Ok(())
}

fn read_sources(from: capnp::struct_list::Reader<'_, wire::source::Owned>) -> Result<Vec<Source>> {
    list("sources", from, SOURCES_MAX, |source| {
        Ok(Source {
            node: node_id(source.get_node()?)?,
            held: read_chunks(source.get_held()?)?,
            endpoints: read_endpoints(source.get_endpoints()?)?,
        })
    })
}

pub(crate) fn write_command(command: &Command, mut to: wire::command::Builder<'_>) -> Result<()> {
    match command {
        Command::ApplyPolicy(policy) => write_policy(policy, to.init_apply_policy())?,
        Command::SetPins(pins) => write_pins(pins, |count| to.init_set_pins(count))?,
        Command::Put(plan) => {
            let mut to = to.init_put();
            to.set_job(plan.job.0);
            to.set_token(&plan.token.0);
            to.set_allowance(plan.allowance);
        }
        Command::Allow { job, allowance } => {
            let mut to = to.init_allow();
            to.set_job(job.0);
            to.set_allowance(*allowance);
        }
        Command::Read(plan) => {
            let mut to = to.init_read();
            to.set_job(plan.job.0);
            to.set_token(&plan.token.0);
            to.set_content(&plan.content.0);
        }
        Command::Fetch(plan) => {
            let mut to = to.init_fetch();
            to.set_job(plan.job.0);
            to.set_content(&plan.content.0);
            write_chunks(&plan.chunks, to.reborrow().init_chunks());
            write_sources(&plan.sources, |count| to.init_sources(count))?;
        }
        Command::SetSources { job, sources } => {
            let mut to = to.init_set_sources();
            to.set_job(job.0);
            write_sources(sources, |count| to.init_sources(count))?;
        }
        Command::Cancel(job) => to.set_cancel(job.0),
        Command::Remove { content, delete } => {
            let mut to = to.init_remove();
            to.set_content(&content.0);
            to.set_delete(*delete);
        }
        Command::Inventory { after } => to.set_inventory(or_empty(after.as_ref(), |id| &id.0)),
        Command::Verify { job, content } => {
            let mut to = to.init_verify();
            to.set_job(job.0);
            to.set_content(&content.0);
        }
        Command::Holdings(content) => to.set_holdings(&content.0),
        Command::Status => to.set_status(()),
        Command::Drain => to.set_drain(()),
        Command::Shutdown => to.set_shutdown(()),
        Command::Connect(endpoints) => write_endpoints(endpoints, |count| to.init_connect(count))?,
        Command::ManifestPage(wanted) => {
            let mut to = to.init_manifest_page();
            to.set_content(&wanted.content.0);
            to.set_size(wanted.size);
            to.set_page(wanted.page);
            write_endpoint(&wanted.from, to.init_from());
        }
    }
    Ok(())
}

pub(crate) fn read_command(from: wire::command::Reader<'_>) -> Result<Command> {
    use wire::command as w;
    Ok(match from.which().map_err(CodecError::unknown("command"))? {
        w::ApplyPolicy(policy) => Command::ApplyPolicy(read_policy(policy?)?),
        w::SetPins(pins) => Command::SetPins(read_pins(pins?)?),
        w::Put(plan) => {
            let plan = plan?;
            let (job, token) = (JobId(plan.get_job()), token(plan.get_token()?)?);
            Command::Put(PutPlan { job, token, allowance: plan.get_allowance() })
        }
        w::Allow(allow) => {
            let allow = allow?;
            Command::Allow { job: JobId(allow.get_job()), allowance: allow.get_allowance() }
        }
        w::Read(plan) => {
            let plan = plan?;
            let (job, token) = (JobId(plan.get_job()), token(plan.get_token()?)?);
            Command::Read(ReadPlan { job, token, content: content_id(plan.get_content()?)? })
        }
        w::Fetch(plan) => {
            let plan = plan?;
            Command::Fetch(FetchPlan {
                job: JobId(plan.get_job()),
                content: content_id(plan.get_content()?)?,
                chunks: read_chunks(plan.get_chunks()?)?,
                sources: read_sources(plan.get_sources()?)?,
            })
        }
        w::SetSources(set) => {
            let set = set?;
            Command::SetSources { job: JobId(set.get_job()), sources: read_sources(set.get_sources()?)? }
        }
        w::Cancel(job) => Command::Cancel(JobId(job)),
        w::Remove(remove) => {
            let remove = remove?;
            Command::Remove { content: content_id(remove.get_content()?)?, delete: remove.get_delete() }
        }
        w::Inventory(after) => Command::Inventory { after: optional_bytes("content id", after?)?.map(ContentId) },
        w::Verify(verify) => {
            let verify = verify?;
            Command::Verify { job: JobId(verify.get_job()), content: content_id(verify.get_content()?)? }
        }
        w::Holdings(content) => Command::Holdings(content_id(content?)?),
        w::Status(()) => Command::Status,
        w::Drain(()) => Command::Drain,
        w::Shutdown(()) => Command::Shutdown,
        w::Connect(endpoints) => Command::Connect(read_endpoints(endpoints?)?),
        w::ManifestPage(wanted) => {
            let wanted = wanted?;
            Command::ManifestPage(ManifestPage {
                content: content_id(wanted.get_content()?)?,
                size: wanted.get_size(),
                page: wanted.get_page(),
                from: read_endpoint(wanted.get_from()?)?,
            })
        }
    })
}

fn known_path(rate: u64, rtt_us: u32, loss_ppm: u32) -> Option<KnownPath> {
    (rate > 0 && rtt_us > 0).then_some(KnownPath { rate, rtt_us, loss_ppm })
}

pub(crate) fn write_reply(reply: &Reply, mut to: wire::reply::Builder<'_>) -> Result<()> {
    match reply {
        Reply::Done => to.set_done(()),
        Reply::Applied { revision, cpu } => {
            let mut to = to.init_applied();
            to.set_revision(revision.0);
            to.set_cpu(cpu.map_or(-1, i32::from));
        }
        Reply::Inventory(contents) => {
            let mut list = to.init_inventory(count("inventory", contents.len(), INVENTORY_PAGE_MAX)?);
            for (index, content) in (0..).zip(contents) {
                let mut to = list.reborrow().get(index);
                to.set_content(&content.content.0);
                to.set_size(content.size);
                to.set_chunks_held(content.chunks_held);
                to.set_disk_bytes(content.disk_bytes);
            }
        }
        Reply::Holdings(None) => to.set_nothing(()),
        Reply::Holdings(Some(holdings)) => {
            let mut to = to.init_holdings();
            to.set_size(holdings.size);
            write_chunks(&holdings.held, to.init_held());
        }
        Reply::Status(jobs) => {
            let count = count("jobs", jobs.len(), JOBS_MAX)?;
            write_jobs(jobs, to.init_status(count));
        }
        Reply::ManifestPage(values) => {
            count("manifest page", values.len(), MANIFEST_PAGE as usize)?;
            to.set_manifest_page(values.as_flattened());
        }
        Reply::Refused(failure) => write_failure(failure, to.init_refused()),
    }
    Ok(())
}

pub(crate) fn read_reply(from: wire::reply::Reader<'_>) -> Result<Reply> {
    use wire::reply as w;
    Ok(match from.which().map_err(CodecError::unknown("reply"))? {
        w::Done(()) => Reply::Done,
        w::Applied(applied) => {
            let applied = applied?;
            Reply::Applied { revision: Revision(applied.get_revision()), cpu: cpu_number(applied.get_cpu())? }
        }
        w::Inventory(contents) => Reply::Inventory(list("inventory", contents?, INVENTORY_PAGE_MAX, |content| {
            Ok(StoredContent {
                content: content_id(content.get_content()?)?,
                size: content.get_size(),
                chunks_held: content.get_chunks_held(),
                disk_bytes: content.get_disk_bytes(),
            })
        })?),
        w::Nothing(()) => Reply::Holdings(None),
        w::Holdings(holdings) => {
            let holdings = holdings?;
            Reply::Holdings(Some(Holdings { size: holdings.get_size(), held: read_chunks(holdings.get_held()?)? }))
        }
        w::Status(jobs) => Reply::Status(read_jobs(jobs?)?),
        w::ManifestPage(data) => Reply::ManifestPage(read_values("manifest page", data?, MANIFEST_PAGE as usize)?),
        w::Refused(failure) => Reply::Refused(read_failure(failure?)?),
    })
}

fn write_share(share: &Share, mut to: wire::share::Builder<'_>) {
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

fn read_share(from: wire::share::Reader<'_>) -> Share {
    Share {
        bytes: from.get_bytes(),
        chunks_by_stream: from.get_chunks_by_stream(),
        chunks_by_fec: from.get_chunks_by_fec(),
        symbols_sent: from.get_symbols_sent(),
        symbols_lost: from.get_symbols_lost(),
        symbols_received: from.get_symbols_received(),
        symbols_repaired: from.get_symbols_repaired(),
        symbols_asked_again: from.get_symbols_asked_again(),
        parity_unused: from.get_parity_unused(),
        chunks_bad: from.get_chunks_bad(),
    }
}

pub(crate) fn write_events<'a>(
    events: &[Event],
    init: impl FnOnce(u32) -> capnp::struct_list::Builder<'a, wire::event::Owned>,
) -> Result<()> {
    let mut to = init(count("events", events.len(), EVENTS_MAX)?);
    for (index, event) in (0..).zip(events) {
        write_event(event, to.reborrow().get(index))?;
    }
    Ok(())
}

pub(crate) fn read_events(from: capnp::struct_list::Reader<'_, wire::event::Owned>) -> Result<Vec<Event>> {
    list("events", from, EVENTS_MAX, read_event)
}

fn write_event(event: &Event, mut to: wire::event::Builder<'_>) -> Result<()> {
    match event {
        Event::PutDone { job, content, size } => {
            let mut to = to.init_put_done();
            to.set_job(job.0);
            to.set_content(&content.0);
            to.set_size(*size);
        }
        Event::AllowanceLow { job, stored } => {
            let mut to = to.init_allowance_low();
            to.set_job(job.0);
            to.set_stored(*stored);
        }
        Event::Progress { job, chunks_held, chunks_durable, shares } => {
            let mut to = to.init_progress();
            to.set_job(job.0);
            to.set_chunks_held(*chunks_held);
            to.set_chunks_durable(*chunks_durable);
            let mut list = to.init_shares(count("shares", shares.len(), SOURCES_MAX)?);
            for (index, (node, share)) in (0..).zip(shares) {
                let mut to = list.reborrow().get(index);
                to.set_node(&node.0);
                write_share(share, to.init_share());
            }
        }
        Event::FetchDone(job) => to.set_fetch_done(job.0),
        Event::Starved { job, missing } => {
            let mut to = to.init_starved();
            to.set_job(job.0);
            write_chunks(missing, to.init_missing());
        }
        Event::SourceLost { job, node, why } => {
            let mut to = to.init_source_lost();
            to.set_job(job.0);
            to.set_node(&node.0);
            write_failure(why, to.init_why());
        }
        Event::Failed { job, why } => {
            let mut to = to.init_failed();
            to.set_job(job.0);
            write_failure(why, to.init_why());
        }
        Event::ReadDone(job) => to.set_read_done(job.0),
        Event::Verified { job, content, good, bad } => {
            let mut to = to.init_verified();
            to.set_job(job.0);
            to.set_content(&content.0);
            to.set_good(*good);
            write_chunks(bad, to.init_bad());
        }
        Event::Path { node, sample } => {
            let mut to = to.init_path();
            to.set_node(&node.0);
            to.set_rtt_us(sample.rtt_us);
            to.set_packets_sent(sample.packets_sent);
            to.set_packets_lost(sample.packets_lost);
            to.set_bytes_received(sample.bytes_received);
            to.set_elapsed_ms(sample.elapsed_ms);
            to.set_rate(sample.known.map_or(0, |known| known.rate));
            to.set_rtt_min_us(sample.known.map_or(0, |known| known.rtt_us));
            to.set_loss_ppm(sample.known.map_or(0, |known| known.loss_ppm));
        }
        Event::StoreFailed(failure) => write_failure(failure, to.init_store_failed()),
        Event::Drained => to.set_drained(()),
    }
    Ok(())
}

fn read_event(from: wire::event::Reader<'_>) -> Result<Event> {
    use wire::event as w;
    Ok(match from.which().map_err(CodecError::unknown("event"))? {
        w::PutDone(done) => {
            let done = done?;
            let content = content_id(done.get_content()?)?;
            Event::PutDone { job: JobId(done.get_job()), content, size: done.get_size() }
        }
        w::AllowanceLow(low) => {
            let low = low?;
            Event::AllowanceLow { job: JobId(low.get_job()), stored: low.get_stored() }
        }
        w::Progress(progress) => {
            let progress = progress?;
            Event::Progress {
                job: JobId(progress.get_job()),
                chunks_held: progress.get_chunks_held(),
                chunks_durable: progress.get_chunks_durable(),
                shares: list("shares", progress.get_shares()?, SOURCES_MAX, |share| {
                    Ok((node_id(share.get_node()?)?, read_share(share.get_share()?)))
                })?,
            }
        }
        w::FetchDone(job) => Event::FetchDone(JobId(job)),
        w::Starved(starved) => {
            let starved = starved?;
            Event::Starved { job: JobId(starved.get_job()), missing: read_chunks(starved.get_missing()?)? }
        }
        w::SourceLost(lost) => {
            let lost = lost?;
            Event::SourceLost {
                job: JobId(lost.get_job()),
                node: node_id(lost.get_node()?)?,
                why: read_failure(lost.get_why()?)?,
            }
        }
        w::Failed(failed) => {
            let failed = failed?;
            Event::Failed { job: JobId(failed.get_job()), why: read_failure(failed.get_why()?)? }
        }
        w::ReadDone(job) => Event::ReadDone(JobId(job)),
        w::Verified(verified) => {
            let verified = verified?;
            Event::Verified {
                job: JobId(verified.get_job()),
                content: content_id(verified.get_content()?)?,
                good: verified.get_good(),
                bad: read_chunks(verified.get_bad()?)?,
            }
        }
        w::Path(path) => {
            let path = path?;
            let sample = PathSample {
                rtt_us: path.get_rtt_us(),
                packets_sent: path.get_packets_sent(),
                packets_lost: path.get_packets_lost(),
                bytes_received: path.get_bytes_received(),
                elapsed_ms: path.get_elapsed_ms(),
                known: known_path(path.get_rate(), path.get_rtt_min_us(), path.get_loss_ppm()),
            };
            Event::Path { node: node_id(path.get_node()?)?, sample }
        }
        w::StoreFailed(failure) => Event::StoreFailed(read_failure(failure?)?),
        w::Drained(()) => Event::Drained,
    })
}
