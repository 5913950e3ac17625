//! Every `cargo test` runs what the fuzzers have found, and a bounded number of mutations of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use pangea_fuzz::input::Chance;
use pangea_fuzz::{TARGETS, Target};

/// Bytes that all corpora together take in the repository at most.
const CORPUS_BYTES_MAX: u64 = 300 << 10;
/// Longest mutated input.
const INPUT_LEN_MAX: usize = 4096;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort_unstable();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// An input made of one or two others.
fn mutate(corpus: &[(PathBuf, Vec<u8>)], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = corpus[chance.below(corpus.len())].1.clone();
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len() + 1);
        match chance.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
            1 if at < bytes.len() => bytes[at] = chance.draw() as u8,
            2 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][chance.below(6)],
            3 => bytes.truncate(at),
            4 => {
                let more = chance.below(16);
                bytes.splice(at..at, chance.bytes(more));
            }
            _ => {
                let other = &corpus[chance.below(corpus.len())].1;
                bytes.truncate(at);
                bytes.extend(&other[chance.below(other.len() + 1)..]);
            }
        }
    }
    bytes.truncate(INPUT_LEN_MAX);
    bytes
}

fn replay(name: &str, mutations: usize) {
    let (_, target): (&str, Target) = *TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let corpus = corpus(name);
    assert!(corpus.len() >= 12, "{name} has a corpus of {} inputs", corpus.len());
    for (path, bytes) in &corpus {
        assert!(catch_unwind(|| target(bytes)).is_ok(), "{} breaks a rule", path.display());
    }
    let mut chance = Chance(0x70616e676561);
    for serial in 0..mutations {
        let bytes = mutate(&corpus, &mut chance);
        let shown: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(catch_unwind(|| target(&bytes)).is_ok(), "mutation {serial} of {name} breaks a rule: {shown}");
    }
}

#[test]
fn frames() {
    replay("frame", 100_000);
}

#[test]
fn decoding() {
    replay("decode", 300);
}

#[test]
fn assembling() {
    replay("assembly", 1000);
}

#[test]
fn the_corpus_is_small_and_belongs_to_the_targets() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    let mut expected: Vec<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
    let bytes: u64 = names.iter().flat_map(|name| corpus(name)).map(|(_, bytes)| bytes.len() as u64).sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}
