//! Chunk geometry and the manifest.
//!
//! A content is cut into chunks of [`CHUNK_SIZE`] bytes; the last may be short. Chunk `i` is the BLAKE3 subtree that
//! starts at byte `i * CHUNK_SIZE`, and its chaining value is what its bytes are checked against. The manifest is the
//! list of these values: merging them up the tree gives the content id, so a manifest proves itself and may come from
//! anyone. This is the only file that uses BLAKE3's hazardous API.

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::ids::ContentId;

/// Bytes in a chunk, but for the last: 256 KiB. A power of two, so that a chunk is a whole BLAKE3 subtree.
pub const CHUNK_SIZE: u32 = 256 * 1024;

/// Chunks in a content at most: 2^20, that is 256 GiB; its manifest is 32 MiB.
pub const CHUNKS_MAX: u32 = 1 << 20;

/// Bytes in a content at most.
pub const CONTENT_SIZE_MAX: u64 = CHUNKS_MAX as u64 * CHUNK_SIZE as u64;

/// Bytes in a chaining value.
pub const CHAINING_VALUE_LEN: usize = 32;

/// Chaining values on one page of a manifest, but for the last: as many bytes as a chunk.
pub const MANIFEST_PAGE: u32 = CHUNK_SIZE / CHAINING_VALUE_LEN as u32;

/// The chaining value of one chunk's subtree; of a content of at most one chunk, its plain hash.
pub type ChainingValue = [u8; CHAINING_VALUE_LEN];

const FILE_MAGIC: &[u8; 8] = b"PGMANIF1";
const FILE_HEADER_LEN: usize = 16;

/// Number of a chunk in its content, from 0.
pub type ChunkIndex = u32;

/// Why a manifest or a chunk is not what it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// Larger than this version can carry.
    #[error("content of {size} bytes is larger than the most this version carries ({CONTENT_SIZE_MAX} bytes)")]
    TooLarge {
        /// Bytes claimed.
        size: u64,
    },
    /// The number of chaining values does not fit the size.
    #[error("manifest for {size} bytes has {found} chaining values; it must have {expected}")]
    Count {
        /// Bytes claimed.
        size: u64,
        /// Values found.
        found: usize,
        /// Values such a content has.
        expected: u32,
    },
    /// Merging the chaining values does not give the content id.
    #[error("manifest does not belong to content {id}: its chaining values merge to {found}")]
    WrongManifest {
        /// The content asked for.
        id: ContentId,
        /// What the values merge to.
        found: ContentId,
    },
    /// The stored form is damaged.
    #[error("the file is not a manifest")]
    NotAManifest,
    /// A chunk's bytes do not have the chaining value in the manifest.
    #[error("chunk {chunk} of content {id} does not match its manifest")]
    WrongChunk {
        /// The content.
        id: ContentId,
        /// The chunk.
        chunk: ChunkIndex,
    },
}

/// How a content of a given size is cut. Valid by construction: at most [`CONTENT_SIZE_MAX`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    size: u64,
}

impl Geometry {
    /// # Errors
    /// [`ContentError::TooLarge`].
    pub fn new(size: u64) -> Result<Self, ContentError> {
        if size > CONTENT_SIZE_MAX {
            return Err(ContentError::TooLarge { size });
        }
        Ok(Self { size })
    }

    /// Bytes in the content.
    #[must_use]
    pub fn size(self) -> u64 {
        self.size
    }

    /// Chunks in the content: 1 for an empty content too, whose one chunk has no bytes.
    #[must_use]
    pub fn chunk_count(self) -> u32 {
        let count = self.size.div_ceil(u64::from(CHUNK_SIZE)).max(1);
        u32::try_from(count).unwrap_or(CHUNKS_MAX) // size <= CONTENT_SIZE_MAX, so it always fits
    }

    /// Pages of its manifest, of [`MANIFEST_PAGE`] values each: at least 1.
    #[must_use]
    pub fn manifest_pages(self) -> u32 {
        self.chunk_count().div_ceil(MANIFEST_PAGE)
    }

