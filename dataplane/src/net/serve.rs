//! Answers the chunk requests of peers.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use pangea_dataplane_core::frame::{
    Answer, Mark, REPAIR_LEN, REQUEST_LEN, Refusal, Repair, Request, SYMBOL_HEADER_LEN, SymbolHeader,
};
use pangea_dataplane_core::redundancy::{Delivery, PathLoss, Situation, choose};
use pangea_dataplane_core::spread;
use pangea_fec::{ChunkShape, Codec, FecError, SYMBOL_LEN_MAX, SYMBOL_LEN_MIN};
use pangea_ipc::counter::Id;
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::timeout;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::connections::{CLOSE_LIMIT, CLOSE_PROTOCOL, CLOSE_UNPINNED};
use super::tls::shown_key;
use crate::buffer::Buffer;
use crate::worker::Worker;

/// A peer that has opened a stream asks within this time.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// A peer that waits for symbols asks again, or ends, within this time.
const REPAIR_TIME: Duration = Duration::from_secs(30);
/// Symbols sent for one chunk at most, as a multiple of its own: nobody draws more bandwidth by claiming losses.
const SYMBOLS_FACTOR_MAX: usize = 8;

/// Accepts connections until the endpoint is closed.
pub async fn serve(worker: Rc<Worker>) {
    while let Some(incoming) = worker.connections.endpoint().accept().await {
        let worker = Rc::clone(&worker);
        let span = tracing::info_span!("peer", node = Empty, address = %incoming.remote_address());
        let work = async move {
            match incoming.await {
                Ok(connection) => serve_connection(&worker, connection).await,
                Err(error) => {
                    worker.counters.add(Id::PeersRefused, 1);
                    tracing::debug!(%error, "a connection was refused");
                }
            }
        };
        tokio::task::spawn_local(work.instrument(span));
    }
}

/// What the requests of one connection share.
struct Path {
    connection: Connection,
    loss: RefCell<PathLoss>,
}

async fn serve_connection(worker: &Rc<Worker>, connection: Connection) {
    // The handshake has checked the pin; it may have been withdrawn since.
    let Some(node) = shown_key(&connection).and_then(|key| worker.pins.node(key).map(|node| (key, node))) else {
        return connection.close(CLOSE_UNPINNED, b"key not admitted");
    };
    let (key, node) = node;
    if !worker.connections.note_incoming(key, &connection) {
        return connection.close(CLOSE_LIMIT, b"too many connections");
    }
    Span::current().record("node", tracing::field::display(node));
    tracing::debug!("a peer connected");
    let path = Rc::new(Path { connection: connection.clone(), loss: RefCell::default() });
    while let Ok((send, recv)) = connection.accept_bi().await {
        let (worker, path) = (Rc::clone(worker), Rc::clone(&path));
        let work = async move {
            if let Err(error) = answer(&worker, &path, send, recv).await {
                match error {
                    ServeError::Protocol(what) => {
                        worker.counters.add(Id::PeersProtocol, 1);
                        tracing::warn!(what, "a peer broke the protocol; its connection is closed");
                        path.connection.close(CLOSE_PROTOCOL, what.as_bytes());
                    }
                    ServeError::Gone => {} // it got the chunk elsewhere, or is no more
                }
            }
        };
        tokio::task::spawn_local(work.in_current_span());
    }
    worker.connections.forget_incoming(&connection);
    tracing::debug!("a peer disconnected");
}

enum ServeError {
    /// The peer sent what no peer sends.
    Protocol(String),
    /// The peer does not wait for the rest.
    Gone,
}

fn gone<E>(_: E) -> ServeError {
    ServeError::Gone
}

