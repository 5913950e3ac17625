//! One chunk on its way here as symbols: takes them in any order, knows what is missing, and asks for exactly that.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use pangea_fec::{ChunkShape, Codec, FecError, SYMBOLS_MAX, ShapeError};

use crate::frame::Repair;

/// How often missing symbols are asked for at most; after that the chunk has failed and is asked of someone else.
pub const REPAIRS_MAX: u32 = 16;
/// Symbols of one chunk that a server sends at most, and that a requester takes, as a multiple of those that there are.
/// Nobody draws more bandwidth by claiming losses, or wastes more by sending what nobody needs.
pub const SYMBOLS_FACTOR_MAX: usize = 8;
/// Without a mark, missing symbols are asked for when nothing came for this many round trips, and at least
/// [`SILENCE_MIN`]. Marks come reliably, so this is for servers that stall, not for loss: asking sooner would ask for
/// symbols that still wait in the server's queue behind those of other chunks.
const SILENCE_RTTS: u32 = 8;
/// Shortest such silence.
const SILENCE_MIN: Duration = Duration::from_secs(1);
/// After a mark, symbols that were overtaken may still come for this share of the round trip (RFC 9002: 1/8).
const REORDER_SHARE: u32 = 8;
/// At least this long, as RFC 9002's timer granularity.
const REORDER_MIN: Duration = Duration::from_millis(1);

/// Round trips that the answer to a repair may take, which waits in the server's queue with other chunks…
const ANSWER_RTTS: u32 = 2;
/// …and at least this long: hosts have pauses of their own.
const ANSWER_MIN: Duration = Duration::from_millis(20);

/// What became of a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept.
    Kept,
    /// It is here already, or its block is whole.
    NotNeeded,
    /// There is no such symbol in this chunk, or it has the wrong length.
    Impossible,
    /// More have come than any server sends: [`SYMBOLS_FACTOR_MAX`].
    Excess,
}

/// What happened on the way, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Symbols that the server must have sent: the data, parity up to the last that came, and what was asked for again.
    pub sent: u64,
    /// Of these, symbols that had not come when the chunk was whole.
    pub lost: u64,
    /// Symbols that came, whatever became of them.
    pub received: u64,
    /// Data symbols rebuilt from parity.
    pub repaired: u64,
    /// Data symbols asked for again.
    pub asked_again: u64,
    /// Parity symbols that came and were not needed.
    pub parity_unused: u64,
}

#[derive(Debug)]
struct Block {
    k: usize,
    /// Which data symbols are here.
    data: Vec<bool>,
    data_count: usize,
    /// Parity symbols by number, at most as many as data symbols were missing when they came.
    parity: Vec<(usize, Vec<u8>)>,
    /// Parity symbols up to the last that came, needed or not.
    parity_sent: usize,
}

impl Block {
    fn missing(&self) -> usize {
        self.k - self.data_count
    }

    fn is_ready(&self) -> bool {
        self.parity.len() >= self.missing()
    }
}

/// Memory that a chunk is put together in.
pub trait ChunkMemory {
    /// The whole memory; at least as long as the chunk.
    fn space(&mut self) -> &mut [u8];
}

impl ChunkMemory for Vec<u8> {
    fn space(&mut self) -> &mut [u8] {
        self
    }
}

/// One chunk being put together.
#[derive(Debug)]
pub struct Assembly<M> {
    shape: ChunkShape,
    memory: M,
    blocks: Vec<Block>,
    rtt: Duration,
    /// When what is missing is asked for.
    ask_at: Instant,
    /// The server has said that it sent all it was asked for.
    marked: bool,
    repairs: u32,
    repair_queue: VecDeque<Repair>,
    tally: Tally,
}

/// Why a chunk was not put together.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AssemblyError {
    /// Lengths that cannot be.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The memory is shorter than the chunk.
    #[error("a chunk of {len} bytes does not fit its buffer")]
    Memory {
        /// Bytes in the chunk.
        len: usize,
    },
    /// The code says no.
    #[error(transparent)]
    Fec(#[from] FecError),
    /// Asked in vain.
    #[error("symbols were still missing after asking {REPAIRS_MAX} times")]
    GaveUp,
}

