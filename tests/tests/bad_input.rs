//! Bad input gets a clear error, and nothing is lost.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pangea_tests::node::{program, wait_within};
use pangea_tests::{Node, NodeOptions, sample};

const CHUNK: u64 = 256 << 10;

fn expect(node: &Node, arguments: &[&str], code: i32, text: &str) {
    let run = node.ctl(arguments);
    assert_eq!(run.code, Some(code), "{arguments:?}: {}", run.stderr);
    assert!(run.stderr.contains(text), "{arguments:?}: {}", run.stderr);
    assert!(run.stdout.is_empty(), "{arguments:?}: errors go to stderr");
}

#[test]
fn every_kind_of_bad_input_names_the_thing_the_value_and_what_to_do() {
    let node = Node::start(NodeOptions { workers: 1, ..NodeOptions::default() });
    let unknown = "0".repeat(64);
    expect(&node, &["get", &unknown], 3, "no peer is connected");
    expect(&node, &["get", "abc"], 2, "content id \"abc\" has 3 characters; it must have 64");
    expect(&node, &["get", "pangea1aaaaaaaa"], 2, "check sum");
    expect(&node, &["ticket", &unknown], 3, "is not on this node");
    expect(&node, &["rm", &unknown], 3, "is not on this node");
    expect(&node, &["verify", &unknown], 3, "is not on this node");
    expect(&node, &["peer", "add", "nobody@1.2.3.4:5"], 2, "node id");
    expect(&node, &["peer", "add", &format!("{}@0.0.0.0:7440", node.id())], 2, "cannot be dialled");
    expect(&node, &["get", &unknown, "-o", "/"], 2, "is a folder");
    expect(&node, &["peer", "add", node.id()], 2, "this node itself");
    expect(&node, &["peer", "rm", &"a".repeat(52)], 3, "is not a peer");
    expect(&node, &["policy", "set", "fec.mod=on"], 2, "did you mean \"fec.mode\"?");
    expect(&node, &["policy", "set", "fec.mode=sometimes"], 2, "it takes auto, off or always");
    expect(&node, &["policy", "rollback", "99"], 3, "no policy revision 99");
    expect(&node, &["policy", "set", "workers.cpus=0,65535"], 2, "there is no CPU 65535 here");
    expect(&node, &["worker", "drain", "9"], 3, "worker 9 is not running");
    expect(&node, &["put", "/does/not/exist"], 3, "/does/not/exist");
    expect(&node, &["put", "/proc"], 2, "is a folder");
    expect(&node, &["policy", "set", "fec.mode=off", "fec.mode=auto"], 2, "is given twice");
    for wrong in [&["ticket", "abc", "--json"][..], &["no-such-command", "--json"]] {
        let run = node.ctl(wrong);
        assert_eq!(run.code, Some(2), "{run:?}");
        let document: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
        assert_eq!(document["error"]["code"], "invalid", "{document}");
    }
    let error = node.ctl(["get", &unknown, "--json"]);
    let document: serde_json::Value = serde_json::from_str(&error.stderr).unwrap();
    assert_eq!(document["error"]["code"], "not_found");
    assert_eq!(node.json(["policy", "show"])["revision"], 1, "nothing was changed");
}

#[test]
fn a_wrong_runtime_folder_says_which_of_the_usual_things_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let ctl = |path: &std::path::Path| {
        let output = program("pangeactl").arg("--runtime-dir").arg(path).arg("id").output().unwrap();
        assert_eq!(output.status.code(), Some(5));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(ctl(&folder.path().join("none")).contains("there is no runtime folder"));
    assert!(ctl(folder.path()).contains("no pangea-controller runs"));
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("controller.sock")).unwrap());
    assert!(ctl(folder.path()).contains("nobody answers"));
}

#[test]
fn a_runtime_folder_too_long_for_sockets_is_refused_with_its_length_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("r".repeat(100));
    let socket = long.join("controller.sock");
    let state = folder.path().join("state");
    let mut controller = program("pangea-controller");
    controller.arg("--runtime-dir").arg(&long).arg("--state-dir").arg(&state);
    let mut ctl = program("pangeactl");
    ctl.arg("--runtime-dir").arg(&long).arg("id");
    for mut command in [controller, ctl] {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        let len = format!("has {} bytes, and a socket's at most 107", socket.as_os_str().len());
        assert!(said.contains(socket.to_str().unwrap()) && said.contains(&len), "{said}");
        assert!(said.contains("shorter --runtime-dir"), "{said}");
    }
    assert!(!state.exists() && !long.exists());
}

