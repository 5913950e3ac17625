//! What survives a restart of the controller: contents, pending puts, peers, paths, policies, in one `redb` database.
//!
//! Every change is one durable transaction. Values are lines of `key=value` or plain text, so that a newer version can
//! add fields and an older one ignore them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use pangea_control_core::catalog::{Claim, Record};
use pangea_ipc::address::PeerAddress;
use pangea_ipc::failure::Failure;
use pangea_ipc::ids::{ContentId, JobId, NodeId, Revision};
use pangea_ipc::policy::{Policy, Revised};
use pangea_ipc::worker::KnownPath;
use redb::{Database, DatabaseError, Error, ReadableDatabase, ReadableTable, TableDefinition};

const CONTENTS: TableDefinition<'_, &[u8], &str> = TableDefinition::new("contents");
const PUTS: TableDefinition<'_, u64, &str> = TableDefinition::new("pending_puts");
const PEERS: TableDefinition<'_, &[u8], &str> = TableDefinition::new("peers");
const PATHS: TableDefinition<'_, &[u8], &str> = TableDefinition::new("paths");
const POLICIES: TableDefinition<'_, u64, &str> = TableDefinition::new("policies");
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");

/// Name of the database in the state folder.
pub const FILE: &str = "catalog.redb";
/// Version of the tables; a database of a later one is refused.
const VERSION: &str = "1";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// It cannot be opened, read or written.
    #[error("{}: {why}; if it is damaged, move it away: contents are found again in the store, pins and peers are not", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What the library said.
        why: String,
    },
    /// The disk is full.
    #[error("{}: {why}; what was asked is not stored: free some room on the disk and ask again", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Another controller has it.
    #[error("{} is in use by another pangea-controller; give each node a --state-dir of its own, or stop the other", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A later version made it.
    #[error("{} is of version {found}, this program knows version {VERSION}; upgrade it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
}

impl DbError {
    /// What a program is told.
    #[must_use]
    pub fn to_failure(&self) -> Failure {
        match self {
            Self::Full { .. } => Failure::full(self.to_string()),
            _ => Failure::storage(self.to_string()),
        }
    }
}

/// The database.
pub struct CatalogDb {
    /// `None` after the disk refused, until it is opened again.
    database: RefCell<Option<Database>>,
    path: PathBuf,
}

/// All that was stored.
#[derive(Debug, Default)]
pub struct Stored {
    /// Contents.
    pub contents: Vec<(ContentId, Record)>,
    /// Names of puts that had not ended.
    pub puts: BTreeMap<JobId, String>,
    /// Peers that the operator added.
    pub peers: Vec<PeerAddress>,
    /// What the paths to peers carried.
    pub paths: Vec<(NodeId, KnownPath)>,
    /// Policies that were in force.
    pub policies: Vec<Revised>,
    /// The policy part of the configuration under which the node last started.
    pub configured: Option<String>,
}

