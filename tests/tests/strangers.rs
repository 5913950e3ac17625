//! Deny by default: who is not admitted gets nothing.

use pangea_tests::{Node, NodeOptions, sample};

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
fn another_node_at_a_known_address_is_not_believed() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    let wrong = format!("{}@{}", "a".repeat(52), a.listen());
    let run = b.ctl(["get", &"0".repeat(64), "--peer", &wrong]);
    assert_eq!(run.code, Some(5), "{}", run.stderr);
    assert!(run.stderr.contains("answers there, not"), "{}", run.stderr);
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
    assert_eq!(run.code, Some(3), "{}", run.stderr);
}
