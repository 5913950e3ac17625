//! Commands that change something.

use pangea_client::{Client, ClientError};
use pangea_ipc::failure::FailureCode;
use pangea_ipc::ids::{ContentId, Revision, WorkerIndex};
use pangea_ipc::node::{JobState, Request, Response};

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
    let result = client.wait(opened.job, &mut |_| bar.tick());
    bar.finish_and_clear();
    let report = result?;
    debug_assert_eq!(report.state, JobState::Done);
    out.print(&report, || {
        let repaired = report.chunks_bad.saturating_sub(report.chunks_lost);
        format!(
            "{} chunks are right, {} were wrong, {repaired} of these repaired",
            report.chunks_held, report.chunks_bad
        )
    })?;
    if report.chunks_lost > 0 {
        let text = format!("{} chunks are lost", report.chunks_lost);
        return Err(CtlError::new(FailureCode::Corrupt, text));
    }
    Ok(())
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
