//! Single objects one after another on a warm session: case `objects`.

use std::time::{Duration, Instant};

use super::nodes::Two;
use super::path::Path;
use super::report::{Goal, Row, median, quantile};
use super::{Bench, Peer, goal_when};

/// Bytes of an object.
const BYTES: u64 = 256 << 10;
/// Objects that warm the session up and do not count.
const WARM_UP: usize = 20;

/// Times in ms, and what the objects cost.
struct Times {
    ms: Vec<f64>,
    /// Of other objects on the same path, in turn with those, for which FEC was turned off.
    without: Vec<f64>,
    redundancy_pct: f64,
    excess_pct: f64,
    copies: u64,
}

fn path(loss_pct: f64) -> Path {
    Path::new(100.0, 50).loss(loss_pct)
}

/// `in_turn`: as many objects again without FEC, each after one with it.
fn measure(path: &Path, in_turn: bool, count: usize, runs: usize) -> Times {
    let (mut ms, mut without, mut sent, mut excess, mut copies) = (vec![], vec![], vec![], vec![], 0);
    let all = WARM_UP + if in_turn { 2 * count } else { count };
    for seed in 1..=runs as u64 {
        let lab = path.lab(seed).unwrap();
        let two = Two::start(lab.pair());
        let contents: Vec<_> = (0..all as u64).map(|number| two.put(BYTES, seed << 32 | number)).collect();
        let (warm_up, counted) = contents.split_at(WARM_UP);
        let get = |content| {
            let flow = two.get(content, None);
            assert!(flow.whole, "{:?}\n{}", flow.failure, two.b.log());
            flow.took.as_secs_f64() * 1e3
        };
        for &content in warm_up {
            get(content);
        }
        // Counters want no rest: they are about all objects, those of the warm-up too.
        if in_turn {
            for pair in counted.chunks_exact(2) {
                two.set_policy("fec.mode=auto");
                ms.push(get(pair[0]));
                two.set_policy("fec.mode=off");
                without.push(get(pair[1]));
            }
        } else {
            ms.extend(counted.iter().map(|&content| get(content)));
        }
        let (tally, all) = (two.tally(), BYTES * contents.len() as u64);
        sent.push(tally.redundancy_pct(all));
        excess.push(tally.excess_pct(all));
        copies += tally.copies;
    }
    // Where nothing is lost nothing may be sent in any run.
    let redundancy_pct = if path.loss_pct > 0.0 { median(&sent) } else { sent.into_iter().fold(0.0, f64::max) };
    Times { ms, without, redundancy_pct, excess_pct: median(&excess), copies }
}

fn rows(who: &str, what: &str, ms: &[f64]) -> [Row; 2] {
    let note = format!("{} objects, p90 {:.0}, worst {:.0} ms", ms.len(), quantile(ms, 0.9), quantile(ms, 1.0));
    [
        Row::new("objects", format!("{what}: median"), median(ms), "ms").who(who).note(note),
        Row::new("objects", format!("{what}: 99th percentile"), quantile(ms, 0.99), "ms").who(who),
    ]
}

/// No loss with and without FEC, then 2 and 5 %.
pub fn objects(bench: &mut Bench) {
    let mut clean = None;
    if bench.wants("objects no loss pangea") {
        let times = measure(&path(0.0), true, bench.objects, bench.runs);
        for row in rows("pangea", "no loss, fec.mode=off", &times.without) {
            bench.add(row);
        }
        let [middle, worst] = rows("pangea", "no loss", &times.ms);
        // Two halves of the same objects differ by up to a hundredth.
        bench.add(middle.against(median(&times.without)).goal(Goal::AtMost(1.01)));
        bench.add(worst);
        let row = Row::new("objects", "no loss: redundancy", times.redundancy_pct, "%");
        bench.add(row.goal(Goal::AtMost(0.0)));
        clean = Some(median(&times.ms));
        bench.times.push(("Pangea, no loss".to_owned(), times.ms));
    }
    for loss_pct in [2.0, 5.0] {
        if !bench.wants(&format!("objects {loss_pct} % pangea")) {
            continue;
        }
        let times = measure(&path(loss_pct), false, bench.objects, bench.runs);
        let clean = *clean.get_or_insert_with(|| median(&measure(&path(0.0), false, bench.objects, 1).ms));
        let [middle, worst] = rows("pangea", &format!("{loss_pct} %"), &times.ms);
        let judged = loss_pct > 4.0;
        bench.add(goal_when(middle.against(clean), judged, Goal::AtMost(1.10)));
        bench.add(goal_when(worst.against(clean).note("of the median at no loss"), judged, Goal::AtMost(1.35)));
        let what = format!("{loss_pct} %: redundancy beyond what was lost");
        let note = format!("sent {:.1} % in all; {} requests known by their copy", times.redundancy_pct, times.copies);
        let row = Row::new("objects", what, times.excess_pct, "%").note(note);
        bench.add(goal_when(row, judged, Goal::AtMost(15.0)));
        bench.times.push((format!("Pangea, {loss_pct} %"), times.ms));
    }
    for loss_pct in [0.0, 2.0, 5.0] {
        let words = path(loss_pct).loss_words();
        // A program for one file has no warm connection.
        for name in bench.peers(&format!("objects {words}")).into_iter().filter(|name| *name != "sendme") {
            peer(bench, name, loss_pct);
        }
    }
}

fn peer(bench: &mut Bench, name: &str, loss_pct: f64) {
    let lab = path(loss_pct).lab(1).unwrap();
    let Some(mut peer) = Peer::connect(name, lab.pair()) else { return };
    let (started, limit) = (Instant::now(), bench.peer_limit());
    let (mut ms, mut trouble) = (Vec::new(), String::new());
    for _ in 0..WARM_UP + bench.objects {
        let flow = peer.fetch(BYTES, limit.saturating_sub(started.elapsed()).max(Duration::from_millis(1)));
        if !flow.whole {
            trouble = format!("; {}", flow.failure.unwrap_or_else(|| "out of time".to_owned()));
            break;
        }
        ms.push(flow.took.as_secs_f64() * 1e3);
    }
    let ms = ms.split_off(WARM_UP.min(ms.len() / 2));
    let words = path(loss_pct).loss_words();
    for mut row in rows(name, &words, &ms) {
        row.note.push_str(&trouble);
        bench.add(row);
    }
    bench.times.push((format!("{name}, {words}"), ms));
}

/// Few objects at no loss and at 5 %, with a bound.
pub fn short(bench: &mut Bench, slower_max: f64) {
    const COUNT: usize = 30;
    let clean = median(&measure(&path(0.0), false, COUNT, bench.runs).ms);
    bench.add(Row::new("short", "objects at no loss: median", clean, "ms"));
    let lossy = measure(&path(5.0), false, COUNT, bench.runs);
    let row = Row::new("short", "objects at 5 %: median", median(&lossy.ms), "ms").against(clean);
    bench.add(row.goal(Goal::AtMost(slower_max)));
}
