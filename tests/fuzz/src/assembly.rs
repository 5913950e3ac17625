//! A chunk put together from any sequence of symbols, marks and pauses, beside a model that knows what must become of
//! each: nothing more is kept than a block can use, nothing is asked for that is here, and what comes out is the chunk
//! or is refused by its hash.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pangea_dataplane_core::assembly::{Assembly, AssemblyError, Outcome, REPAIRS_MAX, SYMBOLS_FACTOR_MAX};
use pangea_dataplane_core::frame::Repair;
use pangea_fec::{ChunkShape, Codec, SYMBOLS_MAX};
use pangea_ipc::content::{CHUNK_SIZE, Manifest, chaining_value};

use crate::input::{Chance, Input};

/// Operations of an input at most, so that each takes milliseconds.
const OPERATIONS_MAX: usize = 256;

/// The input: lengths, memory and round trip, then operations to its end. Whatever they were, an honest server that
/// answers the next repair completes the chunk.
///
/// # Panics
/// When the assembly breaks a rule.
#[allow(clippy::disallowed_methods, reason = "any instant will do as the start")]
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let chunk_len = (usize::from(input.u16()) << 2 | usize::from(input.byte() & 3)).min(CHUNK_SIZE as usize);
    let symbol_len = usize::from(input.u16());
    let flags = input.byte();
    let (short_memory, early) = (flags & 1 == 1, flags & 2 == 2);
    let rtt = Duration::from_millis(u64::from(input.u16()));
    let now = Instant::now();
    let memory = vec![0; chunk_len.saturating_sub(usize::from(short_memory))];
    let assembly = match Assembly::new(chunk_len, symbol_len, memory, rtt, now) {
        Ok(assembly) => assembly,
        Err(AssemblyError::Shape(error)) => {
            return assert_eq!(ChunkShape::new(chunk_len, symbol_len), Err(error));
        }
        Err(error) => return assert!(short_memory && error == AssemblyError::Memory { len: chunk_len }, "{error}"),
    };
    assert!(!short_memory);
    let mut test = Test::new(assembly, chunk_len, now);
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() || test.gave_up {
            break;
        }
        test.operate(&mut input);
    }
    if !early && !test.gave_up {
        test.rescue();
    }
    test.finish();
}

/// What must be here of a block.
struct Block {
    k: usize,
    data: BTreeSet<usize>,
    parity: BTreeSet<usize>,
    /// Parity up to the last that came.
    parity_sent: usize,
}

impl Block {
    fn missing(&self) -> usize {
        self.k - self.data.len()
    }

    fn is_ready(&self) -> bool {
        self.parity.len() >= self.missing()
    }

    /// What must become of a symbol; keeps it.
    fn take(&mut self, symbol: usize) -> Outcome {
        let news = match symbol.checked_sub(self.k) {
            None => self.data.insert(symbol),
            Some(parity) => {
                self.parity_sent = self.parity_sent.max(parity + 1);
                !self.is_ready() && self.parity.insert(parity)
            }
        };
        if news { Outcome::Kept } else { Outcome::NotNeeded }
    }
}

struct Test {
    assembly: Assembly<Vec<u8>>,
    shape: ChunkShape,
    chunk: Vec<u8>,
    codec: Codec,
    now: Instant,
    blocks: Vec<Block>,
    received: u64,
    asked_again: u64,
    parity_unused: u64,
    rounds: u32,
    /// A wrong symbol was kept.
    poisoned: bool,
    gave_up: bool,
    /// What was asked for last.
    asked: Vec<Repair>,
}

