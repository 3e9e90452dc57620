//! One append-only file of records. Its index file beside it is derived from it: lost or damaged, it is made anew.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use buildnet_formats::NativeError;
use rustix::buffer::spare_capacity;

use crate::index::Place;
use crate::record::{HEADER_BYTES, Header, Key, Kind, LARGE, Salt, aligned, crc, u32_at, u64_at};
use crate::unusable;

const INDEX_MAGIC: [u8; 8] = *b"BNidx003";
const INDEX_HEADER_BYTES: usize = 24;
const ROW_BYTES: usize = 56;
const HASH_BYTES_MAX: usize = 64;
/// What the kernel copies whole or not at all.
const PAGE_BYTES: usize = 4 << 10;

/// One record as the index is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: Key,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) flags: u8,
    pub(crate) removed: bool,
}

impl Row {
    pub(crate) fn place(&self, segment: u32) -> Place {
        Place::new(segment, self.offset, self.length, self.flags & LARGE != 0)
    }

    /// Bytes outside the segment that live and die with this record.
    pub(crate) fn large_bytes(&self) -> u64 {
        if self.flags & LARGE != 0 { self.key.size_bytes() } else { 0 }
    }
}

/// A file of records.
pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) salt: Salt,
    /// Where the next record would begin.
    pub(crate) end: AtomicU64,
    /// Bytes of records that the index points to.
    pub(crate) live: AtomicU64,
    /// Bytes of records that say what is gone.
    pub(crate) removals: AtomicU64,
}

impl Segment {
    pub(crate) fn path_of(directory: &Path, number: u32) -> PathBuf {
        directory.join(format!("{number:08}.seg"))
    }

