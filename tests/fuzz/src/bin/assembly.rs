//! The fuzzer of [`pangea_fuzz::assembly`]; `tests/fuzz/run.sh assembly` builds and runs it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pangea_fuzz::assembly::run(data));
