//! The loop that all kernels share.
//!
//! A tile is some output rows at a few vectors' width. Its sums stay in registers while all source symbols pass by once,
//! so each byte read is used for several rows and each byte of output is written once and never read. Tiles are taken
//! from strips that are narrow enough for the sources' share of a strip to stay in the cache until its last row.

use crate::matrix::Columns;

/// What is to be multiplied. Whoever runs it has checked what is said here.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    /// A column for each source, a row for each output.
    pub(super) matrix: Columns<'a>,
    /// All of `len` bytes.
    pub(super) sources: &'a [&'a [u8]],
    /// Bytes of each source and output; at least as many as a tile is wide.
    pub(super) len: usize,
}

/// Rows of the highest tile.
const ROWS_MAX: usize = 8;

/// Bytes of all sources together in one strip: most of them stay in a first-level cache of 32 KiB, all in any second
/// level.
const STRIP: usize = 96 << 10;

/// A vector of bytes and what is done with it. All methods are inlined into a function that has the instructions.
///
/// # Safety
/// Implementers read and write `WIDTH` bytes at the pointers given. Callers run on a CPU that has the instructions, and
/// give pointers to that many bytes.
pub(super) unsafe trait Lanes {
    /// Sums of products.
    type Sum: Copy;
    /// Bytes of a source, prepared for being multiplied.
    type Source: Copy;
    /// A coefficient, prepared for multiplying with it.
    type Factor: Copy;

    /// Bytes in a vector.
    const WIDTH: usize;
    /// There are registers enough for two sources at a time.
    const PAIRS: bool;

    unsafe fn zero() -> Self::Sum;
    unsafe fn load(from: *const u8) -> Self::Source;
    unsafe fn factor(coefficient: u8) -> Self::Factor;
    unsafe fn add_product(sum: Self::Sum, factor: Self::Factor, source: Self::Source) -> Self::Sum;

    /// Two products at once, for CPUs that can add both at once.
    #[inline(always)]
    unsafe fn add_products(
        sum: Self::Sum,
        first: (Self::Factor, Self::Source),
        second: (Self::Factor, Self::Source),
    ) -> Self::Sum {
        // SAFETY: what the caller promised.
        let sum = unsafe { Self::add_product(sum, first.0, first.1) };
        // SAFETY: as above.
        unsafe { Self::add_product(sum, second.0, second.1) }
    }

    unsafe fn store(to: *mut u8, sum: Self::Sum);
}

/// Runs the job in tiles of at most `ROWS` rows (and never more than [`ROWS_MAX`]) and `VECTORS` vectors.
///
/// # Safety
/// The CPU has the instructions of `L`. All sources and outputs have `job.len` bytes, at least `VECTORS * L::WIDTH`; the
/// matrix has a row for each output and a column for each source.
#[inline(always)]
pub(super) unsafe fn run<L: Lanes, const ROWS: usize, const VECTORS: usize>(job: Job<'_>, outputs: &mut [&mut [u8]]) {
    const { assert!(ROWS <= ROWS_MAX) };
    let width = VECTORS * L::WIDTH;
    debug_assert!(job.len >= width);
    let strip = (STRIP / job.sources.len().max(1)).max(1).next_multiple_of(width);
    // Tiles as equal in height as can be.
    let groups = outputs.len().div_ceil(ROWS);
    let (height, higher) = (outputs.len() / groups.max(1), outputs.len() % groups.max(1));
    for start in (0..job.len).step_by(strip) {
        let end = job.len.min(start + strip);
        let (mut rest, mut row) = (&mut *outputs, 0);
        for group in 0..groups {
            let rows = height + usize::from(group < higher);
            let (outputs, below) = rest.split_at_mut(rows);
            rest = below;
            let job = Job { matrix: job.matrix.below(row), ..job };
            row += rows;
            for at in (start..end).step_by(width) {
                // The last tile lies over its neighbour instead of beyond the end.
                let at = at.min(job.len - width);
                // SAFETY: the CPU is that the caller promised, `at + width <= job.len`, and `outputs` are the rows that
                // the matrix begins with now.
                unsafe { tile_of::<L, VECTORS>(job, outputs, at) };
            }
        }
    }
}

