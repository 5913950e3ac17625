//! Contents of this node: room for them, their removal, what the catalog says against what the store has.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use pangea_control_core::catalog::Record;
use pangea_ipc::content::CHUNK_SIZE;
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, JobId};
use pangea_ipc::ticket::{TICKET_ADDRESSES_MAX, Ticket};
use pangea_ipc::worker::{Command, Reply};

use super::node::{Node, command, count, now_s, unexpected};

/// Keeps room for a job, in all; evicts what has to go.
///
/// # Errors
/// When there is no room even so.
pub async fn make_room(node: &Rc<Node>, job: JobId, bytes: u64) -> Result<(), Failure> {
    let quota = node.policy.borrow().policy.store_quota_bytes;
    if bytes > quota {
        return Err(Failure::full(format!("{bytes} bytes are more than the quota of {quota}; raise store.quota")));
    }
    let more = bytes.saturating_sub(node.catalog.borrow().reserved(job));
    if more == 0 {
        // Also where a lower quota is exceeded already: what takes no room is done.
        node.catalog.borrow_mut().reserve(job, bytes);
        return Ok(());
    }
    let victims = node.catalog.borrow().victims(more, quota, |id| node.in_use(id));
    let victims = victims.map_err(|no_room| Failure::full(no_room.to_string()))?;
    for victim in victims {
        tracing::info!(content = %victim, "evicted to make room");
        count(&node.counts.evicted);
        delete(node, victim).await?;
    }
    // Others may have taken the room meanwhile.
    if node.catalog.borrow().used().saturating_add(more) > quota {
        return Err(Failure::full(format!("{bytes} bytes do not fit the quota of {quota} now; try again later")));
    }
    node.catalog.borrow_mut().reserve(job, bytes);
    Ok(())
}

/// Bytes for which nothing has to go.
#[must_use]
pub fn free_room(node: &Node) -> u64 {
    node.policy.borrow().policy.store_quota_bytes.saturating_sub(node.catalog.borrow().used())
}

/// Room that so many chunks of a content take which are not held: what its files take on disk is taken already.
#[must_use]
pub fn room_for(node: &Node, id: ContentId, size: u64, chunks: u32) -> u64 {
    let taken = node.catalog.borrow().get(id).map_or(0, |record| record.disk_bytes);
    (u64::from(chunks) * u64::from(CHUNK_SIZE)).min(size.saturating_sub(taken))
}

/// Forgets a content on a program's request.
///
/// # Errors
/// When it is not here, pinned or in use.
pub async fn remove(node: &Rc<Node>, id: ContentId) -> Result<(), Failure> {
    let seems_empty =
        node.catalog.borrow().get(id).is_some_and(|known| known.chunks_held == 0 && known.disk_bytes == 0);
    if seems_empty {
        // A fetch that is just ending may have left more than the catalog knows yet.
        node.refresh_content(id).await;
    }
    let pinned = {
        let catalog = node.catalog.borrow();
        let record = catalog.get(id).filter(|record| record.chunks_held > 0 || record.disk_bytes > 0);
        record.ok_or_else(|| not_here(id))?.pinned
    };
    if pinned {
        return Err(Failure::busy(format!("content {id} is pinned; unpin it first: pangeactl unpin {id}")));
    }
    if node.in_use(id) {
        return Err(Failure::busy(format!("content {id} is in use; try again when its transfers have ended")));
    }
    delete(node, id).await
}

async fn delete(node: &Rc<Node>, id: ContentId) -> Result<(), Failure> {
    let_go(node, id, true).await?;
    node.catalog.borrow_mut().remove(id);
    node.stored(node.db.set_content(id, None));
    Ok(())
}

/// Has all workers close the files of a content, and delete them if that is wanted.
///
/// # Errors
/// When a worker does not.
pub async fn let_go(node: &Rc<Node>, id: ContentId, delete: bool) -> Result<(), Failure> {
    let workers = node.await_running().await?;
    let last = workers.len() - 1;
    for (at, (_, worker)) in workers.iter().enumerate() {
        // The last one deletes, when all others have let go.
        command(worker, &Command::Remove { content: id, delete: delete && at == last }).await?;
    }
    Ok(())
}

/// Pins or unpins a content.
///
/// # Errors
/// When it is not here, or that cannot be stored.
pub fn set_pinned(node: &Rc<Node>, id: ContentId, pinned: bool) -> Result<(), Failure> {
    let known = node.catalog.borrow().get(id).filter(|record| record.chunks_held > 0).cloned();
    let changed = Record { pinned, ..known.ok_or_else(|| not_here(id))? };
    node.must_store(node.db.set_content(id, Some(&changed)))?;
    node.catalog.borrow_mut().update(id, |record| *record = changed);
    Ok(())
}

