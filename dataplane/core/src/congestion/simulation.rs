//! A path and a transport, simulated: a link with a rate, a queue, a delay and losses, senders that pace and detect loss
//! as quinn does, receivers that acknowledge every 40th packet or after a millisecond.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::rivals::{Bbr, Cubic};
use super::{Congestion, Known};

pub(super) const MTU: u64 = 1400;
const ACK_EVERY: usize = 40;
const ACK_DELAY: Duration = Duration::from_millis(1);
const REORDERING: u64 = 3;

/// A deterministic source of chance (splitmix64).
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The link in the direction of the data. The way back is delay alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) mbit: f64,
    pub(super) rtt_ms: f64,
    pub(super) loss: f64,
    /// Mean length of a burst of losses.
    pub(super) burst: f64,
    /// Queue, in bandwidth-delay products.
    pub(super) queue: f64,
    /// Queue above which packets are marked (ECN), in bandwidth-delay products.
    pub(super) marks_above: f64,
    /// Each packet is so much early or late at most, in either direction, and waits for those before it.
    pub(super) jitter_ms: f64,
}

impl Link {
    fn bytes_per_s(&self) -> f64 {
        self.mbit * 1e6 / 8.0
    }

    fn held_bytes(&self) -> f64 {
        self.bytes_per_s() * self.rtt_ms / 1e3
    }
}

#[derive(Clone)]
enum Control {
    Ours(Box<Congestion>),
    Cubic(Cubic),
    Bbr(Box<Bbr>),
}

impl Control {
    fn window(&self) -> u64 {
        match self {
            Self::Ours(ours) => ours.window(),
            Self::Cubic(cubic) => cubic.window() as u64 * MTU,
            Self::Bbr(bbr) => bbr.window() as u64 * MTU,
        }
    }

    /// Bytes a second to send at, where it is not left to the window.
    fn pacing(&self) -> Option<f64> {
        if let Self::Bbr(bbr) = self { bbr.pacing() } else { None }
    }
}

/// What a flow has to send.
#[derive(Debug, Clone, Copy)]
pub(super) enum Load {
    /// Without end.
    Endless,
    /// So many packets, then nothing for a round trip, and again.
    Objects(u64),
    /// Without end, and the flow is CUBIC's.
    CubicRival,
    /// Without end, and the flow is BBR's.
    BbrRival,
}

struct Sender {
    control: Control,
    load: Load,
    /// Packets of the object left to send, and when it began.
    left: u64,
    began: f64,
    took: Vec<f64>,
    /// Packets that will never arrive.
    doomed: HashSet<u64>,
    /// Packets that were marked, and that their sender has not been told of.
    marked: HashSet<u64>,
    next: u64,
    /// Number and time of what is in flight.
    flight: VecDeque<(u64, f64)>,
    tokens: f64,
    tokens_at: f64,
    srtt: f64,
    unacked: Vec<u64>,
    ack_at: Option<f64>,
    /// Packets acknowledged; the timeout that runs began at as many.
    acked: u64,
    timeout: bool,
    delivered: u64,
    lost: u64,
    starts: f64,
}

#[derive(PartialEq)]
enum Event {
    Send(usize),
    Arrive(usize, u64),
    AckTimer(usize),
    Ack(usize, Vec<u64>),
    /// Nothing was acknowledged since the flow had so many bytes acknowledged.
    Timeout(usize, u64),
}

struct At(f64, u64, Event);
impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

/// Flows over one link.
pub(super) struct Simulation {
    zero: Instant,
    now: f64,
    count: u64,
    link: Link,
    /// When the link has sent all of its queue.
    busy_until: f64,
    in_burst: bool,
    chance: Chance,
    senders: Vec<Sender>,
    events: BinaryHeap<Reverse<At>>,
    /// When the last packet, and the last acknowledgement, arrives.
    last: [f64; 2],
    overflowed: u64,
    marked: u64,
    /// Time-weighted bytes of queue, and since when.
    queue_area: f64,
}

