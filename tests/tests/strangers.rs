//! Deny by default: who is not admitted gets nothing.

use std::time::{Duration, Instant};

use pangea_control::controller::identity::Identity;
use pangea_control::controller::sessions::ASK_TIME;
use pangea_ipc::failure::FailureCode;
use pangea_ipc::peer::PeerResponse;
use pangea_tests::impostor::{Impostor, Lie, Stray, guests_requests, knock, manifest_of};
use pangea_tests::node::wait_within;
use pangea_tests::{Node, NodeOptions, sample};

const CHUNK: usize = 256 << 10;

#[test]
fn an_unknown_node_is_refused_at_the_noise_layer_and_told_how_to_get_in() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    let source = a.file("secret");
    sample::write_file(&source, 1000, 1).unwrap();
    let id = a.put(&source);
    let ticket = a.ticket(&id);
    let run = b.ctl(["get", &ticket, "-o", b.file("got").to_str().unwrap()]);
    assert_eq!(run.code, Some(4), "{}", run.stderr);
    assert!(run.stderr.contains(&format!("pangeactl peer add {}", b.id())), "{}", run.stderr);
    assert!(!b.file("got").exists());
    // Admitted, it works; forgotten, it is refused again.
    let _ = a.ctl(["peer", "add", b.id()]).ok();
    let _ = b.ctl(["get", &ticket, "-o", b.file("got").to_str().unwrap()]).ok();
    let _ = a.ctl(["peer", "rm", b.id()]).ok();
    let _ = b.ctl(["rm", &id]).ok();
    let run = b.ctl(["get", &ticket, "-o", b.file("again").to_str().unwrap()]);
    assert_ne!(run.code, Some(0), "{}", run.stdout);
}

#[test]
fn a_node_that_lets_this_one_in_late_is_asked_by_the_next_get() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    let source = a.file("source");
    sample::write_file(&source, 1000, 3).unwrap();
    let id = a.put(&source);
    let _ = b.ctl(["peer", "add", &a.address()]).ok();
    // Then B waits before it dials again, for longer each time.
    let refused = || b.json(["peer", "ls"])["peers"][0]["trouble"].as_str().is_some_and(|why| why.contains("refused"));
    wait_within(Duration::from_secs(10), "B is refused", refused);
    let _ = a.ctl(["peer", "add", b.id()]).ok();
    let _ = b.ctl(["get", &id, "-o", b.file("got").to_str().unwrap()]).ok();
    assert!(std::fs::read(b.file("got")).unwrap() == std::fs::read(&source).unwrap());
}

#[test]
fn another_node_at_a_known_address_is_not_believed() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    let wrong = format!("{}@{}", "a".repeat(52), a.listen());
    let run = b.ctl(["get", &"0".repeat(64), "--peer", &wrong]);
    assert_eq!(run.code, Some(5), "{}", run.stderr);
    assert!(run.stderr.contains("answers there, not"), "{}", run.stderr);
    assert_eq!(b.json(["peer", "ls"])["peers"].as_array().unwrap().len(), 0, "who was never met is not remembered");
}

#[test]
fn a_node_that_was_only_asked_gets_nothing_in_return() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    // A admits B; B does not admit A, but dials it on a ticket's word.
    let _ = a.ctl(["peer", "add", b.id()]).ok();
    let (from_a, from_b) = (a.file("of-a"), b.file("of-b"));
    sample::write_file(&from_a, 1000, 1).unwrap();
    sample::write_file(&from_b, 1000, 2).unwrap();
    let (id_a, id_b) = (a.put(&from_a), b.put(&from_b));
    let _ = b.ctl(["get", &a.ticket(&id_a), "-o", b.file("got").to_str().unwrap()]).ok();
    let run = a.ctl(["get", &id_b, "-o", a.file("got").to_str().unwrap()]);
    assert!(run.code == Some(4) && run.stderr.contains("does not admit this node"), "{run:?}");
}

