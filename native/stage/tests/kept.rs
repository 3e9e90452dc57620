//! Kept trees, by root on a machine whose kernel mounts images: what is seen of one is what a copy of it would be, whether it is
//! kept whole or as a difference, and whatever became of the tree that it differs from.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use buildnet_formats::Digest;
use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_stage::{Root, Trees, View, stage, stage_kept};
use buildnet_store::{Options, Store};
use proptest::prelude::*;
use prost::Message;
use tempfile::TempDir;

type Tree = BTreeMap<String, Entry>;

#[derive(Clone, Debug)]
enum Entry {
    File(String, bool),
    Symlink(String),
}

struct House {
    dir: TempDir,
    store: Arc<Store>,
    number: std::cell::Cell<u32>,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let store = Store::open(&dir.path().join("store"), Options::default()).expect("a new store opens");
        Self { dir, store: Arc::new(store), number: 0.into() }
    }

    /// None where this user or this kernel cannot: then there is nothing to test.
    fn trees(&self, size_bytes_max: u64) -> Option<Arc<Trees>> {
        Trees::open(&self.dir.path().join("trees"), size_bytes_max).expect("trees can be opened")
    }

    fn fresh(&self) -> std::path::PathBuf {
        self.number.set(self.number.get() + 1);
        let path = self.dir.path().join(self.number.get().to_string());
        fs::create_dir(&path).expect("a directory can be made");
        path
    }

    fn put(&self, data: &[u8]) -> Option<re::Digest> {
        Some(self.store.put_bytes(data).expect("the store takes a small blob").to_message())
    }

    fn root_of(&self, tree: &Tree) -> Digest {
        Digest::required(self.directory(tree, "").as_ref(), "root").expect("it was just made")
    }

    fn directory(&self, tree: &Tree, below: &str) -> Option<re::Digest> {
        let mut directory = re::Directory::default();
        let mut last = None;
        for (path, entry) in tree.range(below.to_owned()..).take_while(|(path, _)| path.starts_with(below)) {
            let rest = &path[below.len()..];
            match (rest.split_once('/'), entry) {
                (Some((name, _)), _) if last != Some(name) => {
                    last = Some(name);
                    let digest = self.directory(tree, &format!("{below}{name}/"));
                    directory.directories.push(re::DirectoryNode { name: name.to_owned(), digest });
                }
                (Some(_), _) => {}
                (None, Entry::File(text, is_executable)) => directory.files.push(re::FileNode {
                    name: rest.to_owned(),
                    digest: self.put(text.as_bytes()),
                    is_executable: *is_executable,
                    ..Default::default()
                }),
                (None, Entry::Symlink(target)) => directory.symlinks.push(re::SymlinkNode {
                    name: rest.to_owned(),
                    target: target.clone(),
                    ..Default::default()
                }),
            }
        }
        directory.directories.sort_by(|one, other| one.name.cmp(&other.name));
        self.put(&directory.encode_to_vec())
    }

    fn view(&self, trees: &Arc<Trees>, root: &Digest) -> View {
        let staged = stage_kept(trees, &self.store, root, &self.fresh(), &command()).expect("it can be staged");
        let Root::Seen(view) = staged else { panic!("it is large enough to be kept") };
        view
    }

    fn check(&self, view: &View, root: &Digest) {
        let copy = self.fresh();
        stage(&self.store, root, &copy, &command()).expect("it can be copied");
        assert_eq!(walk(&view.path()), walk(&copy));
    }
}

fn command() -> Vec<u8> {
    re::Command { arguments: vec!["true".to_owned()], ..Default::default() }.encode_to_vec()
}

/// Everything below a directory: path, and mode with content or target.
fn walk(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![String::new()];
    while let Some(below) = open.pop() {
        for entry in fs::read_dir(root.join(&below)).expect("a directory can be read") {
            let name = entry.expect("an entry can be read").file_name().into_string().expect("names are UTF-8");
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            let at = root.join(&path);
            let facts = at.symlink_metadata().expect("an entry has facts");
            let data = if facts.is_dir() {
                open.push(path.clone());
                Vec::new()
            } else if facts.is_symlink() {
                fs::read_link(&at).expect("a link has a target").into_os_string().into_encoded_bytes()
            } else {
                fs::read(&at).expect("a file can be read")
            };
            found.insert(path, (facts.mode(), data));
        }
    }
    found
}

fn wide(directories: usize) -> Tree {
    let file = |number: usize| (format!("d{:02}/f{number:03}", number / 20), Entry::File(number.to_string(), false));
    (0..directories * 20).map(file).collect()
}

