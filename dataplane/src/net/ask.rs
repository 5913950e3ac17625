//! One chunk from a peer, or page of a manifest: the question, and the answer by stream or put together from symbols. Not
//! yet checked.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryFutureExt;
use pangea_dataplane_core::assembly::{AssemblyError, Tally};
use pangea_dataplane_core::fetch::Failed;
use pangea_dataplane_core::frame::{
    ANSWER_LEN, Answer, FrameError, MARK_LEN, Mode, Part, REPAIR_LEN, Refusal, Repair, Request, SYMBOL_HEADER_LEN,
};
use pangea_fec::Codec;
use pangea_ipc::content::Geometry;
use pangea_ipc::ids::ContentId;
use tokio::time::timeout;

use super::connections::Outgoing;
use super::datagrams::Transfer;
use crate::buffer::Buffer;

/// A peer that sends nothing for this long while it owes a chunk is not waited for.
const STALL: Duration = Duration::from_secs(10);

/// Why a chunk did not come.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The server said no.
    #[error("the peer refused: {0:?}")]
    Refused(Refusal),
    /// The server answered what no server answers.
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] FrameError),
    /// The answer is for another chunk length.
    #[error("the peer announced {found} bytes for a chunk of {expected}")]
    Length {
        /// Bytes announced.
        found: u32,
        /// Bytes of the chunk.
        expected: u32,
    },
    /// Symbols of another length than announced, or together with a stream.
    #[error("the peer sent symbols that do not fit its answer")]
    BothWays,
    /// The server floods this worker with symbols that nobody asked for.
    #[error("the peer sent symbols that nobody asked for; its connection was closed")]
    Flooded,
    /// The connection or stream broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// Nothing came for too long.
    #[error("the peer sent nothing for {STALL:?}")]
    Stalled,
    /// The symbols did not make a chunk.
    #[error("symbols: {0}")]
    Assembly(#[from] AssemblyError),
}

impl AskError {
    /// What it means for the source.
    #[must_use]
    pub fn kind(&self) -> Failed {
        match self {
            Self::Refused(Refusal::NotHeld) => Failed::NotHeld,
            // An honest server of this content knows its size; one that differs is of no use, but has not lied.
            Self::Refused(Refusal::OtherSize | Refusal::Busy | Refusal::Unreadable) => Failed::Transient,
            // No honest server announces symbols that cannot be.
            Self::Protocol(_)
            | Self::Length { .. }
            | Self::BothWays
            | Self::Flooded
            | Self::Assembly(AssemblyError::Shape(_)) => Failed::BadBytes,
            Self::Broken(_) | Self::Stalled | Self::Assembly(_) => Failed::Transient,
        }
    }
}

fn broken(error: impl std::fmt::Display) -> AskError {
    AskError::Broken(error.to_string())
}

