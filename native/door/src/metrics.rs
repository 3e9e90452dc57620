//! `/metrics`: every count as text that Prometheus reads, made when it is asked for. Names and labels are ours, never a
//! caller's, so their number is bounded.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::observe::{BUCKETS, Stats, bucket_begin};
use crate::pages::Seen;
use crate::process::Process;

/// Ends of the buckets shown: powers of two microseconds, from 16 us to 67 s.
const SHOWN: std::ops::RangeInclusive<u32> = 4..=26;
/// How the store's numbers are called outside; those that only grow are counters. A number that is not listed is a gauge
/// of its own name.
const STORE: [(&str, &str, bool, &str); 12] = [
    ("blobs_written", "blobs_written", true, "Blobs written since the start"),
    ("bytes_written", "written_bytes", true, "Bytes of blobs written since the start"),
    ("entries_written", "entries_written", true, "Entries written since the start"),
    ("damaged", "damaged", true, "Records and files found damaged since the start"),
    ("evicted", "evicted", true, "Records evicted since the start"),
    ("evicted_bytes", "evicted_bytes", true, "Bytes evicted since the start"),
    ("records", "records", false, "Blobs and entries that are here"),
    ("segments", "segments", false, "Segment files"),
    ("used_bytes", "used_bytes", false, "Bytes that the store takes on the disk"),
    ("size_bytes_max", "limit_bytes", false, "The store is kept below so many bytes"),
    ("held", "held_blobs", false, "Blobs that are held from eviction"),
    ("free_bytes", "disk_free_bytes", false, "Bytes free on the store's disk"),
];

/// OpenMetrics text, or the older form for who does not know it.
pub(crate) fn text(seen: Arc<Seen>, openmetrics: bool) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(seen)));
    let mut text = String::with_capacity(64 << 10);
    if openmetrics {
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
    } else {
        prometheus_client::encoding::prometheus_text::encode(&mut text, &registry)?;
    }
    Ok(text)
}

struct Scrape(Arc<Seen>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

type Done = Result<(), fmt::Error>;

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Done {
        let mut out = Out(encoder);
        self.calls(&mut out)?;
        self.caches(&mut out)?;
        self.connections(&mut out)?;
        self.store(&mut out)?;
        self.python(&mut out)?;
        process(&mut out, &self.0.process, &self.0)
    }
}

impl Scrape {
    fn calls(&self, out: &mut Out<'_>) -> Done {
        let called: Vec<&Stats> = self.0.observe.called().map(|(_, stats)| stats).collect();
        let codes = called.iter().flat_map(|stats| {
            stats.codes().map(|(code, count)| ([("method", stats.name.to_string()), ("code", code.to_owned())], count))
        });
        out.counters("buildnet_calls", "Calls that ended, by method and code", codes.collect())?;
        let each = |read: &dyn Fn(&Stats) -> u64| {
            called.iter().map(|stats| ([("method", stats.name.to_string())], read(stats))).collect::<Vec<_>>()
        };
        let received = each(&|stats| stats.received_bytes.load(Ordering::Relaxed));
        out.counters("buildnet_received_bytes", "Bytes of requests, gRPC's framing included", received)?;
        let sent = each(&|stats| stats.sent_bytes.load(Ordering::Relaxed));
        out.counters("buildnet_sent_bytes", "Bytes of replies, gRPC's framing included", sent)?;
        let open = each(&|stats| stats.in_flight.load(Ordering::Relaxed).max(0).cast_unsigned());
        out.gauges("buildnet_calls_in_flight", "Calls that have begun and not ended", open)?;
        out.durations(&called)
    }

    fn caches(&self, out: &mut Out<'_>) -> Done {
        let observe = &self.0.observe;
        let (hits, misses) = observe.action_cache();
        let lookups = [("hit", hits), ("miss", misses)].map(|(result, count)| ([("result", result.to_owned())], count));
        out.counters("buildnet_action_cache_lookups", "Look-ups of action results", lookups.into())?;
        let (asked, missing) =
            (observe.digests_asked.load(Ordering::Relaxed), observe.digests_missing.load(Ordering::Relaxed));
        let digests = [("found", asked.saturating_sub(missing)), ("missing", missing)]
            .map(|(result, count)| ([("result", result.to_owned())], count));
        out.counters("buildnet_find_missing_digests", "Digests asked for by FindMissingBlobs", digests.into())?;
        out.gauge("buildnet_uploads_waiting", "Uploads that broke off and may be resumed", self.0.uploads_waiting)
    }

