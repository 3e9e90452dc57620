//! The space that an action takes, looked at from time to time: no file system bounds a directory everywhere.
//!
//! A look costs at most a twentieth of the time between two. What is written between looks is seen late, and files that
//! are open without a name are not seen; RLIMIT_FSIZE bounds each file, and the machine keeps a reserve. See
//! docs/reference/sandbox.md for what was weighed (quotas, loop mounts, tmpfs).

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::place::{Cursor, Facts, Kind};

const FIRST_LOOK: Duration = Duration::from_millis(100);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Of the time that a look took: so looks take a twentieth of a processor at most.
const REST_FACTOR: u32 = 20;
/// Kept free on the machine, as the store does.
const RESERVE_BYTES: u64 = 64 << 20;
/// A look at the trees can wait while the whole file system has lost less than this part of the limit.
const WORTH_A_LOOK: u64 = 4;
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Why an action must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// It took more than it may.
    Limit,
    /// The machine has next to nothing left.
    Machine,
}

/// The directories of one action and what they may take together.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    dirs: Vec<PathBuf>,
    limit_bytes: Option<u64>,
    due: Instant,
    interval: Duration,
    free_at_last_walk_bytes: Option<u64>,
    last_walk: Instant,
}

impl DiskWatch {
    pub(crate) fn new(dirs: Vec<PathBuf>, limit_bytes: Option<u64>) -> Self {
        let now = Instant::now();
        Self {
            dirs,
            limit_bytes,
            due: now + NEVER,
            interval: FIRST_LOOK,
            free_at_last_walk_bytes: None,
            last_walk: now,
        }
    }

    /// The command runs from now on.
    pub(crate) fn begin(&mut self, now: Instant) {
        if self.is_limited() {
            self.free_at_last_walk_bytes = self.dirs.first().and_then(|dir| free_bytes(dir));
        }
        self.last_walk = now;
        self.due = now + FIRST_LOOK;
    }

    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.limit_bytes.is_some()
    }

    /// Look now; sets when the next look is due. Unless `surely`, the trees are passed over while they cannot have grown much.
    pub(crate) fn look(&mut self, surely: bool) -> Option<Full> {
        let start = Instant::now();
        let free = self.dirs.first().and_then(|dir| free_bytes(dir));
        let full = if free.is_some_and(|free| free < RESERVE_BYTES) {
            Some(Full::Machine)
        } else {
            self.limit_bytes.filter(|limit| surely || self.is_worth_a_walk(*limit, free)).and_then(|limit| {
                self.free_at_last_walk_bytes = free;
                self.last_walk = start;
                exceeds(&self.dirs, limit).then_some(Full::Limit)
            })
        };
        // A limit may be reached soon; the machine's reserve is only a last resort.
        let wanted = if self.is_limited() { FIRST_LOOK } else { (self.interval * 2).min(LOOK_INTERVAL_MAX) };
        self.interval = wanted.max(start.elapsed() * REST_FACTOR);
        self.due = Instant::now() + self.interval;
        full
    }

    fn is_worth_a_walk(&self, limit_bytes: u64, free_bytes: Option<u64>) -> bool {
        match (self.free_at_last_walk_bytes, free_bytes) {
            (Some(then), Some(now)) => {
                // What others freed meanwhile hides what this one took, but not for long.
                then.saturating_sub(now) >= limit_bytes / WORTH_A_LOOK || self.last_walk.elapsed() > LOOK_INTERVAL_MAX
            }
            _ => true,
        }
    }
}

fn free_bytes(dir: &Path) -> Option<u64> {
    let path = CString::new(dir.as_os_str().as_bytes()).ok()?;
    // SAFETY: `path` is NUL-terminated and `found` is plain data that the call fills.
    let found = unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &raw mut found) == 0).then_some(found)
    }?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// What may be taken.
struct Space {
    limit_bytes: u64,
    left_bytes: u64,
}

