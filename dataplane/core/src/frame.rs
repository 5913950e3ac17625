//! The bytes between two workers. Every frame has an exact length; parsing is validating.
//!
//! The requester opens a bidirectional QUIC stream for each chunk, or page of a manifest, and sends a [`Request`]. The
//! server answers on it with an [`Answer`]: the chunk follows on the stream, or comes as symbols in datagrams
//! ([`SymbolHeader`]), after the last of which the server sends a [`Mark`]. The symbols say all that the answer does,
//! so whoever has enough of them need not wait for it. On a lossy path a request that must not wait for its own repair
//! goes twice: on its stream, and a moment later as a datagram of the same bytes; the server begins with whichever
//! comes first. The requester then may send any number, up to a limit, of [`Repair`]s, each answered by symbols and a
//! mark, and finishes its side when the chunk is whole. An empty datagram is a pulse: it says nothing but wants an
//! acknowledgement. Integers are little-endian.

use pangea_ipc::content::{CHAINING_VALUE_LEN, CHUNK_SIZE, CONTENT_SIZE_MAX, ChunkIndex, Geometry};
use pangea_ipc::ids::ContentId;

/// First byte of every request; another version has another.
const REQUEST_KIND: u8 = 0x51;
/// The same when it asks for a page of a manifest.
const MANIFEST_KIND: u8 = 0x54;
/// First byte of every repair.
const REPAIR_KIND: u8 = 0x52;
/// First byte of every symbol datagram.
const SYMBOL_KIND: u8 = 0x53;

/// Bytes in a [`Request`].
pub const REQUEST_LEN: usize = 56;
/// Bytes in an [`Answer`].
pub const ANSWER_LEN: usize = 12;
/// Bytes in a [`Mark`].
pub const MARK_LEN: usize = 4;
/// Bytes in a [`Repair`].
pub const REPAIR_LEN: usize = 36;
/// Bytes before a symbol in its datagram.
pub const SYMBOL_HEADER_LEN: usize = 8;

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first byte is that of another frame or version.
    #[error("a frame starts with {found:#x} where {expected:#x} belongs")]
    Kind {
        /// What was there.
        found: u8,
        /// What belongs there.
        expected: u8,
    },
    /// A field has a value that it cannot have.
    #[error("{what} cannot be {value}")]
    Impossible {
        /// Which.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A datagram ends before its header does, or goes on after it.
    #[error("a datagram of {len} bytes is no frame")]
    Length {
        /// Its bytes.
        len: usize,
    },
}

/// How the requester wants the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As the server finds right for the path.
    Auto,
    /// By stream.
    Stream,
    /// As symbols.
    Fec,
}

/// What a [`Request`] asks for. Both come in the same ways; a page of a manifest is one value for each chunk on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A chunk of the content.
    Chunk(ChunkIndex),
    /// A page of its manifest ([`Geometry::manifest_page`]).
    Manifest(u32),
}

impl Part {
    /// Bytes in it; 0 when the content has no such part.
    #[must_use]
    pub fn len(self, geometry: Geometry) -> u32 {
        match self {
            Self::Chunk(chunk) => geometry.chunk_len(chunk),
            Self::Manifest(page) => {
                let values = geometry.manifest_page(page).len().saturating_mul(CHAINING_VALUE_LEN);
                u32::try_from(values).unwrap_or(CHUNK_SIZE) // a page is as long as a chunk at most
            }
        }
    }
}

/// "Send me this part of a content."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The content.
    pub content: ContentId,
    /// Its size as the requester knows it; a server that knows another refuses, since the two mean different contents.
    pub size: u64,
    /// Which part.
    pub part: Part,
    /// How.
    pub mode: Mode,
    /// Nothing else is under way that would hide a loss: the end of a transfer, a single object, a reader who waits.
    pub soon: bool,
    /// Number of the FEC transfer, chosen by the requester, unique on its connection while it lasts.
    pub transfer: u32,
    /// Longest symbol that the requester's side of the path carries.
    pub symbol_len_max: u16,
    /// Parity symbols for each 100 data symbols that the requester wants at most.
    pub overhead_max_pct: u8,
}

