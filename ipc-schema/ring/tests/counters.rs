//! The named counters segment: read by others, gone with its owner, reaped when the owner was killed.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::process::{Command, Stdio};

use pangea_ring::{CountersSegment, CountersView, reap_stale};

fn name(what: &str) -> String {
    format!("pangea-test-{}-{what}", std::process::id())
}

#[test]
fn readers_see_what_the_owner_sets_until_it_is_dropped() {
    let name = name("live");
    let segment = CountersSegment::create(&name, 3).unwrap();
    let view = CountersView::open(&name).unwrap();
    segment.set(1, 77);
    segment.set(3, 99); // beyond the end: left out
    segment.beat();
    assert_eq!(view.read(), [0, 77, 0]);
    assert_eq!((view.pid(), view.beats()), (std::process::id(), 1));
    assert!(reap_stale(&name).is_empty(), "its owner lives");
    assert!(CountersSegment::create(&name, 3).is_err(), "a living owner keeps its name");
    drop(segment);
    assert!(CountersView::open(&name).is_err());
    assert!(CountersSegment::create(&name, 100_000).is_err(), "too many words");
}

#[test]
fn only_the_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let name = name("mode");
    let _segment = CountersSegment::create(&name, 1).unwrap();
    let mode = std::fs::metadata(format!("/dev/shm/{name}")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_a_killed_owner_left_is_reaped() {
    let name = name("stale");
    if let Ok(name) = std::env::var("PANGEA_TEST_OWNER") {
        let _segment = CountersSegment::create(&name, 1).unwrap();
        println!("made");
        std::thread::sleep(std::time::Duration::from_secs(60)); // until killed
        return;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_a_killed_owner_left_is_reaped", "--nocapture"])
        .env("PANGEA_TEST_OWNER", &name)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(owner.stdout.take().unwrap());
    assert!(std::io::BufRead::lines(output).map_while(Result::ok).any(|line| line.contains("made")));
    assert!(reap_stale(&name).is_empty(), "its owner lives");
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(CountersView::open(&name).is_ok(), "a killed owner leaves it behind");
    assert_eq!(reap_stale(&name), std::slice::from_ref(&name));
    assert!(CountersView::open(&name).is_err());
}
