//! Connections: who may have one, for how long, within TLS or without, and where it came from. What is asked on one is
//! answered elsewhere.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use buildnet_session::bound_unsent;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_rustls::server::TlsStream;
use tonic::Status;

use crate::access::Caller;
use crate::budget::{Budget, During, Line};
use crate::hub::Event;
use crate::lanes::Lanes;
use crate::server::Inner;
use crate::sessions::Sessions;
use crate::tls::{Tls, names_of};
use crate::turn::Gathering;

const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// A small blob in its message is one frame, and so one piece. With what stands before it a frame fits the 64 KiB that are read
/// at a time: a longer one is moved once more.
const FRAME_BYTES_MAX: u32 = 63 << 10;
/// What a client may send before it is taken: an upload keeps so much in memory while the one before it is hashed.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Of a session: what is not taken of many uploads leaves room for the messages of a worker's control stream.
const SESSION_WINDOW_BYTES: u32 = 32 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// When the kernel asks whether a client that says nothing is still there.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// Of one connection: what a head may take (RFC 6585: 431 past it), and what is read of a body at a time.
const HTTP1_BUFFER_BYTES: usize = 128 << 10;
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a connection comes from, and whom its certificate or its session makes of its peer.
pub(crate) struct Origin {
    pub(crate) peer: SocketAddr,
    pub(crate) line: Arc<Line>,
    pub(crate) certified: Option<Caller>,
    /// Nobody is let in without credentials.
    pub(crate) strict: bool,
    /// Within TLS or a session.
    pub(crate) secure: bool,
}

impl Origin {
    /// Whether it is a node's session.
    pub(crate) fn is_session(&self) -> bool {
        self.certified.as_ref().is_some_and(Caller::is_node)
    }
}

struct Accepted {
    /// It is polled on the thread that serves it.
    stream: std::net::TcpStream,
    peer: SocketAddr,
    strict: bool,
    permit: Option<OwnedSemaphorePermit>,
}

