//! One bidirectional gRPC call on a connection of its own, turned by its owner: no thread waits on either side of it, and
//! a turn takes in and sends all that there is. It knows no message.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use buildnet_raw::{Inbound, Message, Outbound, Raw};
use bytes::Bytes;
use futures_util::future::{AbortHandle, BoxFuture, FutureExt, abortable};
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use http::Uri;
use hyper::body::{Body, Frame};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::service::Interceptor;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::channel::{Bearer, root_cause};
use crate::secure::{Secure, host_of};
use crate::wire::{Bell, Wire, held};
use crate::{DialError, Link, TlsOptions};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A path that swallows packets is noticed within 15 s.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const WINDOW_BYTES: u32 = 1 << 20;
/// A long message in fewer pieces costs less at both ends; one that does not fit what is read at a time, 64 KiB with what stands
/// before it, is moved once more.
const FRAME_BYTES_MAX: u32 = 63 << 10;
/// Whoever stopped at more than this is told once the transport has taken all but this.
const ROOM_BYTES: usize = 64 << 10;
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// What one turn gives; more stays with the transport, and the next turn comes at once.
const BATCH_MAX: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// Looks of one turn; each is a step of the connection that woke another.
const LOOKS_MAX: usize = 64;

/// For names, connecting and timers alone: one thread for all calls of the process, which no message wakes.
fn runtime() -> Result<&'static Runtime, io::Error> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let made = builder.worker_threads(1).thread_name("buildnet-call").enable_all().build()?;
    Ok(RUNTIME.get_or_init(|| made))
}

#[derive(Default)]
struct Outgoing {
    messages: VecDeque<Message>,
    bytes: usize,
    finished: bool,
    /// The call has ended, or was given up: the transport is to hold no stream for it.
    is_over: bool,
    /// The owner was told of so many bytes that it puts no more until there is room.
    is_awaited: bool,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Incoming {
    messages: Vec<Message>,
    bytes: usize,
    waker: Option<Waker>,
}

impl Incoming {
    fn is_full(&self) -> bool {
        self.messages.len() >= BATCH_MAX || self.bytes >= BATCH_BYTES
    }
}

/// What the owner and the transport share.
struct Shared {
    bell: Arc<Bell>,
    outgoing: Mutex<Outgoing>,
    incoming: Mutex<Incoming>,
    end: Mutex<Option<Status>>,
    spawned: Mutex<Vec<BoxFuture<'static, ()>>>,
}

impl Shared {
    fn new(url: &str, bell: io::Result<Bell>) -> Result<Arc<Self>, DialError> {
        let bell = bell.map_err(|e| DialError::Down { url: url.to_owned(), reason: e.to_string() })?;
        Ok(Arc::new(Self {
            bell: Arc::new(bell),
            outgoing: Mutex::default(),
            incoming: Mutex::default(),
            end: Mutex::default(),
            spawned: Mutex::default(),
        }))
    }

    /// Have the transport ask for what is queued.
    fn ask(&self) {
        let mut outgoing = held(&self.outgoing);
        if (outgoing.finished || !outgoing.messages.is_empty())
            && let Some(waker) = outgoing.waker.take()
        {
            waker.wake();
        }
    }

    /// The first end counts.
    fn ended(&self, end: Status) {
        held(&self.end).get_or_insert(end);
        let mut outgoing = held(&self.outgoing);
        outgoing.is_over = true;
        let waker = outgoing.waker.take();
        drop(outgoing);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.bell.wake_by_ref();
    }
}

/// Requests as the transport asks for them.
struct Requests {
    shared: Arc<Shared>,
    outbound: Outbound,
}

impl Body for Requests {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, waking: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let mut outgoing = held(&this.shared.outgoing);
        if outgoing.is_over {
            // Whoever is served hears that it was given up, unless it has ended it.
            return Poll::Ready(Some(Err(Status::from_error(Box::new(h2::Error::from(h2::Reason::CANCEL))))));
        }
        while !this.outbound.is_full()
            && let Some(message) = outgoing.messages.pop_front()
        {
            outgoing.bytes -= message.len();
            this.outbound.push(&message);
        }
        if outgoing.is_awaited && outgoing.bytes < ROOM_BYTES {
            outgoing.is_awaited = false;
            this.shared.bell.wake_by_ref();
        }
        if let Some(chunk) = this.outbound.chunk() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if outgoing.finished {
            return Poll::Ready(None);
        }
        outgoing.waker = Some(waking.waker().clone());
        Poll::Pending
    }
}

