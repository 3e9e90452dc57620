//! Which room answers a call. No call is answered before its caller is known, but for health; and what Python answers is
//! refused here when its caller lacks the right.

use std::sync::Arc;

use buildnet_tiers::via;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Request, Response, header};
use http_body::Body as _;
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use crate::access::Caller;
use crate::bridge::{self, Bridged, Peer};
use crate::budget::{Line, Metered};
use crate::bytestream;
use crate::codec::{decode, frame};
use crate::credentials::refuse;
use crate::describe;
use crate::execution::{EXECUTE, execute};
use crate::grpc::{Answer, Messages, respond};
use crate::hub::Kind;
use crate::listener::Origin;
use crate::observe::Record;
use crate::pages::{self, Seen};
use crate::process::Process;
use crate::server::Inner;
use crate::services::{self, Method};
use crate::sorts::Sort;
use crate::transport::OPEN;
use crate::watched::{self, Received};
use crate::web::Windowed;

/// Responses of HTTP that need no room of their own.
const SMALL_BYTES: u64 = 64 << 10;
const HEALTH: &str = "/grpc.health.v1.Health/";

impl Inner {
    pub(crate) async fn answer(self: Arc<Self>, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let path = request.uri().path();
        if grpc && path == OPEN {
            return self.open(origin, request);
        }
        // Whoever balances load has no token; whoever looks from this machine needs none.
        let open = if grpc { path.starts_with(HEALTH) } else { pages::is_page(path) && pages::is_here(origin.peer) };
        let known = if open {
            Ok(self.access.nobody())
        } else {
            self.access.caller(request.headers(), origin.certified.as_ref(), origin.strict)
        };
        // The rare ways are boxed, here and below: the state of a call is moved about, and most calls need little of it.
        match known {
            Ok(caller) if grpc => self.grpc(caller, origin, request).await,
            Ok(caller) => Box::pin(self.http(&caller, origin, request)).await,
            Err(refusal) if grpc => refuse(refusal, true),
            Err(refusal) => Box::pin(self.http.refuse(request, refuse(refusal, false))).await,
        }
    }

    async fn http(&self, caller: &Caller, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
        let sort = Sort::of_http(request.method(), request.uri().path());
        let record = self.observe.begin(sort, caller, origin.peer, &request);
        let received = Arc::<Received>::default();
        let head = request.method() == http::Method::HEAD;
        let response = if pages::is_page(request.uri().path()) {
            pages::answer(caller, origin.peer, &request, || self.seen())
        } else {
            self.http.answer(caller, origin, request, &received).await
        };
        // What Python sends is bounded by its window, and a stream of events must not hold room that it does not use.
        let small = response.extensions().get::<Windowed>().is_some()
            || response.body().size_hint().upper().is_some_and(|bytes| bytes <= SMALL_BYTES);
        let metered = if small { response } else { response.map(|body| Body::new(Metered::new(body, &origin.line))) };
        watched::http(record, received, head, metered)
    }

    fn seen(&self) -> Seen {
        Seen {
            observe: Arc::clone(&self.observe),
            store: self.services.store.statistics(),
            uploads_waiting: self.services.uploads.waiting(),
            execution: self.services.execution,
            bridge: self.hub.counts(),
            process: Process::now(),
            reported: self.observe.reported(),
            statistics: self.observe.statistics(),
        }
    }

    async fn grpc(&self, caller: Caller, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
        let servers = match request.headers().get(via::HEADER) {
            Some(servers) if self.services.tiers.is_some() => servers.to_str().unwrap_or_default().to_owned(),
            _ => return self.call(caller, origin, request).await,
        };
        Box::pin(via::coming_by(&servers, self.call(caller, origin, request))).await
    }

    async fn call(&self, caller: Caller, origin: &Origin, request: Request<Incoming>) -> Response<Body> {
        let line = &origin.line;
        if let Some(method) = Method::of(request.uri().path()) {
            let record = self.observe.begin(Sort::of(method), &caller, origin.peer, &request);
            let requested = match method {
                Method::UpdateActionResult => request.headers().get(describe::METADATA).cloned(),
                _ => None,
            };
            let messages = Messages::new(request, self.message_size_bytes_max, line, &record);
            let done = self.unary(&caller, method, requested, messages, line).await;
            return respond(watched::answer(record, done), line);
        }
        let sort = match request.uri().path() {
            "/google.bytestream.ByteStream/Write" => Sort::WRITE,
            "/google.bytestream.ByteStream/Read" => Sort::READ,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree" => Sort::GET_TREE,
            "/grpc.health.v1.Health/Watch" => Sort::WATCH,
            _ => return Box::pin(self.beyond(caller, origin, request)).await,
        };
        let record = self.observe.begin(sort, &caller, origin.peer, &request);
        let messages = Messages::new(request, self.message_size_bytes_max, line, &record);
        let done = self.stream(&caller, sort, messages).await;
        respond(watched::answer(record, done), line)
    }

