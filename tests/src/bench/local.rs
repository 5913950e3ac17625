//! What one machine can do without a path in the way: cases `put`, `get`, `local`, `policy` on loopback, and `veth`.

use std::fs::File;
use std::time::{Duration, Instant};

use pangea_client::{Client, PutOptions};
use pangea_ipc::ids::ContentId;
use pangea_ipc::node::Request;
use tempfile::TempDir;

use super::bare::{Bare, Law};
use super::bound::{Bound, Busy, Parts, cpus};
use super::flow::{Flow, gbps};
use super::nginx::nginx;
use super::nodes::{Two, get};
use super::report::{Goal, Row, median};
use super::sendme::Sendme;
use super::{Bench, Case};
use crate::netlab::Pair;
use crate::{Node, NodeOptions, sample};

/// A local transfer that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// The file that a laden stream sends.
const FROM: &str = "from";
/// The file that it writes.
const TO: &str = "to";

fn rate(flow: &Flow) -> f64 {
    assert!(flow.whole, "{}", flow.trouble());
    gbps(flow.bytes, flow.took)
}

fn repeat(runs: usize, mut one: impl FnMut() -> f64) -> f64 {
    median(&(0..runs.max(1)).map(|_| one()).collect::<Vec<_>>())
}

/// Gets at a node that has nothing of it.
fn fresh(client: &Client, content: ContentId) -> Flow {
    let _ = client.call(Request::Remove(content)); // not there the first time
    get(client, content, None)
}

/// Put, get and local get of one large file on loopback.
pub fn transfers(bench: &mut Bench, case: Case) {
    let (bytes, runs) = (bench.mib << 20, bench.runs);
    let one = NodeOptions { workers: 1, ..NodeOptions::default() };
    let (a, b) = (Node::start(one.clone()), Node::start(one));
    a.befriend(&b);
    let source = a.file("source");
    sample::write_file(&source, bytes, 1).unwrap();
    let client_a = Client::connect(&a.runtime_dir()).unwrap();
    let client_b = Client::connect(&b.runtime_dir()).unwrap();
    // Both number their workers from 0, so both would sit on the first CPU; on two machines they would not.
    for (client, cpu) in [(&client_a, 0), (&client_b, 1)] {
        client.call(Request::PolicySet(vec![format!("workers.cpus={cpu}")])).unwrap();
    }
    std::io::copy(&mut File::open(&source).unwrap(), &mut std::io::sink()).unwrap(); // into the page cache

    let mut whole = Vec::new();
    let mut id = None;
    let sent = repeat(if case == Case::Put { runs } else { 1 }, || {
        if let Some(id) = id {
            client_a.call(Request::Remove(id)).unwrap();
        }
        let started = Instant::now();
        let mut last = Duration::ZERO;
        let file = File::open(&source).unwrap();
        let options = PutOptions { name: "source".into(), size: Some(bytes) };
        let mut note = |_| {
            last = started.elapsed();
            true
        };
        let put = client_a.put(&file, options, &mut note).unwrap();
        whole.push(gbps(bytes, started.elapsed()));
        id = Some(put.content);
        gbps(bytes, last)
    });
    let id = id.unwrap();
    match case {
        Case::Put => {
            let what = "put from page cache, before the final sync";
            bench.add(Row::new("put", what, sent, "GB/s").goal(Goal::AtLeast(1.0)));
            bench.add(Row::new("put", "put, hashed and synced", median(&whole), "GB/s"));
        }
        Case::Get => {
            let mut fastest = 0.0_f64;
            for law in [Law::Worker, Law::WorkerBbr] {
                let bare = repeat(runs, || rate(&Bare::start(None, law, true).fetch(bytes, LIMIT)));
                bench.add(Row::new("get", "stream over loopback, pinned", bare, "GB/s").who(law.name()));
                fastest = fastest.max(bare);
            }
            let peer = repeat(runs, || rate(&fresh(&client_b, id)));
            let row = Row::new("get", "get over loopback, verified, synced", peer, "GB/s").against(fastest);
            bench.add(row.note("of the faster stream; packets of 6500 bytes, in both"));
        }
        _ => {
            let local = repeat(runs, || rate(&get(&client_a, id, None)));
            let row = Row::new("local", "local get, every byte touched", local, "GB/s");
            bench.add(row.goal(Goal::AtLeast(2.0)));
            match nginx(&source, bytes, runs) {
                Some(value) => {
                    bench.add(Row::new("local", "loopback", value, "GB/s").who("nginx + curl"));
                }
                None => eprintln!("nginx or curl is not installed: not compared"),
            }
        }
    }
}

