//! What programs other than `pangeactl` see: the client library, blocking and async, and the metrics page.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pangea_client::asynchronous::AsyncClient;
use pangea_client::{Client, GetOptions, PutOptions};
use pangea_ipc::node::{Request, Response};
use pangea_ring::Record;
use pangea_tests::{Node, NodeOptions, sample};

const CHUNK: usize = 256 << 10;

#[test]
fn a_reader_reads_and_seeks_also_while_the_content_is_arriving() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    let source = a.file("source");
    sample::write_file(&source, 40 * CHUNK as u64 + 3, 1).unwrap();
    let whole = std::fs::read(&source).unwrap();
    let client = Client::connect(&a.runtime_dir()).unwrap();
    let put = client.put(File::open(&source).unwrap(), PutOptions::default(), &mut |_| true).unwrap();
    let _ = b.ctl(["get", &a.ticket(&put.content.to_string()), "--range", "0-0", "-o", "-"]).ok(); // B knows A now

    let mut reader = Client::connect(&b.runtime_dir()).unwrap().open(put.content, GetOptions::default()).unwrap();
    assert_eq!(reader.size(), whole.len() as u64);
    let mut tail = Vec::new();
    reader.seek(SeekFrom::End(-10)).unwrap();
    reader.read_to_end(&mut tail).unwrap();
    assert_eq!(tail, whole[whole.len() - 10..]);
    for at in [0, CHUNK - 1, 17 * CHUNK + 5, 3] {
        let mut part = vec![0; CHUNK + 2];
        reader.seek(SeekFrom::Start(at as u64)).unwrap();
        reader.read_exact(&mut part).unwrap();
        assert!(part == whole[at..at + part.len()], "at {at}");
    }
    reader.seek(SeekFrom::Start(1 << 40)).unwrap();
    assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0, "beyond the end is the end");
    assert!(reader.seek(SeekFrom::Current(-(1 << 41))).is_err());
    reader.rewind().unwrap();
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert!(all == whole);
}

#[test]
fn async_programs_put_get_and_ask() {
    let node = Node::start(NodeOptions::default());
    let source = node.file("source");
    sample::write_file(&source, 3 * CHUNK as u64 + 3, 2).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = AsyncClient::connect(node.runtime_dir()).await.unwrap();
        let put = client.put(File::open(&source).unwrap(), PutOptions::default()).await.unwrap();
        assert_eq!(put.content.to_string(), sample::content_id(&source).unwrap());
        // Two at once, on one connection.
        let get = |name: &str| {
            let file = File::create(node.file(name)).unwrap();
            let client = client.clone();
            tokio::spawn(async move { client.get(put.content, GetOptions::default(), file).await })
        };
        let (one, two) = (get("one"), get("two"));
        one.await.unwrap().unwrap();
        two.await.unwrap().unwrap();
        for name in ["one", "two"] {
            assert!(std::fs::read(node.file(name)).unwrap() == std::fs::read(&source).unwrap());
        }
        let Response::Contents(list) = client.call(Request::List { after: None }).await.unwrap() else {
            panic!("a list")
        };
        assert_eq!(list.len(), 1);
    });
}

