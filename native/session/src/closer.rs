//! Ends a session from outside the task that runs it, with a word to the peer; hears when keys change, and knows
//! afterwards how it ended. The first reason counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;

use crate::SessionError;

/// Hears how often keys were changed so far.
struct Listener(Box<dyn Fn(u64) + Send + Sync>);

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

#[derive(Debug, Default)]
struct Shared {
    reason: Mutex<Option<(u8, String)>>,
    reader: AtomicWaker,
    failure: OnceLock<Failure>,
    rekeys: AtomicU64,
    listener: OnceLock<Listener>,
}

/// Why a session did not end in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For people.
    pub text: String,
    /// Whose fault it is.
    pub kind: FailureKind,
}

/// What was wrong with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// It, or somebody between, sent what none may.
    Broken,
    /// It sent nothing, or read nothing, for too long.
    Stalled,
    /// Its connection ended.
    Gone,
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

    /// Why the session's reader failed, if it did.
    pub fn failure(&self) -> Option<Failure> {
        self.0.failure.get().cloned()
    }

    /// How often keys were changed, by both ends.
    pub fn rekeys(&self) -> u64 {
        self.0.rekeys.load(Ordering::Relaxed)
    }

    /// Call `hear` after each change of keys with how often both ends have changed theirs; the first listener counts. It
    /// is called where the session's bytes are moved, and may not block.
    pub fn on_rekey(&self, hear: impl Fn(u64) + Send + Sync + 'static) {
        self.0.listener.get_or_init(|| Listener(Box::new(hear)));
    }

    /// The reason, if there is one; else wake `reader` once there is.
    pub(crate) fn asked(&self, reader: &Waker) -> Option<(u8, String)> {
        // First, so that no reason comes unseen between the look and the wait.
        self.0.reader.register(reader);
        self.0.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn failed(&self, error: &std::io::Error) {
        let session = error.get_ref().and_then(|inner| inner.downcast_ref::<SessionError>());
        let kind = match session {
            Some(SessionError::Frame | SessionError::Protocol(_) | SessionError::Oversize(_)) => FailureKind::Broken,
            Some(SessionError::Slow | SessionError::Idle | SessionError::Stalled) => FailureKind::Stalled,
            _ => FailureKind::Gone,
        };
        self.0.failure.get_or_init(|| Failure { text: error.to_string(), kind });
    }

    pub(crate) fn rekeyed(&self, times: u64) {
        if self.0.rekeys.load(Ordering::Relaxed) == times {
            return;
        }
        self.0.rekeys.store(times, Ordering::Relaxed);
        if let Some(listener) = self.0.listener.get() {
            (listener.0)(times);
        }
    }
}
