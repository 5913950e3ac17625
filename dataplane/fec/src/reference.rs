//! The crate `reed-solomon-erasure`, whose code this is: an independent peer for tests and benchmarks.
//!
//! It inverts k x k when a loss pattern is new, multiplies byte by byte and wants copies of everything. So it is slow,
//! and shares not a line with what it is compared with.

use std::collections::VecDeque;
use std::rc::Rc;

use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::codec::FecError;

/// Code matrices kept at most: a few block sizes times a few parity counts are in use at once.
const CODES_MAX: usize = 32;

/// Makes parity and rebuilds data. Keeps the code matrices that it used last.
#[derive(Debug, Default)]
pub(crate) struct Reference {
    codes: VecDeque<((usize, usize), Rc<ReedSolomon>)>,
}

impl Reference {
    /// Writes parity symbols `first` and on to `outputs`.
    pub(crate) fn encode(&mut self, data: &[&[u8]], first: usize, outputs: &mut [&mut [u8]]) -> Result<(), FecError> {
        let symbol_len = outputs.first().map_or(0, |output| output.len());
        let rows = first + outputs.len();
        let mut parity = vec![vec![0; symbol_len]; rows];
        self.code(data.len(), rows)?.encode_sep(data, &mut parity).map_err(FecError::Code)?;
        for (output, symbol) in outputs.iter_mut().zip(parity.iter().skip(first)) {
            output.copy_from_slice(symbol);
        }
        Ok(())
    }

    /// Writes the `lost` data symbols to `outputs`. `sources` are the other data symbols, then as many parity symbols
    /// as are lost; `parity` tells their numbers in the block, k + j.
    pub(crate) fn rebuild(
        &mut self,
        lost: &[usize],
        parity: &[usize],
        sources: &[&[u8]],
        outputs: &mut [&mut [u8]],
    ) -> Result<(), FecError> {
        let k = sources.len();
        let symbols = parity.iter().max().map_or(k + 1, |last| last + 1);
        let code = self.code(k, symbols - k)?;
        let mut shards = vec![None; symbols];
        let known = (0..k).filter(|symbol| !lost.contains(symbol)).chain(parity.iter().copied());
        for (symbol, source) in known.zip(sources) {
            if let Some(shard) = shards.get_mut(symbol) {
                *shard = Some(source.to_vec());
            }
        }
        code.reconstruct_data(&mut shards).map_err(FecError::Code)?;
        for (symbol, output) in lost.iter().zip(outputs) {
            if let Some(shard) = shards.get(*symbol).and_then(Option::as_ref) {
                output.copy_from_slice(shard);
            }
        }
        Ok(())
    }

    fn code(&mut self, k: usize, m: usize) -> Result<Rc<ReedSolomon>, FecError> {
        let found = self.codes.iter().position(|(shape, _)| *shape == (k, m)).and_then(|at| self.codes.remove(at));
        let entry = match found {
            Some(entry) => entry,
            None => ((k, m), Rc::new(ReedSolomon::new(k, m).map_err(FecError::Code)?)),
        };
        let code = Rc::clone(&entry.1);
        self.codes.truncate(CODES_MAX - 1);
        self.codes.push_front(entry);
        Ok(code)
    }
}
