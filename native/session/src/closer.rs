//! Ends a session from outside the task that runs it, with a word to the peer. The first reason counts.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;

#[derive(Debug, Default)]
struct Shared {
    reason: Mutex<Option<(u8, String)>>,
    reader: AtomicWaker,
}

/// Ends one session. Clones end the same one.
#[derive(Clone, Debug, Default)]
pub struct Closer(Arc<Shared>);

impl Closer {
    /// The session's reader, also one that waits, says farewell with this code and text, and fails.
    pub fn close(&self, code: u8, text: &str) {
        let mut reason = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.get_or_insert_with(|| (code, text.to_owned()));
        drop(reason);
        self.0.reader.wake();
    }

    /// The reason, if there is one; else wake `reader` once there is.
    pub(crate) fn asked(&self, reader: &Waker) -> Option<(u8, String)> {
        // First, so that no reason comes unseen between the look and the wait.
        self.0.reader.register(reader);
        self.0.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
