//! What the door does, counted: each call once, also when its caller gave up, in a handful of relaxed additions. It
//! watches and never decides, and a call neither waits for a lock here nor, unless it is told somewhere, allocates.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use buildnet_formats::NativeError;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use parking_lot::Mutex;

use crate::access::Caller;
use crate::access_log::{AccessLog, LogOptions, Reason};
use crate::describe;
use crate::recent::Recent;
use crate::services::Method;
use crate::sorts::{CANCELLED, CODES, GRPC_CODES, HTTP_CODES, Sort, UNKNOWN, code_name, http_code, is_done, is_error};
use crate::traces::Traces;
use crate::usage::{Counts, Usage, Use};

/// Buckets of the latencies kept: four to each power of two microseconds, up to two minutes.
pub(crate) const BUCKETS: usize = 108;
/// Counts of one method, apart from its neighbours' cache lines.
#[repr(align(128))]
pub(crate) struct Stats {
    pub(crate) name: Arc<str>,
    codes: [AtomicU64; CODES],
    buckets: [AtomicU64; BUCKETS],
    pub(crate) sum_ns: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) in_flight: AtomicI64,
}

impl Stats {
    fn new(name: String) -> Self {
        let zeros = || AtomicU64::new(0);
        Self {
            name: name.into(),
            codes: std::array::from_fn(|_| zeros()),
            buckets: std::array::from_fn(|_| zeros()),
            sum_ns: zeros(),
            received_bytes: zeros(),
            sent_bytes: zeros(),
            in_flight: AtomicI64::new(0),
        }
    }

    /// Calls that ended with each code that occurred.
    pub(crate) fn codes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = GRPC_CODES.into_iter().chain(HTTP_CODES);
        names.zip(&self.codes).map(|(name, count)| (name, count.load(Ordering::Relaxed))).filter(|(_, n)| *n > 0)
    }

    /// Calls that ended with an error, as a method at this place has them.
    fn errors(&self, place: usize) -> u64 {
        let sort = Sort::at(place);
        let counts = self.codes.iter().map(|count| count.load(Ordering::Relaxed));
        (0u8..).zip(counts).filter(|(code, _)| is_error(sort, *code)).map(|(_, count)| count).sum()
    }

    /// Calls that ended with this code.
    pub(crate) fn ended_with(&self, code: &str) -> u64 {
        self.codes().find(|(name, _)| *name == code).map_or(0, |(_, count)| count)
    }

    pub(crate) fn buckets(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed))
    }
}

/// The bucket of a duration in microseconds: exact below four, then within a quarter of a power of two.
fn bucket(micros: u64) -> usize {
    if micros < 4 {
        return micros as usize;
    }
    let exponent = 63 - micros.leading_zeros() as usize;
    ((exponent - 1) * 4 + (micros >> (exponent - 2) & 3) as usize).min(BUCKETS - 1)
}

/// Where a bucket begins, in microseconds.
pub(crate) fn bucket_begin(at: usize) -> u64 {
    if at < 4 { at as u64 } else { (4 + at as u64 % 4) << (at / 4 - 1) }
}

/// What is watched, and whom it is told.
#[derive(Clone, Debug, Default)]
pub struct ObserveOptions {
    /// The access log, if one is kept.
    pub access_log: Option<LogOptions>,
    /// Whether calls are traced; how and where to is said by the `OTEL_*` variables.
    pub traces: bool,
    /// What an acknowledged write survives, as the status page says it.
    pub durability: String,
}

/// Numbers of something beside the door, read when they are asked for.
pub type Statistics = Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>;

/// Everything that is counted.
pub(crate) struct Observe {
    methods: Vec<Stats>,
    pub(crate) recent: Recent,
    pub(crate) started: SystemTime,
    pub(crate) durability: String,
    pub(crate) listen: OnceLock<String>,
    pub(crate) connections_open: AtomicI64,
    pub(crate) connections_accepted: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) digests_asked: AtomicU64,
    pub(crate) digests_missing: AtomicU64,
    pub(crate) execute_hits: AtomicU64,
    pub(crate) execute_misses: AtomicU64,
    pub(crate) usage: Usage,
    pub(crate) log: Option<AccessLog>,
    traces: OnceLock<Traces>,
    traced: bool,
    reported: Mutex<BTreeMap<String, u64>>,
    statistics: Mutex<Vec<(String, Statistics)>>,
}

