//! The queue between the network's threads and Python: events one way, decisions the other, both in batches. No thread here
//! ever waits for Python, and Python is woken once for a batch (decision 0002).

use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use buildnet_formats::Digest;
use buildnet_raw::Message;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::{Code, Status};

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

/// A result that a client wrote of an action whose Action message is here too.
#[derive(Debug)]
pub struct ClientResult {
    /// As its caller wrote it, in front of a trust namespace where it has one.
    pub namespace: String,
    /// The action.
    pub action: Digest,
    /// The exact bytes of its ActionResult.
    pub result: Bytes,
    /// Who wrote it; empty when nobody said.
    pub caller: String,
    /// The caller's RequestMetadata as it came, which may be no message at all.
    pub requested: Bytes,
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
        body: Message,
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
        /// Those of them that are results of actions which the store can tell more of.
        actions: Vec<(usize, ClientResult)>,
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
    Message(Message),
    /// The stream ended well.
    End,
    /// The call failed.
    Fail(Status),
    /// Requests of this many bytes were consumed.
    Ack(usize),
    /// The answer to an HTTP request begins.
    Start(WebHead),
}

pub(crate) type Sent = mpsc::UnboundedSender<Result<Message, Status>>;

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
    pub(crate) async fn tell_results(
        self: &Arc<Self>,
        rows: Vec<String>,
        actions: Vec<(usize, ClientResult)>,
    ) -> Result<Vec<u64>, Status> {
        let (reply, answer) = oneshot::channel();
        let guard = self.open(Waiting::Unary(reply))?;
        self.push(Event::Results { id: guard.id, rows, actions });
        let body = answer.await.unwrap_or_else(|_| Err(Status::unavailable("the server is stopping")))?;
        let index = |bytes: &[u8]| bytes.iter().rev().fold(0, |index, byte| index << 8 | u64::from(*byte));
        Ok(body.chunks_exact(8).map(index).collect())
    }

    /// End a stream with a failure of the door's own; Python is told when its guard goes.
    pub(crate) fn break_off(&self, id: u64, status: Status) {
        if let Some(Waiting::Stream { replies, .. }) = held(&self.calls).get(&id) {
            // Its caller may have gone in this very moment.
            let _ = replies.send(Err(status));
        }
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
    pub(crate) hub: Arc<Hub>,
    pub(crate) id: u64,
    pub(crate) pump: Option<tokio::task::AbortHandle>,
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
