//! A segment's file is filled with zeros some way ahead of its records. What it holds and where it ends is not decided here:
//! records alone say that.
//!
//! The kernel keeps what a file holds in pieces as large as the writes that first reached them. Records are small: with a
//! piece for each 4 KiB, a read in a large store looked for its piece longer than it took to copy the record, and an append
//! paid for a new piece again and again (docs/design/store.md).

use std::fs::File;
use std::io::IoSlice;

/// One step. Of this size a piece is found without the lowest level of the kernel's tree (64 pages, lib/xarray.c); of
/// larger ones ext4 walks a longer list of blocks for each write into them, and appends become slower.
pub(crate) const STEP_BYTES: u64 = 256 << 10;
const ZEROS_BYTES: usize = 4 << 10;
static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];

/// Fill a file, which is filled up to `filled`, in whole steps so far that what ends at `end` has room, but not beyond
/// `most` for it. Returns up to where it is filled then: less when the disk is full, which the write that follows is told.
pub(crate) fn fill(file: &File, mut filled: u64, end: u64, most: u64) -> u64 {
    let target = end.next_multiple_of(STEP_BYTES).min(most);
    while filled < target {
        let step = (filled + 1).next_multiple_of(STEP_BYTES).min(target);
        if !zeros(file, filled, step) {
            break;
        }
        filled = step;
    }
    filled
}

/// One call for a step: it is the length of a write that the kernel goes by.
fn zeros(file: &File, from: u64, to: u64) -> bool {
    let length = to - from;
    let mut slices = vec![IoSlice::new(&ZEROS); (length / ZEROS_BYTES as u64) as usize];
    slices.push(IoSlice::new(&ZEROS[..(length % ZEROS_BYTES as u64) as usize]));
    rustix::io::pwritev(file, &slices, from) == Ok(length as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn it_fills_whole_steps_and_nothing_that_is_there() {
        let file = tempfile::tempfile().unwrap();
        let length = || file.metadata().unwrap().len();
        file.write_all_at(b"record", 0).unwrap();
        assert_eq!(fill(&file, 6, 6, u64::MAX), STEP_BYTES);
        assert_eq!(length(), STEP_BYTES);
        assert_eq!(fill(&file, STEP_BYTES, STEP_BYTES, u64::MAX), STEP_BYTES);
        assert_eq!(fill(&file, STEP_BYTES, 2 * STEP_BYTES + 1, u64::MAX), 3 * STEP_BYTES);
        assert_eq!(fill(&file, 3 * STEP_BYTES, 3 * STEP_BYTES + 1, 3 * STEP_BYTES + 5), 3 * STEP_BYTES + 5);
        assert_eq!(length(), 3 * STEP_BYTES + 5);
        let mut bytes = vec![1; length() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes[..6], b"record");
        assert!(bytes[6..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_file_that_takes_nothing_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segment");
        std::fs::write(&path, b"record").unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(fill(&file, 6, 7, u64::MAX), 6);
        assert_eq!(std::fs::read(&path).unwrap(), b"record");
    }
}
