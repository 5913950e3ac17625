//! When the transport sends what it is given, and how much of that it holds: it says neither, and has habits of its own.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use pangea_ipc::policy::CongestionLaw;
use quinn::Connection;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::congestion::PathView;
use super::endpoint::{CONNECTION_WINDOW, DATAGRAM_SEND_BYTES};

/// Bytes of header in a packet: short header with connection id and number (11), frame (9), tag (16).
const HEADERS: u64 = 36;

/// The sending side of one connection.
pub struct Pace {
    connection: Connection,
    view: Arc<PathView>,
    /// Bytes given to the transport, with the headers that they go out with.
    given: Cell<u64>,
    /// Room for datagrams when none waits, in bytes; the transport keeps back what one of them takes beside its payload.
    datagram_room: usize,
    /// Bytes of datagrams given to the transport, as it counts them.
    datagrams: Cell<u64>,
    /// Tells those who wait here of each beat.
    beat: Notify,
    /// When the next bytes may be given to the transport under a fixed rate.
    next: Cell<Instant>,
}

impl Pace {
    /// Of a fresh connection; `view` is its own.
    #[must_use]
    pub fn new(connection: &Connection, view: &Arc<PathView>) -> Self {
        let pace = Self {
            connection: connection.clone(),
            view: Arc::clone(view),
            given: Cell::new(0),
            datagram_room: connection.datagram_send_buffer_space(),
            datagrams: Cell::new(0),
            beat: Notify::new(),
            next: Cell::new(Instant::now()),
        };
        pace.limit_unsent();
        pace
    }

    /// So many bytes are given to the transport, in stream frames or datagrams.
    pub fn note_given(&self, bytes: usize) {
        self.given.set(self.given.get() + self.with_headers(bytes));
    }

    /// A datagram of so many bytes is given to the transport.
    pub fn note_datagram(&self, bytes: usize) {
        let beside = DATAGRAM_SEND_BYTES.saturating_sub(self.datagram_room);
        self.datagrams.set(self.datagrams.get() + (bytes + beside) as u64);
    }

    /// Waits until the datagrams given so far are on their way. What a stream says of them fits beside one in a packet, and
    /// would overtake all that wait for the window.
    pub async fn datagrams_gone(&self) {
        let upto = self.datagrams.get();
        while self.datagrams.get().saturating_sub(self.datagrams_waiting()) < upto
            && self.connection.close_reason().is_none()
        {
            self.beat.notified().await;
        }
    }

    /// Bytes of datagrams that the transport has not sent, as it counts them.
    fn datagrams_waiting(&self) -> u64 {
        self.datagram_room.saturating_sub(self.connection.datagram_send_buffer_space()) as u64
    }

    fn with_headers(&self, bytes: usize) -> u64 {
        let (bytes, mtu) = (bytes as u64, u64::from(self.connection.stats().path.current_mtu));
        bytes + bytes * HEADERS / mtu.saturating_sub(HEADERS).max(1)
    }

    /// Waits until so many bytes may be given to the transport, which sends at no more than `law` says. The window alone
    /// keeps a fixed rate on paths that hold many packets; on a short one it cannot be small enough.
    pub async fn allow(&self, bytes: usize, law: CongestionLaw) {
        /// What a late timer costs is made up for, and no more.
        const CREDIT: Duration = Duration::from_millis(10);
        let CongestionLaw::Rate { bits_per_s } = law else { return };
        let now = Instant::now();
        let at = self.next.get().max(now.checked_sub(CREDIT).unwrap_or(now));
        let takes = Duration::from_secs_f64(self.with_headers(bytes) as f64 * 8.0 / bits_per_s.max(1) as f64);
        self.next.set(at + takes);
        if at > now {
            sleep_until(at).await;
        }
    }

    /// Waits until the transport has sent what it was given before, but for what keeps it busy. It sends datagrams before
    /// streams: the symbols at the end of a transfer would overtake the windows of streams that wait in it, which would
    /// then be the end, without parity (0.15 s at 150 ms and 1 % loss).
    pub async fn catch_up(&self) {
        while self.unsent() > DATAGRAM_SEND_BYTES as u64 && self.connection.close_reason().is_none() {
            self.beat.notified().await;
        }
    }

    /// Keeps the transport sending, for ever. Its pacer holds the sending of 2 ms at most and loses what it is not asked
    /// for in time; its own timer comes 1 to 3 ms after the last packet, and between acknowledgements nothing else asks.
    /// Measured in the first flight on a path of 300 Mbit/s: 240 Mbit/s without this.
    pub async fn keep(&self) -> ! {
        /// The grain of the timers.
        const BEAT: Duration = Duration::from_millis(1);
        loop {
            self.view.news().await;
            sleep(BEAT).await;
            // What it may hold follows the window, which in start-up doubles each round trip.
            self.limit_unsent();
            self.beat.notify_waiters();
        }
    }

    /// Bytes not yet sent, about: a reckoning that begins anew whenever the transport has nothing to send.
    fn unsent(&self) -> u64 {
        let carried = self.view.carried();
        if self.view.is_idle() {
            self.given.set(carried);
        }
        self.given.get().saturating_sub(carried)
    }

    /// Lets the transport hold a few windows only: what waits there goes out after the symbols of chunks that were asked
    /// for later. What has arrived counts as held until all before it has, which on a lossy path takes the window that it
    /// was sent in, that of its repair, and often one more.
    fn limit_unsent(&self) {
        const WINDOWS: u64 = 4;
        /// Two chunks, so that there is always something to send.
        const UNSENT: u64 = 512 << 10;
        let limit = self.view.window() * WINDOWS + UNSENT;
        self.connection.set_send_window(limit.min(CONNECTION_WINDOW.into()));
    }
}
