//! A worker and admitted peers that abuse it: what they get is counted and bounded, at worst their connection ends, and
//! an honest peer is served at the same time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pangea_dataplane::counters::Counters;
use pangea_dataplane::net::ask::{Came, Question, ask};
use pangea_dataplane::net::connections::{CLOSE_LIMIT, CLOSE_PROTOCOL, CLOSE_STALLED, CONNECTIONS_EACH, Connections};
use pangea_dataplane::net::endpoint::{MTU_USUAL, STREAMS_MAX, open, server, transport};
use pangea_dataplane::net::serve::{self, Patience};
use pangea_dataplane::net::tls::{Identity, Pins, SERVER_NAME};
use pangea_dataplane::store::Store;
use pangea_dataplane::worker::{Parts, SERVE_BUFFERS_EACH, SERVE_BUFFERS_MAX, Worker};
use pangea_dataplane_core::assembly::SYMBOLS_FACTOR_MAX;
use pangea_dataplane_core::frame::{ANSWER_LEN, Answer, MARK_LEN, Mode, Part, Refusal, Repair, Request};
use pangea_fec::Codec;
use pangea_ipc::address::Endpoint as PeerEndpoint;
use pangea_ipc::content::{CHUNK_SIZE, Manifest};
use pangea_ipc::counter::Id;
use pangea_ipc::ids::{JobId, NodeId, WorkerIndex};
use pangea_ipc::worker::Pin;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, TransportConfig, VarInt};
use tokio::task::LocalSet;
use tokio::time::timeout;

const CHUNKS: u32 = 6;
/// An honest peer has its chunk within this time, far below the default patience with others.
const HONEST_TIME: Duration = Duration::from_secs(15);
const HOSTILE: NodeId = NodeId([0xbb; 32]);
const HONEST: NodeId = NodeId([0xaa; 32]);

/// A worker that holds a content, and two peers that it admits.
struct Stage {
    worker: Rc<Worker>,
    at: PeerEndpoint,
    manifest: Manifest,
    hostile: Arc<Identity>,
    honest: Connections,
    folder: tempfile::TempDir,
}

/// Runs a test in the one thread that a worker lives in.
fn on_stage<T>(patience: Patience, test: impl AsyncFnOnce(&Stage) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { test(&Stage::new(patience).await).await })
}

impl Stage {
    async fn new(patience: Patience) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store"), WorkerIndex(0)).await.unwrap();
        let [identity, hostile, honest] = [(); 3].map(|()| Arc::new(Identity::generate().unwrap()));
        let pins = Pins::default();
        let pin = |identity: &Identity, node| Pin { key: identity.key(), node, known: None };
        pins.set(&[pin(&hostile, HOSTILE), pin(&honest, HONEST)]);
        let quic = open("127.0.0.1:0".parse().unwrap(), &identity, &pins, &Arc::default(), None).unwrap();
        let at = PeerEndpoint { worker: WorkerIndex(0), address: quic.local_addr().unwrap(), key: identity.key() };
        let worker = Worker::new(Parts {
            index: WorkerIndex(0),
            store,
            connections: Connections::new(quic, Arc::clone(&identity), accepts(&identity, &pins), Arc::default()),
            pins,
            counters: Counters::new(None),
            allowed_cpus: None,
            patience,
        });
        let manifest = put(&worker).await;
        tokio::task::spawn_local(serve::serve(Rc::clone(&worker)));
        let quic = open("127.0.0.1:0".parse().unwrap(), &honest, &Pins::default(), &Arc::default(), None).unwrap();
        let server = accepts(&honest, &Pins::default());
        let honest = Connections::new(quic, honest, server, Arc::default());
        Self { worker, at, manifest, hostile, honest, folder }
    }

    /// A connection of the hostile peer.
    async fn connect(&self, transport: TransportConfig) -> Connection {
        connect(&self.hostile, self.at, transport).await
    }

    fn request(&self, chunk: u32, mode: Mode, transfer: u32) -> Request {
        request(&self.manifest, chunk, mode, transfer)
    }

    /// The hostile peer asks for a chunk.
    async fn ask(&self, quic: &Connection, request: Request) -> (SendStream, RecvStream) {
        let (mut send, recv) = quic.open_bi().await.unwrap();
        send.write_all(&request.to_bytes()).await.unwrap();
        (send, recv)
    }

    /// The honest peer gets every chunk, by stream and as symbols.
    async fn honest_get(&self) {
        let codec = RefCell::new(Codec::new());
        let pool = pangea_dataplane::buffer::Pool::new(1);
        let peer = self.honest.to(self.at).await.unwrap();
        for (chunk, mode) in (0..CHUNKS).zip([Mode::Stream, Mode::Fec].into_iter().cycle()) {
            let question = Question {
                content: self.manifest.id(),
                geometry: self.manifest.geometry(),
                part: Part::Chunk(chunk),
                mode,
                soon: false,
                overhead_max_pct: 25,
            };
            let asked = ask(&peer, question, pool.take().await, &codec);
            let (bytes, came) = timeout(HONEST_TIME, asked).await.expect("an honest peer waits").unwrap();
            assert_eq!(matches!(came, Came::ByStream), mode == Mode::Stream);
            self.manifest.check(chunk, bytes.as_ref()).unwrap();
        }
    }

    fn count(&self, id: Id) -> u64 {
        self.worker.counters.get(id)
    }

    /// Every buffer has come back; waits for it.
    async fn all_buffers_back(&self) {
        self.wait_until("buffers come back", || self.worker.serve_buffers.free() == SERVE_BUFFERS_MAX).await;
    }

    /// Waits for what gives no sign but its figure.
    async fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let look = async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(HONEST_TIME, look).await.expect(what);
    }
}

