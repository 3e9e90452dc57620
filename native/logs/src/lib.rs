//! A log's bytes between its files and its messages: they are read once, and handed on without a copy. Who may have them,
//! in which order and from where is decided elsewhere.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod buffers;
mod keep;
mod spool;

use std::fs::File;
use std::io;

use buildnet_formats::wire::buildnet::v1::join_request::Message as Said;
use buildnet_formats::wire::buildnet::v1::{JoinRequest, LogChunk};
use bytes::Bytes;
use prost::Message;

pub use keep::{Spooled, keep};
pub use spool::{RECORD_HEADER_BYTES, Record, records};

/// The first byte of a JoinRequest that holds a log: field 4, of a length.
const LOG_TAG: u8 = 4 << 3 | 2;

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

/// The piece of a log that a JoinRequest is, which shares its bytes; None where it is anything else.
pub fn chunk_of(message: &Bytes) -> Option<LogChunk> {
    if message.first() != Some(&LOG_TAG) {
        return None;
    }
    match JoinRequest::decode(message.clone()).ok()?.message? {
        Said::Log(chunk) => Some(chunk),
        _ => None,
    }
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

    #[test]
    fn a_chunk_shares_the_bytes_of_its_message() {
        let data = Bytes::from(vec![7; 1 << 20]);
        let printed_at = Some(prost_types::Timestamp { seconds: 5, nanos: 6 });
        let chunk = LogChunk { fence: 3, stream: 2, offset: 9, data, printed_at };
        let message: Bytes = JoinRequest { message: Some(Said::Log(chunk.clone())) }.encode_to_vec().into();
        let found = chunk_of(&message).unwrap();
        assert_eq!(found, chunk);
        assert!(message.as_ptr_range().contains(&found.data.as_ptr()), "no copy");
    }

    #[test]
    fn what_is_no_log_is_none() {
        let accepted = buildnet_formats::wire::buildnet::v1::Accepted { fence: 3 };
        let other = JoinRequest { message: Some(Said::Accepted(accepted)) }.encode_to_vec();
        for message in [Bytes::new(), other.into(), Bytes::from_static(b"\x22\xff\xff")] {
            assert_eq!(chunk_of(&message), None);
        }
    }
}
