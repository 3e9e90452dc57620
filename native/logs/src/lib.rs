//! A log's bytes between its files and its messages: they are read once, and handed on without a copy. Who may have them,
//! in which order and from where is decided elsewhere.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod buffers;
mod keep;
mod split;
mod spool;

use std::fs::File;
use std::io;

use bytes::Bytes;

pub use keep::{Spooled, keep};
pub use split::{chunk_of, record_of};
pub use spool::{RECORD_HEADER_BYTES, Record, append, records};

/// `head`, and behind it `size_bytes` of `file` from `offset` on; fewer where the file ends before.
///
/// # Errors
/// The file cannot be read.
pub fn message_from(head: &[u8], file: &File, offset: u64, size_bytes: usize) -> io::Result<Bytes> {
    buffers::filled(head.len() + size_bytes, |buffer| {
        let (front, rest) = buffer.split_at_mut(head.len());
        front.copy_from_slice(head);
        Ok(head.len() + buffers::read_at(file, rest, offset)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_message_is_its_head_and_what_the_file_has() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello world").unwrap();
        assert_eq!(message_from(b"head ", &file, 6, 5).unwrap(), "head world");
        assert_eq!(message_from(b"head ", &file, 6, 500).unwrap(), "head world");
        let large = vec![b'x'; 512 << 10];
        file.write_all(&large).unwrap();
        for _ in 0..3 {
            let read = message_from(b"h", &file, 11, large.len()).unwrap();
            assert_eq!((read[0], &read[1..]), (b'h', &large[..]));
        }
    }
}
