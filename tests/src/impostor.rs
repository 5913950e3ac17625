//! A peer that speaks every protocol rightly up to the point where it lies, or dawdles.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use futures::future::LocalBoxFuture;
use pangea_control::controller::identity::Identity as NodeIdentity;
use pangea_control::controller::noise;
use pangea_dataplane::net::endpoint;
use pangea_dataplane::net::tls::{Identity as WorkerIdentity, Pins};
use pangea_dataplane_core::frame::{Answer, Mark, Part, REQUEST_LEN, Request, SYMBOL_HEADER_LEN, SymbolHeader};
use pangea_fec::ChunkShape;
use pangea_ipc::address::{Endpoint, PeerAddress};
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::{CHUNK_SIZE, ChainingValue, Manifest, chaining_value};
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, NodeId, WorkerIndex};
use pangea_ipc::peer::{Found, FoundHere, Introduction, PeerRequest, PeerResponse};
use pangea_ipc::rpc::{PeerService, peer_session};
use pangea_ipc::worker::Pin;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

/// What is wrong with the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Chunks of the right length with wrong bytes.
    WrongBytes,
    /// Symbols of the right shape with wrong bytes.
    WrongSymbols,
    /// Right symbols but for one byte of one.
    PoisonedSymbol,
    /// Right symbols but for one that is left out, and wrong parity in its place.
    PoisonedParity,
    /// Symbols without end that nobody asked for.
    Strays(Stray),
    /// Symbols of a shape that cannot be.
    ImpossibleShape,
    /// Another length than the chunk has.
    OtherLength,
    /// The stream ends within the chunk.
    Truncated,
    /// The right chunk, and then bytes without end.
    Endless,
    /// No answer that this protocol knows.
    Garbage,
    /// A manifest that does not prove the content.
    WrongManifest,
    /// A manifest page with more values than the content has chunks.
    LongManifest,
    /// A size that no content has.
    ImpossibleSize,
    /// No lie: the right bytes, but those of the second half only after [`Impostor::release`].
    LateHalf,
    /// Never an answer when it is asked what it holds.
    Silence,
    /// A size that fits the number of chunks but is not the content's, and bytes for it.
    OtherSize,
}

/// Symbols that nobody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    /// Of a transfer that never was.
    UnknownTransfer,
    /// Shorter and longer than announced.
    WrongLength,
    /// With numbers of blocks and symbols that the chunk does not have.
    ImpossibleNumber,
    /// No symbol datagrams at all.
    Malformed,
    /// The same symbol again and again.
    Duplicates,
    /// Those of a chunk that was sent rightly and is whole, again and again.
    Replays,
}

