//! The ring between two processes against what else could carry its records. `cargo bench -p pangea-ring [-- --json]`
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a benchmark fails by panicking")]

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command};
use std::time::Instant;

use pangea_ring::Channel;

const RECORD: usize = 256 * 1024;
const TOTAL: usize = 1 << 30;
const TRIPS: u64 = 100_000;
/// Each case is run this often, in turn with the others, and its best run counts: on a shared host two virtual CPUs
/// share a cache in one second and none in the next, which changes every figure here tenfold.
const ROUNDS: usize = 7;
const CAPACITY: u32 = 4 << 20;

fn main() {
    if let Ok(role) = std::env::var("PANGEA_BENCH_ROLE") {
        return child(&role);
    }
    type Case = (&'static str, &'static str, fn() -> f64);
    let cases: [Case; 7] = [
        ("memcpy 256 KiB", "GB/s", memcpy),
        ("ring, two processes, polling", "GB/s", || ring("ring-poll")),
        ("ring, two processes, sleeping", "GB/s", || ring("ring-sleep")),
        ("rtrb in one process, copying in and out", "GB/s", rtrb_copy),
        ("Unix socket", "GB/s", || stream("socket")),
        ("pipe", "GB/s", pipe),
        ("ring round trip of 64 bytes, polling", "ns", round_trip),
    ];
    let mut rows = cases.map(|(what, unit, run)| (what, run(), unit));
    for _ in 1..ROUNDS {
        for ((_, best, unit), (.., run)) in rows.iter_mut().zip(cases) {
            let value = run();
            *best = if *unit == "ns" { best.min(value) } else { best.max(value) };
        }
    }
    let memcpy = rows[0].1;
    if std::env::args().any(|argument| argument == "--json") {
        let fields: Vec<String> = rows
            .iter()
            .map(|(what, value, unit)| format!("  {{\"what\": {what:?}, \"value\": {value:.3}, \"unit\": {unit:?}}}"))
            .collect();
        println!("[\n{}\n]", fields.join(",\n"));
        return;
    }
    for (what, value, unit) in rows {
        let ratio = if unit == "GB/s" { format!("{:.2} of memcpy", value / memcpy) } else { String::new() };
        println!("{what:<42} {value:>9.2} {unit:<5} {ratio}");
    }
}

fn rate(started: Instant) -> f64 {
    TOTAL as f64 / started.elapsed().as_secs_f64() / 1e9
}

fn memcpy() -> f64 {
    let from = vec![1_u8; CAPACITY as usize];
    let mut to = vec![0_u8; CAPACITY as usize];
    let started = Instant::now();
    for n in 0..TOTAL / RECORD {
        let at = n % (CAPACITY as usize / RECORD) * RECORD;
        to[at..at + RECORD].copy_from_slice(&from[at..at + RECORD]);
        std::hint::black_box(&to);
    }
    rate(started)
}

