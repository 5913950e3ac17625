//! A stream to another node that is who it says it is: Noise XX (25519, ChaChaPoly, BLAKE2s) over TCP.
//!
//! On the wire every Noise message has its length before it (u16, big-endian, as the Noise specification suggests).
//! After the handshake the responder, who learns only by its last message who knocks, sends one more: a byte 0 for
//! "come in", or 1 and a sentence for "no". So a stranger is refused before any request of it is read.

use std::rc::Rc;
use std::time::Duration;

use pangea_ipc::ids::NodeId;
use snow::{Builder, HandshakeState, StatelessTransportState};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::identity::Identity;

const PATTERN: &str = "Noise_XX_25519_ChaChaPoly_BLAKE2s";
/// Mixed into the handshake: another protocol or version cannot complete it.
const PROLOGUE: &[u8] = b"pangea/1";
/// Bytes in a Noise message at most, by the specification.
const MESSAGE_MAX: usize = 65_535;
/// Bytes that the cipher adds.
const TAG_LEN: usize = 16;
/// Plain bytes in one message: measured fastest at 16 KiB.
const PLAIN_MAX: usize = 16 * 1024;
/// A handshake that takes longer has failed.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Handshake messages are about 100 bytes; a stranger who announces more is not listened to.
const HANDSHAKE_MESSAGE_MAX: usize = 512;
/// Bytes of a refusal's sentence at most.
const REFUSAL_MAX: usize = 512;
/// After a message, and when nothing follows it in this time, an empty one goes out: TCP learns from its acknowledgement
/// that the message before it was lost, after a round trip and a quarter. Of a last message it learns only by a timer of
/// 200 ms and more: over a path with 5 % loss and a round trip of 50 ms, three first gets of 18 began 0.2 to 0.4 s late.
const NUDGE_FIRST: Duration = Duration::from_millis(10);
/// More follow, each after twice the time, up to this one: the first, or what TCP sends again, may be lost too. With one
/// alone a question to a peer took more than 3 s, and failed, once in 63 at 10 % loss; with five 2.4 % of 382 took more
/// than 0.3 s, and the longest 0.94 s.
const NUDGE_LAST: Duration = Duration::from_millis(160);
/// Bytes between the pumps and the RPC.
const PIPE: usize = 256 * 1024;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// The other side does not speak this protocol, or not as it should.
    #[error("the other side does not speak this protocol: {0}")]
    Handshake(#[from] snow::Error),
    /// Nothing came in time.
    #[error("no handshake within {HANDSHAKE_TIME:?}")]
    TimedOut,
    /// A message longer than any.
    #[error("a handshake message of {len} bytes was announced; {HANDSHAKE_MESSAGE_MAX} are the most")]
    TooLong {
        /// Bytes announced.
        len: usize,
    },
    /// Another node answers there.
    #[error("node {found} answers there, not {expected}; correct the address")]
    OtherNode {
        /// Who was expected.
        expected: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// The other side does not admit this node.
    #[error("it refused this node: {0}")]
    Refused(String),
}

/// A connection whose handshake is done, before anything else was said.
pub struct Secured {
    stream: TcpStream,
    transport: StatelessTransportState,
    /// Who is at the other end.
    pub node: NodeId,
    sent: u64,
    received: u64,
}

/// Shakes hands as the one who has connected, and waits to be let in.
///
/// # Errors
/// When the other side is not `expected`, does not let us in, or does not speak this protocol.
pub async fn connect(stream: TcpStream, identity: &Identity, expected: NodeId) -> Result<DuplexStream, NoiseError> {
    in_time(async {
        let mut stream = stream;
        let mut state = builder(identity)?.build_initiator()?;
        write_handshake(&mut stream, &mut state).await?;
        read_handshake(&mut stream, &mut state).await?;
        // The responder's key is known now; ours goes out only to the node that is meant.
        let found = remote(&state)?;
        if found != expected {
            return Err(NoiseError::OtherNode { expected, found });
        }
        write_handshake(&mut stream, &mut state).await?;
        let transport = state.into_stateless_transport_mode()?;
        let mut secured = Secured { stream, transport, node: found, sent: 0, received: 0 };
        match secured.read().await?.split_first() {
            Some((0, _)) => Ok(secured.into_stream()),
            Some((_, why)) => Err(NoiseError::Refused(String::from_utf8_lossy(why).into_owned())),
            None => Err(NoiseError::Refused("it did not say why".to_owned())),
        }
    })
    .await
}

/// Shakes hands as the one who was connected to. Whether to let the other in is the caller's to say.
///
/// # Errors
/// When the other side does not speak this protocol.
pub async fn accept(stream: TcpStream, identity: &Identity) -> Result<Secured, NoiseError> {
    in_time(async {
        let mut stream = stream;
        let mut state = builder(identity)?.build_responder()?;
        read_handshake(&mut stream, &mut state).await?;
        write_handshake(&mut stream, &mut state).await?;
        read_handshake(&mut stream, &mut state).await?;
        let node = remote(&state)?;
        let transport = state.into_stateless_transport_mode()?;
        Ok(Secured { stream, transport, node, sent: 0, received: 0 })
    })
    .await
}

impl Secured {
    /// Lets the other side in.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn welcome(mut self) -> Result<DuplexStream, NoiseError> {
        self.write(&[0]).await?;
        Ok(self.into_stream())
    }

    /// Turns the other side away.
    pub async fn refuse(mut self, why: &str) {
        let mut message = vec![1];
        message.extend(why.bytes().take(REFUSAL_MAX));
        // Whoever has gone meanwhile does not need to be told.
        let _ = in_time(async { self.write(&message).await }).await;
        let _ = self.stream.shutdown().await;
    }

    async fn write(&mut self, plain: &[u8]) -> Result<(), NoiseError> {
        let mut message = vec![0; plain.len() + TAG_LEN];
        let len = self.transport.write_message(self.sent, plain, &mut message)?;
        self.sent += 1;
        write_framed(&mut self.stream, message.get(..len).unwrap_or_default()).await
    }

    async fn read(&mut self) -> Result<Vec<u8>, NoiseError> {
        let message = read_framed(&mut self.stream, HANDSHAKE_MESSAGE_MAX + REFUSAL_MAX).await?;
        let mut plain = vec![0; message.len()];
        let len = self.transport.read_message(self.received, &message, &mut plain)?;
        self.received += 1;
        plain.truncate(len);
        Ok(plain)
    }

    /// A plain stream whose bytes travel encrypted. It ends when either direction does.
    fn into_stream(self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE);
        let (from_program, to_program) = tokio::io::split(far);
        let (from_wire, to_wire) = tokio::io::split(self.stream);
        let transport = Rc::new(self.transport);
        let outward = seal(from_program, to_wire, Rc::clone(&transport), self.sent);
        let inward = open(from_wire, to_program, transport, self.received);
        tokio::task::spawn_local(async move {
            tokio::select! {
                _ = outward => {}
                _ = inward => {}
            }
        });
        near
    }
}

