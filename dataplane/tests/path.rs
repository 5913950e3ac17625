//! A path that takes large packets carries them, and sends that are joined arrive whole.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use pangea_dataplane::net::endpoint::{MTU_MAX, MTU_USUAL, mtu_max};

#[tokio::test]
async fn large_packets_are_found_and_a_long_stream_arrives_as_it_was_sent() {
    let (from, to, _endpoints) = support::connect(MTU_USUAL, async |server| server).await;
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
    // Loopback takes 65536 bytes; a machine without IPv6 has no device there, and Ethernet's packets are tried.
    let without = std::net::UdpSocket::bind("[::1]:0").is_err();
    for (address, bound) in
        [("127.0.0.1:9", MTU_MAX), ("[::1]:9", if without { 1452 } else { MTU_MAX }), ("[::ffff:127.0.0.1]:9", MTU_MAX)]
    {
        let address: SocketAddr = address.parse().unwrap();
        assert_eq!(mtu_max(address), bound, "{address}");
    }
}
