//! A read: a local program gets chunks through its ring, in the order in which it asks or they come, each checked.
//!
//! The worker tells which chunks it holds and which of them are durable, at first and whenever that changes; the
//! program asks for what it wants next, or follows what comes. So the same road serves a file that is copied, a stream
//! that is read in order and a reader that jumps about, of a content that is complete or still arriving.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use futures::future::{FutureExt, LocalBoxFuture};
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::{CHUNK_SIZE, ChunkIndex};
use pangea_ipc::failure::Failure;
use pangea_ipc::worker::{Event, ReadPlan};
use pangea_ipc::{counter, door};
use tokio::time::{Duration, MissedTickBehavior};

use super::rings::{Asked, Rings, RingsEnd};
use crate::buffer::Buffer;
use crate::store::StoreError;
use crate::store::content::Content;
use crate::worker::{JobGuard, Worker};

/// Chunks of one program that are read from the disk ahead of its ring.
const READ_AHEAD: usize = 4;
/// Chunks that a program may have asked for and not got.
const ASKED_MAX: usize = 4096;
/// How often the claims of other workers are looked for while chunks are missing.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Runs a read to its end and reports it.
pub async fn run(guard: JobGuard, plan: ReadPlan, mut rings: Rings) {
    let worker = Rc::clone(guard.worker());
    let cancel = Rc::clone(&guard.entry.cancel);
    let result = tokio::select! {
        result = serve(&worker, &guard, &plan, &mut rings) => result,
        () = cancel.notified() => Err(Failure::cancelled("the read was cancelled")),
    };
    if let Err(why) = result {
        tracing::info!(content = %plan.content, %why, "read ended");
        rings.fail(&why).await;
    }
    worker.report(Event::ReadDone(plan.job));
}

type Reading<'a> = LocalBoxFuture<'a, Result<(ChunkIndex, Buffer), StoreError>>;

async fn serve(worker: &Worker, guard: &JobGuard, plan: &ReadPlan, rings: &mut Rings) -> Result<(), Failure> {
    let content = worker.store.content(plan.content).await.map_err(|error| error.to_failure())?;
    let bound = content.manifest().geometry().chunk_count();
    let news = content.watch();
    let mut told = Told { held: ChunkSet::empty(bound), durable: ChunkSet::empty(bound) };
    let mut asked: VecDeque<Range<ChunkIndex>> = VecDeque::new();
    let mut reading: VecDeque<Reading<'_>> = VecDeque::new();
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sent = Cell::new(0_u32);
    let note_sent = |buffer: &Buffer| {
        worker.counters.add(counter::Id::BytesRead, buffer.len() as u64);
        sent.set(sent.get() + 1);
        guard.entry.progress.set((sent.get(), bound));
    };
    let mut followed = 0..0;
    loop {
        while rings.has_room(CHUNK_SIZE as usize).map_err(|end| ended(worker, &end))?
            && let Some((chunk, buffer)) =
                worker.store.take_fresh(&content, |chunk| followed.contains(&chunk) && !told.held.contains(chunk))
        {
            send(&content, chunk, &buffer, rings).await.map_err(|end| ended(worker, &end))?;
            told.held.insert(chunk);
            note_sent(&buffer);
            worker.counters.add(counter::Id::ChunksFollowed, 1);
        }
        told.tell_news(&content, news.take(), rings).await.map_err(|end| ended(worker, &end))?;
        while reading.len() < READ_AHEAD
            && let Some(chunk) = next_asked(&mut asked)
        {
            reading.push_back(start_reading(worker, &content, chunk));
        }
        let complete = told.durable.is_full();
        tokio::select! {
            biased;
            Some(result) = async { Some(reading.front_mut()?.await) } => {
                reading.pop_front();
                let (chunk, buffer) = result.map_err(|error| { unreadable(worker, &error) })?;
                send(&content, chunk, &buffer, rings).await.map_err(|end| ended(worker, &end))?;
                note_sent(&buffer);
            }
            waited = rings.wait_record() => {
                match waited.and_then(|()| rings.take(&mut [])) {
                    Err(RingsEnd::Gone) => return Ok(()),
                    Err(end) => return Err(ended(worker, &end)),
                    Ok(None) => {}
                    Ok(Some(Asked::Read(range))) => {
                        let total: usize = asked.iter().map(|range| range.len()).sum();
                        if range.end > bound || total + range.len() > ASKED_MAX {
                            return Err(Failure::protocol(format!("chunks {range:?} asked of a content with {bound}")));
                        }
                        asked.push_back(range);
                    }
                    Ok(Some(Asked::Follow(range))) => followed = range,
                    Ok(Some(Asked::Want(range))) => worker.want(plan.content, &range),
                    Ok(Some(Asked::Data { .. } | Asked::End { .. })) => {
                        return Err(Failure::protocol("a read cannot put"));
                    }
                }
            }
            () = news.changed() => {}
            _ = look_again.tick(), if !complete => {
                content.refresh().await.map_err(|error| error.to_failure())?;
            }
        }
    }
}

