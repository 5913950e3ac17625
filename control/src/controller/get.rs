//! A get: what is missing is fetched, and doors are opened to read it while it comes.

use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pangea_control_core::catalog::Claim;
use pangea_ipc::address::PeerAddress;
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::Geometry;
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, JobId, NodeId, Token, WorkerIndex};
use pangea_ipc::node::{Door, Opened};
use pangea_ipc::peer::FoundHere;
use pangea_ipc::rpc::WorkerClient;
use pangea_ipc::worker::{Command, Holdings, ReadPlan};
use tracing::Instrument;

use super::contents::{make_room, room_for};
use super::fetches::{self, State};
use super::holders::{self, Wait};
use super::node::{Job, Node, command, fresh_job, now_s};
use super::put::door;
use super::sessions::dial_named;
use super::sizes;

/// How long a get for which no holder is known yet waits for sessions that are being opened.
const HOLDER_WAIT: Duration = Duration::from_secs(2);

/// Makes a content available and opens doors to read it.
///
/// # Errors
/// When nobody reachable has it, there is no room, or the range is not in it.
pub async fn open(
    node: &Rc<Node>,
    content: ContentId,
    peers: Vec<PeerAddress>,
    range: Option<Range<u64>>,
) -> Result<(Rc<Job>, Opened), Failure> {
    let (held, found) = begin(node, content, &peers, range.clone()).await?;
    let geometry = Geometry::new(held.size).map_err(|error| Failure::invalid(error.to_string()))?;
    let wanted = wanted(geometry, range)?;
    let mut missing = wanted.clone();
    missing.subtract(&held.held);
    let id = fresh_job()?;
    let job = Job::new(id, Some(content), held.size);
    job.change(|report| {
        report.chunks_wanted = wanted.count();
        report.chunks_before = wanted.count() - missing.count();
        (report.chunks_held, report.chunks_durable) = (report.chunks_before, report.chunks_before);
    });
    node.jobs.borrow_mut().insert(id, Rc::clone(&job));
    node.update_content(content, |record| {
        (record.size, record.used_s) = (held.size, now_s());
    });
    let opened = if missing.is_empty() {
        let worker = node.any_worker().await?;
        job.end(Ok(()));
        open_doors(node, &job, content, vec![worker]).await
    } else {
        let workers = node.await_running().await?;
        let doors = open_doors(node, &job, content, workers).await?;
        bring(node, &job, content, held.size, missing, found).await.map(|()| doors)
    };
    if opened.is_err() {
        leave(node, id);
    }
    Ok((job, opened?))
}

/// What is here of a content, made sure of as far as it must be for what is wanted; and who was found to hold it, when
/// anyone was asked.
async fn begin(
    node: &Rc<Node>,
    content: ContentId,
    peers: &[PeerAddress],
    range: Option<Range<u64>>,
) -> Result<(Holdings, Vec<(NodeId, FoundHere)>), Failure> {
    if let Some(held) = node.holdings(content).await? {
        let whole = Geometry::new(held.size).map_err(|error| Failure::invalid(error.to_string()))?;
        if wanted(whole, range).is_ok_and(|wanted| wanted.is_subset_of(&held.held)) {
            return Ok((held, Vec::new()));
        }
        // Others may have what these do not.
        dial_named(node, peers).await;
        let fetched = node.fetches.borrow().iter().any(|fetch| fetch.content == content);
        if fetched || sizes::is_proven(&held) {
            return Ok((held, Vec::new()));
        }
        let found = holders::find(node, content, Wait::First).await.found;
        let held = sizes::settle(node, content, held, &found).await?;
        return Ok((held, found));
    }
    let dial_trouble = dial_named(node, peers).await;
    let found = learn(node, content, !peers.is_empty(), &dial_trouble).await?;
    let held = node.holdings(content).await?.ok_or_else(|| Failure::internal("a manifest vanished"))?;
    Ok((sizes::settle(node, content, held, &found).await?, found))
}

