//! Workers among themselves: only a pinned key gets a connection, and only the expected key is talked to.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use pangea_dataplane::net::endpoint::{MTU_USUAL, open, transport};
use pangea_dataplane::net::tls::{Identity, Pins, SERVER_NAME, shown_key};
use pangea_ipc::ids::{NodeId, WorkerKey};
use pangea_ipc::worker::Pin;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};

fn endpoint(identity: &Identity, pins: &Pins) -> Endpoint {
    open("127.0.0.1:0".parse().unwrap(), identity, pins, &Arc::default(), None).unwrap()
}

async fn connect(
    from: &Endpoint,
    identity: &Identity,
    to: &Endpoint,
    expected: WorkerKey,
) -> Result<Connection, ConnectionError> {
    let mut config = ClientConfig::new(Arc::new(identity.client_config(expected).unwrap()));
    config.transport_config(Arc::new(transport(&Arc::default(), MTU_USUAL)));
    from.connect_with(config, to.local_addr().unwrap(), SERVER_NAME).unwrap().await
}

#[tokio::test]
async fn a_key_that_is_not_pinned_gets_no_connection_until_it_is() {
    let (host, guest) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let pins = Pins::default();
    let (server, client) = (endpoint(&host, &pins), endpoint(&guest, &Pins::default()));
    let accepting = server.clone();
    // A client ends its handshake before the server has judged it: what counts is what the server says.
    let accept = async move { accepting.accept().await.unwrap().await };
    let (accepted, opened) = tokio::join!(accept, async {
        let connection = connect(&client, &guest, &server, host.key()).await?;
        Err::<(), _>(connection.closed().await)
    });
    assert!(accepted.is_err(), "the server took a stranger in");
    assert!(matches!(opened, Err(ConnectionError::ConnectionClosed(_))), "{opened:?}");

    pins.set(&[Pin { key: guest.key(), node: NodeId([1; 32]), known: None }]);
    let accepting = server.clone();
    let accept = async move { accepting.accept().await.unwrap().await };
    let (accepted, opened) = tokio::join!(accept, connect(&client, &guest, &server, host.key()));
    assert_eq!(shown_key(&accepted.unwrap()), Some(guest.key()));
    assert_eq!(shown_key(&opened.unwrap()), Some(host.key()));
}

#[tokio::test]
async fn another_key_than_the_controller_told_is_not_talked_to() {
    let (host, guest) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let pins = Pins::default();
    pins.set(&[Pin { key: guest.key(), node: NodeId([1; 32]), known: None }]);
    let (server, client) = (endpoint(&host, &pins), endpoint(&guest, &Pins::default()));
    let accepting = server.clone();
    tokio::spawn(async move { accepting.accept().await.unwrap().await });
    let other = Identity::generate().unwrap().key();
    let refused = connect(&client, &guest, &server, other).await;
    assert!(matches!(refused, Err(ConnectionError::TransportError(_))), "{refused:?}");
}
