//! The messages of reads, written and read by hand with the bytes of a blob where they are. Whatever is not in the shape that
//! every client sends is left to the generated code.

use std::borrow::Cow;

use buildnet_formats::NativeError;
use buildnet_formats::quick::{take_bytes, take_u8, take_varint};
use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_formats::wire::google::rpc;
use buildnet_raw::{FRAME_BYTES, frame_of};
use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use tonic::Status;

use crate::codec::decode;

/// A ReadRequest whose name stays where it came.
pub(crate) struct ReadRequest<'a> {
    pub(crate) resource_name: Cow<'a, str>,
    pub(crate) offset: i64,
    pub(crate) limit: i64,
}

impl<'a> ReadRequest<'a> {
    pub(crate) fn decode(body: &'a Bytes) -> Result<Self, Status> {
        if let Some(found) = Self::quick(body) {
            return Ok(found);
        }
        let request: bs::ReadRequest = decode(body.clone())?;
        Ok(Self {
            resource_name: Cow::Owned(request.resource_name),
            offset: request.read_offset,
            limit: request.read_limit,
        })
    }

    fn quick(body: &'a [u8]) -> Option<Self> {
        let mut rest = body;
        let (mut name, mut offset, mut limit) = ("", 0, 0);
        while !rest.is_empty() {
            match take_u8(&mut rest)? {
                0x0a => name = std::str::from_utf8(take_bytes(&mut rest)?).ok()?,
                0x10 => offset = take_varint(&mut rest)?.cast_signed(),
                0x18 => limit = take_varint(&mut rest)?.cast_signed(),
                _ => return None,
            }
        }
        Some(Self { resource_name: Cow::Borrowed(name), offset, limit })
    }
}

/// What stands before the data in a framed ReadResponse: gRPC's five bytes, the field's tag and its length.
pub(crate) fn read_response_prefix(length: usize) -> ([u8; 16], usize) {
    let mut prefix = [0; 16];
    let mut tail = &mut prefix[FRAME_BYTES..];
    tail.put_u8(0x52);
    encode_varint(length as u64, &mut tail);
    let used = 16 - tail.remaining_mut();
    prefix[..FRAME_BYTES].copy_from_slice(&frame_of(used - FRAME_BYTES + length));
    (prefix, used)
}

/// What one blob takes of a reply at most, beside its digest, its data and the words of its status: tags, lengths, a code and
/// a compressor.
pub(crate) const ENTRY_BYTES_MAX: usize = 24;

/// A framed BatchReadBlobsResponse that grows by one blob at a time, each read to where it stays.
pub(crate) struct BatchReadReply {
    bytes: Vec<u8>,
    /// What the words of all statuses may take.
    words_bytes_left: usize,
}

impl BatchReadReply {
    pub(crate) fn with_capacity(bytes: usize, words_bytes_left: usize) -> Self {
        let mut reply = Vec::with_capacity(FRAME_BYTES + bytes);
        reply.resize(FRAME_BYTES, 0);
        Self { bytes: reply, words_bytes_left }
    }

    /// One blob of `size_bytes` that `read` puts at the end.
    pub(crate) fn plain(
        &mut self,
        digest: &re::Digest,
        size_bytes: u64,
        read: impl FnOnce(&mut Vec<u8>) -> Result<(), NativeError>,
    ) -> Result<(), NativeError> {
        let before = self.bytes.len();
        let (digest_length, size) = (digest.encoded_len(), usize::try_from(size_bytes).unwrap_or(usize::MAX));
        let length = prost::encoding::key_len(1) + encoded_len_varint(digest_length as u64) + digest_length;
        // The data's tag and length, and an empty status: OK.
        let length = length + 1 + encoded_len_varint(size_bytes) + size + 2;
        self.bytes.put_u8(0x0a);
        encode_varint(length as u64, &mut self.bytes);
        prost::encoding::message::encode(1, digest, &mut self.bytes);
        self.bytes.put_slice(&[0x1a, 0, 0x12]);
        encode_varint(size_bytes, &mut self.bytes);
        let start = self.bytes.len();
        let done = read(&mut self.bytes);
        if done.is_err() || self.bytes.len() != start + size {
            self.bytes.truncate(before);
        }
        done
    }

    /// One blob as zstd frames.
    pub(crate) fn packed(&mut self, digest: &re::Digest, frames: &Bytes) {
        self.put(&re::batch_read_blobs_response::Response {
            digest: Some(digest.clone()),
            data: frames.clone(),
            status: Some(rpc::Status::default()),
            compressor: re::compressor::Value::Zstd as i32,
        });
    }

