//! The node store: who is admitted, where they are, how good the path is, and when to dial and to ping.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pangea_ipc::address::{Endpoint, PeerAddress};
use pangea_ipc::ids::{NodeId, WorkerIndex, WorkerKey};
use pangea_ipc::node::{LISTING_PAGE_MAX, PeerReport, PeerState};
use pangea_ipc::worker::{KnownPath, PINS_MAX, PathSample, Pin};

/// Peers remembered at most; further ones are refused.
pub const PEERS_MAX: usize = LISTING_PAGE_MAX;
/// Time between pings of a session.
pub const PING_EVERY: Duration = Duration::from_secs(5);
/// Pings differ from that by this share, so that the sessions of a node do not ping in step.
const PING_JITTER: f64 = 0.2;
/// A ping that is not answered within this time is missed.
pub const PING_TIME: Duration = Duration::from_secs(5);
/// Missed pings in a row after which a peer counts as degraded.
const DEGRADED_AFTER: u32 = 1;
/// Missed pings in a row after which its session is given up.
pub const DEAD_AFTER: u32 = 3;
/// Loss above which a path counts as degraded, in hundredths of a percent.
const DEGRADED_LOSS_BP: f64 = 1000.0;
/// First pause between tries to reach a peer.
const DIAL_PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest such pause.
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Weight of a new round-trip sample (RFC 6298).
const RTT_WEIGHT: f64 = 0.125;
/// Weight of a new jitter sample (RFC 3550).
const JITTER_WEIGHT: f64 = 1.0 / 16.0;
/// Workers that got something from a node within this time did so together.
const TOGETHER: Duration = Duration::from_secs(3);
/// Weight of a new loss or throughput sample.
const PATH_WEIGHT: f64 = 0.25;

#[derive(Debug, Default)]
struct Neighbour {
    address: Option<SocketAddr>,
    /// May open sessions to us and be served: configured or added by the operator.
    admitted: bool,
    has_session: bool,
    /// When its session ended; its workers stay pinned for a while.
    lost_at: Option<Instant>,
    /// When our workers last sent something to its workers, or got something from them.
    worked_at: Option<Instant>,
    had_session: bool,
    trouble: String,
    workers: Vec<Endpoint>,
    /// The keys of its workers: as it told, or as our own workers remember from an earlier controller.
    keys: Vec<WorkerKey>,
    missed_pings: u32,
    failed_dials: u32,
    last_rtt: Option<f64>,
    latency_us: Option<f64>,
    jitter_us: Option<f64>,
    loss_bp: Option<f64>,
    /// Bytes a second that each of our workers got from it, and when that was last seen.
    rates: BTreeMap<WorkerIndex, (f64, Instant)>,
    /// What the path to it carried when it was last used.
    known: Option<KnownPath>,
    sampled_at: Option<Instant>,
    /// Times that it sent wrong bytes or broke the protocol.
    offences: u32,
}

/// All nodes that are known.
#[derive(Debug, Default)]
pub struct Neighbours {
    nodes: BTreeMap<NodeId, Neighbour>,
    /// What a path carried is not what it was when [`paths_to_store`](Self::paths_to_store) was called last.
    paths_changed: bool,
}

/// There are as many peers as a node remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{PEERS_MAX} peers are known, the most a node remembers; remove one with: pangeactl peer rm NODEID")]
pub struct TooManyPeers;

impl Neighbours {
    /// The operator admits a node.
    ///
    /// # Errors
    /// [`TooManyPeers`].
    pub fn admit(&mut self, peer: PeerAddress) -> Result<(), TooManyPeers> {
        let node = self.known(peer)?;
        node.admitted = true;
        Ok(())
    }

    /// A node that may be asked, though it is not admitted here: named by a ticket, a user or another peer.
    ///
    /// # Errors
    /// [`TooManyPeers`].
    pub fn note(&mut self, peer: PeerAddress) -> Result<(), TooManyPeers> {
        self.known(peer).map(|_| ())
    }