async fn answer(worker: &Worker, path: &Path, mut send: SendStream, mut recv: RecvStream) -> Result<(), ServeError> {
    let mut bytes = [0; REQUEST_LEN];
    timeout(REQUEST_TIME, recv.read_exact(&mut bytes)).await.map_err(gone)?.map_err(gone)?;
    let request = Request::parse(&bytes).map_err(|error| ServeError::Protocol(error.to_string()))?;
    match chunk(worker, &request).await {
        Err(refusal) => {
            worker.counters.add(Id::RequestsRefused, 1);
            send.write_all(&Answer::Refused(refusal).to_bytes()).await.map_err(gone)?;
            let _ = send.finish();
            Ok(())
        }
        Ok(buffer) => {
            worker.counters.add(Id::RequestsServed, 1);
            worker.counters.add(Id::BytesServed, buffer.len() as u64);
            let len = u32::try_from(buffer.len()).map_err(gone)?;
            match plan(worker, path, &request, buffer.len()) {
                None => {
                    send.write_all(&Answer::Stream { len }.to_bytes()).await.map_err(gone)?;
                    send.write_chunk(Bytes::from_owner(buffer)).await.map_err(gone)?;
                    let _ = send.finish();
                    Ok(())
                }
                Some((shape, delivery)) => {
                    let symbol_len = u16::try_from(shape.symbol_len()).map_err(gone)?;
                    send.write_all(&Answer::Fec { len, symbol_len }.to_bytes()).await.map_err(gone)?;
                    let mut symbols = Symbols::new(worker, path, shape, request.transfer, buffer);
                    symbols.serve(delivery, &mut send, &mut recv).await
                }
            }
        }
    }
}

/// The chunk asked for, or why not.
async fn chunk(worker: &Worker, request: &Request) -> Result<Buffer, Refusal> {
    let content = worker.store.content(request.content).await.map_err(|_| Refusal::NotHeld)?;
    if content.manifest().geometry().size() != request.size {
        return Err(Refusal::OtherSize);
    }
    if !content.holds(request.chunk) {
        // Another worker of this node may have claimed it meanwhile.
        content.refresh().await.map_err(|_| Refusal::Unreadable)?;
        if !content.holds(request.chunk) {
            return Err(Refusal::NotHeld);
        }
    }
    let buffer = worker.serve_buffers.take().await;
    worker.store.read_for_peer(&content, request.chunk, buffer).await.map_err(|error| {
        tracing::warn!(content = %request.content, chunk = request.chunk, %error, "a chunk cannot be read");
        Refusal::Unreadable
    })
}

/// How the chunk goes out: `None` = by stream.
fn plan(worker: &Worker, path: &Path, request: &Request, len: usize) -> Option<(ChunkShape, Delivery)> {
    let now = Instant::now();
    let totals = path.connection.stats().path;
    let mut loss = path.loss.borrow_mut();
    loss.handle_totals(totals.sent_packets, totals.lost_packets, now);
    let room = path.connection.max_datagram_size().unwrap_or(0).saturating_sub(SYMBOL_HEADER_LEN);
    let symbol_len = room.min(usize::from(request.symbol_len_max)).min(SYMBOL_LEN_MAX);
    let shape = ChunkShape::new(len, symbol_len).ok();
    let policy = worker.policy();
    let situation = Situation {
        policy: policy.policy.fec_mode,
        wanted: request.mode,
        loss_bp: loss.basis_points(now),
        loss_min_bp: policy.policy.fec_min_loss_bp,
        overhead_max_pct: policy.policy.fec_max_overhead_pct.min(request.overhead_max_pct),
        possible: symbol_len >= SYMBOL_LEN_MIN && shape.is_some(),
    };
    match choose(situation) {
        Delivery::Stream => None,
        delivery => shape.map(|shape| (shape, delivery)),
    }
}

/// One chunk on its way out as symbols.
struct Symbols<'a> {
    worker: &'a Worker,
    connection: &'a Connection,
    shape: ChunkShape,
    transfer: u32,
    chunk: Buffer,
    sent: usize,
}

