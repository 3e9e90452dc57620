//! gRPC for the calls that end here: frames in, frames out, and a status at the end (gRPC over HTTP/2). The calls that go
//! on to Python take tonic's way.

use buildnet_raw::{FRAME_BYTES, length_of};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::budget::{Line, Metered};
use crate::observe::Record;
use crate::rope::Rope;

static GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Requests as messages, in the pieces in which they came.
pub(crate) struct Messages<'a> {
    record: &'a Record,
    body: Incoming,
    held: Rope,
    size_bytes_max: usize,
    line: &'a Arc<Line>,
}

impl<'a> Messages<'a> {
    /// The messages of a request; `record` is told how many bytes came.
    pub(crate) fn new(
        request: Request<Incoming>,
        size_bytes_max: usize,
        line: &'a Arc<Line>,
        record: &'a Record,
    ) -> Self {
        Self { record, line, body: request.into_body(), held: Rope::default(), size_bytes_max }
    }

    /// What is counted of the call.
    pub(crate) fn record(&self) -> &'a Record {
        self.record
    }

    /// What is known of the connection.
    pub(crate) fn line(&self) -> &'a Arc<Line> {
        self.line
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
            match self.line.patient(self.body.frame()).await? {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        let came = data.len();
                        self.record.received.fetch_add(came as u64, Ordering::Relaxed);
                        self.held.push(data);
                        let charge = self.line.gather(came, self.header()?).await?;
                        self.held.charge(charge);
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
        length_of(header, self.size_bytes_max).map(Some)
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

/// What a call ends with.
pub(crate) fn trailers_of(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(4);
    // A status whose text cannot be a header is told without it.
    if status.code() == Code::Ok || status.add_header(&mut trailers).is_err() {
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    trailers
}

/// Framed messages and then a status.
pub(crate) enum Answer {
    /// One message.
    One(Option<Bytes>),
    /// Large ones, each made only when there is room for it.
    Pieces(Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>),
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
            Self::Many(messages) | Self::Pieces(messages) => match messages.as_mut().poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(next) => next,
            },
            Self::Ended => return Poll::Ready(None),
        };
        if let Some(Ok(message)) = next {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        *self = Self::Ended;
        let trailers = trailers_of(&next.and_then(Result::err).unwrap_or_else(|| Status::ok("")));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Ended)
    }
}

/// A response of these frames, or the status alone.
pub(crate) fn respond(answer: Result<Answer, Status>, line: &Arc<Line>) -> Response<Body> {
    let charged = answer.and_then(|answer| match answer {
        Answer::One(Some(message)) => line.charge(message).map(|message| Answer::One(Some(message))),
        answer => Ok(answer),
    });
    match charged {
        Err(status) => status.into_http(),
        Ok(answer) => {
            debug_assert!(!answer.is_end_stream());
            let pieces = matches!(answer, Answer::Pieces(_));
            let body = if pieces { Body::new(Metered::new(answer, line)) } else { Body::new(answer) };
            let mut response = Response::new(body);
            response.headers_mut().insert(header::CONTENT_TYPE, GRPC.clone());
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_compresses_is_told_what_is_taken() {
        let response: Response<Body> = length_of([1, 0, 0, 0, 0], 8).unwrap_err().into_http();
        assert_eq!(response.headers()["grpc-accept-encoding"], "identity");
        assert_eq!(response.headers()["grpc-status"], "12");
    }
}
