//! One chunk from a peer: the question, and the chunk by stream or put together from symbols. Not yet checked.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use pangea_dataplane_core::assembly::{Assembly, AssemblyError, Tally};
use pangea_dataplane_core::fetch::Failed;
use pangea_dataplane_core::frame::{
    ANSWER_LEN, Answer, FrameError, MARK_LEN, Mode, REPAIR_LEN, Refusal, Repair, Request, SYMBOL_HEADER_LEN,
};
use pangea_fec::Codec;
use pangea_ipc::content::{ChunkIndex, Geometry};
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
            Self::Protocol(_) | Self::Length { .. } | Self::Assembly(AssemblyError::Shape(_)) => Failed::BadBytes,
            Self::Broken(_) | Self::Stalled | Self::Assembly(_) => Failed::Transient,
        }
    }
}

fn broken(error: impl std::fmt::Display) -> AskError {
    AskError::Broken(error.to_string())
}

async fn unstalled<T, E: std::fmt::Display>(io: impl Future<Output = Result<T, E>>) -> Result<T, AskError> {
    match timeout(STALL, io).await {
        Ok(result) => result.map_err(broken),
        Err(_) => Err(AskError::Stalled),
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The content.
    pub content: ContentId,
    /// How it is cut.
    pub geometry: Geometry,
    /// The chunk.
    pub chunk: ChunkIndex,
    /// How it is wanted.
    pub mode: Mode,
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

/// Asks for a chunk and waits for it, in `buffer`.
///
/// # Errors
/// Says what went wrong, and by that whose fault it is.
pub async fn ask(
    peer: &Outgoing,
    question: Question,
    mut buffer: Buffer,
    codec: &RefCell<Codec>,
) -> Result<(Buffer, Came), AskError> {
    let expected = question.geometry.chunk_len(question.chunk);
    let transfer = peer.symbols.expect();
    let room = peer.quic.max_datagram_size().unwrap_or(0).saturating_sub(SYMBOL_HEADER_LEN);
    let request = Request {
        content: question.content,
        size: question.geometry.size(),
        chunk: question.chunk,
        mode: question.mode,
        transfer: transfer.number(),
        symbol_len_max: u16::try_from(room).unwrap_or(u16::MAX),
        overhead_max_pct: question.overhead_max_pct,
    };
    let (mut send, mut recv) = unstalled(peer.quic.open_bi()).await?;
    send.write_all(&request.to_bytes()).await.map_err(broken)?;
    let mut answer = [0; ANSWER_LEN];
    unstalled(recv.read_exact(&mut answer)).await?;
    match Answer::parse(&answer)? {
        Answer::Refused(refusal) => Err(AskError::Refused(refusal)),
        Answer::Stream { len } | Answer::Fec { len, .. } if len != expected => {
            Err(AskError::Length { found: len, expected })
        }
        Answer::Stream { len } => {
            drop(transfer);
            let mut filled = 0;
            while filled < len as usize {
                let space = buffer.space().get_mut(filled..len as usize).unwrap_or_default();
                match unstalled(recv.read(space)).await? {
                    Some(more) => filled += more,
                    None => return Err(AskError::Broken("the stream ended within the chunk".to_owned())),
                }
            }
            buffer.set_len(filled);
            Ok((buffer, Came::ByStream))
        }
        Answer::Fec { len, symbol_len } => {
            let rtt = peer.quic.rtt();
            let assembly = Assembly::new(len as usize, usize::from(symbol_len), buffer, rtt, Instant::now())?;
            transfer.begin(assembly);
            gather(&transfer, &mut send, &mut recv).await?;
            let _ = send.finish(); // the server stops waiting for repairs; if it has gone, all the better
            let (mut buffer, range, tally) = transfer.take()?.finish(&mut codec.borrow_mut())?;
            buffer.set_len(range.len());
            Ok((buffer, Came::BySymbols(tally)))
        }
    }
}

/// Waits until enough symbols are here, asking for those that are missing.
async fn gather(
    transfer: &Transfer,
    send: &mut quinn::SendStream,
    recv: &mut quinn::RecvStream,
) -> Result<(), AskError> {
    let gone = || AskError::Assembly(AssemblyError::GaveUp);
    let mut mark = [0; MARK_LEN];
    let mut marked = 0;
    loop {
        if transfer.with(|assembly| assembly.is_ready()).ok_or_else(gone)? {
            return Ok(());
        }
        while let Some(repair) = transfer.with(|assembly| assembly.poll_repair(Instant::now())).ok_or_else(gone)?? {
            let bytes: [u8; REPAIR_LEN] = Repair::to_bytes(repair);
            unstalled(send.write_all(&bytes)).await?;
        }
        let ask_at = transfer.with(|assembly| assembly.poll_timeout()).ok_or_else(gone)?;
        tokio::select! {
            () = transfer.ready() => {}
            () = tokio::time::sleep_until(ask_at.into()) => {}
            // Reading is interrupted and taken up again where it stood, since `marked` remembers.
            read = recv.read(mark.get_mut(marked..).unwrap_or_default()) => match read.map_err(broken)? {
                None => return Err(AskError::Broken("the server gave up".to_owned())),
                Some(more) => {
                    marked += more;
                    if marked == MARK_LEN {
                        marked = 0;
                        transfer.with(|assembly| assembly.handle_mark(Instant::now()));
                    }
                }
            }
        }
    }
}
