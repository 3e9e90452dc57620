//! Calls as OpenTelemetry spans, sent over OTLP. What is sampled and where to is said by the standard `OTEL_*` variables,
//! which the SDK reads; a caller's trace context is honoured. Off, none of this exists.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use buildnet_formats::NativeError;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span, SpanBuilder, SpanKind, Status, TracerProvider};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;

use crate::describe;
use crate::observe::{Ended, Facts};

/// What a collector says is read up to this.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// A collector that does not answer in this time is not waited for.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where spans go.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
    sends: Arc<Sends>,
}

/// Requests to the collector, and those of them that it did not take.
#[derive(Debug, Default)]
struct Sends {
    done: AtomicU64,
    failed: AtomicU64,
}

impl Traces {
    /// Begin to send; the SDK's own thread gathers spans, and their requests run on `handle`.
    ///
    /// # Errors
    /// `invalid_request` when the `OTEL_*` variables name no collector that can be reached over plain HTTP.
    pub(crate) fn start(handle: &Handle) -> Result<Self, NativeError> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let sends = Arc::<Sends>::default();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Sender { handle: handle.clone(), client, sends: Arc::clone(&sends) })
            .build()
            .map_err(|error| {
                let message = format!("traces cannot be sent: {error}; correct OTEL_EXPORTER_OTLP_ENDPOINT");
                NativeError::invalid("OTEL_EXPORTER_OTLP_ENDPOINT", message)
            })?;
        let provider = SdkTracerProvider::builder().with_resource(resource()).with_batch_exporter(exporter).build();
        let tracer = provider.tracer("buildnet");
        Ok(Self { provider, tracer, propagator: TraceContextPropagator::new(), sends })
    }

    /// Make a span of a call that ended, if its trace or the sampler wants one.
    pub(crate) fn tell(&self, call: &Ended, error: bool) {
        let facts = &call.facts;
        let parent = self.propagator.extract_with_context(&Context::new(), &Sent(facts));
        let mut span = SpanBuilder::from_name(call.method.to_string())
            .with_kind(SpanKind::Server)
            .with_start_time(facts.at)
            .start_with_context(&self.tracer, &parent);
        if !span.is_recording() {
            return;
        }
        span.set_attributes(attributes(call));
        if error {
            span.set_status(Status::error(call.code));
        }
        span.end_with_timestamp(facts.at + call.took);
    }

    /// Requests that the collector took, and those that it did not.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.sends.done.load(Ordering::Relaxed), self.sends.failed.load(Ordering::Relaxed))
    }

    /// Send what has gathered.
    pub(crate) fn close(&self) {
        // A collector that is gone is no reason to stay.
        let _ = self.provider.shutdown_with_timeout(CLOSE_TIMEOUT);
    }
}

fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let found = Resource::builder().with_attribute(version.clone()).build();
    let named = found.get(&Key::new("service.name"));
    if named.is_some_and(|name| !name.as_str().starts_with("unknown_service")) {
        return found;
    }
    Resource::builder().with_attribute(version).with_service_name("buildnet").build()
}

fn attributes(call: &Ended) -> Vec<KeyValue> {
    let facts = &call.facts;
    let mut all = Vec::with_capacity(12);
    match (&facts.path, call.method.rsplit_once('/')) {
        (None, Some((service, method))) => {
            all.push(KeyValue::new("rpc.system", "grpc"));
            all.push(KeyValue::new("rpc.service", service.to_owned()));
            all.push(KeyValue::new("rpc.method", method.to_owned()));
            all.push(KeyValue::new("rpc.grpc.status", call.code));
        }
        (path, _) => {
            all.push(KeyValue::new("url.path", path.clone().unwrap_or_default()));
            all.push(KeyValue::new("http.response.status_code", call.code));
        }
    }
    all.push(KeyValue::new("client.address", facts.peer.clone()));
    all.push(KeyValue::new("buildnet.received_bytes", call.received.cast_signed()));
    all.push(KeyValue::new("buildnet.sent_bytes", call.sent.cast_signed()));
    let about = describe::about(call);
    let metadata = facts.metadata.as_ref().and_then(describe::metadata).unwrap_or_default();
    let said = [
        ("buildnet.instance", about.instance),
        ("buildnet.digest", about.digest),
        ("enduser.id", facts.subject.clone().unwrap_or_default()),
        ("buildnet.tool", metadata.tool_details.unwrap_or_default().tool_name),
        ("buildnet.invocation_id", metadata.tool_invocation_id),
        ("buildnet.action_id", metadata.action_id),
        ("buildnet.target", metadata.target_id),
    ];
    let bounded = |text: String| text.chars().take(describe::TEXT_CHARS_MAX).collect::<String>();
    all.extend(said.into_iter().filter(|(_, text)| !text.is_empty()).map(|(k, v)| KeyValue::new(k, bounded(v))));
    all
}

/// The two headers of W3C Trace Context, as the caller sent them.
struct Sent<'a>(&'a Facts);

impl Extractor for Sent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.0.traceparent.as_ref()?.to_str().ok(),
            "tracestate" => self.0.tracestate.as_ref()?.to_str().ok(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// Sends what the SDK's thread, which has no runtime of its own, wants sent.
#[derive(Debug)]
struct Sender {
    handle: Handle,
    client: Client<HttpConnector, Full<Bytes>>,
    sends: Arc<Sends>,
}

#[async_trait::async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sending = self.client.request(request.map(Full::new));
        let answer = self.handle.spawn(async move {
            let response = tokio::time::timeout(SEND_TIMEOUT, sending).await??;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        });
        let answer = answer.await?;
        let taken = answer.as_ref().is_ok_and(|answer| answer.status().is_success());
        let counter = if taken { &self.sends.done } else { &self.sends.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        answer
    }
}
