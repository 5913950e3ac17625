//! The connections that this worker opens: one to each worker of a peer that it asks, kept while it is used.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use pangea_ipc::address::Endpoint as PeerEndpoint;
use pangea_ipc::ids::WorkerKey;
use quinn::{ClientConfig, Connecting, ConnectionError, Endpoint, Incoming, ServerConfig, VarInt};
use tokio::sync::Mutex;
use tokio::time::{Duration, Instant, timeout};

use super::congestion::Law;
use super::datagrams::{Refusals, Symbols};
use super::endpoint::{mtu_max, transport};
use super::pulse::{Heard, Pulse};
use super::tls::{Identity, KeyError, Pins, SERVER_NAME};

/// A connection is up within this time or not at all.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Connections kept at most, to and from peers each.
pub const CONNECTIONS_MAX: usize = 256;
/// A connection is kept so long after it was last wanted. The controller wants those to connected peers with every ping,
/// each 5 s: six of them missed mean that the peer, or the controller, has gone.
const UNUSED_TIME: Duration = Duration::from_secs(30);
/// Of those from peers, connections that one worker of a peer may have: it needs one, and one that broke is noticed only
/// after a while.
pub const CONNECTIONS_EACH: usize = 8;

/// Why there is no connection to a peer's worker.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No answer, or the wrong key.
    #[error("no connection to worker {worker} at {address}: {source}")]
    Refused {
        /// The peer's worker number.
        worker: u16,
        /// Its address.
        address: std::net::SocketAddr,
        /// What QUIC says.
        source: ConnectionError,
    },
    /// No answer in time.
    #[error(
        "no connection to worker {worker} at {address} within {CONNECT_TIME:?}; UDP must get there and back, in packets of \
         1228 bytes"
    )]
    TimedOut {
        /// The peer's worker number.
        worker: u16,
        /// Its address.
        address: std::net::SocketAddr,
    },
    /// The address cannot be dialled from this endpoint.
    #[error("worker {worker} at {address} cannot be dialled: {source}")]
    Address {
        /// The peer's worker number.
        worker: u16,
        /// Its address.
        address: std::net::SocketAddr,
        /// What QUIC says.
        source: quinn::ConnectError,
    },
    /// A try that others began, and that this one waited for, came to nothing; what was said of it.
    #[error("{0}")]
    SameTry(String),
    /// Its node told that it is no more.
    #[error("worker {worker} at {address} is gone, its node says")]
    Withdrawn {
        /// The worker.
        worker: u16,
        /// Its address.
        address: std::net::SocketAddr,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// [`CONNECTIONS_MAX`] are in use.
    #[error("{CONNECTIONS_MAX} connections are in use, the most this worker keeps")]
    TooMany,
}

/// A connection that this worker opened, with the FEC transfers that run over it.
#[derive(Debug)]
pub struct Outgoing {
    /// The connection.
    pub quic: quinn::Connection,
    /// Where arriving symbols go.
    pub symbols: Symbols,
    /// Breaks silences while a chunk is waited for.
    pub pulse: Pulse,
}

/// The connection to one worker of a peer, or the attempt at one.
#[derive(Default)]
struct Slot {
    open: Mutex<Option<Rc<Outgoing>>>,
    /// When somebody last wanted it.
    wanted_at: Cell<Option<Instant>>,
    /// When the key was pinned no more: its node has told that this worker is gone.
    withdrawn_at: Cell<Option<Instant>>,
    /// What became of the last try, when it came to nothing.
    failed: RefCell<Option<(Instant, String)>>,
}

/// All connections of this worker.
pub struct Connections {
    endpoint: Endpoint,
    identity: Arc<Identity>,
    server: ServerConfig,
    law: Arc<Law>,
    outgoing: RefCell<HashMap<WorkerKey, Rc<Slot>>>,
    incoming: RefCell<HashMap<usize, (WorkerKey, quinn::Connection)>>,
    refusals: Rc<Refusals>,
}

