//! The listener: connections, limits, dispatch by path, and an orderly end.

use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use buildnet_formats::{FieldValue, NativeError};
use buildnet_store::Store;
use buildnet_tiers::Tiers;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Code, Status};

use crate::access::Caller;
use crate::bridge::{Bridged, Event, Hub, Kind, Peer};
use crate::bytestream;
use crate::codec::{Raw, decode, frame};
use crate::execution::{EXECUTE, Execute};
use crate::grpc::{Answer, Messages, respond};
use crate::http::HttpCache;
use crate::services::{self, Method, Services};
use crate::uploads::Uploads;

const CONNECTIONS_MAX: usize = 4096;
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How to listen.
#[derive(Clone, Debug)]
pub struct DoorOptions {
    /// Network threads.
    pub threads: usize,
    /// Larger requests are refused.
    pub message_size_bytes_max: usize,
    /// Whether actions are executed here, or only cached.
    pub execution: bool,
    /// What stands behind the store.
    pub tiers: Option<Arc<Tiers>>,
}

impl Default for DoorOptions {
    fn default() -> Self {
        Self { threads: 1, message_size_bytes_max: 16 << 20, execution: true, tiers: None }
    }
}

/// The listening port and its threads.
pub struct Door {
    inner: Arc<Inner>,
    threads: usize,
    runtime: Mutex<Option<Runtime>>,
    stop: watch::Sender<bool>,
}

struct Inner {
    hub: Arc<Hub>,
    services: Arc<Services>,
    http: HttpCache,
    message_size_bytes_max: usize,
}

impl Door {
    /// A door that does not listen yet.
    pub fn new(store: Arc<Store>, hub: Arc<Hub>, options: &DoorOptions) -> Self {
        let tiers = options.tiers.clone();
        let services = Services {
            store: Arc::clone(&store),
            tiers: tiers.clone(),
            uploads: Uploads::default(),
            execution: options.execution,
        };
        let inner = Inner {
            hub,
            services: Arc::new(services),
            http: HttpCache { store, tiers, started: Instant::now() },
            message_size_bytes_max: options.message_size_bytes_max,
        };
        let (stop, _) = watch::channel(false);
        Self { inner: Arc::new(inner), threads: options.threads.max(1), runtime: Mutex::new(None), stop }
    }

    /// Listen on `HOST:PORT`; port 0 picks a free one. Returns the address.
    ///
    /// # Errors
    /// `port_in_use`, or `invalid_request` when the address cannot be listened on.
    pub fn start(&self, listen: &str) -> Result<SocketAddr, NativeError> {
        let refuse = |error: &std::io::Error| {
            let code = match error.kind() {
                std::io::ErrorKind::AddrInUse => "port_in_use",
                _ => "invalid_request",
            };
            let remedy = if code == "port_in_use" { "; stop what listens there, or choose another port" } else { "" };
            NativeError::new(code, format!("cannot listen on {listen}: {error}{remedy}"))
                .with("listen", FieldValue::Text(listen.to_owned()))
        };
        let address = listen
            .to_socket_addrs()
            .map_err(|e| refuse(&e))?
            .next()
            .ok_or_else(|| NativeError::invalid("listen", format!("{listen} names no address")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.threads)
            .thread_name("buildnet-door")
            .enable_all()
            .build()
            .map_err(|e| refuse(&e))?;
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(|e| refuse(&e))?;
        let local = listener.local_addr().map_err(|e| refuse(&e))?;
        runtime.spawn(accept(Arc::clone(&self.inner), listener, self.stop.subscribe()));
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
        Ok(local)
    }

    /// Accept no more, tell every connection to finish, and push [`Event::Drained`] when all have.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// End whatever is left.
    pub fn close(&self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(CLOSE_TIMEOUT);
        }
    }
}

async fn accept(inner: Arc<Inner>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The sender lives in the door; an error means that it is gone.
            _ = stop.wait_for(|stopped| *stopped) => break,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of descriptors, most likely: some will be given back, and spinning helps nobody.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let connection = connection(&inner, stream, peer);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _permit = permit;
            // How a connection ended is its peer's affair.
            let _ = connection.await;
        });
    }
    drop(listener);
    graceful.shutdown().await;
    inner.hub.push(Event::Drained);
}

