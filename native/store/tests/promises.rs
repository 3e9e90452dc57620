//! What eviction may not take, what pressure may, and what a full or starved process does to what is stored: nothing.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use buildnet_formats::Digest;
use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_store::{EntryName, Options, Origin, Store};
use prost::Message;

const KIB: usize = 1 << 10;

fn open(root: &Path, options: &Options) -> Arc<Store> {
    Arc::new(Store::open(root, options.clone()).unwrap())
}

fn small() -> Options {
    Options { free_bytes_min: 0, segment_bytes: 64 << 10, ..Options::default() }
}

fn data(number: u32, size: usize) -> Vec<u8> {
    number.to_le_bytes().repeat(size / 4)
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == extension));
    found.sort();
    found
}

#[test]
fn what_was_here_before_a_restart_yields_to_what_is_written_now() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { size_bytes_max: 1 << 20, keep_s: 900, ..small() };
    let store = open(root.path(), &options);
    let old: Vec<Digest> = (0..200).map(|n| store.put_bytes(&data(n, 4 * KIB)).unwrap()).collect();
    drop(store);
    let store = open(root.path(), &options);
    // Said to be present since: it stays, whatever comes.
    let (asked, rest) = old.split_at(20);
    assert!(store.find_missing(asked).unwrap().is_empty());
    for number in 1000..1150 {
        store.put_bytes(&data(number, 4 * KIB)).unwrap();
    }
    assert!(store.find_missing(asked).unwrap().is_empty());
    assert!(store.find_missing(rest).unwrap().len() > 50);
    assert!(store.used_bytes() <= 1 << 20);
}

#[test]
fn when_all_is_in_use_writes_are_refused_and_nothing_is_rewritten_for_it() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path(), &Options { size_bytes_max: 1 << 20, keep_s: 900, ..small() });
    let mut kept = Vec::new();
    let refused = (0..).find_map(|number| match store.put_bytes(&data(number, 4 * KIB)) {
        Ok(digest) => {
            kept.push(digest);
            None
        }
        Err(error) => Some(error),
    });
    assert_eq!(refused.unwrap().code, "storage_full");
    let before = files(&root.path().join("segments"), "seg");
    for number in 0..100 {
        assert_eq!(store.put_bytes(&data(1_000_000 + number, 4 * KIB)).unwrap_err().code, "storage_full");
    }
    assert_eq!(files(&root.path().join("segments"), "seg"), before);
    for digest in &kept {
        assert_eq!(store.get_bytes(digest, 1 << 20).unwrap().len(), 4 * KIB);
    }
}

#[test]
fn what_a_returned_result_refers_to_is_not_evicted() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { keep_s: 900, ..small() };
    let store = open(root.path(), &options);
    let file = store.put_bytes(&data(1, 8 * KIB)).unwrap();
    let node = re::FileNode { name: "f".to_owned(), digest: Some(file.to_message()), ..Default::default() };
    let tree = re::Tree { root: Some(re::Directory { files: vec![node], ..Default::default() }), children: vec![] };
    let tree = store.put_bytes(&tree.encode_to_vec()).unwrap();
    let directory = re::OutputDirectory { tree_digest: Some(tree.to_message()), ..Default::default() };
    let result = re::ActionResult { output_directories: vec![directory], ..Default::default() }.encode_to_vec();
    let action = Digest::of(b"action");
    store.put_action_result("", &action, &result, Origin::Client(None)).unwrap();
    let other = store.put_bytes(&data(2, 8 * KIB)).unwrap();
    drop(store);
    let store = open(root.path(), &Options { size_bytes_max: 100, ..options });
    assert!(store.get_action_result("", &action).unwrap().is_some());
    store.evict_to(0, 0).unwrap();
    assert!(store.find_missing(&[file, tree]).unwrap().is_empty());
    assert_eq!(store.find_missing(&[other]).unwrap(), vec![other]);
    assert_eq!(store.get_action_result("", &action).unwrap().unwrap().bytes, result);
}

#[test]
fn an_evicted_entry_does_not_come_back_with_an_older_value() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { keep_s: 0, ..small() };
    let store = open(root.path(), &options);
    let name = EntryName::path("", "name").unwrap();
    store.put_path(&name, b"old").unwrap();
    // The first segment stays, since nearly all of it is held.
    let held: Vec<Digest> = (0..10).map(|n| store.put_bytes(&data(n, 6 * KIB)).unwrap()).collect();
    store.hold("held", &held).unwrap();
    store.put_bytes(&data(99, 6 * KIB)).unwrap();
    store.put_path(&name, b"new").unwrap();
    for number in 100..120 {
        store.put_bytes(&data(number, 6 * KIB)).unwrap();
    }
    store.evict_to(0, 0).unwrap();
    assert!(store.get_path(&name).unwrap().is_none());
    assert!(store.find_missing(&held).unwrap().is_empty());
    drop(store);
    let store = open(root.path(), &options);
    assert!(store.get_path(&name).unwrap().is_none());
    assert!(store.find_missing(&held).unwrap().is_empty());
}

#[test]
fn a_large_blob_that_was_evicted_is_not_said_to_be_present_after_a_crash() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { keep_s: 0, ..small() };
    let store = open(root.path(), &options);
    let large = store.put_bytes(&data(1, 300 * KIB)).unwrap();
    let before = root.path().join("before");
    fs::create_dir(&before).unwrap();
    for path in files(&root.path().join("segments"), "seg") {
        fs::copy(&path, before.join(path.file_name().unwrap())).unwrap();
    }
    store.evict_to(0, 0).unwrap();
    assert!(!store.contains(&large));
    drop(store);
    // As if it was killed after the file was deleted and before the segment was.
    for path in files(&before, "seg") {
        fs::copy(&path, root.path().join("segments").join(path.file_name().unwrap())).unwrap();
    }
    assert!(!open(root.path(), &options).contains(&large));
}
