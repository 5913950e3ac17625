//! The emulated link is what its settings say. Needs root and TUN devices; without them these tests say so and do nothing.

use std::collections::BTreeSet;
use std::io::{IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::unistd::Pid;
use pangea_tests::netlab::{
    Change, Counters, Departure, Direction, Lab, Link, Offer, Pair, Pipe, Queue, Settings, Side, skipped,
};

/// Bytes of IPv4 and UDP headers.
const HEADERS: usize = 28;
/// A receiver waits this long for a packet before it thinks that no more come.
const QUIET: Duration = Duration::from_millis(400);
/// ECN capable: ECT(0).
const ECT: u8 = 2;
/// Congestion Experienced.
const CE: u8 = 3;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Tests that measure do so one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(settings: Settings) -> Lab {
    Lab::start(settings).unwrap()
}

/// A socket in a namespace that the kernel lets hold all packets of a test.
fn socket(pair: &Pair, side: Side) -> UdpSocket {
    let socket = pair.inside(side, || UdpSocket::bind((pair.address(side), 0)).unwrap()).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
    socket.set_read_timeout(Some(QUIET)).unwrap();
    socket
}

/// Sockets at A and B, each connected to the other.
fn sockets(pair: &Pair) -> (UdpSocket, UdpSocket) {
    let (a, b) = (socket(pair, Side::A), socket(pair, Side::B));
    a.connect(b.local_addr().unwrap()).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    (a, b)
}

/// Packets of one size at a steady pace.
#[derive(Clone, Copy)]
struct Stream {
    packets: u32,
    /// With headers.
    bytes: usize,
    every: Duration,
}

impl Stream {
    fn at_rate(mbit: f64, bytes: usize, time: Duration) -> Self {
        let every = Duration::from_secs_f64(bytes as f64 * 8.0 / mbit / 1e6);
        Self { packets: (time.as_secs_f64() / every.as_secs_f64()) as u32, bytes, every }
    }

    fn send(self, socket: &UdpSocket) {
        let mut payload = vec![0; self.bytes - HEADERS];
        let start = Instant::now();
        for number in 0..self.packets {
            let ahead = (self.every * number).saturating_sub(start.elapsed());
            // A sleep for each packet would be too slow for the pace.
            if ahead > ms(1) {
                std::thread::sleep(ahead);
            }
            payload[..4].copy_from_slice(&number.to_be_bytes());
            socket.send(&payload).unwrap();
        }
    }
}

/// A packet that arrived.
struct Arrival {
    number: u32,
    at: Instant,
    ecn: u8,
}

fn receive(socket: &UdpSocket) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    let mut bytes = [0; 2048];
    let mut control = nix::cmsg_space!(u8);
    loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let Ok(message) = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()) else {
            return arrivals;
        };
        let at = Instant::now();
        let service = message.cmsgs().unwrap().find_map(|control| match control {
            ControlMessageOwned::Ipv4Tos(service) => Some(service),
            _ => None,
        });
        arrivals.push(Arrival {
            number: u32::from_be_bytes(bytes[..4].try_into().unwrap()),
            at,
            ecn: service.unwrap_or(0) & 3,
        });
    }
}

/// Sends a stream from A to B and returns what arrived.
fn stream(lab: &Lab, stream: Stream, service: u8) -> Vec<Arrival> {
    let (from, to) = sockets(lab.pair());
    setsockopt(&from, sockopt::Ipv4Tos, &i32::from(service)).unwrap();
    setsockopt(&to, sockopt::IpRecvTos, &true).unwrap();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&to));
        stream.send(&from);
        receiver.join().unwrap()
    })
}

/// What the model makes of the same stream: what arrived in the end, and the counters at the time of the last packet.
fn modelled(link: &Link, back: Duration, seed: u64, stream: Stream) -> (BTreeSet<u32>, Counters) {
    let mut pipe = Pipe::new(link.clone(), back, seed, 0);
    let every = stream.every.as_nanos() as u64;
    for number in 0..stream.packets {
        let _: Offer = pipe.offer(number, stream.bytes as u32, false, u64::from(number) * every);
    }
    let counters = pipe.counters(u64::from(stream.packets) * every);
    let arrived = std::iter::from_fn(|| pipe.poll(u64::MAX >> 1)).filter_map(|departure| match departure {
        Departure::Arrived { packet, .. } => Some(packet),
        Departure::Lost { .. } => None,
    });
    (arrived.collect(), counters)
}

