//! Eviction: the oldest segment goes, and what of it is held, was used lately or earned a second chance moves to the
//! newest. It costs what it evicts, runs in the background, and never takes what a live action or a recent answer needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use buildnet_formats::{Digest, NativeError};

use crate::index::{Place, Use};
use crate::log::Record;
use crate::record::{HEADER_BYTES, Header, Key, Kind};
use crate::segment::{Row, Segment};
use crate::{EntryName, Store, now_s};

/// Above this share of the limit eviction begins, in percent.
const HIGH_WATER: u64 = 95;
/// And it ends below this share.
const LOW_WATER: u64 = 85;
/// A sealed segment with less than this share of live bytes is rewritten, in percent.
const LIVE_MIN: u64 = 50;
/// Records moved by one append.
const MOVED_AT_ONCE: usize = 256;
/// How often the background thread looks without being woken.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What an eviction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Records that are gone.
    pub records: u64,
    /// Their bytes on the disk, files of their own included.
    pub bytes: u64,
    /// Records that were kept and moved.
    pub moved: u64,
}

impl Evicted {
    fn add(&mut self, other: Self) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.moved += other.moved;
    }
}

/// The thread that evicts and compacts; dropping it ends the thread.
pub struct Background {
    store: Arc<Store>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Begin to look after `store`.
    ///
    /// # Errors
    /// `internal` when no thread can be started.
    pub fn start(store: &Arc<Store>) -> Result<Self, NativeError> {
        let own = Arc::clone(store);
        let thread = std::thread::Builder::new()
            .name("buildnet-store".to_owned())
            .spawn(move || own.look_after())
            .map_err(|e| NativeError::internal(format!("no thread for the store: {e}")))?;
        Ok(Self { store: Arc::clone(store), thread: Some(thread) })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.store.work.state.lock().stopped = true;
        self.store.work.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

impl Store {
    /// Keep blobs from being evicted until [`Store::release`], under a name of the caller's; a second call replaces the
    /// first.
    pub fn hold(&self, name: &str, digests: &[Digest]) {
        self.hold_keys(name, digests.iter().map(Key::of_blob).collect());
    }

    /// As [`Store::hold`], for one entry.
    pub fn hold_entry(&self, name: &str, entry: &EntryName) {
        self.hold_keys(name, vec![entry.key()]);
    }

    fn hold_keys(&self, name: &str, keys: Vec<Key>) {
        self.release(name);
        let mut holds = self.holds.lock();
        for key in &keys {
            *holds.counts.entry(*key).or_default() += 1;
        }
        holds.by_name.insert(name.to_owned(), keys);
    }

    /// End what [`Store::hold`] began.
    pub fn release(&self, name: &str) {
        let mut holds = self.holds.lock();
        for key in holds.by_name.remove(name).unwrap_or_default() {
            if let Some(count) = holds.counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    holds.counts.remove(&key);
                }
            }
        }
    }

    /// Names that hold a blob.
    pub fn holders(&self, digest: &Digest) -> Vec<String> {
        let key = Key::of_blob(digest);
        let holds = self.holds.lock();
        let mut names: Vec<String> =
            holds.by_name.iter().filter(|(_, keys)| keys.contains(&key)).map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    fn look_after(&self) {
        loop {
            {
                let mut state = self.work.state.lock();
                if !state.stopped && !state.pressed {
                    self.work.wake.wait_for(&mut state, LOOK_EVERY);
                }
                if state.stopped {
                    return;
                }
                state.pressed = false;
            }
            // A disk that fails here fails the writers too, and those say so.
            let _ = self.evict_to(self.high_water(), self.low_water());
            let _ = self.compact();
        }
    }

    fn high_water(&self) -> u64 {
        self.options.size_bytes_max / 100 * HIGH_WATER
    }

    fn low_water(&self) -> u64 {
        self.options.size_bytes_max / 100 * LOW_WATER
    }

    /// Make sure that so many more bytes stay under the limit; a writer that is too fast for the background evicts.
    pub(crate) fn make_room(&self, size_bytes: u64) -> Result<(), NativeError> {
        let used = self.used_bytes().saturating_add(size_bytes);
        if used <= self.high_water() {
            return Ok(());
        }
        {
            let mut state = self.work.state.lock();
            if !state.pressed {
                state.pressed = true;
                self.work.wake.notify_one();
            }
        }
        if used <= self.options.size_bytes_max {
            return Ok(());
        }
        let limit = self.options.size_bytes_max.saturating_sub(size_bytes);
        self.evict_to(limit, limit)?;
        if self.used_bytes().saturating_add(size_bytes) <= self.options.size_bytes_max {
            return Ok(());
        }
        Err(NativeError::new(
            "storage_full",
            format!(
                "the store is full: {} of at most {} bytes are in use and all of it is needed or was used in the last \
                 {} s; raise its limit or try again later",
                self.used_bytes(),
                self.options.size_bytes_max,
                self.options.keep_s
            ),
        ))
    }

    /// Evict until the store takes at most `low` bytes, if it takes more than `high`.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn evict_to(&self, high: u64, low: u64) -> Result<Evicted, NativeError> {
        let mut done = Evicted::default();
        if self.used_bytes() <= high {
            return Ok(done);
        }
        let _one = self.evicting.lock();
        let last = self.log.turn()?;
        // Once round every segment there is: what stayed then is all in use.
        for pressed in [false, true] {
            for segment in self.log.sealed().into_iter().filter(|s| s.number <= last) {
                if self.used_bytes() <= low {
                    return Ok(done);
                }
                done.add(self.sweep(&segment, |usage| match usage {
                    Use::Recent => false,
                    Use::Restored => pressed,
                    Use::Referenced => pressed,
                    Use::Idle => true,
                })?);
            }
            if self.used_bytes() <= self.high_water().max(high) {
                break;
            }
        }
        Ok(done)
    }

