//! Put on one node, get on another, through real controllers, workers, rings, Noise and QUIC.

use std::ffi::OsStr;
use std::path::Path;

use pangea_tests::node::program;
use pangea_tests::{Node, NodeOptions, sample};

const CHUNK: u64 = 256 << 10;

fn same(left: &Path, right: &Path) -> bool {
    std::fs::read(left).unwrap() == std::fs::read(right).unwrap()
}

fn get(node: &Node, what: &str, name: &str) -> std::path::PathBuf {
    let path = node.file(name);
    let _ = node.ctl([OsStr::new("get"), what.as_ref(), "-o".as_ref(), path.as_os_str()]).ok();
    path
}

#[test]
fn every_awkward_size_goes_from_node_to_node_under_its_b3sum() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 9 * CHUNK + 17] {
        let source = a.file(&format!("size-{len}"));
        sample::write_file(&source, len, len).unwrap();
        let id = a.put(&source);
        assert_eq!(id, sample::content_id(&source).unwrap(), "size {len}");
        let arrived = get(&b, &a.ticket(&id), &format!("got-{len}"));
        assert!(same(&source, &arrived), "size {len}");
    }
    let listed = b.json(["ls"]);
    assert_eq!(listed["contents"].as_array().unwrap().len(), 6);
}

#[test]
fn work_is_divided_over_workers_and_both_sides_of_a_lossy_path_repair_it() {
    let lossy = NodeOptions { loss_pct: 5.0, policy: vec!["fec.mode=always".into()], ..NodeOptions::default() };
    let (a, b) = (Node::start(lossy.clone()), Node::start(lossy));
    a.befriend(&b);
    let source = a.file("lossy");
    sample::write_file(&source, 40 * CHUNK + 5, 1).unwrap();
    let id = a.put(&source);
    let path = b.file("arrived");
    let got = b.json([OsStr::new("get"), a.ticket(&id).as_ref(), "-o".as_ref(), path.as_os_str()]);
    assert!(same(&source, &path));
    let shares = got["job"]["shares"].as_array().unwrap().clone();
    let workers: std::collections::BTreeSet<_> = shares.iter().map(|share| share["worker"].as_u64()).collect();
    assert_eq!(workers.len(), 2, "{shares:?}");
    let sum = |key: &str| shares.iter().map(|share| share[key].as_u64().unwrap()).sum::<u64>();
    assert!(sum("chunks_by_fec") > 0 && sum("symbols_repaired") + sum("symbols_asked_again") > 0, "{shares:?}");
    // Nothing comes twice here, so what was sent came or was lost; of 100 symbols 5 are.
    let (sent, lost, received) = (sum("symbols_sent"), sum("symbols_lost"), sum("symbols_received"));
    assert!(lost > 0 && sent <= lost + received && lost * 100 > sent && lost * 100 < 20 * sent, "{shares:?}");
    assert!(lost >= sum("symbols_repaired"), "each repaired symbol was lost: {shares:?}");
    assert!(sum("parity_unused") < received, "{shares:?}");
}

#[test]
fn chunks_come_from_all_holders_at_once() {
    let nodes: Vec<Node> = (0..3).map(|_| Node::start(NodeOptions { workers: 1, ..NodeOptions::default() })).collect();
    let [a, b, c] = &nodes[..] else { unreachable!() };
    let source = a.file("shared");
    sample::write_file(&source, 200 * CHUNK, 2).unwrap();
    let id = a.put(&source);
    assert_eq!(b.put(&source), id);
    a.befriend(c);
    b.befriend(c);
    let path = c.file("arrived");
    let peers = [a.address(), b.address()];
    let got = c.json(["get", &id, "-o", path.to_str().unwrap(), "--peer", &peers[0], "--peer", &peers[1]]);
    assert!(same(&source, &path));
    let shares = got["job"]["shares"].as_array().unwrap();
    let from: std::collections::BTreeSet<_> = shares.iter().map(|share| share["node"].as_str().unwrap()).collect();
    assert_eq!(from.len(), 2, "both holders gave some: {shares:?}");
}

#[test]
fn a_range_fetches_only_the_chunks_around_it() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    let source = a.file("ranged");
    sample::write_file(&source, 20 * CHUNK, 3).unwrap();
    let id = a.put(&source);
    let path = b.file("part");
    let ticket = a.ticket(&id);
    let range = format!("{}-{}", CHUNK - 1, 2 * CHUNK);
    let _ = b.ctl(["get", &ticket, "-o", path.to_str().unwrap(), "--range", &range]).ok();
    let whole = std::fs::read(&source).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), whole[CHUNK as usize - 1..=2 * CHUNK as usize]);
    let listed = b.json(["ls"]);
    assert_eq!(listed["contents"][0]["chunks_held"], 3, "{listed}");
}

#[test]
fn streams_come_in_order_and_names_travel() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    let source = a.file("named.bin");
    sample::write_file(&source, 30 * CHUNK + 1, 4).unwrap();
    let id = a.put(&source);
    let ticket = a.ticket(&id);
    let output = b.ctl_command(["get", &ticket, "-o", "-"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == std::fs::read(&source).unwrap());
    let _ = b.ctl(["get", &id]).ok();
    assert!(same(&source, &b.file("named.bin")), "without -o the file gets the name given at put");
    let refused = b.ctl(["get", &id]).refused();
    assert!(refused.contains("exists"), "{refused}");
    let _ = b.ctl(["get", &id, "--force"]).ok();
}

