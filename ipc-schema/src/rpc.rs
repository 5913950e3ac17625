//! Cap'n Proto RPC over any byte stream, typed on both sides.
//!
//! `capnp-rpc` is not `Send`: everything here lives on one thread, inside a `LocalSet`. Each constructor gives a typed
//! end and a driver; the driver is a future that somebody must poll and that ends with the connection. A message that
//! makes no sense is answered with a failure; one that is too large ends its connection; neither ends the process.

use std::cell::RefCell;
use std::rc::Rc;

use capnp::message::ReaderOptions;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::twoparty::VatNetwork;
use capnp_rpc::{RpcSystem, new_client_from_rc};
use futures::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};

use crate::codec::{self, CodecError};
use crate::failure::Failure;
use crate::generated::{node_capnp, peer_capnp, worker_capnp};
use crate::ids::{NodeId, WorkerIndex};
use crate::node::{Request, Response};
use crate::peer::{PeerRequest, PeerResponse};
use crate::worker::{Accepted, Command, Event, Registration, Reply};

pub use crate::unix::{
    ConnectError, ListenError, PathTooLong, SOCKET_PATH_MAX, check_path, check_peer, connect_unix, listen_unix,
};

/// Words of 8 bytes in one message at most: 48 MiB. The largest is a fetch plan: 32 sources and a share, each with a
/// bitmap of 128 KiB at most, and 64 endpoints each.
pub const MESSAGE_WORDS_MAX: usize = 6 << 20;
/// Depth of pointers in one message at most; ours have fewer than ten.
const NESTING_MAX: i32 = 32;
/// Calls of one connection that are answered at once at most; further ones wait their turn.
pub const CALLS_MAX: usize = 256;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The connection has ended.
    #[error("the other side has gone away")]
    Disconnected,
    /// The other side answered what this version does not understand.
    #[error("the answer makes no sense: {0}")]
    Answer(#[source] CodecError),
    /// This side's own request is beyond a bound.
    #[error("the request cannot be sent: {0}")]
    Request(#[source] CodecError),
    /// The other side could not take the call.
    #[error("the call failed: {0}")]
    Call(#[source] capnp::Error),
    /// The other side said no.
    #[error("{0}")]
    Refused(Failure),
}

impl RpcError {
    /// The connection has ended: a new one may work.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected)
    }

    /// For whoever asked.
    #[must_use]
    pub fn to_failure(&self) -> Failure {
        match self {
            Self::Refused(failure) => failure.clone(),
            Self::Disconnected => Failure::unavailable(self.to_string()),
            Self::Answer(_) | Self::Call(_) => Failure::protocol(self.to_string()),
            Self::Request(_) => Failure::limit(self.to_string()),
        }
    }
}

impl From<capnp::Error> for RpcError {
    fn from(error: capnp::Error) -> Self {
        match error.kind {
            capnp::ErrorKind::Disconnected => Self::Disconnected,
            _ => Self::Call(error),
        }
    }
}

/// Ends with its connection; must be polled for anything to happen.
pub type Driver = LocalBoxFuture<'static, ()>;

fn options() -> ReaderOptions {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(MESSAGE_WORDS_MAX)).nesting_limit(NESTING_MAX);
    options
}

fn network<S>(stream: S, side: Side) -> Box<VatNetwork<impl futures::io::AsyncRead + Unpin>>
where
    S: AsyncRead + AsyncWrite + 'static,
{
    let (input, output) = tokio::io::split(stream);
    let input = futures::io::BufReader::new(input.compat());
    let output = futures::io::BufWriter::new(output.compat_write());
    Box::new(VatNetwork::new(input, output, side, options()))
}

/// The error that ended a connection is dropped: whoever waits for an answer gets one of its own.
fn driver(system: RpcSystem<Side>) -> Driver {
    Box::pin(async move {
        let _ = system.await;
    })
}

