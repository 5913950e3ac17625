//! Puts a controller together and runs it until it is told to end.

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pangea_control_core::history::History;
use pangea_ipc::address::PeerAddress;
use pangea_ipc::ids::WorkerIndex;
use pangea_ipc::rpc::{ListenError, listen_unix};
use pangea_ipc::runtime;
use pangea_ipc::worker::WORKERS_MAX;
use pangea_ring::reap_stale;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval};

use super::catalog_db::{CatalogDb, DbError, print_policy};
use super::identity::{Identity, IdentityError};
use super::node::Node;
use super::port_owner::Protocol;
use super::settings::Settings;
use super::{front_door, metrics, paths, policies, port_owner, sessions, workers};
use crate::lookup::Written;

/// How often the watchdog is told that the loop turns.
const WATCHDOG_EVERY: Duration = Duration::from_secs(1);
/// systemd is told that the node is ready when its workers are, but no later than this.
const WORKERS_READY_TIME: Duration = Duration::from_secs(10);

/// Why a controller could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A folder or file.
    #[error("{}: {source}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another controller lives.
    #[error("a pangea-controller runs already with the runtime folder {} (process {pid}); use another folder or stop it", folder.display())]
    Running {
        /// The folder.
        folder: PathBuf,
        /// Its process.
        pid: String,
    },
    /// A port cannot be had.
    #[error(
        "cannot listen on {protocol} {address} ({option}): {source}{owner}; choose another address or port (0 = any free port)"
    )]
    Port {
        /// Of what.
        protocol: Protocol,
        /// Where.
        address: SocketAddr,
        /// The option that says so.
        option: &'static str,
        /// What the system said.
        source: io::Error,
        /// Who has it.
        owner: String,
    },
    /// The workers' ports would go beyond the last one.
    #[error(
        "worker {index} would have a port beyond 65535 (--data-listen {base} and up); choose a lower port (0 = any free port)"
    )]
    NoPort {
        /// The first worker that has none.
        index: u16,
        /// The option.
        base: SocketAddr,
    },
    /// The system refuses threads, timers or signals.
    #[error("the system refuses: {0}")]
    System(#[from] io::Error),
    /// No key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// No socket.
    #[error(transparent)]
    Socket(#[from] ListenError),
}

/// Runs a controller until it is told to end.
///
/// # Errors
/// When it cannot be set up.
pub fn run(settings: Settings) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let result = local.block_on(&runtime, serve(settings));
    // Standard input may be read by a thread that cannot be interrupted.
    runtime.shutdown_background();
    result
}

async fn serve(settings: Settings) -> Result<(), RunError> {
    create_folder(&settings.state_dir)?;
    create_folder(&settings.runtime_dir)?;
    let _lock = lock(&settings.runtime_dir)?;
    let identity = Identity::load_or_create(&settings.state_dir)?;
    let (db, stored) = CatalogDb::open(&settings.state_dir)?;
    let peers_socket = bind(settings.listen, "--listen").await?;
    let metrics_socket = match settings.metrics {
        Some(address) => Some(bind(address, "--metrics").await?),
        None => None,
    };
    let programs = listen_unix(&runtime::controller_socket(&settings.runtime_dir)).await?;
    let workers_socket = listen_unix(&runtime::workers_socket(&settings.runtime_dir)).await?;
    let reaped = reap_stale(&runtime::counters_prefix(&settings.runtime_dir));
    if !reaped.is_empty() {
        tracing::info!(count = reaped.len(), "removed counters of workers that had died");
    }

    let first_start = stored.policies.is_empty();
    let history = History::new(stored.policies.clone(), settings.policy.clone());
    let (peers, paths, configured) = (stored.peers.clone(), stored.paths.clone(), stored.configured.clone());
    let node = Node::new(settings, identity, db, stored, history);
    node.listen.set(Some(peers_socket.local_addr()?));
    node.metrics.set(metrics_socket.as_ref().map(TcpListener::local_addr).transpose()?);
    let configured_peers = node.settings.peers.iter().map(|peer| match peer {
        Written::Address(peer) => *peer,
        Written::Name { node, .. } => PeerAddress { node: *node, address: None },
    });
    for peer in configured_peers.chain(peers) {
        if peer.node != node.identity.node
            && let Err(error) = node.neighbours.borrow_mut().admit(peer)
        {
            tracing::warn!(%peer, %error, "a peer was left out");
        }
    }
    for (peer, path) in paths {
        node.neighbours.borrow_mut().restore_path(peer, path);
    }
    if node.settings.workers == 0 && !node.settings.external_workers {
        tracing::warn!("no workers (--workers 0): puts and gets fail until there is one: pangeactl worker add");
    }
    if node.settings.data_listen.ip().is_loopback() && !node.settings.listen.ip().is_loopback() {
        tracing::warn!(
            data_listen = %node.settings.data_listen, listen = %node.settings.listen,
            "nodes elsewhere reach this one and not its workers: give --data-listen an address that they reach"
        );
    }
    check_data_ports(&node).await?;
    configure(&node, first_start, configured).await;

    spawn_local(meet_peers(Rc::clone(&node), peers_socket));
    for peer in node.settings.peers.clone() {
        spawn_local(sessions::look_up(Rc::clone(&node), peer));
    }
    spawn_local(workers::listen(Rc::clone(&node), workers_socket));
    spawn_local(workers::keep_pins(Rc::clone(&node)));
    spawn_local(paths::keep(Rc::clone(&node)));
    spawn_local(front_door::listen(Rc::clone(&node), programs));
    if let Some(socket) = metrics_socket {
        spawn_local(metrics::listen(Rc::clone(&node), socket));
    }
    let wanted = (0..node.settings.workers).map(WorkerIndex);
    for index in wanted {
        node.wanted.borrow_mut().push(index);
        spawn_local(workers::supervise(Rc::clone(&node), index));
    }
    spawn_local(tell_systemd(Rc::clone(&node)));

    wait_for_end(&node).await?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("ending");
    if !node.settings.external_workers {
        workers::end_all(&node).await;
        reap_stale(&runtime::counters_prefix(&node.settings.runtime_dir));
    }
    paths::store(&node);
    for socket in [runtime::controller_socket, runtime::workers_socket] {
        let _ = std::fs::remove_file(socket(&node.settings.runtime_dir)); // a stale one is replaced at the next start
    }
    Ok(())
}