/// A running impostor; ends when dropped.
#[derive(Debug)]
pub struct Impostor {
    address: PeerAddress,
    answers: Receiver<PeerResponse>,
    gate: watch::Sender<bool>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Impostor {
    /// Starts a peer that offers `bytes` and lies about them. Whoever opens a session to it is asked for `curious`.
    ///
    /// # Panics
    /// When the system refuses a port or a thread.
    #[must_use]
    pub fn start(bytes: Vec<u8>, lie: Lie, curious: ContentId) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = channel();
        let (note, answers) = channel();
        let (gate, released) = watch::channel(false);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let state = State::new(bytes, lie, curious, note, released);
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                tell.send(PeerAddress { node: state.node.node, address: Some(address) }).unwrap();
                tokio::select! {
                    () = serve_sessions(Rc::clone(&state), listener) => {}
                    () = serve_chunks(state) => {}
                    _ = stopped => {}
                }
            });
        });
        let address = told.recv().unwrap();
        Self { address, answers, gate, stop: Some(stop), thread: Some(thread) }
    }

    /// Who it says that it is.
    #[must_use]
    pub fn id(&self) -> String {
        self.address.node.to_string()
    }

    /// `NODEID@HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Gives from now on what [`Lie::LateHalf`] holds back.
    pub fn release(&self) {
        self.gate.send_replace(true);
    }

    /// What a node that opened a session answered to the next of [`guests_requests`]; waits for it.
    ///
    /// # Panics
    /// When the impostor has ended.
    #[must_use]
    pub fn next_answer(&self) -> PeerResponse {
        self.answers.recv().unwrap()
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The manifest of bytes in memory.
///
/// # Panics
/// When there are more bytes than a content may have.
#[must_use]
pub fn manifest_of(bytes: &[u8]) -> Manifest {
    let chunks: Vec<&[u8]> = if bytes.is_empty() { vec![bytes] } else { bytes.chunks(CHUNK_SIZE as usize).collect() };
    let single = chunks.len() == 1;
    let values = (0..).zip(&chunks).map(|(index, chunk)| chaining_value(index, single, chunk)).collect();
    Manifest::seal(bytes.len() as u64, values).unwrap()
}

struct State {
    bytes: Vec<u8>,
    lie: Lie,
    curious: ContentId,
    note: Sender<PeerResponse>,
    released: watch::Receiver<bool>,
    manifest: Manifest,
    node: NodeIdentity,
    quic: quinn::Endpoint,
    worker: Endpoint,
    pins: Pins,
}

impl State {
    fn new(
        bytes: Vec<u8>,
        lie: Lie,
        curious: ContentId,
        note: Sender<PeerResponse>,
        released: watch::Receiver<bool>,
    ) -> Rc<Self> {
        let identity = WorkerIdentity::generate().unwrap();
        let pins = Pins::default();
        let quic =
            endpoint::open("127.0.0.1:0".parse().unwrap(), &identity, &pins, &std::sync::Arc::default(), None).unwrap();
        let worker = Endpoint { worker: WorkerIndex(0), address: quic.local_addr().unwrap(), key: identity.key() };
        let manifest = manifest_of(&bytes);
        let node = NodeIdentity::generate().unwrap();
        Rc::new(Self { bytes, lie, curious, note, released, manifest, node, quic, worker, pins })
    }

    fn chunk(&self, chunk: u32) -> &[u8] {
        let start = chunk as usize * CHUNK_SIZE as usize;
        &self.bytes[start..self.bytes.len().min(start + CHUNK_SIZE as usize)]
    }
}

async fn serve_sessions(state: Rc<State>, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(secured) = noise::accept(stream, &state.node).await else { continue };
        let peer = secured.node;
        let Ok(stream) = secured.welcome().await else { continue };
        let (client, driver) = peer_session(stream, false, Rc::new(Liar { state: Rc::clone(&state), peer }));
        tokio::task::spawn_local(driver);
        let state = Rc::clone(&state);
        tokio::task::spawn_local(async move {
            let mut requests = guests_requests(state.curious);
            if state.lie == Lie::OtherSize {
                let size = other_size(state.manifest.geometry().size());
                let content = state.manifest.id();
                requests.insert(0, PeerRequest::Announce { content, size, name: "gift".into() });
            }
            for request in requests {
                let Ok(answer) = client.call(&request).await else { return };
                let _ = state.note.send(answer); // nobody may be interested
            }
            std::future::pending::<()>().await // the client keeps the session open
        });
    }
}

struct Liar {
    state: Rc<State>,
    peer: NodeId,
}

impl PeerService for Liar {
    fn call(self: Rc<Self>, request: PeerRequest) -> LocalBoxFuture<'static, PeerResponse> {
        Box::pin(async move {
            let state = &self.state;
            match request {
                PeerRequest::Introduce(theirs) => {
                    let pin = |worker: &Endpoint| Pin { key: worker.key, node: self.peer, known: None };
                    state.pins.set(&theirs.workers.iter().map(pin).collect::<Vec<_>>());
                    PeerResponse::Introduction(introduction(vec![state.worker]))
                }
                PeerRequest::Ping(nonce) => PeerResponse::Pong(nonce),
                PeerRequest::Find(_) if state.lie == Lie::Silence => std::future::pending().await,
                PeerRequest::Find(content) if content == state.manifest.id() => PeerResponse::Found(found(state)),
                _ => PeerResponse::Refused(Failure::not_found("not here")),
            }
        })
    }
}

fn found(state: &State) -> Found {
    let geometry = state.manifest.geometry();
    let size = match state.lie {
        Lie::ImpossibleSize => geometry.size() * 3,
        Lie::OtherSize => other_size(geometry.size()),
        _ => geometry.size(),
    };
    let held = ChunkSet::full(geometry.chunk_count());
    Found { here: Some(FoundHere { size, held, name: "gift".into(), values: Vec::new() }), others: Vec::new() }
}

/// What [`Lie::OtherSize`] tells: one byte less.
fn other_size(size: u64) -> u64 {
    size - 1
}

