//! Where every record is, in memory: 56 bytes and a cell or two of eight each, found by hash without touching the disk. Pure:
//! time is an argument, and nothing here reads or writes a file.

use std::sync::atomic::{AtomicU32, Ordering};

use allocator_api2::vec::Vec as PageVec;

use crate::pages::{HUGE_BYTES, Pages};
use crate::record::Key;
use crate::table::{Table, prefetch};

/// Slots are kept in blocks of a huge page, so that growing never copies them.
const BLOCK: usize = HUGE_BYTES / size_of::<Slot>();
/// Slots that are listed at once.
const LISTED: usize = 4096;
const LISTS_PER_BLOCK: usize = BLOCK.div_ceil(LISTED);
const REFERENCED: u32 = 1;
/// Look-ups that wait for memory together: more than a core has misses under way, fewer than its first cache holds.
const GROUP: usize = 32;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Number of the segment.
    pub(crate) segment: u32,
    /// Of the header, in bytes from the segment's beginning.
    pub(crate) offset: u32,
    /// Bytes of header, name and payload, and in the highest bit whether the blob is a file of its own.
    length: u32,
}

const LARGE_BIT: u32 = 1 << 31;

impl Place {
    pub(crate) fn new(segment: u32, offset: u32, length: u32, large: bool) -> Self {
        Self { segment, offset, length: length & !LARGE_BIT | if large { LARGE_BIT } else { 0 } }
    }

    /// Bytes of header, name and payload.
    pub(crate) fn length(&self) -> u32 {
        self.length & !LARGE_BIT
    }

    /// Whether the record only says which file holds the blob.
    pub(crate) fn is_large(&self) -> bool {
        self.length & LARGE_BIT != 0
    }
}

struct Slot {
    key: Key,
    place: Place,
    /// Seconds of the last use, times two, plus one when it was used since it was placed.
    used: AtomicU32,
}

/// The beginning of 2020.
const EPOCH_S: u64 = 1_577_836_800;

/// Seconds since 2020: 31 bits of them last until 2088.
fn stamp(now_s: u64) -> u32 {
    u32::try_from(now_s.saturating_sub(EPOCH_S).min(u64::from(u32::MAX >> 1))).unwrap_or(0) << 1
}

/// Every record, by its key.
pub(crate) struct Index {
    table: Table,
    blocks: Vec<PageVec<Slot, Pages>>,
    free: Vec<u32>,
    seed: (u64, u64),
}

/// What an eviction may do with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Used within the time that protects it.
    Recent,
    /// Used since it was placed, but not lately.
    Referenced,
    /// Not used since the store was opened, and that was within the time that protects: it may have been used before.
    Restored,
    /// Not used since it was placed.
    Idle,
}

