//! A process without descriptors: its own binary, since the limit is the process's. No blob is lost for want of one.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::sync::Arc;

use buildnet_store::{Options, Store};

#[test]
fn a_process_without_descriptors_loses_no_blob() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(root.path(), Options { free_bytes_min: 0, ..Options::default() }).unwrap());
    let content = vec![7; 300 << 10];
    let large = store.put_bytes(&content).unwrap();
    let mut taken = Vec::new();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let lowered = rustix::process::Rlimit { current: Some(64), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, lowered).unwrap();
    while let Ok(file) = fs::File::open("/dev/null") {
        taken.push(file);
    }
    let error = store.get_bytes(&large, 1 << 30).unwrap_err();
    drop(taken);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    assert_eq!(error.code, "overloaded");
    assert_eq!(store.get_bytes(&large, 1 << 30).unwrap(), content);
}
