//! Bulk transfers over lossy, long and short paths: cases `lossy`, `long`, `satellite`, `near`, `slow`,
//! `uneven`.

use std::time::Duration;

use super::flow::Flow;
use super::nodes::{Tally, Two};
use super::path::{Path, payload_share};
use super::report::{Goal, Row, median};
use super::{Bench, Peer, goal_when};
use crate::netlab::{Lab, MTU_DEFAULT};

/// Losses of the case `lossy`, in percent.
pub const LOSSES_PCT: [f64; 6] = [0.0, 0.1, 1.0, 2.0, 5.0, 10.0];
const MIB: u64 = 1 << 20;

/// One fresh transfer.
struct Bulk {
    flow: Flow,
    tally: Tally,
    /// What the link delivered in percent of the content, less 100.
    wire_pct: f64,
    /// Packets that the queue had no room for, and those lost by chance, of those sent to the receiver.
    dropped: u64,
    lost: u64,
    /// How late the emulator delivered on average; much of it tells of a machine that was busy with something else.
    late_us: f64,
}

fn bulk(path: &Path, bytes: u64, seed: u64) -> Bulk {
    let lab = path.lab(seed).unwrap();
    let two = Two::start(lab.pair());
    let content = two.put(bytes, seed);
    let before = lab.counters();
    let flow = two.get(content, None);
    let way = lab.counters().since(&before).a_to_b;
    let wire_pct = (way.delivered_bytes as f64 / bytes as f64 - 1.0) * 100.0;
    let late_us = way.late_mean().as_secs_f64() * 1e6;
    Bulk { flow, tally: two.tally(), wire_pct, dropped: way.dropped_packets, lost: way.lost_packets, late_us }
}

fn medians(bulks: &[Bulk], figure: impl Fn(&Bulk) -> f64) -> f64 {
    median(&bulks.iter().map(figure).collect::<Vec<_>>())
}

/// The goodput of several transfers of the same kind, as a row.
fn goodput(case: &'static str, what: String, path: &Path, flows: &[&Flow]) -> Row {
    let rates: Vec<f64> = flows.iter().map(|flow| flow.mbit()).collect();
    let mut notes: Vec<String> =
        flows.iter().map(|flow| flow.trouble()).filter(|trouble| !trouble.is_empty()).collect();
    if rates.len() > 1 {
        let shown: Vec<_> = rates.iter().map(|rate| format!("{rate:.1}")).collect();
        notes.insert(0, shown.join(" "));
    }
    Row::new(case, what, median(&rates), "Mbit/s").against(path.capacity_mbit()).note(notes.join("; "))
}

fn pangea(bench: &mut Bench, case: &'static str, path: &Path, bytes: u64, goal: f64) -> Vec<Bulk> {
    let bulks: Vec<_> = (1..=bench.runs as u64).map(|seed| bulk(path, bytes, seed)).collect();
    let flows: Vec<_> = bulks.iter().map(|bulk| &bulk.flow).collect();
    let mut row = goodput(case, path.loss_words(), path, &flows).goal(Goal::AtLeast(goal));
    let wire = medians(&bulks, |bulk| bulk.wire_pct);
    let (lost, dropped) = (medians(&bulks, |bulk| bulk.lost as f64), medians(&bulks, |bulk| bulk.dropped as f64));
    let late = medians(&bulks, |bulk| bulk.late_us);
    let note = format!(
        "delivered {wire:.1} % beyond content; lost {lost}, queue dropped {dropped}; {late:.0} us late on average"
    );
    row.note = if row.note.is_empty() { note } else { format!("{}; {note}", row.note) };
    bench.add(row);
    bulks
}

fn peers(bench: &mut Bench, case: &'static str, path: &Path, bytes: u64) -> Vec<(&'static str, f64)> {
    let mut found = Vec::new();
    for name in bench.peers(&format!("{case} {}", path.loss_words())) {
        let limit = bench.peer_limit();
        let flows: Vec<Flow> = (1..=bench.peer_runs as u64)
            .filter_map(|seed| {
                let lab = path.lab(seed).unwrap();
                Some(Peer::connect(name, lab.pair())?.fetch(bytes, limit))
            })
            .collect();
        if flows.is_empty() {
            eprintln!("{name} is not to be had here: not compared");
            continue;
        }
        let row = goodput(case, path.loss_words(), path, &flows.iter().collect::<Vec<_>>()).who(name);
        found.push((name, row.value));
        bench.add(row);
    }
    found
}