/// Stores [`CHUNKS`] chunks.
async fn put(worker: &Worker) -> Manifest {
    let incoming = worker.store.begin_put(JobId(1)).await.unwrap();
    let mut values = Vec::new();
    for chunk in 0..CHUNKS {
        let mut buffer = worker.buffers.take().await;
        let bytes = (0..CHUNK_SIZE).map(|at| (at * 31 + at / 253 + chunk) as u8);
        buffer.space().iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        buffer.set_len(CHUNK_SIZE as usize);
        values.push(worker.store.append(&incoming, chunk, false, buffer).await.unwrap());
    }
    let manifest = Manifest::seal(u64::from(CHUNKS) * u64::from(CHUNK_SIZE), values).unwrap();
    worker.store.finish_put(incoming, manifest.clone()).await.unwrap();
    manifest
}

async fn connect(identity: &Identity, at: PeerEndpoint, transport: TransportConfig) -> Connection {
    let endpoint = open("127.0.0.1:0".parse().unwrap(), identity, &Pins::default(), &Arc::default(), None).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(identity.client_config(at.key).unwrap()));
    config.transport_config(Arc::new(transport));
    endpoint.connect_with(config, at.address, SERVER_NAME).unwrap().await.unwrap()
}

fn accepts(identity: &Identity, pins: &Pins) -> quinn::ServerConfig {
    server(identity, pins, &Arc::default()).unwrap()
}

fn usual() -> TransportConfig {
    transport(&Arc::default(), MTU_USUAL)
}

fn request(manifest: &Manifest, chunk: u32, mode: Mode, transfer: u32) -> Request {
    Request {
        content: manifest.id(),
        size: manifest.geometry().size(),
        part: Part::Chunk(chunk),
        mode,
        soon: true,
        transfer,
        symbol_len_max: 1100,
        overhead_max_pct: 25,
    }
}

/// Reads an answer that symbols come, and the mark after it: how many were sent.
async fn fec_answer(recv: &mut RecvStream) -> u32 {
    let (mut answer, mut mark) = ([0; ANSWER_LEN], [0; MARK_LEN]);
    recv.read_exact(&mut answer).await.unwrap();
    assert!(matches!(Answer::parse(&answer).unwrap(), Answer::Fec { .. }));
    recv.read_exact(&mut mark).await.unwrap();
    u32::from_le_bytes(mark)
}

