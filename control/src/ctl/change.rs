//! Commands that change something.

use pangea_client::{Client, ClientError};
use pangea_ipc::ids::{ContentId, Revision, WorkerIndex};
use pangea_ipc::node::{JobReport, JobState, Request, Response};

use super::arguments::{PeerCommand, PolicyCommand, WorkerCommand};
use super::inspect::{self, policy_document, policy_in, print_workers};
use super::output::{CtlError, Output, keyed};

fn do_it(out: &Output, client: &Client, request: Request) -> Result<(), CtlError> {
    match client.call(request)? {
        Response::Done => out.done(),
        _ => Err(ClientError::Unexpected.into()),
    }
}

/// Prints a ticket.
///
/// # Errors
/// When the content is not here.
pub fn ticket(out: &Output, client: &Client, content: ContentId, valid_s: u64) -> Result<(), CtlError> {
    match client.call(Request::Ticket { content, valid_s })? {
        Response::Ticket(ticket) => out.print(&keyed("ticket", &ticket), || ticket.clone()),
        _ => Err(ClientError::Unexpected.into()),
    }
}

/// Removes a content.
///
/// # Errors
/// When it is not here, pinned or in use.
pub fn remove(out: &Output, client: &Client, id: ContentId) -> Result<(), CtlError> {
    do_it(out, client, Request::Remove(id))
}

/// Pins a content.
///
/// # Errors
/// When it is not here.
pub fn pin(out: &Output, client: &Client, id: ContentId) -> Result<(), CtlError> {
    do_it(out, client, Request::Pin(id))
}

/// Unpins a content.
///
/// # Errors
/// When it is not here.
pub fn unpin(out: &Output, client: &Client, id: ContentId) -> Result<(), CtlError> {
    do_it(out, client, Request::Unpin(id))
}

/// Verifies a content, or all.
///
/// # Errors
/// When something is lost for good.
pub fn verify(out: &Output, client: &Client, id: Option<ContentId>) -> Result<(), CtlError> {
    let Response::Opened(opened) = client.call(Request::Verify(id))? else {
        return Err(ClientError::Unexpected.into());
    };
    let bar = out.bar(None, "verify");
    let mut last = None;
    let result = client.wait(opened.job, &mut |report| {
        bar.tick();
        last = Some(report.clone());
    });
    bar.finish_and_clear();
    // Also of one that failed there is a report: it names what is damaged.
    match last.filter(|report| report.state != JobState::Running) {
        Some(report) => {
            out.print(&report, || verify_text(&report))?;
            result.map(drop).map_err(CtlError::from)
        }
        None => result.map(drop).map_err(CtlError::from),
    }
}

/// What a verify found: in all, and each content that was damaged.
fn verify_text(report: &JobReport) -> String {
    let repaired = report.chunks_bad.saturating_sub(report.chunks_lost);
    let mut lines = vec![format!(
        "{} chunks are right, {} were wrong, {repaired} of these repaired",
        report.chunks_held, report.chunks_bad
    )];
    lines.extend(report.damaged.iter().map(|damage| {
        let state = match &damage.failure {
            None => format!("{} chunks were wrong and are repaired", damage.chunks_bad),
            Some(_) if damage.chunks_lost > 0 => format!("{} chunks are lost", damage.chunks_lost),
            Some(failure) => failure.text.clone(),
        };
        format!("{}  {state}", damage.content)
    }));
    let unnamed = usize::try_from(report.contents_damaged).unwrap_or(usize::MAX).saturating_sub(report.damaged.len());
    if unnamed > 0 {
        lines.push(format!("and {unnamed} more; mend or remove these, then verify again"));
    }
    lines.join("\n")
}

/// Peers.
///
/// # Errors
/// When the node refuses.
pub fn peer(out: &Output, client: &Client, command: PeerCommand) -> Result<(), CtlError> {
    match command {
        PeerCommand::Add { peer } => do_it(out, client, Request::PeerAdd(peer)),
        PeerCommand::Rm { node } => do_it(out, client, Request::PeerRemove(node)),
        PeerCommand::Ls => inspect::peers(out, client),
    }
}

/// Policy.
///
/// # Errors
/// When the node refuses.
pub fn policy(out: &Output, client: &Client, command: PolicyCommand) -> Result<(), CtlError> {
    let request = match command {
        PolicyCommand::Show => return inspect::policy(out, client),
        PolicyCommand::History => return inspect::history(out, client),
        PolicyCommand::Watch => return inspect::watch_policy(out, client),
        PolicyCommand::Set { changes } => Request::PolicySet(changes),
        PolicyCommand::Rollback { revision } => Request::PolicyRollback(Revision(revision)),
    };
    let revised = policy_in(client.call(request)?)?;
    out.print(&policy_document(&revised), || format!("revision {} is in force", revised.revision))
}

/// Workers.
///
/// # Errors
/// When the node refuses.
pub fn worker(out: &Output, client: &Client, command: WorkerCommand) -> Result<(), CtlError> {
    match command {
        WorkerCommand::Add => print_workers(out, &client.call(Request::WorkerAdd)?),
        WorkerCommand::Drain { number } => do_it(out, client, Request::WorkerDrain(WorkerIndex(number))),
    }
}
