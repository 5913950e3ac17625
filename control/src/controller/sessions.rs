//! One session with each peer: dial or be dialled, introduce, ping, ask, answer.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use pangea_control_core::catalog::Claim;
use pangea_control_core::neighbours::{Neighbours, PING_TIME, is_kept};
use pangea_ipc::address::{Endpoint, PeerAddress};
use pangea_ipc::content::Manifest;
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, NodeId};
use pangea_ipc::peer::{Found, FoundHere, HOLDERS_MAX, Introduction, MANIFEST_SHORT_MAX, PeerRequest, PeerResponse};
use pangea_ipc::rpc::{PeerService, peer_session};
use pangea_ipc::runtime;
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use super::ahead;
use super::node::{Node, Session, chance, count, now_s, unexpected};
use super::noise::{self, NoiseError};
use crate::lookup::Written;

/// Handshakes under way at once at most; a stranger beyond that waits outside.
const HANDSHAKES_MAX: usize = 64;
/// Sessions at once at most.
const SESSIONS_MAX: usize = 512;
/// A TCP connection is there within this time or not at all.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A peer answers a request within this time.
pub const ASK_TIME: Duration = Duration::from_secs(3);
/// Pause after the system refused a connection (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Pause before a host name that could not be looked up is tried again.
const LOOK_UP_PAUSE: Duration = Duration::from_secs(10);

