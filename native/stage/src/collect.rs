//! Outputs become blobs and an ActionResult that names them; what the Command did not ask for, or may not have, is refused.
//!
//! REAPI Command.output_* and OutputDirectory. The tree was made by code that is trusted with nothing: no symlink is
//! followed, nothing outside the execution root is read, nothing but files, directories and symlinks is an output.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, NativeError, decode_command};
use buildnet_store::Store;
use prost::Message;

use crate::error::{self, Result};
use crate::input_tree::climb_of;
use crate::output_tree::{self, Wanted};
use crate::pending::Pending;
use crate::place::{Cursor, Facts, Kind};
use crate::stage::join;

/// What one action may leave where the caller sets no other limit.
pub const FILE_COUNT_MAX: u64 = 100_000;
/// As [`FILE_COUNT_MAX`].
pub const SIZE_BYTES_MAX: u64 = 64 << 30;
/// What collecting an entry takes, in bytes that could be hashed meanwhile.
const ENTRY_BYTES: u64 = 4 << 10;
const PATH_BYTES_MAX: usize = libc::PATH_MAX as usize;

/// How much one action may leave.
#[derive(Clone, Copy, Debug)]
pub struct CollectLimits {
    /// Files, directories and symlinks.
    pub file_count_max: u64,
    /// Bytes of all files.
    pub size_bytes_max: u64,
}

impl Default for CollectLimits {
    fn default() -> Self {
        Self { file_count_max: FILE_COUNT_MAX, size_bytes_max: SIZE_BYTES_MAX }
    }
}

/// What the action left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collected {
    /// Outputs only: the caller adds exit code, logs and metadata.
    pub result: re::ActionResult,
    /// Every blob that the result references, now in the store, once each; the empty one is everywhere anyway.
    pub digests: Vec<Digest>,
}

/// Store the outputs of `command` that are below `work`, the execution root.
///
/// # Errors
/// `output_invalid` naming the path, `invalid_request` for a Command that asks the impossible, `too_large`,
/// `storage_full`.
pub fn collect(store: &Arc<Store>, work: &Path, command: &[u8], limits: CollectLimits) -> Result<Collected> {
    let command = decode_command(command)?;
    let mut collector = Collector {
        store,
        pending: Pending::new(store),
        work,
        command: &command,
        wanted: Wanted::of(&command)?,
        budget: Budget { limits, entries: 0, bytes: 0 },
        digests: Digests::default(),
        result: re::ActionResult::default(),
    };
    let mut seen = HashSet::new();
    for (path, asked) in asked_of(&command) {
        if seen.insert((path, asked)) {
            collector.output(path, asked)?;
        }
    }
    collector.pending.flush()?;
    Ok(Collected { result: collector.result, digests: collector.digests.list })
}

/// Whether the outputs of `command` come to more than `size_bytes`, an entry counting as 4 KiB at least. Looks at no more
/// of them than it takes to know, and into none; what is amiss is left to [`collect`] to say.
pub fn outputs_exceed(work: &Path, command: &[u8], size_bytes: u64) -> bool {
    let Ok(command) = decode_command(command) else { return false };
    let mut left = size_bytes;
    let mut spent = |path| weighed(work, &join(&command.working_directory, path), &mut left).unwrap_or(false);
    asked_of(&command).into_iter().any(|(path, _)| spent(path))
}

/// Take what is at a path off `left`; whether it is more.
fn weighed(work: &Path, whole: &str, left: &mut u64) -> io::Result<bool> {
    let mut cursor = Cursor::open(work)?;
    let (parents, name) = whole.rsplit_once('/').unwrap_or(("", whole));
    for part in parents.split('/').filter(|part| !part.is_empty()) {
        cursor.enter(OsStr::new(part))?;
    }
    if name.is_empty() { all_weighed(&mut cursor, left) } else { one_weighed(&mut cursor, OsStr::new(name), left) }
}

