//! A Merkle tree of local files, hashed once and ready to push. It reads files and writes nothing.
//!
//! Directories are encoded canonically: entries sorted by name, no properties, so that equal trees have equal digests
//! whoever made them (REAPI Directory).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, Hasher};
use buildnet_store::Store;
use bytes::Bytes;
use prost::Message;

use crate::DialError;

const DEPTH_MAX: usize = 1000;
const ENTRIES_MAX: usize = 1_000_000;
const CHUNK_BYTES: usize = 256 * 1024;

/// Where the bytes of one blob are.
#[derive(Clone)]
pub enum Source {
    /// A local file.
    Path(PathBuf),
    /// Bytes in memory.
    Bytes(Bytes),
    /// A blob of a store.
    Stored(Arc<Store>, Digest),
}

enum Node {
    File { digest: Digest, executable: bool },
    Symlink(String),
    Directory(BTreeMap<String, Node>),
}

/// A hashed tree with the sources of all its blobs.
pub struct InputTree {
    root: Digest,
    blobs: HashMap<Digest, Source>,
    file_count: usize,
    size_bytes: u64,
}

impl InputTree {
    /// Hash `entries` of destination path and source. A source that is a directory brings everything below it.
    ///
    /// # Errors
    /// A destination that is absolute, holds `..` or is given twice; a file that cannot be read or is neither file,
    /// directory nor symlink; a symlink that leaves the tree; a tree past its limits.
    pub fn build(entries: Vec<(String, Source)>) -> Result<Self, DialError> {
        let mut builder = Builder { blobs: HashMap::new(), entries: 0, file_count: 0, size_bytes: 0 };
        let mut root = BTreeMap::new();
        for (dest, source) in entries {
            let parts = components(&dest)?;
            let node = builder.node_of(source, parts.len())?;
            place(&mut root, &parts, node, &dest)?;
        }
        let root = builder.encode(&root)?;
        Ok(Self { root, blobs: builder.blobs, file_count: builder.file_count, size_bytes: builder.size_bytes })
    }

    /// Digest of the root Directory.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// Number of files, counting equal ones each time.
    pub fn file_count(&self) -> usize {
        self.file_count
    }

    /// Sum of the files' sizes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Every blob of the tree and where its bytes are.
    pub fn blobs(&self) -> &HashMap<Digest, Source> {
        &self.blobs
    }
}

struct Builder {
    blobs: HashMap<Digest, Source>,
    entries: usize,
    file_count: usize,
    size_bytes: u64,
}

impl Builder {
    fn node_of(&mut self, source: Source, depth: usize) -> Result<Node, DialError> {
        match source {
            Source::Bytes(data) => {
                let digest = Digest::of(&data);
                Ok(self.file(digest, false, Source::Bytes(data)))
            }
            Source::Stored(store, digest) => Ok(self.file(digest, false, Source::Stored(store, digest))),
            // A path that the caller names himself is followed; symlinks found below it are kept.
            Source::Path(path) => {
                let metadata = fs::metadata(&path).map_err(|e| DialError::local(&path, e))?;
                if metadata.is_dir() { self.directory(&path, depth, 0) } else { self.regular(&path, &metadata) }
            }
        }
    }

    fn file(&mut self, digest: Digest, executable: bool, source: Source) -> Node {
        self.file_count += 1;
        self.size_bytes += digest.size_bytes();
        self.blobs.entry(digest).or_insert(source);
        Node::File { digest, executable }
    }

    fn regular(&mut self, path: &Path, metadata: &fs::Metadata) -> Result<Node, DialError> {
        if !metadata.is_file() {
            return Err(DialError::Invalid(format!(
                "{} is neither a file nor a directory and cannot be an input",
                path.display()
            )));
        }
        let digest = hash_file(path)?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        Ok(self.file(digest, executable, Source::Path(path.to_owned())))
    }

