//! A checked tree becomes files and directories below one directory: first all directories, then what is in them, by
//! several threads, last their own modes and times. It checks nothing of the tree, and follows no symlink.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, NativeError};
use buildnet_store::Store;

use crate::error::{self, Result};
use crate::input_tree::InputTree;
use crate::place::Cursor;
use crate::stage::Staged;

/// Entries that one thread writes before it takes more: a directory may hold them all.
const ENTRIES_AT_ONCE: usize = 128;
/// A thread costs as much as writing some files.
const ENTRIES_PER_THREAD: usize = 256;
const THREADS_MAX: usize = 4;

/// One directory that was made. Its path is that of `parent` and its name: paths of their own could outgrow memory.
struct Made {
    parent: usize,
    name: OsString,
    directory: Arc<re::Directory>,
}

/// Some entries of one directory: first of its files, then of its symlinks.
struct Part {
    made: usize,
    from: usize,
    to: usize,
}

struct Writer<'a> {
    store: &'a Store,
    dest: &'a Path,
    top: &'a Cursor,
    made: Vec<Made>,
}

/// Write `tree`, whose root Directory is `root`, into the empty directory that `cursor` stands in, which is `dest`.
///
/// # Errors
/// `storage_full`, `sandbox_failed`; `blobs_missing` for a blob that went since the tree was read.
pub(crate) fn write(
    tree: &InputTree,
    store: &Store,
    root: &Digest,
    cursor: &mut Cursor,
    dest: &Path,
) -> Result<Staged> {
    let made = make_directories(tree, root, cursor, dest)?;
    let mut staged = Staged { directories: made.len() as u64 - 1, ..Staged::default() };
    for file in made.iter().flat_map(|made| &made.directory.files) {
        staged.files += 1;
        staged.bytes += Digest::required(file.digest.as_ref(), "files.digest")?.size_bytes();
    }
    let writer = Writer { store, dest, top: cursor, made };
    writer.write_all()?;
    writer.describe_all()?;
    Ok(staged)
}

/// Parents come before what is in them; the first is the root.
fn make_directories(tree: &InputTree, root: &Digest, cursor: &mut Cursor, dest: &Path) -> Result<Vec<Made>> {
    let top = Made { parent: 0, name: OsString::new(), directory: Arc::clone(tree.directory(root)?) };
    let mut levels = vec![(0, 0)];
    let mut made = vec![top];
    while let Some((index, next)) = levels.last_mut() {
        let parent = *index;
        let Some(child) = made[parent].directory.directories.get(*next) else {
            levels.pop();
            let left = cursor.leave();
            left.map_err(|failed| error::io("leave", &dest.join(cursor.path()), &failed))?;
            continue;
        };
        *next += 1;
        let digest = Digest::required(child.digest.as_ref(), "directories.digest")?;
        let name = OsString::from(&child.name);
        let entered = cursor.make(&name, 0o755);
        entered.map_err(|failed| error::io("make", &dest.join(cursor.path_of(&name)), &failed))?;
        levels.push((made.len(), 0));
        made.push(Made { parent, name, directory: Arc::clone(tree.directory(&digest)?) });
    }
    Ok(made)
}

