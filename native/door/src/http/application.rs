//! Requests for no cache: handed to Python's application once the caller's right is known and the body is here, whole and
//! small. The answer's head is checked before it leaves; nothing else of it is read.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tonic::body::Body;
use tonic::{Code, Status};

use super::HttpCache;
use super::inbound::Inbound;
use super::refusal::Refusal;
use crate::access::Caller;
use crate::hub::Hub;
use crate::listener::Origin;
use crate::web::{WebHead, WebRequest, Windowed, is_of_connection, shown, version_of};

/// Exchanges at once; streams of events last.
pub(super) const EXCHANGES_MAX: usize = 1024;
const BODY_BYTES_MAX: usize = 1 << 20;

/// Whether the application is asked by such requests. What writes to a cache and what WebDAV adds is refused here.
pub(super) fn is_asked(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::POST)
}

impl HttpCache {
    /// # Errors
    /// 403, 413, 408; 503 when too many exchanges are open or the server is stopping; 500 when the application failed.
    pub(super) async fn application(
        &self,
        hub: &Arc<Hub>,
        caller: &Caller,
        origin: &Origin,
        parts: &Parts,
        path: String,
        inbound: &mut Inbound,
    ) -> Result<Response<Body>, Refusal> {
        caller.check_page(&parts.method, &path)?;
        let Ok(permit) = Arc::clone(&self.exchanges).try_acquire_owned() else {
            let message = format!("{EXCHANGES_MAX} requests are being answered already; close some pages or try again");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message));
        };
        let body = inbound.whole(BODY_BYTES_MAX).await?;
        let mut headers = shown(&parts.headers);
        if !parts.headers.contains_key(header::HOST)
            && let Some(authority) = parts.uri.authority()
        {
            // HTTP/2 says it elsewhere (RFC 9113 section 8.3.1).
            headers.push((Bytes::from_static(b"host"), Bytes::copy_from_slice(authority.as_str().as_bytes())));
        }
        let request = WebRequest {
            method: parts.method.as_str().to_owned(),
            path,
            query: parts.uri.query().unwrap_or_default().to_owned(),
            version: version_of(parts.version),
            scheme: if origin.secure { "https" } else { "http" },
            headers,
            body,
            caller: caller.facts(),
            peer: origin.peer.to_string(),
        };
        let (head, replies) = hub.ask(request).await.map_err(refused)?;
        let WebHead { status, headers } = head;
        let body = if parts.method == Method::HEAD {
            Body::empty()
        } else {
            let pieces = replies.map(move |piece| {
                // The place among the open exchanges is given back with the body.
                let _held = &permit;
                piece.map(|piece| Frame::data(piece.joined()))
            });
            Body::new(StreamBody::new(pieces))
        };
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(status).map_err(|_| broken("a status", &status.to_string()))?;
        *response.headers_mut() = checked(&headers)?;
        response.extensions_mut().insert(Windowed);
        Ok(response)
    }
}

/// The application's headers, but for those that are the connection's.
fn checked(pairs: &[(Bytes, Bytes)]) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::with_capacity(pairs.len());
    for (name, value) in pairs {
        let shown = String::from_utf8_lossy(name);
        let name = HeaderName::from_bytes(name).map_err(|_| broken("a header", &shown))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| broken("a header", &shown))?;
        if !is_of_connection(&name) {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

fn broken(what: &str, shown: &str) -> Refusal {
    let message = format!("the application answered with {what} that cannot be sent: {shown:?}");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
}

fn refused(status: Status) -> Refusal {
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted | Code::Cancelled => {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", status.message())
        }
        _ => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", status.message()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_cannot_be_sent_are_ours_to_answer_for() {
        let pair = |name: &'static str, value: &'static str| (name.as_bytes().into(), value.as_bytes().into());
        for bad in [pair("a b", "x"), pair("a", "x\r\ny: z"), pair("", "x")] {
            assert_eq!(checked(&[bad]).unwrap_err().status, StatusCode::INTERNAL_SERVER_ERROR);
        }
        let good = checked(&[pair("Vary", "a"), pair("vary", "b"), pair("connection", "close")]).unwrap();
        assert_eq!(good.get_all("vary").iter().count(), 2);
        assert!(!good.contains_key("connection"));
    }
}
