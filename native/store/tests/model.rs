//! The store against a model of it: random writes, evictions, compactions, reopenings and crashes. What was acknowledged is
//! there or was evicted by its rules, what is there is what was written, and an entry never goes back to an older value.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use buildnet_formats::Digest;
use buildnet_store::{EntryName, Options, Store};
use proptest::prelude::*;

/// Small enough that a handful of operations roll, evict and compact; blobs over 512 bytes are files.
fn options() -> Options {
    Options { free_bytes_min: 0, keep_s: 0, packed_bytes_max: 512, segment_bytes: 4096, ..Options::default() }
}

fn open(root: &Path) -> Arc<Store> {
    Arc::new(Store::open(root, options()).unwrap())
}

fn blob(number: u8) -> Vec<u8> {
    let length = if number.is_multiple_of(5) { 700 + usize::from(number) } else { 3 * usize::from(number) + 1 };
    (0..length).map(|at| (at as u8).wrapping_mul(number)).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    PutMany(Vec<u8>),
    Entry(u8, u16),
    Remove(u8),
    Hold(Vec<u8>),
    Release,
    Evict(u16),
    Compact,
    Scrub,
    Reopen,
    /// As a killed process leaves it: this many bytes of the last write, which was not acknowledged, are gone.
    Crash(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..60).prop_map(Step::Put),
        3 => proptest::collection::vec(0u8..60, 1..8).prop_map(Step::PutMany),
        6 => (0u8..8, any::<u16>()).prop_map(|(name, value)| Step::Entry(name, value)),
        2 => (0u8..8).prop_map(Step::Remove),
        1 => proptest::collection::vec(0u8..60, 1..6).prop_map(Step::Hold),
        1 => Just(Step::Release),
        2 => (0u16..20_000).prop_map(Step::Evict),
        2 => Just(Step::Compact),
        1 => Just(Step::Scrub),
        2 => Just(Step::Reopen),
        2 => any::<u16>().prop_map(Step::Crash),
    ]
}

#[derive(Default)]
struct Model {
    /// Blobs that were acknowledged; whether they must still be here.
    blobs: HashMap<u8, bool>,
    /// The last value of every entry; whether it must still be here.
    entries: HashMap<u8, (Option<u16>, bool)>,
    held: HashSet<u8>,
}

impl Model {
    fn evicted(&mut self) {
        for (number, must) in &mut self.blobs {
            *must &= self.held.contains(number);
        }
        self.entries.values_mut().for_each(|(_, must)| *must = false);
    }
}

fn name(number: u8) -> EntryName {
    EntryName::path("", &format!("name {number}")).unwrap()
}

fn value(value: u16) -> Vec<u8> {
    value.to_le_bytes().repeat(1 + usize::from(value % 50))
}

/// Cut the segment that grows in the middle of a write that follows everything acknowledged.
fn tear(root: &Path, store: Arc<Store>, cut: u16) {
    // A file ends with its last record once its store is closed.
    drop(store);
    let newest = || fs::read_dir(root.join("segments")).unwrap().map(|e| e.unwrap().path());
    let newest = newest().filter(|p| p.extension().is_some_and(|e| e == "seg")).max().unwrap();
    let before = fs::metadata(&newest).unwrap().len();
    let store = open(root);
    store.put_bytes(&[cut.to_le_bytes().as_slice(), &[7; 90]].concat()).unwrap();
    drop(store);
    let after = fs::metadata(&newest).unwrap().len();
    // When the write began another segment, this one stays as it is and the other loses its end.
    let grown = newest.with_file_name(format!(
        "{:08}.seg",
        newest.file_stem().unwrap().to_str().unwrap().parse::<u32>().unwrap() + u32::from(after == before)
    ));
    let (start, end) = if after == before { (0, fs::metadata(&grown).unwrap().len()) } else { (before, after) };
    let length = start + u64::from(cut) % (end - start);
    File::options().write(true).open(&grown).unwrap().set_len(length).unwrap();
}

fn check(store: &Store, model: &Model) {
    for (number, must) in &model.blobs {
        let data = blob(*number);
        let digest = Digest::of(&data);
        let present = store.contains(&digest);
        assert!(present || !must, "blob {number} is lost");
        if present {
            assert_eq!(store.get_bytes(&digest, 1 << 20).unwrap(), data);
        }
    }
    for (number, (last, must)) in &model.entries {
        match store.get_path(&name(*number)).unwrap() {
            Some(found) => assert_eq!(Some(found.to_vec()), last.map(value), "entry {number} is not its last value"),
            None => assert!(!must || last.is_none(), "entry {number} is lost"),
        }
    }
    let damaged = store.statistics().into_iter().find(|(name, _)| *name == "damaged").unwrap().1;
    assert_eq!(damaged, 0);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("BUILDNET_MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(20),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn it_keeps_its_promises(steps in proptest::collection::vec(step(), 1..80)) {
        let root = tempfile::tempdir().unwrap();
        let mut store = open(root.path());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Put(number) => {
                    store.put_bytes(&blob(number)).unwrap();
                    model.blobs.insert(number, true);
                }
                Step::PutMany(numbers) => {
                    let data: Vec<Vec<u8>> = numbers.iter().map(|n| blob(*n)).collect();
                    let batch: Vec<_> = data.iter().map(|d| (Digest::of(d), d.as_slice())).collect();
                    prop_assert!(store.put_many(&batch).iter().all(Result::is_ok));
                    model.blobs.extend(numbers.into_iter().map(|n| (n, true)));
                }
                Step::Entry(number, new) => {
                    store.put_path(&name(number), &value(new)).unwrap();
                    model.entries.insert(number, (Some(new), true));
                }
                Step::Remove(number) => {
                    store.remove_path(&name(number));
                    model.entries.insert(number, (None, true));
                }
                Step::Hold(numbers) => {
                    store.hold("one", &numbers.iter().map(|n| Digest::of(&blob(*n))).collect::<Vec<_>>()).unwrap();
                    model.held = numbers.into_iter().collect();
                }
                Step::Release => {
                    store.release("one");
                    model.held.clear();
                }
                Step::Evict(size) => {
                    store.evict_to(size.into(), size.into()).unwrap();
                    model.evicted();
                }
                Step::Compact => {
                    store.compact().unwrap();
                }
                Step::Scrub => {
                    prop_assert_eq!(store.scrub(|_| true).unwrap().damaged, Vec::<String>::new());
                }
                Step::Reopen => {
                    drop(store);
                    store = open(root.path());
                    model.held.clear();
                }
                Step::Crash(cut) => {
                    tear(root.path(), store, cut);
                    store = open(root.path());
                    model.held.clear();
                }
            }
            check(&store, &model);
        }
    }
}
