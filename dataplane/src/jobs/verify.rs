//! A verify: every chunk that is held is read again; wrong ones are held no more.

use std::collections::VecDeque;
use std::rc::Rc;

use futures::future::FutureExt;
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::counter;
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, JobId};
use pangea_ipc::worker::{Event, JobKind};
use tracing::Instrument;

use super::span;
use crate::commands::entry;
use crate::store::StoreError;
use crate::worker::{JobEntry, JobGuard, Worker};

/// Chunks of one verify that are on their way from the disk at once: few, so that other work is not held up.
const READS_MAX: usize = 4;

/// Starts a verify.
///
/// # Errors
/// When the worker takes no more jobs.
pub fn start(worker: &Rc<Worker>, job: JobId, content: ContentId) -> Result<(), Failure> {
    let guard = worker.begin(job, JobEntry { content: Some(content), ..entry(JobKind::Verify) })?;
    let work = async move {
        let worker = Rc::clone(guard.worker());
        let cancel = Rc::clone(&guard.entry.cancel);
        let result = tokio::select! {
            result = verify(&worker, &guard, content) => result,
            () = cancel.notified() => Err(Failure::cancelled("the verify was cancelled")),
        };
        worker.report(match result {
            Ok((good, bad)) => Event::Verified { job, content, good, bad },
            Err(why) => Event::Failed { job, why },
        });
    };
    tokio::task::spawn_local(work.instrument(span(JobKind::Verify, job)));
    Ok(())
}

async fn verify(worker: &Worker, guard: &JobGuard, id: ContentId) -> Result<(u32, ChunkSet), Failure> {
    let content = worker.store.content(id).await.map_err(|error| error.to_failure())?;
    content.refresh_now().await.map_err(|error| error.to_failure())?;
    let held = content.held().clone();
    let mut bad = ChunkSet::empty(held.bound());
    let mut done = 0;
    let mut reads = VecDeque::new();
    let mut chunks = held.iter();
    loop {
        while reads.len() < READS_MAX
            && let Some(chunk) = chunks.next()
        {
            let buffer = worker.buffers.take().await;
            reads
                .push_back(worker.store.read(&content, chunk, buffer).map(move |result| (chunk, result)).boxed_local());
        }
        let Some(read) = reads.pop_front() else { break };
        match read.await {
            (_, Ok(_)) => {}
            (chunk, Err(StoreError::WrongBytes { .. } | StoreError::Damaged { .. })) => {
                worker.counters.add(counter::Id::ReadBad, 1);
                bad.insert(chunk);
            }
            // A sector that cannot be read is as lost as one with wrong bytes.
            (chunk, Err(StoreError::Io { .. })) => {
                bad.insert(chunk);
                let lost = ChunkSet::of_range(held.bound(), chunk..chunk + 1);
                content.disclaim(lost).await.map_err(|error| error.to_failure())?;
            }
            (_, Err(error)) => return Err(error.to_failure()),
        }
        done += 1;
        guard.entry.progress.set((done, held.count()));
    }
    Ok((held.count() - bad.count(), bad))
}
