//! `/metrics` and `/status`: what the door counted, for a machine and for a person. Callers from this machine need no
//! token; nothing here changes anything, and nothing here names a blob, a token or an instance.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Value, json};
use tonic::body::Body;

use crate::access::{Caller, Right};
use crate::metrics;
use crate::observe::{Observe, Stats};
use crate::process::Process;
use crate::recent::percentile;

const PAGE: &str = include_str!("status.html");
/// Where the page finds its first numbers.
const FIRST: &str = "/*first*/null";
/// The page runs its own script and asks only this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; frame-ancestors 'none'; base-uri 'none'";

/// Everything that a page shows, read once.
pub(crate) struct Seen {
    pub(crate) observe: Arc<Observe>,
    pub(crate) store: Vec<(&'static str, u64)>,
    pub(crate) uploads_waiting: u64,
    pub(crate) execution: bool,
    /// Calls handed to Python, those open, and batches.
    pub(crate) bridge: (u64, u64, u64),
    pub(crate) process: Process,
    pub(crate) reported: BTreeMap<String, u64>,
    pub(crate) statistics: Vec<(String, Vec<(&'static str, u64)>)>,
}

/// Whether a path is one of these pages.
pub(crate) fn is_page(path: &str) -> bool {
    matches!(path, "/metrics" | "/status")
}

/// Whether a caller is on this machine, and so may look without credentials.
pub(crate) fn is_here(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

/// Answer a page; `see` is called once it is known that the caller may look.
pub(crate) fn answer<B>(
    caller: &Caller,
    peer: SocketAddr,
    request: &Request<B>,
    see: impl FnOnce() -> Seen,
) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
    }
    if !is_here(peer)
        && let Err(status) = caller.check(Right::Read, "")
    {
        let code = match status.code() {
            tonic::Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            _ => StatusCode::FORBIDDEN,
        };
        return plain(code, &format!("{}\n", status.message()));
    }
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    if request.uri().path() == "/metrics" {
        return metrics_page(see(), accept.contains("openmetrics"));
    }
    let status = status_of(&see());
    if accept.contains("text/html") {
        // A `<` in a text could end the script that it stands in.
        let first = status.to_string().replace('<', "\\u003c");
        let mut page = respond(StatusCode::OK, "text/html; charset=utf-8", PAGE.replace(FIRST, &first).into());
        page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        return page;
    }
    respond(StatusCode::OK, "application/json", format!("{status}\n").into())
}

fn metrics_page(seen: Seen, openmetrics: bool) -> Response<Body> {
    let kind = if openmetrics {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    };
    match metrics::text(Arc::new(seen), openmetrics) {
        Ok(text) => respond(StatusCode::OK, kind, text.into()),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n"),
    }
}

/// The stable form (docs/reference/metrics.md); fields are added, never renamed.
fn status_of(seen: &Seen) -> Value {
    let observe = &seen.observe;
    let now = Instant::now();
    let methods: Vec<Value> = observe.called().map(|(place, stats)| method_of(observe, now, place, stats)).collect();
    let sum = |field: &str| methods.iter().filter_map(|method| method[field].as_u64()).sum::<u64>();
    let per_s: f64 = methods.iter().filter_map(|method| method["calls_per_s"].as_f64()).sum();
    let (hits, misses) = observe.action_cache();
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (asked, missing) = (load(&observe.digests_asked), load(&observe.digests_missing));
    let (calls, open, batches) = seen.bridge;
    let log = observe.log.as_ref().map(|log| log.counts());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "started": prost_types::Timestamp::from(observe.started).to_string(),
        "uptime_s": observe.started.elapsed().map_or(0, |since| since.as_secs()),
        "listen": observe.listen.get(),
        "durability": observe.durability,
        "execution": seen.execution,
        "connections": {
            "open": observe.connections_open.load(Ordering::Relaxed),
            "accepted": load(&observe.connections_accepted),
            "refused": load(&observe.connections_refused),
        },
        "calls": {
            "total": sum("calls"), "errors": sum("errors"), "in_flight": sum("in_flight"), "per_s": rounded(per_s),
        },
        "methods": methods,
        "action_cache": {"hits": hits, "misses": misses},
        "find_missing": {"found": asked.saturating_sub(missing), "missing": missing},
        "uploads_waiting": seen.uploads_waiting,
        "store": numbers(&seen.store),
        "statistics": seen.statistics.iter()
            .map(|(name, values)| json!({"name": name, "values": numbers(values)})).collect::<Vec<_>>(),
        "controller": seen.reported,
        "bridge": {"calls": calls, "calls_open": open, "batches": batches},
        "process": {
            "cpu_s": rounded(seen.process.cpu_s),
            "resident_bytes": seen.process.resident_bytes,
            "open_fds": seen.process.open_fds,
            "max_fds": seen.process.max_fds,
        },
        "access_log": log.map(|(lines, dropped)| json!({"lines": lines, "dropped": dropped})),
    })
}

