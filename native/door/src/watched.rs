//! Replies that are counted while they leave: how many bytes, and how they ended. They pass through unchanged.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
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
pub(crate) fn request<B>(request: Request<B>) -> (Request<Body>, Received)
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let received = Received::default();
    let count = received.clone();
    let counted = request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            if let Some(data) = frame.data_ref() {
                count.0.fetch_add(data.remaining() as u64, std::sync::atomic::Ordering::Relaxed);
            }
            frame
        }))
    });
    (counted, received)
}

/// Bytes of a request so far.
#[derive(Clone, Default)]
pub(crate) struct Received(std::sync::Arc<std::sync::atomic::AtomicU64>);

impl Received {
    fn bytes(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// A response that is counted until its body ends: gRPC's by its status, HTTP's by its code once all of it was taken.
pub(crate) fn response(record: Record, received: Option<Received>, response: Response<Body>) -> Response<Body> {
    let status = response.headers().get(Status::GRPC_STATUS).map(code_of);
    let announced = response.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let (head, inner) = response.into_parts();
    let left = announced.or_else(|| inner.size_hint().exact());
    let http = received.is_none().then_some(head.status);
    let mut watched = Watched { inner, record, received, http, left };
    match (status, http) {
        (Some(code), None) => watched.record.ended(code),
        (_, Some(status)) if watched.inner.is_end_stream() || left == Some(0) => watched.record.ended_http(status),
        _ => {}
    }
    Response::from_parts(head, Body::new(watched))
}

fn code_of(value: &http::HeaderValue) -> Code {
    Code::from_bytes(value.as_bytes())
}

struct Watched {
    inner: Body,
    record: Record,
    /// Of a gRPC call that Python answers.
    received: Option<Received>,
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
        if let Some(received) = &self.received {
            self.record.received.fetch_add(received.bytes(), std::sync::atomic::Ordering::Relaxed);
        }
    }
}
