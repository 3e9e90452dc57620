//! One HTTP/2 connection, driven by `h2` itself: a generator that shares the machine must cost less than what it loads.

use bytes::{Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, TE};
use http::{HeaderMap, Method, Request, Uri};
use tokio::net::TcpStream;

use crate::socket::Socket;
use crate::verify::Reading;

const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const REPLY_BYTES_MAX: usize = 16 << 20;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// gRPC's OK.
pub const OK: i32 = 0;
/// gRPC's NOT_FOUND.
pub const NOT_FOUND: i32 = 5;

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The connection is of no more use.
    Broken(String),
    /// This call failed.
    Call(String),
    /// There was an answer, and it is not the right one.
    Wrong(String),
}

/// Status and message of a unary call.
pub struct Reply {
    /// gRPC's code.
    pub status: i32,
    /// What it says.
    pub text: String,
    /// The messages with their prefixes; empty for most errors.
    pub body: Bytes,
}

/// A connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    send: SendRequest<Bytes>,
    headers: HeaderMap,
}

/// Where a method is.
pub fn uri(address: &str, path: &str) -> Result<Uri, String> {
    format!("http://{address}{path}").parse().map_err(|error| format!("{address}: {error}"))
}

/// Connect; the connection is driven on this thread until all its clones are dropped.
///
/// # Errors
/// It cannot be reached, or does not speak HTTP/2.
pub async fn connect(address: &str) -> Result<Connection, String> {
    let named = |error: &dyn std::fmt::Display| format!("{address}: {error}");
    let stream = TcpStream::connect(address).await.map_err(|e| named(&e))?;
    stream.set_nodelay(true).map_err(|e| named(&e))?;
    let socket = Socket::new(stream);
    let (send, connection) = Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .enable_push(false)
        .handshake::<_, Bytes>(socket.clone())
        .await
        .map_err(|e| named(&e))?;
    tokio::task::spawn_local(socket.drive(connection));
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    Ok(Connection { send, headers })
}

impl Connection {
    /// A call with one reply.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn unary(&mut self, uri: &Uri, messages: &[Bytes]) -> Result<Reply, Failure> {
        let mut first = Bytes::new();
        let mut more = BytesMut::new();
        let (status, text) = self
            .exchange(uri, messages, |chunk| {
                if first.is_empty() {
                    first = chunk;
                    return Ok(());
                }
                if more.is_empty() {
                    more.extend_from_slice(&first);
                }
                more.extend_from_slice(&chunk);
                if more.len() > REPLY_BYTES_MAX { Err("a reply without end".to_owned()) } else { Ok(()) }
            })
            .await?;
        Ok(Reply { status, text, body: if more.is_empty() { first } else { more.freeze() } })
    }

    /// A ByteStream.Read, compared while it arrives.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn read(&mut self, uri: &Uri, request: &Bytes, reading: &mut Reading<'_>) -> Result<(), Failure> {
        let (status, text) = self.exchange(uri, std::slice::from_ref(request), |chunk| reading.feed(&chunk)).await?;
        if status != OK {
            return Err(Failure::Call(format!("status {status}: {text}")));
        }
        reading.finish().map_err(Failure::Wrong)
    }

    async fn exchange(
        &mut self,
        uri: &Uri,
        messages: &[Bytes],
        mut each: impl FnMut(Bytes) -> Result<(), String>,
    ) -> Result<(i32, String), Failure> {
        std::future::poll_fn(|context| self.send.poll_ready(context)).await.map_err(broken)?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = self.headers.clone();
        let (response, mut upload) = self.send.send_request(request, false).map_err(broken)?;
        for (index, message) in messages.iter().enumerate() {
            // An answer may come before the whole of the upload has gone; it says why.
            if upload.send_data(message.clone(), index + 1 == messages.len()).is_err() {
                break;
            }
        }
        let (parts, mut body) = response.await.map_err(failed)?.into_parts();
        if !parts.status.is_success() {
            return Err(Failure::Call(format!("HTTP status {}", parts.status)));
        }
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(failed)?;
            body.flow_control().release_capacity(chunk.len()).map_err(failed)?;
            each(chunk).map_err(Failure::Wrong)?;
        }
        let trailers = if parts.headers.contains_key(GRPC_STATUS) {
            parts.headers
        } else {
            body.trailers().await.map_err(failed)?.unwrap_or_default()
        };
        Ok(status_in(&trailers))
    }
}

/// The status in these headers; -1 when there is none.
fn status_in(headers: &HeaderMap) -> (i32, String) {
    let text_of = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let status = text_of(GRPC_STATUS).and_then(|text| text.parse().ok()).unwrap_or(-1);
    let text = if status == OK { String::new() } else { text_of(GRPC_MESSAGE).unwrap_or_default().to_owned() };
    (status, text)
}

fn broken(error: h2::Error) -> Failure {
    Failure::Broken(error.to_string())
}

fn failed(error: h2::Error) -> Failure {
    if error.is_io() || error.is_go_away() { broken(error) } else { Failure::Call(error.to_string()) }
}
