//! What a worker is told when it starts: the command line, checked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use pangea_ipc::ids::WorkerIndex;
use pangea_ipc::runtime;
use pangea_ipc::worker::WORKERS_MAX;

use crate::net::fault::Fault;

/// Name of the environment variable that allows the fault switch.
pub const FAULTS_VARIABLE: &str = "PANGEA_FAULTS";

/// One worker of a Pangea node: moves, verifies and stores chunks.
///
/// Usually started by pangea-controller or by systemd (pangea-worker@N.service), not by hand.
#[derive(Debug, Parser)]
#[command(
    name = "pangea-worker",
    version,
    after_help = "Example:\n  pangea-worker --index 0 --state-dir /var/lib/pangea --runtime-dir /run/pangea --data-listen 0.0.0.0:7441\n\nExit status: 0 = asked to stop, 1 = could not run, 2 = wrong usage."
)]
pub struct Arguments {
    /// Number of this worker on its node; also its NIC queue
    #[arg(long, value_name = "N")]
    index: u16,
    /// Folder of the node's key, catalog and store
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Folder of the node's sockets
    #[arg(long, value_name = "DIR")]
    runtime_dir: PathBuf,
    /// Where the QUIC endpoint listens (UDP); port 0 = any free port
    #[arg(long, value_name = "IP:PORT")]
    data_listen: SocketAddr,
    /// Add the worker's number to the port of --data-listen (0 stays 0)
    #[arg(long)]
    port_plus_index: bool,
    /// Seconds without a controller and without a byte moved after which the worker ends by itself
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    orphan_s: u32,
    /// Never end by itself, however long the controller is away (for systemd)
    #[arg(long)]
    stay: bool,
    /// What to log: a level, or module=level pairs
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
    /// How to log
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Lose this share of the datagrams that arrive (only with PANGEA_FAULTS=1, for demonstrations and tests)
    #[arg(long, value_name = "PERCENT", hide = true)]
    fault_loss: Option<f64>,
    /// Which datagrams to lose
    #[arg(long, value_name = "SEED", hide = true, default_value_t = 1)]
    fault_seed: u64,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON document a line.
    Json,
}

/// What a worker runs with. Every value is valid.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its number.
    pub worker: WorkerIndex,
    /// `<state-dir>/store`.
    pub store: PathBuf,
    /// Folder of the node's sockets.
    pub runtime_dir: PathBuf,
    /// Where the QUIC endpoint listens.
    pub data_listen: SocketAddr,
    /// How long it lives without a controller and without moving a byte; `None` = for ever.
    pub orphan: Option<Duration>,
    /// What to log.
    pub log: String,
    /// How to log.
    pub log_format: LogFormat,
    /// Loses datagrams on purpose.
    pub fault: Option<Fault>,
}

impl Arguments {
    /// Checks what clap could not. `faults_allowed`: the environment has `PANGEA_FAULTS=1`.
    ///
    /// # Errors
    /// A sentence that names the option, the value and what to do.
    pub fn check(self, faults_allowed: bool) -> Result<Settings, String> {
        if usize::from(self.index) >= WORKERS_MAX {
            return Err(format!("--index {}: a node has at most {WORKERS_MAX} workers, numbered from 0", self.index));
        }
        let fault = match self.fault_loss {
            None => None,
            Some(_) if !faults_allowed => {
                return Err(format!(
                    "--fault-loss is for demonstrations and tests, which set {FAULTS_VARIABLE}=1; leave it out"
                ));
            }
            Some(loss_pct) if (0.0..=100.0).contains(&loss_pct) => {
                Some(Fault { loss_pct, seed: self.fault_seed.wrapping_add(u64::from(self.index)) })
            }
            Some(loss_pct) => return Err(format!("--fault-loss {loss_pct}: must be from 0 to 100")),
        };
        let mut data_listen = self.data_listen;
        if self.port_plus_index && data_listen.port() != 0 {
            let port = data_listen
                .port()
                .checked_add(self.index)
                .ok_or_else(|| format!("--data-listen {data_listen}: there is no port {} above it", self.index))?;
            data_listen.set_port(port);
        }
        Ok(Settings {
            worker: WorkerIndex(self.index),
            store: runtime::store(&runtime::absolute("--state-dir", &self.state_dir)?),
            // Programs reach its door from folders of their own.
            runtime_dir: runtime::absolute("--runtime-dir", &self.runtime_dir)?,
            data_listen,
            orphan: (!self.stay).then(|| Duration::from_secs(u64::from(self.orphan_s))),
            log: self.log,
            log_format: self.log_format,
            fault,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(extra: &[&str], faults_allowed: bool) -> Result<Settings, String> {
        let fixed = ["pangea-worker", "--state-dir", "/s", "--runtime-dir", "/r", "--data-listen", "127.0.0.1:7441"];
        Arguments::try_parse_from(fixed.iter().chain(extra)).map_err(|e| e.to_string())?.check(faults_allowed)
    }

    #[test]
    fn the_fault_switch_is_refused_unless_turned_on() {
        let refused = check(&["--index", "0", "--fault-loss", "5"], false).unwrap_err();
        assert!(refused.contains("PANGEA_FAULTS"), "{refused}");
        let settings = check(&["--index", "3", "--fault-loss", "5"], true).unwrap();
        assert_eq!(settings.fault, Some(Fault { loss_pct: 5.0, seed: 4 }));
        assert!(check(&["--index", "0", "--fault-loss", "101"], true).is_err());
        assert!(check(&["--index", "0", "--fault-loss", "NaN"], true).is_err());
    }

    #[test]
    fn folders_are_the_same_for_who_works_in_another_one() {
        let fixed = ["pangea-worker", "--state-dir", "s", "--runtime-dir", "r", "--data-listen", "127.0.0.1:7441"];
        let arguments = Arguments::try_parse_from(fixed.iter().chain(&["--index", "0"])).unwrap();
        let settings = arguments.check(false).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(settings.runtime_dir, here.join("r"));
        assert_eq!(settings.store, pangea_ipc::runtime::store(&here.join("s")));
    }

    #[test]
    fn numbers_and_ports_have_bounds() {
        assert_eq!(check(&["--index", "2", "--port-plus-index"], false).unwrap().data_listen.port(), 7443);
        assert!(check(&["--index", "64"], false).is_err());
        let fixed = ["pangea-worker", "--state-dir", "/s", "--runtime-dir", "/r", "--data-listen", "127.0.0.1:65535"];
        let arguments = Arguments::try_parse_from(fixed.iter().chain(&["--index", "1", "--port-plus-index"]));
        assert!(arguments.unwrap().check(false).is_err());
    }
}
