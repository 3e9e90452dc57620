//! Blobs read: every byte under a checksum, and one that is damaged is absent from then on.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use buildnet_formats::{Digest, FieldValue, NativeError};
use bytes::Bytes;

use super::{BLOCK_BYTES, COPY_BYTES, unreadable};
use crate::record::{Key, ZSTD, crc, u32_at, u64_at};
use crate::segment::read_at;
use crate::{Store, now_s, unusable};

/// Room kept before what is read, for the frame that will carry it.
const HEADROOM_BYTES: usize = 64;

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
    /// Where in the blob it stands.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Whether the rest is in memory already.
    pub fn is_packed(&self) -> bool {
        !matches!(self.source, Source::Large { .. })
    }
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
