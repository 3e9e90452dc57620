//! Directories below a root: walked to the end to name what a tree needs, or read a page at a time (REAPI GetTree). What
//! unfolds into more than can be staged is refused.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{
    DEPTH_MAX, DIRECTORIES_MAX, Digest, Function, MESSAGE_BYTES_MAX, NativeError, decode_directory,
    symlink_target_stays,
};
use prost::Message;

use crate::Store;

/// Files and directories of one tree with every path counted, so that a small tree cannot unfold into a huge one.
const PATHS_MAX: u64 = 2_000_000;
const PAGE_DIRECTORIES_MAX: usize = 10_000;

/// One reply of GetTree.
pub struct TreePage {
    /// Directories, parents before their children.
    pub directories: Vec<re::Directory>,
    /// Where the next page begins; empty at the end.
    pub next_page_token: String,
}

/// What a walk learnt of one Directory.
struct Seen {
    children: Vec<Digest>,
    entries: u64,
}

/// Digests to look for, once each, all by the function of the message that led to them.
#[derive(Default)]
pub(crate) struct Wanted {
    function: Option<Function>,
    pub(crate) order: Vec<Digest>,
    known: HashSet<Digest>,
}

impl Wanted {
    pub(crate) fn by(function: Option<Function>) -> Self {
        Self { function, ..Self::default() }
    }

    pub(crate) fn add(&mut self, digest: Digest) {
        if self.known.insert(digest) {
            self.order.push(digest);
        }
    }

    pub(crate) fn add_message(
        &mut self,
        digest: Option<&re::Digest>,
        field: &'static str,
    ) -> Result<Digest, NativeError> {
        let digest = Digest::required_by(self.function, digest, field)?;
        self.add(digest);
        Ok(digest)
    }
}

impl Store {
    /// Walk the Directories below `root`, breadth first: files go to `wanted`, absent Directories to `missing`.
    /// Returns those that are present.
    pub(crate) fn walk(
        &self,
        root: Digest,
        wanted: &mut Wanted,
        missing: &mut Vec<Digest>,
    ) -> Result<Vec<Digest>, NativeError> {
        let mut seen: HashMap<Digest, Seen> = HashMap::new();
        let mut order = Vec::new();
        let mut level = vec![root];
        let mut queued = HashSet::from([root]);
        let mut depth = 0;
        while !level.is_empty() {
            if depth > DEPTH_MAX {
                return Err(too_deep(&root));
            }
            let mut next = Vec::new();
            for digest in level {
                if !self.contains(&digest) {
                    missing.push(digest);
                    continue;
                }
                let directory = decode_directory(&self.get_bytes(&digest, MESSAGE_BYTES_MAX)?)?;
                for file in &directory.files {
                    wanted.add_message(file.digest.as_ref(), "files.digest")?;
                }
                if let Some(link) = directory.symlinks.iter().find(|l| !symlink_target_stays(&l.target, depth)) {
                    return Err(NativeError::invalid(
                        "input_root_digest",
                        format!("the symlink {:?} to {:?} leaves the input root", link.name, link.target),
                    ));
                }
                let mut children = Vec::with_capacity(directory.directories.len());
                for child in &directory.directories {
                    let child =
                        Digest::required_by(Some(digest.function()), child.digest.as_ref(), "directories.digest")?;
                    children.push(child);
                    if queued.insert(child) {
                        next.push(child);
                    }
                }
                let entries = (directory.files.len() + directory.symlinks.len()) as u64;
                seen.insert(digest, Seen { children, entries });
                order.push(digest);
            }
            if queued.len() > DIRECTORIES_MAX {
                return Err(NativeError::invalid(
                    "input_root_digest",
                    format!("the tree {root} has over {DIRECTORIES_MAX} directories"),
                ));
            }
            level = next;
            depth += 1;
        }
        check_unfolded(root, &seen)?;
        Ok(order)
    }

