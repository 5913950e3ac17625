//! The store thread: checks and writes, reads and checks, one chunk at a time, in order.
//!
//! The network thread hands chunks over through one `rtrb` ring and gets them back through another; neither side
//! allocates or locks to pass one. A full ring is an ordinary answer: the asker waits for the next reply.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::{cell::RefCell, rc::Rc};

use pangea_ipc::content::{ChainingValue, ChunkIndex, chaining_value};
use tokio::sync::{Notify, oneshot};

use super::StoreError;
use super::files::ContentFiles;
use super::put::Incoming;
use crate::buffer::Buffer;

/// Requests that may wait for the store thread at once.
pub const REQUESTS_MAX: usize = 64;

/// How often the store thread looks for a request before it sleeps: waking it costs 50 to 110 us, looking 50 ns.
const SPINS_BEFORE_SLEEP: u32 = 200;

enum Work {
    Write { content: Arc<ContentFiles>, chunk: ChunkIndex, buffer: Buffer },
    Read { content: Arc<ContentFiles>, chunk: ChunkIndex, buffer: Buffer, check: bool },
    Append { put: Arc<Incoming>, chunk: ChunkIndex, single: bool, buffer: Buffer },
}

enum Answer {
    Written(Result<Buffer, StoreError>),
    Read(Result<Buffer, StoreError>),
    Appended(Result<ChainingValue, StoreError>),
}

struct Request {
    work: Work,
    reply: oneshot::Sender<Answer>,
}

struct Reply {
    answer: Answer,
    reply: oneshot::Sender<Answer>,
}

/// Ends the store thread when the last handle is gone.
struct Shared {
    stop: AtomicBool,
    replied: Notify,
}

/// The network thread's end. Not `Send`: it belongs to one thread, like the ring under it.
pub struct StoreThread {
    inner: Rc<RefCell<Inner>>,
    shared: Arc<Shared>,
}

struct Inner {
    requests: rtrb::Producer<Request>,
    replies: rtrb::Consumer<Reply>,
    waiting: VecDeque<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StoreThread {
    /// Starts the thread. Must be called inside a `LocalSet`: a task there hands the replies out.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> std::io::Result<Self> {
        let (requests, mut todo) = rtrb::RingBuffer::<Request>::new(REQUESTS_MAX);
        let (mut done, replies) = rtrb::RingBuffer::<Reply>::new(REQUESTS_MAX);
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), replied: Notify::new() });
        let seen = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("store".to_owned()).spawn(move || run(&mut todo, &mut done, &seen))?;
        let inner = Rc::new(RefCell::new(Inner { requests, replies, waiting: VecDeque::new(), thread: Some(thread) }));
        tokio::task::spawn_local(hand_out(Rc::downgrade(&inner), Arc::clone(&shared)));
        Ok(Self { inner, shared })
    }

    /// Checks a chunk that came from outside, writes it and gives it back.
    ///
    /// # Errors
    /// [`StoreError::WrongBytes`] and nothing written; else what the disk says.
    pub async fn write(
        &self,
        content: Arc<ContentFiles>,
        chunk: ChunkIndex,
        buffer: Buffer,
    ) -> Result<Buffer, StoreError> {
        match self.ask(Work::Write { content, chunk, buffer }).await {
            Some(Answer::Written(result)) => result,
            _ => Err(gone()),
        }
    }

    /// Reads a chunk and checks it.
    ///
    /// # Errors
    /// [`StoreError::WrongBytes`] when the disk has not kept it; else what the disk says.
    pub async fn read(
        &self,
        content: Arc<ContentFiles>,
        chunk: ChunkIndex,
        buffer: Buffer,
    ) -> Result<Buffer, StoreError> {
        self.read_with(content, chunk, buffer, true).await
    }

    /// Reads a chunk for a peer, who checks it anyway.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn read_for_peer(
        &self,
        content: Arc<ContentFiles>,
        chunk: ChunkIndex,
        buffer: Buffer,
    ) -> Result<Buffer, StoreError> {
        self.read_with(content, chunk, buffer, false).await
    }

    async fn read_with(
        &self,
        content: Arc<ContentFiles>,
        chunk: ChunkIndex,
        buffer: Buffer,
        check: bool,
    ) -> Result<Buffer, StoreError> {
        match self.ask(Work::Read { content, chunk, buffer, check }).await {
            Some(Answer::Read(result)) => result,
            _ => Err(gone()),
        }
    }

    /// Hashes a chunk of a put and writes it. `single`: the content has only this chunk.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn append(
        &self,
        put: Arc<Incoming>,
        chunk: ChunkIndex,
        single: bool,
        buffer: Buffer,
    ) -> Result<ChainingValue, StoreError> {
        match self.ask(Work::Append { put, chunk, single, buffer }).await {
            Some(Answer::Appended(result)) => result,
            _ => Err(gone()),
        }
    }

    async fn ask(&self, work: Work) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        let mut request = Request { work, reply };
        loop {
            let space = {
                let mut inner = self.inner.borrow_mut();
                match inner.requests.push(request) {
                    Ok(()) => {
                        if let Some(thread) = &inner.thread {
                            thread.thread().unpark();
                        }
                        break;
                    }
                    Err(rtrb::PushError::Full(back)) => {
                        request = back;
                        let (tell, space) = oneshot::channel();
                        inner.waiting.push_back(tell);
                        space
                    }
                }
            };
            space.await.ok()?;
        }
        answer.await.ok()
    }
}

