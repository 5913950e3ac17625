//! Symbols as they arrive: each goes to the transfer whose number it carries.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pangea_dataplane_core::assembly::{Assembly, AssemblyError, ChunkMemory, Outcome};
use pangea_dataplane_core::frame::SymbolHeader;
use pangea_fec::ChunkShape;
use tokio::sync::Notify;

use super::connections::CLOSE_PROTOCOL;
use crate::buffer::Buffer;

impl ChunkMemory for Buffer {
    fn space(&mut self) -> &mut [u8] {
        Self::space(self)
    }
}

/// A path whose server found symbols right this lately loses packets.
const LOSSY_FOR: Duration = Duration::from_secs(60);

/// Datagrams of one connection that no server sends, after which it ends: not one, so that a fault which shows once does
/// not cost the connection.
pub const STRAYS_MAX: u32 = 64;
/// Datagrams of transfers that have ended, after which a connection ends, for each transfer that there was: as many as
/// there can be symbols of a chunk at the shortest symbol length, with all their parity.
pub const LATE_EACH: u64 = 2048;

/// What was refused on all connections of a worker, since it was last asked.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Datagrams that were malformed, did not fit their transfer, or belonged to none.
    datagrams: Cell<u64>,
    /// Datagrams of transfers that had ended.
    late: Cell<u64>,
    /// Connections that ended because there were too many of these.
    connections: Cell<u64>,
}

impl Refusals {
    /// Datagrams refused, late ones, and connections refused since this was last asked.
    #[must_use]
    pub fn take(&self) -> (u64, u64, u64) {
        (self.datagrams.take(), self.late.take(), self.connections.take())
    }
}

/// The FEC transfers of one connection.
#[derive(Debug, Clone)]
pub struct Symbols(Rc<Table>);

#[derive(Debug, Default)]
struct Table {
    transfers: RefCell<HashMap<u32, Entry>>,
    next: Cell<u32>,
    /// Transfers that there were.
    begun: Cell<u64>,
    strays: Cell<u32>,
    late: Cell<u64>,
    refusals: Rc<Refusals>,
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

/// Why a datagram is refused.
enum Refused {
    /// Its transfer has ended: late copies of symbols whose chunk is whole are usual.
    Late,
    /// No server sends it.
    Stray,
}

impl Symbols {
    /// Reads the connection's datagrams until it ends, and ends it when too many are refused.
    #[must_use]
    pub fn start(quic: &quinn::Connection, refusals: Rc<Refusals>) -> Self {
        let table = Rc::new(Table { refusals, ..Table::default() });
        let (quic, weak) = (quic.clone(), Rc::downgrade(&table));
        tokio::task::spawn_local(async move {
            while let Ok(datagram) = quic.read_datagram().await {
                let Some(table) = weak.upgrade() else { return };
                if let Err(refused) = table.take(&datagram, Instant::now()) {
                    table.note(&refused);
                    if table.is_flooded() {
                        tracing::warn!("a peer sends symbols that nobody asked for; its connection is closed");
                        table.refusals.connections.set(table.refusals.connections.get() + 1);
                        return quic.close(CLOSE_PROTOCOL, b"symbols that nobody asked for");
                    }
                }
            }
        });
        Self(table)
    }

    /// Expects a chunk of `len` bytes, to be put together in `memory` if it comes as symbols, under a fresh number.
    #[must_use]
    pub fn expect(&self, len: usize, memory: Buffer, rtt: Duration) -> Transfer {
        let number = self.0.next.get();
        self.0.next.set(number.wrapping_add(1));
        self.0.begun.set(self.0.begun.get() + 1);
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

    /// The server has sent more than may be of what nobody asked for.
    #[must_use]
    pub fn is_flooded(&self) -> bool {
        self.0.is_flooded()
    }
}

impl Table {
    fn take(&self, datagram: &[u8], now: Instant) -> Result<(), Refused> {
        if datagram.is_empty() {
            return Ok(()); // a pulse
        }
        let (header, symbol) = SymbolHeader::parse(datagram).map_err(|_| Refused::Stray)?;
        let mut transfers = self.transfers.borrow_mut();
        let never_was = self.begun.get() == 0 || !is_newer(self.next.get(), header.transfer);
        let ended = if never_was { Refused::Stray } else { Refused::Late };
        let entry = transfers.get_mut(&header.transfer).ok_or(ended)?;
        if let State::Expected(len, _) = entry.state {
            // The first symbol tells how the chunk is cut: the answer may come later.
            entry.symbol_came.notify_one();
            if ChunkShape::new(len, symbol.len()).is_err()
                || begin(&mut transfers, header.transfer, symbol.len(), now).is_err()
            {
                return Err(Refused::Stray);
            }
        }
        let Some(Entry { state: State::Running(assembly), symbol_came, .. }) = transfers.get_mut(&header.transfer)
        else {
            return Err(Refused::Stray);
        };
        match assembly.handle_symbol(header.block, header.symbol, header.closing, symbol, now) {
            Outcome::Kept | Outcome::NotNeeded => {}
            Outcome::Impossible | Outcome::Excess => return Err(Refused::Stray),
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
        Ok(())
    }

    fn note(&self, refused: &Refused) {
        match refused {
            Refused::Late => {
                self.late.set(self.late.get() + 1);
                self.refusals.late.set(self.refusals.late.get() + 1);
            }
            Refused::Stray => {
                self.strays.set(self.strays.get() + 1);
                self.refusals.datagrams.set(self.refusals.datagrams.get() + 1);
            }
        }
    }

    fn is_flooded(&self) -> bool {
        self.strays.get() > STRAYS_MAX || self.late.get() > LATE_EACH * self.begun.get()
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
