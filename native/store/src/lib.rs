//! The store keeps what was acknowledged and serves nothing that is not what its digest says. It holds no policy.
//!
//! Layout below the root (docs/design/store.md): `FORMAT`, `lock`, `blobs/xx/HASH`, `tmp/`, `quarantine/`,
//! `action_cache.sqlite`. What an acknowledged write survives is chosen at open: [`Durability`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod action_cache;
mod blobs;
mod completeness;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use buildnet_formats::{FieldValue, NativeError};

use crate::action_cache::ActionCache;
pub use crate::action_cache::Origin;
pub use crate::blobs::{BlobReader, BlobWriter};
pub use crate::completeness::TreePage;

const FORMAT: u32 = 1;

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The death of any process.
    Process,
    /// The loss of power too: every write is synced before it is acknowledged.
    Power,
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// Larger blobs are refused.
    pub blob_size_bytes_max: u64,
    /// Writes that would leave less than this free are refused; reads go on.
    pub free_bytes_min: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { durability: Durability::Process, blob_size_bytes_max: 64 << 30, free_bytes_min: 64 << 20 }
    }
}

/// Counts since the store was opened.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) blobs_written: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) blobs_quarantined: AtomicU64,
    pub(crate) next_temporary: AtomicU64,
}

/// Blobs and action results below one directory, opened by one process.
pub struct Store {
    root: PathBuf,
    options: Options,
    counters: Counters,
    cache: ActionCache,
    _lock: File,
}

impl Store {
    /// Open or create the store below `root`.
    ///
    /// # Errors
    /// `state_newer` when a newer version wrote it, which is left untouched; `state_locked` when another process has
    /// it open; `state_corrupt` when it cannot be read.
    pub fn open(root: &Path, options: Options) -> Result<Self, NativeError> {
        check_format(root)?;
        let at = |path: &Path, error: &io::Error| unusable(path, error);
        for directory in ["blobs", "tmp", "quarantine"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(|e| at(&path, &e))?;
        }
        let lock = lock(root)?;
        check_format(root)?;
        for prefix in 0..=255u8 {
            let path = root.join("blobs").join(format!("{prefix:02x}"));
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(&path, &error)),
                _ => {}
            }
        }
        // What a killed process left half-written was never acknowledged.
        let temporary = root.join("tmp");
        for entry in fs::read_dir(&temporary).map_err(|e| at(&temporary, &e))? {
            let path = entry.map_err(|e| at(&temporary, &e))?.path();
            fs::remove_file(&path).map_err(|e| at(&path, &e))?;
        }
        let cache = ActionCache::open(&root.join("action_cache.sqlite"), options.durability)?;
        let format = root.join("FORMAT");
        if !format.exists() {
            fs::write(&format, format!("{FORMAT}\n")).map_err(|e| at(&format, &e))?;
        }
        Ok(Self { root: root.to_owned(), options, counters: Counters::default(), cache, _lock: lock })
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The limit on one blob.
    pub fn blob_size_bytes_max(&self) -> u64 {
        self.options.blob_size_bytes_max
    }

    /// Whether acknowledging a write waits for an fsync.
    pub fn waits_for_disk(&self) -> bool {
        self.options.durability == Durability::Power
    }

    /// Counts since the store was opened, and the free space.
    pub fn statistics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("blobs_written", self.counters.blobs_written.load(Ordering::Relaxed)),
            ("bytes_written", self.counters.bytes_written.load(Ordering::Relaxed)),
            ("blobs_quarantined", self.counters.blobs_quarantined.load(Ordering::Relaxed)),
            ("action_results", self.cache.count().unwrap_or(0)),
            ("free_bytes", free_bytes(&self.root).unwrap_or(0)),
        ]
    }
}

fn check_format(root: &Path) -> Result<(), NativeError> {
    let path = root.join("FORMAT");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(&path, &error)),
    };
    let found: u32 = text.trim().parse().map_err(|_| {
        NativeError::new("state_corrupt", format!("{} does not hold a format number", path.display()))
            .with("path", FieldValue::Text(path.display().to_string()))
    })?;
    if found > FORMAT {
        return Err(newer(&path, found.into(), FORMAT.into()));
    }
    Ok(())
}

pub(crate) fn newer(path: &Path, found: i64, supported: i64) -> NativeError {
    NativeError::new(
        "state_newer",
        format!(
            "{} was written by a newer version (format {found}, this one reads up to {supported}); upgrade",
            path.display()
        ),
    )
    .with("path", FieldValue::Text(path.display().to_string()))
    .with("found", FieldValue::Int(found))
    .with("supported", FieldValue::Int(supported))
}

fn lock(root: &Path) -> Result<File, NativeError> {
    let path = root.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| unusable(&path, &e))?;
    // SAFETY: the descriptor is open for as long as `file` lives.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(NativeError::new(
            "state_locked",
            format!("another process uses the store in {}; stop it or choose another directory", root.display()),
        )
        .with("path", FieldValue::Text(root.display().to_string())));
    }
    Ok(file)
}

/// Translate an I/O error at `path`: a full disk is its own error, the rest means that the store is damaged.
pub(crate) fn unusable(path: &Path, error: &io::Error) -> NativeError {
    let code = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => "storage_full",
        _ => "state_corrupt",
    };
    NativeError::new(code, format!("{}: {error}", path.display()))
        .with("path", FieldValue::Text(path.display().to_string()))
}

/// Bytes that an unprivileged writer may still use on the filesystem of `path`.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statvfs fills the zeroed struct that it is given and keeps no pointer.
    unsafe {
        let mut facts: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(path.as_ptr(), &raw mut facts) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(facts.f_bavail * facts.f_frsize)
    }
}
