//! The fuzzer of [`pangea_fuzz::decode`]; `tests/fuzz/run.sh decode` builds and runs it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pangea_fuzz::decode::run(data));
