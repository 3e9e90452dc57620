//! The store keeps what was acknowledged and serves nothing that is not what its digest says. It holds no policy.
//!
//! Layout below the root (docs/design/store.md): `FORMAT`, `lock`, `segments/`, `large/`, `tmp/`, `quarantine/`. Small
//! blobs and entries are records of a segment, large blobs are files, and one index in memory finds both.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod ahead;
mod appending;
mod blobs;
mod completeness;
mod entries;
mod evict;
mod index;
mod log;
mod open;
mod pages;
mod record;
mod scrub;
mod segment;
mod survey;
mod table;
mod trees;
mod view;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use buildnet_formats::{FieldValue, NativeError};
use parking_lot::{Condvar, Mutex, RwLock};

pub use crate::blobs::{BlobReader, BlobWriter, Checked, Chunk, Intake, hash_open_file};
pub use crate::completeness::Hit;
pub use crate::entries::{Draft, EntryName, Kept, Origin, VALUE_BYTES_PACKED};
pub use crate::evict::{Background, Evicted};
pub use crate::scrub::Scrubbed;
pub use crate::survey::{Cursor, Group, Page, Referrers, Taken};
pub use crate::trees::{TreePage, TreeWalk};
pub use crate::view::{Facts, Listed};

use crate::completeness::Closures;
use crate::index::Index;
use crate::log::Log;
use crate::record::Key;

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The death of any process.
    Process,
    /// The loss of power too: every write is synced before it is acknowledged, many writes with one sync.
    Power,
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// Larger blobs are refused.
    pub blob_size_bytes_max: u64,
    /// Writes that would leave less than this free on the disk are refused; reads go on.
    pub free_bytes_min: u64,
    /// The store is kept below this by evicting what was not used for longest; writes that cannot fit are refused.
    pub size_bytes_max: u64,
    /// What was used, or said to be present, within so many seconds is not evicted.
    pub keep_s: u64,
    /// Blobs up to this size are packed in segments, larger ones are files.
    pub packed_bytes_max: u64,
    /// When a segment is closed and the next begun.
    pub segment_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Process,
            blob_size_bytes_max: 64 << 30,
            free_bytes_min: 64 << 20,
            size_bytes_max: u64::MAX,
            keep_s: 900,
            packed_bytes_max: 128 << 10,
            segment_bytes: 64 << 20,
        }
    }
}

/// Counts since the store was opened.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) blobs_written: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) entries_written: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) evicted_bytes: AtomicU64,
    pub(crate) next_temporary: AtomicU64,
    /// Removals since the store was opened: while it stands still, what was complete stays complete.
    pub(crate) removals: AtomicU64,
    /// Files of large blobs.
    pub(crate) large_bytes: AtomicU64,
    /// Bytes that may be written before the disk is asked again how full it is.
    pub(crate) room: AtomicI64,
    /// The second in which eviction last found nothing that may go.
    pub(crate) fruitless_s: AtomicU64,
}

/// Blobs and entries below one directory, opened by one process.
pub struct Store {
    root: PathBuf,
    options: Options,
    counters: Counters,
    index: RwLock<Index>,
    log: Log,
    /// Of each directory of large files: its name is on the disk. Only asked where that was promised.
    large_synced: [AtomicBool; 256],
    next_large: AtomicU64,
    holds: Mutex<Holds>,
    /// One eviction at a time.
    evicting: Mutex<()>,
    closures: Closures,
    opened_s: u64,
    work: Work,
    _lock: open::Lock,
}

/// Who keeps what from being evicted.
#[derive(Default)]
pub(crate) struct Holds {
    pub(crate) by_name: HashMap<String, Vec<Key>>,
    pub(crate) total: usize,
    pub(crate) counts: HashMap<Key, u32>,
}

/// Wakes the background thread.
#[derive(Default)]
pub(crate) struct Work {
    pub(crate) state: Mutex<WorkState>,
    pub(crate) wake: Condvar,
}

#[derive(Default)]
pub(crate) struct WorkState {
    pub(crate) pressed: bool,
    pub(crate) stopped: bool,
}

impl Store {
    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The limit on one blob.
    pub fn blob_size_bytes_max(&self) -> u64 {
        self.options.blob_size_bytes_max
    }

    /// Blobs up to this size are packed.
    pub fn packed_bytes_max(&self) -> u64 {
        self.options.packed_bytes_max
    }

    /// Whether acknowledging a write waits for an fsync.
    pub fn waits_for_disk(&self) -> bool {
        self.options.durability == Durability::Power
    }

    /// Bytes that the store takes on the disk.
    pub fn used_bytes(&self) -> u64 {
        self.log.bytes() + self.counters.large_bytes.load(Ordering::Relaxed)
    }

    /// Removals so far: while this number stands still, what was present stays present.
    pub fn removals(&self) -> u64 {
        self.counters.removals.load(Ordering::Acquire)
    }

    /// Counts since the store was opened, and the free space.
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("blobs_written", count(&self.counters.blobs_written)),
            ("bytes_written", count(&self.counters.bytes_written)),
            ("entries_written", count(&self.counters.entries_written)),
            ("damaged", count(&self.counters.damaged)),
            ("evicted", count(&self.counters.evicted)),
            ("evicted_bytes", count(&self.counters.evicted_bytes)),
            ("records", self.index.read().len() as u64),
            ("segments", self.log.segment_count() as u64),
            ("used_bytes", self.used_bytes()),
            ("size_bytes_max", self.options.size_bytes_max),
            ("held", self.holds.lock().counts.len() as u64),
            ("free_bytes", free_bytes(&self.root).unwrap_or(0)),
        ]
    }
}

/// Seconds since 1970. The store is an edge: time that decides about eviction is read here.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Translate an I/O error at `path`: a full disk is its own error, as is a process without descriptors or memory; the rest
/// means that the store is damaged.
pub(crate) fn unusable(path: &Path, error: &io::Error) -> NativeError {
    let code = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => "storage_full",
        // Passing: nothing on the disk is wrong, and the next try may find what this one lacked.
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) => "overloaded",
        _ => "state_corrupt",
    };
    NativeError::new(code, format!("{}: {error}", path.display()))
        .with("path", FieldValue::Text(path.display().to_string()))
}

/// Bytes that an unprivileged writer may still use on the filesystem of `path`.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let facts = rustix::fs::statvfs(path)?;
    Ok(facts.f_bavail * facts.f_frsize)
}
