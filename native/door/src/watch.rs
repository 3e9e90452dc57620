//! Whether a file is another than before, by what the file system says of it. Reads no contents.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What changes when a file is written or replaced; of an absent file nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp(Option<(u64, u64, i64, i64)>);

impl Stamp {
    pub(crate) fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|facts| (facts.ino(), facts.size(), facts.mtime(), facts.mtime_nsec())))
    }

    /// None of an absent file.
    pub(crate) fn size_bytes(&self) -> Option<u64> {
        self.0.map(|facts| facts.1)
    }
}
