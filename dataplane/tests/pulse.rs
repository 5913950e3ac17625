//! A silence on a path that loses everything for a while, with pulses and without.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use pangea_dataplane::net::endpoint::MTU_USUAL;
use pangea_dataplane::net::pulse::{Heard, Pulse};
use tokio::net::UdpSocket;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

const ONE_WAY: Duration = Duration::from_millis(25);
const SILENCE: Duration = Duration::from_millis(600);

/// A path with a delay, which can lose everything.
#[derive(Default)]
struct Path {
    lost: Cell<bool>,
    /// Packets that the client has sent into it.
    sent: Cell<u32>,
}

/// Carries packets between whoever sends first and `server`; says where.
async fn relay(path: Rc<Path>, server: SocketAddr) -> SocketAddr {
    let socket = Rc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = socket.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let (mut client, mut space) = (None, [0; 65_536]);
        loop {
            let (len, from) = socket.recv_from(&mut space).await.unwrap();
            if from != server {
                client = Some(from);
                path.sent.set(path.sent.get() + 1);
            }
            let to = if from == server { client.unwrap() } else { server };
            if !path.lost.get() {
                let (socket, packet) = (Rc::clone(&socket), space.get(..len).unwrap().to_vec());
                tokio::task::spawn_local(async move {
                    sleep(ONE_WAY).await;
                    socket.send_to(&packet, to).await.unwrap();
                });
            }
        }
    });
    address
}

/// Packets that go out in a silence after a lone one, and whether what was lost arrives once the path carries again.
async fn in_a_silence(owed: bool) -> u32 {
    let path = Rc::<Path>::default();
    let way = async |server| relay(Rc::clone(&path), server).await;
    let (server, client, _endpoints) = support::connect(MTU_USUAL, way).await;
    let (mut send, _recv) = client.open_bi().await.unwrap();
    send.write_all(b"first").await.unwrap();
    let (_, mut received) = server.accept_bi().await.unwrap();
    let mut word = [0; 5];
    received.read_exact(&mut word).await.unwrap();
    let pulse = Pulse::start(&client, Heard::Anything);
    let _debt = owed.then(|| pulse.owe());
    path.lost.set(true);
    send.write_all(b"again").await.unwrap();
    let before = path.sent.get();
    sleep(SILENCE).await;
    let sent = path.sent.get() - before;
    path.lost.set(false);
    timeout(Duration::from_secs(10), received.read_exact(&mut word)).await.unwrap().unwrap();
    assert_eq!(&word, b"again");
    sent
}

/// QUIC's own time-outs double: with them alone three or four rounds of two packets fit into this silence. Pulses go out
/// four times a round trip.
#[test]
fn a_silence_is_probed_while_something_is_owed_and_only_then() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (with, without) =
        LocalSet::new().block_on(&runtime, async { (in_a_silence(true).await, in_a_silence(false).await) });
    assert!(without <= 10, "{without} packets without a debt");
    assert!(with >= 2 * without && with >= 20, "{with} packets with a debt, {without} without");
    assert!(with <= 40 + 10, "{with} packets with a debt: there are 40 pulses in a silence at most");
}
