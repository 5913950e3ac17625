//! A bare quinn stream as a peer: two processes with a worker's TLS, and nothing else of it: no hash, no disk, unless it
//! is laden with them (see [`super::laden`]).
//!
//! This program plays both roles. It tells its child the role by [`ROLE`]; what else must be known goes through pipes.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use pangea_dataplane::cpu::Allowed;
use pangea_dataplane::net::endpoint::{CONNECTION_WINDOW, MTU_MAX, bind, mtu_max, transport};
use pangea_dataplane::net::tls::{Identity, Pins, SERVER_NAME};
use pangea_ipc::ids::{NodeId, WorkerKey};
use pangea_ipc::worker::Pin;
use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::{Endpoint, EndpointConfig, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt};

use super::flow::{Flow, cpu_seconds};
use super::laden::Load;
use crate::netlab::{Pair, Side};

/// The environment variable that makes this program a role: `server ADDRESS LAW CPU LOAD` or `client ADDRESS LAW CPU LOAD`;
/// `-` = no CPU in particular, no load.
pub const ROLE: &str = "PANGEA_BENCH_ROLE";

/// How a bare stream sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Law {
    /// All transport parameters of a worker, congestion control too.
    Worker,
    /// The same with quinn's BBR.
    WorkerBbr,
    /// quinn's parameters, with windows as wide as a worker's, and its BBR.
    Bbr,
    /// The same with its CUBIC.
    Cubic,
}

impl Law {
    const ALL: [Self; 4] = [Self::Worker, Self::WorkerBbr, Self::Bbr, Self::Cubic];

    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker => "quinn, ours",
            Self::WorkerBbr => "quinn, ours+BBR",
            Self::Bbr => "quinn BBR",
            Self::Cubic => "quinn CUBIC",
        }
    }

    /// For a connection to `peer`.
    fn transport(self, peer: SocketAddr) -> TransportConfig {
        let mut config = match self {
            Self::Worker | Self::WorkerBbr => transport(&Arc::default(), mtu_max(peer)),
            Self::Bbr | Self::Cubic => {
                let mut config = TransportConfig::default();
                let mut discovery = MtuDiscoveryConfig::default();
                discovery.upper_bound(mtu_max(peer));
                config.receive_window(VarInt::from_u32(CONNECTION_WINDOW)).mtu_discovery_config(Some(discovery));
                config.send_window(u64::from(CONNECTION_WINDOW));
                config
            }
        };
        // One stream must be able to fill what a worker's many may.
        config.stream_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
        match self {
            Self::Worker => {}
            Self::WorkerBbr | Self::Bbr => {
                config.congestion_controller_factory(Arc::new(BbrConfig::default()));
            }
            Self::Cubic => {
                config.congestion_controller_factory(Arc::new(CubicConfig::default()));
            }
        }
        config
    }
}

/// A client and a server on a warm connection.
#[derive(Debug)]
pub struct Bare {
    client: Role,
    server: Role,
}