impl Writer<'_> {
    fn write_all(&self) -> Result<()> {
        let mut parts = Vec::new();
        let mut entries = 0;
        for (index, made) in self.made.iter().enumerate() {
            let count = made.directory.files.len() + made.directory.symlinks.len();
            entries += count;
            for from in (0..count).step_by(ENTRIES_AT_ONCE) {
                parts.push(Part { made: index, from, to: count.min(from + ENTRIES_AT_ONCE) });
            }
        }
        let threads = match entries / ENTRIES_PER_THREAD {
            0 | 1 => 1,
            // To ask costs a dozen system calls.
            wanted => {
                let processors = std::thread::available_parallelism().map_or(1, usize::from);
                wanted.clamp(1, processors.min(THREADS_MAX))
            }
        };
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<NativeError>> = Mutex::new(None);
        let work = || {
            while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.write_part(part) {
                    // The others stop at their next part; the first error is the one to tell.
                    next.store(parts.len(), Ordering::Relaxed);
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn write_part(&self, part: &Part) -> Result<()> {
        let cursor = self.stand_in(part.made)?;
        let directory = &self.made[part.made].directory;
        let at = |name: &OsStr| self.path_of(part.made).join(name);
        for number in part.from..part.to {
            if let Some(node) = directory.files.get(number) {
                let digest = Digest::required(node.digest.as_ref(), "files.digest")?;
                copy_blob(self.store, &digest, &cursor, node).map_err(|failed| match failed {
                    Failure::Absent => NativeError::missing(&[digest]),
                    Failure::Io(failed) => error::io("write", &at(OsStr::new(&node.name)), &failed),
                })?;
            } else if let Some(link) = directory.symlinks.get(number - directory.files.len()) {
                let name = OsStr::new(&link.name);
                let made = cursor.create_symlink(&link.target, name);
                made.and_then(|()| set_mtime(&cursor, Some(name), link.node_properties.as_ref()))
                    .map_err(|failed| error::io("link", &at(name), &failed))?;
            }
        }
        Ok(())
    }

    /// Last, and what is below first: a mode without `w` or a time would not survive what is made inside.
    fn describe_all(&self) -> Result<()> {
        for (index, made) in self.made.iter().enumerate().rev() {
            if made.directory.node_properties.is_some() {
                let cursor = self.stand_in(index)?;
                let done = describe_directory(&cursor, &made.directory);
                done.map_err(|failed| error::io("finish", &self.path_of(index), &failed))?;
            }
        }
        Ok(())
    }

    /// The names that lead from the root to a directory.
    fn names_of(&self, mut index: usize) -> Vec<&OsStr> {
        let mut names = Vec::new();
        while index != 0 {
            names.push(self.made[index].name.as_os_str());
            index = self.made[index].parent;
        }
        names.reverse();
        names
    }

    fn path_of(&self, index: usize) -> PathBuf {
        self.dest.join(self.names_of(index).iter().collect::<PathBuf>())
    }

    fn stand_in(&self, index: usize) -> Result<Cursor> {
        let stood = self.top.stand_below(&self.names_of(index));
        stood.map_err(|failed| error::io("open", &self.path_of(index), &failed))
    }
}

enum Failure {
    Absent,
    Io(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Copied through the store, which checks every byte: what an action reads is what its digest says.
fn copy_blob(store: &Store, digest: &Digest, cursor: &Cursor, node: &re::FileNode) -> std::result::Result<(), Failure> {
    let name = OsStr::new(&node.name);
    let properties = node.node_properties.as_ref();
    let mode = mode_of(properties).unwrap_or(if node.is_executable { 0o755 } else { 0o644 });
    let mut copy = cursor.create_file(name, mode)?;
    if !digest.is_empty() {
        let mut failed = None;
        let copied = store.copy_to(digest, &mut |chunk| {
            copy.write_all(chunk).map_err(|error| {
                failed = Some(error);
                NativeError::internal("the copy stopped")
            })
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        copied.map_err(|_| Failure::Absent)?;
    }
    set_mtime(cursor, Some(name), properties)?;
    Ok(())
}

/// Set-id and sticky bits are not an input's to give.
pub(crate) fn mode_of(properties: Option<&re::NodeProperties>) -> Option<u32> {
    properties?.unix_mode.map(|mode| mode & 0o777)
}

fn set_mtime(cursor: &Cursor, name: Option<&OsStr>, properties: Option<&re::NodeProperties>) -> io::Result<()> {
    let Some(mtime) = properties.and_then(|properties| properties.mtime.as_ref()) else {
        return Ok(());
    };
    let nanos = i64::from(mtime.nanos.clamp(0, 999_999_999));
    cursor.set_mtime(name, mtime.seconds, nanos)
}

fn describe_directory(cursor: &Cursor, directory: &re::Directory) -> io::Result<()> {
    let properties = directory.node_properties.as_ref();
    if let Some(mode) = mode_of(properties) {
        cursor.set_own_mode(mode)?;
    }
    set_mtime(cursor, None, properties)
}
