//! The same for async programs: rings are waited for with `poll(2)`, so transfers run on the runtime's blocking threads.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use pangea_ipc::ids::ContentId;
use pangea_ipc::node::{Request, Response};

use crate::client::{Client, GetOptions};
use crate::error::ClientError;
use crate::put::{PutOptions, PutOutcome};
use crate::reader::Reader;

/// A connection to a node's controller, for use inside a tokio runtime.
#[derive(Clone)]
pub struct AsyncClient(Client);

impl AsyncClient {
    /// Connects to the controller of a runtime folder.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(runtime_dir: PathBuf) -> Result<Self, ClientError> {
        blocking(move || Client::connect(&runtime_dir)).await.map(Self)
    }

    /// Asks the controller.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn call(&self, request: Request) -> Result<Response, ClientError> {
        self.0.call_async(request).await
    }

    /// Puts a file, from where it stands to its end.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn put(&self, file: File, options: PutOptions) -> Result<PutOutcome, ClientError> {
        let client = self.0.clone();
        blocking(move || client.put(&file, options, &mut |_| true)).await
    }

    /// Writes a content to a file.
    ///
    /// # Errors
    /// As [`Client::get`] and [`Transfer::write_to_file`](crate::Transfer::write_to_file).
    pub async fn get(&self, content: ContentId, options: GetOptions, file: File) -> Result<(), ClientError> {
        let client = self.0.clone();
        blocking(move || client.get(content, options)?.write_to_file(&file, &mut |_| true)).await
    }

    /// A content as something to read and seek in; use it on a blocking thread.
    ///
    /// # Errors
    /// As [`Client::open`].
    pub async fn open(&self, content: ContentId, options: GetOptions) -> Result<Reader, ClientError> {
        let client = self.0.clone();
        blocking(move || client.open(content, options)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    let ended = |error| ClientError::System(io::Error::other(error));
    tokio::task::spawn_blocking(work).await.map_err(ended)?
}
