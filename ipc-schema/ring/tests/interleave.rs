//! All orders in which two threads can see each other's words, explored by loom. Empty unless built with `--cfg loom`:
//! `RUSTFLAGS="--cfg loom" cargo test -p pangea-ring --release --test interleave`
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use loom::thread;
use pangea_ring::loom_ring;

#[test]
fn what_is_published_is_seen_whole_and_in_order() {
    loom::model(|| {
        let (mut producer, mut consumer) = loom_ring(256);
        let filler = thread::spawn(move || {
            for serial in 0..2_u64 {
                assert!(producer.try_push(0, serial, &serial.to_ne_bytes()).unwrap());
            }
        });
        let mut next = 0;
        for _ in 0..3 {
            while let Ok(Some(record)) = consumer.try_peek() {
                let mut bytes = [0; 8];
                record.copy_to(&mut bytes);
                assert_eq!((record.arg(), u64::from_ne_bytes(bytes)), (next, next));
                record.release();
                next += 1;
            }
            thread::yield_now();
        }
        filler.join().unwrap();
    });
}

#[test]
fn memory_is_used_again_only_after_it_was_released() {
    loom::model(|| {
        let (mut producer, mut consumer) = loom_ring(128);
        for serial in 0..2_u64 {
            assert!(producer.try_push(0, serial, &[1; 8]).unwrap());
        }
        let taker = thread::spawn(move || {
            let record = consumer.try_peek().unwrap().unwrap();
            let mut bytes = [0; 8];
            record.copy_to(&mut bytes);
            assert_eq!(bytes, [1; 8], "not yet overwritten");
            record.release();
            consumer // lives on: its end would end the ring
        });
        let _ = producer.try_push(0, 2, &[2; 8]).unwrap();
        taker.join().unwrap();
    });
}

#[test]
fn nobody_sleeps_through_a_record() {
    loom::model(|| {
        let (mut producer, mut consumer) = loom_ring(256);
        let filler = thread::spawn(move || {
            assert!(producer.try_push(0, 7, &[0; 8]).unwrap());
            let rang = producer.rang();
            (rang, producer) // lives on: its end would ring too
        });
        let sleeps = consumer.arm().unwrap();
        let (rang, _producer) = filler.join().unwrap();
        assert!(!sleeps || rang, "it went to sleep, and the bell was not rung");
    });
}

#[test]
fn nobody_sleeps_through_room() {
    loom::model(|| {
        let (mut producer, mut consumer) = loom_ring(128);
        for serial in 0..2 {
            assert!(producer.try_push(0, serial, &[0; 8]).unwrap());
        }
        let taker = thread::spawn(move || {
            consumer.try_peek().unwrap().unwrap().release();
            let rang = consumer.rang();
            (rang, consumer) // lives on: its end would ring too
        });
        let sleeps = producer.arm(8).unwrap();
        let (rang, _consumer) = taker.join().unwrap();
        assert!(!sleeps || rang, "it went to sleep, and the bell was not rung");
    });
}
