//! The worker's QUIC endpoint: one UDP port, one set of transport parameters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use std::{io, net};

use quinn::{
    AckFrequencyConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use rustix::net::sockopt::{ip_mtu, ipv6_mtu};
use socket2::{Domain, Protocol, Socket, Type};

use super::congestion::{Factory, Law};
use super::fault::{Fault, FaultSocket};
use super::socket::Joining;
use super::tls::{Identity, KeyError, Pins};

/// Chunk requests that one peer may have in service on a connection at once.
pub const STREAMS_MAX: u32 = 128;
/// Bytes that one stream may have under way: a chunk and its answer's head fit whole.
const STREAM_WINDOW: u32 = 512 << 10;
/// Bytes that one connection may have under way in a direction: 600 Mbit/s at 600 ms.
pub const CONNECTION_WINDOW: u32 = 48 << 20;
/// Bytes of datagrams that wait to be sent; what is beyond waits in its sender. The transport sends datagrams before
/// streams: this is as long as streams, and with them what was lost of them, have to wait at a time.
pub const DATAGRAM_SEND_BYTES: usize = 128 << 10;
/// Bytes of datagrams that wait to be read; the reader never waits for anything, so this is one burst.
const DATAGRAM_RECEIVE_BYTES: usize = 8 << 20;
/// A connection on which nothing is heard this long is dead.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// So that a live connection is never taken for dead: three tries within the idle timeout.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Bytes of UDP socket buffer asked of the kernel, each way; it gives at most `net.core.{r,w}mem_max`.
pub const SOCKET_BUFFER: usize = 8 << 20;
/// One acknowledgement for this many packets (draft-ietf-quic-ack-frequency): measured 0.82 instead of 0.73 GB/s.
const ACK_EVERY_PACKETS: u32 = 40;
/// An acknowledgement waits this long at most. With 5 ms, a burst of eight lost acknowledgements was a silence of 40 ms,
/// after which a sender with a window of 1.25 round trips stands still; fast paths send one per so many packets anyway.
pub const ACK_DELAY_MAX: Duration = Duration::from_millis(1);

/// Packets that may overtake another before it counts as lost. Within what one acknowledgement tells of, a smaller number
/// hardly knows sooner. RFC 9002 has 3, with which packets that arrive up to 1 ms early or late at 100 Mbit/s cost 40 % of
/// the rate, up to 3 ms 80 % (docs/LOSS.md).
const REORDERED_PACKETS: u32 = ACK_EVERY_PACKETS;
/// Round trips after which a packet counts as lost when a later one has arrived: a quarter more than one, as RACK has it
/// (RFC 8985, section 6.2). RFC 9002 has an eighth more.
const REORDERED_RTTS: f32 = 1.25;

/// Round trip assumed before one is measured: a lost packet of the handshake is sent again after three of these. RFC 9002
/// has 333 ms, with which one transfer of ten at 5 % loss began a second late; on a longer path two or three packets are
/// sent once too often.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// UDP payload that any path may have at most. The transport hands the kernel ten packets at a time, which together must
/// not exceed the 65507 bytes of one IP packet: such a send would fail, and nobody would be told.
pub const MTU_MAX: u16 = 6500;
/// UDP payload that is tried at most before it is known where to: Ethernet's 1500 bytes less an IPv4 and a UDP header.
pub const MTU_USUAL: u16 = 1472;
/// Bytes of an IP packet where the system does not tell: Ethernet's.
const ETHERNET: u32 = 1500;
/// Bytes of an IPv4 and a UDP header.
const IPV4_UDP: u32 = 28;
/// Bytes of an IPv6 and a UDP header.
const IPV6_UDP: u32 = 48;
/// Discovery stops within so many bytes of what the path carries: half a percent of a packet.
const MTU_STEP: u16 = 8;
/// After so long it is tried again whether large packets get through. The transport takes four bursts of losses in large
/// packets for a black hole when none as large arrived since; on a lossy path chance alone does that now and then.
const BLACK_HOLE_TIME: Duration = Duration::from_secs(5);

/// Why a worker has no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The port is taken, the address not ours, …
    #[error(
        "cannot listen on UDP {address}: {source}; choose another --data-listen address or port (0 = any free port)"
    )]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Opens the endpoint.
