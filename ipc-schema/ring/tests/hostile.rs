//! A stranger on the other side writes whatever it likes: the ring ends with an error, never with a panic, a hang or an
//! access beyond the memory.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use pangea_ring::{Channel, Consumer, Producer, RingError, segment::Segment};
use proptest::prelude::*;

/// Offsets of the words in the header, as documented in `layout.rs`.
const PRODUCER: u64 = 128;
const CONSUMER: u64 = 256;
const RECORDS: u64 = 4096;

/// A channel, its other end, and the memory of the ring to and from the other end as files to scribble in.
fn strangers() -> (Channel, Channel, [std::fs::File; 2], UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    let before = memfds();
    let (ours, handover) = Channel::create(4096, 4096).unwrap();
    handover.send(&near).unwrap();
    let theirs = Channel::receive(&far).unwrap();
    let made: Vec<_> = memfds().into_iter().filter(|(_, inode)| !before.iter().any(|(_, old)| old == inode)).collect();
    let mut inodes: Vec<u64> = made.iter().map(|(_, inode)| *inode).collect();
    inodes.sort_unstable();
    inodes.dedup();
    let open = |inode| {
        let (path, _) = made.iter().find(|(_, found)| *found == inode).unwrap();
        std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
    };
    let files = [open(inodes[0]), open(inodes[1])];
    (ours, theirs, files, near, far)
}

/// This process's ring memories: path under `/proc` and inode.
fn memfds() -> Vec<(std::path::PathBuf, u64)> {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let rings = entries.filter(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains("pangea-ring"))
    });
    rings.filter_map(|entry| Some((entry.path(), std::fs::metadata(entry.path()).ok()?.ino()))).collect()
}

// The tests of this file look at the process's descriptors: one at a time.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

const VALUES: [u64; 12] =
    [1, 63, 64, 128, 4096, 4160, 1 << 31, u32::MAX as u64, 1 << 40, u64::MAX - 63, u64::MAX - 64, u64::MAX];

