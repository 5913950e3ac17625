//! Five gibibytes pass through while every process stays small.

use std::io::{Read, Seek, SeekFrom, Write};
use std::process::Stdio;

use nix::sys::resource::{UsageWho, getrusage};
use pangea_tests::{Node, NodeOptions, sample};

const SIZE: u64 = 5 << 30;
/// Bytes of memory that each process may take at its peak.
const MEMORY_MAX: u64 = 200 << 20;

/// The most memory that a process has had, in bytes.
fn peak_memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn assert_small(what: &str, node: &Node) {
    for pid in node.worker_pids().into_iter().chain([node.controller_pid()]) {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        let peak = peak_memory(pid);
        println!("{what}: {} took {} MiB", name.trim(), peak >> 20);
        assert!(peak < MEMORY_MAX, "{what}: process {pid} took {peak} bytes");
    }
    // The programs that have ended since this test began; the nodes have not.
    let peak = u64::try_from(getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss()).unwrap() << 10;
    println!("{what}: pangeactl took {} MiB", peak >> 20);
    assert!(peak < MEMORY_MAX, "{what}: pangeactl took {peak} bytes");
}

#[test]
fn five_gibibytes_are_put_and_got_in_little_memory() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    // Mostly holes, so that only the copies take room; what is between them differs from chunk to chunk.
    let source = a.file("large");
    let mut file = std::fs::File::create(&source).unwrap();
    file.set_len(SIZE).unwrap();
    for at in (0..SIZE).step_by(100 << 20) {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&at.to_le_bytes()).unwrap();
    }
    let expected = sample::content_id(&source).unwrap();
    assert_eq!(a.put(&source), expected);
    assert_small("put", &a);
    let mut get = b.ctl_command(["get", &a.ticket(&expected), "-o", "-"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut hasher = blake3::Hasher::new();
    let (mut output, mut space) = (get.stdout.take().unwrap(), vec![0; 1 << 20]);
    let mut arrived = 0;
    while arrived < SIZE {
        let len = output.read(&mut space).unwrap();
        assert!(len > 0, "the output ended at {arrived}: {}", b.log());
        hasher.update(&space[..len]);
        arrived += len as u64;
    }
    assert!(get.wait().unwrap().success());
    assert_eq!(hasher.finalize().to_hex().to_string(), expected);
    assert_small("get, serving", &a);
    assert_small("get, getting", &b);
}