impl Test {
    fn new(assembly: Assembly<Vec<u8>>, chunk_len: usize, now: Instant) -> Self {
        let shape = assembly.shape();
        let block = |index| Block {
            k: shape.block(index).unwrap().k,
            data: BTreeSet::new(),
            parity: BTreeSet::new(),
            parity_sent: 0,
        };
        Self {
            shape,
            assembly,
            chunk: Chance(chunk_len as u64).bytes(chunk_len),
            codec: Codec::new(),
            now,
            blocks: (0..shape.blocks()).map(block).collect(),
            received: 0,
            asked_again: 0,
            parity_unused: 0,
            rounds: 0,
            poisoned: false,
            gave_up: false,
            asked: Vec::new(),
        }
    }

    fn operate(&mut self, input: &mut Input<'_>) {
        let operation = input.byte();
        let closing = operation & 0x80 != 0;
        match operation & 0x0f {
            0 => self.symbols(input.byte(), input.byte(), 1, closing),
            1 => {
                let (block, first, count) = (input.byte(), input.byte(), input.byte());
                self.symbols(block, first, count, closing);
            }
            2 => {
                // Parity of a block of the chunk, which a byte seldom hits by itself.
                let block = usize::from(input.byte()) % self.blocks.len();
                let first = self.blocks[block].k.saturating_add(usize::from(input.byte())).min(SYMBOLS_MAX);
                self.symbols(block as u8, first as u8, input.byte(), closing);
            }
            3 => {
                let (block, symbol) = (input.byte(), input.byte());
                let mut payload = self.payload(block, symbol);
                payload[usize::from(input.byte()) % self.shape.symbol_len()] ^= input.byte();
                self.give(block, symbol, closing, &payload);
            }
            4 => {
                let (block, symbol) = (input.byte(), input.byte());
                let payload = vec![input.byte(); usize::from(input.u16())];
                self.give(block, symbol, closing, &payload);
            }
            5 => self.assembly.handle_mark(self.now),
            6 => self.assembly.handle_overtaken(self.now),
            7 => {
                self.now += Duration::from_millis(u64::from(input.byte()) * 8);
                self.poll();
            }
            8 => {
                self.now = self.now.max(self.assembly.poll_timeout());
                self.poll();
            }
            9 => self.answer(closing),
            _ => self.poll(),
        }
        assert_eq!(self.assembly.is_ready(), self.is_ready());
    }

    fn is_ready(&self) -> bool {
        self.blocks.iter().all(Block::is_ready)
    }

    /// More have come than any server sends.
    fn is_full(&self) -> bool {
        self.received > (SYMBOLS_FACTOR_MAX * SYMBOLS_MAX * self.blocks.len()) as u64
    }

    /// What an honest server sends as this symbol; zeros for one that there is not.
    fn payload(&mut self, block: u8, symbol: u8) -> Vec<u8> {
        let (index, symbol) = (usize::from(block), usize::from(symbol));
        let mut bytes = vec![0; self.shape.symbol_len()];
        let Some(shape) = self.shape.block(index) else { return bytes };
        match symbol.checked_sub(shape.k) {
            None => {
                let from = &self.chunk[self.shape.bytes(index, symbol).unwrap()];
                bytes[..from.len()].copy_from_slice(from);
            }
            Some(parity) if symbol < SYMBOLS_MAX => {
                self.codec.encode(self.shape, &self.chunk, index, parity..parity + 1, &mut bytes).unwrap();
            }
            Some(_) => {}
        }
        bytes
    }

    fn symbols(&mut self, block: u8, first: u8, count: u8, closing: bool) {
        for symbol in first..=first.saturating_add(count.saturating_sub(1)) {
            let payload = self.payload(block, symbol);
            self.give(block, symbol, closing, &payload);
        }
    }

