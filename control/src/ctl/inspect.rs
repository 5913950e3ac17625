//! Commands that show something and change nothing.

use pangea_client::{Client, ClientError};
use pangea_ipc::ids::{ContentId, Revision};
use pangea_ipc::node::{ContentReport, PeerReport, Request, Response, StatusReport, WorkerReport};
use pangea_ipc::policy::{Policy, Revised, diff};
use serde_json::{Value, json};

use super::output::{CtlError, Output, keyed, micros, size, table};

/// Prints the node's id.
///
/// # Errors
/// When the node does not answer.
pub fn id(out: &Output, client: &Client) -> Result<(), CtlError> {
    let status = status_of(client)?;
    out.print(&keyed("id", status.node), || status.node.to_string())
}

/// The node's status.
///
/// # Errors
/// When the node does not answer.
pub fn status_of(client: &Client) -> Result<StatusReport, CtlError> {
    match client.call(Request::Status)? {
        Response::Status(status) => Ok(status),
        _ => Err(ClientError::Unexpected.into()),
    }
}

/// Shows the node.
///
/// # Errors
/// When the node does not answer.
pub fn status(out: &Output, client: &Client) -> Result<(), CtlError> {
    let status = status_of(client)?;
    out.print(&status, || {
        let quota = status.store_quota_bytes.map_or_else(|| "unlimited".to_owned(), size);
        let address = |address: Option<std::net::SocketAddr>| address.map_or_else(|| "-".to_owned(), |a| a.to_string());
        let mut lines = vec![
            format!("node      {}", status.node),
            format!("version   {} (process {})", status.version, status.pid),
            format!("peers on  {}", address(status.listen)),
            format!("metrics   {}", address(status.metrics)),
            format!("store     {} contents, {} of {quota}", status.contents, size(status.store_bytes)),
            format!("peers     {} of {} connected", status.peers_active, status.peers),
            format!("jobs      {}", status.jobs),
            format!("policy    revision {}", status.revision),
        ];
        if !status.store_failure.is_empty() {
            lines.push(format!("STORE HAS STOPPED WRITING: {}", status.store_failure));
        }
        let missing = status.workers.iter().filter_map(|worker| counter(worker, "socket_buffer_missing_bytes")).max();
        if let Some(missing) = missing.filter(|missing| *missing > 0) {
            lines.push(format!(
                "SMALL SOCKET BUFFERS: the kernel keeps back {} of what workers ask for, which costs packets on fast links; \
                 load deploy/sysctl.d/90-pangea.conf, then restart the workers",
                size(missing)
            ));
        }
        lines.push(String::new());
        lines.push(workers_table(&status.workers));
        lines.join("\n")
    })
}

/// Shows the workers.
///
/// # Errors
/// When the node does not answer.
pub fn workers(out: &Output, client: &Client) -> Result<(), CtlError> {
    print_workers(out, &client.call(Request::Workers)?)
}

/// Prints an answer that holds workers.
///
/// # Errors
/// When it does not.
pub fn print_workers(out: &Output, response: &Response) -> Result<(), CtlError> {
    let Response::Workers(workers) = response else { return Err(ClientError::Unexpected.into()) };
    out.print(&keyed("workers", workers), || workers_table(workers))
}

