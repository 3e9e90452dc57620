//! Calls that the door does not answer become events of the hub, and what Python decides becomes their replies.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Sleep;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Request, Response, Status, Streaming};

use crate::access::{CALLER_PREFIX, Caller};
use crate::hub::{Event, Guard, Hub, MESSAGE_COST_BYTES, MetadataValue, Parts, WINDOW_BYTES, Waiting};

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
    type Response = Parts;
    type Future = Answer<Parts>;

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
            answer
                .unwrap_or_else(|_| Err(Status::unavailable("the server is stopping")))
                .map(|body| Response::new(body.into()))
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
    type Response = Parts;
    type ResponseStream = Replies;
    type Future = std::future::Ready<Result<Response<Replies>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let facts = Facts::of(&request);
        let answer = self.stream(facts, Some(request.into_inner()));
        std::future::ready(answer.map(|(replies, _)| Response::new(replies)))
    }
}

impl tonic::server::StreamingService<Bytes> for Bridged {
    type Response = Parts;
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
                hub.break_off(id, status);
                return;
            }
        }
    }
}

/// The replies of one stream, and its place in the hub.
pub(crate) struct Replies {
    inbox: mpsc::UnboundedReceiver<Result<Parts, Status>>,
    guard: Guard,
    taken_bytes: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Replies {
    /// What comes through `inbox`, for as long as the call of `guard` lasts.
    pub(crate) fn new(inbox: mpsc::UnboundedReceiver<Result<Parts, Status>>, guard: Guard) -> Self {
        Self { inbox, guard, taken_bytes: 0, deadline: None }
    }
}

impl Stream for Replies {
    type Item = Result<Parts, Status>;

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
