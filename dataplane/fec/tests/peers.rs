//! This codec and the crate `reed-solomon-erasure`: the same symbols, each decodes the other's; and whatever a stranger
//! gives, an answer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use pangea_fec::{ChunkShape, Codec, FecError, K_MAX, Kernel, SYMBOL_LEN_MAX, SYMBOL_LEN_MIN, SYMBOLS_MAX};
use proptest::prelude::*;

/// Numbers that follow from a seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Some of `0..end`, in any order.
    fn some(&mut self, end: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..end).collect();
        for at in 0..count {
            let other = at + self.below(end - at);
            all.swap(at, other);
        }
        all.truncate(count);
        all
    }
}

fn kernels() -> impl Iterator<Item = (&'static str, Codec)> {
    Kernel::all().map(|kernel| (kernel.name(), Codec::with_kernel(kernel)))
}

/// A chunk of one block of `k` symbols, the last of them short by `short` bytes; its parity by both, and a loss of
/// `lost` symbols decoded by both from the same parity.
fn compare(k: usize, m: usize, symbol_len: usize, short: usize, lost: usize, chance: &mut Chance) {
    let shape = ChunkShape::new(k * symbol_len - short, symbol_len).unwrap();
    let chunk = chance.bytes(shape.chunk_len());
    let mut reference = Codec::reference();
    let mut parity = vec![0; m * symbol_len];
    reference.encode(shape, &chunk, 0, 0..m, &mut parity).unwrap();
    let lost = chance.some(k, lost);
    // More may come than are needed.
    let more = chance.below(m - lost.len() + 1);
    let arrived: Vec<(usize, &[u8])> = chance
        .some(m, lost.len() + more)
        .into_iter()
        .map(|number| (number, &parity[number * symbol_len..][..symbol_len]))
        .collect();
    for (name, mut codec) in kernels().chain([("reference", reference)]) {
        let story = format!("{name}: k {k} m {m} symbols of {symbol_len} short by {short}, lost {lost:?}");
        let (from, mut own) = (chance.below(m), vec![0; m * symbol_len]);
        codec.encode(shape, &chunk, 0, from..m, &mut own[from * symbol_len..]).unwrap();
        assert!(own[from * symbol_len..] == parity[from * symbol_len..], "{story}");
        let mut damaged = chunk.clone();
        lost.iter().for_each(|symbol| damaged[shape.bytes(0, *symbol).unwrap()].fill(0xee));
        let rebuilt = codec.rebuild(shape, &mut damaged, 0, |symbol| !lost.contains(&symbol), &arrived);
        assert_eq!(rebuilt, Ok(lost.len()), "{story}");
        assert!(damaged == chunk, "{story}");
    }
}

#[test]
fn for_every_block_size_each_decodes_what_the_other_encoded() {
    let mut chance = Chance(1);
    for k in 1..=K_MAX {
        let m = 1 + chance.below((SYMBOLS_MAX - k).min(40));
        let symbol_len = SYMBOL_LEN_MIN + chance.below(200);
        let (short, lost) = (chance.below(symbol_len), chance.below(k.min(m) + 1));
        compare(k, m, symbol_len, short, lost, &mut chance);
    }
}

#[test]
fn at_the_bounds_of_all_sizes() {
    let mut chance = Chance(2);
    for (k, m) in [(1, 254), (1, 1), (2, 253), (127, 128), (128, 127), (199, 56), (200, 55)] {
        compare(k, m, SYMBOL_LEN_MIN, 0, k.min(m), &mut chance);
        compare(k, m, SYMBOL_LEN_MIN + 1, SYMBOL_LEN_MIN, k.min(m), &mut chance);
    }
    compare(3, 3, SYMBOL_LEN_MAX, 1, 3, &mut chance);
    compare(2, 5, SYMBOL_LEN_MAX - 1, SYMBOL_LEN_MAX - 2, 2, &mut chance);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn for_any_shape_each_decodes_what_the_other_encoded(
        k in 1_usize..=K_MAX,
        m in 1_usize..=55,
        symbol_len in SYMBOL_LEN_MIN..2000,
        seed in any::<u64>(),
    ) {
        let mut chance = Chance(seed);
        let (short, lost) = (chance.below(symbol_len), 1 + chance.below(k.min(m)));
        compare(k, m, symbol_len, short, lost, &mut chance);
    }

    #[test]
    fn whatever_is_given_there_is_an_answer_and_a_refusal_leaves_the_chunk_alone(
        chunk_len in 1_usize..4000,
        wrong_chunk in 0_usize..8,
        block in 0_usize..3,
        have in prop::collection::vec(any::<bool>(), 16),
        parity in prop::collection::vec((prop_oneof![0_usize..20, 230_usize..260, Just(usize::MAX)], 255_usize..258), 0..20),
        range in (0_usize..260, 0_usize..260),
        out_len in 0_usize..3,
    ) {
        let shape = ChunkShape::new(chunk_len, 256).unwrap();
        let chunk = vec![7; chunk_len + usize::from(wrong_chunk == 0)];
        let bytes = vec![3; 300];
        let parity: Vec<(usize, &[u8])> = parity.iter().map(|(number, len)| (*number, &bytes[..*len])).collect();
        for (_, mut codec) in kernels().chain([("", Codec::reference())]) {
            let mut space = chunk.clone();
            let rebuilt = codec.rebuild(shape, &mut space, block, |symbol| have[symbol], &parity);
            prop_assert!(rebuilt.is_ok() || space == chunk);
            let mut out = vec![0; out_len * 256];
            let _ = codec.encode(shape, &chunk, block, range.0..range.1, &mut out);
        }
    }
}

#[test]
fn impossible_parity_is_refused_by_name() {
    let shape = ChunkShape::new(2560, 256).unwrap();
    let (chunk, symbol) = (vec![1; 2560], vec![2; 256]);
    for (_, mut codec) in kernels().chain([("", Codec::reference())]) {
        let mut rebuild = |parity: &[(usize, &[u8])]| {
            let mut space = chunk.clone();
            let result = codec.rebuild(shape, &mut space, 0, |symbol| symbol > 1, parity);
            assert!(result.is_ok() || space == chunk);
            result
        };
        assert_eq!(rebuild(&[]), Err(FecError::TooFew { block: 0, have: 8, need: 10 }));
        assert_eq!(rebuild(&[(1, &symbol)]), Err(FecError::TooFew { block: 0, have: 9, need: 10 }));
        assert_eq!(rebuild(&[(1, &symbol), (1, &symbol)]), Err(FecError::Twice { block: 0, symbol: 11 }));
        assert_eq!(rebuild(&[(1, &symbol), (245, &symbol)]), Err(FecError::NoSuchSymbol { block: 0, symbol: 255 }));
        let symbol_max = usize::MAX;
        assert_eq!(
            rebuild(&[(symbol_max, &symbol), (0, &symbol)]),
            Err(FecError::NoSuchSymbol { block: 0, symbol: symbol_max })
        );
        assert_eq!(rebuild(&[(0, &symbol), (1, &symbol[1..])]), Err(FecError::Length { found: 255, expected: 256 }));
        assert_eq!(rebuild(&[(244, &symbol), (0, &symbol)]), Ok(2));
        // Nothing is missing: parity is not looked at.
        let whole = codec.rebuild(shape, &mut chunk.clone(), 0, |_| true, &[(usize::MAX, &[])]);
        assert_eq!(whole, Ok(0));
    }
}
