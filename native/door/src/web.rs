//! An HTTP exchange with Python's application, as it crosses the hub: a request that is whole, an answer that comes in
//! pieces, each only when there is room for it. Credentials and cookies end here.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Version, header};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::access::CALLER_PREFIX;
use crate::bridge::Replies;
use crate::hub::{Event, Hub, MetadataValue, Waiting};

/// A request that is for no cache.
pub struct WebRequest {
    /// In upper case.
    pub method: String,
    /// Decoded, without slashes to spare.
    pub path: String,
    /// What follows the question mark, as it was sent.
    pub query: String,
    /// `1.0`, `1.1` or `2`.
    pub version: &'static str,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Names in lower case; none that concern one connection, and no credentials.
    pub headers: Vec<(Bytes, Bytes)>,
    /// All of it.
    pub body: Bytes,
    /// What is known of the caller.
    pub caller: Vec<(String, MetadataValue)>,
    /// Address of the caller.
    pub peer: String,
}

/// How an answer begins.
pub struct WebHead {
    /// The status.
    pub status: u16,
    /// As the application wrote them.
    pub headers: Vec<(Bytes, Bytes)>,
}

/// Marks an answer of which no more than a window is held, so that it needs no room of its own.
#[derive(Clone, Copy)]
pub(crate) struct Windowed;

/// Headers of one connection (RFC 9110 section 7.6.1).
pub(crate) fn is_of_connection(name: &HeaderName) -> bool {
    [header::CONNECTION, header::TRANSFER_ENCODING, header::TE, header::UPGRADE, header::TRAILER].contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// The headers that Python is shown.
pub(crate) fn shown(headers: &HeaderMap) -> Vec<(Bytes, Bytes)> {
    let ends_here = |name: &HeaderName| {
        is_of_connection(name)
            || [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE].contains(name)
            || name.as_str().starts_with(CALLER_PREFIX)
    };
    let shown = headers.iter().filter(|(name, _)| !ends_here(name));
    shown.map(|(name, value)| (copy(name.as_str().as_bytes()), copy(value.as_bytes()))).collect()
}

fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

pub(crate) fn version_of(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

impl Hub {
    /// Ask Python's application; returns how the answer begins, and the rest of it. When the rest is dropped, Python is told
    /// that its caller has gone.
    ///
    /// # Errors
    /// The application failed before it answered, or too many calls are open.
    pub(crate) async fn ask(self: &Arc<Self>, request: WebRequest) -> Result<(WebHead, Replies), Status> {
        let (head, begun) = oneshot::channel();
        let (body, inbox) = mpsc::unbounded_channel();
        let guard = self.open(Waiting::Web { head: Some(head), body })?;
        self.push(Event::Request { id: guard.id, request: Box::new(request) });
        let replies = Replies::new(inbox, guard);
        // An end without a beginning: the application returned and had not answered.
        let begun = begun.await.unwrap_or_else(|_| Err(Status::internal("the request was left unanswered")))?;
        Ok((begun, replies))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{Op, WINDOW_BYTES};
    use futures_util::StreamExt;

    fn request() -> WebRequest {
        WebRequest {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            query: String::new(),
            version: "1.1",
            scheme: "http",
            headers: Vec::new(),
            body: Bytes::new(),
            caller: Vec::new(),
            peer: String::new(),
        }
    }

    fn hub() -> Arc<Hub> {
        Arc::new(Hub::new(Vec::new()).unwrap())
    }

    fn asked(hub: &Hub) -> u64 {
        match hub.drain().as_slice() {
            [Event::Request { id, .. }] => *id,
            events => panic!("{} events", events.len()),
        }
    }

    #[tokio::test]
    async fn an_answer_comes_in_order_and_is_credited() {
        let hub = hub();
        let asking = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move { hub.ask(request()).await }
        });
        tokio::task::yield_now().await;
        let id = asked(&hub);
        let piece = Bytes::from(vec![b'x'; WINDOW_BYTES / 2]);
        let head = WebHead { status: 200, headers: Vec::new() };
        hub.submit(vec![(id, Op::Start(head)), (id, Op::Message(piece.clone().into())), (id, Op::End)]);
        let (head, mut body) = asking.await.unwrap().ok().unwrap();
        assert_eq!(head.status, 200);
        assert_eq!(body.next().await.unwrap().unwrap().joined(), piece);
        assert!(body.next().await.is_none());
        assert!(matches!(hub.drain().as_slice(), [Event::Credit { id: credited, .. }] if *credited == id));
        drop(body);
        assert!(hub.drain().is_empty(), "an exchange that has ended is not cancelled");
    }

    #[tokio::test]
    async fn a_caller_that_leaves_is_told_and_a_failure_ends_the_exchange() {
        let hub = hub();
        for started in [false, true] {
            let asking = tokio::spawn({
                let hub = Arc::clone(&hub);
                async move { hub.ask(request()).await }
            });
            tokio::task::yield_now().await;
            let id = asked(&hub);
            if started {
                hub.submit(vec![(id, Op::Start(WebHead { status: 200, headers: Vec::new() }))]);
                let (_, mut body) = asking.await.unwrap().ok().unwrap();
                hub.submit(vec![(id, Op::Message(Bytes::from_static(b"x").into()))]);
                assert!(body.next().await.unwrap().is_ok());
                drop(body);
                assert!(matches!(hub.drain().as_slice(), [Event::Cancel { id: gone }] if *gone == id));
            } else {
                hub.submit(vec![(id, Op::Fail(Status::unavailable("stopping")))]);
                assert!(asking.await.unwrap().is_err());
                assert!(hub.drain().is_empty());
            }
        }
        assert_eq!(hub.counts().1, 0);
    }

    #[test]
    fn credentials_and_what_concerns_one_connection_are_not_shown() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
            ("connection", "close"),
            ("keep-alive", "1"),
            ("buildnet-caller-subject", "root"),
            ("accept", "text/html"),
        ] {
            headers.insert(HeaderName::from_static(name), value.parse().unwrap());
        }
        let shown = shown(&headers);
        assert_eq!(shown, [(Bytes::from_static(b"accept"), Bytes::from_static(b"text/html"))]);
    }
}
