//! Fuzz targets: what strangers' bytes reach first. Each is a function of bytes that panics when a rule is broken.
//!
//! | target | what it shows |
//! |---|---|
//! | [`frame`] | any bytes are a valid frame or an error, and a frame survives the wire |
//! | [`decode`] | any loss within the parity that came is rebuilt, any other is an error; both codecs agree |
//! | [`assembly`] | any sequence of symbols, marks and pauses: bounded memory, bounded repairs, only the chunk or an error |
//!
//! `run.sh TARGET [SECONDS]` fuzzes one with libFuzzer and the stable compiler. `corpus/TARGET/` holds what it found
//! worth keeping, and every input that once broke a rule (`regression-*`); `tests/replay.rs` runs all of it, and seeded
//! mutations, in every `cargo test`.

pub mod assembly;
pub mod decode;
pub mod frame;
pub mod input;

/// A target: panics when a rule is broken.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: [(&str, Target); 3] = [("frame", frame::run), ("decode", decode::run), ("assembly", assembly::run)];