fn one_weighed(cursor: &mut Cursor, name: &OsStr, left: &mut u64) -> io::Result<bool> {
    let facts = cursor.facts(name)?;
    let bytes = if facts.kind() == Kind::File { facts.size_bytes() } else { 0 };
    let Some(rest) = left.checked_sub(bytes.max(ENTRY_BYTES)) else { return Ok(true) };
    *left = rest;
    if facts.kind() != Kind::Directory {
        return Ok(false);
    }
    cursor.enter(name)?;
    let is_more = all_weighed(cursor, left)?;
    cursor.leave()?;
    Ok(is_more)
}

fn all_weighed(cursor: &mut Cursor, left: &mut u64) -> io::Result<bool> {
    for (name, _) in cursor.list()? {
        if one_weighed(cursor, &name, left)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Which field of the Command named an output, so what it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asked {
    Path,
    File,
    Directory,
}

/// `output_paths` wins over the two older fields (REAPI Command.output_paths).
#[allow(deprecated)]
fn asked_of(command: &re::Command) -> Vec<(&str, Asked)> {
    fn all(paths: &[String], asked: Asked) -> impl Iterator<Item = (&str, Asked)> {
        paths.iter().map(move |path| (path.as_str(), asked))
    }
    if command.output_paths.is_empty() {
        let files = all(&command.output_files, Asked::File);
        return files.chain(all(&command.output_directories, Asked::Directory)).collect();
    }
    all(&command.output_paths, Asked::Path).collect()
}

/// What may still be collected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    limits: CollectLimits,
    entries: u64,
    bytes: u64,
}

impl Budget {
    pub(crate) fn entry(&mut self) -> Result<()> {
        self.entries += 1;
        let limit = self.limits.file_count_max;
        if self.entries > limit {
            let message = format!(
                "the outputs are more than {limit} files and directories; leave fewer, or pack them into one file"
            );
            return Err(NativeError::too_large(message, limit));
        }
        Ok(())
    }

    pub(crate) fn bytes(&mut self, size_bytes: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(size_bytes);
        let limit = self.limits.size_bytes_max;
        if self.bytes > limit {
            let message = format!("the outputs are larger than {limit} bytes; leave less");
            return Err(NativeError::too_large(message, limit));
        }
        Ok(())
    }
}

/// Digests in the order first met.
#[derive(Debug, Default)]
pub(crate) struct Digests {
    list: Vec<Digest>,
    seen: HashSet<Digest>,
}

impl Digests {
    pub(crate) fn add(&mut self, digest: Digest) {
        if !digest.is_empty() && self.seen.insert(digest) {
            self.list.push(digest);
        }
    }
}

struct Collector<'a> {
    store: &'a Arc<Store>,
    pending: Pending<'a>,
    work: &'a Path,
    command: &'a re::Command,
    wanted: Wanted,
    budget: Budget,
    digests: Digests,
    result: re::ActionResult,
}

