//! The fuzzer of [`pangea_fuzz::frame`]; `tests/fuzz/run.sh frame` builds and runs it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pangea_fuzz::frame::run(data));
