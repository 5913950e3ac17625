//! The congestion controller of a connection: [`pangea_dataplane_core::congestion`] behind quinn's interface.
//!
//! quinn owns the controller; what the worker wants to know of the path, and what it has to say of it, goes through a
//! [`PathView`] that both hold. The model of the path is kept whatever the policy: it also measures loss for FEC.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use pangea_dataplane_core::congestion::{Congestion, Known, Loss};
use pangea_ipc::policy::CongestionLaw;
use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;
use tokio::sync::Notify;

/// Which law the connections of a worker follow; shared by all of them, changed with the policy.
#[derive(Debug, Default)]
pub struct Law(AtomicU64);

impl Law {
    const AUTO: u64 = 0;
    const CUBIC: u64 = u64::MAX;

    /// Every connection follows this law from its next acknowledgement on.
    pub fn set(&self, law: CongestionLaw) {
        let code = match law {
            CongestionLaw::Auto => Self::AUTO,
            CongestionLaw::Cubic => Self::CUBIC,
            CongestionLaw::Rate { bits_per_s } => bits_per_s,
        };
        self.0.store(code, Relaxed);
    }
}

/// What the controller of one connection and the worker tell each other. Single words, each complete in itself, so no
/// order among them is needed.
#[derive(Debug, Default)]
pub struct PathView {
    rate: AtomicU64,
    rtt_us: AtomicU64,
    window: AtomicU64,
    loss_ppm: AtomicU32,
    dispersion_milli: AtomicU32,
    known_rate: AtomicU64,
    known_rtt_us: AtomicU64,
    known_loss_ppm: AtomicU32,
    widened: AtomicU64,
    /// Bytes sent and not lost.
    carried: AtomicU64,
    /// There was nothing to send when the last acknowledgement came.
    idle: AtomicBool,
    news: Notify,
}

impl PathView {
    /// Lets so many more bytes be in flight than the window, until the next acknowledgement.
    pub fn widen(&self, bytes: u64) {
        self.widened.fetch_add(bytes, Relaxed);
    }

    /// Bytes that were sent and are not known to be lost, from the beginning, with all headers of QUIC.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.carried.load(Relaxed)
    }

    /// Whether the transport had nothing to send when the last acknowledgement came.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.idle.load(Relaxed)
    }

    /// Returns when something was sent or acknowledged since this returned last; for one who waits.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Tells the controller what the path carried when it was last used; of use only before much was sent.
    pub fn set_known(&self, known: Known) {
        self.known_rtt_us.store(micros(known.rtt), Relaxed);
        self.known_loss_ppm.store((known.loss * 1e6) as u32, Relaxed);
        self.known_rate.store(known.rate as u64, Relaxed);
    }

    /// What is worth remembering of the path; `None` before it has shown anything.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        let (rate, rtt) = (self.rate.load(Relaxed), self.rtt_us.load(Relaxed));
        let known = || Known { rate: rate as f64, rtt: Duration::from_micros(rtt), loss: self.loss().share };
        (rate > 0 && rtt > 0).then(known)
    }

    /// Bytes that may be in flight.
    #[must_use]
    pub fn window(&self) -> u64 {
        self.window.load(Relaxed)
    }

    /// What the path loses by itself.
    #[must_use]
    pub fn loss(&self) -> Loss {
        Loss {
            share: f64::from(self.loss_ppm.load(Relaxed)) / 1e6,
            dispersion: f64::from(self.dispersion_milli.load(Relaxed)) / 1e3,
        }
    }

    fn publish(&self, model: &Congestion, window: u64) {
        self.widened.store(0, Relaxed);
        // Float-to-integer casts saturate.
        self.rate.store(model.known().map_or(0, |known| known.rate as u64), Relaxed);
        self.rtt_us.store(model.known().map_or(0, |known| micros(known.rtt)), Relaxed);
        self.window.store(window, Relaxed);
        let loss = model.loss();
        self.loss_ppm.store((loss.share * 1e6) as u32, Relaxed);
        self.dispersion_milli.store((loss.dispersion * 1e3) as u32, Relaxed);
        self.news.notify_one();
    }

    fn take_known(&self) -> Option<Known> {
        let rate = self.known_rate.swap(0, Relaxed);
        let rtt = Duration::from_micros(self.known_rtt_us.load(Relaxed));
        let loss = f64::from(self.known_loss_ppm.load(Relaxed)) / 1e6;
        (rate > 0).then_some(Known { rate: rate as f64, rtt, loss })
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Makes the controllers of a worker's connections.
#[derive(Debug, Clone)]
pub struct Factory {
    law: Arc<Law>,
}

impl Factory {
    /// Connections that follow `law`.
    #[must_use]
    pub fn new(law: Arc<Law>) -> Self {
        Self { law }
    }
}

impl ControllerFactory for Factory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let model = Congestion::new(now, current_mtu, None);
        Box::new(PathController {
            view: Arc::default(),
            law: Arc::clone(&self.law),
            code: Law::AUTO,
            cubic: None,
            mtu: current_mtu,
            model,
        })
    }
}

