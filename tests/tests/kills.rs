//! `kill -9` of any process at any moment: no wrong byte is delivered, and a repeated command succeeds.

use std::ffi::OsStr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pangea_tests::{Node, NodeOptions, sample};

const CHUNK: u64 = 256 << 10;

/// Moments of a transfer at which something is killed. Any moment is as good; these spread over start, middle and end.
const MOMENTS_MS: [u64; 4] = [5, 40, 120, 300];

fn pair() -> (Node, Node) {
    let options = NodeOptions { arguments: vec!["--orphan-s".into(), "60".into()], ..NodeOptions::default() };
    let (a, b) = (Node::start(options.clone()), Node::start(options));
    a.befriend(&b);
    (a, b)
}

fn after(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

#[test]
fn a_get_survives_the_death_of_one_of_its_workers() {
    let (a, mut b) = pair();
    for (round, moment) in MOMENTS_MS.into_iter().enumerate() {
        let source = a.file("source");
        sample::write_file(&source, 200 * CHUNK, round as u64).unwrap();
        let id = a.put(&source);
        let ticket = a.ticket(&id);
        let path = b.file(&format!("arrived-{round}"));
        b.wait_ready(); // the last round's victim may not have been replaced yet
        let victim = b.worker_pids()[round % 2];
        let mut get =
            b.ctl_command([OsStr::new("get"), ticket.as_ref(), "-o".as_ref(), path.as_os_str()]).spawn().unwrap();
        after(moment);
        let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
        if !get.wait().unwrap().success() {
            assert!(!path.exists(), "a get that failed leaves no file");
            let _ = b.ctl([OsStr::new("get"), ticket.as_ref(), "-o".as_ref(), path.as_os_str()]).ok();
        }
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&source).unwrap(), "moment {moment} ms");
    }
}

/// The getter waited for the ten seconds after which a silent connection is dead.
#[test]
fn a_get_does_not_wait_for_a_worker_of_the_holder_that_has_died() {
    let (a, b) = pair();
    let _ = a.ctl(["policy", "set", "congestion=rate:80000000"]).ok();
    let source = a.file("source");
    sample::write_file(&source, 200 * CHUNK, 5).unwrap();
    let id = a.put(&source);
    let path = b.file("arrived");
    let started = Instant::now();
    let get = b.ctl_command(["get", &a.ticket(&id), "-o", path.to_str().unwrap()]).spawn();
    await_begun(&b, &id);
    after(500); // both workers of the holder are at it
    let _ = kill(Pid::from_raw(a.worker_pids()[1]), Signal::SIGKILL);
    assert!(get.unwrap().wait().unwrap().success());
    // 50 MiB take 2.6 s over two connections of 80 Mbit/s, 5.2 over one; waiting took more than 10.5.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&source).unwrap());
}

#[test]
fn bytes_keep_flowing_when_the_controllers_die_and_come_back() {
    let (mut a, mut b) = pair();
    let source = a.file("source");
    sample::write_file(&source, 400 * CHUNK, 7).unwrap();
    let id = a.put(&source);
    let ticket = a.ticket(&id);
    let path = b.file("arrived");
    let mut get = b.ctl_command([OsStr::new("get"), ticket.as_ref(), "-o".as_ref(), path.as_os_str()]).spawn().unwrap();
    await_begun(&b, &id);
    let workers = b.worker_pids();
    b.kill_controller();
    a.kill_controller();
    assert!(get.wait().unwrap().success(), "the transfer goes on without either controller");
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&source).unwrap());
    b.restart_controller();
    a.restart_controller();
    assert_eq!(b.worker_pids(), workers, "the new controller takes the living workers over");
    let listed = b.json(["ls"]);
    assert_eq!(listed["contents"][0]["chunks_held"], 400, "{listed}");
}

/// Waits until some of a content is on disk.
fn await_begun(node: &Node, id: &str) {
    let data = node.state_dir().join("store").join(id).join("data");
    while std::fs::metadata(&data).map_or(0, |metadata| std::os::unix::fs::MetadataExt::blocks(&metadata)) == 0 {
        after(1);
    }
}

