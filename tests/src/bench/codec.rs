//! The erasure code on one core: every kernel that this CPU has, the crate `reed-solomon-erasure` and ISA-L in turns.
//!
//! With `--features bench-simd-accel` the crate is built with its C code. Figures are bytes of data (k symbols) for each
//! second; matrices for the shape are there before the clock starts, and every loss pattern is a new one.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use pangea_fec::{ChunkShape, Codec, Kernel};
use reed_solomon_erasure::galois_8::ReedSolomon;
use tempfile::TempDir;

use super::report::{Goal, Row};
use super::{Bench, goal_when};

/// Each is measured this often, in turn with the others, and its best run counts: other guests of the host slow down one
/// or the other.
const ROUNDS: usize = 7;
const ROUND_TIME: Duration = Duration::from_millis(40);
const SYMBOL_LEN: usize = 1200;

/// What the crate is called: with its C code it is another peer.
const CRATE: &str = if cfg!(feature = "bench-simd-accel") { "crate, its C code" } else { "crate" };
const ISAL: &str = "ISA-L";

/// A chunk, how many parity symbols its blocks have, and what to call it. As many data symbols are lost. Goals: of
/// encoding and of decoding over the crate with its C code.
struct Shape {
    name: &'static str,
    chunk_len: usize,
    parity: usize,
    over_crate: [f64; 2],
}

const SHAPES: [Shape; 3] = [
    Shape { name: "(64,8)", chunk_len: 64 * SYMBOL_LEN, parity: 8, over_crate: [4.0, 5.0] },
    Shape { name: "(200,20)", chunk_len: 200 * SYMBOL_LEN, parity: 20, over_crate: [4.0, 30.0] },
    // A whole chunk of the usual size: two blocks, of 110 and 109 data symbols.
    Shape { name: "256 KiB, 6 a block", chunk_len: 256 << 10, parity: 6, over_crate: [4.0, 5.0] },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Encode,
    Decode,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Encode => "encode",
            Self::Decode => "decode",
        }
    }
}

/// Something to measure: works on as many chunks as a round has time for, and says how many bytes of data a second that
/// was.
type Run<'a> = Box<dyn FnMut() -> f64 + 'a>;

struct Runner<'a> {
    who: &'static str,
    shape: &'a Shape,
    work: Work,
    run: Run<'a>,
    /// GB/s of the best round.
    best: f64,
}

/// Measures the code.
pub fn codec(bench: &mut Bench) {
    let isal = Isal::find().map(std::cell::RefCell::new);
    if isal.is_none() {
        eprintln!("ISA-L is not to be had here (a C compiler and libisal; see docs/BENCHMARKS.md): not compared");
    }
    let mut runners: Vec<Runner<'_>> = Vec::new();
    for shape in &SHAPES {
        let mut add = |who, work, run| runners.push(Runner { who, shape, work, run, best: 0.0 });
        for kernel in Kernel::all() {
            add(kernel.name(), Work::Encode, own_encode(shape, kernel));
            add(kernel.name(), Work::Decode, own_decode(shape, kernel));
        }
        add(CRATE, Work::Encode, crate_encode(shape));
        add(CRATE, Work::Decode, crate_decode(shape));
        // It has no chunks of several blocks.
        if let Some(isal) = isal.as_ref().filter(|_| cut(shape).blocks() == 1) {
            add(ISAL, Work::Encode, Box::new(|| isal.borrow_mut().encode(shape)));
        }
    }
    runners.retain(|one| bench.wants(&format!("codec {} {} {}", one.work.name(), one.shape.name, one.who)));
    for runner in &mut runners {
        (runner.run)(); // makes matrices and touches memory
    }
    for _ in 0..ROUNDS {
        for runner in &mut runners {
            runner.best = runner.best.max((runner.run)() / 1e9);
        }
    }
    report(bench, &runners, isal.as_ref().map(|isal| isal.borrow().version.clone()));
}