/// A response whose messages go to the owner; what is left is how it ended.
struct Replies<B> {
    shared: Arc<Shared>,
    inbound: Inbound,
    body: B,
}

impl<B> Replies<B> {
    fn take(&mut self, data: Bytes) -> Result<(), Status> {
        self.inbound.push(data);
        while let Some(message) = self.inbound.next(MESSAGE_BYTES_MAX)? {
            let mut incoming = held(&self.shared.incoming);
            incoming.bytes += message.len();
            incoming.messages.push(message);
            if incoming.messages.len() == 1 {
                drop(incoming);
                self.shared.bell.wake_by_ref();
            }
        }
        Ok(())
    }
}

impl<B> Body for Replies<B>
where
    B: Body<Data = Bytes, Error: std::error::Error> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, waking: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            // What is not asked for stays with the transport.
            ready!(has_room(&this.shared, waking));
            let next = ready!(Pin::new(&mut this.body).poll_frame(waking));
            let frame = next.transpose().map_err(|error| Status::unavailable(root_cause(&error)))?;
            match frame.map(Frame::into_data) {
                Some(Ok(data)) => this.take(data)?,
                Some(Err(frame)) => return Poll::Ready(Some(Ok(frame))),
                None if this.inbound.is_empty() => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(Status::unavailable("the reply broke off")))),
            }
        }
    }
}