/// Waits for `io` as long as anything comes from the peer: on a slow path what was asked for before comes first.
async fn unstalled<T>(quic: &quinn::Connection, io: impl Future<Output = Result<T, AskError>>) -> Result<T, AskError> {
    let came = || {
        let frames = quic.stats().frame_rx;
        frames.stream + frames.datagram
    };
    let mut io = std::pin::pin!(io);
    let mut before = came();
    loop {
        match timeout(STALL, &mut io).await {
            Ok(result) => return result,
            Err(_) if came() == before => return Err(AskError::Stalled),
            Err(_) => before = came(),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The content.
    pub content: ContentId,
    /// How it is cut.
    pub geometry: Geometry,
    /// The part.
    pub part: Part,
    /// How it is wanted.
    pub mode: Mode,
    /// Nothing else is under way that would hide a loss.
    pub soon: bool,
    /// Parity for each 100 data symbols at most.
    pub overhead_max_pct: u8,
}

/// How a chunk came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// By stream.
    ByStream,
    /// As symbols.
    BySymbols(Tally),
}

/// Asks for a part of a content and waits for it, in `memory`.
///
/// # Errors
/// Says what went wrong, and by that whose fault it is.
pub async fn ask(
    peer: &Outgoing,
    question: Question,
    memory: Buffer,
    codec: &RefCell<Codec>,
) -> Result<(Buffer, Came), AskError> {
    let _debt = peer.pulse.owe();
    match ask_once(peer, question, memory, codec).await {
        // Whatever broke, that is why.
        Err(_) if peer.symbols.is_flooded() => Err(AskError::Flooded),
        result => result,
    }
}

async fn ask_once(
    peer: &Outgoing,
    question: Question,
    memory: Buffer,
    codec: &RefCell<Codec>,
) -> Result<(Buffer, Came), AskError> {
    let expected = question.part.len(question.geometry);
    let transfer = peer.symbols.expect(expected as usize, memory, peer.quic.rtt());
    let room = peer.quic.max_datagram_size().unwrap_or(0).saturating_sub(SYMBOL_HEADER_LEN);
    let request = Request {
        content: question.content,
        size: question.geometry.size(),
        part: question.part,
        mode: question.mode,
        soon: question.soon,
        transfer: transfer.number(),
        symbol_len_max: u16::try_from(room).unwrap_or(u16::MAX),
        overhead_max_pct: question.overhead_max_pct,
    };
    let (mut send, mut recv) = unstalled(&peer.quic, peer.quic.open_bi().map_err(broken)).await?;
    send.write_all(&request.to_bytes()).await.map_err(broken)?;
    let mut said = Said::default();
    let answer = tokio::select! {
        answer = unstalled(&peer.quic, said.answer(&mut recv)) => Some(answer?),
        () = transfer.begun() => None,
        () = ask_twice(peer, request) => None,
    };
    if let Some(answer) = answer {
        match Answer::parse(&answer)? {
            Answer::Refused(refusal) => return Err(AskError::Refused(refusal)),
            Answer::Stream { len } | Answer::Fec { len, .. } if len != expected => {
                return Err(AskError::Length { found: len, expected });
            }
            Answer::Stream { len } => {
                let memory = transfer.into_memory().ok_or(AskError::BothWays)?;
                return Ok((read_chunk(&peer.quic, &mut recv, len as usize, memory).await?, Came::ByStream));
            }
            Answer::Fec { symbol_len, .. } => {
                if !transfer.begin(usize::from(symbol_len))? {
                    return Err(AskError::BothWays);
                }
            }
        }
    }
    gather(&peer.quic, &transfer, &mut said, &mut send, &mut recv).await?;
    let _ = send.finish(); // the server stops waiting for repairs; if it has gone, all the better
    let (mut memory, range, tally) = transfer.take()?.finish(&mut codec.borrow_mut())?;
    memory.set_len(range.len());
    Ok((memory, Came::BySymbols(tally)))
}

/// What the server says on the stream of a transfer: an answer, and marks. Reading may be given up and taken up again.
#[derive(Default)]
struct Said {
    bytes: [u8; ANSWER_LEN],
    filled: usize,
    answered: bool,
}

impl Said {
    /// Reads until `len` bytes are here.
    async fn read(&mut self, recv: &mut quinn::RecvStream, len: usize) -> Result<(), AskError> {
        while self.filled < len {
            let space = self.bytes.get_mut(self.filled..len).unwrap_or_default();
            let ended = || AskError::Broken("the server gave up".to_owned());
            self.filled += recv.read(space).await.map_err(broken)?.ok_or_else(ended)?;
        }
        self.filled = 0;
        Ok(())
    }

    async fn answer(&mut self, recv: &mut quinn::RecvStream) -> Result<[u8; ANSWER_LEN], AskError> {
        self.read(recv, ANSWER_LEN).await?;
        self.answered = true;
        Ok(self.bytes)
    }

    /// Returns when there is a mark. The symbols have said what an answer before it says.
    async fn mark(&mut self, recv: &mut quinn::RecvStream) -> Result<(), AskError> {
        if !self.answered {
            match Answer::parse(&self.answer(recv).await?)? {
                Answer::Fec { .. } => {}
                Answer::Stream { .. } | Answer::Refused(_) => return Err(AskError::BothWays),
            }
        }
        self.read(recv, MARK_LEN).await
    }
}

/// On a path that loses packets, sends a request that nothing hides the loss of once more, as a datagram: QUIC would miss
/// it only after more than a round trip. Never returns.
async fn ask_twice(peer: &Outgoing, request: Request) {
    /// A moment later, so that one burst of losses does not take both.
    const PAUSE_MIN: Duration = Duration::from_millis(2);
    const PAUSE_MAX: Duration = Duration::from_millis(10);
    if request.soon && peer.symbols.is_lossy(Instant::now()) {
        tokio::time::sleep((peer.quic.rtt() / 8).clamp(PAUSE_MIN, PAUSE_MAX)).await;
        // Where datagrams cannot be sent, or not now, the request on the stream is the only one.
        let _ = peer.quic.send_datagram(Bytes::copy_from_slice(&request.to_bytes()));
    }
    std::future::pending().await
}

/// Reads a chunk of `len` bytes that follows an answer.
async fn read_chunk(
    quic: &quinn::Connection,
    recv: &mut quinn::RecvStream,
    len: usize,
    mut memory: Buffer,
) -> Result<Buffer, AskError> {
    /// Packets whose contents are taken at once: what the kernel hands over in one receive, about.
    const PIECES: usize = 48;
    let mut space = memory.space().get_mut(..len).unwrap_or_default();
    let read = async {
        let mut pieces: [Bytes; PIECES] = std::array::from_fn(|_| Bytes::new());
        while !space.is_empty() {
            let ended = || AskError::Broken("the stream ended within the chunk".to_owned());
            let count = recv.read_chunks(&mut pieces).await.map_err(broken)?.ok_or_else(ended)?;
            for piece in pieces.iter_mut().take(count) {
                let mut piece = std::mem::take(piece);
                piece.truncate(space.len()); // what comes after the chunk belongs to nothing
                let (to, rest) = std::mem::take(&mut space).split_at_mut(piece.len());
                to.copy_from_slice(&piece);
                space = rest;
            }
        }
        Ok(())
    };
    // One timer for all pieces.
    unstalled(quic, read).await?;
    memory.set_len(len);
    Ok(memory)
}

/// Waits until enough symbols are here, asking for those that are missing.
async fn gather(
    quic: &quinn::Connection,
    transfer: &Transfer,
    said: &mut Said,
    send: &mut quinn::SendStream,
    recv: &mut quinn::RecvStream,
) -> Result<(), AskError> {
    let gone = || AskError::Assembly(AssemblyError::GaveUp);
    loop {
        if transfer.with(|assembly| assembly.is_ready()).ok_or_else(gone)? {
            return Ok(());
        }
        while let Some(repair) = transfer.with(|assembly| assembly.poll_repair(Instant::now())).ok_or_else(gone)?? {
            let bytes: [u8; REPAIR_LEN] = Repair::to_bytes(repair);
            unstalled(quic, send.write_all(&bytes).map_err(broken)).await?;
        }
        let ask_at = transfer.with(|assembly| assembly.poll_timeout()).ok_or_else(gone)?;
        tokio::select! {
            () = transfer.news() => {}
            () = tokio::time::sleep_until(ask_at.into()) => {}
            marked = said.mark(recv) => {
                marked?;
                transfer.with(|assembly| assembly.handle_mark(Instant::now()));
            }
        }
    }
}