    /// Directories below `root` in pages: parents first, once each, absent children passed over (REAPI GetTree). A walk goes
    /// on from page to page; one that begins at a `page_token` looks for its place once.
    ///
    /// # Errors
    /// `not_found` when the root itself is absent; `invalid_request` for a token that names no Directory of this tree.
    pub fn tree_walk(
        self: &Arc<Self>,
        root: &Digest,
        page_size: usize,
        page_token: &str,
        bytes_max: usize,
    ) -> Result<TreeWalk, NativeError> {
        if !self.contains(root) {
            return Err(NativeError::not_found("blob", root.to_string()));
        }
        let limit = if page_size == 0 { PAGE_DIRECTORIES_MAX } else { page_size.min(PAGE_DIRECTORIES_MAX) };
        let mut walk = TreeWalk {
            store: Arc::clone(self),
            limit,
            bytes_max,
            queue: VecDeque::from([*root]),
            queued: HashSet::from([*root]),
            ahead: None,
        };
        if !page_token.is_empty() {
            let next = named_by(root.function(), page_token)?;
            while walk.ahead.as_ref().is_none_or(|found| found.digest != next) {
                walk.ahead = None;
                let Some(found) = walk.take()? else {
                    let message =
                        format!("the page {page_token:?} is not one of this tree as it is now; begin without a token");
                    return Err(NativeError::invalid("page_token", message));
                };
                walk.ahead = Some(found);
            }
        }
        Ok(walk)
    }
}

/// A walk through the Directories of a tree, breadth first.
pub struct TreeWalk {
    store: Arc<Store>,
    limit: usize,
    bytes_max: usize,
    queue: VecDeque<Digest>,
    queued: HashSet<Digest>,
    /// What was read and did not fit its page.
    ahead: Option<Found>,
}

struct Found {
    digest: Digest,
    directory: re::Directory,
    size_bytes: usize,
}

impl TreeWalk {
    /// The next page; after the last one an empty one.
    ///
    /// # Errors
    /// `invalid_request` where the tree holds no Directory; those of reading.
    pub fn next_page(&mut self) -> Result<TreePage, NativeError> {
        let mut page = TreePage { directories: Vec::new(), next_page_token: String::new() };
        let mut bytes = 0;
        while let Some(found) = self.take()? {
            let full = page.directories.len() >= self.limit || bytes + found.size_bytes > self.bytes_max;
            if full && !page.directories.is_empty() {
                page.next_page_token = format!("{}/{}", found.digest.hex(), found.digest.size_bytes());
                self.ahead = Some(found);
                return Ok(page);
            }
            bytes += found.size_bytes;
            page.directories.push(found.directory);
        }
        Ok(page)
    }

    /// How many digests it remembers.
    pub fn known(&self) -> usize {
        self.queued.len()
    }

    fn take(&mut self) -> Result<Option<Found>, NativeError> {
        if let Some(found) = self.ahead.take() {
            return Ok(Some(found));
        }
        while let Some(digest) = self.queue.pop_front() {
            if !self.store.contains(&digest) {
                continue;
            }
            let encoded = self.store.get_bytes(&digest, MESSAGE_BYTES_MAX)?;
            let size_bytes = encoded.len();
            let directory = re::Directory::decode(encoded)
                .map_err(|e| NativeError::invalid("root_digest", format!("{digest} is not a Directory: {e}")))?;
            for child in &directory.directories {
                let child = Digest::required_by(Some(digest.function()), child.digest.as_ref(), "directories.digest")?;
                if self.queued.len() < DIRECTORIES_MAX && self.queued.insert(child) {
                    self.queue.push_back(child);
                }
            }
            return Ok(Some(Found { digest, directory, size_bytes }));
        }
        Ok(None)
    }
}

/// The Directory that a page token says is next.
fn named_by(function: Function, token: &str) -> Result<Digest, NativeError> {
    let foreign = || NativeError::invalid("page_token", format!("{token:?} is not a page token of ours"));
    let (hash, size_bytes) = token.split_once('/').ok_or_else(foreign)?;
    let size_bytes = size_bytes.parse().map_err(|_| foreign())?;
    let message = re::Digest { hash: hash.to_owned(), size_bytes };
    Digest::from_message_by(Some(function), &message).map_err(|_| foreign())
}

/// A Directory that is shared by many paths is stored once and staged many times: bound the paths and their depth.
fn check_unfolded(root: Digest, seen: &HashMap<Digest, Seen>) -> Result<(), NativeError> {
    let mut done: HashMap<Digest, (u64, usize)> = HashMap::with_capacity(seen.len());
    let mut stack = vec![(root, false)];
    while let Some((digest, expanded)) = stack.pop() {
        let Some(here) = seen.get(&digest) else { continue };
        if done.contains_key(&digest) {
            continue;
        }
        if !expanded {
            stack.push((digest, true));
            stack.extend(here.children.iter().filter(|c| !done.contains_key(*c)).map(|c| (*c, false)));
            continue;
        }
        let (mut paths, mut height) = (1 + here.entries, 0);
        for child in &here.children {
            if let Some((below, levels)) = done.get(child) {
                paths = paths.saturating_add(*below);
                height = height.max(levels + 1);
            }
        }
        if height > DEPTH_MAX {
            return Err(too_deep(&root));
        }
        if paths > PATHS_MAX {
            return Err(NativeError::invalid(
                "input_root_digest",
                format!("the tree {root} unfolds into more than {PATHS_MAX} paths"),
            ));
        }
        done.insert(digest, (paths, height));
    }
    Ok(())
}

