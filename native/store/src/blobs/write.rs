//! Blobs written: small ones gathered in memory, large ones to a file of their own, hashed on the way.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use buildnet_formats::{Digest, FieldValue, Hasher, NativeError};

use super::BLOCK_BYTES;
use crate::log::{Record, sync_directory};
use crate::record::{Key, Kind, LARGE, u64_at};
use crate::{Durability, Store, unusable};

/// A large blob on its way to a file of its own.
pub(super) struct LargeFile {
    file: File,
    path: PathBuf,
    sums: Vec<u8>,
    /// The sum of the block that is not full yet, and its bytes so far.
    sum: crc32fast::Hasher,
    filled: usize,
    kept: bool,
}

impl LargeFile {
    pub(super) fn create(store: &Store) -> Result<Self, NativeError> {
        let number = store.counters.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = store.root.join("tmp").join(number.to_string());
        let file = File::options().write(true).create_new(true).mode(0o444).open(&path);
        let file = file.map_err(|e| unusable(&path, &e))?;
        Ok(Self { file, path, sums: vec![0; 8], sum: crc32fast::Hasher::new(), filled: 0, kept: false })
    }

    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), NativeError> {
        self.file.write_all(data).map_err(|e| unusable(&self.path, &e))?;
        let mut rest = data;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - self.filled));
            self.sum.update(now);
            self.filled += now.len();
            if self.filled == BLOCK_BYTES {
                self.end_block();
            }
            rest = later;
        }
        Ok(())
    }

    fn end_block(&mut self) {
        let sum = std::mem::take(&mut self.sum).finalize();
        self.sums.extend_from_slice(&sum.to_le_bytes());
        self.filled = 0;
    }

    /// Give the file its place; returns the payload of its record.
    fn place(&mut self, store: &Store) -> Result<&[u8], NativeError> {
        if self.filled > 0 {
            self.end_block();
        }
        let power = store.options.durability == Durability::Power;
        if power {
            self.file.sync_data().map_err(|e| unusable(&self.path, &e))?;
        }
        loop {
            let number = store.next_large.fetch_add(1, Ordering::Relaxed);
            let dest = store.large_path(number);
            let parent = dest.parent().unwrap_or(&store.root);
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(rustix::fs::CWD, &self.path, rustix::fs::CWD, &dest, flags) {
                Ok(()) => {
                    if power {
                        sync_directory(parent)?;
                        // Whoever made the directory may not have synced its name yet.
                        let known = &store.large_synced[usize::from(number.to_le_bytes()[0])];
                        if !known.load(Ordering::Acquire) {
                            sync_directory(&store.root.join("large"))?;
                            known.store(true, Ordering::Release);
                        }
                    }
                    self.kept = true;
                    self.sums[..8].copy_from_slice(&number.to_le_bytes());
                    return Ok(&self.sums);
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(rustix::io::Errno::NOENT) if !parent.exists() => match fs::create_dir(parent) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(parent, &error)),
                    _ => {}
                },
                Err(error) => return Err(unusable(&dest, &error.into())),
            }
        }
    }
}

impl LargeFile {
    /// Take back what no record will point to.
    fn withdraw(&self, store: &Store) {
        // If this fails, the scrubber finds it.
        let _ = fs::remove_file(store.large_path(u64_at(&self.sums, 0)));
    }
}

impl Drop for LargeFile {
    fn drop(&mut self) {
        if !self.kept {
            // It was never acknowledged; if removing fails now, the next open removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(super) enum Body {
    Packed(Vec<u8>),
    Large(LargeFile),
}

impl Body {
    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), NativeError> {
        match self {
            Self::Packed(bytes) => {
                bytes.extend_from_slice(data);
                Ok(())
            }
            Self::Large(file) => file.write(data),
        }
    }
}

/// A blob being written. Dropped before [`BlobWriter::commit`], it leaves nothing.
pub struct BlobWriter {
    pub(super) store: Arc<Store>,
    pub(super) expected: Digest,
    pub(super) hasher: Hasher,
    pub(super) body: Body,
}

impl BlobWriter {
    /// The blob that this is to be.
    pub fn expected(&self) -> &Digest {
        &self.expected
    }

    /// Bytes written so far.
    pub fn offset(&self) -> u64 {
        self.hasher.size_bytes()
    }

