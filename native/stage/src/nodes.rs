//! What a layer holds: every entry of an input tree, or only what makes it differ from another one. It reads no disk.
//!
//! Directories that have one digest are one directory, so a difference costs what changed and the directories above that.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, NativeError};

use crate::error::Result;
use crate::input_tree::InputTree;
use crate::write::mode_of;

/// One entry of a layer.
#[derive(Debug)]
pub(crate) struct Node {
    /// Permissions alone.
    pub(crate) mode: u32,
    /// Seconds and nanoseconds since 1970, where the tree says.
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    /// Names, and the numbers of their nodes.
    Directory(Vec<(String, usize)>),
    File(Digest),
    Symlink(String),
    /// What a layer below has by this name is not there.
    Gone,
}

/// A Directory by its digest; none where it cannot be had any more.
pub(crate) type Directories<'a> = &'a dyn Fn(&Digest) -> Option<Arc<re::Directory>>;

/// Every entry below `root`, which is the first.
pub(crate) fn whole(tree: &InputTree, root: &Digest) -> Result<Vec<Node>> {
    let nodes = fill(tree, root, None, usize::MAX)?;
    nodes.ok_or_else(|| NativeError::internal("a tree without a base has no difference"))
}

/// What is to be laid over the tree `base` so that it is seen as `root`; none when that is more than `entries_max`, or when
/// the Directories of `base` are not all here.
pub(crate) fn difference(
    tree: &InputTree,
    root: &Digest,
    base: &Digest,
    directories: Directories<'_>,
    entries_max: usize,
) -> Result<Option<Vec<Node>>> {
    fill(tree, root, Some((base, directories)), entries_max)
}

/// A directory that is still to be filled, and the one of the base that it will hide or join.
struct Open {
    number: usize,
    digest: Digest,
    base: Option<Digest>,
}

fn fill(
    tree: &InputTree,
    root: &Digest,
    base: Option<(&Digest, Directories<'_>)>,
    entries_max: usize,
) -> Result<Option<Vec<Node>>> {
    let mut nodes = vec![directory(tree.directory(root)?)];
    let mut open = vec![Open { number: 0, digest: *root, base: base.map(|(base, _)| *base) }];
    while let Some(at) = open.pop() {
        let new = tree.directory(&at.digest)?;
        let old = match (&at.base, base) {
            (Some(digest), Some((_, directories))) => match directories(digest) {
                None => return Ok(None),
                found => found,
            },
            _ => None,
        };
        let old = Old::of(old.as_deref());
        let mut entries = Vec::new();
        let mut add = |nodes: &mut Vec<Node>, name: &str, node| {
            entries.push((name.to_owned(), nodes.len()));
            nodes.push(node);
        };
        for file in new.files.iter().filter(|file| old.files.get(file.name.as_str()) != Some(file)) {
            let digest = Digest::required(file.digest.as_ref(), "files.digest")?;
            add(&mut nodes, &file.name, self::file(file, digest));
        }
        for link in new.symlinks.iter().filter(|link| old.symlinks.get(link.name.as_str()) != Some(link)) {
            add(&mut nodes, &link.name, symlink(link));
        }
        for child in &new.directories {
            let digest = Digest::required(child.digest.as_ref(), "directories.digest")?;
            let base = old.directories.get(child.name.as_str()).copied();
            if base != Some(digest) {
                open.push(Open { number: nodes.len(), digest, base });
                add(&mut nodes, &child.name, directory(tree.directory(&digest)?));
            }
        }
        for name in old.names().filter(|name| !is_in(new, name)) {
            add(&mut nodes, name, Node { mode: 0, mtime: None, content: Content::Gone });
        }
        if nodes.len() > entries_max {
            return Ok(None);
        }
        nodes[at.number].content = Content::Directory(entries);
    }
    Ok(Some(nodes))
}

/// What the base has in one directory, by name.
#[derive(Default)]
struct Old<'a> {
    files: HashMap<&'a str, &'a re::FileNode>,
    symlinks: HashMap<&'a str, &'a re::SymlinkNode>,
    directories: HashMap<&'a str, Digest>,
}

impl<'a> Old<'a> {
    fn of(directory: Option<&'a re::Directory>) -> Self {
        let Some(directory) = directory else { return Self::default() };
        // A digest that cannot be read is that of no directory: it is taken for another one.
        let child = |child: &'a re::DirectoryNode| {
            Some((child.name.as_str(), Digest::required(child.digest.as_ref(), "directories.digest").ok()?))
        };
        Self {
            files: directory.files.iter().map(|file| (file.name.as_str(), file)).collect(),
            symlinks: directory.symlinks.iter().map(|link| (link.name.as_str(), link)).collect(),
            directories: directory.directories.iter().filter_map(child).collect(),
        }
    }

    fn names(&self) -> impl Iterator<Item = &'a str> {
        let links = self.symlinks.keys().copied();
        self.files.keys().copied().chain(links).chain(self.directories.keys().copied())
    }
}

/// The three lists are sorted by name (decode_directory refuses others).
fn is_in(directory: &re::Directory, name: &str) -> bool {
    directory.files.binary_search_by(|file| file.name.as_str().cmp(name)).is_ok()
        || directory.symlinks.binary_search_by(|link| link.name.as_str().cmp(name)).is_ok()
        || directory.directories.binary_search_by(|child| child.name.as_str().cmp(name)).is_ok()
}

