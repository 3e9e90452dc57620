//! The last ten seconds of every method: a count a second, taken by one task and read by the status page. No call ever
//! comes here.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::observe::{BUCKETS, bucket_begin};

/// How often a count is taken.
pub(crate) const EVERY: Duration = Duration::from_secs(1);
const KEPT: usize = 10;

/// Latencies of calls by bucket.
pub(crate) type Buckets = [u64; BUCKETS];

struct Count {
    at: Instant,
    by_method: HashMap<usize, Box<Buckets>>,
}

/// Counts of the last seconds, oldest first.
#[derive(Default)]
pub(crate) struct Recent(Mutex<VecDeque<Count>>);

/// Calls of one method within some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rate {
    pub(crate) calls_per_s: f64,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
}

impl Recent {
    /// Keep what was counted until now.
    pub(crate) fn keep(&self, at: Instant, by_method: HashMap<usize, Box<Buckets>>) {
        let mut counts = self.0.lock();
        if counts.len() > KEPT {
            counts.pop_front();
        }
        counts.push_back(Count { at, by_method });
    }

    /// What happened since the oldest count that is kept.
    pub(crate) fn rate(&self, at: Instant, method: usize, now: &Buckets) -> Rate {
        let counts = self.0.lock();
        let Some(oldest) = counts.front() else { return Rate::default() };
        let mut since = *now;
        if let Some(before) = oldest.by_method.get(&method) {
            since.iter_mut().zip(before.iter()).for_each(|(now, before)| *now = now.saturating_sub(*before));
        }
        let seconds = at.saturating_duration_since(oldest.at).as_secs_f64();
        let calls: u64 = since.iter().sum();
        let calls_per_s = if seconds > 0.0 { calls as f64 / seconds } else { 0.0 };
        Rate { calls_per_s, p50_ms: percentile(&since, 0.5), p99_ms: percentile(&since, 0.99) }
    }
}

/// The middle of the bucket below which this share of the calls lies, in milliseconds; none without calls.
pub(crate) fn percentile(buckets: &Buckets, share: f64) -> Option<f64> {
    let calls: u64 = buckets.iter().sum();
    let wanted = (calls as f64 * share).ceil().max(1.0) as u64;
    let mut seen = 0;
    let at = buckets.iter().position(|count| {
        seen += count;
        seen >= wanted
    })?;
    Some((bucket_begin(at) + bucket_begin(at + 1)) as f64 / 2e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_time_since_the_oldest_count() {
        let (recent, begin) = (Recent::default(), Instant::now());
        let mut buckets = [0; BUCKETS];
        for second in 0..30u32 {
            recent.keep(begin + EVERY * second, HashMap::from([(3, Box::new(buckets))]));
            buckets[8] += 100;
        }
        let rate = recent.rate(begin + EVERY * 30, 3, &buckets);
        assert!((rate.calls_per_s - 100.0).abs() < 1.0, "{rate:?}");
        assert_eq!(rate.p50_ms, Some((bucket_begin(8) + bucket_begin(9)) as f64 / 2e3));
        assert_eq!(recent.rate(begin + EVERY * 30, 4, &[0; BUCKETS]), Rate::default());
    }

    #[test]
    fn a_percentile_is_of_the_bucket_it_lies_in() {
        let mut buckets = [0; BUCKETS];
        assert_eq!(percentile(&buckets, 0.5), None);
        buckets[20] = 98;
        buckets[60] = 2;
        assert!(percentile(&buckets, 0.5) < percentile(&buckets, 0.99));
        assert_eq!(percentile(&buckets, 0.98), percentile(&buckets, 0.01));
    }
}