impl Request {
    /// The wire form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; REQUEST_LEN] {
        let mut out = Writer::<REQUEST_LEN>::new();
        let (kind, number) = match self.part {
            Part::Chunk(chunk) => (REQUEST_KIND, chunk),
            Part::Manifest(page) => (MANIFEST_KIND, page),
        };
        out.put(&[kind]);
        out.put(&[match self.mode {
            Mode::Auto => 0,
            Mode::Stream => 1,
            Mode::Fec => 2,
        }]);
        out.put(&[self.overhead_max_pct, u8::from(self.soon)]);
        out.put(&self.content.0);
        out.put(&self.size.to_le_bytes());
        out.put(&number.to_le_bytes());
        out.put(&self.transfer.to_le_bytes());
        out.put(&self.symbol_len_max.to_le_bytes());
        out.bytes
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// When a field has a value that no requester sends.
    pub fn parse(bytes: &[u8; REQUEST_LEN]) -> Result<Self, FrameError> {
        let mut from = Reader(bytes);
        let kind = from.byte();
        if kind != MANIFEST_KIND {
            expect_kind(kind, REQUEST_KIND)?;
        }
        let mode = match from.byte() {
            0 => Mode::Auto,
            1 => Mode::Stream,
            2 => Mode::Fec,
            other => return Err(impossible("mode", other)),
        };
        let overhead_max_pct = from.byte();
        if overhead_max_pct > 100 {
            return Err(impossible("overhead", overhead_max_pct));
        }
        let soon = match from.byte() {
            0 => false,
            1 => true,
            other => return Err(impossible("urgency", other)),
        };
        let content = ContentId(from.take());
        let size = u64::from_le_bytes(from.take());
        if size > CONTENT_SIZE_MAX {
            return Err(impossible("size", size));
        }
        let number = u32::from_le_bytes(from.take());
        let (part, count) = match Geometry::new(size) {
            Ok(geometry) if kind == MANIFEST_KIND => (Part::Manifest(number), geometry.manifest_pages()),
            Ok(geometry) => (Part::Chunk(number), geometry.chunk_count()),
            Err(_) => return Err(impossible("size", size)),
        };
        if number >= count {
            return Err(impossible("part", number));
        }
        let transfer = u32::from_le_bytes(from.take());
        let symbol_len_max = u16::from_le_bytes(from.take());
        Ok(Self { content, size, part, mode, soon, transfer, symbol_len_max, overhead_max_pct })
    }

    /// Reads a copy of a request, which is a datagram of its own.
    ///
    /// # Errors
    /// When it is none, or when a field has a value that no requester sends.
    pub fn parse_copy(datagram: &[u8]) -> Result<Self, FrameError> {
        Self::parse(datagram.try_into().map_err(|_| FrameError::Length { len: datagram.len() })?)
    }
}

/// Why a server does not send a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It does not hold the chunk, or not yet.
    NotHeld,
    /// It has as much to do as it takes on; later.
    Busy,
    /// It knows the content with another size.
    OtherSize,
    /// It could not read the chunk.
    Unreadable,
}

impl Refusal {
    const ALL: [(u8, Self); 4] = [(1, Self::NotHeld), (2, Self::Busy), (3, Self::OtherSize), (4, Self::Unreadable)];
}

/// The server's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The chunk follows on this stream.
    Stream {
        /// Its bytes.
        len: u32,
    },
    /// The chunk comes as symbols of this length; a mark follows on this stream when the last was sent.
    Fec {
        /// Its bytes.
        len: u32,
        /// Bytes in a symbol.
        symbol_len: u16,
    },
    /// No.
    Refused(Refusal),
}

impl Answer {
    /// The wire form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; ANSWER_LEN] {
        let mut out = Writer::<ANSWER_LEN>::new();
        match self {
            Self::Stream { len } => {
                out.put(&[1, 0, 0, 0]);
                out.put(&len.to_le_bytes());
            }
            Self::Fec { len, symbol_len } => {
                out.put(&[2, 0, 0, 0]);
                out.put(&len.to_le_bytes());
                out.put(&symbol_len.to_le_bytes());
            }
            Self::Refused(refusal) => {
                let code = Refusal::ALL.iter().find(|(_, known)| *known == refusal).map_or(0, |(code, _)| *code);
                out.put(&[3, code]);
            }
        }
        out.bytes
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// When a field has a value that no server sends.
    pub fn parse(bytes: &[u8; ANSWER_LEN]) -> Result<Self, FrameError> {
        let mut from = Reader(bytes);
        let (kind, code) = (from.byte(), from.byte());
        let _reserved: [u8; 2] = from.take();
        let len = u32::from_le_bytes(from.take());
        let symbol_len = u16::from_le_bytes(from.take());
        if len > CHUNK_SIZE {
            return Err(impossible("chunk length", len));
        }
        match kind {
            1 => Ok(Self::Stream { len }),
            2 => Ok(Self::Fec { len, symbol_len }),
            3 => {
                let refusal = Refusal::ALL.iter().find(|(known, _)| *known == code);
                refusal.map(|(_, refusal)| Self::Refused(*refusal)).ok_or(impossible("refusal", code))
            }
            other => Err(impossible("answer", other)),
        }
    }
}

