//! The log of record made of what came live: one stream's bytes, read from the segments that they were spooled to, become
//! the blob that the worker says it is, or nothing does.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use buildnet_formats::{Digest, NativeError};
use buildnet_store::{BlobWriter, Store};

use crate::records;

/// One segment's records: where they begin and end in its file.
#[derive(Clone, Debug)]
pub struct Spooled {
    /// The file.
    pub path: PathBuf,
    /// Where the first record begins.
    pub begin: u64,
    /// Where the last one ends.
    pub end: u64,
}

/// Store the blob `digest` of what these segments have of `stream`, in their order. False where they do not have all of it.
///
/// # Errors
/// `digest_mismatch` where they have other bytes; a segment cannot be read; as [`Store::writer`].
pub fn keep(store: &Arc<Store>, digest: Digest, stream: u8, segments: &[Spooled]) -> Result<bool, NativeError> {
    if store.is_promised(&digest) {
        return Ok(true);
    }
    let mut writer = store.writer(digest)?;
    for segment in segments {
        if writer.offset() == digest.size_bytes() {
            break;
        }
        if !copied(&mut writer, stream, segment)? {
            return Ok(false);
        }
    }
    if writer.offset() < digest.size_bytes() {
        return Ok(false);
    }
    writer.commit()?;
    Ok(true)
}

/// Whether nothing is missing up to the segment's end.
fn copied(writer: &mut BlobWriter, stream: u8, segment: &Spooled) -> Result<bool, NativeError> {
    let unreadable = |error: io::Error| NativeError::internal(format!("{}: {error}", segment.path.display()));
    let file = match File::open(&segment.path) {
        // Past a bound the oldest go.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file.map_err(unreadable)?,
    };
    let mut position = segment.begin;
    while position < segment.end {
        let read = records(&file, position, segment.end, true).map_err(unreadable)?;
        let (found, used) = read.unwrap_or_default();
        if used == 0 {
            return Ok(false);
        }
        for record in found.iter().filter(|record| record.stream == stream) {
            if record.offset != writer.offset() {
                return Ok(false);
            }
            for piece in record.data.pieces() {
                writer.write(piece)?;
            }
        }
        position += used;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildnet_store::Options;
    use std::fs;
    use std::path::Path;

    const HEADER_BYTES: u64 = 4;

    fn spooled(directory: &Path, records: &[(u8, u64, &[u8])]) -> Spooled {
        let mut bytes = vec![0; usize::try_from(HEADER_BYTES).unwrap()];
        for (stream, offset, data) in records {
            bytes.extend([*stream, 0, 0, 0]);
            bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            bytes.extend(0u64.to_le_bytes());
            bytes.extend(*data);
        }
        let path = directory.join(format!("{}.log", fs::read_dir(directory).unwrap().count()));
        fs::write(&path, &bytes).unwrap();
        Spooled { path, begin: HEADER_BYTES, end: bytes.len() as u64 }
    }

    fn store(directory: &Path) -> Arc<Store> {
        Arc::new(Store::open(directory, Options { free_bytes_min: 0, ..Options::default() }).unwrap())
    }

    #[test]
    fn each_stream_is_gathered_from_what_came_interleaved() {
        let (spool, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let large = vec![7; 300_000];
        let segments = [
            spooled(spool.path(), &[(1, 0, b"out "), (2, 0, b"err "), (1, 4, &large)]),
            spooled(spool.path(), &[(2, 4, &large), (2, 300_004, b"end")]),
            spooled(spool.path(), &[(1, 300_004, b"end")]),
        ];
        let store = store(root.path());
        for (stream, begin) in [(1, b"out "), (2, b"err ")] {
            let whole = [&begin[..], &large, b"end"].concat();
            let digest = Digest::of(&whole);
            assert!(keep(&store, digest, stream, &segments).unwrap());
            assert!(store.get_bytes(&digest, 1 << 20).unwrap() == whole);
            assert!(keep(&store, digest, stream, &[]).unwrap(), "it is there already");
        }
    }

    #[test]
    fn what_is_not_all_there_is_not_kept() {
        let (spool, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = spooled(spool.path(), &[(1, 0, b"first ")]);
        let second = spooled(spool.path(), &[(1, 6, b"second ")]);
        let third = spooled(spool.path(), &[(1, 13, b"third")]);
        let store = store(root.path());
        let digest = Digest::of(b"first second third");
        let not_kept = |segments: &[Spooled]| {
            assert!(!keep(&store, digest, 1, segments).unwrap());
            assert!(!store.contains(&digest));
        };
        not_kept(&[]);
        not_kept(&[first.clone(), second.clone()]);
        not_kept(&[first.clone(), third.clone()]);
        not_kept(&[second.clone(), third.clone()]);
        not_kept(&[first.clone(), Spooled { end: second.end - 1, ..second.clone() }, third.clone()]);
        fs::remove_file(&first.path).unwrap();
        not_kept(&[first, second, third]);
    }

    #[test]
    fn other_bytes_than_the_digest_says_are_refused() {
        let (spool, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = store(root.path());
        let segments = [spooled(spool.path(), &[(1, 0, b"what came")])];
        for said in [&b"what cane"[..], b"what", b"what came and more"] {
            let done = keep(&store, Digest::of(said), 1, &segments);
            match done {
                Ok(kept) => assert!(!kept),
                Err(error) => assert_eq!(error.code, "digest_mismatch"),
            }
            assert!(!store.contains(&Digest::of(said)));
        }
        assert!(keep(&store, Digest::of(b"what came"), 1, &segments).unwrap());
    }
}