/// Who holds a content, as peers have announced it: then nobody needs to be asked before its manifest and its chunks are.
/// Empty = ask: also when they do not agree on the size, or it has failed to prove right before.
fn announced(node: &Rc<Node>, content: ContentId) -> Vec<(NodeId, FoundHere)> {
    let (catalog, sessions, doubts) = (node.catalog.borrow(), node.sessions.borrow(), node.doubts.borrow());
    let Some(record) = catalog.get(content) else { return Vec::new() };
    let here = |(peer, claim): (&NodeId, &Claim)| {
        let count = Geometry::new(claim.size).ok()?.chunk_count();
        // The value of an only chunk is the content id.
        let values = if count == 1 { vec![content.0] } else { Vec::new() };
        let here = FoundHere { size: claim.size, held: ChunkSet::full(count), name: record.name.clone(), values };
        Some((*peer, here))
    };
    let connected = record.providers.iter().filter(|(peer, _)| sessions.contains_key(*peer));
    let found: Vec<_> = connected.filter_map(here).collect();
    let believed = |size: u64| size > 0 && !doubts.contains(content, size);
    let agreed = found.windows(2).all(|two| matches!(two, [(_, one), (_, other)] if one.size == other.size));
    let all = agreed && found.iter().all(|(_, here)| believed(here.size));
    if all { found } else { Vec::new() }
}

/// Finds out what a content is: its manifest, proven, comes into the store. Says who holds it.
///
/// # Errors
/// When nobody who can be asked has it, or none of them proves it.
pub async fn learn(
    node: &Rc<Node>,
    content: ContentId,
    named: bool,
    dial_trouble: &[Failure],
) -> Result<Vec<(NodeId, FoundHere)>, Failure> {
    // Whom the user names is to be asked, whoever else has announced it.
    let found = if named { Vec::new() } else { announced(node, content) };
    // Who has announced it may have lost it since; then everybody is asked.
    if !found.is_empty() && holders::get_manifest(node, content, &found).await.is_ok() {
        return Ok(found);
    }
    let deadline = tokio::time::Instant::now() + HOLDER_WAIT;
    let mut changes = node.sessions_changed.subscribe();
    let search = loop {
        let search = holders::find(node, content, Wait::First).await;
        // A node that has just started may still be dialling its peers.
        let more = node.neighbours.borrow().may_come(HOLDER_WAIT, Instant::now());
        if !search.found.is_empty() || !more || tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
            break search;
        }
    };
    let silent = search.silent();
    let mut found = search.found;
    if found.is_empty() {
        // Trouble with the node that was named is the answer, when there is any.
        if let Some(failure) = dial_trouble.first() {
            return Err(failure.clone());
        }
        if let (Some(peer), true) = (search.refused.first(), search.refused.len() == search.asked) {
            return Err(Failure::denied(format!(
                "node {peer} does not admit this node, so it does not say whether it has content {content}; its operator can \
                 admit this node with: pangeactl peer add {}",
                node.identity.node
            )));
        }
        let who = match (search.asked, silent) {
            (0, _) => "no peer is connected".to_owned(),
            (asked, 0) => format!("none of the {asked} connected peers has it"),
            (asked, silent) => format!("of the {asked} connected peers {silent} did not answer, and no other has it"),
        };
        return Err(Failure::not_found(format!(
            "content {content} is not here, and {who}; name a holder with --peer or use a ticket (pangeactl peer ls \
             shows who is connected)"
        )));
    }
    let told = found.iter().map(|(_, here)| here.size);
    let (sizes, _) = node.doubts.borrow().ranked(content, told);
    found.sort_by_key(|(_, here)| sizes.iter().position(|size| *size == here.size));
    let (size, name) = holders::get_manifest(node, content, &found).await?;
    node.update_content(content, |record| {
        record.size = size;
        if record.name.is_empty() {
            record.name = pangea_ipc::ticket::checked_name(&name).unwrap_or_default();
        }
    });
    Ok(found)
}

fn wanted(geometry: Geometry, range: Option<Range<u64>>) -> Result<ChunkSet, Failure> {
    let count = geometry.chunk_count();
    let Some(range) = range else { return Ok(ChunkSet::full(count)) };
    if range.start > range.end || range.end > geometry.size() {
        // As it was asked for: with both ends included.
        let (first, last, size) = (range.start, range.end.saturating_sub(1), geometry.size());
        return Err(Failure::invalid(format!(
            "bytes {first}-{last} are not within the content, which has {size} bytes, counted from 0"
        )));
    }
    Ok(ChunkSet::of_range(count, geometry.chunks_of(range.start, range.end)))
}

