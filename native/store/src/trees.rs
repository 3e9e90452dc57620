//! Directories below a root: walked to the end to name what a tree needs, or read a page at a time (REAPI GetTree). What
//! unfolds into more than can be staged is refused.

use std::collections::{HashMap, HashSet, VecDeque};

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

    /// Directories below `root` in pages: parents first, once each, absent children passed over (REAPI GetTree).
    ///
    /// # Errors
    /// `not_found` when the root itself is absent; `invalid_request` for a token that is not one of ours.
    pub fn tree_page(
        &self,
        root: &Digest,
        page_size: usize,
        page_token: &str,
        bytes_max: usize,
    ) -> Result<TreePage, NativeError> {
        if !self.contains(root) {
            return Err(NativeError::not_found("blob", root.to_string()));
        }
        let skip: usize = match page_token {
            "" => 0,
            token => token
                .parse()
                .map_err(|_| NativeError::invalid("page_token", format!("{token:?} is not a page token of ours")))?,
        };
        let limit = if page_size == 0 { PAGE_DIRECTORIES_MAX } else { page_size.min(PAGE_DIRECTORIES_MAX) };
        let mut queue = VecDeque::from([*root]);
        let mut queued = HashSet::from([*root]);
        let mut page = TreePage { directories: Vec::new(), next_page_token: String::new() };
        let (mut passed, mut bytes) = (0, 0);
        while let Some(digest) = queue.pop_front() {
            if !self.contains(&digest) {
                continue;
            }
            let encoded = self.get_bytes(&digest, MESSAGE_BYTES_MAX)?;
            let directory = re::Directory::decode(encoded.clone())
                .map_err(|e| NativeError::invalid("root_digest", format!("{digest} is not a Directory: {e}")))?;
            if passed >= skip {
                let full = page.directories.len() >= limit || bytes + encoded.len() > bytes_max;
                if full && !page.directories.is_empty() {
                    page.next_page_token = passed.to_string();
                    return Ok(page);
                }
                bytes += encoded.len();
            }
            for child in &directory.directories {
                let child = Digest::required_by(Some(digest.function()), child.digest.as_ref(), "directories.digest")?;
                if queued.len() < DIRECTORIES_MAX && queued.insert(child) {
                    queue.push_back(child);
                }
            }
            if passed >= skip {
                page.directories.push(directory);
            }
            passed += 1;
        }
        if passed < skip {
            let message =
                format!("the page {page_token:?} is not one of this tree as it is now; begin without a token");
            return Err(NativeError::invalid("page_token", message));
        }
        Ok(page)
    }
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
