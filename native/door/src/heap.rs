//! What the allocator of this process is told and asked. When memory is given back is not decided here.

/// More than network threads were no quicker, and took 17 MiB more on two processors (`bench.peers`). The allocator heeds it
/// while fewer than eight heaps are in use.
#[cfg(target_env = "gnu")]
const HEAPS_MIN: usize = 2;

/// Have threads share a few heaps: each keeps what its busiest moment took, and disk work comes and goes on many threads.
#[cfg(target_env = "gnu")]
pub(crate) fn few_heaps(threads: usize) {
    let heaps = i32::try_from(threads.max(HEAPS_MIN)).unwrap_or(i32::MAX);
    // SAFETY: mallopt takes no pointer; where it refuses, the allocator's own limit stays (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, heaps);
    }
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn few_heaps(_threads: usize) {}

/// What the allocator holds and nobody uses.
#[cfg(target_env = "gnu")]
pub(crate) fn unused_bytes() -> usize {
    // SAFETY: mallinfo2 takes nothing and only counts (mallinfo(3)).
    unsafe { libc::mallinfo2() }.fordblks
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn unused_bytes() -> usize {
    0
}

/// Pages that this process took from the system so far.
pub(crate) fn taken_pages() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills a struct of ours; one of zeros is valid too.
    unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    }
    .ru_minflt
}

/// Give what nobody uses back to the system.
#[cfg(target_env = "gnu")]
pub(crate) fn trim() {
    // SAFETY: malloc_trim takes no pointer and may be called from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_written_are_counted() {
        let before = taken_pages();
        let bytes = vec![1u8; 16 << 20];
        assert!(std::hint::black_box(bytes).iter().all(|byte| *byte == 1));
        assert!(taken_pages() > before);
        trim();
    }
}