impl Simulation {
    #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a simulation")]
    pub(super) fn new(link: Link, flows: &[(f64, Load)], seed: u64, known: Option<Known>) -> Self {
        let zero = Instant::now();
        let senders = flows.iter().map(|(starts, load)| Sender {
            control: match load {
                Load::CubicRival => Control::Cubic(Cubic::new()),
                Load::BbrRival => Control::Bbr(Box::new(Bbr::new(zero))),
                _ => Control::Ours(Box::new(Congestion::new(zero, MTU as u16, known))),
            },
            load: *load,
            left: if let Load::Objects(packets) = load { *packets } else { u64::MAX },
            began: *starts,
            took: Vec::new(),
            doomed: HashSet::new(),
            marked: HashSet::new(),
            next: 0,
            flight: VecDeque::new(),
            tokens: 10.0 * MTU as f64,
            tokens_at: *starts,
            srtt: link.rtt_ms / 1e3,
            unacked: Vec::new(),
            ack_at: None,
            acked: 0,
            timeout: false,
            delivered: 0,
            lost: 0,
            starts: *starts,
        });
        let mut simulation = Self {
            zero,
            now: 0.0,
            count: 0,
            link,
            busy_until: 0.0,
            in_burst: false,
            chance: Chance(seed),
            senders: senders.collect(),
            events: BinaryHeap::new(),
            last: [0.0; 2],
            overflowed: 0,
            marked: 0,
            queue_area: 0.0,
        };
        for flow in 0..flows.len() {
            let at = simulation.senders[flow].starts;
            simulation.at(at, Event::Send(flow));
        }
        simulation
    }

    fn at(&mut self, time: f64, event: Event) {
        self.count += 1;
        self.events.push(Reverse(At(time, self.count, event)));
    }

    fn instant(&self, time: f64) -> Instant {
        self.zero + Duration::from_secs_f64(time)
    }

    pub(super) fn set_link(&mut self, link: Link) {
        self.link = link;
    }

    /// Runs until `end`; says how many bytes each flow delivered meanwhile.
    pub(super) fn run_until(&mut self, end: f64) -> Vec<u64> {
        let before: Vec<u64> = self.senders.iter().map(|sender| sender.delivered).collect();
        while let Some(Reverse(At(time, ..))) = self.events.peek() {
            if *time > end {
                break;
            }
            let Some(Reverse(At(time, _, event))) = self.events.pop() else { break };
            let queued = (self.busy_until - self.now).max(0.0) * self.link.bytes_per_s();
            self.queue_area += queued * (time - self.now);
            self.now = time;
            match event {
                Event::Send(flow) => self.send(flow),
                Event::Arrive(flow, packet) => self.arrive(flow, packet),
                Event::AckTimer(flow) => self.acknowledge(flow),
                Event::Ack(flow, packets) => self.take_ack(flow, &packets),
                Event::Timeout(flow, acked) => self.time_out(flow, acked),
            }
        }
        self.now = end;
        self.senders.iter().zip(before).map(|(sender, before)| sender.delivered - before).collect()
    }

    /// Share of packets that the queue had no room for, of all that were sent.
    pub(super) fn overflow(&self) -> f64 {
        let sent: u64 = self.senders.iter().map(|sender| sender.next).sum();
        self.overflowed as f64 / sent.max(1) as f64
    }

    /// Share of packets that were marked, of all that were sent.
    pub(super) fn marked(&self) -> f64 {
        let sent: u64 = self.senders.iter().map(|sender| sender.next).sum();
        self.marked as f64 / sent.max(1) as f64
    }

    /// Mean queue, in bandwidth-delay products.
    pub(super) fn mean_queue(&self) -> f64 {
        self.queue_area / self.now / self.link.held_bytes()
    }

    pub(super) fn control(&self, flow: usize) -> &Congestion {
        match &self.senders[flow].control {
            Control::Ours(ours) => ours,
            Control::Cubic(_) | Control::Bbr(_) => panic!("flow {flow} is a rival"),
        }
    }

    /// Seconds from the beginning of each object to the arrival of its last packet that was not lost.
    pub(super) fn took(&self, flow: usize) -> &[f64] {
        &self.senders[flow].took
    }

