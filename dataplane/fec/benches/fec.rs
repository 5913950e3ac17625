//! Every kernel that this CPU has against the crate `reed-solomon-erasure`. `cargo bench -p pangea-fec [-- --json]`
//!
//! With `--features bench-simd-accel` the crate is built with its C code. Figures are bytes of data (k symbols) for each
//! second; matrices for the shape are there before the clock starts, and every loss pattern is a new one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use pangea_fec::{ChunkShape, Codec, Kernel};
use reed_solomon_erasure::galois_8::ReedSolomon;

/// Each case is run this often, in turn with the others, and its best run counts: other guests of the host slow down
/// one or the other.
const ROUNDS: usize = 7;
const ROUND_TIME: Duration = Duration::from_millis(40);
const SYMBOL_LEN: usize = 1200;

/// A chunk, how many parity symbols its blocks have, and what to call it. As many data symbols are lost.
struct Shape {
    name: &'static str,
    chunk_len: usize,
    parity: usize,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "(64,8)", chunk_len: 64 * SYMBOL_LEN, parity: 8 },
    Shape { name: "(200,20)", chunk_len: 200 * SYMBOL_LEN, parity: 20 },
    // A whole chunk of the usual size: two blocks, of 110 and 109 data symbols.
    Shape { name: "256 KiB, 6 a block", chunk_len: 256 << 10, parity: 6 },
];

/// Something to measure: one call is one chunk.
type Run<'a> = Box<dyn FnMut() + 'a>;

struct Case<'a> {
    codec: &'static str,
    shape: &'a Shape,
    what: &'static str,
    run: Run<'a>,
    best: f64,
}

fn main() {
    let crate_name = if cfg!(feature = "bench-simd-accel") { "crate, simd-accel" } else { "crate" };
    let mut cases = Vec::new();
    for shape in &SHAPES {
        for kernel in Kernel::all() {
            cases.push(case(kernel.name(), shape, "encode", own_encode(shape, kernel)));
            cases.push(case(kernel.name(), shape, "decode", own_decode(shape, kernel)));
        }
        cases.push(case(crate_name, shape, "encode", crate_encode(shape)));
        cases.push(case(crate_name, shape, "decode", crate_decode(shape)));
    }
    for _ in 0..ROUNDS {
        for case in &mut cases {
            let (started, mut calls) = (Instant::now(), 0);
            while started.elapsed() < ROUND_TIME {
                (case.run)();
                calls += 1;
            }
            let rate = (calls * case.shape.chunk_len) as f64 / started.elapsed().as_secs_f64() / 1e9;
            case.best = case.best.max(rate);
        }
    }
    let json = std::env::args().any(|argument| argument == "--json");
    let mut fields = Vec::new();
    for case in &cases {
        let Case { codec, shape: Shape { name, .. }, what, best, .. } = case;
        let peer = cases
            .iter()
            .find(|other| other.codec == crate_name && other.what == *what && std::ptr::eq(other.shape, case.shape));
        let ratio = best / peer.unwrap().best;
        if json {
            fields.push(format!(
                "  {{\"what\": \"{what} {name}\", \"codec\": {codec:?}, \"value\": {best:.3}, \"unit\": \"GB/s\", \
                 \"of_crate\": {ratio:.2}}}"
            ));
        } else {
            println!("{what} {name:<20} {codec:<18} {best:>8.3} GB/s {ratio:>8.1} of the crate");
        }
    }
    if json {
        println!("[\n{}\n]", fields.join(",\n"));
    }
}

fn case<'a>(codec: &'static str, shape: &'a Shape, what: &'static str, run: Run<'a>) -> Case<'a> {
    let mut case = Case { codec, shape, what, run, best: 0.0 };
    // Once before the clock starts: makes matrices and touches memory.
    (case.run)();
    case
}

fn chunk(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn cut(shape: &Shape) -> ChunkShape {
    ChunkShape::new(shape.chunk_len, SYMBOL_LEN).unwrap()
}

/// Loss patterns that do not come again.
struct Losses(u64);

impl Losses {
    /// Marks `count` of `k` symbols.
    fn next(&mut self, k: usize, count: usize) -> [bool; 256] {
        let mut lost = [false; 256];
        let mut left = count;
        while left > 0 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let symbol = (self.0 >> 33) as usize % k;
            left -= usize::from(!lost[symbol]);
            lost[symbol] = true;
        }
        lost
    }
}

