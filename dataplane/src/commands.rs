//! What the controller asks, done: one arm for each [`Command`]. Long work becomes a job that reports by event.

use std::cell::Cell;
use std::rc::Rc;

use futures::future::LocalBoxFuture;
use pangea_ipc::failure::Failure;
use pangea_ipc::rpc::WorkerService;
use pangea_ipc::worker::{Command, Holdings, JobKind, Reply};
use tokio::sync::{Notify, watch};

use crate::jobs;
use crate::worker::{Errand, JobEntry, Worker};

impl WorkerService for Worker {
    fn perform(self: Rc<Self>, command: Command) -> LocalBoxFuture<'static, Reply> {
        Box::pin(async move { perform(&self, command).await.unwrap_or_else(Reply::Refused) })
    }
}

async fn perform(worker: &Rc<Worker>, command: Command) -> Result<Reply, Failure> {
    match command {
        Command::ApplyPolicy(policy) => {
            return worker.apply_policy(policy).map(|revision| Reply::Applied { revision, cpu: worker.cpu.get() });
        }
        Command::SetPins(pins) => {
            let withdrawn = worker.pins.set(&pins);
            worker.connections.close_unpinned(&worker.pins, &withdrawn);
        }
        Command::Put(plan) => {
            let allowance = watch::Sender::new(plan.allowance);
            let entry = JobEntry { allowance: Some(allowance), ..entry(JobKind::Put) };
            jobs::door::expect(worker, plan.token, Errand::Put(plan), entry)?;
        }
        Command::Allow { job, allowance } => {
            let entry = worker.job(job, JobKind::Put).ok_or_else(|| Failure::not_found(format!("no put {job}")))?;
            if let Some(sender) = &entry.allowance {
                sender.send_replace(allowance);
            }
        }
        Command::Read(plan) => {
            let entry = JobEntry { content: Some(plan.content), ..entry(JobKind::Read) };
            jobs::door::expect(worker, plan.token, Errand::Read(plan), entry)?;
        }
        Command::Fetch(plan) => {
            worker.note_sources(&plan.sources);
            jobs::fetch::start(worker, plan)?;
        }
        Command::SetSources { job, sources } => {
            let entry = worker.job(job, JobKind::Fetch).ok_or_else(|| Failure::not_found(format!("no fetch {job}")))?;
            worker.note_sources(&sources);
            if let Some(sender) = &entry.sources {
                let _ = sender.send(sources); // a fetch that has just ended needs none
            }
        }
        Command::Cancel(job) => worker.cancel(job),
        Command::Remove { content, delete } => worker.store.remove(content, delete).await?,
        Command::Inventory { after } => {
            let page = worker.store.inventory(after).await.map_err(|error| error.to_failure())?;
            return Ok(Reply::Inventory(page));
        }
        Command::Verify { job, content } => jobs::verify::start(worker, job, content)?,
        Command::Holdings(content) => {
            let content = match worker.store.content(content).await {
                Ok(content) => content,
                Err(crate::store::StoreError::NotHere { .. }) => return Ok(Reply::Holdings(None)),
                Err(error) => return Err(error.to_failure()),
            };
            content.refresh_now().await.map_err(|error| error.to_failure())?;
            let size = content.manifest().geometry().size();
            return Ok(Reply::Holdings(Some(Holdings { size, held: content.durable().clone() })));
        }
        Command::ManifestPage(wanted) => return jobs::manifest::page(worker, wanted).await.map(Reply::ManifestPage),
        Command::Status => return Ok(Reply::Status(worker.job_statuses())),
        Command::Drain => worker.drain(),
        Command::Shutdown => worker.stop(),
        Command::Connect(endpoints) => {
            for endpoint in endpoints {
                let worker = Rc::clone(worker);
                // A peer that cannot be reached shows when something is asked of it.
                tokio::task::spawn_local(async move { worker.connections.to(endpoint).await.map(drop) });
            }
        }
    }
    Ok(Reply::Done)
}

/// An entry for a job of which nothing is known but its kind.
#[must_use]
pub fn entry(kind: JobKind) -> JobEntry {
    JobEntry {
        kind,
        content: None,
        progress: Cell::new((0, 0)),
        cancel: Rc::new(Notify::new()),
        allowance: None,
        sources: None,
        wanted: None,
    }
}
