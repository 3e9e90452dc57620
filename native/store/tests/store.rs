//! What the store promises: whole or absent, what it acknowledged, complete or no hit.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, Function};
use buildnet_store::{EntryName, Options, Origin, Store};
use prost::Message;

fn open(root: &Path) -> Arc<Store> {
    Arc::new(Store::open(root, Options { free_bytes_min: 0, ..Options::default() }).unwrap())
}

#[test]
fn a_blob_is_what_its_digest_says_or_absent() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let digest = store.put_bytes(b"hello").unwrap();
    assert_eq!(store.get_bytes(&digest, 100).unwrap(), "hello");
    let wrong_size = Digest::new(Function::Sha256, digest.hash(), 6);
    assert_eq!(store.find_missing(&[digest, wrong_size, Digest::empty()]).unwrap(), vec![wrong_size]);
    assert_eq!(store.get_bytes(&wrong_size, 100).unwrap_err().code, "not_found");
    assert_eq!(store.put_expected(&wrong_size, b"hello").unwrap_err().code, "digest_mismatch");
    // That it is here is no reason to take other bytes for it.
    assert_eq!(store.put_expected(&digest, b"other").unwrap_err().code, "digest_mismatch");
    let answers = store.put_many(&[(digest, b"other"), (digest, b"hello")]);
    assert_eq!(answers[0].as_ref().unwrap_err().code, "digest_mismatch");
    assert!(answers[1].is_ok());
    assert_eq!(store.get_bytes(&digest, 4).unwrap_err().code, "too_large");
}

#[test]
fn a_write_that_is_not_finished_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let digest = Digest::of(b"hello");
    let mut writer = store.writer(digest).unwrap();
    writer.write(b"hel").unwrap();
    drop(writer);
    let mut writer = store.writer(digest).unwrap();
    assert_eq!(writer.write(b"hello!").unwrap_err().code, "digest_mismatch");
    drop(writer);
    let writer = store.writer(digest).unwrap();
    assert_eq!(writer.commit().unwrap_err().code, "digest_mismatch");
    assert!(!store.contains(&digest));
    assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
}

/// Flip one bit of the only file below `directory` that is long enough, at `at`.
fn rot(directory: &Path, at: usize) {
    let mut todo = vec![directory.to_owned()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        if bytes.len() > at {
            bytes[at] ^= 1;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(&path, bytes).unwrap();
        }
    }
}

#[test]
fn a_rotten_blob_is_absent_and_can_be_stored_anew() {
    for size in [3000, 1_000_000] {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let data = vec![7; size];
        let digest = store.put_bytes(&data).unwrap();
        rot(&root.path().join(if size > 5000 { "large" } else { "segments" }), 2900);
        let error = store.get_bytes(&digest, 1 << 30).unwrap_err();
        assert_eq!((error.code, store.contains(&digest)), ("digest_mismatch", false));
        assert_eq!(root.path().join("quarantine").join(digest.hex()).exists(), size > 5000);
        assert_eq!(store.put_bytes(&data).unwrap(), digest);
        assert_eq!(store.get_bytes(&digest, 1 << 30).unwrap(), data);
        drop(store);
        assert_eq!(open(root.path()).get_bytes(&digest, 1 << 30).unwrap(), data);
    }
}

#[test]
fn every_range_of_a_large_blob_is_read_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let data: Vec<u8> = (0..700_001u32).map(|n| (n % 251) as u8).collect();
    let digest = store.put_bytes(&data).unwrap();
    for (offset, limit) in [(0, None), (1, Some(5)), (131_071, Some(2)), (400_000, None), (700_001, None)] {
        let mut reader = store.reader(&digest, offset, limit).unwrap();
        let mut read = Vec::new();
        while let Some(chunk) = store.next_chunk(&mut reader, 100_000).unwrap() {
            read.extend_from_slice(chunk.as_slice());
        }
        let end = limit.map_or(data.len(), |limit| offset as usize + limit as usize);
        assert!(read == data[offset as usize..end], "{offset} {limit:?}");
    }
    assert_eq!(store.reader(&digest, 700_002, None).err().unwrap().code, "out_of_range");
}