fn own_encode(shape: &Shape, kernel: Kernel) -> Run<'_> {
    let (chunk, cut, mut codec) = (chunk(shape.chunk_len), cut(shape), Codec::with_kernel(kernel));
    let mut parity = vec![0; shape.parity * SYMBOL_LEN];
    Box::new(move || {
        for block in 0..cut.blocks() {
            codec.encode(cut, black_box(&chunk), block, 0..shape.parity, &mut parity).unwrap();
            black_box(&parity);
        }
    })
}

fn own_decode(shape: &Shape, kernel: Kernel) -> Run<'_> {
    let (original, cut, mut codec) = (chunk(shape.chunk_len), cut(shape), Codec::with_kernel(kernel));
    let parity: Vec<Vec<u8>> = (0..cut.blocks())
        .map(|block| {
            let mut parity = vec![0; shape.parity * SYMBOL_LEN];
            codec.encode(cut, &original, block, 0..shape.parity, &mut parity).unwrap();
            parity
        })
        .collect();
    let parity: Vec<Vec<(usize, Vec<u8>)>> =
        parity.iter().map(|parity| parity.chunks(SYMBOL_LEN).map(<[u8]>::to_vec).enumerate().collect()).collect();
    let (mut chunk, mut losses, mut checked) = (original.clone(), Losses(1), false);
    Box::new(move || {
        for (block, parity) in parity.iter().enumerate() {
            let lost = losses.next(cut.block(block).unwrap().k, shape.parity);
            let parity: Vec<(usize, &[u8])> = parity.iter().map(|(number, bytes)| (*number, &bytes[..])).collect();
            if !checked {
                (0..lost.len()).filter(|s| lost[*s]).for_each(|s| chunk[cut.bytes(block, s).unwrap()].fill(0));
            }
            let rebuilt = codec.rebuild(cut, black_box(&mut chunk), block, |symbol| !lost[symbol], &parity);
            assert_eq!(rebuilt, Ok(shape.parity));
        }
        assert!(checked || chunk == original);
        checked = true;
    })
}

/// Data symbols of each block, padded, as the crate wants them.
fn shards(shape: &Shape) -> Vec<Vec<Vec<u8>>> {
    let (mut chunk, cut) = (chunk(shape.chunk_len), cut(shape));
    chunk.resize(cut.data_symbols() * SYMBOL_LEN, 0);
    let symbols: Vec<Vec<u8>> = chunk.chunks(SYMBOL_LEN).map(<[u8]>::to_vec).collect();
    let block = |block| {
        let block = cut.block(block).unwrap();
        symbols[block.first..][..block.k].to_vec()
    };
    (0..cut.blocks()).map(block).collect()
}

fn crate_encode(shape: &Shape) -> Run<'_> {
    let blocks = shards(shape);
    let codes: Vec<ReedSolomon> =
        blocks.iter().map(|data| ReedSolomon::new(data.len(), shape.parity).unwrap()).collect();
    let mut parity = vec![vec![0; SYMBOL_LEN]; shape.parity];
    Box::new(move || {
        for (code, data) in codes.iter().zip(&blocks) {
            code.encode_sep(black_box(data), &mut parity).unwrap();
            black_box(&parity);
        }
    })
}

fn crate_decode(shape: &Shape) -> Run<'_> {
    let blocks = shards(shape);
    let codes: Vec<ReedSolomon> =
        blocks.iter().map(|data| ReedSolomon::new(data.len(), shape.parity).unwrap()).collect();
    let mut received: Vec<Vec<Option<Vec<u8>>>> = blocks
        .iter()
        .zip(&codes)
        .map(|(data, code)| {
            let mut parity = vec![vec![0; SYMBOL_LEN]; shape.parity];
            code.encode_sep(data, &mut parity).unwrap();
            data.iter().cloned().chain(parity).map(Some).collect()
        })
        .collect();
    let (mut losses, mut checked) = (Losses(1), false);
    Box::new(move || {
        for ((code, shards), data) in codes.iter().zip(&mut received).zip(&blocks) {
            let lost = losses.next(data.len(), shape.parity);
            for (shard, _) in shards.iter_mut().zip(lost).filter(|(_, lost)| *lost) {
                *shard = None;
            }
            code.reconstruct_data(black_box(shards)).unwrap();
            assert!(checked || shards.iter().zip(data).all(|(shard, data)| shard.as_ref() == Some(data)));
        }
        checked = true;
    })
}
