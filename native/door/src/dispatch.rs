//! Which room answers a call. No call is answered before its caller is known, but for health; and what Python answers is
//! refused here when its caller lacks the right.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response, header};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Code, Status};

use crate::access::Caller;
use crate::bridge::{Bridged, Kind, Peer};
use crate::budget::Metered;
use crate::bytestream;
use crate::codec::{Raw, decode, frame};
use crate::credentials::refuse;
use crate::execution::{EXECUTE, Execute};
use crate::grpc::{Answer, Messages, respond};
use crate::listener::Origin;
use crate::server::Inner;
use crate::services::{self, Method};

/// Responses of HTTP that need no room of their own.
const SMALL_BYTES: u64 = 64 << 10;
const HEALTH: &str = "/grpc.health.v1.Health/";

impl Inner {
    pub(crate) async fn answer(self: Arc<Self>, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if grpc && request.uri().path().starts_with(HEALTH) {
            // Whoever balances load has no token.
            return self.grpc(self.access.nobody(), origin, request).await;
        }
        match self.access.caller(request.headers(), origin.certified.as_ref(), origin.strict) {
            Err(refusal) if grpc => refuse(refusal, true),
            Err(refusal) => self.http.refuse(request, refuse(refusal, false)).await,
            Ok(caller) if grpc => self.grpc(caller, origin, request).await,
            Ok(caller) => self.http(&caller, origin, request).await,
        }
    }

    async fn http(&self, caller: &Caller, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
        let response = self.http.answer(caller, request).await;
        let small = response.body().size_hint().upper().is_some_and(|bytes| bytes <= SMALL_BYTES);
        if small { response } else { response.map(|body| Body::new(Metered::new(body, &origin.line))) }
    }

    async fn grpc(&self, caller: Caller, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
        let line = &origin.line;
        let messages = |request| Messages::new(request, self.message_size_bytes_max, line);
        if let Some(method) = Method::of(request.uri().path()) {
            return respond(self.unary(&caller, method, messages(request)).await, line);
        }
        let stream = match request.uri().path() {
            "/google.bytestream.ByteStream/Write" => Stream::Write,
            "/google.bytestream.ByteStream/Read" => Stream::Read,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree" => Stream::GetTree,
            "/grpc.health.v1.Health/Watch" => Stream::Watch,
            _ => return self.beyond(caller, origin, request).await,
        };
        respond(self.stream(&caller, stream, messages(request)).await, line)
    }

    async fn unary(&self, caller: &Caller, method: Method, messages: Messages) -> Result<Answer, Status> {
        let body = messages.only().await?;
        if method == Method::UpdateActionResult {
            return self.services.update_action_result(caller, body).await;
        }
        let services = &self.services;
        let answer = match &services.tiers {
            None => services.answer_here(caller, method, body).await?,
            Some(tiers) => {
                let here = services.answer_here(caller, method, body.clone()).await;
                services.answer_behind(tiers, caller, method, body, here).await?
            }
        };
        Ok(Answer::One(Some(answer)))
    }

    async fn stream(&self, caller: &Caller, stream: Stream, messages: Messages) -> Result<Answer, Status> {
        if stream == Stream::Write {
            let done = bytestream::write(&self.services, caller, messages).await;
            return done.map(|message| Answer::One(Some(message)));
        }
        let body = messages.only().await?;
        match stream {
            Stream::GetTree => bytestream::get_tree(&self.services, caller, body).await,
            Stream::Watch => watch_health(body),
            _ => bytestream::read(&self.services, caller, body).await,
        }
    }

    /// What Python answers.
    async fn beyond(&self, caller: Caller, origin: &Origin, mut request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let Some((kind, method)) = self.hub.method(&path) else {
            return Status::unimplemented(format!("{} is not offered here", path.trim_start_matches('/'))).into_http();
        };
        if let Err(status) = caller.check_call(&path) {
            return status.into_http();
        }
        request.extensions_mut().insert(Peer(origin.peer.to_string().into()));
        request.extensions_mut().insert(caller.clone());
        let request = match kind {
            Kind::Bidi => request.map(Body::new),
            Kind::Unary | Kind::ServerStream => {
                let (parts, body) = request.into_parts();
                let messages = Messages::new(Request::new(body), self.message_size_bytes_max, &origin.line);
                match messages.only().await {
                    Ok(message) => Request::from_parts(parts, Body::new(Full::new(frame(message)))),
                    Err(status) => return status.into_http(),
                }
            }
        };
        let mut grpc =
            Grpc::new(Raw).max_decoding_message_size(self.message_size_bytes_max).max_encoding_message_size(usize::MAX);
        let bridged = Bridged { hub: Arc::clone(&self.hub), method };
        let mut response = match kind {
            Kind::ServerStream if path == EXECUTE => {
                let services = Arc::clone(&self.services);
                grpc.server_streaming(Execute { services, caller, beyond: bridged }, request).await
            }
            Kind::Unary => grpc.unary(bridged, request).await,
            Kind::ServerStream => grpc.server_streaming(bridged, request).await,
            Kind::Bidi => grpc.streaming(bridged, request).await,
        };
        say_too_large(response.headers_mut());
        response
    }
}

/// Calls that end here and are more than a message each way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Write,
    Read,
    GetTree,
    Watch,
}

/// The health now, and nothing more until the connection ends: a door that answers is serving.
fn watch_health(body: Bytes) -> Result<Answer, Status> {
    use buildnet_formats::wire::grpc::health::v1::HealthCheckRequest;
    let first = services::health_of(&decode::<HealthCheckRequest>(body)?.service)?;
    let messages = stream::once(std::future::ready(Ok(first))).chain(stream::pending());
    Ok(Answer::Many(messages.boxed()))
}

/// tonic says OUT_OF_RANGE of a message over the limit, where gRPC's own servers say RESOURCE_EXHAUSTED.
fn say_too_large(headers: &mut HeaderMap) {
    let out_of_range = headers.get(Status::GRPC_STATUS).is_some_and(|v| v == "11");
    let too_large =
        headers.get(Status::GRPC_MESSAGE).is_some_and(|v| v.as_bytes().windows(9).any(|w| w == b"too%20lar"));
    if out_of_range && too_large {
        headers.insert(Status::GRPC_STATUS, header::HeaderValue::from(Code::ResourceExhausted as i32));
    }
}
