//! Which slot may hold a key: cells of eight bytes, found by 32 bits of the key's hash and read one after another. Pure;
//! whether a slot is the one is for who asks to say.
//!
//! A cell holds those 32 bits beside the slot's number, so that growing and removing look at no slot: in a large store
//! that would be a read of memory for each. It also makes where to look known before anything is read ([`Table::ask_for`]).

use allocator_api2::vec::Vec;

use crate::pages::{HUGE_BYTES, Pages};

const CELLS_MIN: usize = 16;

/// Cells by the upper bits of a tag; what does not fit at its home is in one of the next.
pub(crate) struct Table {
    /// The tag above, the slot's number and one below; zero where there is none.
    cells: Vec<u64, Pages>,
    /// How far a tag is shifted down to name a cell.
    shift: u32,
    length: usize,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { cells: empty(CELLS_MIN), shift: shift_of(CELLS_MIN), length: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Make room for so many more.
    pub(crate) fn reserve(&mut self, additional: usize) {
        let wanted = (self.length + additional) * 4 / 3 + 1;
        if wanted > self.cells.len() {
            self.resize(wanted.next_power_of_two());
        }
    }

    /// Every slot, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.cells.iter().filter(|cell| **cell != 0).map(|cell| slot_of(*cell))
    }

    /// Begin to bring the cells of a tag into the cache.
    pub(crate) fn ask_for(&self, tag: u32) {
        prefetch(&raw const self.cells[self.home(tag)]);
    }

    /// The cell and slot of a tag of which `is_it` says that it is the one.
    pub(crate) fn find(&self, tag: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<(usize, u32)> {
        let mut at = self.home(tag);
        loop {
            let cell = self.cells[at];
            if cell == 0 {
                return None;
            }
            if tag_of(cell) == tag && is_it(slot_of(cell)) {
                return Some((at, slot_of(cell)));
            }
            at = self.after(at);
        }
    }

    /// Put a slot in, which is not there.
    pub(crate) fn insert(&mut self, tag: u32, slot: u32) {
        // A quarter stays empty, so that a look ends soon.
        if (self.length + 1) * 4 > self.cells.len() * 3 {
            self.resize(self.cells.len() * 2);
        }
        self.place(u64::from(tag) << 32 | (u64::from(slot) + 1));
        self.length += 1;
    }

    /// Empty a cell. Those behind it that are not at home move up, so that no look ends before them.
    pub(crate) fn remove(&mut self, cell: usize) {
        let (mut hole, mut at) = (cell, cell);
        loop {
            at = self.after(at);
            let moved = self.cells[at];
            if moved == 0 {
                break;
            }
            if self.distance(self.home(tag_of(moved)), at) >= self.distance(hole, at) {
                self.cells[hole] = moved;
                hole = at;
            }
        }
        self.cells[hole] = 0;
        self.length -= 1;
    }

    fn place(&mut self, cell: u64) {
        let mut at = self.home(tag_of(cell));
        while self.cells[at] != 0 {
            at = self.after(at);
        }
        self.cells[at] = cell;
    }

    fn resize(&mut self, count: usize) {
        let before = std::mem::replace(&mut self.cells, empty(count));
        self.shift = shift_of(count);
        // Homes are in the order of tags, so that both are gone through from their beginning to their end.
        for cell in before.iter().filter(|cell| **cell != 0) {
            self.place(*cell);
        }
    }

    fn home(&self, tag: u32) -> usize {
        (tag >> self.shift) as usize
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.cells.len() - 1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.cells.len() - 1)
    }
}

/// Begin to bring a cache line nearer; it may be any address.
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and cannot fault; SSE is part of this architecture.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

fn empty(count: usize) -> Vec<u64, Pages> {
    let mut cells = Vec::with_capacity_in(count, Pages { huge: count * 8 >= HUGE_BYTES });
    cells.resize(count, 0);
    cells
}

fn shift_of(count: usize) -> u32 {
    u32::BITS - count.trailing_zeros()
}

fn tag_of(cell: u64) -> u32 {
    (cell >> 32) as u32
}

fn slot_of(cell: u64) -> u32 {
    (cell as u32).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn it_finds_what_is_in_it_whatever_collides(
            steps in proptest::collection::vec((any::<bool>(), 0u32..60), 0..400), narrow in 0u32..28
        ) {
            // Few different tags, of which many have one home; at the end of the cells they go on at the beginning.
            let tag = |slot: u32| u32::MAX - ((slot * 7 % 13) << narrow);
            let (mut table, mut model) = (Table::new(), HashMap::new());
            for (put, slot) in steps {
                let found = table.find(tag(slot), |other| other == slot);
                prop_assert_eq!(found.map(|(_, slot)| slot), model.get(&slot).copied());
                match (put, found) {
                    (true, None) => {
                        table.insert(tag(slot), slot);
                        model.insert(slot, slot);
                    }
                    (false, Some((cell, _))) => {
                        table.remove(cell);
                        model.remove(&slot);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), model.len());
            }
            let mut listed: std::vec::Vec<u32> = table.iter().collect();
            listed.sort_unstable();
            let mut wanted: std::vec::Vec<u32> = model.into_keys().collect();
            wanted.sort_unstable();
            prop_assert_eq!(listed, wanted);
        }
    }
}
