//! The thread that carries packets between two TUN devices, as two pipes say.
//!
//! One loop, one order: orders, changes that are due, packets in, packets out, wait. It works on a copy of each packet in
//! a slot of its own, taken from a store that grows to a limit.
//!
//! It waits for the devices and the next arrival as long as that wakes it seldom. Each such wait costs a token of a small
//! bucket; when that is empty, it sleeps a whole [`TICK`] and finds several packets at once. So a ping sees the exact
//! delay, and a bulk transfer does not cost a system call for waiting with every packet.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::unistd::{Pid, gettid};
use tappers::Interface;
use tappers::linux::Tun;

use super::counters::Report;
use super::error::Error;
use super::link::{Change, Direction, Link, Settings};
use super::namespaces::{DEVICE, Pair, Side};
use super::packet;
use super::pipe::{Departure, Nanos, Offer, Pipe};

/// How long the thread sleeps when there is much to do.
pub const TICK: Duration = Duration::from_micros(200);

/// Waits that end with the first packet, a second.
const EAGER_PER_S: f64 = 1000.0;
/// So many of them at once.
const EAGER_MAX: f64 = 50.0;
/// Packets taken from a device in one turn.
const PACKETS_PER_TURN_MAX: usize = 1024;
/// Slots to begin with.
const SLOTS: usize = 4096;
/// Slots added at once.
const SLOTS_STEP: usize = 256;
/// Most packets under way at once, both ways together: 92 MB at an MTU of 1400.
const SLOTS_MAX: usize = 65_536;
/// Above everything that is not real-time, below the kernel's own threads.
const PRIORITY: u8 = 20;

#[derive(Debug)]
enum Order {
    /// Answers when it is so.
    Change(Direction, Box<Link>, Sender<()>),
    Report(Sender<Report>),
    Stop,
}

/// A running emulator.
#[derive(Debug)]
pub(super) struct Engine {
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    real_time: bool,
}

impl Engine {
    /// Opens a device at either end of the pair and starts to carry packets.
    pub(super) fn start(settings: &Settings, pair: &Pair) -> Result<Self, Error> {
        let system = |what: &str| {
            let what = what.to_owned();
            move |source: io::Error| Error::System { what, source }
        };
        let tuns = [
            pair.inside(Side::A, open_tun)?.map_err(system("a TUN device"))?,
            pair.inside(Side::B, open_tun)?.map_err(system("a TUN device"))?,
        ];
        pair.bring_up(settings.mtu)?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_value_and_flags(0, flags).map_err(io::Error::from).map_err(system("an eventfd"))?;
        let wake = Arc::new(wake);
        let (orders, received) = channel();
        let (started, thread_id) = channel();
        let mut carrier = Carrier::new(settings, tuns, received, Arc::clone(&wake));
        let thread = std::thread::Builder::new()
            .name("netlab".to_owned())
            .spawn(move || {
                let _ = started.send(gettid());
                carrier.run();
            })
            .map_err(system("a thread"))?;
        let real_time = thread_id.recv().is_ok_and(make_real_time);
        Ok(Self { orders, wake, thread: Some(thread), real_time })
    }

    /// Whether the thread has real-time priority.
    pub(super) fn real_time(&self) -> bool {
        self.real_time
    }

    /// Returns when it is so.
    pub(super) fn change(&self, direction: Direction, link: Link) {
        self.ask(|answer| Order::Change(direction, Box::new(link), answer));
    }