#[test]
fn every_position_is_judged_and_an_impossible_one_ends_the_ring_for_good() {
    let _alone = alone();
    for value in VALUES {
        let (mut ours, _theirs, files, _near, _far) = strangers();
        for file in &files {
            file.write_all_at(&value.to_ne_bytes(), PRODUCER).unwrap();
            file.write_all_at(&value.to_ne_bytes(), CONSUMER).unwrap();
        }
        let first = loop {
            match ours.consumer.try_peek() {
                Ok(Some(record)) => record.release(),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        // 64, 128 and 4096 are possible positions of zeroed memory: records of no bytes. All others are not.
        if [64, 128, 4096].contains(&value) {
            assert_eq!(first, None, "{value}");
        } else {
            assert!(matches!(first, Some(RingError::Corrupt { .. })), "{value}: {first:?}");
            file_reset(&files);
            assert_eq!(ours.consumer.try_peek().unwrap_err(), first.unwrap(), "it stays over");
        }
        let end = loop {
            match ours.producer.try_push(0, 0, &[0; 500]) {
                Ok(true) => {}
                Ok(false) => break None,
                Err(error) => break Some(error),
            }
        };
        assert!(matches!(end, None | Some(RingError::Corrupt { .. })), "{value}: {end:?}");
    }
}

fn file_reset(files: &[std::fs::File; 2]) {
    for file in files {
        file.write_all_at(&[0; 16], PRODUCER).unwrap();
        file.write_all_at(&[0; 16], CONSUMER).unwrap();
    }
}

#[test]
fn every_record_header_is_judged() {
    let _alone = alone();
    for len in [0_u32, 1, 48, 49, 112, 2031, 2032, 2033, 4079, 4080, 4081, 1 << 20, u32::MAX - 15, u32::MAX] {
        for tag in [0, 7, u32::MAX] {
            let (mut ours, mut theirs, files, _near, _far) = strangers();
            assert!(theirs.producer.try_push(1, 1, &[0; 100]).unwrap());
            for file in &files {
                file.write_all_at(&[len.to_ne_bytes(), tag.to_ne_bytes()].concat(), RECORDS).unwrap();
            }
            match ours.consumer.try_peek() {
                Ok(Some(record)) => assert!(record.len() <= 112, "a record never reaches beyond what was published"),
                Ok(None) => panic!("something was published"),
                Err(error) => assert!(matches!(error, RingError::Corrupt { .. }), "{len} {tag}: {error}"),
            };
        }
    }
}

/// Records that flow while somebody scribbles: several times around a ring of 4 KiB.
const FLOW: u64 = 400;
/// A wait of a few: whoever waits looks again by itself, so that a lost wake-up costs this and no more.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(20);

fn record(n: u64) -> Vec<u8> {
    (0..n * 97 % 900).map(|at| (n ^ at) as u8).collect()
}

/// Sends all records; says why not all went.
fn send(mut producer: Producer, alive: &UnixStream) -> Option<RingError> {
    let deadline = Instant::now() + PATIENCE;
    for n in 0..FLOW {
        let bytes = record(n);
        loop {
            match producer.try_push(7, n, &bytes) {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => return Some(error),
            }
            match producer.wait_space(bytes.len(), alive.as_fd(), Some(LOOK_AGAIN)) {
                Ok(()) | Err(RingError::TimedOut) => assert!(Instant::now() < deadline, "the producer hangs at {n}"),
                Err(error) => return Some(error),
            }
        }
    }
    None
}

/// Takes records, each of which must be the next and whole; says how many came and what ended it.
fn take(mut consumer: Consumer, alive: &UnixStream, taken: &AtomicU64) -> (u64, RingError) {
    let deadline = Instant::now() + PATIENCE;
    let mut next = 0;
    loop {
        match consumer.try_peek() {
            Ok(Some(found)) => {
                let mut bytes = vec![0; found.len()];
                found.copy_to(&mut bytes);
                assert_eq!((found.tag(), found.arg()), (7, next), "in order, without a gap");
                assert!(bytes == record(next), "record {next} is not whole");
                found.release();
                next += 1;
                taken.store(next, Ordering::Relaxed);
                continue;
            }
            Ok(None) => {}
            Err(error) => return (next, error),
        }
        match consumer.wait_record(alive.as_fd(), Some(LOOK_AGAIN)) {
            Ok(()) | Err(RingError::TimedOut) => assert!(Instant::now() < deadline, "the consumer hangs at {next}"),
            Err(error) => return (next, error),
        }
    }
}

/// Lets records flow, and writes `bytes` at `at` of the rings' headers over and over once a quarter has passed. Says what
/// ended the producer, how many records came, and what ended the consumer.
fn flow_scribbled(at: u64, bytes: &[u8]) -> (Option<RingError>, u64, RingError) {
    let (ours, theirs, files, near, far) = strangers();
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(ours.producer, &near));
        let taker = scope.spawn(|| take(theirs.consumer, &far, &taken));
        while taken.load(Ordering::Relaxed) < FLOW / 4 && !taker.is_finished() {
            std::thread::yield_now();
        }
        while !taker.is_finished() {
            for file in &files {
                file.write_all_at(bytes, at).unwrap();
            }
            std::thread::yield_now();
        }
        let (came, end) = taker.join().unwrap();
        (sender.join().unwrap(), came, end)
    })
}

/// What scribbling over a word may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// Nothing: nobody reads it any more, or whoever misses a wake-up looks again.
    None,
    /// It ends the ring early, as closed.
    Closes,
    /// It ends the ring early, as corrupt.
    Corrupts,
}