fn too_deep(root: &Digest) -> NativeError {
    NativeError::invalid("input_root_digest", format!("the tree {root} is nested deeper than {DEPTH_MAX} levels"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use proptest::prelude::*;

    /// Directories of which each may refer to those before it, the last one last; those that are `absent` are not stored.
    fn stored(store: &Arc<Store>, children: &[Vec<usize>], absent: &[bool]) -> Digest {
        let mut digests: Vec<Digest> = Vec::new();
        for (number, children) in children.iter().enumerate() {
            let node = |child: &usize| re::DirectoryNode {
                name: format!("{child}"),
                digest: digests.get(*child % number.max(1)).map(Digest::to_message),
            };
            let link = re::SymlinkNode { name: format!("{number}"), target: "t".to_owned(), ..Default::default() };
            let directories = if number == 0 { Vec::new() } else { children.iter().map(node).collect() };
            let encoded = re::Directory { directories, symlinks: vec![link], ..Default::default() }.encode_to_vec();
            let last = number + 1 == absent.len();
            digests.push(Digest::of(&encoded));
            if last || !absent[number] {
                store.put_bytes(&encoded).unwrap();
            }
        }
        digests[digests.len() - 1]
    }

    fn pages(mut walk: TreeWalk) -> Vec<TreePage> {
        let mut pages = vec![walk.next_page().unwrap()];
        while !pages[pages.len() - 1].next_page_token.is_empty() {
            pages.push(walk.next_page().unwrap());
        }
        pages
    }

    fn joined(pages: Vec<TreePage>) -> Vec<re::Directory> {
        pages.into_iter().flat_map(|page| page.directories).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn pages_of_any_size_are_the_whole_walk_from_any_token(
            nodes in proptest::collection::vec((proptest::collection::vec(any::<usize>(), 0..5), any::<bool>()), 1..30),
            size in 1usize..9, bytes_max in 1usize..2_000, forged in "[0-9a-f/]{0,70}"
        ) {
            let directory = tempfile::tempdir().unwrap();
            let options = Options { free_bytes_min: 0, ..Options::default() };
            let store = Arc::new(Store::open(directory.path(), options).unwrap());
            let (children, absent): (Vec<_>, Vec<_>) = nodes.into_iter().unzip();
            let root = stored(&store, &children, &absent);
            let whole = joined(pages(store.tree_walk(&root, 0, "", usize::MAX).unwrap()));
            let paged = pages(store.tree_walk(&root, size, "", bytes_max).unwrap());
            prop_assert!(paged.iter().all(|page| (1..=size).contains(&page.directories.len())));
            let mut before = 0;
            for page in &paged {
                before += page.directories.len();
                if page.next_page_token.is_empty() {
                    prop_assert_eq!(before, whole.len());
                } else {
                    let rest = pages(store.tree_walk(&root, size, &page.next_page_token, usize::MAX).unwrap());
                    prop_assert_eq!(joined(rest), whole[before..].to_vec());
                }
            }
            prop_assert_eq!(joined(paged), whole.clone());
            // A token that is not ours is refused, or names a place in this very tree.
            match store.tree_walk(&root, size, &forged, bytes_max) {
                Ok(walk) => prop_assert!(whole.ends_with(&joined(pages(walk)))),
                Err(error) => prop_assert_eq!(error.code, "invalid_request"),
            }
        }
    }

    #[test]
    fn a_walk_reads_no_directory_for_two_pages() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options { free_bytes_min: 0, ..Options::default() };
        let store = Arc::new(Store::open(directory.path(), options).unwrap());
        let children: Vec<Vec<usize>> = (0..400).map(|number: usize| vec![number.wrapping_sub(1)]).collect();
        let root = stored(&store, &children, &[false; 400]);
        let mut walk = store.tree_walk(&root, 10, "", usize::MAX).unwrap();
        for page in 1..=40 {
            assert_eq!(walk.next_page().unwrap().directories.len(), 10);
            // A chain: what it knows beyond what it read is the next one.
            assert_eq!(walk.known(), (10 * page + 1 + usize::from(page < 40)).min(400));
        }
        assert_eq!(walk.next_page().unwrap().directories.len(), 0);
    }
}
