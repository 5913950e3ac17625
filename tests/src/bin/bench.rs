//! The figures of `docs/BENCHMARKS.md`, as a table or as JSON, with a bare quinn stream and nginx + curl in the same run.
//!
//! `cargo run --release -p pangea-tests --bin bench -- [--json] [--mib N] [CASE...]`. Programs must be built before
//! (`cargo build --release`). Everything runs on loopback, in temporary folders (`TMPDIR` says where).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use pangea_client::{Client, GetOptions, PutOptions};
use pangea_dataplane::net::endpoint::{open, transport};
use pangea_dataplane::net::tls::{Identity, Pins, SERVER_NAME};
use pangea_ipc::ids::{NodeId, WorkerKey};
use pangea_ipc::node::Request;
use pangea_ipc::worker::Pin;
use pangea_tests::{Node, NodeOptions, sample};
use serde_json::json;

/// Benchmarks of whole nodes against bare peers.
#[derive(Parser)]
struct Arguments {
    /// What to measure; all without one
    cases: Vec<Case>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// MiB to move
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Repeat each case and take the median
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Put of a cached file
    Put,
    /// Get from a peer, against a bare quinn stream
    Get,
    /// Local get, against nginx + curl
    Local,
    /// A policy change
    Policy,
}

struct Row {
    what: &'static str,
    value: f64,
    unit: &'static str,
    note: String,
}

fn main() {
    if let Ok(role) = std::env::var("PANGEA_BENCH_ROLE") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(quinn_role(&role));
    }
    let arguments = Arguments::parse();
    let wants = |case| arguments.cases.is_empty() || arguments.cases.contains(&case);
    let mut rows = Vec::new();
    if wants(Case::Put) || wants(Case::Get) || wants(Case::Local) {
        transfer_cases(arguments.mib << 20, arguments.runs, wants, &mut rows);
    }
    if wants(Case::Policy) {
        rows.push(policy_case());
    }
    if arguments.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| json!({"what": row.what, "value": row.value, "unit": row.unit, "note": row.note}))
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows).unwrap());
        return;
    }
    for row in rows {
        println!("{:<52} {:>9.2} {:<5} {}", row.what, row.value, row.unit, row.note);
    }
}

fn gbps(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e9
}

fn median(runs: usize, mut one: impl FnMut() -> f64) -> f64 {
    let mut values: Vec<f64> = (0..runs.max(1)).map(|_| one()).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn transfer_cases(bytes: u64, runs: usize, wants: impl Fn(Case) -> bool, rows: &mut Vec<Row>) {
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
    let puts = if wants(Case::Put) { runs } else { 1 };
    let sent = median(puts, || {
        if let Some(id) = id {
            client_a.call(Request::Remove(id)).unwrap();
        }
        let started = Instant::now();
        let mut last = Duration::ZERO;
        let file = std::fs::File::open(&source).unwrap();
        let options = PutOptions { name: "source".into(), size: Some(bytes) };
        let put = client_a.put(&file, options, &mut |_| last = started.elapsed()).unwrap();
        whole.push(gbps(bytes, started.elapsed()));
        id = Some(put.content);
        gbps(bytes, last)
    });
    let id = id.unwrap();
    if wants(Case::Put) {
        rows.push(Row {
            what: "put from page cache, before the final sync",
            value: sent,
            unit: "GB/s",
            note: "goal 1.0".into(),
        });
        whole.sort_by(f64::total_cmp);
        let value = whole[whole.len() / 2];
        rows.push(Row { what: "put, hashed and synced", value, unit: "GB/s", note: String::new() });
    }
    let mut touched = 0_u64;
    let mut space = vec![0; 256 << 10];
    let mut take = |client: &Client| {
        let started = Instant::now();
        let mut transfer = client.get(id, GetOptions::default()).unwrap();
        transfer
            .run(&mut |_| true, &mut |record, _, _| {
                let part = &mut space[..record.len()];
                record.copy_to(part);
                touched = touched.wrapping_add(touch(part));
                Ok(())
            })
            .unwrap();
        started.elapsed()
    };
    if wants(Case::Get) {
        let bare = median(runs, || bare_quinn(bytes));
        rows.push(Row { what: "bare quinn stream, MTU 1452", value: bare, unit: "GB/s", note: String::new() });
        let peer = median(runs, || {
            let _ = client_b.call(Request::Remove(id)); // not there the first time
            gbps(bytes, take(&client_b))
        });
        let note = format!("{:.2} of bare quinn; goal 0.6", peer / bare);
        rows.push(Row {
            what: "get from a peer, one worker a side, verified, synced",
            value: peer,
            unit: "GB/s",
            note,
        });
    }
    if wants(Case::Local) {
        let local = median(runs, || gbps(bytes, take(&client_a)));
        rows.push(Row { what: "local get, every byte touched", value: local, unit: "GB/s", note: "goal 2.0".into() });
        match nginx(&source, bytes, runs) {
            Some(value) => {
                rows.push(Row { what: "nginx + curl over loopback", value, unit: "GB/s", note: String::new() });
            }
            None => eprintln!("nginx or curl is not installed: not compared"),
        }
    }
    std::hint::black_box(touched);
}

/// Reads every byte.
fn touch(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).fold(0, u64::wrapping_add)
}