/// Round trip times of small packets from A, soonest first. `before_reply`: B waits so long.
fn round_trips(pair: &Pair, count: usize, before_reply: Duration) -> Vec<Duration> {
    let (a, b) = sockets(pair);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = [0; 64];
            while let Ok(len) = b.recv(&mut bytes) {
                std::thread::sleep(before_reply);
                b.send(&bytes[..len]).unwrap();
            }
        });
        let mut times: Vec<_> = (0..count)
            .map(|_| {
                let start = Instant::now();
                a.send(b"ping").unwrap();
                a.recv(&mut [0; 64]).unwrap();
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        times
    })
}

fn is_near(what: &str, found: f64, wanted: f64, part: f64) -> Result<(), String> {
    if (found - wanted).abs() <= wanted * part { Ok(()) } else { Err(format!("{what}: {found}, not {wanted}")) }
}

fn near(what: &str, found: f64, wanted: f64, part: f64) {
    is_near(what, found, wanted, part).unwrap();
}

/// Measures anew up to four times: a host that takes the processors away for a moment spoils a turn, and an emulator that is wrong
/// spoils all.
fn once_in_five(measure: impl Fn() -> Result<(), String>) {
    let mut spoilt = Vec::new();
    while let Err(error) = measure() {
        spoilt.push(error);
        assert!(spoilt.len() < 5, "{spoilt:#?}");
    }
}

/// Mbit/s between the first and the last of these arrivals.
fn rate_mbit(arrivals: &[Arrival], bytes: usize) -> f64 {
    let time = arrivals.last().unwrap().at - arrivals[0].at;
    ((arrivals.len() - 1) * bytes) as f64 * 8.0 / time.as_secs_f64() / 1e6
}

#[test]
fn a_round_trip_takes_both_delays_and_little_more() {
    if skipped() {
        return;
    }
    let _alone = alone();
    let link = Link { rate_mbit: Some(100.0), delay: ms(20), ..Link::default() };
    let slow = Settings { b_to_a: Link { delay: ms(30), ..link.clone() }, ..Settings::both_ways(link.clone()) };
    let cable = Pair::veth().unwrap();
    once_in_five(|| {
        let lab = start(slow.clone());
        for (delay, both) in [(ms(20), ms(50)), (ms(2), ms(32))] {
            lab.change(Direction::AToB, Link { delay, ..link.clone() }).unwrap();
            let times = round_trips(lab.pair(), 15, Duration::ZERO);
            assert!(times[0] >= both, "{times:?}");
            // What this machine makes of a sleep that long.
            let slept = round_trips(&cable, 15, both);
            if times[7] > slept[7] + ms(2) {
                return Err(format!("{times:?}, slept {slept:?}"));
            }
        }
        let report = lab.counters();
        assert_eq!((report.a_to_b.delivered_packets, report.b_to_a.delivered_packets), (30, 30));
        assert_eq!((report.a_to_b.failed_packets, report.b_to_a.failed_packets), (0, 0));
        Ok(())
    });
}

#[test]
fn an_overloaded_link_has_its_rate_a_full_queue_and_drops_what_the_model_drops() {
    if skipped() {
        return;
    }
    let _alone = alone();
    let link = Link { rate_mbit: Some(40.0), delay: ms(10), ..Link::default() };
    let blast = Stream::at_rate(60.0, 1400, ms(2000));
    once_in_five(|| {
        let lab = start(Settings::both_ways(link.clone()));
        let before = lab.counters();
        let (arrivals, during) = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| stream(&lab, blast, 0));
            std::thread::sleep(ms(500));
            let from = lab.counters().a_to_b;
            std::thread::sleep(ms(1300));
            let during = lab.counters().a_to_b.since(&from);
            (receiver.join().unwrap(), during)
        });
        let counters = lab.counters().since(&before).a_to_b;
        let (model, modelled) = modelled(&link, link.delay, 1, blast);

        assert_eq!(counters.offered_packets, u64::from(blast.packets));
        assert_eq!(counters.delivered_packets, arrivals.len() as u64);
        assert_eq!((counters.lost_packets, counters.failed_packets), (0, 0));
        // 20 ms at 40 Mbit/s.
        assert!(counters.queue_bytes_max <= 100_000, "{counters:?}");
        near("full queue", counters.queue_bytes_max as f64, modelled.queue_bytes_max as f64, 0.02);
        is_near("rate by the receiver", rate_mbit(&arrivals, 1400), 40.0, 0.05)?;
        is_near("rate by the counters", during.sent_bytes as f64 * 8.0 / during.at.as_secs_f64() / 1e6, 40.0, 0.03)?;
        is_near("arrivals", arrivals.len() as f64, model.len() as f64, 0.03)?;
        is_near("drops", counters.dropped_packets as f64, modelled.dropped_packets as f64, 0.05)?;
        is_near("mean queue", during.queue_bytes_mean(), 99_000.0, 0.15)
    });
}

