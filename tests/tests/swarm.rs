//! Who has a part helps those who want it: partial contents are served, and peers tell of other holders.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use pangea_control::controller::identity::Identity;
use pangea_ipc::peer::{PeerRequest, PeerResponse};
use pangea_tests::impostor::{Impostor, Lie, ask, manifest_of};
use pangea_tests::{Node, NodeOptions, sample};

const CHUNK: u64 = 256 << 10;

fn one_worker() -> NodeOptions {
    NodeOptions { workers: 1, ..NodeOptions::default() }
}

fn get_in_background(node: &Node, arguments: &[&str]) -> Child {
    let mut command = node.ctl_command([&["get"], arguments].concat());
    command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap()
}

/// Waits until a worker of the node has fetched chunks.
fn wait_for_chunks(node: &Node) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while node.counted("fetched_bytes") == 0 {
        assert!(Instant::now() < deadline, "nothing came: {}", node.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_is_still_arriving_is_served_to_others() {
    let (b, c) = (Node::start(one_worker()), Node::start(one_worker()));
    b.befriend(&c);
    let source = b.file("source");
    sample::write_file(&source, 40 * CHUNK + 3, 1).unwrap();
    let bytes = std::fs::read(&source).unwrap();
    let id = manifest_of(&bytes).id().to_string();
    // The only node that has all of it gives no more than half before it is told to.
    let a = Impostor::start(bytes.clone(), Lie::LateHalf, manifest_of(b"nothing").id());
    let (at_b, at_c) = (b.file("got"), c.file("got"));
    let mut get_b = get_in_background(&b, &[&id, "--peer", &a.address(), "-o", at_b.to_str().unwrap()]);
    wait_for_chunks(&b);
    let mut get_c = get_in_background(&c, &[&id, "-o", at_c.to_str().unwrap()]);
    wait_for_chunks(&c);
    assert_eq!(get_b.try_wait().unwrap(), None, "B cannot have all of it yet");
    let peers = c.json(["peer", "ls"]);
    let known: Vec<_> = peers["peers"].as_array().unwrap().iter().map(|peer| peer["node"].as_str().unwrap()).collect();
    assert_eq!(known, [b.id()], "what C has came from B");
    a.release();
    assert!(get_b.wait().unwrap().success() && get_c.wait().unwrap().success());
    assert!(std::fs::read(&at_b).unwrap() == bytes && std::fs::read(&at_c).unwrap() == bytes);
}

#[test]
fn holders_that_a_peer_tells_of_are_asked_too_unless_the_policy_forbids() {
    let (a, b) = (Node::start(one_worker()), Node::start(one_worker()));
    let _ = a.ctl(["peer", "add", &b.address()]).ok();
    let _ = b.ctl(["peer", "add", &a.address()]).ok();
    let source = a.file("source");
    sample::write_file(&source, 200 * CHUNK, 2).unwrap();
    let id = a.put(&source);
    assert_eq!(b.put(&source), id);
    // B's announcement has reached A when A tells of it.
    let curious = Identity::generate().unwrap();
    let _ = a.ctl(["peer", "add", &curious.node.to_string()]).ok();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let find = PeerRequest::Find(id.parse().unwrap());
        match ask(a.listen(), a.id().parse().unwrap(), &curious, &find) {
            PeerResponse::Found(found) if found.others.iter().any(|other| other.to_string() == b.address()) => break,
            answer => assert!(Instant::now() < deadline, "A does not tell of B: {answer:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for hearsay in ["off", "on"] {
        let options = NodeOptions { policy: vec![format!("discovery.hearsay={hearsay}")], ..one_worker() };
        let c = Node::start(options);
        a.befriend(&c);
        let _ = b.ctl(["peer", "add", c.id()]).ok();
        let path = c.file("got");
        let got = c.json(["get", &id, "-o", path.to_str().unwrap()]);
        assert_eq!(sample::content_id(&path).unwrap(), id);
        let shares = got["job"]["shares"].as_array().unwrap();
        let with_bytes = shares.iter().filter(|share| share["bytes"].as_u64() > Some(0));
        let from: BTreeSet<_> = with_bytes.map(|share| share["node"].as_str().unwrap()).collect();
        let expected = if hearsay == "on" { BTreeSet::from([a.id(), b.id()]) } else { BTreeSet::from([a.id()]) };
        assert_eq!(from, expected, "hearsay {hearsay}: {shares:?}");
    }
}
