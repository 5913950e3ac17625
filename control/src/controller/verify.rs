//! Verify: everything held is read again; what is wrong is fetched again from peers, or named as lost.

use std::rc::Rc;

use pangea_control_core::catalog::Record;
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::failure::{Failure, FailureCode};
use pangea_ipc::ids::ContentId;
use pangea_ipc::node::{DAMAGED_MAX, Damage, Opened};
use pangea_ipc::runtime;
use pangea_ipc::worker::Command;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::contents::{let_go, make_room, not_here, room_for};
use super::fetches::{self, State};
use super::get::learn;
use super::node::{Job, Node, Verified, command, fresh_job};

/// Begins a verify of one content, or of all.
///
/// # Errors
/// When the content is not here.
pub async fn open(node: &Rc<Node>, content: Option<ContentId>) -> Result<(Rc<Job>, Opened), Failure> {
    let contents: Vec<(ContentId, u64, u32)> = {
        let catalog = node.catalog.borrow();
        let here = |record: &Record| record.chunks_held > 0 || record.was_whole;
        let here = catalog.iter().filter(|(id, record)| here(record) && content.is_none_or(|wanted| wanted == **id));
        here.map(|(id, record)| (*id, record.size, record.chunks_held)).collect()
    };
    if let (Some(wanted), true) = (content, contents.is_empty()) {
        return Err(not_here(wanted));
    }
    let job = Job::new(fresh_job()?, content, contents.iter().map(|(_, size, _)| size).sum());
    job.change(|report| report.chunks_wanted = contents.iter().map(|(_, _, held)| held).sum());
    node.jobs.borrow_mut().insert(job.id, Rc::clone(&job));
    let (node, running) = (Rc::clone(node), Rc::clone(&job));
    let span = tracing::info_span!("job", kind = "verify", id = %job.id);
    let work = async move {
        let mut failed = Vec::new();
        for (id, size, _) in contents {
            if let Some(damage) = one(&node, &running, id, size).await {
                failed.extend(damage.failure.clone().map(|failure| (id, failure)));
                running.change(|report| {
                    report.contents_damaged = report.contents_damaged.saturating_add(1);
                    if report.damaged.len() < DAMAGED_MAX {
                        report.damaged.push(damage);
                    }
                });
            }
        }
        running.end(verdict(&failed));
    };
    tokio::task::spawn_local(work.instrument(span));
    let opened = Opened { job: job.id, size: job.report.borrow().size, name: String::new(), doors: Vec::new() };
    Ok((job, opened))
}

/// What a verify comes to: contents that are not whole again are named, as many as one sentence holds.
fn verdict(failed: &[(ContentId, Failure)]) -> Result<(), Failure> {
    let [(_, first), rest @ ..] = failed else { return Ok(()) };
    if rest.is_empty() {
        return Err(first.clone());
    }
    let ids: Vec<String> = failed.iter().map(|(id, _)| id.to_string()).collect();
    let text = format!("{} contents are damaged or cannot be read: {}", failed.len(), ids.join(", "));
    let corrupt = failed.iter().find(|(_, failure)| failure.code == FailureCode::Corrupt);
    Err(Failure::new(corrupt.map_or(first.code, |(_, failure)| failure.code), text))
}

/// Reads a content again and repairs it; `None` when nothing was wrong with it.
async fn one(node: &Rc<Node>, job: &Rc<Job>, id: ContentId, size: u64) -> Option<Damage> {
    let mut damage = Damage { content: id, chunks_bad: 0, chunks_lost: 0, failure: None };
    // What is being repaired makes no room for its own repair.
    node.verifying.borrow_mut().push(id);
    let result = try_one(node, job, id, size, &mut damage).await;
    let mut verifying = node.verifying.borrow_mut();
    if let Some(at) = verifying.iter().position(|other| *other == id) {
        verifying.swap_remove(at);
    }
    match result {
        Ok(()) if damage.chunks_bad == 0 => None,
        Ok(()) => Some(damage),
        Err(failure) => Some(Damage { failure: Some(failure), ..damage }),
    }
}