/// Streams over a lossy link: the packets that do not arrive are those that the seed says. Returns their share and the
/// mean length of a row of them.
fn losses(loss_pct: f64, burst: Option<f64>, seed: u64) -> (f64, f64) {
    let link = Link { rate_mbit: Some(300.0), delay: ms(5), loss_pct, burst, ..Link::default() };
    let lossless = Link { loss_pct: 0.0, burst: None, ..link.clone() };
    let lab = start(Settings { b_to_a: lossless, seed, ..Settings::both_ways(link.clone()) });
    let packets = Stream { packets: 15_000, bytes: 200, every: Duration::from_micros(70) };
    let arrived: BTreeSet<_> = stream(&lab, packets, 0).iter().map(|arrival| arrival.number).collect();
    let counters = lab.counters().a_to_b;
    assert_eq!((counters.sent_packets, counters.dropped_packets, counters.failed_packets), (15_000, 0, 0));
    assert_eq!(arrived.len() as u64, counters.delivered_packets);
    assert_eq!(counters.lost_packets + counters.delivered_packets, 15_000);
    assert!(arrived == modelled(&link, link.delay, seed, packets).0, "others are lost than the seed says");
    let lost: Vec<_> = (0..packets.packets).filter(|number| !arrived.contains(number)).collect();
    let rows = lost.iter().filter(|&&number| number == 0 || arrived.contains(&(number - 1))).count();
    (lost.len() as f64 / f64::from(packets.packets), lost.len() as f64 / rows as f64)
}

#[test]
fn packets_are_lost_as_often_as_wanted_and_in_the_places_that_the_seed_says() {
    if skipped() {
        return;
    }
    let _alone = alone();
    // Four standard deviations of 15 000 packets are 0.5 % and 1 % of them.
    let (share, row) = losses(2.0, None, 3);
    assert!((0.015..0.025).contains(&share), "{share}");
    near("row", row, 1.02, 0.05);
    let (share, row) = losses(10.0, None, 4);
    assert!((0.09..0.11).contains(&share), "{share}");
    near("row", row, 1.11, 0.05);
}

#[test]
fn bursts_have_the_wanted_mean_length() {
    if skipped() {
        return;
    }
    let _alone = alone();
    // Some 190 bursts: their number and length vary by 7 % and 6 % each.
    let (share, row) = losses(5.0, Some(4.0), 5);
    near("share", share, 0.05, 0.35);
    near("row", row, 4.0, 0.25);
}

#[test]
fn a_change_on_the_schedule_takes_effect_at_its_time() {
    if skipped() {
        return;
    }
    let _alone = alone();
    let link = Link { rate_mbit: Some(40.0), delay: ms(5), ..Link::default() };
    let slower = Link { rate_mbit: Some(10.0), ..link.clone() };
    let schedule = vec![Change { at: ms(800), direction: Direction::AToB, link: slower }];
    let settings = Settings { schedule, ..Settings::both_ways(link) };
    once_in_five(|| {
        let lab = start(settings.clone());
        let begin = Instant::now() - lab.counters().a_to_b.at;
        let arrivals = stream(&lab, Stream::at_rate(50.0, 1400, ms(1600)), 0);
        let window = |from, to| {
            let from = arrivals.partition_point(|arrival| arrival.at < begin + ms(from));
            let to = arrivals.partition_point(|arrival| arrival.at < begin + ms(to));
            rate_mbit(&arrivals[from..to], 1400)
        };
        // What matters is that it changed, and when: on a busy machine the sender itself falls behind for a moment.
        is_near("before", window(250, 780), 40.0, 0.25)?;
        is_near("after", window(900, 1550), 10.0, 0.25)
    });
}

