//! An input tree becomes files of the action's own: copies, so that no action can alter a cached blob.
//!
//! The whole tree is checked before anything is written: every blob is there, no level is too deep, no symlink climbs
//! out. Hard links are never used: an action could change a cached blob through one.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{
    DEPTH_MAX, DIRECTORIES_MAX, Digest, MESSAGE_BYTES_MAX, NativeError, decode_command, decode_directory,
};
use buildnet_store::Store;

use crate::error::{self, Result};
use crate::place::{Cursor, Kind};

/// Files, directories and symlinks that one action may have as inputs, counted as they appear on disk: a small tree
/// of shared directories can unfold to more than any disk holds.
const ENTRIES_MAX: u64 = 4_000_000;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Directories of the input tree below the root.
    pub directories: u64,
}

/// Write the tree `root` below `dest`, then the working directory and the parents of every output of `command`.
///
/// # Errors
/// `blobs_missing` naming all of them, `invalid_request` for a malformed tree or Command, `too_large` past a limit,
/// `storage_full`. What was begun is left for `remove_tree`.
pub fn stage(store: &Store, root: &Digest, dest: &Path, command: &[u8]) -> Result<Staged> {
    let command = decode_command(command)?;
    let tree = InputTree::read(store, root)?;
    std::fs::create_dir_all(dest).map_err(|failed| error::io("make", dest, &failed))?;
    let mut cursor = Cursor::open(dest).map_err(|failed| error::io("open", dest, &failed))?;
    let staged = tree.write(store, root, &mut cursor, dest)?;
    for path in directories_before(&command) {
        make_directories(&mut cursor, &path, dest)?;
    }
    Ok(staged)
}

/// What one directory amounts to when it is unfolded.
#[derive(Clone, Copy, Default)]
struct Measure {
    levels: usize,
    entries: u64,
    /// How many levels above itself the boldest symlink below it climbs.
    climb: usize,
}

/// Every distinct Directory of a tree, checked.
struct InputTree {
    directories: HashMap<Digest, Arc<re::Directory>>,
}

impl InputTree {
    fn read(store: &Store, root: &Digest) -> Result<Self> {
        let mut tree = Self { directories: HashMap::new() };
        let mut missing = tree.load(store, root)?;
        let mut files = Vec::new();
        let mut seen = HashSet::new();
        for directory in tree.directories.values() {
            for file in &directory.files {
                let digest = Digest::required(file.digest.as_ref(), "files.digest")?;
                if seen.insert(digest) {
                    files.push(digest);
                }
            }
        }
        missing.extend(store.find_missing(&files)?);
        if !missing.is_empty() {
            missing.sort_unstable();
            return Err(NativeError::missing(&missing));
        }
        tree.measure(root)?;
        Ok(tree)
    }

    /// Read every Directory once; returns those that are missing.
    fn load(&mut self, store: &Store, root: &Digest) -> Result<Vec<Digest>> {
        let mut missing = Vec::new();
        let mut queue = vec![*root];
        let mut seen = HashSet::from([*root]);
        while let Some(digest) = queue.pop() {
            let bytes = match store.get_bytes(&digest, MESSAGE_BYTES_MAX) {
                Err(failed) if failed.code == "not_found" => {
                    missing.push(digest);
                    continue;
                }
                bytes => bytes?,
            };
            let directory = decode_directory(&bytes)?;
            for child in &directory.directories {
                let child = Digest::required(child.digest.as_ref(), "directories.digest")?;
                if seen.insert(child) {
                    queue.push(child);
                }
            }
            if seen.len() > DIRECTORIES_MAX {
                return Err(too_large("directories", DIRECTORIES_MAX as u64));
            }
            self.directories.insert(digest, Arc::new(directory));
        }
        Ok(missing)
    }

