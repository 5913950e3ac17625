//! The worker's link to its controller: register, obey, report; when it breaks, carry on and try again.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pangea_ipc::counter::Id;
use pangea_ipc::rpc::{WorkerLink, connect_unix};
use pangea_ipc::runtime::workers_socket;
use pangea_ipc::worker::{EVENTS_MAX, Event, Registration};
use tokio::time::{Instant, sleep};

use crate::worker::Worker;

/// Pause before the first new try.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Pause between tries at most: a controller that restarts is found within this.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Who registers where.
#[derive(Debug, Clone)]
pub struct Link {
    /// What the worker says of itself; what changes is filled in at each registration.
    pub introduction: Registration,
    /// Folder of the node's sockets.
    pub runtime_dir: PathBuf,
    /// How long the worker lives without a controller and without moving a byte; `None` = for ever.
    pub orphan: Option<Duration>,
}

/// Bytes that this worker has moved for anybody.
fn moved_bytes(worker: &Worker) -> u64 {
    let moved = [Id::BytesPut, Id::BytesRead, Id::BytesFetched, Id::BytesServed].map(|id| worker.counters.get(id));
    moved.into_iter().fold(0, u64::wrapping_add)
}

impl Link {
    /// Keeps the worker registered. Returns when no controller came for too long.
    pub async fn keep(self, worker: Rc<Worker>) {
        let socket = workers_socket(&self.runtime_dir);
        let mut pause = RETRY_MIN;
        let mut idle_since = Instant::now();
        let mut moved = moved_bytes(&worker);
        loop {
            match self.serve_once(&worker, &socket).await {
                Ok(()) => {
                    tracing::info!("the controller is away; carrying on");
                    pause = RETRY_MIN;
                    idle_since = Instant::now();
                }
                Err(why) => tracing::debug!(%why, "not registered"),
            }
            let moved_now = moved_bytes(&worker);
            if moved_now != moved {
                (moved, idle_since) = (moved_now, Instant::now());
            }
            if self.orphan.is_some_and(|orphan| idle_since.elapsed() >= orphan) {
                tracing::warn!("no controller and nothing to do for {:?}; ending", idle_since.elapsed());
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Registers and reports until the link breaks. An error: it was never registered.
    async fn serve_once(&self, worker: &Rc<Worker>, socket: &Path) -> Result<(), String> {
        let stream = connect_unix(socket).await.map_err(|error| error.to_string())?;
        let (link, driver) = WorkerLink::new(stream, Rc::clone(worker) as Rc<_>);
        let mut driver = tokio::task::spawn_local(driver);
        let unreported = worker.events.take_now();
        let registration = Registration {
            cpu: worker.cpu.get(),
            revision: worker.policy().revision,
            jobs: worker.job_statuses(),
            unreported: unreported.clone(),
            pins: worker.pins.all(),
            ..self.introduction.clone()
        };
        let accepted = match link.register(&registration).await {
            Ok(accepted) => accepted,
            Err(error) => {
                worker.events.put_back(unreported);
                driver.abort();
                return Err(error.to_string());
            }
        };
        tracing::info!(node = %accepted.node, revision = %accepted.policy.revision, "registered");
        if let Err(failure) = worker.apply_policy(accepted.policy) {
            tracing::warn!(%failure, "kept the policy in force");
        }
        loop {
            let batch: Vec<Event> = tokio::select! {
                batch = worker.events.take() => batch,
                _ = &mut driver => return Ok(()),
            };
            debug_assert!(batch.len() <= EVENTS_MAX);
            tokio::select! {
                reported = link.report(&batch) => {
                    if let Err(error) = reported {
                        tracing::debug!(%error, "events not reported");
                        worker.events.put_back(batch);
                        driver.abort();
                        return Ok(());
                    }
                }
                _ = &mut driver => {
                    worker.events.put_back(batch);
                    return Ok(());
                }
            }
        }
    }
}