/// A policy change, acknowledged by idle workers.
pub fn policy(bench: &mut Bench) {
    let node = Node::start(NodeOptions { workers: 4, ..NodeOptions::default() });
    let client = Client::connect(&node.runtime_dir()).unwrap();
    let mut pct = 0;
    let value = repeat(31, || {
        pct += 1;
        let started = Instant::now();
        client.call(Request::PolicySet(vec![format!("fec.max_overhead_pct={pct}")])).unwrap();
        started.elapsed().as_secs_f64() * 1e3
    });
    let row = Row::new("policy", "policy set, acknowledged by 4 idle workers", value, "ms");
    bench.add(row.goal(Goal::AtMost(5.0)));
}

/// Gets between two pinned nodes, against bare quinn streams over the same path.
struct Against<'a> {
    bytes: u64,
    pair: &'a Pair,
    two: Two,
    content: ContentId,
    /// Holds the file that a laden stream sends, and the one that it writes.
    folder: TempDir,
}

/// Rates of one kind of transfer in GB/s, and the processor seconds for a GiB: of each side, and of the whole machine.
struct Found {
    rates: Vec<f64>,
    cpu: Vec<Vec<f64>>,
    busy: Vec<f64>,
}

impl Found {
    const NONE: Self = Self { rates: Vec::new(), cpu: Vec::new(), busy: Vec::new() };

    fn add(&mut self, flow: &Flow, busy: &Busy, before: &[f64], after: &[f64]) {
        self.busy.push(busy.per_gib(flow.bytes));
        self.rates.push(rate(flow));
        let gib = flow.bytes as f64 / f64::from(1 << 30);
        self.cpu.push(after.iter().zip(before).map(|(after, before)| (after - before) / gib).collect());
    }

    fn cpu_words(&self, names: &[&str]) -> String {
        let one = |side: usize| median(&self.cpu.iter().map(|cpu| cpu[side]).collect::<Vec<_>>());
        let words: Vec<_> = names.iter().enumerate().map(|(side, name)| format!("{name} {:.2}", one(side))).collect();
        format!("CPU s a GiB: {}", words.join(", "))
    }
}

impl<'a> Against<'a> {
    fn new(pair: &'a Pair, bytes: u64) -> Self {
        let two = Two::start(pair);
        two.pin();
        let content = two.put(bytes, 1);
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join(FROM);
        sample::write_file(&source, bytes, 2).unwrap();
        File::open(source).unwrap().sync_all().unwrap();
        Self { bytes, pair, two, content, folder }
    }

    fn stream(&self, law: Law, found: &mut Found) {
        self.fetch(Bare::start(Some(self.pair), law, true), found);
    }

    fn laden(&self, found: &mut Found) {
        let [from, to] = [FROM, TO].map(|name| self.folder.path().join(name));
        let _ = std::fs::remove_file(&to); // not there the first time
        self.fetch(Bare::start_laden(self.pair, Law::Worker, &from, &to), found);
    }

    fn fetch(&self, mut bare: Bare, found: &mut Found) {
        let (busy, before) = (Busy::start(), bare.cpu());
        let flow = bare.fetch(self.bytes, LIMIT);
        found.add(&flow, &busy, &before, &bare.cpu());
    }

    fn get(&self, found: &mut Found) {
        let _ = self.two.client_b.call(Request::Remove(self.content)); // not there the first time
        let before = self.two.cpu();
        let busy = Busy::start();
        let flow = get(&self.two.client_b, self.content, None);
        found.add(&flow, &busy, &before, &self.two.cpu());
    }
}

