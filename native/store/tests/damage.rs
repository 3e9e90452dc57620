//! A byte changed or cut off anywhere in any file: never served as content, always counted, and gone until stored anew.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use buildnet_formats::Digest;
use buildnet_store::{EntryName, Options, Store};

const LARGE_BYTES: usize = 300_000;

fn try_open(root: &Path) -> Result<Arc<Store>, buildnet_formats::NativeError> {
    Store::open(root, Options { free_bytes_min: 0, segment_bytes: 16 << 10, ..Options::default() }).map(Arc::new)
}

fn contents() -> Vec<Vec<u8>> {
    // Without zeros: those are padding.
    let mut all: Vec<Vec<u8>> = (1..41u8).map(|n| vec![n; 120 + 28 * usize::from(n)]).collect();
    all.push(b"large".repeat(LARGE_BYTES / 5));
    all
}

fn name() -> EntryName {
    EntryName::path("", "name").unwrap()
}

fn fill(root: &Path) {
    let store = try_open(root).unwrap();
    for content in contents() {
        store.put_bytes(&content).unwrap();
    }
    store.put_path(&name(), b"value").unwrap();
}

fn every_file(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(every_file(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    for path in every_file(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&path, &target).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
    }
}

fn damaged_count(store: &Store) -> u64 {
    store.statistics().into_iter().find(|(name, _)| *name == "damaged").unwrap().1
}

/// Every blob is whole or absent, and what is absent can be stored anew. Returns how many were absent.
fn read_all(store: &Arc<Store>) -> usize {
    let mut absent = 0;
    for content in contents() {
        let digest = Digest::of(&content);
        match store.get_bytes(&digest, 1 << 30) {
            Ok(read) => assert!(read == content, "wrong bytes were served"),
            Err(error) => {
                assert!(matches!(error.code, "not_found" | "digest_mismatch"), "{error:?}");
                assert!(!store.contains(&digest));
                absent += 1;
                store.put_bytes(&content).unwrap();
                assert!(store.get_bytes(&digest, 1 << 30).unwrap() == content);
            }
        }
    }
    let value = store.get_path(&name()).unwrap();
    assert!(value.is_none_or(|value| value == "value"));
    absent
}

fn is_padding(path: &Path, at: usize, before: &[u8]) -> bool {
    // Records end at multiples of eight; the zeros behind them belong to nobody.
    path.extension().is_some_and(|e| e == "seg") && before[at] == 0
}

#[test]
fn a_changed_byte_is_never_served() {
    let origin = tempfile::tempdir().unwrap();
    fill(origin.path());
    let mut kinds = [0; 4];
    for path in every_file(origin.path()) {
        let relative = path.strip_prefix(origin.path()).unwrap().to_owned();
        let bytes = fs::read(&path).unwrap();
        let count = if bytes.len() > 100_000 { 12 } else { 24 };
        for number in 0..count {
            let at = number * bytes.len() / count;
            let root = tempfile::tempdir().unwrap();
            copy(origin.path(), root.path());
            let mut changed = bytes.clone();
            let Some(byte) = changed.get_mut(at) else { continue };
            *byte ^= 1 << (number % 8);
            fs::write(root.path().join(&relative), &changed).unwrap();
            let store = match try_open(root.path()) {
                Ok(store) => store,
                Err(error) => {
                    assert!(relative.ends_with("FORMAT"), "{} keeps the store shut: {error:?}", relative.display());
                    assert!(matches!(error.code, "state_corrupt" | "state_newer"), "{error:?}");
                    kinds[0] += 1;
                    continue;
                }
            };
            let at_open = damaged_count(&store);
            let scrubbed = store.scrub(|_| true).unwrap();
            let told = at_open > 0 || !scrubbed.damaged.is_empty();
            let absent = read_all(&store);
            let first = relative.components().next().unwrap().as_os_str().to_owned();
            if first == "large" {
                assert_eq!((absent, scrubbed.damaged.len()), (1, 1));
                assert!(damaged_count(&store) > 0);
                kinds[1] += 1;
            } else if first == "segments" {
                assert!(told || is_padding(&relative, at, &bytes), "{} at {at} is not reported", relative.display());
                assert!(absent <= 1);
                kinds[2] += 1;
            } else {
                assert_eq!((absent, told), (0, false), "{}", relative.display());
                kinds[3] += 1;
            }
            drop(store);
            assert_eq!(read_all(&try_open(root.path()).unwrap()), 0);
        }
    }
    assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
}

#[test]
fn a_byte_changed_while_it_runs_is_never_served() {
    let origin = tempfile::tempdir().unwrap();
    fill(origin.path());
    for path in every_file(origin.path()) {
        let relative = path.strip_prefix(origin.path()).unwrap().to_owned();
        for number in 0..8usize {
            let root = tempfile::tempdir().unwrap();
            copy(origin.path(), root.path());
            let store = try_open(root.path()).unwrap();
            let bytes = fs::read(root.path().join(&relative)).unwrap();
            if bytes.is_empty() {
                continue;
            }
            let file = fs::File::options().write(true).open(root.path().join(&relative)).unwrap();
            let at = number * bytes.len() / 8;
            std::os::unix::fs::FileExt::write_all_at(&file, &[bytes[at] ^ 0x40], at as u64).unwrap();
            let absent = read_all(&store);
            assert!(absent <= 1, "{}", relative.display());
            assert!(absent == 0 || damaged_count(&store) > 0);
            store.scrub(|_| true).unwrap();
            assert_eq!(read_all(&store), 0);
        }
    }
}

#[test]
fn a_file_cut_short_costs_what_was_cut_off() {
    let origin = tempfile::tempdir().unwrap();
    fill(origin.path());
    for path in every_file(origin.path()) {
        let relative = path.strip_prefix(origin.path()).unwrap().to_owned();
        let length = fs::metadata(&path).unwrap().len();
        for part in 0..6 {
            let root = tempfile::tempdir().unwrap();
            copy(origin.path(), root.path());
            let file = fs::File::options().write(true).open(root.path().join(&relative)).unwrap();
            file.set_len(length * part / 6).unwrap();
            match try_open(root.path()) {
                Ok(store) => {
                    read_all(&store);
                    drop(store);
                    assert_eq!(read_all(&try_open(root.path()).unwrap()), 0);
                }
                Err(error) => assert!(relative.ends_with("FORMAT") && error.code == "state_corrupt", "{error:?}"),
            }
            let root = tempfile::tempdir().unwrap();
            copy(origin.path(), root.path());
            let store = try_open(root.path()).unwrap();
            fs::File::options()
                .write(true)
                .open(root.path().join(&relative))
                .unwrap()
                .set_len(length * part / 6)
                .unwrap();
            read_all(&store);
            assert_eq!(read_all(&store), 0);
        }
    }
}