async fn send(content: &Content, chunk: ChunkIndex, buffer: &Buffer, rings: &mut Rings) -> Result<(), RingsEnd> {
    let offset = content.manifest().geometry().chunk_offset(chunk);
    rings.send(door::DATA, offset, buffer.as_ref()).await
}

fn ended(worker: &Worker, end: &RingsEnd) -> Failure {
    if matches!(end, RingsEnd::Broken(_)) {
        worker.counters.add(counter::Id::RingsCorrupt, 1);
    }
    Failure::protocol(end.to_string())
}

fn unreadable(worker: &Worker, error: &StoreError) -> Failure {
    worker.counters.add(counter::Id::ReadBad, 1);
    let mut failure = error.to_failure();
    failure
        .text
        .push_str("; the disk has not kept it: get the content again when another node has it, or put it again");
    failure
}

fn next_asked(asked: &mut VecDeque<Range<ChunkIndex>>) -> Option<ChunkIndex> {
    loop {
        let front = asked.front_mut()?;
        if let Some(chunk) = front.next() {
            return Some(chunk);
        }
        asked.pop_front();
    }
}

/// Sends the request to the store thread at once; the answer is awaited in order.
fn start_reading<'a>(worker: &'a Worker, content: &Rc<Content>, chunk: ChunkIndex) -> Reading<'a> {
    let content = Rc::clone(content);
    let mut read = async move {
        if !content.holds(chunk) {
            return Err(StoreError::NotHere { id: content.manifest().id() });
        }
        if let Some(fresh) = worker.store.take_fresh(&content, |fresh| fresh == chunk) {
            return Ok(fresh);
        }
        let buffer = worker.buffers.take().await;
        worker.store.read(&content, chunk, buffer).await.map(|buffer| (chunk, buffer))
    }
    .boxed_local();
    match (&mut read).now_or_never() {
        Some(result) => std::future::ready(result).boxed_local(),
        None => read,
    }
}

/// What the program has been told so far.
struct Told {
    held: ChunkSet,
    durable: ChunkSet,
}

impl Told {
    /// Tells what is new among `chunks`.
    async fn tell_news(
        &mut self,
        content: &Content,
        chunks: Range<ChunkIndex>,
        rings: &mut Rings,
    ) -> Result<(), RingsEnd> {
        let held = content.held().ranges_beyond(&self.held, chunks.clone()).collect();
        tell(&mut self.held, held, door::HELD, rings).await?;
        let durable = content.durable().ranges_beyond(&self.durable, chunks).collect();
        tell(&mut self.durable, durable, door::DURABLE, rings).await
    }
}

async fn tell(told: &mut ChunkSet, news: Vec<Range<ChunkIndex>>, tag: u32, rings: &mut Rings) -> Result<(), RingsEnd> {
    for range in news {
        rings.send(tag, door::pack_range(range.clone()), &[]).await?;
        told.insert_range(range);
    }
    Ok(())
}
