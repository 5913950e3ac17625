//! A stranger on the other side writes whatever it likes: the ring ends with an error, never with a panic, a hang or an
//! access beyond the memory.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use pangea_ring::{Channel, RingError, segment::Segment};
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
