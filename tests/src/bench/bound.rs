//! What a get must do beside what a bare stream does, and so the most that the CPUs of one machine let both ends reach.
//!
//! Each part is done alone, as a worker does it, by all CPUs at once, since they are all busy in a get: two that are threads
//! of one core, or share a cache, are slower together. It counts what all CPUs of the machine were busy: the kernel's
//! write-back has threads of its own. What a get needs further, to hand chunks from thread to thread and to decide, is not
//! in the bound.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;

use pangea_dataplane::store::disk::{Located, reserve};
use pangea_ipc::content::{CHUNK_SIZE, chaining_value};
use pangea_ipc::door::{DATA_RING_BYTES, NOTICE_RING_BYTES};
use pangea_ring::Channel;
use tempfile::TempDir;

use super::nodes::touch;
use super::report::median;
use crate::sample;

const CHUNK: usize = CHUNK_SIZE as usize;
/// Chunks that are under way at a time, each with a buffer of its own: they do not stay in a core's cache.
const BUFFERS: usize = 32;
/// Chunks after which what is written is synced, as in a fetch.
pub(super) const SYNC_CHUNKS: u64 = 128;

/// CPUs of this machine.
#[must_use]
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Seconds that the CPUs of this machine were not idle while something was done.
pub struct Busy {
    started: Instant,
    idle: f64,
}

impl Busy {
    /// From now on.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now(), idle: idle() }
    }

    /// Until now, for each GiB of `bytes`.
    #[must_use]
    pub fn per_gib(&self, bytes: u64) -> f64 {
        let all = self.started.elapsed().as_secs_f64() * cpus() as f64;
        (all - (idle() - self.idle)) / (bytes as f64 / f64::from(1 << 30))
    }
}

/// Seconds that the CPUs were idle, waited for a disk, or were taken by the host.
fn idle() -> f64 {
    /// Linux counts in hundredths whatever its own clock does.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let words: Vec<f64> = stat.lines().next().unwrap().split_whitespace().skip(1).map(|w| w.parse().unwrap()).collect();
    (words[3] + words[4] + words[7]) / TICKS
}

/// Seconds of CPU for a GiB.
#[derive(Debug, Clone, Copy)]
pub struct Parts {
    /// Reading it from the page cache.
    pub read: f64,
    /// Hashing it.
    pub hash: f64,
    /// Writing it into the page cache, from there to the disk, and syncing it.
    pub write: f64,
    /// Handing it to a program through a ring, and touching every byte there.
    pub hand: f64,
}

impl Parts {
    /// All of them.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.read + self.hash + self.write + self.hand
    }

    /// The median of each.
    #[must_use]
    pub fn median(found: &[Self]) -> Self {
        let of = |part: fn(&Self) -> f64| median(&found.iter().map(part).collect::<Vec<_>>());
        Self { read: of(|p| p.read), hash: of(|p| p.hash), write: of(|p| p.write), hand: of(|p| p.hand) }
    }
}

/// Does the parts.
pub struct Bound {
    folder: TempDir,
    /// Chunks that each CPU does.
    share: u64,
}

impl Bound {
    /// For contents of about so many bytes.
    ///
    /// # Panics
    /// When the temporary folder cannot be written.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let share = (bytes / CHUNK as u64 / cpus() as u64).max(1);
        let folder = tempfile::tempdir().unwrap();
        for cpu in 0..cpus() {
            let source = folder.path().join(format!("source-{cpu}"));
            sample::write_file(&source, share * CHUNK as u64, 3).unwrap();
            File::open(source).unwrap().sync_all().unwrap();
        }
        Self { folder, share }
    }

    /// Does each of them once.
    ///
    /// # Panics
    /// When the temporary folder cannot be read or written.
    #[must_use]
    pub fn measure(&self) -> Parts {
        let path = |name: &str, cpu: usize| self.folder.path().join(format!("{name}-{cpu}"));
        let read = self.timed(|cpu| {
            let source = File::open(path("source", cpu)).unwrap();
            move |chunk, buffer| source.read_exact_at(buffer, chunk * CHUNK as u64).unwrap()
        });
        let hash = self.timed(|_| {
            |chunk, buffer| {
                black_box(chaining_value(chunk as u32, false, buffer));
            }
        });
        let write = self.timed(|cpu| {
            let mut target = create(&path("target", cpu), self.share * CHUNK as u64).unwrap();
            move |chunk, buffer| {
                target.write_all(buffer).unwrap();
                if chunk % SYNC_CHUNKS == SYNC_CHUNKS - 1 || chunk + 1 == self.share {
                    target.sync_data().unwrap();
                }
            }
        });
        let hand = self.timed(|_| {
            let (mut worker, mut program) = rings();
            let mut space = vec![0; CHUNK];
            move |chunk, buffer| {
                assert!(worker.producer.try_push(1, chunk, buffer).unwrap());
                let record = program.consumer.try_peek().unwrap().unwrap();
                record.copy_to(&mut space);
                black_box(touch(&space));
                record.release();
            }
        });
        Parts { read, hash, write, hand }
    }

    /// Seconds of CPU for a GiB when each CPU does the work that `work` gives it for all chunks of its share.
    fn timed<W: FnMut(u64, &mut [u8])>(&self, work: impl Fn(usize) -> W + Sync) -> f64 {
        let ready = Barrier::new(cpus() + 1);
        let busy = std::thread::scope(|scope| {
            for cpu in 0..cpus() {
                let (work, ready) = (&work, &ready);
                scope.spawn(move || {
                    // Not zero: the kernel would find memory for them only when they are used.
                    let mut buffers = vec![vec![1; CHUNK]; BUFFERS];
                    let mut work = work(cpu);
                    ready.wait();
                    for chunk in 0..self.share {
                        work(chunk, &mut buffers[chunk as usize % BUFFERS]);
                    }
                });
            }
            let busy = Busy::start();
            ready.wait();
            busy
        });
        busy.per_gib(self.share * cpus() as u64 * CHUNK as u64)
    }
}

/// Makes a file with room on disk for so many bytes, as a fetch asks for it: it is written with less work then.
///
/// # Errors
/// What the disk says.
pub(super) fn create(path: &Path, bytes: u64) -> io::Result<File> {
    let target = Located { path: path.to_owned(), file: File::create(path)? };
    reserve(&target, 0, bytes);
    Ok(target.file)
}

/// Both ends of the rings between a worker and a program.
fn rings() -> (Channel, Channel) {
    let (here, there) = UnixStream::pair().unwrap();
    let (worker, handover) = Channel::create(DATA_RING_BYTES, NOTICE_RING_BYTES).unwrap();
    handover.send(&here).unwrap();
    (worker, Channel::receive(&there).unwrap())
}