    /// One blob that is not to be had. The code says why and the digest which, where there is no room for the sentence.
    pub(crate) fn refused(&mut self, digest: &re::Digest, mut status: rpc::Status) {
        // Its tag and its length are in it, and the longer lengths of what it stands in.
        let words = status.message.len() + 8;
        match self.words_bytes_left.checked_sub(words) {
            Some(left) => self.words_bytes_left = left,
            None => status.message.clear(),
        }
        self.put(&re::batch_read_blobs_response::Response {
            digest: Some(digest.clone()),
            status: Some(status),
            ..Default::default()
        });
    }

    fn put(&mut self, response: &re::batch_read_blobs_response::Response) {
        prost::encoding::message::encode(1, response, &mut self.bytes);
    }

    /// The whole message behind gRPC's five bytes.
    pub(crate) fn framed(mut self) -> Bytes {
        let frame = frame_of(self.bytes.len() - FRAME_BYTES);
        self.bytes[..FRAME_BYTES].copy_from_slice(&frame);
        self.bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::encode;
    use crate::wire::framed;
    use buildnet_formats::Digest;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = ReadRequest::decode(&bytes.into());
        }

        #[test]
        fn a_read_request_is_what_the_generated_code_reads(name in ".{0,30}", offset: i64, limit: i64) {
            let request = bs::ReadRequest { resource_name: name, read_offset: offset, read_limit: limit };
            let body = encode(&request);
            let quick = ReadRequest::quick(&body).unwrap();
            prop_assert_eq!(quick.resource_name, request.resource_name);
            prop_assert_eq!((quick.offset, quick.limit), (offset, limit));
        }

        #[test]
        fn a_batch_read_is_what_the_generated_code_reads(
            blobs in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..300), 0u8..4), 0..5)
        ) {
            let mut reply = BatchReadReply::with_capacity(0, usize::MAX);
            let mut expected = Vec::new();
            for (data, way) in &blobs {
                let (digest, data) = (Digest::of(data).to_message(), Bytes::from(data.clone()));
                let mut response = re::batch_read_blobs_response::Response {
                    digest: Some(digest.clone()), status: Some(rpc::Status::default()), ..Default::default()
                };
                match way {
                    0 => {
                        reply.packed(&digest, &data);
                        response.data = data;
                        response.compressor = re::compressor::Value::Zstd as i32;
                    }
                    1 => {
                        // What could not be read leaves nothing.
                        let broken = |out: &mut Vec<u8>| { out.push(1); Err(NativeError::internal("")) };
                        prop_assert!(reply.plain(&digest, data.len() as u64, broken).is_err());
                        let status = rpc::Status { code: 5, ..Default::default() };
                        reply.refused(&digest, status.clone());
                        response.status = Some(status);
                    }
                    _ => {
                        let read = |out: &mut Vec<u8>| { out.extend_from_slice(&data); Ok(()) };
                        reply.plain(&digest, data.len() as u64, read).unwrap();
                        response.data = data;
                    }
                }
                expected.push(response);
            }
            let framed = reply.framed();
            let read = re::BatchReadBlobsResponse::decode(framed.slice(5..)).unwrap();
            prop_assert_eq!(framed.len() - 5, u32::from_be_bytes([framed[1], framed[2], framed[3], framed[4]]) as usize);
            prop_assert_eq!(read.responses, expected);
        }

        #[test]
        fn no_entry_takes_more_than_it_may(
            blobs in proptest::collection::vec(("[0-9a-f]{0,300}", any::<i64>(), 0usize..300, 0u8..3), 0..20),
            words_bytes_left in 0usize..2000,
        ) {
            let mut reply = BatchReadReply::with_capacity(0, words_bytes_left);
            let mut least = FRAME_BYTES;
            for (hash, size_bytes, length, way) in blobs {
                let digest = re::Digest { hash, size_bytes };
                least += ENTRY_BYTES_MAX + digest.encoded_len();
                match way {
                    0 => reply.refused(&digest, rpc::Status { code: 16, message: "w".repeat(length), ..Default::default() }),
                    1 => reply.packed(&digest, &vec![0; length].into()),
                    _ => reply.plain(&digest, length as u64, |out| { out.resize(out.len() + length, 0); Ok(()) }).unwrap(),
                }
                least += if way == 0 { 0 } else { length };
            }
            prop_assert!(reply.framed().len() <= least + words_bytes_left);
        }

        #[test]
        fn the_prefix_of_a_read_is_what_the_generated_code_writes(data: Vec<u8>) {
            let (prefix, used) = read_response_prefix(data.len());
            let expected = framed(&bs::ReadResponse { data: data.clone().into() });
            if !data.is_empty() {
                prop_assert_eq!([&prefix[..used], &data].concat(), expected);
            }
        }
    }
}
