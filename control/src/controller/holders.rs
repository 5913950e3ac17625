//! Who holds a content, and its manifest, proven and stored: what must be known before chunks are brought here.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pangea_control_core::catalog::Claim;
use pangea_control_core::plan;
use pangea_ipc::address::PeerAddress;
use pangea_ipc::content::{Geometry, Manifest};
use pangea_ipc::failure::{Failure, FailureCode};
use pangea_ipc::ids::{ContentId, NodeId};
use pangea_ipc::peer::{FoundHere, HOLDERS_MAX, PeerRequest, PeerResponse};
use pangea_ipc::runtime;
use pangea_ipc::worker::{Command, ManifestPage, Reply};
use tokio::time::{Instant, timeout_at};

use super::node::{Node, Session, command, now_s, unexpected};
use super::sessions::{ask, dial};

/// Whose answers a search waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Everybody's.
    All,
    /// Once somebody holds it, others have half a second left: a peer that hangs is not to hold up a get.
    First,
}

/// Far peers answer within this time; together they tell more than the first, and of the right size when one lies.
const GRACE: Duration = Duration::from_millis(500);

/// What a search has found.
#[derive(Debug, Default)]
pub struct Search {
    /// Who holds some of it.
    pub found: Vec<(NodeId, FoundHere)>,
    /// Peers that were asked.
    pub asked: usize,
    /// Those of them that answered in time, whatever they said.
    pub answered: BTreeSet<NodeId>,
    /// Those of them that do not admit this node.
    pub refused: Vec<NodeId>,
}

impl Search {
    /// How many of those that were asked did not answer in time.
    #[must_use]
    pub fn silent(&self) -> usize {
        self.asked.saturating_sub(self.answered.len())
    }
}

/// What every peer with a session holds of a content; others that they tell of are dialled, when the policy lets. When
/// none of them has it, so are all that are known and have no session: they may be back since they were dialled last.
pub async fn find(node: &Rc<Node>, content: ContentId, wait: Wait) -> Search {
    let mut asked: BTreeSet<NodeId> = BTreeSet::new();
    let mut search = Search::default();
    // Peers, then those that are dialled for it: hearsay of hearsay is not followed.
    for round in 0..2 {
        let sessions: Vec<(NodeId, Session)> = {
            let sessions = node.sessions.borrow();
            sessions.iter().filter(|(peer, _)| !asked.contains(*peer)).map(|(peer, s)| (*peer, s.clone())).collect()
        };
        asked.extend(sessions.iter().map(|(peer, _)| *peer));
        let mut answers: FuturesUnordered<_> = sessions
            .iter()
            .map(|(peer, session)| async move { (*peer, ask(session, &PeerRequest::Find(content)).await) })
            .collect();
        let mut others: Vec<PeerAddress> = Vec::new();
        let mut deadline = None;
        search.asked += sessions.len();
        while let Some((peer, answer)) = until(deadline, answers.next()).await {
            let refused = answer.as_ref().is_err_and(|failure| failure.code == FailureCode::Denied);
            search.refused.extend(refused.then_some(peer));
            // One that refuses has answered.
            if refused || answer.is_ok() {
                search.answered.insert(peer);
            }
            match answer {
                Ok(PeerResponse::Found(answer)) => {
                    search.found.extend(answer.here.map(|here| (peer, here)));
                    others.extend(answer.others);
                }
                Ok(other) => tracing::debug!(%peer, failure = %unexpected(&other), "a peer was not understood"),
                Err(failure) => tracing::debug!(%peer, %failure, "a peer could not be asked"),
            }
            if wait == Wait::First && !search.found.is_empty() {
                deadline = deadline.or_else(|| Some(Instant::now() + GRACE));
            }
        }
        let enough = wait == Wait::First && !search.found.is_empty();
        if round > 0 || enough {
            break;
        }
        if !node.policy.borrow().policy.discovery_hearsay {
            others.clear();
        }
        if search.found.is_empty() {
            let told: BTreeSet<NodeId> = others.iter().map(|other| other.node).collect();
            let neighbours = node.neighbours.borrow();
            let away = neighbours.without_session().filter(|other| !told.contains(&other.node));
            others.extend(away.take(HOLDERS_MAX));
        }
        others.retain(|other| other.node != node.identity.node && !asked.contains(&other.node));
        let dials = others.into_iter().map(|other| async move {
            let told: Vec<_> = other.address.into_iter().collect();
            // One that cannot be reached is no holder.
            let _ = dial(node, other.node, &told).await;
        });
        futures::future::join_all(dials).await;
    }
    for (peer, here) in &search.found {
        let peer = *peer;
        let known = node.catalog.borrow().get(content).and_then(|record| record.providers.get(&peer).copied());
        if known.is_none_or(|known| known.size != here.size) {
            let claim = Claim { at_s: now_s(), size: here.size };
            node.update_content(content, |record| record.note_provider(peer, claim));
        }
    }
    search
}

