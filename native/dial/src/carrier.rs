//! Sessions where only HTTP/2 passes: a call of TransportService carries the bytes of one. Whoever ends TLS between is
//! verified as any server of TLS is, and is not who must answer in the session.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use buildnet_session::{Carried, SessionError, Written};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Code, Status};

use crate::channel::{Counted, root_cause};
use crate::dialler::connected;
use crate::secure::{Secure, host_of};
use crate::{DialError, TlsOptions};

const OPEN: &str = "/buildnet.v1.TransportService/Open";
const GRPC: &str = "application/grpc";
/// The windows of what is within bound what comes; these let it come over long ways.
const WINDOW_BYTES: u32 = 4 << 20;

/// How a session is carried by HTTP/2: in plaintext, or within TLS to whoever ends it.
pub struct Carrier {
    origin: Uri,
    tls: Option<Secure>,
}

type Sending = UnsyncBoxBody<Bytes, Infallible>;

impl Carrier {
    /// By `http` or `https` to `HOST:PORT`; nothing is dialled yet.
    ///
    /// # Errors
    /// It is neither, the address is none, or a certificate is not one.
    pub fn new(scheme: &str, address: &str, tls: &TlsOptions) -> Result<Self, DialError> {
        let url = format!("{scheme}://{address}");
        let none = || DialError::Url(url.clone());
        let base: Uri = url.parse().map_err(|_| none())?;
        let host = host_of(&base).ok_or_else(none)?;
        let tls = match scheme {
            "http" => None,
            "https" => Some(Secure::new(&url, host, tls)?),
            _ => return Err(none()),
        };
        let origin = format!("{url}{OPEN}").parse().map_err(|_| none())?;
        Ok(Self { origin, tls })
    }

    /// Its scheme, for people.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Dial `address` and begin the call; what it answers is known by what is read.
    ///
    /// # Errors
    /// Nobody answers, or by no TLS or HTTP/2 of this end's.
    pub(crate) async fn open(&self, address: String, executor: &Counted) -> io::Result<Carried<Answered>> {
        let stream = connected(address).await?;
        match &self.tls {
            None => self.begin(stream, executor).await,
            Some(secure) => self.begin(secure.clone().shake_hands(stream).await?, executor).await,
        }
    }

    async fn begin<S>(&self, stream: S, executor: &Counted) -> io::Result<Carried<Answered>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = http2::Builder::new(executor.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake::<_, Sending>(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        // How it ended is told by the call on it.
        executor.execute(connection.map(drop));
        sender.ready().await.map_err(failed)?;
        let written = Written::default();
        let sent = written.carrying().map(|bytes| Ok(Frame::data(bytes)));
        let request = Request::post(self.origin.clone())
            .version(Version::HTTP_2)
            .header(header::CONTENT_TYPE, GRPC)
            .header(header::TE, "trailers")
            .body(UnsyncBoxBody::new(StreamBody::new(sent)))
            .map_err(io::Error::other)?;
        let answer = sender.send_request(request).boxed();
        Ok(Carried::new(Answered { answer: Answer::Asked(answer), _sender: sender }, written))
    }
}

/// What the call answers, from its head on.
enum Answer {
    Asked(BoxFuture<'static, hyper::Result<Response<Incoming>>>),
    Telling(Incoming),
}

/// The body of the answer; a call that failed is an error here. A proxy may keep its head back until the first bytes come,
/// so nobody waits for that alone.
pub(crate) struct Answered {
    answer: Answer,
    /// The connection lasts as long.
    _sender: SendRequest<Sending>,
}

impl Body for Answered {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, waking: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            match &mut self.answer {
                Answer::Asked(answer) => {
                    let response = ready!(answer.poll_unpin(waking)).map_err(failed)?;
                    check_head(&response)?;
                    self.answer = Answer::Telling(response.into_body());
                }
                Answer::Telling(body) => {
                    let next = ready!(Pin::new(body).poll_frame(waking)).transpose().map_err(failed)?;
                    if let Some(trailers) = next.as_ref().and_then(Frame::trailers_ref) {
                        check_status(trailers)?;
                    }
                    return Poll::Ready(next.map(Ok));
                }
            }
        }
    }
}

/// Whether a call of gRPC begins; a proxy answers without one, and so does a server that knows no such call.
fn check_head<B>(response: &Response<B>) -> io::Result<()> {
    match response.status() {
        StatusCode::OK => check_status(response.headers()),
        StatusCode::NOT_FOUND => Err(SessionError::NotASession.into()),
        status => Err(io::Error::other(format!("HTTP {status}"))),
    }
}

fn check_status(headers: &HeaderMap) -> io::Result<()> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() == Code::Unimplemented => Err(SessionError::NotASession.into()),
        Some(status) if status.code() != Code::Ok => {
            Err(io::Error::other(format!("{:?}: {}", status.code(), status.message())))
        }
        _ => Ok(()),
    }
}

fn failed(error: hyper::Error) -> io::Error {
    io::Error::other(root_cause(&error))
}
