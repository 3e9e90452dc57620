//! Calls that the door does not answer become events, handed over in batches; replies come back in batches. No thread
//! here ever waits for Python, and Python is woken once for a batch (decision 0002).

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Sleep;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::access::{CALLER_PREFIX, Caller};
use crate::web::{WebHead, WebRequest};

/// Bytes of messages in flight on one stream and in one direction.
pub const WINDOW_BYTES: usize = 64 << 10;
/// What a message costs beside its bytes, so that empty ones are bounded too.
pub const MESSAGE_COST_BYTES: usize = 16;
/// Events in one batch; more wait for the next turn, so that timers are not starved.
const BATCH_MAX: usize = 256;
const CALLS_MAX: usize = 16_384;

/// How a method's messages flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request, one reply.
    Unary,
    /// One request, many replies.
    ServerStream,
    /// Many requests, many replies.
    Bidi,
}

/// A metadata value.
#[derive(Clone, Debug)]
pub enum MetadataValue {
    /// ASCII.
    Text(String),
    /// Of a `-bin` key.
    Binary(Bytes),
}

/// What happened to a call.
pub enum Event {
    /// A new call of the method with this index.
    Call {
        /// Names the call.
        id: u64,
        /// Index of the method.
        method: u32,
        /// The request, unless requests come as a stream.
        body: Option<Bytes>,
        /// Request metadata.
        metadata: Vec<(String, MetadataValue)>,
        /// Time left, in seconds.
        timeout_s: Option<f64>,
        /// Address of the caller.
        peer: String,
    },
    /// One more request of a stream.
    Message {
        /// The call.
        id: u64,
        /// The request.
        body: Bytes,
    },
    /// No more requests.
    HalfClose {
        /// The call.
        id: u64,
    },
    /// The caller is gone, or its time is over.
    Cancel {
        /// The call.
        id: u64,
    },
    /// The transport took bytes that were replied.
    Credit {
        /// The call.
        id: u64,
        /// How many.
        bytes: u32,
    },
    /// Every connection has ended after a stop.
    Drained,
    /// An HTTP request that is for Python's application.
    Request {
        /// Names the exchange.
        id: u64,
        /// What was asked.
        request: Box<WebRequest>,
    },
    /// Clients wrote values: the ledger is to have them, and the reply says at which indices.
    Results {
        /// To be replied to like a call: eight little-endian bytes of index for each row.
        id: u64,
        /// Namespace, name and SHA-256 of each.
        rows: Vec<String>,
    },
    /// Something that a person who runs this server should read.
    Said(String),
    /// A node has proven its keys; a reply lets it in, a failure turns it away.
    Greeted {
        /// To be replied to like a call; names the session from then on.
        id: u64,
        /// Its node's key.
        node_key: String,
        /// The join token that it shows.
        token: Option<Vec<u8>>,
        /// Of the handshake.
        pattern: &'static str,
        /// Where it comes from.
        peer: String,
    },
    /// The keys of a session that was let in were changed.
    SessionRekeyed {
        /// The session.
        id: u64,
        /// Its node's key.
        node_key: String,
        /// How often so far, by both ends.
        rekeys: u64,
    },
    /// A session that was let in is over.
    SessionEnded {
        /// The session.
        id: u64,
        /// Its node's key.
        node_key: String,
        /// Why; empty for an orderly end.
        reason: String,
        /// How often its keys were changed, by both ends.
        rekeys: u64,
    },
}

/// What Python does with a call.
pub enum Op {
    /// The reply of a unary call.
    Reply(Bytes),
    /// One more reply of a stream.
    Message(Bytes),
    /// The stream ended well.
    End,
    /// The call failed.
    Fail(Status),
    /// Requests of this many bytes were consumed.
    Ack(usize),
    /// The answer to an HTTP request begins.
    Start(WebHead),
}

pub(crate) type Sent = mpsc::UnboundedSender<Result<Bytes, Status>>;

pub(crate) enum Waiting {
    Unary(oneshot::Sender<Result<Bytes, Status>>),
    Stream {
        replies: Sent,
        room: Arc<Semaphore>,
    },
    /// The head leaves once; before it, a failure takes its place.
    Web {
        head: Option<oneshot::Sender<Result<WebHead, Status>>>,
        body: Sent,
    },
}

/// The queue between the network's threads and Python.
pub struct Hub {
    events: Mutex<VecDeque<Event>>,
    wake_fd: RawFd,
    calls: Mutex<HashMap<u64, Waiting>>,
    next_id: AtomicU64,
    methods: HashMap<String, (Kind, u32)>,
    batches: AtomicU64,
}

