//! An emulated link between two network namespaces, for as long as a command runs.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::{CommandFactory, Parser, ValueEnum};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pangea_tests::netlab::{
    Change, Counters, Direction, Lab, Link, MTU_DEFAULT, Queue, RATE_MBIT_MAX, Report, Settings, Side,
};
use pangea_tests::signals::{Signals, status_of};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const EXAMPLES: &str = "\
VALUES are one for both directions, or FORTH/BACK: from A to B / from B to A. \
'none' takes a rate, burst or mark away.

COMMAND runs where you are, unless --in puts it into a namespace. Its environment has the names of the namespaces, \
NETLAB_A and NETLAB_B, for `ip netns exec`, and the addresses of the ends, NETLAB_ADDR_A and NETLAB_ADDR_B. \
Without a command the link stays until Ctrl-C. At the end, what both directions did is told on standard error. \
The exit status is that of the command; 2 also says that there was no link, 126 or 127 that the command cannot be run or \
found (1 with --in). Needs root.

Examples (ping and iperf3 are packages of their own):
  netlab --rate-mbit 100 --delay-ms 25 --loss-pct 2 --in a -- \\
    sh -c 'ping -c 5 $NETLAB_ADDR_B'
  netlab --rate-mbit 100/20 --delay-ms 10 -- sh -c '
    ip netns exec $NETLAB_B iperf3 -s -1 -D; sleep 1
    ip netns exec $NETLAB_A iperf3 -c $NETLAB_ADDR_B'
  netlab --rate-mbit 50 --delay-ms 20 --loss-pct 1 --burst 4 \\
    --at 5:loss-pct=10 --at 10:rate-mbit=5,loss-pct=0";

/// Join two network namespaces by an emulated link, run a command, take all of it away
#[derive(Parser)]
#[command(name = "netlab", version, after_help = EXAMPLES, allow_negative_numbers = true)]
struct Arguments {
    /// Mbit/s of IP packets [default: as fast as they come]
    #[arg(long, value_name = "VALUES")]
    rate_mbit: Option<String>,
    /// Delay of one direction; a round trip takes both
    #[arg(long, value_name = "VALUES")]
    delay_ms: Option<String>,
    /// How much sooner or later a packet may arrive; at most the delay
    #[arg(long, value_name = "VALUES")]
    jitter_ms: Option<String>,
    /// Let jitter make packets overtake others
    #[arg(long)]
    reorder: bool,
    /// Packets lost by chance, of 100
    #[arg(long, value_name = "VALUES")]
    loss_pct: Option<String>,
    /// Packets lost in a row on average [default: each has its own chance]
    #[arg(long, value_name = "VALUES")]
    burst: Option<String>,
    /// Queue in bandwidth-delay products of the round trip [default: 1; the round trip is 50 ms without a delay]
    #[arg(long, value_name = "VALUES", conflicts_with = "queue_kib")]
    queue_bdp: Option<String>,
    /// Queue in KiB
    #[arg(long, value_name = "VALUES")]
    queue_kib: Option<String>,
    /// Mark ECN-capable packets that find more than this in the queue, in KiB [default: mark none]
    #[arg(long, value_name = "VALUES")]
    ecn_kib: Option<String>,
    /// MTU of both ends, in bytes
    #[arg(long, default_value_t = MTU_DEFAULT)]
    mtu: u32,
    /// Fixes all chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Change the link so many seconds after its start; keys are the options above, from rate-mbit to ecn-kib
    #[arg(long, value_name = "SECONDS:KEY=VALUES,...")]
    at: Vec<String>,
    /// Run the command in a namespace
    #[arg(long = "in", value_name = "END")]
    within: Option<End>,
    /// Tell what the link did as one line of JSON
    #[arg(long)]
    json: bool,
    /// What to run
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum End {
    A,
    B,
}

/// There was no link.
const NO_LINK: u8 = 2;
/// The command cannot be run, as shells say it.
const NOT_RUN: u8 = 126;
/// There is no such command, as shells say it.
const NOT_FOUND: u8 = 127;
/// A command has this long to end after a signal, and again after SIGTERM.
const END_TIME: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = settings(&arguments).unwrap_or_else(|why| {
        Arguments::command().error(clap::error::ErrorKind::ValueValidation, why).exit();
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended =
        runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(run(&arguments, settings)));
    match ended {
        Ok(status) => ExitCode::from(status),
        Err(why) => {
            eprintln!("netlab: {why}");
            ExitCode::from(NO_LINK)
        }
    }
}

/// The exit status.
async fn run(arguments: &Arguments, settings: Settings) -> Result<u8, String> {
    let mut signals = Signals::listen().map_err(|error| error.to_string())?; // before there is anything to take away
    let lab = Lab::start(settings).map_err(|why| why.to_string())?;
    if !lab.real_time() {
        eprintln!("netlab: no real-time priority: programs that keep all CPUs busy will make packets late");
    }
    let (a, b) = (lab.pair().name(Side::A), lab.pair().name(Side::B));
    let status = match arguments.command.split_first() {
        None => {
            eprintln!("netlab: {} is {a}, {} is {b}; Ctrl-C ends it", lab.address_a(), lab.address_b());
            status_of(signals.next().await as i32)
        }
        Some((program, rest)) => {
            let mut command = match arguments.within {
                Some(End::A) => lab.command_a(program).into(),
                Some(End::B) => lab.command_b(program).into(),
                None => Command::new(program),
            };
            let addresses = [lab.address_a(), lab.address_b()].map(|address| address.to_string());
            command.args(rest).env("NETLAB_A", a).env("NETLAB_B", b);
            command.env("NETLAB_ADDR_A", &addresses[0]).env("NETLAB_ADDR_B", &addresses[1]);
            let mut child = match command.spawn() {
                Ok(child) => child,
                Err(error) => {
                    eprintln!("netlab: {program}: {error}");
                    return Ok(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN });
                }
            };
            wait(&mut child, &mut signals).await.map_err(|error| format!("{program}: {error}"))?
        }
    };
    tell(&lab.counters(), arguments.json);
    Ok(status)
}