#[test]
fn jitter_spreads_arrivals_and_overtakes_only_if_it_may() {
    if skipped() {
        return;
    }
    let _alone = alone();
    for reorder in [false, true] {
        let link = Link { delay: ms(20), jitter: ms(10), reorder, ..Link::default() };
        let lab = start(Settings::both_ways(link));
        let arrivals = stream(&lab, Stream { packets: 1000, bytes: 100, every: Duration::from_micros(500) }, 0);
        assert_eq!(arrivals.len(), 1000);
        let overtaken = arrivals.windows(2).filter(|pair| pair[0].number > pair[1].number).count();
        assert!(if reorder { overtaken > 100 } else { overtaken == 0 }, "{overtaken}");
        let mut times = round_trips(lab.pair(), 20, Duration::ZERO);
        let (first, last) = (times[0], times.pop().unwrap());
        assert!(first >= ms(20) && last - first > ms(5), "{first:?} {last:?}");
    }
}

#[test]
fn a_long_queue_marks_packets_and_their_headers_stay_right() {
    if skipped() {
        return;
    }
    let _alone = alone();
    let link = Link { rate_mbit: Some(20.0), queue: Queue::Bytes(1 << 20), ecn_bytes: Some(30_000), ..Link::default() };
    let overload = Stream::at_rate(30.0, 1400, ms(500));
    once_in_five(|| {
        let lab = start(Settings::both_ways(link.clone()));
        let arrivals = stream(&lab, overload, ECT);
        let marked = arrivals.iter().filter(|arrival| arrival.ecn == CE).count();
        let counters = lab.counters().a_to_b;
        // The kernel would drop a packet with a wrong header checksum.
        assert_eq!(arrivals.len(), overload.packets as usize);
        assert_eq!(counters.marked_packets, marked as u64);
        assert_eq!(arrivals[0].ecn, ECT);
        let arrivals = stream(&lab, overload, 0);
        assert!(arrivals.len() == overload.packets as usize && arrivals.iter().all(|arrival| arrival.ecn == 0));
        // The queue grows by 1.25 MB/s and passes the threshold after 24 of 500 ms.
        is_near("marked", marked as f64, f64::from(overload.packets) * 0.952, 0.05)
    });
}

/// Sends bytes over TCP from A to B; returns Mbit/s of them.
fn tcp(pair: &Pair, bytes: usize) -> f64 {
    let listener = pair.inside(Side::B, || TcpListener::bind((pair.address_b(), 0)).unwrap()).unwrap();
    let to = listener.local_addr().unwrap();
    let mut sender = pair.inside(Side::A, || TcpStream::connect(to).unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || sender.write_all(&vec![7; bytes]).unwrap());
        let mut received = Vec::with_capacity(bytes);
        receiver.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), bytes);
    });
    bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6
}

#[test]
fn tcp_fills_the_link_and_a_plain_cable_is_far_faster() {
    if skipped() {
        return;
    }
    let _alone = alone();
    let link = Link { rate_mbit: Some(50.0), delay: ms(2), queue: Queue::Bytes(200_000), ..Link::default() };
    once_in_five(|| {
        let lab = start(Settings::both_ways(link.clone()));
        let over_link = tcp(lab.pair(), 6_000_000);
        // 1348 of 1400 bytes are data.
        assert!(over_link < 48.2, "{over_link}");
        let over_cable = tcp(&Pair::veth().unwrap(), 100_000_000);
        let filled = over_link >= 40.0 && over_cable > 500.0;
        if filled { Ok(()) } else { Err(format!("link {over_link}, cable {over_cable} Mbit/s")) }
    });
}

fn exists(namespace: &str) -> bool {
    Path::new("/run/netns").join(namespace).exists()
}