fn method_of(observe: &Observe, now: Instant, place: usize, stats: &Stats) -> Value {
    let buckets = stats.buckets();
    let rate = observe.recent.rate(now, place, &buckets);
    let codes: serde_json::Map<String, Value> =
        stats.codes().map(|(code, count)| (code.to_owned(), json!(count))).collect();
    json!({
        "method": &*stats.name,
        "calls": codes.values().filter_map(Value::as_u64).sum::<u64>(),
        "errors": observe.errors(place),
        "in_flight": stats.in_flight.load(Ordering::Relaxed).max(0),
        "codes": codes,
        "bytes_in": stats.received_bytes.load(Ordering::Relaxed),
        "bytes_out": stats.sent_bytes.load(Ordering::Relaxed),
        "p50_ms": percentile(&buckets, 0.5),
        "p99_ms": percentile(&buckets, 0.99),
        "calls_per_s": rounded(rate.calls_per_s),
        "recent_p50_ms": rate.p50_ms,
        "recent_p99_ms": rate.p99_ms,
    })
}

fn numbers(values: &[(&'static str, u64)]) -> Value {
    values.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect::<serde_json::Map<_, _>>().into()
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::ObserveOptions;

    const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    fn seen() -> Seen {
        let observe = Arc::new(Observe::new([], &ObserveOptions::default()).unwrap());
        observe.watch("redis".to_owned(), Box::new(|| vec![("hits", 7)]));
        observe.report(BTreeMap::from([("ledger_entries".to_owned(), 3)])).unwrap();
        assert!(observe.report(BTreeMap::from([("no name".to_owned(), 3)])).is_err());
        Seen {
            store: vec![("used_bytes", 5), ("unheard_of", 6), ("size_bytes_max", u64::MAX)],
            uploads_waiting: 1,
            execution: true,
            bridge: (1, 2, 3),
            process: Process::now(),
            reported: observe.reported(),
            statistics: observe.statistics(),
            observe,
        }
    }

    #[test]
    fn what_stands_behind_the_store_is_shown_by_its_name() {
        let status = status_of(&seen());
        assert_eq!(status["statistics"], json!([{"name": "redis", "values": {"hits": 7}}]));
        assert_eq!(status["controller"]["ledger_entries"], 3);
        for openmetrics in [true, false] {
            let text = metrics::text(Arc::new(seen()), openmetrics).unwrap();
            for line in [
                "buildnet_statistics{source=\"redis\",name=\"hits\"} 7\n",
                "buildnet_ledger_entries 3\n",
                "buildnet_store_used_bytes 5\n",
                "buildnet_store_unheard_of 6\n",
            ] {
                assert!(text.contains(line), "{line} is not in {text}");
            }
            assert!(!text.contains("buildnet_store_limit_bytes"));
        }
    }

    #[tokio::test]
    async fn a_page_for_a_browser_holds_its_first_numbers_and_its_policy() {
        use http_body_util::BodyExt;
        let request = |accept: &str| Request::get("/status").header(header::ACCEPT, accept).body(()).unwrap();
        let page = answer(&Caller::default(), HERE, &request("text/html,*/*"), seen);
        assert_eq!(page.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
        let text = page.into_body().collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&text).unwrap();
        assert!(text.contains("const first = {\"version\"") && !text.contains(FIRST));
        let json = answer(&Caller::default(), HERE, &request("application/json"), seen);
        assert_eq!(json.headers()[header::CONTENT_TYPE], "application/json");
        let post = Request::post("/metrics").body(()).unwrap();
        assert_eq!(answer(&Caller::default(), HERE, &post, seen).status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
