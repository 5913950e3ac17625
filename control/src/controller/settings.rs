//! What a controller runs with: the command line over the configuration file over the defaults.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use pangea_ipc::policy::{Policy, did_you_mean, nearest};
use pangea_ipc::rpc::check_path;
use pangea_ipc::runtime;
use pangea_ipc::worker::WORKERS_MAX;
use serde::Deserialize;
use toml::Spanned;

use crate::folders;
use crate::lookup::Written;

/// Name of the environment variable that allows the fault switch.
pub const FAULTS_VARIABLE: &str = "PANGEA_FAULTS";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON document a line.
    Json,
}

impl LogFormat {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// The control plane of a Pangea node: discovery, sessions, policy, catalog; starts and drives the workers.
#[derive(Debug, Parser)]
#[command(
    name = "pangea-controller",
    version,
    after_help = "Example:\n  pangea-controller --state-dir /tmp/a/state --runtime-dir /tmp/a/run --listen 127.0.0.1:7440 \\\n      --data-listen 127.0.0.1:7441 --workers 2\n\nExit status: 0 = asked to stop, 1 = could not run, 2 = wrong usage or configuration."
)]
pub struct Arguments {
    /// Configuration file (TOML); options given here override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check options and configuration, then exit
    #[arg(long)]
    check_config: bool,
    /// Folder of the node's key, catalog and store
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Folder of the node's sockets
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Where other nodes' controllers connect (TCP); port 0 = any free port
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Where workers listen (UDP): worker N on this port + N; port 0 = any free ports
    #[arg(long, value_name = "IP:PORT")]
    data_listen: Option<SocketAddr>,
    /// Workers to start
    #[arg(long, value_name = "N")]
    workers: Option<u16>,
    /// Start no workers: systemd runs them
    #[arg(long)]
    external_workers: bool,
    /// Peer to admit, and to keep a session with when it has an address; may be repeated
    #[arg(long = "peer", value_name = "NODEID[@HOST:PORT]")]
    peers: Vec<Written>,
    /// Serve Prometheus text at http://IP:PORT/metrics
    #[arg(long, value_name = "IP:PORT")]
    metrics: Option<SocketAddr>,
    /// Policy at the first start, and whenever it differs from the one configured before; may be repeated
    #[arg(long = "policy", value_name = "KEY=VALUE")]
    policy: Vec<String>,
    /// Seconds that a worker lives on without a controller and without moving a byte [default: 300]
    #[arg(long, value_name = "SECONDS")]
    orphan_s: Option<u32>,
    /// What to log: a level, or module=level pairs
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// How to log
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// End when standard input does (for demonstrations and tests)
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
    /// Lose this share of the datagrams that arrive (only with PANGEA_FAULTS=1, for demonstrations and tests)
    #[arg(long, value_name = "PERCENT", hide = true)]
    fault_loss: Option<f64>,
    /// Which datagrams to lose
    #[arg(long, value_name = "SEED", hide = true, default_value_t = 1)]
    fault_seed: u64,
}

/// The configuration file. Unknown keys are errors.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    controller: ControllerTable,
    policy: BTreeMap<Spanned<String>, toml::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ControllerTable {
    state_dir: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    data_listen: Option<SocketAddr>,
    workers: Option<Spanned<u16>>,
    external_workers: Option<bool>,
    peers: Option<Vec<Spanned<String>>>,
    metrics: Option<SocketAddr>,
    orphan_s: Option<u32>,
    log: Option<String>,
    log_format: Option<LogFormat>,
}

/// Where peers connect when nothing else is said.
const LISTEN: &str = "0.0.0.0:7440";
/// Where workers listen when nothing else is said.
const DATA_LISTEN: &str = "0.0.0.0:7441";
/// Seconds that workers live on without a controller when nothing else is said: a restart takes a fraction of one.
const ORPHAN_S: u32 = 300;

/// What a controller runs with. Every value is valid.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of key, catalog and store.
    pub state_dir: PathBuf,
    /// Folder of sockets.
    pub runtime_dir: PathBuf,
    /// Where peers connect.
    pub listen: SocketAddr,
    /// Where worker 0 listens.
    pub data_listen: SocketAddr,
    /// Workers to start.
    pub workers: u16,
    /// systemd runs the workers.
    pub external_workers: bool,
    /// Peers of the configuration; host names are looked up while the node runs.
    pub peers: Vec<Written>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The policy as configured: the defaults with the configured keys.
    pub policy: Policy,
    /// Seconds that workers live on without a controller.
    pub orphan_s: u32,
    /// What to log.
    pub log: String,
    /// How to log.
    pub log_format: LogFormat,
    /// End when standard input does.
    pub until_stdin_closes: bool,
    /// Share of datagrams to lose, in percent, and the seed of which.
    pub fault: Option<(f64, u64)>,
    /// Only check the settings.
    pub check_only: bool,
}