#[test]
fn nothing_is_left_of_a_lab_nor_of_one_whose_process_was_killed() {
    if skipped() {
        return;
    }
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let mut living = Command::new("sleep").arg("60").spawn().unwrap();
    let leftover = format!("netlab-{}-0-a", dead.id());
    let foreign = format!("netlab-{}-0-a", living.id());
    for name in [&leftover, &foreign] {
        assert!(Command::new("ip").args(["netns", "add", name]).status().unwrap().success());
    }
    let lab = start(Settings::both_ways(Link::default()));
    let was = (exists(&leftover), exists(&foreign));
    assert!(Command::new("ip").args(["netns", "del", &foreign]).status().unwrap().success());
    living.kill().unwrap();
    living.wait().unwrap();
    assert_eq!(was, (false, true), "(of a dead process, of a living one)");

    let names = [Side::A, Side::B].map(|side| lab.pair().name(side).to_owned());
    assert!(names.iter().all(|name| exists(name)));
    let mut sleeper = lab.command_b("sleep").arg("60").spawn().unwrap();
    let addresses = lab.command_b("ip").args(["-4", "-br", "addr"]).output().unwrap();
    assert!(String::from_utf8_lossy(&addresses.stdout).contains("10.77.0.2/30"), "{addresses:?}");
    let other = start(Settings::both_ways(Link::default()));
    drop(lab);
    assert!(!names.iter().any(|name| exists(name)));
    assert!(!sleeper.wait().unwrap().success(), "what ran there has been ended");
    assert!(exists(other.pair().name(Side::A)), "labs do not share namespaces");
}

fn netlab() -> Command {
    Command::new(env!("CARGO_BIN_EXE_netlab"))
}

#[test]
fn the_command_passes_names_and_the_exit_status_and_reports() {
    if skipped() {
        return;
    }
    let _alone = alone();
    let script = "ip -4 -br addr; echo $NETLAB_A $NETLAB_ADDR_B; exit 7";
    let output = netlab().args(["--delay-ms", "5", "--json", "--in", "a", "--", "sh", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("10.77.0.1/30") && stdout.contains(" 10.77.0.2"), "{stdout}");
    let name = stdout.lines().last().unwrap().split(' ').next().unwrap();
    assert!(name.starts_with("netlab-") && !exists(name), "{name}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    let report: serde_json::Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
    assert_eq!(report["a_to_b"]["failed_packets"], 0);

    // A command begins with no signal blocked, as it would without us: a shell could not even wait for its jobs.
    let script = "grep SigBlk /proc/self/status; sleep 0.1 & wait; echo waited";
    let output = netlab().args(["--", "sh", "-c", script]).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("0000000000000000") && stdout.ends_with("waited\n"), "{stdout}");

    let output = netlab().args(["--", "/no/such/program"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127), "as a shell says it");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/program"), "{output:?}");
    let output = netlab().args(["--", "/"]).output().unwrap();
    assert_eq!(output.status.code(), Some(126));
    let output = netlab().args(["--", "sh", "-c", "kill -9 $$"]).output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 9));
}

#[test]
fn a_signal_ends_the_command_and_takes_the_link_away() {
    if skipped() {
        return;
    }
    for (signal, status) in [(Signal::SIGTERM, 128 + 15), (Signal::SIGINT, 128 + 2)] {
        let folder = tempfile::tempdir().unwrap();
        let told = folder.path().join("names");
        let script = format!("echo $NETLAB_A $$ > {0}.new; mv {0}.new {0}; exec sleep 60", told.display());
        let mut child = netlab().args(["--", "sh", "-c", &script]).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !told.exists() {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
            std::thread::sleep(ms(10));
        }
        let told = std::fs::read_to_string(told).unwrap();
        let (namespace, pid) = told.trim().split_once(' ').unwrap();
        assert!(exists(namespace));
        if signal == Signal::SIGINT {
            // A terminal sends it to both.
            kill(Pid::from_raw(pid.parse().unwrap()), signal).unwrap();
        }
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let ended = child.wait().unwrap();
        // Whichever of the two was seen first.
        assert_eq!(ended.code(), Some(status), "{ended}");
        assert!(!exists(namespace), "{namespace}");
        assert!(!Path::new("/proc").join(pid).exists(), "the command has ended");
    }
}
