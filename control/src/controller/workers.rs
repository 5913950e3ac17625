//! The workers: started and watched, registered, commanded, listened to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pangea_ipc::counter;
use pangea_ipc::failure::{Failure, FailureCode};
use pangea_ipc::ids::WorkerIndex;
use pangea_ipc::node::{WorkerReport, WorkerState};
use pangea_ipc::rpc::{RegistrarService, WorkerClient, serve_registrar};
use pangea_ipc::runtime;
use pangea_ipc::worker::{Accepted, Command, Event, JobKind, Registration, Reply, WORKERS_MAX};
use pangea_ring::CountersView;
use tokio::net::UnixListener;
use tokio::process::Child;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::node::{Node, Worker, chance, command};
use super::{contents, fetches, put};

/// A worker that was told to end has this long before it is killed.
const END_TIME: Duration = Duration::from_secs(10);
/// How often a worker that runs without being our child is looked after: its end is no event for us.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Takes workers' connections until the node ends.
pub async fn listen(node: Rc<Node>, listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        if let Err(error) = pangea_ipc::rpc::check_peer(&stream) {
            tracing::warn!(%error, "a stranger at the workers' socket was turned away");
            continue;
        }
        let link = Rc::new(Link { node: Rc::clone(&node), registered: std::cell::RefCell::new(None) });
        let driver = serve_registrar(stream, Rc::clone(&link) as Rc<dyn RegistrarService>);
        tokio::task::spawn_local(async move {
            driver.await;
            link.ended();
        });
    }
}

/// One worker's connection.
struct Link {
    node: Rc<Node>,
    registered: std::cell::RefCell<Option<(WorkerIndex, u32)>>,
}

impl Link {
    fn ended(&self) {
        let Some((index, pid)) = self.registered.take() else { return };
        let lost = {
            let mut workers = self.node.workers.borrow_mut();
            let ours = workers.get(&index).is_some_and(|worker| worker.registration.pid == pid);
            if ours { workers.remove(&index) } else { None }
        };
        if let Some(worker) = lost {
            tracing::warn!(worker = %index, pid, "worker disconnected");
            retire(&self.node, &worker);
            fetches::worker_lost(&self.node, index);
            put::worker_lost(&self.node, index);
            self.node.workers_changed.send_modify(|version| *version += 1);
        }
    }
}

/// Keeps the totals of a worker that has ended.
fn retire(node: &Node, worker: &Worker) {
    let Some(view) = &worker.counters else { return };
    let mut retired = node.retired.borrow_mut();
    retired.resize(counter::count(), 0);
    for ((total, value), counter) in retired.iter_mut().zip(view.read()).zip(counter::ALL) {
        if counter.grows {
            *total = total.saturating_add(value);
        }
    }
}

impl RegistrarService for Link {
    fn register(
        self: Rc<Self>,
        mut registration: Registration,
        worker: WorkerClient,
    ) -> LocalBoxFuture<'static, Result<Accepted, Failure>> {
        Box::pin(async move {
            let (index, pid) = (registration.worker, registration.pid);
            if usize::from(index.0) >= WORKERS_MAX {
                return Err(Failure::invalid(format!("worker number {index}: a node has at most {WORKERS_MAX}")));
            }
            let taken = self.node.workers.borrow().get(&index).map(|worker| worker.registration.pid);
            if taken.is_some_and(|other| other != pid) {
                return Err(Failure::busy(format!("worker {index} is registered already")));
            }
            tracing::info!(worker = %index, pid, address = %registration.address, jobs = registration.jobs.len(), "worker registered");
            let unreported = registration.unreported.clone();
            let fetches = registration.jobs.iter().filter(|job| job.kind == JobKind::Fetch);
            let orphans: Vec<_> = fetches.map(|job| (job.job, job.content)).collect();
            // Before it is told anew whom to let in.
            self.node.neighbours.borrow_mut().restore_pins(&std::mem::take(&mut registration.pins), Instant::now());
            let counters = CountersView::open(&registration.counters).map(Rc::new).ok();
            let entry = Worker { client: worker.clone(), registration, draining: false, counters };
            self.node.workers.borrow_mut().insert(index, entry);
            self.registered.replace(Some((index, pid)));
            self.node.fleet.borrow_mut().handle_started(index, Instant::now());
            let node = Rc::clone(&self.node);
            tokio::task::spawn_local(async move {
                // It has the policy from the answer to its registration; asked again, it says what became of it.
                push_policy_to(&node, |worker| worker == index).await;
                for event in unreported {
                    handle(&node, index, event).await;
                }
                fetches::adopt(&node, index, orphans);
                contents::reconcile(&node).await;
            });
            self.node.pins_changed.notify_one();
            self.node.workers_changed.send_modify(|version| *version += 1);
            Ok(Accepted { policy: self.node.policy.borrow().clone(), node: self.node.identity.node })
        })
    }

    fn report(self: Rc<Self>, worker: WorkerIndex, events: Vec<Event>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            let handled = async {
                for event in events {
                    handle(&self.node, worker, event).await;
                }
            };
            handled.instrument(tracing::info_span!("worker", index = %worker)).await;
        })
    }
}

