//! What the store promises, at every point where a crash or a failing disk may come: no wrong byte is held, what was
//! acknowledged is there, and the same work done again succeeds.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::{CHUNK_SIZE, Manifest, chaining_value};
use pangea_ipc::ids::{JobId, WorkerIndex};

use super::files::ContentFiles;
use super::machine::{Fault, Loss, Machine};
use super::{Store, StoreError};
use crate::buffer::{Buffer, Pool};

/// Two chunks and a bit.
const LEN: usize = 2 * CHUNK_SIZE as usize + 9;

struct Sample {
    bytes: Vec<u8>,
    manifest: Manifest,
}

impl Sample {
    fn new() -> Self {
        let bytes: Vec<u8> = (0..LEN).map(|at| (at * 31 + at / 251) as u8 | 1).collect(); // no byte is that of a hole
        let values = (0..).zip(bytes.chunks(CHUNK_SIZE as usize)).map(|(at, chunk)| chaining_value(at, false, chunk));
        let manifest = Manifest::seal(LEN as u64, values.collect()).unwrap();
        Self { bytes, manifest }
    }

    fn chunk(&self, chunk: u32) -> &[u8] {
        self.bytes.chunks(CHUNK_SIZE as usize).nth(chunk as usize).unwrap()
    }

    fn buffer(&self, chunk: u32) -> Buffer {
        let mut buffer = Pool::new(1).try_take().unwrap();
        let bytes = self.chunk(chunk);
        buffer.space().get_mut(..bytes.len()).unwrap().copy_from_slice(bytes);
        buffer.set_len(bytes.len());
        buffer
    }

    fn all(&self) -> ChunkSet {
        ChunkSet::full(self.manifest.values().len() as u32)
    }

    fn none(&self) -> ChunkSet {
        ChunkSet::empty(self.manifest.values().len() as u32)
    }

    fn folder(&self, root: &Path) -> PathBuf {
        root.join(self.manifest.id().to_string())
    }

    /// What the controller does before a fetch.
    fn place_manifest(&self, root: &Path) {
        std::fs::create_dir_all(self.folder(root)).unwrap();
        std::fs::write(self.folder(root).join("manifest"), self.manifest.to_file_bytes()).unwrap();
    }

