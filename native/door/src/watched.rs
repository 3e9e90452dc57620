//! Replies that are counted while they leave: how many bytes, and how they ended. They pass through unchanged.

use buildnet_raw::{FRAME_BYTES, length_of};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::grpc::Answer;
use crate::observe::Record;

/// The answer of a call that ends in the door; a stream is counted until it ends.
pub(crate) fn answer(mut record: Record, done: Result<Answer, Status>) -> Result<Answer, Status> {
    match done {
        Err(status) => {
            record.ended(status.code());
            Err(status)
        }
        Ok(Answer::Many(inner)) => Ok(Answer::Many(Box::pin(Messages { inner, record }))),
        Ok(Answer::Pieces(inner)) => Ok(Answer::Pieces(Box::pin(Messages { inner, record }))),
        Ok(answer) => {
            if let Answer::One(Some(message)) = &answer {
                record.sent(message.len());
            }
            record.ended(Code::Ok);
            Ok(answer)
        }
    }
}

struct Messages<S> {
    inner: S,
    record: Record,
}

impl<S: Stream<Item = Result<Bytes, Status>> + Unpin> Stream for Messages<S> {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut self.inner).poll_next(context));
        match &next {
            Some(Ok(message)) => self.record.sent(message.len()),
            Some(Err(status)) => self.record.ended(status.code()),
            None => self.record.ended(Code::Ok),
        }
        Poll::Ready(next)
    }
}

/// A request whose bytes are counted on their way in.
pub(crate) fn request<B>(request: Request<B>) -> (Request<Body>, Arc<Received>)
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let received = Arc::<Received>::default();
    let count = Arc::clone(&received);
    let counted = request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(data) = frame.data_ref() {
                count.came(data.len());
                count.first.get_or_init(|| data.clone());
            }
            frame
        }))
    });
    (counted, received)
}

/// What came of a request so far.
#[derive(Default)]
pub(crate) struct Received {
    bytes: AtomicU64,
    first: OnceLock<Bytes>,
}

impl Received {
    pub(crate) fn came(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn tell(&self, record: &Record) {
        record.received.fetch_add(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// The first message, if it came in one piece, as small ones do.
    fn message(&self) -> Option<Bytes> {
        let first = self.first.get()?;
        let length = length_of(*first.first_chunk()?, usize::MAX).ok()?;
        (first.len() >= FRAME_BYTES + length).then(|| first.slice(FRAME_BYTES..FRAME_BYTES + length))
    }
}

/// The response of a gRPC call that Python answers, counted until its status comes.
pub(crate) fn grpc(mut record: Record, received: Arc<Received>, response: Response<Body>) -> Response<Body> {
    // A call that failed at once has its status in its head.
    if let Some(status) = response.headers().get(Status::GRPC_STATUS) {
        record.ended(code_of(status));
    }
    record.saw(|| received.message().unwrap_or_default());
    let watched = |inner| Watched { inner, record, received, http: None, left: None };
    response.map(|inner| Body::new(watched(inner)))
}

/// The response of an HTTP call, counted until all of its body was taken. One to HEAD has none, whatever it announces.
pub(crate) fn http(
    mut record: Record,
    received: Arc<Received>,
    head: bool,
    response: Response<Body>,
) -> Response<Body> {
    let status = response.status();
    let announced = response.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let left = announced.or_else(|| response.body().size_hint().exact());
    if head || left == Some(0) || response.body().is_end_stream() {
        received.tell(&record);
        record.ended_http(status);
        return response;
    }
    response.map(|inner| Body::new(Watched { inner, record, received, http: Some(status), left }))
}

fn code_of(value: &http::HeaderValue) -> Code {
    Code::from_bytes(value.as_bytes())
}

struct Watched {
    inner: Body,
    record: Record,
    received: Arc<Received>,
    http: Option<http::StatusCode>,
    /// Bytes that are still to come, when that was announced.
    left: Option<u64>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &next {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.record.sent(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                } else if let Some(status) = frame.trailers_ref().and_then(|t| t.get(Status::GRPC_STATUS)) {
                    self.record.ended(code_of(status));
                }
            }
            Some(Err(status)) if self.http.is_none() => self.record.ended(status.code()),
            // An HTTP body that breaks off stays what it was: one that nobody got whole.
            _ => {}
        }
        // hyper asks no further once it has as many bytes as were announced.
        let whole = next.is_none() || self.left == Some(0) || self.inner.is_end_stream();
        if let (true, Some(status)) = (whole && !matches!(next, Some(Err(_))), self.http) {
            self.record.ended_http(status);
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.received.tell(&self.record);
    }
}
