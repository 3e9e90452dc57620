//! Eviction: the oldest segment goes, and what of it is held, was used lately or earned a second chance moves to the
//! newest. It costs what it evicts, runs in the background, and never takes what a live action or a recent answer needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use buildnet_formats::{Digest, NativeError};

use crate::index::{Place, Use};
use crate::log::Record;
use crate::record::{HEADER_BYTES, Header, Key};
use crate::segment::{Row, Segment};
use crate::{EntryName, Store, now_s};

/// Above this share of the limit eviction begins, in percent.
const HIGH_WATER: u64 = 95;
/// And it ends below this share.
const LOW_WATER: u64 = 85;
/// A sealed segment with less than this share of live bytes is rewritten, in percent.
const LIVE_MIN: u64 = 50;
/// Records moved by one append, and about how many bytes of them.
const MOVED_AT_ONCE: usize = 256;
const MOVED_BYTES_AT_ONCE: u64 = 4 << 20;
/// A segment is left alone while emptying it would move more than so many times what it gives back.
const MOVED_FACTOR: u64 = 4;
/// Blobs held under all names together: 40 bytes each, and as much for those held once.
const HELD_MAX: usize = 2_000_000;
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
    /// Records that were looked at, each time that they were.
    pub examined: u64,
}

impl Evicted {
    fn add(&mut self, other: Self) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.moved += other.moved;
        self.examined += other.examined;
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
    ///
    /// # Errors
    /// `overloaded` when more is held than is worth the memory; nothing is held under the name then.
    pub fn hold(&self, name: &str, digests: &[Digest]) -> Result<(), NativeError> {
        self.hold_keys(name, digests.iter().map(Key::of_blob).collect())
    }

    /// As [`Store::hold`], for one entry.
    ///
    /// # Errors
    /// As [`Store::hold`].
    pub fn hold_entry(&self, name: &str, entry: &EntryName) -> Result<(), NativeError> {
        self.hold_keys(name, vec![entry.key()])
    }

    fn hold_keys(&self, name: &str, keys: Vec<Key>) -> Result<(), NativeError> {
        self.release(name);
        let mut holds = self.holds.lock();
        if holds.total + keys.len() > HELD_MAX {
            return Err(NativeError::new(
                "overloaded",
                format!("{} blobs are held already, of at most {HELD_MAX}; {name} holds none of its own", holds.total),
            ));
        }
        holds.total += keys.len();
        for key in &keys {
            *holds.counts.entry(*key).or_default() += 1;
        }
        holds.by_name.insert(name.to_owned(), keys);
        Ok(())
    }