/// Waits for the command, or ends it at a signal.
async fn wait(child: &mut Child, signals: &mut Signals) -> io::Result<u8> {
    tokio::select! {
        status = child.wait() => Ok(exit_status(status?)),
        signal = signals.next() => {
            end(child, signal).await?;
            Ok(status_of(signal as i32))
        }
    }
}

/// Ends the command: by the signal we got, by SIGTERM, by force.
async fn end(child: &mut Child, signal: Signal) -> io::Result<()> {
    // Ctrl-C reaches the command without us, and a second one means something else to many programs.
    let first = (signal != Signal::SIGINT).then_some(signal);
    for signal in [first, Some(Signal::SIGTERM), Some(Signal::SIGKILL)] {
        let Some(pid) = child.id() else { return Ok(()) };
        if let Some(signal) = signal {
            kill(Pid::from_raw(pid.cast_signed()), signal)?;
        }
        if let Ok(ended) = timeout(END_TIME, child.wait()).await {
            return ended.map(drop);
        }
    }
    Ok(())
}

fn exit_status(status: ExitStatus) -> u8 {
    status.code().map_or_else(|| status_of(status.signal().unwrap_or(0)), |code| u8::try_from(code).unwrap_or(1))
}

fn tell(report: &Report, json: bool) {
    if json {
        eprintln!("{}", report.json());
        return;
    }
    for (name, counters) in [("A to B", &report.a_to_b), ("B to A", &report.b_to_a)] {
        eprintln!("netlab: {name}: {}", words(counters));
    }
}

fn words(counters: &Counters) -> String {
    let kib = |bytes: f64| bytes / 1024.0;
    format!(
        "{} packets ({:.1} MB) in, {} arrived; {} dropped by the queue, {} lost by chance, {} marked; queue {:.1} KiB on \
         average, {:.1} at most; late {:.0?} on average, {:.0?} at most{}",
        counters.offered_packets,
        counters.offered_bytes as f64 / 1e6,
        counters.delivered_packets,
        counters.dropped_packets,
        counters.lost_packets,
        counters.marked_packets,
        kib(counters.queue_bytes_mean()),
        kib(counters.queue_bytes_max as f64),
        counters.late_mean(),
        counters.late_max,
        if counters.failed_packets > 0 { "; OVERLOADED, do not trust these figures" } else { "" },
    )
}

