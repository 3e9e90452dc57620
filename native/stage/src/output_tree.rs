//! An output directory becomes Directory messages and one Tree: the same files give the same bytes, on any machine.
//!
//! Entries are sorted by name, each distinct Directory stands once, every parent before its children
//! (OutputDirectory.is_topologically_sorted). Depth costs no stack.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{DEPTH_MAX, Digest, MESSAGE_BYTES_MAX, NativeError};
use prost::Message;
use prost::encoding::encode_varint;

use crate::collect::{Budget, Digests, broken, is_executable, short_enough, special, store_file, target_of};
use crate::error::{self, Result};
use crate::pending::Pending;
use crate::place::{Cursor, Facts, Kind};

/// Tags of Tree.root and Tree.children, both length-delimited.
const TREE_ROOT: u8 = 0x0a;
const TREE_CHILD: u8 = 0x12;

/// What the Command asks for beside the files themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    mtime: bool,
    unix_mode: bool,
    pub(crate) tree: bool,
    pub(crate) directories: bool,
}

impl Wanted {
    /// REAPI Command.output_node_properties and .output_directory_format.
    pub(crate) fn of(command: &re::Command) -> Result<Self> {
        use re::command::OutputDirectoryFormat as Format;
        let mut wanted = Self { mtime: false, unix_mode: false, tree: true, directories: false };
        for name in &command.output_node_properties {
            match name.as_str() {
                "mtime" | "MTime" => wanted.mtime = true,
                "unix_mode" | "UnixMode" => wanted.unix_mode = true,
                other => {
                    let message = format!("{other:?} is not one of mtime, unix_mode");
                    return Err(error::invalid("output_node_properties", message));
                }
            }
        }
        // A value that this version does not know is TREE_ONLY.
        match Format::try_from(command.output_directory_format) {
            Ok(Format::DirectoryOnly) => (wanted.tree, wanted.directories) = (false, true),
            Ok(Format::TreeAndDirectory) => wanted.directories = true,
            Ok(Format::TreeOnly) | Err(_) => {}
        }
        Ok(wanted)
    }

    pub(crate) fn properties(&self, facts: &Facts) -> Option<re::NodeProperties> {
        if !self.mtime && !self.unix_mode {
            return None;
        }
        let (seconds, nanos) = facts.mtime();
        let mtime = prost_types::Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or(0) };
        Some(re::NodeProperties {
            mtime: self.mtime.then_some(mtime),
            unix_mode: self.unix_mode.then_some(facts.mode() & 0o777),
            ..Default::default()
        })
    }
}

/// The distinct directories of a tree, each after all that it contains; the last is the root.
#[derive(Debug)]
pub(crate) struct OutputTree {
    pub(crate) root: Digest,
    pub(crate) directories: Vec<(Digest, Vec<u8>)>,
}

/// One level of the walk.
struct Level {
    name: OsString,
    directory: re::Directory,
    /// Directories that are still to be entered, last first.
    inside: Vec<OsString>,
}

/// Read the directory that `cursor` stands in, and come back there.
pub(crate) fn walk(
    pending: &mut Pending<'_>,
    cursor: &mut Cursor,
    wanted: &Wanted,
    budget: &mut Budget,
    digests: &mut Digests,
) -> Result<OutputTree> {
    let mut directories = Vec::new();
    let mut seen = HashSet::new();
    let mut read = |cursor: &Cursor, name| read_level(pending, cursor, wanted, budget, digests, name);
    let mut levels = vec![read(cursor, OsString::new())?];
    loop {
        let Some(level) = levels.last_mut() else {
            return Err(NativeError::internal("the walk of an output lost its root"));
        };
        if let Some(name) = level.inside.pop() {
            let entered = cursor.enter(&name);
            entered.map_err(|failed| broken(&cursor.path_of(&name), &failed))?;
            if levels.len() > DEPTH_MAX {
                let message = format!("the outputs are more than {DEPTH_MAX} levels deep");
                return Err(NativeError::too_large(message, DEPTH_MAX as u64));
            }
            levels.push(read(cursor, name)?);
            continue;
        }
        let Some(done) = levels.pop() else { continue };
        let bytes = done.directory.encode_to_vec();
        let digest = Digest::of(&bytes);
        if seen.insert(digest) {
            directories.push((digest, bytes));
        }
        let Some(parent) = levels.last_mut() else {
            return Ok(OutputTree { root: digest, directories });
        };
        let left = cursor.leave();
        left.map_err(|failed| broken(cursor.path(), &failed))?;
        parent
            .directory
            .directories
            .push(re::DirectoryNode { name: utf8(cursor, &done.name)?, digest: Some(digest.to_message()) });
    }
}

fn read_level(
    pending: &mut Pending<'_>,
    cursor: &Cursor,
    wanted: &Wanted,
    budget: &mut Budget,
    digests: &mut Digests,
    name: OsString,
) -> Result<Level> {
    budget.entry()?;
    short_enough(cursor.path())?;
    let failed = |failed: std::io::Error| broken(cursor.path(), &failed);
    let mut directory = re::Directory {
        node_properties: wanted.properties(&cursor.own_facts().map_err(failed)?),
        ..Default::default()
    };
    let mut inside = Vec::new();
    for (name, _) in cursor.list().map_err(failed)? {
        let path = cursor.path_of(&name);
        let facts = cursor.facts(&name).map_err(|failed| broken(&path, &failed))?;
        match facts.kind() {
            Kind::Directory => inside.push(name),
            Kind::File => {
                let text = utf8(cursor, &name)?;
                let (digest, facts) = store_file(pending, cursor, &name, budget)?;
                digests.add(digest);
                directory.files.push(re::FileNode {
                    name: text,
                    digest: Some(digest.to_message()),
                    is_executable: is_executable(&facts),
                    node_properties: wanted.properties(&facts),
                });
            }
            Kind::Symlink => {
                budget.entry()?;
                directory.symlinks.push(re::SymlinkNode {
                    name: utf8(cursor, &name)?,
                    target: target_of(cursor, &name)?,
                    node_properties: wanted.properties(&facts),
                });
            }
            Kind::Special => return Err(special(&path)),
        }
    }
    inside.reverse();
    Ok(Level { name, directory, inside })
}

fn utf8(cursor: &Cursor, name: &OsStr) -> Result<String> {
    let text = name.to_str().map(str::to_owned);
    text.ok_or_else(|| error::output(&cursor.path_of(name), "has a name that is not UTF-8"))
}

impl OutputTree {
    /// The Tree message as a stream of records: the root, then the others, every parent before its children.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let size: usize = self.directories.iter().map(|(_, bytes)| bytes.len() + 11).sum();
        if size as u64 > MESSAGE_BYTES_MAX {
            let message = "an output directory is too large for one Tree message";
            return Err(NativeError::too_large(message, MESSAGE_BYTES_MAX));
        }
        let mut encoded = Vec::with_capacity(size);
        // Children were finished before their parents, so backwards is what the reader wants.
        for (index, (_, bytes)) in self.directories.iter().rev().enumerate() {
            encoded.push(if index == 0 { TREE_ROOT } else { TREE_CHILD });
            encode_varint(bytes.len() as u64, &mut encoded);
            encoded.extend_from_slice(bytes);
        }
        Ok(encoded)
    }
}
