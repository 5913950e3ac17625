//! Policy changes: one whole value, a new revision, pushed to every worker and kept.

use std::rc::Rc;

use pangea_ipc::failure::Failure;
use pangea_ipc::ids::Revision;
use pangea_ipc::policy::{Policy, Revised, diff};

use super::node::Node;
use super::workers::push_policy;

/// Changes keys, all or none.
///
/// # Errors
/// When a key or value is wrong; nothing is changed then.
pub async fn set(node: &Rc<Node>, assignments: &[String]) -> Result<Revised, Failure> {
    let mut policy = node.policy.borrow().policy.clone();
    let mut keys = std::collections::BTreeSet::new();
    for assignment in assignments {
        let key = assignment.split('=').next().unwrap_or_default();
        if !keys.insert(key) {
            return Err(Failure::invalid(format!("policy key {key:?} is given twice; give each key once")));
        }
        policy = policy.with_assignment(assignment).map_err(|error| Failure::invalid(error.to_string()))?;
    }
    Ok(enforce(node, policy).await)
}

/// Makes an earlier policy the newest.
///
/// # Errors
/// When there is no such revision.
pub async fn roll_back(node: &Rc<Node>, revision: Revision) -> Result<Revised, Failure> {
    let policy = node.history.borrow().find(revision).map_err(|error| Failure::not_found(error.to_string()))?;
    Ok(enforce(node, policy).await)
}

/// Puts a policy in force.
pub async fn enforce(node: &Rc<Node>, policy: Policy) -> Revised {
    let old = node.policy.borrow().policy.clone();
    let (revised, dropped) = node.history.borrow_mut().append(policy);
    for (key, before, after) in diff(&old, &revised.policy) {
        tracing::info!(revision = %revised.revision, key, before, after, "policy changed");
    }
    node.stored(node.db.add_policy(&revised, &dropped));
    node.policy.send_replace(revised.clone());
    node.pins_changed.notify_one();
    for worker in push_policy(node).await {
        tracing::warn!(%worker, revision = %revised.revision, "a worker has not acknowledged the policy");
    }
    revised
}