fn directory(directory: &re::Directory) -> Node {
    let properties = directory.node_properties.as_ref();
    let mode = mode_of(properties).unwrap_or(0o755);
    Node { mode, mtime: mtime_of(properties), content: Content::Directory(Vec::new()) }
}

fn file(file: &re::FileNode, digest: Digest) -> Node {
    let properties = file.node_properties.as_ref();
    let mode = mode_of(properties).unwrap_or(if file.is_executable { 0o755 } else { 0o644 });
    Node { mode, mtime: mtime_of(properties), content: Content::File(digest) }
}

fn symlink(link: &re::SymlinkNode) -> Node {
    let mtime = mtime_of(link.node_properties.as_ref());
    Node { mode: 0o777, mtime, content: Content::Symlink(link.target.clone()) }
}

fn mtime_of(properties: Option<&re::NodeProperties>) -> Option<(i64, u32)> {
    let mtime = properties?.mtime.as_ref()?;
    Some((mtime.seconds, mtime.nanos.clamp(0, 999_999_999).unsigned_abs()))
}

/// The distinct blobs of the files, in the order of the nodes.
pub(crate) fn blobs_of(nodes: &[Node]) -> Vec<Digest> {
    let mut seen = HashSet::new();
    let digests = nodes.iter().filter_map(|node| match &node.content {
        Content::File(digest) if !digest.is_empty() => Some(*digest),
        _ => None,
    });
    digests.filter(|digest| seen.insert(*digest)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use buildnet_store::{Options, Store};
    use proptest::prelude::*;
    use prost::Message;

    type Said = BTreeMap<String, String>;

    /// A small tree as what each path is: a file, a link, or (with a slash) an empty directory.
    fn tree_of() -> impl Strategy<Value = BTreeMap<String, u8>> {
        prop::collection::btree_map("[ab](/[ab]){0,2}", 0_u8..5, 0..8)
    }

    /// Store it; of two paths where one leads through the other, the longer is left out.
    fn put(store: &Arc<Store>, paths: &BTreeMap<String, u8>, below: &str) -> Digest {
        let mut directory = re::Directory::default();
        for name in ["a", "b"] {
            let path = format!("{below}{name}");
            match paths.get(&path) {
                Some(3) => directory.symlinks.push(re::SymlinkNode {
                    name: name.to_owned(),
                    target: "x".to_owned(),
                    ..Default::default()
                }),
                Some(kind) => directory.files.push(re::FileNode {
                    name: name.to_owned(),
                    digest: Some(store.put_bytes(&[*kind / 2]).unwrap().to_message()),
                    is_executable: kind % 2 == 1,
                    ..Default::default()
                }),
                None if paths.keys().any(|other| other.starts_with(&format!("{path}/"))) => {
                    let digest = Some(put(store, paths, &format!("{path}/")).to_message());
                    directory.directories.push(re::DirectoryNode { name: name.to_owned(), digest });
                }
                None => {}
            }
        }
        store.put_bytes(&directory.encode_to_vec()).unwrap()
    }

    /// What overlayfs.rst says that is seen of `nodes` above `seen`.
    fn lay(seen: &mut Said, nodes: &[Node], at: usize, path: &str) {
        let Content::Directory(entries) = &nodes[at].content else { return };
        for (name, node) in entries {
            let path = format!("{path}/{name}");
            let said = match &nodes[*node].content {
                Content::Directory(_) => "directory".to_owned(),
                content => format!("{content:?} {:o}", nodes[*node].mode),
            };
            let joins = said == "directory" && seen.get(&path).is_some_and(|was| *was == said);
            if !joins {
                seen.retain(|other, _| *other != path && !other.starts_with(&format!("{path}/")));
            }
            if !matches!(nodes[*node].content, Content::Gone) {
                seen.insert(path.clone(), said);
            }
            lay(seen, nodes, *node, &path);
        }
    }

    fn seen(layers: &[&[Node]]) -> Said {
        let mut seen = Said::new();
        layers.iter().for_each(|nodes| lay(&mut seen, nodes, 0, ""));
        seen
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_difference_laid_over_its_base_is_the_tree(old in tree_of(), new in tree_of()) {
            let dir = tempfile::tempdir()?;
            let store = Arc::new(Store::open(dir.path(), Options::default()).unwrap());
            let (base, root) = (put(&store, &old, ""), put(&store, &new, ""));
            let (old, new) = (InputTree::read(&store, &base).unwrap(), InputTree::read(&store, &root).unwrap());
            let below = whole(&old, &base).unwrap();
            let known = |digest: &Digest| old.directory(digest).ok().cloned();
            let above = difference(&new, &root, &base, &known, usize::MAX).unwrap().unwrap();
            let all = whole(&new, &root).unwrap();
            prop_assert_eq!(seen(&[&below, &above]), seen(&[&all]));
            prop_assert!(base != root || above.len() == 1, "nothing is different");
            let fits = difference(&new, &root, &base, &known, above.len()).unwrap().is_some();
            prop_assert!(fits && difference(&new, &root, &base, &known, above.len() - 1).unwrap().is_none());
            prop_assert!(difference(&new, &root, &base, &|_| None, usize::MAX).unwrap().is_none());
        }
    }
}
