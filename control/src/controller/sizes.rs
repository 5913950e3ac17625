//! The size of a content that has begun to come: a claim until its last chunk is verified.

use std::rc::Rc;

use pangea_ipc::chunk_set::ChunkSet;
use pangea_ipc::content::{CHUNK_SIZE, Geometry};
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, NodeId};
use pangea_ipc::peer::FoundHere;
use pangea_ipc::worker::{Command, Holdings};

use super::contents::make_room;
use super::fetches::{self, Fetch, State};
use super::holders;
use super::node::{Node, command, fresh_job};

/// The chunk that proves a size.
fn last_chunk(size: u64) -> Result<ChunkSet, Failure> {
    let count = Geometry::new(size).map_err(|error| Failure::invalid(error.to_string()))?.chunk_count();
    Ok(ChunkSet::of_range(count, count - 1..count))
}

/// Whether the size of what is here is proven.
#[must_use]
pub fn is_proven(holdings: &Holdings) -> bool {
    let bound = holdings.held.bound();
    bound > 0 && holdings.held.contains(bound - 1)
}

/// Takes notice of how a fetch ended that should have brought a content's last chunk.
pub async fn note_end(node: &Node, fetch: &Fetch, result: &Result<(), Failure>) {
    use pangea_ipc::failure::FailureCode::{Corrupt, Unavailable};
    let (content, size) = (fetch.content, fetch.size);
    if !last_chunk(size).is_ok_and(|last| last.is_subset_of(&fetch.chunks)) {
        return;
    }
    match result {
        Ok(()) => node.doubts.borrow_mut().forget(content),
        // Other failures are this node's own, and say nothing of the size.
        Err(failure) if matches!(failure.code, Corrupt | Unavailable) => {
            let unproven = node.holdings(content).await.is_ok_and(|here| here.is_none_or(|here| !is_proven(&here)));
            if unproven {
                node.doubts.borrow_mut().note(content, size);
            }
        }
        Err(_) => {}
    }
}

/// Makes the manifest that is here say the size that `found` lets one believe. Where nodes tell different sizes, the one
/// under which the last chunk comes is right, and those who told another are found out by that.
///
/// # Errors
/// When none of several sizes proves right.
pub async fn settle(
    node: &Rc<Node>,
    content: ContentId,
    here: Holdings,
    found: &[(NodeId, FoundHere)],
) -> Result<Holdings, Failure> {
    let count = |size: u64| Geometry::new(size).map(Geometry::chunk_count).ok();
    // Chunks that are here fit one cut of the content alone; without any, every cut is as good.
    let fits = |size: &u64| here.held.is_empty() || count(*size) == Some(here.held.bound());
    let told = found.iter().map(|(_, found)| found.size).filter(fits);
    let (sizes, to_try) = node.doubts.borrow().ranked(content, told);
    let Some(first) = sizes.first().copied() else { return Ok(here) };
    if to_try == 1 {
        return adopt(node, content, here, first, found).await;
    }
    tracing::warn!(%content, ?sizes, "nodes tell different sizes; trying which is right");
    let mut here = here;
    let mut result = Ok(());
    for size in sizes.into_iter().take(to_try) {
        result = async {
            here = adopt(node, content, here.clone(), size, found).await?;
            prove(node, content, size, found).await
        }
        .await;
        if result.is_ok() {
            break;
        }
    }
    result?;
    node.holdings(content).await?.ok_or_else(|| Failure::internal("a manifest vanished"))
}

/// Puts the manifest of those who tell this size in the place of another.
async fn adopt(
    node: &Rc<Node>,
    content: ContentId,
    here: Holdings,
    size: u64,
    found: &[(NodeId, FoundHere)],
) -> Result<Holdings, Failure> {
    if here.size == size {
        return Ok(here);
    }
    tracing::info!(%content, was = here.size, size, "taking another size for right");
    let theirs: Vec<_> = found.iter().filter(|(_, found)| found.size == size).cloned().collect();
    holders::get_manifest(node, content, &theirs).await?;
    for (_, worker) in node.await_running().await? {
        // It reads the manifest again when it needs it.
        command(&worker, &Command::Remove { content, delete: false }).await?;
    }
    node.update_content(content, |record| record.size = size);
    node.holdings(content).await?.ok_or_else(|| Failure::internal("a manifest vanished"))
}

/// Brings the last chunk of a content of this size.
async fn prove(node: &Rc<Node>, content: ContentId, size: u64, found: &[(NodeId, FoundHere)]) -> Result<(), Failure> {
    let id = fresh_job()?;
    make_room(node, id, u64::from(CHUNK_SIZE)).await?;
    let fetch = fetches::start(node, id, content, size, last_chunk(size)?, found.to_vec());
    let mut state = fetch.state.subscribe();
    match state.wait_for(|state| *state != State::Running).await.as_deref() {
        Ok(State::Failed(failure)) => Err(failure.clone()),
        _ => Ok(()),
    }
}