/// Starts this program again in another role, with a socket to it.
fn start(role: &str) -> (Child, UnixStream) {
    let path = std::env::temp_dir().join(format!("pangea-bench-{}-{role}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .env("PANGEA_BENCH_ROLE", role)
        .env("PANGEA_BENCH_SOCKET", &path)
        .spawn()
        .unwrap();
    let (socket, _) = listener.accept().unwrap();
    std::fs::remove_file(&path).unwrap();
    (child, socket)
}

fn child(role: &str) {
    let socket = UnixStream::connect(std::env::var("PANGEA_BENCH_SOCKET").unwrap()).unwrap();
    if role == "socket" {
        let record = vec![1; RECORD];
        for _ in 0..TOTAL / RECORD {
            (&socket).write_all(&record).unwrap();
        }
        return;
    }
    let Channel { mut producer, mut consumer } = Channel::receive(&socket).unwrap();
    if role == "echo" {
        for _ in 0..TRIPS {
            let mut bytes = [0; 64];
            let arg = loop {
                if let Some(record) = consumer.try_peek().unwrap() {
                    record.copy_to(&mut bytes);
                    let arg = record.arg();
                    record.release();
                    break arg;
                }
                std::hint::spin_loop();
            };
            while !producer.try_push(0, arg, &bytes).unwrap() {}
        }
        return;
    }
    let record = vec![1; RECORD];
    for n in 0..(TOTAL / RECORD) as u64 {
        while !producer.try_push(0, n, &record).unwrap() {
            if role == "ring-sleep" {
                producer.wait_space(RECORD, socket.as_fd(), None).unwrap();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

fn ring(role: &str) -> f64 {
    let (mut child, socket) = start(role);
    let (mut channel, handover) = Channel::create(1 << 12, CAPACITY).unwrap();
    handover.send(&socket).unwrap();
    let mut space = vec![0; RECORD];
    let started = Instant::now();
    for _ in 0..TOTAL / RECORD {
        loop {
            if let Some(record) = channel.consumer.try_peek().unwrap() {
                record.copy_to(&mut space);
                record.release();
                break;
            }
            if role == "ring-sleep" {
                channel.consumer.wait_record(socket.as_fd(), None).unwrap();
            } else {
                std::hint::spin_loop();
            }
        }
        std::hint::black_box(&space);
    }
    let result = rate(started);
    child.wait().unwrap();
    result
}

fn round_trip() -> f64 {
    let (mut child, socket) = start("echo");
    let (mut channel, handover) = Channel::create(1 << 12, 1 << 12).unwrap();
    handover.send(&socket).unwrap();
    let started = Instant::now();
    for n in 0..TRIPS {
        while !channel.producer.try_push(0, n, &[7; 64]).unwrap() {}
        loop {
            if let Some(record) = channel.consumer.try_peek().unwrap() {
                assert_eq!(record.arg(), n);
                record.release();
                break;
            }
            std::hint::spin_loop();
        }
    }
    let result = started.elapsed().as_nanos() as f64 / TRIPS as f64;
    child.wait().unwrap();
    result
}

fn rtrb_copy() -> f64 {
    let slots = CAPACITY as usize / RECORD;
    let (mut producer, mut consumer) = rtrb::RingBuffer::<Box<[u8]>>::new(slots);
    let (mut give_back, mut take_back) = rtrb::RingBuffer::<Box<[u8]>>::new(slots);
    for _ in 0..slots {
        give_back.push(vec![0; RECORD].into_boxed_slice()).unwrap();
    }
    let started = Instant::now();
    let filler = std::thread::spawn(move || {
        let record = vec![1; RECORD];
        for _ in 0..TOTAL / RECORD {
            let mut slot = loop {
                if let Ok(slot) = take_back.pop() {
                    break slot;
                }
                std::hint::spin_loop();
            };
            slot.copy_from_slice(&record);
            producer.push(slot).unwrap();
        }
    });
    let mut space = vec![0; RECORD];
    for _ in 0..TOTAL / RECORD {
        let slot = loop {
            if let Ok(slot) = consumer.pop() {
                break slot;
            }
            std::hint::spin_loop();
        };
        space.copy_from_slice(&slot);
        std::hint::black_box(&space);
        let _ = give_back.push(slot);
    }
    filler.join().unwrap();
    rate(started)
}

fn read_all(mut from: impl Read) -> f64 {
    let mut space = vec![0; RECORD];
    let started = Instant::now();
    for _ in 0..TOTAL / RECORD {
        from.read_exact(&mut space).unwrap();
        std::hint::black_box(&space);
    }
    rate(started)
}

fn stream(role: &str) -> f64 {
    let (mut child, socket) = start(role);
    let result = read_all(&socket);
    child.wait().unwrap();
    result
}

fn pipe() -> f64 {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let filler = std::thread::spawn(move || {
        let record = vec![1; RECORD];
        for _ in 0..TOTAL / RECORD {
            writer.write_all(&record).unwrap();
        }
    });
    let result = read_all(reader);
    filler.join().unwrap();
    result
}