fn values(state: &State, page: u32) -> Vec<ChainingValue> {
    let chunks = state.manifest.geometry().manifest_page(page);
    let right = state.manifest.values()[chunks.start as usize..chunks.end as usize].iter().copied();
    match state.lie {
        Lie::WrongManifest => right.map(|_| [9; 32]).collect(),
        Lie::LongManifest => right.chain([[9; 32]; 3]).collect(),
        _ => right.collect(),
    }
}

fn introduction(workers: Vec<Endpoint>) -> Introduction {
    Introduction { version: "0".into(), listen: None, workers }
}

async fn serve_chunks(state: Rc<State>) {
    while let Some(incoming) = state.quic.accept().await {
        let Ok(connection) = incoming.await else { continue };
        let state = Rc::clone(&state);
        tokio::task::spawn_local(async move {
            while let Ok((send, recv)) = connection.accept_bi().await {
                // Whoever has found out does not listen to the rest.
                let _ = answer(&state, &connection, send, recv).await;
            }
        });
    }
}

async fn answer(
    state: &State,
    connection: &quinn::Connection,
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut bytes = [0; REQUEST_LEN];
    recv.read_exact(&mut bytes).await?;
    let request = Request::parse(&bytes)?;
    let chunk = match request.part {
        Part::Chunk(chunk) => chunk,
        Part::Manifest(page) => {
            let values = values(state, page);
            let bytes = values.as_flattened();
            send.write_all(&Answer::Stream { len: u32::try_from(bytes.len())? }.to_bytes()).await?;
            send.write_all(bytes).await?;
            send.finish()?;
            return Ok(());
        }
    };
    let right = state.chunk(chunk);
    let len = u32::try_from(right.len())?;
    let wrong = vec![0xee; right.len()];
    match state.lie {
        Lie::LateHalf => {
            if chunk >= state.manifest.geometry().chunk_count() / 2 {
                state.released.clone().wait_for(|released| *released).await?;
            }
            send.write_all(&Answer::Stream { len }.to_bytes()).await?;
            send.write_all(right).await?;
        }
        Lie::OtherSize => {
            let last = chunk + 1 == state.manifest.geometry().chunk_count();
            let told = if last { &right[..right.len() - 1] } else { right };
            send.write_all(&Answer::Stream { len: u32::try_from(told.len())? }.to_bytes()).await?;
            send.write_all(told).await?;
        }
        Lie::WrongBytes => {
            send.write_all(&Answer::Stream { len }.to_bytes()).await?;
            send.write_all(&wrong).await?;
        }
        Lie::Truncated => {
            send.write_all(&Answer::Stream { len }.to_bytes()).await?;
            send.write_all(&right[..right.len() / 2]).await?;
        }
        Lie::Endless => {
            send.write_all(&Answer::Stream { len }.to_bytes()).await?;
            send.write_all(right).await?;
            loop {
                send.write_all(&wrong).await?;
            }
        }
        Lie::OtherLength => send.write_all(&Answer::Stream { len: len / 2 }.to_bytes()).await?,
        Lie::ImpossibleShape => send.write_all(&Answer::Fec { len, symbol_len: 1 }.to_bytes()).await?,
        Lie::WrongSymbols | Lie::PoisonedSymbol | Lie::PoisonedParity => {
            let mut symbols =
                data_symbols(if state.lie == Lie::WrongSymbols { &wrong } else { right }, request.transfer);
            let victim = &mut symbols[100];
            match state.lie {
                Lie::PoisonedSymbol => victim[SYMBOL_HEADER_LEN + 7] ^= 1,
                Lie::PoisonedParity => {
                    let block = victim[1];
                    let k = ChunkShape::new(right.len(), SYMBOL_LEN)?.block(usize::from(block)).unwrap().k;
                    *victim = datagram(request.transfer, block, u8::try_from(k)?, &[0x5a; SYMBOL_LEN]);
                }
                _ => {}
            }
            let sent = u32::try_from(symbols.len())?;
            for symbol in symbols {
                connection.send_datagram_wait(symbol.into()).await?;
            }
            send.write_all(&Answer::Fec { len, symbol_len: SYMBOL_LEN as u16 }.to_bytes()).await?;
            send.write_all(&Mark { sent }.to_bytes()).await?;
            let _ = recv.read_to_end(1 << 16).await;
        }
        Lie::Strays(stray) => {
            let symbols = data_symbols(right, request.transfer);
            // The first tells how the chunk is cut, whenever the answer comes.
            connection.send_datagram_wait(symbols[0].clone().into()).await?;
            send.write_all(&Answer::Fec { len, symbol_len: SYMBOL_LEN as u16 }.to_bytes()).await?;
            let of = |transfer, block, symbol, len: usize| datagram(transfer, block, symbol, &wrong[..len]);
            let strays = match stray {
                Stray::UnknownTransfer => vec![of(request.transfer + 1000, 0, 1, SYMBOL_LEN)],
                Stray::WrongLength => {
                    [0, 1, SYMBOL_LEN - 1, SYMBOL_LEN + 1].map(|len| of(request.transfer, 0, 1, len)).into()
                }
                Stray::ImpossibleNumber => [(2, 0), (255, 0), (0, 255)]
                    .map(|(block, symbol)| of(request.transfer, block, symbol, SYMBOL_LEN))
                    .into(),
                Stray::Malformed => vec![vec![0x53; 1], vec![0x53; 7], vec![0xff; 1000], request.to_bytes().to_vec()],
                Stray::Duplicates => vec![symbols[0].clone()],
                Stray::Replays => symbols,
            };
            if stray == Stray::Replays && chunk != 0 {
                let _ = recv.read_to_end(1 << 16).await;
            }
            for datagram in strays.iter().cycle() {
                connection.send_datagram_wait(datagram.clone().into()).await?;
            }
        }
        _ => send.write_all(&[0xff; 4096]).await?,
    }
    send.finish()?;
    Ok(())
}