/// Take connections until the stop, then let them end, and say so.
pub(crate) async fn accept(inner: Arc<Inner>, lanes: Lanes, listener: TcpListener, local: Option<TcpListener>) {
    let mut stop = inner.stop.clone();
    let graceful = GracefulShutdown::new();
    let budget = Arc::new(Budget::default());
    let looking = Arc::clone(&budget);
    // It ends with the runtime.
    tokio::spawn(async move { looking.give_back().await });
    let stopping = stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = next(&budget, &listener, local.as_ref()) => accepted,
            // The sender lives in the door; an error means that it is gone.
            _ = stop.wait_for(|stopped| *stopped) => break,
        };
        let Ok(Accepted { stream, peer, strict, permit }) = accepted else {
            // Out of descriptors, most likely: some will be given back, and spinning helps nobody.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        inner.observe.connections_accepted.fetch_add(1, Ordering::Relaxed);
        inner.observe.connections_open.fetch_add(1, Ordering::Relaxed);
        let line = Line::new(&budget);
        let origin = Origin { peer, line: Arc::clone(&line), certified: None, strict, secure: false };
        let (inner, watcher, stopping) = (Arc::clone(&inner), graceful.watcher(), stopping.clone());
        let place = lanes.place();
        let lane = place.handle().clone();
        lane.spawn(async move {
            let _held = (permit, place);
            tokio::select! {
                () = serve(&inner, stream, origin, watcher, stopping) => {}
                () = line.outstayed() => {
                    inner.observe.connections_refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            inner.observe.connections_open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    drop((listener, local));
    graceful.shutdown().await;
    inner.hub.push(Event::Drained);
}

/// At the limit the next one waits in the kernel's queue, and those that idle are ended soon.
async fn next(budget: &Budget, listener: &TcpListener, local: Option<&TcpListener>) -> io::Result<Accepted> {
    let permit = budget.admit().await;
    let (accepted, strict) = tokio::select! {
        accepted = listener.accept() => (accepted, false),
        accepted = accept_of(local) => (accepted, true),
    };
    let (stream, peer) = accepted?;
    Ok(Accepted { stream: stream.into_std()?, peer, strict, permit })
}

async fn accept_of(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn serve(
    inner: &Arc<Inner>,
    stream: std::net::TcpStream,
    origin: Origin,
    watcher: Watcher,
    stopping: watch::Receiver<bool>,
) {
    // Out of memory for its descriptor, and nobody is there to be told.
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    // Without it small replies wait; a socket that refuses the option, or cannot be probed, still works.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true)
        .and_then(|()| rustix::net::sockopt::set_tcp_keepidle(&stream, PROBE_AFTER));
    if let Some(sessions) = &inner.sessions {
        match first_byte(&stream, stopping.clone()).await {
            None => return,
            Some(first) if Sessions::begins(first) => {
                // A socket that refuses it still works.
                let _ = bound_unsent(&stream);
                let stream = Heard::new(stream, &origin.line);
                // How it went is told within, and counted.
                let _ = session(inner, sessions, stream, origin, watcher, stopping).await;
                return;
            }
            Some(_) => {}
        }
    }
    let stream = Heard::new(stream, &origin.line);
    // How a connection ended is its peer's affair.
    match inner.tls.as_ref().filter(|_| !origin.strict) {
        None => {
            converse(inner, stream, origin, watcher).await;
        }
        Some(tls) => {
            let Some((stream, origin)) = shake_hands(inner, tls, stream, origin, stopping).await else { return };
            converse(inner, stream, origin, watcher).await;
        }
    }
}

/// What a connection begins with, left where it is; none when it ends, or the door is closing.
async fn first_byte(stream: &TcpStream, mut stop: watch::Receiver<bool>) -> Option<u8> {
    let mut first = [0];
    tokio::select! {
        peeked = stream.peek(&mut first) => if !matches!(peeked, Ok(1)) { return None },
        _ = stop.wait_for(|stopped| *stopped) => return None,
    }
    Some(first[0])
}

/// Serve a node within its session, until it ends or is ended; the error says only that there was none, or no orderly
/// end: the peer hears more within it.
pub(crate) async fn session<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    inner: &Arc<Inner>,
    sessions: &Arc<Sessions>,
    stream: S,
    mut origin: Origin,
    watcher: Watcher,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Status> {
    let shaken = tokio::select! {
        shaken = sessions.shake_hands(&inner.hub, stream, origin.peer) => shaken,
        _ = stop.wait_for(|stopped| *stopped) => return Err(Status::unavailable("the server is stopping")),
    };
    let (stream, mut open) = shaken.ok_or_else(|| Status::aborted("no session was opened"))?;
    origin.secure = true;
    origin.certified = Some(inner.access.by_node(&open.node_key.to_string()));
    open.is_orderly = converse(inner, stream, origin, watcher).await;
    if open.is_orderly { Ok(()) } else { Err(Status::aborted("the session was ended")) }
}

/// The stream within TLS; none when the peer does not manage it in time, or the door is closing.
async fn shake_hands(
    inner: &Inner,
    tls: &Tls,
    stream: Heard<TcpStream>,
    mut origin: Origin,
    mut stop: watch::Receiver<bool>,
) -> Option<(TlsStream<Heard<TcpStream>>, Origin)> {
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(stream));
    let stream = tokio::select! {
        done = handshake => done.ok()?.ok()?,
        _ = stop.wait_for(|stopped| *stopped) => return None,
    };
    origin.secure = true;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    if let Some((names, expires_unix_s)) = certificate.and_then(names_of) {
        origin.certified = inner.access.by_certificate(&names, expires_unix_s);
    }
    Some((stream, origin))
}

/// Serve a connection to its end; returns whether that was an orderly one.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    inner: &Arc<Inner>,
    stream: S,
    origin: Origin,
    watcher: Watcher,
) -> bool {
    let stream = Gathering::new(stream, &origin.line);
    stream.turns(watcher.watch(connection(inner, stream.end(), origin))).await
}

fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    inner: &Arc<Inner>,
    stream: S,
    origin: Origin,
) -> impl GracefulConnection<Error: Send> + Send + 'static {
    let window_bytes = if origin.is_session() { SESSION_WINDOW_BYTES } else { CONNECTION_WINDOW_BYTES };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(window_bytes)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let (inner, origin) = (Arc::clone(inner), Arc::new(origin));
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (inner, origin) = (Arc::clone(&inner), Arc::clone(&origin));
        let answering = origin.line.answering();
        async move {
            let _answering = answering;
            let call = origin.line.begin(request.version() < http::Version::HTTP_2);
            let response = inner.answer(&origin, request).await;
            Ok::<_, Infallible>(response.map(|body| During { body, _call: call }))
        }
    });
    builder.serve_connection(TokioIo::new(stream), service).into_owned()
}

/// A stream that tells whether its client has said anything.
pub(crate) struct Heard<S> {
    stream: S,
    line: Arc<Line>,
}

impl<S> Heard<S> {
    pub(crate) fn new(stream: S, line: &Arc<Line>) -> Self {
        Self { stream, line: Arc::clone(line) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.line.heard(buffer.filled().len() - before);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            self.line.moved();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        if written.is_ready() {
            self.line.moved();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
