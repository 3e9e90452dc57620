//! The segments in order: records are appended to the last one, and what was appended is synced for many writers at once.
//! The segments are the truth; the index in memory follows them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use buildnet_formats::NativeError;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::ahead;
use crate::appending::Appending;
use crate::index::Place;
use crate::record::{HEADER_BYTES, Header, Key, Kind, Salt, aligned, crc};
use crate::segment::{Opened, Row, Segment};
use crate::{Durability, unusable};

/// A record to append.
pub(crate) struct Record<'a> {
    pub(crate) key: Key,
    pub(crate) kind: Kind,
    pub(crate) function: u8,
    pub(crate) flags: u8,
    pub(crate) name: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Record<'a> {
    /// What says that `key` is gone.
    pub(crate) fn removal(key: &'a Key) -> Self {
        Self { key: *key, kind: Kind::Removed, function: key.function(), flags: 0, name: &key.hash, payload: &[] }
    }

    /// What stands before its name.
    pub(crate) fn header(&self, salt: Salt) -> [u8; HEADER_BYTES] {
        let header = Header {
            kind: self.kind,
            function: self.function,
            flags: self.flags,
            name_length: u16::try_from(self.name.len()).unwrap_or(u16::MAX),
            payload_length: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
            size_bytes: self.key.size_bytes(),
            payload_crc: crc(self.payload),
        };
        header.encode(salt, self.name)
    }

    fn length(&self) -> usize {
        HEADER_BYTES + self.name.len() + self.payload.len()
    }
}

struct Active {
    segment: Arc<Segment>,
    /// Up to where the segment's file is filled.
    filled: u64,
    rows: Vec<Row>,
    buffer: Vec<u8>,
    /// Bytes of large files whose records are here.
    large_bytes: u64,
    /// Appends so far, over all segments.
    appends: u64,
}

#[derive(Default)]
struct Synced {
    appends: u64,
    leading: bool,
}

/// Every segment, and the one that grows.
pub(crate) struct Log {
    directory: PathBuf,
    salt: Salt,
    segment_bytes: u64,
    durability: Durability,
    active: Mutex<Active>,
    segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    /// Bytes of all segments.
    bytes: AtomicU64,
    synced: Mutex<Synced>,
    done: Condvar,
    /// Up to where the records are as durable as was promised: the segment's number above, the offset below.
    promised: AtomicU64,
    /// A sync failed: the kernel may have dropped what it could not write, so nothing more can be promised.
    broken: AtomicBool,
}

/// A segment is also full when the files that live and die with it are so many times its size.
const LARGE_FACTOR: u64 = 8;
/// Buffers that grew over this are given back.
const BUFFER_BYTES_KEPT: usize = 1 << 20;
/// Places in a segment are 32 bits, and one append may go over the limit by what it appends.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

impl Log {
    /// Open every segment below `directory`; `each` is told of its records, in the order in which they were written.
    pub(crate) fn open(
        directory: &Path,
        salt: Salt,
        segment_bytes: u64,
        durability: Durability,
        mut each: impl FnMut(&Segment, &[Row], u64),
    ) -> Result<Self, NativeError> {
        let mut segments = BTreeMap::new();
        let mut bytes = 0;
        let numbers = numbers(directory).map_err(|e| unusable(directory, &e))?;
        let power = durability == Durability::Power;
        let mut active: Option<(Arc<Segment>, Vec<Row>)> = None;
        for number in &numbers {
            let Opened { segment, rows, damaged, sealed } = Segment::open(directory, *number, salt)?;
            each(&segment, &rows, damaged);
            bytes += segment.end.load(Ordering::Relaxed);
            let segment = Arc::new(segment);
            segments.insert(*number, Arc::clone(&segment));
            let last = Some(number) == numbers.last();
            if last && !sealed {
                // What a killed process left half-written was never acknowledged.
                let end = segment.end.load(Ordering::Relaxed);
                segment.file.set_len(end).map_err(|e| unusable(&segment.path, &e))?;
                active = Some((segment, rows));
            } else if !sealed {
                segment.seal(&rows)?;
            }
        }
        let (segment, rows) = match active {
            Some(found) => found,
            None => {
                let number = numbers.last().map_or(1, |last| last + 1);
                let segment = Arc::new(Segment::create(directory, number, salt)?);
                segments.insert(number, Arc::clone(&segment));
                (segment, Vec::new())
            }
        };
        let large_bytes = rows.iter().map(Row::large_bytes).sum();
        let filled = segment.end.load(Ordering::Relaxed);
        if power {
            // Whatever is here is promised from now on, in every segment and every large file, and who writes it again is
            // answered at once; another durability may have left any of it unsynced, and no list says which.
            let synced = File::open(directory).and_then(|d| Ok(rustix::fs::syncfs(d)?));
            synced.map_err(|e| unusable(directory, &e))?;
        }
        let promised = if power { mark(segment.number, filled) } else { u64::MAX };
        Ok(Self {
            directory: directory.to_owned(),
            salt,
            segment_bytes: segment_bytes.min(SEGMENT_BYTES_MAX),
            durability,
            active: Mutex::new(Active { segment, filled, rows, buffer: Vec::new(), large_bytes, appends: 0 }),
            segments: RwLock::new(segments),
            bytes: AtomicU64::new(bytes),
            synced: Mutex::default(),
            done: Condvar::new(),
            promised: AtomicU64::new(promised),
            broken: AtomicBool::new(false),
        })
    }

