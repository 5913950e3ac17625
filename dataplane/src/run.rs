//! Puts a worker together and runs it until it is told to end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pangea_ipc::counter::{self, Id};
use pangea_ipc::ids::{Revision, WorkerIndex};
use pangea_ipc::rpc::{ListenError, listen_unix};
use pangea_ipc::runtime;
use pangea_ipc::worker::{Event, KnownPath, PathSample, Registration};
use pangea_ring::{CountersSegment, reap_stale};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::Instrument;

use crate::counters::Counters;
use crate::cpu::Allowed;
use crate::jobs::door;
use crate::link::Link;
use crate::net::congestion::{self, Law};
use crate::net::connections::Connections;
use crate::net::endpoint::{self, EndpointError, SOCKET_BUFFER};
use crate::net::serve::{self, Patience};
use crate::net::tls::{Identity, KeyError, Pins};
use crate::settings::Settings;
use crate::store::{Store, StoreError};
use crate::worker::{Parts, Worker};

/// How often counters are copied to their segment and the watchdog is told.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);
/// How often paths are sampled.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Whoever looks whether a worker lives holds its lock for a moment, so a lock is taken only after this time.
const LOCK_TIME: Duration = Duration::from_millis(100);
/// How often the lock is tried.
const LOCK_AGAIN: Duration = Duration::from_millis(5);