/// Both found nobody fetching, and while old content made way for the first, the second was told that there is no room.
#[test]
fn two_gets_at_once_share_one_fetch_also_when_room_must_be_made_for_it() {
    let options = NodeOptions { policy: vec!["store.quota=4MiB".into()], ..NodeOptions::default() };
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(options));
    a.befriend(&b);
    let put = |node: &Node, name: &str, seed| {
        let source = node.file(name);
        sample::write_file(&source, 12 * CHUNK as u64, seed).unwrap();
        node.put(&source)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for round in 0..5 {
        put(&b, "old", 100 + round);
        let content = put(&a, "new", round);
        let content: pangea_ipc::ids::ContentId = content.parse().unwrap();
        let before = b.counted("fetched_bytes");
        runtime.block_on(async {
            let client = AsyncClient::connect(b.runtime_dir()).await.unwrap();
            let gets = ["one", "two", "three"].map(|name| {
                let (client, file) = (client.clone(), File::create(b.file(name)).unwrap());
                tokio::spawn(async move { client.get(content, GetOptions::default(), file).await })
            });
            for get in gets {
                get.await.unwrap().unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
        });
        for name in ["one", "two", "three"] {
            assert_eq!(sample::content_id(&b.file(name)).unwrap(), content.to_string());
        }
        // Workers publish what they count a few times a second.
        std::thread::sleep(Duration::from_millis(600));
        assert_eq!(b.counted("fetched_bytes") - before, 12 * CHUNK as u64, "round {round}: each chunk came once");
    }
}

#[test]
fn who_takes_chunks_in_any_order_follows_what_comes_and_who_reads_in_order_asks() {
    let (a, b) = (Node::start(NodeOptions::default()), Node::start(NodeOptions::default()));
    a.befriend(&b);
    let client = Client::connect(&b.runtime_dir()).unwrap();
    let (mut read, mut followed) = (0, 0);
    for (seed, in_order) in [(1, false), (2, true)] {
        let source = a.file("source");
        sample::write_file(&source, 12 * CHUNK as u64 + 5, seed).unwrap();
        let content = a.put(&source).parse().unwrap();
        let got = File::create(b.file("got")).unwrap();
        if in_order {
            let mut transfer = client.stream(content, GetOptions::default()).unwrap();
            transfer.write_to_stream(&got, &mut |_| true).unwrap();
        } else {
            // A part: what follows is only that.
            let part = GetOptions { range: Some(CHUNK as u64 - 1..9 * CHUNK as u64 + 1), ..GetOptions::default() };
            let mut delivered = Vec::new();
            let mut transfer = client.get(content, part).unwrap();
            let mut note = |_: &Record<'_>, _, start| {
                delivered.push(start / CHUNK as u64);
                Ok(())
            };
            transfer.run(&mut |_| true, &mut note).unwrap();
            delivered.sort_unstable();
            assert_eq!(delivered, (0..10).collect::<Vec<_>>(), "each chunk once");
            read += 10 * CHUNK as u64;
            client.get(content, GetOptions::default()).unwrap().write_to_file(&got, &mut |_| true).unwrap();
        }
        assert_eq!(sample::content_id(&b.file("got")).unwrap(), content.to_string());
        // Workers publish what they count a few times a second.
        let deadline = Instant::now() + Duration::from_secs(10);
        read += 12 * CHUNK as u64 + 5;
        while b.counted("read_bytes") < read {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
        }
        if in_order {
            assert_eq!(b.counted("chunks_followed"), followed);
        } else {
            followed = b.counted("chunks_followed");
            assert!((1..=13).contains(&followed), "{followed}");
        }
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn ask(address: &str, line: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("{line}\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn value(page: &str, name: &str) -> u64 {
    let line = page.lines().find(|line| line.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("no {name}"));
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn metrics_are_prometheus_text_and_count_what_happened() {
    let address = format!("127.0.0.1:{}", free_port());
    let node =
        Node::start(NodeOptions { arguments: vec!["--metrics".into(), address.clone()], ..NodeOptions::default() });
    let source = node.file("source");
    sample::write_file(&source, 3 * CHUNK as u64, 3).unwrap();
    let _ = node.put(&source);
    // Workers publish what they count a few times a second.
    let deadline = Instant::now() + Duration::from_secs(10);
    let answer = loop {
        let answer = ask(&address, "GET /metrics HTTP/1.1");
        if value(&answer, "pangea_put_bytes_total") > 0 || Instant::now() > deadline {
            break answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", page.len())), "{head}");
    assert_eq!(value(page, "pangea_put_bytes_total"), 3 * CHUNK as u64);
    assert_eq!((value(page, "pangea_contents"), value(page, "pangea_workers")), (1, 2));
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, number) = line.rsplit_once(' ').unwrap();
        let plain = name.split('{').next().unwrap();
        assert!(number.parse::<f64>().is_ok(), "{line}");
        assert!(page.contains(&format!("# TYPE {plain} ")), "{line} has no type");
    }
    // The totals of a worker that has gone stay.
    let _ = node.ctl(["worker", "drain", "0"]).ok();
    let _ = node.ctl(["worker", "drain", "1"]).ok();
    let page = ask(&address, "GET /metrics HTTP/1.1");
    assert_eq!(value(&page, "pangea_put_bytes_total"), 3 * CHUNK as u64);
    assert!(ask(&address, "GET / HTTP/1.1").starts_with("HTTP/1.1 404"));
}

#[test]
fn the_log_is_json_when_asked_and_says_which_worker_job_and_peer() {
    let options = NodeOptions {
        arguments: vec!["--log-format".into(), "json".into(), "--log".into(), "info,pangea_dataplane=debug".into()],
        ..NodeOptions::default()
    };
    let (a, mut b) = (Node::start(options.clone()), Node::start(options));
    a.befriend(&b);
    let source = a.file("source");
    sample::write_file(&source, 3 * CHUNK as u64, 3).unwrap();
    let id = a.put(&source);
    let _ = b.ctl(["get", &a.ticket(&id), "-o", "-"]).ok();
    b.stop();
    let spans_of = |node: &Node| -> Vec<String> {
        let lines: Vec<serde_json::Value> =
            node.log().lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
        assert!(lines.iter().all(|line| line["level"].is_string() && line["target"].is_string()));
        let names = lines.iter().map(|line| {
            let spans = line["spans"].as_array().map(Vec::as_slice).unwrap_or_default();
            spans.iter().map(|span| span["name"].as_str().unwrap()).collect::<Vec<_>>().join("/")
        });
        names.collect()
    };
    let (of_a, of_b) = (spans_of(&a), spans_of(&b));
    assert!(of_a.iter().any(|spans| spans == "worker/job"), "the put: {of_a:?}");
    assert!(of_a.iter().any(|spans| spans == "worker/peer"), "the peer that asks: {of_a:?}");
    assert!(of_b.iter().any(|spans| spans == "job"), "the fetch in the controller: {of_b:?}");
}