#[test]
fn a_tree_that_differs_little_is_seen_as_its_copy_would_be() {
    let house = House::new();
    let Some(trees) = house.trees(64 << 20) else { return };
    let mut tree = wide(20);
    tree.insert("link".to_owned(), Entry::Symlink("d00/f000".to_owned()));
    let old = house.root_of(&tree);
    drop(house.view(&trees, &old));
    let (_, whole_bytes) = trees.counts();
    tree.insert("d00/f000".to_owned(), Entry::File("changed".to_owned(), false));
    tree.insert("d01/f020".to_owned(), Entry::File("20".to_owned(), true));
    tree.remove("d02/f040");
    tree.retain(|path, _| !path.starts_with("d03/"));
    tree.retain(|path, _| !path.starts_with("d04/"));
    tree.insert("d04".to_owned(), Entry::File("a file now".to_owned(), false));
    tree.retain(|path, _| !path.starts_with("d05/"));
    tree.insert("d05".to_owned(), Entry::Symlink("d06".to_owned()));
    tree.remove("link");
    tree.insert("link/inside".to_owned(), Entry::File("a directory now".to_owned(), false));
    tree.insert("new/deep/er".to_owned(), Entry::File(String::new(), false));
    let new = house.root_of(&tree);
    let view = house.view(&trees, &new);
    house.check(&view, &new);
    let (count, bytes) = trees.counts();
    assert_eq!(count, 2);
    assert!(bytes <= whole_bytes || bytes - whole_bytes < whole_bytes / 4, "{whole_bytes} then {bytes}");
    let number = |path: &str| view.path().join(path).metadata().map(|facts| (facts.dev(), facts.ino())).expect(path);
    let device = number("").0;
    assert!(["d00", "d00/f000", "d07", "d07/f140"].iter().all(|path| number(path).0 == device), "one file system");
    let before = number("d06/f120");
    // What an action does to it, the next does not see.
    fs::write(view.path().join("d06/f120"), "mine").expect("an action may change its inputs");
    assert_eq!(number("d06/f120"), before);
    fs::remove_dir_all(view.path().join("new")).expect("an action may remove its inputs");
    drop(view);
    house.check(&house.view(&trees, &new), &new);
    house.check(&house.view(&trees, &old), &old);
}

#[test]
fn a_layer_stays_while_a_tree_stands_on_it() {
    let house = House::new();
    let mut tree = wide(10);
    let old = house.root_of(&tree);
    let Some(trees) = house.trees(1 << 30) else { return };
    drop(house.view(&trees, &old));
    let whole_bytes = trees.counts().1;
    drop(trees);
    // Room for two trees and a difference, but not for three.
    let Some(trees) = house.trees(whole_bytes * 5 / 2) else { return };
    drop(house.view(&trees, &old));
    tree.insert("d00/f000".to_owned(), Entry::File("changed".to_owned(), false));
    let new = house.root_of(&tree);
    let view = house.view(&trees, &new);
    for number in 0..3 {
        let other = wide(10).into_keys().map(|path| (path.clone(), Entry::File(format!("{number} {path}"), false)));
        drop(house.view(&trees, &house.root_of(&other.collect())));
    }
    assert!(trees.find(&old).is_none(), "the tree that the other stands on is known no more");
    house.check(&view, &new);
    let on_disk = fs::read_dir(house.dir.path().join("trees")).expect("it is there");
    let on_disk: u64 = on_disk.map(|entry| entry.expect("it is there").metadata().expect("it is there").len()).sum();
    assert!(trees.counts().1 >= on_disk || on_disk < 1 << 16, "what is on disk is counted: {on_disk}");
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        ("[xyz]{0,2}", any::<bool>()).prop_map(|(text, executable)| Entry::File(text, executable)),
        Just(Entry::Symlink("d00".to_owned())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_changed_a_difference_shows_the_tree(
        changes in prop::collection::btree_map("(d0[0-3]|e)(/f00[0-5](/g)?)?", prop::option::of(entry()), 0..8)
    ) {
        let house = House::new();
        let Some(trees) = house.trees(64 << 20) else { return Ok(()) };
        let mut tree = wide(10);
        drop(house.view(&trees, &house.root_of(&tree)));
        for (path, entry) in changes {
            tree.retain(|other, _| *other != path && !other.starts_with(&format!("{path}/")) && !path.starts_with(&format!("{other}/")));
            if let Some(entry) = entry {
                tree.insert(path, entry);
            }
        }
        let root = house.root_of(&tree);
        house.check(&house.view(&trees, &root), &root);
    }
}