    async fn unary(
        &self,
        caller: &Caller,
        method: Method,
        requested: Option<HeaderValue>,
        messages: Messages<'_>,
        line: &Line,
    ) -> Result<Answer, Status> {
        let body = messages.only().await?;
        if method == Method::UpdateActionResult {
            return Box::pin(self.services.update_action_result(caller, requested, body)).await;
        }
        let (services, many) = (&self.services, line.answers_many());
        let answer = match &services.tiers {
            None => services.answer_here(caller, method, body, many).await?,
            Some(tiers) => {
                let here = services.answer_here(caller, method, body.clone(), many).await;
                Box::pin(services.answer_behind(tiers, caller, method, body, here)).await?
            }
        };
        Ok(Answer::One(Some(answer)))
    }

    async fn stream(&self, caller: &Caller, sort: Sort, messages: Messages<'_>) -> Result<Answer, Status> {
        if sort == Sort::WRITE {
            let done = bytestream::write(&self.services, caller, messages).await;
            return done.map(|message| Answer::One(Some(message)));
        }
        let body = messages.only().await?;
        match sort {
            Sort::READ => bytestream::read(&self.services, caller, body).await,
            Sort::GET_TREE => Box::pin(bytestream::get_tree(&self.services, caller, body)).await,
            _ => watch_health(body),
        }
    }

    /// What Python answers.
    async fn beyond(&self, caller: Caller, origin: &Origin, mut request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let known = self.hub.method(&path);
        let sort = Sort::of_python(known.map(|(_, index)| index));
        let record = self.observe.begin(sort, &caller, origin.peer, &request);
        let refuse = |mut record: Record, status: Status| {
            record.ended(status.code());
            status.into_http()
        };
        let Some((kind, method)) = known else {
            let call = path.trim_start_matches('/');
            return refuse(record, Status::unimplemented(format!("{call} is not offered here")));
        };
        if let Err(status) = caller.check_call(&path) {
            return refuse(record, status);
        }
        request.extensions_mut().insert(Peer(origin.peer.to_string().into()));
        request.extensions_mut().insert(caller.clone());
        let bridged = Bridged { hub: Arc::clone(&self.hub), method };
        if kind == Kind::Bidi {
            let (request, received) = watched::request(request);
            let replies = bridged.converse(request, self.message_size_bytes_max);
            return watched::grpc(record, received, bridge::respond(replies));
        }
        let (parts, body) = request.into_parts();
        let messages = Messages::new(Request::new(body), self.message_size_bytes_max, &origin.line, &record);
        let message = match messages.only().await {
            Ok(message) => message,
            Err(status) => return refuse(record, status),
        };
        if path == EXECUTE {
            let answered = execute(&self.services, &caller, message.clone()).await;
            if let Some(answer) = answered.transpose() {
                let answer = answer.map(|operation| Answer::One(Some(operation)));
                return respond(watched::answer(record, answer), &origin.line);
            }
        }
        let request = Request::from_parts(parts, message);
        if kind == Kind::ServerStream {
            return watched::grpc(record, Arc::default(), bridge::respond(bridged.follow(request)));
        }
        let answer = bridged.ask(request).await.map(|reply| Answer::One(Some(frame(reply))));
        respond(watched::answer(record, answer), &origin.line)
    }
}

/// The health now, and nothing more until the connection ends: a door that answers is serving.
fn watch_health(body: Bytes) -> Result<Answer, Status> {
    use buildnet_formats::wire::grpc::health::v1::HealthCheckRequest;
    let first = services::health_of(&decode::<HealthCheckRequest>(body)?.service)?;
    let messages = stream::once(std::future::ready(Ok(first))).chain(stream::pending());
    Ok(Answer::Many(messages.boxed()))
}
