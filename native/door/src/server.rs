//! The listener: connections, limits, dispatch by path, and an orderly end.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use buildnet_formats::{FieldValue, NativeError};
use buildnet_store::Store;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response, header};
use http_body::Body as _;
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
use crate::bytestream::{self, on_disk};
use crate::codec::{Raw, decode, frame};
use crate::execution::{EXECUTE, Execute};
use crate::grpc::{Answer, Messages, respond};
use crate::http::HttpCache;
use crate::observe::{Observe, ObserveOptions, Record, Statistics};
use crate::pages::{self, Seen};
use crate::process::Process;
use crate::recent;
use crate::services::{self, Method, Services};
use crate::sorts::Sort;
use crate::uploads::Uploads;
use crate::watched;

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
    /// What is told of calls, and where.
    pub observe: ObserveOptions,
}

impl Default for DoorOptions {
    fn default() -> Self {
        Self { threads: 1, message_size_bytes_max: 16 << 20, execution: true, observe: ObserveOptions::default() }
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
    observe: Arc<Observe>,
}

impl Door {
    /// A door that does not listen yet.
    ///
    /// # Errors
    /// `invalid_request` when the access log cannot be written.
    pub fn new(store: Arc<Store>, hub: Arc<Hub>, options: &DoorOptions) -> Result<Self, NativeError> {
        let observe = Arc::new(Observe::new(hub.paths(), &options.observe)?);
        let services = Services {
            store: Arc::clone(&store),
            uploads: Uploads::default(),
            execution: options.execution,
            observe: Arc::clone(&observe),
        };
        let inner = Inner {
            hub,
            services: Arc::new(services),
            http: HttpCache { store, started: Instant::now() },
            message_size_bytes_max: options.message_size_bytes_max,
            observe,
        };
        let (stop, _) = watch::channel(false);
        Ok(Self { inner: Arc::new(inner), threads: options.threads.max(1), runtime: Mutex::new(None), stop })
    }

    /// Show numbers that Python knows on `/metrics` and `/status`; a later call adds and replaces.
    ///
    /// # Errors
    /// `invalid_request` when a name is not one for a metric.
    pub fn report(&self, values: BTreeMap<String, u64>) -> Result<(), NativeError> {
        self.inner.observe.report(values)
    }

    /// Show the numbers of something behind the store, a tier for example, under its name.
    pub fn watch(&self, name: String, statistics: Statistics) {
        self.inner.observe.watch(name, statistics);
    }

    /// Open the access log anew, after it was moved away.
    pub fn reopen_log(&self) {
        if let Some(log) = &self.inner.observe.log {
            log.reopen();
        }
    }

    /// Listen on `HOST:PORT`; port 0 picks a free one. Returns the address.
    ///
    /// # Errors
    /// `port_in_use`, or `invalid_request` when the address cannot be listened on or traces cannot be sent.
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
        self.inner.observe.start_traces(runtime.handle())?;
        // A door listens once.
        self.inner.observe.listen.get_or_init(|| local.to_string());
        runtime.spawn(count(Arc::clone(&self.inner.observe)));
        runtime.spawn(accept(Arc::clone(&self.inner), listener, self.stop.subscribe()));
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(runtime);
        Ok(local)
    }

    /// Accept no more, tell every connection to finish, and push [`Event::Drained`] when all have.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// End whatever is left, and write out what is told of it.
    pub fn close(&self) {
        self.inner.observe.close();
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_timeout(CLOSE_TIMEOUT);
        }
    }
}

