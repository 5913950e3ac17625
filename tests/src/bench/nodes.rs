//! Two nodes at the ends of a path, and transfers between them as a program sees them.

use std::time::{Duration, Instant};

use pangea_client::{Client, ClientError, GetOptions, PutOptions};
use pangea_ipc::counter::Id;
use pangea_ipc::ids::ContentId;
use pangea_ipc::node::{PeerState, Request, Response, WorkerReport};

use super::flow::{Flow, cpu_seconds};
use crate::netlab::{Pair, Side};
use crate::{Node, NodeOptions, sample};

/// A session stands within this time.
const SESSION_TIME: Duration = Duration::from_secs(20);
/// How often a state that has no event for outsiders is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Workers publish every number at least this often, the slowest being those sampled from the transport.
const COUNTERS_SETTLE: Duration = Duration::from_millis(1400);
/// Bytes of a chunk.
const CHUNK: u64 = 256 << 10;

/// Nodes A and B, one worker each, that have admitted each other. Content goes from A to B.
pub struct Two {
    /// The one that has content.
    pub a: Node,
    /// The one that gets it.
    pub b: Node,
    /// A connection to A.
    pub client_a: Client,
    /// A connection to B.
    pub client_b: Client,
}

/// Sums of both nodes' counters at one time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Symbols sent.
    pub sent: u64,
    parity: u64,
    /// Of them, symbols that were asked for again.
    pub again: u64,
    received: u64,
    chunks_by_fec: u64,
    /// Chunks asked of their holder a second time.
    pub copies: u64,
    /// Data symbols rebuilt.
    pub repaired: u64,
}

impl Tally {
    /// What happened after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            sent: self.sent - earlier.sent,
            parity: self.parity - earlier.parity,
            again: self.again - earlier.again,
            received: self.received - earlier.received,
            chunks_by_fec: self.chunks_by_fec - earlier.chunks_by_fec,
            copies: self.copies - earlier.copies,
            repaired: self.repaired - earlier.repaired,
        }
    }

    /// Parity and symbols sent again, in percent of a content's bytes.
    #[must_use]
    pub fn redundancy_pct(&self, content: u64) -> f64 {
        self.pct((self.parity + self.again) as f64, content)
    }

    /// The same less the symbols that were lost.
    #[must_use]
    pub fn excess_pct(&self, content: u64) -> f64 {
        let lost = self.sent.saturating_sub(self.received) as f64;
        self.pct((self.parity + self.again) as f64 - lost, content)
    }

    fn pct(&self, symbols: f64, content: u64) -> f64 {
        let data = self.sent.saturating_sub(self.parity + self.again);
        if data == 0 {
            return symbols; // 0, unless something is very wrong
        }
        // Chunks that came by stream had no redundancy.
        let by_fec = (self.chunks_by_fec * CHUNK).min(content) as f64 / content as f64;
        symbols / data as f64 * by_fec * 100.0
    }
}