    /// The chunks whose values are on a page of its manifest; empty for a page that it does not have.
    #[must_use]
    pub fn manifest_page(self, page: u32) -> std::ops::Range<ChunkIndex> {
        let count = self.chunk_count();
        page.saturating_mul(MANIFEST_PAGE).min(count)..page.saturating_add(1).saturating_mul(MANIFEST_PAGE).min(count)
    }

    /// Where a chunk starts. Beyond the content for a chunk that it does not have.
    #[must_use]
    pub fn chunk_offset(self, chunk: ChunkIndex) -> u64 {
        u64::from(chunk) * u64::from(CHUNK_SIZE)
    }

    /// Bytes in a chunk: [`CHUNK_SIZE`], fewer for the last, 0 for a chunk that the content does not have.
    #[must_use]
    pub fn chunk_len(self, chunk: ChunkIndex) -> u32 {
        let rest = self.size.saturating_sub(self.chunk_offset(chunk)).min(u64::from(CHUNK_SIZE));
        u32::try_from(rest).unwrap_or(CHUNK_SIZE)
    }

    /// The chunks that hold the bytes `start..end`, clipped to the content; empty when the byte range is.
    #[must_use]
    pub fn chunks_of(self, start: u64, end: u64) -> std::ops::Range<ChunkIndex> {
        let end = end.min(self.size);
        if start >= end {
            return 0..0;
        }
        let chunk = |n: u64| u32::try_from(n).unwrap_or(CHUNKS_MAX);
        chunk(start / u64::from(CHUNK_SIZE))..chunk(end.div_ceil(u64::from(CHUNK_SIZE)))
    }
}

/// The chaining value of a chunk's bytes. `single`: the content has only this chunk, so its value is the root hash.
#[must_use]
pub fn chaining_value(chunk: ChunkIndex, single: bool, bytes: &[u8]) -> ChainingValue {
    if single {
        return blake3::hash(bytes).into();
    }
    let mut hasher = Hasher::new();
    hasher.set_input_offset(u64::from(chunk) * u64::from(CHUNK_SIZE));
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// Size and chaining values of a content. A value of this type is proven: its values merge to its id.
#[derive(Clone, PartialEq, Eq)]
pub struct Manifest {
    id: ContentId,
    geometry: Geometry,
    values: Vec<ChainingValue>,
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Manifest({}, {} bytes)", self.id, self.geometry.size)
    }
}

impl Manifest {
    /// Proves a manifest that came from outside.
    ///
    /// # Errors
    /// When the size is too large, the count of values does not fit it or the values do not merge to `id`.
    pub fn prove(id: ContentId, size: u64, values: Vec<ChainingValue>) -> Result<Self, ContentError> {
        let manifest = Self::seal(size, values)?;
        if manifest.id != id {
            return Err(ContentError::WrongManifest { id, found: manifest.id });
        }
        Ok(manifest)
    }

    /// Makes the manifest of bytes that this process hashed itself; the id is what the values merge to.
    ///
    /// # Errors
    /// When the size is too large or the count of values does not fit it.
    pub fn seal(size: u64, values: Vec<ChainingValue>) -> Result<Self, ContentError> {
        let geometry = Geometry::new(size)?;
        let expected = geometry.chunk_count();
        if values.len() != expected as usize {
            return Err(ContentError::Count { size, found: values.len(), expected });
        }
        let id = ContentId(merge_root(&values, size));
        Ok(Self { id, geometry, values })
    }

