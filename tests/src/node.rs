//! One node under test: a controller with its workers in folders of its own, gone without a trace when dropped.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// A node is ready within this time, also on a machine that is busy compiling.
const START_TIME: Duration = Duration::from_secs(30);
/// A node ends within this time.
const END_TIME: Duration = Duration::from_secs(20);
/// How often a state that has no event for outsiders is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How a node under test differs from a default one.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Workers.
    pub workers: u16,
    /// Datagrams to lose, of 100.
    pub loss_pct: f64,
    /// `KEY=VALUE` policy assignments.
    pub policy: Vec<String>,
    /// Further arguments of the controller.
    pub arguments: Vec<String>,
    /// Address of the controller and of the first worker.
    pub listen: String,
    /// State folder; one of the node's own without it.
    pub state_dir: Option<PathBuf>,
    /// Network namespace that the node lives in; the test's own without it.
    pub namespace: Option<String>,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            workers: 2,
            loss_pct: 0.0,
            policy: Vec::new(),
            arguments: Vec::new(),
            listen: "127.0.0.1:0".to_owned(),
            state_dir: None,
            namespace: None,
        }
    }
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    controller: Child,
    /// Its end is how the controller learns that the test has gone.
    stdin: Option<ChildStdin>,
    folder: TempDir,
    options: NodeOptions,
    /// Where the controller listens for peers.
    listen: String,
    id: String,
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Run {
    /// Exit status; `None` = ended by a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    /// Standard output of a command that must succeed.
    ///
    /// # Panics
    /// When it failed.
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "failed: {}", self.stderr);
        self.stdout
    }

    /// Standard error of a command that must fail.
    ///
    /// # Panics
    /// When it succeeded or was ended by a signal.
    #[must_use]
    pub fn refused(self) -> String {
        assert!(self.code.is_some_and(|code| code != 0), "did not fail: {self:?}");
        self.stderr
    }
}

/// The folder of the programs under test: where this test's own binary was built.
///
/// # Panics
/// When the programs are not there.
#[must_use]
pub fn programs() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let folder = own
        .ancestors()
        .skip(1)
        .find(|folder| folder.join("pangea-controller").exists())
        .unwrap_or_else(|| panic!("pangea-controller is not built beside {}; run cargo build", own.display()));
    folder.to_owned()
}

/// A program of Pangea, not yet started.
#[must_use]
pub fn program(name: &str) -> Command {
    Command::new(programs().join(name))
}

impl Node {
    /// Starts a node in fresh folders and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    #[must_use]
    pub fn start(options: NodeOptions) -> Self {
        let folder = tempfile::Builder::new().prefix("pangea-test-").tempdir().expect("a temporary folder");
        let (controller, stdin) = spawn_controller(folder.path(), &options, &options.listen);
        let listen = options.listen.clone();
        let mut node = Self { controller, stdin: Some(stdin), folder, options, listen, id: String::new() };
        node.wait_ready();
        node
    }

    /// Waits until every worker runs, also after one was killed.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_ready(&mut self) {
        let deadline = Instant::now() + START_TIME;
        loop {
            let status = self.ctl(["status", "--json"]);
            if status.code == Some(0) {
                let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
                let workers = status["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
                let running = workers.iter().filter(|worker| worker["state"] == "running").count();
                if running == usize::from(self.options.workers) {
                    status["listen"].as_str().expect("a listen address").clone_into(&mut self.listen);
                    status["node"].as_str().expect("a node id").clone_into(&mut self.id);
                    return;
                }
            }
            if let Ok(Some(ended)) = self.controller.try_wait() {
                panic!("the controller ended with {ended} before it was ready:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "not ready in {START_TIME:?}: {status:?}\n{}", self.log());
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Folder of its sockets.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        runtime_dir_in(self.folder.path())
    }

    /// Folder of its key, catalog and store.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        state_dir(self.folder.path(), &self.options)
    }

    /// A path in a folder of its own for files of the test.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }

    /// What the controller and its workers have logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// `pangeactl` for this node, not yet started.
    #[must_use]
    pub fn ctl_command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = program("pangeactl");
        command
            .arg("--runtime-dir")
            .arg(self.runtime_dir())
            .args(arguments)
            .current_dir(self.folder.path().join("files"));
        command.stdin(Stdio::null());
        command
    }

    /// Runs `pangeactl` for this node to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn ctl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        let output = self.ctl_command(arguments).output().expect("pangeactl starts");
        Run {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs `pangeactl … --json`, which must succeed, and reads its document.
    ///
    /// # Panics
    /// When it fails or prints no JSON.
    pub fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Value {
        let mut command = self.ctl_command(arguments);
        let output = command.arg("--json").output().expect("pangeactl starts");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON document")
    }

    /// Where the controller listens for peers.
    ///
    /// # Panics
    /// When it does not say.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen.parse().expect("a listen address")
    }

    /// `NODEID@HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}@{}", self.id, self.listen())
    }

    /// Admits another node here and this one there.
    pub fn befriend(&self, other: &Self) {
        let _ = self.ctl(["peer", "add", other.id()]).ok();
        let _ = other.ctl(["peer", "add", &self.address()]).ok();
    }

    /// Puts a file; says its content id.
    #[must_use]
    pub fn put(&self, path: &Path) -> String {
        self.ctl([OsStr::new("put"), path.as_os_str()]).ok().trim().to_owned()
    }

    /// A ticket for a content.
    #[must_use]
    pub fn ticket(&self, id: &str) -> String {
        self.ctl(["ticket", id]).ok().trim().to_owned()
    }