///
/// # Errors
/// When the address cannot be had or TLS cannot be set up.
pub fn open(
    address: SocketAddr,
    identity: &Identity,
    pins: &Pins,
    law: &Arc<Law>,
    fault: Option<(Fault, Arc<AtomicU64>)>,
) -> Result<Endpoint, EndpointError> {
    let failed = |source| EndpointError::Bind { address, source };
    let socket = bind(address).map_err(failed)?;
    let mut socket = TokioRuntime.wrap_udp_socket(socket).map_err(failed)?;
    socket = Joining::start(socket);
    if let Some((fault, dropped)) = fault {
        socket = Arc::new(FaultSocket::new(socket, fault, dropped));
    }
    let mut config = EndpointConfig::default();
    // At least 1200, so it is never refused.
    let _ = config.max_udp_payload_size(MTU_MAX);
    let server = server(identity, pins, law)?;
    Endpoint::new_with_abstract_socket(config, Some(server), socket, Arc::new(TokioRuntime)).map_err(failed)
}

/// What connections that come in are met with, before it is known from where.
///
/// # Errors
/// When TLS cannot be set up.
pub fn server(identity: &Identity, pins: &Pins, law: &Arc<Law>) -> Result<ServerConfig, KeyError> {
    let mut server = ServerConfig::with_crypto(Arc::new(identity.server_config(pins)?));
    server.transport_config(Arc::new(transport(law, MTU_USUAL)));
    Ok(server)
}

/// UDP payload that the way to `remote` may take, as far as this machine knows: what the device there takes, or what a
/// router said lately. Discovery halves what lies between this and 1200 bytes, and needs three losses to take no for an
/// answer; with a bound that is usually right, nothing is lost.
#[must_use]
pub fn mtu_max(remote: SocketAddr) -> u16 {
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let ask = || -> io::Result<u32> {
        let socket = Socket::new(Domain::for_address(remote), Type::DGRAM, Some(Protocol::UDP))?;
        socket.connect(&remote.into())?; // sends nothing
        Ok(if remote.is_ipv4() { ip_mtu(&socket)? } else { ipv6_mtu(&socket)? })
    };
    let packet = ask().unwrap_or_else(|error| {
        tracing::debug!(%remote, %error, "the system does not tell what the path carries; trying up to {ETHERNET} bytes");
        ETHERNET
    });
    let payload = packet.saturating_sub(if remote.is_ipv4() { IPV4_UDP } else { IPV6_UDP });
    u16::try_from(payload).unwrap_or(MTU_MAX).min(MTU_MAX)
}

/// The transport parameters of both sides, for a path that may take packets of `mtu_max` bytes.
#[must_use]
pub fn transport(law: &Arc<Law>, mtu_max: u16) -> TransportConfig {
    let mut ack_frequency = AckFrequencyConfig::default();
    ack_frequency.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY_PACKETS));
    ack_frequency.max_ack_delay(Some(ACK_DELAY_MAX));
    // The peer hurries with an acknowledgement when there is something to be taken for lost.
    ack_frequency.reordering_threshold(VarInt::from_u32(REORDERED_PACKETS - 1));
    let mut mtu_discovery = MtuDiscoveryConfig::default();
    mtu_discovery.upper_bound(mtu_max).minimum_change(MTU_STEP).black_hole_cooldown(BLACK_HOLE_TIME);
    let mut transport = TransportConfig::default();
    transport
        .packet_threshold(REORDERED_PACKETS)
        .time_threshold(REORDERED_RTTS)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        // One chunk after another: in turns, all chunks of a window would arrive together at its end.
        .send_fairness(false)
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BYTES))
        .datagram_send_buffer_size(DATAGRAM_SEND_BYTES)
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .ack_frequency_config(Some(ack_frequency))
        .mtu_discovery_config(Some(mtu_discovery))
        .congestion_controller_factory(Arc::new(Factory::new(Arc::clone(law))));
    transport
}

/// Opens the socket, with buffers for fast links.
///
/// # Errors
/// What the system says.
pub fn bind(address: SocketAddr) -> io::Result<net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    set_buffers(&socket)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn set_buffers(socket: &Socket) -> io::Result<()> {
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)
}

/// Bytes of socket buffer that the kernel refuses, of the smaller of both ways; 0 = it gives what is asked for.
///
/// # Errors
/// What the system says.
pub fn buffer_missing() -> io::Result<u64> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    set_buffers(&socket)?;
    // Linux takes twice what it is asked for, so that its own bookkeeping fits too, and says so.
    let got = socket.recv_buffer_size()?.min(socket.send_buffer_size()?) / 2;
    Ok(SOCKET_BUFFER.saturating_sub(got) as u64)
}
