//! A page of a manifest from a peer. It goes the way of chunks: over a lossy path the session between the controllers,
//! which is TCP, would take seconds for what takes one round trip here.

use std::rc::Rc;

use pangea_dataplane_core::frame::Part;
use pangea_ipc::content::{CHAINING_VALUE_LEN, ChainingValue, Geometry};
use pangea_ipc::failure::Failure;
use pangea_ipc::worker::ManifestPage;

use super::fetch::question;
use crate::net::ask::ask;
use crate::worker::Worker;

/// Brings a page, unproven: it takes all of them to prove a manifest.
///
/// # Errors
/// When the peer cannot be reached, or does not send it.
pub async fn page(worker: &Rc<Worker>, wanted: ManifestPage) -> Result<Vec<ChainingValue>, Failure> {
    let ManifestPage { content, size, page, from } = wanted;
    let geometry = Geometry::new(size).map_err(|error| Failure::invalid(error.to_string()))?;
    let values = geometry.manifest_page(page).len();
    if values == 0 {
        return Err(Failure::invalid(format!("the manifest of {size} bytes has no page {page}")));
    }
    let connection = worker.connections.to(from).await.map_err(|error| Failure::unavailable(error.to_string()))?;
    // Nothing can be asked for before it is here: a reader waits.
    let question = question(worker, content, geometry, Part::Manifest(page), true);
    let memory = worker.buffers.take().await;
    let (page, _) = ask(&connection, question, memory, &worker.codec)
        .await
        .map_err(|error| Failure::unavailable(format!("no manifest of {content}: {error}")))?;
    let (values, _) = page.as_ref().as_chunks::<CHAINING_VALUE_LEN>();
    Ok(values.to_vec())
}