/// Runs what hyper spawns in the owner's turns.
#[derive(Clone)]
struct Beside(Arc<Shared>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Beside {
    fn execute(&self, work: F) {
        held(&self.0.spawned).push(work.boxed());
    }
}

/// Gives tonic the one connection. It makes the heads and reads how a call ended; the messages pass it by, which it would copy.
struct Sender<C> {
    connection: C,
    shared: Arc<Shared>,
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Sender<http2::SendRequest<Requests>> {
    type Response = http::Response<Replies<hyper::body::Incoming>>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, waking: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.connection.poll_ready(waking)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        let requests = Requests { shared: Arc::clone(&shared), outbound: Outbound::default() };
        let sent = self.connection.send_request(request.map(|_| requests));
        async move { Ok(sent.await?.map(|body| Replies { shared, inbound: Inbound::default(), body })) }.boxed()
    }
}

impl tower_service::Service<http::Request<tonic::body::Body>> for Sender<Channel> {
    type Response = http::Response<Replies<tonic::body::Body>>;
    type Error = tonic::transport::Error;
    type Future = BoxFuture<'static, Result<Self::Response, tonic::transport::Error>>;

    fn poll_ready(&mut self, waking: &mut Context<'_>) -> Poll<Result<(), tonic::transport::Error>> {
        self.connection.poll_ready(waking)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        let requests = Requests { shared: Arc::clone(&shared), outbound: Outbound::default() };
        let sent = self.connection.call(request.map(|_| tonic::body::Body::new(requests)));
        async move { Ok(sent.await?.map(|body| Replies { shared, inbound: Inbound::default(), body })) }.boxed()
    }
}

/// Where a call goes.
enum Target {
    Plain(String),
    Secure(String, Secure),
}

/// All that a call is made of before it begins.
struct Plan {
    target: Target,
    origin: Uri,
    path: PathAndQuery,
    bearer: Bearer,
}

/// A call; it dials when it is first turned. Dropping it ends the connection.
pub struct Call {
    shared: Arc<Shared>,
    /// None where a link's thread goes on with it.
    work: Option<Mutex<FuturesUnordered<BoxFuture<'static, ()>>>>,
    abort: AbortHandle,
}

/// What a turn brought.
pub struct Turn {
    /// Messages that came, in their order.
    pub messages: Vec<Message>,
    /// Bytes of messages that the transport has not taken.
    pub waiting_bytes: usize,
    /// How the call ended, after the last message: a gRPC status code and a text.
    pub end: Option<(i32, String)>,
}

impl Call {
    /// A call of `path` at `grpc://HOST:PORT` or, within TLS, `grpcs://HOST:PORT`, which brings `token` unless it is empty.
    ///
    /// # Errors
    /// The URL names no server, the path is none, or a certificate or the token is not one.
    pub fn new(url: &str, path: &str, tls: &TlsOptions, token: &str) -> Result<Self, DialError> {
        let (secure, address) = match url.split_once("://") {
            Some(("grpc" | "http", address)) => (false, address.trim_end_matches('/')),
            Some(("grpcs" | "https", address)) => (true, address.trim_end_matches('/')),
            _ => return Err(DialError::Url(url.to_owned())),
        };
        let scheme = if secure { "https" } else { "http" };
        let origin: Uri = format!("{scheme}://{address}").parse().map_err(|_| DialError::Url(url.to_owned()))?;
        let host = host_of(&origin).ok_or_else(|| DialError::Url(url.to_owned()))?;
        let target = if secure {
            Target::Secure(address.to_owned(), Secure::new(url, host, tls)?)
        } else {
            Target::Plain(address.to_owned())
        };
        let bearer = Bearer::default();
        bearer.set(token)?;
        Self::planned(path, target, origin, bearer)
    }

    fn planned(path: &str, target: Target, origin: Uri, bearer: Bearer) -> Result<Self, DialError> {
        let path = path_of(path)?;
        let shared = Shared::new(&origin.to_string(), Bell::new())?;
        let plan = Plan { target, origin, path, bearer };
        let (work, abort) = abortable(begin(plan, Arc::clone(&shared)));
        let work: BoxFuture<'static, ()> = work.map(|_| ()).boxed();
        Ok(Self { shared, work: Some(Mutex::new(FuturesUnordered::from_iter([work]))), abort })
    }

    /// Readable when a turn is worth it.
    pub fn fd(&self) -> RawFd {
        self.shared.bell.fd()
    }

    /// Queue a message; the next turn sends it if the peer takes it.
    pub fn send(&self, message: Message) {
        let mut outgoing = held(&self.shared.outgoing);
        outgoing.bytes += message.len();
        outgoing.messages.push_back(message);
    }

    /// No more will be sent after what is queued.
    pub fn finish(&self) {
        held(&self.shared.outgoing).finished = true;
    }

    /// Send what is queued as far as the peer takes it, and take what has come. Never waits.
    pub fn turn(&self) -> Turn {
        self.look();
        // Before the messages, all of which came before it.
        let end = held(&self.shared.end).as_ref().map(|end| (end.code() as i32, end.message().to_owned()));
        let (messages, reader) = {
            let mut incoming = held(&self.shared.incoming);
            incoming.bytes = 0;
            (std::mem::take(&mut incoming.messages), incoming.waker.take())
        };
        if let Some(reader) = reader {
            // Outside of a turn, so that it rings for another one.
            reader.wake();
        }
        let mut outgoing = held(&self.shared.outgoing);
        outgoing.is_awaited = outgoing.bytes >= ROOM_BYTES;
        Turn { messages, waiting_bytes: outgoing.bytes, end }
    }

    /// Go on with what is on its way as far as it goes without waiting; what came stays with the transport.
    pub fn look(&self) {
        let bell = &self.shared.bell;
        let Some(work) = &self.work else {
            bell.listen();
            self.shared.ask();
            return;
        };
        let Ok(runtime) = runtime() else {
            *held(&self.shared.end) = Some(Status::unavailable("no thread can be started for connections"));
            return;
        };
        let _inside = runtime.enter();
        let quiet = bell.quiet();
        bell.listen();
        self.shared.ask();
        let mut work = held(work);
        let waker = Waker::from(Arc::clone(bell));
        let mut waking = Context::from_waker(&waker);
        for _ in 0..LOOKS_MAX {
            bell.take_rung();
            while let Poll::Ready(Some(())) = work.poll_next_unpin(&mut waking) {}
            let spawned = std::mem::take(&mut *held(&self.shared.spawned));
            let quiet_now = spawned.is_empty();
            work.extend(spawned);
            if quiet_now && !bell.take_rung() {
                return;
            }
        }
        drop(quiet);
        bell.ring();
    }

    /// What the peer says of its failure beside the text, encoded; empty before the end.
    pub fn details(&self) -> Bytes {
        held(&self.shared.end).as_ref().map(|end| Bytes::copy_from_slice(end.details())).unwrap_or_default()
    }

    /// End it now: the peer is told as far as it can be told at once.
    pub fn close(&self) {
        {
            let _quiet = self.shared.bell.quiet();
            self.shared.ended(Status::cancelled("the call was closed"));
            self.abort.abort();
        }
        self.look();
        if let Some(work) = &self.work {
            held(work).clear();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.close();
    }
}

impl Link {
    /// A call of `path` on this link's connection, beside what else goes there. Another thread goes on with it than its owner's.
    ///
    /// # Errors
    /// The path is none, or no descriptor can be made.
    pub fn call(&self, path: &str) -> Result<Call, DialError> {
        let path = path_of(path)?;
        let shared = Shared::new(&self.url, Bell::alone())?;
        let begun =
            Begun { origin: self.origin.clone(), path, bearer: self.bearer.clone(), shared: Arc::clone(&shared) };
        let sender = Sender { connection: self.channel.clone(), shared: Arc::clone(&shared) };
        let closed = Closed(Arc::clone(&shared));
        let (work, abort) = abortable(async move {
            let end = end_of(begun.call(sender).await);
            closed.0.ended(end);
        });
        self.runtime.spawn(work);
        Ok(Call { shared, work: None, abort })
    }
}

/// Ends a call whose link is closed: no thread goes on with it.
struct Closed(Arc<Shared>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.ended(Status::unavailable("the link was closed"));
    }
}

fn path_of(path: &str) -> Result<PathAndQuery, DialError> {
    path.parse().map_err(|_| DialError::Invalid(format!("{path:?} is not the path of a call")))
}

fn end_of(result: Result<(), Status>) -> Status {
    match result {
        Ok(()) => Status::ok(""),
        // What has a source is the transport's word, and the deepest of them says most.
        Err(status) => match std::error::Error::source(&status) {
            Some(source) if status.code() != Code::Ok => Status::unavailable(root_cause(source)),
            _ => status,
        },
    }
}

async fn begin(plan: Plan, shared: Arc<Shared>) {
    let end = end_of(through(plan, &shared).await);
    shared.ended(end);
}

async fn through(plan: Plan, shared: &Arc<Shared>) -> Result<(), Status> {
    let Plan { target, origin, path, bearer } = plan;
    let bell = &shared.bell;
    let down = |error: &dyn std::error::Error| Status::unavailable(root_cause(error));
    let call = Begun { origin, path, bearer, shared: Arc::clone(shared) };
    match target {
        Target::Plain(address) => {
            let wire = connect(address, bell).await.map_err(|e| down(&e))?;
            call.converse(wire).await
        }
        Target::Secure(address, secure) => {
            let wire = connect(address, bell).await.map_err(|e| down(&e))?;
            call.converse(secure.shake_hands(wire).await.map_err(|e| down(&e))?).await
        }
    }
}

/// Names are resolved and connections made in the runtime's thread; what follows is the owner's.
async fn connect(address: String, bell: &Arc<Bell>) -> io::Result<Wire> {
    let dialled = tokio::spawn(async move {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address));
        let stream = connected.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        // Without it small frames wait; a socket that refuses the option still works.
        let _ = stream.set_nodelay(true);
        stream.into_std()
    });
    Wire::new(dialled.await.map_err(io::Error::other)??, bell)
}

