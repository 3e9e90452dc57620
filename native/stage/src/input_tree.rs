//! An input tree is read whole and checked before anything is written: every blob is there, no level is too deep, no
//! symlink climbs out. It writes nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{DEPTH_MAX, DIRECTORIES_MAX, Digest, MESSAGE_BYTES_MAX, NativeError, decode_directory};
use buildnet_store::Store;

use crate::error::Result;

/// Files, directories and symlinks that one action may have as inputs, counted as they appear on disk: a small tree
/// of shared directories can unfold to more than any disk holds.
const ENTRIES_MAX: u64 = 4_000_000;
/// What a file or a directory takes of a disk is a multiple of this.
const DISK_BLOCK_BYTES: u64 = 4096;

/// What one directory amounts to when it is unfolded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measure {
    levels: usize,
    /// Files, directories and symlinks below it.
    pub(crate) entries: u64,
    /// What they take of a disk, about.
    pub(crate) disk_bytes: u64,
    /// How many levels above itself the boldest symlink below it climbs.
    climb: usize,
}

/// Every distinct Directory of a tree, checked.
pub(crate) struct InputTree {
    directories: HashMap<Digest, Arc<re::Directory>>,
    /// Of the root.
    pub(crate) whole: Measure,
}

impl InputTree {
    pub(crate) fn read(store: &Store, root: &Digest) -> Result<Self> {
        let mut tree = Self { directories: HashMap::new(), whole: Measure::default() };
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
        tree.whole = tree.measure(root)?;
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
    fn measure(&self, root: &Digest) -> Result<Measure> {
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
        Ok(whole)
    }

    pub(crate) fn directory(&self, digest: &Digest) -> Result<&Arc<re::Directory>> {
        let found = self.directories.get(digest);
        found.ok_or_else(|| NativeError::missing(&[*digest]))
    }
}

fn too_large(what: &str, limit: u64) -> NativeError {
    NativeError::too_large(format!("the input tree has more than {limit} {what}"), limit)
}

fn measure_one(directory: &re::Directory, known: &HashMap<Digest, Measure>) -> Result<Measure> {
    let mut measure = Measure {
        entries: (directory.files.len() + directory.symlinks.len()) as u64,
        disk_bytes: DISK_BLOCK_BYTES,
        ..Measure::default()
    };
    for file in &directory.files {
        let size_bytes = Digest::required(file.digest.as_ref(), "files.digest")?.size_bytes();
        let blocks = size_bytes.div_ceil(DISK_BLOCK_BYTES);
        measure.disk_bytes = measure.disk_bytes.saturating_add(blocks.saturating_mul(DISK_BLOCK_BYTES));
    }
    for link in &directory.symlinks {
        measure.climb = measure.climb.max(climb_of(&link.target));
    }
    for child in &directory.directories {
        let digest = Digest::required(child.digest.as_ref(), "directories.digest")?;
        let inside = known.get(&digest).copied().unwrap_or_default();
        measure.levels = measure.levels.max(inside.levels + 1);
        measure.entries = measure.entries.saturating_add(inside.entries).saturating_add(1);
        measure.disk_bytes = measure.disk_bytes.saturating_add(inside.disk_bytes);
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
