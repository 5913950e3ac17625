//! A bare stream that does what a get must do besides: one end reads a file, the other hashes, writes and syncs, and
//! touches every byte.
//!
//! It is the plainest that does so: no peers to choose among, no store, no rings, one copy less on the way to the program.
//! Disk and hash have threads of their own, as in a worker, which run on whichever CPU is free.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread::JoinHandle;

use bytes::Bytes;
use pangea_dataplane::buffer::{BUFFER_LEN, Buffer, Pool};
use pangea_dataplane::cpu::Allowed;
use pangea_ipc::content::chaining_value;
use quinn::{RecvStream, SendStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::bare::Outcome;
use super::bound::{SYNC_CHUNKS, create};
use super::nodes::touch;

/// Buffers that each end has, as a worker has for one peer.
const BUFFERS: usize = 64;
/// Chunks read ahead of the stream.
const AHEAD: usize = 8;

/// What a role of a bare stream does with the bytes.
#[derive(Debug)]
pub struct Load {
    /// The file that the server sends, or that the client writes.
    pub path: PathBuf,
    /// CPUs for the threads beside the stream's.
    pub allowed: Option<Allowed>,
}

impl Load {
    fn thread(&self, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let allowed = self.allowed.clone();
        std::thread::spawn(move || {
            allowed.iter().for_each(Allowed::unpin);
            work();
        })
    }

    /// Sends the first bytes of the file.
    pub(super) async fn send(&self, send: &mut SendStream, bytes: u64) -> Outcome {
        let (give, mut read) = channel::<Buffer>(AHEAD);
        let (file, pool, handle) = (File::open(&self.path)?, Pool::new(BUFFERS), Handle::current());
        let reader = self.thread(move || {
            let mut at = 0;
            while at < bytes {
                let mut buffer = handle.block_on(pool.take());
                let len = BUFFER_LEN.min(usize::try_from(bytes - at).unwrap_or(BUFFER_LEN));
                file.read_exact_at(&mut buffer.space()[..len], at).unwrap();
                buffer.set_len(len);
                at += len as u64;
                if give.blocking_send(buffer).is_err() {
                    return; // the connection broke; the client tells
                }
            }
        });
        while let Some(buffer) = read.recv().await {
            send.write_chunk(Bytes::from_owner(buffer)).await?;
        }
        reader.join().unwrap();
        Ok(())
    }

    /// Takes a stream to its end; returns when all of it is hashed, written, synced and touched.
    pub(super) async fn receive(&self, recv: &mut RecvStream, bytes: u64, came: &mut u64) -> Outcome {
        /// Packets whose contents are taken at once.
        const PIECES: usize = 48;
        let (store, chunks) = channel(BUFFERS);
        let (program, stored) = channel(BUFFERS);
        let mut file = create(&self.path, bytes)?;
        let syncer = file.try_clone()?;
        let (sync, syncs) = channel(1);
        let threads = [
            self.thread(move || store_all(chunks, &mut file, &sync, &program)),
            self.thread(move || sync_all(syncs, &syncer)),
            self.thread(move || touch_all(stored)),
        ];
        let pool = Pool::new(BUFFERS);
        let mut pieces: [Bytes; PIECES] = std::array::from_fn(|_| Bytes::new());
        let (mut buffer, mut filled) = (pool.take().await, 0);
        while let Some(count) = recv.read_chunks(&mut pieces).await? {
            for mut piece in pieces.iter_mut().take(count).map(std::mem::take) {
                *came += piece.len() as u64;
                while !piece.is_empty() {
                    let part = piece.split_to(piece.len().min(BUFFER_LEN - filled));
                    buffer.space()[filled..filled + part.len()].copy_from_slice(&part);
                    filled += part.len();
                    if filled == BUFFER_LEN {
                        buffer.set_len(std::mem::take(&mut filled));
                        store.send(std::mem::replace(&mut buffer, pool.take().await)).await?;
                    }
                }
            }
        }
        if filled > 0 {
            buffer.set_len(filled);
            store.send(buffer).await?;
        }
        drop(store);
        for thread in threads {
            thread.join().unwrap();
        }
        Ok(())
    }
}

fn store_all(mut chunks: Receiver<Buffer>, file: &mut File, sync: &Sender<()>, program: &Sender<Buffer>) {
    for chunk in 0_u32.. {
        let Some(buffer) = chunks.blocking_recv() else { return };
        black_box(chaining_value(chunk, false, buffer.as_ref()));
        file.write_all(buffer.as_ref()).unwrap();
        if u64::from(chunk) % SYNC_CHUNKS == SYNC_CHUNKS - 1 {
            let _ = sync.try_send(()); // one that waits will do
        }
        program.blocking_send(buffer).unwrap();
    }
}

/// Syncs when told, and once more at the end.
fn sync_all(mut syncs: Receiver<()>, file: &File) {
    while syncs.blocking_recv().is_some() {
        file.sync_data().unwrap();
    }
    file.sync_data().unwrap();
}

fn touch_all(mut stored: Receiver<Buffer>) {
    while let Some(buffer) = stored.blocking_recv() {
        black_box(touch(buffer.as_ref()));
    }
}
