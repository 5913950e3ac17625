//! Bytes to move: pseudo-random, so that no layer can compress or guess them, and the same for the same seed.

use std::io::{self, BufWriter, Write};
use std::path::Path;

/// `len` bytes of BLAKE3 output, keyed by `seed`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_file(path: &Path, len: u64, seed: u64) -> io::Result<()> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut stream = hasher.finalize_xof();
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(path)?);
    let mut block = vec![0; 1 << 16];
    let mut rest = len;
    while rest > 0 {
        stream.fill(&mut block);
        let part = usize::try_from(rest).unwrap_or(usize::MAX).min(block.len());
        file.write_all(block.get(..part).unwrap_or_default())?;
        rest -= part as u64;
    }
    file.flush()
}

/// The content id of a file: what `b3sum FILE` prints.
///
/// # Errors
/// When the file cannot be read.
pub fn content_id(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}