    /// The form in which it is stored: magic, size (u64, little-endian), values.
    #[must_use]
    pub fn to_file_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FILE_HEADER_LEN + self.values.len() * CHAINING_VALUE_LEN);
        bytes.extend(FILE_MAGIC);
        bytes.extend(self.geometry.size.to_le_bytes());
        bytes.extend(self.values.as_flattened());
        bytes
    }

    /// Reads and proves the stored form.
    ///
    /// # Errors
    /// When it is not a manifest, or of another content.
    pub fn from_file_bytes(id: ContentId, bytes: &[u8]) -> Result<Self, ContentError> {
        let fields = bytes.strip_prefix(FILE_MAGIC).and_then(|rest| rest.split_first_chunk::<8>());
        let (size, values) = fields.ok_or(ContentError::NotAManifest)?;
        let (values, rest) = values.as_chunks::<CHAINING_VALUE_LEN>();
        if !rest.is_empty() {
            return Err(ContentError::NotAManifest);
        }
        Self::prove(id, u64::from_le_bytes(*size), values.to_vec())
    }

    /// The content it belongs to.
    #[must_use]
    pub fn id(&self) -> ContentId {
        self.id
    }

    /// How the content is cut.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// One value for each chunk, in order.
    #[must_use]
    pub fn values(&self) -> &[ChainingValue] {
        &self.values
    }

    /// Checks a chunk's bytes.
    ///
    /// # Errors
    /// [`ContentError::WrongChunk`] when they have the wrong length or value, or the content has no such chunk.
    pub fn check(&self, chunk: ChunkIndex, bytes: &[u8]) -> Result<(), ContentError> {
        let single = self.values.len() == 1;
        let right = self.values.get(chunk as usize).is_some_and(|expected| {
            bytes.len() == self.geometry.chunk_len(chunk) as usize && chaining_value(chunk, single, bytes) == *expected
        });
        if right { Ok(()) } else { Err(ContentError::WrongChunk { id: self.id, chunk }) }
    }
}

/// Root hash of a content of `size` bytes from the values of its chunks (at least one, count fitting `size`).
fn merge_root(values: &[ChainingValue], size: u64) -> [u8; 32] {
    if let [only] = values {
        return *only; // a content of one chunk: its value is the plain hash already
    }
    let (left, right) = split(values, size);
    merge_subtrees_root(&merge(left.0, left.1), &merge(right.0, right.1), Mode::Hash).into()
}

fn merge(values: &[ChainingValue], size: u64) -> ChainingValue {
    if let [only] = values {
        return *only;
    }
    let (left, right) = split(values, size);
    merge_subtrees_non_root(&merge(left.0, left.1), &merge(right.0, right.1), Mode::Hash)
}

type Subtree<'a> = (&'a [ChainingValue], u64);

