//! What one machine can do without a path in the way: cases `put`, `get`, `local`, `policy` on loopback, and `veth`.

use std::time::{Duration, Instant};

use pangea_client::{Client, PutOptions};
use pangea_ipc::ids::ContentId;
use pangea_ipc::node::Request;

use super::bare::{Bare, Law};
use super::flow::{Flow, gbps};
use super::nginx::nginx;
use super::nodes::{Two, get};
use super::report::{Goal, Row, median};
use super::{Bench, Case};
use crate::netlab::Pair;
use crate::{Node, NodeOptions, sample};

/// A local transfer that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(120);

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
    std::io::copy(&mut std::fs::File::open(&source).unwrap(), &mut std::io::sink()).unwrap(); // into the page cache

    let mut whole = Vec::new();
    let mut id = None;
    let sent = repeat(if case == Case::Put { runs } else { 1 }, || {
        if let Some(id) = id {
            client_a.call(Request::Remove(id)).unwrap();
        }
        let started = Instant::now();
        let mut last = Duration::ZERO;
        let file = std::fs::File::open(&source).unwrap();
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
            bench.add(row.goal(Goal::AtLeast(0.6)).note("of the faster stream"));
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

/// A get over a clean veth against a bare quinn stream, everything pinned.
pub fn veth(bench: &mut Bench) {
    let (bytes, runs) = (bench.mib << 20, bench.runs);
    let pair = Pair::veth().unwrap();
    let two = Two::start(&pair, &[]);
    two.pin();
    let content = two.put(bytes, 1);
    // In turns: what the machine does in one minute it may not do in the next.
    let (mut ours, mut own, mut bbr) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        own.push(rate(&Bare::start(Some(&pair), Law::Worker, true).fetch(bytes, LIMIT)));
        bbr.push(rate(&Bare::start(Some(&pair), Law::WorkerBbr, true).fetch(bytes, LIMIT)));
        ours.push(rate(&fresh(&two.client_b, content)));
    }
    for (law, rates) in [(Law::Worker, &own), (Law::WorkerBbr, &bbr)] {
        bench.add(Row::new("veth", "stream, MTU 1500, pinned", median(rates), "GB/s").who(law.name()));
    }
    let fastest = median(&own).max(median(&bbr));
    let shown: Vec<_> = ours.iter().map(|rate| format!("{rate:.2}")).collect();
    let row = Row::new("veth", "get, pinned, verified, synced", median(&ours), "GB/s").against(fastest);
    bench.add(row.goal(Goal::AtLeast(0.95)).note(format!("{}; of the faster stream", shown.join(" "))));
}
