//! Chunks of one content on their way to this program, over the rings of several workers at once.
//!
//! Each worker tells which chunks it can give; the program asks for what it wants next, a bounded number ahead. A worker
//! that goes away is survived as long as another can take its place.

use std::cell::Cell;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::{CHUNK_SIZE, ChunkIndex, Geometry};
use pangea_ipc::door::{self, unpack_range};
use pangea_ipc::failure::Failure;
use pangea_ipc::node::{JobReport, JobState, Opened};
use pangea_ring::{Record, RingError};

use crate::client::{Client, JobWatch};
use crate::door::{OpenDoor, failure_in};
use crate::error::ClientError;
use crate::source::{Source, Told};

/// Chunks asked of one worker and not yet taken: what its ring holds.
const ASKED_MAX: usize = 14;
/// How often the rings are looked at before this thread sleeps: a wake-up costs 50 to 110 us.
const SPINS_BEFORE_SLEEP: u32 = 200;
/// Callbacks are called at least this often while nothing happens, so that an interrupt is noticed.
const TICK_MS: u16 = 100;

/// Without a controller, a transfer on which nothing moves for this long is given up: nobody will plan the rest.
const STALL: Duration = Duration::from_secs(10);

/// In which order chunks are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As they come: for files.
    Any,
    /// Ascending: for streams.
    Ascending,
}

/// How far a transfer is.
#[derive(Debug, Clone)]
pub struct Progress<'a> {
    /// Bytes that were delivered to this program.
    pub delivered: u64,
    /// Bytes wanted.
    pub wanted: u64,
    /// What the controller says, when it does.
    pub report: Option<&'a JobReport>,
}

/// Gets each record, the bytes of its payload that are wanted, and where the first of them belongs in the content.
pub type Deliver<'a> = dyn FnMut(&Record<'_>, Range<usize>, u64) -> Result<(), ClientError> + 'a;

/// A content on its way.
pub struct Transfer {
    // Keeps the connection, and with it the job, alive.
    _client: Client,
    opened: Opened,
    watch: JobWatch,
    report: Option<JobReport>,
    geometry: Geometry,
    range: Range<u64>,
    wanted: ChunkSet,
    order: Order,
    sources: Vec<Source>,
    /// Chunks asked of somebody or delivered.
    taken: ChunkSet,
    /// Every wanted chunk below this one is taken, so that a search does not begin at the first chunk each time.
    untaken_from: ChunkIndex,
    delivered: ChunkSet,
    durable: ChunkSet,
    delivered_bytes: u64,
    next: ChunkIndex,
    failure: Option<Failure>,
    moved_at: Instant,
}

impl Transfer {
    pub(crate) fn open(
        client: Client,
        opened: Opened,
        watch: JobWatch,
        range: Option<Range<u64>>,
        order: Order,
    ) -> Result<Self, ClientError> {
        let geometry = Geometry::new(opened.size).map_err(|error| ClientError::Protocol(error.to_string()))?;
        let bound = geometry.chunk_count();
        let (range, chunks) = match range {
            None => (0..opened.size, 0..bound),
            Some(range) => (range.clone(), geometry.chunks_of(range.start, range.end)),
        };
        let wanted = ChunkSet::of_range(bound, chunks.clone());
        let mut sources = Vec::new();
        let mut trouble = None;
        for door in &opened.doors {
            match OpenDoor::open(door) {
                Ok(door) => {
                    let mut source = Source::new(door, bound);
                    // In order, a chunk that comes before its turn would block the ring.
                    if order == Order::Any {
                        source.follow(chunks.clone())?;
                    }
                    sources.push(source);
                }
                Err(error) => trouble = Some(error), // another worker will do
            }
        }
        if let (true, Some(error)) = (sources.is_empty(), trouble) {
            return Err(error);
        }
        let next = wanted.next_from(0).unwrap_or(0);
        let empty = ChunkSet::empty(bound);
        Ok(Self {
            _client: client,
            opened,
            watch,
            report: None,
            geometry,
            range,
            wanted,
            order,
            sources,
            taken: empty.clone(),
            untaken_from: 0,
            delivered: empty.clone(),
            durable: empty,
            delivered_bytes: 0,
            next,
            failure: None,
            moved_at: Instant::now(),
        })
    }

