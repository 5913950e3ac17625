//! A machine under test: its disk fails, or its power does, at a chosen change; what was not synced may then be lost.
//!
//! The functions are those of [`disk`], which do the work. What is written but not synced is remembered with what was
//! there before, so that [`Machine::restart`] can take it back.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::StoreError;
use super::disk;
pub(super) use super::disk::{Located, reserve};

/// What happens at the chosen change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The power goes: a write is done by half, anything else not at all, and nothing after it.
    Power,
    /// The system says this once; nothing is done, and the rest goes on.
    Error(i32),
}

/// Which of the changes that were not synced a loss of power takes back.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Loss {
    /// Bytes of `data` files.
    pub(super) data: bool,
    /// Bytes of all other files.
    pub(super) others: bool,
    /// Files and folders that were made or moved.
    pub(super) names: bool,
}

impl Loss {
    /// Every combination; nothing lost is the death of the process alone.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..8).map(|bits| Self { data: bits & 1 != 0, others: bits & 2 != 0, names: bits & 4 != 0 })
    }
}

#[derive(Debug)]
enum Dirty {
    Bytes { path: PathBuf, offset: u64, before: Vec<u8>, written: u64, len: u64, synced_in_vain: bool },
    Made(PathBuf),
    Moved { from: PathBuf, to: PathBuf },
}

#[derive(Debug, Default)]
struct State {
    fault: Option<(usize, Fault)>,
    changes: usize,
    off: bool,
    dirty: Vec<Dirty>,
}

/// A folder whose changes are watched. Dropped, it is an ordinary one again.
pub(super) struct Machine {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

static MACHINES: Mutex<Vec<(PathBuf, Arc<Mutex<State>>)>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    pub(super) fn new(root: &Path) -> Self {
        let state = Arc::default();
        lock(&MACHINES).push((root.to_owned(), Arc::clone(&state)));
        Self { root: root.to_owned(), state }
    }

    /// The change after `changes` more fails.
    pub(super) fn fail_after(&self, changes: usize, fault: Fault) {
        let mut state = lock(&self.state);
        (state.fault, state.changes) = (Some((changes, fault)), 0);
    }

    /// Changes tried since the last fault was chosen.
    pub(super) fn changes(&self) -> usize {
        lock(&self.state).changes
    }