#[test]
fn a_stranger_gets_no_session_and_a_node_that_was_only_asked_is_refused_every_request() {
    let node = Node::start(NodeOptions { workers: 1, ..NodeOptions::default() });
    let id = node.id().parse().unwrap();
    let refusal = knock(node.listen(), id, &Identity::generate().unwrap());
    assert!(refusal.contains("does not know it"), "{refusal}");

    let secret = node.file("secret");
    sample::write_file(&secret, 1000, 1).unwrap();
    let secret = node.put(&secret).parse().unwrap();
    let offered = vec![5; 1000];
    let content = manifest_of(&offered).id().to_string();
    let asked = Impostor::start(offered, Lie::Endless, secret);
    let _ = node.ctl(["get", &content, "--peer", &asked.address(), "-o", "-"]).ok();
    for request in guests_requests(secret) {
        match asked.next_answer() {
            PeerResponse::Refused(failure) => assert_eq!(failure.code, FailureCode::Denied, "{request:?}: {failure}"),
            answer => panic!("{request:?} was answered with {answer:?}"),
        }
    }
}

/// A node, an impostor that offers something, and the bytes that it offers.
fn lied_to(lie: Lie) -> (Node, Impostor, Vec<u8>) {
    let node = Node::start(NodeOptions { workers: 1, ..NodeOptions::default() });
    let path = node.file("offered");
    sample::write_file(&path, 5 * CHUNK as u64 + 9, 77).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let impostor = Impostor::start(bytes.clone(), lie, manifest_of(b"nothing").id());
    (node, impostor, bytes)
}

fn is_found_out(lie: Lie, said: &str) {
    let (node, impostor, bytes) = lied_to(lie);
    let id = manifest_of(&bytes).id().to_string();
    let path = node.file("got");
    let liar = impostor.address();
    let get = ["get", &id, "--peer", &liar, "-o", path.to_str().unwrap()];
    let run = node.ctl(get);
    assert!(run.code.is_some_and(|code| code > 0), "{lie:?}: {run:?}");
    assert!(run.stderr.contains(said), "{lie:?}: {}", run.stderr);
    assert!(!path.exists(), "{lie:?}: no file from a get that failed");
    // From an honest node the same get works, whatever the liar has done before or does meanwhile.
    let honest = Node::start(NodeOptions { workers: 1, ..NodeOptions::default() });
    honest.befriend(&node);
    assert_eq!(honest.put(&node.file("offered")), id);
    let address = honest.address();
    let both = [&get[..], &["--peer", &address]].concat();
    let _ = node.ctl(both).ok();
    assert!(std::fs::read(&path).unwrap() == bytes, "{lie:?}");
}

#[test]
fn wrong_bytes_are_charged_to_who_sent_them() {
    is_found_out(Lie::WrongBytes, "sent wrong bytes");
}

#[test]
fn wrong_symbols_are_charged_to_who_sent_them() {
    is_found_out(Lie::WrongSymbols, "sent wrong bytes");
}

/// One wrong symbol in a chunk is found by the chunk's hash and charged to who sent it; the chunk comes from elsewhere, in
/// the same get.
fn is_poisoned(lie: Lie) {
    let (node, impostor, bytes) = lied_to(lie);
    let honest = Node::start(NodeOptions { workers: 1, ..NodeOptions::default() });
    honest.befriend(&node);
    let id = honest.put(&node.file("offered"));
    let path = node.file("got");
    let got = node.json([
        "get",
        &id,
        "--peer",
        &impostor.address(),
        "--peer",
        &honest.address(),
        "-o",
        path.to_str().unwrap(),
    ]);
    assert!(std::fs::read(&path).unwrap() == bytes, "{lie:?}");
    let shares = got["job"]["shares"].as_array().unwrap();
    let share =
        |of: &str| shares.iter().find(|share| share["node"] == of).unwrap_or_else(|| panic!("{of}: {shares:?}"));
    let liar = share(&impostor.id());
    assert!(liar["chunks_bad"].as_u64() > Some(0) && share(honest.id())["chunks_bad"] == 0, "{shares:?}");
    // What the impostor sent last may be short of the symbol that it poisons, and then right.
    assert!(liar["bytes"].as_u64() <= Some(9), "{shares:?}");
    expect_counted(&node, "chunks_bad", 1);
    expect_offence(&node, &impostor);
}

#[test]
fn a_poisoned_symbol_is_found_by_the_hash_charged_to_who_sent_it_and_the_chunk_comes_from_elsewhere() {
    is_poisoned(Lie::PoisonedSymbol);
}

#[test]
fn poisoned_parity_is_found_by_the_hash_charged_to_who_sent_it_and_the_chunk_comes_from_elsewhere() {
    is_poisoned(Lie::PoisonedParity);
}