    fn connections(&self, out: &mut Out<'_>) -> Done {
        let observe = &self.0.observe;
        let open = observe.connections_open.load(Ordering::Relaxed).max(0).cast_unsigned();
        out.gauge("buildnet_connections_open", "Connections that are open", open)?;
        let accepted = observe.connections_accepted.load(Ordering::Relaxed);
        out.counter("buildnet_connections_accepted", "Connections accepted", accepted)?;
        let refused = observe.connections_refused.load(Ordering::Relaxed);
        out.counter("buildnet_connections_refused", "Connections closed because too many were open", refused)?;
        if let Some(log) = &observe.log {
            let (written, dropped) = log.counts();
            out.counter("buildnet_access_log_lines", "Lines written to the access log", written)?;
            out.counter("buildnet_access_log_dropped", "Lines that the access log had no room for", dropped)?;
        }
        if let Some((taken, failed)) = observe.trace_sends() {
            let sends = [("taken", taken), ("failed", failed)].map(|(r, count)| ([("result", r.to_owned())], count));
            out.counters("buildnet_trace_sends", "Requests to the collector of traces", sends.into())?;
        }
        Ok(())
    }

    fn store(&self, out: &mut Out<'_>) -> Done {
        for (name, value) in &self.0.store {
            // No limit is no number.
            if *name == "size_bytes_max" && *value == u64::MAX {
                continue;
            }
            match STORE.iter().find(|(ours, ..)| ours == name) {
                Some((_, outside, true, help)) => out.counter(&format!("buildnet_store_{outside}"), help, *value)?,
                Some((_, outside, false, help)) => out.gauge(&format!("buildnet_store_{outside}"), help, *value)?,
                None => out.gauge(&format!("buildnet_store_{name}"), "A number of the store", *value)?,
            }
        }
        let all = self.0.statistics.iter().flat_map(|(source, values)| {
            values.iter().map(move |(name, value)| ([("source", source.clone()), ("name", (*name).to_owned())], *value))
        });
        out.gauges("buildnet_statistics", "Numbers of what stands behind the store", all.collect())
    }

    fn python(&self, out: &mut Out<'_>) -> Done {
        let (calls, open, batches) = self.0.bridge;
        out.counter("buildnet_bridge_calls", "Calls handed on to Python", calls)?;
        out.gauge("buildnet_bridge_calls_open", "Calls that Python has not ended", open)?;
        out.counter("buildnet_bridge_batches", "Batches in which Python took events", batches)?;
        for (name, value) in &self.0.reported {
            out.gauge(&format!("buildnet_{name}"), "As Python said within the last second", *value)?;
        }
        Ok(())
    }
}

/// Names that every Prometheus client library gives these.
fn process(out: &mut Out<'_>, process: &Process, seen: &Seen) -> Done {
    out.counter_s("process_cpu_seconds", "User and system time of the process", process.cpu_s)?;
    out.gauge("process_resident_memory_bytes", "Resident memory of the process", process.resident_bytes)?;
    out.gauge("process_open_fds", "Open file descriptors", process.open_fds)?;
    out.gauge("process_max_fds", "Limit of open file descriptors", process.max_fds)?;
    let started = seen.observe.started.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    out.gauge("process_start_time_seconds", "When the door was made, since 1970", started)?;
    let version = [("version", env!("CARGO_PKG_VERSION").to_owned())];
    out.gauges("buildnet_build_info", "Always 1; the labels say what this is", vec![(version, 1u64)])
}

/// One family after another.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> Done {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counter_s(&mut self, name: &str, help: &str, value: f64) -> Done {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> Done {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counters<S: EncodeLabelSet>(&mut self, name: &str, help: &str, values: Vec<(S, u64)>) -> Done {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in &values {
            family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(value, None)?;
        }
        Ok(())
    }

    fn gauges<S: EncodeLabelSet>(&mut self, name: &str, help: &str, values: Vec<(S, u64)>) -> Done {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in &values {
            family.encode_family(labels)?.encode_gauge(value)?;
        }
        Ok(())
    }

    fn durations(&mut self, called: &[&Stats]) -> Done {
        let (name, help) = ("buildnet_call_duration_seconds", "Time from a call's headers to the end of its reply");
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for stats in called {
            let buckets = stats.buckets();
            let count: u64 = buckets.iter().sum();
            let sum_s = stats.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
            let labels = [("method", stats.name.to_string())];
            let shown = shown(&buckets, count);
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum_s, count, &shown, None)?;
        }
        Ok(())
    }
}

/// Counts of the buckets shown, each with its end in seconds.
fn shown(buckets: &[u64; BUCKETS], count: u64) -> Vec<(f64, u64)> {
    let (mut at, mut seen) = (0, 0);
    let mut shown = Vec::with_capacity(SHOWN.count() + 1);
    for power in SHOWN {
        let before = seen;
        while bucket_begin(at) < 1 << power {
            seen += buckets[at];
            at += 1;
        }
        shown.push(((1u64 << power) as f64 / 1e6, seen - before));
    }
    shown.push((f64::INFINITY, count - seen));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_in_one_bucket_shown() {
        let mut buckets = [1; BUCKETS];
        buckets[BUCKETS - 1] = 7;
        let count = buckets.iter().sum();
        let shown = shown(&buckets, count);
        assert_eq!(shown.iter().map(|(_, n)| n).sum::<u64>(), count);
        assert!(shown.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(shown[0].0.to_string(), "0.000016");
    }
}