impl Two {
    /// Starts both nodes at the ends of a pair; returns when their session stands.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(pair: &Pair) -> Self {
        let node = |side| {
            Node::start(NodeOptions {
                workers: 1,
                listen: format!("{}:0", pair.address(side)),
                namespace: Some(pair.name(side).to_owned()),
                ..NodeOptions::default()
            })
        };
        let (a, b) = (node(Side::A), node(Side::B));
        a.befriend(&b);
        let client_a = Client::connect(&a.runtime_dir()).unwrap();
        let client_b = Client::connect(&b.runtime_dir()).unwrap();
        let two = Self { a, b, client_a, client_b };
        two.await_session();
        two
    }

    fn await_session(&self) {
        for client in [&self.client_a, &self.client_b] {
            wait_until("a session", || match client.call(Request::Peers) {
                Ok(Response::Peers(peers)) => {
                    peers.iter().any(|peer| peer.state == PeerState::Active && peer.workers > 0)
                }
                _ => false,
            });
        }
    }

    /// Pins both workers, each to a CPU of its own as on two machines.
    pub fn pin(&self) {
        for (client, cpu) in [(&self.client_a, 0), (&self.client_b, 1)] {
            client.call(Request::PolicySet(vec![format!("workers.cpus={cpu}")])).unwrap();
        }
    }

    /// Changes one value of the policy at both.
    pub fn set_policy(&self, assignment: &str) {
        for client in [&self.client_a, &self.client_b] {
            client.call(Request::PolicySet(vec![assignment.to_owned()])).unwrap();
        }
    }

    /// Puts fresh content into A.
    #[must_use]
    pub fn put(&self, bytes: u64, seed: u64) -> ContentId {
        let path = self.a.file("source");
        sample::write_file(&path, bytes, seed).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let options = PutOptions { name: format!("content-{seed}"), size: Some(bytes) };
        let content = self.client_a.put(&file, options, &mut |_| true).unwrap().content;
        std::fs::remove_file(&path).unwrap();
        content
    }

    /// Gets content at B, until it is whole, verified and synced or `until` has passed.
    #[must_use]
    pub fn get(&self, content: ContentId, until: Option<Duration>) -> Flow {
        get(&self.client_b, content, until)
    }

    /// Processor seconds that A's worker, B's worker and this program have taken so far.
    #[must_use]
    pub fn cpu(&self) -> [f64; 3] {
        let pids = [worker(&self.client_a).pid, worker(&self.client_b).pid, std::process::id()];
        pids.map(cpu_seconds)
    }

    /// Ends node A in an orderly way and starts it again, at another port; returns when B knows its new worker.
    pub fn restart_a(&mut self) {
        assert_eq!(self.a.stop(), Some(0), "{}", self.a.log());
        self.a.restart_controller();
        self.a.befriend(&self.b);
        self.client_a = Client::connect(&self.a.runtime_dir()).unwrap();
        self.await_session();
        // The news of its key travels one way over the session; nothing at B shows when it has come.
        std::thread::sleep(Duration::from_secs(1));
    }

    /// Both nodes' counters, when they have stopped moving.
    #[must_use]
    pub fn tally(&self) -> Tally {
        std::thread::sleep(COUNTERS_SETTLE);
        let (a, b) = (worker(&self.client_a), worker(&self.client_b));
        let of = |worker: &WorkerReport, id: Id| worker.counters.get(id as usize).map_or(0, |(_, value)| *value);
        Tally {
            sent: of(&a, Id::SymbolsSent),
            parity: of(&a, Id::SymbolsParitySent),
            again: of(&a, Id::SymbolsSentAgain),
            // Symbols of a chunk that is whole already arrived all the same.
            received: of(&b, Id::SymbolsReceived) + of(&b, Id::SymbolsLate),
            chunks_by_fec: of(&b, Id::ChunksByFec),
            copies: of(&a, Id::RequestsByCopy),
            repaired: of(&b, Id::SymbolsRepaired),
        }
    }
}

/// Gets content from a node, touching every byte.
#[must_use]
pub fn get(client: &Client, content: ContentId, until: Option<Duration>) -> Flow {
    let mut space = vec![0; CHUNK as usize];
    let mut touched = 0_u64;
    let started = Instant::now();
    let mut samples = vec![(Duration::ZERO, 0)];
    let mut end = "";
    let outcome = client.get(content, GetOptions::default()).and_then(|mut transfer| {
        transfer.run(
            &mut |progress| {
                let now = started.elapsed();
                samples.push((now, progress.delivered));
                until.is_none_or(|until| now < until)
            },
            &mut |record, _, _| {
                let part = &mut space[..record.len()];
                record.copy_to(part);
                touched = touched.wrapping_add(touch(part));
                Ok(())
            },
        )?;
        samples.push((started.elapsed(), transfer.size()));
        Ok(())
    });
    let took = started.elapsed();
    let failure = match outcome {
        Ok(()) => None,
        Err(ClientError::Interrupted) => {
            end = "stopped";
            None
        }
        Err(error) => Some(error.to_string()),
    };
    std::hint::black_box(touched);
    let bytes = samples.last().map_or(0, |sample| sample.1);
    Flow { bytes, took, samples, whole: failure.is_none() && end.is_empty(), failure }
}

/// Reads every byte.
pub(super) fn touch(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).fold(0, u64::wrapping_add)
}

fn worker(client: &Client) -> WorkerReport {
    match client.call(Request::Workers).unwrap() {
        Response::Workers(workers) => workers.into_iter().next().expect("one worker"),
        other => panic!("{other:?}"),
    }
}

fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SESSION_TIME;
    while !so() {
        assert!(Instant::now() < deadline, "no {what} in {SESSION_TIME:?}");
        std::thread::sleep(LOOK_AGAIN);
    }
}
