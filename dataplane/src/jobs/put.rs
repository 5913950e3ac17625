//! A put: a program's bytes become chunks, hashed and stored; at the end the content is known by its id.

use std::collections::VecDeque;
use std::rc::Rc;

use futures::future::{FutureExt, LocalBoxFuture};
use pangea_ipc::content::{CHUNK_SIZE, CONTENT_SIZE_MAX, ChainingValue, ChunkIndex, Manifest};
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, JobId};
use pangea_ipc::worker::{Event, PutPlan};
use pangea_ipc::{counter, door};

use super::rings::{Asked, Rings, RingsEnd};
use crate::buffer::{BUFFER_LEN, Buffer};
use crate::store::StoreError;
use crate::store::put::Incoming;
use crate::worker::{JobGuard, Worker};

/// Chunks of one put that wait for the store thread at most.
const WRITES_MAX: usize = 16;

/// More is asked for when less than this is left of the allowance, or than half of it: so that the answer comes in time.
const ALLOWANCE_LOW: u64 = 16 << 20;

/// Runs a put to its end and reports it.
pub async fn run(guard: JobGuard, plan: PutPlan, mut rings: Rings) {
    let worker = Rc::clone(guard.worker());
    let cancel = Rc::clone(&guard.entry.cancel);
    let result = tokio::select! {
        result = receive(&worker, &guard, &plan, &mut rings) => result,
        () = cancel.notified() => Err(Failure::cancelled("the put was cancelled")),
    };
    match result {
        Ok((content, size)) => {
            tracing::info!(%content, size, "put");
            worker.counters.add(counter::Id::BytesPut, size);
            worker.report(Event::PutDone { job: plan.job, content, size });
            // The program may have gone; its content is safe all the same.
            let _ = rings.send(door::PUT_DONE, size, &content.0).await;
        }
        Err(why) => {
            tracing::info!(%why, "put failed");
            worker.report(Event::Failed { job: plan.job, why: why.clone() });
            rings.fail(&why).await;
        }
    }
}

async fn receive(
    worker: &Worker,
    guard: &JobGuard,
    plan: &PutPlan,
    rings: &mut Rings,
) -> Result<(ContentId, u64), Failure> {
    let incoming = worker.store.begin_put(plan.job).await.map_err(|error| error.to_failure())?;
    let mut cutter = Cutter::new(worker, incoming);
    let mut record = worker.buffers.take().await;
    loop {
        match rings.next(record.space()).await.map_err(|end| ended(worker, &end))? {
            Asked::Data { offset, len } if offset == cutter.received => {
                within_allowance(worker, guard, plan.job, offset + len as u64).await?;
                cutter.push(record.space().get(..len).unwrap_or_default()).await?;
            }
            Asked::Data { offset, .. } => {
                return Err(Failure::protocol(format!("put sent byte {offset} where {} was next", cutter.received)));
            }
            Asked::End { size } if size == cutter.received => return cutter.finish().await,
            Asked::End { size } => {
                return Err(Failure::protocol(format!(
                    "put ended at {} bytes; {size} were announced",
                    cutter.received
                )));
            }
            Asked::Read(_) | Asked::Want(_) | Asked::Follow(_) => return Err(Failure::protocol("a put cannot read")),
        }
    }
}

fn ended(worker: &Worker, end: &RingsEnd) -> Failure {
    match end {
        RingsEnd::Gone => Failure::cancelled("the program went away before the put was complete; nothing was kept"),
        RingsEnd::Broken(_) => {
            worker.counters.add(counter::Id::RingsCorrupt, 1);
            Failure::protocol(end.to_string())
        }
        RingsEnd::System(_) => Failure::internal(end.to_string()),
    }
}