    fn give(&mut self, block: u8, symbol: u8, closing: bool, payload: &[u8]) {
        let wrong = self.payload(block, symbol) != payload;
        let outcome = self.assembly.handle_symbol(block, symbol, closing, payload, self.now);
        let number = usize::from(symbol);
        self.received += 1;
        let excess = self.is_full();
        let expected = match self.blocks.get_mut(usize::from(block)) {
            _ if excess => Outcome::Excess,
            Some(state) if payload.len() == self.shape.symbol_len() && number < SYMBOLS_MAX => {
                let outcome = state.take(number);
                self.parity_unused += u64::from(number >= state.k && outcome == Outcome::NotNeeded);
                outcome
            }
            _ => Outcome::Impossible,
        };
        assert_eq!(outcome, expected, "block {block} symbol {symbol} of {} bytes", payload.len());
        self.poisoned |= wrong && outcome == Outcome::Kept;
        // Memory is bounded by the chunk's own size: never more parity than data of a block.
        assert!(self.blocks.iter().all(|block| block.parity.len() <= block.k));
    }

    /// Asks for what is missing, as often as there is something to ask for now.
    fn poll(&mut self) {
        self.asked.clear();
        let mut asked = BTreeSet::new();
        loop {
            match self.assembly.poll_repair(self.now) {
                Ok(Some(repair)) => {
                    let block = &self.blocks[usize::from(repair.block)];
                    let symbols: Vec<usize> = repair.symbols().collect();
                    assert!(symbols.iter().all(|symbol| *symbol < block.k && !block.data.contains(symbol)));
                    assert_eq!(symbols.len(), block.missing() - block.parity.len(), "asks for exactly what is missing");
                    assert!(asked.insert(repair.block), "asks twice in a round");
                    self.asked_again += symbols.len() as u64;
                    self.asked.push(repair);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!((error, self.rounds), (AssemblyError::GaveUp, REPAIRS_MAX));
                    self.gave_up = true;
                    return;
                }
            }
        }
        self.rounds += u32::from(!asked.is_empty());
        assert!(self.rounds <= REPAIRS_MAX);
    }

    /// An honest answer to what was asked for last.
    fn answer(&mut self, closing: bool) {
        for repair in std::mem::take(&mut self.asked) {
            for symbol in repair.symbols() {
                let payload = self.payload(repair.block, symbol as u8);
                self.give(repair.block, symbol as u8, closing, &payload);
            }
        }
    }

    /// From here on the server is honest and nothing is lost.
    fn rescue(&mut self) {
        if !self.is_ready() {
            self.now = self.now.max(self.assembly.poll_timeout());
            self.poll();
            if self.gave_up {
                return;
            }
            assert!(!self.asked.is_empty(), "time is up, symbols are missing, and nothing is asked for");
            self.answer(true);
        }
        assert!(self.assembly.is_ready() || self.is_full(), "all that was asked for has come");
    }

    fn finish(self) {
        let ready = self.is_ready();
        let missing: usize = self.blocks.iter().map(Block::missing).sum();
        let parity: usize = self.blocks.iter().map(|block| block.parity.len()).sum();
        let sent: usize = self.blocks.iter().map(|block| block.k + block.parity_sent).sum();
        match self.assembly.finish(&mut Codec::new()) {
            Err(error) => assert!(!ready && matches!(error, AssemblyError::Fec(_)), "{error}"),
            Ok((memory, range, tally)) => {
                assert!(ready && range == (0..self.chunk.len()));
                assert_eq!((tally.received, tally.asked_again), (self.received, self.asked_again));
                assert_eq!(tally.sent, sent as u64 + self.asked_again);
                assert_eq!(tally.lost, tally.sent.saturating_sub(tally.received));
                assert_eq!(tally.repaired, missing as u64);
                assert_eq!(tally.parity_unused, self.parity_unused + (parity - missing) as u64);
                // What the store does before it writes: wrong bytes end here.
                let values = vec![chaining_value(0, true, &self.chunk)];
                let manifest = Manifest::seal(self.chunk.len() as u64, values).unwrap();
                let verified = manifest.check(0, &memory[range.clone()]).is_ok();
                assert_eq!(verified, memory[range] == self.chunk);
                assert!(verified || self.poisoned, "only true symbols make a wrong chunk");
            }
        }
    }
}