/// Returns when the worker has closed a connection with this code. Its goodbye may be lost in a flood; then the system says
/// that there is no such connection any more.
async fn is_closed_with(quic: &Connection, code: VarInt) {
    match timeout(HONEST_TIME, quic.closed()).await.expect("the connection stays open") {
        ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code, code, "{close}"),
        ConnectionError::Reset => {}
        other => panic!("{other}"),
    }
}

/// Asks for `missing` of a transfer for ever, though every symbol was delivered.
fn is_stopped_from_drawing(missing: [u8; 32]) {
    on_stage(Patience::default(), async |stage| {
        let quic = stage.connect(usual()).await;
        let (mut send, mut recv) = stage.ask(&quic, stage.request(0, Mode::Fec, 7)).await;
        let first = u64::from(fec_answer(&mut recv).await);
        assert_eq!(stage.count(Id::SymbolsSent), first);
        let repair = Repair { block: 0, missing }.to_bytes();
        while send.write_all(&repair).await.is_ok() {}
        is_closed_with(&quic, CLOSE_PROTOCOL).await;
        let most = SYMBOLS_FACTOR_MAX as u64 * first;
        assert_eq!(stage.count(Id::SymbolsSent), most, "exactly what the limit lets through");
        assert_eq!(stage.count(Id::SymbolsSentAgain), most - first);
        assert_eq!(stage.count(Id::PeersProtocol), 1);
        stage.all_buffers_back().await;
        stage.honest_get().await;
    });
}

#[test]
fn asking_for_the_same_symbol_for_ever_ends_the_connection() {
    let mut missing = [0; 32];
    missing[0] = 1;
    is_stopped_from_drawing(missing);
}

#[test]
fn claiming_all_symbols_lost_again_and_again_ends_the_connection() {
    // Block 0 of a chunk at 1100 bytes a symbol has 120 data symbols.
    let mut missing = [0; 32];
    missing[..15].fill(0xff);
    is_stopped_from_drawing(missing);
}

#[test]
fn an_honest_peer_is_served_while_another_floods_requests_for_repair() {
    on_stage(Patience::default(), async |stage| {
        let abuse = async {
            // Each connection draws what one may, and comes again.
            for transfer in 0..20 {
                let quic = stage.connect(usual()).await;
                let (mut send, mut recv) =
                    stage.ask(&quic, stage.request(transfer % CHUNKS, Mode::Fec, transfer)).await;
                fec_answer(&mut recv).await;
                let repair = Repair { block: 1, missing: [0xff; 32] }.to_bytes();
                while send.write_all(&repair).await.is_ok() {}
                is_closed_with(&quic, CLOSE_PROTOCOL).await;
            }
        };
        tokio::join!(abuse, stage.honest_get(), stage.honest_get());
        assert_eq!(stage.count(Id::PeersProtocol), 20, "symbols 119 to 255 of block 1 are not there");
    });
}

#[test]
fn a_peer_that_never_goes_on_holds_its_share_alone() {
    on_stage(Patience::default(), async |stage| {
        let quic = stage.connect(usual()).await;
        let mut streams = Vec::new();
        for transfer in 0..STREAMS_MAX {
            streams.push(stage.ask(&quic, stage.request(transfer % CHUNKS, Mode::Fec, transfer)).await);
        }
        let mut answers: FuturesUnordered<_> = streams.iter_mut().map(|(_, recv)| fec_answer(recv)).collect();
        for _ in 0..SERVE_BUFFERS_EACH {
            timeout(HONEST_TIME, answers.next()).await.expect("its share is served").unwrap();
        }
        assert_eq!(stage.worker.serve_buffers.free(), SERVE_BUFFERS_MAX - SERVE_BUFFERS_EACH);
        stage.honest_get().await;
    });
}

