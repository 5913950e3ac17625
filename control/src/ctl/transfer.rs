//! `put` and `get`.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use pangea_client::{Client, ClientError, Progress, Transfer};
use pangea_ipc::address::PeerAddress;
use pangea_ipc::failure::FailureCode;
use pangea_ipc::ids::ContentId;
use pangea_ipc::node::JobReport;
use pangea_ipc::ticket::{TICKET_PREFIX, Ticket, checked_name};
use serde_json::json;

use super::arguments::{GetOptions, PutOptions};
use super::output::{CtlError, Output, rate, size};

/// Puts a file or standard input.
///
/// # Errors
/// When it cannot be read, changes meanwhile, or does not fit.
pub fn put(out: &Output, client: &Client, options: &PutOptions) -> Result<(), CtlError> {
    if options.path == Path::new("-") {
        let name = options.name.clone().unwrap_or_default();
        return put_open(out, client, &io::stdin(), name, None).and_then(|(id, size)| print_put(out, id, size));
    }
    let path = &options.path;
    let failed = |error: io::Error| CtlError::input(path, &error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        let text = format!("{} is a folder; put an archive of it: tar c {0} | pangeactl put -", path.display());
        return Err(CtlError::new(FailureCode::Invalid, text));
    }
    let own_name = || path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = options.name.clone().unwrap_or_else(own_name);
    let known = metadata.is_file().then_some(metadata.len());
    let (id, size) = put_open(out, client, &file, name, known).map_err(|mut error| {
        error.text = format!("{}: {}", path.display(), error.text);
        error
    })?;
    print_put(out, id, size)
}

fn put_open(
    out: &Output,
    client: &Client,
    source: &impl std::os::fd::AsFd,
    name: String,
    size: Option<u64>,
) -> Result<(ContentId, u64), CtlError> {
    let bar = out.bar(size, "put");
    let name = checked_name(&name).unwrap_or_default();
    let options = pangea_client::PutOptions { name, size };
    let outcome = client.put(source, options, &mut |sent| {
        bar.set_position(sent);
        true
    });
    bar.finish_and_clear();
    let outcome = outcome?;
    Ok((outcome.content, outcome.size))
}

fn print_put(out: &Output, id: ContentId, size: u64) -> Result<(), CtlError> {
    out.print(&json!({"id": id, "size": size}), || id.to_string())
}

/// Gets a content to a file or standard output.
///
/// # Errors
/// When it cannot be had or written.
pub fn get(out: &Output, client: &Client, options: &GetOptions) -> Result<(), CtlError> {
    let (id, mut peers, mut name) = parse_what(&options.what)?;
    peers.extend(&options.peers);
    let to_stdout = options.output.as_deref() == Some(Path::new("-"));
    if to_stdout && out.json {
        return Err(CtlError::usage("--json and -o - both want stdout; give -o a path"));
    }
    // Said before the content is fetched, not after.
    if let Some(path) = options.output.as_deref().filter(|_| !to_stdout) {
        refuse_existing(path, options.force)?;
    }
    let range = options.range.as_deref().map(parse_range).transpose()?;
    let wanted = pangea_client::GetOptions { peers, range };
    let started = Instant::now();
    let interrupted = interrupt_flag()?;
    if to_stdout {
        let mut transfer = client.stream(id, wanted)?;
        let bar = out.bar(Some(transfer.size()), "get");
        let result = transfer.write_to_stream(io::stdout(), &mut |progress| show(&bar, &progress, &interrupted));
        bar.finish_and_clear();
        return match result {
            // Whoever reads has had enough.
            Err(ClientError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|error| explain(error, &transfer)),
        };
    }
    let mut transfer = client.get(id, wanted.clone())?;
    if !transfer.name().is_empty() {
        transfer.name().clone_into(&mut name);
    }
    let own_name = || {
        let name = checked_name(&name).unwrap_or_else(|| id.to_string());
        // A part under the name of the whole would be taken for it, or take its place.
        options.range.as_ref().map_or_else(|| name.clone(), |range| format!("{name}.{range}")).into()
    };
    let path: PathBuf = options.output.clone().unwrap_or_else(own_name);
    refuse_existing(&path, options.force)?;
    let part = Part::create(&path)?;
    let bar = out.bar(Some(transfer.size()), "get");
    let mut result = transfer.write_to_file(&part.file, &mut |progress| show(&bar, &progress, &interrupted));
    // What was found wrong on this node's disk does not count as held since: now it comes from another one.
    if result.as_ref().is_err_and(|error| error.code() == FailureCode::Corrupt)
        && let Ok(again) = client.get(id, wanted)
    {
        transfer = again;
        result = transfer.write_to_file(&part.file, &mut |progress| show(&bar, &progress, &interrupted));
    }
    bar.finish_and_clear();
    result.map_err(|error| explain(error, &transfer))?;
    let written = part.finish(&path, options.force)?;
    let took = started.elapsed();
    // The last figures come a moment after the last byte; without a controller there are none.
    let last = transfer.report().and_then(|report| client.wait(report.job, &mut |_| {}).ok());
    let document = document(id, &path, written, took, last.as_ref());
    out.print(&document, || {
        format!("{}  {}  {} in {:.2} s, {}", path.display(), id, size(written), took.as_secs_f64(), rate(written, took))
    })
}