async fn try_one(node: &Rc<Node>, job: &Rc<Job>, id: ContentId, size: u64, damage: &mut Damage) -> Result<(), Failure> {
    let state_dir = &node.settings.state_dir;
    let is_proven = runtime::manifest(state_dir, id).exists();
    if !is_proven || !runtime::data(state_dir, id).exists() {
        // Somebody removed it under the workers, which would go on with files that have no name any more.
        let_go(node, id, false).await?;
    }
    if !is_proven {
        let again =
            |why| Failure::corrupt(format!("content {id} is gone from the store and could not be had again: {why}"));
        learn(node, id, false, &[]).await.map_err(again)?;
    }
    let (good, bad) = read_again(node, id).await?;
    damage.chunks_bad = bad.count();
    job.change(|report| {
        report.chunks_held += good;
        report.chunks_durable += good;
        report.chunks_bad += bad.count();
    });
    let wanted = to_repair(node, id, &bad).await?;
    if wanted.is_empty() {
        return Ok(());
    }
    tracing::warn!(content = %id, bad = bad.count(), missing = wanted.count(), "chunks are wrong or lost; repairing");
    // Other workers believe what they read of the bitmap before.
    for (_, worker) in node.running() {
        let _ = command(&worker, &Command::Holdings(id)).await;
    }
    let repaired = repair(node, id, size, wanted.clone()).await;
    let mut lost = wanted.clone();
    if let Some(holdings) = node.holdings(id).await? {
        lost.subtract(&holdings.held);
    }
    let lost = lost.count();
    damage.chunks_lost = lost;
    job.change(|report| {
        report.chunks_lost += lost;
        report.chunks_held += wanted.count() - lost;
        report.chunks_durable += wanted.count() - lost;
    });
    repaired.map_err(|failure| {
        Failure::corrupt(format!("content {id}: {lost} chunks are lost and could not be had again: {failure}"))
    })
}

/// What was found wrong just now and, of a content that was whole here, what was found wrong before and is missing since.
async fn to_repair(node: &Rc<Node>, id: ContentId, bad: &ChunkSet) -> Result<ChunkSet, Failure> {
    let was_whole = node.catalog.borrow().get(id).is_some_and(|record| record.was_whole);
    let mut wanted = bad.clone();
    if was_whole && let Some(holdings) = node.holdings(id).await? {
        wanted = ChunkSet::full(holdings.held.bound());
        wanted.subtract(&holdings.held);
        wanted.union_with(bad);
    }
    Ok(wanted)
}

async fn read_again(node: &Rc<Node>, id: ContentId) -> Verified {
    let (_, worker) = node.any_worker().await?;
    let job = fresh_job()?;
    let (tell, told) = oneshot::channel();
    node.verifies.borrow_mut().insert(job, tell);
    if let Err(failure) = command(&worker, &Command::Verify { job, content: id }).await {
        node.verifies.borrow_mut().remove(&job);
        return Err(failure);
    }
    let mut changes = node.workers_changed.subscribe();
    tokio::pin!(told);
    loop {
        tokio::select! {
            result = &mut told => {
                return result.unwrap_or_else(|_| Err(Failure::internal("the verify was forgotten")));
            }
            _ = changes.changed() => {
                // The worker that reads may have gone.
                if command(&worker, &Command::Status).await.is_err() {
                    node.verifies.borrow_mut().remove(&job);
                    return Err(Failure::unavailable("the worker that verified has gone; run the command again"));
                }
            }
        }
    }
}

async fn repair(node: &Rc<Node>, id: ContentId, size: u64, bad: ChunkSet) -> Result<(), Failure> {
    let reservation = fresh_job()?;
    node.refresh_content(id).await;
    make_room(node, reservation, room_for(node, id, size, bad.count())).await?;
    let fetch = fetches::start(node, reservation, id, size, bad, Vec::new());
    let mut state = fetch.state.subscribe();
    let ended = state.wait_for(|state| *state != State::Running).await;
    match ended.as_deref() {
        Ok(State::Failed(failure)) => Err(failure.clone()),
        _ => Ok(()),
    }
}
