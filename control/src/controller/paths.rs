//! Stores what the paths to peers carried, so that transfers after a restart of the controller begin as those before it.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::node::Node;

/// How often it is stored while it changes. What a crash loses of it is relearned by the next transfer.
const STORE_EVERY: Duration = Duration::from_secs(60);

/// Stores it now and then, for ever.
pub async fn keep(node: Rc<Node>) {
    let mut tick = interval(STORE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        store(&node);
    }
}

/// Stores it, if it has changed.
pub fn store(node: &Node) {
    let paths = node.neighbours.borrow_mut().paths_to_store();
    if let Some(paths) = paths {
        node.stored(node.db.set_paths(&paths));
    }
}
