//! The files of a store and the trees in it, changed in any way: no panic, no wrong bytes, and a store that can be filled.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use buildnet_formats::Digest;
use buildnet_fuzz::{corpus, fuzz};
use buildnet_store::{EntryName, Options, Origin, Store};

fn open(root: &Path) -> Result<Arc<Store>, buildnet_formats::NativeError> {
    let options = Options { free_bytes_min: 0, packed_bytes_max: 1000, segment_bytes: 4096, ..Options::default() };
    Store::open(root, options).map(Arc::new)
}

fn contents() -> Vec<Vec<u8>> {
    (1..16u8).map(|n| vec![n; 40 * usize::from(n) + usize::from(n / 15) * 2000]).collect()
}

/// A store of a few segments, a large file, entries and removals.
fn fill(root: &Path) {
    let store = open(root).unwrap();
    for (number, content) in contents().iter().enumerate() {
        store.put_bytes(content).unwrap();
        store.put_path(&name(number % 3), content).unwrap();
    }
    store.remove_path(&name(1));
}

fn name(number: usize) -> EntryName {
    EntryName::path("", &format!("name {number}")).unwrap()
}

fn check(root: &Path) -> Result<(), String> {
    let store = match open(root) {
        Ok(store) => store,
        Err(error) if matches!(error.code, "state_corrupt" | "state_newer") => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    for content in contents() {
        let digest = Digest::of(&content);
        match store.get_bytes(&digest, 1 << 20) {
            Ok(read) if read != content => return Err(format!("wrong bytes for {digest}")),
            Err(error) if !matches!(error.code, "not_found" | "digest_mismatch") => return Err(error.to_string()),
            _ => {}
        }
        store.put_bytes(&content).map_err(|e| e.to_string())?;
        if store.get_bytes(&digest, 1 << 20).map_err(|e| e.to_string())? != content {
            return Err(format!("wrong bytes for {digest} after it was stored anew"));
        }
    }
    for number in 0..3 {
        let value = store.get_path(&name(number)).map_err(|e| e.to_string())?;
        let known = |value: &[u8]| contents().iter().skip(number).step_by(3).any(|content| content == value);
        if value.is_some_and(|value| !known(&value)) {
            return Err(format!("entry {number} has a value that was never written"));
        }
    }
    store.scrub(|_| true).map_err(|e| e.to_string())?;
    Ok(())
}

fn try_file(relative: &str) {
    let origin = tempfile::tempdir().unwrap();
    fill(origin.path());
    let good = fs::read(origin.path().join(relative)).unwrap();
    fuzz(&[good], |input| {
        let root = tempfile::tempdir().unwrap();
        for directory in ["segments", "large", "tmp", "quarantine"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        for entry in fs::read_dir(origin.path().join("segments")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, root.path().join("segments").join(path.file_name().unwrap())).unwrap();
        }
        fs::copy(origin.path().join("FORMAT"), root.path().join("FORMAT")).unwrap();
        fs::write(root.path().join(relative), input).unwrap();
        check(root.path())
    });
}

#[test]
fn a_sealed_segment() {
    try_file("segments/00000001.seg");
}

#[test]
fn the_segment_that_grows() {
    let origin = tempfile::tempdir().unwrap();
    fill(origin.path());
    let names = fs::read_dir(origin.path().join("segments")).unwrap().map(|e| e.unwrap().file_name());
    let newest = names.map(|n| n.into_string().unwrap()).filter(|n| n.ends_with(".seg")).max().unwrap();
    try_file(&format!("segments/{newest}"));
}

#[test]
fn an_index_file() {
    try_file("segments/00000001.idx");
}

#[test]
fn the_format_file() {
    try_file("FORMAT");
}

#[test]
fn trees_and_results() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path()).unwrap();
    fuzz(&corpus("messages"), |input| {
        let digest = store.put_bytes(input).map_err(|e| e.to_string())?;
        let action = Digest::of(b"action");
        let walked = store.missing_of_action(&digest).err();
        let checked = store.missing_of_result(None, input).err();
        let kept = store.put_action_result("", &action, input, Origin::Client(None)).err();
        let paged = store.tree_walk(&digest, 0, "", 1 << 20).and_then(|mut walk| walk.next_page()).err();
        for error in [walked, checked, kept, paged].into_iter().flatten() {
            if !matches!(error.code, "invalid_request" | "blobs_missing" | "not_found" | "too_large") {
                return Err(error.to_string());
            }
        }
        let found = store.get_action_result("", &action).map_err(|e| e.to_string())?;
        if let Some(found) = found
            && store.missing_of_result(None, &found.bytes).map_or(true, |missing| !missing.is_empty())
        {
            return Err("a hit that is not complete".to_owned());
        }
        Ok(())
    });
}
