//! In which order a chunk's symbols are sent: block by block in turn, so that a burst of losses hits all blocks alike,
//! and parity last, spread in the same way.

use pangea_fec::ChunkShape;

/// The symbols of a chunk as (block, symbol): data and, after it, `parity(k)` parity symbols of each block.
pub fn order(shape: ChunkShape, parity: impl Fn(usize) -> usize) -> Vec<(u8, u8)> {
    let blocks: Vec<(u8, usize, usize)> = (0..shape.blocks())
        .filter_map(|index| {
            let block = shape.block(index)?;
            Some((u8::try_from(index).ok()?, block.k, parity(block.k).min(block.parity_max())))
        })
        .collect();
    let k_max = blocks.iter().map(|(_, k, _)| *k).max().unwrap_or(0);
    let m_max = blocks.iter().map(|(_, _, m)| *m).max().unwrap_or(0);
    let data =
        (0..k_max).flat_map(|at| blocks.iter().filter(move |(_, k, _)| at < *k).map(move |(block, ..)| (*block, at)));
    let parity = (0..m_max)
        .flat_map(|at| blocks.iter().filter(move |(.., m)| at < *m).map(move |(block, k, _)| (*block, k + at)));
    data.chain(parity).filter_map(|(block, symbol)| Some((block, u8::try_from(symbol).ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_symbol_is_sent_once_and_neighbours_are_of_different_blocks() {
        let shape = ChunkShape::new(256 << 10, 1000).unwrap();
        assert_eq!(shape.blocks(), 2);
        let order = order(shape, |k| k / 10);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let expected: usize = (0..2)
            .map(|block| {
                let k = shape.block(block).unwrap().k;
                k + k / 10
            })
            .sum();
        assert_eq!((order.len(), sorted.len()), (expected, expected));
        assert!(order.windows(2).take(200).all(|pair| pair[0].0 != pair[1].0));
    }
}