    /// Power is back, or goes and comes back: what was not synced is gone as far as `loss` says.
    pub(super) fn restart(&self, loss: Loss) {
        let mut state = lock(&self.state);
        let dirty = std::mem::take(&mut state.dirty);
        *state = State::default();
        for change in dirty.iter().rev() {
            if let Dirty::Bytes { path, offset, before, len, .. } = change
                && (if path.ends_with("data") { loss.data } else { loss.others })
                && let Ok(file) = std::fs::File::options().write(true).open(path)
            {
                file.write_all_at(before, *offset).unwrap();
                file.set_len(*len).unwrap();
            }
        }
        for change in dirty.iter().rev().filter(|_| loss.names) {
            match change {
                Dirty::Made(path) if path.is_dir() => std::fs::remove_dir_all(path).unwrap(),
                Dirty::Made(path) if path.exists() => std::fs::remove_file(path).unwrap(),
                Dirty::Moved { from, to } if to.exists() => std::fs::rename(to, from).unwrap(),
                _ => {} // removed since
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        lock(&MACHINES).retain(|(root, _)| *root != self.root);
    }
}

/// What becomes of a change.
enum Verdict {
    Do(Option<Arc<Mutex<State>>>),
    Half(Arc<Mutex<State>>, io::Error),
    Refuse(io::Error),
}

fn judge(path: &Path) -> Verdict {
    let machine = lock(&MACHINES).iter().find(|(root, _)| path.starts_with(root)).map(|(_, state)| Arc::clone(state));
    let Some(machine) = machine else { return Verdict::Do(None) };
    let mut state = lock(&machine);
    let no_power = || io::Error::other("the power is off");
    if state.off {
        return Verdict::Refuse(no_power());
    }
    let at = state.changes;
    state.changes += 1;
    match state.fault {
        Some((chosen, Fault::Power)) if chosen == at => {
            state.off = true;
            drop(state);
            Verdict::Half(machine, no_power())
        }
        Some((chosen, Fault::Error(code))) if chosen == at => {
            drop(state);
            Verdict::Refuse(io::Error::from_raw_os_error(code))
        }
        _ => {
            drop(state);
            Verdict::Do(Some(machine))
        }
    }
}

fn note(machine: Option<&Arc<Mutex<State>>>, dirty: Dirty) {
    if let Some(machine) = machine {
        lock(machine).dirty.push(dirty);
    }
}

/// What a range of a file, and its length, are before they are changed.
fn before(of: &Located, offset: u64, len: usize) -> Dirty {
    let all = of.file.metadata().unwrap().len();
    let there = usize::try_from(all.saturating_sub(offset)).unwrap().min(len);
    let mut before = vec![0; there];
    of.file.read_exact_at(&mut before, offset).unwrap();
    let written = len as u64;
    Dirty::Bytes { path: of.path.clone(), offset, before, written, len: all, synced_in_vain: false }
}

pub(super) fn open(path: &Path) -> Result<(Located, bool), StoreError> {
    if path.exists() {
        return disk::open(path);
    }
    match judge(path) {
        Verdict::Do(machine) => {
            let opened = disk::open(path)?;
            note(machine.as_ref(), Dirty::Made(path.to_owned()));
            Ok(opened)
        }
        Verdict::Half(_, error) | Verdict::Refuse(error) => Err(StoreError::at(path)(error)),
    }
}

pub(super) fn write_at(to: &Located, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
    match judge(&to.path) {
        Verdict::Do(machine) => {
            note(machine.as_ref(), before(to, offset, bytes.len()));
            disk::write_at(to, bytes, offset)
        }
        Verdict::Half(machine, error) => {
            let half = bytes.get(..bytes.len() / 2).unwrap();
            note(Some(&machine), before(to, offset, half.len()));
            disk::write_at(to, half, offset)?;
            Err(StoreError::at(&to.path)(error))
        }
        Verdict::Refuse(error) => Err(StoreError::at(&to.path)(error)),
    }
}

pub(super) fn set_len(of: &Located, len: u64) -> Result<(), StoreError> {
    match judge(&of.path) {
        Verdict::Do(machine) => {
            let all = usize::try_from(of.file.metadata().unwrap().len().saturating_sub(len)).unwrap();
            note(machine.as_ref(), before(of, len, all));
            disk::set_len(of, len)
        }
        Verdict::Half(_, error) | Verdict::Refuse(error) => Err(StoreError::at(&of.path)(error)),
    }
}

/// A sync that fails is the worst of its kind: the system takes what was written for clean, and will not try again.
pub(super) fn sync(of: &Located) -> Result<(), StoreError> {
    let verdict = judge(&of.path);
    let failed = |source| Err(StoreError::Sync { path: of.path.clone(), source });
    let machine = lock(&MACHINES).iter().find(|(root, _)| of.path.starts_with(root)).map(|(_, s)| Arc::clone(s));
    let Some(machine) = machine else { return disk::sync(of) };
    let mut state = lock(&machine);
    let is_of = |dirty: &Dirty| matches!(dirty, Dirty::Bytes { path, synced_in_vain: false, .. } if *path == of.path);
    match verdict {
        Verdict::Do(_) => {
            let (synced, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut state.dirty).into_iter().partition(is_of);
            // What was written once more after it was synced in vain is safe now.
            let range = |dirty: &Dirty| match dirty {
                Dirty::Bytes { path, offset, written, .. } => Some((path.clone(), *offset, *offset + *written)),
                _ => None,
            };
            let safe: Vec<_> = synced.iter().filter_map(range).collect();
            let lost = |dirty: &Dirty| match range(dirty) {
                Some((path, start, end)) => {
                    !safe.iter().any(|(other, from, to)| *other == path && *from <= start && end <= *to)
                }
                None => true,
            };
            state.dirty = kept.into_iter().filter(lost).collect();
            Ok(())
        }
        Verdict::Half(_, error) => failed(error),
        Verdict::Refuse(error) => {
            for dirty in state.dirty.iter_mut().filter(|dirty| is_of(dirty)) {
                if let Dirty::Bytes { synced_in_vain, .. } = dirty {
                    *synced_in_vain = true;
                }
            }
            failed(error)
        }
    }
}

pub(super) fn create_folder(path: &Path) -> Result<(), StoreError> {
    match judge(path) {
        Verdict::Do(machine) => {
            disk::create_folder(path)?;
            note(machine.as_ref(), Dirty::Made(path.to_owned()));
            Ok(())
        }
        Verdict::Half(_, error) | Verdict::Refuse(error) => Err(StoreError::at(path)(error)),
    }
}

pub(super) fn sync_folder(path: &Path) -> Result<(), StoreError> {
    match judge(path) {
        Verdict::Do(Some(machine)) => {
            let inside = |other: &Path| other.parent() == Some(path);
            lock(&machine).dirty.retain(|dirty| match dirty {
                Dirty::Bytes { .. } => true,
                Dirty::Made(made) => !inside(made),
                Dirty::Moved { from, to } => !inside(from) && !inside(to),
            });
            Ok(())
        }
        Verdict::Do(None) => disk::sync_folder(path),
        Verdict::Half(_, source) | Verdict::Refuse(source) => Err(StoreError::Sync { path: path.to_owned(), source }),
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match judge(from) {
        Verdict::Do(machine) => {
            disk::rename(from, to)?;
            let Some(machine) = machine else { return Ok(()) };
            let mut state = lock(&machine);
            for dirty in &mut state.dirty {
                if let Dirty::Bytes { path, .. } | Dirty::Made(path) = dirty
                    && let Ok(rest) = path.strip_prefix(from)
                {
                    *path = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
                }
            }
            state.dirty.push(Dirty::Moved { from: from.to_owned(), to: to.to_owned() });
            Ok(())
        }
        Verdict::Half(_, error) | Verdict::Refuse(error) => Err(error),
    }
}

pub(super) fn remove_all(path: &Path) -> Result<(), StoreError> {
    if !path.exists() {
        return disk::remove_all(path);
    }
    match judge(path) {
        Verdict::Do(_) => disk::remove_all(path),
        Verdict::Half(_, error) | Verdict::Refuse(error) => Err(StoreError::at(path)(error)),
    }
}