/// Waits until the put may store `bytes` in all; asks for more in good time.
async fn within_allowance(worker: &Worker, guard: &JobGuard, job: JobId, bytes: u64) -> Result<(), Failure> {
    let Some(sender) = &guard.entry.allowance else { return Ok(()) };
    let allowance = *sender.borrow();
    if bytes.saturating_add(ALLOWANCE_LOW.min(allowance / 2)) > allowance {
        worker.report(Event::AllowanceLow { job, stored: bytes });
    }
    if bytes <= allowance {
        return Ok(());
    }
    let mut changes = sender.subscribe();
    let enough = changes.wait_for(|allowance| bytes <= *allowance).await;
    enough.map(|_| ()).map_err(|_| Failure::internal("the put's allowance was lost"))
}

/// Cuts a stream of bytes into chunks and keeps a bounded number of them on their way to the disk.
struct Cutter<'a> {
    worker: &'a Worker,
    incoming: std::sync::Arc<Incoming>,
    received: u64,
    /// The chunk that is being filled. It is handed on only when there is more, since whether the first chunk is the
    /// only one decides how it is hashed.
    filling: Option<Buffer>,
    next: ChunkIndex,
    writes: VecDeque<LocalBoxFuture<'a, Result<ChainingValue, StoreError>>>,
    values: Vec<ChainingValue>,
}

impl<'a> Cutter<'a> {
    fn new(worker: &'a Worker, incoming: std::sync::Arc<Incoming>) -> Self {
        Self { worker, incoming, received: 0, filling: None, next: 0, writes: VecDeque::new(), values: Vec::new() }
    }

    async fn push(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        let size = self.received + bytes.len() as u64;
        if size > CONTENT_SIZE_MAX {
            let text = format!("a content has at most {CONTENT_SIZE_MAX} bytes; cut it into several");
            return Err(Failure::limit(text));
        }
        self.received = size;
        while !bytes.is_empty() {
            if self.filling.as_ref().is_some_and(|buffer| buffer.len() == BUFFER_LEN) {
                self.hand_on(false).await?;
            }
            let mut buffer = match self.filling.take() {
                Some(buffer) => buffer,
                None => self.worker.buffers.take().await,
            };
            let filled = buffer.len();
            let len = bytes.len().min(BUFFER_LEN - filled);
            let (now, later) = bytes.split_at(len);
            if let Some(space) = buffer.space().get_mut(filled..filled + len) {
                space.copy_from_slice(now);
            }
            buffer.set_len(filled + len);
            self.filling = Some(buffer);
            bytes = later;
        }
        Ok(())
    }

    async fn hand_on(&mut self, last: bool) -> Result<(), Failure> {
        let buffer = match self.filling.take() {
            Some(buffer) => buffer,
            None => self.worker.buffers.take().await, // the one chunk of an empty content
        };
        if self.writes.len() >= WRITES_MAX {
            self.settle_one().await?;
        }
        let (chunk, single) = (self.next, last && self.next == 0);
        let (worker, incoming) = (self.worker, std::sync::Arc::clone(&self.incoming));
        let mut write = async move { worker.store.append(&incoming, chunk, single, buffer).await }.boxed_local();
        // A first poll sends the request, so that the store thread works while the next chunk arrives.
        if let Some(result) = (&mut write).now_or_never() {
            write = std::future::ready(result).boxed_local();
        }
        self.writes.push_back(write);
        self.next += 1;
        Ok(())
    }

    async fn settle_one(&mut self) -> Result<(), Failure> {
        if let Some(write) = self.writes.pop_front() {
            match write.await {
                Ok(value) => self.values.push(value),
                Err(error) => {
                    if matches!(error, StoreError::Full { .. }) {
                        self.worker.counters.add(counter::Id::DiskFull, 1);
                    }
                    return Err(error.to_failure());
                }
            }
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(ContentId, u64), Failure> {
        self.hand_on(true).await?;
        while !self.writes.is_empty() {
            self.settle_one().await?;
        }
        let manifest = Manifest::seal(self.received, std::mem::take(&mut self.values))
            .map_err(|error| Failure::internal(error.to_string()))?;
        let (content, size) = (manifest.id(), self.received);
        self.worker.store.finish_put(self.incoming, manifest).await.map_err(|error| error.to_failure())?;
        Ok((content, size))
    }
}

const _: () = assert!(BUFFER_LEN == CHUNK_SIZE as usize);