    fn known(&mut self, peer: PeerAddress) -> Result<&mut Neighbour, TooManyPeers> {
        if self.nodes.len() >= PEERS_MAX && !self.nodes.contains_key(&peer.node) {
            // Those that were only asked in passing give way.
            let passing = self.nodes.iter().find(|(_, node)| !node.admitted && !node.has_session).map(|(id, _)| *id);
            self.nodes.remove(&passing.ok_or(TooManyPeers)?);
        }
        let node = self.nodes.entry(peer.node).or_default();
        if peer.address.is_some() {
            node.address = peer.address;
            node.failed_dials = 0;
        }
        Ok(node)
    }

    /// The operator forgets a node; says whether it was known.
    pub fn remove(&mut self, node: NodeId) -> bool {
        let removed = self.nodes.remove(&node);
        self.paths_changed |= removed.as_ref().is_some_and(|known| known.known.is_some());
        removed.is_some()
    }

    /// Forgets a node, unless the operator admits it or it has a session.
    pub fn forget_passing(&mut self, node: NodeId) {
        if self.nodes.get(&node).is_some_and(|known| !known.admitted && !known.has_session) {
            self.nodes.remove(&node);
        }
    }

    /// Whether it is remembered, admitted or not.
    #[must_use]
    pub fn is_known(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    /// Whether a node may open a session and be served.
    #[must_use]
    pub fn is_admitted(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|known| known.admitted)
    }