    /// Bytes in the whole content.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.opened.size
    }

    /// The content's name; empty when it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.opened.name
    }

    /// How the content is cut.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What the controller said last of this job.
    #[must_use]
    pub fn report(&self) -> Option<&JobReport> {
        self.report.as_ref()
    }

    /// Writes what is wanted to `file`, byte `range.start` at its beginning, in whatever order it comes, and returns when
    /// all of it is there and safe in the store. `progress` may say `false` to stop.
    ///
    /// # Errors
    /// When the content cannot be had whole or the file cannot be written.
    pub fn write_to_file(
        &mut self,
        file: &File,
        progress: &mut dyn FnMut(Progress<'_>) -> bool,
    ) -> Result<(), ClientError> {
        let range = self.range.clone();
        self.run(progress, &mut |record, bytes, start| {
            write_all(record, bytes, file.as_fd(), Some(start - range.start))
        })
    }

    /// Writes what is wanted to a stream, in order, and returns when all of it is there and safe in the store.
    ///
    /// # Errors
    /// When the content cannot be had whole or the stream cannot be written.
    pub fn write_to_stream(
        &mut self,
        stream: impl AsFd,
        progress: &mut dyn FnMut(Progress<'_>) -> bool,
    ) -> Result<(), ClientError> {
        self.run(progress, &mut |record, bytes, _| write_all(record, bytes, stream.as_fd(), None))
    }

    /// Takes everything: `deliver` gets each record, the bytes of its payload that are wanted, and where the first of
    /// them belongs in the content.
    ///
    /// # Errors
    /// When the content cannot be had whole, or what `deliver` says.
    pub fn run(
        &mut self,
        progress: &mut dyn FnMut(Progress<'_>) -> bool,
        deliver: &mut Deliver<'_>,
    ) -> Result<(), ClientError> {
        let wanted = self.range.end.min(self.opened.size).saturating_sub(self.range.start);
        loop {
            self.ask()?;
            let mut moved = self.take(deliver, &Cell::new(false))?;
            if self.wanted.is_subset_of(&self.delivered) && self.wanted.is_subset_of(&self.durable) {
                return Ok(());
            }
            if !moved {
                moved = self.wait()?;
            }
            let report = self.report.as_ref();
            if moved && !progress(Progress { delivered: self.delivered_bytes, wanted, report }) {
                return Err(ClientError::Interrupted);
            }
        }
    }

    /// Takes one chunk, the given one, into `space`; says its length. Later ones are asked for ahead.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) fn chunk(&mut self, chunk: ChunkIndex, ahead: u32, space: &mut Vec<u8>) -> Result<(), ClientError> {
        if chunk != self.next {
            self.jump(chunk)?;
        }
        let bound = self.geometry.chunk_count();
        self.wanted = ChunkSet::of_range(bound, chunk..bound.min(chunk.saturating_add(1).saturating_add(ahead)));
        let came = Cell::new(false);
        while !came.get() {
            self.ask()?;
            let mut deliver = |record: &Record<'_>, _: Range<usize>, _: u64| {
                space.resize(record.len(), 0);
                record.copy_to(space);
                came.set(true);
                Ok(())
            };
            if !self.take(&mut deliver, &came)? {
                self.wait()?;
            }
        }
        Ok(())
    }

    /// Starts over at another chunk: what is under way is let go, what comes next is fetched first.
    fn jump(&mut self, chunk: ChunkIndex) -> Result<(), ClientError> {
        let bound = self.geometry.chunk_count();
        self.next = chunk;
        self.taken = ChunkSet::empty(bound);
        self.untaken_from = 0;
        self.delivered = ChunkSet::empty(bound);
        for source in &mut self.sources {
            source.stale = source.asked.len();
            if !source.held.contains(chunk) {
                source.tell(door::WANT, chunk..chunk + 1)?; // a wish; reading works without
            }
        }
        Ok(())
    }

    /// Asks for chunks that can be had, up to the limit of each worker.
    fn ask(&mut self) -> Result<(), ClientError> {
        while let Some(chunk) = self.wanted.next_from(self.untaken_from).filter(|chunk| self.taken.contains(*chunk)) {
            self.untaken_from = chunk + 1;
        }
        let mut lost = Vec::new();
        for index in 0..self.sources.len() {
            while let Some(source) = self.sources.get(index) {
                if source.asked.len() >= ASKED_MAX {
                    break;
                }
                let Some(chunk) = self.next_to_ask(&source.held) else { break };
                let Some(source) = self.sources.get_mut(index) else { break };
                match source.tell(door::READ, chunk..chunk + 1)? {
                    Told::Yes => {
                        source.asked.push_back(chunk);
                        self.taken.insert(chunk);
                    }
                    Told::NoRoom => break,
                    Told::Gone => {
                        lost.push(index);
                        break;
                    }
                }
            }
        }
        self.lose(&lost);
        Ok(())
    }

    fn next_to_ask(&self, held: &ChunkSet) -> Option<ChunkIndex> {
        let free = |chunk: ChunkIndex| self.wanted.contains(chunk) && !self.taken.contains(chunk);
        let mut from = self.untaken_from;
        match self.order {
            // Strictly in order, whoever holds it: nothing later may block a ring.
            Order::Ascending => loop {
                let chunk = self.wanted.next_from(from)?;
                if free(chunk) {
                    return held.contains(chunk).then_some(chunk);
                }
                from = chunk + 1;
            },
            // Among those held, which are few beyond those taken while the content still arrives.
            Order::Any => loop {
                let chunk = held.next_from(from)?;
                if free(chunk) {
                    return Some(chunk);
                }
                from = chunk + 1;
            },
        }
    }

    /// Takes what has come, until `enough`; says whether there was anything.
    fn take(&mut self, deliver: &mut Deliver<'_>, enough: &Cell<bool>) -> Result<bool, ClientError> {
        let mut moved = false;
        let mut lost = Vec::new();
        for index in 0..self.sources.len() {
            while !enough.get() {
                match self.take_one(index, deliver) {
                    Ok(true) => moved = true,
                    Ok(false) => break,
                    Err(ClientError::Ring(RingError::Closed | RingError::PeerGone)) => {
                        lost.push(index);
                        moved = true;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        self.lose(&lost);
        if let Some(report) = self.watch.latest() {
            if report.state == JobState::Failed && !self.wanted.is_subset_of(&self.durable) {
                return Err(report.failure.unwrap_or_else(|| Failure::internal("the job failed")).into());
            }
            moved |= self.report.as_ref() != Some(&report);
            self.report = Some(report);
        }
        let controller_gone =
            self.watch.has_ended() && self.report.as_ref().is_none_or(|r| r.state == JobState::Running);
        if moved {
            self.moved_at = Instant::now();
        } else if controller_gone && self.moved_at.elapsed() >= STALL {
            return Err(ClientError::ControllerGone);
        }
        if self.sources.is_empty() && !self.wanted.is_subset_of(&self.delivered) {
            return Err(self.failure.take().map_or(ClientError::WorkersGone, ClientError::from));
        }
        Ok(moved)
    }

    /// Takes a source's next record, unless it is a chunk whose turn has not come.
    fn take_one(&mut self, index: usize, deliver: &mut Deliver<'_>) -> Result<bool, ClientError> {
        let Some(source) = self.sources.get_mut(index) else { return Ok(false) };
        let Some(record) = source.door.channel.consumer.try_peek().map_err(ClientError::Ring)? else {
            return Ok(false);
        };
        let arg = record.arg();
        match record.tag() {
            tag @ (door::HELD | door::DURABLE) => {
                let range = unpack_range(arg).ok_or_else(|| ClientError::Protocol(format!("chunk range {arg:#x}")))?;
                record.release();
                let set = if tag == door::HELD { &mut source.held } else { &mut self.durable };
                set.insert_range(range);
            }
            door::DATA => {
                let chunk = u32::try_from(arg / u64::from(CHUNK_SIZE)).unwrap_or(u32::MAX);
                let unasked = source.asked.front() != Some(&chunk);
                if (unasked && !(source.followed && self.wanted.contains(chunk)))
                    || self.geometry.chunk_offset(chunk) != arg
                    || record.len() != self.geometry.chunk_len(chunk) as usize
                {
                    return Err(ClientError::Protocol(format!("{} bytes at {arg} were not asked for", record.len())));
                }
                let stale = if unasked { self.taken.contains(chunk) } else { source.stale > 0 };
                if !stale {
                    if self.order == Order::Ascending && chunk != self.next {
                        return Ok(false);
                    }
                    let end = arg + record.len() as u64;
                    let (start, stop) = (arg.max(self.range.start), end.min(self.range.end));
                    let wanted = usize::try_from(start.saturating_sub(arg)).unwrap_or(0)
                        ..usize::try_from(stop.saturating_sub(arg)).unwrap_or(0);
                    self.delivered_bytes += wanted.len() as u64;
                    deliver(&record, wanted, start)?;
                    self.delivered.insert(chunk);
                    self.next = self.next.max(chunk + 1);
                }
                record.release();
                if unasked {
                    source.held.insert(chunk);
                    self.taken.insert(chunk);
                } else {
                    source.asked.pop_front();
                    source.stale = source.stale.saturating_sub(1);
                }
            }
            door::FAILED => {
                let mut text = vec![0; record.len()];
                record.copy_to(&mut text);
                record.release();
                self.failure = Some(failure_in(arg, &text));
                return Err(ClientError::Ring(RingError::Closed));
            }
            other => return Err(ClientError::Protocol(format!("tag {other} in a read"))),
        }
        Ok(true)
    }

    /// Workers that have gone; what was asked of them is asked of others. Indexes ascending.
    fn lose(&mut self, lost: &[usize]) {
        for index in lost.iter().rev() {
            if *index < self.sources.len() {
                let source = self.sources.remove(*index);
                for chunk in source.asked.into_iter().skip(source.stale) {
                    self.taken.remove(chunk);
                    self.untaken_from = self.untaken_from.min(chunk);
                }
            }
        }
    }

    /// Waits until a worker or the controller has something to say, a worker has gone, or a moment has passed.
    fn wait(&mut self) -> Result<bool, ClientError> {
        for _ in 0..SPINS_BEFORE_SLEEP {
            for source in &mut self.sources {
                // An error is met again, and dealt with, when the record is taken.
                if !matches!(source.door.channel.consumer.try_peek(), Ok(None)) && self.order == Order::Any {
                    return Ok(true);
                }
            }
            std::hint::spin_loop();
        }
        for source in &mut self.sources {
            let front_is_blocked = self.order == Order::Ascending;
            match source.door.channel.consumer.arm() {
                Ok(true) => {}
                Ok(false) if front_is_blocked => {
                    // Its next record may be a chunk whose turn has not come; then others move first.
                    let blocked = source.asked.front().is_some_and(|chunk| *chunk != self.next) && source.stale == 0;
                    let data = source.door.channel.consumer.try_peek();
                    let is_data = matches!(&data, Ok(Some(record)) if record.tag() == door::DATA);
                    if !(blocked && is_data) {
                        return Ok(true);
                    }
                }
                _ => return Ok(true),
            }
        }
        let mut fds = Vec::with_capacity(2 * self.sources.len() + 1);
        for source in &self.sources {
            fds.push(PollFd::new(source.door.channel.consumer.bell(), PollFlags::POLLIN));
            fds.push(PollFd::new(source.door.alive.as_fd(), PollFlags::POLLIN));
        }
        // A bell that has ended would ring for ever.
        if !self.watch.has_ended() {
            fds.push(PollFd::new(self.watch.bell.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::from(TICK_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(ClientError::System(errno.into())),
        }
        let gone: Vec<usize> = fds
            .iter()
            .take(2 * self.sources.len())
            .skip(1)
            .step_by(2)
            .enumerate()
            .filter(|(_, alive)| alive.any() == Some(true))
            .map(|(index, _)| index)
            .collect();
        drop(fds);
        for source in &self.sources {
            source.door.channel.consumer.drain_bell();
        }
        // What a worker published before it went is still taken: it is lost only when its ring is empty.
        let empty = gone.into_iter().filter(|index| {
            let source = self.sources.get_mut(*index);
            source.is_none_or(|source| !matches!(source.door.channel.consumer.try_peek(), Ok(Some(_))))
        });
        let lost: Vec<usize> = empty.collect();
        self.lose(&lost);
        Ok(true)
    }
}

fn write_all(
    record: &Record<'_>,
    bytes: Range<usize>,
    to: BorrowedFd<'_>,
    offset: Option<u64>,
) -> Result<(), ClientError> {
    let mut written = 0;
    while written < bytes.len() {
        let at = offset.map(|offset| offset + written as u64);
        match record.write_to(bytes.start + written, bytes.len() - written, to, at) {
            Ok(0) => return Err(ClientError::io("writing the output")(std::io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(RingError::System { errno: Errno::EINTR, .. }) => {}
            Err(RingError::System { errno, .. }) => {
                return Err(ClientError::io("writing the output")(std::io::Error::from_raw_os_error(errno as i32)));
            }
            Err(other) => return Err(ClientError::Ring(other)),
        }
    }
    Ok(())
}