/// "That was all": how many symbols of this chunk the server has sent since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Symbols sent.
    pub sent: u32,
}

impl Mark {
    /// The wire form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; MARK_LEN] {
        self.sent.to_le_bytes()
    }

    /// Reads the wire form; every number is possible.
    #[must_use]
    pub fn parse(bytes: [u8; MARK_LEN]) -> Self {
        Self { sent: u32::from_le_bytes(bytes) }
    }
}

/// "Of this block I miss these symbols." Exactly the missing data symbols are named: they need no decoding when they
/// come, and a server that has lost count of its parity cannot send the wrong ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    /// The block.
    pub block: u8,
    /// The data symbols that are missing: symbol `i` is bit `i % 8` of byte `i / 8`.
    pub missing: [u8; 32],
}

impl Repair {
    /// The wire form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; REPAIR_LEN] {
        let mut out = Writer::<REPAIR_LEN>::new();
        out.put(&[REPAIR_KIND, self.block, 0, 0]);
        out.put(&self.missing);
        out.bytes
    }

    /// Reads the wire form. Whether there is such a block is the server's to check.
    ///
    /// # Errors
    /// When it is another frame, or nothing is missing.
    pub fn parse(bytes: &[u8; REPAIR_LEN]) -> Result<Self, FrameError> {
        let mut from = Reader(bytes);
        expect_kind(from.byte(), REPAIR_KIND)?;
        let block = from.byte();
        let _reserved: [u8; 2] = from.take();
        let missing: [u8; 32] = from.take();
        if missing == [0; 32] {
            return Err(impossible("missing symbols", 0_u8));
        }
        Ok(Self { block, missing })
    }

    /// The symbols that are missing, ascending.
    pub fn symbols(&self) -> impl Iterator<Item = usize> + '_ {
        (0..256).filter(|symbol| self.missing.get(symbol / 8).is_some_and(|byte| byte >> (symbol % 8) & 1 == 1))
    }
}

/// What stands before a symbol in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SymbolHeader {
    /// The transfer, as the request numbered it.
    pub transfer: u32,
    /// The block.
    pub block: u8,
    /// The symbol in its block: data first, then parity.
    pub symbol: u8,
    /// It is among the last of those that are sent now: what does not come soon after it was lost. Said in more than one
    /// of them, and with them, since a mark on the stream waits until there are no symbols to send.
    pub closing: bool,
}

impl SymbolHeader {
    /// The wire form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; SYMBOL_HEADER_LEN] {
        let mut out = Writer::<SYMBOL_HEADER_LEN>::new();
        out.put(&[SYMBOL_KIND, self.block, self.symbol, u8::from(self.closing)]);
        out.put(&self.transfer.to_le_bytes());
        out.bytes
    }

    /// Reads a datagram: header and symbol.
    ///
    /// # Errors
    /// When it is no symbol datagram.
    pub fn parse(datagram: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let Some((header, symbol)) = datagram.split_first_chunk::<SYMBOL_HEADER_LEN>() else {
            return Err(FrameError::Length { len: datagram.len() });
        };
        let mut from = Reader(header);
        expect_kind(from.byte(), SYMBOL_KIND)?;
        let (block, number) = (from.byte(), from.byte());
        let closing = match from.byte() {
            0 => false,
            1 => true,
            other => return Err(impossible("closing", other)),
        };
        Ok((Self { transfer: u32::from_le_bytes(from.take()), block, symbol: number, closing }, symbol))
    }
}

fn expect_kind(found: u8, expected: u8) -> Result<(), FrameError> {
    if found == expected { Ok(()) } else { Err(FrameError::Kind { found, expected }) }
}

