//! TCP as a peer: what a web server and a client on a kept connection do, without their parsing.
//!
//! The sockets are opened inside the namespaces and stay there; the threads that use them are ours. Buffers may grow to
//! 64 MiB, so that they limit nobody.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::flow::Flow;
use crate::netlab::{Pair, Side};

/// Least, first and largest buffer of a socket, in bytes.
const BUFFERS: &str = "4096 131072 67108864";
/// How long a read waits before the time limit is looked at.
const READ_WAIT: Duration = Duration::from_millis(100);

/// A connection from B to a server at A.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
}

impl Tcp {
    /// Connects; A sends by the named congestion control (`cubic`, `bbr`), and may be told of marks (ECN). `None` = the kernel
    /// has none of that name.
    ///
    /// # Panics
    /// When the namespaces cannot be used.
    #[must_use]
    pub fn connect(pair: &Pair, law: &str) -> Option<Self> {
        let tune = || {
            for key in ["tcp_rmem", "tcp_wmem"] {
                std::fs::write(format!("/proc/sys/net/ipv4/{key}"), BUFFERS).unwrap();
            }
            std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap();
        };
        pair.inside(Side::B, tune).unwrap();
        let address = pair.address_a();
        let listener = pair.inside(Side::A, || {
            tune();
            let listener = TcpListener::bind((address, 0)).unwrap();
            // Who is accepted inherits it.
            setsockopt(&listener, sockopt::TcpCongestion, &law.into()).ok().map(|()| listener)
        });
        let listener = listener.unwrap()?;
        let server: SocketAddr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                let _ = serve(stream); // it ends when the client goes
            }
        });
        let stream = pair.inside(Side::B, || TcpStream::connect(server)).unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(READ_WAIT)).unwrap();
        Some(Self { stream })
    }

    /// Asks for bytes and reads them, for a limited time.
    #[must_use]
    pub fn fetch(&mut self, bytes: u64, limit: Duration) -> Flow {
        let started = Instant::now();
        let mut flow = Flow { samples: vec![(Duration::ZERO, 0)], ..Flow::default() };
        let mut space = vec![0; 256 << 10];
        if let Err(error) = self.stream.write_all(&bytes.to_le_bytes()) {
            flow.failure = Some(error.to_string());
        }
        while flow.bytes < bytes && flow.failure.is_none() && started.elapsed() < limit {
            let part = space.len().min(usize::try_from(bytes - flow.bytes).unwrap());
            match self.stream.read(&mut space[..part]) {
                Ok(0) => flow.failure = Some("connection lost".to_owned()),
                Ok(count) => {
                    flow.bytes += count as u64;
                    flow.samples.push((started.elapsed(), flow.bytes));
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => flow.failure = Some(format!("connection lost: {error}")),
            }
        }
        flow.took = started.elapsed();
        flow.whole = flow.bytes == bytes;
        flow
    }
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let block = vec![7; 256 << 10];
    let mut wanted = [0; 8];
    loop {
        stream.read_exact(&mut wanted)?;
        let mut rest = u64::from_le_bytes(wanted);
        while rest > 0 {
            let part = rest.min(block.len() as u64);
            stream.write_all(&block[..part as usize])?;
            rest -= part;
        }
    }
}