    pub(super) fn report(&self) -> Report {
        self.ask(Order::Report)
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> T {
        let (answer, answered) = channel();
        self.send(order(answer));
        answered.recv().expect("the emulator's thread is alive")
    }

    fn send(&self, order: Order) {
        // A thread that has gone is noticed by whoever waits for the answer.
        let _ = self.orders.send(order);
        let _ = self.wake.write(1);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open_tun() -> io::Result<Tun> {
    let tun = Tun::create_named(Interface::new(DEVICE)?)?;
    tun.set_nonblocking(true)?;
    Ok(tun)
}

/// A program, as no safe call of the libraries here does it.
fn make_real_time(thread: Pid) -> bool {
    Command::new("chrt")
        .args(["--rr", "--pid", &PRIORITY.to_string(), &thread.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A packet under way: where its bytes are.
#[derive(Debug, Clone, Copy)]
struct Packet {
    slot: usize,
    bytes: usize,
}

/// The bytes of packets under way.
#[derive(Debug)]
struct Store {
    slots: Vec<Box<[u8]>>,
    free: Vec<usize>,
    slot_bytes: usize,
}

impl Store {
    fn new(slot_bytes: usize) -> Self {
        let mut store = Self { slots: Vec::with_capacity(SLOTS_MAX), free: Vec::with_capacity(SLOTS_MAX), slot_bytes };
        store.grow(SLOTS);
        store
    }

    fn grow(&mut self, slots: usize) {
        let from = self.slots.len();
        let to = SLOTS_MAX.min(from + slots);
        self.slots.resize_with(to, || vec![0; self.slot_bytes].into_boxed_slice());
        self.free.extend((from..to).rev());
    }

    fn take(&mut self) -> Option<usize> {
        if self.free.is_empty() {
            self.grow(SLOTS_STEP);
        }
        self.free.pop()
    }
}

struct Carrier {
    start: Instant,
    /// Packets of direction `i` come from device `i` and go to the other.
    tuns: [Tun; 2],
    pipes: [Pipe<Packet>; 2],
    failed: [u64; 2],
    store: Store,
    /// Soonest first.
    schedule: VecDeque<(Nanos, Direction, Link)>,
    orders: Receiver<Order>,
    wake: Arc<EventFd>,
    eager: f64,
    eager_known_at: Nanos,
}

impl Carrier {
    fn new(settings: &Settings, tuns: [Tun; 2], orders: Receiver<Order>, wake: Arc<EventFd>) -> Self {
        let (forth, back) = (&settings.a_to_b, &settings.b_to_a);
        let mut schedule: Vec<_> = settings
            .schedule
            .iter()
            .map(|Change { at, direction, link }| (at.as_nanos() as Nanos, *direction, link.clone()))
            .collect();
        schedule.sort_by_key(|change| change.0);
        Self {
            start: Instant::now(),
            tuns,
            pipes: [
                Pipe::new(forth.clone(), back.delay, settings.seed, 0),
                Pipe::new(back.clone(), forth.delay, settings.seed, 1),
            ],
            failed: [0; 2],
            store: Store::new(settings.mtu as usize),
            schedule: schedule.into(),
            orders,
            wake,
            eager: EAGER_MAX,
            eager_known_at: 0,
        }
    }

    fn now(&self) -> Nanos {
        self.start.elapsed().as_nanos() as Nanos
    }

    fn run(&mut self) {
        loop {
            let now = self.now();
            while let Ok(order) = self.orders.try_recv() {
                match order {
                    Order::Change(direction, link, answer) => {
                        self.change(direction, *link, now);
                        let _ = answer.send(());
                    }
                    Order::Report(answer) => {
                        let _ = answer.send(self.report(now));
                    }
                    Order::Stop => return,
                }
            }
            while self.schedule.front().is_some_and(|change| change.0 <= now)
                && let Some((at, direction, link)) = self.schedule.pop_front()
            {
                self.change(direction, link, at);
            }
            for direction in Direction::ALL {
                self.inhale(direction, now);
            }
            for direction in Direction::ALL {
                self.exhale(direction, now);
            }
            self.wait();
        }
    }

    /// The queue of either direction depends on both delays.
    fn change(&mut self, direction: Direction, link: Link, now: Nanos) {
        let [forth, back] = &mut self.pipes;
        let (pipe, other) = match direction {
            Direction::AToB => (forth, back),
            Direction::BToA => (back, forth),
        };
        other.change(other.link().clone(), link.delay, now);
        pipe.change(link, other.link().delay, now);
    }

    fn report(&mut self, now: Nanos) -> Report {
        let mut counters = self.pipes.each_mut().map(|pipe| pipe.counters(now));
        for (counters, failed) in counters.iter_mut().zip(self.failed) {
            counters.failed_packets = failed;
        }
        let [a_to_b, b_to_a] = counters;
        let cpu = getrusage(UsageWho::RUSAGE_THREAD)
            .map_or(0, |usage| usage.user_time().num_microseconds() + usage.system_time().num_microseconds());
        Report { a_to_b, b_to_a, cpu: Duration::from_micros(cpu.cast_unsigned()) }
    }

    fn inhale(&mut self, direction: Direction, now: Nanos) {
        let index = direction.index();
        let pipe = &mut self.pipes[index];
        for _ in 0..PACKETS_PER_TURN_MAX {
            let Some(slot) = self.store.take() else {
                // Full: the device drops what it cannot hold. Look again when packets have left.
                self.eager = 0.0;
                self.failed[index] += 1;
                return;
            };
            let buffer = &mut self.store.slots[slot];
            let bytes = match self.tuns[index].recv(buffer) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.store.free.push(slot);
                    if error.kind() != ErrorKind::WouldBlock {
                        // Someone took the device down. It must not keep this thread busy.
                        self.eager = 0.0;
                        self.failed[index] += 1;
                    }
                    return;
                }
            };
            let read = &mut buffer[..bytes];
            match pipe.offer(Packet { slot, bytes }, bytes as u32, packet::ecn_capable(read), now) {
                Offer::Taken => {}
                Offer::Marked => packet::mark(read),
                Offer::Dropped => self.store.free.push(slot),
            }
        }
    }

    fn exhale(&mut self, direction: Direction, now: Nanos) {
        let index = direction.index();
        while let Some(departure) = self.pipes[index].poll(now) {
            let (Departure::Arrived { packet, .. } | Departure::Lost { packet }) = departure;
            if let Departure::Arrived { .. } = departure {
                let bytes = &self.store.slots[packet.slot][..packet.bytes];
                self.failed[index] += u64::from(self.tuns[1 - index].send(bytes).is_err());
            }
            self.store.free.push(packet.slot);
        }
    }

    fn wait(&mut self) {
        let now = self.now();
        let refill = (now - self.eager_known_at) as f64 / 1e9 * EAGER_PER_S;
        self.eager = (self.eager + refill).min(EAGER_MAX);
        self.eager_known_at = now;
        let [forth, back] = self.pipes.each_ref().map(Pipe::poll_timeout);
        let change = self.schedule.front().map(|change| change.0);
        let next = forth.into_iter().chain(back).chain(change).min();

        let all = [self.wake.as_fd(), self.tuns[0].as_fd(), self.tuns[1].as_fd()];
        let mut all = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let (fds, time) = if self.eager >= 1.0 {
            self.eager -= 1.0;
            (&mut all[..], next.map(|next| next.saturating_sub(now)))
        } else {
            (&mut all[..1], Some(TICK.as_nanos() as Nanos))
        };
        let time = time.map(|nanos| TimeSpec::nanoseconds(nanos.min(i64::MAX as u64).cast_signed()));
        // An interrupted wait is a short one.
        let _ = ppoll(fds, time, None);
        if all[0].any() == Some(true) {
            let _ = self.wake.read();
        }
    }
}