    /// Where a node is dialled.
    #[must_use]
    pub fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.nodes.get(&node)?.address
    }

    /// Nodes that the operator admitted and that have an address: sessions to them are kept up.
    #[must_use]
    pub fn to_keep_up(&self) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.admitted && node.address.is_some()).map(|(id, _)| *id).collect()
    }

    /// Nodes without a session whose address is known: they may be dialled, whether or not that failed before.
    pub fn without_session(&self) -> impl Iterator<Item = PeerAddress> + '_ {
        let away = self.nodes.iter().filter(|(_, node)| !node.has_session);
        away.filter_map(|(id, node)| Some(PeerAddress { node: *id, address: Some(node.address?) }))
    }

    /// Whether a node without a session may be heard of soon: it is dialled and has not failed to answer yet, or its
    /// session ended less than `recently` ago.
    #[must_use]
    pub fn may_come(&self, recently: Duration, now: Instant) -> bool {
        self.nodes.values().filter(|node| node.admitted && !node.has_session).any(|node| {
            let first_dial = node.address.is_some() && !node.had_session && node.failed_dials == 0;
            first_dial || node.lost_at.is_some_and(|at| now.saturating_duration_since(at) < recently)
        })
    }

    /// A session stands.
    pub fn handle_session(&mut self, node: NodeId) {
        let known = self.nodes.entry(node).or_default();
        known.has_session = true;
        known.had_session = true;
        known.lost_at = None;
        known.missed_pings = 0;
        known.failed_dials = 0;
        known.trouble.clear();
    }

    /// A session has ended.
    pub fn handle_session_end(&mut self, node: NodeId, why: &str, now: Instant) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.has_session = false;
            known.lost_at = Some(now);
            why.clone_into(&mut known.trouble);
        }
    }

    /// Why there is no session with a node; `None` = there is one, or it was never tried.
    #[must_use]
    pub fn trouble(&self, node: NodeId) -> Option<&str> {
        let known = self.nodes.get(&node).filter(|known| !known.has_session && !known.trouble.is_empty());
        known.map(|known| known.trouble.as_str())
    }

    /// A node sent wrong bytes or broke the protocol.
    pub fn handle_offence(&mut self, node: NodeId) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.offences = known.offences.saturating_add(1);
        }
    }

    /// A node could not be reached; says how long to wait before the next try. `chance`: uniform in 0..1.
    pub fn handle_dial_failed(&mut self, node: NodeId, why: &str, chance: f64) -> Duration {
        let failed = self.nodes.get_mut(&node).map_or(0, |known| {
            why.clone_into(&mut known.trouble);
            known.failed_dials += 1;
            known.failed_dials - 1
        });
        (DIAL_PAUSE_MIN * (1 << failed.min(10))).min(DIAL_PAUSE_MAX).mul_f64(0.75 + 0.5 * chance.clamp(0.0, 1.0))
    }

    /// How long until the next ping. `chance`: uniform in 0..1.
    #[must_use]
    pub fn ping_pause(chance: f64) -> Duration {
        PING_EVERY.mul_f64(1.0 - PING_JITTER + 2.0 * PING_JITTER * chance.clamp(0.0, 1.0))
    }

    /// A ping was answered.
    pub fn handle_pong(&mut self, node: NodeId, rtt: Duration, now: Instant) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        let rtt_us = rtt.as_secs_f64() * 1e6;
        known.missed_pings = 0;
        smooth(&mut known.latency_us, rtt_us, RTT_WEIGHT);
        if let Some(last) = known.last_rtt.replace(rtt_us) {
            smooth(&mut known.jitter_us, (rtt_us - last).abs(), JITTER_WEIGHT);
        }
        known.sampled_at = Some(now);
    }

    /// A ping was missed; says whether the session is to be given up.
    pub fn handle_ping_missed(&mut self, node: NodeId) -> bool {
        let Some(known) = self.nodes.get_mut(&node) else { return true };
        known.missed_pings += 1;
        known.missed_pings >= DEAD_AFTER
    }

    /// A worker has sampled a path to a node.
    pub fn handle_path(&mut self, worker: WorkerIndex, node: NodeId, sample: PathSample, now: Instant) {
        /// Fewer packets say nothing of loss.
        const PACKETS_MIN: u64 = 32;
        /// Slower than this nothing was under way that would show what the path carries.
        const BYTES_MIN: u64 = 64 << 10;
        let Some(known) = self.nodes.get_mut(&node) else { return };
        if sample.packets_sent >= PACKETS_MIN {
            let share = sample.packets_lost.min(sample.packets_sent) as f64 / sample.packets_sent as f64;
            smooth(&mut known.loss_bp, share * 10_000.0, PATH_WEIGHT);
            known.sampled_at = Some(now);
        }
        if sample.bytes_received >= BYTES_MIN && sample.elapsed_ms > 0 {
            let rate = sample.bytes_received as f64 * 1000.0 / f64::from(sample.elapsed_ms);
            let mut smoothed = known.rates.get(&worker).map(|(rate, _)| *rate);
            smooth(&mut smoothed, rate, PATH_WEIGHT);
            known.rates.insert(worker, (smoothed.unwrap_or(rate), now));
            known.sampled_at = Some(now);
        }
        if sample.known.is_some() {
            self.paths_changed |= known.admitted && known.known != sample.known;
            known.known = sample.known;
        }
        known.worked_at = Some(now);
    }

    /// What the path to a node carried before this store was made.
    pub fn restore_path(&mut self, node: NodeId, path: KnownPath) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.known = Some(path);
        }
    }

    /// What the paths to admitted nodes carried when they were last used; `None` when that is as at the last call.
    pub fn paths_to_store(&mut self) -> Option<Vec<(NodeId, KnownPath)>> {
        let path = |(id, node): (&NodeId, &Neighbour)| Some((*id, node.known.filter(|_| node.admitted)?));
        std::mem::take(&mut self.paths_changed).then(|| self.nodes.iter().filter_map(path).collect())
    }

    /// A node told of its workers.
    pub fn set_workers(&mut self, node: NodeId, workers: Vec<Endpoint>) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.keys = workers.iter().map(|worker| worker.key).collect();
            known.workers = workers;
        }
    }

    /// A worker that has outlived an earlier controller says whose keys that one had it let in. Those of admitted nodes
    /// that have not been here since count as if their session had ended just now.
    pub fn restore_pins(&mut self, pins: &[Pin], now: Instant) {
        for pin in pins {
            let Some(known) = self.nodes.get_mut(&pin.node) else { continue };
            if known.admitted && !known.had_session {
                known.lost_at.get_or_insert(now);
                if !known.keys.contains(&pin.key) {
                    known.keys.push(pin.key);
                }
            }
        }
    }

    /// A node's workers, as it told; also for a while after its session ended.
    #[must_use]
    pub fn workers(&self, node: NodeId) -> &[Endpoint] {
        self.nodes.get(&node).map_or(&[], |known| &known.workers)
    }

    /// The keys that may connect: those of admitted nodes with a session, or without one for less than `grace`, in which
    /// nothing went on between its workers and ours: what does goes on, whatever has become of its controller. Second: when
    /// the next of them expires.
    #[must_use]
    pub fn pins(&self, grace: Duration, now: Instant) -> (Vec<Pin>, Option<Instant>) {
        let mut pins = Vec::new();
        let mut next_expiry: Option<Instant> = None;
        for (node, known) in self.nodes.iter().filter(|(_, known)| known.admitted) {
            if !known.has_session {
                let last = known.lost_at.map(|lost| known.worked_at.map_or(lost, |worked| worked.max(lost)));
                let Some(end) = last.map(|at| at + grace).filter(|end| *end > now) else { continue };
                next_expiry = Some(next_expiry.map_or(end, |next| next.min(end)));
            }
            pins.extend(known.keys.iter().map(|key| Pin { key: *key, node: *node, known: known.known }));
        }
        pins.truncate(PINS_MAX);
        (pins, next_expiry)
    }

    /// The whole store.
    #[must_use]
    pub fn reports(&self, now: Instant) -> Vec<PeerReport> {
        let report = |(node, known): (&NodeId, &Neighbour)| PeerReport {
            node: *node,
            address: known.address,
            state: known.state(),
            trouble: known.trouble.clone(),
            workers: u16::try_from(known.workers.len()).unwrap_or(u16::MAX),
            // Float-to-integer casts saturate.
            latency_us: known.latency_us.map(|value| value as u32),
            jitter_us: known.jitter_us.map(|value| value as u32),
            loss_bp: known.loss_bp.map(|value| value as u16),
            throughput_bytes_per_s: known.throughput().map(|value| value as u64),
            offences: known.offences,
            sample_age_ms: known
                .sampled_at
                .map(|at| u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX)),
        };
        self.nodes.iter().map(report).collect()
    }
}