async fn handle(node: &Rc<Node>, worker: WorkerIndex, event: Event) {
    match event {
        Event::PutDone { job, content, size } => put::done(node, job, content, size).await,
        Event::AllowanceLow { job, stored } => put::allowance_low(node, worker, job, stored).await,
        Event::Path { node: peer, sample } => {
            node.neighbours.borrow_mut().handle_path(worker, peer, sample, Instant::now());
        }
        Event::StoreFailed(failure) => {
            tracing::error!(%worker, %failure, "a worker's store has stopped writing");
            node.store_failure.replace(failure.text);
        }
        Event::Drained => {
            let client = node.workers.borrow().get(&worker).map(|worker| worker.client.clone());
            if let Some(client) = client {
                // It ends without an answer as often as with one.
                let _ = client.perform(&Command::Shutdown).await;
            }
        }
        Event::Verified { job, good, bad, .. } => {
            if let Some(waiter) = node.verifies.borrow_mut().remove(&job) {
                let _ = waiter.send(Ok((good, bad))); // who asked may have gone
            }
        }
        Event::Failed { job, why } => {
            let waiter = node.verifies.borrow_mut().remove(&job);
            match waiter {
                Some(waiter) => {
                    let _ = waiter.send(Err(why));
                }
                None if put::failed(node, job, &why) => {}
                None => fetches::handle(node, job, fetches::News::Failed(why)),
            }
        }
        Event::Progress { job, chunks_held, chunks_durable, shares } => {
            fetches::handle(node, job, fetches::News::Progress { chunks_held, chunks_durable, shares });
        }
        Event::FetchDone(job) => fetches::handle(node, job, fetches::News::Done),
        Event::Starved { job, .. } => fetches::handle(node, job, fetches::News::Starved),
        Event::SourceLost { job, node: peer, why } => {
            tracing::warn!(%job, %peer, %why, "source lost");
            if why.code == FailureCode::Corrupt {
                node.neighbours.borrow_mut().handle_offence(peer);
            }
            fetches::handle(node, job, fetches::News::SourceLost { peer, why });
        }
        Event::ReadDone(_) => {}
    }
}