#[test]
fn transfers_that_do_not_go_on_are_given_up() {
    let patience = Patience { repair: Duration::from_millis(300), ..Patience::default() };
    on_stage(patience, async |stage| {
        let quic = stage.connect(usual()).await;
        let mut streams = Vec::new();
        for transfer in 0..STREAMS_MAX {
            streams.push(stage.ask(&quic, stage.request(transfer % CHUNKS, Mode::Fec, transfer)).await);
        }
        for (_, recv) in &mut streams {
            fec_answer(recv).await;
            assert_eq!(timeout(HONEST_TIME, recv.read(&mut [0])).await.expect("it is given up").unwrap(), None);
        }
        assert_eq!(stage.count(Id::RequestsStalled), u64::from(STREAMS_MAX));
        stage.all_buffers_back().await;
        assert_eq!(quic.close_reason(), None, "that alone ends no connection");
        stage.honest_get().await;
    });
}

#[test]
fn asking_again_now_and_then_does_not_prolong_the_patience() {
    let patience = Patience { repair: Duration::from_millis(600), ..Patience::default() };
    on_stage(patience, async |stage| {
        let quic = stage.connect(usual()).await;
        let (mut send, mut recv) = stage.ask(&quic, stage.request(0, Mode::Fec, 1)).await;
        fec_answer(&mut recv).await;
        let mut missing = [0; 32];
        missing[0] = 1;
        let mut pause = tokio::time::interval(patience.repair / 3);
        let mut asked = 0;
        while send.write_all(&Repair { block: 0, missing }.to_bytes()).await.is_ok() && asked < 20 {
            asked += 1;
            pause.tick().await;
        }
        assert!(asked < 20, "waited for longer than it has patience");
        assert_eq!(stage.count(Id::RequestsStalled), 1);
        stage.all_buffers_back().await;
    });
}

#[test]
fn a_peer_that_reads_nothing_loses_its_connection() {
    let patience = Patience { stall: Duration::from_millis(300), ..Patience::default() };
    on_stage(patience, async |stage| {
        let mut blind = usual();
        blind.stream_receive_window(VarInt::from_u32(100)).receive_window(VarInt::from_u32(100));
        let quic = stage.connect(blind).await;
        let mut streams = Vec::new();
        for transfer in 0..STREAMS_MAX {
            streams.push(stage.ask(&quic, stage.request(0, Mode::Stream, transfer)).await);
        }
        tokio::join!(is_closed_with(&quic, CLOSE_STALLED), stage.honest_get());
        assert_eq!(stage.count(Id::RequestsStalled), 1);
        stage.all_buffers_back().await;
        stage.honest_get().await;
    });
}

#[test]
fn a_peer_that_falls_silent_is_given_up_with_all_that_it_held() {
    on_stage(Patience::default(), async |stage| {
        let (identity, at, manifest) = (Arc::clone(&stage.hostile), stage.at, stage.manifest.clone());
        let (tell, told) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut transport = usual();
                transport.max_idle_timeout(Some(Duration::from_secs(1).try_into().unwrap()));
                let quic = connect(&identity, at, transport).await;
                let mut streams = Vec::new();
                for transfer in 0..CHUNKS {
                    let (mut send, mut recv) = quic.open_bi().await.unwrap();
                    send.write_all(&request(&manifest, transfer, Mode::Fec, transfer).to_bytes()).await.unwrap();
                    fec_answer(&mut recv).await;
                    streams.push((send, recv));
                }
                // Nothing says goodbye: the machine is gone.
                std::mem::forget((quic, streams));
            });
            tell.send(()).unwrap();
        });
        told.await.unwrap();
        assert_eq!(stage.worker.serve_buffers.free(), SERVE_BUFFERS_MAX - CHUNKS as usize);
        stage.honest_get().await;
        stage.all_buffers_back().await;
    });
}

#[test]
fn copies_whose_stream_never_comes_are_few_and_given_up() {
    let patience = Patience { repair: Duration::from_millis(500), ..Patience::default() };
    on_stage(patience, async |stage| {
        let quic = stage.connect(usual()).await;
        for transfer in 0..1000 {
            let copy = stage.request(transfer % CHUNKS, Mode::Fec, transfer).to_bytes();
            quic.send_datagram_wait(copy.to_vec().into()).await.unwrap();
        }
        stage.honest_get().await;
        stage.wait_until("copies are given up", || stage.count(Id::RequestsStalled) >= 8).await;
        stage.all_buffers_back().await;
        assert!(stage.count(Id::RequestsByCopy) < 100, "{} were served", stage.count(Id::RequestsByCopy));
    });
}

