//! The connection to a controller. RPC lives on a thread of its own, so that this handle can be used from any.

use std::cell::Cell;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use pangea_ipc::address::PeerAddress;
use pangea_ipc::ids::{ContentId, JobId};
use pangea_ipc::node::{JobReport, JobState, Opened, Request, Response};
use pangea_ipc::rpc::{NodeClient, connect_unix};
use pangea_ipc::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use crate::error::ClientError;
use crate::reader::Reader;
use crate::transfer::{Order, Transfer};

/// How a content is to be had.
#[derive(Debug, Clone, Default)]
pub struct GetOptions {
    /// Nodes that may hold it, beside those that the node knows.
    pub peers: Vec<PeerAddress>,
    /// Bytes wanted, `start..end`; `None` = all. No others are fetched.
    pub range: Option<Range<u64>>,
}

type Reply = oneshot::Sender<Result<Response, ClientError>>;

enum Message {
    Call(Box<Request>, Reply),
    Watch(JobId, WatchEnd),
}

/// A connection to a node's controller. Clones share it; jobs end when the last clone is gone.
#[derive(Clone)]
pub struct Client {
    messages: mpsc::UnboundedSender<Message>,
}

impl Client {
    /// Connects to the controller of a runtime folder.
    ///
    /// # Errors
    /// Says which of the usual things is wrong.
    pub fn connect(runtime_dir: &Path) -> Result<Self, ClientError> {
        let socket = runtime::controller_socket(runtime_dir);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (messages, inbox) = mpsc::unbounded_channel();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::Builder::new().name("pangea-rpc".to_owned()).spawn(move || {
            let local = LocalSet::new();
            local.block_on(&runtime, async move {
                match connect_unix(&socket).await {
                    Ok(stream) => {
                        let (client, driver) = NodeClient::new(stream);
                        let _ = tell.send(Ok(())); // whoever asked waits below
                        serve(client, driver, inbox).await;
                    }
                    Err(error) => {
                        let _ = tell.send(Err(error));
                    }
                }
            });
        })?;
        told.recv().map_err(|_| ClientError::ControllerGone)??;
        Ok(Self { messages })
    }

    /// Asks the controller; blocks. A refusal is an error.
    ///
    /// # Errors
    /// When the controller refuses or has gone.
    pub fn call(&self, request: Request) -> Result<Response, ClientError> {
        self.send(request)?.blocking_recv().map_err(|_| ClientError::ControllerGone)?
    }

    /// Asks the controller. A refusal is an error.
    ///
    /// # Errors
    /// When the controller refuses or has gone.
    pub async fn call_async(&self, request: Request) -> Result<Response, ClientError> {
        self.send(request)?.await.map_err(|_| ClientError::ControllerGone)?
    }