/// What redundancy a bulk transfer cost, as a row.
fn redundancy(case: &'static str, path: &Path, bulks: &[Bulk], bytes: u64) -> Row {
    let what = format!("{}: redundancy beyond what was lost", path.loss_words());
    let sent = medians(bulks, |bulk| bulk.tally.redundancy_pct(bytes));
    let (repaired, copies) =
        (medians(bulks, |bulk| bulk.tally.repaired as f64), medians(bulks, |bulk| bulk.tally.copies as f64));
    let note = format!("sent {sent:.2} % in all; {repaired} symbols rebuilt, {copies} requests known by their copy");
    // Where nothing is lost by chance nothing may be sent in any run, whatever the queue dropped.
    let value = if path.loss_pct > 0.0 {
        medians(bulks, |bulk| bulk.tally.excess_pct(bytes))
    } else {
        bulks.iter().map(|bulk| bulk.tally.redundancy_pct(bytes)).fold(0.0, f64::max)
    };
    Row::new(case, what, value, "%").note(note)
}

/// 100 Mbit/s, RTT 50 ms, every loss.
pub fn lossy(bench: &mut Bench) {
    const BYTES: u64 = 64 * MIB;
    let base = Path::new(100.0, 50);
    let bursts = [2.0, 5.0].map(|loss| Path { burst: Some(8.0), ..base.loss(loss) });
    for path in LOSSES_PCT.map(|loss| base.loss(loss)).into_iter().chain(bursts) {
        let loss = path.loss_pct;
        if bench.wants(&format!("lossy {} pangea", path.loss_words())) {
            let bulks = pangea(bench, "lossy", &path, BYTES, if path.burst.is_some() { 0.90 } else { 0.92 });
            let row = redundancy("lossy", &path, &bulks, BYTES);
            let row = goal_when(row, loss <= 0.0, Goal::AtMost(0.0));
            let row = goal_when(row, (loss - 1.0).abs() < 0.01, Goal::AtMost(3.0));
            let row = goal_when(row, (loss - 5.0).abs() < 0.01 && path.burst.is_none(), Goal::AtMost(6.0));
            bench.add(row);
            if path.burst.is_none() {
                bench.add_goodput("Pangea", loss, medians(&bulks, |bulk| bulk.flow.mbit()));
            }
        }
        for (name, mbit) in peers(bench, "lossy", &path, BYTES) {
            if path.burst.is_none() {
                bench.add_goodput(name, loss, mbit);
            }
        }
    }
}

/// A transfer as the program sees it, and as its bytes came over the link.
struct Watched {
    flow: Flow,
    arrival: Flow,
}

/// Watches the link while a transfer runs. What the program is given comes in chunks, and those that began during
/// start-up are whole only after it: from the program's view the rest would look faster than the link is.
fn watched(lab: &Lab, content: u64, transfer: impl FnOnce() -> Flow + Send) -> Watched {
    const EVERY: Duration = Duration::from_millis(50);
    let before = lab.counters();
    let mut samples = Vec::new();
    let flow = std::thread::scope(|scope| {
        let transfer = scope.spawn(transfer);
        while !transfer.is_finished() {
            std::thread::sleep(EVERY);
            let way = lab.counters().since(&before).a_to_b;
            samples.push((way.at, way.delivered_bytes));
        }
        transfer.join().unwrap()
    });
    // Headers, tags and whatever came twice are not content.
    let (took, all) = samples.last().copied().unwrap_or_default();
    for sample in &mut samples {
        sample.1 = (sample.1 as f64 * content as f64 / all as f64) as u64;
    }
    Watched { flow, arrival: Flow { bytes: content, took, samples, whole: true, failure: None } }
}

