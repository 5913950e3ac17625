//! The demonstration leaves nothing behind, however it ends.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pangea_ipc::runtime::counters_prefix;
use pangea_tests::node::{program, wait_within};

/// What must happen happens within this time, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn wait_for(what: &str, done: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, done);
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn demo(place: &Path) -> Command {
    let mut command = program("pangeactl");
    command.arg("demo").env("TMPDIR", place).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Processes whose command line names a folder.
fn processes_of(folder: &Path) -> Vec<Pid> {
    let folder = folder.to_str().unwrap();
    let named = |process: &Path| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default(); // ended meanwhile
        String::from_utf8_lossy(&line).contains(folder)
    };
    let processes = entries(Path::new("/proc")).into_iter().filter(|process| named(process));
    processes.filter_map(|process| process.file_name()?.to_str()?.parse().ok().map(Pid::from_raw)).collect()
}

fn end_all(processes: &[Pid]) {
    for process in processes {
        let _ = kill(*process, Signal::SIGKILL); // gone is as good
    }
}

/// Shared memory of the nodes of a demonstration in this folder.
fn memory_of(folder: &Path) -> Vec<PathBuf> {
    let prefixes = ["a", "b"].map(|node| counters_prefix(&folder.join(node).join("run")));
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        prefixes.iter().any(|prefix| name.starts_with(prefix))
    };
    entries(Path::new("/dev/shm")).into_iter().filter(named).collect()
}

/// A demonstration with the put under way. What is left of it when a test fails is ended.
struct Demo {
    child: Child,
    folder: PathBuf,
}

impl Demo {
    fn start(place: &Path, file: &Path) -> Self {
        std::fs::File::create(file).unwrap().set_len(1 << 30).unwrap(); // a hole: it takes no room
        let child = demo(place).arg(file).spawn().unwrap();
        let mut demo = Self { child, folder: place.join("not yet") };
        wait_for("a put begins", || {
            demo.folder = entries(place).pop().unwrap_or_default();
            demo.incoming() > 0
        });
        assert!(!processes_of(&demo.folder).is_empty() && !memory_of(&demo.folder).is_empty());
        demo
    }

    /// Bytes of a put that is not done.
    fn incoming(&self) -> u64 {
        let store = entries(&self.folder.join("a/state/store"));
        let incoming = store.iter().filter(|put| put.file_name().unwrap().to_string_lossy().starts_with("incoming-"));
        incoming.filter_map(|put| put.join("data").metadata().ok()).map(|data| data.len()).sum()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already, in a test that passes
        let _ = self.child.wait();
        if self.folder.exists() {
            end_all(&processes_of(&self.folder));
        }
    }
}

#[test]
fn an_interrupt_while_it_puts_ends_it_and_leaves_nothing() {
    let (place, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut demo = Demo::start(place.path(), &files.path().join("large"));
    let memory = memory_of(&demo.folder);
    // With its workers stopped the put can neither go on nor end by itself.
    for process in processes_of(&demo.folder.join("a")) {
        let line = std::fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap();
        if line.contains("pangea-worker") {
            kill(process, Signal::SIGSTOP).unwrap();
        }
    }
    assert!(demo.incoming() > 0, "the put is not done");
    kill(demo.pid(), Signal::SIGINT).unwrap();
    wait_for("the end", || demo.child.try_wait().unwrap().is_some());
    let mut said = String::new();
    demo.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(demo.child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("interrupted; nothing is left behind"), "{said}");
    assert!(entries(place.path()).is_empty() && processes_of(&demo.folder).is_empty());
    assert!(memory.iter().all(|segment| !segment.exists()));
}

#[test]
fn what_a_killed_one_leaves_ends_by_itself_or_is_removed_by_the_next() {
    for everything in [false, true] {
        let (place, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut killed = Demo::start(place.path(), &files.path().join("large"));
        let folder = killed.folder.clone();
        let memory = memory_of(&folder);
        let mut victims = vec![killed.pid()];
        if everything {
            victims.extend(processes_of(&folder));
        }
        end_all(&victims);
        killed.child.wait().unwrap();
        wait_for("its nodes end", || processes_of(&folder).is_empty());
        assert!(folder.exists(), "nobody is left who could remove it");
        assert_eq!(memory.iter().any(|segment| segment.exists()), everything, "controllers that end clean up");
        let next = demo(place.path()).args(["--size", "1MiB"]).output().unwrap();
        let said = String::from_utf8_lossy(&next.stderr);
        assert!(next.status.success() && said.contains(&format!("removed {}", folder.display())), "{said}");
        assert!(entries(place.path()).is_empty(), "{:?}", entries(place.path()));
        assert!(memory.iter().all(|segment| !segment.exists()));
    }
}