    /// Write more bytes.
    ///
    /// # Errors
    /// `digest_mismatch` as soon as there are more bytes than the digest says; `storage_full`.
    pub fn write(&mut self, data: &[u8]) -> Result<(), NativeError> {
        if self.offset() + data.len() as u64 > self.expected.size_bytes() {
            return Err(NativeError::new(
                "digest_mismatch",
                format!("more than the {} bytes that its digest says were sent", self.expected.size_bytes()),
            )
            .with("expected", FieldValue::Text(self.expected.to_string()))
            .with("blame", FieldValue::Text("caller".to_owned())));
        }
        self.hasher.update(data);
        self.body.write(data)
    }

    /// Make the blob visible, durable as the store promises. `packed`: the zstd frames that it came as, to keep those
    /// instead where that pays.
    ///
    /// # Errors
    /// `digest_mismatch` when the bytes are not what the digest says; nothing is kept then.
    pub fn commit_as(mut self, packed: Option<&[u8]>) -> Result<(), NativeError> {
        let actual = std::mem::take(&mut self.hasher).finish();
        if actual != self.expected {
            return Err(NativeError::mismatch(self.expected, actual, "caller"));
        }
        let store = Arc::clone(&self.store);
        if store.is_promised(&self.expected) {
            return Ok(());
        }
        match (packed, &self.body) {
            // An eighth less is worth unpacking it at each plain read.
            (Some(frames), Body::Packed(data)) if frames.len() + data.len() / 8 < data.len() => {
                store.put_packed_zstd(&self.expected, frames)
            }
            _ => self.keep(),
        }
    }

    /// As [`BlobWriter::commit_as`], as it is.
    ///
    /// # Errors
    /// As [`BlobWriter::commit_as`].
    pub fn commit(self) -> Result<(), NativeError> {
        self.commit_as(None)
    }

    pub(super) fn keep(&mut self) -> Result<(), NativeError> {
        let digest = self.expected;
        match &mut self.body {
            Body::Packed(data) => {
                let data = std::mem::take(data);
                self.store.append_blobs(&[(digest, &data, 0)])
            }
            Body::Large(file) => {
                let payload = file.place(&self.store)?;
                let record = Record {
                    key: Key::of_blob(&digest),
                    kind: Kind::Blob,
                    function: digest.function() as u8,
                    flags: LARGE,
                    name: digest.hash(),
                    payload,
                };
                if let Err(error) = self.store.append(&[record]) {
                    file.withdraw(&self.store);
                    return Err(error);
                }
                self.store.counters.blobs_written.fetch_add(1, Ordering::Relaxed);
                self.store.counters.bytes_written.fetch_add(digest.size_bytes(), Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::Checked;
    use crate::{Durability, Options};
    use buildnet_formats::Function;
    use bytes::Bytes;

    /// Every way in, of a blob of so many bytes.
    fn ways(store: &Arc<Store>, data: &[u8]) -> [Result<(), NativeError>; 5] {
        let digest = Digest::of(data);
        let written = || {
            let mut writer = store.writer(digest)?;
            writer.write(data)?;
            writer.commit()
        };
        let taken = || {
            let mut intake = store.intake(Function::Sha256, u64::MAX, 1 << 20);
            intake.write(data)?;
            intake.commit().map(drop)
        };
        let many = || store.put_many(&[(digest, data)]).remove(0);
        let checked = || store.put_checked(&[Checked::new(digest, Bytes::copy_from_slice(data))?]);
        [store.put_expected(&digest, data), written(), taken(), many(), checked()]
    }

    #[test]
    fn after_a_sync_that_failed_nothing_that_waits_for_it_is_acknowledged() {
        for size in [100, 300_000] {
            let root = tempfile::tempdir().unwrap();
            let options = Options { durability: Durability::Power, free_bytes_min: 0, ..Options::default() };
            let store = Arc::new(Store::open(root.path(), options.clone()).unwrap());
            let (before, after) = (vec![1; size], vec![2; size]);
            assert!(ways(&store, &before).iter().all(Result::is_ok));
            store.log.break_syncs();
            for _ in 0..2 {
                // The second time it is in the index, and still not known to be on the disk.
                for answer in ways(&store, &after) {
                    assert_eq!(answer.unwrap_err().code, "state_corrupt");
                }
            }
            assert!(!store.is_promised(&Digest::of(&after)));
            // What was promised before that stays so, and is served.
            assert!(ways(&store, &before).iter().all(Result::is_ok));
            assert!(store.get_bytes(&Digest::of(&before), 1 << 20).unwrap() == before);
            drop(store);
            let store = Arc::new(Store::open(root.path(), options).unwrap());
            assert!(store.is_promised(&Digest::of(&before)));
            assert!(ways(&store, &after).iter().all(Result::is_ok));
        }
    }
}