#[test]
fn a_second_controller_and_a_taken_port_are_refused_with_names() {
    let node = Node::start(NodeOptions { workers: 1, ..NodeOptions::default() });
    let start = |runtime: &std::path::Path, state: &std::path::Path, listen: &str| {
        let mut command = program("pangea-controller");
        command.arg("--runtime-dir").arg(runtime).arg("--state-dir").arg(state);
        let output = command.args(["--listen", listen, "--workers", "0"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = start(&node.runtime_dir(), &node.state_dir(), "127.0.0.1:0");
    assert!(text.contains("runs already") && text.contains(&node.controller_pid().to_string()), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let text = start(&folder.path().join("run"), &folder.path().join("state"), &node.listen().to_string());
    let pid = node.controller_pid().to_string();
    assert!(text.contains(&node.listen().port().to_string()) && text.contains(&pid), "{text}");
}

#[test]
fn the_fault_switch_is_refused_outside_of_tests() {
    for name in ["pangea-controller", "pangea-worker"] {
        let mut command = program(name);
        command.args(["--state-dir", "/nowhere", "--runtime-dir", "/nowhere", "--fault-loss", "5"]);
        if name == "pangea-worker" {
            command.args(["--index", "0", "--data-listen", "127.0.0.1:0"]);
        }
        let output = command.env_remove("PANGEA_FAULTS").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("PANGEA_FAULTS"));
    }
}

#[test]
fn a_full_quota_refuses_and_the_rest_goes_on() {
    let node = Node::start(NodeOptions { policy: vec!["store.quota=2MiB".into()], ..NodeOptions::default() });
    let (large, small) = (node.file("large"), node.file("small"));
    sample::write_file(&large, 12 * CHUNK, 1).unwrap();
    sample::write_file(&small, CHUNK, 2).unwrap();
    expect(&node, &["put", large.to_str().unwrap()], 6, "raise store.quota");
    // The same bytes without a size beforehand: refused when they turn out to be too many.
    let mut put = node.ctl_command(["put", "-"]);
    let output = put.stdin(std::fs::File::open(&large).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(node.put(&small), sample::content_id(&small).unwrap());
    assert_eq!(node.json(["ls"])["contents"].as_array().unwrap().len(), 1);
    // Also where it has begun, and there is room for most of it.
    let _ = node.ctl(["policy", "set", "store.quota=66MiB"]).ok();
    std::fs::File::options().write(true).open(&large).unwrap().set_len(70 << 20).unwrap();
    let mut put = node.ctl_command(["put", "-"]);
    let output = put.stdin(std::fs::File::open(&large).unwrap()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(6) && text.contains("raise store.quota"), "{text}");
}

/// A put of unknown size asked for 64 MiB whatever came: a few bytes were refused, or made others go.
#[test]
fn a_put_of_unknown_size_takes_little_more_room_than_it_needs() {
    let node = Node::start(NodeOptions { policy: vec!["store.quota=16MiB".into()], ..NodeOptions::default() });
    let put = |chunks: u64, seed: u64| {
        let file = node.file(&format!("{chunks} of {seed}"));
        sample::write_file(&file, chunks * CHUNK, seed).unwrap();
        let mut put = node.ctl_command(["put", "-"]);
        let output = put.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    put(40, 1);
    put(1, 2);
    // As much as there is: all of 16 MiB but a chunk, which leaves room for what the store keeps beside.
    put(22, 3);
    assert_eq!(node.json(["ls"])["contents"].as_array().unwrap().len(), 3, "nothing had to go");
}

/// Room that a put of unknown size was given stays its own: it was failed when a lower quota gave it no more, needed or not.
#[test]
fn a_put_of_unknown_size_keeps_its_room_when_the_quota_falls() {
    // Doubled whenever half is used, so less than 12 MiB for 3: each step is more than twice when the put was faster than the answer.
    // Waited for are 8, of which a chunk is left for what the store keeps beside; then there is no more.
    for (chunks, code) in [(31, 0), (56, 6)] {
        let node = Node::start(NodeOptions { policy: vec!["store.quota=16MiB".into()], ..NodeOptions::default() });
        let file = node.file("source");
        sample::write_file(&file, chunks * CHUNK, 1).unwrap();
        let source = std::fs::read(&file).unwrap();
        let mut put = node.ctl_command(["put", "-"]);
        let piped = std::process::Stdio::piped;
        let mut put = put.stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
        let mut stdin = put.stdin.take().unwrap();
        let (first, rest) = source.split_at(12 * CHUNK as usize);
        stdin.write_all(first).unwrap();
        wait_within(Duration::from_secs(10), "it has room for 8 MiB", || {
            node.json(["status"])["store_bytes"].as_u64().unwrap() >= 8 << 20
        });
        let _ = node.ctl(["policy", "set", "store.quota=6MiB"]).ok();
        // What does not fit is refused while it is written.
        let _ = stdin.write_all(rest);
        drop(stdin);
        let output = put.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{chunks} chunks: {text}");
        assert!(code == 0 || text.contains("raise store.quota"), "{text}");
    }
}

#[test]
fn what_is_being_repaired_makes_no_room_for_its_own_repair() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    let source = a.file("source");
    sample::write_file(&source, 16 * CHUNK, 3).unwrap();
    let id = a.put(&source);
    let got = b.file("got");
    let _ = b.ctl(["get", &a.ticket(&id), "-o", got.to_str().unwrap()]).ok();
    // The content has 4 MiB; ten chunks more do not fit.
    let _ = b.ctl(["policy", "set", "store.quota=5MiB"]).ok();
    let folder = b.state_dir().join("store").join(&id);
    let data = std::fs::OpenOptions::new().write(true).open(folder.join("data")).unwrap();
    for chunk in 0..10 {
        std::os::unix::fs::FileExt::write_all_at(&data, b"rot", chunk * CHUNK + 7).unwrap();
    }
    let report = b.json(["verify", &id]);
    assert_eq!((&report["chunks_bad"], &report["chunks_lost"]), (&10.into(), &0.into()), "{report}");
    // Files that are gone are seen to be gone, though the workers have them open.
    std::fs::remove_dir_all(&folder).unwrap();
    let report = b.json(["verify", &id]);
    assert_eq!((&report["state"], &report["chunks_lost"]), (&"done".into(), &0.into()), "{report}");
    assert!(folder.join("manifest").exists());
    std::fs::remove_file(folder.join("data")).unwrap();
    let report = b.json(["verify", &id]);
    assert_eq!((&report["chunks_bad"], &report["chunks_lost"]), (&16.into(), &0.into()), "{report}");
    assert!(folder.join("data").exists());
    let _ = b.ctl(["get", &id, "--force", "-o", got.to_str().unwrap()]).ok();
    assert!(std::fs::read(&got).unwrap() == std::fs::read(&source).unwrap());
    assert_eq!(b.json(["status"])["jobs"], 0);
}

/// A file system of its own, as small as wanted; `None` for users who may not mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(mib: u32) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: mounting a small file system needs root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mut mount = std::process::Command::new("mount");
        if !mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).status().unwrap().success() {
            eprintln!("skipped: this machine lets nobody mount a small file system");
            return None;
        }
        Some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_fails_puts_and_gets_cleanly_and_the_rest_goes_on() {
    let Some(disk) = SmallDisk::new(8) else { return };
    let options = NodeOptions { state_dir: Some(disk.0.path().join("state")), workers: 1, ..NodeOptions::default() };
    let (node, other) = (Node::start(options), Node::start(NodeOptions { workers: 1, ..NodeOptions::default() }));
    other.befriend(&node);
    let (large, small) = (other.file("large"), other.file("small"));
    sample::write_file(&large, 60 * CHUNK, 1).unwrap();
    sample::write_file(&small, CHUNK, 2).unwrap();
    let large_id = other.put(&large);
    expect(&node, &["put", large.to_str().unwrap()], 6, "o space left");
    let got = node.file("got");
    expect(&node, &["get", &large_id, "--peer", &other.address(), "-o", got.to_str().unwrap()], 6, "o space left");
    assert!(!got.exists());
    // What the get left takes the room; without it, all goes on.
    // The fetch itself ends a moment after the get that wanted it; until then the content is in use.
    let deadline = Instant::now() + Duration::from_secs(10);
    while let removed = node.ctl(["rm", &large_id])
        && removed.code != Some(0)
    {
        assert!(removed.code == Some(5) && Instant::now() < deadline, "{removed:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let id = node.put(&small);
    assert_eq!(id, sample::content_id(&small).unwrap());
    let _ = node.ctl(["get", &id, "-o", got.to_str().unwrap()]).ok();
    assert!(std::fs::read(&got).unwrap() == std::fs::read(&small).unwrap());
}

#[test]
fn what_was_said_to_be_stored_on_a_full_disk_is_there_after_a_restart() {
    let Some(disk) = SmallDisk::new(8) else { return };
    let options = NodeOptions { state_dir: Some(disk.0.path().join("state")), workers: 1, ..NodeOptions::default() };
    let mut node = Node::start(options);
    let filler = disk.0.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    let mut refused = 0;
    let mut stored = String::new();
    for gib in 1..60 {
        let quota = format!("store.quota={gib}GiB");
        let run = node.ctl(["policy", "set", &quota]);
        match run.code {
            Some(0) => stored = quota,
            _ => {
                assert!(run.code == Some(6) && run.stderr.contains("free some room"), "{run:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "the disk was not full");
    let shown = |node: &Node| node.ctl(["policy", "show"]).ok();
    let before = shown(&node);
    assert!(stored.is_empty() || before.contains(stored.trim_start_matches("store.quota=").trim_end_matches("GiB")));
    assert!(node.ctl(["status"]).ok().contains("STOPPED WRITING") || !stored.is_empty());
    // With room again, what is asked for is stored, and stays.
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    let _ = node.ctl(["policy", "set", "fec.mode=off"]).ok();
    let small = node.file("small");
    sample::write_file(&small, CHUNK, 2).unwrap();
    let id = node.put(&small);
    let _ = node.ctl(["pin", &id]).ok();
    assert!(!node.ctl(["status"]).ok().contains("STOPPED WRITING"));
    let (policy, contents) = (shown(&node), node.json(["ls"]));
    node.kill_controller();
    node.restart_controller();
    assert_eq!((shown(&node), node.json(["ls"])), (policy, contents));
}

#[test]
fn an_input_that_cannot_be_read_is_named() {
    let node = Node::start(NodeOptions { workers: 1, ..NodeOptions::default() });
    // Whoever runs this: nobody can read a process's memory from its start.
    expect(&node, &["put", "/proc/self/mem"], 1, "/proc/self/mem");
    if !nix::unistd::geteuid().is_root() {
        let path = node.file("closed");
        std::fs::write(&path, "closed").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
        expect(&node, &["put", path.to_str().unwrap()], 4, "ermission denied");
    }
    assert!(node.json(["ls"])["contents"].as_array().unwrap().is_empty());
}

#[test]
fn a_file_that_changes_while_it_is_put_is_not_kept() {
    let node = Node::start(NodeOptions::default());
    let path = node.file("changing");
    sample::write_file(&path, 400 * CHUNK, 1).unwrap();
    let put = node.ctl_command([std::ffi::OsStr::new("put"), path.as_os_str()]);
    let mut put = { put }.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    // Appended to without pause, so also while it is read.
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    while put.try_wait().unwrap().is_none() {
        file.write_all(b"more").unwrap();
    }
    let output = put.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("changed while it was put"), "{text}");
    assert!(node.json(["ls"])["contents"].as_array().unwrap().is_empty());
}

#[test]
fn rot_on_the_disk_is_found_told_and_repaired_from_a_peer() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    let source = a.file("rotten");
    sample::write_file(&source, 10 * CHUNK, 3).unwrap();
    let id = a.put(&source);
    let _ = b.ctl(["get", &a.ticket(&id), "-o", b.file("first").to_str().unwrap()]).ok();
    let rot = |node: &Node| {
        let path = node.state_dir().join("store").join(&id).join("data");
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"rot", 5 * CHUNK + 7).unwrap();
    };
    rot(&b);
    let report = b.json(["verify", &id]);
    assert_eq!((&report["chunks_bad"], &report["chunks_lost"]), (&1.into(), &0.into()), "{report}");
    let _ = b.ctl(["get", &id, "-o", b.file("second").to_str().unwrap()]).ok();
    assert!(std::fs::read(b.file("second")).unwrap() == std::fs::read(&source).unwrap());
    // Rotten bytes never get out, also without a verify.
    rot(&b);
    let _ = b.ctl(["get", &id, "-o", b.file("third").to_str().unwrap()]).ok();
    assert!(std::fs::read(b.file("third")).unwrap() == std::fs::read(&source).unwrap());
    // From whom else, when there is nobody?
    let _ = b.ctl(["peer", "rm", a.id()]).ok();
    rot(&b);
    let run = b.ctl(["get", &id, "-o", b.file("fourth").to_str().unwrap()]);
    assert!(run.code != Some(0) && !b.file("fourth").exists(), "{run:?}");
}

#[test]
fn garbage_on_every_socket_ends_that_connection_and_nothing_else() {
    let node = Node::start(NodeOptions::default());
    let mut state: u64 = 1;
    let mut garbage = |len: usize| -> Vec<u8> {
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect()
    };
    for len in [0, 1, 2, 8, 100, 10_000] {
        let mut stream = TcpStream::connect(node.listen()).unwrap();
        let _ = stream.write_all(&garbage(len));
        for name in ["controller.sock", "workers.sock", "worker-0.sock", "worker-1.sock"] {
            let mut stream = UnixStream::connect(node.runtime_dir().join(name)).unwrap();
            let _ = stream.write_all(&garbage(len));
        }
    }
    let workers = node.json(["workers"]);
    for worker in workers["workers"].as_array().unwrap() {
        let address = worker["address"].as_str().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for len in [0, 1, 20, 1200, 9000] {
            let _ = socket.send_to(&garbage(len), address);
        }
    }
    let before = node.worker_pids();
    let source = node.file("still");
    sample::write_file(&source, CHUNK, 4).unwrap();
    assert_eq!(node.put(&source), sample::content_id(&source).unwrap());
    assert_eq!(node.worker_pids(), before, "no worker was restarted");
}
