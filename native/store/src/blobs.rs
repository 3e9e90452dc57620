//! One file for each blob, written beside and renamed into place once its bytes are what its digest says.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use buildnet_formats::{Digest, FieldValue, Hasher, NativeError};
use bytes::Bytes;

use crate::{Durability, Store, free_bytes, unusable};

const COPY_BYTES: usize = 256 << 10;

impl Store {
    /// Where a blob's file is; it exists only if the store contains the blob.
    pub fn path_of(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs").join(&hex[..2]).join(&hex)
    }

    /// Whether the blob is here. The empty blob always is (REAPI ContentAddressableStorage).
    pub fn contains(&self, digest: &Digest) -> bool {
        digest.is_empty()
            || fs::metadata(self.path_of(digest)).is_ok_and(|m| m.is_file() && m.size() == digest.size_bytes())
    }

    /// The digest of the blob with this hash, for protocols that name no size.
    pub fn find_by_hash(&self, hash: &[u8; 32]) -> Option<Digest> {
        let empty = Digest::empty();
        if hash == empty.hash() {
            return Some(empty);
        }
        let metadata = fs::metadata(self.path_of(&Digest::new(*hash, 0))).ok()?;
        Some(Digest::new(*hash, metadata.size()))
    }

    /// Those of `digests` that are not here, once each, in the order asked.
    ///
    /// # Errors
    /// None today; a tier that must be asked can fail.
    pub fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, NativeError> {
        let mut seen = std::collections::HashSet::with_capacity(digests.len());
        Ok(digests.iter().filter(|d| seen.insert(**d) && !self.contains(d)).copied().collect())
    }

    /// Begin to write the blob `expected`.
    ///
    /// # Errors
    /// `too_large` over the limit on one blob, `storage_full` when it would not fit.
    pub fn writer(self: &Arc<Self>, expected: Digest) -> Result<BlobWriter, NativeError> {
        let size_bytes = expected.size_bytes();
        if size_bytes > self.options.blob_size_bytes_max {
            return Err(NativeError::too_large(
                format!("a blob of {size_bytes} bytes is over this server's limit"),
                self.options.blob_size_bytes_max,
            ));
        }
        self.check_space(size_bytes)?;
        let number = self.counters.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("tmp").join(number.to_string());
        let file =
            File::options().write(true).create_new(true).mode(0o444).open(&path).map_err(|e| unusable(&path, &e))?;
        Ok(BlobWriter { store: Arc::clone(self), expected, file, path, hasher: Hasher::new(), committed: false })
    }

    fn check_space(&self, size_bytes: u64) -> Result<(), NativeError> {
        let free = free_bytes(&self.root).map_err(|e| unusable(&self.root, &e))?;
        if free < size_bytes.saturating_add(self.options.free_bytes_min) {
            return Err(NativeError::new(
                "storage_full",
                format!(
                    "the disk of {} is full: {free} bytes are free, {size_bytes} more are needed and {} are kept free; \
                     make room",
                    self.root.display(),
                    self.options.free_bytes_min
                ),
            ));
        }
        Ok(())
    }

    /// Store bytes in memory.
    ///
    /// # Errors
    /// As [`Store::writer`].
    pub fn put_bytes(self: &Arc<Self>, data: &[u8]) -> Result<Digest, NativeError> {
        let digest = Digest::of(data);
        self.put_verified(&digest, data)?;
        Ok(digest)
    }

    /// Store bytes that should be `expected`.
    ///
    /// # Errors
    /// `digest_mismatch` when they are not; else as [`Store::writer`].
    pub fn put_expected(self: &Arc<Self>, expected: &Digest, data: &[u8]) -> Result<(), NativeError> {
        let actual = Digest::of(data);
        if actual != *expected {
            return Err(NativeError::mismatch(*expected, actual, "caller"));
        }
        self.put_verified(expected, data)
    }

    fn put_verified(self: &Arc<Self>, digest: &Digest, data: &[u8]) -> Result<(), NativeError> {
        if self.contains(digest) {
            return Ok(());
        }
        let mut writer = self.writer(*digest)?;
        writer.file.write_all(data).map_err(|e| unusable(&writer.path, &e))?;
        writer.keep()
    }

    /// Store a copy of a local file.
    ///
    /// # Errors
    /// `invalid_request` when the file cannot be read or changes meanwhile; else as [`Store::writer`].
    pub fn put_file(self: &Arc<Self>, path: &Path) -> Result<Digest, NativeError> {
        let file = File::open(path).map_err(|e| unreadable(path, &e))?;
        self.put_open_file(&file, path)
    }