/// Has sessions with peers, as soon as the workers that outlived an earlier controller are known: a node that tells peers
/// of fewer workers than it has makes them close the connections of the others.
async fn meet_peers(node: Rc<Node>, socket: TcpListener) {
    /// They look for a controller every second.
    const ADOPTION_TIME: Duration = Duration::from_secs(2);
    let indexes = (0..WORKERS_MAX).filter_map(|index| u16::try_from(index).ok()).map(WorkerIndex);
    let living: Vec<_> = indexes.filter(|index| workers::is_alive(&node, *index)).collect();
    let mut changes = node.workers_changed.subscribe();
    let known = || living.iter().all(|index| node.workers.borrow().contains_key(index));
    let adopted = async { while !known() && changes.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(ADOPTION_TIME, adopted).await; // one that hangs is not waited for
    spawn_local(sessions::keep_up(Rc::clone(&node)));
    sessions::listen(node, socket).await;
}

/// Puts the configured policy in force: at the first start, and when the configuration differs from the one before.
/// What was set by hand since then stays otherwise.
async fn configure(node: &Rc<Node>, first_start: bool, configured: Option<String>) {
    let now = print_policy(&node.settings.policy);
    if first_start {
        let first = node.history.borrow().newest();
        node.stored(node.db.add_policy(&first, &[]));
    } else if configured.is_some_and(|before| before != now) {
        tracing::info!("the configured policy has changed since the last start");
        if let Err(failure) = policies::enforce(node, node.settings.policy.clone()).await {
            tracing::error!(%failure, "the configured policy is not in force");
            return; // it is tried again at the next start
        }
    }
    node.stored(node.db.set_configured(&now));
}

async fn wait_for_end(node: &Node) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stdin_closed(), if node.settings.until_stdin_closes => {}
        () = node.stop.notified() => {}
    }
    Ok(())
}

async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0; 256];
    while stdin.read(&mut ignored).await.is_ok_and(|len| len > 0) {}
}

/// Says when the node is ready, and from then on that it is at work.
async fn tell_systemd(node: Rc<Node>) {
    let mut changes = node.workers_changed.subscribe();
    let expected = usize::from(node.settings.workers);
    let registered = async { while node.workers.borrow().len() < expected && changes.changed().await.is_ok() {} };
    let _ = tokio::time::timeout(WORKERS_READY_TIME, registered).await;
    let workers = node.workers.borrow().len();
    let listen = node.listen.get().map(|address| address.to_string()).unwrap_or_default();
    tracing::info!(node = %node.identity.node, listen, workers, "ready");
    // Without systemd there is nobody to notify, which is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut tick = interval(WATCHDOG_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

fn create_folder(folder: &Path) -> Result<(), RunError> {
    let failed = |source| RunError::Path { path: folder.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)
}

fn lock(runtime_dir: &Path) -> Result<File, RunError> {
    let path = runtime::controller_lock(runtime_dir);
    let failed = |source| RunError::Path { path: path.clone(), source };
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let pid = std::fs::read_to_string(&path).unwrap_or_default();
            return Err(RunError::Running { folder: runtime_dir.to_owned(), pid: pid.trim().to_owned() });
        }
        Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).and_then(|()| write!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

async fn bind(address: SocketAddr, option: &'static str) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| {
        let owner = match source.kind() {
            io::ErrorKind::AddrInUse => port_owner::describe(Protocol::Tcp, address),
            _ => String::new(),
        };
        RunError::Port { protocol: Protocol::Tcp, address, option, source, owner }
    })
}

/// Looks whether the workers that will be started can have their ports: they would only end again and again.
async fn check_data_ports(node: &Node) -> Result<(), RunError> {
    /// A worker that is just ending lets go of its lock a moment before its port.
    const TRIES: u32 = 3;
    let base = node.settings.data_listen;
    let indexes = (0..node.settings.workers).filter(|index| !workers::is_alive(node, WorkerIndex(*index)));
    for index in indexes {
        let port = if base.port() == 0 { Some(0) } else { base.port().checked_add(index) };
        let port = port.ok_or(RunError::NoPort { index, base })?;
        let address = SocketAddr::new(base.ip(), port);
        let mut tries = 0;
        while let Err(source) = std::net::UdpSocket::bind(address) {
            tries += 1;
            if tries == TRIES || source.kind() != io::ErrorKind::AddrInUse {
                let owner = port_owner::describe(Protocol::Udp, address);
                return Err(RunError::Port {
                    protocol: Protocol::Udp,
                    address,
                    option: "--data-listen",
                    source,
                    owner,
                });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}
