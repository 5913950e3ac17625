//! Prometheus text on an optional local address: the sums over all workers, the retired ones included, and peers.

use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pangea_ipc::counter;
use pangea_ipc::node::{PeerReport, PeerState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::node::Node;

/// Requests answered at once at most.
const REQUESTS_MAX: usize = 8;
/// Bytes of a request that are read at most; ours is one short line.
const REQUEST_LEN_MAX: usize = 4096;
/// A scraper has asked, and taken its answer, within this time.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// Serves until the node ends. Knows one page: `GET /metrics`.
pub async fn listen(node: Rc<Node>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let node = Rc::clone(&node);
        tokio::task::spawn_local(async move {
            // A scraper that is too slow, or gone, asks again.
            let _ = timeout(REQUEST_TIME, answer(&node, stream)).await;
            drop(place);
        });
    }
}

async fn answer(node: &Node, mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_LEN_MAX {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let (status, body) = if request.starts_with(b"GET /metrics ") {
        ("200 OK", text(node))
    } else {
        ("404 Not Found", "only GET /metrics is here\n".to_owned())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// The page.
#[must_use]
pub fn text(node: &Node) -> String {
    let mut out = String::new();
    let mut sums = node.retired.borrow().clone();
    sums.resize(counter::count(), 0);
    for worker in node.workers.borrow().values() {
        let values = worker.counters.as_ref().map(|view| view.read()).unwrap_or_default();
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = sum.saturating_add(value);
        }
    }
    for (counter, sum) in counter::ALL.iter().zip(sums) {
        one(&mut out, counter.name, counter.help, counter.grows, sum);
    }
    let counts = &node.counts;
    one(&mut out, "requests", "Requests of local programs.", true, counts.requests.get());
    one(&mut out, "programs_refused", "Local programs turned away: wrong user.", true, counts.programs_refused.get());
    one(&mut out, "nodes_refused", "Nodes refused at the Noise layer.", true, counts.peers_refused.get());
    one(&mut out, "handshakes_failed", "Noise handshakes that failed.", true, counts.handshakes_failed.get());
    one(&mut out, "contents_evicted", "Contents evicted to make room.", true, counts.evicted.get());
    one(&mut out, "contents", "Contents here, at least in part.", false, node.catalog.borrow().count_here());
    one(&mut out, "store_bytes", "Bytes on disk and reserved.", false, node.catalog.borrow().used());
    one(&mut out, "workers", "Workers registered.", false, node.workers.borrow().len() as u64);
    one(&mut out, "policy_revision", "The policy in force.", false, node.policy.borrow().revision.0);
    let peers = node.neighbours.borrow().reports(Instant::now());
    let active = peers.iter().filter(|peer| matches!(peer.state, PeerState::Active | PeerState::Degraded)).count();
    one(&mut out, "peers_active", "Peers with a session.", false, active as u64);
    for (name, kind, help, figure) in PEER_FIGURES {
        let _ = writeln!(out, "# HELP pangea_peer_{name} {help}\n# TYPE pangea_peer_{name} {kind}");
        for (peer, value) in peers.iter().filter_map(|peer| Some((peer.node, figure(peer)?))) {
            let _ = writeln!(out, "pangea_peer_{name}{{peer=\"{peer}\"}} {value}");
        }
    }
    out
}

/// Name, kind and meaning of a figure of each peer, and where it is in the report; none before the first sample.
type PeerFigure = (&'static str, &'static str, &'static str, fn(&PeerReport) -> Option<f64>);

const PEER_FIGURES: [PeerFigure; 4] = [
    ("latency_seconds", "gauge", "Smoothed round-trip time of pings.", |peer| Some(f64::from(peer.latency_us?) / 1e6)),
    ("loss_ratio", "gauge", "Smoothed share of packets to it that were lost.", |peer| {
        Some(f64::from(peer.loss_bp?) / 1e4)
    }),
    ("received_bytes_per_second", "gauge", "Smoothed rate of what came from it when something last did.", |peer| {
        Some(peer.throughput_bytes_per_s? as f64)
    }),
    ("offences_total", "counter", "Times it sent wrong bytes or broke the protocol.", |peer| {
        Some(f64::from(peer.offences))
    }),
];

fn one(out: &mut String, name: &str, help: &str, grows: bool, value: u64) {
    // Prometheus wants counters to end in _total. Writing to a string does not fail.
    let (suffix, kind) = if grows { ("_total", "counter") } else { ("", "gauge") };
    let _ = writeln!(out, "# HELP pangea_{name}{suffix} {help}\n# TYPE pangea_{name}{suffix} {kind}");
    let _ = writeln!(out, "pangea_{name}{suffix} {value}");
}
