//! The ring against a plain queue: whatever is done to both, both answer alike.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pangea_ring::{Channel, Consumer, Producer, RingError};
use proptest::prelude::*;

fn ring(capacity: u32) -> (Producer, Consumer, UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    let (worker, handover) = Channel::create(capacity, 1 << 12).unwrap();
    handover.send(&near).unwrap();
    let program = Channel::receive(&far).unwrap();
    let Channel { producer, .. } = worker;
    let Channel { consumer, .. } = program;
    (producer, consumer, near, far)
}

#[derive(Debug, Clone)]
enum Op {
    Push(usize),
    Abandon(usize),
    Peek,
    Take,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_usize..2100).prop_map(Op::Push),
        1 => (0_usize..2100).prop_map(Op::Abandon),
        1 => Just(Op::Peek),
        4 => Just(Op::Take),
    ]
}

fn payload(serial: u64, len: usize) -> Vec<u8> {
    (0..len).map(|i| (serial as usize * 31 + i * 7) as u8).collect()
}

proptest! {
    #[test]
    fn behaves_like_a_queue(ops in prop::collection::vec(op(), 0..400)) {
        let (mut producer, mut consumer, _near, _far) = ring(4096);
        let mut model: VecDeque<(u64, usize)> = VecDeque::new();
        let mut serial = 0;
        for op in ops {
            match op {
                Op::Push(len) => {
                    serial += 1;
                    match producer.try_push(serial as u32, serial, &payload(serial, len)) {
                        Ok(true) => model.push_back((serial, len)),
                        Ok(false) => prop_assert!(!model.is_empty(), "an empty ring is not full"),
                        Err(RingError::TooLong { max, .. }) => prop_assert!(len > max),
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                Op::Abandon(len) => drop(producer.try_claim(0, 0, len)),
                Op::Peek => {
                    let seen = consumer.try_peek().unwrap().map(|record| (record.arg(), record.len()));
                    prop_assert_eq!(seen, model.front().copied());
                }
                Op::Take => match consumer.try_peek().unwrap() {
                    None => prop_assert!(model.is_empty()),
                    Some(record) => {
                        let (serial, len) = model.pop_front().unwrap();
                        prop_assert_eq!((record.tag(), record.arg(), record.len()), (serial as u32, serial, len));
                        let mut bytes = vec![0; len];
                        record.copy_to(&mut bytes);
                        prop_assert_eq!(bytes, payload(serial, len));
                        record.release();
                    }
                },
            }
        }
        producer.close();
        while let Ok(Some(record)) = consumer.try_peek() {
            prop_assert_eq!(Some(record.arg()), model.pop_front().map(|(serial, _)| serial));
            record.release();
        }
        prop_assert!(model.is_empty(), "what was published before the end is still taken");
        prop_assert_eq!(consumer.try_peek().unwrap_err(), RingError::Closed);
    }
}

#[test]
fn a_full_chunk_fits_a_data_ring_many_times_and_too_long_a_record_is_refused() {
    let (mut producer, mut consumer, _near, _far) = ring(4 << 20);
    let chunk = payload(1, pangea_ring::RECORD_MAX);
    let mut pushed = 0;
    while producer.try_push(1, pushed, &chunk).unwrap() {
        pushed += 1;
    }
    assert_eq!(pushed, 15);
    let mut bytes = vec![0; chunk.len()];
    consumer.try_peek().unwrap().unwrap().copy_to(&mut bytes);
    assert_eq!(bytes, chunk);
    assert!(matches!(producer.try_push(1, 0, &vec![0; pangea_ring::RECORD_MAX + 1]), Err(RingError::TooLong { .. })));
    assert!(matches!(Channel::create(5000, 4096).unwrap_err(), RingError::Capacity { .. }));
    assert!(matches!(Channel::create(1 << 27, 4096).unwrap_err(), RingError::Capacity { .. }));
}

#[test]
fn files_are_read_and_written_straight_through_the_ring() {
    use std::io::{Seek, SeekFrom, Write};
    let (mut producer, mut consumer, _near, _far) = ring(1 << 20);
    let source = nix::sys::memfd::memfd_create("source", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let mut source = std::fs::File::from(source);
    source.write_all(&payload(3, 10_000)).unwrap();
    source.seek(SeekFrom::Start(0)).unwrap();
    let target = nix::sys::memfd::memfd_create("target", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let target = std::fs::File::from(target);
    let mut claim = producer.try_claim(1, 0, 20_000).unwrap().unwrap();
    assert_eq!(claim.read_from(0, source.as_fd(), Some(100)).unwrap(), 9_900);
    claim.publish(9_900);
    let record = consumer.try_peek().unwrap().unwrap();
    assert_eq!(record.write_to(0, record.len(), target.as_fd(), Some(5)).unwrap(), 9_900);
    let mut written = vec![0; 9_900];
    std::os::unix::fs::FileExt::read_exact_at(&target, &mut written, 5).unwrap();
    assert_eq!(written, payload(3, 10_000)[100..]);
}

#[test]
fn both_ends_sleep_and_are_woken() {
    let (mut producer, mut consumer, near, far) = ring(4096);
    let taker = std::thread::spawn(move || {
        let mut sum = 0;
        loop {
            match consumer.wait_record(far.as_fd(), None) {
                Ok(()) => {}
                Err(RingError::Closed) => return sum,
                Err(other) => panic!("{other}"),
            }
            let record = consumer.try_peek().unwrap().unwrap();
            sum += record.arg();
            record.release();
        }
    });
    for serial in 0..20_000 {
        while !producer.try_push(0, serial, &[0; 100]).unwrap() {
            producer.wait_space(100, near.as_fd(), None).unwrap();
        }
        if serial % 1000 == 0 {
            std::thread::yield_now();
        }
    }
    drop(producer);
    assert_eq!(taker.join().unwrap(), (0..20_000).sum());
}

#[test]
fn waiting_ends_with_the_time_or_with_the_other_process() {
    let (mut producer, mut consumer, near, far) = ring(4096);
    let timeout = Some(Duration::from_millis(20));
    assert_eq!(consumer.wait_record(far.as_fd(), timeout), Err(RingError::TimedOut));
    while producer.try_push(0, 0, &[0; 1000]).unwrap() {}
    assert_eq!(producer.wait_space(1000, near.as_fd(), timeout), Err(RingError::TimedOut));
    let waiter = std::thread::spawn(move || producer.wait_space(1000, near.as_fd(), None));
    drop(far); // the program's socket closes without a word, as after a kill; its mapping may live on
    assert_eq!(waiter.join().unwrap(), Err(RingError::PeerGone));
}
