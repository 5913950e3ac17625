//! What an operator sees: documents as documented, commands that are interrupted, mistakes that are named.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::ToSocketAddrs;
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pangea_tests::node::{program, wait_within};
use pangea_tests::{Node, NodeOptions, sample};
use serde_json::Value;

const CHUNK: u64 = 256 << 10;
/// What must happen happens within this time, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn one() -> NodeOptions {
    NodeOptions { workers: 1, ..NodeOptions::default() }
}

fn wait_for(what: &str, done: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, done);
}

/// Bytes of the store's file `have` before its bits.
const HAVE_HEADER_LEN: usize = 16;

/// Starts a get and waits until some of the content is claimed: what is on disk but not yet synced does not count.
fn get_under_way(node: &Node, ticket: &str, id: &str, output: &std::path::Path) -> Child {
    let mut get = node.ctl_command(["get", ticket, "-o", output.to_str().unwrap()]);
    let get = get.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let have = node.state_dir().join("store").join(id).join("have");
    let bits = |have: Vec<u8>| have.into_iter().skip(HAVE_HEADER_LEN).any(|bits| bits != 0);
    wait_for("a get begins", || std::fs::read(&have).is_ok_and(bits));
    get
}

/// Words that the documentation sets as code, in one row of its table or in one paragraph.
fn words(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).filter(|word| !word.contains(' ')).collect()
}

