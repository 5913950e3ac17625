//! Programs' requests: one arm for each [`Request`]. Jobs belong to the connection that asked for them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::future::LocalBoxFuture;
use pangea_ipc::address::PeerAddress;
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::JobId;
use pangea_ipc::node::{Opened, PeerState, Request, Response, StatusReport, WATCH_MS_MAX};
use pangea_ipc::rpc::{NodeService, check_peer, serve_node};
use pangea_ipc::worker::WORKERS_MAX;
use tokio::net::UnixListener;
use tokio::time::timeout;

use super::node::{Job, Node, count};
use super::{contents, get, policies, put, verify, workers};

/// Programs connected at once at most.
const PROGRAMS_MAX: usize = 256;

/// Takes programs in until the node ends.
pub async fn listen(node: Rc<Node>, listener: UnixListener) {
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(PROGRAMS_MAX));
    while let Ok((stream, _)) = listener.accept().await {
        if let Err(error) = check_peer(&stream) {
            count(&node.counts.programs_refused);
            tracing::warn!(%error, "a program was turned away");
            continue;
        }
        // The semaphore is never closed.
        let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else { return };
        let program = Rc::new(Program { node: Rc::clone(&node), jobs: RefCell::default() });
        let driver = serve_node(stream, Rc::clone(&program) as Rc<dyn NodeService>);
        tokio::task::spawn_local(async move {
            driver.await;
            drop(place);
            for job in program.jobs.take() {
                program.end(job);
            }
        });
    }
}

/// One program's connection.
struct Program {
    node: Rc<Node>,
    jobs: RefCell<BTreeSet<JobId>>,
}

impl NodeService for Program {
    fn call(self: Rc<Self>, request: Request) -> LocalBoxFuture<'static, Response> {
        count(&self.node.counts.requests);
        Box::pin(async move { self.answer(request).await.unwrap_or_else(Response::Failed) })
    }
}

impl Program {
    async fn answer(&self, request: Request) -> Result<Response, Failure> {
        let node = &self.node;
        Ok(match request {
            Request::Put { name, size } => self.opened(put::open(node, &name, size).await?),
            Request::Get { content, peers, range } => self.opened(get::open(node, content, peers, range).await?),
            Request::Verify(content) => self.opened(verify::open(node, content).await?),
            Request::Watch { job, seen } => Response::Job(self.watch(job, seen).await?),
            Request::Cancel(job) => {
                if !self.jobs.borrow_mut().remove(&job) {
                    return Err(no_such_job(job));
                }
                self.end(job);
                Response::Done
            }
            Request::List { after } => Response::Contents(node.catalog.borrow().page(after)),
            Request::Remove(content) => contents::remove(node, content).await.map(|()| Response::Done)?,
            Request::Pin(content) => contents::set_pinned(node, content, true).map(|()| Response::Done)?,
            Request::Unpin(content) => contents::set_pinned(node, content, false).map(|()| Response::Done)?,
            Request::Ticket { content, valid_s } => Response::Ticket(contents::ticket(node, content, valid_s)?),
            Request::PeerAdd(peer) => {
                if peer.node == node.identity.node {
                    return Err(Failure::invalid(format!("{peer} is this node itself")));
                }
                // One that is given again without an address keeps the one it has.
                let peer =
                    PeerAddress { address: peer.address.or(node.neighbours.borrow().address(peer.node)), ..peer };
                node.must_store(node.db.set_peer(peer.node, Some(peer)))?;
                if let Err(error) = node.neighbours.borrow_mut().admit(peer) {
                    node.stored(node.db.set_peer(peer.node, None));
                    return Err(Failure::limit(error.to_string()));
                }
                node.pins_changed.notify_one();
                node.sessions_changed.send_modify(|version| *version += 1);
                Response::Done
            }
            Request::PeerRemove(peer) => {
                node.must_store(node.db.set_peer(peer, None))?;
                if !node.neighbours.borrow_mut().remove(peer) {
                    return Err(Failure::not_found(format!("node {peer} is not a peer; see: pangeactl peer ls")));
                }
                if let Some(session) = node.sessions.borrow().get(&peer) {
                    session.close.notify_one();
                }
                node.pins_changed.notify_one();
                node.sessions_changed.send_modify(|version| *version += 1);
                Response::Done
            }
            Request::Peers => Response::Peers(node.neighbours.borrow().reports(Instant::now())),
            Request::PolicyShow => Response::Policy(node.policy.borrow().clone()),
            Request::PolicySet(assignments) => Response::Policy(policies::set(node, &assignments).await?),
            Request::PolicyHistory => Response::History(node.history.borrow().newest_first()),
            Request::PolicyRollback(revision) => Response::Policy(policies::roll_back(node, revision).await?),
            Request::PolicyWatch { seen } => {
                let mut policy = node.policy.subscribe();
                let news = policy.wait_for(|policy| policy.revision != seen);
                let _ = timeout(Duration::from_millis(u64::from(WATCH_MS_MAX)), news).await;
                Response::Policy(node.policy.borrow().clone())
            }
            Request::Workers => Response::Workers(workers::reports(node)),
            Request::WorkerAdd => {
                self.add_worker()?;
                Response::Workers(workers::reports(node))
            }
            Request::WorkerDrain(worker) => workers::drain(node, worker).await.map(|()| Response::Done)?,
            Request::Status => Response::Status(self.status()),
        })
    }

