//! What each caller took from the cache and gave to it, since somebody last asked: sums, so that the ledger can tell of any
//! number of calls with one entry. It knows no call by itself and keeps nothing of their contents.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

/// Callers that are told apart until the next time somebody asks; those beyond are counted as one.
const CALLERS_MAX: usize = 1024;

/// What one caller did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Who its credentials name, empty when they name nobody; none for all callers beyond the bound.
    pub subject: Option<String>,
    /// Whether it called as a worker.
    pub worker: bool,
    /// Results of actions, and values under names, that were there.
    pub results: u64,
    /// Other calls that read.
    pub reads: u64,
    /// Bytes that all those took.
    pub read_bytes: u64,
    /// Calls that wrote.
    pub writes: u64,
    /// Bytes that they gave.
    pub written_bytes: u64,
}

/// What a call does with the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Result,
    Read,
    Write,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    results: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
}

impl Counts {
    /// A call ended; `done` when it did what was asked.
    pub(crate) fn ended(&self, what: Use, done: bool, received: u64, sent: u64) {
        let (count, sum, bytes) = match what {
            Use::Result => (&self.results, &self.read_bytes, sent),
            Use::Read => (&self.reads, &self.read_bytes, sent),
            Use::Write => (&self.writes, &self.written_bytes, received),
        };
        count.fetch_add(u64::from(done), Ordering::Relaxed);
        // What a call that broke off had moved until then was moved.
        sum.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A result that was told in another call's answer.
    pub(crate) fn result(&self) {
        self.results.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self, subject: Option<String>, worker: bool) -> Option<Used> {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        let used = Used {
            subject,
            worker,
            results: take(&self.results),
            reads: take(&self.reads),
            read_bytes: take(&self.read_bytes),
            writes: take(&self.writes),
            written_bytes: take(&self.written_bytes),
        };
        let sums = [used.results, used.reads, used.read_bytes, used.writes, used.written_bytes];
        sums.iter().any(|sum| *sum > 0).then_some(used)
    }
}

/// All of it. A call looks its caller up once, among few, under a lock that readers share.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    callers: RwLock<[HashMap<Box<str>, Arc<Counts>>; 2]>,
    others: Arc<Counts>,
}

impl Usage {
    /// Where a caller is counted.
    pub(crate) fn of(&self, subject: &str, worker: bool) -> Arc<Counts> {
        if let Some(known) = self.callers.read()[usize::from(worker)].get(subject) {
            return Arc::clone(known);
        }
        let mut callers = self.callers.write();
        if callers[0].len() + callers[1].len() >= CALLERS_MAX {
            return Arc::clone(&self.others);
        }
        Arc::clone(callers[usize::from(worker)].entry(subject.into()).or_default())
    }

    /// What was done since the last time, by name.
    pub(crate) fn take(&self) -> Vec<Used> {
        let mut used: Vec<Used> = self.others.take(None, false).into_iter().collect();
        let mut callers = self.callers.write();
        for (worker, named) in [false, true].into_iter().zip(callers.iter_mut()) {
            named.retain(|subject, counts| {
                used.extend(counts.take(Some(subject.to_string()), worker));
                // Nobody new can find it while this lock is held; a call that still counts there keeps it.
                Arc::strong_count(counts) > 1
            });
        }
        used.sort_by(|a, b| (a.worker, &a.subject).cmp(&(b.worker, &b.subject)));
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callers_did_is_told_once() {
        let usage = Usage::default();
        let held = usage.of("acme/alice", false);
        held.ended(Use::Read, true, 10, 100);
        held.ended(Use::Read, false, 10, 7);
        usage.of("acme/alice", false).ended(Use::Result, true, 1, 5);
        usage.of("", false).ended(Use::Write, true, 30, 2);
        usage.of("acme/alice", true).result();
        let told = usage.take();
        let names: Vec<_> = told.iter().map(|used| (used.subject.as_deref(), used.worker)).collect();
        assert_eq!(names, [(Some(""), false), (Some("acme/alice"), false), (Some("acme/alice"), true)]);
        assert_eq!((told[1].results, told[1].reads, told[1].read_bytes), (1, 1, 112));
        assert_eq!((told[0].writes, told[0].written_bytes), (1, 30));
        assert_eq!(usage.take(), []);
        // A call that was under way is counted where it began.
        held.ended(Use::Read, true, 0, 3);
        drop(held);
        assert_eq!(usage.take()[0].read_bytes, 3);
        assert!(usage.callers.read().iter().all(HashMap::is_empty));
    }

    #[test]
    fn callers_beyond_the_bound_are_one() {
        let usage = Usage::default();
        for number in 0..CALLERS_MAX + 3 {
            usage.of(&number.to_string(), false).ended(Use::Write, true, 1, 0);
        }
        let told = usage.take();
        assert_eq!(told.len(), CALLERS_MAX + 1);
        assert_eq!((told[0].subject.clone(), told[0].writes), (None, 3));
        assert_eq!(told.iter().map(|used| used.written_bytes).sum::<u64>(), CALLERS_MAX as u64 + 3);
    }
}