/// A get of 100 MiB that takes some ten seconds, from a node that admits the getter, and is dialled by it only. It has
/// begun: some of it is on disk. Both nodes wait for lost controllers, and for lost peers, only a part of that time.
fn slow_get() -> (Node, Node, Child) {
    let options =
        NodeOptions { workers: 1, arguments: vec!["--orphan-s".into(), "3".into()], ..NodeOptions::default() };
    let slow = ["congestion=rate:80000000", "session.grace_s=3"].map(String::from).to_vec();
    let a = Node::start(NodeOptions { policy: slow, ..options.clone() });
    let b = Node::start(options);
    let _ = a.ctl(["peer", "add", b.id()]).ok();
    let source = a.file("source");
    sample::write_file(&source, 400 * CHUNK, 12).unwrap();
    let id = a.put(&source);
    let ticket = a.ticket(&id);
    let mut get = b.ctl_command(["get", &ticket, "-o", b.file("arrived").to_str().unwrap()]);
    let get = get.stderr(Stdio::piped()).spawn().unwrap();
    await_begun(&b, &id);
    (a, b, get)
}

fn expect_arrived(a: &Node, b: &Node, get: Child) {
    let output = get.wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stderr), b.log());
    assert!(std::fs::read(b.file("arrived")).unwrap() == std::fs::read(a.file("source")).unwrap());
}

#[test]
fn a_get_goes_on_when_the_holders_controller_dies() {
    let (mut a, b, get) = slow_get();
    a.kill_controller();
    expect_arrived(&a, &b, get);
    assert_eq!(b.json(["peer", "ls"])["peers"][0]["state"], "dead");
}

#[test]
fn a_get_goes_on_when_the_getters_controller_dies() {
    let (a, mut b, get) = slow_get();
    b.kill_controller();
    expect_arrived(&a, &b, get);
}

#[test]
fn a_get_goes_on_when_both_controllers_are_replaced_and_do_not_meet_again() {
    let (mut a, mut b, get) = slow_get();
    b.kill_controller();
    a.kill_controller();
    b.restart_controller();
    a.restart_controller();
    expect_arrived(&a, &b, get);
    assert_eq!(b.json(["peer", "ls"])["peers"].as_array().map(Vec::len), Some(0), "the ticket is forgotten");
}

#[test]
fn a_get_goes_on_when_the_holders_controller_is_replaced_and_both_know_each_other_again() {
    let (mut a, b, mut get) = slow_get();
    let workers = a.worker_pids();
    let before = refused_so_far(&a);
    a.kill_controller();
    // The getter dials the same address again.
    a.restart_controller();
    while b.json(["peer", "ls"])["peers"][0]["state"] != "active" {
        assert!(get.try_wait().unwrap().is_none(), "the get ended before there was a session again");
        after(20);
    }
    expect_arrived(&a, &b, get);
    assert_eq!(a.worker_pids(), workers);
    assert_eq!(a.counted("peers_refused"), before, "the getter's connection stood all the time");
}

/// Connections that a node's workers have refused. The first of a session may come before its key is known.
fn refused_so_far(node: &Node) -> u64 {
    after(300); // workers publish their figures every 250 ms
    node.counted("peers_refused")
}

#[test]
fn connections_stand_while_controllers_that_know_each_other_are_replaced() {
    let options = NodeOptions { policy: vec!["congestion=rate:40000000".into()], ..NodeOptions::default() };
    let (mut a, mut b) = (Node::start(options.clone()), Node::start(options));
    a.befriend(&b);
    let source = a.file("source");
    sample::write_file(&source, 200 * CHUNK, 13).unwrap();
    let id = a.put(&source);
    let mut get = b.ctl_command(["get", &id, "-o", b.file("arrived").to_str().unwrap()]);
    let get = get.stderr(Stdio::piped()).spawn().unwrap();
    await_begun(&b, &id);
    let before = refused_so_far(&a);
    for _ in 0..2 {
        b.kill_controller();
        b.restart_controller();
        a.kill_controller();
        a.restart_controller();
    }
    expect_arrived(&a, &b, get);
    assert_eq!(a.counted("peers_refused"), before, "the getter's connections stood all the time: {}", a.log());
}

