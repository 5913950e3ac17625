//! Symbols as they arrive: each goes to the transfer whose number it carries.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pangea_dataplane_core::assembly::{Assembly, AssemblyError, ChunkMemory, Outcome};
use pangea_dataplane_core::frame::SymbolHeader;
use pangea_fec::ChunkShape;
use tokio::sync::Notify;

use crate::buffer::Buffer;

impl ChunkMemory for Buffer {
    fn space(&mut self) -> &mut [u8] {
        Self::space(self)
    }
}

/// A path whose server found symbols right this lately loses packets.
const LOSSY_FOR: Duration = Duration::from_secs(60);

/// The FEC transfers of one connection.
#[derive(Debug, Clone)]
pub struct Symbols(Rc<Table>);

#[derive(Debug, Default)]
struct Table {
    transfers: RefCell<HashMap<u32, Entry>>,
    next: Cell<u32>,
    refused: Cell<u64>,
    /// When the last symbol came.
    symbol_at: Cell<Option<Instant>>,
    /// The newest transfer of which a symbol has come.
    newest: Cell<Option<u32>>,
}

#[derive(Debug)]
enum State {
    /// Nothing has come, and the chunk may come by stream as well: its length, and memory for it.
    Expected(usize, Buffer),
    Running(Assembly<Buffer>),
}

#[derive(Debug)]
struct Entry {
    state: State,
    rtt: Duration,
    symbol_came: Rc<Notify>,
}

impl Symbols {
    /// Reads the connection's datagrams until it ends.
    #[must_use]
    pub fn start(quic: &quinn::Connection) -> Self {
        let table = Rc::new(Table::default());
        let (quic, weak) = (quic.clone(), Rc::downgrade(&table));
        tokio::task::spawn_local(async move {
            while let Ok(datagram) = quic.read_datagram().await {
                let Some(table) = weak.upgrade() else { return };
                table.take(datagram, Instant::now());
            }
        });
        Self(table)
    }

    /// Expects a chunk of `len` bytes, to be put together in `memory` if it comes as symbols, under a fresh number.
    #[must_use]
    pub fn expect(&self, len: usize, memory: Buffer, rtt: Duration) -> Transfer {
        let number = self.0.next.get();
        self.0.next.set(number.wrapping_add(1));
        let symbol_came = Rc::new(Notify::new());
        let entry = Entry { state: State::Expected(len, memory), rtt, symbol_came: Rc::clone(&symbol_came) };
        self.0.transfers.borrow_mut().insert(number, entry);
        Transfer { table: Rc::clone(&self.0), number, symbol_came }
    }

    /// The server has found lately that the path loses packets.
    #[must_use]
    pub fn is_lossy(&self, now: Instant) -> bool {
        self.0.symbol_at.get().is_some_and(|at| now.saturating_duration_since(at) < LOSSY_FOR)
    }

    /// Datagrams that were malformed or belonged to no transfer, since the last time this was asked.
    #[must_use]
    pub fn take_refused(&self) -> u64 {
        self.0.refused.take()
    }
}

impl Table {
    fn take(&self, datagram: Bytes, now: Instant) {
        if datagram.is_empty() {
            return; // a pulse
        }
        let Ok((header, symbol)) = SymbolHeader::parse(&datagram) else { return self.refuse() };
        let mut transfers = self.transfers.borrow_mut();
        // Late copies of symbols whose chunk is whole are usual; so are those of a transfer that was given up.
        let Some(entry) = transfers.get_mut(&header.transfer) else { return self.refuse() };
        if let State::Expected(len, _) = entry.state {
            // The first symbol tells how the chunk is cut: the answer may come later.
            entry.symbol_came.notify_one();
            if ChunkShape::new(len, symbol.len()).is_err()
                || begin(&mut transfers, header.transfer, symbol.len(), now).is_err()
            {
                return self.refuse();
            }
        }
        let Some(Entry { state: State::Running(assembly), symbol_came, .. }) = transfers.get_mut(&header.transfer)
        else {
            return self.refuse();
        };
        if assembly.handle_symbol(header.block, header.symbol, header.closing, symbol, now) == Outcome::Impossible {
            self.refuse();
        }
        self.symbol_at.set(Some(now));
        if assembly.is_ready() || header.closing {
            symbol_came.notify_one();
        }
        // The server sends one chunk after another: a first symbol closes those before it.
        if self.newest.get().is_none_or(|newest| is_newer(header.transfer, newest)) {
            self.newest.set(Some(header.transfer));
            for (number, entry) in transfers.iter_mut() {
                if let State::Running(assembly) = &mut entry.state
                    && is_newer(header.transfer, *number)
                {
                    assembly.handle_overtaken(now);
                    entry.symbol_came.notify_one();
                }
            }
        }
    }