/// Answers programs' requests.
pub trait NodeService: 'static {
    /// Answers one. Several of a connection may run at once.
    fn call(self: Rc<Self>, request: Request) -> LocalBoxFuture<'static, Response>;
}

/// Answers the other controller's requests.
pub trait PeerService: 'static {
    /// Answers one. Several of a connection may run at once.
    fn call(self: Rc<Self>, request: PeerRequest) -> LocalBoxFuture<'static, PeerResponse>;
}

/// Does what the controller commands.
pub trait WorkerService: 'static {
    /// Answers one. Several may run at once.
    fn perform(self: Rc<Self>, command: Command) -> LocalBoxFuture<'static, Reply>;
}

/// Takes workers in. One instance a connection.
pub trait RegistrarService: 'static {
    /// Accepts or refuses a worker.
    fn register(
        self: Rc<Self>,
        registration: Registration,
        worker: WorkerClient,
    ) -> LocalBoxFuture<'static, Result<Accepted, Failure>>;

    /// Takes notice of what an accepted worker reports.
    fn report(self: Rc<Self>, worker: WorkerIndex, events: Vec<Event>) -> LocalBoxFuture<'static, ()>;
}

/// A typed handler with a bound on calls in flight.
struct Handler<S: ?Sized> {
    service: Rc<S>,
    calls: Rc<Semaphore>,
}

impl<S: ?Sized> Handler<S> {
    fn new(service: Rc<S>) -> Rc<Self> {
        Rc::new(Self { service, calls: Rc::new(Semaphore::new(CALLS_MAX)) })
    }
}

fn failed(error: CodecError) -> capnp::Error {
    capnp::Error::failed(error.to_string())
}

fn malformed(error: &CodecError) -> Failure {
    Failure::protocol(error.to_string())
}

impl node_capnp::node::Server for Handler<dyn NodeService> {
    async fn call(
        self: Rc<Self>,
        params: node_capnp::node::CallParams,
        mut results: node_capnp::node::CallResults,
    ) -> Result<(), capnp::Error> {
        let _turn = self.calls.acquire().await;
        let response = match codec::node::read_request(params.get()?.get_request()?) {
            Ok(request) => Rc::clone(&self.service).call(request).await,
            Err(error) => Response::Failed(malformed(&error)),
        };
        codec::node::write_response(&response, results.get().init_response()).map_err(failed)
    }
}

impl peer_capnp::peer::Server for Handler<dyn PeerService> {
    async fn call(
        self: Rc<Self>,
        params: peer_capnp::peer::CallParams,
        mut results: peer_capnp::peer::CallResults,
    ) -> Result<(), capnp::Error> {
        let _turn = self.calls.acquire().await;
        let response = match codec::peer::read_request(params.get()?.get_request()?) {
            Ok(request) => Rc::clone(&self.service).call(request).await,
            Err(error) => PeerResponse::Refused(malformed(&error)),
        };
        codec::peer::write_response(&response, results.get().init_response()).map_err(failed)
    }
}

impl worker_capnp::worker::Server for Handler<dyn WorkerService> {
    async fn perform(
        self: Rc<Self>,
        params: worker_capnp::worker::PerformParams,
        mut results: worker_capnp::worker::PerformResults,
    ) -> Result<(), capnp::Error> {
        let _turn = self.calls.acquire().await;
        let reply = match codec::worker::read_command(params.get()?.get_command()?) {
            Ok(command) => Rc::clone(&self.service).perform(command).await,
            Err(error) => Reply::Refused(malformed(&error)),
        };
        codec::worker::write_reply(&reply, results.get().init_reply()).map_err(failed)
    }
}

