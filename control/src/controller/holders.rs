//! Who holds a content, and its manifest, proven and stored: what must be known before chunks are brought here.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;

use pangea_control_core::catalog::Claim;
use pangea_control_core::plan;
use pangea_ipc::address::PeerAddress;
use pangea_ipc::content::{Geometry, Manifest};
use pangea_ipc::failure::{Failure, FailureCode};
use pangea_ipc::ids::{ContentId, NodeId};
use pangea_ipc::peer::{FoundHere, PeerRequest, PeerResponse};
use pangea_ipc::runtime;
use pangea_ipc::worker::{Command, ManifestPage, Reply};

use super::node::{Node, Session, command, now_s, unexpected};
use super::sessions::{ask, dial};

/// What every peer with a session holds of a content; others that they tell of are dialled, when the policy lets. Second:
/// whether all of them have answered.
pub async fn find(node: &Rc<Node>, content: ContentId) -> (Vec<(NodeId, FoundHere)>, bool) {
    let mut asked: BTreeSet<NodeId> = BTreeSet::new();
    let mut found = Vec::new();
    let mut all_answered = true;
    // Peers, then those whom peers tell of: hearsay of hearsay is not followed.
    for round in 0..2 {
        let sessions: Vec<(NodeId, Session)> = {
            let sessions = node.sessions.borrow();
            sessions.iter().filter(|(peer, _)| !asked.contains(*peer)).map(|(peer, s)| (*peer, s.clone())).collect()
        };
        asked.extend(sessions.iter().map(|(peer, _)| *peer));
        let answers = sessions
            .iter()
            .map(|(peer, session)| async move { (*peer, ask(session, &PeerRequest::Find(content)).await) });
        let mut hearsay: Vec<PeerAddress> = Vec::new();
        for (peer, answer) in futures::future::join_all(answers).await {
            match answer {
                Ok(PeerResponse::Found(answer)) => {
                    found.extend(answer.here.map(|here| (peer, here)));
                    hearsay.extend(answer.others);
                }
                Ok(other) => tracing::debug!(%peer, failure = %unexpected(&other), "a peer was not understood"),
                Err(failure) => {
                    // One that refuses has answered.
                    all_answered &= failure.code == FailureCode::Denied;
                    tracing::debug!(%peer, %failure, "a peer could not be asked");
                }
            }
        }
        let follow = round == 0 && node.policy.borrow().policy.discovery_hearsay;
        if !follow {
            break;
        }
        hearsay.retain(|other| other.node != node.identity.node && !asked.contains(&other.node));
        let dials = hearsay.into_iter().map(|other| async move {
            let told: Vec<_> = other.address.into_iter().collect();
            // One that cannot be reached is no holder.
            let _ = dial(node, other.node, &told).await;
        });
        futures::future::join_all(dials).await;
    }
    for (peer, here) in &found {
        let peer = *peer;
        let known = node.catalog.borrow().get(content).and_then(|record| record.providers.get(&peer).copied());
        if known.is_none_or(|known| known.size != here.size) {
            let claim = Claim { at_s: now_s(), size: here.size };
            node.update_content(content, |record| record.note_provider(peer, claim));
        }
    }
    (found, all_answered)
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