/// The view of a connection's path.
#[must_use]
pub fn view(connection: &quinn::Connection) -> Arc<PathView> {
    let state = connection.congestion_state().into_any();
    // Every connection of a worker has this controller; of another one nothing would be known, which is harmless.
    state.downcast::<PathController>().map(|controller| Arc::clone(&controller.view)).unwrap_or_default()
}

#[derive(Clone)]
struct PathController {
    view: Arc<PathView>,
    law: Arc<Law>,
    /// The law followed now.
    code: u64,
    cubic: Option<CubicState>,
    mtu: u16,
    model: Congestion,
}

struct CubicState(Box<dyn Controller>);

impl Clone for CubicState {
    fn clone(&self) -> Self {
        Self(self.0.clone_box())
    }
}

impl fmt::Debug for PathController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PathController").field("code", &self.code).field("model", &self.model).finish_non_exhaustive()
    }
}

impl PathController {
    fn follow_law(&mut self, now: Instant) {
        let code = self.law.0.load(Relaxed);
        if code == self.code {
            return;
        }
        self.code = code;
        let cubic = || CubicState(Arc::new(CubicConfig::default()).build(now, self.mtu));
        self.cubic = (code == Law::CUBIC).then(cubic);
        let fixed = (code != Law::AUTO && code != Law::CUBIC).then_some(code as f64 / 8.0);
        self.model.set_fixed_rate(fixed);
    }

    /// The window by the law that is followed.
    fn measured(&self) -> u64 {
        self.cubic.as_ref().map_or_else(|| self.model.window(), |CubicState(cubic)| cubic.window())
    }
}

impl Controller for PathController {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.view.carried.fetch_add(bytes, Relaxed);
        self.view.news.notify_one();
        self.model.handle_sent(now, bytes, last_packet_number);
        if let Some(CubicState(cubic)) = &mut self.cubic {
            cubic.on_sent(now, bytes, last_packet_number);
        }
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.model.handle_ack(now, sent, bytes);
        if let Some(CubicState(cubic)) = &mut self.cubic {
            cubic.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.follow_law(now);
        if let Some(known) = self.view.take_known() {
            self.model.set_known(known);
        }
        self.model.handle_acks_end(now, in_flight, app_limited, largest.unwrap_or(0));
        if let Some(CubicState(cubic)) = &mut self.cubic {
            cubic.on_end_acks(now, in_flight, app_limited, largest);
        }
        self.view.idle.store(app_limited, Relaxed);
        self.view.publish(&self.model, self.measured());
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        if lost_bytes == 0 {
            self.model.handle_marked(now, sent);
        } else {
            self.view.carried.fetch_sub(lost_bytes, Relaxed); // which were sent before
            self.model.handle_lost(sent, lost_bytes, is_persistent_congestion);
        }
        if let Some(CubicState(cubic)) = &mut self.cubic {
            cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.model.set_mtu(new_mtu);
        if let Some(CubicState(cubic)) = &mut self.cubic {
            cubic.on_mtu_update(new_mtu);
        }
    }

    fn window(&self) -> u64 {
        self.measured() + self.view.widened.load(Relaxed)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.model.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