/// # Safety
/// As of [`tile`].
#[inline(always)]
unsafe fn tile_of<L: Lanes, const VECTORS: usize>(job: Job<'_>, outputs: &mut [&mut [u8]], at: usize) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match outputs.len() {
                // SAFETY: what the caller promised.
                $($rows => unsafe { tile::<L, $rows, VECTORS>(job, outputs, at) },)*
                rows => debug_assert_eq!(rows, 0),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8);
}

/// Computes `ROWS` outputs from byte `at` on, `VECTORS * L::WIDTH` bytes of each.
///
/// # Safety
/// The CPU has the instructions of `L`. Sources and outputs go on for so many bytes from `at`; the matrix has at least
/// `ROWS` rows and a column for each source.
#[inline(always)]
unsafe fn tile<L: Lanes, const ROWS: usize, const VECTORS: usize>(job: Job<'_>, outputs: &mut [&mut [u8]], at: usize) {
    debug_assert!(at + VECTORS * L::WIDTH <= job.len && outputs.len() == ROWS);
    // SAFETY: the CPU is that the caller promised.
    let zero = unsafe { L::zero() };
    let mut sums = [[zero; VECTORS]; ROWS];
    let mut column = job.matrix.bytes.as_ptr();
    let (pairs, single) = if L::PAIRS { job.sources.as_chunks::<2>() } else { (&[][..], job.sources) };
    for [first, second] in pairs {
        debug_assert!(first.len() == job.len && second.len() == job.len);
        // SAFETY: sources go on for so many vectors from `at`.
        let first = unsafe { load_all::<L, VECTORS>(first, at) };
        // SAFETY: as above.
        let second = unsafe { load_all::<L, VECTORS>(second, at) };
        let next = column.wrapping_add(job.matrix.stride);
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the columns of both sources have `ROWS` rows.
            let factor = unsafe { load_factor::<L>(column, row) };
            // SAFETY: as above.
            let other = unsafe { load_factor::<L>(next, row) };
            for ((sum, first), second) in sums.iter_mut().zip(first).zip(second) {
                // SAFETY: the CPU is that the caller promised.
                *sum = unsafe { L::add_products(*sum, (factor, first), (other, second)) };
            }
        }
        column = next.wrapping_add(job.matrix.stride);
    }
    for source in single {
        debug_assert_eq!(source.len(), job.len);
        // SAFETY: the source goes on for so many vectors from `at`.
        let source = unsafe { load_all::<L, VECTORS>(source, at) };
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the column of this source has `ROWS` rows.
            let factor = unsafe { load_factor::<L>(column, row) };
            for (sum, source) in sums.iter_mut().zip(source) {
                // SAFETY: the CPU is that the caller promised.
                *sum = unsafe { L::add_product(*sum, factor, source) };
            }
        }
        column = column.wrapping_add(job.matrix.stride);
    }
    for (output, sums) in outputs.iter_mut().zip(sums) {
        debug_assert_eq!(output.len(), job.len);
        for (vector, sum) in sums.into_iter().enumerate() {
            // SAFETY: within the output.
            let to = unsafe { output.as_mut_ptr().add(at + vector * L::WIDTH) };
            // SAFETY: the output goes on for a vector from there.
            unsafe { L::store(to, sum) };
        }
    }
}

/// # Safety
/// The CPU has the instructions of `L`, and `source` goes on for `VECTORS * L::WIDTH` bytes from `at`.
#[inline(always)]
unsafe fn load_all<L: Lanes, const VECTORS: usize>(source: &[u8], at: usize) -> [L::Source; VECTORS] {
    // SAFETY: within what the caller promised.
    let from = unsafe { source.as_ptr().add(at) };
    // SAFETY: there is a vector.
    let first = unsafe { L::load(from) };
    let mut all = [first; VECTORS];
    for (vector, source) in all.iter_mut().enumerate().skip(1) {
        // SAFETY: within what the caller promised.
        let from = unsafe { from.add(vector * L::WIDTH) };
        // SAFETY: as above, a vector's bytes.
        *source = unsafe { L::load(from) };
    }
    all
}

/// # Safety
/// The CPU has the instructions of `L`, and `column` points to more than `row` bytes.
#[inline(always)]
unsafe fn load_factor<L: Lanes>(column: *const u8, row: usize) -> L::Factor {
    // SAFETY: within what the caller promised.
    let coefficient = unsafe { column.add(row) };
    // SAFETY: as above.
    let coefficient = unsafe { coefficient.read() };
    // SAFETY: the CPU is that the caller promised.
    unsafe { L::factor(coefficient) }
}
