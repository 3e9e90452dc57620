//! When a tier is left alone: after several failures in a row, for longer each time, until one probe succeeds. Pure: time
//! is an argument, and it does nothing but decide.

use std::time::{Duration, Instant};

/// Failures in a row that open it.
pub(crate) const FAILURES_MAX: u32 = 5;
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Closed, open until a time, or half open while one probe is out.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
    probing: bool,
}

impl Breaker {
    /// Whether a call may go out now.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        match self.open_until {
            None => true,
            Some(until) if now < until || self.probing => false,
            Some(_) => {
                self.probing = true;
                true
            }
        }
    }

    /// A call that was admitted was answered, however.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A call that was admitted failed.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            let doubled = PAUSE_MIN.saturating_mul(1 << (self.failures - FAILURES_MAX).min(10));
            self.open_until = Some(now + doubled.min(PAUSE_MAX));
            self.probing = false;
        }
    }

    /// A call that was admitted was given up by its caller: nothing was learnt.
    pub(crate) fn abandoned(&mut self) {
        self.probing = false;
    }

    /// Whether calls are held back.
    pub(crate) fn is_open(&self) -> bool {
        self.open_until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..FAILURES_MAX {
            assert!(breaker.admit(now));
            breaker.failed(now);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_success_between_them_does_not() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..3 * FAILURES_MAX {
            breaker.failed(now);
            breaker.succeeded();
        }
        assert!(breaker.admit(now));
        assert!(!opened(now).admit(now));
    }

    #[test]
    fn one_probe_at_a_time_goes_out_and_its_success_closes_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + PAUSE_MIN;
        assert!(breaker.admit(later));
        assert!(!breaker.admit(later));
        breaker.abandoned();
        assert!(breaker.admit(later));
        breaker.succeeded();
        assert!(breaker.admit(later) && breaker.admit(later) && !breaker.is_open());
    }

    #[test]
    fn a_failed_probe_waits_longer_up_to_a_bound() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut pause = PAUSE_MIN;
        for _ in 0..20 {
            assert!(!breaker.admit(now + pause - Duration::from_millis(1)));
            now += pause;
            assert!(breaker.admit(now));
            breaker.failed(now);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
