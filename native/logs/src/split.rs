//! A message that is a piece of a log, parted into what is decoded and the data, whose bytes stay where they are. Who sends it
//! puts the data last; what is in another shape is left to the generated code.

use buildnet_formats::quick::{take_bytes, take_varint};
use buildnet_formats::wire::buildnet::v1::join_request::Message as Said;
use buildnet_formats::wire::buildnet::v1::{JoinRequest, LogChunk, LogRecord};
use buildnet_raw::Message;
use prost::{DecodeError, Message as _};

const VARINT: u64 = 0;
const LENGTH: u64 = 2;
/// JoinRequest.log, LogChunk.data and LogRecord.data.
const LOG: u64 = 4;
const CHUNK_DATA: u64 = 4;
const RECORD_DATA: u64 = 3;

/// What stands before the field `last`, and its bytes, where those are the rest of the message.
fn parted(message: &Message, last: u64) -> Option<(&[u8], Message)> {
    let first: &[u8] = message.pieces().first()?;
    let mut rest = first;
    loop {
        let head = &first[..first.len() - rest.len()];
        let tag = take_varint(&mut rest)?;
        match (tag >> 3, tag & 7) {
            (field, LENGTH) if field == last => {
                let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                let begin = first.len() - rest.len();
                let whole = length == message.len() - begin;
                return whole.then(|| (head, message.slice(begin, message.len())));
            }
            (_, VARINT) => drop(take_varint(&mut rest)?),
            (_, LENGTH) => drop(take_bytes(&mut rest)?),
            _ => return None,
        }
    }
}

/// The piece of a log that a JoinRequest is, with its data apart; None where it is anything else.
pub fn chunk_of(message: &Message) -> Option<(LogChunk, Message)> {
    if let Some(([], log)) = parted(message, LOG)
        && let Some((head, data)) = parted(&log, CHUNK_DATA)
    {
        return Some((LogChunk::decode(head).ok()?, data));
    }
    match JoinRequest::decode(message.joined()).ok()?.message? {
        Said::Log(mut chunk) => {
            let data = std::mem::take(&mut chunk.data).into();
            Some((chunk, data))
        }
        _ => None,
    }
}

/// A LogRecord with its data apart.
///
/// # Errors
/// It is none.
pub fn record_of(message: &Message) -> Result<(LogRecord, Message), DecodeError> {
    if let Some((head, data)) = parted(message, RECORD_DATA) {
        return Ok((LogRecord::decode(head)?, data));
    }
    let mut record = LogRecord::decode(message.joined())?;
    let data = std::mem::take(&mut record.data).into();
    Ok((record, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildnet_formats::wire::buildnet::v1::Accepted;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn in_pieces(bytes: &[u8], size: usize) -> Message {
        let mut message = Message::default();
        for piece in bytes.chunks(size) {
            message.push(Bytes::copy_from_slice(piece));
        }
        message
    }

    fn joined((chunk, data): (LogChunk, Message)) -> LogChunk {
        LogChunk { data: data.joined(), ..chunk }
    }

    /// As a worker writes it: the data behind everything else.
    fn data_last(chunk: &LogChunk) -> Vec<u8> {
        let mut log = LogChunk { data: Bytes::new(), ..chunk.clone() }.encode_to_vec();
        prost::encoding::bytes::encode(4, &chunk.data, &mut log);
        let mut message = Vec::new();
        prost::encoding::bytes::encode(4, &log, &mut message);
        message
    }

    proptest! {
        #[test]
        fn a_chunk_is_what_the_generated_code_reads(
            fence: u64, stream: i32, offset: u64, at: Option<(i64, i32)>, data: Vec<u8>, size in 1usize..600
        ) {
            let printed_at = at.map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos });
            let chunk = LogChunk { fence, stream, offset, data: data.into(), printed_at };
            let plain = JoinRequest { message: Some(Said::Log(chunk.clone())) }.encode_to_vec();
            for bytes in [plain, data_last(&chunk)] {
                prop_assert_eq!(chunk_of(&in_pieces(&bytes, size)).map(joined), Some(chunk.clone()));
            }
        }

        #[test]
        fn a_record_is_what_the_generated_code_reads(bytes: Vec<u8>, size in 1usize..9) {
            let read = record_of(&in_pieces(&bytes, size)).map(|(record, data)| LogRecord { data: data.joined(), ..record });
            prop_assert_eq!(read.ok(), LogRecord::decode(&bytes[..]).ok());
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, size in 1usize..9) {
            let known = match JoinRequest::decode(&bytes[..]).ok().and_then(|request| request.message) {
                Some(Said::Log(chunk)) => Some(chunk),
                _ => None,
            };
            prop_assert_eq!(chunk_of(&in_pieces(&bytes, size)).map(joined), known);
        }
    }

    #[test]
    fn data_is_shared() {
        let chunk = LogChunk { fence: 3, stream: 2, offset: 9, data: vec![7; 1 << 20].into(), printed_at: None };
        let whole = Bytes::from(data_last(&chunk));
        let mut message = Message::from(whole.slice(..70_000));
        message.push(whole.slice(70_000..));
        let (_, data) = chunk_of(&message).unwrap();
        let shared = |piece: &Bytes| whole.as_ptr_range().contains(&piece.as_ptr());
        assert!(data.pieces().len() == 2 && data.pieces().iter().all(shared), "no copy");
    }

    #[test]
    fn what_is_no_log_is_none() {
        let other = JoinRequest { message: Some(Said::Accepted(Accepted { fence: 3 })) }.encode_to_vec();
        for message in [Bytes::new(), other.into(), Bytes::from_static(b"\x22\xff\xff")] {
            assert_eq!(chunk_of(&message.into()), None);
        }
    }
}
