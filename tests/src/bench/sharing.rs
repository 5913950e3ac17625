//! Flows that share a bottleneck, and a path that changes under a flow: cases `fair`, `several`, `change`.

use std::time::{Duration, Instant};

use super::nodes::{Two, get};
use super::path::Path;
use super::report::{Goal, Row, quantile};
use super::tcp::Tcp;
use super::{Bench, goal_when};
use crate::netlab::{Direction, Report};

const MIB: u64 = 1 << 20;
/// How long a bottleneck is looked at when it is not shared.
const ALONE: Duration = Duration::from_secs(20);
/// A queue that no sensible flow fills, in bandwidth-delay products.
const DEEP: f64 = 4.0;

fn path() -> Path {
    Path::new(100.0, 50)
}

/// Content that lasts for a time at the path's rate, whatever else goes on.
fn enough(path: &Path, time: Duration) -> u64 {
    let bytes = path.rate_mbit * 1e6 / 8.0 * (time.as_secs_f64() + 1.0);
    (bytes as u64).next_multiple_of(MIB)
}

/// Rows about the queue while something went on.
fn queue_row(what: String, path: &Path, now: &Report, before: &Report) -> Row {
    let way = now.since(before).a_to_b;
    let bdp = path.bdp_bytes();
    let (most, dropped, marked) = (way.queue_bytes_max as f64 / bdp, way.dropped_packets, way.marked_packets);
    let marks = path.marks_bdp.map(|_| format!(", marked {marked}")).unwrap_or_default();
    let note = format!("most {most:.2}, dropped {dropped}{marks}");
    Row::new("fair", what, way.queue_bytes_mean() / bdp, "BDP").note(note)
}

/// One flow of ours against one TCP flow, then ours alone before a deep queue.
pub fn fair(bench: &mut Bench) {
    let time = Duration::from_secs(bench.seconds);
    // Before a deep queue a flow that fills it gets what it takes: told, not judged. On a slow path a packet is a large share.
    let slow = Path::new(5.0, 30);
    // Before a queue that marks above so much of a product.
    let marking = |share| Path { marks_bdp: Some(share), ..path() };
    let deep = Path { queue_bdp: DEEP, ..path() };
    for law in ["cubic", "bbr"] {
        let mut paths = vec![(path(), true), (deep, false), (slow, false)];
        if law == "cubic" {
            paths.extend([(marking(0.1), true), (marking(0.4), true)]);
        }
        for (path, judged) in paths {
            let queue_bdp = path.queue_bdp;
            let at = if path.rate_mbit < 10.0 { format!(" at {} Mbit/s", path.rate_mbit) } else { String::new() };
            let marks = path.marks_bdp.map(|share| format!(", marks above {share}")).unwrap_or_default();
            let name = format!("against TCP {}{at}, queue {queue_bdp} BDP{marks}", law.to_uppercase());
            if !bench.wants(&format!("fair {name}")) {
                continue;
            }
            let lab = path.lab(1).unwrap();
            let two = Two::start(lab.pair());
            let bytes = enough(&path, time);
            let content = two.put(bytes, 1);
            let Some(mut tcp) = Tcp::connect(lab.pair(), law) else {
                eprintln!("the kernel has no TCP {law}: not compared");
                continue;
            };
            let before = lab.counters();
            let (ours, theirs) = std::thread::scope(|scope| {
                let theirs = scope.spawn(|| tcp.fetch(u64::MAX, time));
                (two.get(content, Some(time)), theirs.join().unwrap())
            });
            let after = lab.counters();
            let all = (ours.bytes_at(time) + theirs.bytes_at(time)) as f64;
            for (who, flow) in [("pangea".to_owned(), &ours), (format!("TCP {}", law.to_uppercase()), &theirs)] {
                let share = flow.bytes_at(time) as f64 / all;
                let half = time / 2;
                let note = format!(
                    "{:.1} Mbit/s, first half {:.1}, second {:.1}{}",
                    flow.mbit_between(Duration::ZERO, time),
                    flow.mbit_between(Duration::ZERO, half),
                    flow.mbit_between(half, time),
                    flow.failure.as_ref().map(|failure| format!("; {failure}")).unwrap_or_default(),
                );
                let row = Row::new("fair", name.clone(), share, "share").who(who).note(note);
                bench.add(goal_when(row, judged, Goal::AtLeast(0.3)));
            }
            let row = queue_row(format!("{name}: mean queue"), &path, &after, &before).who("both");
            // A queue of one product cannot stand above it, and CUBIC fills whatever there is.
            bench.add(goal_when(row, queue_bdp > 1.0 && law != "cubic", Goal::AtMost(1.5)));
        }
    }
    if bench.wants("fair alone") {
        let path = Path { queue_bdp: DEEP, ..path() };
        let lab = path.lab(1).unwrap();
        let two = Two::start(lab.pair());
        let content = two.put(enough(&path, ALONE), 1);
        let before = lab.counters();
        let flow = two.get(content, Some(ALONE));
        let row = queue_row(format!("alone, queue {DEEP} BDP: mean queue"), &path, &lab.counters(), &before);
        let note = format!("{}; {:.1} Mbit/s", row.note, flow.mbit());
        bench.add(row.goal(Goal::AtMost(1.5)).note(note));
    }
}

/// Jain's index of fairness: 1 = all the same, 1 / n = one has it all.
fn jain(rates: &[f64]) -> f64 {
    let (sum, squares) = rates.iter().fold((0.0, 0.0), |(sum, squares), rate| (sum + rate, squares + rate * rate));
    sum * sum / (rates.len() as f64 * squares)
}