impl Observe {
    /// Nothing counted yet; `python` are the paths of the methods that Python answers, in the order of their indices.
    pub(crate) fn new<'a>(
        python: impl IntoIterator<Item = &'a str>,
        options: &ObserveOptions,
    ) -> Result<Self, NativeError> {
        let mut methods: Vec<Stats> =
            (0..usize::from(Sort::PYTHON)).map(|place| Stats::new(Sort::at(place).name())).collect();
        methods.extend(python.into_iter().map(|path| Stats::new(path.trim_start_matches('/').to_owned())));
        Ok(Self {
            methods,
            recent: Recent::default(),
            started: SystemTime::now(),
            durability: options.durability.clone(),
            listen: OnceLock::new(),
            connections_open: AtomicI64::new(0),
            connections_accepted: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
            digests_asked: AtomicU64::new(0),
            digests_missing: AtomicU64::new(0),
            execute_hits: AtomicU64::new(0),
            execute_misses: AtomicU64::new(0),
            usage: Usage::default(),
            log: options.access_log.as_ref().map(AccessLog::start).transpose()?,
            traces: OnceLock::new(),
            traced: options.traces,
            reported: Mutex::default(),
            statistics: Mutex::default(),
        })
    }

    /// Begin to trace, if that is wanted; spans are sent from the threads of `handle`.
    pub(crate) fn start_traces(&self, handle: &tokio::runtime::Handle) -> Result<(), NativeError> {
        if self.traced {
            let traces = Traces::start(handle)?;
            self.traces.get_or_init(|| traces);
        }
        Ok(())
    }

    /// Requests to the collector of traces, and those that failed; none when nothing is traced.
    pub(crate) fn trace_sends(&self) -> Option<(u64, u64)> {
        self.traces.get().map(Traces::counts)
    }

    /// Write out what is told elsewhere; blocks until that is done or some seconds have passed.
    pub(crate) fn close(&self) {
        if let Some(traces) = self.traces.get() {
            traces.close();
        }
        if let Some(log) = &self.log {
            log.close();
        }
    }

    /// Methods that were called, at least once each.
    pub(crate) fn called(&self) -> impl Iterator<Item = (usize, &Stats)> {
        let used = |stats: &Stats| stats.in_flight.load(Ordering::Relaxed) > 0 || stats.codes().next().is_some();
        self.methods.iter().enumerate().filter(move |(_, stats)| used(stats))
    }

    /// Calls of the method at this place that ended with an error.
    pub(crate) fn errors(&self, place: usize) -> u64 {
        self.methods[place].errors(place)
    }

    /// Keep what was counted until now, for the rates of the next seconds.
    pub(crate) fn keep(&self) {
        let counts = self.called().map(|(place, stats)| (place, Box::new(stats.buckets()))).collect();
        self.recent.keep(Instant::now(), counts);
    }

    pub(crate) fn stats(&self, sort: Sort) -> &Stats {
        &self.methods[sort.place()]
    }

    /// Hits and misses of the action cache, whoever asked.
    pub(crate) fn action_cache(&self) -> (u64, u64) {
        let asked = self.stats(Sort::of(Method::GetActionResult));
        let http = self.stats(Sort::of_http(&http::Method::GET, "/ac/"));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            asked.ended_with("OK") + http.ended_with("200") + count(&self.execute_hits),
            asked.ended_with("NOT_FOUND") + http.ended_with("404") + count(&self.execute_misses),
        )
    }

    /// Numbers that Python knows, by names of `[a-z0-9_]`; a later call adds and replaces.
    pub(crate) fn report(&self, values: BTreeMap<String, u64>) -> Result<(), NativeError> {
        let plain = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if let Some(name) = values.keys().find(|name| name.is_empty() || !plain(name)) {
            return Err(NativeError::invalid("values", format!("{name:?} cannot name a metric; use [a-z0-9_]")));
        }
        self.reported.lock().extend(values);
        Ok(())
    }

    pub(crate) fn reported(&self) -> BTreeMap<String, u64> {
        self.reported.lock().clone()
    }

    /// Show the numbers of something else, a tier for example, under its name.
    pub(crate) fn watch(&self, name: String, statistics: Statistics) {
        self.statistics.lock().push((name, statistics));
    }

    pub(crate) fn statistics(&self) -> Vec<(String, Vec<(&'static str, u64)>)> {
        self.statistics.lock().iter().map(|(name, read)| (name.clone(), read())).collect()
    }

    /// A call begins.
    pub(crate) fn begin<B>(
        self: &Arc<Self>,
        sort: Sort,
        caller: &Caller,
        peer: SocketAddr,
        request: &Request<B>,
    ) -> Record {
        self.stats(sort).in_flight.fetch_add(1, Ordering::Relaxed);
        let told = self.log.is_some() || self.traced;
        Record {
            sort,
            began: Instant::now(),
            received: AtomicU64::new(0),
            sent: 0,
            code: if sort.is_http() { http_code(499) } else { CANCELLED },
            facts: told.then(|| Facts::of(caller.subject(), peer, request)).map(Box::new),
            used: sort.uses().map(|what| (what, self.usage_of(caller))),
            observe: Arc::clone(self),
        }
    }

    /// Where a caller's use of the cache is counted.
    pub(crate) fn usage_of(&self, caller: &Caller) -> Arc<Counts> {
        self.usage.of(caller.subject().unwrap_or_default(), caller.works())
    }

    fn tell(&self, call: Ended, error: bool) {
        if let Some(traces) = self.traces.get() {
            traces.tell(&call, error);
        }
        if let Some(log) = &self.log
            && let Some(reason) = log.wants(call.took, error)
        {
            log.tell(call, reason);
        }
    }
}

