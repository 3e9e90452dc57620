//! Memory in huge pages for what is read at random: with 4 KiB pages each look into it walks the page table too. It changes
//! no content and no meaning; a kernel that gives no huge pages gives plain ones.

use std::alloc::Layout;
use std::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator, Global};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A huge page of x86_64 and, with pages of 4 KiB, of aarch64 (Linux, admin-guide/mm/transhuge.rst).
pub(crate) const HUGE_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 64 << 10;
/// What is smaller comes from the heap.
const MAPPED_BYTES_MIN: usize = 1 << 20;

/// Where memory comes from: mapped at a multiple of [`HUGE_BYTES`] and huge where that is asked for, or the heap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages {
    /// Whether the kernel is asked for huge pages. A page is whole once any of it is used, so small stores do without.
    pub(crate) huge: bool,
}

fn mapped_bytes(layout: Layout) -> Option<usize> {
    let mapped = layout.size() >= MAPPED_BYTES_MIN && layout.align() <= PAGE_BYTES;
    mapped.then(|| layout.size().next_multiple_of(PAGE_BYTES))
}

// SAFETY: memory is either the heap's, whose contract is its own, or a mapping of its own that stays where it is until
// `deallocate`, which is told the same layout and so takes the same way and length. A copy of the allocator is as good.
unsafe impl Allocator for Pages {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let Some(bytes) = mapped_bytes(layout) else { return Global.allocate(layout) };
        let whole = bytes + HUGE_BYTES;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that is there.
        let begin = unsafe {
            mmap_anonymous(std::ptr::null_mut(), whole, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let begin = begin.map_err(|_| AllocError)?.cast::<u8>();
        let head = begin.align_offset(HUGE_BYTES);
        // SAFETY: both ends lie in the mapping that was just made and nobody has a pointer into them: `head` is under
        // HUGE_BYTES, and both it and `bytes` are multiples of a page.
        let start = unsafe {
            let start = begin.add(head);
            // A part that cannot be given back stays reserved, and takes no memory.
            if head > 0 {
                let _ = munmap(begin.cast(), head);
            }
            if head < HUGE_BYTES {
                let _ = munmap(start.add(bytes).cast(), HUGE_BYTES - head);
            }
            if self.huge {
                // A kernel without huge pages refuses, and plain ones are right too.
                let _ = madvise(start.cast(), bytes, Advice::LinuxHugepage);
            }
            start
        };
        let start = NonNull::new(start).ok_or(AllocError)?;
        Ok(NonNull::slice_from_raw_parts(start, layout.size()))
    }

    unsafe fn deallocate(&self, start: NonNull<u8>, layout: Layout) {
        match mapped_bytes(layout) {
            // SAFETY: the caller's promise: `start` came from `allocate` with this layout.
            None => unsafe { Global.deallocate(start, layout) },
            // SAFETY: as above; the mapping has this length, and nobody uses it any more.
            Some(bytes) => {
                let unmapped = unsafe { munmap(start.as_ptr().cast(), bytes) };
                debug_assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use allocator_api2::vec::Vec;

    #[test]
    fn memory_is_aligned_writable_and_given_back() {
        let mapped =
            || std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse::<usize>();
        for (huge, words) in [(true, 1 << 20), (false, 1 << 20), (true, 3), (true, (HUGE_BYTES / 8) - 1)] {
            let mut memory: Vec<u64, Pages> = Vec::with_capacity_in(words, Pages { huge });
            memory.extend((0..words as u64).map(|word| word * 3));
            assert!(memory.iter().enumerate().all(|(at, word)| *word == at as u64 * 3));
            assert!(words < 1 << 10 || memory.as_ptr().align_offset(HUGE_BYTES) == 0);
        }
        let before = mapped().unwrap();
        for _ in 0..100 {
            drop(Vec::<u64, Pages>::with_capacity_in(1 << 20, Pages { huge: true }));
        }
        // Of 800 MiB that were mapped and given back, other tests' memory aside, nothing is left.
        assert!(mapped().unwrap() < before + (400 << 20) / 4096);
    }
}