impl Arguments {
    /// Reads the configuration file and checks everything. `faults_allowed`: the environment has `PANGEA_FAULTS=1`.
    ///
    /// # Errors
    /// A sentence that names the option or the file and line, the value, and what to do.
    pub fn check(self, faults_allowed: bool) -> Result<Settings, String> {
        let path = self.config.as_deref().unwrap_or(Path::new(""));
        let text = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let file: File = toml::from_str(&text).map_err(|error| describe(path, &text, &error))?;
        let at = |span: Range<usize>| format!("{} line {}", path.display(), line_of(&text, &span));
        let table = file.controller;
        let fixed = |text: &str| text.parse().map_err(|_| format!("{text} is not an address"));
        if let Some(workers) = table.workers.as_ref().filter(|workers| usize::from(*workers.get_ref()) > WORKERS_MAX) {
            return Err(format!(
                "{}: workers = {}: a node has at most {WORKERS_MAX}",
                at(workers.span()),
                workers.get_ref()
            ));
        }
        let in_file = table.workers.map(Spanned::into_inner);
        let workers = self.workers.or(in_file).unwrap_or_else(default_workers);
        if usize::from(workers) > WORKERS_MAX {
            return Err(format!("--workers {workers}: a node has at most {WORKERS_MAX}"));
        }
        let external_workers = self.external_workers || table.external_workers.unwrap_or(false);
        let mut peers = self.peers;
        for text in table.peers.unwrap_or_default() {
            let peer = text.get_ref().parse().map_err(|error| format!("{}: peers: {error}", at(text.span())))?;
            peers.push(peer);
        }
        let mut policy = Policy::default();
        for (key, value) in &file.policy {
            let text = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Boolean(on) => if *on { "on" } else { "off" }.to_owned(),
                other => other.to_string(),
            };
            policy = policy.with(key.get_ref(), &text).map_err(|error| format!("{}: {error}", at(key.span())))?;
        }
        for assignment in &self.policy {
            policy = policy.with_assignment(assignment).map_err(|error| format!("--policy: {error}"))?;
        }
        let fault = match self.fault_loss {
            None => None,
            Some(_) if !faults_allowed => {
                return Err(format!(
                    "--fault-loss is for demonstrations and tests, which set {FAULTS_VARIABLE}=1; leave it out"
                ));
            }
            Some(loss) if (0.0..=100.0).contains(&loss) => Some((loss, self.fault_seed)),
            Some(loss) => return Err(format!("--fault-loss {loss}: must be from 0 to 100")),
        };
        // Programs and workers reach them from folders of their own.
        let state_dir = self.state_dir.or(table.state_dir).unwrap_or_else(folders::state_dir);
        let state_dir = runtime::absolute("--state-dir", &state_dir)?;
        let runtime_dir = self.runtime_dir.or(table.runtime_dir).unwrap_or_else(folders::runtime_dir);
        let runtime_dir = runtime::absolute("--runtime-dir", &runtime_dir)?;
        // The longest name of all sockets there.
        check_path(&runtime::controller_socket(&runtime_dir)).map_err(|error| error.to_string())?;
        Ok(Settings {
            state_dir,
            runtime_dir,
            listen: self.listen.or(table.listen).map_or_else(|| fixed(LISTEN), Ok)?,
            data_listen: self.data_listen.or(table.data_listen).map_or_else(|| fixed(DATA_LISTEN), Ok)?,
            workers: if external_workers { 0 } else { workers },
            external_workers,
            peers,
            metrics: self.metrics.or(table.metrics),
            policy,
            orphan_s: self.orphan_s.or(table.orphan_s).unwrap_or(ORPHAN_S),
            log: self.log.or(table.log).unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format.or(table.log_format).unwrap_or_default(),
            until_stdin_closes: self.until_stdin_closes,
            fault,
            check_only: self.check_config,
        })
    }
}

/// One worker for each CPU, as many as a node may have.
fn default_workers() -> u16 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cpus.min(WORKERS_MAX)).unwrap_or(1)
}