/// The next answer, unless the time for answers is over.
async fn until<T>(deadline: Option<Instant>, next: impl Future<Output = Option<T>>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, next).await.unwrap_or(None),
        None => next.await,
    }
}

/// Gets the manifest from whoever can prove one, and puts it in the store. Says the content's size and name.
///
/// # Errors
/// When nobody has one that proves itself.
pub async fn get_manifest(
    node: &Rc<Node>,
    content: ContentId,
    found: &[(NodeId, FoundHere)],
) -> Result<(u64, String), Failure> {
    let mut trouble = String::new();
    for (peer, here) in found {
        // A short manifest has come with the finding.
        let manifest = match Manifest::prove(content, here.size, here.values.clone()) {
            Ok(manifest) => Ok(manifest),
            Err(_) => manifest_from(node, *peer, content, here.size).await,
        };
        match manifest {
            Ok(manifest) => {
                save_manifest(&node.settings.state_dir, manifest).await?;
                return Ok((here.size, here.name.clone()));
            }
            Err(failure) => {
                tracing::warn!(%peer, %failure, "a manifest was not proven");
                trouble = format!("; node {peer}: {failure}");
            }
        }
    }
    Err(Failure::unavailable(format!("no reachable node gave a manifest that proves content {content}{trouble}")))
}

/// Has a worker bring a manifest from a peer, page after page.
async fn manifest_from(node: &Rc<Node>, peer: NodeId, content: ContentId, size: u64) -> Result<Manifest, Failure> {
    let geometry = Geometry::new(size).map_err(|error| Failure::invalid(error.to_string()))?;
    let (index, worker) = node.any_worker().await?;
    let from = plan::partner(node.neighbours.borrow().workers(peer), index);
    let from = from.ok_or_else(|| Failure::unavailable(format!("node {peer} has told of no workers")))?;
    let mut values = Vec::new();
    for page in 0..geometry.manifest_pages() {
        match command(&worker, &Command::ManifestPage(ManifestPage { content, size, page, from })).await? {
            Reply::ManifestPage(page) => values.extend(page),
            other => return Err(unexpected(&other)),
        }
    }
    Manifest::prove(content, size, values).map_err(|error| Failure::corrupt(error.to_string()))
}

/// The file proves itself, so it may be written by whoever has it first.
async fn save_manifest(state_dir: &Path, manifest: Manifest) -> Result<(), Failure> {
    let path = runtime::manifest(state_dir, manifest.id());
    let save = move || -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(&path);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // Two gets may do this at once: each has its own file until it is whole.
        let fresh = path.with_extension(format!("{:016x}", getrandom::u64().map_err(std::io::Error::other)?));
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&manifest.to_file_bytes())?;
        file.sync_data()?;
        std::fs::rename(&fresh, &path)?;
        std::fs::File::open(folder)?.sync_all()
    };
    let saved = tokio::task::spawn_blocking(save).await.map_err(|error| Failure::internal(error.to_string()))?;
    saved.map_err(|error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Failure::full(format!("no space left for a manifest: {error}"))
        }
        _ => Failure::storage(format!("a manifest could not be stored: {error}")),
    })
}