    /// Store a copy of an open file from its beginning; `path` is for messages.
    ///
    /// # Errors
    /// As [`Store::put_file`].
    pub fn put_open_file(self: &Arc<Self>, file: &File, path: &Path) -> Result<Digest, NativeError> {
        // Hashed first and then copied: most outputs of a repeated action are here already.
        let digest = hash_open_file(file, path)?;
        if self.contains(&digest) {
            return Ok(digest);
        }
        let mut writer = self.writer(digest)?;
        let mut buffer = vec![0; buffer_bytes(digest.size_bytes())];
        let mut offset = 0;
        loop {
            let n = file.read_at(&mut buffer, offset).map_err(|e| unreadable(path, &e))?;
            if n == 0 {
                break;
            }
            writer.write(&buffer[..n])?;
            offset += n as u64;
        }
        writer.commit()?;
        Ok(digest)
    }

    /// Read a whole blob into memory, verified.
    ///
    /// # Errors
    /// `not_found`, `too_large`, or `digest_mismatch` (blame `store`), after which the blob is quarantined and absent.
    pub fn get_bytes(&self, digest: &Digest, size_bytes_max: u64) -> Result<Bytes, NativeError> {
        if digest.size_bytes() > size_bytes_max {
            return Err(NativeError::too_large(
                format!("the blob {digest} is over the limit of {size_bytes_max} bytes for reading at once"),
                size_bytes_max,
            ));
        }
        let mut reader = self.reader(digest, 0, None)?;
        let mut data = Vec::with_capacity(usize::try_from(digest.size_bytes()).unwrap_or(0));
        while let Some(chunk) = self.next_chunk(&mut reader, usize::MAX)? {
            if data.is_empty() && chunk.len() as u64 == digest.size_bytes() {
                return Ok(chunk);
            }
            data.extend_from_slice(&chunk);
        }
        Ok(data.into())
    }

    /// Begin to read a blob at `offset`, at most `limit` bytes of it.
    ///
    /// # Errors
    /// `not_found`; `out_of_range` when `offset` is past the end.
    pub fn reader(&self, digest: &Digest, offset: u64, limit: Option<u64>) -> Result<BlobReader, NativeError> {
        if offset > digest.size_bytes() {
            return Err(NativeError::new("out_of_range", format!("offset {offset} is past the end of {digest}"))
                .with("offset", FieldValue::Int(offset.cast_signed()))
                .with("size_bytes", FieldValue::Int(digest.size_bytes().cast_signed())));
        }
        let rest = digest.size_bytes() - offset;
        let remaining = limit.map_or(rest, |limit| limit.min(rest));
        if digest.is_empty() {
            return Ok(BlobReader { file: None, digest: *digest, offset, remaining, hasher: None });
        }
        let absent = || NativeError::not_found("blob", digest.to_string());
        let file = File::open(self.path_of(digest)).map_err(|_| absent())?;
        if file.metadata().map_err(|_| absent())?.size() != digest.size_bytes() {
            return Err(absent());
        }
        let whole = remaining == digest.size_bytes();
        Ok(BlobReader { file: Some(file), digest: *digest, offset, remaining, hasher: whole.then(Hasher::new) })
    }

    /// The next bytes of a reader, at most `bytes_max`; none at the end. Of a blob that is read whole the last bytes are
    /// withheld until the hash has matched, so that a rotten blob never looks complete.
    ///
    /// # Errors
    /// `digest_mismatch` (blame `store`), after which the blob is quarantined and absent.
    pub fn next_chunk(&self, reader: &mut BlobReader, bytes_max: usize) -> Result<Option<Bytes>, NativeError> {
        let Some(file) = reader.file.as_ref().filter(|_| reader.remaining > 0) else {
            return Ok(None);
        };
        let wanted = usize::try_from(reader.remaining).unwrap_or(usize::MAX).min(bytes_max);
        let mut buffer = vec![0; wanted];
        let path = self.path_of(&reader.digest);
        file.read_exact_at(&mut buffer, reader.offset).map_err(|e| unusable(&path, &e))?;
        reader.offset += wanted as u64;
        reader.remaining -= wanted as u64;
        if let Some(hasher) = &mut reader.hasher {
            hasher.update(&buffer);
            if reader.remaining == 0 {
                let actual = reader.hasher.take().unwrap_or_default().finish();
                if actual != reader.digest {
                    self.quarantine(&reader.digest);
                    return Err(NativeError::mismatch(reader.digest, actual, "store"));
                }
            }
        }
        Ok(Some(buffer.into()))
    }