impl Index {
    /// An empty index; `seed` keeps those who choose hashes from choosing cells.
    pub(crate) fn new(seed: (u64, u64)) -> Self {
        Self { table: Table::new(), blocks: Vec::new(), free: Vec::new(), seed: (seed.0 | 1, seed.1) }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Make room for so many more.
    pub(crate) fn reserve(&mut self, additional: usize) {
        self.table.reserve(additional);
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Place> {
        self.find(key).map(|slot| slot.place)
    }

    /// Where the record is, used at `now_s`.
    pub(crate) fn touch(&self, key: &Key, now_s: u64) -> Option<Place> {
        self.touch_by(tag_of(self.seed, key), key, now_s)
    }

    fn touch_by(&self, tag: u32, key: &Key, now_s: u64) -> Option<Place> {
        let (_, number) = self.table.find(tag, |slot| {
            // Its key and its place are on two lines as often as not: they are waited for together.
            let slot = self.slot(slot);
            ask_for(slot);
            slot.key == *key
        })?;
        let slot = self.slot(number);
        let used = stamp(now_s) | REFERENCED;
        // Reading first keeps the cache line shared when many ask for the same record within a second.
        if slot.used.load(Ordering::Relaxed) != used {
            slot.used.store(used, Ordering::Relaxed);
        }
        Some(slot.place)
    }

    /// Tell `each` of `keys` by its number whether it is here; used at `now_s`. In a large store a look-up waits for memory
    /// and does little else: those of a group wait together.
    pub(crate) fn touch_each(&self, keys: &[Key], now_s: u64, mut each: impl FnMut(usize, bool)) {
        let mut tags = [0; GROUP];
        for (group, keys) in keys.chunks(GROUP).enumerate() {
            for (tag, key) in tags.iter_mut().zip(keys) {
                *tag = tag_of(self.seed, key);
                self.table.ask_for(*tag);
            }
            for tag in &tags[..keys.len()] {
                // The first with this tag is the one nearly always; else the look itself waits.
                if let Some((_, number)) = self.table.find(*tag, |_| true) {
                    ask_for(self.slot(number));
                }
            }
            for (place, (tag, key)) in tags.iter().zip(keys).enumerate() {
                each(group * GROUP + place, self.touch_by(*tag, key, now_s).is_some());
            }
        }
    }

    /// The key of the blob with this function and hash, whatever its size.
    pub(crate) fn find_by_hash(&self, key: &Key) -> Option<Key> {
        let found = self.table.find(tag_of(self.seed, key), |slot| self.slot(slot).key.same_hash(key));
        found.map(|(_, slot)| self.slot(slot).key)
    }

    /// When a record was last used or placed, in seconds since 1970.
    pub(crate) fn used_at_s(&self, key: &Key) -> Option<u64> {
        self.find(key).map(|slot| u64::from(slot.used.load(Ordering::Relaxed) >> 1) + EPOCH_S)
    }

    pub(crate) fn usage(&self, key: &Key, now_s: u64, recent_s: u64, opened_s: u64) -> Option<Use> {
        let used = self.find(key)?.used.load(Ordering::Relaxed);
        let age_s = u64::from(stamp(now_s).saturating_sub(used & !REFERENCED) >> 1);
        Some(match used & REFERENCED {
            0 if age_s < recent_s && used == stamp(opened_s) => Use::Restored,
            _ if age_s < recent_s => Use::Recent,
            REFERENCED => Use::Referenced,
            _ => Use::Idle,
        })
    }

    /// Take back the second chance of a record whose use is long ago.
    pub(crate) fn spend(&self, key: &Key, now_s: u64, recent_s: u64) {
        let Some(slot) = self.find(key) else { return };
        let used = slot.used.load(Ordering::Relaxed);
        if used & REFERENCED != 0 && u64::from(stamp(now_s).saturating_sub(used) >> 1) >= recent_s {
            // A use meanwhile wins.
            let _ = slot.used.compare_exchange(used, used & !REFERENCED, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Put a record where it is now; returns where it was.
    pub(crate) fn insert(&mut self, key: Key, place: Place, now_s: u64) -> Option<Place> {
        let tag = tag_of(self.seed, &key);
        if let Some((_, number)) = self.table.find(tag, |slot| self.slot(slot).key == key) {
            let slot = self.slot_mut(number);
            slot.used.store(stamp(now_s), Ordering::Relaxed);
            return Some(std::mem::replace(&mut slot.place, place));
        }
        let number = self.place_slot(Slot { key, place, used: AtomicU32::new(stamp(now_s)) });
        self.table.insert(tag, number);
        None
    }

    /// Move a record, unless it is no longer at `from`; its last use stays, its second chance is spent.
    pub(crate) fn relocate(&mut self, key: &Key, from: Place, to: Place) -> bool {
        let Some((_, number)) = self.find_cell(key) else { return false };
        let slot = self.slot_mut(number);
        if slot.place != from {
            return false;
        }
        slot.place = to;
        *slot.used.get_mut() &= !REFERENCED;
        true
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Place> {
        let (cell, number) = self.find_cell(key)?;
        self.table.remove(cell);
        self.free.push(number);
        Some(self.slot(number).place)
    }

    /// Every record, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, Place)> {
        self.table.iter().map(|number| {
            let slot = self.slot(number);
            (&slot.key, slot.place)
        })
    }

    /// The records of some slots, so that who goes through all of them lets others in between; none past the end.
    pub(crate) fn block(&self, number: usize) -> Option<Vec<(Key, Place)>> {
        let (block, first) = (number / LISTS_PER_BLOCK, number % LISTS_PER_BLOCK * LISTED);
        let slots = self.blocks.get(block)?;
        let slots = slots.get(first..slots.len().min(first + LISTED)).unwrap_or_default().iter();
        // A slot that was given back still holds what was there.
        let live = slots.filter(|slot| self.get(&slot.key) == Some(slot.place));
        Some(live.map(|slot| (slot.key, slot.place)).collect())
    }

    fn find(&self, key: &Key) -> Option<&Slot> {
        self.find_cell(key).map(|(_, number)| self.slot(number))
    }

    fn find_cell(&self, key: &Key) -> Option<(usize, u32)> {
        self.table.find(tag_of(self.seed, key), |slot| self.slot(slot).key == *key)
    }

    fn slot(&self, number: u32) -> &Slot {
        &self.blocks[number as usize / BLOCK][number as usize % BLOCK]
    }

    fn slot_mut(&mut self, number: u32) -> &mut Slot {
        &mut self.blocks[number as usize / BLOCK][number as usize % BLOCK]
    }

    fn place_slot(&mut self, slot: Slot) -> u32 {
        if let Some(number) = self.free.pop() {
            *self.slot_mut(number) = slot;
            return number;
        }
        if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
            let huge = !self.blocks.is_empty();
            self.blocks.push(PageVec::with_capacity_in(BLOCK, Pages { huge }));
        }
        let full = (self.blocks.len() - 1) * BLOCK;
        let last = self.blocks.len() - 1;
        self.blocks[last].push(slot);
        // Four thousand million records do not fit any memory that this runs in.
        u32::try_from(full + self.blocks[last].len() - 1).unwrap_or(u32::MAX)
    }
}

/// Begin to bring a slot into the cache: it lies on two lines as often as not.
fn ask_for(slot: &Slot) {
    prefetch(slot);
    prefetch(&raw const slot.used);
}

/// What a key is looked for by: its hash is random already, unless someone chose it.
fn tag_of(seed: (u64, u64), key: &Key) -> u32 {
    let mut half = [0; 8];
    half.copy_from_slice(&key.hash[..8]);
    let product = u128::from(u64::from_le_bytes(half) ^ seed.1) * u128::from(seed.0);
    (((product >> 64) as u64 ^ product as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const NOW_S: u64 = 1_800_000_000;

    fn key(number: u8) -> Key {
        Key { hash: [number; 32], what: u64::from(number) << 8 | 1 }
    }

    fn place(number: u32) -> Place {
        Place::new(number, 0, 1, false)
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0u8..3, 0u8..20, any::<u32>()), 0..200)) {
            let mut index = Index::new((1, 2));
            let mut model: HashMap<u8, u32> = HashMap::new();
            for (step, number, value) in steps {
                match step {
                    0 => {
                        let before = index.insert(key(number), place(value), NOW_S);
                        prop_assert_eq!(before, model.insert(number, value).map(place));
                    }
                    1 => prop_assert_eq!(index.remove(&key(number)), model.remove(&number).map(place)),
                    _ => prop_assert_eq!(index.touch(&key(number), NOW_S), model.get(&number).copied().map(place)),
                }
                prop_assert_eq!(index.len(), model.len());
            }
            let asked: Vec<Key> = (0..100).map(|n| key(n % 25)).collect();
            index.touch_each(&asked, NOW_S, |n, here| assert_eq!(here, model.contains_key(&asked[n].hash[0])));
            let listed: HashMap<u8, u32> =
                (0..).map_while(|n| index.block(n)).flatten().map(|(k, p)| (k.hash[0], p.segment)).collect();
            prop_assert_eq!(listed, model);
        }
    }

    #[test]
    fn a_use_protects_for_a_while_and_then_gives_one_more_chance() {
        let mut index = Index::new((1, 2));
        index.insert(key(1), place(1), NOW_S);
        assert_eq!(index.usage(&key(1), NOW_S + 5, 10, 7), Some(Use::Recent));
        assert_eq!(index.usage(&key(1), NOW_S + 10, 10, 7), Some(Use::Idle));
        index.touch(&key(1), NOW_S + 10);
        assert_eq!(index.usage(&key(1), NOW_S + 30, 10, 7), Some(Use::Referenced));
        assert!(index.relocate(&key(1), place(1), place(2)));
        assert!(!index.relocate(&key(1), place(1), place(3)));
        assert_eq!(index.usage(&key(1), NOW_S + 30, 10, 7), Some(Use::Idle));
    }
}