    /// What is claimed is right; says what that is.
    fn held(&self, root: &Path) -> ChunkSet {
        if !self.folder(root).join("manifest").exists() {
            return self.none();
        }
        let files = ContentFiles::open(root, self.manifest.id()).unwrap();
        let held = files.held().unwrap();
        let mut space = vec![0; CHUNK_SIZE as usize];
        for chunk in held.iter() {
            let len = files.read(chunk, &mut space).unwrap();
            assert!(space.get(..len).unwrap() == self.chunk(chunk), "chunk {chunk} is held and wrong");
        }
        held
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// Work on a store; notes in the set what was acknowledged.
type Work = fn(&Sample, &Path, &mut ChunkSet) -> Result<(), StoreError>;

/// A fetch: whatever is not here is written, synced and claimed, two chunks and then the rest.
fn fetch(sample: &Sample, root: &Path, acknowledged: &mut ChunkSet) -> Result<(), StoreError> {
    run(async {
        let store = Store::open(root.to_owned(), WorkerIndex(0)).await?;
        let content = store.content(sample.manifest.id()).await?;
        content.recover(&sample.all()).await?;
        for chunk in sample.all().iter() {
            if !content.holds(chunk) {
                store.write(&content, chunk, sample.buffer(chunk)).await?;
            }
            if chunk > 0 {
                store.sync(&content).await?;
                acknowledged.union_with(&content.durable());
            }
        }
        Ok(())
    })
}

fn put(sample: &Sample, root: &Path, acknowledged: &mut ChunkSet) -> Result<(), StoreError> {
    run(async {
        let store = Store::open(root.to_owned(), WorkerIndex(0)).await?;
        let incoming = store.begin_put(JobId(1)).await?;
        for chunk in sample.all().iter() {
            store.append(&incoming, chunk, false, sample.buffer(chunk)).await?;
        }
        store.finish_put(incoming, sample.manifest.clone()).await?;
        acknowledged.union_with(&sample.all());
        Ok(())
    })
}

/// Tries `work` with every fault at every change that it makes, and every loss thereafter. `prepare`: what was there.
fn at_every_change(prepare: fn(&Sample, &Path) -> ChunkSet, work: Work) {
    let sample = Sample::new();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let mut points = 0;
    for fault in [Fault::Power, Fault::Error(Errno::ENOSPC as i32), Fault::Error(Errno::EIO as i32)] {
        for loss in Loss::all() {
            for at in 0.. {
                std::fs::create_dir(&root).unwrap();
                let mut acknowledged = prepare(&sample, &root);
                let machine = Machine::new(&root);
                machine.fail_after(at, fault);
                let result = work(&sample, &root, &mut acknowledged);
                let context = format!("{fault:?} at change {at}, then {loss:?}: {result:?}");
                let reached = machine.changes() > at;
                if fault == Fault::Power {
                    machine.restart(loss);
                } else {
                    machine.fail_after(usize::MAX, fault); // the disk is well again
                }
                assert!(acknowledged.is_subset_of(&sample.held(&root)), "acknowledged and lost: {context}");
                // The same again, in a process that has just started.
                let again = work(&sample, &root, &mut acknowledged);
                assert!(again.is_ok(), "not resumed: {again:?}: {context}");
                machine.restart(loss);
                assert!(sample.held(&root).is_full(), "not all is here in the end: {context}");
                let left: Vec<_> = std::fs::read_dir(&root).unwrap().flatten().map(|entry| entry.file_name()).collect();
                assert_eq!(left, [sample.manifest.id().to_string().as_str()], "left behind: {context}");
                std::fs::remove_dir_all(&root).unwrap();
                points += 1;
                if !reached {
                    break;
                }
            }
        }
    }
    assert!(points > 100, "only {points} points were tried");
}

#[test]
fn a_fetch_survives_a_crash_at_every_point() {
    at_every_change(
        |sample, root| {
            sample.place_manifest(root);
            sample.none()
        },
        fetch,
    );
}

#[test]
fn a_put_survives_a_crash_at_every_point() {
    at_every_change(|sample, _| sample.none(), put);
}

#[test]
fn a_put_of_what_is_here_in_part_survives_a_crash_at_every_point() {
    at_every_change(
        |sample, root| {
            sample.place_manifest(root);
            let files = ContentFiles::open(root, sample.manifest.id()).unwrap();
            files.write(1, sample.chunk(1)).unwrap();
            let one = ChunkSet::of_range(sample.all().bound(), 1..2);
            files.claim(&one).unwrap();
            one
        },
        put,
    );
}

#[test]
fn a_put_over_what_a_cut_short_get_left_survives_a_crash_at_every_point() {
    at_every_change(
        |sample, root| {
            std::fs::create_dir(sample.folder(root)).unwrap();
            std::fs::write(sample.folder(root).join("manifest.0123"), b"PGMA").unwrap();
            sample.none()
        },
        put,
    );
}

#[test]
fn a_removal_cut_short_anywhere_leaves_all_or_nothing_and_can_be_done_again() {
    let sample = Sample::new();
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("store");
    let remove = || {
        run(async {
            let store = Store::open(root.clone(), WorkerIndex(0)).await.map_err(|error| error.to_failure())?;
            store.remove(sample.manifest.id(), true).await
        })
    };
    for fault in [Fault::Power, Fault::Error(Errno::EIO as i32)] {
        for loss in Loss::all() {
            for at in 0.. {
                std::fs::create_dir(&root).unwrap();
                put(&sample, &root, &mut sample.none()).unwrap();
                let machine = Machine::new(&root);
                machine.fail_after(at, fault);
                let result = remove();
                let reached = machine.changes() > at;
                if fault == Fault::Power {
                    machine.restart(loss);
                } else {
                    machine.fail_after(usize::MAX, fault);
                }
                let held = sample.held(&root);
                let context = format!("{fault:?} at change {at}, then {loss:?}: {result:?}");
                assert!(held.is_full() || held.is_empty(), "a part is left: {context}");
                assert!(result.is_err() || held.is_empty(), "removed and here: {context}");
                put(&sample, &root, &mut sample.none()).unwrap();
                remove().unwrap();
                assert!(std::fs::read_dir(&root).unwrap().next().is_none(), "left behind: {context}");
                std::fs::remove_dir_all(&root).unwrap();
                if !reached {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_removal_does_not_stumble_over_what_an_earlier_one_could_not_delete() {
    let sample = Sample::new();
    let folder = tempfile::tempdir().unwrap();
    put(&sample, folder.path(), &mut sample.none()).unwrap();
    let machine = Machine::new(folder.path());
    run(async {
        let store = Store::open(folder.path().to_owned(), WorkerIndex(0)).await.unwrap();
        machine.fail_after(2, Fault::Error(Errno::EIO as i32)); // moved, synced, not deleted
        store.remove(sample.manifest.id(), true).await.unwrap_err();
        std::fs::create_dir(sample.folder(folder.path())).unwrap();
        std::fs::write(sample.folder(folder.path()).join("data"), b"x").unwrap();
        store.remove(sample.manifest.id(), true).await.unwrap();
    });
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none(), "left behind");
}

#[test]
fn a_chunk_that_was_found_wrong_is_not_held_again_after_a_loss_of_power() {
    let sample = Sample::new();
    let folder = tempfile::tempdir().unwrap();
    put(&sample, folder.path(), &mut sample.none()).unwrap();
    let data = sample.folder(folder.path()).join("data");
    std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(data).unwrap(), b"?", 0)
        .unwrap();
    let machine = Machine::new(folder.path());
    run(async {
        let store = Store::open(folder.path().to_owned(), WorkerIndex(0)).await.unwrap();
        let content = store.content(sample.manifest.id()).await.unwrap();
        let read = store.read(&content, 0, Pool::new(1).try_take().unwrap()).await;
        assert!(matches!(read, Err(StoreError::WrongBytes { chunk: 0, .. })), "{read:?}");
    });
    machine.restart(Loss { data: false, others: true, names: false });
    assert_eq!(sample.held(folder.path()).iter().collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_store_whose_disk_fails_stops_writing_and_goes_on_reading() {
    let sample = Sample::new();
    let folder = tempfile::tempdir().unwrap();
    sample.place_manifest(folder.path());
    let machine = Machine::new(folder.path());
    run(async {
        let store = Store::open(folder.path().to_owned(), WorkerIndex(0)).await.unwrap();
        let content = store.content(sample.manifest.id()).await.unwrap();
        store.write(&content, 0, sample.buffer(0)).await.unwrap();
        store.sync(&content).await.unwrap();
        // A full disk is no failing one: the next write is tried.
        machine.fail_after(0, Fault::Error(Errno::ENOSPC as i32));
        let full = store.write(&content, 1, sample.buffer(1)).await;
        assert!(matches!(full, Err(StoreError::Full { .. })), "{full:?}");
        assert!(store.failure().borrow().is_none());
        store.write(&content, 1, sample.buffer(1)).await.unwrap();
        machine.fail_after(0, Fault::Error(Errno::EIO as i32));
        let failed = store.sync(&content).await;
        assert!(matches!(failed, Err(StoreError::Sync { .. })), "{failed:?}");
        assert!(store.failure().borrow().is_some());
        assert!(!content.durable().contains(1), "not claimed");
        let after = store.write(&content, 2, sample.buffer(2)).await;
        assert!(matches!(after, Err(StoreError::Latched { .. })), "{after:?}");
        let read = store.read(&content, 0, Pool::new(1).try_take().unwrap()).await.unwrap();
        assert!(read.as_ref() == sample.chunk(0));
    });
}