/// Why a worker could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A folder or file of the runtime folder.
    #[error("{}: {source}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another worker of this number lives.
    #[error("worker {worker} runs already (it holds {}); use another --index or stop it", path.display())]
    Running {
        /// Its number.
        worker: WorkerIndex,
        /// The lock file.
        path: PathBuf,
    },
    /// The system refuses threads, timers or signals.
    #[error("the system refuses: {0}")]
    System(#[from] std::io::Error),
    /// The store cannot be opened.
    #[error("the store cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The UDP port cannot be had.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The door cannot be opened.
    #[error(transparent)]
    Door(#[from] ListenError),
}

/// Runs a worker until it is told to end, by its controller or by a signal.
///
/// # Errors
/// When it cannot be set up.
pub fn run(settings: Settings) -> Result<(), RunError> {
    let allowed_cpus = Allowed::now();
    let runtime = runtime_of(allowed_cpus.clone())?;
    let local = LocalSet::new();
    // Every line of the log says which worker, and below it which peer or job, it is about.
    let span = tracing::info_span!("worker", index = %settings.worker);
    local.block_on(&runtime, serve(settings, allowed_cpus).instrument(span))
}

/// One thread for the network, which may be pinned, and others for what waits for the disk, which must not compete with it
/// for its CPU.
fn runtime_of(allowed_cpus: Option<Allowed>) -> std::io::Result<Runtime> {
    let unpin = move || allowed_cpus.iter().for_each(Allowed::unpin);
    Builder::new_current_thread().enable_all().thread_name("disk").on_thread_start(unpin).build()
}

async fn serve(settings: Settings, allowed_cpus: Option<Allowed>) -> Result<(), RunError> {
    let index = settings.worker;
    // First: a worker that is told to end while it starts cleans up too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    create_folder(&settings.runtime_dir)?;
    // Held until the process is gone, not just until this function returns: whoever waits for it waits for all of it.
    std::mem::forget(lock(&runtime::worker_lock(&settings.runtime_dir, index), index)?);
    let store = Store::open(settings.store.clone(), index).await?;
    let identity = Arc::new(Identity::generate()?);
    let pins = Pins::default();
    let dropped = Arc::new(AtomicU64::new(0));
    let fault = settings.fault.map(|fault| (fault, Arc::clone(&dropped)));
    if let Some((fault, _)) = &fault {
        tracing::warn!(loss_pct = fault.loss_pct, "the fault switch is on: datagrams are lost on purpose");
    }
    let law = Arc::<Law>::default();
    let quic = endpoint::open(settings.data_listen, &identity, &pins, &law, fault)?;
    let server = endpoint::server(&identity, &pins, &law)?;
    let address = quic.local_addr()?;
    let door_path = runtime::worker_door(&settings.runtime_dir, index);
    let door_listener = listen_unix(&door_path).await?;
    let segment_name = runtime::counters_name(&settings.runtime_dir, index);
    reap_stale(&segment_name);
    let segment = CountersSegment::create(&segment_name, counter::count());
    let segment = segment.map_err(|error| tracing::warn!(%error, "counters are not published")).ok();
    let key = identity.key();
    let worker = Worker::new(Parts {
        index,
        store,
        connections: Connections::new(quic, identity, server, law),
        pins,
        counters: Counters::new(segment),
        allowed_cpus,
        patience: Patience::default(),
    });
    let missing = endpoint::buffer_missing()?;
    worker.counters.set(Id::SocketBufferMissing, missing);
    if missing > 0 {
        tracing::warn!(
            missing,
            "the kernel caps UDP socket buffers; set net.core.rmem_max and net.core.wmem_max to {SOCKET_BUFFER} for fast links"
        );
    }
    let link = Link {
        introduction: Registration {
            worker: index,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address,
            key,
            door: door_path.display().to_string(),
            counters: segment_name,
            cpu: None,
            revision: Revision(0),
            jobs: Vec::new(),
            unreported: Vec::new(),
            pins: Vec::new(),
        },
        runtime_dir: settings.runtime_dir.clone(),
        orphan: settings.orphan,
    };
    tokio::task::spawn_local(door::serve(Rc::clone(&worker), door_listener).in_current_span());
    tokio::task::spawn_local(serve::serve(Rc::clone(&worker)).in_current_span());
    tokio::task::spawn_local(publish(Rc::clone(&worker), dropped).in_current_span());
    tokio::task::spawn_local(sample(Rc::clone(&worker)).in_current_span());
    tokio::task::spawn_local(watch_store(Rc::clone(&worker)).in_current_span());
    // Without systemd there is nobody to notify, which is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(%address, %key, "ready");
    tokio::select! {
        () = link.keep(Rc::clone(&worker)) => {}
        () = worker.stopped() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("ending");
    worker.store.sync_all().await;
    worker.connections.close().await;
    let _ = std::fs::remove_file(&door_path); // a stale one is replaced at the next start
    Ok(())
}

fn create_folder(folder: &Path) -> Result<(), RunError> {
    let failed = |source| RunError::Path { path: folder.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)
}

/// Held as long as the worker lives, however it ends; by it a controller tells the living from the dead.
fn lock(path: &Path, worker: WorkerIndex) -> Result<File, RunError> {
    let failed = |source| RunError::Path { path: path.to_owned(), source };
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_TIME;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_AGAIN),
            Err(std::fs::TryLockError::WouldBlock) => return Err(RunError::Running { worker, path: path.to_owned() }),
            Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

async fn publish(worker: Rc<Worker>, dropped: Arc<AtomicU64>) {
    let mut tick = interval(PUBLISH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        worker.counters.set(Id::DatagramsDropped, dropped.load(Ordering::Relaxed));
        worker.counters.set(Id::BuffersFree, worker.buffers.free() as u64);
        worker.counters.publish();
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

async fn watch_store(worker: Rc<Worker>) {
    let mut failure = worker.store.failure();
    while failure.changed().await.is_ok() {
        let known = failure.borrow_and_update().clone();
        if let Some(failure) = known {
            worker.report(Event::StoreFailed(failure));
        }
    }
}

/// Reports what the paths to peers show.
async fn sample(worker: Rc<Worker>) {
    let totals: RefCell<HashMap<usize, (u64, u64)>> = RefCell::default();
    let mut tick = interval(SAMPLE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        tick.tick().await;
        let elapsed_ms = u32::try_from(last.elapsed().as_millis()).unwrap_or(u32::MAX);
        last = Instant::now();
        worker.connections.close_unused();
        let connections = worker.connections.all();
        worker.counters.set(Id::Connections, connections.len() as u64);
        let (datagrams, late, broken) = worker.connections.refusals().take();
        worker.counters.add(Id::SymbolsRefused, datagrams);
        worker.counters.add(Id::SymbolsLate, late);
        worker.counters.add(Id::PeersProtocol, broken);
        let mut received = worker.take_received();
        let mut seen = HashMap::new();
        for (node, connection) in connections.iter().filter_map(|(key, quic)| Some((worker.node_of(*key)?, quic))) {
            let path = connection.stats().path;
            let now = (path.sent_packets, path.lost_packets);
            let before = totals.borrow().get(&connection.stable_id()).copied().unwrap_or_default();
            seen.insert(connection.stable_id(), now);
            let sample = PathSample {
                rtt_us: u32::try_from(path.rtt.as_micros()).unwrap_or(u32::MAX),
                packets_sent: now.0.saturating_sub(before.0),
                packets_lost: now.1.saturating_sub(before.1),
                bytes_received: received.remove(&node).unwrap_or(0),
                elapsed_ms,
                known: congestion::view(connection).known().map(|known| KnownPath {
                    rate: known.rate as u64,
                    rtt_us: u32::try_from(known.rtt.as_micros()).unwrap_or(u32::MAX),
                    loss_ppm: (known.loss * 1e6) as u32,
                }),
            };
            worker.counters.add(Id::PacketsSent, sample.packets_sent);
            worker.counters.add(Id::PacketsLost, sample.packets_lost);
            if sample.packets_sent > 0 || sample.bytes_received > 0 {
                worker.report(Event::Path { node, sample });
            }
        }
        totals.replace(seen);
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::sched_getaffinity;
    use nix::unistd::Pid;
    use pangea_ipc::policy::Pinning;

    use super::*;

    #[test]
    fn only_the_network_thread_is_pinned() {
        let now = || sched_getaffinity(Pid::from_raw(0)).unwrap();
        let network = std::thread::spawn(move || {
            let (before, allowed) = (now(), Allowed::now());
            let runtime = runtime_of(allowed.clone()).unwrap();
            let disk = runtime.block_on(async {
                allowed.unwrap().pin(WorkerIndex(0), &Pinning::Auto).unwrap();
                tokio::task::spawn_blocking(now).await.unwrap()
            });
            (before, now(), disk)
        });
        let (before, network, disk) = network.join().unwrap();
        assert_eq!(disk, before);
        let cpus = (0..nix::sched::CpuSet::count()).filter(|cpu| network.is_set(*cpu).unwrap()).count();
        assert_eq!(cpus, 1);
    }
}
