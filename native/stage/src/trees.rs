//! Input trees that were staged once are kept, so that the next action with the same tree waits for nothing. A tree is
//! whole or absent; one that is in use is never removed, else the least recently used goes first. A tree that differs little
//! from a kept one is kept as that difference, laid over it.
//!
//! Nothing but this module writes here, and actions see a tree only through a layer of their own (`view`). What an earlier
//! process kept is removed at start: a tree that power failed under need not be what its digest says.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use buildnet_formats::{Digest, MESSAGE_BYTES_MAX, decode_directory};
use buildnet_store::Store;

use crate::error::{self, Result};
use crate::image::Image;
use crate::input_tree::InputTree;
use crate::layer::Layer;
use crate::nodes;
use crate::remove::remove_tree;
use crate::view::{self, View};

/// A smaller tree is copied as quickly as a layer is laid over a kept one.
const ENTRIES_MIN: u64 = 32;
const DISK_BYTES_MIN: u64 = 4 << 20;
/// The tables of an image are made in memory, some 150 bytes an entry: larger trees are kept as directories.
const IMAGE_ENTRIES_MAX: u64 = 500_000;
/// Each has an open descriptor where it is an image.
const TREES_MAX: usize = 512;
/// Kept trees that a new one is compared with, the latest first.
const BASES_MAX: usize = 4;
/// A difference of more than this part of a tree is not worth a second layer.
const DIFFERENCE_PART: u64 = 4;

/// Kept trees below one directory, used by one process.
#[derive(Debug)]
pub struct Trees {
    directory: PathBuf,
    size_bytes_max: u64,
    /// Whether a layer can be a file system in a file.
    images: bool,
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
    /// The topmost first; at most a difference and a whole tree.
    layers: Vec<Arc<Layer>>,
    users: u32,
    used: u64,
}

/// A tree in use: until it is dropped, the tree stays.
#[derive(Debug)]
pub struct KeptTree {
    trees: Arc<Trees>,
    root: Digest,
    layers: Vec<Arc<Layer>>,
}