fn counter(worker: &WorkerReport, name: &str) -> Option<u64> {
    worker.counters.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

fn workers_table(workers: &[WorkerReport]) -> String {
    let heading = [
        "WORKER", "STATE", "PROCESS", "CPU", "UDP PORT", "QUEUE", "POLICY", "RESTARTS", "PUT", "READ", "FETCHED",
        "SERVED",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for worker in workers {
        let counter = |name: &str| counter(worker, name).map_or_else(|| "-".to_owned(), size);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let state = serde_json::to_value(worker.state).ok().and_then(|value| value.as_str().map(str::to_owned));
        rows.push(vec![
            worker.worker.to_string(),
            or_dash(state),
            or_dash((worker.pid != 0).then(|| worker.pid.to_string())),
            or_dash(worker.cpu.map(|cpu| cpu.to_string())),
            or_dash(worker.address.map(|address| address.port().to_string())),
            worker.worker.to_string(),
            worker.revision.to_string(),
            worker.restarts.to_string(),
            counter("put_bytes"),
            counter("read_bytes"),
            counter("fetched_bytes"),
            counter("served_bytes"),
        ]);
    }
    table(&rows)
}

/// All contents of the node.
///
/// # Errors
/// When the node does not answer.
pub fn contents(client: &Client) -> Result<Vec<ContentReport>, CtlError> {
    let mut all: Vec<ContentReport> = Vec::new();
    loop {
        let after: Option<ContentId> = all.last().map(|content| content.id);
        match client.call(Request::List { after })? {
            Response::Contents(page) if page.is_empty() => return Ok(all),
            Response::Contents(page) => all.extend(page),
            _ => return Err(ClientError::Unexpected.into()),
        }
    }
}

/// Lists the contents.
///
/// # Errors
/// When the node does not answer.
pub fn list(out: &Output, client: &Client) -> Result<(), CtlError> {
    let contents = contents(client)?;
    out.print(&keyed("contents", &contents), || {
        let mut rows = vec![["CONTENT", "SIZE", "HERE", "PINNED", "NAME"].map(str::to_owned).to_vec()];
        for content in &contents {
            let here = match content.chunks_held {
                held if held == content.chunks => "all".to_owned(),
                // Rounded down: what is not all of it is no hundred percent.
                held => format!("{} %", u64::from(held) * 100 / u64::from(content.chunks.max(1))),
            };
            let pinned = if content.pinned { "yes" } else { "" };
            rows.push(vec![content.id.to_string(), size(content.size), here, pinned.to_owned(), content.name.clone()]);
        }
        table(&rows)
    })
}

/// Lists the peers.
///
/// # Errors
/// When the node does not answer.
pub fn peers(out: &Output, client: &Client) -> Result<(), CtlError> {
    let Response::Peers(peers) = client.call(Request::Peers)? else { return Err(ClientError::Unexpected.into()) };
    out.print(&keyed("peers", &peers), || peers_table(&peers))
}

fn peers_table(peers: &[PeerReport]) -> String {
    let heading = [
        "NODE", "ADDRESS", "STATE", "WORKERS", "LATENCY", "JITTER", "LOSS", "FROM IT", "SAMPLED", "OFFENCES", "TROUBLE",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let dash = || "-".to_owned();
    for peer in peers {
        let state = serde_json::to_value(peer.state).ok().and_then(|value| value.as_str().map(str::to_owned));
        rows.push(vec![
            peer.node.to_string(),
            peer.address.map_or_else(dash, |address| address.to_string()),
            state.unwrap_or_else(dash),
            peer.workers.to_string(),
            peer.latency_us.map_or_else(dash, micros),
            peer.jitter_us.map_or_else(dash, micros),
            peer.loss_bp.map_or_else(dash, |loss| format!("{:.2} %", f64::from(loss) / 100.0)),
            peer.throughput_bytes_per_s.map_or_else(dash, |bps| format!("{}/s", size(bps))),
            peer.sample_age_ms.map_or_else(dash, |age| format!("{:.1} s ago", age as f64 / 1000.0)),
            peer.offences.to_string(),
            peer.trouble.clone(),
        ]);
    }
    table(&rows)
}

/// A policy as a JSON document: its revision and every key.
#[must_use]
pub fn policy_document(revised: &Revised) -> Value {
    let keys: serde_json::Map<String, Value> =
        revised.policy.entries().map(|(key, value)| (key.name.to_owned(), Value::from(value))).collect();
    json!({"revision": revised.revision, "policy": keys})
}

/// Takes a policy out of an answer.
///
/// # Errors
/// When it holds none.
pub fn policy_in(response: Response) -> Result<Revised, CtlError> {
    match response {
        Response::Policy(revised) => Ok(revised),
        _ => Err(ClientError::Unexpected.into()),
    }
}

/// Shows the policy in force.
///
/// # Errors
/// When the node does not answer.
pub fn policy(out: &Output, client: &Client) -> Result<(), CtlError> {
    let revised = policy_in(client.call(Request::PolicyShow)?)?;
    out.print(&policy_document(&revised), || {
        let mut text = format!("revision {}\n", revised.revision);
        for (key, value) in revised.policy.entries() {
            text.push_str(&format!("\n{}={value}\n    {}\n    Takes {}.\n", key.name, key.help, key.takes));
        }
        text
    })
}

fn changes(old: &Policy, new: &Policy) -> String {
    let changes = diff(old, new).into_iter().map(|(key, before, after)| format!("{key}: {before} -> {after}"));
    let text = changes.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "no change".to_owned() } else { text }
}

/// Shows the policies that were in force.
///
/// # Errors
/// When the node does not answer.
pub fn history(out: &Output, client: &Client) -> Result<(), CtlError> {
    let Response::History(policies) = client.call(Request::PolicyHistory)? else {
        return Err(ClientError::Unexpected.into());
    };
    let documents: Vec<Value> = policies.iter().map(policy_document).collect();
    out.print(&keyed("history", documents), || {
        let mut lines = Vec::new();
        for (at, revised) in policies.iter().enumerate() {
            let what = match policies.get(at + 1) {
                Some(older) => changes(&older.policy, &revised.policy),
                None => format!("oldest kept; against the defaults: {}", changes(&Policy::default(), &revised.policy)),
            };
            lines.push(format!("{:>6}  {what}", revised.revision.to_string()));
        }
        lines.join("\n")
    })
}

/// Prints each policy as it comes, until interrupted or nobody reads any more: for scripts one document a line.
///
/// # Errors
/// When the node goes away, or stdout cannot be written.
pub fn watch_policy(out: &Output, client: &Client) -> Result<(), CtlError> {
    let mut last = policy_in(client.call(Request::PolicyShow)?)?;
    let mut text = format!("revision {} is in force", last.revision);
    while out.print_line(&policy_document(&last), || text)? {
        let seen: Revision = last.revision;
        let now = loop {
            let now = policy_in(client.call(Request::PolicyWatch { seen })?)?;
            if now.revision != seen {
                break now;
            }
        };
        text = format!("revision {}: {}", now.revision, changes(&last.policy, &now.policy));
        last = now;
    }
    Ok(())
}
