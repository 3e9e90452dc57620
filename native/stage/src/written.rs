//! What an action wrote below its execution root and did not declare: told, and left to the caller to judge.
//!
//! The tree on disk is compared with the input tree: a name that is not there was made, one that is gone was removed, a
//! file that is newer than the action's beginning was changed. Follows no symlink; a change of an input that keeps its
//! size within the file system's first tick (a few milliseconds) is not seen, and nothing but the action itself sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, MESSAGE_BYTES_MAX, decode_command, decode_directory};
use buildnet_store::Store;

use crate::error::{self, Result};
use crate::place::{Cursor, Facts, Kind};
use crate::stage::{directories_before, join, outputs_of};

/// Paths that are told by name; the others are counted.
const NAMED_MAX: usize = 100;
/// Entries that are looked at; past it the answer says that it is not the whole one.
const LOOKED_AT_MAX: u64 = 200_000;

/// What was written and not declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Sorted, relative to the execution root, directories with a slash at their end; at most 100.
    pub paths: Vec<String>,
    /// How many there are.
    pub count: u64,
    /// Whether everything was looked at.
    pub whole: bool,
}

/// Compare `work`, an execution root in which `command` ran, with the input tree `root`.
///
/// `begun_unix_ns` is when it began. A directory that was made counts once, whatever is in it. With `upper`, `work` is the
/// upper directory of an overlay (overlayfs.rst): what is not in it was not touched, and what is gone is a whiteout there.
///
/// # Errors
/// `invalid_request` for a malformed Command or Directory; `sandbox_failed` when the root itself cannot be read.
pub fn undeclared_writes(
    store: &Store,
    root: &Digest,
    work: &Path,
    command: &[u8],
    begun_unix_ns: u64,
    upper: bool,
) -> Result<Written> {
    let command = decode_command(command)?;
    let mut cursor = Cursor::open(work).map_err(|failed| error::io("open", work, &failed))?;
    let mut search = Search {
        store,
        declared: Declared::of(&command),
        begun_unix_ns,
        upper,
        looked_at: 0,
        found: BTreeSet::new(),
        written: Written { whole: true, ..Written::default() },
    };
    search.walk(&mut cursor, Some(*root)).map_err(|failed| error::io("look through", work, &failed))?;
    search.written.paths = search.found.into_iter().collect();
    Ok(search.written)
}

/// Outputs, and the directories that were made for them.
struct Declared {
    outputs: BTreeSet<PathBuf>,
    parents: BTreeSet<PathBuf>,
}

impl Declared {
    fn of(command: &re::Command) -> Self {
        let whole = |path: &String| PathBuf::from(join(&command.working_directory, path));
        let mut parents = BTreeSet::new();
        for path in directories_before(command) {
            parents.extend(Path::new(&path).ancestors().map(Path::to_owned));
        }
        Self { outputs: outputs_of(command).into_iter().map(whole).collect(), parents }
    }
}

/// What the input tree says of one name.
enum Input {
    File(u64),
    Symlink,
    Directory(Option<Digest>),
}

struct Search<'a> {
    store: &'a Store,
    declared: Declared,
    begun_unix_ns: u64,
    upper: bool,
    looked_at: u64,
    found: BTreeSet<String>,
    written: Written,
}

impl Search<'_> {
    fn walk(&mut self, cursor: &mut Cursor, root: Option<Digest>) -> io::Result<()> {
        let mut levels = vec![self.level(cursor, root)?];
        while let Some(level) = levels.last_mut() {
            if let Some((name, digest)) = level.pop() {
                // What cannot be entered was closed by the action, which is told when its level is looked at.
                if cursor.enter(&name).is_ok() {
                    levels.push(self.level(cursor, digest)?);
                }
                continue;
            }
            levels.pop();
            cursor.leave()?;
        }
        Ok(())
    }

    /// Look at one directory; returns the directories in it that are to be looked through too.
    fn level(&mut self, cursor: &Cursor, input: Option<Digest>) -> io::Result<Vec<(OsString, Option<Digest>)>> {
        let mut inputs = self.inputs(input);
        let mut inside = Vec::new();
        for (name, _) in cursor.list()? {
            let path = cursor.path_of(&name);
            let input = inputs.remove(name.as_os_str());
            if self.declared.outputs.contains(&path) {
                continue;
            }
            self.looked_at += 1;
            if self.looked_at > LOOKED_AT_MAX {
                self.written.whole = false;
                return Ok(Vec::new());
            }
            let Ok(facts) = cursor.facts(&name) else { continue };
            match (facts.kind(), input) {
                (Kind::Directory, Some(Input::Directory(digest))) => inside.push((name, digest)),
                (Kind::Directory, None) if self.declared.parents.contains(&path) => inside.push((name, None)),
                (kind, Some(input)) if self.is_untouched(kind, &facts, &input) => {}
                (kind, _) => self.add(&path, kind),
            }
        }
        if self.upper {
            return Ok(inside);
        }
        for (name, input) in inputs {
            let path = cursor.path_of(&name);
            if !self.declared.outputs.contains(&path) {
                let kind = if matches!(input, Input::Directory(_)) { Kind::Directory } else { Kind::File };
                self.add(&path, kind);
            }
        }
        Ok(inside)
    }

    fn is_untouched(&self, kind: Kind, facts: &Facts, input: &Input) -> bool {
        let same = match (kind, input) {
            (Kind::File, Input::File(size_bytes)) => facts.size_bytes() == *size_bytes,
            (Kind::Symlink, Input::Symlink) => true,
            _ => false,
        };
        // A copy in the upper directory is there because something of it was changed.
        same && !self.upper && facts.changed_unix_ns() <= self.begun_unix_ns
    }

    fn add(&mut self, path: &Path, kind: Kind) {
        self.written.count += 1;
        let slash = if kind == Kind::Directory { "/" } else { "" };
        self.found.insert(format!("{}{slash}", path.display()));
        if self.found.len() > NAMED_MAX {
            self.found.pop_last();
        }
    }

    /// The entries of a Directory by name; a blob that went meanwhile leaves the answer incomplete.
    fn inputs(&mut self, digest: Option<Digest>) -> BTreeMap<OsString, Input> {
        let Some(digest) = digest else { return BTreeMap::new() };
        let read = self.store.get_bytes(&digest, MESSAGE_BYTES_MAX).and_then(|bytes| decode_directory(&bytes));
        let Ok(directory) = read else {
            self.written.whole = false;
            return BTreeMap::new();
        };
        let name = |text: &str| OsStr::new(text).to_owned();
        let files = directory.files.iter().map(|node| {
            let size_bytes = node.digest.as_ref().map_or(0, |digest| digest.size_bytes.unsigned_abs());
            (name(&node.name), Input::File(size_bytes))
        });
        let links = directory.symlinks.iter().map(|node| (name(&node.name), Input::Symlink));
        let directories = directory.directories.iter().map(|node| {
            (name(&node.name), Input::Directory(Digest::required(node.digest.as_ref(), "directories.digest").ok()))
        });
        files.chain(links).chain(directories).collect()
    }
}