/// How a new tree will be kept.
struct Planned {
    /// None: as a directory.
    image: Option<Image>,
    base: Option<KeptTree>,
    disk_bytes: u64,
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
        if !possible {
            return Ok(None);
        }
        make(&probe)?;
        let images = Layer::probe(&directory.join("image")).is_ok_and(|layer| view::possible_over(&layer, &probe));
        remove_tree(&probe)?;
        remove_tree(&directory.join("image"))?;
        Ok(Some(Arc::new(Self {
            directory: directory.to_owned(),
            size_bytes_max,
            images,
            state: Mutex::default(),
            built: Condvar::new(),
        })))
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
        if tree.whole.entries < ENTRIES_MIN && tree.whole.disk_bytes < DISK_BYTES_MIN {
            return Ok(Obtained::Small(tree));
        }
        let planned = self.plan(store, root, &tree)?;
        if !self.reserve(planned.disk_bytes) {
            return Ok(Obtained::Small(tree));
        }
        self.build(store, root, &tree, planned).map(Obtained::Kept)
    }

    fn plan(self: &Arc<Self>, store: &Store, root: &Digest, tree: &InputTree) -> Result<Planned> {
        if !self.images || tree.whole.entries > IMAGE_ENTRIES_MAX {
            return Ok(Planned { image: None, base: None, disk_bytes: tree.whole.disk_bytes });
        }
        let (nodes, base) = match self.difference(store, root, tree)? {
            Some((nodes, base)) => (nodes, Some(base)),
            None => (nodes::whole(tree, root)?, None),
        };
        let image = Image::new(&nodes)?;
        let disk_bytes = image.size_bytes();
        Ok(Planned { image: Some(image), base, disk_bytes })
    }

    /// The kept tree that is most like this one, and what makes this one of it.
    fn difference(
        self: &Arc<Self>,
        store: &Store,
        root: &Digest,
        tree: &InputTree,
    ) -> Result<Option<(Vec<nodes::Node>, KeptTree)>> {
        // The store may have evicted what described a tree that is kept.
        let described = |digest: &Digest| {
            let bytes = store.get_bytes(digest, MESSAGE_BYTES_MAX).ok()?;
            decode_directory(&bytes).ok().map(Arc::new)
        };
        let mut entries_max = usize::try_from(tree.whole.entries / DIFFERENCE_PART).unwrap_or(usize::MAX);
        let mut best = None;
        for base in self.bases() {
            if let Some(found) = nodes::difference(tree, root, &base.root, &described, entries_max)? {
                entries_max = found.len().saturating_sub(1);
                best = Some((found, base));
            }
        }
        Ok(best)
    }

    /// Whole trees, the latest first.
    fn bases(self: &Arc<Self>) -> Vec<KeptTree> {
        let mut state = self.state();
        let whole = state.known.iter().filter(|(_, tree)| tree.layers.len() == 1);
        let mut latest: Vec<(u64, Digest)> = whole.map(|(root, tree)| (tree.used, *root)).collect();
        latest.sort_unstable_by(|one, other| other.cmp(one));
        latest.truncate(BASES_MAX);
        latest.iter().filter_map(|(_, root)| self.hold(&mut state, root)).collect()
    }

    fn build(self: &Arc<Self>, store: &Store, root: &Digest, tree: &InputTree, planned: Planned) -> Result<KeptTree> {
        let path = {
            let mut state = self.state();
            state.number += 1;
            self.directory.join(state.number.to_string())
        };
        let written = match &planned.image {
            Some(image) => Layer::image(store, image, &path),
            None => Layer::directory(store, root, tree, &path),
        };
        let layer = written.inspect_err(|_| {
            // The first error is the one to tell. What cannot be removed now goes at the next start.
            let _ = remove_tree(&path);
            self.state().disk_bytes -= planned.disk_bytes;
        })?;
        let mut layers = vec![Arc::new(layer)];
        let mut state = self.state();
        if let Some(base) = &planned.base {
            layers.extend(base.layers.iter().cloned());
            // As recently used as what stands on it.
            state.uses += 1;
            let used = state.uses;
            if let Some(tree) = state.known.get_mut(&base.root) {
                tree.used = used;
            }
        }
        state.known.insert(*root, Tree { layers, users: 0, used: 0 });
        let kept = self.take(&mut state, root);
        drop(state);
        kept.ok_or_else(|| error::sandbox("a tree that was just kept is gone"))
    }

    /// Make room, and count it as taken. False when it cannot be had.
    fn reserve(&self, disk_bytes: u64) -> bool {
        // One tree must not take the place of all others.
        if disk_bytes > self.size_bytes_max / 2 {
            return false;
        }
        let mut going = Vec::new();
        let mut state = self.state();
        while state.disk_bytes + disk_bytes > self.size_bytes_max || state.known.len() >= TREES_MAX {
            let idle = state.known.iter().filter(|(_, tree)| tree.users == 0);
            let Some(oldest) = idle.min_by_key(|(_, tree)| tree.used).map(|(root, _)| *root) else {
                break;
            };
            // A layer on which another tree stands goes with that.
            let layers = state.known.remove(&oldest).map(|tree| tree.layers).unwrap_or_default();
            for layer in layers.into_iter().filter_map(|layer| Arc::try_unwrap(layer).ok()) {
                state.disk_bytes -= layer.disk_bytes;
                going.push(layer);
            }
        }
        let fits = state.disk_bytes + disk_bytes <= self.size_bytes_max && state.known.len() < TREES_MAX;
        if fits {
            state.disk_bytes += disk_bytes;
        }
        drop(state);
        going.into_iter().for_each(Layer::remove);
        fits
    }

    fn take(self: &Arc<Self>, state: &mut State, root: &Digest) -> Option<KeptTree> {
        state.uses += 1;
        let used = state.uses;
        state.known.get_mut(root)?.used = used;
        self.hold(state, root)
    }

    /// Have it stay; that alone is no use of it.
    fn hold(self: &Arc<Self>, state: &mut State, root: &Digest) -> Option<KeptTree> {
        let tree = state.known.get_mut(root)?;
        tree.users += 1;
        Some(KeptTree { trees: Arc::clone(self), root: *root, layers: tree.layers.clone() })
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
    /// The roots of its layers, the topmost first.
    pub(crate) fn open(&self) -> io::Result<Vec<File>> {
        self.layers.iter().map(|layer| layer.open()).collect()
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
        let mut state = self.trees.state();
        // Before it may go: whoever removes it counts who else stands on its layers.
        self.layers.clear();
        if let Some(tree) = state.known.get_mut(&self.root) {
            tree.users -= 1;
        }
    }
}