/// Shares the fetches that bring some of what is missing; starts one for the rest.
async fn bring(
    node: &Rc<Node>,
    job: &Rc<Job>,
    content: ContentId,
    size: u64,
    mut missing: ChunkSet,
    found: Vec<(NodeId, FoundHere)>,
) -> Result<(), Failure> {
    fetches::cancel_orphans(node, content).await;
    share(node, job, content, &mut missing);
    if !missing.is_empty() {
        let limit = usize::from(node.policy.borrow().policy.transfer_jobs_max);
        if node.fetches.borrow().len() >= limit {
            return Err(Failure::limit(format!(
                "{limit} fetches are under way, the most that transfer.jobs allows; try again later"
            )));
        }
        let id = fresh_job()?;
        let room = make_room(node, id, room_for(node, content, size, missing.count())).await;
        // While room was made, another get may have begun the same, and taken the room for it.
        share(node, job, content, &mut missing);
        if missing.is_empty() {
            node.catalog.borrow_mut().release(id);
        } else {
            room?;
            let fetch = fetches::start(node, id, content, size, missing, found);
            job.fetches.borrow_mut().push(fetch);
        }
    }
    let (node, job) = (Rc::clone(node), Rc::clone(job));
    let span = tracing::info_span!("job", kind = "get", id = %job.id);
    tokio::task::spawn_local(async move { watch(&node, &job).await }.instrument(span));
    Ok(())
}

/// Takes part in the fetches that bring some of what is missing; takes their chunks out of it.
fn share(node: &Node, job: &Job, content: ContentId, missing: &mut ChunkSet) {
    for fetch in node.fetches.borrow().iter().filter(|fetch| fetch.content == content) {
        let mut overlap = fetch.chunks.clone();
        overlap.intersect_with(missing);
        // One that nobody waits for any more is ending.
        if !overlap.is_empty() && fetch.is_wanted() && *fetch.state.borrow() == State::Running {
            fetch.join();
            job.fetches.borrow_mut().push(Rc::clone(fetch));
            missing.subtract(&overlap);
        }
    }
}

/// Ends a job when the fetches that it shares have ended.
async fn watch(node: &Rc<Node>, job: &Rc<Job>) {
    let fetches = job.fetches.borrow().clone();
    let mut result = Ok(());
    for fetch in fetches {
        let mut state = fetch.state.subscribe();
        let ended = state.wait_for(|state| *state != State::Running).await;
        if let Ok(State::Failed(failure)) = ended.as_deref() {
            result = Err(failure.clone());
        }
    }
    if result.is_ok() {
        job.change(|report| {
            (report.chunks_held, report.chunks_durable) = (report.chunks_wanted, report.chunks_wanted);
        });
    }
    tracing::debug!(?result, "get ended");
    let still_wanted = node.jobs.borrow().contains_key(&job.id);
    if still_wanted {
        job.end(result);
    }
}

/// A program wants a get no more.
pub fn leave(node: &Rc<Node>, job: JobId) {
    let job = node.jobs.borrow_mut().remove(&job);
    for fetch in job.iter().flat_map(|job| job.fetches.take()) {
        fetch.leave();
    }
}

async fn open_doors(
    node: &Rc<Node>,
    job: &Rc<Job>,
    content: ContentId,
    workers: Vec<(WorkerIndex, WorkerClient)>,
) -> Result<Opened, Failure> {
    let mut doors = Vec::new();
    let mut trouble = None;
    for (worker, client) in workers {
        let token = Token::random().map_err(|error| Failure::internal(error.to_string()))?;
        match command(&client, &Command::Read(ReadPlan { job: job.id, token, content })).await {
            Ok(_) => doors.push(Door { worker, path: door(node, worker)?, token }),
            Err(failure) => trouble = Some(failure), // another worker will do
        }
    }
    match (doors.is_empty(), trouble) {
        (true, Some(failure)) => Err(failure),
        _ => {
            let name = node.catalog.borrow().get(content).map(|record| record.name.clone()).unwrap_or_default();
            let size = job.report.borrow().size;
            Ok(Opened { job: job.id, size, name, doors })
        }
    }
}