/// All keys of a document, except those of maps whose keys are data.
fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                found.insert(key.clone());
                if key != "policy" {
                    keys(value, found);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

#[test]
fn json_documents_have_the_documented_keys_and_no_others() {
    /// Values, not keys.
    const VALUES: [&str; 9] =
        ["starting", "running", "draining", "dead", "unknown", "active", "degraded", "done", "failed"];
    let text = include_str!("../../docs/pangeactl-json.md");
    let (table, job) = text.split_once("\nA job:").unwrap();
    let job: BTreeSet<&str> = words(job).into_iter().filter(|word| *word != "worker" && *word != "verify").collect();
    let check = |command: &str, document: &Value| {
        let row = table.lines().find(|line| {
            let names = line.strip_prefix("| ").and_then(|line| line.split_once(" |")).map_or("", |(names, _)| names);
            names.contains(&format!("`{command}`"))
        });
        let row = row.unwrap_or_else(|| panic!("{command} is not documented"));
        let described = row.splitn(3, '|').nth(2).unwrap();
        let mut documented: BTreeSet<&str> =
            words(described).into_iter().filter(|word| !VALUES.contains(word) && *word != "{}").collect();
        let mut found = BTreeSet::new();
        keys(document, &mut found);
        // What a failure holds shows only in one.
        let with_job = described.contains("(below");
        if with_job {
            documented.extend(job.iter().filter(|word| !VALUES.contains(word)));
            documented.insert("worker");
        }
        let unknown: Vec<_> = found.iter().filter(|key| !documented.contains(key.as_str())).collect();
        assert!(unknown.is_empty(), "{command} has {unknown:?}, which are not documented");
        let optional = ["code", "text"];
        // A verify without repair has no shares.
        let shares = documented.contains("shares") && document.to_string().contains("\"shares\":[]");
        let missing: Vec<_> = documented
            .iter()
            .filter(|key| !found.contains(**key) && !optional.contains(*key))
            .filter(|key| !(with_job && shares && job.contains(**key) || **key == "worker"))
            .collect();
        assert!(missing.is_empty(), "{command} lacks {missing:?}: {document}");
    };

    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    let source = a.file("source");
    sample::write_file(&source, 3 * CHUNK, 1).unwrap();
    let path = source.to_str().unwrap();
    let put = a.json(["put", path]);
    check("put", &put);
    let id = put["id"].as_str().unwrap();
    check("id", &a.json(["id"]));
    let ticket = a.json(["ticket", id]);
    check("ticket", &ticket);
    check("get", &b.json(["get", ticket["ticket"].as_str().unwrap(), "-o", b.file("got").to_str().unwrap()]));
    for command in ["ls", "verify", "workers"] {
        check(command, &b.json([command]));
    }
    let mut status = b.json(["status"]);
    status["workers"] = Value::Array(Vec::new()); // as in `workers`
    check("status", &status);
    check("peer ls", &b.json(["peer", "ls"]));
    check("policy show", &b.json(["policy", "show"]));
    check("set", &b.json(["policy", "set", "fec.mode=off"]));
    check("rollback", &b.json(["policy", "rollback", "1"]));
    check("policy history", &b.json(["policy", "history"]));
    check("worker add", &b.json(["worker", "add"]));
    wait_for("a third worker", || b.worker_pids().len() == 3);
    check("worker drain", &b.json(["worker", "drain", "2"]));
    check("pin", &b.json(["pin", id]));
    check("unpin", &b.json(["unpin", id]));
    check("rm", &b.json(["rm", id]));
    check("peer add", &b.json(["peer", "add", &a.address()]));
    check("peer rm", &b.json(["peer", "rm", a.id()]));
    check("completions", &b.json(["completions", "bash"]));
    let demo = program("pangeactl").args(["demo", "--size", "1MiB", "--json"]).output().unwrap();
    check("demo", &serde_json::from_slice(&demo.stdout).unwrap());
}

#[test]
fn policy_watch_prints_each_policy_until_nobody_reads_any_more() {
    let node = Node::start(one());
    let mut watch = node.ctl_command(["policy", "watch", "--json"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["revision"], 1);
    let _ = node.ctl(["policy", "set", "fec.mode=off"]).ok();
    let seen = next();
    assert_eq!((&seen["revision"], &seen["policy"]["fec.mode"]), (&2.into(), &"off".into()));
    let _ = node.ctl(["policy", "rollback", "1"]).ok();
    assert_eq!(next()["policy"]["fec.mode"], "auto");
    drop(lines);
    let _ = node.ctl(["policy", "set", "fec.mode=always"]).ok();
    wait_for("the watch ends", || watch.try_wait().unwrap().is_some());
    assert!(watch.wait().unwrap().success());

    // A full disk under its output is an error, not a panic.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = node.ctl_command(["policy", "watch"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("pangeactl: stdout: "), "{text}");
}

#[test]
fn an_interrupted_get_says_how_to_go_on_and_goes_on_where_it_was() {
    let options = NodeOptions { policy: vec!["transfer.inflight_chunks=1".into()], ..one() };
    let (a, b) = (Node::start(options.clone()), Node::start(options));
    a.befriend(&b);
    let source = a.file("source");
    sample::write_file(&source, 1000 * CHUNK, 1).unwrap();
    let id = a.put(&source);
    let ticket = a.ticket(&id);
    let path = b.file("got");
    let get = get_under_way(&b, &ticket, &id, &path);
    kill(Pid::from_raw(i32::try_from(get.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = get.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("run the same command again to go on"), "{text}");
    let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, [""; 0], "no file that is not whole");

    let got = b.json(["get", &ticket, "-o", path.to_str().unwrap()]);
    let before = got["job"]["chunks_before"].as_u64().unwrap();
    assert!(before > 0, "what had arrived was still here: {got}");
    let shares = got["job"]["shares"].as_array().unwrap();
    let fetched: u64 = shares.iter().map(|share| share["bytes"].as_u64().unwrap()).sum();
    // What was under way when the first was interrupted may still arrive and be counted there.
    assert!(fetched <= (1000 - before) * CHUNK, "and was not fetched again: {before} were here, {fetched} bytes came");
    assert_eq!(sample::content_id(&path).unwrap(), id);
}

#[test]
fn a_drained_worker_finishes_first_what_it_does() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    let source = a.file("source");
    sample::write_file(&source, 600 * CHUNK, 2).unwrap();
    let id = a.put(&source);
    let path = b.file("got");
    let get = get_under_way(&b, &a.ticket(&id), &id, &path);
    let _ = b.ctl(["worker", "drain", "0"]).ok();
    let output = get.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(sample::content_id(&path).unwrap(), id);
    assert_eq!(b.worker_pids().len(), 1);
}

#[test]
fn verify_says_what_is_lost_when_nobody_else_has_it() {
    let node = Node::start(one());
    let source = node.file("source");
    sample::write_file(&source, 4 * CHUNK, 3).unwrap();
    let id = node.put(&source);
    let data = node.state_dir().join("store").join(&id).join("data");
    let file = std::fs::OpenOptions::new().write(true).open(data).unwrap();
    file.write_all_at(b"rot", 2 * CHUNK + 7).unwrap();
    let run = node.ctl(["verify"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains(&id) && run.stderr.contains("1 chunks are lost"), "{}", run.stderr);
    // The rest is as good as before; what is lost is not given out.
    let part = node.file("part");
    let _ = node.ctl(["get", &id, "--range", "0-1000", "-o", part.to_str().unwrap()]).ok();
    let run = node.ctl(["get", &id, "-o", node.file("whole").to_str().unwrap()]);
    assert!(run.code != Some(0) && !node.file("whole").exists(), "{run:?}");
    // It stays lost, whoever asks again; a get elsewhere ends and says so.
    let run = node.ctl(["verify", &id]);
    assert!(run.code == Some(1) && run.stderr.contains("1 chunks are lost"), "{run:?}");
    let listed = node.ctl(["ls"]).ok();
    assert!(listed.contains("75 %"), "{listed}");
    let other = Node::start(one());
    node.befriend(&other);
    let run = other.ctl(["get", &id, "-o", other.file("whole").to_str().unwrap()]);
    assert_eq!(run.code, Some(5), "{run:?}");
    assert!(run.stderr.contains("no reachable node has all of content"), "{}", run.stderr);
    // Put again it is whole, and nothing is lost.
    assert_eq!(node.put(&source), id);
    let _ = node.ctl(["verify", &id]).ok();
}

#[test]
fn a_fixed_rate_is_kept_on_a_path_without_delay() {
    let (a, b) = (Node::start(one()), Node::start(one()));
    a.befriend(&b);
    let source = a.file("source");
    sample::write_file(&source, 10 * CHUNK, 4).unwrap();
    let id = a.put(&source);
    let _ = a.ctl(["policy", "set", "congestion=rate:20M"]).ok();
    // 2.6 MB at 20 Mbit/s take 1.05 s, by stream or as symbols.
    for mode in ["off", "always"] {
        let _ = b.ctl(["policy", "set", &format!("fec.mode={mode}")]).ok();
        let _ = b.ctl(["rm", &id]);
        let took = b.json(["get", &id, "--force", "-o", b.file("got").to_str().unwrap()])["seconds"].as_f64().unwrap();
        assert!((1.0..5.0).contains(&took), "{mode}: {took} s");
    }
}

#[test]
fn what_a_killed_get_left_is_removed_by_the_next_and_names_may_be_long() {
    let node = Node::start(one());
    let source = node.file(&"n".repeat(255));
    sample::write_file(&source, 100, 4).unwrap();
    let id = node.put(&source);
    let folder = node.file("gets");
    std::fs::create_dir(&folder).unwrap();
    let mut ended = std::process::Command::new("true").spawn().unwrap();
    let left = folder.join(format!(".pangea-part-{}", ended.id()));
    ended.wait().unwrap();
    std::fs::write(&left, b"part").unwrap();
    let own = folder.join(format!(".pangea-part-{}", std::process::id()));
    std::fs::write(&own, b"of a process that lives").unwrap();
    let run = node.ctl_command(["get", &id]).current_dir(&folder).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let run = node.ctl_command(["get", &id, "--range", "0-9"]).current_dir(&folder).output().unwrap();
    assert!(!run.status.success(), "a range does not fit behind a name of 255 bytes: {run:?}");
    assert!(std::fs::read(folder.join("n".repeat(255))).unwrap() == std::fs::read(&source).unwrap());
    assert!(!left.exists() && own.exists());
    let short = node.put(&{
        let short = node.file("short");
        sample::write_file(&short, 100, 5).unwrap();
        short
    });
    let run = node.ctl_command(["get", &short, "--range", "0-9"]).current_dir(&folder).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    assert_eq!(std::fs::metadata(folder.join("short.0-9")).unwrap().len(), 10);
}

#[test]
fn configured_peers_may_have_host_names() {
    let localhost = ("localhost", 0).to_socket_addrs().unwrap().next().unwrap();
    let a = Node::start(NodeOptions { listen: localhost.to_string(), ..one() });
    let by_name = format!("{}@localhost:{}", a.id(), a.listen().port());
    let unknown = format!("{}@no.such.host.invalid:5", "a".repeat(52));
    let config = a.file("pangea.toml");
    std::fs::write(&config, format!("[controller]\npeers = [\"{unknown}\", \"{by_name}\"]\n")).unwrap();
    for arguments in [["--config", config.to_str().unwrap()], ["--peer", &by_name]] {
        let b = Node::start(NodeOptions { arguments: arguments.map(str::to_owned).into(), ..one() });
        let _ = a.ctl(["peer", "add", b.id()]).ok();
        wait_for("a session with a host that was named", || b.json(["status"])["peers_active"] == 1);
        let named = arguments[0] == "--config";
        // One that cannot be looked up is no reason not to run.
        if named {
            wait_for("a lookup that fails", || b.log().contains("no.such.host.invalid"));
        }
    }
}

#[test]
fn verify_of_all_names_every_damaged_content() {
    let (node, other) = (Node::start(one()), Node::start(one()));
    let rot = |id: &str| {
        let data = node.state_dir().join("store").join(id).join("data");
        let file = std::fs::OpenOptions::new().write(true).open(data).unwrap();
        file.write_all_at(b"rot", 7).unwrap();
    };
    let put = |name: &str, seed| {
        let source = node.file(name);
        sample::write_file(&source, 2 * CHUNK, seed).unwrap();
        node.put(&source)
    };
    let lost: BTreeSet<String> = [put("one", 1), put("two", 2)].into();
    let (sound, repaired) = (put("three", 3), put("four", 4));
    assert_eq!(other.put(&node.file("four")), repaired);
    other.befriend(&node);
    wait_for("a session", || node.json(["status"])["peers_active"] == 1);
    lost.iter().chain([&repaired]).for_each(|id| rot(id));
    let run = node.ctl(["verify", "--json"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&report["state"], &report["contents_damaged"]), (&"failed".into(), &3.into()), "{report}");
    let damaged = report["damaged"].as_array().unwrap();
    let of = |whole: bool| -> BTreeSet<String> {
        let of = damaged.iter().filter(|damage| damage["failure"].is_null() == whole);
        of.map(|damage| damage["content"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((of(false), of(true)), (lost.clone(), BTreeSet::from([repaired.clone()])), "{report}");
    // What was lost is missing since, and stays lost however often it is looked for.
    let run = node.ctl(["verify", "--json"]);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((run.code, &report["contents_damaged"], &report["chunks_bad"]), (Some(1), &2.into(), &0.into()));
    // For people: all of them in the table, those that are not whole again in the error.
    lost.iter().for_each(|id| {
        assert_eq!(node.ctl(["rm", id]).code, Some(0));
    });
    let again: Vec<String> = [put("one", 1), put("two", 2)].into();
    again.iter().chain([&repaired]).for_each(|id| rot(id));
    let run = node.ctl(["verify"]);
    assert!(again.iter().chain([&repaired]).all(|id| run.stdout.contains(id.as_str())), "{run:?}");
    assert!(again.iter().all(|id| run.stderr.contains(id.as_str())), "{run:?}");
    assert!(!run.stdout.contains(&sound) && !run.stderr.contains(&repaired), "{run:?}");
}

#[test]
fn what_nobody_can_have_is_refused_as_soon_as_all_have_answered() {
    /// Well below the 10 s that a fetch waits for holders that may come back.
    const AT_ONCE: Duration = Duration::from_secs(5);
    let (node, other) = (Node::start(one()), Node::start(one()));
    let source = node.file("source");
    sample::write_file(&source, 4 * CHUNK, 3).unwrap();
    let id = node.put(&source);
    let data = node.state_dir().join("store").join(&id).join("data");
    let refused = |arguments: &[&str], code: i32, said: &str| {
        let started = Instant::now();
        let run = node.ctl(arguments);
        assert!(started.elapsed() < AT_ONCE, "{arguments:?} took {:?}: {run:?}", started.elapsed());
        assert_eq!(run.code, Some(code), "{run:?}");
        assert!(run.stderr.contains(said), "{run:?}");
    };
    let all_refused = |chunk: u64| {
        let file = std::fs::OpenOptions::new().write(true).open(&data).unwrap();
        file.write_all_at(b"rot", chunk * CHUNK + 7).unwrap();
        refused(&["verify", &id], 1, "run the command again when a holder is reachable");
        refused(&["get", &id, "-o", node.file("got").to_str().unwrap()], 5, "name one with get --peer");
        refused(&["get", &"0".repeat(64)], 3, "name a holder with --peer");
    };
    // Without any peer; with one that does not answer; with one that has nothing.
    all_refused(0);
    let nobody = format!("{}@127.0.0.1:1", "a".repeat(52));
    let _ = node.ctl(["peer", "add", &nobody]).ok();
    wait_for("a dial that failed", || node.json(["peer", "ls"])["peers"][0]["trouble"] != "");
    all_refused(1);
    other.befriend(&node);
    wait_for("a session", || node.json(["status"])["peers_active"] == 1);
    all_refused(2);
}

#[test]
fn a_path_to_a_node_that_was_only_asked_is_measured_too() {
    let (a, b) = (Node::start(one()), Node::start(one()));
    let _ = a.ctl(["peer", "add", b.id()]).ok();
    let source = a.file("source");
    sample::write_file(&source, 100 * CHUNK, 4).unwrap();
    let id = a.put(&source);
    let _ = b.ctl(["get", &a.ticket(&id), "-o", b.file("got").to_str().unwrap()]).ok();
    // Workers report what they measured once a second.
    wait_for("figures of the path", || {
        let peers = b.json(["peer", "ls"]);
        let peer = &peers["peers"][0];
        peer["node"] == a.id() && peer["throughput_bytes_per_s"].as_u64().is_some_and(|rate| rate > 0)
    });
}

#[test]
fn an_input_that_vanishes_or_shrinks_while_it_is_put_is_whole_or_refused() {
    let node = Node::start(one());
    for shrink in [false, true] {
        let path = node.file("source");
        sample::write_file(&path, 1000 * CHUNK, 5).unwrap();
        let whole = sample::content_id(&path).unwrap();
        let put =
            node.ctl_command(["put", path.to_str().unwrap()]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let put = put.unwrap();
        let store = node.state_dir().join("store");
        // A put under way has an entry of its own beside the contents.
        let entries = || std::fs::read_dir(&store).unwrap().count();
        let before = usize::from(shrink);
        wait_for("a put begins", || entries() > before);
        if shrink {
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(CHUNK).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let output = put.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        if shrink && output.status.code() != Some(0) {
            assert_eq!(output.status.code(), Some(5), "{text}");
            assert!(text.contains("changed while it was put"), "{text}");
        } else {
            // An open file is readable to its end after its name has gone.
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), whole, "{text}");
        }
    }
    let listed = node.json(["ls"]);
    assert_eq!(listed["contents"].as_array().unwrap().len(), 1, "{listed}");
}

#[test]
fn mistakes_with_paths_and_ranges_are_named_as_they_were_made() {
    let node = Node::start(one());
    let source = node.file("source");
    sample::write_file(&source, 1000, 6).unwrap();
    let id = node.put(&source);
    let run = node.ctl(["get", &id, "--range", "500-1000", "-o", "x"]);
    assert!(run.clone().refused().contains("bytes 500-1000 are not within"), "{}", run.stderr);
    let run = node.ctl(["get", &id, "-o", "/nowhere/x"]);
    assert_eq!(
        (run.code, run.stderr.trim_end()),
        (Some(3), "pangeactl: /nowhere/x: there is no folder /nowhere; make it first")
    );
    let started = Instant::now();
    for (file, text) in [("/nowhere/x", "/nowhere/x: No such file"), ("/proc", "/proc is not a file")] {
        let output = program("pangeactl").args(["demo", file]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.starts_with("pangeactl: ") && said.contains(text), "{said}");
        assert_eq!(said.lines().count(), 1, "and nothing was started for it: {said}");
    }
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn a_folder_or_port_that_another_node_uses_is_named_with_its_owner() {
    let node = Node::start(one());
    let folder = tempfile::tempdir().unwrap();
    let start = |state: &std::path::Path, data: &str| {
        let mut command = program("pangea-controller");
        command.arg("--runtime-dir").arg(folder.path().join("run")).arg("--state-dir").arg(state);
        command.args(["--listen", "127.0.0.1:0", "--data-listen", data, "--workers", "2"]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        wait_for("it gives up", || child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(1));
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    };
    let text = start(&node.state_dir(), "127.0.0.1:0");
    assert!(text.contains("in use by another pangea-controller"), "{text}");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let text = start(&folder.path().join("state"), &address.to_string());
    let owner = format!("process {}", std::process::id());
    assert!(text.contains(&format!("UDP {address}")) && text.contains(&owner), "{text}");
    // Workers that cannot have their ports would only end again and again.
    for (data, said) in [("192.0.2.9:0", "cannot listen on UDP 192.0.2.9:0"), ("127.0.0.1:65535", "beyond 65535")] {
        let text = start(&folder.path().join("state"), data);
        assert!(text.contains(said), "{text}");
    }
}