impl Drop for StoreThread {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release); // pairs with the load in `run`
        if let Some(thread) = self.inner.borrow_mut().thread.take() {
            thread.thread().unpark();
            // A store thread that panicked has printed why; there is nothing to add.
            let _ = thread.join();
        }
        self.shared.replied.notify_one();
    }
}

fn gone() -> StoreError {
    StoreError::Latched { why: "its thread has ended".to_owned() }
}

/// Gives each reply to whoever asked, and room in the ring to whoever waits for it.
async fn hand_out(inner: std::rc::Weak<RefCell<Inner>>, shared: Arc<Shared>) {
    loop {
        shared.replied.notified().await;
        let Some(inner) = inner.upgrade() else { return };
        let mut inner = inner.borrow_mut();
        while let Ok(Reply { answer, reply }) = inner.replies.pop() {
            // An asker that was cancelled is gone; its buffer is given back as the answer is dropped.
            let _ = reply.send(answer);
            if let Some(waiter) = inner.waiting.pop_front() {
                let _ = waiter.send(());
            }
        }
    }
}

fn run(todo: &mut rtrb::Consumer<Request>, done: &mut rtrb::Producer<Reply>, shared: &Shared) {
    let mut idle = 0;
    loop {
        let Ok(Request { work, reply }) = todo.pop() else {
            if shared.stop.load(Ordering::Acquire) {
                return;
            }
            idle += 1;
            if idle < SPINS_BEFORE_SLEEP {
                std::hint::spin_loop();
            } else {
                std::thread::park(); // unpark before park is remembered, so no request is overlooked
            }
            continue;
        };
        idle = 0;
        let mut finished = Reply { answer: perform(work), reply };
        while let Err(rtrb::PushError::Full(back)) = done.push(finished) {
            finished = back;
            shared.replied.notify_one();
            if shared.stop.load(Ordering::Acquire) {
                return;
            }
            std::thread::yield_now();
        }
        shared.replied.notify_one();
    }
}

fn perform(work: Work) -> Answer {
    match work {
        Work::Write { content, chunk, buffer } => Answer::Written(write(&content, chunk, &buffer).map(|()| buffer)),
        Work::Read { content, chunk, buffer, check } => Answer::Read(read(&content, chunk, buffer, check)),
        Work::Append { put, chunk, single, buffer } => {
            let value = chaining_value(chunk, single, buffer.as_ref());
            Answer::Appended(put.write(chunk, buffer.as_ref()).map(|()| value))
        }
    }
}

fn write(content: &ContentFiles, chunk: ChunkIndex, buffer: &Buffer) -> Result<(), StoreError> {
    let manifest = content.manifest();
    manifest.check(chunk, buffer.as_ref()).map_err(|_| StoreError::WrongBytes { id: manifest.id(), chunk })?;
    content.write(chunk, buffer.as_ref())
}

fn read(content: &ContentFiles, chunk: ChunkIndex, mut buffer: Buffer, check: bool) -> Result<Buffer, StoreError> {
    let len = content.read(chunk, buffer.space())?;
    buffer.set_len(len);
    let manifest = content.manifest();
    if check && manifest.check(chunk, buffer.as_ref()).is_err() {
        return Err(StoreError::WrongBytes { id: manifest.id(), chunk });
    }
    Ok(buffer)
}