/// Keep a count of every method each second.
async fn count(observe: Arc<Observe>) {
    let mut every = tokio::time::interval(recent::EVERY);
    loop {
        every.tick().await;
        observe.keep();
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
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            inner.observe.connections_refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        inner.observe.connections_accepted.fetch_add(1, Ordering::Relaxed);
        inner.observe.connections_open.fetch_add(1, Ordering::Relaxed);
        let connection = connection(&inner, stream, peer);
        let connection = graceful.watch(connection);
        let observe = Arc::clone(&inner.observe);
        tokio::spawn(async move {
            let _permit = permit;
            // How a connection ended is its peer's affair.
            let _ = connection.await;
            observe.connections_open.fetch_sub(1, Ordering::Relaxed);
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
        let sort = Sort::of_http(request.method(), request.uri().path());
        let record = self.observe.begin(sort, caller.subject(), &request);
        // What was announced: how much of it a refused request really sent is not asked.
        record.received.store(request.body().size_hint().exact().unwrap_or(0), Ordering::Relaxed);
        let head = request.method() == http::Method::HEAD;
        let response = if pages::is_page(request.uri().path()) {
            pages::answer(&caller, &request, || self.seen())
        } else {
            self.http.answer(&caller, request).await
        };
        watched::http(record, head, response)
    }

    fn seen(&self) -> Seen {
        Seen {
            observe: Arc::clone(&self.observe),
            store: self.services.store.statistics(),
            uploads_waiting: self.services.uploads.waiting(),
            execution: self.services.execution,
            bridge: self.hub.counts(),
            process: Process::now(),
            reported: self.observe.reported(),
            statistics: self.observe.statistics(),
        }
    }

    async fn grpc(&self, caller: Caller, request: Request<Incoming>) -> Response<Body> {
        if let Some(method) = Method::of(request.uri().path()) {
            let record = self.observe.begin(Sort::of(method), caller.subject(), &request);
            let done = self.unary(&caller, method, request, &record).await;
            return respond(watched::answer(record, done));
        }
        let sort = match request.uri().path() {
            "/google.bytestream.ByteStream/Write" => Sort::WRITE,
            "/google.bytestream.ByteStream/Read" => Sort::READ,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree" => Sort::GET_TREE,
            "/grpc.health.v1.Health/Watch" => Sort::WATCH,
            _ => return self.beyond(caller, request).await,
        };
        let record = self.observe.begin(sort, caller.subject(), &request);
        let messages = Messages::new(request, self.message_size_bytes_max, &record);
        let done = self.streamed(&caller, sort, messages).await;
        respond(watched::answer(record, done))
    }

    async fn streamed(&self, caller: &Caller, sort: Sort, messages: Messages<'_>) -> Result<Answer, Status> {
        if sort == Sort::WRITE {
            let done = bytestream::write(&self.services, caller, messages).await;
            return done.map(|message| Answer::One(Some(message)));
        }
        let body = messages.only().await?;
        match sort {
            Sort::READ => bytestream::read(&self.services, caller, body),
            Sort::GET_TREE => bytestream::get_tree(&self.services, caller, body).await,
            _ => watch_health(body),
        }
    }

    async fn unary(
        &self,
        caller: &Caller,
        method: Method,
        request: Request<Incoming>,
        record: &Record,
    ) -> Result<Answer, Status> {
        let body = Messages::new(request, self.message_size_bytes_max, record).only().await?;
        let answer = if method.is_slow(self.services.store.waits_for_disk()) {
            let (services, caller) = (Arc::clone(&self.services), caller.clone());
            on_disk(usize::MAX, move || Ok(services.answer(&caller, method, body))).await??
        } else {
            self.services.answer(caller, method, body)?
        };
        Ok(Answer::One(Some(frame(answer))))
    }

    /// What Python answers.
    async fn beyond(&self, caller: Caller, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let known = self.hub.method(&path);
        let sort = Sort::of_python(known.map(|(_, index)| index));
        let mut record = self.observe.begin(sort, caller.subject(), &request);
        let Some((kind, method)) = known else {
            record.ended(Code::Unimplemented);
            return Status::unimplemented(format!("{} is not offered here", path.trim_start_matches('/'))).into_http();
        };
        let (request, received) = watched::request(request);
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
        watched::grpc(record, received, response)
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