impl Neighbour {
    /// Bytes a second that all workers together got from it when it last sent something.
    fn throughput(&self) -> Option<f64> {
        let last = self.rates.values().map(|(_, at)| *at).max()?;
        let together = self.rates.values().filter(|(_, at)| *at + TOGETHER >= last);
        Some(together.map(|(rate, _)| rate).sum())
    }

    fn state(&self) -> PeerState {
        let bad_path = self.loss_bp.is_some_and(|loss| loss > DEGRADED_LOSS_BP);
        match (self.has_session, self.had_session) {
            (true, _) if self.missed_pings >= DEGRADED_AFTER || bad_path => PeerState::Degraded,
            (true, _) => PeerState::Active,
            (false, true) => PeerState::Dead,
            (false, false) => PeerState::Unknown,
        }
    }
}

fn smooth(value: &mut Option<f64>, sample: f64, weight: f64) {
    *value = Some(value.map_or(sample, |value| value + weight * (sample - value)));
}

/// Of two sessions between the same nodes that were opened at once, the one to keep: that which the smaller id opened.
/// Both nodes decide alike.
#[must_use]
pub fn is_kept(own: NodeId, other: NodeId, opened_here: bool) -> bool {
    opened_here == (own < other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId([1; 32]);
    const W: WorkerIndex = WorkerIndex(0);
    const B: NodeId = NodeId([2; 32]);

    #[allow(clippy::disallowed_methods, reason = "any instant will do as the start of a test")]
    fn start() -> Instant {
        Instant::now()
    }

    fn peer(node: NodeId) -> PeerAddress {
        PeerAddress { node, address: Some("127.0.0.1:1".parse().unwrap()) }
    }

    fn worker(n: u8) -> Endpoint {
        Endpoint { worker: WorkerIndex(0), address: "127.0.0.1:2".parse().unwrap(), key: WorkerKey([n; 32]) }
    }

    #[test]
    fn only_nodes_that_the_operator_named_are_admitted_and_pinned() {
        let now = start();
        let mut store = Neighbours::default();
        store.note(peer(A)).unwrap();
        store.handle_session(A);
        store.set_workers(A, vec![worker(1)]);
        assert!(!store.is_admitted(A) && !store.is_admitted(B));
        assert_eq!(store.pins(Duration::from_secs(60), now).0, []);
        store.admit(peer(A)).unwrap();
        assert!(store.is_admitted(A));
        assert_eq!(store.pins(Duration::from_secs(60), now).0, [Pin { key: WorkerKey([1; 32]), node: A, known: None }]);
        assert!(store.remove(A) && !store.is_admitted(A) && !store.remove(A));
    }

    #[test]
    fn nodes_without_a_session_may_be_dialled_where_their_address_is_known() {
        let mut store = Neighbours::default();
        store.note(peer(A)).unwrap();
        store.admit(PeerAddress { node: B, address: None }).unwrap();
        assert_eq!(store.without_session().collect::<Vec<_>>(), [peer(A)]);
        store.admit(peer(B)).unwrap();
        let _ = store.handle_dial_failed(B, "no answer", 0.5);
        assert_eq!(store.without_session().collect::<Vec<_>>(), [peer(A), peer(B)]);
        store.handle_session(A);
        assert_eq!(store.without_session().collect::<Vec<_>>(), [peer(B)]);
        store.handle_session_end(A, "gone", start());
        assert_eq!(store.without_session().count(), 2);
    }

    #[test]
    fn what_a_path_carried_is_stored_when_it_changes_and_comes_back_with_the_pins() {
        let now = start();
        let path = KnownPath { rate: 12_500_000, rtt_us: 50_000, loss_ppm: 0 };
        let sample = |known| PathSample {
            rtt_us: 0,
            packets_sent: 0,
            packets_lost: 0,
            bytes_received: 0,
            elapsed_ms: 500,
            known,
        };
        let mut store = Neighbours::default();
        store.admit(peer(A)).unwrap();
        store.note(peer(B)).unwrap();
        store.handle_path(W, B, sample(Some(path)), now);
        store.handle_path(W, A, sample(None), now);
        assert_eq!(store.paths_to_store(), None, "nothing of an admitted node");
        store.handle_path(W, A, sample(Some(path)), now);
        assert_eq!(store.paths_to_store(), Some(vec![(A, path)]));
        store.handle_path(W, A, sample(Some(path)), now);
        store.handle_path(W, A, sample(None), now);
        assert_eq!(store.paths_to_store(), None, "as before");
        store.remove(A);
        assert_eq!(store.paths_to_store(), Some(vec![]));

        let mut later = Neighbours::default();
        later.admit(peer(A)).unwrap();
        later.restore_path(A, path);
        later.restore_path(B, path);
        later.handle_session(A);
        later.set_workers(A, vec![worker(1)]);
        let pins = later.pins(Duration::from_secs(60), now).0;
        assert_eq!(pins, [Pin { key: WorkerKey([1; 32]), node: A, known: Some(path) }]);
        assert!(!later.is_known(B));
    }

    #[test]
    fn pins_outlive_a_session_by_the_grace_and_no_longer() {
        let now = start();
        let grace = Duration::from_secs(60);
        let mut store = Neighbours::default();
        store.admit(peer(A)).unwrap();
        store.handle_session(A);
        store.set_workers(A, vec![worker(1)]);
        store.handle_session_end(A, "gone", now);
        let (pins, expiry) = store.pins(grace, now + Duration::from_secs(59));
        assert_eq!((pins.len(), expiry), (1, Some(now + grace)));
        assert_eq!(store.pins(grace, now + grace), (vec![], None));
        assert_eq!(store.pins(Duration::ZERO, now), (vec![], None));
    }

    #[test]
    fn pins_hold_as_long_as_something_goes_on_between_workers() {
        let now = start();
        let grace = Duration::from_secs(60);
        let busy =
            PathSample { rtt_us: 0, packets_sent: 9, packets_lost: 0, bytes_received: 0, elapsed_ms: 500, known: None };
        let mut store = Neighbours::default();
        store.admit(peer(A)).unwrap();
        store.handle_path(W, A, busy, now);
        assert_eq!(store.pins(grace, now).0, [], "of who was never here nothing is known");
        store.handle_session(A);
        store.set_workers(A, vec![worker(1)]);
        store.handle_session_end(A, "gone", now);
        let later = now + Duration::from_secs(50);
        store.handle_path(W, A, busy, later);
        assert_eq!(store.pins(grace, now + grace).1, Some(later + grace));
        assert_eq!(store.pins(grace, later + grace).0, []);
        assert!(!store.may_come(Duration::from_secs(10), later), "its controller has been away for long");
    }

    #[test]
    fn the_pins_of_an_earlier_controller_hold_for_the_grace_and_for_admitted_nodes_only() {
        let now = start();
        let grace = Duration::from_secs(60);
        let pin = |node, n| Pin { key: WorkerKey([n; 32]), node, known: None };
        let mut store = Neighbours::default();
        store.admit(peer(A)).unwrap();
        store.note(peer(B)).unwrap();
        store.restore_pins(&[pin(A, 1), pin(A, 2), pin(B, 3)], now);
        store.restore_pins(&[pin(A, 1), pin(A, 2), pin(B, 3)], now + Duration::from_secs(1));
        assert_eq!(store.pins(grace, now), (vec![pin(A, 1), pin(A, 2)], Some(now + grace)));
        assert_eq!(store.pins(grace, now + grace).0, []);
        assert!(store.may_come(Duration::from_secs(10), now), "A may be on its way");
        // Once it is here, what it says itself is what counts.
        store.handle_session(A);
        assert_eq!(store.pins(grace, now), (vec![pin(A, 1), pin(A, 2)], None));
        store.set_workers(A, vec![worker(4)]);
        store.restore_pins(&[pin(A, 1)], now);
        assert_eq!(store.pins(grace, now), (vec![pin(A, 4)], None));
    }

    #[test]
    fn a_node_is_waited_for_until_it_has_failed_to_answer_or_been_away_too_long() {
        let now = start();
        let recently = Duration::from_secs(10);
        let mut store = Neighbours::default();
        assert!(!store.may_come(recently, now), "nobody");
        store.note(peer(B)).unwrap();
        store.admit(PeerAddress { node: B, address: None }).unwrap();
        store.admit(PeerAddress { node: A, address: None }).unwrap();
        assert!(store.may_come(recently, now), "B is dialled");
        store.handle_dial_failed(B, "nobody there", 0.5);
        assert!(!store.may_come(recently, now), "B does not answer, A has no address");
        store.handle_session(A);
        assert!(!store.may_come(recently, now), "A is here already");
        store.handle_session_end(A, "gone", now);
        assert!(store.may_come(recently, now + Duration::from_secs(9)), "A may only be restarting");
        assert!(!store.may_come(recently, now + recently));
    }

    #[test]
    fn states_follow_sessions_and_pings() {
        let now = start();
        let mut store = Neighbours::default();
        store.admit(peer(A)).unwrap();
        let state = |store: &Neighbours| store.reports(now)[0].state;
        assert_eq!(state(&store), PeerState::Unknown);
        store.handle_session(A);
        assert_eq!(state(&store), PeerState::Active);
        assert!(!store.handle_ping_missed(A));
        assert_eq!(state(&store), PeerState::Degraded);
        store.handle_pong(A, Duration::from_millis(10), now);
        assert_eq!(state(&store), PeerState::Active);
        assert_eq!(
            [store.handle_ping_missed(A), store.handle_ping_missed(A), store.handle_ping_missed(A)],
            [false, false, true]
        );
        store.handle_session_end(A, "3 pings missed", now);
        assert_eq!(state(&store), PeerState::Dead);
        assert_eq!(store.reports(now)[0].trouble, "3 pings missed");
    }

    #[test]
    fn figures_are_smoothed_and_have_an_age() {
        let now = start();
        let mut store = Neighbours::default();
        store.admit(peer(A)).unwrap();
        assert_eq!(store.reports(now)[0].sample_age_ms, None);
        store.handle_pong(A, Duration::from_millis(10), now);
        store.handle_pong(A, Duration::from_millis(18), now);
        let sample = PathSample {
            rtt_us: 0,
            packets_sent: 1000,
            packets_lost: 50,
            bytes_received: 1 << 20,
            elapsed_ms: 500,
            known: None,
        };
        store.handle_path(W, A, sample, now);
        store.handle_path(W, A, PathSample { packets_sent: 10, packets_lost: 10, bytes_received: 10, ..sample }, now);
        let report = &store.reports(now + Duration::from_secs(2))[0];
        assert_eq!((report.latency_us, report.jitter_us), (Some(11_000), Some(8_000)));
        assert_eq!((report.loss_bp, report.throughput_bytes_per_s), (Some(500), Some(2 << 20)));
        store.handle_path(WorkerIndex(1), A, sample, now + TOGETHER);
        assert_eq!(store.reports(now)[0].throughput_bytes_per_s, Some(4 << 20), "of both workers");
        store.handle_path(WorkerIndex(1), A, sample, now + TOGETHER * 3);
        assert_eq!(store.reports(now)[0].throughput_bytes_per_s, Some(2 << 20), "the other has got nothing for long");
        assert_eq!(report.sample_age_ms, Some(2000));
        assert_eq!(report.offences, 0);
        store.handle_offence(A);
        assert_eq!(store.reports(now)[0].offences, 1);
    }

    #[test]
    fn pauses_grow_and_differ() {
        let mut store = Neighbours::default();
        store.admit(peer(A)).unwrap();
        let pauses: Vec<_> = (0..9).map(|_| store.handle_dial_failed(A, "refused", 0.5).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert_eq!(Neighbours::ping_pause(0.0), Duration::from_secs(4));
        assert_eq!(Neighbours::ping_pause(1.0), Duration::from_secs(6));
    }

    #[test]
    fn of_two_sessions_both_sides_keep_the_same() {
        // Opened by A: seen from A "here", from B "there".
        assert_eq!(is_kept(A, B, true), is_kept(B, A, false));
        assert_eq!(is_kept(A, B, false), is_kept(B, A, true));
        assert_ne!(is_kept(A, B, true), is_kept(A, B, false));
    }

    #[test]
    fn the_store_is_bounded_and_passing_acquaintances_give_way() {
        let mut store = Neighbours::default();
        let unique = |n: usize| {
            let mut bytes = [7; 32];
            bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
            NodeId(bytes)
        };
        for n in 0..PEERS_MAX {
            store.note(peer(unique(n))).unwrap();
        }
        store.admit(peer(unique(PEERS_MAX))).unwrap();
        assert_eq!(store.reports(start()).len(), PEERS_MAX);
        for n in 0..PEERS_MAX {
            let _ = store.admit(peer(unique(n)));
        }
        assert_eq!(store.admit(peer(NodeId([0xee; 32]))), Err(TooManyPeers));
    }
}
