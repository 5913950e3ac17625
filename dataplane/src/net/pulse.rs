//! Small packets into a silence, so that a burst of losses is over for the connection when it is over on the path.
//!
//! When every acknowledgement in a window is lost, or a lone request, QUIC sends two packets after a time-out, then waits
//! twice as long, and so on (RFC 9002, section 6.2): a burst that takes the next eight packets lasts two seconds.
//! Measured with 5 % loss in bursts of eight: one transfer of two stood still for 1 to 4 s. So while something is owed on
//! a connection and nothing is heard, an empty datagram goes out four times a round trip, and the window is a little
//! wider for each, since it may be full. The first of them that arrives is acknowledged, which shows the transport what
//! else was lost. A path that has collapsed is sent twelve packets a round trip by it at most, for ten round trips.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::congestion;
use super::endpoint::ACK_DELAY_MAX;

/// Pulses in a round trip.
const PER_RTT: u32 = 4;
/// Pulses in a silence at most; after that the transport's own time-outs have to do.
const PULSES_MAX: u32 = 40;
/// Pause between pulses at least: a scheduler's grain, and no storm where a round trip takes microseconds.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Hosts have pauses of their own.
const HOST_PAUSE: Duration = Duration::from_millis(10);
/// Packets that the window takes beyond its measure for each pulse: the pulse, and one that was waiting.
const PACKETS_PER_PULSE: u64 = 2;

/// What counts as being heard of.
#[derive(Debug, Clone, Copy)]
pub enum Heard {
    /// Acknowledgements: who sends chunks waits for these.
    Acks,
    /// Anything: who waits for chunks.
    Anything,
}

impl Heard {
    /// A number that changes when there is news.
    fn count(self, connection: &Connection) -> u64 {
        let stats = connection.stats();
        match self {
            Self::Acks => stats.frame_rx.acks,
            Self::Anything => stats.udp_rx.datagrams,
        }
    }
}

/// Watches one connection for silence while something is owed on it.
#[derive(Debug)]
pub struct Pulse(Rc<Owed>);

#[derive(Debug, Default)]
struct Owed {
    count: Cell<u32>,
    began: Notify,
}

/// Something is owed until this is dropped.
#[derive(Debug)]
pub struct Debt(Rc<Owed>);

impl Drop for Debt {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get().saturating_sub(1));
    }
}

impl Pulse {
    /// Watches a connection until it is closed.
    #[must_use]
    pub fn start(connection: &Connection, heard: Heard) -> Self {
        let owed = Rc::<Owed>::default();
        let (connection, watched) = (connection.clone(), Rc::clone(&owed));
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = watch(&connection, heard, &watched) => {}
                _ = connection.closed() => {}
            }
        });
        Self(owed)
    }

    /// From now on one side owes the other something, and silence is not natural.
    #[must_use]
    pub fn owe(&self) -> Debt {
        if self.0.count.replace(self.0.count.get() + 1) == 0 {
            self.0.began.notify_one();
        }
        Debt(Rc::clone(&self.0))
    }
}

async fn watch(connection: &Connection, heard: Heard, owed: &Owed) {
    let view = congestion::view(connection);
    loop {
        while owed.count.get() == 0 {
            owed.began.notified().await;
        }
        let before = heard.count(connection);
        let rtt = connection.rtt();
        sleep(rtt + rtt / PER_RTT + ACK_DELAY_MAX + HOST_PAUSE).await;
        for _ in 0..PULSES_MAX {
            if owed.count.get() == 0 || heard.count(connection) != before {
                break;
            }
            view.widen(PACKETS_PER_PULSE * u64::from(connection.stats().path.current_mtu));
            // Without room, symbols are waiting that will do as well; a connection that has broken needs no pulse.
            if connection.datagram_send_buffer_space() > 0 {
                let _ = connection.send_datagram(Bytes::new());
            }
            sleep((rtt / PER_RTT).max(PAUSE_MIN)).await;
        }
    }
}
