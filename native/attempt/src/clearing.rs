//! What an attempt leaves is removed beside: neither its result nor its slot waits for that.
//!
//! To remove a directory takes two milliseconds on some file systems. It is put aside by a rename, and removed by threads that
//! share no directory. What waits is bounded; past that, whoever brings more waits too.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use buildnet_formats::NativeError;
use buildnet_stage::{quiet_thread, remove_tree};

const LANES: u64 = 4;
/// What waits to be removed still takes room on the disk.
const WAITING_MAX: usize = 256;

#[derive(Default)]
struct Waiting {
    paths: VecDeque<PathBuf>,
    closed: bool,
}

#[derive(Default)]
struct Lanes {
    waiting: Mutex<Waiting>,
    /// For those that remove, and for those that bring.
    more: Condvar,
    fewer: Condvar,
}

/// Takes directories of one file system, from any thread.
pub(crate) struct Clearing {
    directory: PathBuf,
    lanes: Arc<Lanes>,
    number: AtomicU64,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Clearing {
    /// `directory` is where they wait; what a killed worker left there goes.
    pub(crate) fn open(directory: &Path) -> Result<Self, NativeError> {
        remove_tree(directory)?;
        let lanes = Arc::new(Lanes::default());
        let mut threads = Vec::new();
        for lane in 0..LANES {
            let path = directory.join(lane.to_string());
            fs::create_dir_all(&path).map_err(|error| {
                NativeError::new("sandbox_failed", format!("cannot make {}: {error}", path.display()))
            })?;
            let lanes = Arc::clone(&lanes);
            let thread = std::thread::Builder::new().name("clearing".to_owned()).spawn(move || {
                quiet_thread();
                lanes.remove();
            });
            threads.push(thread.map_err(|error| NativeError::internal(format!("cannot start a thread: {error}")))?);
        }
        let directory = directory.to_owned();
        Ok(Self { directory, lanes, number: AtomicU64::new(0), threads: Mutex::new(threads) })
    }

    /// Have a directory removed; it is not at its place any more when this returns. Waits while too many wait.
    pub(crate) fn take(&self, path: &Path) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let aside = self.directory.join(format!("{}/{number}", number % LANES));
        if fs::rename(path, &aside).is_err() {
            // Not there, or not to be moved: it is removed where it is. What cannot be goes when the worker next starts.
            let _ = remove_tree(path);
            return;
        }
        let mut waiting = self.lanes.lock();
        if waiting.closed {
            drop(waiting);
            let _ = remove_tree(&aside);
            return;
        }
        while waiting.paths.len() >= WAITING_MAX {
            waiting = self.lanes.fewer.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.paths.push_back(aside);
        drop(waiting);
        self.lanes.more.notify_one();
    }

    /// Return once all that was taken is removed.
    pub(crate) fn close(&self) {
        self.lanes.lock().closed = true;
        self.lanes.more.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // One that panicked removes no more; there is nobody to tell.
            let _ = thread.join();
        }
    }
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self) {
        let mut waiting = self.lock();
        loop {
            let Some(path) = waiting.paths.pop_front() else {
                if waiting.closed {
                    return;
                }
                waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(waiting);
            // What cannot be removed goes when the worker next starts.
            let _ = remove_tree(&path);
            self.fewer.notify_one();
            waiting = self.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_gone_from_its_place_at_once_and_altogether_after_the_close() {
        let dir = tempfile::tempdir().unwrap();
        let aside = dir.path().join("aside");
        fs::create_dir_all(aside.join("left/by/a/killed/worker")).unwrap();
        let clearing = Clearing::open(&aside).unwrap();
        assert!(!aside.join("left").exists());
        for number in 0..2 * WAITING_MAX {
            let path = dir.path().join(number.to_string());
            fs::create_dir_all(path.join("tmp")).unwrap();
            clearing.take(&path);
            assert!(!path.exists());
        }
        clearing.take(&dir.path().join("nothing"));
        clearing.close();
        let late = dir.path().join("late");
        fs::create_dir(&late).unwrap();
        clearing.take(&late);
        for lane in fs::read_dir(&aside).unwrap() {
            assert_eq!(fs::read_dir(lane.unwrap().path()).unwrap().count(), 0);
        }
        assert!(!late.exists());
    }
}
