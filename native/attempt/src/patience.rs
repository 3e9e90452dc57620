//! Transfers outlive an absence of the controller: what cannot be reached is tried again, within a bound. Blocks.
//!
//! It tries again only what may be repeated: each transfer moves what the other side lacks, and nothing twice.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use buildnet_formats::NativeError;

const FIRST: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(2);
/// A connection that breaks in the middle of a call has no status of the server: tonic makes one of UNKNOWN or INTERNAL
/// (as `buildnet.wire.native`).
const BROKE_OFF: [&str; 4] =
    ["transport error", "error reading a body from connection", "connection reset", "broken pipe"];

/// Waits for a controller that is away, for a while each, or until it is given up.
pub(crate) struct Patience {
    away_timeout: Duration,
    first: Duration,
    given_up: Mutex<bool>,
    changed: Condvar,
}

impl Patience {
    pub(crate) fn new(away_timeout: Duration) -> Self {
        Self { away_timeout, first: FIRST, given_up: Mutex::new(false), changed: Condvar::new() }
    }

    /// Wait no longer: this worker is leaving.
    pub(crate) fn give_up(&self) {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub(crate) fn tried<T>(&self, mut transfer: impl FnMut() -> Result<T, NativeError>) -> Result<T, NativeError> {
        let until = Instant::now() + self.away_timeout;
        let mut ceiling = self.first;
        loop {
            match transfer() {
                Err(error) if is_away(&error) && Instant::now() < until => {
                    if self.waited(jittered(ceiling)) {
                        return Err(error);
                    }
                    ceiling = (ceiling * 2).min(MAX);
                }
                other => return other,
            }
        }
    }

    /// Whether it was given up meanwhile.
    fn waited(&self, delay: Duration) -> bool {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        *self.changed.wait_timeout_while(given_up, delay, |up| !*up).unwrap_or_else(PoisonError::into_inner).0
    }
}

fn is_away(error: &NativeError) -> bool {
    let message = || error.message.to_lowercase();
    error.code == "node_down" || (error.code == "internal" && BROKE_OFF.iter().any(|text| message().contains(text)))
}

/// Its upper half is random, so that a fleet spreads out.
fn jittered(ceiling: Duration) -> Duration {
    let part = f64::from(RandomState::new().hash_one(0) as u32) / f64::from(u32::MAX);
    ceiling.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patient(away_timeout: Duration) -> Patience {
        Patience { first: Duration::from_millis(1), ..Patience::new(away_timeout) }
    }

    fn failing(patience: &Patience, mut failures: Vec<NativeError>) -> (Result<(), NativeError>, u32) {
        let mut calls = 0;
        let result = patience.tried(|| {
            calls += 1;
            failures.pop().map_or(Ok(()), Err)
        });
        (result, calls)
    }

    #[test]
    fn a_transfer_is_tried_again_while_the_controller_is_away() {
        let down = NativeError::new("node_down", "cannot reach it");
        let broken = NativeError::internal("BatchUpdateBlobs: Transport error");
        let (result, calls) = failing(&patient(Duration::from_secs(10)), vec![down, broken]);
        assert_eq!((result, calls), (Ok(()), 3));
    }

    #[test]
    fn a_bug_and_a_missing_blob_are_told_at_once() {
        for error in [NativeError::internal("an invariant"), NativeError::missing(&[])] {
            let (result, calls) = failing(&patient(Duration::from_secs(10)), vec![error.clone()]);
            assert_eq!((result, calls), (Err(error), 1));
        }
    }

    #[test]
    fn it_ends_with_its_time_and_when_it_is_given_up() {
        let down = || NativeError::new("node_down", "cannot reach it");
        let (result, calls) = failing(&patient(Duration::ZERO), vec![down(), down()]);
        assert_eq!((result, calls), (Err(down()), 1));
        let left = patient(Duration::from_secs(3600));
        left.give_up();
        let (result, calls) = failing(&left, vec![down(), down()]);
        assert_eq!((result, calls), (Err(down()), 1));
    }
}