impl Hub {
    /// A hub for these methods, in the order of their indices.
    ///
    /// # Errors
    /// The kernel gives no eventfd.
    pub fn new(methods: Vec<(String, Kind)>) -> std::io::Result<Self> {
        // SAFETY: eventfd takes no pointers.
        let wake_fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if wake_fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let methods = (0u32..).zip(methods).map(|(index, (path, kind))| (path, (kind, index))).collect();
        Ok(Self {
            events: Mutex::default(),
            wake_fd,
            calls: Mutex::default(),
            next_id: AtomicU64::new(1),
            methods,
            batches: AtomicU64::new(0),
        })
    }

    /// Readable when there are events.
    pub fn fd(&self) -> RawFd {
        self.wake_fd
    }

    pub(crate) fn method(&self, path: &str) -> Option<(Kind, u32)> {
        self.methods.get(path).copied()
    }

    /// Paths of the methods, in the order of their indices.
    pub(crate) fn paths(&self) -> Vec<&str> {
        let mut paths: Vec<(u32, &str)> =
            self.methods.iter().map(|(path, (_, index))| (*index, path.as_str())).collect();
        paths.sort_unstable();
        paths.into_iter().map(|(_, path)| path).collect()
    }

    /// Calls so far, calls open now, batches so far.
    pub fn counts(&self) -> (u64, u64, u64) {
        let open = held(&self.calls).len() as u64;
        (self.next_id.load(Ordering::Relaxed) - 1, open, self.batches.load(Ordering::Relaxed))
    }

    pub(crate) fn push(&self, event: Event) {
        let first = {
            let mut events = held(&self.events);
            events.push_back(event);
            events.len() == 1
        };
        if first {
            self.wake();
        }
    }

    fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of a live integer; the descriptor is ours until drop. It cannot fail but by overflow,
        // and then it is readable anyway.
        unsafe { libc::write(self.wake_fd, (&raw const one).cast(), 8) };
    }

    /// What happened since the last call, at most one batch; wakes again when there is more.
    pub fn drain(&self) -> Vec<Event> {
        let mut count = 0u64;
        // The descriptor first: an event that comes after is a wake of its own.
        // SAFETY: eight bytes into a live integer.
        unsafe { libc::read(self.wake_fd, (&raw mut count).cast(), 8) };
        self.batches.fetch_add(1, Ordering::Relaxed);
        let (batch, more) = {
            let mut events = held(&self.events);
            let length = events.len().min(BATCH_MAX);
            let batch: Vec<Event> = events.drain(..length).collect();
            (batch, !events.is_empty())
        };
        if more {
            self.wake();
        }
        let calls = held(&self.calls);
        batch
            .into_iter()
            .filter(|event| match event {
                // A call that its caller gave up before Python saw it is not worth telling.
                Event::Call { id, .. }
                | Event::Request { id, .. }
                | Event::Greeted { id, .. }
                | Event::Message { id, .. }
                | Event::HalfClose { id } => calls.contains_key(id),
                _ => true,
            })
            .collect()
    }

    /// Do what Python decided; calls that are gone are passed over.
    pub fn submit(&self, ops: Vec<(u64, Op)>) {
        let mut calls = held(&self.calls);
        for (id, op) in ops {
            match op {
                Op::Reply(body) => {
                    if let Some(Waiting::Unary(reply)) = calls.remove(&id) {
                        // The caller may have gone in this very moment.
                        let _ = reply.send(Ok(body));
                    }
                }
                Op::Message(body) => {
                    if let Some(Waiting::Stream { replies, .. } | Waiting::Web { body: replies, .. }) = calls.get(&id) {
                        let _ = replies.send(Ok(body));
                    }
                }
                Op::Start(start) => {
                    if let Some(Waiting::Web { head, .. }) = calls.get_mut(&id)
                        && let Some(head) = head.take()
                    {
                        let _ = head.send(Ok(start));
                    }
                }
                Op::End => {
                    calls.remove(&id);
                }
                Op::Fail(status) => match calls.remove(&id) {
                    Some(Waiting::Unary(reply)) => {
                        let _ = reply.send(Err(status));
                    }
                    Some(Waiting::Stream { replies, .. } | Waiting::Web { head: None, body: replies }) => {
                        let _ = replies.send(Err(status));
                    }
                    Some(Waiting::Web { head: Some(head), .. }) => {
                        let _ = head.send(Err(status));
                    }
                    None => {}
                },
                Op::Ack(bytes) => {
                    if let Some(Waiting::Stream { room, .. }) = calls.get(&id) {
                        room.add_permits(bytes);
                    }
                }
            }
        }
    }

    /// The status of a call that Python failed.
    pub fn failure(code: i32, text: String, details: Bytes) -> Status {
        Status::with_details(Code::from_i32(code), text, details)
    }

    /// Have the ledger say what clients wrote; returns the index of the entry that says it, for each row.
    pub(crate) async fn tell_results(self: &Arc<Self>, rows: Vec<String>) -> Result<Vec<u64>, Status> {
        let (reply, answer) = oneshot::channel();
        let guard = self.open(Waiting::Unary(reply))?;
        self.push(Event::Results { id: guard.id, rows });
        let body = answer.await.unwrap_or_else(|_| Err(Status::unavailable("the server is stopping")))?;
        let index = |bytes: &[u8]| bytes.iter().rev().fold(0, |index, byte| index << 8 | u64::from(*byte));
        Ok(body.chunks_exact(8).map(index).collect())
    }

    pub(crate) fn open(self: &Arc<Self>, waiting: Waiting) -> Result<Guard, Status> {
        let mut calls = held(&self.calls);
        if calls.len() >= CALLS_MAX {
            return Err(Status::resource_exhausted(format!("{CALLS_MAX} calls are open already; try again later")));
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        calls.insert(id, waiting);
        Ok(Guard { hub: Arc::clone(self), id, pump: None })
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // SAFETY: nobody else holds the descriptor once the hub is gone.
        unsafe { libc::close(self.wake_fd) };
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets the call when its future or stream is dropped, and tells Python if it had not ended.
pub(crate) struct Guard {
    hub: Arc<Hub>,
    pub(crate) id: u64,
    pump: Option<tokio::task::AbortHandle>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(pump) = &self.pump {
            pump.abort();
        }
        let open = held(&self.hub.calls).remove(&self.id).is_some();
        if open {
            self.hub.push(Event::Cancel { id: self.id });
        }
    }
}

/// Facts of a call beside its messages.
struct Facts {
    metadata: Vec<(String, MetadataValue)>,
    timeout: Option<Duration>,
    peer: String,
}

impl Facts {
    fn of<T>(request: &Request<T>) -> Self {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0.to_string()).unwrap_or_default();
        let mut metadata = metadata_of(request.metadata());
        metadata.extend(request.extensions().get::<Caller>().map(Caller::facts).unwrap_or_default());
        Self { metadata, timeout: timeout_of(request.metadata()), peer }
    }

    fn event(self, id: u64, method: u32, body: Option<Bytes>) -> Event {
        let timeout_s = self.timeout.map(|timeout| timeout.as_secs_f64());
        Event::Call { id, method, body, metadata: self.metadata, timeout_s, peer: self.peer }
    }
}

/// The caller's address, put into a request's extensions by the listener.
#[derive(Clone)]
pub(crate) struct Peer(pub(crate) Arc<str>);

fn metadata_of(map: &MetadataMap) -> Vec<(String, MetadataValue)> {
    let mut pairs = Vec::new();
    for pair in map.iter() {
        match pair {
            KeyAndValueRef::Ascii(key, value) => {
                let key = key.as_str();
                // Credentials end here; who calls is the door's to say.
                if matches!(key, "te" | "content-type" | "user-agent" | "authorization")
                    || key.starts_with("grpc-")
                    || key.starts_with(CALLER_PREFIX)
                {
                    continue;
                }
                if let Ok(value) = value.to_str() {
                    pairs.push((key.to_owned(), MetadataValue::Text(value.to_owned())));
                }
            }
            // A value that is not base64 is left out: a malformed header must not fail a call.
            KeyAndValueRef::Binary(key, value) => {
                if let Ok(value) = value.to_bytes() {
                    pairs.push((key.as_str().to_owned(), MetadataValue::Binary(value)));
                }
            }
        }
    }
    pairs
}

/// `grpc-timeout`: digits and a unit (gRPC over HTTP/2, section Requests).
fn timeout_of(map: &MetadataMap) -> Option<Duration> {
    let text = map.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount.saturating_mul(3600)),
        "M" => Duration::from_secs(amount.saturating_mul(60)),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

fn deadline_passed() -> Status {
    Status::deadline_exceeded("the call's deadline has passed")
}

