//! Blobs: written once their bytes are what their digest says, read with every byte under a checksum. A blob is visible
//! whole or not at all.

mod intake;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use buildnet_formats::{Digest, FieldValue, Hasher, NativeError};
use bytes::Bytes;

use crate::index::Place;
use crate::log::{Record, sync_directory};
use crate::record::{Key, Kind, LARGE, ZSTD, crc, u32_at, u64_at};
use crate::segment::read_at;
use crate::{Durability, Store, free_bytes, now_s, unusable};

pub use intake::Intake;

/// Large files are checked in blocks of this size, each by a sum of its own.
const BLOCK_BYTES: usize = 128 << 10;
const COPY_BYTES: usize = 512 << 10;
/// Room kept before what is read, for the frame that will carry it.
const HEADROOM_BYTES: usize = 64;
/// Damaged files kept as evidence; those that follow are deleted.
const QUARANTINE_FILES_MAX: usize = 64;
/// How much is written before the disk is asked again how full it is.
const ROOM_STEP_BYTES: u64 = 16 << 20;

/// Bytes of a blob with room before them, so that a message can be made around them without a copy.
pub struct Chunk {
    bytes: Vec<u8>,
    at: usize,
}

impl Chunk {
    /// How many bytes of the blob these are.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Whether these are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// `prefix` and the bytes as one.
    pub fn framed(mut self, prefix: &[u8]) -> Bytes {
        match self.at.checked_sub(prefix.len()) {
            Some(start) => {
                self.bytes[start..self.at].copy_from_slice(prefix);
                Bytes::from(self.bytes).slice(start..)
            }
            None => Bytes::from([prefix, self.as_slice()].concat()),
        }
    }

    /// The bytes alone.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from(self.bytes).slice(self.at..)
    }

    fn cut(mut self, skip: usize, length: usize) -> Self {
        self.at += skip;
        self.bytes.truncate(self.at + length);
        self
    }
}