fn policy_case() -> Row {
    let node = Node::start(NodeOptions { workers: 4, ..NodeOptions::default() });
    let client = Client::connect(&node.runtime_dir()).unwrap();
    let mut pct = 0;
    let value = median(31, || {
        pct += 1;
        let started = Instant::now();
        client.call(Request::PolicySet(vec![format!("fec.max_overhead_pct={pct}")])).unwrap();
        started.elapsed().as_secs_f64() * 1e3
    });
    Row { what: "policy set, acknowledged by 4 idle workers", value, unit: "ms", note: "goal 5".into() }
}

fn role(name: &str) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("PANGEA_BENCH_ROLE", name).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// One quinn stream between two processes, with the transport parameters of a worker and nothing else of it.
fn bare_quinn(bytes: u64) -> f64 {
    let (mut server, mut server_says) = role("server");
    let (mut client, mut client_says) = role("client");
    let (server_line, client_key) = (line(&mut server_says), line(&mut client_says));
    writeln!(server.stdin.take().unwrap(), "{client_key}").unwrap();
    writeln!(client.stdin.take().unwrap(), "{server_line} {bytes}").unwrap();
    let seconds: f64 = line(&mut client_says).parse().unwrap();
    client.wait().unwrap();
    let _ = server.kill();
    server.wait().unwrap();
    bytes as f64 / seconds / 1e9
}

fn key_from(text: &str) -> WorkerKey {
    let bytes: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect();
    WorkerKey(bytes.try_into().unwrap())
}

async fn quinn_role(role: &str) {
    let identity = Identity::generate().unwrap();
    let pins = Pins::default();
    let endpoint = open("127.0.0.1:0".parse().unwrap(), &identity, &pins, &Arc::default(), None).unwrap();
    let mut stdin = std::io::stdin().lock();
    if role == "server" {
        println!("{} {}", endpoint.local_addr().unwrap(), identity.key());
        pins.set(&[Pin { key: key_from(&line(&mut stdin)), node: NodeId([0; 32]), known: None }]);
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let (mut send, mut recv) = connection.accept_bi().await.unwrap();
        let mut wanted = [0; 8];
        recv.read_exact(&mut wanted).await.unwrap();
        let block = vec![7; 256 << 10];
        let mut rest = u64::from_le_bytes(wanted);
        while rest > 0 {
            let part = rest.min(block.len() as u64);
            send.write_all(&block[..part as usize]).await.unwrap();
            rest -= part;
        }
        send.finish().unwrap();
        connection.closed().await;
        return;
    }
    println!("{}", identity.key());
    let words = line(&mut stdin);
    let [address, key, bytes] = words.split(' ').collect::<Vec<_>>()[..] else { panic!("three words") };
    let mut config = quinn::ClientConfig::new(Arc::new(identity.client_config(key_from(key)).unwrap()));
    config.transport_config(Arc::new(transport(&Arc::default())));
    let connection = endpoint.connect_with(config, address.parse().unwrap(), SERVER_NAME).unwrap().await.unwrap();
    let started = Instant::now();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&bytes.parse::<u64>().unwrap().to_le_bytes()).await.unwrap();
    while recv.read_chunk(1 << 20, true).await.unwrap().is_some() {}
    println!("{}", started.elapsed().as_secs_f64());
}

fn nginx(file: &Path, bytes: u64, runs: usize) -> Option<f64> {
    let there = |program: &str| {
        Command::new(program).arg("--version").output().or_else(|_| Command::new(program).arg("-v").output()).is_ok()
    };
    if !there("nginx") || !there("curl") {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let root = file.parent().unwrap().display();
    let user = if std::fs::metadata("/root").is_ok() { "user root;" } else { "" };
    let config = format!(
        "{user} daemon off; pid {0}/pid; error_log {0}/error; worker_processes 1; events {{}}\nhttp {{ access_log off; \
         sendfile on; tcp_nopush on; server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n",
        folder.path().display()
    );
    let path = folder.path().join("nginx.conf");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&path).arg("-p").arg(folder.path()).stdout(Stdio::null());
    let mut server = command.spawn().unwrap();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let url = format!("http://127.0.0.1:{port}/{}", file.file_name().unwrap().display());
    let value = median(runs, || {
        let started = Instant::now();
        let status = Command::new("curl").args(["-sf", "-o", "/dev/null", &url]).status().unwrap();
        assert!(status.success());
        gbps(bytes, started.elapsed())
    });
    // Asked, not killed: its worker would live on.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    server.wait().unwrap();
    Some(value)
}