    /// Copy a blob to a new file, verified; the file appears only when it is whole.
    ///
    /// # Errors
    /// As [`Store::get_bytes`]; `invalid_request` when the file cannot be written.
    pub fn export_file(&self, digest: &Digest, dest: &Path, executable: bool) -> Result<(), NativeError> {
        let name = dest.file_name().unwrap_or_default().to_string_lossy();
        let temporary = dest.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let done = self
            .export_to(digest, &temporary, executable)
            .and_then(|()| fs::rename(&temporary, dest).map_err(|e| unreadable(dest, &e)));
        if done.is_err() {
            // The first error is the one to tell; the part may not exist.
            let _ = fs::remove_file(&temporary);
        }
        done
    }

    fn export_to(&self, digest: &Digest, path: &Path, executable: bool) -> Result<(), NativeError> {
        let mut reader = self.reader(digest, 0, None)?;
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(if executable { 0o755 } else { 0o644 })
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|e| unreadable(path, &e))?;
        while let Some(chunk) = self.next_chunk(&mut reader, COPY_BYTES)? {
            file.write_all(&chunk).map_err(|e| unreadable(path, &e))?;
        }
        Ok(())
    }

    /// Set a blob that is not what its digest says apart, as evidence; it is absent from now on.
    fn quarantine(&self, digest: &Digest) {
        let evidence = self.root.join("quarantine").join(digest.hex());
        if fs::rename(self.path_of(digest), evidence).is_ok() {
            self.counters.blobs_quarantined.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A blob being written. Dropped before [`BlobWriter::commit`], it leaves nothing.
pub struct BlobWriter {
    store: Arc<Store>,
    expected: Digest,
    file: File,
    path: PathBuf,
    hasher: Hasher,
    committed: bool,
}

impl BlobWriter {
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
        self.file.write_all(data).map_err(|e| unusable(&self.path, &e))
    }

    /// Make the blob visible, durable as the store promises.
    ///
    /// # Errors
    /// `digest_mismatch` when the bytes are not what the digest says; nothing is kept then.
    pub fn commit(mut self) -> Result<(), NativeError> {
        let actual = std::mem::take(&mut self.hasher).finish();
        if actual != self.expected {
            return Err(NativeError::mismatch(self.expected, actual, "caller"));
        }
        self.keep()
    }

    fn keep(&mut self) -> Result<(), NativeError> {
        let power = self.store.options.durability == Durability::Power;
        if power {
            self.file.sync_data().map_err(|e| unusable(&self.path, &e))?;
        }
        let dest = self.store.path_of(&self.expected);
        fs::rename(&self.path, &dest).map_err(|e| unusable(&dest, &e))?;
        self.committed = true;
        if power && let Some(parent) = dest.parent() {
            File::open(parent).and_then(|d| d.sync_all()).map_err(|e| unusable(parent, &e))?;
        }
        self.store.counters.blobs_written.fetch_add(1, Ordering::Relaxed);
        self.store.counters.bytes_written.fetch_add(self.expected.size_bytes(), Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.committed {
            // It was never acknowledged; if removing fails now, the next open removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A blob being read.
pub struct BlobReader {
    file: Option<File>,
    digest: Digest,
    offset: u64,
    remaining: u64,
    hasher: Option<Hasher>,
}

impl BlobReader {
    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }
}

fn hash_open_file(file: &File, path: &Path) -> Result<Digest, NativeError> {
    let size = file.metadata().map_err(|e| unreadable(path, &e))?.size();
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; buffer_bytes(size)];
    let mut here = file;
    use std::io::Seek;
    here.seek(io::SeekFrom::Start(0)).map_err(|e| unreadable(path, &e))?;
    loop {
        let n = here.read(&mut buffer).map_err(|e| unreadable(path, &e))?;
        if n == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..n]);
    }
}

fn buffer_bytes(size: u64) -> usize {
    usize::try_from(size.clamp(1, COPY_BYTES as u64)).unwrap_or(COPY_BYTES)
}

fn unreadable(path: &Path, error: &io::Error) -> NativeError {
    if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) {
        return unusable(path, error);
    }
    NativeError::invalid("path", format!("{}: {error}", path.display()))
}