/// The positions here are impossible ones: one that is possible is what an honest side could have written, and then the
/// records are the stranger's own.
#[test]
fn every_header_word_is_scribbled_over_while_records_flow() {
    let _alone = alone();
    let wide = VALUES.map(|value| value.to_ne_bytes().to_vec()).to_vec();
    let narrow = |values: &[u32]| values.iter().map(|value| value.to_ne_bytes().to_vec()).collect::<Vec<_>>();
    let flags = narrow(&[1, 2, 1 << 31, u32::MAX]);
    let words = [
        ("magic", 0, wide.clone(), Harm::None),
        ("version", 8, narrow(&[0, 2, u32::MAX]), Harm::None),
        ("capacity", 12, narrow(&[0, 1, 64, 1 << 31, u32::MAX]), Harm::None),
        ("producer position", PRODUCER, wide.clone(), Harm::Corrupts),
        ("producer closed", PRODUCER + 8, flags.clone(), Harm::Closes),
        ("producer asleep", PRODUCER + 12, [narrow(&[0]), flags.clone()].concat(), Harm::None),
        ("consumer position", CONSUMER, wide, Harm::Corrupts),
        ("consumer closed", CONSUMER + 8, flags.clone(), Harm::Closes),
        ("consumer asleep", CONSUMER + 12, [narrow(&[0]), flags].concat(), Harm::None),
    ];
    for (word, at, values, harm) in words {
        /// A side that was done before the scribbling began is not harmed by it; the scheduler makes that so now and then.
        const ROUNDS: usize = 10;
        let mut harmed = 0;
        let rounds = if harm == Harm::None { 1 } else { ROUNDS };
        for value in (0..rounds).flat_map(|_| &values) {
            if harmed >= values.len() {
                break;
            }
            let (sender, came, end) = flow_scribbled(at, value);
            let context = format!("{word} = {value:?}: {sender:?}, {came} records, {end:?}");
            if came == FLOW && end == RingError::Closed && sender.is_none() {
                continue;
            }
            harmed += 1;
            let corrupt = [sender, Some(end)].into_iter().flatten().any(|e| matches!(e, RingError::Corrupt { .. }));
            let expected = if corrupt { Harm::Corrupts } else { Harm::Closes };
            assert_eq!(harm, expected, "{context}");
        }
        assert_eq!(
            harmed > 0,
            harm != Harm::None,
            "{word}: {harmed} times in {rounds} rounds of {} values",
            values.len()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_scribbling_never_brings_us_down(
        writes in prop::collection::vec((0_u64..8192, any::<u64>(), any::<bool>()), 1..40)
    ) {
        let _alone = alone();
        let (mut ours, mut theirs, files, _near, _far) = strangers();
        let mut space = vec![0; 1 << 18];
        for (at, value, first) in writes {
            let _ = theirs.producer.try_push(1, 1, &[1; 300]);
            let file = &files[usize::from(first)];
            file.write_all_at(&value.to_ne_bytes(), at.min(8184)).unwrap();
            for _ in 0..100 {
                match ours.consumer.try_peek() {
                    Ok(Some(record)) => {
                        record.copy_to(&mut space[..record.len()]);
                        record.release();
                    }
                    Ok(None) => break,
                    Err(error) => {
                        prop_assert_eq!(ours.consumer.try_peek().unwrap_err(), error);
                        break;
                    }
                }
            }
            let _ = ours.producer.try_push(2, 2, &[2; 700]);
            let _ = ours.producer.arm(700);
            let _ = ours.consumer.arm();
        }
    }
}

fn memory(seals: SealFlag, size: i64) -> OwnedFd {
    let fd = memfd_create("stranger", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::ftruncate(&fd, size).unwrap();
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    fd
}

#[test]
fn memory_that_is_no_ring_is_refused() {
    let _alone = alone();
    let all = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    let size = 4096 + 4096;
    for (fd, why) in [
        (memory(SealFlag::empty(), size), "size is not sealed"),
        (memory(SealFlag::F_SEAL_GROW, size), "can still shrink"),
        (memory(all, 100), "too small"),
        (memory(all, size + 1), "no power of two"),
        (memory(all, size), "no magic"),
        (std::fs::File::open("/dev/null").unwrap().into(), "no memfd"),
    ] {
        let error = Segment::open(fd).unwrap_err();
        assert!(matches!(error, RingError::NotARing(_) | RingError::Capacity { .. }), "{why}: {error}");
    }
}

#[test]
fn a_hand_over_with_the_wrong_message_or_descriptors_is_refused_and_leaks_nothing() {
    let _alone = alone();
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = count();
    for fds in [0_usize, 1, 5, 7, 12] {
        for message in [&b"GRAEGNAP"[..], &[0; 16], &[0; 40]] {
            let (near, far) = UnixStream::pair().unwrap();
            let file = std::fs::File::open("/dev/null").unwrap();
            let raw = vec![file.as_raw_fd(); fds];
            let control = [ControlMessage::ScmRights(&raw)];
            let control = if fds == 0 { &[][..] } else { &control[..] };
            let parts = [std::io::IoSlice::new(message)];
            sendmsg::<()>(near.as_raw_fd(), &parts, control, MsgFlags::empty(), None).unwrap();
            assert!(matches!(Channel::receive(&far), Err(RingError::NotARing(_))));
        }
    }
    let (near, far) = UnixStream::pair().unwrap();
    drop(near);
    assert_eq!(Channel::receive(far.as_fd()).unwrap_err(), RingError::PeerGone);
    drop(far);
    assert_eq!(count(), before, "every descriptor was closed");
}