    /// Rewrite segments that are mostly dead. Returns how many bytes that gave back.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn compact(&self) -> Result<u64, NativeError> {
        let _one = self.evicting.lock();
        let before = self.log.bytes();
        for segment in self.log.sealed() {
            let (end, live) = (segment.end.load(Ordering::Relaxed), segment.live.load(Ordering::Relaxed));
            if live * 100 < end * LIVE_MIN {
                self.sweep(&segment, |_| false)?;
            }
        }
        Ok(before.saturating_sub(self.log.bytes()))
    }

    /// Empty one sealed segment: move what stays, drop what `goes`, delete the file.
    fn sweep(&self, segment: &Segment, goes: impl Fn(Use) -> bool) -> Result<Evicted, NativeError> {
        let mut done = Evicted::default();
        let rows = segment.rows()?;
        let now = now_s();
        let mut staying: Vec<(Row, Place)> = Vec::new();
        let mut going: Vec<(Key, Place)> = Vec::new();
        let oldest = self.log.oldest() == Some(segment.number);
        for row in rows {
            let place = row.place(segment.number);
            if row.removed {
                // What it removed may still stand in an older segment.
                if !oldest && self.index.read().get(&row.key).is_none() {
                    staying.push((row, place));
                }
                continue;
            }
            if self.index.read().get(&row.key) != Some(place) {
                continue;
            }
            if self.try_remove(&row.key, place, now, &goes) {
                going.push((row.key, place));
            } else {
                staying.push((row, place));
            }
        }
        for (key, place) in going {
            done.records += 1;
            done.bytes += u64::from(place.length()) + if place.is_large() { key.size_bytes() } else { 0 };
            self.dispose(&key, place);
        }
        for batch in staying.chunks(MOVED_AT_ONCE) {
            done.moved += self.move_records(segment, batch)?;
        }
        self.counters.evicted.fetch_add(done.records, Ordering::Relaxed);
        self.counters.evicted_bytes.fetch_add(done.bytes, Ordering::Relaxed);
        self.log.delete(segment)?;
        Ok(done)
    }

    /// Remove a record that nothing needs. Decided under the lock that every use takes, so that nothing is evicted that
    /// was just said to be present.
    fn try_remove(&self, key: &Key, place: Place, now: u64, goes: &impl Fn(Use) -> bool) -> bool {
        let holds = self.holds.lock();
        if holds.counts.contains_key(key) {
            return false;
        }
        let mut index = self.index.write();
        let usage = index.usage(key, now, self.options.keep_s, self.opened_s);
        let removed = usage.is_some_and(goes) && index.get(key) == Some(place);
        if removed {
            index.remove(key);
            self.counters.removals.fetch_add(1, Ordering::Release);
        }
        removed
    }

    fn move_records(&self, segment: &Segment, rows: &[(Row, Place)]) -> Result<u64, NativeError> {
        let mut read: Vec<(Row, Place, Header, Vec<u8>)> = Vec::with_capacity(rows.len());
        for (row, place) in rows {
            match segment.read(&row.key, *place) {
                Some((header, bytes)) => read.push((*row, *place, header, bytes)),
                None => {
                    self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                    self.counters.removals.fetch_add(1, Ordering::Release);
                    self.index.write().remove(&row.key);
                }
            }
        }
        let records: Vec<Record<'_>> = read
            .iter()
            .map(|(row, _, header, bytes)| Record {
                key: row.key,
                kind: header.kind,
                function: header.function,
                flags: header.flags,
                name: &bytes[HEADER_BYTES..header.payload_at()],
                payload: &bytes[header.payload_at()..],
            })
            .collect();
        let mut moved = 0;
        self.log.append(&records, |number, to, target| {
            let (row, from, header, _) = &read[number];
            if header.kind != Kind::Removed && self.index.write().relocate(&row.key, *from, to) {
                target.live.fetch_add(u64::from(to.length()), Ordering::Relaxed);
                moved += 1;
            }
        })?;
        Ok(moved)
    }
}