/// Cuts a subtree of more than one chunk where BLAKE3 does: the left part is the largest power of two below `size`.
fn split(values: &[ChainingValue], size: u64) -> (Subtree<'_>, Subtree<'_>) {
    let left_size = left_subtree_len(size);
    let chunks = usize::try_from(left_size / u64::from(CHUNK_SIZE)).unwrap_or(values.len());
    let (left, right) = values.split_at(chunks.min(values.len()));
    ((left, left_size), (right, size - left_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_u32;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect()
    }

    #[test]
    fn pages_cover_a_manifest() {
        for (size, pages) in [(0, &[(0, 1)][..]), (1 << 31, &[(0, 8192)]), ((1 << 31) + 1, &[(0, 8192), (8192, 8193)])]
        {
            let geometry = Geometry::new(size).unwrap();
            assert_eq!(geometry.manifest_pages() as usize, pages.len());
            let found = (0..geometry.manifest_pages()).map(|page| geometry.manifest_page(page));
            let found: Vec<_> = found.map(|chunks| (chunks.start, chunks.end)).collect();
            assert_eq!(found, pages, "{size}");
            assert!(geometry.manifest_page(geometry.manifest_pages()).is_empty());
            assert!(geometry.manifest_page(u32::MAX).is_empty());
        }
    }

    fn manifest_of(data: &[u8]) -> Manifest {
        let count = Geometry::new(data.len() as u64).unwrap().chunk_count();
        let values = (0..count)
            .map(|i| {
                let start = i as usize * CHUNK_SIZE as usize;
                let end = data.len().min(start + CHUNK_SIZE as usize);
                chaining_value(i, count == 1, &data[start..end])
            })
            .collect();
        Manifest::seal(data.len() as u64, values).unwrap()
    }

    #[test]
    fn the_manifest_merges_to_the_plain_blake3_hash_at_every_awkward_size() {
        let c = CHUNK_SIZE as usize;
        for len in [0, 1, 1023, 1024, 1025, c - 1, c, c + 1, 2 * c, 3 * c, 3 * c + 7, 4 * c, 5 * c - 1, 21 * c + 17] {
            let data = bytes(len);
            let manifest = manifest_of(&data);
            assert_eq!(manifest.id().0, *blake3::hash(&data).as_bytes(), "size {len}");
            let proven = Manifest::prove(manifest.id(), len as u64, manifest.values().to_vec());
            assert_eq!(proven.as_ref(), Ok(&manifest), "size {len}");
            let stored = manifest.to_file_bytes();
            assert_eq!(Manifest::from_file_bytes(manifest.id(), &stored).as_ref(), Ok(&manifest), "size {len}");
            assert!(Manifest::from_file_bytes(manifest.id(), &stored[..stored.len() - 1]).is_err(), "size {len}");
        }
    }

    #[test]
    fn a_chunk_that_differs_in_one_bit_place_or_length_is_refused() {
        let mut data = bytes(2 * CHUNK_SIZE as usize + 100);
        let manifest = manifest_of(&data);
        let c = CHUNK_SIZE as usize;
        assert_eq!(manifest.check(0, &data[..c]), Ok(()));
        assert_eq!(manifest.check(2, &data[2 * c..]), Ok(()));
        assert!(manifest.check(1, &data[..c]).is_err(), "right bytes in the wrong place");
        assert!(manifest.check(2, &data[2 * c..2 * c + 99]).is_err(), "one byte short");
        assert!(manifest.check(3, &[]).is_err(), "no such chunk");
        data[5] ^= 1;
        assert!(manifest.check(0, &data[..c]).is_err());
    }

    #[test]
    fn a_manifest_of_something_else_is_refused() {
        let manifest = manifest_of(&bytes(3 * CHUNK_SIZE as usize));
        let size = manifest.geometry().size();
        let mut values = manifest.values().to_vec();
        values[1][0] ^= 1;
        let wrong = Manifest::prove(manifest.id(), size, values);
        assert!(matches!(wrong, Err(ContentError::WrongManifest { .. })));
        let short = Manifest::prove(manifest.id(), size, manifest.values()[..2].to_vec());
        assert!(matches!(short, Err(ContentError::Count { found: 2, expected: 3, .. })));
        // The size is part of the proof: chunk ends do not shift without changing the merged value.
        let shorter = Manifest::prove(manifest.id(), size - 1, manifest.values().to_vec()).unwrap();
        assert!(shorter.check(2, &bytes(3 * CHUNK_SIZE as usize)[2 * CHUNK_SIZE as usize..]).is_err());
        assert!(matches!(Geometry::new(CONTENT_SIZE_MAX + 1), Err(ContentError::TooLarge { .. })));
    }

    #[test]
    fn geometry_covers_each_byte_once() {
        let c = u64::from(CHUNK_SIZE);
        for size in [0, 1, c - 1, c, c + 1, 10 * c + 3] {
            let geometry = Geometry::new(size).unwrap();
            let total: u64 = (0..geometry.chunk_count()).map(|i| u64::from(geometry.chunk_len(i))).sum();
            assert_eq!(total, size);
            assert_eq!(geometry.chunk_len(geometry.chunk_count()), 0);
        }
        let geometry = Geometry::new(10 * c + 3).unwrap();
        assert_eq!(geometry.chunks_of(0, u64::MAX), 0..11);
        assert_eq!(geometry.chunks_of(c - 1, c + 1), 0..2);
        assert_eq!(geometry.chunks_of(c, 2 * c), 1..2);
        assert_eq!(geometry.chunks_of(20 * c, 30 * c), 0..0);
        assert_eq!(geometry.chunks_of(5, 5), 0..0);
    }
}