#[test]
fn a_chunk_that_the_disk_has_lost_is_looked_for_there_and_refused() {
    on_stage(Patience::default(), async |stage| {
        let quic = stage.connect(usual()).await;
        let (_send, mut recv) = stage.ask(&quic, stage.request(0, Mode::Stream, 1)).await;
        let chunk = recv.read_to_end(ANSWER_LEN + CHUNK_SIZE as usize).await.unwrap();
        stage.manifest.check(0, &chunk[ANSWER_LEN..]).unwrap();
        // Now the worker has the file open, and does not look at its length again.
        let data = stage.folder.path().join("store").join(stage.manifest.id().to_string()).join("data");
        let size = stage.manifest.geometry().size();
        std::fs::File::options().write(true).open(data).unwrap().set_len(size - 1).unwrap();
        for (transfer, mode) in [(2, Mode::Stream), (3, Mode::Fec)] {
            let before = stage.count(Id::RequestsFromDisk);
            let (_send, mut recv) = stage.ask(&quic, stage.request(CHUNKS - 1, mode, transfer)).await;
            let mut answer = [0; ANSWER_LEN];
            recv.read_exact(&mut answer).await.unwrap();
            assert_eq!(Answer::parse(&answer).unwrap(), Answer::Refused(Refusal::Unreadable));
            assert_eq!(stage.count(Id::RequestsFromDisk), before + 1);
        }
        stage.all_buffers_back().await;
    });
}

#[test]
fn frames_that_no_peer_sends_end_the_connection() {
    on_stage(Patience::default(), async |stage| {
        let not_there = Repair { block: 9, missing: [1; 32] }.to_bytes();
        let good = stage.request(0, Mode::Fec, 0).to_bytes();
        let (mut kind, mut chunk) = (good, good);
        kind[0] ^= 1;
        chunk[44] = CHUNKS as u8; // the chunk after the last
        let streams = [
            kind.to_vec(),
            chunk.to_vec(),
            [&good[..], &not_there].concat(),
            [&good[..], &[0x52; 36][..2], &[0; 34]].concat(),
        ];
        let datagrams = [vec![0x51], vec![0x53; 8], vec![0x51; 55], chunk.to_vec(), vec![0xff; 1000]];
        let cases =
            streams.into_iter().map(|bytes| (true, bytes)).chain(datagrams.into_iter().map(|bytes| (false, bytes)));
        for (count, (by_stream, bytes)) in (1..).zip(cases) {
            let quic = stage.connect(usual()).await;
            if by_stream {
                let (mut send, recv) = quic.open_bi().await.unwrap();
                send.write_all(&bytes).await.unwrap();
                is_closed_with(&quic, CLOSE_PROTOCOL).await;
                drop((send, recv));
            } else {
                quic.send_datagram(bytes.into()).unwrap();
                is_closed_with(&quic, CLOSE_PROTOCOL).await;
            }
            assert_eq!(stage.count(Id::PeersProtocol), count);
        }
        stage.honest_get().await;
    });
}

#[test]
fn connections_of_one_key_leave_room_for_others() {
    on_stage(Patience::default(), async |stage| {
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS_EACH {
            let quic = stage.connect(usual()).await;
            // Served: it is one of those that count.
            let (_send, mut recv) = stage.ask(&quic, stage.request(0, Mode::Stream, 0)).await;
            recv.read_exact(&mut [0; ANSWER_LEN]).await.unwrap();
            open.push(quic);
        }
        let one_more = stage.connect(usual()).await;
        is_closed_with(&one_more, CLOSE_LIMIT).await;
        assert_eq!(stage.count(Id::PeersRefused), 1);
        stage.honest_get().await;
        assert!(open.iter().all(|quic| quic.close_reason().is_none()));
    });
}