fn connection(
    inner: &Arc<Inner>,
    stream: TcpStream,
    peer: SocketAddr,
) -> impl hyper_util::server::graceful::GracefulConnection<Error: Send> + Send + 'static {
    // Without it small replies wait; a socket that refuses the option still works.
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let inner = Arc::clone(inner);
    let peer = Peer(peer.to_string());
    let service = service_fn(move |mut request: Request<Incoming>| {
        let inner = Arc::clone(&inner);
        request.extensions_mut().insert(peer.clone());
        async move { Ok::<_, Infallible>(inner.answer(request).await) }
    });
    builder.serve_connection(TokioIo::new(stream), service).into_owned()
}

impl Inner {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let caller = Caller::default();
        let kind = request.headers().get(header::CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            return self.grpc(caller, request).await;
        }
        self.http.answer(&caller, request).await
    }

    async fn grpc(&self, caller: Caller, request: Request<Incoming>) -> Response<Body> {
        if let Some(method) = Method::of(request.uri().path()) {
            return respond(self.unary(&caller, method, request).await);
        }
        match request.uri().path() {
            "/google.bytestream.ByteStream/Write" => {
                let requests = Messages::new(request, self.message_size_bytes_max);
                let done = bytestream::write(&self.services, &caller, requests).await;
                respond(done.map(|message| Answer::One(Some(message))))
            }
            "/google.bytestream.ByteStream/Read" => {
                let body = Messages::new(request, self.message_size_bytes_max).only().await;
                respond(match body {
                    Ok(body) => bytestream::read(&self.services, &caller, body).await,
                    Err(status) => Err(status),
                })
            }
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree" => {
                match Messages::new(request, self.message_size_bytes_max).only().await {
                    Ok(body) => respond(bytestream::get_tree(&self.services, &caller, body).await),
                    Err(status) => respond(Err(status)),
                }
            }
            "/grpc.health.v1.Health/Watch" => {
                let body = Messages::new(request, self.message_size_bytes_max).only().await;
                respond(body.and_then(watch_health))
            }
            _ => self.beyond(caller, request).await,
        }
    }

    async fn unary(&self, caller: &Caller, method: Method, request: Request<Incoming>) -> Result<Answer, Status> {
        let body = Messages::new(request, self.message_size_bytes_max).only().await?;
        let services = &self.services;
        let answer = match &services.tiers {
            None => services.answer_here(caller, method, body).await?,
            Some(tiers) => {
                let here = services.answer_here(caller, method, body.clone()).await;
                services.answer_behind(tiers, caller, method, body, here).await?
            }
        };
        Ok(Answer::One(Some(frame(answer))))
    }

    /// What Python answers.
    async fn beyond(&self, caller: Caller, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let Some((kind, method)) = self.hub.method(&path) else {
            return Status::unimplemented(format!("{} is not offered here", path.trim_start_matches('/'))).into_http();
        };
        let request = request.map(Body::new);
        let mut grpc =
            Grpc::new(Raw).max_decoding_message_size(self.message_size_bytes_max).max_encoding_message_size(usize::MAX);
        let bridged = Bridged { hub: Arc::clone(&self.hub), method };
        let mut response = match kind {
            Kind::ServerStream if path == EXECUTE => {
                let services = Arc::clone(&self.services);
                grpc.server_streaming(Execute { services, caller, beyond: bridged }, request).await
            }
            Kind::Unary => grpc.unary(bridged, request).await,
            Kind::ServerStream => grpc.server_streaming(bridged, request).await,
            Kind::Bidi => grpc.streaming(bridged, request).await,
        };
        say_too_large(response.headers_mut());
        response
    }
}

/// The health now, and nothing more until the connection ends: a door that answers is serving.
fn watch_health(body: Bytes) -> Result<Answer, Status> {
    use buildnet_formats::wire::grpc::health::v1::HealthCheckRequest;
    let first = frame(services::health_of(&decode::<HealthCheckRequest>(body)?.service)?);
    let messages = stream::once(std::future::ready(Ok(first))).chain(stream::pending());
    Ok(Answer::Many(messages.boxed()))
}

/// tonic says OUT_OF_RANGE of a message over the limit, where gRPC's own servers say RESOURCE_EXHAUSTED.
fn say_too_large(headers: &mut HeaderMap) {
    let out_of_range = headers.get(Status::GRPC_STATUS).is_some_and(|v| v == "11");
    let too_large =
        headers.get(Status::GRPC_MESSAGE).is_some_and(|v| v.as_bytes().windows(9).any(|w| w == b"too%20lar"));
    if out_of_range && too_large {
        headers.insert(Status::GRPC_STATUS, header::HeaderValue::from(Code::ResourceExhausted as i32));
    }
}