    /// A new, empty segment.
    pub(crate) fn create(directory: &Path, number: u32, salt: Salt) -> Result<Self, NativeError> {
        let path = Self::path_of(directory, number);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|e| unusable(&path, &e))?;
        Ok(Self::new(number, path, file, salt, 0))
    }

    fn new(number: u32, path: PathBuf, file: File, salt: Salt, end: u64) -> Self {
        let (end, live, removals) = (AtomicU64::new(end), AtomicU64::new(0), AtomicU64::new(0));
        Self { number, path, file, salt, end, live, removals }
    }

    /// Open a segment and list its records. `active` ones have no index yet and may end in the middle of a record.
    pub(crate) fn open(directory: &Path, number: u32, salt: Salt) -> Result<Opened, NativeError> {
        let path = Self::path_of(directory, number);
        let at = |e: io::Error| unusable(&path, &e);
        let file = File::options().read(true).write(true).open(&path).map_err(at)?;
        let length = file.metadata().map_err(at)?.len();
        let (rows, end, damaged, sealed) = match read_index(&path, length) {
            Some((rows, end)) => (rows, end, 0, true),
            None => {
                let scan = scan(salt, &fs::read(&path).map_err(at)?);
                // An index file that is here and does not hold is damage too, or the segment behind it is shorter.
                let broken = u64::from(path.with_extension("idx").exists());
                (scan.rows, scan.end, scan.damaged.max(broken), false)
            }
        };
        let segment = Self::new(number, path, file, salt, end);
        let removals = rows.iter().filter(|row| row.removed).map(|row| u64::from(row.length)).sum();
        segment.removals.store(removals, Ordering::Relaxed);
        Ok(Opened { segment, rows, damaged, sealed })
    }

    /// The records of a sealed segment.
    pub(crate) fn rows(&self) -> Result<Vec<Row>, NativeError> {
        let at = |e: io::Error| unusable(&self.path, &e);
        let length = self.file.metadata().map_err(at)?.len();
        if let Some((rows, _)) = read_index(&self.path, length) {
            return Ok(rows);
        }
        Ok(scan(self.salt, &fs::read(&self.path).map_err(at)?).rows)
    }

    /// Whether the index file of a sealed segment is what was written.
    pub(crate) fn index_is_sound(&self) -> bool {
        read_index(&self.path, self.end.load(Ordering::Acquire)).is_some()
    }

    /// Write the index file; from now on opening reads that instead of every record.
    pub(crate) fn seal(&self, rows: &[Row]) -> Result<(), NativeError> {
        let path = self.path.with_extension("idx");
        let temporary = self.path.with_extension("idx.part");
        let bytes = encode_index(rows, self.end.load(Ordering::Acquire));
        fs::write(&temporary, bytes).map_err(|e| unusable(&temporary, &e))?;
        fs::rename(&temporary, &path).map_err(|e| unusable(&path, &e))
    }

    /// Delete the segment and its index. Who still reads it keeps reading: the file goes with its last descriptor.
    pub(crate) fn delete(&self) -> Result<(), NativeError> {
        let index = self.path.with_extension("idx");
        for path in [&index, &self.path] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unusable(path, &error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The bytes of a record, if they are what their checksums say and it is the one with this key.
    pub(crate) fn read(&self, key: &Key, place: Place) -> Option<(Header, Vec<u8>)> {
        let bytes = read_at(&self.file, u64::from(place.offset), place.length() as usize, 0)?;
        let header = Header::decode(self.salt, &bytes)?;
        if header.record_bytes() != u64::from(place.length()) {
            return None;
        }
        let (name, payload) = bytes[HEADER_BYTES..].split_at(usize::from(header.name_length));
        let sound = crc(payload) == header.payload_crc && Key::of_record(&header, name).as_ref() == Some(key);
        sound.then_some((header, bytes))
    }

    /// As [`Segment::read`], of a blob whose hash has so many bytes, with the payload put at the end of `out`.
    pub(crate) fn read_onto(&self, key: &Key, place: Place, hash_bytes: usize, out: &mut Vec<u8>) -> Option<Header> {
        let mut head = [0; HEADER_BYTES + HASH_BYTES_MAX];
        let head = &mut head[..HEADER_BYTES + hash_bytes];
        let payload = (place.length() as usize).checked_sub(head.len())?;
        let start = out.len();
        out.resize(start + payload, 0);
        let parts = &mut [IoSliceMut::new(head), IoSliceMut::new(&mut out[start..])];
        let read = rustix::io::preadv(&self.file, parts, u64::from(place.offset)).ok()?;
        let header = Header::decode(self.salt, head)?;
        let sound = read == place.length() as usize
            && header.record_bytes() == read as u64
            && crc(&out[start..]) == header.payload_crc
            && Key::of_record(&header, &head[HEADER_BYTES..]).as_ref() == Some(key);
        sound.then_some(header)
    }
}

/// What opening a segment found.
pub(crate) struct Opened {
    pub(crate) segment: Segment,
    pub(crate) rows: Vec<Row>,
    /// Records that are not what their checksums say.
    pub(crate) damaged: u64,
    pub(crate) sealed: bool,
}

/// So many bytes at an offset, behind `headroom` bytes of zeros; none when there are fewer.
pub(crate) fn read_at(file: &File, offset: u64, length: usize, headroom: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(headroom + length);
    bytes.resize(headroom, 0);
    while bytes.len() < headroom + length {
        let done = (bytes.len() - headroom) as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), offset + done) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    // The allocator may have given more room than was asked for.
    bytes.truncate(headroom + length);
    Some(bytes)
}

struct Scan {
    rows: Vec<Row>,
    end: u64,
    damaged: u64,
}

/// Every sound record of a segment. What is not a record is passed over: the next one begins at an aligned place, and no
/// bytes of a client look like one, since none knows the salt.
fn scan(salt: Salt, bytes: &[u8]) -> Scan {
    let mut found = Scan { rows: Vec::new(), end: 0, damaged: 0 };
    let mut at = 0;
    let mut lost = false;
    let written = written(bytes).len();
    while at + HEADER_BYTES <= bytes.len() {
        let Some(header) = Header::decode(salt, &bytes[at..]) else {
            lost = true;
            at += crate::record::ALIGN as usize;
            continue;
        };
        let payload_at = at + header.payload_at();
        let record_end = payload_at + header.payload_length as usize;
        let Some(payload) = bytes.get(payload_at..record_end) else { break };
        let name = &bytes[at + HEADER_BYTES..payload_at];
        let sound = crc(payload) == header.payload_crc;
        // The kernel was copying it, a page at a time, when its writer was killed: it was never acknowledged.
        if !sound && written.next_multiple_of(PAGE_BYTES) < record_end {
            break;
        }
        found.damaged += u64::from(lost) + u64::from(!sound);
        lost = false;
        if let (true, Some(key), Ok(offset)) = (sound, Key::of_record(&header, name), u32::try_from(at)) {
            found.rows.push(Row {
                key,
                offset,
                length: u32::try_from(header.record_bytes()).unwrap_or(u32::MAX),
                flags: header.flags,
                removed: header.kind == Kind::Removed,
            });
        }
        at = aligned(record_end as u64) as usize;
        found.end = at as u64;
    }
    found.damaged += u64::from(!is_torn(salt, bytes.get(found.end as usize..).unwrap_or_default()));
    found
}

