//! One HTTP/2 connection with its own small runtime, so that callers block in plain threads. A token leaves in the header
//! of each call and nowhere else. While it is down, whoever calls first dials, and the others wait for that.

use std::convert::Infallible;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::dialler::Connector;
use crate::{DialError, Dialler};

const WINDOW_BYTES: u32 = 4 << 20;
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Of a session: what is not taken of sixteen downloads leaves room for the messages of a call beside them.
const SESSION_WINDOW_BYTES: u32 = 16 * WINDOW_BYTES;
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A path that swallows packets is noticed within 15 s.
const SESSION_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 4;
const BACKOFF_MS: u64 = 100;

/// What a `grpcs` server is verified by, and what it verifies this end by. All PEM.
#[derive(Clone, Default)]
pub struct TlsOptions {
    /// Authorities; none for those that browsers trust.
    pub ca: Option<Vec<u8>>,
    /// This end's certificate with its private key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// How to dial.
#[derive(Clone)]
pub struct LinkOptions {
    /// REAPI instance name, may be empty.
    pub instance: String,
    /// How long to wait for the connection.
    pub connect_timeout: Duration,
    /// How long a unary call may take.
    pub call_timeout: Duration,
    /// For `grpcs`.
    pub tls: TlsOptions,
    /// The token that calls bring; empty for none.
    pub token: String,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            instance: String::new(),
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(60),
            tls: TlsOptions::default(),
            token: String::new(),
        }
    }
}

/// Puts the token that is valid now into each call.
#[derive(Clone, Default)]
pub(crate) struct Bearer(Arc<RwLock<Option<MetadataValue<Ascii>>>>);

impl Bearer {
    pub(crate) fn set(&self, token: &str) -> Result<(), DialError> {
        let mut value = None;
        if !token.is_empty() {
            let mut header: MetadataValue<Ascii> = format!("Bearer {token}")
                .parse()
                .map_err(|_| DialError::Invalid("the token holds what no header can; is it a token?".to_owned()))?;
            // Keeps it out of HPACK's table and of debug output.
            header.set_sensitive(true);
            value = Some(header);
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = value;
        Ok(())
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

pub(crate) type Client = tonic::client::Grpc<InterceptedService<Channel, Bearer>>;

fn tls_config(options: &TlsOptions) -> ClientTlsConfig {
    let mut config = match &options.ca {
        Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
        None => ClientTlsConfig::new().with_webpki_roots(),
    };
    if let Some((certificate, key)) = &options.identity {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    config
}

/// How connections behave, whatever they are made of; none when the URL is not one.
fn endpoint_of(url: &str, options: &LinkOptions) -> Option<Endpoint> {
    let endpoint = Endpoint::from_shared(url.to_owned()).ok()?;
    Some(
        endpoint
            .connect_timeout(options.connect_timeout)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .tcp_nodelay(true),
    )
}

/// A runtime that lets connections say farewell before it ends.
pub(crate) struct Running {
    runtime: Runtime,
    ended: mpsc::Receiver<Infallible>,
}

impl Deref for Running {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        &self.runtime
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = &mut self.ended;
        // A peer that takes nothing hears nothing.
        let _ = self.runtime.block_on(async { tokio::time::timeout(CLOSE_TIMEOUT, ended.recv()).await });
    }
}

/// Runs what a connection is made of; when all of it has ended, nobody holds the sender.
#[derive(Clone)]
pub(crate) struct Counted(mpsc::Sender<Infallible>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Counted {
    fn execute(&self, work: F) {
        let held = self.0.clone();
        tokio::spawn(async move {
            work.await;
            drop(held);
        });
    }
}

/// An outbound connection. Dropping it closes it, which takes a second at most.
pub struct Link {
    pub(crate) url: String,
    pub(crate) options: LinkOptions,
    pub(crate) channel: Channel,
    pub(crate) origin: Uri,
    pub(crate) bearer: Bearer,
    /// The last to be dropped: the connection ends once nobody holds the channel.
    pub(crate) runtime: Running,
}

impl Link {
    /// Prepare a connection to `grpc://HOST:PORT` or, within TLS, `grpcs://HOST:PORT`; the first call dials.
    ///
    /// # Errors
    /// The URL names no server, a certificate or the token is not one, or the runtime cannot start.
    pub fn new(url: &str, options: LinkOptions) -> Result<Self, DialError> {
        let (tls, authority) = match url.split_once("://") {
            Some(("grpc" | "http", authority)) => (false, authority),
            Some(("grpcs" | "https", authority)) => (true, authority),
            _ => return Err(DialError::Url(url.to_owned())),
        };
        let scheme = if tls { "https" } else { "http" };
        let mut endpoint = endpoint_of(&format!("{scheme}://{}", authority.trim_end_matches('/')), &options)
            .ok_or_else(|| DialError::Url(url.to_owned()))?;
        if tls {
            // What is wrong with a PEM is in the error's source; it quotes no key.
            let refused = |e: tonic::transport::Error| DialError::Invalid(format!("TLS to {url}: {}", root_cause(&e)));
            endpoint = endpoint.tls_config(tls_config(&options.tls)).map_err(refused)?;
        }
        Self::opened(url.to_owned(), options, endpoint, |endpoint, _| endpoint.connect_lazy())
    }

    /// The same by sessions of `dialler`, which need no token.
    ///
    /// # Errors
    /// The runtime cannot start.
    pub fn by_session(dialler: Arc<Dialler>, options: LinkOptions) -> Result<Self, DialError> {
        // The name is for HTTP's own sake: the dialler knows where it dials.
        let endpoint =
            endpoint_of("http://controller", &options).ok_or_else(|| DialError::Url("http://controller".to_owned()))?;
        let endpoint = endpoint
            .initial_connection_window_size(SESSION_WINDOW_BYTES)
            .keep_alive_timeout(SESSION_KEEP_ALIVE_TIMEOUT);
        let url = dialler.url();
        Self::opened(url, options, endpoint, |endpoint, executor| {
            endpoint.connect_with_connector_lazy(Connector(dialler, executor))
        })
    }

    fn opened(
        url: String,
        options: LinkOptions,
        endpoint: Endpoint,
        connect: impl FnOnce(&Endpoint, Counted) -> Channel,
    ) -> Result<Self, DialError> {
        let bearer = Bearer::default();
        bearer.set(&options.token)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("buildnet-dial")
            .enable_all()
            .build()
            .map_err(|e| DialError::Down { url: url.clone(), reason: e.to_string() })?;
        let (held, ended) = mpsc::channel(1);
        let origin = endpoint.uri().clone();
        let channel = {
            let _inside = runtime.enter();
            let executor = Counted(held);
            connect(&endpoint.executor(executor.clone()), executor)
        };
        Ok(Self { url, options, channel, origin, bearer, runtime: Running { runtime, ended } })
    }

    /// Bring another token from the next call on.
    ///
    /// # Errors
    /// It holds what no header can.
    pub fn set_token(&self, token: &str) -> Result<(), DialError> {
        self.bearer.set(token)
    }

    /// Resource names begin with the instance and a slash, or with nothing.
    pub(crate) fn prefix(&self) -> String {
        if self.options.instance.is_empty() { String::new() } else { format!("{}/", self.options.instance) }
    }

    pub(crate) fn client(&self) -> Client {
        tonic::client::Grpc::new(InterceptedService::new(self.channel.clone(), self.bearer.clone()))
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

pub(crate) async fn ready(client: &mut Client) -> Result<(), Status> {
    client.ready().await.map_err(|e| Status::unavailable(root_cause(&e)))
}

pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
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
