//! The command line of `pangeactl`.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};
use pangea_ipc::address::PeerAddress;
use pangea_ipc::ids::{ContentId, NodeId};
use pangea_ipc::policy::parse_size;

use crate::lookup;

/// Drive a Pangea node: put and get content, peers, policy, workers.
#[derive(Debug, Parser)]
#[command(
    name = "pangeactl",
    version,
    after_help = "Example:\n  pangeactl demo                      see it work: two nodes on this machine\n  pangeactl put build.tar             prints the content id\n  pangeactl get TICKET -o build.tar\n\nExit status: 0 = done, 1 = failed, 2 = wrong usage, 3 = not found, 4 = denied,\n5 = cannot be had now, 6 = full, 130 = interrupted."
)]
pub struct Arguments {
    /// Folder of the node's sockets [default: $PANGEA_RUNTIME_DIR, /run/pangea for root, $XDG_RUNTIME_DIR/pangea]
    #[arg(long, value_name = "DIR", global = true)]
    pub runtime_dir: Option<PathBuf>,
    /// Print one JSON document instead of text; errors go to stderr as {"error": {"code", "text"}}
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the main job: two nodes on this machine, a file goes from one to the other
    #[command(after_help = "Example:\n  pangeactl demo --loss 5 /usr/bin/gcc")]
    Demo(DemoOptions),
    /// Print this node's id
    #[command(after_help = "Example:\n  pangeactl id")]
    Id,
    /// Put a file (or - for standard input); prints the content id alone on stdout
    #[command(after_help = "Example:\n  pangeactl put build.tar\n  tar c dir | pangeactl put - --name dir.tar")]
    Put(PutOptions),
    /// Get a content by id or ticket
    #[command(
        after_help = "Example:\n  pangeactl get pangea1... -o build.tar\n  pangeactl get ID --peer NODEID@192.0.2.7:7440\n  pangeactl get ID -o - | tar x\n\nWithout -o the file gets the name given at put, in the current folder."
    )]
    Get(GetOptions),
    /// Print a ticket for a content of this node: one line that says what to get and from whom
    #[command(after_help = "Example:\n  pangeactl ticket ID --valid 86400")]
    Ticket {
        /// Content id (64 hex digits)
        id: ContentId,
        /// Seconds after which the ticket is refused; 0 = never
        #[arg(long, value_name = "SECONDS", default_value_t = 0, allow_negative_numbers = true)]
        valid: u64,
    },
    /// List the contents of this node
    #[command(after_help = "Example:\n  pangeactl ls --json")]
    Ls,
    /// Remove a content from this node
    #[command(after_help = "Example:\n  pangeactl rm ID")]
    Rm {
        /// Content id (64 hex digits)
        id: ContentId,
    },
    /// Keep a content whatever the quota
    #[command(after_help = "Example:\n  pangeactl pin ID")]
    Pin {
        /// Content id (64 hex digits)
        id: ContentId,
    },
    /// Let a content go again when room is needed
    #[command(after_help = "Example:\n  pangeactl unpin ID")]
    Unpin {
        /// Content id (64 hex digits)
        id: ContentId,
    },
    /// Read a content, or all, again from the disk; repair from peers what is wrong, or say what is lost
    #[command(after_help = "Example:\n  pangeactl verify\n  pangeactl verify ID")]
    Verify {
        /// Content id (64 hex digits); all when left out
        id: Option<ContentId>,
    },
    /// Show the node: id, addresses, store, peers, workers
    #[command(after_help = "Example:\n  pangeactl status --json")]
    Status,
    /// Show the workers: process, CPU, port, NIC queue, bytes
    #[command(after_help = "Example:\n  pangeactl workers")]
    Workers,
    /// Admit, forget and list peers
    #[command(after_help = "Example:\n  pangeactl peer add NODEID@192.0.2.7:7440")]
    Peer {
        /// What to do.
        #[command(subcommand)]
        command: PeerCommand,
    },
    /// Show and change the policy, live
    #[command(after_help = "Example:\n  pangeactl policy set fec.mode=always store.quota=500GiB")]
    Policy {
        /// What to do.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Add and drain workers
    #[command(after_help = "Example:\n  pangeactl worker drain 1")]
    Worker {
        /// What to do.
        #[command(subcommand)]
        command: WorkerCommand,
    },
    /// Print completions for a shell
    #[command(after_help = "Example:\n  pangeactl completions bash > /etc/bash_completion.d/pangeactl")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Options of `demo`.
#[derive(Debug, clap::Args)]
pub struct DemoOptions {
    /// File to move; without it 256 MiB of random bytes are made
    pub file: Option<PathBuf>,
    /// Lose this share of the UDP packets in both directions
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, allow_negative_numbers = true)]
    pub loss: f64,
    /// Bytes to make when there is no FILE, such as 64MiB
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = size)]
    pub size: u64,
}