/// Without the zeros at its end, which are what the file was filled with ahead of its records.
fn written(bytes: &[u8]) -> &[u8] {
    let last = bytes.iter().rposition(|byte| *byte != 0);
    &bytes[..last.map_or(0, |last| last + 1)]
}

/// Whether these bytes may be the beginning of one record, as a killed process leaves them behind the last one.
fn is_torn(salt: Salt, rest: &[u8]) -> bool {
    if Header::decode(salt, rest).is_some() {
        return true;
    }
    let rest = written(rest);
    if rest.len() < HEADER_BYTES {
        return true;
    }
    rest[..4] == salt.0[..4] && rest.len() < HEADER_BYTES + usize::from(u16::from_le_bytes([rest[8], rest[9]]))
}

fn encode_index(rows: &[Row], end: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(INDEX_HEADER_BYTES + rows.len() * ROW_BYTES + 4);
    bytes.extend_from_slice(&INDEX_MAGIC);
    bytes.extend_from_slice(&end.to_le_bytes());
    bytes.extend_from_slice(&(rows.len() as u64).to_le_bytes());
    for row in rows {
        bytes.extend_from_slice(&row.key.hash);
        bytes.extend_from_slice(&row.key.what.to_le_bytes());
        bytes.extend_from_slice(&row.offset.to_le_bytes());
        bytes.extend_from_slice(&row.length.to_le_bytes());
        bytes.extend_from_slice(&[row.flags, u8::from(row.removed), 0, 0, 0, 0, 0, 0]);
    }
    let sum = crc(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn read_index(segment: &Path, segment_length: u64) -> Option<(Vec<Row>, u64)> {
    decode_index(&fs::read(segment.with_extension("idx")).ok()?, segment_length)
}

fn decode_index(bytes: &[u8], segment_length: u64) -> Option<(Vec<Row>, u64)> {
    let (bytes, sum) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    let (header, rows) = bytes.split_at_checked(INDEX_HEADER_BYTES)?;
    let (end, count) = (u64_at(header, 8), u64_at(header, 16));
    let sound = header[..8] == INDEX_MAGIC
        && crc(bytes) == u32_at(sum, 0)
        && rows.len() as u64 == count.checked_mul(ROW_BYTES as u64)?
        && end <= aligned(segment_length);
    let row = |row: &[u8]| {
        let mut hash = [0; 32];
        hash.copy_from_slice(&row[..32]);
        Row {
            key: Key { hash, what: u64_at(row, 32) },
            offset: u32_at(row, 40),
            length: u32_at(row, 44),
            flags: row[48],
            removed: row[49] != 0,
        }
    };
    sound.then(|| (rows.chunks_exact(ROW_BYTES).map(row).collect(), end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildnet_formats::{Digest, Function};
    use proptest::prelude::*;

    const SALT: Salt = Salt([1, 2, 3, 4, 5, 6, 7, 8]);

    fn record(payload: &[u8]) -> Vec<u8> {
        record_salted(SALT, payload)
    }

    fn record_salted(salt: Salt, payload: &[u8]) -> Vec<u8> {
        let digest = Digest::of(payload);
        let header = Header {
            kind: Kind::Blob,
            function: Function::Sha256 as u8,
            flags: 0,
            name_length: 32,
            payload_length: payload.len() as u32,
            size_bytes: payload.len() as u64,
            payload_crc: crc(payload),
        };
        let mut bytes = [header.encode(salt, digest.hash()).as_slice(), digest.hash(), payload].concat();
        bytes.resize(aligned(bytes.len() as u64) as usize, 0);
        bytes
    }

    proptest! {
        #[test]
        fn a_flipped_byte_costs_one_record_and_a_torn_end_only_the_last(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 2..6),
            at: usize, flip in 1u8.., cut: usize
        ) {
            let records: Vec<Vec<u8>> = payloads.iter().map(|p| record(p)).collect();
            let whole = records.concat();
            prop_assert_eq!(scan(SALT, &whole).rows.len(), payloads.len());
            let mut flipped = whole.clone();
            let at = at % whole.len();
            flipped[at] ^= flip;
            // A flip in the padding costs nothing.
            prop_assert!(scan(SALT, &flipped).rows.len() + 1 >= payloads.len());
            for row in scan(SALT, &flipped).rows {
                prop_assert!(payloads.iter().any(|p| Key::of_blob(&Digest::of(p)) == row.key));
            }
            let cut = cut % whole.len();
            let kept = scan(SALT, &whole[..cut]).rows.len();
            let mut whole_records = 0;
            let mut length = 0;
            for (record, payload) in records.iter().zip(&payloads) {
                length += record.len();
                whole_records += usize::from(length - (record.len() - HEADER_BYTES - 32 - payload.len()) <= cut);
            }
            prop_assert_eq!(kept, whole_records);
        }

        #[test]
        fn what_a_killed_process_was_writing_into_zeros_is_no_damage(
            lengths in proptest::collection::vec(0usize..9_000, 1..6), pages in 0usize..12, zeros in 0usize..40_000
        ) {
            let records: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(n, l)| record(&vec![n as u8 + 1; *l])).collect();
            let whole = records.concat();
            let cut = whole.len().min(pages * PAGE_BYTES);
            let found = scan(SALT, &[&whole[..cut], &vec![0; zeros + whole.len() - cut]].concat());
            let mut end = 0;
            let kept = records.iter().zip(&lengths).take_while(|(record, length)| {
                end += record.len();
                end - (record.len() - HEADER_BYTES - 32 - **length) <= cut
            });
            let kept: usize = kept.map(|(record, _)| record.len()).sum();
            prop_assert_eq!((found.end, found.damaged), (kept as u64, 0));
        }

        #[test]
        fn an_index_round_trips_and_no_flipped_byte_passes(count in 0usize..5, at: usize, flip in 1u8..) {
            let rows: Vec<Row> = (0..count).map(|n| Row {
                key: Key { hash: [n as u8; 32], what: n as u64 }, offset: n as u32, length: 9, flags: 1, removed: n == 1,
            }).collect();
            let bytes = encode_index(&rows, 80);
            prop_assert_eq!(decode_index(&bytes, 80), Some((rows, 80)));
            prop_assert_eq!(decode_index(&bytes, 8), None);
            let mut flipped = bytes.clone();
            let at = at % bytes.len();
            flipped[at] ^= flip;
            prop_assert_eq!(decode_index(&flipped, 80), None);
        }

        #[test]
        fn a_record_inside_a_blob_is_none_of_ours(payload in proptest::collection::vec(any::<u8>(), 0..40), pad in 0usize..3) {
            // What a client can build without the salt, at an aligned place of a blob whose own header was lost.
            let guessed = record_salted(Salt([9; 8]), &payload);
            let mut outer = record(&[&vec![0; 8 * pad], guessed.as_slice()].concat());
            outer[28] ^= 1;
            let bytes = [outer, record(b"after")].concat();
            let found = scan(SALT, &bytes);
            prop_assert_eq!(found.rows.len(), 1);
            prop_assert_eq!(found.rows[0].key, Key::of_blob(&Digest::of(b"after")));
            prop_assert_eq!(found.damaged, 1);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = scan(SALT, &bytes);
            let _ = scan(SALT, &[&SALT.0[..4], &[1, 0, 0], &bytes].concat());
            let _ = decode_index(&bytes, 1 << 20);
        }
    }
}