fn impossible(what: &'static str, value: impl Into<u64>) -> FrameError {
    FrameError::Impossible { what, value: value.into() }
}

/// Fills a frame of fixed length from the front.
struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put(&mut self, field: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.at).zip(field) {
            *to = *from;
        }
        self.at += field.len();
        debug_assert!(self.at <= N, "the frame holds all its fields");
    }
}

/// Takes fields of a frame of fixed length from the front; beyond its end there are zeros.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn take<const M: usize>(&mut self) -> [u8; M] {
        match self.0.split_first_chunk::<M>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; M],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> Request {
        Request {
            content: ContentId([7; 32]),
            size: 10 << 20,
            part: Part::Chunk(39),
            mode: Mode::Fec,
            soon: true,
            transfer: 0xdead_beef,
            symbol_len_max: 1180,
            overhead_max_pct: 25,
        }
    }

    #[test]
    fn frames_survive_the_wire() {
        for mode in [Mode::Auto, Mode::Stream, Mode::Fec] {
            for part in [Part::Chunk(39), Part::Manifest(0)] {
                let request = Request { mode, part, ..request() };
                assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
            }
        }
        let answers = [Answer::Stream { len: 5 }, Answer::Fec { len: CHUNK_SIZE, symbol_len: 1180 }];
        for answer in answers.into_iter().chain(Refusal::ALL.map(|(_, refusal)| Answer::Refused(refusal))) {
            assert_eq!(Answer::parse(&answer.to_bytes()), Ok(answer));
        }
        let mut missing = [0; 32];
        missing[0] = 0b101;
        missing[31] = 0x80;
        let repair = Repair { block: 3, missing };
        assert_eq!(Repair::parse(&repair.to_bytes()), Ok(repair));
        assert_eq!(repair.symbols().collect::<Vec<_>>(), [0, 2, 255]);
        let header = SymbolHeader { transfer: 9, block: 1, symbol: 254, closing: true };
        let datagram = [&header.to_bytes()[..], b"symbol"].concat();
        assert_eq!(SymbolHeader::parse(&datagram), Ok((header, &b"symbol"[..])));
        assert_eq!(Mark::parse(Mark { sent: 77 }.to_bytes()), Mark { sent: 77 });
    }

    #[test]
    fn impossible_fields_are_refused() {
        for part in [Part::Chunk(40), Part::Manifest(1)] {
            let beyond = Request { part, ..request() };
            assert!(matches!(Request::parse(&beyond.to_bytes()), Err(FrameError::Impossible { what: "part", .. })));
        }
        let huge = Request { size: CONTENT_SIZE_MAX + 1, ..request() };
        assert!(matches!(Request::parse(&huge.to_bytes()), Err(FrameError::Impossible { what: "size", .. })));
        let greedy = Request { overhead_max_pct: 101, ..request() };
        assert!(matches!(Request::parse(&greedy.to_bytes()), Err(FrameError::Impossible { what: "overhead", .. })));
        let mut unsure = request().to_bytes();
        unsure[3] = 2;
        assert!(matches!(Request::parse(&unsure), Err(FrameError::Impossible { what: "urgency", .. })));
        let copy = request().to_bytes();
        assert_eq!(Request::parse_copy(&copy), Ok(request()));
        assert!(matches!(Request::parse_copy(&copy[1..]), Err(FrameError::Length { len: 55 })));
        let long = Answer::Stream { len: CHUNK_SIZE + 1 };
        assert!(Answer::parse(&long.to_bytes()).is_err());
        assert!(Repair::parse(&Repair { block: 0, missing: [0; 32] }.to_bytes()).is_err());
        assert!(matches!(SymbolHeader::parse(&[SYMBOL_KIND; 7]), Err(FrameError::Length { len: 7 })));
    }

    proptest! {
        #[test]
        fn no_bytes_bring_a_parser_down(bytes in prop::collection::vec(any::<u8>(), 64)) {
            let _ = Request::parse(bytes.first_chunk().unwrap());
            let _ = Answer::parse(bytes.first_chunk().unwrap());
            let _ = Repair::parse(bytes.first_chunk().unwrap());
            let _ = SymbolHeader::parse(&bytes[..usize::from(bytes[0] % 64)]);
        }
    }
}