impl CatalogDb {
    /// Opens or makes the database, and reads all of it.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(state_dir: &Path) -> Result<(Self, Stored), DbError> {
        let path = state_dir.join(FILE);
        without_panic(&path, || Self::open_file(path.clone()))
    }

    fn open_file(path: PathBuf) -> Result<(Self, Stored), DbError> {
        // As a crash leaves it that came before anything was written; also what else may have emptied it.
        if std::fs::metadata(&path).is_ok_and(|file| file.len() == 0) {
            tracing::warn!(path = %path.display(), "the catalog is an empty file: names, pins, peers and policies begin anew");
        }
        let database = Database::create(&path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => DbError::InUse { path: path.clone() },
            error => failed(&path, error),
        })?;
        let db = Self { database: RefCell::new(Some(database)), path };
        db.write(|transaction| {
            transaction.open_table(CONTENTS)?;
            transaction.open_table(PUTS)?;
            transaction.open_table(PEERS)?;
            transaction.open_table(PATHS)?;
            transaction.open_table(POLICIES)?;
            transaction.open_table(META)?;
            Ok(())
        })?;
        let stored = db.read_all()?;
        Ok((db, stored))
    }

    fn read_all(&self) -> Result<Stored, DbError> {
        let (version, stored) = self.load().map_err(|error| failed(&self.path, error))?;
        match version.as_deref() {
            None => self.write(|transaction| {
                transaction.open_table(META)?.insert("version", VERSION).map(drop).map_err(Into::into)
            })?,
            Some(VERSION) => {}
            Some(found) => {
                return Err(DbError::Version { path: self.path.clone(), found: found.to_owned() });
            }
        }
        Ok(stored)
    }

    fn load(&self) -> Result<(Option<String>, Stored), Error> {
        let database = self.database.borrow();
        let Some(database) = database.as_ref() else { return Err(Error::PreviousIo) };
        let transaction = database.begin_read()?;
        let mut stored = Stored::default();
        for entry in transaction.open_table(CONTENTS)?.iter()? {
            let (key, value) = entry?;
            if let Ok(id) = key.value().try_into() {
                stored.contents.push((ContentId(id), parse_record(value.value())));
            }
        }
        for entry in transaction.open_table(PUTS)?.iter()? {
            let (key, value) = entry?;
            stored.puts.insert(JobId(key.value()), value.value().to_owned());
        }
        for entry in transaction.open_table(PEERS)?.iter()? {
            let (_, value) = entry?;
            stored.peers.extend(value.value().parse::<PeerAddress>());
        }
        for entry in transaction.open_table(PATHS)?.iter()? {
            let (key, value) = entry?;
            if let (Ok(node), Some(path)) = (key.value().try_into(), parse_path(value.value())) {
                stored.paths.push((NodeId(node), path));
            }
        }
        for entry in transaction.open_table(POLICIES)?.iter()? {
            let (key, value) = entry?;
            if let Some(policy) = parse_policy(value.value()) {
                stored.policies.push(Revised { revision: Revision(key.value()), policy });
            }
        }
        let meta = transaction.open_table(META)?;
        stored.configured = meta.get("configured")?.map(|value| value.value().to_owned());
        Ok((meta.get("version")?.map(|value| value.value().to_owned()), stored))
    }

    /// Stores a content's record, or forgets it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_content(&self, id: ContentId, record: Option<&Record>) -> Result<(), DbError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(CONTENTS)?;
            match record {
                Some(record) => table.insert(&id.0[..], print_record(record).as_str()).map(drop)?,
                None => table.remove(&id.0[..]).map(drop)?,
            }
            Ok(())
        })
    }

    /// Remembers the name of a put that has begun, or forgets it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_put(&self, job: JobId, name: Option<&str>) -> Result<(), DbError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(PUTS)?;
            match name {
                Some(name) => table.insert(job.0, name).map(drop)?,
                None => table.remove(job.0).map(drop)?,
            }
            Ok(())
        })
    }

    /// Remembers a peer, or forgets it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_peer(&self, node: NodeId, peer: Option<PeerAddress>) -> Result<(), DbError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(PEERS)?;
            match peer {
                Some(peer) => table.insert(&node.0[..], peer.to_string().as_str()).map(drop)?,
                None => table.remove(&node.0[..]).map(drop)?,
            }
            Ok(())
        })
    }

    /// Stores what the paths to peers carried; those that are not among them are forgotten.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_paths(&self, paths: &[(NodeId, KnownPath)]) -> Result<(), DbError> {
        self.write(|transaction| {
            transaction.delete_table(PATHS)?;
            let mut table = transaction.open_table(PATHS)?;
            for (node, path) in paths {
                table.insert(&node.0[..], print_path(path).as_str())?;
            }
            Ok(())
        })
    }

    /// Stores a policy and forgets those that are kept no more.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn add_policy(&self, revised: &Revised, dropped: &[Revision]) -> Result<(), DbError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(POLICIES)?;
            table.insert(revised.revision.0, print_policy(&revised.policy).as_str())?;
            for revision in dropped {
                table.remove(revision.0)?;
            }
            Ok(())
        })
    }

    /// Remembers the policy part of the configuration.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_configured(&self, text: &str) -> Result<(), DbError> {
        self.write(|transaction| transaction.open_table(META)?.insert("configured", text).map(drop).map_err(Into::into))
    }

    /// After an error of the disk, redb takes nothing more until the file is opened again.
    fn write(&self, change: impl Fn(&redb::WriteTransaction) -> Result<(), Error>) -> Result<(), DbError> {
        let run = |database: &Database| -> Result<(), Error> {
            let transaction = database.begin_write()?;
            change(&transaction)?;
            transaction.commit()?;
            Ok(())
        };
        let mut slot = self.database.borrow_mut();
        let result = match slot.as_ref() {
            Some(database) => run(database),
            None => Err(Error::PreviousIo),
        };
        let result = match result {
            Err(Error::PreviousIo) => {
                slot.take(); // one of them at a time
                let opened = without_panic(&self.path, || {
                    Database::create(&self.path).map_err(|error| failed(&self.path, error))
                })?;
                run(slot.insert(opened))
            }
            result => result,
        };
        result.map_err(|error| failed(&self.path, error))
    }
}