/// What a told call is told with. Nothing is decoded before it is known that the call is told.
pub(crate) struct Facts {
    pub(crate) at: SystemTime,
    pub(crate) peer: String,
    /// Who the token names; never the token.
    pub(crate) subject: Option<String>,
    /// Of an HTTP call.
    pub(crate) path: Option<String>,
    /// RequestMetadata as it was sent (REAPI, `build.bazel.remote.execution.v2.requestmetadata-bin`).
    pub(crate) metadata: Option<HeaderValue>,
    pub(crate) traceparent: Option<HeaderValue>,
    pub(crate) tracestate: Option<HeaderValue>,
    /// The only message of the call, or the first.
    pub(crate) message: OnceLock<Bytes>,
}

impl Facts {
    fn of<B>(subject: Option<&str>, peer: SocketAddr, request: &Request<B>) -> Self {
        let header = |headers: &HeaderMap, name: &str| headers.get(name).cloned();
        let headers = request.headers();
        let grpc =
            headers.get(http::header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
        Self {
            at: SystemTime::now(),
            peer: peer.to_string(),
            subject: subject.map(str::to_owned),
            path: (!grpc).then(|| request.uri().path().to_owned()),
            metadata: header(headers, describe::METADATA),
            traceparent: header(headers, "traceparent"),
            tracestate: header(headers, "tracestate"),
            message: OnceLock::new(),
        }
    }
}

/// A call that is told.
pub(crate) struct Ended {
    pub(crate) sort: Sort,
    pub(crate) method: Arc<str>,
    pub(crate) code: &'static str,
    pub(crate) took: Duration,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) facts: Facts,
}

/// One call, counted when this is dropped; dropped before an end was said, as one that its caller gave up.
pub(crate) struct Record {
    observe: Arc<Observe>,
    sort: Sort,
    began: Instant,
    /// Bytes of the request, gRPC's framing included.
    pub(crate) received: AtomicU64,
    sent: u64,
    code: u8,
    facts: Option<Box<Facts>>,
    /// What the call does with the cache, and where its caller is counted.
    used: Option<(Use, Arc<Counts>)>,
}

