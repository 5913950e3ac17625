//! Two processes share a ring and one is killed at any moment: what the other has read is whole and in order, and it
//! learns at once that it is alone.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pangea_ring::{Channel, Consumer, Producer, RingError};

const ROUNDS: u64 = 60;
const DATA_BYTES: u32 = 1 << 16;
/// A killed process is noticed within this time; the kernel closes its sockets as it ends.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);

/// Length and bytes of record `n`: from nothing to a quarter of the ring.
fn record(n: u64) -> Vec<u8> {
    let len = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
    (0..len).map(|at| (n ^ at) as u8).collect()
}

/// Writes records until the other side is gone.
fn produce(producer: &mut Producer, alive: &UnixStream) -> RingError {
    for n in 0.. {
        let bytes = record(n);
        loop {
            match producer.try_push(7, n, &bytes) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => return error,
            }
            if let Err(error) = producer.wait_space(bytes.len(), alive.as_fd(), None) {
                return error;
            }
        }
    }
    unreachable!("records without end")
}

/// Reads and checks records until the other side is gone; says how many there were.
fn consume(consumer: &mut Consumer, alive: &UnixStream, mut seen: impl FnMut(u64)) -> (u64, RingError) {
    let mut next = 0;
    loop {
        match consumer.try_peek() {
            Ok(Some(found)) => {
                let expected = record(next);
                let mut bytes = vec![0; found.len()];
                found.copy_to(&mut bytes);
                assert_eq!((found.tag(), found.arg()), (7, next), "in order, without a gap");
                assert!(bytes == expected, "record {next} is not whole");
                found.release();
                next += 1;
                seen(next);
                continue;
            }
            Ok(None) => {}
            Err(error) => return (next, error),
        }
        if let Err(error) = consumer.wait_record(alive.as_fd(), None) {
            return (next, error);
        }
    }
}

/// The other process; does nothing when run as a test.
#[test]
fn child() {
    let Ok(role) = std::env::var("PANGEA_RING_ROLE") else { return };
    let socket = UnixStream::connect(std::env::var("PANGEA_RING_SOCKET").unwrap()).unwrap();
    let Channel { mut producer, mut consumer } = Channel::receive(&socket).unwrap();
    if role == "producer" {
        produce(&mut producer, &socket);
    } else {
        consume(&mut consumer, &socket, |_| {});
    }
}

fn start(role: &str, folder: &std::path::Path) -> (Child, UnixStream, Channel) {
    let path = folder.join(role);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--test-threads", "1"])
        .env("PANGEA_RING_ROLE", role)
        .env("PANGEA_RING_SOCKET", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (socket, _) = listener.accept().unwrap();
    let (channel, handover) = Channel::create(DATA_BYTES, DATA_BYTES).unwrap();
    handover.send(&socket).unwrap();
    (child, socket, channel)
}

/// Kills the child after a time that differs from round to round; says when.
fn kill_later(mut child: Child, round: u64) -> std::thread::JoinHandle<Instant> {
    let pause = Duration::from_micros(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 51); // up to 8 ms
    std::thread::spawn(move || {
        std::thread::sleep(pause);
        child.kill().unwrap();
        let at = Instant::now();
        child.wait().unwrap();
        at
    })
}

#[test]
fn a_consumer_outlives_a_producer_that_is_killed_at_any_moment() {
    let folder = std::env::temp_dir().join(format!("pangea-ring-consumer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut total = 0;
    for round in 0..ROUNDS {
        let (child, socket, mut channel) = start("producer", &folder);
        let killed = kill_later(child, round);
        let (count, error) = consume(&mut channel.consumer, &socket, |_| {});
        assert!(matches!(error, RingError::PeerGone), "round {round}: {error}");
        assert!(killed.join().unwrap().elapsed() < NOTICED_WITHIN);
        total += count;
    }
    assert!(total > ROUNDS, "the rounds had something to read: {total}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_producer_outlives_a_consumer_that_is_killed_at_any_moment() {
    let folder = std::env::temp_dir().join(format!("pangea-ring-producer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for round in 0..ROUNDS {
        let (child, socket, mut channel) = start("consumer", &folder);
        let killed = kill_later(child, round);
        let error = produce(&mut channel.producer, &socket);
        assert!(matches!(error, RingError::PeerGone), "round {round}: {error}");
        assert!(killed.join().unwrap().elapsed() < NOTICED_WITHIN);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