fn document(
    id: ContentId,
    path: &Path,
    bytes: u64,
    took: std::time::Duration,
    report: Option<&JobReport>,
) -> serde_json::Value {
    json!({
        "id": id,
        "path": path,
        "bytes": bytes,
        "seconds": took.as_secs_f64(),
        "job": report,
    })
}

fn show(bar: &indicatif::ProgressBar, progress: &Progress<'_>, interrupted: &AtomicBool) -> bool {
    bar.set_length(progress.wanted);
    bar.set_position(progress.delivered);
    !interrupted.load(Ordering::Relaxed)
}

/// Adds how much is here, for those who wonder whether running again starts over.
fn explain(error: ClientError, transfer: &Transfer) -> CtlError {
    let mut failure = CtlError::from(error);
    if let Some(report) = transfer.report()
        && failure.code == FailureCode::Cancelled
    {
        let (held, wanted) = (report.chunks_held, report.chunks_wanted);
        failure.text = format!("interrupted with {held} of {wanted} chunks here; run the same command again to go on");
    }
    failure
}

/// Set by SIGINT and SIGTERM, so that a transfer ends in good order.
///
/// # Errors
/// When the system gives no thread.
pub fn interrupt_flag() -> Result<Arc<AtomicBool>, CtlError> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let system = |error: io::Error| CtlError::new(FailureCode::Internal, format!("the system refuses: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
    let wait = move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            set.store(true, Ordering::Relaxed);
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(system)?;
    Ok(flag)
}

/// A content id or a ticket: what to get, from whom, under which name.
fn parse_what(text: &str) -> Result<(ContentId, Vec<PeerAddress>, String), CtlError> {
    if !text.trim_start().to_ascii_lowercase().starts_with(TICKET_PREFIX) {
        let id =
            text.parse().map_err(|error| CtlError::usage(format!("{error}; a ticket starts with {TICKET_PREFIX}")))?;
        return Ok((id, Vec::new(), String::new()));
    }
    let ticket: Ticket = text.parse().map_err(|error| CtlError::usage(format!("{error}")))?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if ticket.is_expired(now_s) {
        let text =
            format!("this ticket expired {} s ago; ask node {} for a new one", now_s - ticket.expires_s, ticket.node);
        return Err(CtlError::new(FailureCode::Denied, text));
    }
    let peers = ticket.addresses.iter().map(|address| PeerAddress { node: ticket.node, address: Some(*address) });
    Ok((ticket.content, peers.collect(), ticket.name))
}

/// `A-B`, both ends included.
fn parse_range(text: &str) -> Result<Range<u64>, CtlError> {
    let wrong = || CtlError::usage(format!("--range {text:?} is not A-B with A at most B, such as 0-1023"));
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let first: u64 = first.parse().map_err(|_| wrong())?;
    let last: u64 = last.parse().map_err(|_| wrong())?;
    let end = last.checked_add(1).filter(|end| first < *end).ok_or_else(wrong)?;
    Ok(first..end)
}

fn refuse_existing(path: &Path, force: bool) -> Result<(), CtlError> {
    if path.is_dir() {
        let text = format!("{} is a folder; give -o the path of a file in it", path.display());
        return Err(CtlError::new(FailureCode::Invalid, text));
    }
    // Of what a link leads to: `--force` would put a file in its place, where others expect the device.
    if path.metadata().is_ok_and(|there| !there.is_file()) {
        let text = format!("{} is a device, pipe or socket, not a file; to write into it: -o - > PATH", path.display());
        return Err(CtlError::new(FailureCode::Invalid, text));
    }
    if !force && path.symlink_metadata().is_ok() {
        let text = format!("{} exists; choose another -o or replace it with --force", path.display());
        return Err(CtlError::new(FailureCode::Invalid, text));
    }
    Ok(())
}

/// A file that is not whole yet, beside its place; deleted unless finished.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    const PREFIX: &str = ".pangea-part-";

    /// The name does not have the target's in it, which may be as long as names can be.
    fn create(target: &Path) -> Result<Self, CtlError> {
        let failed = |error: io::Error| CtlError::new(FailureCode::Storage, format!("{}: {error}", target.display()));
        let path = target.with_file_name(format!("{}{}", Self::PREFIX, std::process::id()));
        Self::sweep(&path);
        let opened = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let file = opened.map_err(|error| match target.parent() {
            Some(folder) if error.kind() == io::ErrorKind::NotFound => {
                let text = format!("{}: there is no folder {}; make it first", target.display(), folder.display());
                CtlError::new(FailureCode::NotFound, text)
            }
            _ => failed(error),
        })?;
        // Held as long as this process lives; a file system without locks has nothing swept.
        let _ = file.try_lock();
        Ok(Self { path, file })
    }

    /// Removes what gets that were killed have left in the same folder.
    fn sweep(beside: &Path) {
        let folder = beside.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(Self::PREFIX)?.parse::<u32>().ok());
            let killed = |pid: u32| !Path::new("/proc").join(pid.to_string()).exists();
            let is_free =
                || OpenOptions::new().write(true).open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
            // Both: a process of another machine or container shows only in the lock.
            if pid.is_some_and(killed) && is_free() {
                let _ = std::fs::remove_file(entry.path()); // the next one tries again
            }
        }
    }

    /// Puts it in place, synced; says its length.
    fn finish(self, target: &Path, force: bool) -> Result<u64, CtlError> {
        let failed = |error: io::Error| CtlError::new(FailureCode::Storage, format!("{}: {error}", target.display()));
        self.file.sync_all().map_err(failed)?;
        let written = self.file.metadata().map_err(failed)?.len();
        if force {
            std::fs::rename(&self.path, target).map_err(failed)?;
        } else {
            // A link does not replace what has come there meanwhile, as a rename would.
            match std::fs::hard_link(&self.path, target) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => refuse_existing(target, false)?,
                // Some file systems have no links.
                Err(_) => std::fs::rename(&self.path, target).map_err(failed)?,
            }
        }
        Ok(written)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // renamed, or of no use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_not_replaced_by_a_file() {
        let refused = refuse_existing(Path::new("/dev/null"), true).unwrap_err();
        assert_eq!(refused.code, FailureCode::Invalid, "{}", refused.text);
    }

    #[test]
    fn ranges_are_read_and_wrong_ones_refused() {
        assert_eq!(parse_range("0-1023").unwrap(), 0..1024);
        assert_eq!(parse_range("5-5").unwrap(), 5..6);
        for wrong in ["", "5", "6-5", "a-b", "-5", "0-18446744073709551615"] {
            assert_eq!(parse_range(wrong).unwrap_err().exit_status(), 2, "{wrong}");
        }
    }

    #[test]
    fn what_to_get_is_an_id_or_a_ticket_that_has_not_expired() {
        let id = ContentId([7; 32]);
        assert_eq!(parse_what(&id.to_string()).unwrap().0, id);
        let ticket = Ticket {
            content: id,
            size: 1,
            node: pangea_ipc::ids::NodeId([1; 32]),
            addresses: vec!["127.0.0.1:5".parse().unwrap()],
            expires_s: 0,
            name: "n".to_owned(),
        };
        let (content, peers, name) = parse_what(&ticket.to_string()).unwrap();
        assert_eq!((content, peers.len(), name.as_str()), (id, 1, "n"));
        let old = Ticket { expires_s: 1, ..ticket };
        assert_eq!(parse_what(&old.to_string()).unwrap_err().code, FailureCode::Denied);
        for what in ["hello", "pangea1xyz"] {
            assert_eq!(parse_what(what).unwrap_err().exit_status(), 2);
        }
    }
}