#[test]
fn a_result_is_no_hit_while_anything_is_absent() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let action = Digest::of(b"action");
    let file = b"in a tree".as_slice();
    let node = re::FileNode { name: "f".to_owned(), digest: Some(Digest::of(file).to_message()), ..Default::default() };
    let directory = re::Directory { files: vec![node], ..Default::default() };
    let tree = re::Tree { root: Some(directory.clone()), children: vec![] }.encode_to_vec();
    let root_directory = directory.encode_to_vec();
    let blobs: [&[u8]; 5] = [b"stdout", b"stderr", &tree, &root_directory, file];
    let digest = |data: &[u8]| Some(Digest::of(data).to_message());
    let result = re::ActionResult {
        stdout_digest: digest(blobs[0]),
        stderr_digest: digest(blobs[1]),
        output_directories: vec![re::OutputDirectory {
            path: "d".to_owned(),
            tree_digest: digest(&tree),
            root_directory_digest: digest(&root_directory),
            ..Default::default()
        }],
        ..Default::default()
    }
    .encode_to_vec();
    store.put_action_result("", &action, &result, Origin::Client(None)).unwrap();
    for blob in blobs {
        assert!(store.get_action_result("", &action).unwrap().is_none());
        let refused = store.put_action_result("", &action, &result, Origin::Published(1)).unwrap_err();
        assert_eq!(refused.code, "blobs_missing");
        store.put_bytes(blob).unwrap();
    }
    assert_eq!(store.get_action_result("", &action).unwrap().unwrap().bytes, result);
    assert!(store.get_action_result("other", &action).unwrap().is_none());
}

#[test]
fn a_newer_format_is_left_alone_and_one_process_holds_it() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("FORMAT"), "99\n").unwrap();
    let refused = Store::open(root.path(), Options::default()).err().unwrap();
    assert_eq!(refused.code, "state_newer");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    fs::write(root.path().join("FORMAT"), "2\n").unwrap();
    let older = Store::open(root.path(), Options::default()).err().unwrap();
    assert_eq!(older.code, "state_corrupt");
    assert!(older.message.contains("remove"), "{}", older.message);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    fs::remove_file(root.path().join("FORMAT")).unwrap();
    let _held = open(root.path());
    let second = Store::open(root.path(), Options::default()).err().unwrap();
    assert_eq!(second.code, "state_locked");
    assert!(second.message.contains(&std::process::id().to_string()), "{}", second.message);
}

#[test]
fn a_disk_without_room_refuses_writes() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { free_bytes_min: u64::MAX / 2, ..Options::default() };
    let store = Arc::new(Store::open(root.path(), options).unwrap());
    assert_eq!(store.put_bytes(b"x").unwrap_err().code, "storage_full");
    assert_eq!(store.get_bytes(&Digest::empty(), 1).unwrap(), "");
}