    fn send(&mut self, flow: usize) {
        let mtu = MTU as f64;
        loop {
            let sender = &mut self.senders[flow];
            if sender.left == 0 {
                return;
            }
            let window = sender.control.window();
            if sender.flight.len() as u64 * MTU + MTU > window {
                return; // an acknowledgement goes on from here
            }
            let rate = sender.control.pacing().unwrap_or(1.25 * window as f64 / sender.srtt);
            let capacity = (rate * 0.0016).clamp(10.0 * mtu, 256.0 * mtu);
            sender.tokens = (sender.tokens + rate * (self.now - sender.tokens_at)).min(capacity);
            sender.tokens_at = self.now;
            if sender.tokens < mtu {
                let wait = (capacity / 2.0 - sender.tokens).max(mtu) / rate;
                let at = self.now + wait;
                return self.at(at, Event::Send(flow));
            }
            sender.tokens -= mtu;
            self.send_one(flow);
        }
    }

    fn send_one(&mut self, flow: usize) {
        let now = self.instant(self.now);
        let sender = &mut self.senders[flow];
        let packet = sender.next;
        sender.next += 1;
        sender.left = sender.left.saturating_sub(1);
        sender.flight.push_back((packet, self.now));
        match &mut sender.control {
            Control::Ours(ours) => ours.handle_sent(now, MTU, packet),
            Control::Cubic(_) => {}
            Control::Bbr(bbr) => bbr.handle_sent(self.now, sender.flight.len() == 1),
        }
        if !std::mem::replace(&mut sender.timeout, true) {
            let (at, acked) = (self.now + 3.0 * sender.srtt, sender.acked);
            self.at(at, Event::Timeout(flow, acked));
        }
        self.carry(flow, packet);
    }

    /// What follows the last packet that arrived is lost without a sign: one more is sent, whatever the window (RFC 9002, 6.2).
    fn time_out(&mut self, flow: usize, acked: u64) {
        let sender = &mut self.senders[flow];
        sender.timeout = false;
        if sender.flight.is_empty() {
            return;
        }
        if sender.acked == acked {
            self.send_one(flow);
        } else {
            sender.timeout = true;
            let (at, acked) = (self.now + 3.0 * sender.srtt, sender.acked);
            self.at(at, Event::Timeout(flow, acked));
        }
    }

    fn carry(&mut self, flow: usize, packet: u64) {
        let rate = self.link.bytes_per_s();
        let queued = (self.busy_until - self.now).max(0.0) * rate;
        if queued + MTU as f64 > self.link.queue * self.link.held_bytes() {
            self.overflowed += 1;
            self.senders[flow].doomed.insert(packet);
            return;
        }
        if queued > self.link.marks_above * self.link.held_bytes() {
            self.marked += 1;
            self.senders[flow].marked.insert(packet);
        }
        self.busy_until = self.busy_until.max(self.now) + MTU as f64 / rate;
        if self.is_lost() {
            self.senders[flow].doomed.insert(packet);
            return;
        }
        let at = self.arrival(self.busy_until, 0);
        self.at(at, Event::Arrive(flow, packet));
    }

    /// When what leaves the link at `time` is at the other side.
    fn arrival(&mut self, time: f64, direction: usize) -> f64 {
        let Link { rtt_ms, jitter_ms, .. } = self.link;
        // A path without jitter asks for no chance, so that its losses stay those of its seed.
        let early_or_late = if jitter_ms > 0.0 { jitter_ms * (2.0 * self.chance.next() - 1.0) } else { 0.0 };
        let at = (time + rtt_ms / 2e3 + early_or_late / 1e3).max(self.last[direction]);
        self.last[direction] = at;
        at
    }

    fn is_lost(&mut self) -> bool {
        let Link { loss, burst, .. } = self.link;
        if burst <= 1.0 {
            return self.chance.next() < loss;
        }
        let leave = 1.0 / burst;
        let enter = leave * loss / (1.0 - loss);
        self.in_burst = if self.in_burst { self.chance.next() >= leave } else { self.chance.next() < enter };
        self.in_burst
    }

