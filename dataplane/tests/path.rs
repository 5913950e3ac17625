//! A path that takes large packets carries them, and sends that are joined arrive whole.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pangea_dataplane::net::connections::Connections;
use pangea_dataplane::net::endpoint::{MTU_MAX, MTU_USUAL, mtu_max, open, server, transport};
use pangea_dataplane::net::tls::{Identity, Pins, SERVER_NAME};
use pangea_ipc::ids::NodeId;
use pangea_ipc::worker::Pin;
use quinn::{ClientConfig, Connection, Endpoint};

/// A connection over loopback, seen from its server and its client, and their endpoints.
async fn connect(client_mtu: u16) -> (Connection, Connection, [Endpoint; 2]) {
    let (host, guest) = (Arc::new(Identity::generate().unwrap()), Identity::generate().unwrap());
    let (pins, law) = (Pins::default(), Arc::default());
    pins.set(&[Pin { key: guest.key(), node: NodeId([1; 32]), known: None }]);
    let open = |identity, pins| open("127.0.0.1:0".parse().unwrap(), identity, pins, &law, None).unwrap();
    let (at_host, at_guest) = (open(&host, &pins), open(&guest, &Pins::default()));
    let config = server(&host, &pins, &law).unwrap();
    let connections = Connections::new(at_host.clone(), Arc::clone(&host), config, Arc::clone(&law));
    let accept = async { connections.accept(at_host.accept().await.unwrap()).unwrap().await.unwrap() };
    let mut config = ClientConfig::new(Arc::new(guest.client_config(host.key()).unwrap()));
    config.transport_config(Arc::new(transport(&law, client_mtu)));
    let connecting = at_guest.connect_with(config, at_host.local_addr().unwrap(), SERVER_NAME).unwrap();
    let (accepted, opened) = tokio::join!(accept, connecting);
    (accepted, opened.unwrap(), [at_host.clone(), at_guest])
}

#[tokio::test]
async fn large_packets_are_found_and_a_long_stream_arrives_as_it_was_sent() {
    let (from, to, _endpoints) = connect(MTU_USUAL).await;
    let bytes: Vec<u8> = (0..32_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sent = bytes.clone();
    let send = async {
        let (mut stream, _recv) = from.open_bi().await.unwrap();
        stream.write_all(&sent).await.unwrap();
        stream.finish().unwrap();
        from.stats().path
    };
    let receive = async {
        let (_, mut stream) = to.accept_bi().await.unwrap();
        stream.read_to_end(usize::MAX).await.unwrap()
    };
    let (path, came) =
        tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(send, receive) }).await.unwrap();
    assert!(came == bytes, "{} bytes came", came.len());
    assert!(path.current_mtu > MTU_MAX - 16, "{path:?}");
    assert_eq!(to.stats().path.current_mtu.max(MTU_USUAL), MTU_USUAL, "the client was told to stay below");
}

#[test]
fn what_the_device_takes_is_the_bound() {
    let loopback: SocketAddr = "127.0.0.1:9".parse().unwrap();
    assert_eq!(mtu_max(loopback), MTU_MAX);
    assert_eq!(mtu_max("[::1]:9".parse().unwrap()), MTU_USUAL);
}