impl Collector<'_> {
    fn output(&mut self, path: &str, asked: Asked) -> Result<()> {
        let whole = join(&self.command.working_directory, path);
        let opened = Cursor::open(self.work);
        let mut cursor = opened.map_err(|failed| error::io("open", self.work, &failed))?;
        let (parents, name) = whole.rsplit_once('/').unwrap_or(("", whole.as_str()));
        if !descend(&mut cursor, parents, &whole)? {
            return Ok(());
        }
        if name.is_empty() {
            // The execution root itself.
            return match asked {
                Asked::File => Err(error::output(self.work, "is a directory, and output_files names it")),
                Asked::Path | Asked::Directory => self.directory(&mut cursor, path),
            };
        }
        let name = OsStr::new(name);
        let facts = match cursor.facts(name) {
            // An output that was not made is left out, and the client decides (REAPI ActionResult.output_files).
            Err(failed) if failed.kind() == io::ErrorKind::NotFound => return Ok(()),
            facts => facts.map_err(|failed| broken(&cursor.path_of(name), &failed))?,
        };
        match (facts.kind(), asked) {
            (Kind::File, Asked::Path | Asked::File) => self.file(&cursor, name, path),
            (Kind::Directory, Asked::Path | Asked::Directory) => {
                let entered = cursor.enter(name);
                entered.map_err(|failed| broken(&cursor.path_of(name), &failed))?;
                self.directory(&mut cursor, path)
            }
            (Kind::Symlink, asked) => self.symlink(&cursor, name, facts, path, asked),
            (Kind::File, Asked::Directory) => {
                Err(error::output(&cursor.path_of(name), "is a file, and output_directories names it"))
            }
            (Kind::Directory, Asked::File) => {
                Err(error::output(&cursor.path_of(name), "is a directory, and output_files names it"))
            }
            (Kind::Special, _) => Err(special(&cursor.path_of(name))),
        }
    }

    fn file(&mut self, cursor: &Cursor, name: &OsStr, path: &str) -> Result<()> {
        let (digest, facts) = store_file(&mut self.pending, cursor, name, &mut self.budget)?;
        self.digests.add(digest);
        self.result.output_files.push(re::OutputFile {
            path: path.to_owned(),
            digest: Some(digest.to_message()),
            is_executable: is_executable(&facts),
            node_properties: self.wanted.properties(&facts),
            ..Default::default()
        });
        Ok(())
    }

    /// The cursor stands in it.
    fn directory(&mut self, cursor: &mut Cursor, path: &str) -> Result<()> {
        let tree = output_tree::walk(&mut self.pending, cursor, &self.wanted, &mut self.budget, &mut self.digests)?;
        let mut output = re::OutputDirectory { path: path.to_owned(), ..Default::default() };
        if self.wanted.directories {
            for (digest, bytes) in &tree.directories {
                self.store.put_expected(digest, bytes)?;
                self.digests.add(*digest);
            }
            output.root_directory_digest = Some(tree.root.to_message());
        }
        if self.wanted.tree {
            let digest = self.store.put_bytes(&tree.encode()?)?;
            self.digests.add(digest);
            output.tree_digest = Some(digest.to_message());
            output.is_topologically_sorted = true;
        }
        self.result.output_directories.push(output);
        Ok(())
    }

    #[allow(deprecated)]
    fn symlink(&mut self, cursor: &Cursor, name: &OsStr, facts: Facts, path: &str, asked: Asked) -> Result<()> {
        self.budget.entry()?;
        let output = re::OutputSymlink {
            path: path.to_owned(),
            target: target_of(cursor, name)?,
            node_properties: self.wanted.properties(&facts),
        };
        self.check_target(cursor, name, &output.target, asked)?;
        let list = match asked {
            Asked::Path => &mut self.result.output_symlinks,
            Asked::File => &mut self.result.output_file_symlinks,
            Asked::Directory => &mut self.result.output_directory_symlinks,
        };
        list.push(output);
        Ok(())
    }
}

impl Collector<'_> {
    /// The older fields say what a symlink must point to (REAPI ActionResult.output_file_symlinks); one that points to
    /// nothing yet is kept.
    fn check_target(&self, cursor: &Cursor, name: &OsStr, target: &str, asked: Asked) -> Result<()> {
        let path = cursor.path_of(name);
        let opened = Cursor::open(self.work);
        let root = opened.map_err(|failed| error::io("open", self.work, &failed))?;
        let kind = match root.resolve(&cursor.path().join(target)) {
            Err(failed) if failed.raw_os_error() == Some(libc::EXDEV) => {
                return Err(error::output(&path, "is a symlink that leaves the execution root"));
            }
            kind => kind.map_err(|failed| broken(&path, &failed))?,
        };
        let (field, fits) = match (asked, kind) {
            (Asked::Path, _) | (_, None) => return Ok(()),
            (Asked::File, Some(kind)) => ("output_files", kind == Kind::File),
            (Asked::Directory, Some(kind)) => ("output_directories", kind == Kind::Directory),
        };
        if fits {
            return Ok(());
        }
        Err(error::output(&path, format!("is a symlink to another kind than {field} says")))
    }
}