    /// Depth, size and symlinks, each distinct directory once, deepest first: a shared one may stand in many places.
    fn measure(&self, root: &Digest) -> Result<()> {
        let mut measures: HashMap<Digest, Measure> = HashMap::new();
        let mut open = vec![*root];
        while let Some(digest) = open.last().copied() {
            if measures.contains_key(&digest) {
                open.pop();
                continue;
            }
            let directory = self.directory(&digest)?;
            let mut waits = false;
            for child in &directory.directories {
                let child = Digest::required(child.digest.as_ref(), "directories.digest")?;
                if !measures.contains_key(&child) {
                    open.push(child);
                    waits = true;
                }
            }
            // A directory cannot contain itself (its digest would have to), so this ends.
            if waits {
                continue;
            }
            open.pop();
            measures.insert(digest, measure_one(directory, &measures)?);
        }
        let whole = measures.get(root).copied().unwrap_or_default();
        if whole.climb > 0 {
            let message = "a symlink of the input tree leads out of the execution root";
            return Err(NativeError::invalid("input_root_digest", message));
        }
        Ok(())
    }

    fn directory(&self, digest: &Digest) -> Result<&Arc<re::Directory>> {
        let found = self.directories.get(digest);
        found.ok_or_else(|| NativeError::missing(&[*digest]))
    }

    fn write(&self, store: &Store, root: &Digest, cursor: &mut Cursor, dest: &Path) -> Result<Staged> {
        let mut staged = Staged::default();
        let root = Arc::clone(self.directory(root)?);
        write_entries(store, cursor, &root, &mut staged, dest)?;
        let mut levels = vec![(root, 0)];
        while let Some((directory, next)) = levels.last_mut() {
            if let Some(child) = directory.directories.get(*next) {
                *next += 1;
                let digest = Digest::required(child.digest.as_ref(), "directories.digest")?;
                let inside = Arc::clone(self.directory(&digest)?);
                let name = OsStr::new(&child.name);
                let made = cursor.make(name, 0o755);
                made.map_err(|failed| error::io("make", &dest.join(cursor.path_of(name)), &failed))?;
                staged.directories += 1;
                write_entries(store, cursor, &inside, &mut staged, dest)?;
                levels.push((inside, 0));
                continue;
            }
            // Last: a mode without `w` or a time would not survive what is made inside.
            let done = describe_directory(cursor, directory).and_then(|()| cursor.leave());
            done.map_err(|failed| error::io("finish", &dest.join(cursor.path()), &failed))?;
            levels.pop();
        }
        Ok(staged)
    }
}

fn too_large(what: &str, limit: u64) -> NativeError {
    NativeError::too_large(format!("the input tree has more than {limit} {what}"), limit)
}

fn measure_one(directory: &re::Directory, known: &HashMap<Digest, Measure>) -> Result<Measure> {
    let mut measure =
        Measure { entries: (directory.files.len() + directory.symlinks.len()) as u64, ..Measure::default() };
    for link in &directory.symlinks {
        measure.climb = measure.climb.max(climb_of(&link.target));
    }
    for child in &directory.directories {
        let digest = Digest::required(child.digest.as_ref(), "directories.digest")?;
        let inside = known.get(&digest).copied().unwrap_or_default();
        measure.levels = measure.levels.max(inside.levels + 1);
        measure.entries = measure.entries.saturating_add(inside.entries).saturating_add(1);
        measure.climb = measure.climb.max(inside.climb.saturating_sub(1));
    }
    if measure.levels > DEPTH_MAX {
        return Err(too_large("levels of directories", DEPTH_MAX as u64));
    }
    if measure.entries > ENTRIES_MAX {
        return Err(too_large("entries", ENTRIES_MAX));
    }
    Ok(measure)
}

/// How many levels above its own directory a relative target passes.
pub(crate) fn climb_of(target: &str) -> usize {
    let mut level = 0_i64;
    let mut lowest = 0_i64;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => level -= 1,
            _ => level += 1,
        }
        lowest = lowest.min(level);
    }
    usize::try_from(lowest.unsigned_abs()).unwrap_or(usize::MAX)
}