    /// End what [`Store::hold`] began.
    pub fn release(&self, name: &str) {
        let mut holds = self.holds.lock();
        let keys = holds.by_name.remove(name).unwrap_or_default();
        holds.total -= keys.len();
        for key in keys {
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
            let _ = self.try_evict(self.high_water(), self.low_water());
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
        self.try_evict(limit, limit)?;
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

    /// As [`Store::evict_to`], but not again within a second after nothing was found that may go: looking costs as much
    /// as the index, and those who are refused may ask often.
    fn try_evict(&self, high: u64, low: u64) -> Result<(), NativeError> {
        let now = now_s();
        if self.counters.fruitless_s.load(Ordering::Relaxed) == now {
            return Ok(());
        }
        if self.evict(high, low, high)?.bytes == 0 && self.used_bytes() > high {
            self.counters.fruitless_s.store(now, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Evict until the store takes at most `low` bytes, if it takes more than `high`.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn evict_to(&self, high: u64, low: u64) -> Result<Evicted, NativeError> {
        self.evict(high, low, self.high_water().max(high))
    }

    /// As [`Store::evict_to`]; what was used again goes too while more than `spared` bytes are taken.
    fn evict(&self, high: u64, low: u64, spared: u64) -> Result<Evicted, NativeError> {
        let mut done = Evicted::default();
        let _one = self.evicting.lock();
        // Who waited for another's eviction may find the room made.
        if self.used_bytes() <= high {
            return Ok(done);
        }
        for pressed in [false, true] {
            // Once round every segment there is: what stayed then is all in use.
            let last = self.log.turn()?;
            for segment in self.log.sealed().into_iter().filter(|s| s.number <= last) {
                if self.used_bytes() <= low {
                    return Ok(done);
                }
                let rows = segment.rows()?;
                done.examined += rows.len() as u64;
                if self.pays(&segment, &rows, pressed) {
                    done.add(self.sweep(&segment, rows, |usage| goes(usage, pressed))?);
                }
            }
            if self.used_bytes() <= spared {
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
            let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let oldest = self.log.oldest() == Some(segment.number);
            let needed = of(&segment.live) + if oldest { 0 } else { of(&segment.removals) };
            if needed * 100 < of(&segment.end) * LIVE_MIN {
                self.sweep(&segment, segment.rows()?, |_| false)?;
            }
        }
        Ok(before.saturating_sub(self.log.bytes()))
    }

    /// Whether emptying a segment gives back enough for what it moves. Where it does not, second chances are spent, so
    /// that another round may find it otherwise.
    fn pays(&self, segment: &Segment, rows: &[Row], pressed: bool) -> bool {
        let (now, keep_s) = (now_s(), self.options.keep_s);
        let (mut staying, mut files) = (0, 0);
        for rows in rows.chunks(MOVED_AT_ONCE) {
            let holds = self.holds.lock();
            let index = self.index.read();
            for row in rows.iter().filter(|row| !row.removed) {
                if index.get(&row.key) != Some(row.place(segment.number)) {
                    continue;
                }
                let usage = index.usage(&row.key, now, keep_s, self.opened_s);
                if usage.is_some_and(|usage| goes(usage, pressed)) && !holds.counts.contains_key(&row.key) {
                    files += row.large_bytes();
                } else {
                    staying += u64::from(row.length);
                }
            }
        }
        let freed = segment.end.load(Ordering::Relaxed).saturating_sub(staying) + files;
        let pays = staying <= freed * MOVED_FACTOR;
        if !pays {
            let index = self.index.read();
            rows.iter().for_each(|row| index.spend(&row.key, now, keep_s));
        }
        pays
    }

    /// Empty one sealed segment: move what stays, drop what `goes`, delete the file.
    fn sweep(&self, segment: &Segment, rows: Vec<Row>, goes: impl Fn(Use) -> bool) -> Result<Evicted, NativeError> {
        let mut done = Evicted { examined: rows.len() as u64, ..Evicted::default() };
        let now = now_s();
        let mut staying: Vec<(Row, Place)> = Vec::new();
        let mut going: Vec<(Row, Place)> = Vec::new();
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
                going.push((row, place));
            } else {
                staying.push((row, place));
            }
        }
        self.tell_gone(&going, oldest)?;
        for (row, place) in going {
            done.records += 1;
            done.bytes += u64::from(row.length) + row.large_bytes();
            self.dispose(&row.key, place);
        }
        let mut rest = staying.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |(row, _): &&(Row, Place)| {
                bytes += u64::from(row.length);
                bytes <= MOVED_BYTES_AT_ONCE
            };
            let count = rest.iter().take(MOVED_AT_ONCE).take_while(fits).count().max(1);
            done.moved += self.move_records(segment, &rest[..count])?;
            rest = &rest[count..];
        }
        self.counters.evicted.fetch_add(done.records, Ordering::Relaxed);
        self.counters.evicted_bytes.fetch_add(done.bytes, Ordering::Relaxed);
        self.log.delete(segment)?;
        Ok(done)
    }

    /// Say in the log what goes, where its record coming back after a crash would be a lie: a large blob without its
    /// file, or an entry that an older segment holds an older value of.
    fn tell_gone(&self, going: &[(Row, Place)], oldest: bool) -> Result<(), NativeError> {
        let lies =
            |row: &Row| row.large_bytes() > 0 || (!oldest && row.key.size_bytes() == 0 && row.key.function() == 0);
        let keys: Vec<Key> = going.iter().filter(|(row, _)| lies(row)).map(|(row, _)| row.key).collect();
        for keys in keys.chunks(MOVED_AT_ONCE) {
            let records: Vec<Record<'_>> = keys.iter().map(Record::removal).collect();
            self.log.append(&records, |number| self.index.read().get(&keys[number]).is_none(), |_, _, _| {})?;
        }
        Ok(())
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
                // Of a removal nothing is left to tell; another place of the name is not this one's affair.
                None => {
                    self.forget_at(&row.key, *place);
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
        let wanted = |number: usize| {
            let (row, from, ..) = &read[number];
            let now = self.index.read().get(&row.key);
            if row.removed { now.is_none() } else { now == Some(*from) }
        };
        self.log.append(&records, wanted, |number, to, target| {
            let (row, from, ..) = &read[number];
            if !row.removed && self.index.write().relocate(&row.key, *from, to) {
                target.live.fetch_add(u64::from(to.length()), Ordering::Relaxed);
                moved += 1;
            }
        })?;
        Ok(moved)
    }
}

/// Whether what is used so may be evicted, `pressed` when without it there would be no room.
fn goes(usage: Use, pressed: bool) -> bool {
    match usage {
        Use::Recent => false,
        Use::Restored | Use::Referenced => pressed,
        Use::Idle => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EntryName, Options};

    fn open(root: &std::path::Path) -> Arc<Store> {
        Arc::new(Store::open(root, Options { free_bytes_min: 0, ..Options::default() }).unwrap())
    }

    /// Every record of the segment that has just been closed, as a sweep reads them before it moves them.
    fn read(store: &Store) -> (Arc<Segment>, Vec<(Row, Place)>) {
        let number = store.log.turn().unwrap();
        let segment = store.log.segment(number).unwrap();
        let rows = segment.rows().unwrap();
        let placed = rows.into_iter().map(|row| (row, row.place(number))).collect();
        (segment, placed)
    }

    #[test]
    fn what_was_overtaken_since_it_was_read_is_not_written_behind_what_overtook_it() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let name = EntryName::path("", "name").unwrap();
        store.put_path(&name, b"old").unwrap();
        let removed = store.put_bytes(b"removed and stored anew").unwrap();
        store.forget(&Key::of_blob(&removed));
        let (segment, rows) = read(&store);
        assert_eq!(rows.len(), 3);
        store.put_path(&name, b"new").unwrap();
        store.put_bytes(b"removed and stored anew").unwrap();
        assert_eq!(store.move_records(&segment, &rows).unwrap(), 0);
        drop(store);
        let store = open(root.path());
        assert_eq!(store.get_path(&name).unwrap().unwrap(), "new");
        assert!(store.contains(&removed));
    }

    #[test]
    fn an_eviction_looks_at_what_it_evicts_however_much_the_store_holds() {
        // Of records that nothing needs, and of those that were all used lately but for the oldest.
        for used in [false, true] {
            let costs = [1_000, 100_000].map(|count: u32| {
                let root = tempfile::tempdir().unwrap();
                let options = Options { free_bytes_min: 0, keep_s: 0, segment_bytes: 16 << 10, ..Options::default() };
                let store = Arc::new(Store::open(root.path(), options).unwrap());
                let blobs: Vec<[u8; 4]> = (0..count).map(u32::to_le_bytes).collect();
                let named: Vec<(Digest, &[u8])> = blobs.iter().map(|blob| (Digest::of(blob), &blob[..])).collect();
                for some in named.chunks(100) {
                    assert!(store.put_many(some).iter().all(Result::is_ok));
                }
                let digests: Vec<Digest> = named.iter().map(|(digest, _)| *digest).collect();
                if used {
                    assert!(store.find_missing(&digests[500..]).unwrap().is_empty());
                }
                let low = store.used_bytes() - (32 << 10);
                let done = store.evict_to(low, low).unwrap();
                assert!((300..700).contains(&done.records), "{done:?}");
                // Looked at to see whether it pays, and once more to empty the segment.
                assert_eq!(done.examined, 2 * (done.records + done.moved), "{done:?}");
                assert!(done.moved < done.records, "{done:?}");
                done.examined
            });
            assert_eq!(costs[0], costs[1]);
        }
    }

    #[test]
    fn damage_that_was_seen_before_a_blob_was_stored_anew_does_not_remove_it() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let digest = store.put_bytes(b"blob").unwrap();
        let key = Key::of_blob(&digest);
        let place = store.index.read().get(&key).unwrap();
        assert!(store.forget_at(&key, place));
        store.put_bytes(b"blob").unwrap();
        assert!(!store.forget_at(&key, place));
        assert_eq!(store.get_bytes(&digest, 100).unwrap(), "blob");
        drop(store);
        assert!(open(root.path()).contains(&digest));
    }
}