impl Record {
    /// The message from which the call's instance and digest can be told.
    pub(crate) fn saw(&self, message: impl FnOnce() -> Bytes) {
        if let Some(facts) = &self.facts {
            facts.message.get_or_init(message);
        }
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    pub(crate) fn ended(&mut self, code: tonic::Code) {
        self.code = u8::try_from(code as i32).unwrap_or(UNKNOWN);
    }

    pub(crate) fn ended_http(&mut self, status: http::StatusCode) {
        self.code = http_code(status.as_u16());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let received = *self.received.get_mut();
        let stats = self.observe.stats(self.sort);
        stats.codes[usize::from(self.code)].fetch_add(1, Ordering::Relaxed);
        stats.buckets[bucket(took.as_micros() as u64)].fetch_add(1, Ordering::Relaxed);
        stats.sum_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        stats.received_bytes.fetch_add(received, Ordering::Relaxed);
        stats.sent_bytes.fetch_add(self.sent, Ordering::Relaxed);
        stats.in_flight.fetch_sub(1, Ordering::Relaxed);
        let error = is_error(self.sort, self.code);
        if let Some((what, counts)) = &self.used {
            counts.ended(*what, is_done(self.code), received, self.sent);
        }
        if let Some(facts) = self.facts.take() {
            let (method, code) = (Arc::clone(&stats.name), code_name(self.code));
            let (sort, sent) = (self.sort, self.sent);
            self.observe.tell(Ended { sort, method, code, took, received, sent, facts: *facts }, error);
        }
    }
}

/// Why a call is told, for the log.
pub(crate) fn reason(error: bool, slow: bool, sampled: bool) -> Option<Reason> {
    match (error, slow, sampled) {
        (true, ..) => Some(Reason::Error),
        (_, true, _) => Some(Reason::Slow),
        (.., true) => Some(Reason::Sample),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    pub(crate) fn ended(path: &str) -> Ended {
        let request = Request::builder().body(()).unwrap();
        let mut facts = Facts::of(None, HERE, &request);
        facts.path = Some(path.to_owned());
        let took = Duration::from_millis(1);
        Ended { sort: Sort::READ, method: "m".into(), code: "OK", took, received: 1, sent: 2, facts }
    }

    fn observe() -> Arc<Observe> {
        Arc::new(Observe::new(["/a.B/C"], &ObserveOptions::default()).unwrap())
    }

    #[test]
    fn pythons_methods_follow_ours() {
        let observe = observe();
        assert_eq!(&*observe.stats(Sort::of_python(Some(0))).name, "a.B/C");
        assert_eq!(&*observe.stats(Sort::WATCH).name, Sort::WATCH.name());
    }

    #[test]
    fn a_call_is_counted_once_however_it_ends() {
        let observe = observe();
        let request = Request::builder().body(()).unwrap();
        let nobody = Caller::default();
        let begin = |sort| observe.begin(sort, &nobody, HERE, &request);
        let mut good = begin(Sort::READ);
        good.received.fetch_add(3, Ordering::Relaxed);
        good.sent(5);
        good.ended(tonic::Code::Ok);
        assert_eq!(observe.stats(Sort::READ).in_flight.load(Ordering::Relaxed), 1);
        drop(good);
        drop(begin(Sort::READ));
        let mut page = begin(Sort::of_http(&http::Method::GET, "/ac/x"));
        page.ended_http(http::StatusCode::NOT_FOUND);
        assert!(!is_error(page.sort, page.code));
        drop(page);
        let stats = observe.stats(Sort::READ);
        assert_eq!(stats.codes().collect::<Vec<_>>(), [("OK", 1), ("CANCELLED", 1)]);
        assert_eq!(stats.buckets().iter().sum::<u64>(), 2);
        assert_eq!(stats.received_bytes.load(Ordering::Relaxed), 3);
        assert_eq!(stats.sent_bytes.load(Ordering::Relaxed), 5);
        assert_eq!(stats.in_flight.load(Ordering::Relaxed), 0);
        assert_eq!(observe.called().count(), 2);
        assert_eq!(observe.action_cache(), (0, 1));
    }

    #[test]
    fn counting_costs_little_even_unoptimised() {
        let observe = observe();
        let request = Request::builder().body(()).unwrap();
        let (calls, nobody) = (100_000, Caller::default());
        let began = Instant::now();
        for _ in 0..calls {
            let mut record = observe.begin(Sort::READ, &nobody, HERE, &request);
            record.ended(tonic::Code::Ok);
        }
        let each = began.elapsed() / calls;
        assert!(each < Duration::from_micros(5), "{each:?}");
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_is_between_its_ends(micros in 0u64..1 << 40) {
            let at = bucket(micros);
            prop_assert!(bucket_begin(at) <= micros);
            prop_assert!(at == BUCKETS - 1 || micros < bucket_begin(at + 1));
        }
    }
}