/// A ticket for a content that is here.
///
/// # Errors
/// When it is not here.
pub fn ticket(node: &Node, id: ContentId, valid_s: u64) -> Result<String, Failure> {
    let catalog = node.catalog.borrow();
    let record = catalog.get(id).filter(|record| record.chunks_held > 0).ok_or_else(|| not_here(id))?;
    let ticket = Ticket {
        content: id,
        size: record.size,
        node: node.identity.node,
        addresses: node.listen.get().map(reachable_at).unwrap_or_default(),
        expires_s: if valid_s == 0 { 0 } else { now_s().saturating_add(valid_s) },
        name: record.name.clone(),
    };
    Ok(ticket.to_string())
}

/// Where others may reach a socket that listens at `listen`: at every address of this machine when it says none. The
/// loopback address is told only when there is no other.
fn reachable_at(listen: SocketAddr) -> Vec<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return vec![listen];
    }
    let of_interface = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    };
    let both = listen.is_ipv6(); // Linux gives an IPv6 socket for all addresses the IPv4 ones too
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => both && !v6.is_unicast_link_local(),
    };
    // A machine that does not say has none that we could tell of.
    let all: Vec<IpAddr> =
        nix::ifaddrs::getifaddrs().map(|all| all.filter_map(of_interface).filter(usable).collect()).unwrap_or_default();
    let (loopback, others): (Vec<IpAddr>, Vec<IpAddr>) = all.into_iter().partition(IpAddr::is_loopback);
    let told = if others.is_empty() { loopback } else { others };
    told.into_iter().take(TICKET_ADDRESSES_MAX).map(|ip| SocketAddr::new(ip, listen.port())).collect()
}

/// The failure for a content that is not here.
#[must_use]
pub fn not_here(id: ContentId) -> Failure {
    Failure::not_found(format!("content {id} is not on this node; see: pangeactl ls"))
}

/// Makes the catalog say what the store has: what the store has alone is added, what it lacks is gone.
pub async fn reconcile(node: &Rc<Node>) {
    if let Err(failure) = try_reconcile(node).await {
        tracing::warn!(%failure, "the catalog could not be compared with the store");
    }
}

async fn try_reconcile(node: &Rc<Node>) -> Result<(), Failure> {
    let (_, worker) = node.any_worker().await?;
    let mut here = BTreeSet::new();
    let mut after = None;
    loop {
        let page = match command(&worker, &Command::Inventory { after }).await? {
            Reply::Inventory(page) => page,
            other => return Err(unexpected(&other)),
        };
        let Some(last) = page.last() else { break };
        after = Some(last.content);
        for stored in page {
            here.insert(stored.content);
            let known = node.catalog.borrow().get(stored.content).cloned().unwrap_or_default();
            let as_known = (known.size, known.chunks_held, known.disk_bytes);
            if as_known != (stored.size, stored.chunks_held, stored.disk_bytes) {
                node.update_content(stored.content, |record| {
                    record.size = stored.size;
                    record.chunks_held = stored.chunks_held;
                    record.disk_bytes = stored.disk_bytes;
                    if record.used_s == 0 {
                        record.used_s = now_s();
                    }
                });
            }
        }
    }
    let lost: Vec<ContentId> = {
        let catalog = node.catalog.borrow();
        let gone = catalog.iter().filter(|(id, record)| record.chunks_held > 0 && !here.contains(*id));
        gone.map(|(id, _)| *id).filter(|id| !node.in_use(*id)).collect()
    };
    for id in lost {
        tracing::warn!(content = %id, "a content is no longer in the store");
        node.update_content(id, |record| (record.chunks_held, record.disk_bytes) = (0, 0));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_tells_an_address_that_can_be_dialled() {
        let own: SocketAddr = "192.0.2.1:7440".parse().unwrap();
        assert_eq!(reachable_at(own), [own]);
        for any in ["0.0.0.0:7440", "[::]:7440"] {
            let told = reachable_at(any.parse().unwrap());
            assert!(!told.is_empty() && told.len() <= TICKET_ADDRESSES_MAX);
            assert!(told.iter().all(|address| !address.ip().is_unspecified() && address.port() == 7440), "{told:?}");
        }
    }
}