fn read_file(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("--config {}: {error}", path.display()))
}

/// The line, counted from 1, in which a part of the text begins.
fn line_of(text: &str, span: &Range<usize>) -> usize {
    1 + text.get(..span.start).unwrap_or(text).matches('\n').count()
}

/// File, line, what is wrong, and for an unknown key the nearest known one.
fn describe(path: &Path, text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(0, |span| line_of(text, &span));
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let suggestion = match quoted.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") => nearest(unknown, known.iter().copied()),
        _ => None,
    };
    format!("{} line {line}: {message}{}", path.display(), did_you_mean(suggestion.as_deref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str, extra: &[&str]) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pangea.toml");
        std::fs::write(&path, text).unwrap();
        let fixed = ["pangea-controller", "--config", path.to_str().unwrap()];
        Arguments::try_parse_from(fixed.iter().chain(extra)).map_err(|error| error.to_string())?.check(false)
    }

    #[test]
    fn options_override_the_file_and_the_file_the_defaults() {
        let text = "[controller]\nlisten = \"127.0.0.1:1\"\nworkers = 3\n[policy]\n\"fec.mode\" = \"off\"\n\"store.quota\" = 1048576\n\"discovery.hearsay\" = false\n";
        let settings = with_file(text, &["--workers", "5", "--policy", "fec.mode=always"]).unwrap();
        assert_eq!((settings.listen.port(), settings.workers, settings.orphan_s), (1, 5, ORPHAN_S));
        assert_eq!(settings.policy.fec_mode, pangea_ipc::policy::FecMode::Always);
        assert_eq!(settings.policy.store_quota_bytes, 1 << 20);
        assert!(!settings.policy.discovery_hearsay);
    }

    #[test]
    fn folders_are_the_same_for_who_works_in_another_one() {
        let settings = with_file("[controller]\nstate_dir = \"state\"\n", &["--runtime-dir", "run"]).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!((settings.state_dir, settings.runtime_dir), (here.join("state"), here.join("run")));
    }

    #[test]
    fn an_unknown_key_is_an_error_with_line_and_suggestion() {
        let error = with_file("[controller]\n\nworkrs = 3\n", &[]).unwrap_err();
        assert!(error.contains("line 3") && error.contains("did you mean \"workers\"?"), "{error}");
        let error = with_file("[policy]\n\"store.quota\" = 1048576\n\"fec.mod\" = \"off\"\n", &[]).unwrap_err();
        assert!(error.contains("pangea.toml line 3") && error.contains("did you mean \"fec.mode\"?"), "{error}");
        let error = with_file("\n[policy]\n\"fec.mode\" = \"on\"\n", &[]).unwrap_err();
        assert!(error.contains("line 3") && error.contains("it takes auto"), "{error}");
        let error = with_file("[controller]\nworkers = 65\n", &[]).unwrap_err();
        assert!(error.contains("line 2") && error.contains("at most 64"), "{error}");
        let error = with_file("[controller]\nworkers = \"many\"\n", &[]).unwrap_err();
        assert!(error.contains("line 2"), "{error}");
        let error = with_file("[controller]\npeers = [\n\"nobody\"]\n", &[]).unwrap_err();
        assert!(error.contains("line 3") && error.contains("node id"), "{error}");
        let node = "a".repeat(52);
        let error = with_file(&format!("[controller]\npeers = [\n\"{node}@a b:5\"]\n"), &[]).unwrap_err();
        assert!(error.contains("line 3") && error.contains("is not IP:PORT"), "{error}");
        // Names too; whether they can be looked up shows when the node runs.
        let (one, other) = (format!("{node}@no.such.host.invalid:5"), format!("{node}@localhost:6"));
        let settings = with_file(&format!("[controller]\npeers = [\"{one}\"]\n"), &["--peer", &other]).unwrap();
        assert_eq!(settings.peers.iter().map(ToString::to_string).collect::<Vec<_>>(), [other, one]);
        assert!(with_file("", &["--workers", "65"]).is_err());
        let error = with_file("", &["--runtime-dir", &format!("/{}", "d".repeat(99))]).unwrap_err();
        assert!(error.contains("has 116 bytes") && error.contains("shorter --runtime-dir"), "{error}");
        assert!(with_file("", &["--fault-loss", "5"]).unwrap_err().contains("PANGEA_FAULTS"));
    }
}
