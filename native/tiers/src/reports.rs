//! What happened to a tier that a person should hear of: bounded, the oldest is dropped. Whoever writes the log takes them.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

const REPORTS_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct Reports {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    texts: VecDeque<String>,
    dropped: u64,
    closed: bool,
}

impl Reports {
    pub(crate) fn push(&self, text: String) {
        let mut state = self.state.lock();
        if state.texts.len() >= REPORTS_MAX {
            state.texts.pop_front();
            state.dropped += 1;
        }
        state.texts.push_back(text);
        self.changed.notify_one();
    }

    /// The next report; waits for one, and is none once closed and empty.
    pub(crate) fn next(&self) -> Option<String> {
        let mut state = self.state.lock();
        loop {
            if state.dropped > 0 {
                let dropped = std::mem::take(&mut state.dropped);
                return Some(format!("tiers: {dropped} reports were dropped"));
            }
            if let Some(text) = state.texts.pop_front() {
                return Some(text);
            }
            if state.closed {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }

    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_the_end_is_said_once_all_are_taken() {
        let reports = Reports::default();
        for n in 0..=REPORTS_MAX {
            reports.push(n.to_string());
        }
        reports.close();
        assert_eq!(reports.next().unwrap(), "tiers: 1 reports were dropped");
        let rest: Vec<String> = std::iter::from_fn(|| reports.next()).collect();
        assert_eq!((rest.len(), rest[0].as_str()), (REPORTS_MAX, "1"));
    }
}
