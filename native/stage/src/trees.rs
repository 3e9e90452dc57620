//! Input trees that were staged once are kept, so that the next action with the same tree waits for nothing. A tree is
//! whole or absent; one that is in use is never removed, else the least recently used goes first.
//!
//! Nothing but this module writes here, and actions see a tree only through a layer of their own (`view`). What an earlier
//! process kept is removed at start: a tree that power failed under need not be what its digest says.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use buildnet_formats::Digest;
use buildnet_store::Store;

use crate::error::{self, Result};
use crate::input_tree::InputTree;
use crate::place::Cursor;
use crate::remove::remove_tree;
use crate::view::{self, View};
use crate::write;

/// A smaller tree is copied as quickly as a layer is laid over a kept one.
const ENTRIES_MIN: u64 = 32;
const DISK_BYTES_MIN: u64 = 4 << 20;

/// Kept trees below one directory, used by one process.
#[derive(Debug)]
pub struct Trees {
    directory: PathBuf,
    size_bytes_max: u64,
    state: Mutex<State>,
    built: Condvar,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<Digest, Tree>,
    building: HashSet<Digest>,
    /// Of what is known, and of what is being built.
    disk_bytes: u64,
    /// Counts uses: which was the latest.
    uses: u64,
    /// Counts directories: none is used twice.
    number: u64,
}

#[derive(Debug)]
struct Tree {
    path: PathBuf,
    disk_bytes: u64,
    users: u32,
    used: u64,
}

/// A tree in use: until it is dropped, the tree stays.
#[derive(Debug)]
pub struct KeptTree {
    trees: Arc<Trees>,
    root: Digest,
    path: PathBuf,
}

/// What becomes of a tree that is asked for.
pub(crate) enum Obtained {
    Kept(KeptTree),
    /// Not worth keeping, or too large to be.
    Small(InputTree),
}

impl Trees {
    /// Keep at most `size_bytes_max` of trees below `directory`, which is emptied. None where this process may not lay
    /// layers over them: without CAP_SYS_ADMIN, or on a filesystem that cannot carry one.
    ///
    /// # Errors
    /// The directory cannot be emptied or made.
    pub fn open(directory: &Path, size_bytes_max: u64) -> Result<Option<Arc<Self>>> {
        remove_tree(directory)?;
        let make = |path: &Path| fs::create_dir_all(path).map_err(|failed| error::io("make", path, &failed));
        let probe = directory.join("probe");
        make(&probe)?;
        let possible = view::possible(&probe);
        remove_tree(&probe)?;
        let trees =
            Self { directory: directory.to_owned(), size_bytes_max, state: Mutex::default(), built: Condvar::new() };
        Ok(possible.then(|| Arc::new(trees)))
    }

    /// The tree whose root Directory is `root`, if it is kept; nothing of it need be in a store.
    pub fn find(self: &Arc<Self>, root: &Digest) -> Option<KeptTree> {
        self.take(&mut self.state(), root)
    }

    /// Trees, and what they take of the disk.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.known.len() as u64, state.disk_bytes)
    }

    /// The tree, written if need be; one that another thread writes is waited for.
    pub(crate) fn obtain(self: &Arc<Self>, store: &Store, root: &Digest) -> Result<Obtained> {
        let mut state = self.state();
        loop {
            if let Some(kept) = self.take(&mut state, root) {
                return Ok(Obtained::Kept(kept));
            }
            if !state.building.contains(root) {
                break;
            }
            state = self.built.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.building.insert(*root);
        drop(state);
        let _building = Building { trees: self, root };
        let tree = InputTree::read(store, root)?;
        let disk_bytes = tree.whole.disk_bytes;
        let worth = tree.whole.entries >= ENTRIES_MIN || disk_bytes >= DISK_BYTES_MIN;
        if !worth || !self.reserve(disk_bytes)? {
            return Ok(Obtained::Small(tree));
        }
        self.build(store, root, &tree).map(Obtained::Kept)
    }

    fn build(self: &Arc<Self>, store: &Store, root: &Digest, tree: &InputTree) -> Result<KeptTree> {
        let path = {
            let mut state = self.state();
            state.number += 1;
            self.directory.join(state.number.to_string())
        };
        let disk_bytes = tree.whole.disk_bytes;
        let written = fs::create_dir(&path)
            .and_then(|()| Cursor::open(&path))
            .map_err(|failed| error::io("make", &path, &failed))
            .and_then(|mut cursor| write::write(tree, store, root, &mut cursor, &path));
        if let Err(failed) = written {
            // The first error is the one to tell. What cannot be removed now goes at the next start.
            let _ = remove_tree(&path);
            self.state().disk_bytes -= disk_bytes;
            return Err(failed);
        }
        let mut state = self.state();
        state.known.insert(*root, Tree { path: path.clone(), disk_bytes, users: 0, used: 0 });
        let kept = self.take(&mut state, root);
        kept.ok_or_else(|| error::sandbox("a tree that was just kept is gone"))
    }

    /// Make room, and count it as taken. False when it cannot be had.
    fn reserve(&self, disk_bytes: u64) -> Result<bool> {
        // One tree must not take the place of all others.
        if disk_bytes > self.size_bytes_max / 2 {
            return Ok(false);
        }
        let mut going = Vec::new();
        let mut state = self.state();
        while state.disk_bytes + disk_bytes > self.size_bytes_max {
            let idle = state.known.iter().filter(|(_, tree)| tree.users == 0);
            let Some(oldest) = idle.min_by_key(|(_, tree)| tree.used).map(|(root, _)| *root) else {
                break;
            };
            if let Some(tree) = state.known.remove(&oldest) {
                state.disk_bytes -= tree.disk_bytes;
                going.push(tree.path);
            }
        }
        let fits = state.disk_bytes + disk_bytes <= self.size_bytes_max;
        if fits {
            state.disk_bytes += disk_bytes;
        }
        drop(state);
        going.iter().try_for_each(|path| remove_tree(path))?;
        Ok(fits)
    }

    fn take(self: &Arc<Self>, state: &mut State, root: &Digest) -> Option<KeptTree> {
        state.uses += 1;
        let used = state.uses;
        let tree = state.known.get_mut(root)?;
        tree.users += 1;
        tree.used = used;
        Some(KeptTree { trees: Arc::clone(self), root: *root, path: tree.path.clone() })
    }

    /// Every change is whole when the lock is given back: a panic elsewhere cannot leave it half done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the wait of others for a tree, however its making ends.
struct Building<'a> {
    trees: &'a Trees,
    root: &'a Digest,
}

impl Drop for Building<'_> {
    fn drop(&mut self) {
        self.trees.state().building.remove(self.root);
        self.trees.built.notify_all();
    }
}

impl KeptTree {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What an action may see of it and change, kept below `scratch`.
    ///
    /// # Errors
    /// `sandbox_failed`, `storage_full`.
    pub fn view(self, scratch: &Path) -> Result<View> {
        View::new(self, scratch)
    }
}

impl Drop for KeptTree {
    fn drop(&mut self) {
        if let Some(tree) = self.trees.state().known.get_mut(&self.root) {
            tree.users -= 1;
        }
    }
}