#[test]
fn a_holder_known_from_a_ticket_only_is_asked_again_after_its_controller_was_replaced() {
    let (mut a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    let _ = a.ctl(["peer", "add", b.id()]).ok();
    let source = a.file("source");
    sample::write_file(&source, 1000, 14).unwrap();
    let ticket = a.ticket(&a.put(&source));
    let _ = b.ctl(["get", &ticket, "-o", b.file("first").to_str().unwrap()]).ok();
    a.kill_controller();
    a.restart_controller();
    sample::write_file(&source, 1000, 15).unwrap();
    let id = a.put(&source);
    let _ = b.ctl(["get", &id, "-o", b.file("second").to_str().unwrap()]).ok();
    assert!(std::fs::read(b.file("second")).unwrap() == std::fs::read(&source).unwrap());
}

#[test]
fn a_source_that_the_operator_removes_in_mid_get_is_one_no_more() {
    let (a, b, get) = slow_get();
    let _ = b.ctl(["peer", "rm", a.id()]).ok();
    let output = get.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&format!("node {}: it is no peer any more", a.id())), "{text}");
    assert!(!b.file("arrived").exists());
}

#[test]
fn a_killed_get_is_resumed_without_fetching_again_what_is_here() {
    let (a, b) = pair();
    let source = a.file("source");
    sample::write_file(&source, 400 * CHUNK, 8).unwrap();
    let id = a.put(&source);
    let ticket = a.ticket(&id);
    let path = b.file("arrived");
    let mut get = b.ctl_command([OsStr::new("get"), ticket.as_ref(), "-o".as_ref(), path.as_os_str()]).spawn().unwrap();
    after(150);
    let _ = get.kill();
    let _ = get.wait();
    let got = b.json([OsStr::new("get"), ticket.as_ref(), "-o".as_ref(), path.as_os_str()]);
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&source).unwrap());
    let before = got["job"]["chunks_before"].as_u64().unwrap();
    let shares = got["job"]["shares"].as_array().unwrap();
    let fetched: u64 = shares.iter().map(|share| share["bytes"].as_u64().unwrap()).sum();
    assert!(fetched <= (400 - before) * CHUNK, "{before} chunks were here, {fetched} bytes were fetched");
}

#[test]
fn a_put_whose_worker_dies_fails_cleanly_and_works_when_repeated() {
    let node = Node::start(NodeOptions { workers: 1, ..NodeOptions::default() });
    let source = node.file("source");
    sample::write_file(&source, 800 * CHUNK, 9).unwrap();
    let mut put = node.ctl_command([OsStr::new("put"), source.as_os_str()]);
    let put = put.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    after(20);
    let _ = kill(Pid::from_raw(node.worker_pids()[0]), Signal::SIGKILL);
    let output = put.wait_with_output().unwrap();
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("run the command again"), "{text}");
    }
    let id = node.put(&source);
    assert_eq!(id, sample::content_id(&source).unwrap());
    let store = node.state_dir().join("store");
    let left: Vec<_> = std::fs::read_dir(store).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left.len(), 1, "what the dead worker left is swept: {left:?}");
}

#[test]
fn a_put_whose_controller_dies_ends_and_works_when_repeated() {
    let mut node = pair().0;
    for (round, moment) in MOMENTS_MS.into_iter().enumerate() {
        let source = node.file("source");
        sample::write_file(&source, 400 * CHUNK, 20 + round as u64).unwrap();
        let mut put = node.ctl_command([OsStr::new("put"), source.as_os_str()]);
        let put = put.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        after(moment);
        node.kill_controller();
        let output = put.wait_with_output().unwrap();
        let expected = sample::content_id(&source).unwrap();
        if output.status.success() {
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "moment {moment} ms");
        } else {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains("run the command again") || text.contains("start pangea-controller"), "{text}");
        }
        node.restart_controller();
        assert_eq!(node.put(&source), expected, "moment {moment} ms");
        let listed = node.json(["ls"]);
        assert_eq!(listed["contents"].as_array().unwrap().len(), round + 1, "moment {moment} ms: {listed}");
    }
}

#[test]
fn a_killed_program_leaves_a_node_that_works() {
    let node = Node::start(NodeOptions::default());
    let source = node.file("source");
    sample::write_file(&source, 800 * CHUNK, 10).unwrap();
    for moment in MOMENTS_MS {
        let mut put = node.ctl_command([OsStr::new("put"), source.as_os_str()]).spawn().unwrap();
        after(moment);
        let _ = put.kill();
        let _ = put.wait();
    }
    assert_eq!(node.put(&source), sample::content_id(&source).unwrap());
}