impl Space {
    /// False when there is not so much. A file that is longer than the limit was cut by RLIMIT_FSIZE, however little of
    /// it lies on the disk: it has holes, or the file system compresses.
    fn take(&mut self, facts: &Facts) -> bool {
        let left = self.left_bytes.checked_sub(facts.used_bytes());
        self.left_bytes = left.unwrap_or_default();
        left.is_some() && (facts.kind() != Kind::File || facts.size_bytes() <= self.limit_bytes)
    }
}

/// Whether the trees take more than this together. A file with several names counts each time.
fn exceeds(dirs: &[PathBuf], limit_bytes: u64) -> bool {
    let mut left = Space { limit_bytes, left_bytes: limit_bytes };
    for dir in dirs {
        // The action may remove and rename while this looks: what is gone takes nothing.
        if let Ok(mut cursor) = Cursor::open(dir)
            && take(&mut cursor, &mut left).is_ok_and(|within| !within)
        {
            return true;
        }
    }
    false
}

/// Subtract what is below the cursor; false when nothing is left.
fn take(cursor: &mut Cursor, left: &mut Space) -> io::Result<bool> {
    let mut levels: Vec<Vec<OsString>> = Vec::new();
    if !take_entries(cursor, left, &mut levels)? {
        return Ok(false);
    }
    while let Some(level) = levels.last_mut() {
        match level.pop() {
            Some(name) => {
                // One that may not be entered, or is gone, is passed over.
                if cursor.enter(&name).is_ok() && !take_entries(cursor, left, &mut levels)? {
                    return Ok(false);
                }
            }
            None => {
                levels.pop();
                cursor.leave()?;
            }
        }
    }
    Ok(true)
}

fn take_entries(cursor: &Cursor, left: &mut Space, levels: &mut Vec<Vec<OsString>>) -> io::Result<bool> {
    let mut inside = Vec::new();
    for (name, _) in cursor.list().unwrap_or_default() {
        let Ok(facts) = cursor.facts(&name) else { continue };
        if !left.take(&facts) {
            return Ok(false);
        }
        if facts.kind() == Kind::Directory {
            inside.push(name);
        }
    }
    levels.push(inside);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    type Test = std::result::Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn what_is_in_both_trees_counts_together() -> Test {
        let dir = tempfile::tempdir()?;
        let dirs = [dir.path().join("root"), dir.path().join("tmp")];
        for dir in &dirs {
            fs::create_dir_all(dir.join("a/b"))?;
            fs::write(dir.join("a/b/file"), vec![1; 100_000])?;
        }
        assert!(exceeds(&dirs, 150_000));
        assert!(!exceeds(&dirs, 1_000_000));
        assert!(!exceeds(&[dir.path().join("gone"), dir.path().join("gone")], 1));
        Ok(())
    }

    #[test]
    fn a_file_that_was_cut_is_too_large_however_little_it_takes() -> Test {
        let dir = tempfile::tempdir()?;
        let file = fs::File::create(dir.path().join("holes"))?;
        file.set_len(1 << 20)?;
        assert!(!exceeds(&[dir.path().to_owned()], 1 << 20));
        file.set_len((1 << 20) + 1)?;
        assert!(exceeds(&[dir.path().to_owned()], 1 << 20));
        Ok(())
    }

    #[test]
    fn a_look_comes_soon_and_sees_what_was_written() -> Test {
        let dir = tempfile::tempdir()?;
        let mut watch = DiskWatch::new(vec![dir.path().to_owned()], Some(1 << 20));
        let now = Instant::now();
        assert!(watch.due() > now + LOOK_INTERVAL_MAX);
        watch.begin(now);
        assert_eq!(watch.due(), now + FIRST_LOOK);
        assert_eq!(watch.look(true), None);
        fs::write(dir.path().join("big"), vec![1; 2 << 20])?;
        assert_eq!(watch.look(true), Some(Full::Limit));
        Ok(())
    }
}
