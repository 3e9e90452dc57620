//! One HTTP/2 connection with its own small runtime, so that callers block in plain threads.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::DialError;

const WINDOW_BYTES: u32 = 4 << 20;
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const KEEP_ALIVE_S: u64 = 10;
const ATTEMPTS: u32 = 4;
const BACKOFF_MS: u64 = 100;

/// How to dial.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// REAPI instance name, may be empty.
    pub instance: String,
    /// How long to wait for the connection.
    pub connect_timeout: Duration,
    /// How long a unary call may take.
    pub call_timeout: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { instance: String::new(), connect_timeout: Duration::from_secs(5), call_timeout: Duration::from_secs(60) }
    }
}

/// An outbound connection. Dropping it closes it.
pub struct Link {
    pub(crate) url: String,
    pub(crate) options: LinkOptions,
    pub(crate) channel: Channel,
    pub(crate) runtime: Runtime,
}

impl Link {
    /// Prepare a connection to `grpc://HOST:PORT` (or `http://`); the first call dials.
    ///
    /// # Errors
    /// The URL names no server, or the runtime cannot start.
    pub fn new(url: &str, options: LinkOptions) -> Result<Self, DialError> {
        let authority = url
            .strip_prefix("grpc://")
            .or_else(|| url.strip_prefix("http://"))
            .ok_or_else(|| DialError::Url(url.to_owned()))?;
        let endpoint = Endpoint::from_shared(format!("http://{}", authority.trim_end_matches('/')))
            .map_err(|_| DialError::Url(url.to_owned()))?
            .connect_timeout(options.connect_timeout)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(KEEP_ALIVE_S))
            .keep_alive_timeout(Duration::from_secs(KEEP_ALIVE_S))
            .tcp_nodelay(true);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("buildnet-dial")
            .enable_all()
            .build()
            .map_err(|e| DialError::Down { url: url.to_owned(), reason: e.to_string() })?;
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        Ok(Self { url: url.to_owned(), options, channel, runtime })
    }

    /// Resource names begin with the instance and a slash, or with nothing.
    pub(crate) fn prefix(&self) -> String {
        if self.options.instance.is_empty() { String::new() } else { format!("{}/", self.options.instance) }
    }

    pub(crate) fn client(&self) -> tonic::client::Grpc<Channel> {
        tonic::client::Grpc::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// One idempotent unary call, repeated while nobody answers.
    pub(crate) async fn unary<Q, A>(&self, call: &'static str, request: Q) -> Result<A, DialError>
    where
        Q: Message + Clone + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let done = self.unary_once::<Q, A>(call, request.clone()).await;
            match done {
                Err(status) if status.code() == tonic::Code::Unavailable && attempt < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(BACKOFF_MS << attempt)).await;
                }
                Err(status) => return Err(DialError::from_status(call, &self.url, &status)),
                Ok(answer) => return Ok(answer),
            }
        }
    }

    async fn unary_once<Q, A>(&self, call: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.client();
        ready(&mut client).await?;
        let mut request = Request::new(request);
        request.set_timeout(self.options.call_timeout);
        let answer = client.unary(request, PathAndQuery::from_static(call), ProstCodec::<Q, A>::default()).await?;
        Ok(answer.into_inner())
    }
}

pub(crate) async fn ready(client: &mut tonic::client::Grpc<Channel>) -> Result<(), Status> {
    client.ready().await.map_err(|e| Status::unavailable(root_cause(&e)))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// Bytes from a vector without a copy.
pub(crate) fn bytes_of(data: Vec<u8>) -> Bytes {
    Bytes::from(data)
}