fn failed(path: &Path, error: impl Into<Error>) -> DbError {
    let path = path.to_owned();
    match error.into() {
        Error::Io(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            DbError::Full { path, why: error.to_string() }
        }
        error => DbError::Database { path, why: error.to_string() },
    }
}

/// redb asserts what a damaged file does not keep; that is an error like others.
fn without_panic<T>(path: &Path, work: impl FnOnce() -> Result<T, DbError>) -> Result<T, DbError> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(hook);
    let damaged = |_| Err(DbError::Database { path: path.to_owned(), why: "what is in it makes no sense".to_owned() });
    result.unwrap_or_else(damaged)
}

fn print_record(record: &Record) -> String {
    let mut lines = vec![
        format!("size={}", record.size),
        format!("held={}", record.chunks_held),
        format!("disk={}", record.disk_bytes),
        format!("whole={}", record.was_whole),
        format!("pinned={}", record.pinned),
        format!("used={}", record.used_s),
    ];
    lines.extend(record.providers.iter().map(|(node, claim)| format!("provider={node} {} {}", claim.at_s, claim.size)));
    lines.push(format!("name={}", record.name)); // names have no line breaks: see `ticket::checked_name`
    lines.join("\n")
}

/// A field that makes no sense is as good as absent: the store knows what is really there.
fn parse_record(text: &str) -> Record {
    let mut record = Record::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match key {
            "size" => record.size = value.parse().unwrap_or_default(),
            "held" => record.chunks_held = value.parse().unwrap_or_default(),
            "disk" => record.disk_bytes = value.parse().unwrap_or_default(),
            "whole" => record.was_whole = value == "true",
            "pinned" => record.pinned = value == "true",
            "used" => record.used_s = value.parse().unwrap_or_default(),
            "name" => value.clone_into(&mut record.name),
            "provider" => {
                if let Some((node, claim)) = parse_provider(value) {
                    record.note_provider(node, claim);
                }
            }
            _ => {} // of a later version
        }
    }
    record
}

fn parse_provider(text: &str) -> Option<(NodeId, Claim)> {
    let mut words = text.split(' ');
    let (node, at_s) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let size = words.next().and_then(|size| size.parse().ok()).unwrap_or_default(); // an older version had none
    Some((node, Claim { at_s, size }))
}

fn print_path(path: &KnownPath) -> String {
    format!("rate={}\nrtt_us={}\nloss_ppm={}", path.rate, path.rtt_us, path.loss_ppm)
}

/// `None` when it does not say enough to be of use.
fn parse_path(text: &str) -> Option<KnownPath> {
    let (mut rate, mut rtt_us, mut loss_ppm) = (None, None, 0);
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match key {
            "rate" => rate = value.parse().ok(),
            "rtt_us" => rtt_us = value.parse().ok(),
            "loss_ppm" => loss_ppm = value.parse().unwrap_or_default(),
            _ => {} // of a later version
        }
    }
    Some(KnownPath { rate: rate?, rtt_us: rtt_us?, loss_ppm })
}

/// A policy as text: one `KEY=VALUE` a line.
#[must_use]
pub fn print_policy(policy: &Policy) -> String {
    policy.entries().map(|(key, value)| format!("{}={value}", key.name)).collect::<Vec<_>>().join("\n")
}