impl<M: ChunkMemory> Assembly<M> {
    /// A chunk of `chunk_len` bytes, cut into symbols of `symbol_len`, to be put together in `memory`.
    ///
    /// # Errors
    /// When the lengths cannot be.
    pub fn new(
        chunk_len: usize,
        symbol_len: usize,
        mut memory: M,
        rtt: Duration,
        now: Instant,
    ) -> Result<Self, AssemblyError> {
        let shape = ChunkShape::new(chunk_len, symbol_len)?;
        if memory.space().len() < chunk_len {
            return Err(AssemblyError::Memory { len: chunk_len });
        }
        let block = |index| {
            let k = shape.block(index)?.k;
            Some(Block { k, data: vec![false; k], data_count: 0, parity: Vec::new(), parity_sent: 0 })
        };
        let blocks = (0..shape.blocks()).filter_map(block).collect();
        let mut assembly = Self {
            shape,
            memory,
            blocks,
            rtt,
            ask_at: now,
            marked: false,
            repairs: 0,
            repair_queue: VecDeque::new(),
            tally: Tally::default(),
        };
        assembly.ask_at = now + assembly.silence();
        Ok(assembly)
    }

    /// How the chunk is cut.
    #[must_use]
    pub fn shape(&self) -> ChunkShape {
        self.shape
    }

    /// Takes a symbol that came. `closing`: it is among the last of those that the server sends now.
    pub fn handle_symbol(&mut self, block: u8, symbol: u8, closing: bool, payload: &[u8], now: Instant) -> Outcome {
        self.tally.received += 1;
        if self.tally.received > (SYMBOLS_FACTOR_MAX * SYMBOLS_MAX * self.blocks.len()) as u64 {
            return Outcome::Excess;
        }
        let (index, symbol) = (usize::from(block), usize::from(symbol));
        let Some(state) = self.blocks.get_mut(index) else { return Outcome::Impossible };
        if payload.len() != self.shape.symbol_len() || symbol >= SYMBOLS_MAX {
            return Outcome::Impossible;
        }
        let outcome = match symbol.checked_sub(state.k) {
            None => {
                let bytes = self.shape.bytes(index, symbol).unwrap_or_default();
                let to = self.memory.space().get_mut(bytes.clone());
                match (state.data.get_mut(symbol), to, payload.get(..bytes.len())) {
                    (Some(here), Some(to), Some(from)) if !*here => {
                        to.copy_from_slice(from);
                        *here = true;
                        state.data_count += 1;
                        Outcome::Kept
                    }
                    _ => Outcome::NotNeeded,
                }
            }
            Some(parity) => {
                state.parity_sent = state.parity_sent.max(parity + 1);
                let known = state.parity.iter().any(|(number, _)| *number == parity);
                if known || state.is_ready() {
                    self.tally.parity_unused += 1;
                    Outcome::NotNeeded
                } else {
                    state.parity.push((parity, payload.to_vec()));
                    Outcome::Kept
                }
            }
        };
        if closing && !self.marked {
            self.close(now);
        } else if self.marked {
            // As long as symbols come, what is missing may be among the next.
            self.ask_at = self.ask_at.max(now + self.reordering());
        } else if self.repairs == 0 {
            self.ask_at = now + self.silence();
        }
        outcome
    }

    /// The server says on the stream that it has sent all it was asked for. That may be said late, so only the first time
    /// is it known what it means.
    pub fn handle_mark(&mut self, now: Instant) {
        if self.repairs == 0 && !self.marked {
            self.close(now);
        }
    }

    /// Symbols of a chunk that is sent after this one have come.
    pub fn handle_overtaken(&mut self, now: Instant) {
        self.handle_mark(now);
    }

    /// What is missing now is lost, or was overtaken.
    fn close(&mut self, now: Instant) {
        self.marked = true;
        self.ask_at = now + self.reordering();
    }

