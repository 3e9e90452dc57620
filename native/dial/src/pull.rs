//! Write remote trees and files into a local directory. Names are validated first, so that no tree writes outside it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use buildnet_formats::Digest;
use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use prost::Message;

use crate::part::Part;
use crate::transfer::{batches_of, decode_directory, digest_of};
use crate::{DialError, Link, Moved};

const TREE_BYTES_MAX: u64 = 256 << 20;
const LEVELS_MAX: usize = 1_000;
const DIRECTORIES_MAX: usize = 1_000_000;
const STREAMS_AT_ONCE: usize = 4;

struct Plan {
    directories: Vec<PathBuf>,
    files: Vec<(PathBuf, Digest, bool)>,
    symlinks: Vec<(PathBuf, String)>,
}

impl Link {
    /// Download one blob to a file, verified; the file appears only when it is whole.
    ///
    /// A pipe or a device is written into and stays what it is, and so, with `follow`, is what a link leads to: bytes go
    /// there as they come, and an error may come after some. Without `follow` a link is replaced.
    ///
    /// # Errors
    /// [`DialError::Missing`] when the server lacks it, and nothing was written; local I/O.
    pub fn get_file(&self, digest: &Digest, dest: &Path, executable: bool, follow: bool) -> Result<(), DialError> {
        if stays(dest, follow) {
            return self.runtime.block_on(self.into(digest, dest, executable, follow));
        }
        self.runtime.block_on(self.file(digest, dest, executable))
    }

    /// Download the Directory `root` and everything below it into `dest`, which is created.
    ///
    /// # Errors
    /// [`DialError::Missing`] names what the server lacks; a malformed tree; local I/O.
    pub fn pull_directory(&self, root: &Digest, dest: &Path) -> Result<Moved, DialError> {
        self.runtime.block_on(async {
            let known = self.directories_below(root).await?;
            let plan = plan_of(root, &known, dest)?;
            self.write(plan, dest).await
        })
    }

    /// Download the output directory described by the Tree blob `tree` into `dest`, which is created.
    ///
    /// # Errors
    /// As [`Link::pull_directory`].
    pub fn pull_tree(&self, tree: &Digest, dest: &Path) -> Result<Moved, DialError> {
        let bytes = self.get_bytes(tree, TREE_BYTES_MAX)?;
        let tree = re::Tree::decode(bytes).map_err(|_| DialError::Invalid(format!("{tree} is not a Tree")))?;
        let root = tree.root.unwrap_or_default();
        let root_digest = Digest::of(&root.encode_to_vec());
        let mut known: HashMap<Digest, re::Directory> =
            tree.children.into_iter().map(|d| (Digest::of(&d.encode_to_vec()), d)).collect();
        known.insert(root_digest, root);
        let plan = plan_of(&root_digest, &known, dest)?;
        self.runtime.block_on(self.write(plan, dest))
    }

    async fn directories_below(&self, root: &Digest) -> Result<HashMap<Digest, re::Directory>, DialError> {
        let mut known = HashMap::new();
        let mut level = vec![*root];
        for _ in 0..LEVELS_MAX {
            if level.is_empty() {
                return Ok(known);
            }
            let (mut next, mut absent) = (HashSet::new(), Vec::new());
            for batch in batches_of(&level) {
                for (digest, data) in self.batch_read(&batch).await? {
                    match data {
                        None => absent.push(digest.to_string()),
                        Some(data) => {
                            let directory = decode_directory(&data, &digest)?;
                            for child in &directory.directories {
                                next.insert(digest_of(child.digest.as_ref())?);
                            }
                            known.insert(digest, directory);
                        }
                    }
                }
            }
            if !absent.is_empty() {
                return Err(DialError::Missing(absent));
            }
            if known.len() > DIRECTORIES_MAX {
                return Err(DialError::Invalid(format!("the tree {root} has over {DIRECTORIES_MAX} directories")));
            }
            level = next.into_iter().filter(|d| !known.contains_key(d)).collect();
        }
        Err(DialError::Invalid(format!("the tree {root} is nested deeper than {LEVELS_MAX} levels")))
    }