    fn directory(&mut self, path: &Path, depth: usize, below: usize) -> Result<Node, DialError> {
        if depth > DEPTH_MAX {
            return Err(DialError::Invalid(format!("{} is nested deeper than {DEPTH_MAX} levels", path.display())));
        }
        let mut children = BTreeMap::new();
        for entry in fs::read_dir(path).map_err(|e| DialError::local(path, e))? {
            let entry = entry.map_err(|e| DialError::local(path, e))?;
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(DialError::Invalid(format!("more than {ENTRIES_MAX} inputs below {}", path.display())));
            }
            let child = entry.path();
            let name = entry.file_name().into_string().map_err(|_| {
                DialError::Invalid(format!("{} is not named in UTF-8, which the protocol asks for", child.display()))
            })?;
            let metadata = fs::symlink_metadata(&child).map_err(|e| DialError::local(&child, e))?;
            let node = if metadata.is_symlink() {
                symlink(&child, below)?
            } else if metadata.is_dir() {
                self.directory(&child, depth + 1, below + 1)?
            } else {
                self.regular(&child, &metadata)?
            };
            children.insert(name, node);
        }
        Ok(Node::Directory(children))
    }

    fn encode(&mut self, children: &BTreeMap<String, Node>) -> Result<Digest, DialError> {
        let mut directory = re::Directory::default();
        for (name, node) in children {
            match node {
                Node::File { digest, executable } => directory.files.push(re::FileNode {
                    name: name.clone(),
                    digest: Some(digest.to_message()),
                    is_executable: *executable,
                    node_properties: None,
                }),
                Node::Symlink(target) => directory.symlinks.push(re::SymlinkNode {
                    name: name.clone(),
                    target: target.clone(),
                    node_properties: None,
                }),
                Node::Directory(below) => {
                    let digest = self.encode(below)?;
                    directory
                        .directories
                        .push(re::DirectoryNode { name: name.clone(), digest: Some(digest.to_message()) });
                }
            }
        }
        let bytes = Bytes::from(directory.encode_to_vec());
        let digest = Digest::of(&bytes);
        self.blobs.entry(digest).or_insert(Source::Bytes(bytes));
        Ok(digest)
    }
}

fn symlink(path: &Path, below: usize) -> Result<Node, DialError> {
    let target = fs::read_link(path).map_err(|e| DialError::local(path, e))?;
    let refuse = |why: &str| {
        DialError::Invalid(format!(
            "the symlink {} {why}; name what it points to as an input of its own",
            path.display()
        ))
    };
    let target = target.to_str().ok_or_else(|| refuse("does not point to a UTF-8 path"))?.to_owned();
    if target.starts_with('/') {
        return Err(refuse("points to an absolute path"));
    }
    let mut level = below;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => level = level.checked_sub(1).ok_or_else(|| refuse("leaves the input"))?,
            _ => level += 1,
        }
    }
    Ok(Node::Symlink(target))
}

/// The names of a destination path; none for the root itself.
fn components(dest: &str) -> Result<Vec<&str>, DialError> {
    let refuse = || DialError::Invalid(format!("{dest:?} is not a relative path inside the input root"));
    if dest.starts_with('/') || dest.contains('\0') {
        return Err(refuse());
    }
    let parts: Vec<&str> = dest.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") || parts.len() > DEPTH_MAX {
        return Err(refuse());
    }
    Ok(parts)
}

fn place(root: &mut BTreeMap<String, Node>, parts: &[&str], node: Node, dest: &str) -> Result<(), DialError> {
    let clash = || DialError::Invalid(format!("two inputs claim the path {dest:?}"));
    let Some((name, above)) = parts.split_last() else {
        let Node::Directory(children) = node else {
            return Err(DialError::Invalid("a file cannot be the input root; give it a name".to_owned()));
        };
        return merge(root, children, dest);
    };
    let mut here = root;
    for part in above {
        match here.entry((*part).to_owned()).or_insert_with(|| Node::Directory(BTreeMap::new())) {
            Node::Directory(children) => here = children,
            _ => return Err(clash()),
        }
    }
    match (here.get_mut(*name), node) {
        (None, node) => {
            here.insert((*name).to_owned(), node);
            Ok(())
        }
        (Some(Node::Directory(there)), Node::Directory(more)) => merge(there, more, dest),
        _ => Err(clash()),
    }
}

fn merge(there: &mut BTreeMap<String, Node>, more: BTreeMap<String, Node>, dest: &str) -> Result<(), DialError> {
    for (name, node) in more {
        place(there, &[name.as_str()], node, &format!("{dest}/{name}"))?;
    }
    Ok(())
}

/// Digest of a local file, read once.
pub(crate) fn hash_file(path: &Path) -> Result<Digest, DialError> {
    let mut file = fs::File::open(path).map_err(|e| DialError::local(path, e))?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let n = file.read(&mut buffer).map_err(|e| DialError::local(path, e))?;
        if n == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..n]);
    }
}
