//! A content as something to read and seek in, also while it is still arriving.

use std::io::{self, Read, Seek, SeekFrom};

use pangea_ipc::content::{CHUNK_SIZE, ChunkIndex};

use crate::transfer::Transfer;

/// Chunks that are asked for ahead of the one that is read: 2 MiB, enough to keep a ring busy, little enough to waste.
const READ_AHEAD: u32 = 8;

/// Reads and seeks. Every byte was verified before it gets here.
pub struct Reader {
    transfer: Transfer,
    position: u64,
    /// The chunk in `space`.
    chunk: Option<ChunkIndex>,
    space: Vec<u8>,
}

impl Reader {
    pub(crate) fn new(transfer: Transfer) -> Self {
        Self { transfer, position: 0, chunk: None, space: Vec::new() }
    }

    /// Bytes in the content.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.transfer.size()
    }

    /// The content's name; empty when it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.transfer.name()
    }
}

impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.size() || out.is_empty() {
            return Ok(0);
        }
        let chunk = u32::try_from(self.position / u64::from(CHUNK_SIZE)).unwrap_or(u32::MAX);
        if self.chunk != Some(chunk) {
            self.chunk = None;
            self.transfer.chunk(chunk, READ_AHEAD, &mut self.space).map_err(io::Error::other)?;
            self.chunk = Some(chunk);
        }
        let within = usize::try_from(self.position % u64::from(CHUNK_SIZE)).unwrap_or(0);
        let rest = self.space.get(within..).unwrap_or_default();
        let len = rest.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        self.position += len as u64;
        Ok(len)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.size().checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        let before_start = || io::Error::new(io::ErrorKind::InvalidInput, "seek to before the first byte");
        self.position = target.ok_or_else(before_start)?;
        Ok(self.position)
    }
}