fn report(bench: &mut Bench, runners: &[Runner<'_>], isal: Option<String>) {
    let best = Kernel::best().name();
    for one in runners {
        let same = |who: &str| {
            let same = |other: &&Runner<'_>| other.work == one.work && std::ptr::eq(other.shape, one.shape);
            runners.iter().filter(same).find(|other| other.who == who).map(|other| other.best)
        };
        let what = format!("{} {}", one.work.name(), one.shape.name);
        let row = Row::new("codec", what.clone(), one.best, "GB/s").who(one.who);
        if one.who == ISAL {
            bench.add(row.note(isal.clone().unwrap_or_default()));
            continue;
        }
        let goal = Goal::AtLeast(one.shape.over_crate[usize::from(one.work == Work::Decode)]);
        match same(CRATE).filter(|_| one.who != CRATE) {
            Some(peer) => {
                let row = row.against(peer).note(format!("against the {CRATE}"));
                bench.add(goal_when(row, one.who == best && cfg!(feature = "bench-simd-accel"), goal));
            }
            None => bench.add(row),
        }
        if let Some(peer) = same(ISAL).filter(|_| one.who == best) {
            let row = Row::new("codec", format!("{what}, over ISA-L"), one.best, "GB/s").who(one.who).against(peer);
            // Its own GFNI code is what there is to beat; without GFNI it has AVX-512 code where this codec has AVX2.
            bench.add(goal_when(row, best.starts_with("gfni"), Goal::AtLeast(1.0)));
        }
    }
}

/// Works on chunk after chunk until the round's time is over.
fn timed(shape: &Shape, mut chunk: impl FnMut()) -> f64 {
    let (started, mut chunks) = (Instant::now(), 0);
    loop {
        chunk();
        chunks += 1;
        let took = started.elapsed();
        if took >= ROUND_TIME {
            return (chunks * shape.chunk_len) as f64 / took.as_secs_f64();
        }
    }
}

/// ISA-L in a program of its own, which is compiled here.
struct Isal {
    program: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    version: String,
    _folder: TempDir,
}

impl Isal {
    /// `None` = there is no C compiler or no ISA-L. `ISAL_PREFIX` names the folder where it is installed, when that is not
    /// the system's.
    fn find() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (source, program) = (folder.path().join("isal.c"), folder.path().join("isal"));
        std::fs::write(&source, include_str!("isal.c")).unwrap();
        let mut compiler = Command::new("cc");
        compiler.arg("-O2").arg(&source).arg("-o").arg(&program);
        if let Ok(prefix) = std::env::var("ISAL_PREFIX") {
            compiler.args([
                format!("-I{prefix}/include"),
                format!("-L{prefix}/lib"),
                format!("-Wl,-rpath,{prefix}/lib"),
            ]);
        }
        let compiled = compiler.arg("-lisal").stderr(Stdio::null()).status();
        if !compiled.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut program = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (ask, answers) = (program.stdin.take().unwrap(), program.stdout.take().unwrap());
        let mut isal = Self { program, ask, answers: BufReader::new(answers), version: String::new(), _folder: folder };
        isal.version = isal.line();
        Some(isal)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// A round of encoding; bytes of data a second.
    fn encode(&mut self, shape: &Shape) -> f64 {
        let k = cut(shape).data_symbols();
        writeln!(self.ask, "{k} {} {SYMBOL_LEN} {}", shape.parity, ROUND_TIME.as_millis()).unwrap();
        self.line().parse().unwrap()
    }
}

impl Drop for Isal {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
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
        timed(shape, || {
            for block in 0..cut.blocks() {
                codec.encode(cut, black_box(&chunk), block, 0..shape.parity, &mut parity).unwrap();
                black_box(&parity);
            }
        })
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
        timed(shape, || {
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
        timed(shape, || {
            for (code, data) in codes.iter().zip(&blocks) {
                code.encode_sep(black_box(data), &mut parity).unwrap();
                black_box(&parity);
            }
        })
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
        timed(shape, || {
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
    })
}
