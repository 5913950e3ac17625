//! The RPC under its typed ends: bounds, several calls at once, ends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::rc::Rc;

use futures::future::LocalBoxFuture;
use pangea_ipc::failure::Failure;
use pangea_ipc::node::{Request, Response};
use pangea_ipc::rpc::{CALLS_MAX, MESSAGE_WORDS_MAX, NodeClient, NodeService, RpcError, serve_node};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

/// Answers `Status` with a failure that counts, and everything else only when released.
#[derive(Default)]
struct Service {
    begun: Cell<usize>,
    most: Cell<usize>,
    at_once: Cell<usize>,
    release: Notify,
    began: Notify,
}

impl NodeService for Service {
    fn call(self: Rc<Self>, request: Request) -> LocalBoxFuture<'static, Response> {
        Box::pin(async move {
            self.begun.set(self.begun.get() + 1);
            self.at_once.set(self.at_once.get() + 1);
            self.most.set(self.most.get().max(self.at_once.get()));
            self.began.notify_one();
            if !matches!(request, Request::Status) {
                self.release.notified().await;
            }
            self.at_once.set(self.at_once.get() - 1);
            Response::Failed(Failure::not_found("by the test"))
        })
    }
}

fn served(service: &Rc<Service>) -> DuplexStream {
    let (near, far) = duplex(1 << 16);
    let service: Rc<dyn NodeService> = Rc::<Service>::clone(service);
    spawn_local(serve_node(far, service));
    near
}

fn client(stream: DuplexStream) -> NodeClient {
    let (client, driver) = NodeClient::new(stream);
    spawn_local(driver);
    client
}

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

const SLOW: Request = Request::List { after: None };

#[tokio::test]
async fn a_call_that_waits_does_not_hold_up_others() {
    local(async {
        let service = Rc::new(Service::default());
        let client = client(served(&service));
        let waiting = spawn_local({
            let client = client.clone();
            async move { client.call(&SLOW).await }
        });
        service.began.notified().await;
        assert!(matches!(client.call(&Request::Status).await, Ok(Response::Failed(_))));
        assert!(!waiting.is_finished());
        service.release.notify_one();
        assert!(matches!(waiting.await.unwrap(), Ok(Response::Failed(_))));
    })
    .await;
}

#[tokio::test]
async fn calls_beyond_the_bound_wait_their_turn_and_are_all_answered() {
    local(async {
        let service = Rc::new(Service::default());
        let client = client(served(&service));
        let calls: Vec<_> = (0..CALLS_MAX + 50)
            .map(|_| {
                let client = client.clone();
                spawn_local(async move { client.call(&SLOW).await })
            })
            .collect();
        while service.at_once.get() < CALLS_MAX {
            tokio::task::yield_now().await;
        }
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(service.most.get(), CALLS_MAX);
        for call in calls {
            while !call.is_finished() {
                service.release.notify_one();
                tokio::task::yield_now().await;
            }
            assert!(call.await.unwrap().is_ok());
        }
        assert_eq!((service.begun.get(), service.most.get()), (CALLS_MAX + 50, CALLS_MAX));
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_ends_answers_every_open_call() {
    local(async {
        let service = Rc::new(Service::default());
        let (near, far) = duplex(1 << 16);
        let served: Rc<dyn NodeService> = Rc::<Service>::clone(&service);
        let server = spawn_local(serve_node(far, served));
        let client = client(near);
        let waiting = spawn_local({
            let client = client.clone();
            async move { client.call(&SLOW).await }
        });
        service.began.notified().await;
        server.abort();
        let error = waiting.await.unwrap().err().unwrap();
        assert!(error.is_disconnected(), "{error}");
        let error = client.call(&Request::Status).await.err().unwrap();
        assert!(matches!(error, RpcError::Disconnected), "{error}");
    })
    .await;
}

#[tokio::test]
async fn an_oversized_or_garbled_message_ends_its_connection_and_no_other() {
    local(async {
        let service = Rc::new(Service::default());
        let good = client(served(&service));
        // The segment table of a message that is larger than any, and other things that are no messages.
        let words = u32::try_from(MESSAGE_WORDS_MAX + 1).unwrap();
        let too_large = [0_u32.to_le_bytes(), words.to_le_bytes()].concat();
        let many_segments = [u32::MAX.to_le_bytes(), [0; 4]].concat();
        for bytes in [too_large, many_segments, vec![0xff; 4096]] {
            let mut stream = served(&service);
            stream.write_all(&bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await; // ends, with or without a word
            assert!(matches!(good.call(&Request::Status).await, Ok(Response::Failed(_))));
        }
        assert_eq!(service.begun.get(), 3, "no call came of it");
    })
    .await;
}