impl Connections {
    /// No connections yet.
    #[must_use]
    pub fn new(endpoint: Endpoint, identity: Arc<Identity>, server: ServerConfig, law: Arc<Law>) -> Self {
        Self {
            endpoint,
            identity,
            server,
            law,
            outgoing: RefCell::default(),
            incoming: RefCell::default(),
            refusals: Rc::default(),
        }
    }

    /// How fast they send.
    #[must_use]
    pub fn law(&self) -> &Law {
        &self.law
    }

    /// The endpoint under them.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The connection to a peer's worker; opened when there is none. Who asks meanwhile waits for the same one.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn to(&self, peer: PeerEndpoint) -> Result<Rc<Outgoing>, ConnectError> {
        let slot = {
            let mut outgoing = self.outgoing.borrow_mut();
            if outgoing.len() >= CONNECTIONS_MAX && !outgoing.contains_key(&peer.key) {
                outgoing.retain(|_, slot| slot.is_used());
                if outgoing.len() >= CONNECTIONS_MAX {
                    return Err(ConnectError::TooMany);
                }
            }
            Rc::clone(outgoing.entry(peer.key).or_default())
        };
        // Until the controller has said whom to ask instead; it may also name the same one again.
        if slot.withdrawn_at.get().is_some_and(|at| at.elapsed() < CONNECT_TIME) {
            return Err(ConnectError::Withdrawn { worker: peer.worker.0, address: peer.address });
        }
        let wanted_at = Instant::now();
        slot.wanted_at.set(Some(wanted_at));
        let mut open = slot.open.lock().await;
        if let Some(open) = open.as_ref().filter(|open| is_open(open)) {
            return Ok(Rc::clone(open));
        }
        // Each of many who wait would otherwise try again, one after another, for seconds each.
        if let Some((at, why)) = &*slot.failed.borrow()
            && *at >= wanted_at
        {
            return Err(ConnectError::SameTry(why.clone()));
        }
        let quic = match self.open(peer).await {
            Ok(quic) => quic,
            Err(error) => {
                slot.failed.replace(Some((Instant::now(), error.to_string())));
                return Err(error);
            }
        };
        tracing::debug!(address = %peer.address, worker = %peer.worker, "connected");
        let fresh = Rc::new(Outgoing {
            symbols: Symbols::start(&quic, Rc::clone(&self.refusals)),
            pulse: Pulse::start(&quic, Heard::Anything),
            quic,
        });
        *open = Some(Rc::clone(&fresh));
        Ok(fresh)
    }

    async fn open(&self, peer: PeerEndpoint) -> Result<quinn::Connection, ConnectError> {
        let (worker, address) = (peer.worker.0, peer.address);
        let mut config = ClientConfig::new(Arc::new(self.identity.client_config(peer.key)?));
        config.transport_config(Arc::new(transport(&self.law, mtu_max(address))));
        let connecting = self
            .endpoint
            .connect_with(config, address, SERVER_NAME)
            .map_err(|source| ConnectError::Address { worker, address, source })?;
        match timeout(CONNECT_TIME, connecting).await {
            Ok(Ok(quic)) => Ok(quic),
            Ok(Err(source)) => Err(ConnectError::Refused { worker, address, source }),
            Err(_) => Err(ConnectError::TimedOut { worker, address }),
        }
    }

    /// Meets a connection that comes in, with the parameters of its path.
    ///
    /// # Errors
    /// When it is broken already.
    pub fn accept(&self, incoming: Incoming) -> Result<Connecting, ConnectionError> {
        let mut config = self.server.clone();
        config.transport_config(Arc::new(transport(&self.law, mtu_max(incoming.remote_address()))));
        incoming.accept_with(Arc::new(config))
    }

    /// Notes a connection that a peer opened; says whether there is room for it.
    pub fn note_incoming(&self, key: WorkerKey, quic: &quinn::Connection) -> bool {
        let mut incoming = self.incoming.borrow_mut();
        let of_it = incoming.values().filter(|(other, _)| *other == key).count();
        let room = incoming.len() < CONNECTIONS_MAX && of_it < CONNECTIONS_EACH;
        if room {
            incoming.insert(quic.stable_id(), (key, quic.clone()));
        }
        room
    }

    /// Forgets a connection that a peer opened.
    pub fn forget_incoming(&self, quic: &quinn::Connection) {
        self.incoming.borrow_mut().remove(&quic.stable_id());
    }

    /// Closes what peers opened with keys that are pinned no more, and what this worker opened to those that were withdrawn
    /// just now: who waits there for an answer would wait until the silence is long enough.
    pub fn close_unpinned(&self, pins: &Pins, withdrawn: &[WorkerKey]) {
        for (key, slot) in self.outgoing.borrow().iter() {
            if pins.node(*key).is_some() {
                slot.withdrawn_at.set(None);
            } else if withdrawn.contains(key) {
                slot.withdrawn_at.set(Some(Instant::now()));
                if let Ok(open) = slot.open.try_lock()
                    && let Some(open) = open.as_ref()
                {
                    open.quic.close(CLOSE_UNPINNED, b"key withdrawn");
                }
            }
        }
        for (key, quic) in self.incoming.borrow().values() {
            if pins.node(*key).is_none() {
                quic.close(CLOSE_UNPINNED, b"key withdrawn");
            }
        }
    }

    /// Connections in both directions, for sampling.
    #[must_use]
    pub fn all(&self) -> Vec<(WorkerKey, quinn::Connection)> {
        let outgoing = self.outgoing.borrow();
        let opened = outgoing.iter().filter_map(|(key, slot)| {
            let slot = slot.open.try_lock().ok()?;
            slot.as_ref().filter(|open| is_open(open)).map(|open| (*key, open.quic.clone()))
        });
        opened.chain(self.incoming.borrow().values().cloned()).collect()
    }

    /// Closes connections that nobody has wanted for half a minute and over which nothing comes.
    pub fn close_unused(&self) {
        self.outgoing.borrow_mut().retain(|_, slot| slot.is_used());
    }

    /// What was refused of what servers sent.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Closes everything and waits until the peers have been told.
    pub async fn close(&self) {
        self.endpoint.close(CLOSE_DONE, b"worker ends");
        /// Telling takes a packet each; a peer that cannot be reached learns by silence.
        const TELL_TIME: Duration = Duration::from_millis(500);
        let _ = timeout(TELL_TIME, self.endpoint.wait_idle()).await;
    }
}