    async fn write(&self, plan: Plan, dest: &Path) -> Result<Moved, DialError> {
        fs::create_dir_all(dest).map_err(|e| DialError::local(dest, e))?;
        for directory in &plan.directories {
            if let Err(error) = fs::create_dir(directory) {
                // A symlink that already stands here would lead the files below it out of `dest`.
                let real = fs::symlink_metadata(directory).is_ok_and(|m| m.is_dir());
                if !real {
                    return Err(DialError::local(directory, error));
                }
            }
        }
        let moved = Moved {
            asked: plan.files.len() as u64,
            blobs: plan.files.len() as u64,
            bytes: plan.files.iter().map(|(_, d, _)| d.size_bytes()).sum(),
        };
        stream::iter(plan.files.iter().map(|(path, digest, executable)| self.file(digest, path, *executable)))
            .buffer_unordered(STREAMS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        for (path, target) in &plan.symlinks {
            remove_existing(path)?;
            std::os::unix::fs::symlink(target, path).map_err(|e| DialError::local(path, e))?;
        }
        Ok(moved)
    }

    async fn file(&self, digest: &Digest, dest: &Path, executable: bool) -> Result<(), DialError> {
        let local = |error| DialError::local(dest, error);
        let mode = if executable { 0o755 } else { 0o644 };
        let mut part = Part::beside(dest, mode).map_err(local)?;
        self.receive(digest, |chunk| part.file.write_all(&chunk).map_err(local)).await?;
        part.put(dest).map_err(local)
    }

    async fn into(&self, digest: &Digest, path: &Path, executable: bool, follow: bool) -> Result<(), DialError> {
        let local = |error| DialError::local(path, error);
        let open = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true);
            options.custom_flags(if follow { 0 } else { libc::O_NOFOLLOW }).open(path).map_err(local)
        };
        let mut opened = None;
        // Not before the first bytes are there: what cannot be had empties nothing.
        self.receive(digest, |chunk| {
            let file = match &mut opened {
                Some(file) => file,
                none => none.insert(open()?),
            };
            file.write_all(&chunk).map_err(local)
        })
        .await?;
        let file = opened.map_or_else(open, Ok)?;
        if executable && file.metadata().map_err(local)?.is_file() {
            file.set_permissions(fs::Permissions::from_mode(0o755)).map_err(local)?;
        }
        Ok(())
    }
}

/// Whether what stands at a path is written into and not replaced: put in its place, a file would be the machine's /dev/null.
fn stays(path: &Path, follow: bool) -> bool {
    fs::symlink_metadata(path).is_ok_and(|facts| {
        let kind = facts.file_type();
        if kind.is_symlink() { follow } else { !kind.is_file() && !kind.is_dir() }
    })
}

fn remove_existing(path: &Path) -> Result<(), DialError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(DialError::local(path, error)),
    }
}

fn plan_of(root: &Digest, known: &HashMap<Digest, re::Directory>, dest: &Path) -> Result<Plan, DialError> {
    let mut plan = Plan { directories: Vec::new(), files: Vec::new(), symlinks: Vec::new() };
    let mut open = vec![(*root, dest.to_owned(), 0)];
    while let Some((digest, path, level)) = open.pop() {
        if level > LEVELS_MAX || plan.directories.len() > DIRECTORIES_MAX {
            return Err(DialError::Invalid(format!("the tree {root} is too deep or too large to write")));
        }
        let directory =
            known.get(&digest).ok_or_else(|| DialError::Invalid(format!("the tree {root} lacks {digest}")))?;
        for file in &directory.files {
            plan.files.push((path.join(name(&file.name)?), digest_of(file.digest.as_ref())?, file.is_executable));
        }
        for link in &directory.symlinks {
            plan.symlinks.push((path.join(name(&link.name)?), link.target.clone()));
        }
        for child in &directory.directories {
            let below = path.join(name(&child.name)?);
            plan.directories.push(below.clone());
            open.push((digest_of(child.digest.as_ref())?, below, level + 1));
        }
    }
    Ok(plan)
}

fn name(name: &str) -> Result<&str, DialError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(DialError::Invalid(format!("{name:?} is not the name of a file")));
    }
    Ok(name)
}
