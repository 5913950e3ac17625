//! A put: room is made, a worker takes the bytes, the catalog learns the content's id and name.

use std::rc::Rc;

use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, JobId, Token, WorkerIndex};
use pangea_ipc::node::{Door, JobState, Opened};
use pangea_ipc::ticket::checked_name;
use pangea_ipc::worker::{Command, PutPlan};

use super::contents::{free_room, make_room};
use super::node::{Job, Node, command, fresh_job, now_s};
use super::sessions::announce;

/// Room that a put of unknown size gets whenever it has nearly used what it has: as much again, but at least so much…
const ALLOWANCE_STEP_MIN: u64 = 1 << 20;
/// …and at most so much. Nothing is evicted for bytes that may never come.
const ALLOWANCE_STEP_MAX: u64 = 64 << 20;

/// Begins a put.
///
/// # Errors
/// When there is no room, or no worker takes it.
pub async fn open(node: &Rc<Node>, name: &str, size: Option<u64>) -> Result<(Rc<Job>, Opened), Failure> {
    let id = fresh_job()?;
    let allowance = match size {
        Some(size) => make_room(node, id, size).await.map(|()| size)?,
        None => keep_room(node, id, 0).await?,
    };
    let job = Job::new(id, None, size.unwrap_or(0));
    let opened = open_door(node, &job, name, allowance).await;
    if opened.is_err() {
        forget(node, id);
    }
    Ok((job, opened?))
}

/// Keeps room for so many bytes of a put of unknown size, and for more as far as there is some; says for how many.
async fn keep_room(node: &Rc<Node>, job: JobId, bytes: u64) -> Result<u64, Failure> {
    make_room(node, job, bytes).await?;
    let step = bytes.clamp(ALLOWANCE_STEP_MIN, ALLOWANCE_STEP_MAX);
    let allowance = bytes.saturating_add(step.min(free_room(node)));
    node.catalog.borrow_mut().reserve(job, allowance);
    Ok(allowance)
}

async fn open_door(node: &Rc<Node>, job: &Rc<Job>, name: &str, allowance: u64) -> Result<Opened, Failure> {
    let name = checked_name(name).unwrap_or_default();
    let (worker, client) = node.any_worker().await?;
    let token = Token::random().map_err(|error| Failure::internal(error.to_string()))?;
    // On disk before the first byte moves: also a controller that crashes now will know the name.
    node.puts.borrow_mut().insert(job.id, name.clone());
    node.must_store(node.db.set_put(job.id, Some(&name)))?;
    node.put_workers.borrow_mut().insert(job.id, worker);
    command(&client, &Command::Put(PutPlan { job: job.id, token, allowance })).await?;
    node.jobs.borrow_mut().insert(job.id, Rc::clone(job));
    let path = door(node, worker)?;
    let size = job.report.borrow().size;
    Ok(Opened { job: job.id, size, name, doors: vec![Door { worker, path, token }] })
}

/// A worker's door.
///
/// # Errors
/// When the worker has gone.
pub fn door(node: &Node, worker: WorkerIndex) -> Result<String, Failure> {
    let workers = node.workers.borrow();
    let gone = || Failure::unavailable(format!("worker {worker} has just gone; run the command again"));
    workers.get(&worker).map(|worker| worker.registration.door.clone()).ok_or_else(gone)
}

/// A worker has a put safe. Also one that an earlier controller began.
pub async fn done(node: &Rc<Node>, job: JobId, content: ContentId, size: u64) {
    let name = forget(node, job);
    tracing::info!(%job, %content, size, name, "content put");
    node.refresh_content(content).await;
    node.update_content(content, |record| {
        record.size = size;
        record.used_s = now_s();
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            record.name = name;
        }
    });
    let known = node.jobs.borrow().get(&job).cloned();
    if let Some(job) = known {
        job.change(|report| {
            report.content = Some(content);
            report.size = size;
            report.state = JobState::Done;
        });
    }
    announce(node, content, size);
}

/// A job has failed; says whether it was a put.
pub fn failed(node: &Rc<Node>, job: JobId, why: &Failure) -> bool {
    let Some(_name) = forget(node, job) else { return false };
    tracing::info!(%job, %why, "put failed");
    let known = node.jobs.borrow().get(&job).cloned();
    if let Some(job) = known {
        job.end(Err(why.clone()));
    }
    true
}

/// A put of unknown size needs more room: `stored` bytes now, and more later.
pub async fn allowance_low(node: &Rc<Node>, worker: WorkerIndex, job: JobId, stored: u64) {
    let reserved = node.catalog.borrow().reserved(job);
    let size_known = node.jobs.borrow().get(&job).is_some_and(|job| job.report.borrow().size > 0);
    // A put whose size was given has all its room from the start. Others ask when they have used half of it at the soonest, and
    // again until there is an answer: who had less when he asked has been answered.
    let answered = if size_known { reserved } else { reserved / 2 };
    if stored <= answered {
        return;
    }
    let client = node.workers.borrow().get(&worker).map(|worker| worker.client.clone());
    let Some(client) = client else { return };
    let allowed = match keep_room(node, job, stored.max(reserved)).await {
        Ok(allowance) if allowance == reserved => return,
        Ok(allowance) => command(&client, &Command::Allow { job, allowance }).await.map(drop),
        // It may end within what it has.
        Err(_) if stored <= reserved => return,
        Err(full) => {
            // First why: a program that finds it cancelled asks for that.
            failed(node, job, &full);
            let cancelled = command(&client, &Command::Cancel(job)).await;
            tracing::debug!(?cancelled, "a put that does not fit was cancelled");
            Ok(())
        }
    };
    if let Err(why) = allowed {
        failed(node, job, &why);
    }
}

/// A worker has gone, and its puts with it: the room kept for them is free again.
pub fn worker_lost(node: &Rc<Node>, worker: WorkerIndex) {
    let lost: Vec<JobId> = {
        let puts = node.put_workers.borrow();
        puts.iter().filter(|(_, on)| **on == worker).map(|(job, _)| *job).collect()
    };
    for job in lost {
        let why = Failure::unavailable(format!("worker {worker} went away in the middle of it; run the command again"));
        failed(node, job, &why);
    }
}

/// Gives back what is kept for a put; says its name, when there was one.
pub fn forget(node: &Node, job: JobId) -> Option<String> {
    node.catalog.borrow_mut().release(job);
    node.put_workers.borrow_mut().remove(&job);
    let name = node.puts.borrow_mut().remove(&job);
    if name.is_some() {
        node.stored(node.db.set_put(job, None));
    }
    name
}
