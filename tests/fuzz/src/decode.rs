//! The FEC codec against `reed-solomon-erasure` and against what was sent: any shape, any loss, any order, and wrong
//! symbols, which both codecs take for the same wrong data.

use pangea_fec::{ChunkShape, Codec, FecError, K_MAX, Kernel, SYMBOL_LEN_MAX, SYMBOL_LEN_MIN, SYMBOLS_MAX, ShapeError};

use crate::input::{Chance, Input};

/// Bytes of parity in a block at most: long symbols have fewer, so that an input takes milliseconds.
const PARITY_BYTES_MAX: usize = 1 << 16;

/// Data symbols in a block that is compared with `reed-solomon-erasure` at most: that crate inverts k x k, which takes
/// tens of milliseconds for the longest. Longer blocks are compared with the portable kernel.
const REFERENCE_K_MAX: usize = 64;

/// The input: lengths of chunk and symbol, a seed for contents and order, how many symbols are lost, and for each block
/// how much parity there is and comes, what is wrong with it, and which symbols are lost.
///
/// # Panics
/// When the codec breaks a rule.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (chunk_len, symbol_len) = (usize::from(input.u16()), usize::from(input.u16()));
    let shape = match ChunkShape::new(chunk_len, symbol_len) {
        Ok(shape) => shape,
        Err(ShapeError::SymbolLen { len }) => {
            return assert!(len == symbol_len && !(SYMBOL_LEN_MIN..=SYMBOL_LEN_MAX).contains(&len));
        }
        Err(ShapeError::ChunkLen { len }) => return assert!(len == chunk_len && len == 0),
    };
    let mut chance = Chance(input.u64());
    let chunk = chance.bytes(chunk_len);
    let mut damaged = chunk.clone();
    let mut intact = true;
    for block in 0..shape.blocks() {
        let k = shape.block(block).unwrap().k;
        assert!((1..=K_MAX).contains(&k));
        intact &= one_block(&mut input, &mut chance, shape, &chunk, &mut damaged, block);
    }
    assert!(!intact || damaged == chunk, "every block was rebuilt, the chunk is another");
    let mut codec = Codec::new();
    let beyond = codec.rebuild(shape, &mut damaged, shape.blocks(), |_| false, &[]);
    assert!(matches!(beyond, Err(FecError::NoSuchSymbol { .. })), "{beyond:?}");
}

/// Encodes, loses and rebuilds a block in `damaged`; says whether it is now what was sent.
fn one_block(
    input: &mut Input<'_>,
    chance: &mut Chance,
    shape: ChunkShape,
    chunk: &[u8],
    damaged: &mut [u8],
    block: usize,
) -> bool {
    let (k, symbol_len) = (shape.block(block).unwrap().k, shape.symbol_len());
    let parity_count = usize::from(input.byte()).min(SYMBOLS_MAX - k).min(PARITY_BYTES_MAX / symbol_len);
    let mut parity = vec![0; parity_count * symbol_len];
    peer(k).encode(shape, chunk, block, 0..parity_count, &mut parity).unwrap();
    let mut own = vec![0; parity.len()];
    Codec::new().encode(shape, chunk, block, 0..parity_count, &mut own).unwrap();
    assert!(own == parity, "the codecs made different parity");

    // What of the parity comes, in any order.
    let mut numbers: Vec<usize> = (0..parity_count).collect();
    for at in 0..parity_count {
        numbers.swap(at, at + chance.below(parity_count - at));
    }
    numbers.truncate(usize::from(input.byte()).min(parity_count));
    let mut arrived: Vec<(usize, Vec<u8>)> =
        numbers.into_iter().map(|number| (number, parity[number * symbol_len..][..symbol_len].to_vec())).collect();
    let wrong = spoil(input, k, &mut arrived);

    let lose_below = input.byte();
    let lost: Vec<usize> = (0..k).filter(|_| chance.draw() as u8 <= lose_below && lose_below > 0).collect();
    for symbol in &lost {
        damaged[shape.bytes(block, *symbol).unwrap()].fill(0xee);
    }
    let before = damaged.to_vec();
    let arrived: Vec<(usize, &[u8])> = arrived.iter().map(|(number, bytes)| (*number, &bytes[..])).collect();
    let rebuild = |codec: &mut Codec| {
        let mut space = before.clone();
        let result = codec.rebuild(shape, &mut space, block, |symbol| !lost.contains(&symbol), &arrived);
        (result, space)
    };
    let (result, space) = rebuild(&mut peer(k));
    for kernel in Kernel::all() {
        let own = rebuild(&mut Codec::with_kernel(kernel));
        assert!(own == (result, space.clone()), "{} and the reference differ: {:?} {result:?}", kernel.name(), own.0);
    }
    match result {
        Ok(count) => assert_eq!(count, lost.len()),
        Err(error) => {
            assert!(space == before, "a refusal changed the chunk");
            let expected = match wrong {
                Wrong::Shape => {
                    matches!(error, FecError::NoSuchSymbol { .. } | FecError::Twice { .. } | FecError::Length { .. })
                }
                Wrong::Nothing | Wrong::Contents => {
                    let have = k - lost.len() + arrived.len();
                    have < k && error == FecError::TooFew { block, have, need: k }
                }
            };
            assert!(expected, "{error} with {} lost, {} arrived, {wrong:?}", lost.len(), arrived.len());
        }
    }
    if lost.is_empty() {
        assert_eq!(result, Ok(0), "nothing is missing: parity is not looked at");
    } else if wrong == Wrong::Nothing {
        assert_eq!(result.is_ok(), lost.len() <= arrived.len(), "{result:?}");
    } else if wrong == Wrong::Shape {
        assert!(result.is_err(), "{arrived:?}");
    }
    damaged.copy_from_slice(&space);
    let range = shape.bytes(block, 0).unwrap().start..shape.bytes(block, k - 1).unwrap().end;
    let restored = damaged[range.clone()] == chunk[range];
    assert!(restored || wrong != Wrong::Nothing || result.is_err(), "rebuilt, but not what was sent");
    restored
}

/// Who must make the same of a block of `k` data symbols.
fn peer(k: usize) -> Codec {
    let portable = Kernel::all().last().filter(|_| k > REFERENCE_K_MAX);
    portable.map_or_else(Codec::reference, Codec::with_kernel)
}

/// What is wrong with the parity that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// A byte: nobody can tell before the hash does.
    Contents,
    /// A number or a length: refused.
    Shape,
}

fn spoil(input: &mut Input<'_>, k: usize, arrived: &mut Vec<(usize, Vec<u8>)>) -> Wrong {
    let (how, which) = (input.byte(), usize::from(input.byte()));
    if arrived.is_empty() {
        return Wrong::Nothing;
    }
    let which = which % arrived.len();
    match how % 8 {
        1 => arrived[which].1[0] ^= input.byte().max(1),
        2 => arrived[which].0 = (SYMBOLS_MAX - k).saturating_add(usize::from(input.byte())),
        3 => arrived[which].0 = usize::MAX - usize::from(input.byte()),
        4 => arrived.push(arrived[which].clone()),
        5 => arrived[which].1.truncate(usize::from(input.byte())),
        6 => arrived[which].1.extend(vec![0; 1 + usize::from(input.byte())]),
        _ => return Wrong::Nothing,
    }
    if how % 8 == 1 { Wrong::Contents } else { Wrong::Shape }
}