/// False when something on the way is absent or no directory: then the output was not made.
fn descend(cursor: &mut Cursor, parents: &str, whole: &str) -> Result<bool> {
    for part in parents.split('/').filter(|part| !part.is_empty()) {
        let name = OsStr::new(part);
        match cursor.facts(name).map(|facts| facts.kind()) {
            Ok(Kind::Directory) => {}
            Ok(Kind::Symlink) => {
                let link = cursor.path_of(name);
                let message = format!("is behind the symlink {}, which is not followed", link.display());
                return Err(error::output(Path::new(whole), message));
            }
            Ok(_) => return Ok(false),
            Err(failed) if failed.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(failed) => return Err(broken(&cursor.path_of(name), &failed)),
        }
        let entered = cursor.enter(name);
        entered.map_err(|failed| broken(&cursor.path_of(name), &failed))?;
    }
    Ok(true)
}

/// What the system says of an output is the action's doing, unless the machine is out of means.
pub(crate) fn broken(path: &Path, failed: &io::Error) -> NativeError {
    match failed.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EIO) => error::io("collect", path, failed),
        _ => error::output(path, format!("cannot be read: {failed}")),
    }
}

pub(crate) fn special(path: &Path) -> NativeError {
    error::output(path, "is a fifo, a socket or a device; only files, directories and symlinks can be kept")
}

pub(crate) fn is_executable(facts: &Facts) -> bool {
    facts.mode() & 0o111 != 0
}

/// A path that no other machine could open is no output (PATH_MAX, limits.h(0p)).
pub(crate) fn short_enough(path: &Path) -> Result<()> {
    let length = path.as_os_str().len();
    if length >= PATH_BYTES_MAX {
        let shown: String = path.display().to_string().chars().take(100).collect();
        let message = format!("has a path of {length} bytes, over the limit of {PATH_BYTES_MAX}; use shorter names");
        return Err(error::output(Path::new(&format!("{shown}…")), message));
    }
    Ok(())
}

/// Hash a regular file; it is stored at the latest when `pending` is flushed.
pub(crate) fn store_file(
    pending: &mut Pending<'_>,
    cursor: &Cursor,
    name: &OsStr,
    budget: &mut Budget,
) -> Result<(Digest, Facts)> {
    let path: PathBuf = cursor.path_of(name);
    budget.entry()?;
    short_enough(&path)?;
    let (file, facts) = cursor.open_file(name).map_err(|failed| broken(&path, &failed))?;
    if facts.kind() != Kind::File {
        return Err(special(&path));
    }
    budget.bytes(facts.size_bytes())?;
    let digest = pending.file(&file, facts.size_bytes(), &path);
    let after = cursor.facts(name).map_err(|failed| broken(&path, &failed))?;
    // The times and the size, whoever changed it; what was read may be half of the one and half of the other.
    if after.changed_unix_ns() != facts.changed_unix_ns() || after.size_bytes() != facts.size_bytes() {
        return Err(error::output(&path, "changed while it was read; nothing may write it once the command has ended"));
    }
    Ok((digest?, facts))
}

/// A symlink's target, if it may leave this machine: relative, UTF-8 and inside the execution root
/// (SymlinkAbsolutePathStrategy DISALLOWED).
pub(crate) fn target_of(cursor: &Cursor, name: &OsStr) -> Result<String> {
    let path = cursor.path_of(name);
    let target = cursor.read_symlink(name).map_err(|failed| broken(&path, &failed))?;
    let Ok(target) = target.into_string() else {
        return Err(error::output(&path, "is a symlink whose target is not UTF-8"));
    };
    if target.starts_with('/') {
        return Err(error::output(&path, "is a symlink to an absolute path; make it relative"));
    }
    if climb_of(&target) > cursor.depth() {
        return Err(error::output(&path, "is a symlink that leaves the execution root"));
    }
    Ok(target)
}

impl Collected {
    /// The result as bytes.
    pub fn result_bytes(&self) -> Vec<u8> {
        self.result.encode_to_vec()
    }
}
