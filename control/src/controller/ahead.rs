//! Connections ahead of need: this node's workers keep one to a worker of each peer, so that the first thing asked for
//! neither waits for a handshake nor for what the path loses of it, and the round trip is known when it comes.

use std::rc::Rc;

use pangea_control_core::plan;
use pangea_ipc::ids::NodeId;
use pangea_ipc::worker::Command;

use super::node::{Node, command};

/// Peers that workers keep connections to before anything is asked for; to others they connect when something is. Each
/// costs a packet each way every three seconds, and a worker takes 256 connections in.
const AHEAD_MAX: usize = 64;

/// Has the workers connect to those of a peer, unless they are. What fails is tried again with the next ping, or when
/// something is asked for.
pub fn connect(node: &Rc<Node>, peer: NodeId) {
    let before = node.sessions.borrow().keys().filter(|other| **other < peer).count();
    if before >= AHEAD_MAX {
        return;
    }
    let endpoints = node.neighbours.borrow().workers(peer).to_vec();
    for (index, worker) in node.running() {
        let Some(partner) = plan::partner(&endpoints, index) else { continue };
        tokio::task::spawn_local(async move {
            if let Err(failure) = command(&worker, &Command::Connect(vec![partner])).await {
                tracing::debug!(worker = %index, %failure, "a worker was not told whom to connect to");
            }
        });
    }
}
