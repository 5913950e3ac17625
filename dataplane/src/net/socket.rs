//! The UDP socket as the transport sees it: joins what it sends.
//!
//! quinn hands over ten packets at most in one send. What the kernel does for a send (route, header, queue, softirq, waking
//! the receiver) costs as much as those ten packets themselves, so sends that follow each other are joined, up to what
//! one datagram of the kernel's segmentation offload may hold. Nothing waits for time to pass: what is not joined by the
//! end of the current turn of the event loop goes out.

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::Notify;

/// Bytes in a joined send at most: a UDP datagram over IPv4 holds 65507.
const JOINED_MAX: usize = 65_000;

/// A socket that joins sends.
#[derive(Debug)]
pub struct Joining {
    inner: Arc<dyn AsyncUdpSocket>,
    pending: Mutex<Pending>,
    /// There is something to flush, or nobody left to flush for.
    news: Arc<Notify>,
}

/// Sends that wait for more.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Whereto and how; `None` = nothing waits.
    head: Option<Head>,
    /// Something came since this was last looked at.
    grew: bool,
}

/// What sends must have in common to be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    source: Option<IpAddr>,
    /// Bytes of each packet; only the last may have fewer.
    segment: usize,
}

impl Joining {
    /// Wraps a socket. Must be called inside a runtime: a task there sends what is not joined.
    #[must_use]
    pub fn start(inner: Arc<dyn AsyncUdpSocket>) -> Arc<Self> {
        let news = Arc::new(Notify::new());
        let socket = Arc::new(Self { inner, pending: Mutex::default(), news: Arc::clone(&news) });
        tokio::spawn(flush(Arc::downgrade(&socket), news));
        socket
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Packets of `segment` bytes in a joined send at most.
    fn segments_max(&self, segment: usize) -> usize {
        (JOINED_MAX / segment.max(1)).min(self.inner.max_transmit_segments())
    }

    /// Sends what waits. When the kernel has no room for it, it goes on waiting.
    fn flush(&self, pending: &mut Pending) -> io::Result<()> {
        let Some(head) = pending.head else { return Ok(()) };
        let result = self.inner.try_send(&Transmit {
            destination: head.destination,
            ecn: head.ecn,
            contents: &pending.bytes,
            segment_size: Some(head.segment),
            src_ip: head.source,
        });
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            pending.head = None;
            pending.bytes.clear();
        }
        result
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        self.news.notify_one();
    }
}

/// Sends what has waited for a turn of the event loop.
async fn flush(socket: Weak<Joining>, news: Arc<Notify>) {
    loop {
        news.notified().await;
        loop {
            let Some(socket) = socket.upgrade() else { return };
            let flushed = {
                let mut pending = socket.pending();
                if pending.head.is_none() {
                    break;
                }
                let grew = std::mem::take(&mut pending.grew);
                if grew { None } else { Some(socket.flush(&mut pending)) }
            };
            match flushed {
                // The transport may be about to send more: to the end of the queue, once more.
                None => turn().await,
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut poller = Arc::clone(&socket.inner).create_io_poller();
                    if poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.is_err() {
                        break; // the transport meets the same error at its next send, and knows what to do
                    }
                }
                // A packet that could not be sent is as good as one lost on the way.
                Some(_) => break,
            }
        }
    }
}

/// Lets the other tasks run that are ready now. Not `yield_now`, which waits until there is nothing else to do.
async fn turn() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl AsyncUdpSocket for Joining {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let mut pending = self.pending();
        let Some(segment) = transmit.segment_size else {
            self.flush(&mut pending)?;
            return self.inner.try_send(transmit);
        };
        let head = Head { destination: transmit.destination, ecn: transmit.ecn, source: transmit.src_ip, segment };
        let bytes_max = self.segments_max(segment) * segment;
        if pending.head != Some(head) || pending.bytes.len() + transmit.contents.len() > bytes_max {
            self.flush(&mut pending)?;
        }
        let whole = transmit.contents.len().is_multiple_of(segment);
        if pending.head.is_none() && (!whole || 2 * transmit.contents.len() > bytes_max) {
            return self.inner.try_send(transmit); // nothing could follow
        }
        pending.head = Some(head);
        pending.bytes.extend_from_slice(transmit.contents);
        pending.grew = true;
        if !whole || pending.bytes.len() + segment > bytes_max {
            // Nothing can follow. Without room in the kernel it is sent as soon as there is some.
            let _ = self.flush(&mut pending);
        }
        if pending.head.is_some() {
            self.news.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that notes the lengths of sends, and refuses the next when told.
    #[derive(Debug, Default)]
    struct Noting {
        sends: Mutex<Vec<usize>>,
        full: std::sync::atomic::AtomicBool,
    }

    #[derive(Debug)]
    struct Ready;

    impl UdpPoller for Ready {
        fn poll_writable(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncUdpSocket for Noting {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            Box::pin(Ready)
        }

        fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
            if self.full.swap(false, std::sync::atomic::Ordering::Relaxed) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.sends.lock().unwrap().push(transmit.contents.len());
            Ok(())
        }

        fn poll_recv(&self, _: &mut Context, _: &mut [IoSliceMut<'_>], _: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn max_transmit_segments(&self) -> usize {
            64
        }
    }

    fn send(socket: &Joining, len: usize, segment: Option<usize>, port: u16) -> io::Result<()> {
        socket.try_send(&Transmit {
            destination: SocketAddr::from(([127, 0, 0, 1], port)),
            ecn: None,
            contents: &vec![0; len],
            segment_size: segment,
            src_ip: None,
        })
    }

    /// What `act` makes of the sends, in the end.
    async fn sends(act: impl FnOnce(&Joining, &Noting)) -> Vec<usize> {
        let inner = Arc::new(Noting::default());
        let socket = Joining::start(Arc::clone(&inner) as Arc<dyn AsyncUdpSocket>);
        act(&socket, &inner);
        for _ in 0..8 {
            turn().await;
        }
        let sends = inner.sends.lock().unwrap();
        sends.clone()
    }

    #[tokio::test]
    async fn sends_that_follow_each_other_are_joined_up_to_what_a_datagram_holds() {
        let made = sends(|socket, _| (0..5).for_each(|_| send(socket, 14_000, Some(1400), 1).unwrap())).await;
        assert_eq!(made, [56_000, 14_000]);
        // Ten packets of this size are all that a datagram holds.
        let made = sends(|socket, _| (0..2).for_each(|_| send(socket, 65_000, Some(6500), 1).unwrap())).await;
        assert_eq!(made, [65_000, 65_000]);
    }

    #[tokio::test]
    async fn order_is_kept_and_what_ends_short_or_goes_elsewhere_is_not_joined_to() {
        let made = sends(|socket, _| {
            send(socket, 2800, Some(1400), 1).unwrap();
            send(socket, 1500, Some(1400), 1).unwrap();
            send(socket, 2800, Some(1400), 1).unwrap();
            send(socket, 4200, Some(1400), 2).unwrap();
            send(socket, 100, None, 2).unwrap();
        })
        .await;
        assert_eq!(made, [4300, 2800, 4200, 100]);
    }

    #[tokio::test]
    async fn without_room_in_the_kernel_nothing_is_lost_and_nothing_overtakes() {
        let made = sends(|socket, inner| {
            send(socket, 2800, Some(1400), 1).unwrap();
            inner.full.store(true, std::sync::atomic::Ordering::Relaxed);
            let error = send(socket, 100, None, 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        })
        .await;
        assert_eq!(made, [2800]);
    }
}