/// Files and symlinks of the directory that the cursor stands in.
fn write_entries(
    store: &Store,
    cursor: &Cursor,
    directory: &re::Directory,
    staged: &mut Staged,
    dest: &Path,
) -> Result<()> {
    for node in &directory.files {
        let digest = Digest::required(node.digest.as_ref(), "files.digest")?;
        let name = OsStr::new(&node.name);
        copy_blob(store, &digest, cursor, node).map_err(|failed| match failed {
            Failure::Absent => NativeError::missing(&[digest]),
            Failure::Io(failed) => error::io("write", &dest.join(cursor.path_of(name)), &failed),
        })?;
        staged.files += 1;
        staged.bytes += digest.size_bytes();
    }
    for link in &directory.symlinks {
        let name = OsStr::new(&link.name);
        let made = cursor.create_symlink(&link.target, name);
        made.and_then(|()| set_mtime(cursor, Some(name), link.node_properties.as_ref()))
            .map_err(|failed| error::io("link", &dest.join(cursor.path_of(name)), &failed))?;
    }
    Ok(())
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
fn mode_of(properties: Option<&re::NodeProperties>) -> Option<u32> {
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

/// The working directory, and what leads up to each output (REAPI Command.output_paths, .output_directories).
pub(crate) fn directories_before(command: &re::Command) -> Vec<String> {
    let base = command.working_directory.as_str();
    let mut paths = vec![base.to_owned()];
    for output in outputs_of(command) {
        let parent = output.rsplit_once('/').map_or("", |(parent, _)| parent);
        paths.push(join(base, parent));
    }
    paths.sort_unstable();
    paths.dedup();
    paths
}

/// `output_paths` wins over the two older fields (REAPI Command.output_paths).
#[allow(deprecated)]
pub(crate) fn outputs_of(command: &re::Command) -> Vec<&String> {
    if command.output_paths.is_empty() {
        let older = command.output_files.iter().chain(&command.output_directories);
        return older.collect();
    }
    command.output_paths.iter().collect()
}

/// Two relative paths, either of which may be empty.
pub(crate) fn join(base: &str, path: &str) -> String {
    match (base, path) {
        ("", path) => path.to_owned(),
        (base, "") => base.to_owned(),
        (base, path) => format!("{base}/{path}"),
    }
}

/// From the root and back to it.
fn make_directories(cursor: &mut Cursor, path: &str, dest: &Path) -> Result<()> {
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let name = OsStr::new(part);
        let at = cursor.path_of(name);
        let entered = match cursor.enter(name) {
            Err(failed) if failed.kind() == io::ErrorKind::NotFound => cursor.make(name, 0o755),
            entered => entered,
        };
        entered.map_err(|failed| match cursor.facts(name).map(|facts| facts.kind()) {
            Ok(Kind::Directory) | Err(_) => error::io("make", &dest.join(&at), &failed),
            Ok(_) => error::invalid(
                "output_paths",
                format!("{path:?} leads through the input {}, which is no directory", at.display()),
            ),
        })?;
    }
    while cursor.depth() > 0 {
        let left = cursor.leave();
        left.map_err(|failed| error::io("leave", &dest.join(cursor.path()), &failed))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn climbing_is_counted_at_its_highest() {
        for (target, climb) in [
            ("a/b", 0),
            ("a/..", 0),
            ("..", 1),
            ("a/../..", 1),
            ("../../a", 2),
            ("a/../../../b/c/d", 2),
            (".//./..", 1),
        ] {
            assert_eq!(climb_of(target), climb, "{target}");
        }
    }

    proptest! {
        #[test]
        fn climbing_agrees_with_what_formats_allows(target in "[./a]{0,12}", depth in 0_usize..4) {
            let relative = target.trim_start_matches('/');
            let stays = buildnet_formats::symlink_target_stays(relative, depth);
            prop_assert_eq!(climb_of(relative) <= depth, stays);
        }
    }
}
