//! Symbols as they arrive: each goes to the transfer whose number it carries.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use pangea_dataplane_core::assembly::{Assembly, AssemblyError, ChunkMemory, Outcome};
use pangea_dataplane_core::frame::SymbolHeader;
use tokio::sync::Notify;

use crate::buffer::Buffer;

impl ChunkMemory for Buffer {
    fn space(&mut self) -> &mut [u8] {
        Self::space(self)
    }
}

/// Symbols kept for a transfer whose answer has not come yet; datagrams overtake streams. One chunk's worth.
const EARLY_MAX: usize = 512;

/// The FEC transfers of one connection.
#[derive(Debug, Clone)]
pub struct Symbols(Rc<Table>);

#[derive(Debug, Default)]
struct Table {
    transfers: RefCell<HashMap<u32, State>>,
    next: Cell<u32>,
    refused: Cell<u64>,
}

#[derive(Debug)]
enum State {
    /// The answer has not come: how the symbols lie in the chunk is not known yet.
    Early(Vec<(Bytes, Instant)>),
    Running(Assembly<Buffer>, Rc<Notify>),
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

    /// Expects symbols under a fresh number.
    #[must_use]
    pub fn expect(&self) -> Transfer {
        let number = self.0.next.get();
        self.0.next.set(number.wrapping_add(1));
        self.0.transfers.borrow_mut().insert(number, State::Early(Vec::new()));
        Transfer { table: Rc::clone(&self.0), number, symbol_came: Rc::new(Notify::new()) }
    }

    /// Datagrams that were malformed or belonged to no transfer, since the last time this was asked.
    pub fn take_refused(&self) -> u64 {
        self.0.refused.take()
    }
}

impl Table {
    fn take(&self, datagram: Bytes, now: Instant) {
        let Ok((header, symbol)) = SymbolHeader::parse(&datagram) else { return self.refuse() };
        match self.transfers.borrow_mut().get_mut(&header.transfer) {
            Some(State::Running(assembly, symbol_came)) => {
                let outcome = assembly.handle_symbol(header.block, header.symbol, symbol, now);
                if outcome == Outcome::Impossible {
                    self.refuse();
                }
                if assembly.is_ready() {
                    symbol_came.notify_one();
                }
            }
            Some(State::Early(kept)) if kept.len() < EARLY_MAX => kept.push((datagram, now)),
            // Late copies of symbols whose chunk is whole are usual; so are those of a transfer that was given up.
            _ => self.refuse(),
        }
    }

    fn refuse(&self) {
        self.refused.set(self.refused.get() + 1);
    }
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

    /// The answer has come: symbols now go into the assembly, those that came before it first.
    pub fn begin(&self, mut assembly: Assembly<Buffer>) {
        let mut transfers = self.table.transfers.borrow_mut();
        if let Some(State::Early(early)) = transfers.remove(&self.number) {
            for (datagram, at) in early {
                if let Ok((header, symbol)) = SymbolHeader::parse(&datagram) {
                    assembly.handle_symbol(header.block, header.symbol, symbol, at);
                }
            }
        }
        if assembly.is_ready() {
            self.symbol_came.notify_one();
        }
        transfers.insert(self.number, State::Running(assembly, Rc::clone(&self.symbol_came)));
    }

    /// Returns when enough symbols may be here.
    pub async fn ready(&self) {
        self.symbol_came.notified().await;
    }

    /// Does something with the assembly; `None` before [`begin`](Self::begin).
    pub fn with<T>(&self, act: impl FnOnce(&mut Assembly<Buffer>) -> T) -> Option<T> {
        match self.table.transfers.borrow_mut().get_mut(&self.number) {
            Some(State::Running(assembly, _)) => Some(act(assembly)),
            _ => None,
        }
    }

    /// Takes the assembly out; later symbols are refused.
    ///
    /// # Errors
    /// Before [`begin`](Self::begin).
    pub fn take(&self) -> Result<Assembly<Buffer>, AssemblyError> {
        match self.table.transfers.borrow_mut().remove(&self.number) {
            Some(State::Running(assembly, _)) => Ok(assembly),
            _ => Err(AssemblyError::GaveUp),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.table.transfers.borrow_mut().remove(&self.number);
    }
}