    /// Enough is here to have the chunk whole.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.blocks.iter().all(Block::is_ready)
    }

    /// The next thing to ask for, if any; call again until there is none.
    ///
    /// # Errors
    /// [`AssemblyError::GaveUp`] when it was asked for too often.
    pub fn poll_repair(&mut self, now: Instant) -> Result<Option<Repair>, AssemblyError> {
        if let Some(repair) = self.repair_queue.pop_front() {
            return Ok(Some(repair));
        }
        if self.is_ready() || now < self.ask_at {
            return Ok(None);
        }
        if self.repairs >= REPAIRS_MAX {
            return Err(AssemblyError::GaveUp);
        }
        self.repairs += 1;
        self.marked = false;
        self.ask_at = now + self.answer_time();
        for (index, block) in (0..).zip(&self.blocks) {
            // As many as parity does not make up for; which ones does not matter, so the first.
            let lacking = block.missing().saturating_sub(block.parity.len());
            let mut missing = [0; 32];
            let absent = block.data.iter().enumerate().filter(|(_, here)| !**here).map(|(symbol, _)| symbol);
            for symbol in absent.take(lacking) {
                if let Some(byte) = missing.get_mut(symbol / 8) {
                    *byte |= 1_u8 << (symbol % 8);
                }
            }
            if lacking > 0 {
                self.tally.asked_again += lacking as u64;
                self.repair_queue.push_back(Repair { block: index, missing });
            }
        }
        Ok(self.repair_queue.pop_front())
    }

    /// When to call [`poll_repair`](Self::poll_repair) though nothing has happened.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.ask_at
    }

    /// Rebuilds what is missing and gives the chunk, not yet checked against its hash.
    ///
    /// # Errors
    /// When not enough is here.
    pub fn finish(mut self, codec: &mut Codec) -> Result<(M, Range<usize>, Tally), AssemblyError> {
        let len = self.shape.chunk_len();
        for (index, block) in self.blocks.iter().enumerate() {
            let parity: Vec<(usize, &[u8])> =
                block.parity.iter().map(|(number, bytes)| (*number, &bytes[..])).collect();
            let here = |symbol: usize| block.data.get(symbol).copied().unwrap_or(false);
            let chunk = self.memory.space().get_mut(..len).unwrap_or_default();
            let repaired = codec.rebuild(self.shape, chunk, index, here, &parity)?;
            self.tally.repaired += repaired as u64;
            self.tally.parity_unused += (block.parity.len() - repaired) as u64;
            self.tally.sent += (block.k + block.parity_sent) as u64;
        }
        self.tally.sent += self.tally.asked_again;
        self.tally.lost = self.tally.sent.saturating_sub(self.tally.received);
        Ok((self.memory, 0..len, self.tally))
    }

    fn reordering(&self) -> Duration {
        (self.rtt / REORDER_SHARE).max(REORDER_MIN)
    }

    /// The answer to a repair that has not closed after this was lost, whole or at its end.
    fn answer_time(&self) -> Duration {
        (self.rtt * ANSWER_RTTS).max(ANSWER_MIN)
    }

    fn silence(&self) -> Duration {
        (self.rtt * SILENCE_RTTS).max(SILENCE_MIN)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spread::order;

    const RTT: Duration = Duration::from_millis(50);

    #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
    fn start() -> Instant {
        Instant::now()
    }

    fn chunk(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    /// A server and a lossy path by the numbers: what is sent, and what of it arrives. `lose` is asked with the number of
    /// the symbol, and of the times that symbols were asked for again.
    fn transfer(len: usize, parity: usize, lose: impl Fn(u64, u32) -> bool) -> (Vec<u8>, Tally) {
        let data = chunk(len);
        // Sent by an independent codec, received by ours.
        let (mut codec, mut now) = (Codec::reference(), start());
        let shape = ChunkShape::new(len, 1000).unwrap();
        let mut assembly = Assembly::new(len, 1000, vec![0; len], RTT, now).unwrap();
        let mut to_send = order(shape, |_| parity);
        let mut serial = 0;
        while !assembly.is_ready() {
            for (block, symbol) in to_send.drain(..) {
                serial += 1;
                if lose(serial, assembly.repairs) {
                    continue;
                }
                let k = shape.block(block.into()).unwrap().k;
                let mut bytes = vec![0; 1000];
                match usize::from(symbol).checked_sub(k) {
                    None => {
                        let from = &data[shape.bytes(block.into(), symbol.into()).unwrap()];
                        bytes[..from.len()].copy_from_slice(from);
                    }
                    Some(number) => codec.encode(shape, &data, block.into(), number..number + 1, &mut bytes).unwrap(),
                }
                assembly.handle_symbol(block, symbol, false, &bytes, now);
            }
            assembly.handle_mark(now);
            assert_eq!(assembly.poll_repair(now), Ok(None), "overtaken symbols are waited for");
            now = assembly.poll_timeout();
            while let Some(repair) = assembly.poll_repair(now).unwrap() {
                to_send.extend(repair.symbols().map(|symbol| (repair.block, symbol as u8)));
            }
        }
        let (memory, range, tally) = assembly.finish(&mut Codec::new()).unwrap();
        assert_eq!(memory[range], data);
        (memory, tally)
    }

    #[test]
    fn without_loss_nothing_is_asked_again_and_nothing_decoded() {
        let (_, tally) = transfer(256 << 10, 0, |_, _| false);
        assert_eq!(tally, Tally { sent: 263, received: 263, ..Tally::default() });
        let (_, tally) = transfer(256 << 10, 3, |_, _| false);
        assert_eq!((tally.repaired, tally.asked_again, tally.parity_unused), (0, 0, 6));
    }

    #[test]
    fn parity_repairs_what_it_covers_and_only_the_rest_is_asked_again() {
        // Symbols 10, 20, 30 of 263 are lost: two of block 1 and one... all covered by 3 parity symbols a block.
        let (_, tally) = transfer(256 << 10, 3, |serial, _| [10, 20, 30].contains(&serial));
        assert_eq!((tally.repaired, tally.asked_again), (3, 0));
        assert_eq!((tally.sent, tally.lost), (263 + 6, 3));
        // Five of one block are lost: three from parity, two asked again.
        let (_, tally) = transfer(256 << 10, 3, |serial, _| [2, 4, 6, 8, 10].contains(&serial));
        assert_eq!((tally.repaired, tally.asked_again), (3, 2));
        assert_eq!((tally.sent, tally.lost), (263 + 6 + 2, 5));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_loss_that_ends_before_the_last_repair_is_repaired(
            len in 1_usize..100_000, parity in 0_usize..6, seed in any::<u64>(), pct in 0_u64..=100,
        ) {
            transfer(len, parity, |serial, repairs| {
                repairs < REPAIRS_MAX && (serial.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed) % 100 < pct
            });
        }

        #[test]
        fn strange_symbols_do_no_harm(symbols in prop::collection::vec((any::<u8>(), any::<u8>(), 0_usize..1200), 0..600)) {
            let now = start();
            let mut assembly = Assembly::new(256 << 10, 1000, vec![0; 256 << 10], RTT, now).unwrap();
            for (block, symbol, len) in symbols {
                assembly.handle_symbol(block, symbol, symbol > 200, &vec![1; len], now);
                // Memory is bounded by the blocks' own sizes, however many symbols come.
                prop_assert!(assembly.blocks.iter().all(|block| block.parity.len() <= block.k));
            }
        }
    }

    #[test]
    fn a_symbol_beyond_the_last_is_not_kept() {
        // There are 255 symbols in a block, and a byte for their number: a stranger who sent the 256th would have its
        // chunk refused by the codec at the very end.
        let (data, now) = (chunk(5000), start());
        let mut assembly = Assembly::new(5000, 1000, vec![0; 5000], RTT, now).unwrap();
        for symbol in 0..4 {
            let payload = &data[usize::from(symbol) * 1000..][..1000];
            assert_eq!(assembly.handle_symbol(0, symbol, false, payload, now), Outcome::Kept);
        }
        assert_eq!(assembly.handle_symbol(0, 255, false, &[0; 1000], now), Outcome::Impossible);
        assert!(!assembly.is_ready());
        assert_eq!(assembly.handle_symbol(0, 254, false, &[0; 1000], now), Outcome::Kept);
        assert!(assembly.finish(&mut Codec::new()).is_ok());
    }

    #[test]
    fn more_symbols_than_any_server_sends_are_not_taken() {
        let (data, now) = (chunk(5000), start());
        let mut assembly = Assembly::new(5000, 1000, vec![0; 5000], RTT, now).unwrap();
        let most = SYMBOLS_FACTOR_MAX * SYMBOLS_MAX;
        let taken = (0..).take_while(|_| assembly.handle_symbol(0, 0, false, &data[..1000], now) != Outcome::Excess);
        assert_eq!(taken.count(), most);
        assert_eq!(assembly.handle_symbol(0, 1, false, &data[1000..2000], now), Outcome::Excess);
    }

    #[test]
    fn asking_in_vain_ends() {
        let mut now = start();
        let mut assembly = Assembly::new(5000, 1000, vec![0; 5000], RTT, now).unwrap();
        let mut asked = 0;
        let error = loop {
            now = now.max(assembly.poll_timeout());
            match assembly.poll_repair(now) {
                Ok(Some(_)) => asked += 1,
                Ok(None) => {}
                Err(error) => break error,
            }
        };
        assert_eq!((asked, error), (REPAIRS_MAX, AssemblyError::GaveUp));
        assert!(Assembly::new(5000, 1000, vec![0; 4999], RTT, now).is_err());
        assert!(Assembly::new(0, 1000, vec![], RTT, now).is_err());
    }
}
