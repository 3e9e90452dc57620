//! Small outputs wait in memory, so that the store writes many of them at once. What has waited is stored by `flush`, and
//! nobody may be told of a digest before that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use buildnet_formats::Digest;
use buildnet_store::Store;

use crate::collect::broken;
use crate::error::Result;

/// Larger files are hashed and copied in pieces.
const SMALL_BYTES_MAX: usize = 64 << 10;
/// What waits at most: the memory that one action's outputs take of the worker.
const WAITING_BYTES_MAX: usize = 4 << 20;
const WAITING_BLOBS_MAX: usize = 1024;

/// Files on their way into a store.
pub(crate) struct Pending<'a> {
    store: &'a Arc<Store>,
    waiting: Vec<(Digest, Vec<u8>)>,
    bytes: usize,
}

impl<'a> Pending<'a> {
    pub(crate) fn new(store: &'a Arc<Store>) -> Self {
        Self { store, waiting: Vec::new(), bytes: 0 }
    }

    /// The digest of an open file, which waits or is stored; `path` is for messages. A small one is read once, so that
    /// its digest is that of what is stored, whoever writes to it meanwhile.
    pub(crate) fn file(&mut self, file: &File, size_bytes: u64, path: &Path) -> Result<Digest> {
        let Some(data) = small(file, size_bytes).map_err(|failed| broken(path, &failed))? else {
            return self.store.put_open_file(file, path);
        };
        let digest = Digest::of(&data);
        if digest.is_empty() || self.store.contains(&digest) {
            return Ok(digest);
        }
        self.bytes += data.len();
        self.waiting.push((digest, data));
        if self.bytes > WAITING_BYTES_MAX || self.waiting.len() >= WAITING_BLOBS_MAX {
            self.flush()?;
        }
        Ok(digest)
    }

    /// Store what waits.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let blobs: Vec<(Digest, &[u8])> =
            self.waiting.iter().map(|(digest, data)| (*digest, data.as_slice())).collect();
        let answers = self.store.put_many(&blobs);
        self.waiting.clear();
        self.bytes = 0;
        answers.into_iter().collect()
    }
}

/// All bytes of a file that is small, even when it grew since it was looked at.
fn small(file: &File, size_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    let expected = usize::try_from(size_bytes).unwrap_or(usize::MAX);
    if expected > SMALL_BYTES_MAX {
        return Ok(None);
    }
    // One byte more, so that the usual file is read by one call and another that finds its end.
    let mut data = vec![0; expected + 1];
    let mut length = 0;
    loop {
        match file.read_at(&mut data[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(failed) if failed.kind() == io::ErrorKind::Interrupted => {}
            Err(failed) => return Err(failed),
        }
        if length == data.len() {
            if length > SMALL_BYTES_MAX {
                return Ok(None);
            }
            data.resize((2 * length).min(SMALL_BYTES_MAX + 1), 0);
        }
    }
    data.truncate(length);
    Ok(Some(data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildnet_store::Options;

    type Test = std::result::Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn a_file_is_small_by_what_is_in_it_and_not_by_what_was_said() -> Test {
        let dir = tempfile::tempdir()?;
        for length in [0, 1, 4095, 4096, SMALL_BYTES_MAX - 1, SMALL_BYTES_MAX, SMALL_BYTES_MAX + 1, 3 * SMALL_BYTES_MAX]
        {
            let path = dir.path().join("file");
            std::fs::write(&path, vec![7; length])?;
            for said in [0, 10, length as u64] {
                let read = small(&File::open(&path)?, said)?;
                assert_eq!(
                    read.map(|data| data.len()),
                    (length <= SMALL_BYTES_MAX).then_some(length),
                    "{length} {said}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn what_waited_is_stored_once_it_is_flushed_or_too_much() -> Test {
        let dir = tempfile::tempdir()?;
        let store = Arc::new(Store::open(&dir.path().join("store"), Options::default())?);
        let path = dir.path().join("file");
        let mut pending = Pending::new(&store);
        let mut digests = Vec::new();
        for number in 0..=WAITING_BLOBS_MAX {
            std::fs::write(&path, number.to_string())?;
            digests.push(pending.file(&File::open(&path)?, 1, &path)?);
        }
        let last = digests.pop().ok_or("none")?;
        assert!(store.find_missing(&digests)?.is_empty());
        assert!(!store.contains(&last));
        pending.flush()?;
        assert!(store.contains(&last));
        Ok(())
    }
}