/// Gets over an undisturbed path against bare quinn streams, everything pinned. Says what the gets reached, in GB/s.
fn against_streams(bench: &mut Bench, case: &'static str, pair: &Pair, what: &str, goal: f64) -> f64 {
    let against = Against::new(pair, bench.mib << 20);
    let bound = Bound::new(against.bytes);
    let mut parts = Vec::new();
    // In turns: what the machine does in one minute it may not do in the next.
    let [mut ours, mut own, mut bbr, mut laden] = [const { Found::NONE }; 4];
    for _ in 0..bench.runs.max(1) {
        against.stream(Law::Worker, &mut own);
        against.stream(Law::WorkerBbr, &mut bbr);
        against.get(&mut ours);
        against.laden(&mut laden);
        parts.push(bound.measure());
    }
    let bare = format!("stream, {what}, pinned");
    let as_get = format!("{bare}, that is read, hashed, written, synced");
    for (law, found, what) in
        [(Law::Worker, &own, &bare), (Law::WorkerBbr, &bbr, &bare), (Law::Worker, &laden, &as_get)]
    {
        let row = Row::new(case, what, median(&found.rates), "GB/s").who(law.name());
        bench.add(row.note(found.cpu_words(&["sender", "receiver"])));
    }
    let fastest = median(&own.rates).max(median(&bbr.rates));
    let shown: Vec<_> = ours.rates.iter().map(|rate| format!("{rate:.2}")).collect();
    let note =
        format!("{}; of the faster stream; {}", shown.join(" "), ours.cpu_words(&["sender", "receiver", "program"]));
    let reached = median(&ours.rates);
    let row = Row::new(case, format!("get, {what}, pinned, verified, synced"), reached, "GB/s");
    bench.add(row.against(fastest).goal(Goal::AtLeast(goal)).note(note));
    let row =
        Row::new(case, format!("get, {what}, of the stream that is read, hashed, written, synced"), reached, "GB/s");
    bench.add(row.against(median(&laden.rates)));
    let streams = if median(&own.rates) >= median(&bbr.rates) { &own } else { &bbr };
    let parts = Parts::median(&parts);
    add_bound(bench, case, what, (median(&ours.busy), reached), (median(&streams.busy), fastest), &parts);
    reached
}

/// What the CPUs allow: no more than the stream itself, and no more than they have seconds for all that must be done.
fn add_bound(bench: &mut Bench, case: &'static str, what: &str, get: (f64, f64), stream: (f64, f64), parts: &Parts) {
    let needed = stream.0 + parts.sum();
    let bound = (cpus() as f64 / needed * f64::from(1 << 30) / 1e9).min(stream.1);
    let note = format!(
        "CPU s a GiB, all of the machine: {:.2}; bound: stream {:.2}, read {:.2}, hash {:.2}, write {:.2}, to the program {:.2}: {needed:.2}",
        get.0, stream.0, parts.read, parts.hash, parts.write, parts.hand
    );
    let row = Row::new(case, format!("get, {what}, of what {} CPUs allow", cpus()), get.1, "GB/s");
    bench.add(row.against(bound).note(note));
}

/// A get over loopback with packets as Ethernet's against a bare quinn stream.
pub fn loopback(bench: &mut Bench) {
    match Pair::loopback() {
        Ok(pair) => drop(against_streams(bench, "get", &pair, "loopback, MTU 1500", 0.6)),
        Err(why) => eprintln!("{why}: not measured with MTU 1500"),
    }
}

/// A get over a clean veth against a bare quinn stream, and against sendme.
pub fn veth(bench: &mut Bench) {
    let pair = Pair::veth().unwrap();
    let ours = against_streams(bench, "veth", &pair, "MTU 1500", 0.95);
    if bench.peer_seconds == 0 {
        return;
    }
    let Some(sendme) = Sendme::find(&pair) else { return eprintln!("sendme is not installed: not compared") };
    let theirs = repeat(bench.runs, || rate(&sendme.fetch(bench.mib << 20, LIMIT)));
    bench.add(Row::new("veth", "one file, MTU 1500", theirs, "GB/s").who("sendme"));
    let row = Row::new("veth", "get, in rates of sendme", ours / theirs, "times");
    bench.add(row.goal(Goal::AtLeast(3.0)));
}