/// Flows of ours, each between a pair of nodes of its own; each starts later than the one before.
pub fn several(bench: &mut Bench) {
    let secs = Duration::from_secs;
    for (count, path, later, time, goal) in [
        (2, path(), secs(5), secs(30), Some(0.95)),
        (3, Path::new(50.0, 20), secs(1), secs(20), None),
        (6, path(), secs(1), secs(20), None),
    ] {
        if bench.wants(&format!("several {count} flows pangea")) {
            share(bench, count, &path, later, time, goal);
        }
    }
}

fn share(bench: &mut Bench, count: u32, path: &Path, later: Duration, time: Duration, goal: Option<f64>) {
    const LAST: Duration = Duration::from_secs(10);
    let lab = path.lab(1).unwrap();
    let pairs: Vec<_> = (0..count).map(|_| Two::start(lab.pair())).collect();
    let contents: Vec<_> = (1..).zip(&pairs).map(|(seed, pair)| pair.put(enough(path, time), seed)).collect();
    let before = lab.counters();
    let last: Vec<_> = std::thread::scope(|scope| {
        let flows = (0..count).zip(pairs.iter().zip(contents)).map(|(nth, (pair, content))| {
            let start = later * nth;
            scope.spawn(move || {
                std::thread::sleep(start);
                let flow = get(&pair.client_b, content, Some(time - start));
                flow.mbit_between(time - start - LAST, time - start)
            })
        });
        let flows: Vec<_> = flows.collect();
        flows.into_iter().map(|flow| flow.join().unwrap()).collect()
    });
    let link = lab.counters().since(&before).a_to_b;
    let what = format!("{count} flows, {} Mbit/s, RTT {} ms", path.rate_mbit, path.rtt_ms);
    let each = last.iter().map(|rate| format!("{rate:.1}")).collect::<Vec<_>>().join(" ");
    let note = format!("{each} Mbit/s; each began {} s after the one before", later.as_secs());
    let row = Row::new("several", format!("{what}: Jain's index, last 10 s of {}", time.as_secs()), jain(&last), "");
    bench.add(goal_when(row.note(note), goal.is_some(), Goal::AtLeast(goal.unwrap_or_default())));
    let whole = last.iter().sum::<f64>() / path.capacity_mbit();
    bench.add(Row::new("several", format!("{what}: all together"), whole, "of capacity"));
    let dropped = link.dropped_packets as f64 / link.offered_packets.max(1) as f64 * 100.0;
    let row = Row::new("several", format!("{what}: packets that the queue had no room for"), dropped, "%");
    bench.add(row.note("of those sent, start-up included"));
}

/// What a path becomes, and what is measured then.
struct Step {
    name: &'static str,
    path: Path,
}

/// Rate and round trip change in mid-transfer.
pub fn change(bench: &mut Bench) {
    let rates = [
        Step { name: "100 Mbit/s", path: path() },
        Step { name: "100 -> 30 Mbit/s", path: Path::new(30.0, 50) },
        Step { name: "30 -> 100 Mbit/s", path: path() },
    ];
    let trips = [
        Step { name: "RTT 50 ms", path: path() },
        Step { name: "RTT 50 -> 150 ms", path: Path::new(100.0, 150) },
        Step { name: "RTT 150 -> 50 ms", path: path() },
    ];
    for steps in [rates, trips] {
        steps_case(bench, &steps);
    }
}

fn steps_case(bench: &mut Bench, steps: &[Step]) {
    const STEP: Duration = Duration::from_secs(10);
    const SETTLE: Duration = Duration::from_secs(3);
    if !bench.wants(&format!("change {} pangea", steps[1].name)) {
        return;
    }
    let lab = steps[0].path.lab(1).unwrap();
    let nodes = Two::start(lab.pair());
    let time = STEP * u32::try_from(steps.len()).unwrap();
    let content = nodes.put(enough(&steps[0].path, time), 1);
    let (flow, changed_at) = std::thread::scope(|scope| {
        let flow = scope.spawn(|| nodes.get(content, Some(time)));
        let started = Instant::now();
        let mut changed_at = vec![Duration::ZERO];
        for (number, step) in steps.iter().enumerate().skip(1) {
            let due = STEP * u32::try_from(number).unwrap();
            std::thread::sleep(due.saturating_sub(started.elapsed()));
            for direction in Direction::ALL {
                lab.change(direction, step.path.link()).unwrap();
            }
            changed_at.push(started.elapsed());
        }
        (flow.join().unwrap(), changed_at)
    });
    for (step, &at) in steps.iter().zip(&changed_at) {
        let (from, to) = (at + SETTLE, at + STEP);
        let seconds: Vec<f64> = (0..10)
            .map(|second| at + Duration::from_secs(second))
            .map(|from| flow.mbit_between(from, from + Duration::from_secs(1)))
            .collect();
        let shown: Vec<_> = seconds.iter().map(|rate| format!("{rate:.0}")).collect();
        let note = format!("3 to 10 s after; each second {}, least {:.0}", shown.join(" "), quantile(&seconds, 0.0));
        let row = Row::new("change", step.name, flow.mbit_between(from, to), "Mbit/s");
        bench.add(row.against(step.path.capacity_mbit()).goal(Goal::AtLeast(0.85)).note(note));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index_of_equals_and_of_one_that_has_it_all() {
        assert!((jain(&[40.0, 40.0]) - 1.0).abs() < 1e-9);
        assert!((jain(&[80.0, 0.0]) - 0.5).abs() < 1e-9);
    }
}