impl<'a> Symbols<'a> {
    fn new(worker: &'a Worker, path: &'a Path, shape: ChunkShape, transfer: u32, chunk: Buffer) -> Self {
        Self { worker, connection: &path.connection, shape, transfer, chunk, sent: 0 }
    }

    async fn serve(
        &mut self,
        delivery: Delivery,
        send: &mut SendStream,
        recv: &mut RecvStream,
    ) -> Result<(), ServeError> {
        let parity = self.parity(delivery).map_err(|error| ServeError::Protocol(error.to_string()))?;
        for (block, symbol) in spread::order(self.shape, |k| delivery.parity(k)) {
            self.send(block, symbol, &parity).await?;
        }
        let limit = SYMBOLS_FACTOR_MAX * self.sent.max(1);
        loop {
            let mark = Mark { sent: u32::try_from(self.sent).unwrap_or(u32::MAX) };
            send.write_all(&mark.to_bytes()).await.map_err(gone)?;
            let mut bytes = [0; REPAIR_LEN];
            // The end of the stream here means: the chunk is whole.
            timeout(REPAIR_TIME, recv.read_exact(&mut bytes)).await.map_err(gone)?.map_err(gone)?;
            let repair = Repair::parse(&bytes).map_err(|error| ServeError::Protocol(error.to_string()))?;
            for symbol in repair.symbols() {
                let there = self.shape.bytes(usize::from(repair.block), symbol).is_some();
                let symbol = u8::try_from(symbol).ok().filter(|_| there);
                let symbol =
                    symbol.ok_or_else(|| ServeError::Protocol("a symbol that is not there was asked for".into()))?;
                if self.sent >= limit {
                    return Err(ServeError::Protocol("symbols were asked for too often".into()));
                }
                self.send(repair.block, symbol, &parity).await?;
            }
        }
    }

    /// The parity symbols of each block, one after another.
    fn parity(&self, delivery: Delivery) -> Result<Vec<Vec<u8>>, FecError> {
        let mut codec = self.worker.codec.borrow_mut();
        let codec: &mut Codec = &mut codec;
        (0..self.shape.blocks())
            .map(|block| {
                let k = self.shape.block(block).map_or(0, |shape| shape.k);
                let count = delivery.parity(k).min(pangea_fec::SYMBOLS_MAX - k);
                let mut out = vec![0; count * self.shape.symbol_len()];
                codec.encode(self.shape, self.chunk.as_ref(), block, 0..count, &mut out)?;
                Ok(out)
            })
            .collect()
    }

    async fn send(&mut self, block: u8, symbol: u8, parity: &[Vec<u8>]) -> Result<(), ServeError> {
        let (index, number) = (usize::from(block), usize::from(symbol));
        let symbol_len = self.shape.symbol_len();
        let header = SymbolHeader { transfer: self.transfer, block, symbol };
        let mut datagram = BytesMut::with_capacity(SYMBOL_HEADER_LEN + symbol_len);
        datagram.extend_from_slice(&header.to_bytes());
        match self.shape.bytes(index, number) {
            Some(bytes) => datagram.extend_from_slice(self.chunk.as_ref().get(bytes).unwrap_or_default()),
            None => {
                let k = self.shape.block(index).map_or(0, |shape| shape.k);
                let start = number.saturating_sub(k) * symbol_len;
                let bytes = parity.get(index).and_then(|bytes| bytes.get(start..start + symbol_len));
                datagram.extend_from_slice(bytes.unwrap_or_default());
                self.worker.counters.add(Id::SymbolsParitySent, 1);
            }
        }
        datagram.resize(SYMBOL_HEADER_LEN + symbol_len, 0); // the last data symbol is padded with zeros
        self.connection.send_datagram_wait(datagram.freeze()).await.map_err(gone)?;
        self.worker.counters.add(Id::SymbolsSent, 1);
        self.sent += 1;
        Ok(())
    }
}
