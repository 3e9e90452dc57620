//! Blobs: written once their bytes are what their digest says, read with every byte under a checksum. A blob is visible
//! whole or not at all.

mod checked;
mod intake;
mod read;
mod write;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use buildnet_formats::{Digest, FieldValue, Hasher, NativeError};

use crate::index::Place;
use crate::log::Record;
use crate::record::{Key, Kind, ZSTD, u64_at};
use crate::{Store, free_bytes, now_s, unusable};

pub use checked::Checked;
pub use intake::Intake;
pub use read::{BlobReader, Chunk};
pub use write::BlobWriter;
use write::{Body, LargeFile};

/// Large files are checked in blocks of this size, each by a sum of its own.
const BLOCK_BYTES: usize = 128 << 10;
const COPY_BYTES: usize = 512 << 10;
/// Damaged files kept as evidence; those that follow are deleted.
const QUARANTINE_FILES_MAX: usize = 64;
/// How much is written before the disk is asked again how full it is.
const ROOM_STEP_BYTES: u64 = 16 << 20;

impl Store {
    /// Whether the blob is here; being asked for, it is kept a while (REAPI FindMissingBlobs). The empty blob always is.
    pub fn contains(&self, digest: &Digest) -> bool {
        digest.is_empty() || self.index.read().touch(&Key::of_blob(digest), now_s()).is_some()
    }

    /// Whether the blob is here as durable as was promised, so that a write of it may be acknowledged: another writer's that
    /// still waits for the disk may be lost, and after a sync that failed nobody knows.
    pub fn is_promised(&self, digest: &Digest) -> bool {
        let place = || self.index.read().touch(&Key::of_blob(digest), now_s());
        digest.is_empty() || place().is_some_and(|place| self.log.is_promised(place))
    }

    /// The digest of the blob with the hash of `digest`, for protocols that name no size.
    pub fn find_by_hash(&self, digest: &Digest) -> Option<Digest> {
        let empty = Digest::empty_by(digest.function());
        if digest.hash() == empty.hash() {
            return Some(empty);
        }
        let key = self.index.read().find_by_hash(&Key::of_blob(digest))?;
        Some(Digest::new(digest.function(), digest.hash(), key.size_bytes()))
    }

    /// Those of `digests` that are not here, once each, in the order asked; the others are kept a while.
    ///
    /// # Errors
    /// None today; a tier that must be asked can fail.
    pub fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, NativeError> {
        let mut missing = Vec::new();
        let now = now_s();
        let keys: Vec<Key> = digests.iter().map(Key::of_blob).collect();
        self.index.read().touch_each(&keys, now, |number, is_here| {
            if !is_here && !digests[number].is_empty() {
                missing.push(digests[number]);
            }
        });
        if missing.len() > 1 {
            let mut seen = std::collections::HashSet::with_capacity(missing.len());
            missing.retain(|digest| seen.insert(*digest));
        }
        Ok(missing)
    }

    /// Begin to write the blob `expected`.
    ///
    /// # Errors
    /// `too_large` over the limit on one blob, `storage_full` when it would not fit.
    pub fn writer(self: &Arc<Self>, expected: Digest) -> Result<BlobWriter, NativeError> {
        self.check_size(expected.size_bytes())?;
        let body = if expected.size_bytes() <= self.options.packed_bytes_max {
            Body::Packed(Vec::with_capacity(usize::try_from(expected.size_bytes()).unwrap_or(0)))
        } else {
            self.reserve(expected.size_bytes())?;
            Body::Large(LargeFile::create(self)?)
        };
        let hasher = Hasher::new(expected.function());
        Ok(BlobWriter { store: Arc::clone(self), expected, hasher, body })
    }

    fn check_size(&self, size_bytes: u64) -> Result<(), NativeError> {
        if size_bytes > self.options.blob_size_bytes_max {
            return Err(NativeError::too_large(
                format!("a blob of {size_bytes} bytes is over this server's limit"),
                self.options.blob_size_bytes_max,
            ));
        }
        Ok(())
    }

