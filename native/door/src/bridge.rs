//! Calls that the door does not answer become events of the hub, and what Python decides becomes their replies. The bytes of
//! long messages pass in the pieces in which they came.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use buildnet_raw::{Inbound, Message, Outbound};
use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, header};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Code, Request, Status};

use crate::access::{CALLER_PREFIX, Caller};
use crate::grpc::trailers_of;
use crate::hub::{Event, Guard, Hub, MESSAGE_COST_BYTES, MetadataValue, WINDOW_BYTES, Waiting};

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

impl Bridged {
    /// The reply to one request.
    pub(crate) async fn ask(&self, request: http::Request<Bytes>) -> Result<Bytes, Status> {
        let request = Request::from_http(request);
        let facts = Facts::of(&request);
        let timeout = facts.timeout;
        let (reply, answer) = oneshot::channel();
        let guard = self.hub.open(Waiting::Unary(reply))?;
        self.hub.push(facts.event(guard.id, self.method, Some(request.into_inner())));
        let answer = match timeout {
            None => answer.await,
            Some(timeout) => tokio::time::timeout(timeout, answer).await.map_err(|_| deadline_passed())?,
        };
        answer.unwrap_or_else(|_| Err(Status::unavailable("the server is stopping")))
    }

    fn stream(&self, facts: Facts, body: Option<Bytes>) -> Result<(Replies, Arc<Semaphore>), Status> {
        let (replies, inbox) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(WINDOW_BYTES));
        let guard = self.hub.open(Waiting::Stream { replies, room: Arc::clone(&room) })?;
        let deadline = facts.timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout)));
        self.hub.push(facts.event(guard.id, self.method, body));
        Ok((Replies { inbox, guard, taken_bytes: 0, deadline }, room))
    }

    /// The replies to one request.
    pub(crate) fn follow(&self, request: http::Request<Bytes>) -> Result<Replies, Status> {
        let request = Request::from_http(request);
        let facts = Facts::of(&request);
        self.stream(facts, Some(request.into_inner())).map(|(replies, _)| replies)
    }

    /// The replies to a stream of requests, each of `size_bytes_max` at most.
    pub(crate) fn converse(&self, request: http::Request<Body>, size_bytes_max: usize) -> Result<Replies, Status> {
        let request = Request::from_http(request);
        let (mut replies, room) = self.stream(Facts::of(&request), None)?;
        let requests = Requests { body: request.into_inner(), inbound: Inbound::default(), size_bytes_max };
        let task = pump(Arc::clone(&self.hub), replies.guard.id, requests, room);
        replies.guard.pump = Some(tokio::spawn(task).abort_handle());
        Ok(replies)
    }
}

/// The messages of a request's body.
struct Requests {
    body: Body,
    inbound: Inbound,
    size_bytes_max: usize,
}

impl Requests {
    /// The next message; none at the end.
    async fn next(&mut self) -> Result<Option<Message>, Status> {
        loop {
            if let Some(message) = self.inbound.next(self.size_bytes_max)? {
                return Ok(Some(message));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.inbound.push(data);
                    }
                }
                // Who gives its call up says nothing more.
                Some(Err(status)) if status.code() == Code::Cancelled => return Ok(None),
                Some(Err(status)) => return Err(status),
                None if self.inbound.is_empty() => return Ok(None),
                None => return Err(Status::invalid_argument("the request ended within a message")),
            }
        }
    }
}

/// Hand requests over as long as Python has room for them.
async fn pump(hub: Arc<Hub>, id: u64, mut requests: Requests, room: Arc<Semaphore>) {
    loop {
        match requests.next().await {
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
                hub.break_off(id, status);
                return;
            }
        }
    }
}

/// The replies of one stream, and its place in the hub.
pub(crate) struct Replies {
    inbox: mpsc::UnboundedReceiver<Result<Message, Status>>,
    guard: Guard,
    taken_bytes: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Replies {
    /// What comes through `inbox`, for as long as the call of `guard` lasts.
    pub(crate) fn new(inbox: mpsc::UnboundedReceiver<Result<Message, Status>>, guard: Guard) -> Self {
        Self { inbox, guard, taken_bytes: 0, deadline: None }
    }
}

impl Stream for Replies {
    type Item = Result<Message, Status>;

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

/// Replies as a body, and then a status.
struct Framed {
    replies: Replies,
    outbound: Outbound,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl http_body::Body for Framed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        while !this.ended && !this.outbound.is_full() {
            match Pin::new(&mut this.replies).poll_next(context) {
                Poll::Ready(Some(Ok(message))) => this.outbound.push(&message),
                Poll::Ready(end) => {
                    let status = end.and_then(Result::err).unwrap_or_else(|| Status::ok(""));
                    this.trailers = Some(trailers_of(&status));
                    this.ended = true;
                }
                Poll::Pending => match this.outbound.chunk() {
                    Some(chunk) => return Poll::Ready(Some(Ok(Frame::data(chunk)))),
                    None => return Poll::Pending,
                },
            }
        }
        let chunk = this.outbound.chunk().map(Frame::data);
        Poll::Ready(chunk.or_else(|| this.trailers.take().map(Frame::trailers)).map(Ok))
    }
}

/// Replies as a response, or the status alone.
pub(crate) fn respond(replies: Result<Replies, Status>) -> http::Response<Body> {
    match replies {
        Err(status) => status.into_http(),
        Ok(replies) => {
            let framed = Framed { replies, outbound: Outbound::default(), trailers: None, ended: false };
            let mut response = http::Response::new(Body::new(framed));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
    }
}