#[test]
fn two_gets_of_the_same_content_share_one_fetch() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    let source = a.file("popular");
    sample::write_file(&source, 160 * CHUNK, 5).unwrap();
    let id = a.put(&source);
    let ticket = a.ticket(&id);
    let paths = [b.file("one"), b.file("two")];
    let children: Vec<_> = paths
        .iter()
        .map(|path| {
            b.ctl_command([OsStr::new("get"), ticket.as_ref(), "-o".as_ref(), path.as_os_str()]).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert!(paths.iter().all(|path| same(&source, path)));
    let fetched = b.counted("fetched_bytes");
    assert!(fetched <= 161 * CHUNK, "each chunk came once: {fetched}");
}

#[test]
fn policy_changes_reach_every_worker_and_are_kept() {
    let node = Node::start(NodeOptions::default());
    let set = node.json(["policy", "set", "fec.mode=off", "transfer.jobs=3"]);
    assert_eq!((&set["revision"], &set["policy"]["fec.mode"]), (&2.into(), &"off".into()));
    let workers = node.json(["workers"]);
    assert!(workers["workers"].as_array().unwrap().iter().all(|worker| worker["revision"] == 2), "{workers}");
    let back = node.json(["policy", "rollback", "1"]);
    assert_eq!((&back["revision"], &back["policy"]["fec.mode"]), (&3.into(), &"auto".into()));
    assert_eq!(node.json(["policy", "history"])["history"].as_array().unwrap().len(), 3);
}

#[test]
fn workers_are_added_and_drained_while_the_node_runs() {
    let node = Node::start(NodeOptions::default());
    let _ = node.ctl(["worker", "add"]).ok();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while node.worker_pids().len() < 3 {
        assert!(std::time::Instant::now() < deadline, "{}", node.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let _ = node.ctl(["worker", "drain", "0"]).ok();
    assert_eq!(node.worker_pids().len(), 2);
    let source = node.file("after");
    sample::write_file(&source, CHUNK, 6).unwrap();
    assert_eq!(node.put(&source), sample::content_id(&source).unwrap());
}

#[test]
fn pinned_contents_stay_and_others_make_room() {
    let node = Node::start(NodeOptions { policy: vec!["store.quota=4MiB".into()], ..NodeOptions::default() });
    let put = |name: &str, seed| {
        let source = node.file(name);
        sample::write_file(&source, 4 * CHUNK, seed).unwrap();
        node.put(&source)
    };
    let first = put("first", 1);
    let _ = node.ctl(["pin", &first]).ok();
    let second = put("second", 2);
    put("third", 3);
    put("fourth", 4);
    let listed = node.json(["ls"]);
    let ids: Vec<&str> = listed["contents"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&first.as_str()) && !ids.contains(&second.as_str()), "{listed}");
    let status = node.json(["status"]);
    assert!(status["store_bytes"].as_u64().unwrap() <= 4 << 20, "{status}");
    let refused = node.ctl(["rm", &first]).refused();
    assert!(refused.contains("pinned"), "{refused}");
    let _ = node.ctl(["unpin", &first]).ok();
    let _ = node.ctl(["rm", &first]).ok();
}

#[test]
fn nothing_is_left_behind() {
    let mut node = Node::start(NodeOptions::default());
    let pids = node.worker_pids();
    let runtime = node.runtime_dir();
    assert_eq!(node.stop(), Some(0));
    for pid in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "worker {pid} lives on");
    }
    let left: Vec<_> = std::fs::read_dir(&runtime).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".lock")), "{left:?}");
}

/// Command lines of running processes that name a folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(folder)).collect()
}

/// An interrupted `demo` left workers that had been started and had not yet found their controller: nobody had told them.
#[test]
fn a_node_that_is_ended_while_it_starts_leaves_nothing_behind() {
    for moment_ms in (0..60).step_by(4) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = folder.path().join("run");
        let mut command = program("pangea-controller");
        command.arg("--state-dir").arg(folder.path().join("state")).arg("--runtime-dir").arg(&runtime);
        command.args(["--listen", "127.0.0.1:0", "--data-listen", "127.0.0.1:0", "--workers", "2"]);
        command.arg("--until-stdin-closes").stderr(std::process::Stdio::null()).stdin(std::process::Stdio::piped());
        let mut controller = command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(moment_ms));
        drop(controller.stdin.take());
        let started = std::time::Instant::now();
        assert!(controller.wait().unwrap().success(), "ended after {moment_ms} ms");
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "nothing had to be killed");
        assert_eq!(processes_of(folder.path()), [""; 0], "ended after {moment_ms} ms");
        let prefix = pangea_ipc::runtime::counters_prefix(&runtime);
        let prefix = prefix.trim_start_matches('/');
        let memory = std::fs::read_dir("/dev/shm").unwrap().flatten().map(|entry| entry.file_name());
        assert!(memory.into_iter().all(|name| !name.to_string_lossy().starts_with(prefix)), "{prefix}");
    }
}

#[test]
fn the_demonstration_works() {
    let output = pangea_tests::node::program("pangeactl").args(["demo", "--size", "3MiB", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&document["equal"], &document["bytes"]), (&true.into(), &(3 << 20).into()));
}