#[derive(Debug)]
struct Role {
    child: Child,
    stdin: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Role {
    fn start(pair: Option<(&Pair, Side)>, name: &str, law: Law, cpu: Option<usize>, load: Option<&Path>) -> Self {
        let own = std::env::current_exe().unwrap();
        let (mut command, address) = match pair {
            Some((pair, side)) => (pair.command(side, own), pair.address(side).to_string()),
            None => (Command::new(own), "127.0.0.1".to_owned()),
        };
        let law = Law::ALL.iter().position(|&one| one == law).unwrap();
        let cpu = cpu.map_or("-".to_owned(), |cpu| cpu.to_string());
        let load = load.unwrap_or(Path::new("-")).display();
        command
            .env(ROLE, format!("{name} {address}:0 {law} {cpu} {load}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, says) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, stdin, says }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bare {
    /// Starts both, the server at A and the client at B, or both on loopback, and pins them when asked.
    #[must_use]
    pub fn start(pair: Option<&Pair>, law: Law, pinned: bool) -> Self {
        Self::start_both(pair, law, pinned, [None, None])
    }

    /// The same, pinned, with a file that the server sends and one that the client writes.
    #[must_use]
    pub fn start_laden(pair: &Pair, law: Law, from: &Path, to: &Path) -> Self {
        Self::start_both(Some(pair), law, true, [Some(from), Some(to)])
    }

    fn start_both(pair: Option<&Pair>, law: Law, pinned: bool, [from, to]: [Option<&Path>; 2]) -> Self {
        let mut server = Role::start(pair.map(|pair| (pair, Side::A)), "server", law, pinned.then_some(0), from);
        let mut client = Role::start(pair.map(|pair| (pair, Side::B)), "client", law, pinned.then_some(1), to);
        let (server_line, client_key) = (line(&mut server.says), line(&mut client.says));
        writeln!(server.stdin, "{client_key}").unwrap();
        writeln!(client.stdin, "{server_line}").unwrap();
        Self { client, server }
    }

    /// Processor seconds that server and client have taken so far.
    #[must_use]
    pub fn cpu(&self) -> [f64; 2] {
        [&self.server, &self.client].map(|role| cpu_seconds(role.child.id()))
    }

    /// Fetches bytes on a stream of its own, for a limited time.
    #[must_use]
    pub fn fetch(&mut self, bytes: u64, limit: Duration) -> Flow {
        let _ = writeln!(self.client.stdin, "{bytes} {}", limit.as_millis());
        let answer = line(&mut self.client.says);
        let mut words = answer.splitn(3, ' ');
        let seconds: f64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN);
        let came: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let failure = words.next().filter(|text| !text.is_empty()).map(str::to_owned);
        if seconds.is_nan() {
            return Flow { failure: Some("connection lost".to_owned()), took: limit, ..Flow::default() };
        }
        let took = Duration::from_secs_f64(seconds);
        Flow { bytes: came, took, samples: Vec::new(), whole: came == bytes, failure }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // The client first: who serves it would only complain.
        let _ = self.client.child.kill();
        let _ = self.server.child.kill();
    }
}

fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn key_from(text: &str) -> WorkerKey {
    let bytes: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect();
    WorkerKey(bytes.try_into().unwrap())
}

/// Plays a role when this process was started for one; says whether it was.
#[must_use]
pub fn played() -> bool {
    let Ok(text) = std::env::var(ROLE) else { return false };
    let [role, address, law, cpu, load] = text.splitn(5, ' ').collect::<Vec<_>>()[..] else { panic!("five words") };
    let load = (load != "-").then(|| Load { path: load.into(), allowed: Allowed::now() });
    if let Ok(cpu) = cpu.parse() {
        let mut cpus = CpuSet::new();
        cpus.set(cpu).unwrap();
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    }
    let law = Law::ALL[law.parse::<usize>().unwrap()];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(play(role, address, law, load.as_ref()));
    true
}

async fn play(role: &str, address: &str, law: Law, load: Option<&Load>) {
    let identity = Identity::generate().unwrap();
    let pins = Pins::default();
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(MTU_MAX).unwrap();
    let socket = bind(address.parse().unwrap()).unwrap();
    let server = quinn::ServerConfig::with_crypto(Arc::new(identity.server_config(&pins).unwrap()));
    let endpoint = Endpoint::new(config, Some(server.clone()), socket, Arc::new(TokioRuntime)).unwrap();
    let mut stdin = std::io::stdin().lock();
    if role == "server" {
        println!("{} {}", endpoint.local_addr().unwrap(), identity.key());
        pins.set(&[Pin { key: key_from(&line(&mut stdin)), node: NodeId([0; 32]), known: None }]);
        let incoming = endpoint.accept().await.unwrap();
        let mut config = server;
        config.transport_config(Arc::new(law.transport(incoming.remote_address())));
        let connection = incoming.accept_with(Arc::new(config)).unwrap().await.unwrap();
        while let Ok((send, recv)) = connection.accept_bi().await {
            let _ = serve(send, recv, load).await; // the client tells what became of it
        }
        return;
    }
    println!("{}", identity.key());
    let words = line(&mut stdin);
    let [address, key] = words.split(' ').collect::<Vec<_>>()[..] else { panic!("two words") };
    let mut config = quinn::ClientConfig::new(Arc::new(identity.client_config(key_from(key)).unwrap()));
    let address = address.parse().unwrap();
    config.transport_config(Arc::new(law.transport(address)));
    let connection = endpoint.connect_with(config, address, SERVER_NAME).unwrap().await.unwrap();
    loop {
        let words = line(&mut stdin);
        let [bytes, limit_ms] = words.split(' ').collect::<Vec<_>>()[..] else { return };
        let limit = Duration::from_millis(limit_ms.parse().unwrap());
        let (started, mut came) = (Instant::now(), 0);
        let fetch = fetch(&connection, bytes.parse().unwrap(), &mut came, load);
        let failure = match tokio::time::timeout(limit, fetch).await {
            // quinn's own words are the innermost.
            Ok(Err(error)) => {
                format!("connection lost: {}", error.source().map_or(error.to_string(), ToString::to_string))
            }
            _ => String::new(),
        };
        println!("{} {came} {failure}", started.elapsed().as_secs_f64());
    }
}

pub(super) type Outcome = Result<(), Box<dyn std::error::Error>>;

async fn serve(mut send: quinn::SendStream, mut recv: quinn::RecvStream, load: Option<&Load>) -> Outcome {
    let mut wanted = [0; 8];
    recv.read_exact(&mut wanted).await?;
    let mut rest = u64::from_le_bytes(wanted);
    if let Some(load) = load {
        load.send(&mut send, rest).await?;
        rest = 0;
    }
    let block = vec![7; 256 << 10];
    while rest > 0 {
        let part = rest.min(block.len() as u64);
        send.write_all(&block[..part as usize]).await?;
        rest -= part;
    }
    send.finish()?;
    Ok(())
}

async fn fetch(connection: &quinn::Connection, bytes: u64, came: &mut u64, load: Option<&Load>) -> Outcome {
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&bytes.to_le_bytes()).await?;
    if let Some(load) = load {
        return load.receive(&mut recv, bytes, came).await;
    }
    while let Some(chunk) = recv.read_chunk(1 << 20, true).await? {
        *came += chunk.bytes.len() as u64;
    }
    Ok(())
}