struct Begun {
    origin: Uri,
    path: PathAndQuery,
    bearer: Bearer,
    shared: Arc<Shared>,
}

impl Begun {
    async fn converse<S>(self, stream: S) -> Result<(), Status>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let beside = Beside(Arc::clone(&self.shared));
        let (sender, connection) = http2::Builder::new(beside.clone())
            .timer(TokioTimer::new())
            .max_frame_size(FRAME_BYTES_MAX)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Status::unavailable(root_cause(&error)))?;
        // How it ended is told by the call on it.
        hyper::rt::Executor::execute(&beside, connection.map(drop));
        let sender = Sender { connection: sender, shared: Arc::clone(&self.shared) };
        self.call(sender).await
    }

    async fn call<C, B, E>(mut self, sender: Sender<C>) -> Result<(), Status>
    where
        Sender<C>: tower_service::Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<Replies<B>>,
                Error = E,
                Future: Send,
            >,
        Replies<B>: Body<Data = Bytes, Error = Status> + Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut client = tonic::client::Grpc::with_origin(sender, self.origin);
        client.ready().await.map_err(|error| Status::unavailable(root_cause(&error)))?;
        let request = self.bearer.call(Request::new(()))?.map(|()| stream::empty());
        let mut ends = client.streaming(request, self.path, Raw).await?.into_inner();
        // Of messages there are none.
        ends.message().await?;
        Ok(())
    }
}

fn has_room(shared: &Shared, waking: &Context<'_>) -> Poll<()> {
    let mut incoming = held(&shared.incoming);
    if !incoming.is_full() {
        return Poll::Ready(());
    }
    incoming.waker = Some(waking.waker().clone());
    Poll::Pending
}