    fn send(&self, request: Request) -> Result<oneshot::Receiver<Result<Response, ClientError>>, ClientError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.messages.send(Message::Call(Box::new(request), reply));
        sent.map_err(|_| ClientError::ControllerGone)?;
        Ok(answer)
    }

    /// Makes a content available; its chunks can be taken while they come. Blocks until its size is known.
    ///
    /// # Errors
    /// When nobody reachable has it, or there is no room.
    pub fn get(&self, content: ContentId, options: GetOptions) -> Result<Transfer, ClientError> {
        self.transfer(content, options, Order::Any)
    }

    /// The same, with the chunks in order: for streams.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn stream(&self, content: ContentId, options: GetOptions) -> Result<Transfer, ClientError> {
        self.transfer(content, options, Order::Ascending)
    }

    /// A content as something to read and seek in. Only what is read is fetched first.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn open(&self, content: ContentId, options: GetOptions) -> Result<Reader, ClientError> {
        Ok(Reader::new(self.transfer(content, options, Order::Ascending)?))
    }

    fn transfer(&self, content: ContentId, options: GetOptions, order: Order) -> Result<Transfer, ClientError> {
        let range = options.range.clone();
        let opened = self.opened(Request::Get { content, peers: options.peers, range: options.range })?;
        let watch = self.watch(opened.job)?;
        Transfer::open(self.clone(), opened, watch, range, order)
    }

    pub(crate) fn opened(&self, request: Request) -> Result<Opened, ClientError> {
        match self.call(request)? {
            Response::Opened(opened) => Ok(opened),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Follows a job of this connection.
    ///
    /// # Errors
    /// When the system gives no descriptor.
    pub fn watch(&self, job: JobId) -> Result<JobWatch, ClientError> {
        let (read, write) = std::os::unix::net::UnixStream::pair()?;
        read.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let latest = Arc::new(Mutex::new(None));
        let end = WatchEnd { latest: Arc::clone(&latest), bell: write };
        let sent = self.messages.send(Message::Watch(job, end));
        sent.map_err(|_| ClientError::ControllerGone)?;
        Ok(JobWatch { latest, bell: read, ended: Cell::new(false) })
    }

    /// Waits for a job that has no rings (a verify); `progress` sees each report.
    ///
    /// # Errors
    /// When the job fails or the controller goes away.
    pub fn wait(&self, job: JobId, progress: &mut dyn FnMut(&JobReport)) -> Result<JobReport, ClientError> {
        let mut seen = 0;
        loop {
            match self.call(Request::Watch { job, seen })? {
                Response::Job(report) => {
                    progress(&report);
                    match (report.state, &report.failure) {
                        (JobState::Running, _) => seen = report.version,
                        (JobState::Done, _) => return Ok(report),
                        (JobState::Failed, Some(failure)) => return Err(failure.clone().into()),
                        (JobState::Failed, None) => return Err(ClientError::Unexpected),
                    }
                }
                _ => return Err(ClientError::Unexpected),
            }
        }
    }
}

/// The newest report of a job, and a socket that can be read when there is a newer one.
#[derive(Debug)]
pub struct JobWatch {
    latest: Arc<Mutex<Option<JobReport>>>,
    pub(crate) bell: std::os::unix::net::UnixStream,
    ended: Cell<bool>,
}

impl JobWatch {
    /// No newer report will come: the job has ended, or the controller has gone.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// The newest report; `None` before the first.
    #[must_use]
    pub fn latest(&self) -> Option<JobReport> {
        use std::io::Read;
        let mut ignored = [0; 64];
        // Taken back before the report is read, so that none is overlooked.
        loop {
            match (&self.bell).read(&mut ignored) {
                Ok(0) => {
                    self.ended.set(true);
                    break;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct WatchEnd {
    latest: Arc<Mutex<Option<JobReport>>>,
    bell: std::os::unix::net::UnixStream,
}

impl WatchEnd {
    fn tell(&self, report: JobReport) {
        use std::io::Write;
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        let _ = (&self.bell).write(&[1]); // a full socket rings already
    }
}

async fn serve(client: NodeClient, driver: pangea_ipc::rpc::Driver, mut inbox: mpsc::UnboundedReceiver<Message>) {
    let driver = tokio::task::spawn_local(driver);
    while let Some(message) = inbox.recv().await {
        let client = client.clone();
        match message {
            Message::Call(request, reply) => {
                tokio::task::spawn_local(async move {
                    let answer = match client.call(&request).await {
                        Ok(Response::Failed(failure)) => Err(failure.into()),
                        Ok(response) => Ok(response),
                        Err(error) => Err(error.into()),
                    };
                    let _ = reply.send(answer); // who asked may have gone
                });
            }
            Message::Watch(job, end) => {
                tokio::task::spawn_local(async move {
                    let mut seen = 0;
                    while let Ok(Response::Job(report)) = client.call(&Request::Watch { job, seen }).await {
                        seen = report.version;
                        let running = report.state == JobState::Running;
                        end.tell(report);
                        if !running {
                            return;
                        }
                    }
                });
            }
        }
    }
    driver.abort();
}