    /// Append those of `records` that are still `wanted` when nobody else can append, tell `placed` where they are, and
    /// wait for the disk if that was promised.
    ///
    /// # Errors
    /// `storage_full`, after which nothing was appended; `state_corrupt` when the disk fails.
    pub(crate) fn append(
        &self,
        records: &[Record<'_>],
        wanted: impl Fn(usize) -> bool,
        placed: impl FnMut(usize, Place, &Segment),
    ) -> Result<(), NativeError> {
        let Some(ticket) = self.write(&mut self.active.lock(), records, wanted, placed)? else { return Ok(()) };
        if self.durability == Durability::Power { self.sync(ticket) } else { Ok(()) }
    }

    fn write(
        &self,
        active: &mut Active,
        records: &[Record<'_>],
        wanted: impl Fn(usize) -> bool,
        mut placed: impl FnMut(usize, Place, &Segment),
    ) -> Result<Option<u64>, NativeError> {
        // The order on the disk is the order of the truth when the store is opened again: what was overtaken since it
        // was read must not follow what overtook it.
        let numbers: Vec<usize> = (0..records.len()).filter(|number| wanted(*number)).collect();
        if numbers.is_empty() {
            return Ok(None);
        }
        let length: usize = numbers.iter().map(|n| aligned(records[*n].length() as u64) as usize).sum();
        let end = active.segment.end.load(Ordering::Relaxed);
        let over = end + length as u64 > self.segment_bytes || active.large_bytes > LARGE_FACTOR * self.segment_bytes;
        if over && end > 0 {
            self.roll(active)?;
        }
        let Active { segment, filled, rows, buffer, large_bytes, appends } = active;
        let mut appending = Appending::new(std::mem::take(buffer));
        let start = segment.end.load(Ordering::Relaxed);
        let first = rows.len();
        for record in numbers.iter().map(|n| &records[*n]) {
            let offset = start + appending.len() as u64;
            appending.push(record, self.salt);
            rows.push(Row {
                key: record.key,
                offset: u32::try_from(offset).unwrap_or(u32::MAX),
                length: u32::try_from(record.length()).unwrap_or(u32::MAX),
                flags: record.flags,
                removed: record.kind == Kind::Removed,
            });
        }
        let length = appending.len() as u64;
        *filled = ahead::fill(&segment.file, *filled, start + length, self.segment_bytes);
        let written = appending.write_at(&segment.file, start);
        *buffer = appending.into_buffer();
        if buffer.capacity() > BUFFER_BYTES_KEPT {
            *buffer = Vec::new();
        }
        if let Err(error) = written {
            rows.truncate(first);
            // What was written of it is overwritten by the next, or cut off when the store is opened.
            let _ = segment.file.set_len(start);
            *filled = start;
            return Err(unusable(&segment.path, &error));
        }
        // What went beyond the last step filled the file too.
        *filled = (start + length).max(*filled);
        segment.end.fetch_add(length, Ordering::Release);
        self.bytes.fetch_add(length, Ordering::Relaxed);
        for (number, row) in numbers.into_iter().zip(&rows[first..]) {
            *large_bytes += row.large_bytes();
            if row.removed {
                segment.removals.fetch_add(u64::from(row.length), Ordering::Relaxed);
            }
            placed(number, row.place(segment.number), segment);
        }
        *appends += 1;
        Ok(Some(*appends))
    }

    /// Close the growing segment and begin another; returns the closed one's number.
    pub(crate) fn turn(&self) -> Result<u32, NativeError> {
        let mut active = self.active.lock();
        let number = active.segment.number;
        if active.segment.end.load(Ordering::Relaxed) > 0 {
            self.roll(&mut active)?;
        }
        Ok(number)
    }

    fn roll(&self, active: &mut Active) -> Result<(), NativeError> {
        let next = Arc::new(Segment::create(&self.directory, active.segment.number + 1, self.salt)?);
        let prepared = || {
            let Segment { file, path, end, .. } = &*active.segment;
            file.set_len(end.load(Ordering::Relaxed)).map_err(|e| unusable(path, &e))?;
            if self.durability == Durability::Power {
                self.flush(&active.segment)?;
                sync_directory(&self.directory)?;
            }
            active.segment.seal(&active.rows)
        };
        if let Err(error) = prepared() {
            // It must not stand in the way of the next try: a disk that is full now may have room later.
            next.delete()?;
            return Err(error);
        }
        self.segments.write().insert(next.number, Arc::clone(&next));
        // What stands before it was flushed just now.
        self.promised.fetch_max(mark(next.number, 0), Ordering::AcqRel);
        active.segment = next;
        active.filled = 0;
        active.rows = Vec::new();
        active.large_bytes = 0;
        Ok(())
    }

    /// Wait until append number `ticket` is on the disk; one waiter syncs for all.
    fn sync(&self, ticket: u64) -> Result<(), NativeError> {
        let mut synced = self.synced.lock();
        loop {
            if synced.appends >= ticket {
                return Ok(());
            }
            if !synced.leading {
                break;
            }
            self.done.wait(&mut synced);
        }
        synced.leading = true;
        drop(synced);
        let (upto, segment, end) = {
            let active = self.active.lock();
            (active.appends, Arc::clone(&active.segment), active.segment.end.load(Ordering::Acquire))
        };
        let flushed = self.flush(&segment);
        if flushed.is_ok() {
            self.promised.fetch_max(mark(segment.number, end), Ordering::AcqRel);
        }
        let mut synced = self.synced.lock();
        synced.leading = false;
        if flushed.is_ok() {
            synced.appends = synced.appends.max(upto);
        }
        drop(synced);
        self.done.notify_all();
        flushed
    }

    fn flush(&self, segment: &Segment) -> Result<(), NativeError> {
        let failed = |error: io::Error| {
            self.broken.store(true, Ordering::Release);
            unusable(&segment.path, &error)
        };
        if self.broken.load(Ordering::Acquire) {
            return Err(failed(io::Error::other("an earlier sync failed; nothing can be promised until a restart")));
        }
        segment.file.sync_data().map_err(failed)
    }

    /// Whether the record at `place` is as durable as was promised.
    pub(crate) fn is_promised(&self, place: Place) -> bool {
        mark(place.segment, u64::from(place.offset)) < self.promised.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(crate) fn break_syncs(&self) {
        self.broken.store(true, Ordering::Release);
    }

    pub(crate) fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        self.segments.read().get(&number).cloned()
    }

    /// Sealed segments, oldest first.
    pub(crate) fn sealed(&self) -> Vec<Arc<Segment>> {
        let active = self.active.lock().segment.number;
        self.segments.read().values().filter(|s| s.number != active).cloned().collect()
    }

    /// Every segment, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        self.segments.read().values().cloned().collect()
    }

    pub(crate) fn oldest(&self) -> Option<u32> {
        self.segments.read().keys().next().copied()
    }

    /// Delete a sealed segment that nothing points to.
    pub(crate) fn delete(&self, segment: &Segment) -> Result<(), NativeError> {
        self.segments.write().remove(&segment.number);
        self.bytes.fetch_sub(segment.end.load(Ordering::Relaxed), Ordering::Relaxed);
        segment.delete()
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn segment_count(&self) -> usize {
        self.segments.read().len()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let Active { segment, .. } = self.active.get_mut();
        // In an orderly end the file ends where its records do; else the next open sees to that.
        let _ = segment.file.set_len(segment.end.load(Ordering::Relaxed));
    }
}

/// A place among all records, in their order.
fn mark(segment: u32, offset: u64) -> u64 {
    u64::from(segment) << 32 | offset.min(u64::from(u32::MAX))
}

/// Make new names below a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), NativeError> {
    let synced = File::open(directory).and_then(|d| d.sync_all());
    synced.map_err(|e| unusable(directory, &e))
}

fn numbers(directory: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| n.ends_with(".part")) {
            // An index file that a killed process was writing.
            std::fs::remove_file(entry.path())?;
            continue;
        }
        if let Some(number) = name.to_str().and_then(|n| n.strip_suffix(".seg")).and_then(|n| n.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}