/// Close code: the worker ends, or wants nothing more.
pub const CLOSE_DONE: VarInt = VarInt::from_u32(0);
/// Close code: the peer's key is pinned no more.
pub const CLOSE_UNPINNED: VarInt = VarInt::from_u32(1);
/// Close code: the peer broke the protocol.
pub const CLOSE_PROTOCOL: VarInt = VarInt::from_u32(2);
/// Close code: too many connections.
pub const CLOSE_LIMIT: VarInt = VarInt::from_u32(3);
/// Close code: the peer takes nothing of what it asked for.
pub const CLOSE_STALLED: VarInt = VarInt::from_u32(4);

impl Slot {
    /// Whether it is being opened, something comes over it, or somebody has wanted it lately. What is not is closed.
    fn is_used(&self) -> bool {
        let Ok(open) = self.open.try_lock() else { return true };
        let Some(open) = open.as_ref().filter(|open| is_open(open)) else { return false };
        let lately = self.wanted_at.get().is_some_and(|at| at.elapsed() < UNUSED_TIME);
        let used = lately || Rc::strong_count(open) > 1;
        if !used {
            open.quic.close(CLOSE_DONE, b"not used");
        }
        used
    }
}

fn is_open(open: &Rc<Outgoing>) -> bool {
    open.quic.close_reason().is_none()
}