/// 300 Mbit/s, RTT 150 ms, 1 %: a path never used, and one that the nodes remember though the sender was restarted.
pub fn long(bench: &mut Bench) {
    const BYTES: u64 = 128 * MIB;
    let path = Path::new(300.0, 150).loss(1.0);
    if bench.wants("long pangea") {
        let (mut fresh, mut known) = (Vec::new(), Vec::new());
        for seed in 1..=bench.runs as u64 {
            let lab = path.lab(seed).unwrap();
            let mut two = Two::start(lab.pair());
            let contents = [two.put(BYTES, seed), two.put(BYTES, 1000 + seed)];
            fresh.push(watched(&lab, BYTES, || two.get(contents[0], None)));
            let _ = two.tally(); // within this time the worker tells what the path carried
            two.restart_a(); // its worker knows nothing, its controller what it has stored
            known.push(watched(&lab, BYTES, || two.get(contents[1], None)));
        }
        for (watched, what, goal) in [(&fresh, "1 %, path never used", 0.80), (&known, "1 %, path known", 0.88)] {
            let flows: Vec<_> = watched.iter().map(|watched| &watched.flow).collect();
            bench.add(goodput("long", what.to_owned(), &path, &flows).goal(Goal::AtLeast(goal)));
        }
        for (watched, what) in [(fresh, "1 %, never used, after start-up"), (known, "1 %, known, after start-up")] {
            let inside = median(&watched.iter().map(|watched| watched.arrival.mbit_inside()).collect::<Vec<_>>());
            let row = Row::new("long", what, inside, "Mbit/s").against(path.capacity_mbit());
            bench.add(row.goal(Goal::AtLeast(0.93)).note("as they arrived, between 25 and 95 % of the bytes"));
        }
    }
    peers(bench, "long", &path, BYTES);
}

/// 20 Mbit/s, RTT 300 ms, 3 %.
pub fn satellite(bench: &mut Bench) {
    const BYTES: u64 = 16 * MIB;
    let path = Path::new(20.0, 300).loss(3.0);
    if bench.wants("satellite pangea") {
        let bulks = pangea(bench, "satellite", &path, BYTES, 0.85);
        bench.add(redundancy("satellite", &path, &bulks, BYTES));
    }
    peers(bench, "satellite", &path, BYTES);
}

/// A path that loses nothing by chance: how much of it is used, and what its queue drops.
fn lossless(bench: &mut Bench, case: &'static str, what: &str, path: &Path, bytes: u64, goals: [f64; 2]) {
    if !bench.wants(&format!("{case} {what} pangea")) {
        return;
    }
    let bulks: Vec<_> = (1..=bench.runs as u64).map(|seed| bulk(path, bytes, seed)).collect();
    let flows: Vec<_> = bulks.iter().map(|bulk| &bulk.flow).collect();
    bench.add(goodput(case, what.to_owned(), path, &flows).goal(Goal::AtLeast(goals[0])));
    let packets = bytes as f64 / (f64::from(MTU_DEFAULT) * payload_share());
    let dropped = medians(&bulks, |bulk| bulk.dropped as f64) / packets * 100.0;
    let row = Row::new(case, format!("{what}: packets that the queue had no room for"), dropped, "%");
    bench.add(row.goal(Goal::AtMost(goals[1])).note("of those that carry the content"));
    bench.add(Row { what: format!("{what}: redundancy"), ..redundancy(case, path, &bulks, bytes) });
}

/// 100 Mbit/s, round trips so short that the queue holds few packets.
pub fn near(bench: &mut Bench) {
    for path in [2, 5, 10].map(|rtt_ms| Path::new(100.0, rtt_ms)) {
        lossless(bench, "near", &format!("RTT {} ms", path.rtt_ms), &path, 32 * MIB, [0.75, 20.0]);
    }
}

/// Paths so slow that the queue holds few packets.
pub fn slow(bench: &mut Bench) {
    for (rate_mbit, rtt_ms, mib) in [(2.0, 80, 4), (5.0, 30, 8), (10.0, 20, 16)] {
        let path = Path::new(rate_mbit, rtt_ms);
        lossless(bench, "slow", &format!("{rate_mbit} Mbit/s, RTT {rtt_ms} ms"), &path, mib * MIB, [0.85, 20.0]);
    }
}

/// 100 Mbit/s, packets early or late by some time, in order or not.
pub fn uneven(bench: &mut Bench) {
    for (rtt_ms, jitter_ms, reorder) in [(50, 5, false), (50, 10, false), (10, 5, false), (50, 1, true), (50, 3, true)]
    {
        let path = Path { jitter_ms, reorder, ..Path::new(100.0, rtt_ms) };
        let order = if reorder { "reordered" } else { "in order" };
        let what = format!("RTT {rtt_ms} ms, {jitter_ms} ms early or late, {order}");
        lossless(bench, "uneven", &what, &path, 32 * MIB, [0.75, 20.0]);
    }
}

/// One loss with little content and a floor.
pub fn short(bench: &mut Bench, loss_pct: f64, floor: f64) {
    const BYTES: u64 = 16 * MIB;
    let path = Path::new(100.0, 50).loss(loss_pct);
    let bulks = pangea(bench, "short", &path, BYTES, floor);
    let row = redundancy("short", &path, &bulks, BYTES);
    bench.add(goal_when(row, loss_pct <= 0.0, Goal::AtMost(0.0)));
}