/// Not a test of its own: the process that the next one kills. It acknowledges each blob after it is stored.
#[test]
fn writes_until_killed() {
    let Ok(root) = std::env::var("BUILDNET_TEST_STORE") else { return };
    let store = open(Path::new(&root));
    let mut out = std::io::stdout();
    for number in 0..1_000_000u32 {
        // Small ones in segments, every eighth in a file of its own.
        let times = if number % 8 == 0 { 50_000 } else { 500 };
        let digest = store.put_bytes(&number.to_le_bytes().repeat(times)).unwrap();
        writeln!(out, "stored {digest}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let root = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writes_until_killed", "--nocapture"])
        .env("BUILDNET_TEST_STORE", root.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let acknowledged: Vec<Digest> =
        lines.by_ref().filter_map(|line| line.split("stored ").nth(1)?.parse().ok()).take(200).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let store = open(root.path());
    for digest in acknowledged {
        store.get_bytes(&digest, 1 << 20).unwrap();
    }
    assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_large_blob_finds_room_where_all_was_used_again_and_none_lately() {
    let root = tempfile::tempdir().unwrap();
    let options = Options {
        free_bytes_min: 0,
        keep_s: 0,
        segment_bytes: 64 << 10,
        size_bytes_max: 4 << 20,
        ..Options::default()
    };
    let store = Arc::new(Store::open(root.path(), options).unwrap());
    let blobs: Vec<Digest> = (0..94u32).map(|n| store.put_bytes(&n.to_le_bytes().repeat(10_000)).unwrap()).collect();
    assert!(store.find_missing(&blobs).unwrap().len() < blobs.len());
    // More than is left between the high water and the limit.
    store.put_bytes(&vec![7; 1 << 20]).unwrap();
}

#[test]
fn what_a_result_refers_to_at_any_depth_is_held_and_what_is_absent_named() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { free_bytes_min: 0, keep_s: 0, segment_bytes: 4096, ..Options::default() };
    let store = Arc::new(Store::open(root.path(), options).unwrap());
    let put = |bytes: &[u8]| store.put_bytes(bytes).unwrap();
    let (file, leaf, in_tree, absent) = (put(b"file"), put(b"leaf"), put(b"in tree"), Digest::of(b"absent"));
    let of =
        |digest: &Digest| re::FileNode { digest: Some(digest.to_message()), name: "f".into(), ..Default::default() };
    let below = put(&re::Directory { files: vec![of(&leaf)], ..Default::default() }.encode_to_vec());
    let node = re::DirectoryNode { name: "d".into(), digest: Some(below.to_message()) };
    let top = put(&re::Directory { directories: vec![node], ..Default::default() }.encode_to_vec());
    let folder = re::Directory { files: vec![of(&in_tree)], ..Default::default() };
    let tree = put(&re::Tree { root: Some(folder), children: vec![] }.encode_to_vec());
    let output = |digest: &Digest| re::OutputFile { digest: Some(digest.to_message()), ..Default::default() };
    let flat = re::ActionResult { output_files: vec![output(&file), output(&absent)], ..Default::default() };
    let directories = vec![
        re::OutputDirectory { root_directory_digest: Some(top.to_message()), ..Default::default() },
        re::OutputDirectory { tree_digest: Some(tree.to_message()), ..Default::default() },
    ];
    let deep = re::ActionResult { output_directories: directories, ..flat.clone() };
    assert_eq!(store.hold_flat_result("flat", &flat.encode_to_vec()).unwrap(), Some(vec![absent]));
    assert_eq!(store.holders(&file), ["flat"], "what is there is held all the same");
    assert_eq!(store.hold_flat_result("deep", &deep.encode_to_vec()).unwrap(), None);
    assert_eq!(store.hold_result("deep", &deep.encode_to_vec()).unwrap(), vec![absent]);
    let needed = [&file, &leaf, &in_tree, &below, &top, &tree];
    for digest in needed {
        assert!(store.holders(digest).contains(&"deep".to_owned()), "{digest}");
    }
    store.release("flat");
    store.release("deep");
    assert!(needed.iter().all(|digest| store.holders(digest).is_empty()));
    assert_eq!(store.hold_result("bad", b"\xff").unwrap_err().code, "invalid_request");
}

#[test]
fn what_is_held_is_not_evicted_blob_or_entry_until_it_is_released() {
    let root = tempfile::tempdir().unwrap();
    let options = Options { free_bytes_min: 0, keep_s: 0, segment_bytes: 4096, ..Options::default() };
    let store = Arc::new(Store::open(root.path(), options).unwrap());
    let (name, other) = (EntryName::path("n", "held").unwrap(), EntryName::path("n", "other").unwrap());
    for name in [&name, &other] {
        store.put_path(name, b"value").unwrap();
    }
    let (held, loose) = (store.put_bytes(b"held").unwrap(), store.put_bytes(b"loose").unwrap());
    store.hold("a", &[held]).unwrap();
    store.hold_entry("b", &name).unwrap();
    for n in 0..1000u32 {
        store.put_bytes(&n.to_le_bytes().repeat(20)).unwrap();
    }
    store.evict_to(0, 0).unwrap();
    assert!(store.contains(&held) && !store.contains(&loose));
    assert!(store.has_path(&name) && !store.has_path(&other));
    store.release("a");
    store.release("b");
    // What was used twice is given a second round.
    for round in 1..4u32 {
        for n in 0..1000 {
            store.put_bytes(&(round * 1000 + n).to_le_bytes().repeat(20)).unwrap();
        }
        store.evict_to(0, 0).unwrap();
    }
    assert!(!store.contains(&held) && !store.has_path(&name));
}
