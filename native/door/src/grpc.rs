//! gRPC for the calls that end here: frames in, frames out, and a status at the end (gRPC over HTTP/2). The calls that go
//! on to Python take tonic's way.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use crate::observe::Record;
use crate::rope::Rope;

/// Whether a message is compressed, and its length.
pub(crate) const FRAME_BYTES: usize = 5;
static GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
static OK: HeaderValue = HeaderValue::from_static("0");

/// Requests as messages, in the pieces in which they came.
pub(crate) struct Messages<'a> {
    record: &'a Record,
    body: Incoming,
    held: Rope,
    size_bytes_max: usize,
}

impl<'a> Messages<'a> {
    /// The messages of a request; `record` is told how many bytes came.
    pub(crate) fn new(request: Request<Incoming>, size_bytes_max: usize, record: &'a Record) -> Self {
        Self { record, body: request.into_body(), held: Rope::default(), size_bytes_max }
    }

    /// What is counted of the call.
    pub(crate) fn record(&self) -> &'a Record {
        self.record
    }

    /// The next message; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Rope>, Status> {
        loop {
            if let Some(length) = self.header()?
                && self.held.len() >= FRAME_BYTES + length
            {
                self.held.advance(FRAME_BYTES);
                return Ok(Some(self.held.take(length)));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.record.received.fetch_add(data.len() as u64, Ordering::Relaxed);
                        self.held.push(data);
                    }
                }
                Some(Err(_)) => return Err(Status::cancelled("the request broke off")),
                None if self.held.len() == 0 => return Ok(None),
                None => return Err(Status::invalid_argument("the request ended within a message")),
            }
        }
    }

    /// The length that the next message says it has.
    fn header(&self) -> Result<Option<usize>, Status> {
        if self.held.len() < FRAME_BYTES {
            return Ok(None);
        }
        let mut header = [0; FRAME_BYTES];
        for (to, from) in header.iter_mut().zip(self.held.pieces().flat_map(|piece| piece.iter())) {
            *to = *from;
        }
        if header[0] != 0 {
            return Err(Status::unimplemented("compressed messages are not offered; ask for compressed-blobs instead"));
        }
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > self.size_bytes_max {
            return Err(Status::resource_exhausted(format!(
                "a message of {length} bytes is over the limit of {}",
                self.size_bytes_max
            )));
        }
        Ok(Some(length))
    }

    /// The only message of a call that has one.
    pub(crate) async fn only(mut self) -> Result<Bytes, Status> {
        match self.next().await? {
            Some(message) => {
                let message = message.into_bytes();
                self.record.saw(|| message.clone());
                Ok(message)
            }
            None => Err(Status::invalid_argument("the call came without its message")),
        }
    }
}

/// Framed messages and then a status.
pub(crate) enum Answer {
    /// One message.
    One(Option<Bytes>),
    /// Many.
    Many(Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>),
    /// Nothing more.
    Ended,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = match &mut *self {
            Self::One(message) => message.take().map(Ok),
            Self::Many(messages) => match messages.as_mut().poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(next) => next,
            },
            Self::Ended => return Poll::Ready(None),
        };
        if let Some(Ok(message)) = next {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        *self = Self::Ended;
        let mut trailers = HeaderMap::with_capacity(4);
        match next {
            // A status whose text cannot be a header is told without it.
            Some(Err(status)) if status.add_header(&mut trailers).is_err() => {
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
            }
            Some(Err(_)) => {}
            _ => {
                trailers.insert(Status::GRPC_STATUS, OK.clone());
            }
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Ended)
    }
}

/// A response of these frames, or the status alone.
pub(crate) fn respond(answer: Result<Answer, Status>) -> Response<Body> {
    match answer {
        Err(status) => status.into_http(),
        Ok(answer) => {
            debug_assert!(!answer.is_end_stream());
            let mut response = Response::new(Body::new(answer));
            response.headers_mut().insert(header::CONTENT_TYPE, GRPC.clone());
            response
        }
    }
}