impl worker_capnp::registrar::Server for Handler<dyn RegistrarService> {
    async fn register(
        self: Rc<Self>,
        params: worker_capnp::registrar::RegisterParams,
        mut results: worker_capnp::registrar::RegisterResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let worker = WorkerClient(params.get_worker()?);
        let registration = match codec::worker::read_registration(params.get_registration()?) {
            Ok(registration) => registration,
            Err(error) => {
                let to = results.get().init_result().init_refused();
                codec::common::write_failure(&malformed(&error), to);
                return Ok(());
            }
        };
        let index = registration.worker;
        match Rc::clone(&self.service).register(registration, worker).await {
            Ok(accepted) => {
                let mut to = results.get().init_result().init_accepted();
                to.set_node(&accepted.node.0);
                codec::common::write_policy(&accepted.policy, to.reborrow().init_policy()).map_err(failed)?;
                let reports = Rc::new(Reports { service: Rc::clone(&self.service), worker: index });
                to.set_controller(new_client_from_rc(reports));
            }
            Err(failure) => {
                codec::common::write_failure(&failure, results.get().init_result().init_refused());
            }
        }
        Ok(())
    }
}

/// What an accepted worker reports to.
struct Reports {
    service: Rc<dyn RegistrarService>,
    worker: WorkerIndex,
}

impl worker_capnp::controller::Server for Reports {
    async fn report(
        self: Rc<Self>,
        params: worker_capnp::controller::ReportParams,
        _results: worker_capnp::controller::ReportResults,
    ) -> Result<(), capnp::Error> {
        let events = codec::worker::read_events(params.get()?.get_events()?).map_err(failed)?;
        Rc::clone(&self.service).report(self.worker, events).await;
        Ok(())
    }
}

/// Serves one program's connection; ends with it.
pub fn serve_node<S>(stream: S, service: Rc<dyn NodeService>) -> Driver
where
    S: AsyncRead + AsyncWrite + 'static,
{
    let bootstrap: node_capnp::node::Client = new_client_from_rc(Handler::new(service));
    driver(RpcSystem::new(network(stream, Side::Server), Some(bootstrap.client)))
}

/// A program's end of its connection to the controller.
#[derive(Clone)]
pub struct NodeClient(node_capnp::node::Client);

impl NodeClient {
    /// The typed end of `stream`, and its driver.
    pub fn new<S>(stream: S) -> (Self, Driver)
    where
        S: AsyncRead + AsyncWrite + 'static,
    {
        let mut system = RpcSystem::new(network(stream, Side::Client), None);
        let client = system.bootstrap(Side::Server);
        (Self(client), driver(system))
    }

    /// Asks the controller.
    ///
    /// # Errors
    /// When the connection ends or the answer makes no sense. A refusal is an answer: [`Response::Failed`].
    pub async fn call(&self, request: &Request) -> Result<Response, RpcError> {
        let mut call = self.0.call_request();
        codec::node::write_request(request, call.get().init_request()).map_err(RpcError::Request)?;
        let answer = call.send().promise.await?;
        codec::node::read_response(answer.get()?.get_response()?).map_err(RpcError::Answer)
    }
}

/// One controller's end of a session with another.
#[derive(Clone)]
pub struct PeerClient(peer_capnp::peer::Client);

/// The typed end of a session, and its driver. Both sides answer with their `service`; `initiator` is the one that
/// opened the session.
pub fn peer_session<S>(stream: S, initiator: bool, service: Rc<dyn PeerService>) -> (PeerClient, Driver)
where
    S: AsyncRead + AsyncWrite + 'static,
{
    let bootstrap: peer_capnp::peer::Client = new_client_from_rc(Handler::new(service));
    let (own, other) = if initiator { (Side::Client, Side::Server) } else { (Side::Server, Side::Client) };
    let mut system = RpcSystem::new(network(stream, own), Some(bootstrap.client));
    let client = system.bootstrap(other);
    (PeerClient(client), driver(system))
}

impl PeerClient {
    /// Asks the other controller.
    ///
    /// # Errors
    /// When the session ends or the answer makes no sense. A refusal is an answer: [`PeerResponse::Refused`].
    pub async fn call(&self, request: &PeerRequest) -> Result<PeerResponse, RpcError> {
        let mut call = self.0.call_request();
        codec::peer::write_request(request, call.get().init_request()).map_err(RpcError::Request)?;
        let answer = call.send().promise.await?;
        codec::peer::read_response(answer.get()?.get_response()?).map_err(RpcError::Answer)
    }
}

