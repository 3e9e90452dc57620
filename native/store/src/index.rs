//! Where every record is, in memory: 56 bytes and a table cell each, found by hash without touching the disk. Pure: time
//! is an argument, and nothing here reads or writes a file.

use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashTable;

use crate::record::Key;

/// Slots are kept in blocks, so that growing never copies them.
const BLOCK: usize = 4096;
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
    table: HashTable<u32>,
    blocks: Vec<Vec<Slot>>,
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
        Self { table: HashTable::new(), blocks: Vec::new(), free: Vec::new(), seed: (seed.0 | 1, seed.1) }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Make room for so many more.
    pub(crate) fn reserve(&mut self, additional: usize) {
        let seed = self.seed;
        let blocks = &self.blocks;
        self.table.reserve(additional, |slot| spread(seed, &slot_at(blocks, *slot).key));
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Place> {
        self.find(key).map(|slot| slot.place)
    }

    /// Where the record is, used at `now_s`.
    pub(crate) fn touch(&self, key: &Key, now_s: u64) -> Option<Place> {
        let slot = self.find(key)?;
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
        for (group, keys) in keys.chunks(GROUP).enumerate() {
            for key in keys {
                if let Some(number) = self.table.iter_hash(spread(self.seed, key)).next() {
                    ask_for(self.slot(*number));
                }
            }
            for (place, key) in keys.iter().enumerate() {
                each(group * GROUP + place, self.touch(key, now_s).is_some());
            }
        }
    }

    /// The key of the blob with this function and hash, whatever its size.
    pub(crate) fn find_by_hash(&self, key: &Key) -> Option<Key> {
        let hash = spread(self.seed, key);
        self.table.find(hash, |slot| self.slot(*slot).key.same_hash(key)).map(|slot| self.slot(*slot).key)
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
        let hash = spread(self.seed, &key);
        if let Some(found) = self.table.find(hash, |slot| slot_at(&self.blocks, *slot).key == key) {
            let slot = &mut self.blocks[*found as usize / BLOCK][*found as usize % BLOCK];
            slot.used.store(stamp(now_s), Ordering::Relaxed);
            return Some(std::mem::replace(&mut slot.place, place));
        }
        let number = self.place_slot(Slot { key, place, used: AtomicU32::new(stamp(now_s)) });
        let (seed, blocks) = (self.seed, &self.blocks);
        self.table.insert_unique(hash, number, |slot| spread(seed, &slot_at(blocks, *slot).key));
        None
    }

    /// Move a record, unless it is no longer at `from`; its last use stays, its second chance is spent.
    pub(crate) fn relocate(&mut self, key: &Key, from: Place, to: Place) -> bool {
        let hash = spread(self.seed, key);
        let Some(found) = self.table.find(hash, |slot| slot_at(&self.blocks, *slot).key == *key) else { return false };
        let slot = &mut self.blocks[*found as usize / BLOCK][*found as usize % BLOCK];
        if slot.place != from {
            return false;
        }
        slot.place = to;
        *slot.used.get_mut() &= !REFERENCED;
        true
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Place> {
        let hash = spread(self.seed, key);
        let blocks = &self.blocks;
        let entry = self.table.find_entry(hash, |slot| slot_at(blocks, *slot).key == *key).ok()?;
        let (number, _) = entry.remove();
        self.free.push(number);
        Some(self.slot(number).place)
    }

    /// Every record, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, Place)> {
        self.table.iter().map(|number| {
            let slot = self.slot(*number);
            (&slot.key, slot.place)
        })
    }

    /// The records of one block of slots, so that who goes through all of them lets others in between; none past the end.
    pub(crate) fn block(&self, number: usize) -> Option<Vec<(Key, Place)>> {
        let slots = self.blocks.get(number)?.iter();
        // A slot that was given back still holds what was there.
        let live = slots.filter(|slot| self.get(&slot.key) == Some(slot.place));
        Some(live.map(|slot| (slot.key, slot.place)).collect())
    }

    fn find(&self, key: &Key) -> Option<&Slot> {
        let hash = spread(self.seed, key);
        self.table.find(hash, |slot| self.slot(*slot).key == *key).map(|slot| self.slot(*slot))
    }

    fn slot(&self, number: u32) -> &Slot {
        slot_at(&self.blocks, number)
    }

    fn place_slot(&mut self, slot: Slot) -> u32 {
        if let Some(number) = self.free.pop() {
            self.blocks[number as usize / BLOCK][number as usize % BLOCK] = slot;
            return number;
        }
        if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        let full = (self.blocks.len() - 1) * BLOCK;
        let last = self.blocks.len() - 1;
        self.blocks[last].push(slot);
        // Four thousand million records do not fit any memory that this runs in.
        u32::try_from(full + self.blocks[last].len() - 1).unwrap_or(u32::MAX)
    }
}

/// Begin to bring a slot into the cache.
fn ask_for(slot: &Slot) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // A slot lies on two cache lines as often as not.
        let (first, last) = (std::ptr::from_ref(slot), std::ptr::from_ref(&slot.used));
        // SAFETY: a prefetch reads nothing and cannot fault; SSE is part of this architecture.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(first.cast());
            _mm_prefetch::<_MM_HINT_T0>(last.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = slot;
}

fn slot_at(blocks: &[Vec<Slot>], number: u32) -> &Slot {
    &blocks[number as usize / BLOCK][number as usize % BLOCK]
}

/// A cell for a key: its hash is random already, unless someone chose it.
fn spread(seed: (u64, u64), key: &Key) -> u64 {
    let mut half = [0; 8];
    half.copy_from_slice(&key.hash[..8]);
    let product = u128::from(u64::from_le_bytes(half) ^ seed.1) * u128::from(seed.0);
    (product >> 64) as u64 ^ product as u64
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
