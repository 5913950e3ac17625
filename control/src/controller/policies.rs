//! Policy changes: one whole value, a new revision, pushed to every worker and kept.

use std::rc::Rc;

use pangea_ipc::failure::Failure;
use pangea_ipc::ids::Revision;
use pangea_ipc::policy::{Pinning, Policy, Revised, diff};

use super::node::Node;
use super::workers::push_policy;

/// Changes keys, all or none.
///
/// # Errors
/// When a key or value is wrong, or the change cannot be stored; nothing is changed then.
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
    check_cpus(&policy)?;
    enforce(node, policy).await
}

/// Makes an earlier policy the newest.
///
/// # Errors
/// When there is no such revision, or it cannot be stored.
pub async fn roll_back(node: &Rc<Node>, revision: Revision) -> Result<Revised, Failure> {
    let policy = node.history.borrow().find(revision).map_err(|error| Failure::not_found(error.to_string()))?;
    enforce(node, policy).await
}

/// CPUs that this machine does not have are a slip: workers would run unpinned.
fn check_cpus(policy: &Policy) -> Result<(), Failure> {
    let Pinning::Cpus(wanted) = &policy.workers_cpus else { return Ok(()) };
    // Where the system does not say, the workers' own check remains.
    let Ok(online) = std::fs::read_to_string("/sys/devices/system/cpu/online") else { return Ok(()) };
    let online = online.trim();
    match wanted.iter().find(|cpu| !is_in(**cpu, online)) {
        Some(cpu) => {
            Err(Failure::invalid(format!("workers.cpus: there is no CPU {cpu} here; this machine has {online}")))
        }
        None => Ok(()),
    }
}

/// Whether a CPU is in a list as the kernel writes it, such as `0-3,8`. A list that makes no sense has them all.
fn is_in(cpu: u16, list: &str) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&cpu),
            _ => true,
        }
    })
}

/// Puts a policy in force.
///
/// # Errors
/// When it cannot be stored; the one before stays in force then.
pub async fn enforce(node: &Rc<Node>, policy: Policy) -> Result<Revised, Failure> {
    let old = node.policy.borrow().policy.clone();
    let mut history = node.history.borrow().clone();
    let (revised, dropped) = history.append(policy);
    node.must_store(node.db.add_policy(&revised, &dropped))?;
    node.history.replace(history);
    for (key, before, after) in diff(&old, &revised.policy) {
        tracing::info!(revision = %revised.revision, key, before, after, "policy changed");
    }
    node.policy.send_replace(revised.clone());
    node.pins_changed.notify_one();
    for worker in push_policy(node).await {
        tracing::warn!(%worker, revision = %revised.revision, "a worker has not acknowledged the policy");
    }
    Ok(revised)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_found_in_the_list_of_the_kernel() {
        assert!([0, 3, 8, 11].iter().all(|cpu| is_in(*cpu, "0-3,8,10-11")));
        assert!([4, 9, 12].iter().all(|cpu| !is_in(*cpu, "0-3,8,10-11")));
        assert!(is_in(7, "what?"));
        let none = Policy { workers_cpus: Pinning::Cpus(vec![0, u16::MAX]), ..Policy::default() };
        assert!(check_cpus(&none).unwrap_err().text.contains("no CPU 65535"));
    }
}