/// Serves one worker's connection; ends with it.
pub fn serve_registrar<S>(stream: S, service: Rc<dyn RegistrarService>) -> Driver
where
    S: AsyncRead + AsyncWrite + 'static,
{
    let bootstrap: worker_capnp::registrar::Client = new_client_from_rc(Handler::new(service));
    driver(RpcSystem::new(network(stream, Side::Server), Some(bootstrap.client)))
}

/// The controller's end of a worker's connection.
#[derive(Clone)]
pub struct WorkerClient(worker_capnp::worker::Client);

impl WorkerClient {
    /// Commands the worker.
    ///
    /// # Errors
    /// When the connection ends or the answer makes no sense. A refusal is an answer: [`Reply::Refused`].
    pub async fn perform(&self, command: &Command) -> Result<Reply, RpcError> {
        let mut call = self.0.perform_request();
        codec::worker::write_command(command, call.get().init_command()).map_err(RpcError::Request)?;
        let answer = call.send().promise.await?;
        codec::worker::read_reply(answer.get()?.get_reply()?).map_err(RpcError::Answer)
    }
}

/// A worker's end of its connection to the controller.
pub struct WorkerLink {
    registrar: worker_capnp::registrar::Client,
    worker: worker_capnp::worker::Client,
    controller: RefCell<Option<worker_capnp::controller::Client>>,
}

impl WorkerLink {
    /// The typed end of `stream`, and its driver. Commands go to `service`.
    pub fn new<S>(stream: S, service: Rc<dyn WorkerService>) -> (Self, Driver)
    where
        S: AsyncRead + AsyncWrite + 'static,
    {
        let mut system = RpcSystem::new(network(stream, Side::Client), None);
        let registrar = system.bootstrap(Side::Server);
        let worker = new_client_from_rc(Handler::new(service));
        (Self { registrar, worker, controller: RefCell::new(None) }, driver(system))
    }

    /// Says who this worker is.
    ///
    /// # Errors
    /// [`RpcError::Refused`] when the controller does not want it; else when the connection ends.
    pub async fn register(&self, registration: &Registration) -> Result<Accepted, RpcError> {
        let mut call = self.registrar.register_request();
        codec::worker::write_registration(registration, call.get().init_registration()).map_err(RpcError::Request)?;
        call.get().set_worker(self.worker.clone());
        let answer = call.send().promise.await?;
        match answer
            .get()?
            .get_result()?
            .which()
            .map_err(CodecError::unknown("register result"))
            .map_err(RpcError::Answer)?
        {
            worker_capnp::register_result::Accepted(accepted) => {
                let accepted = accepted?;
                let policy = codec::common::read_policy(accepted.get_policy()?).map_err(RpcError::Answer)?;
                let node = codec::bytes("node id", accepted.get_node()?).map(NodeId).map_err(RpcError::Answer)?;
                *self.controller.borrow_mut() = Some(accepted.get_controller()?);
                Ok(Accepted { policy, node })
            }
            worker_capnp::register_result::Refused(failure) => {
                Err(RpcError::Refused(codec::common::read_failure(failure?).map_err(RpcError::Answer)?))
            }
        }
    }

    /// Reports events; returns when the controller has taken notice.
    ///
    /// # Errors
    /// When the connection ends, or before [`register`](Self::register).
    pub async fn report(&self, events: &[Event]) -> Result<(), RpcError> {
        let controller = self.controller.borrow().clone().ok_or(RpcError::Disconnected)?;
        let mut call = controller.report_request();
        codec::worker::write_events(events, |count| call.get().init_events(count)).map_err(RpcError::Request)?;
        call.send().promise.await?;
        Ok(())
    }
}