    /// Make sure that so many more bytes fit, evicting if need be.
    pub(crate) fn reserve(&self, size_bytes: u64) -> Result<(), NativeError> {
        self.make_room(size_bytes)?;
        let wanted = i64::try_from(size_bytes).unwrap_or(i64::MAX);
        if self.counters.room.fetch_sub(wanted, Ordering::Relaxed) >= wanted {
            return Ok(());
        }
        let free = free_bytes(&self.root).map_err(|e| unusable(&self.root, &e))?;
        if free < size_bytes.saturating_add(self.options.free_bytes_min) {
            self.counters.room.store(0, Ordering::Relaxed);
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
        let room = (free - self.options.free_bytes_min - size_bytes).min(ROOM_STEP_BYTES);
        self.counters.room.store(room.cast_signed(), Ordering::Relaxed);
        Ok(())
    }

    /// Store bytes in memory under SHA-256.
    ///
    /// # Errors
    /// As [`Store::writer`].
    pub fn put_bytes(self: &Arc<Self>, data: &[u8]) -> Result<Digest, NativeError> {
        let digest = Digest::of(data);
        self.put_verified(&digest, data)?;
        Ok(digest)
    }

    /// Store bytes that should be `expected`. They are compared with it also where it is here already.
    ///
    /// # Errors
    /// `digest_mismatch` when they are not; else as [`Store::writer`].
    pub fn put_expected(self: &Arc<Self>, expected: &Digest, data: &[u8]) -> Result<(), NativeError> {
        check(expected, data)?;
        self.put_verified(expected, data)
    }

    fn put_verified(self: &Arc<Self>, digest: &Digest, data: &[u8]) -> Result<(), NativeError> {
        if self.is_promised(digest) {
            return Ok(());
        }
        if data.len() as u64 <= self.options.packed_bytes_max {
            return self.append_blobs(&[(*digest, data, 0)]);
        }
        let mut writer = self.writer(*digest)?;
        writer.body.write(data)?;
        writer.keep()
    }

    /// Store many blobs with one write. The answers are in the order of `blobs`.
    ///
    /// # Errors
    /// For each blob, as [`Store::put_expected`].
    pub fn put_many(self: &Arc<Self>, blobs: &[(Digest, &[u8])]) -> Vec<Result<(), NativeError>> {
        let packed = |size: usize| size as u64 <= self.options.packed_bytes_max;
        let mut answers: Vec<Result<(), NativeError>> = Vec::with_capacity(blobs.len());
        let (mut fresh, mut numbers) = (Vec::with_capacity(blobs.len()), Vec::with_capacity(blobs.len()));
        for (number, (digest, data)) in blobs.iter().enumerate() {
            let mut answer = check(digest, data);
            if answer.is_ok() && !packed(data.len()) {
                answer = self.put_verified(digest, data);
            } else if answer.is_ok() && !self.is_promised(digest) {
                fresh.push((*digest, *data, 0));
                numbers.push(number);
            }
            answers.push(answer);
        }
        if let Err(error) = self.append_blobs(&fresh) {
            for number in numbers {
                answers[number] = Err(error.clone());
            }
        }
        answers
    }

    /// Store a small blob as the zstd frames that a client sent; the caller has checked what they unpack to.
    pub(crate) fn put_packed_zstd(self: &Arc<Self>, digest: &Digest, frames: &[u8]) -> Result<(), NativeError> {
        self.append_blobs(&[(*digest, frames, ZSTD)])
    }

    fn append_blobs(&self, blobs: &[(Digest, &[u8], u8)]) -> Result<(), NativeError> {
        if blobs.is_empty() {
            return Ok(());
        }
        self.reserve(blobs.iter().map(|(_, data, _)| data.len() as u64).sum())?;
        let records: Vec<Record<'_>> = blobs
            .iter()
            .map(|(digest, payload, flags)| Record {
                key: Key::of_blob(digest),
                kind: Kind::Blob,
                function: digest.function() as u8,
                flags: *flags,
                name: digest.hash(),
                payload,
            })
            .collect();
        self.append(&records)?;
        self.counters.blobs_written.fetch_add(blobs.len() as u64, Ordering::Relaxed);
        let bytes: u64 = blobs.iter().map(|(digest, ..)| digest.size_bytes()).sum();
        self.counters.bytes_written.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Append records and let the index follow before anyone else appends.
    pub(crate) fn append(&self, records: &[Record<'_>]) -> Result<(), NativeError> {
        self.append_if(records, |_| true)
    }

    /// As [`Store::append`], of those that are still `wanted` when nobody else can append.
    pub(crate) fn append_if(&self, records: &[Record<'_>], wanted: impl Fn(usize) -> bool) -> Result<(), NativeError> {
        let now = now_s();
        let mut replaced = Vec::new();
        self.log.append(records, wanted, |number, place, segment| {
            let record = &records[number];
            let mut index = self.index.write();
            let before = if record.kind == Kind::Removed {
                index.remove(&record.key)
            } else {
                segment.live.fetch_add(u64::from(place.length()), Ordering::Relaxed);
                if place.is_large() {
                    self.counters.large_bytes.fetch_add(record.key.size_bytes(), Ordering::Relaxed);
                }
                index.insert(record.key, place, now)
            };
            if let Some(before) = before {
                replaced.push((record.key, before));
            }
        })?;
        for (key, place) in replaced {
            self.dispose(&key, place);
        }
        Ok(())
    }

    /// What no record points to any more takes no room.
    pub(crate) fn dispose(&self, key: &Key, place: Place) {
        let Some(segment) = self.log.segment(place.segment) else { return };
        segment.live.fetch_sub(u64::from(place.length()), Ordering::Relaxed);
        if place.is_large()
            && let Some((header, bytes)) = segment.read(key, place)
        {
            self.counters.large_bytes.fetch_sub(key.size_bytes(), Ordering::Relaxed);
            let number = u64_at(&bytes[header.payload_at()..], 0);
            // A file that is gone already takes no room either.
            let _ = fs::remove_file(self.large_path(number));
        }
    }

    pub(crate) fn large_path(&self, number: u64) -> PathBuf {
        self.root.join("large").join(format!("{:02x}", number & 0xff)).join(format!("{number:016x}"))
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
        if self.is_promised(&digest) {
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

    /// The file of this number is not what it was; the blob may be in another by now.
    fn damaged_file(&self, digest: &Digest, number: u64) -> NativeError {
        let key = Key::of_blob(digest);
        let place = self.index.read().get(&key);
        match place {
            Some(place) if self.large_number(&key, place) == Some(number) => self.damaged(digest, place),
            _ => blame(digest),
        }
    }

    /// The number of the file that a record of a large blob names.
    pub(crate) fn large_number(&self, key: &Key, place: Place) -> Option<u64> {
        if !place.is_large() {
            return None;
        }
        let (header, bytes) = self.log.segment(place.segment)?.read(key, place)?;
        (bytes.len() >= header.payload_at() + 8).then(|| u64_at(&bytes, header.payload_at()))
    }

    /// A blob that is not what its digest says is absent from now on; the file of a large one is set apart as evidence.
    fn damaged(&self, digest: &Digest, place: Place) -> NativeError {
        let key = Key::of_blob(digest);
        if let Some(number) = self.large_number(&key, place) {
            self.set_apart(&self.large_path(number), digest);
        }
        self.forget_at(&key, place);
        blame(digest)
    }

    fn set_apart(&self, file: &Path, digest: &Digest) {
        let quarantine = self.root.join("quarantine");
        let kept = fs::read_dir(&quarantine).map_or(usize::MAX, Iterator::count);
        if kept < QUARANTINE_FILES_MAX {
            // Without the evidence the blob is absent all the same.
            let _ = fs::rename(file, quarantine.join(digest.hex()));
        }
    }

    /// Say in the log that a name is gone.
    pub(crate) fn forget(&self, key: &Key) {
        self.counters.removals.fetch_add(1, Ordering::Release);
        if self.append(&[Record::removal(key)]).is_err() {
            // A disk that takes no more bytes still has an index in memory that can forget.
            self.index.write().remove(key);
        }
    }

    /// Say in the log that the damaged record at `place` is gone, unless its name has another by now. Returns whether it
    /// was the one.
    pub(crate) fn forget_at(&self, key: &Key, place: Place) -> bool {
        let was = std::cell::Cell::new(false);
        let appended = self.append_if(&[Record::removal(key)], |_| {
            was.set(self.index.read().get(key) == Some(place));
            was.get()
        });
        if was.get() {
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
            self.counters.removals.fetch_add(1, Ordering::Release);
        }
        if appended.is_err() {
            let mut index = self.index.write();
            if index.get(key) == Some(place) {
                index.remove(key);
            }
        }
        was.get()
    }
}

fn blame(digest: &Digest) -> NativeError {
    NativeError::new("digest_mismatch", format!("the stored bytes of {digest} are damaged; it is absent from now on"))
        .with("expected", FieldValue::Text(digest.to_string()))
        .with("blame", FieldValue::Text("store".to_owned()))
}

fn check(expected: &Digest, data: &[u8]) -> Result<(), NativeError> {
    let actual = Digest::by(expected.function(), data);
    if actual != *expected {
        return Err(NativeError::mismatch(*expected, actual, "caller"));
    }
    Ok(())
}

/// The SHA-256 digest of an open file from its beginning; `path` is for messages.
///
/// # Errors
/// `invalid_request` when it cannot be read.
pub fn hash_open_file(file: &File, path: &Path) -> Result<Digest, NativeError> {
    let size = file.metadata().map_err(|e| unreadable(path, &e))?.size();
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; buffer_bytes(size)];
    loop {
        let n = file.read_at(&mut buffer, hasher.size_bytes()).map_err(|e| unreadable(path, &e))?;
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