fn settings(arguments: &Arguments) -> Result<Settings, String> {
    let mut links = [Link { reorder: arguments.reorder, ..Link::default() }, Link::default()];
    links[1].reorder = arguments.reorder;
    for (key, values) in [
        ("rate-mbit", &arguments.rate_mbit),
        ("delay-ms", &arguments.delay_ms),
        ("jitter-ms", &arguments.jitter_ms),
        ("loss-pct", &arguments.loss_pct),
        ("burst", &arguments.burst),
        ("queue-bdp", &arguments.queue_bdp),
        ("queue-kib", &arguments.queue_kib),
        ("ecn-kib", &arguments.ecn_kib),
    ] {
        if let Some(values) = values {
            set(&mut links, key, values)?;
        }
    }
    let [a_to_b, b_to_a] = links.clone();
    let schedule = schedule(links, &arguments.at)?;
    let settings = Settings { a_to_b, b_to_a, mtu: arguments.mtu, seed: arguments.seed, schedule };
    settings.check().map_err(|why| why.to_string())?;
    check_effects(&settings)?;
    Ok(settings)
}

/// Something that a link may have.
type Has = fn(&Link) -> bool;

/// Refuses what has no effect in either direction, since what it needs is never there.
fn check_effects(settings: &Settings) -> Result<(), String> {
    let links = Direction::ALL.map(|direction| -> Vec<&Link> {
        let first = if direction == Direction::AToB { &settings.a_to_b } else { &settings.b_to_a };
        let changes = settings.schedule.iter().filter(|change| change.direction == direction);
        std::iter::once(first).chain(changes.map(|change| &change.link)).collect()
    });
    let checks: [(_, _, Has, Has); 4] = [
        ("burst", "loss-pct", |link| link.burst.is_some(), |link| link.loss_pct > 0.0),
        ("reorder", "jitter-ms", |link| link.reorder, |link| !link.jitter.is_zero()),
        ("ecn-kib", "rate-mbit", |link| link.ecn_bytes.is_some(), |link| link.rate_mbit.is_some()),
        (
            "queue-kib or queue-bdp",
            "rate-mbit",
            |link| link.queue != Link::default().queue,
            |link| link.rate_mbit.is_some(),
        ),
    ];
    for (option, needs, given, met) in checks {
        let ever = |links: &[&Link], has: Has| links.iter().any(|link| has(link));
        let asked: Vec<_> = links.iter().filter(|links| ever(links, given)).collect();
        if !asked.is_empty() && !asked.iter().any(|links| ever(links, met)) {
            return Err(format!("{option} has no effect without {needs}"));
        }
    }
    Ok(())
}

/// Changes name what differs from the moment before; a schedule has whole links.
fn schedule(mut links: [Link; 2], changes: &[String]) -> Result<Vec<Change>, String> {
    let mut parsed = Vec::new();
    for change in changes {
        let (seconds, keys) =
            change.split_once(':').ok_or_else(|| format!("--at {change}: it is SECONDS:KEY=VALUES,..."))?;
        let seconds = number(seconds).map_err(|why| format!("--at {change}: {why}"))?;
        parsed.push((Duration::from_secs_f64(seconds), keys, change));
    }
    parsed.sort_by_key(|(at, ..)| *at);
    let mut schedule = Vec::new();
    for (at, keys, change) in parsed {
        for pair in keys.split(',') {
            let (key, values) =
                pair.split_once('=').ok_or_else(|| format!("--at {change}: {pair} is not KEY=VALUES"))?;
            set(&mut links, key, values).map_err(|why| format!("--at {change}: {why}"))?;
        }
        for direction in Direction::ALL {
            let link = links[usize::from(direction == Direction::BToA)].clone();
            schedule.push(Change { at, direction, link });
        }
    }
    Ok(schedule)
}

/// One value for both directions, or FORTH/BACK.
fn set(links: &mut [Link; 2], key: &str, values: &str) -> Result<(), String> {
    let (forth, back) = values.split_once('/').unwrap_or((values, values));
    for (link, value) in links.iter_mut().zip([forth, back]) {
        set_one(link, key, value).map_err(|why| format!("{key}: {why}"))?;
    }
    Ok(())
}