    /// A counter, summed over the workers, which publish it every 250 ms.
    ///
    /// # Panics
    /// When there is no such counter.
    #[must_use]
    pub fn counted(&self, name: &str) -> u64 {
        let workers = self.json(["workers"]);
        let workers = workers["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
        // One that does not run yet, or no more, has none.
        let counters = workers.iter().filter_map(|worker| worker["counters"].as_array()).filter(|all| !all.is_empty());
        let of = |counters: &Vec<Value>| counters.iter().find(|pair| pair[0] == name)?[1].as_u64();
        counters.map(|counters| of(counters).expect("a counter of this name")).sum()
    }

    /// Process ids of the running workers, by number.
    #[must_use]
    pub fn worker_pids(&self) -> Vec<i32> {
        let workers = self.json(["workers"]);
        let pids = workers["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
        pids.iter().filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok()).filter(|pid| *pid > 0).collect()
    }

    /// Process id of the controller.
    ///
    /// # Panics
    /// When the system has process ids that do not fit.
    #[must_use]
    pub fn controller_pid(&self) -> i32 {
        i32::try_from(self.controller.id()).expect("a process id")
    }

    /// Ends the controller as a crash would; its workers live on.
    ///
    /// # Panics
    /// When it cannot be ended.
    pub fn kill_controller(&mut self) {
        self.controller.kill().expect("the controller can be ended");
        self.controller.wait().expect("the controller has ended");
    }

    /// Starts a controller in the folders and at the address of the one that has ended, and waits until it is ready.
    pub fn restart_controller(&mut self) {
        let (controller, stdin) = spawn_controller(self.folder.path(), &self.options, &self.listen);
        self.controller = controller;
        self.stdin = Some(stdin);
        self.wait_ready();
    }

    /// Ends the node in an orderly way; says how the controller ended.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(&mut self) -> Option<i32> {
        drop(self.stdin.take());
        let deadline = Instant::now() + END_TIME;
        loop {
            if let Some(ended) = self.controller.try_wait().expect("the controller's state") {
                return ended.code();
            }
            assert!(Instant::now() < deadline, "not ended in {END_TIME:?}:\n{}", self.log());
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let workers = if std::thread::panicking() { Vec::new() } else { lock_pids(&self.runtime_dir()) };
        drop(self.stdin.take());
        let deadline = Instant::now() + END_TIME;
        while matches!(self.controller.try_wait(), Ok(None)) {
            if Instant::now() > deadline || std::thread::panicking() {
                let _ = self.controller.kill();
                let _ = self.controller.wait();
            } else {
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        if std::thread::panicking() {
            eprintln!("log of node {}:\n{}", self.id, self.log());
        }
        for pid in lock_pids(&self.runtime_dir()).into_iter().chain(workers) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        remove_counters(&self.runtime_dir());
    }
}

/// Runtime folder of the node whose folder this is.
#[must_use]
pub fn runtime_dir_in(folder: &Path) -> PathBuf {
    folder.join("run")
}

/// Removes what workers of a node counted in; of workers that were killed, nobody else will.
pub(crate) fn remove_counters(runtime_dir: &Path) {
    let prefix = pangea_ipc::runtime::counters_prefix(runtime_dir);
    let counters = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    for entry in counters.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
        let _ = std::fs::remove_file(entry.path()); // gone is as good
    }
}

/// Workers that hold their lock file, whatever has become of their controller.
fn lock_pids(runtime_dir: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir(runtime_dir) else { return Vec::new() };
    let locks = entries.flatten().map(|entry| entry.path()).filter(|path| {
        path.file_name()
            .and_then(OsStr::to_str)
            .is_some_and(|name| name.starts_with("worker-") && name.ends_with(".lock"))
    });
    let held = locks.filter(|path| std::fs::File::open(path).is_ok_and(|file| file.try_lock().is_err()));
    held.filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok()).collect()
}

fn state_dir(folder: &Path, options: &NodeOptions) -> PathBuf {
    options.state_dir.clone().unwrap_or_else(|| folder.join("state"))
}

fn spawn_controller(folder: &Path, options: &NodeOptions, listen: &str) -> (Child, ChildStdin) {
    std::fs::create_dir_all(folder.join("files")).expect("a folder for files");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).expect("a log file");
    let mut command = match &options.namespace {
        None => program("pangea-controller"),
        Some(name) => {
            // The process it becomes is the program itself. Its sockets are reached by path from everywhere.
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name]).arg(programs().join("pangea-controller"));
            command
        }
    };
    command.arg("--state-dir").arg(state_dir(folder, options)).arg("--runtime-dir").arg(folder.join("run"));
    command.args(["--listen", listen, "--data-listen", &options.listen, "--until-stdin-closes"]);
    command.arg("--workers").arg(options.workers.to_string());
    for assignment in &options.policy {
        command.args(["--policy", assignment]);
    }
    if options.loss_pct > 0.0 {
        command.env("PANGEA_FAULTS", "1").arg("--fault-loss").arg(options.loss_pct.to_string());
    }
    command.args(&options.arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
    let mut child = command.spawn().expect("pangea-controller starts");
    let stdin = child.stdin.take().expect("a pipe");
    (child, stdin)
}

/// Looks again and again whether something of which nobody tells has come about.
///
/// # Panics
/// When it has not within `patience`.
pub fn wait_within(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads lines of a child's output until one satisfies `wanted`; says it.
///
/// # Panics
/// When the output ends first.
pub fn read_until(output: impl Read, wanted: impl Fn(&str) -> bool) -> String {
    let lines = BufReader::new(output).lines();
    lines.map_while(Result::ok).find(|line| wanted(line)).expect("the line before the end of the output")
}
