//! Each kernel that this CPU has, against multiplying byte by byte.

use proptest::prelude::*;

use super::*;
use crate::gf;

fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((state ^ (state >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Multiplies with every kernel: sources and outputs lie one after another from `shift` on, so with odd lengths at every
/// alignment; the outputs' neighbours must stay as they are.
fn check(matrix: Columns<'_>, source_count: usize, output_count: usize, len: usize, shift: usize, seed: u64) {
    let data = bytes(shift + source_count * len, seed);
    let sources: Vec<&[u8]> = data[shift..].chunks(len).collect();
    let expected: Vec<u8> = (0..output_count * len)
        .map(|at| {
            let (row, at) = (at / len, at % len);
            let products = sources
                .iter()
                .enumerate()
                .map(|(s, source)| gf::multiply(matrix.bytes[s * matrix.stride + row], source[at]));
            products.fold(0, |sum, product| sum ^ product)
        })
        .collect();
    for kernel in Kernel::all() {
        let mut space = vec![0xa5; shift + output_count * len + 64];
        let mut outputs: Vec<&mut [u8]> = space[shift..][..output_count * len].chunks_mut(len).collect();
        kernel.multiply(matrix, &sources, &mut outputs);
        let same = space[shift..][..output_count * len] == expected;
        assert!(same, "{} with {source_count} sources, {output_count} outputs of {len}", kernel.name());
        let untouched = space[..shift].iter().chain(&space[shift + output_count * len..]).all(|byte| *byte == 0xa5);
        assert!(untouched, "{} writes beyond its outputs", kernel.name());
    }
}

#[test]
fn this_cpu_has_a_kernel_and_the_portable_one_is_last() {
    assert_eq!(Kernel::all().next(), Some(Kernel::best()));
    assert_eq!(Kernel::all().last().map(Kernel::name), Some("scalar"));
}

#[test]
fn every_coefficient_multiplies_every_byte_at_every_length_and_alignment() {
    let every: Vec<u8> = (0..=255).collect();
    // One source, each coefficient a row.
    for (shift, len) in (0..130).map(|n| (n, 256 + n)) {
        let matrix = Columns { bytes: &every, stride: 256 };
        check(matrix, 1, 256, len, shift, len as u64);
    }
}

#[test]
fn every_byte_by_every_coefficient() {
    let every: Vec<u8> = (0..=255).collect();
    for kernel in Kernel::all() {
        for coefficient in 0..=255 {
            let mut out = [0; 256];
            let matrix = Columns { bytes: &[coefficient], stride: 1 };
            kernel.multiply(matrix, &[&every], &mut [&mut out]);
            assert_eq!(out, std::array::from_fn(|byte| gf::multiply(coefficient, byte as u8)), "{}", kernel.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_matrix_at_any_length(
        sources in 1_usize..=200,
        outputs in 1_usize..=30,
        more_rows in 0_usize..4,
        len in 256_usize..1500,
        shift in 0_usize..64,
        seed in any::<u64>(),
    ) {
        let coefficients = bytes(sources * (outputs + more_rows), !seed);
        let matrix = Columns { bytes: &coefficients, stride: outputs + more_rows };
        check(matrix, sources, outputs, len, shift, seed);
    }

    #[test]
    fn long_symbols(sources in 1_usize..=5, outputs in 1_usize..=9, len in 20_000_usize..=65_000, seed in any::<u64>()) {
        let coefficients = bytes(sources * outputs, !seed);
        check(Columns { bytes: &coefficients, stride: outputs }, sources, outputs, len, 1, seed);
    }
}

#[test]
fn without_sources_outputs_are_zero_and_without_outputs_nothing_happens() {
    for kernel in Kernel::all() {
        let mut out = [7; 300];
        kernel.multiply(Columns { bytes: &[0], stride: 1 }, &[], &mut [&mut out]);
        assert_eq!(out, [0; 300]);
        kernel.multiply(Columns { bytes: &[], stride: 0 }, &[&out], &mut []);
    }
}