fn set_one(link: &mut Link, key: &str, value: &str) -> Result<(), String> {
    let unless_none = || if value == "none" { Ok(None) } else { number(value).map(Some) };
    let ms = || number(value).map(|ms| Duration::from_secs_f64(ms / 1e3));
    let bytes = |kib: f64| (kib * 1024.0) as u64;
    match key {
        "rate-mbit" => link.rate_mbit = if value == "none" { None } else { Some(number_to(RATE_MBIT_MAX, value)?) },
        "delay-ms" => link.delay = ms()?,
        "jitter-ms" => link.jitter = ms()?,
        "reorder" => link.reorder = value.parse().map_err(|_| format!("{value} is not true or false"))?,
        "loss-pct" => link.loss_pct = number_to(100.0, value)?,
        "burst" => link.burst = unless_none()?,
        "queue-bdp" => link.queue = Queue::Bdp(number(value)?),
        "queue-kib" => link.queue = Queue::Bytes(bytes(number(value)?)),
        "ecn-kib" => link.ecn_bytes = unless_none()?.map(bytes),
        _ => return Err("there is no such key".to_owned()),
    }
    Ok(())
}

/// A number that no duration made of it is too long for.
fn number(text: &str) -> Result<f64, String> {
    number_to(1e6, text)
}

fn number_to(most: f64, text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=most).contains(number));
    number.ok_or_else(|| format!("{text} is not a number of 0 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Settings, String> {
        settings(&Arguments::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?)
    }

    #[test]
    fn values_are_for_both_directions_or_for_each() {
        let settings = parse("netlab --rate-mbit 100/20 --delay-ms 2.5 --loss-pct 0/1 --queue-kib 64 -- true").unwrap();
        assert_eq!((settings.a_to_b.rate_mbit, settings.b_to_a.rate_mbit), (Some(100.0), Some(20.0)));
        assert_eq!(settings.b_to_a.delay, Duration::from_micros(2500));
        assert!(settings.a_to_b.loss_pct <= 0.0 && settings.b_to_a.loss_pct >= 1.0);
        assert_eq!(settings.a_to_b.queue, Queue::Bytes(65_536));
    }

    #[test]
    fn changes_build_on_each_other_in_the_order_of_time() {
        let line = "netlab --rate-mbit 10 --at 5:loss-pct=10 --at 2:rate-mbit=none/5,delay-ms=7";
        let schedule = parse(line).unwrap().schedule;
        assert_eq!(schedule.len(), 4);
        let (first, last) = (&schedule[0], &schedule[3]);
        assert_eq!((first.at, first.link.rate_mbit), (Duration::from_secs(2), None));
        assert_eq!(
            (last.at, last.direction, last.link.rate_mbit),
            (Duration::from_secs(5), Direction::BToA, Some(5.0))
        );
        assert_eq!(last.link.delay, Duration::from_millis(7));
        assert!(first.link.loss_pct <= 0.0 && last.link.loss_pct >= 10.0);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_name() {
        for (line, word) in [
            ("netlab --rate-mbit fast", "rate-mbit: fast"),
            ("netlab --rate-mbit 0", "a rate of 0"),
            ("netlab --loss-pct -1", "-1 is not a number of 0 to 100"),
            ("netlab --jitter-ms 5", "jitter"),
            ("netlab --at 5", "SECONDS"),
            ("netlab --at 5:speed=1", "speed: there is no such key"),
            ("netlab --at x:rate-mbit=1", "x is not a number"),
            ("netlab --at 1:rate-mbit", "KEY=VALUES"),
            ("netlab --mtu 100", "an MTU of 100"),
            ("netlab --queue-kib 1 --queue-bdp 1", "cannot be used with"),
            ("netlab --burst 4 --rate-mbit 1", "burst has no effect without loss-pct"),
            ("netlab --burst 4/none --loss-pct 0/1", "burst has no effect"),
            ("netlab --reorder", "reorder has no effect without jitter-ms"),
            ("netlab --ecn-kib 9", "ecn-kib has no effect without rate-mbit"),
            ("netlab --queue-kib 9 --at 5:loss-pct=1", "queue-bdp has no effect without rate-mbit"),
        ] {
            let why = parse(line).unwrap_err();
            assert!(why.contains(word), "{line}: {why}");
        }
    }

    #[test]
    fn what_a_later_change_needs_may_be_given_at_once() {
        let settings = parse("netlab --burst 4 --queue-kib 9 --at 5:loss-pct=1 --at 6:rate-mbit=1").unwrap();
        assert_eq!(settings.a_to_b.burst, Some(4.0));
        parse("netlab --burst 4 --loss-pct 0/1 --reorder --jitter-ms 0/1 --delay-ms 1").unwrap();
    }

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }
}