    fn arrive(&mut self, flow: usize, packet: u64) {
        let now = self.now;
        let sender = &mut self.senders[flow];
        sender.delivered += MTU;
        sender.unacked.push(packet);
        if sender.unacked.len() >= ACK_EVERY {
            self.acknowledge(flow);
        } else if sender.ack_at.is_none() {
            let at = now + ACK_DELAY.as_secs_f64();
            sender.ack_at = Some(at);
            self.at(at, Event::AckTimer(flow));
        }
    }

    fn acknowledge(&mut self, flow: usize) {
        let sender = &mut self.senders[flow];
        sender.ack_at = None;
        let packets = std::mem::take(&mut sender.unacked);
        if !packets.is_empty() {
            let at = self.arrival(self.now, 1);
            self.at(at, Event::Ack(flow, packets));
        }
    }

    fn take_ack(&mut self, flow: usize, packets: &[u64]) {
        let (now, seconds, zero) = (self.instant(self.now), self.now, self.zero);
        let instant = |time: f64| zero + Duration::from_secs_f64(time);
        let sender = &mut self.senders[flow];
        let idle = sender.left == 0;
        let (mut largest, acked_before) = (0, sender.acked);
        // The newest packet that this acknowledgement tells of, when one of them was marked (RFC 9002, 7.1).
        let (mut newest, mut marked) = (0.0, false);
        for packet in packets {
            let Ok(at) = sender.flight.binary_search_by_key(packet, |(number, _)| *number) else { continue };
            let Some((number, sent)) = sender.flight.remove(at) else { continue };
            sender.acked += 1;
            marked |= sender.marked.remove(packet);
            newest = sent.max(newest);
            match &mut sender.control {
                Control::Ours(ours) => ours.handle_ack(now, instant(sent), MTU),
                Control::Cubic(cubic) => cubic.handle_ack(seconds, seconds - sent),
                Control::Bbr(bbr) => bbr.handle_ack(seconds, sent),
            }
            if number >= largest {
                largest = number;
                sender.srtt = 0.875 * sender.srtt + 0.125 * (seconds - sent);
            }
        }
        if let Control::Ours(ours) = &mut sender.control {
            ours.handle_acks_end(now, sender.flight.len() as u64 * MTU, idle, largest);
        }
        match &mut sender.control {
            Control::Ours(ours) if marked => ours.handle_marked(now, instant(newest)),
            Control::Cubic(cubic) if marked => cubic.handle_lost(newest, seconds),
            // This version of BBR does not heed marks.
            _ => {}
        }
        let mut lost = (0, 0.0);
        // The last packets of an object have none after them that show their loss; the probe that would is left out here.
        let over = idle && sender.flight.iter().all(|(number, _)| sender.doomed.contains(number));
        while let Some((number, sent)) = sender.flight.front().copied() {
            if number + REORDERING > largest && !over {
                break;
            }
            sender.flight.pop_front();
            lost = (lost.0 + MTU, sent);
        }
        if lost.0 > 0 {
            sender.lost += lost.0;
            match &mut sender.control {
                Control::Ours(ours) => ours.handle_lost(instant(lost.1), lost.0, false),
                Control::Cubic(cubic) => cubic.handle_lost(lost.1, seconds),
                Control::Bbr(_) => {}
            }
        }
        if let Control::Bbr(bbr) = &mut sender.control {
            let packets = ((sender.acked - acked_before) as f64, (lost.0 / MTU) as f64, sender.flight.len() as f64);
            bbr.handle_acks_end(seconds, packets, largest, sender.next - 1);
        }
        if let (Load::Objects(size), true) = (sender.load, idle && sender.flight.is_empty()) {
            let one_way = self.link.rtt_ms / 2e3;
            sender.took.push(seconds - one_way - sender.began);
            let at = seconds + 2.0 * one_way;
            (sender.left, sender.began) = (size, at);
            self.at(at, Event::Send(flow));
        } else {
            self.send(flow);
        }
    }
}