    fn refuse(&self) {
        self.refused.set(self.refused.get() + 1);
    }
}

/// Whether transfer `a` was begun after `b`; numbers wrap.
fn is_newer(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < u32::MAX / 2
}

/// From now on symbols of this length go into an assembly.
fn begin(
    transfers: &mut HashMap<u32, Entry>,
    number: u32,
    symbol_len: usize,
    now: Instant,
) -> Result<(), AssemblyError> {
    let Some(Entry { state, rtt, symbol_came }) = transfers.remove(&number) else { return Ok(()) };
    let assembly = match state {
        State::Expected(len, memory) => Assembly::new(len, symbol_len, memory, rtt, now)?,
        State::Running(assembly) => assembly,
    };
    transfers.insert(number, Entry { state: State::Running(assembly), rtt, symbol_came });
    Ok(())
}

/// One FEC transfer; dropped, its symbols are refused.
#[derive(Debug)]
pub struct Transfer {
    table: Rc<Table>,
    number: u32,
    symbol_came: Rc<Notify>,
}

impl Transfer {
    /// Its number on the connection.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The server answers that symbols of this length come. Says whether those that came already, if any, are like that.
    ///
    /// # Errors
    /// When such symbols do not make the chunk.
    pub fn begin(&self, symbol_len: usize) -> Result<bool, AssemblyError> {
        let mut transfers = self.table.transfers.borrow_mut();
        begin(&mut transfers, self.number, symbol_len, Instant::now())?;
        match transfers.get(&self.number).map(|entry| &entry.state) {
            Some(State::Running(assembly)) => Ok(assembly.shape().symbol_len() == symbol_len),
            _ => Ok(false),
        }
    }

    /// The server answers that the chunk comes by stream: gives the memory back. `None` when symbols came all the same.
    #[must_use]
    pub fn into_memory(self) -> Option<Buffer> {
        match self.table.transfers.borrow_mut().remove(&self.number)?.state {
            State::Expected(_, memory) => Some(memory),
            State::Running(_) => None,
        }
    }

    /// Returns when the first symbol has come.
    pub async fn begun(&self) {
        while self.with(|_| ()).is_none() {
            self.news().await;
        }
    }

    /// Returns when enough symbols may be here, or when it may be time to ask for more.
    pub async fn news(&self) {
        self.symbol_came.notified().await;
    }

    /// Does something with the assembly; `None` before the first symbol and [`begin`](Self::begin).
    pub fn with<T>(&self, act: impl FnOnce(&mut Assembly<Buffer>) -> T) -> Option<T> {
        match &mut self.table.transfers.borrow_mut().get_mut(&self.number)?.state {
            State::Running(assembly) => Some(act(assembly)),
            State::Expected(..) => None,
        }
    }

    /// Takes the assembly out; later symbols are refused.
    ///
    /// # Errors
    /// When there is none.
    pub fn take(&self) -> Result<Assembly<Buffer>, AssemblyError> {
        match self.table.transfers.borrow_mut().remove(&self.number).map(|entry| entry.state) {
            Some(State::Running(assembly)) => Ok(assembly),
            _ => Err(AssemblyError::GaveUp),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.table.transfers.borrow_mut().remove(&self.number);
    }
}