async fn seal(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    transport: Rc<StatelessTransportState>,
    mut nonce: u64,
) -> Result<(), NoiseError> {
    let (mut plain, mut message) = (vec![0; PLAIN_MAX], vec![0; PLAIN_MAX + TAG_LEN]);
    // Nothing has been said yet.
    let mut nudge = Duration::MAX;
    loop {
        let next = from.read(&mut plain);
        let len = if nudge > NUDGE_LAST { Some(next.await?) } else { timeout(nudge, next).await.ok().transpose()? };
        if len == Some(0) {
            return Ok(to.shutdown().await?);
        }
        nudge = if len.is_some() { NUDGE_FIRST } else { nudge * 2 };
        let len = transport.write_message(nonce, plain.get(..len.unwrap_or(0)).unwrap_or_default(), &mut message)?;
        nonce += 1;
        write_framed(&mut to, message.get(..len).unwrap_or_default()).await?;
    }
}

async fn open(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    transport: Rc<StatelessTransportState>,
    mut nonce: u64,
) -> Result<(), NoiseError> {
    let mut plain = vec![0; MESSAGE_MAX];
    loop {
        let message = read_framed(&mut from, MESSAGE_MAX).await?;
        let len = transport.read_message(nonce, &message, &mut plain)?;
        nonce += 1;
        to.write_all(plain.get(..len).unwrap_or_default()).await?;
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, NoiseError>>) -> Result<T, NoiseError> {
    timeout(HANDSHAKE_TIME, work).await.unwrap_or(Err(NoiseError::TimedOut))
}

fn builder(identity: &Identity) -> Result<Builder<'_>, NoiseError> {
    let params = PATTERN.parse()?;
    Ok(Builder::new(params).local_private_key(identity.private())?.prologue(PROLOGUE)?)
}

