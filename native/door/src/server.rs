//! The listener: connections, limits, dispatch by path, and an orderly end.

use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use buildnet_formats::{FieldValue, NativeError};
use buildnet_store::Store;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response, header};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Code, Status};

use crate::access::Caller;
use crate::bridge::{Bridged, Event, Hub, Kind, Peer};
use crate::budget::{Budget, During, Heard, Line, Metered};
use crate::bytestream::{self, on_disk};
use crate::codec::{Raw, decode, frame};
use crate::execution::{EXECUTE, Execute};
use crate::grpc::{Answer, Messages, respond};
use crate::http::HttpCache;
use crate::services::{self, Method, Services};
use crate::updates::Updates;
use crate::uploads::Uploads;

const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// A small blob in its message is one frame, and so one piece.
const FRAME_BYTES_MAX: u32 = 64 << 10;
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// When the kernel asks whether a client that says nothing is still there.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// Responses of HTTP that need no room of their own.
const SMALL_BYTES: u64 = 64 << 10;
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
}

impl Default for DoorOptions {
    fn default() -> Self {
        Self { threads: 1, message_size_bytes_max: 16 << 20, execution: true }
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
        let updates = Arc::new(Updates::default());
        let services = Services {
            store: Arc::clone(&store),
            uploads: Uploads::default(),
            updates: Arc::clone(&updates),
            execution: options.execution,
        };
        let inner = Inner {
            hub,
            services: Arc::new(services),
            http: HttpCache { store, updates, started: Instant::now() },
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
        let Inner { hub, services, .. } = &*self.inner;
        runtime.spawn(services.updates.writer(hub, &services.store));
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
    let budget = Arc::new(Budget::default());
    let looking = Arc::clone(&budget);
    // It ends with the runtime.
    tokio::spawn(async move { looking.give_back().await });
    loop {
        let accepted = tokio::select! {
            // At the limit the next one waits in the kernel's queue, and those that idle are ended soon.
            accepted = async {
                let permit = budget.admit().await;
                listener.accept().await.map(|(stream, peer)| (stream, peer, permit))
            } => accepted,
            // The sender lives in the door; an error means that it is gone.
            _ = stop.wait_for(|stopped| *stopped) => break,
        };
        let Ok((stream, peer, permit)) = accepted else {
            // Out of descriptors, most likely: some will be given back, and spinning helps nobody.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let line = Line::new(&budget);
        let connection = connection(&inner, stream, peer, &line);
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                // How a connection ended is its peer's affair.
                _ = connection => {}
                () = line.outstayed() => {}
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
    inner.hub.push(Event::Drained);
}

/// Where a call comes from.
struct Origin {
    peer: SocketAddr,
    line: Arc<Line>,
}

fn connection(
    inner: &Arc<Inner>,
    stream: TcpStream,
    peer: SocketAddr,
    line: &Arc<Line>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error: Send> + Send + 'static {
    // Without it small replies wait; a socket that refuses the option still works.
    let _ = stream.set_nodelay(true);
    // As does one that cannot be probed.
    let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true)
        .and_then(|()| rustix::net::sockopt::set_tcp_keepidle(&stream, PROBE_AFTER));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let inner = Arc::clone(inner);
    let io = TokioIo::new(Heard { stream, line: Arc::clone(line) });
    let origin = Arc::new(Origin { peer, line: Arc::clone(line) });
    let service = service_fn(move |request: Request<Incoming>| {
        let (inner, origin) = (Arc::clone(&inner), Arc::clone(&origin));
        async move {
            let call = origin.line.begin(request.version() < http::Version::HTTP_2);
            let response = inner.answer(&origin, request).await;
            Ok::<_, Infallible>(response.map(|body| During { body, _call: call }))
        }
    });
    builder.serve_connection(io, service).into_owned()
}

impl Inner {
    async fn answer(self: Arc<Self>, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
        let caller = Caller::default();
        let kind = request.headers().get(header::CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            return self.grpc(caller, origin, request).await;
        }
        let response = self.http.answer(&caller, request).await;
        let small = response.body().size_hint().upper().is_some_and(|bytes| bytes <= SMALL_BYTES);
        if small { response } else { response.map(|body| Body::new(Metered::new(body, &origin.line))) }
    }

    async fn grpc(&self, caller: Caller, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
        let line = &origin.line;
        if let Some(method) = Method::of(request.uri().path()) {
            return respond(self.unary(&caller, method, request, line).await, line);
        }
        match request.uri().path() {
            "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult" => {
                match Messages::new(request, self.message_size_bytes_max, line).only().await {
                    Ok(body) => respond(self.services.update_action_result(&caller, body).await, line),
                    Err(status) => respond(Err(status), line),
                }
            }
            "/google.bytestream.ByteStream/Write" => {
                let requests = Messages::new(request, self.message_size_bytes_max, line);
                let done = bytestream::write(&self.services, &caller, requests).await;
                respond(done.map(|message| Answer::One(Some(message))), line)
            }
            "/google.bytestream.ByteStream/Read" => {
                let body = Messages::new(request, self.message_size_bytes_max, line).only().await;
                respond(body.and_then(|body| bytestream::read(&self.services, &caller, body)), line)
            }
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree" => {
                match Messages::new(request, self.message_size_bytes_max, line).only().await {
                    Ok(body) => respond(bytestream::get_tree(&self.services, &caller, body).await, line),
                    Err(status) => respond(Err(status), line),
                }
            }
            "/grpc.health.v1.Health/Watch" => {
                let body = Messages::new(request, self.message_size_bytes_max, line).only().await;
                respond(body.and_then(watch_health), line)
            }
            _ => self.beyond(caller, origin, request).await,
        }
    }

    async fn unary(
        &self,
        caller: &Caller,
        method: Method,
        request: Request<Incoming>,
        line: &Arc<Line>,
    ) -> Result<Answer, Status> {
        let body = Messages::new(request, self.message_size_bytes_max, line).only().await?;
        let answer = if method.is_slow(self.services.store.waits_for_disk()) {
            let (services, caller) = (Arc::clone(&self.services), caller.clone());
            on_disk(usize::MAX, move || Ok(services.answer(&caller, method, body))).await??
        } else {
            self.services.answer(caller, method, body)?
        };
        Ok(Answer::One(Some(answer)))
    }

    /// What Python answers.
    async fn beyond(&self, caller: Caller, origin: &Origin, mut request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let Some((kind, method)) = self.hub.method(&path) else {
            return Status::unimplemented(format!("{} is not offered here", path.trim_start_matches('/'))).into_http();
        };
        request.extensions_mut().insert(Peer(origin.peer.to_string()));
        let request = match kind {
            Kind::Bidi => request.map(Body::new),
            Kind::Unary | Kind::ServerStream => {
                let (parts, body) = request.into_parts();
                let messages = Messages::new(Request::new(body), self.message_size_bytes_max, &origin.line);
                match messages.only().await {
                    Ok(message) => Request::from_parts(parts, Body::new(Full::new(frame(message)))),
                    Err(status) => return status.into_http(),
                }
            }
        };
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
    let first = services::health_of(&decode::<HealthCheckRequest>(body)?.service)?;
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