/// Takes peers in until the node ends.
pub async fn listen(node: Rc<Node>, listener: TcpListener) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(turn) = Arc::clone(&handshakes).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, remote)) => {
                let node = Rc::clone(&node);
                tokio::task::spawn_local(async move {
                    let admitted = let_in(&node, stream, remote).await;
                    drop(turn);
                    if let Some((peer, stream)) = admitted {
                        hold(node, peer, stream, remote, false).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a peer could not be let in");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn let_in(node: &Node, stream: TcpStream, remote: SocketAddr) -> Option<(NodeId, DuplexStream)> {
    let _ = stream.set_nodelay(true);
    let secured = match noise::accept(stream, &node.identity).await {
        Ok(secured) => secured,
        Err(error) => {
            count(&node.counts.handshakes_failed);
            tracing::debug!(%remote, %error, "no handshake");
            return None;
        }
    };
    let peer = secured.node;
    let why = if !node.neighbours.borrow().is_admitted(peer) {
        Some(format!("this node does not know it; its operator can admit it with: pangeactl peer add {peer}"))
    } else if node.sessions.borrow().len() >= SESSIONS_MAX {
        Some(format!("this node has {SESSIONS_MAX} sessions, the most it holds; try again later"))
    } else {
        None
    };
    match why {
        Some(why) => {
            count(&node.counts.peers_refused);
            tracing::info!(%peer, %remote, "refused a node");
            secured.refuse(&why).await;
            None
        }
        None => secured.welcome().await.ok().map(|stream| (peer, stream)),
    }
}

/// Keeps sessions up to every peer that the operator named with an address, and to whom a fetch draws from.
pub async fn keep_up(node: Rc<Node>) {
    let kept = Rc::new(RefCell::new(BTreeSet::new()));
    let mut changes = node.sessions_changed.subscribe();
    loop {
        for peer in kept_up(&node) {
            if kept.borrow_mut().insert(peer) {
                let (node, kept) = (Rc::clone(&node), Rc::clone(&kept));
                tokio::task::spawn_local(async move {
                    keep_up_one(&node, peer).await;
                    kept.borrow_mut().remove(&peer);
                });
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// The nodes to which a session is opened again when it ends.
fn kept_up(node: &Node) -> BTreeSet<NodeId> {
    let (neighbours, fetches) = (node.neighbours.borrow(), node.fetches.borrow());
    let sources = fetches.iter().flat_map(|fetch| fetch.source_nodes());
    let reachable = sources.filter(|peer| neighbours.address(*peer).is_some());
    neighbours.to_keep_up().into_iter().chain(reachable).collect()
}

/// Looks the host name of a configured peer up, until there is an answer: names may be known later than this node runs.
/// An address that the operator gave by hand stays.
pub async fn look_up(node: Rc<Node>, peer: Written) {
    if matches!(peer, Written::Address(_)) {
        return;
    }
    loop {
        let asked = peer.clone();
        match tokio::task::spawn_blocking(move || asked.look_up()).await {
            Ok(Ok(found)) => {
                let mut neighbours = node.neighbours.borrow_mut();
                // One that was removed meanwhile, or left out, is not taken in again.
                if neighbours.is_admitted(found.node) && neighbours.address(found.node).is_none() {
                    tracing::info!(peer = %found, host = %peer, "looked up");
                    let _ = neighbours.admit(found); // there is room: it is known
                }
                drop(neighbours);
                node.sessions_changed.send_modify(|version| *version += 1);
                return;
            }
            Ok(Err(why)) => tracing::warn!(%peer, why, "trying again in {LOOK_UP_PAUSE:?}"),
            Err(error) => {
                tracing::error!(%peer, %error, "a lookup ended early");
                return;
            }
        }
        sleep(LOOK_UP_PAUSE).await;
    }
}

async fn keep_up_one(node: &Rc<Node>, peer: NodeId) {
    let mut changes = node.sessions_changed.subscribe();
    while kept_up(node).contains(&peer) {
        if node.sessions.borrow().contains_key(&peer) {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        let pause = match dial(node, peer, &[]).await {
            Ok(()) => continue,
            Err(why) => node.neighbours.borrow_mut().handle_dial_failed(peer, &why.text, chance()),
        };
        // An inbound session, or a new address, ends the pause.
        let _ = timeout(pause, changes.changed()).await;
    }
}

/// Opens sessions to nodes that a program named, at the first of their addresses where they answer; says what went wrong.
pub async fn dial_named(node: &Rc<Node>, named: &[PeerAddress]) -> Vec<Failure> {
    let mut by_node: BTreeMap<NodeId, Vec<SocketAddr>> = BTreeMap::new();
    for peer in named.iter().filter(|peer| peer.node != node.identity.node) {
        by_node.entry(peer.node).or_default().extend(peer.address);
    }
    let mut trouble = Vec::new();
    for (peer, addresses) in by_node {
        if let Err(failure) = dial(node, peer, &addresses).await {
            tracing::info!(%peer, %failure, "a named node cannot be asked");
            trouble.push(failure);
        }
    }
    trouble
}

/// Opens a session to a node, unless one stands: where it is known to be, else at one of the addresses that somebody
/// told of it. Only one at which it proved to be is remembered.
///
/// # Errors
/// When it cannot be reached, is someone else, or refuses this node.
pub async fn dial(node: &Rc<Node>, peer: NodeId, told: &[SocketAddr]) -> Result<(), Failure> {
    if node.sessions.borrow().contains_key(&peer) {
        return Ok(());
    }
    if peer == node.identity.node {
        return Err(Failure::invalid("this is the node itself"));
    }
    if !node.dialling.borrow_mut().insert(peer) {
        // Somebody else dials it right now.
        let mut changes = node.sessions_changed.subscribe();
        let up = async { while !node.sessions.borrow().contains_key(&peer) && changes.changed().await.is_ok() {} };
        let late = |_| Failure::unavailable(format!("node {peer} cannot be reached"));
        return timeout(CONNECT_TIME, up).await.map_err(late);
    }
    let result = dial_somewhere(node, peer, told).await;
    node.dialling.borrow_mut().remove(&peer);
    result
}

async fn dial_somewhere(node: &Rc<Node>, peer: NodeId, told: &[SocketAddr]) -> Result<(), Failure> {
    let (was_known, known) = {
        let neighbours = node.neighbours.borrow();
        (neighbours.is_known(peer), neighbours.address(peer))
    };
    let mut addresses: Vec<SocketAddr> = known.into_iter().collect();
    addresses.extend(told.iter().filter(|address| Some(**address) != known && !address.ip().is_unspecified()));
    let mut result =
        Err(Failure::unavailable(format!("no address of node {peer} is known; give it as NODEID@IP:PORT")));
    for address in addresses {
        let noted = node.neighbours.borrow_mut().note(PeerAddress { node: peer, address: None });
        noted.map_err(|error| Failure::limit(error.to_string()))?;
        result = dial_at(node, peer, address).await;
        if result.is_ok() {
            if Some(address) != known {
                // There is room: it was noted above.
                let _ = node.neighbours.borrow_mut().note(PeerAddress { node: peer, address: Some(address) });
            }
            break;
        }
    }
    if result.is_err() && !was_known {
        // Named once and never met: nothing to remember.
        node.neighbours.borrow_mut().forget_passing(peer);
    }
    result
}

async fn dial_at(node: &Rc<Node>, peer: NodeId, address: SocketAddr) -> Result<(), Failure> {
    let unreachable = |why: String| Failure::unavailable(format!("node {peer} at {address} cannot be reached: {why}"));
    let stream = match timeout(CONNECT_TIME, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(unreachable(format!("no answer within {CONNECT_TIME:?}"))),
    };
    let _ = stream.set_nodelay(true);
    let remote = stream.peer_addr().unwrap_or(address);
    let stream = noise::connect(stream, &node.identity, peer).await.map_err(|error| match error {
        NoiseError::Refused(why) => {
            Failure::denied(format!("node {peer} refused this node: {why} (this node is {})", node.identity.node))
        }
        other => unreachable(other.to_string()),
    })?;
    let up = Rc::new(Notify::new());
    let task = hold_and_tell(Rc::clone(node), peer, stream, remote, true, Some(Rc::clone(&up)));
    tokio::task::spawn_local(task);
    match timeout(ASK_TIME, up.notified()).await {
        Ok(()) => Ok(()),
        Err(_) => Err(unreachable("it does not introduce itself".to_owned())),
    }
}

async fn hold(node: Rc<Node>, peer: NodeId, stream: DuplexStream, remote: SocketAddr, opened_here: bool) {
    hold_and_tell(node, peer, stream, remote, opened_here, None).await;
}

/// Holds a session to its end.
async fn hold_and_tell(
    node: Rc<Node>,
    peer: NodeId,
    stream: DuplexStream,
    remote: SocketAddr,
    opened_here: bool,
    up: Option<Rc<Notify>>,
) {
    let close = Rc::new(Notify::new());
    let service = Rc::new(Answers { node: Rc::clone(&node), peer, remote });
    let (client, driver) = peer_session(stream, opened_here, service);
    let session = Session { client, remote, opened_here, close: Rc::clone(&close) };
    {
        let mut sessions = node.sessions.borrow_mut();
        if let Some(other) = sessions.get(&peer)
            && other.opened_here != opened_here
        {
            // Both dialled at once: both keep the same of the two.
            if !is_kept(node.identity.node, peer, opened_here) {
                if let Some(up) = up {
                    up.notify_one();
                }
                return;
            }
            other.close.notify_one();
        } else if let Some(older) = sessions.get(&peer) {
            older.close.notify_one(); // a peer that dials again has lost the older one
        }
        sessions.insert(peer, session.clone());
    }
    node.neighbours.borrow_mut().handle_session(peer);
    tracing::info!(%peer, %remote, opened_here, "session");
    let span = tracing::info_span!("peer", node = %peer, %remote);
    let talk = talk(&node, peer, &session, up);
    let why = async {
        tokio::select! {
            () = driver => "the connection ended".to_owned(),
            why = talk => why,
            () = close.notified() => "closed here".to_owned(),
        }
    };
    let why = why.instrument(span).await;
    let ours = node.sessions.borrow().get(&peer).is_some_and(|current| Rc::ptr_eq(&current.close, &close));
    if ours {
        node.sessions.borrow_mut().remove(&peer);
        node.neighbours.borrow_mut().handle_session_end(peer, &why, Instant::now());
        tracing::info!(%peer, why, "session ended");
        node.pins_changed.notify_one();
        node.sessions_changed.send_modify(|version| *version += 1);
    }
}

/// Introduces this node, then pings for as long as the session stands; says why it should end.
async fn talk(node: &Rc<Node>, peer: NodeId, session: &Session, up: Option<Rc<Notify>>) -> String {
    let mut workers = node.workers_changed.subscribe();
    let mut pause = Duration::ZERO;
    let mut introduced = false;
    loop {
        if !introduced {
            match ask(session, &PeerRequest::Introduce(node.introduction())).await {
                Ok(PeerResponse::Introduction(theirs)) => take_introduction(node, peer, session.remote, theirs),
                Ok(other) => return unexpected(&other).text,
                Err(failure) => return failure.text,
            }
            introduced = true;
            if let Some(up) = &up {
                up.notify_one();
            }
            node.sessions_changed.send_modify(|version| *version += 1);
        }
        tokio::select! {
            () = sleep(pause) => {
                let asked = Instant::now();
                let nonce = getrandom::u64().unwrap_or(0);
                match timeout(PING_TIME, session.client.call(&PeerRequest::Ping(nonce))).await {
                    Ok(Ok(PeerResponse::Pong(same))) if same == nonce => {
                        node.neighbours.borrow_mut().handle_pong(peer, asked.elapsed(), Instant::now());
                        ahead::connect(node, peer);
                    }
                    Ok(Err(error)) if error.is_disconnected() => return error.to_string(),
                    _ if node.neighbours.borrow_mut().handle_ping_missed(peer) => {
                        return "it does not answer pings".to_owned();
                    }
                    _ => {}
                }
                pause = Neighbours::ping_pause(chance());
            }
            changed = workers.changed() => {
                if changed.is_err() {
                    return "the node ends".to_owned();
                }
                introduced = false; // its workers, and their keys, are others now
            }
        }
    }
}

fn take_introduction(node: &Rc<Node>, peer: NodeId, remote: SocketAddr, theirs: Introduction) {
    let reachable = |worker: Endpoint| {
        let mut worker = worker;
        if worker.address.ip().is_unspecified() {
            worker.address.set_ip(remote.ip());
        }
        worker
    };
    let workers = theirs.workers.into_iter().map(reachable).collect();
    node.neighbours.borrow_mut().set_workers(peer, workers);
    node.pins_changed.notify_one();
    ahead::connect(node, peer);
}

/// Asks a peer; a refusal is an error.
///
/// # Errors
/// When it refuses, has gone, or does not answer in time.
pub async fn ask(session: &Session, request: &PeerRequest) -> Result<PeerResponse, Failure> {
    match timeout(ASK_TIME, session.client.call(request)).await {
        Ok(Ok(PeerResponse::Refused(failure))) => Err(failure),
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(error.to_failure()),
        Err(_) => Err(Failure::unavailable(format!("the peer did not answer within {ASK_TIME:?}"))),
    }
}

/// Tells every peer that a content is here whole.
pub fn announce(node: &Rc<Node>, content: ContentId, size: u64) {
    let name = node.catalog.borrow().get(content).map(|record| record.name.clone()).unwrap_or_default();
    for session in node.sessions.borrow().values() {
        let (session, name) = (session.clone(), name.clone());
        tokio::task::spawn_local(async move {
            // A peer that does not hear it finds out when it asks.
            let _ = ask(&session, &PeerRequest::Announce { content, size, name }).await;
        });
    }
}

/// Answers one peer's requests.
struct Answers {
    node: Rc<Node>,
    peer: NodeId,
    remote: SocketAddr,
}

impl PeerService for Answers {
    fn call(self: Rc<Self>, request: PeerRequest) -> LocalBoxFuture<'static, PeerResponse> {
        Box::pin(async move { self.answer(request).await.unwrap_or_else(PeerResponse::Refused) })
    }
}

impl Answers {
    async fn answer(&self, request: PeerRequest) -> Result<PeerResponse, Failure> {
        let node = &self.node;
        // A node that this one dialled on a ticket's word is a source, not a guest.
        let guest = node.neighbours.borrow().is_admitted(self.peer);
        let denied = || Failure::denied(format!("node {} is not admitted here", self.peer));
        match request {
            PeerRequest::Introduce(theirs) => {
                take_introduction(node, self.peer, self.remote, theirs);
                // Fetches ask anew whom to draw from: its workers may be others now.
                node.sessions_changed.send_modify(|version| *version += 1);
                Ok(PeerResponse::Introduction(node.introduction()))
            }
            PeerRequest::Ping(nonce) => Ok(PeerResponse::Pong(nonce)),
            _ if !guest => Err(denied()),
            PeerRequest::Find(content) => Ok(PeerResponse::Found(self.find(content).await?)),
            PeerRequest::Announce { content, size, name } => {
                node.update_content(content, |record| {
                    if record.name.is_empty() {
                        record.name = pangea_ipc::ticket::checked_name(&name).unwrap_or_default();
                    }
                    record.note_provider(self.peer, Claim { at_s: now_s(), size });
                });
                Ok(PeerResponse::Noted)
            }
        }
    }

    async fn find(&self, content: ContentId) -> Result<Found, Failure> {
        let node = &self.node;
        let (name, providers) = {
            let catalog = node.catalog.borrow();
            let record = catalog.get(content);
            let providers = record.map(|record| record.providers.keys().copied().collect::<Vec<_>>());
            (record.map(|record| record.name.clone()).unwrap_or_default(), providers.unwrap_or_default())
        };
        let holdings = node.holdings(content).await?;
        let here = holdings.filter(|holdings| !holdings.held.is_empty());
        let mut values = Vec::new();
        if let Some(holdings) = &here
            && holdings.held.bound() as usize <= MANIFEST_SHORT_MAX
        {
            let path = runtime::manifest(&node.settings.state_dir, content);
            values = read_manifest(path, content).await?.values().to_vec();
        }
        let neighbours = node.neighbours.borrow();
        let others = providers.into_iter().filter(|other| *other != self.peer && neighbours.is_admitted(*other));
        let others =
            others.filter_map(|other| Some(PeerAddress { node: other, address: Some(neighbours.address(other)?) }));
        Ok(Found {
            here: here.map(|holdings| FoundHere { size: holdings.size, held: holdings.held, name, values }),
            others: others.take(HOLDERS_MAX).collect(),
        })
    }
}

/// Reads and proves a manifest of the store, away from the thread that answers everyone.
async fn read_manifest(path: impl AsRef<Path> + Send + 'static, content: ContentId) -> Result<Manifest, Failure> {
    let read = tokio::task::spawn_blocking(move || {
        let bytes = std::fs::read(path).map_err(|_| Failure::not_found(format!("content {content} is not here")))?;
        Manifest::from_file_bytes(content, &bytes).map_err(|error| Failure::corrupt(error.to_string()))
    });
    read.await.map_err(|error| Failure::internal(error.to_string()))?
}