impl Store {
    /// Whether the blob is here; being asked for, it is kept a while (REAPI FindMissingBlobs). The empty blob always is.
    pub fn contains(&self, digest: &Digest) -> bool {
        digest.is_empty() || self.index.read().touch(&Key::of_blob(digest), now_s()).is_some()
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

    /// Store bytes that should be `expected`.
    ///
    /// # Errors
    /// `digest_mismatch` when they are not; else as [`Store::writer`].
    pub fn put_expected(self: &Arc<Self>, expected: &Digest, data: &[u8]) -> Result<(), NativeError> {
        if data.len() as u64 == expected.size_bytes() && self.contains(expected) {
            return Ok(());
        }
        check(expected, data)?;
        self.put_verified(expected, data)
    }

    fn put_verified(self: &Arc<Self>, digest: &Digest, data: &[u8]) -> Result<(), NativeError> {
        if self.contains(digest) {
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
            let known = data.len() as u64 == digest.size_bytes() && self.contains(digest);
            if known {
                answers.push(Ok(()));
            } else if packed(data.len()) {
                let checked = check(digest, data);
                if checked.is_ok() {
                    fresh.push((*digest, *data, 0));
                    numbers.push(number);
                }
                answers.push(checked);
            } else {
                answers.push(self.put_expected(digest, data));
            }
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
    /// `not_found`, `too_large`, or `digest_mismatch` (blame `store`), after which the blob is absent.
    pub fn get_bytes(&self, digest: &Digest, size_bytes_max: u64) -> Result<Bytes, NativeError> {
        if digest.size_bytes() > size_bytes_max {
            return Err(NativeError::too_large(
                format!("the blob {digest} is over the limit of {size_bytes_max} bytes for reading at once"),
                size_bytes_max,
            ));
        }
        let mut reader = self.reader(digest, 0, None)?;
        let first = self.next_chunk(&mut reader, COPY_BYTES)?;
        if reader.remaining() == 0 {
            return Ok(first.map(Chunk::into_bytes).unwrap_or_default());
        }
        let mut data = Vec::with_capacity(usize::try_from(digest.size_bytes()).unwrap_or(0));
        let mut next = first;
        while let Some(chunk) = next {
            data.extend_from_slice(chunk.as_slice());
            next = self.next_chunk(&mut reader, COPY_BYTES)?;
        }
        Ok(data.into())
    }

    /// Put the bytes of a blob at the end of `out`, verified; on an error `out` is as it was.
    ///
    /// # Errors
    /// As [`Store::get_bytes`].
    pub fn read_onto(&self, digest: &Digest, out: &mut Vec<u8>) -> Result<(), NativeError> {
        let key = Key::of_blob(digest);
        let start = out.len();
        if let Some(place) = self.index.read().touch(&key, now_s())
            && !place.is_large()
            && let Some(segment) = self.log.segment(place.segment)
        {
            let header = segment.read_onto(&key, place, digest.hash().len(), out);
            if header.is_some_and(|header| header.flags & ZSTD == 0) {
                return Ok(());
            }
            out.truncate(start);
        }
        // Whatever is out of the ordinary takes the general way, which also says what is wrong.
        out.extend_from_slice(&self.get_bytes(digest, u64::MAX)?);
        Ok(())
    }

    /// Begin to read a blob at `offset`, at most `limit` bytes of it.
    ///
    /// # Errors
    /// `not_found`; `out_of_range` when `offset` is past the end; `digest_mismatch` as [`Store::get_bytes`].
    pub fn reader(&self, digest: &Digest, offset: u64, limit: Option<u64>) -> Result<BlobReader, NativeError> {
        if offset > digest.size_bytes() {
            return Err(NativeError::new("out_of_range", format!("offset {offset} is past the end of {digest}"))
                .with("offset", FieldValue::Int(offset.cast_signed()))
                .with("size_bytes", FieldValue::Int(digest.size_bytes().cast_signed())));
        }
        let rest = digest.size_bytes() - offset;
        let remaining = limit.map_or(rest, |limit| limit.min(rest));
        if digest.is_empty() {
            return Ok(BlobReader { digest: *digest, offset, remaining, source: Source::Empty });
        }
        let source = self.open_blob(digest)?;
        Ok(BlobReader { digest: *digest, offset, remaining, source })
    }

    fn open_blob(&self, digest: &Digest) -> Result<Source, NativeError> {
        let key = Key::of_blob(digest);
        let absent = || NativeError::not_found("blob", digest.to_string());
        // A record may be moved between the look-up and the read, once for each time that the log turns.
        for _ in 0..8 {
            let place = self.index.read().touch(&key, now_s()).ok_or_else(absent)?;
            let Some(segment) = self.log.segment(place.segment) else { continue };
            let Some((header, bytes)) = segment.read(&key, place) else {
                if self.index.read().get(&key) != Some(place) {
                    continue;
                }
                return Err(self.damaged(digest, place));
            };
            let at = header.payload_at();
            if header.flags & ZSTD != 0 {
                let unpacked = unpack(&bytes[at..], digest.size_bytes());
                let unpacked = unpacked.ok_or_else(|| self.damaged(digest, place))?;
                return Ok(Source::Packed(Chunk { bytes: unpacked, at: 0 }));
            }
            if !place.is_large() {
                return Ok(Source::Packed(Chunk { bytes, at }));
            }
            if bytes.len() < at + 8 {
                return Err(self.damaged(digest, place));
            }
            let path = self.large_path(u64_at(&bytes, at));
            match File::open(&path) {
                Ok(file) => return Ok(Source::Large { file, sums: bytes, at: at + 8 }),
                // Only a file that is not there is damage; too many open files is not.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unusable(&path, &error)),
                Err(_) if self.index.read().get(&key) != Some(place) => {}
                Err(_) => return Err(self.damaged(digest, place)),
            }
        }
        Err(absent())
    }

    /// The zstd frames of a small blob that is kept so; none when it is kept otherwise.
    pub fn packed_zstd(&self, digest: &Digest) -> Option<Bytes> {
        let key = Key::of_blob(digest);
        let place = self.index.read().touch(&key, now_s())?;
        let (header, bytes) = self.log.segment(place.segment)?.read(&key, place)?;
        (header.flags & ZSTD != 0).then(|| Bytes::from(bytes).slice(header.payload_at()..))
    }

    /// The next bytes of a reader, at most `bytes_max` or one block; none at the end.
    ///
    /// # Errors
    /// `digest_mismatch` (blame `store`), after which the blob is absent.
    pub fn next_chunk(&self, reader: &mut BlobReader, bytes_max: usize) -> Result<Option<Chunk>, NativeError> {
        if reader.remaining == 0 {
            return Ok(None);
        }
        let wanted = usize::try_from(reader.remaining).unwrap_or(usize::MAX);
        let chunk = match &mut reader.source {
            Source::Empty => return Ok(None),
            Source::Packed(whole) => {
                let skip = usize::try_from(reader.offset).unwrap_or(usize::MAX);
                let length = wanted.min(bytes_max);
                if length == whole.len() {
                    std::mem::replace(whole, Chunk { bytes: Vec::new(), at: 0 })
                } else {
                    let start = whole.at + skip;
                    let mut bytes = vec![0; HEADROOM_BYTES];
                    bytes.extend_from_slice(&whole.bytes[start..start + length]);
                    Chunk { bytes, at: HEADROOM_BYTES }
                }
            }
            Source::Large { file, sums, at } => {
                let number = u64_at(sums, *at - 8);
                let sums = &sums[*at..];
                match read_blocks(file, sums, &reader.digest, reader.offset, wanted.min(bytes_max)) {
                    Some(chunk) => chunk,
                    None => return Err(self.damaged_file(&reader.digest, number)),
                }
            }
        };
        reader.offset += chunk.len() as u64;
        reader.remaining -= chunk.len() as u64;
        Ok(Some(chunk))
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
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(if executable { 0o755 } else { 0o644 })
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|e| unreadable(path, &e))?;
        self.copy_to(digest, &mut |chunk| file.write_all(chunk).map_err(|e| unreadable(path, &e)))
    }

    /// Hand the bytes of a blob to `sink`, verified, in order.
    ///
    /// # Errors
    /// As [`Store::get_bytes`], and those of `sink`.
    pub fn copy_to(
        &self,
        digest: &Digest,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), NativeError>,
    ) -> Result<(), NativeError> {
        let mut reader = self.reader(digest, 0, None)?;
        while let Some(chunk) = self.next_chunk(&mut reader, COPY_BYTES)? {
            sink(chunk.as_slice())?;
        }
        Ok(())
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

fn unpack(frames: &[u8], size_bytes: u64) -> Option<Vec<u8>> {
    let size = usize::try_from(size_bytes).ok()?;
    // One byte more than allowed shows a bomb without unpacking it.
    let unpacked = zstd::bulk::decompress(frames, size).ok()?;
    (unpacked.len() == size).then_some(unpacked)
}

fn read_blocks(file: &File, sums: &[u8], digest: &Digest, offset: u64, wanted: usize) -> Option<Chunk> {
    let block = BLOCK_BYTES as u64;
    let first = offset / block;
    let skip = usize::try_from(offset % block).ok()?;
    // Whole blocks: a part of one cannot be checked.
    let blocks = (wanted + skip).div_ceil(BLOCK_BYTES).max(1);
    let length = usize::try_from((digest.size_bytes() - first * block).min((blocks * BLOCK_BYTES) as u64)).ok()?;
    let bytes = read_at(file, first * block, length, HEADROOM_BYTES)?;
    for (number, data) in bytes[HEADROOM_BYTES..].chunks(BLOCK_BYTES).enumerate() {
        let at = 4 * (usize::try_from(first).ok()? + number);
        if sums.len() < at + 4 || crc(data) != u32_at(sums, at) {
            return None;
        }
    }
    Some(Chunk { bytes, at: HEADROOM_BYTES }.cut(skip, wanted.min(length - skip)))
}

/// A large blob on its way to a file of its own.
struct LargeFile {
    file: File,
    path: PathBuf,
    sums: Vec<u8>,
    /// The sum of the block that is not full yet, and its bytes so far.
    sum: crc32fast::Hasher,
    filled: usize,
    kept: bool,
}

impl LargeFile {
    fn create(store: &Store) -> Result<Self, NativeError> {
        let number = store.counters.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = store.root.join("tmp").join(number.to_string());
        let file = File::options().write(true).create_new(true).mode(0o444).open(&path);
        let file = file.map_err(|e| unusable(&path, &e))?;
        Ok(Self { file, path, sums: vec![0; 8], sum: crc32fast::Hasher::new(), filled: 0, kept: false })
    }

    fn write(&mut self, data: &[u8]) -> Result<(), NativeError> {
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
                    }
                    self.kept = true;
                    self.sums[..8].copy_from_slice(&number.to_le_bytes());
                    return Ok(&self.sums);
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(rustix::io::Errno::NOENT) if !parent.exists() => match fs::create_dir(parent) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(unusable(parent, &error)),
                    _ if power => sync_directory(&store.root.join("large"))?,
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

enum Body {
    Packed(Vec<u8>),
    Large(LargeFile),
}

impl Body {
    fn write(&mut self, data: &[u8]) -> Result<(), NativeError> {
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
    store: Arc<Store>,
    expected: Digest,
    hasher: Hasher,
    body: Body,
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
        if store.contains(&self.expected) {
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

    fn keep(&mut self) -> Result<(), NativeError> {
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

enum Source {
    Empty,
    Packed(Chunk),
    /// The sums of its blocks are in `sums` from `at` on.
    Large {
        file: File,
        sums: Vec<u8>,
        at: usize,
    },
}

/// A blob being read.
pub struct BlobReader {
    digest: Digest,
    offset: u64,
    remaining: u64,
    source: Source,
}

impl BlobReader {
    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Whether the rest is in memory already.
    pub fn is_packed(&self) -> bool {
        !matches!(self.source, Source::Large { .. })
    }
}

fn hash_open_file(file: &File, path: &Path) -> Result<Digest, NativeError> {
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