/// Tells all workers who may connect, whenever that changes.
pub async fn keep_pins(node: Rc<Node>) {
    let mut last = (Vec::new(), Vec::new());
    loop {
        let (pins, expiry) = node.neighbours.borrow().pins(node.grace(), Instant::now());
        let now = Instant::now();
        let workers: Vec<(u32, WorkerClient)> = {
            let workers = node.workers.borrow();
            workers.values().map(|worker| (worker.registration.pid, worker.client.clone())).collect()
        };
        let told: Vec<u32> = workers.iter().map(|(pid, _)| *pid).collect();
        if last != (pins.clone(), told.clone()) {
            for (_, worker) in &workers {
                if let Err(failure) = command(worker, &Command::SetPins(pins.clone())).await {
                    tracing::warn!(%failure, "a worker was not told who may connect");
                }
            }
            last = (pins, told);
        }
        let wait = expiry.map(|at| at.saturating_duration_since(now));
        tokio::select! {
            () = node.pins_changed.notified() => {}
            () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

/// Starts a worker and keeps it running until it is drained or the node ends.
pub async fn supervise(node: Rc<Node>, index: WorkerIndex) {
    let mut outlived = false;
    loop {
        if !node.wanted.borrow().contains(&index) {
            node.fleet.borrow_mut().remove(index);
            return;
        }
        if is_alive(&node, index) {
            // It has outlived an earlier controller and will register by itself.
            outlived = true;
            sleep(LOOK_AGAIN).await;
            continue;
        }
        if std::mem::take(&mut outlived) {
            tracing::warn!(worker = %index, "worker ended");
            let pause = node.fleet.borrow_mut().handle_ended(index, chance(), Instant::now());
            sleep(pause).await;
            continue;
        }
        node.fleet.borrow_mut().handle_started(index, Instant::now());
        match spawn(&node, index) {
            Ok(mut child) => {
                if let Some(pid) = child.id() {
                    node.children.borrow_mut().insert(index, pid);
                }
                let status = child.wait().await;
                node.children.borrow_mut().remove(&index);
                if !node.wanted.borrow().contains(&index) {
                    continue;
                }
                tracing::warn!(worker = %index, ?status, "worker ended");
            }
            Err(error) => tracing::error!(worker = %index, %error, "a worker could not be started"),
        }
        let pause = node.fleet.borrow_mut().handle_ended(index, chance(), Instant::now());
        sleep(pause).await;
    }
}

/// Whether a worker of this number lives: it holds its lock.
#[must_use]
pub fn is_alive(node: &Node, index: WorkerIndex) -> bool {
    let path = runtime::worker_lock(&node.settings.runtime_dir, index);
    std::fs::File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)))
}

/// The worker program beside this one.
fn program() -> std::io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("pangea-worker"))
}

fn spawn(node: &Node, index: WorkerIndex) -> std::io::Result<Child> {
    let settings = &node.settings;
    let program = program()?;
    let mut command = tokio::process::Command::new(&program);
    command.arg("--index").arg(index.to_string());
    command.arg("--state-dir").arg(&settings.state_dir).arg("--runtime-dir").arg(&settings.runtime_dir);
    command.arg("--data-listen").arg(settings.data_listen.to_string()).arg("--port-plus-index");
    command.arg("--orphan-s").arg(settings.orphan_s.to_string());
    command.arg("--log").arg(&settings.log).arg("--log-format").arg(settings.log_format.name());
    if let Some((loss_pct, seed)) = settings.fault {
        command.arg("--fault-loss").arg(loss_pct.to_string()).arg("--fault-seed").arg(seed.to_string());
    }
    // A group of its own: an interrupt at the terminal ends the controller, which then ends the worker in good order.
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    let child = command.spawn();
    child.map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", program.display())))
}

/// Tells a worker to finish its jobs and end; returns when it has.
///
/// # Errors
/// When there is no such worker, or it is not this controller's to end.
pub async fn drain(node: &Rc<Node>, index: WorkerIndex) -> Result<(), Failure> {
    let client = {
        let mut workers = node.workers.borrow_mut();
        let worker = workers.get_mut(&index);
        let worker = worker
            .ok_or_else(|| Failure::not_found(format!("worker {index} is not running; see: pangeactl workers")))?;
        worker.draining = true;
        worker.client.clone()
    };
    node.wanted.borrow_mut().retain(|wanted| *wanted != index);
    let mut changes = node.workers_changed.subscribe();
    command(&client, &Command::Drain).await?;
    while node.workers.borrow().contains_key(&index) || is_alive(node, index) {
        // Its registration ends a moment before its process does.
        let _ = timeout(LOOK_AGAIN, changes.changed()).await;
    }
    Ok(())
}

