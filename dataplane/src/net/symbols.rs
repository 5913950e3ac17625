//! One chunk on its way to a peer as symbols: sent at once with parity, then what is missing again.

use std::rc::Rc;
use std::time::Instant;

use bytes::BytesMut;
use pangea_dataplane_core::assembly::SYMBOLS_FACTOR_MAX;
use pangea_dataplane_core::frame::{Answer, Mark, REPAIR_LEN, Repair, SYMBOL_HEADER_LEN, SymbolHeader};
use pangea_dataplane_core::redundancy::Parity;
use pangea_dataplane_core::spread;
use pangea_fec::{ChunkShape, Codec, FecError};
use pangea_ipc::counter::Id;
use quinn::{RecvStream, SendStream};
use tokio::time::timeout;

use super::serve::{Path, ServeError, gone};
use crate::buffer::Shared;
use crate::worker::Worker;

/// Symbols at the end of those that are sent at once that say so: a burst of losses seldom takes all.
const CLOSING: usize = 4;

/// One chunk on its way out as symbols.
pub(super) struct SymbolSender {
    worker: Rc<Worker>,
    path: Rc<Path>,
    shape: ChunkShape,
    transfer: u32,
    chunk: Shared,
    sent: usize,
}

impl SymbolSender {
    pub(super) fn new(worker: &Rc<Worker>, path: &Rc<Path>, shape: ChunkShape, transfer: u32, chunk: Shared) -> Self {
        worker.counters.add(Id::RequestsServed, 1);
        worker.counters.add(Id::BytesServed, chunk.len() as u64);
        Self { worker: Rc::clone(worker), path: Rc::clone(path), shape, transfer, chunk, sent: 0 }
    }

    /// Sends data and parity.
    pub(super) async fn send_all(&mut self, parity: Parity) -> Result<(), ServeError> {
        let rows = self.parity(parity).map_err(|error| ServeError::Protocol(error.to_string()))?;
        let order = spread::order(self.shape, |k| parity.count(k));
        // One allocation for the datagrams of the chunk.
        let mut memory = BytesMut::with_capacity(order.len() * (SYMBOL_HEADER_LEN + self.shape.symbol_len()));
        let closing_from = order.len().saturating_sub(CLOSING);
        timeout(self.worker.patience.stall, self.path.pace.catch_up()).await.map_err(|_| ServeError::Stalled)?;
        let given = order.len() * (SYMBOL_HEADER_LEN + self.shape.symbol_len());
        self.path.pace.note_given(given);
        for (place, (block, symbol)) in order.into_iter().enumerate() {
            self.send(&mut memory, block, symbol, place >= closing_from, &rows).await?;
        }
        Ok(())
    }

    /// Answers, says what was sent, and sends again what is missing, until the requester has enough.
    pub(super) async fn follow_up(mut self, send: &mut SendStream, recv: &mut RecvStream) -> Result<(), ServeError> {
        let len = u32::try_from(self.chunk.len()).map_err(gone)?;
        let symbol_len = u16::try_from(self.shape.symbol_len()).map_err(gone)?;
        send.write_all(&Answer::Fec { len, symbol_len }.to_bytes()).await.map_err(gone)?;
        let limit = SYMBOLS_FACTOR_MAX * self.sent.max(1); // nobody draws more bandwidth by claiming losses
        let mut patience = self.worker.patience.repair;
        loop {
            let gone_out = timeout(self.worker.patience.stall, self.path.pace.datagrams_gone());
            gone_out.await.map_err(|_| ServeError::Stalled)?;
            let mark = Mark { sent: u32::try_from(self.sent).unwrap_or(u32::MAX) };
            send.write_all(&mark.to_bytes()).await.map_err(gone)?;
            let mut bytes = [0; REPAIR_LEN];
            // The end of the stream here means: the chunk is whole.
            let asked = Instant::now();
            timeout(patience, recv.read_exact(&mut bytes)).await.map_err(|_| ServeError::Silent)?.map_err(gone)?;
            patience = patience.saturating_sub(asked.elapsed());
            let repair = Repair::parse(&bytes).map_err(|error| ServeError::Protocol(error.to_string()))?;
            let mut memory = BytesMut::new();
            let closing_from = repair.symbols().count().saturating_sub(CLOSING);
            for (place, symbol) in repair.symbols().enumerate() {
                // Only data symbols can be asked for again.
                let there = self.shape.bytes(usize::from(repair.block), symbol).is_some();
                let symbol = u8::try_from(symbol).ok().filter(|_| there);
                let symbol =
                    symbol.ok_or_else(|| ServeError::Protocol("a symbol that is not there was asked for".into()))?;
                if self.sent >= limit {
                    return Err(ServeError::Protocol("symbols were asked for too often".into()));
                }
                self.send(&mut memory, repair.block, symbol, place >= closing_from, &[]).await?;
                self.worker.counters.add(Id::SymbolsSentAgain, 1);
            }
        }
    }

    /// The parity symbols of each block, one after another.
    fn parity(&self, parity: Parity) -> Result<Vec<Vec<u8>>, FecError> {
        let mut codec = self.worker.codec.borrow_mut();
        let codec: &mut Codec = &mut codec;
        (0..self.shape.blocks())
            .map(|block| {
                let k = self.shape.block(block).map_or(0, |shape| shape.k);
                let count = parity.count(k).min(pangea_fec::SYMBOLS_MAX - k);
                let mut out = vec![0; count * self.shape.symbol_len()];
                codec.encode(self.shape, self.chunk.as_ref(), block, 0..count, &mut out)?;
                Ok(out)
            })
            .collect()
    }

    async fn send(
        &mut self,
        memory: &mut BytesMut,
        block: u8,
        symbol: u8,
        closing: bool,
        parity: &[Vec<u8>],
    ) -> Result<(), ServeError> {
        let (index, number) = (usize::from(block), usize::from(symbol));
        let symbol_len = self.shape.symbol_len();
        let header = SymbolHeader { transfer: self.transfer, block, symbol, closing };
        memory.extend_from_slice(&header.to_bytes());
        match self.shape.bytes(index, number) {
            Some(bytes) => memory.extend_from_slice(self.chunk.as_ref().get(bytes).unwrap_or_default()),
            None => {
                let k = self.shape.block(index).map_or(0, |shape| shape.k);
                let start = number.saturating_sub(k) * symbol_len;
                let bytes = parity.get(index).and_then(|bytes| bytes.get(start..start + symbol_len));
                memory.extend_from_slice(bytes.unwrap_or_default());
                self.worker.counters.add(Id::SymbolsParitySent, 1);
            }
        }
        let law = self.worker.policy().policy.congestion; // not borrowed while this waits
        self.path.pace.allow(symbol_len, law).await;
        memory.resize(SYMBOL_HEADER_LEN + symbol_len, 0); // the last data symbol is padded with zeros
        let sent = self.path.connection.send_datagram_wait(memory.split().freeze());
        timeout(self.worker.patience.stall, sent).await.map_err(|_| ServeError::Stalled)?.map_err(gone)?;
        self.path.pace.note_datagram(SYMBOL_HEADER_LEN + symbol_len);
        self.worker.counters.add(Id::SymbolsSent, 1);
        self.sent += 1;
        Ok(())
    }
}