#[test]
fn a_peer_that_does_not_answer_holds_up_no_get() {
    let (node, silent, bytes) = lied_to(Lie::Silence);
    let _ = node.ctl(["peer", "add", &silent.address()]).ok();
    let honest = Node::start(NodeOptions { workers: 1, ..NodeOptions::default() });
    // Before they know each other, so that it is not announced.
    let id = honest.put(&node.file("offered"));
    honest.befriend(&node);
    // Who is not connected yet is not asked.
    wait_within(Duration::from_secs(10), "two sessions", || node.json(["status"])["peers_active"] == 2);
    let got = node.file("got");
    let get = ["get", &id, "-o", got.to_str().unwrap(), "--json"];
    let started = Instant::now();
    let _ = node.ctl(get).ok();
    let took = started.elapsed();
    assert!(std::fs::read(&got).unwrap() == bytes);
    assert!(took < ASK_TIME, "{took:?}");
    let run = node.ctl(["get", &"0".repeat(64)]);
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    assert!(run.stderr.contains("of the 2 connected peers 1 did not answer, and no other has it"), "{}", run.stderr);
}

/// Sum of a counter over the workers; waits until it is at least `least`, since workers publish it now and then.
fn expect_counted(node: &Node, name: &str, least: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let sum = node.counted(name);
        if sum >= least {
            return;
        }
        assert!(Instant::now() < deadline, "{name} is {sum}, not {least}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn expect_offence(node: &Node, impostor: &Impostor) {
    let listed = node.json(["peer", "ls"]);
    let peers = listed["peers"].as_array().unwrap();
    let offences = |of: &str| peers.iter().find(|peer| peer["node"] == of).unwrap()["offences"].as_u64().unwrap();
    assert!(offences(&impostor.id()) > 0, "{listed}");
    assert!(peers.iter().all(|peer| peer["node"] == impostor.id() || peer["offences"] == 0), "{listed}");
}

/// Symbols that nobody asked for are counted, cost their sender its connection and its part in the fetch, and nobody else
/// anything.
fn is_a_flood(stray: Stray) {
    let lie = Lie::Strays(stray);
    let (node, impostor, bytes) = lied_to(lie);
    let honest = Node::start(NodeOptions { workers: 1, ..NodeOptions::default() });
    honest.befriend(&node);
    let id = honest.put(&node.file("offered"));
    let path = node.file("got");
    let get = ["get", &id, "--peer", &impostor.address(), "--peer", &honest.address(), "-o", path.to_str().unwrap()];
    let _ = node.ctl(get).ok();
    assert!(std::fs::read(&path).unwrap() == bytes, "{lie:?}");
    let counter = if matches!(stray, Stray::Replays) { "symbols_late" } else { "symbols_refused" };
    expect_counted(&node, counter, 65);
    expect_counted(&node, "peers_protocol_errors", 1);
    // Also when nobody else has it: then the get ends and says why.
    let _ = node.ctl(["rm", &id]).ok();
    let _ = node.ctl(["peer", "rm", honest.id()]).ok();
    drop(honest);
    let run = node.ctl(["get", &id, "--peer", &impostor.address(), "-o", node.file("again").to_str().unwrap()]);
    assert_ne!(run.code, Some(0), "{lie:?}");
    assert!(run.stderr.contains("symbols that nobody asked for"), "{lie:?}: {}", run.stderr);
    expect_counted(&node, "answers_refused", 1);
    expect_offence(&node, &impostor);
}

#[test]
fn symbols_of_unknown_transfers_end_the_connection() {
    is_a_flood(Stray::UnknownTransfer);
}

#[test]
fn symbols_of_wrong_length_end_the_connection() {
    is_a_flood(Stray::WrongLength);
}

#[test]
fn symbols_with_impossible_numbers_end_the_connection() {
    is_a_flood(Stray::ImpossibleNumber);
}

#[test]
fn datagrams_that_are_no_symbols_end_the_connection() {
    is_a_flood(Stray::Malformed);
}

#[test]
fn the_same_symbol_again_and_again_ends_the_connection() {
    is_a_flood(Stray::Duplicates);
}

#[test]
fn replays_of_a_chunk_that_is_whole_end_the_connection() {
    is_a_flood(Stray::Replays);
}

#[test]
fn a_shape_that_cannot_be_is_refused() {
    is_found_out(Lie::ImpossibleShape, "symbols cannot have 1 bytes");
}

#[test]
fn another_length_than_the_chunk_has_is_refused() {
    is_found_out(Lie::OtherLength, "announced 131072 bytes for a chunk of 262144");
}

#[test]
fn a_truncated_answer_is_tried_again_and_then_given_up() {
    is_found_out(Lie::Truncated, "ended within the chunk");
}

#[test]
fn garbage_for_an_answer_is_refused() {
    is_found_out(Lie::Garbage, "broke the protocol");
}

#[test]
fn a_wrong_manifest_is_refused() {
    is_found_out(Lie::WrongManifest, "manifest");
}

#[test]
fn a_manifest_that_is_too_long_is_refused() {
    is_found_out(Lie::LongManifest, "manifest");
}

#[test]
fn a_size_that_does_not_fit_is_refused() {
    is_found_out(Lie::ImpossibleSize, "manifest");
}

/// A node, an impostor that tells another size of what it offers, and an honest node with the same.
fn told_another_size(len: u64) -> (Node, Impostor, Node, String) {
    let (node, honest) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    let source = honest.file("source");
    sample::write_file(&source, len, 78).unwrap();
    let impostor = Impostor::start(std::fs::read(&source).unwrap(), Lie::OtherSize, manifest_of(b"nothing").id());
    let id = honest.put(&source);
    (node, impostor, honest, id)
}

#[test]
fn a_wrong_size_announced_by_an_admitted_peer_costs_one_get_and_not_the_content() {
    let (node, liar, honest, id) = told_another_size(1000);
    let _ = node.ctl(["peer", "add", &liar.address()]).ok();
    assert_eq!(liar.next_answer(), PeerResponse::Noted);
    let path = node.file("got");
    let run = node.ctl(["get", &id, "-o", path.to_str().unwrap()]);
    let charged = format!("node {} sent wrong bytes", liar.address().split('@').next().unwrap());
    assert!(run.code.is_some_and(|code| code > 0) && run.stderr.contains(&charged), "{run:?}");
    assert!(!path.exists());
    honest.befriend(&node);
    let _ = node.ctl(["get", &id, "-o", path.to_str().unwrap()]).ok();
    assert_eq!(sample::content_id(&path).unwrap(), id);
    let listed = node.json(["ls"]);
    assert_eq!(listed["contents"][0]["size"], 1000, "{listed}");
}

#[test]
fn of_two_sizes_that_peers_tell_the_one_is_right_under_which_the_last_chunk_comes() {
    for len in [1000, 2 * CHUNK as u64 + 9] {
        let (node, liar, honest, id) = told_another_size(len);
        honest.befriend(&node);
        let path = node.file("got");
        let peers = ["--peer", &liar.address(), "--peer", &honest.address()];
        let _ = node.ctl([&["get", &id, "-o", path.to_str().unwrap()][..], &peers].concat()).ok();
        assert_eq!(sample::content_id(&path).unwrap(), id, "{len} bytes");
        let log = node.log();
        assert!(log.contains("different sizes") && log.contains("sent wrong bytes"), "{len} bytes: {log}");
    }
}

#[test]
fn bytes_without_end_after_a_right_chunk_are_not_listened_to() {
    let (node, impostor, bytes) = lied_to(Lie::Endless);
    let id = manifest_of(&bytes).id().to_string();
    let path = node.file("got");
    let _ = node.ctl(["get", &id, "--peer", &impostor.address(), "-o", path.to_str().unwrap()]).ok();
    assert!(std::fs::read(&path).unwrap() == bytes);
}

#[test]
fn a_ticket_of_a_node_that_listens_everywhere_leads_to_it_and_wrong_addresses_do_not_mislead() {
    let everywhere = NodeOptions { listen: "0.0.0.0:0".into(), workers: 1, ..NodeOptions::default() };
    let (a, b) = (Node::start(everywhere.clone()), Node::start(everywhere));
    let _ = a.ctl(["peer", "add", b.id()]).ok();
    let source = a.file("source");
    sample::write_file(&source, 1000, 1).unwrap();
    let id = a.put(&source);
    // One address where nobody is, then what the ticket says.
    let nobody = format!("{}@127.0.0.1:1", a.id());
    let _ = b.ctl(["get", &a.ticket(&id), "--peer", &nobody, "-o", b.file("got").to_str().unwrap()]).ok();
    assert_eq!(sample::content_id(&b.file("got")).unwrap(), id);
}