    fn opened(&self, (job, opened): (Rc<Job>, Opened)) -> Response {
        self.jobs.borrow_mut().insert(job.id);
        Response::Opened(opened)
    }

    async fn watch(&self, id: JobId, seen: u64) -> Result<pangea_ipc::node::JobReport, Failure> {
        let job = self.node.jobs.borrow().get(&id).cloned().filter(|_| self.jobs.borrow().contains(&id));
        let job = job.ok_or_else(|| no_such_job(id))?;
        let mut report = job.report.subscribe();
        let news = report.wait_for(|report| report.version != seen);
        let _ = timeout(Duration::from_millis(u64::from(WATCH_MS_MAX)), news).await;
        let report = job.report.borrow().clone();
        Ok(report)
    }

    /// A job's program wants it no more.
    fn end(&self, job: JobId) {
        get::leave(&self.node, job);
        // A put that is not done goes on to its end if its ring does: the name is kept until the worker reports.
    }

    fn add_worker(&self) -> Result<(), Failure> {
        let node = &self.node;
        if node.settings.external_workers {
            return Err(Failure::invalid(
                "this node's workers are run by systemd; start one more with: systemctl start pangea-worker@N",
            ));
        }
        let index = {
            let (workers, wanted) = (node.workers.borrow(), node.wanted.borrow());
            let taken = |index| workers.contains_key(&index) || wanted.contains(&index);
            node.fleet.borrow().free_index(taken)
        };
        if usize::from(index.0) >= WORKERS_MAX {
            return Err(Failure::limit(format!("a node has at most {WORKERS_MAX} workers")));
        }
        node.wanted.borrow_mut().push(index);
        tokio::task::spawn_local(workers::supervise(Rc::clone(node), index));
        Ok(())
    }

    fn store_failure(&self) -> String {
        let (store, catalog) = (self.node.store_failure.borrow(), self.node.catalog_failure.borrow());
        if store.is_empty() { catalog.clone() } else { store.clone() }
    }

    fn status(&self) -> StatusReport {
        let node = &self.node;
        let policy = node.policy.borrow();
        let peers = node.neighbours.borrow().reports(Instant::now());
        let active = peers.iter().filter(|peer| matches!(peer.state, PeerState::Active | PeerState::Degraded)).count();
        let quota = policy.policy.store_quota_bytes;
        StatusReport {
            node: node.identity.node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            listen: node.listen.get(),
            metrics: node.metrics.get(),
            revision: policy.revision,
            contents: node.catalog.borrow().count_here(),
            store_bytes: node.catalog.borrow().used(),
            store_quota_bytes: (quota != u64::MAX).then_some(quota),
            store_failure: self.store_failure(),
            peers_active: u32::try_from(active).unwrap_or(u32::MAX),
            peers: u32::try_from(peers.len()).unwrap_or(u32::MAX),
            jobs: u32::try_from(node.fetches.borrow().len() + node.puts.borrow().len()).unwrap_or(u32::MAX),
            workers: workers::reports(node),
        }
    }
}

fn no_such_job(job: JobId) -> Failure {
    Failure::not_found(format!("job {job} is not one of this connection"))
}
