//! An action's execution root is made: its input tree as files of its own, or as a view of one that is kept, then the
//! directories that its Command presupposes. No action can alter a cached blob.
//!
//! Hard links are never used: an action could change a cached blob through one.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, decode_command};
use buildnet_store::Store;

use crate::error::{self, Result};
use crate::input_tree::InputTree;
use crate::place::{Cursor, Kind};
use crate::trees::{Obtained, Trees};
use crate::view::View;
use crate::write;

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

/// The execution root of one action.
#[derive(Debug)]
pub enum Root {
    /// Copies of its own, below the directory that was asked for.
    Copied(Staged),
    /// What is kept of an earlier action with the same tree, seen through a layer of its own.
    Seen(View),
}

/// Write the tree `root` below `dest`, then the working directory and the parents of every output of `command`.
///
/// # Errors
/// `blobs_missing` naming all of them, `invalid_request` for a malformed tree or Command, `too_large` past a limit,
/// `storage_full`. What was begun is left for `remove_tree`.
pub fn stage(store: &Store, root: &Digest, dest: &Path, command: &[u8]) -> Result<Staged> {
    let command = decode_command(command)?;
    let tree = InputTree::read(store, root)?;
    copy(store, root, &tree, dest, &command)
}

/// As [`stage`] below `scratch`/root, unless the tree is worth keeping: then `scratch`/root is empty, and the View is what
/// belongs there. What the action changes is below `scratch` too.
///
/// # Errors
/// As [`stage`].
pub fn stage_kept(trees: &Arc<Trees>, store: &Store, root: &Digest, scratch: &Path, command: &[u8]) -> Result<Root> {
    let command = decode_command(command)?;
    let dest = scratch.join("root");
    let kept = match trees.obtain(store, root)? {
        Obtained::Kept(kept) => kept,
        Obtained::Small(tree) => return copy(store, root, &tree, &dest, &command).map(Root::Copied),
    };
    std::fs::create_dir_all(&dest).map_err(|failed| error::io("make", &dest, &failed))?;
    let view = kept.view(scratch)?;
    let mut cursor = Cursor::at(view.fd()).map_err(|failed| error::io("open", &dest, &failed))?;
    prepare(&mut cursor, &dest, &command)?;
    Ok(Root::Seen(view))
}

fn copy(store: &Store, root: &Digest, tree: &InputTree, dest: &Path, command: &re::Command) -> Result<Staged> {
    std::fs::create_dir_all(dest).map_err(|failed| error::io("make", dest, &failed))?;
    let mut cursor = Cursor::open(dest).map_err(|failed| error::io("open", dest, &failed))?;
    let staged = write::write(tree, store, root, &mut cursor, dest)?;
    prepare(&mut cursor, dest, command)?;
    Ok(staged)
}

fn prepare(cursor: &mut Cursor, dest: &Path, command: &re::Command) -> Result<()> {
    directories_before(command).iter().try_for_each(|path| make_directories(cursor, path, dest))
}

/// The working directory, and what leads up to each output (REAPI Command.output_paths, .output_directories).
pub(crate) fn directories_before(command: &re::Command) -> Vec<String> {
    let base = command.working_directory.as_str();
    let mut paths = vec![base.to_owned()];
    for output in outputs_of(command) {
        let whole = join(base, output);
        paths.push(whole.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned());
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

/// A path from the root to what is at `path` from `base`, by its text alone; it never leads above the root.
pub(crate) fn join(base: &str, path: &str) -> String {
    let mut parts = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
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
    fn a_path_may_lead_beside_its_base() {
        for (base, path, whole) in
            [("", "a", "a"), ("w", "", "w"), ("w/v", "../a", "w/a"), ("w", "./a//b/../c", "w/a/c"), ("w", "..", "")]
        {
            assert_eq!(join(base, path), whole, "{base:?} {path:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_joined_is_plain(base in "([a-c]{1,2}/){0,3}", path in "([a-c.]{0,3}/){0,4}[a-c.]{0,3}") {
            let whole = join(&base, &path);
            prop_assert!(whole.is_empty() || whole.split('/').all(|part| !["", ".", ".."].contains(&part)));
            prop_assert_eq!(join("", &whole), whole);
        }
    }
}