fn parse_policy(text: &str) -> Option<Policy> {
    text.lines().try_fold(Policy::default(), Policy::with_assignment).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let id = ContentId([3; 32]);
        let node = NodeId([4; 32]);
        let mut record =
            Record { name: "a = b".into(), size: 7, chunks_held: 1, disk_bytes: 4096, ..Record::default() };
        (record.pinned, record.used_s) = (true, 99);
        record.note_provider(node, Claim { at_s: 5, size: 7 });
        assert_eq!(
            parse_provider(&format!("{node} 5")),
            Some((node, Claim { at_s: 5, size: 0 })),
            "of an older version"
        );
        let peer = PeerAddress { node, address: Some("127.0.0.1:7".parse().unwrap()) };
        let path = KnownPath { rate: 12_500_000, rtt_us: 50_000, loss_ppm: 10_000 };
        let revised =
            Revised { revision: Revision(2), policy: Policy { fec_max_overhead_pct: 9, ..Policy::default() } };
        {
            let (db, stored) = CatalogDb::open(folder.path()).unwrap();
            assert!(stored.contents.is_empty() && stored.policies.is_empty());
            db.set_content(id, Some(&record)).unwrap();
            db.set_content(ContentId([9; 32]), Some(&record)).unwrap();
            db.set_content(ContentId([9; 32]), None).unwrap();
            db.set_put(JobId(1), Some("x")).unwrap();
            db.set_peer(node, Some(peer)).unwrap();
            db.set_paths(&[(NodeId([5; 32]), path)]).unwrap();
            db.set_paths(&[(node, path)]).unwrap();
            db.add_policy(&Revised { revision: Revision(1), policy: Policy::default() }, &[]).unwrap();
            db.add_policy(&revised, &[Revision(1)]).unwrap();
            db.set_configured("c").unwrap();
        }
        let (db, stored) = CatalogDb::open(folder.path()).unwrap();
        assert_eq!(stored.contents, [(id, record)]);
        assert_eq!(stored.puts, BTreeMap::from([(JobId(1), "x".to_owned())]));
        assert_eq!((stored.peers, stored.policies), (vec![peer], vec![revised]));
        assert_eq!(stored.paths, [(node, path)], "of the last time only");
        assert_eq!(parse_path("rate=1"), None);
        assert_eq!(stored.configured.as_deref(), Some("c"));
        db.write(|t| t.open_table(META)?.insert("version", "2").map(drop).map_err(Into::into)).unwrap();
        drop(db);
        assert!(matches!(CatalogDb::open(folder.path()), Err(DbError::Version { .. })));
    }

    #[test]
    fn a_damaged_database_is_an_error_and_no_panic() {
        for at in [0, 100, 4096, 9000] {
            let folder = tempfile::tempdir().unwrap();
            let (db, _) = CatalogDb::open(folder.path()).unwrap();
            for n in 0..50 {
                db.set_content(ContentId([n; 32]), Some(&Record { size: 7, ..Record::default() })).unwrap();
            }
            drop(db);
            let path = folder.path().join(FILE);
            let mut bytes = std::fs::read(&path).unwrap();
            let mut word: u32 = 1;
            for byte in &mut bytes[at..] {
                word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = word.to_be_bytes()[0];
            }
            std::fs::write(&path, bytes).unwrap();
            let error = CatalogDb::open(folder.path()).err().unwrap().to_string();
            assert!(error.contains("move it away"), "from byte {at}: {error}");
        }
    }

    #[test]
    fn a_database_that_the_disk_refused_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (db, _) = CatalogDb::open(folder.path()).unwrap();
        db.database.borrow_mut().take();
        db.set_configured("once more").unwrap();
        drop(db);
        let (_db, stored) = CatalogDb::open(folder.path()).unwrap();
        assert_eq!(stored.configured.as_deref(), Some("once more"));
    }

    #[test]
    fn a_database_in_use_is_not_called_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let _open = CatalogDb::open(folder.path()).unwrap();
        let error = CatalogDb::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("in use by another") && !error.contains("damaged"), "{error}");
    }

    #[test]
    fn a_damaged_database_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), [7; 10_000]).unwrap();
        let error = CatalogDb::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("move it away"), "{error}");
    }
}
