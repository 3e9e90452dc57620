//! Whatever bytes claim to be an input tree, nothing panics and nothing is written outside the execution root.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use buildnet_formats::Digest;
use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_stage::{CollectLimits, Staged, collect, remove_tree, stage};
use buildnet_store::{Options, Store};
use proptest::prelude::*;
use prost::Message;

const LIMITS: CollectLimits = CollectLimits { file_count_max: 1000, size_bytes_max: 1 << 20 };

fn store() -> Arc<Store> {
    static STORE: OnceLock<(tempfile::TempDir, Arc<Store>)> = OnceLock::new();
    let (_, store) = STORE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let store = Store::open(dir.path(), Options::default()).expect("a new store opens");
        (dir, Arc::new(store))
    });
    Arc::clone(store)
}

fn command(outputs: &[String]) -> Vec<u8> {
    let command =
        re::Command { arguments: vec!["true".to_owned()], output_paths: outputs.to_vec(), ..Default::default() };
    command.encode_to_vec()
}

/// Stage into `root` of a fresh directory and look at what is there afterwards.
fn stage_in(dir: &Path, root: &Digest, command: &[u8]) -> Option<Staged> {
    let result = stage(&store(), root, &dir.join("root"), command).ok();
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    for name in names.map(|entry| entry.file_name()) {
        assert_eq!(name, "root", "something was written outside");
    }
    result
}

fn hostile_name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[a-e]",
        1 => Just("..".to_owned()),
        1 => Just("../x".to_owned()),
        1 => Just("/tmp/x".to_owned()),
        1 => Just("a/b".to_owned()),
        1 => any::<String>(),
    ]
}

fn hostile_directory(children: Vec<Digest>) -> impl Strategy<Value = re::Directory> {
    let children: Vec<re::Digest> = children.iter().map(Digest::to_message).collect();
    let file = (hostile_name(), any::<bool>(), any::<u32>(), any::<(i64, i32)>()).prop_map(
        |(name, is_executable, mode, (seconds, nanos))| re::FileNode {
            name,
            digest: Some(Digest::empty().to_message()),
            is_executable,
            node_properties: Some(re::NodeProperties {
                mtime: Some(prost_types::Timestamp { seconds, nanos }),
                unix_mode: Some(mode),
                ..Default::default()
            }),
        },
    );
    let link = (hostile_name(), hostile_name()).prop_map(|(name, target)| re::SymlinkNode {
        name,
        target,
        ..Default::default()
    });
    let child = (hostile_name(), prop::sample::select(children))
        .prop_map(|(name, digest)| re::DirectoryNode { name, digest: Some(digest) });
    (
        prop::collection::vec(file, 0..3),
        prop::collection::vec(child, 0..3),
        prop::collection::vec(link, 0..3),
        any::<bool>(),
    )
        .prop_map(|(mut files, mut directories, mut symlinks, sorted)| {
            if sorted {
                files.sort_by(|a, b| a.name.cmp(&b.name));
                directories.sort_by(|a, b| a.name.cmp(&b.name));
                symlinks.sort_by(|a, b| a.name.cmp(&b.name));
            }
            re::Directory { files, directories, symlinks, ..Default::default() }
        })
}

fn put(directory: &re::Directory) -> Digest {
    let bytes = directory.encode_to_vec();
    store().put_bytes(&bytes).expect("the store takes a small blob")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_as_a_root(bytes: Vec<u8>) {
        let dir = tempfile::tempdir()?;
        let root = store().put_bytes(&bytes).expect("the store takes a small blob");
        stage_in(dir.path(), &root, &command(&[]));
    }

    #[test]
    fn any_bytes_as_a_command(bytes: Vec<u8>) {
        let dir = tempfile::tempdir()?;
        stage_in(dir.path(), &Digest::empty(), &bytes);
        let _ = collect(&store(), dir.path(), &bytes, LIMITS);
    }

    #[test]
    fn hostile_trees_stay_inside(
        inner in hostile_directory(vec![Digest::empty()]),
        outer in hostile_directory(vec![Digest::empty()]),
        outputs in prop::collection::vec(hostile_name(), 0..3),
    ) {
        let dir = tempfile::tempdir()?;
        let inner = put(&inner);
        let outer = re::Directory {
            directories: outer.directories.into_iter().map(|child| re::DirectoryNode {
                digest: Some(inner.to_message()),
                ..child
            }).collect(),
            ..outer
        };
        let command = command(&outputs);
        let staged = stage_in(dir.path(), &put(&outer), &command);
        if staged.is_some() {
            // What was staged is a tree that may be collected, or is refused in words.
            if let Err(error) = collect(&store(), &dir.path().join("root"), &command, LIMITS) {
                prop_assert!(["output_invalid", "too_large"].contains(&error.code), "{error}");
            }
        }
        remove_tree(&dir.path().join("root")).expect("scratch can always be removed");
        prop_assert!(!dir.path().join("root").exists());
    }
}