fn remote(state: &HandshakeState) -> Result<NodeId, NoiseError> {
    let key = state.get_remote_static().and_then(|key| key.try_into().ok());
    key.map(NodeId).ok_or(NoiseError::Handshake(snow::Error::Dh))
}

async fn write_handshake(stream: &mut TcpStream, state: &mut HandshakeState) -> Result<(), NoiseError> {
    let mut message = [0; HANDSHAKE_MESSAGE_MAX];
    let len = state.write_message(&[], &mut message)?;
    write_framed(stream, message.get(..len).unwrap_or_default()).await
}

async fn read_handshake(stream: &mut TcpStream, state: &mut HandshakeState) -> Result<(), NoiseError> {
    let message = read_framed(stream, HANDSHAKE_MESSAGE_MAX).await?;
    state.read_message(&message, &mut [0; HANDSHAKE_MESSAGE_MAX])?;
    Ok(())
}

async fn write_framed(to: &mut (impl AsyncWriteExt + Unpin), message: &[u8]) -> Result<(), NoiseError> {
    let len = u16::try_from(message.len()).map_err(|_| NoiseError::TooLong { len: message.len() })?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend(message);
    to.write_all(&framed).await?;
    to.flush().await?;
    Ok(())
}

async fn read_framed(from: &mut (impl AsyncReadExt + Unpin), max: usize) -> Result<Vec<u8>, NoiseError> {
    let mut len = [0; 2];
    from.read_exact(&mut len).await?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > max {
        return Err(NoiseError::TooLong { len });
    }
    let mut message = vec![0; len];
    from.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::time::{Instant, sleep};

    use super::*;

    /// Both ends' keys after a handshake that took place in memory.
    fn shaken() -> [StatelessTransportState; 2] {
        let builder = || Builder::new(PATTERN.parse().unwrap());
        let keys = [builder().generate_keypair().unwrap(), builder().generate_keypair().unwrap()];
        let mut initiator = builder().local_private_key(&keys[0].private).unwrap().build_initiator().unwrap();
        let mut responder = builder().local_private_key(&keys[1].private).unwrap().build_responder().unwrap();
        let (mut message, mut plain) = ([0; HANDSHAKE_MESSAGE_MAX], [0; HANDSHAKE_MESSAGE_MAX]);
        for turn in 0..3 {
            let (from, to) =
                if turn == 1 { (&mut responder, &mut initiator) } else { (&mut initiator, &mut responder) };
            let len = from.write_message(&[], &mut message).unwrap();
            to.read_message(&message[..len], &mut plain).unwrap();
        }
        [initiator.into_stateless_transport_mode().unwrap(), responder.into_stateless_transport_mode().unwrap()]
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_message_is_followed_by_a_few_empty_ones_that_nobody_sees() {
        let [ours, theirs] = shaken();
        let ((mut program, from_program), (to_wire, mut wire)) = (duplex(PIPE), duplex(PIPE));
        let sealing = seal(from_program, to_wire, Rc::new(ours), 0);
        let (relay, from_wire) = duplex(PIPE);
        let (to_program, mut received) = duplex(PIPE);
        let opening = open(from_wire, to_program, Rc::new(theirs), 0);
        let script = async {
            let mut relay = relay;
            let mut lengths = Vec::new();
            let started = Instant::now();
            // Two messages that follow each other, and a third long after.
            program.write_all(b"one").await.unwrap();
            sleep(NUDGE_FIRST / 2).await;
            program.write_all(b"two").await.unwrap();
            sleep(Duration::from_secs(1)).await;
            program.write_all(b"three").await.unwrap();
            sleep(Duration::from_secs(1)).await;
            drop(program);
            while let Ok(message) = read_framed(&mut wire, MESSAGE_MAX).await {
                lengths.push(message.len() - TAG_LEN);
                write_framed(&mut relay, &message).await.unwrap();
            }
            assert_eq!(lengths, [3, 3, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0]);
            assert!(started.elapsed() < Duration::from_secs(3));
            let mut seen = [0; 11];
            received.read_exact(&mut seen).await.unwrap();
            assert_eq!(&seen, b"onetwothree");
        };
        tokio::select! {
            ((), sealed) = async { tokio::join!(script, sealing) } => sealed.unwrap(),
            ended = opening => panic!("{ended:?}"),
        }
    }
}