/// Ends all workers that this controller started or took over, in good order while time lasts. Returns when none is left.
pub async fn end_all(node: &Rc<Node>) {
    node.wanted.borrow_mut().clear();
    let deadline = Instant::now() + END_TIME;
    let mut told = BTreeSet::new();
    loop {
        // Again in each round: one that was just being started, or looked for its controller, may have registered.
        let registered: Vec<_> = {
            let workers = node.workers.borrow();
            workers.values().map(|worker| (worker.registration.pid, worker.client.clone())).collect()
        };
        for (pid, worker) in registered {
            if told.contains(&pid) {
                continue;
            }
            // One that does not say that it heard is told otherwise, if it is our child, or again.
            if matches!(timeout(LOOK_AGAIN, worker.perform(&Command::Shutdown)).await, Ok(Ok(_))) {
                told.insert(pid);
            }
        }
        // A child that has not registered cannot be told otherwise. It may not even hold its lock yet.
        let children: Vec<u32> = node.children.borrow().values().copied().collect();
        for pid in children {
            if told.insert(pid) {
                send(pid, Signal::SIGTERM);
            }
        }
        let living = living(node);
        if living.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            for (worker, pid) in living {
                tracing::warn!(%worker, pid, "a worker did not end; killing it");
                pid.into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Workers that live: our children, and whoever holds a worker's lock; with their processes as far as they are known.
fn living(node: &Node) -> BTreeMap<WorkerIndex, Option<u32>> {
    let indexes = (0..WORKERS_MAX).filter_map(|index| u16::try_from(index).ok()).map(WorkerIndex);
    let holder = |index| {
        let path = runtime::worker_lock(&node.settings.runtime_dir, index);
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok())
    };
    let mut living: BTreeMap<_, _> =
        indexes.filter(|index| is_alive(node, *index)).map(|index| (index, holder(index))).collect();
    living.extend(node.children.borrow().iter().map(|(index, pid)| (*index, Some(*pid))));
    living
}

fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal); // it may have ended by itself meanwhile
    }
}

/// All workers: registered, starting and ended ones.
#[must_use]
pub fn reports(node: &Node) -> Vec<WorkerReport> {
    let workers = node.workers.borrow();
    let wanted = node.wanted.borrow();
    let mut indexes: Vec<WorkerIndex> = workers.keys().chain(wanted.iter()).copied().collect();
    indexes.sort_unstable();
    indexes.dedup();
    let fleet = node.fleet.borrow();
    let report = |index: &WorkerIndex| match workers.get(index) {
        Some(worker) => {
            let registration = &worker.registration;
            let values = worker.counters.as_ref().map(|view| view.read()).unwrap_or_default();
            WorkerReport {
                worker: *index,
                state: if worker.draining { WorkerState::Draining } else { WorkerState::Running },
                pid: registration.pid,
                cpu: registration.cpu,
                address: Some(registration.address),
                revision: registration.revision,
                restarts: fleet.restarts(*index),
                counters: counter::ALL.iter().map(|counter| counter.name.to_owned()).zip(values).collect(),
            }
        }
        None => WorkerReport {
            worker: *index,
            // One that has never ended is on its way.
            state: if is_alive(node, *index) || fleet.restarts(*index) == 0 {
                WorkerState::Starting
            } else {
                WorkerState::Dead
            },
            pid: 0,
            cpu: None,
            address: None,
            revision: pangea_ipc::ids::Revision(0),
            restarts: fleet.restarts(*index),
            counters: Vec::new(),
        },
    };
    indexes.iter().map(report).collect()
}

/// Pushes the policy in force to all workers at once; says which did not acknowledge it.
pub async fn push_policy(node: &Rc<Node>) -> Vec<WorkerIndex> {
    push_policy_to(node, |_| true).await
}

async fn push_policy_to(node: &Rc<Node>, wanted: impl Fn(WorkerIndex) -> bool) -> Vec<WorkerIndex> {
    /// A worker switches between two turns, so this is generous.
    const ACKNOWLEDGE_TIME: Duration = Duration::from_secs(1);
    let policy = node.policy.borrow().clone();
    let workers: Vec<_> = {
        let workers = node.workers.borrow();
        let wanted = workers.iter().filter(|(index, _)| wanted(**index));
        wanted.map(|(index, worker)| (*index, worker.client.clone())).collect()
    };
    let one = |(index, client): (WorkerIndex, WorkerClient)| {
        let apply = Command::ApplyPolicy(policy.clone());
        async move {
            match timeout(ACKNOWLEDGE_TIME, client.perform(&apply)).await {
                Ok(Ok(Reply::Applied { revision, cpu })) => Ok((index, revision, cpu)),
                _ => Err(index),
            }
        }
    };
    let mut silent = Vec::new();
    for result in futures::future::join_all(workers.into_iter().map(one)).await {
        match result {
            Ok((index, revision, cpu)) => {
                if let Some(worker) = node.workers.borrow_mut().get_mut(&index) {
                    (worker.registration.revision, worker.registration.cpu) = (revision, cpu);
                }
            }
            Err(index) => silent.push(index),
        }
    }
    silent
}