/// Options of `put`.
#[derive(Debug, clap::Args)]
pub struct PutOptions {
    /// File to put; - = standard input
    pub path: PathBuf,
    /// Name for listings and downloads [default: the file's]
    #[arg(long)]
    pub name: Option<String>,
}

/// Options of `get`.
#[derive(Debug, clap::Args)]
pub struct GetOptions {
    /// Content id (64 hex digits) or ticket (pangea1...)
    pub what: String,
    /// Where to write; - = standard output, in order
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// A node that may have it; may be repeated
    #[arg(long = "peer", value_name = "NODEID@HOST:PORT", value_parser = lookup::peer)]
    pub peers: Vec<PeerAddress>,
    /// Only these bytes, first to last, both counted from 0: 0-1023 is the first KiB
    #[arg(long, value_name = "A-B")]
    pub range: Option<String>,
    /// Replace an existing file
    #[arg(short, long)]
    pub force: bool,
}

/// What to do with peers.
#[derive(Debug, Subcommand)]
pub enum PeerCommand {
    /// Admit a node; with an address, keep a session with it too
    #[command(after_help = "Example:\n  pangeactl peer add NODEID@192.0.2.7:7440")]
    Add {
        /// Whom, and where; the name of a host is looked up once, now
        #[arg(value_name = "NODEID[@HOST:PORT]", value_parser = lookup::peer)]
        peer: PeerAddress,
    },
    /// Forget a node and end its session
    #[command(after_help = "Example:\n  pangeactl peer rm NODEID")]
    Rm {
        /// Whom
        node: NodeId,
    },
    /// List the known nodes with the quality of their paths
    ///
    /// LATENCY and JITTER are of pings between the controllers (TCP: what it loses comes a round trip or more later);
    /// LOSS is of the packets that this node's workers sent there, FROM IT the rate of what came from there. STATE: active =
    /// a session stands, degraded = it misses pings or the path loses over 10 %, dead = its session has ended, unknown =
    /// not met yet.
    #[command(after_help = "Example:\n  pangeactl peer ls --json")]
    Ls,
}

/// What to do with the policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show the policy in force and what its keys mean
    #[command(after_help = "Example:\n  pangeactl policy show")]
    Show,
    /// Change keys, all or none; returns when every worker has acknowledged
    #[command(after_help = policy_keys())]
    Set {
        /// Changes
        #[arg(required = true, value_name = "KEY=VALUE")]
        changes: Vec<String>,
    },
    /// Show the policies that were in force, newest first, and what each changed
    #[command(after_help = "Example:\n  pangeactl policy history")]
    History,
    /// Make an earlier policy the newest
    #[command(after_help = "Example:\n  pangeactl policy rollback 3")]
    Rollback {
        /// Revision to go back to
        revision: u64,
    },
    /// Print each new policy as it comes, until interrupted
    #[command(after_help = "Example:\n  pangeactl policy watch")]
    Watch,
}

/// The example of `policy set`, and every key that it takes.
fn policy_keys() -> String {
    let keys = pangea_ipc::policy::KEYS.iter().map(|key| format!("\n  {:<25} {}", key.name, key.takes));
    let example = "Example:\n  pangeactl policy set fec.mode=always fec.max_overhead_pct=10";
    format!("{example}\n\nKeys (what they do: pangeactl policy show):{}", keys.collect::<String>())
}

/// What to do with workers.
#[derive(Debug, Subcommand)]
pub enum WorkerCommand {
    /// Start one more worker
    #[command(after_help = "Example:\n  pangeactl worker add")]
    Add,
    /// Let a worker finish its jobs, then stop it
    #[command(after_help = "Example:\n  pangeactl worker drain 1")]
    Drain {
        /// Its number
        number: u16,
    },
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| format!("{text:?} is not a size such as 64MiB, 2GB or a number of bytes"))
}

/// The completions for a shell.
#[must_use]
pub fn completions(shell: clap_complete::Shell) -> String {
    let mut command = Arguments::command();
    // Into memory: writing to a pipe that nobody reads any more makes clap_complete panic.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "pangeactl", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_an_example() {
        let command = Arguments::command();
        command.clone().debug_assert();
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Example:\n"), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&command);
    }
}
