//! Two endpoints and a connection between them.

use std::net::SocketAddr;
use std::sync::Arc;

use pangea_dataplane::net::connections::Connections;
use pangea_dataplane::net::endpoint::{open, server, transport};
use pangea_dataplane::net::tls::{Identity, Pins, SERVER_NAME};
use pangea_ipc::ids::NodeId;
use pangea_ipc::worker::Pin;
use quinn::{ClientConfig, Connection, Endpoint};

/// A connection seen from its server and its client, and their endpoints. `way` says where the server is reached, given
/// where it listens.
pub(crate) async fn connect(
    client_mtu: u16,
    way: impl AsyncFnOnce(SocketAddr) -> SocketAddr,
) -> (Connection, Connection, [Endpoint; 2]) {
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
    let server = way(at_host.local_addr().unwrap()).await;
    let connecting = at_guest.connect_with(config, server, SERVER_NAME).unwrap();
    let (accepted, opened) = tokio::join!(accept, connecting);
    (accepted, opened.unwrap(), [at_host.clone(), at_guest])
}