/// Bytes in a symbol of an impostor.
const SYMBOL_LEN: usize = 1000;

fn datagram(transfer: u32, block: u8, symbol: u8, payload: &[u8]) -> Vec<u8> {
    let header = SymbolHeader { transfer, block, symbol, closing: false };
    [&header.to_bytes()[..], payload].concat()
}

/// The datagrams of a chunk without parity.
fn data_symbols(chunk: &[u8], transfer: u32) -> Vec<Vec<u8>> {
    let shape = ChunkShape::new(chunk.len(), SYMBOL_LEN).unwrap();
    let symbols = (0..shape.blocks()).flat_map(|block| {
        (0..shape.block(block).unwrap().k).map(move |symbol| {
            let mut payload = chunk[shape.bytes(block, symbol).unwrap()].to_vec();
            payload.resize(SYMBOL_LEN, 0);
            datagram(transfer, block as u8, symbol as u8, &payload)
        })
    });
    symbols.collect()
}

/// Tries to open a session; says why it was refused.
///
/// # Panics
/// When the node lets it in.
#[must_use]
pub fn knock(address: SocketAddr, node: NodeId, identity: &NodeIdentity) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new()
        .block_on(&runtime, async {
            noise::connect(TcpStream::connect(address).await.unwrap(), identity, node).await.err()
        })
        .expect("a refusal")
        .to_string()
}

/// Opens a session as a node that is admitted, and asks one thing.
///
/// # Panics
/// When it is not let in or not answered.
#[must_use]
pub fn ask(address: SocketAddr, node: NodeId, identity: &NodeIdentity, request: &PeerRequest) -> PeerResponse {
    struct Asker;
    impl PeerService for Asker {
        fn call(self: Rc<Self>, request: PeerRequest) -> LocalBoxFuture<'static, PeerResponse> {
            Box::pin(async move {
                match request {
                    PeerRequest::Introduce(_) => PeerResponse::Introduction(introduction(Vec::new())),
                    _ => PeerResponse::Refused(Failure::not_found("not here")),
                }
            })
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let stream = noise::connect(TcpStream::connect(address).await.unwrap(), identity, node).await.unwrap();
        let (client, driver) = peer_session(stream, true, Rc::new(Asker));
        tokio::task::spawn_local(driver);
        client.call(request).await.unwrap()
    })
}

/// One request of every kind that is for admitted nodes alone.
#[must_use]
pub fn guests_requests(content: ContentId) -> Vec<PeerRequest> {
    let every = vec![PeerRequest::Find(content), PeerRequest::Announce { content, size: 1, name: String::new() }];
    // Without a wildcard: a new kind must choose its side here, and then stand above.
    every
        .into_iter()
        .filter(|request| match request {
            PeerRequest::Introduce(_) | PeerRequest::Ping(_) => false,
            PeerRequest::Find(_) | PeerRequest::Announce { .. } => true,
        })
        .collect()
}