/// One method answered by Python.
pub(crate) struct Bridged {
    pub(crate) hub: Arc<Hub>,
    pub(crate) method: u32,
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

impl tonic::server::UnaryService<Bytes> for Bridged {
    type Response = Bytes;
    type Future = Answer<Bytes>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (hub, method) = (Arc::clone(&self.hub), self.method);
        Box::pin(async move {
            let facts = Facts::of(&request);
            let timeout = facts.timeout;
            let (reply, answer) = oneshot::channel();
            let guard = hub.open(Waiting::Unary(reply))?;
            hub.push(facts.event(guard.id, method, Some(request.into_inner())));
            let answer = match timeout {
                None => answer.await,
                Some(timeout) => tokio::time::timeout(timeout, answer).await.map_err(|_| deadline_passed())?,
            };
            answer.unwrap_or_else(|_| Err(Status::unavailable("the server is stopping"))).map(Response::new)
        })
    }
}

impl Bridged {
    fn stream(&self, facts: Facts, body: Option<Bytes>) -> Result<(Replies, Arc<Semaphore>), Status> {
        let (replies, inbox) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(WINDOW_BYTES));
        let guard = self.hub.open(Waiting::Stream { replies, room: Arc::clone(&room) })?;
        let deadline = facts.timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout)));
        self.hub.push(facts.event(guard.id, self.method, body));
        Ok((Replies { inbox, guard, taken_bytes: 0, deadline }, room))
    }
}

impl tonic::server::ServerStreamingService<Bytes> for Bridged {
    type Response = Bytes;
    type ResponseStream = Replies;
    type Future = std::future::Ready<Result<Response<Replies>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let facts = Facts::of(&request);
        let answer = self.stream(facts, Some(request.into_inner()));
        std::future::ready(answer.map(|(replies, _)| Response::new(replies)))
    }
}

impl tonic::server::StreamingService<Bytes> for Bridged {
    type Response = Bytes;
    type ResponseStream = Replies;
    type Future = std::future::Ready<Result<Response<Replies>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let facts = Facts::of(&request);
        let answer = self.stream(facts, None).map(|(mut replies, room)| {
            let task = pump(Arc::clone(&self.hub), replies.guard.id, request.into_inner(), room);
            replies.guard.pump = Some(tokio::spawn(task).abort_handle());
            Response::new(replies)
        });
        std::future::ready(answer)
    }
}

/// Hand requests over as long as Python has room for them.
async fn pump(hub: Arc<Hub>, id: u64, mut requests: Streaming<Bytes>, room: Arc<Semaphore>) {
    loop {
        match requests.message().await {
            Ok(Some(body)) => {
                // Half a window at most: Python acknowledges by halves, so the other half may still be on its way back.
                let cost = (body.len() + MESSAGE_COST_BYTES).min(WINDOW_BYTES / 2);
                // Closed only with the call itself.
                let Ok(permits) = room.acquire_many(u32::try_from(cost).unwrap_or(u32::MAX)).await else { return };
                permits.forget();
                hub.push(Event::Message { id, body });
            }
            Ok(None) => {
                hub.push(Event::HalfClose { id });
                return;
            }
            // A request that cannot be read, or a reset: the call fails here, and its guard tells Python.
            Err(status) => {
                if let Some(Waiting::Stream { replies, .. }) = held(&hub.calls).get(&id) {
                    let _ = replies.send(Err(status));
                }
                return;
            }
        }
    }
}

/// The replies of one stream, and its place in the hub.
pub(crate) struct Replies {
    inbox: mpsc::UnboundedReceiver<Result<Bytes, Status>>,
    guard: Guard,
    taken_bytes: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Replies {
    /// What comes through `inbox`, for as long as the call of `guard` lasts.
    pub(crate) fn new(inbox: mpsc::UnboundedReceiver<Result<Bytes, Status>>, guard: Guard) -> Self {
        Self { inbox, guard, taken_bytes: 0, deadline: None }
    }
}

impl Stream for Replies {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            self.deadline = None;
            self.inbox.close();
            return Poll::Ready(Some(Err(deadline_passed())));
        }
        let item = ready!(self.inbox.poll_recv(context));
        if let Some(Ok(body)) = &item {
            self.taken_bytes += body.len() + MESSAGE_COST_BYTES;
            if self.taken_bytes >= WINDOW_BYTES / 2 {
                let bytes = u32::try_from(std::mem::take(&mut self.taken_bytes)).unwrap_or(u32::MAX);
                self.guard.hub.push(Event::Credit { id: self.guard.id, bytes });
            }
        }
        Poll::Ready(item)
    }
}
