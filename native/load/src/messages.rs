//! Requests built once and patched in place, and replies taken apart. A reply that is not one gRPC message is refused.

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_formats::wire::google::longrunning::{Operation, operation};
pub use buildnet_raw::FRAME_BYTES;
use buildnet_raw::frame_of;
use bytes::Bytes;
use prost::Message;
use prost_types::Any;

use crate::content::{HASH_CHARS, Hash, KEPT, TAIL_BYTES, Tail, Template, tail};

/// Blobs in one batch.
pub const BATCH_BLOBS: usize = 10;
/// Size of the actions that are never there, by which the floor knows them.
pub const MISS_SIZE_BYTES: i64 = 99;
/// Size of the actions that have a result.
pub const ACTION_SIZE_BYTES: usize = 142;
/// Bytes of a blob in one WriteRequest.
pub const WRITE_CHUNK_BYTES: usize = 1 << 20;
/// Size of the blobs that the result refers to.
pub const OUTPUT_SIZE_BYTES: usize = 4 << 10;
/// How many of them there are.
pub const OUTPUTS: u64 = 3;

const UUID_CHARS: usize = 36;
const UUID: &str = "00000000-0000-4000-8000-000000000000";

/// A message after its prefix, as it goes over the wire.
pub fn framed(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(FRAME_BYTES + length);
    bytes.extend_from_slice(&frame_of(length));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

/// The one message of a unary reply.
///
/// # Errors
/// It is compressed, short, or more than one.
pub fn unframed(reply: &Bytes) -> Result<Bytes, String> {
    let Some((prefix, rest)) = reply.split_first_chunk::<FRAME_BYTES>() else {
        return Err(format!("a reply of {} bytes", reply.len()));
    };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if prefix[0] != 0 || length != rest.len() {
        return Err(format!("a message of {length} bytes, flag {}, in a reply of {}", prefix[0], reply.len()));
    }
    Ok(reply.slice(FRAME_BYTES..))
}

/// A digest as the wire has it.
pub fn digest(hash: &Hash, size: usize) -> re::Digest {
    re::Digest { hash: text(hash), size_bytes: i64::try_from(size).unwrap_or(i64::MAX) }
}

/// A hash as text.
pub fn text(hash: &Hash) -> String {
    String::from_utf8_lossy(hash).into_owned()
}

/// The result of every action: two files and a log, all of which must be there for it to be returned.
pub fn action_result() -> re::ActionResult {
    let template = Template::new(OUTPUT_SIZE_BYTES);
    let output = |number: u64| Some(digest(&template.hash(&tail(KEPT, number)), OUTPUT_SIZE_BYTES));
    let file = |path: &str, number| re::OutputFile {
        path: path.to_owned(),
        digest: output(number),
        is_executable: number == 0,
        ..Default::default()
    };
    re::ActionResult {
        output_files: vec![file("out/program", 0), file("out/program.d", 1)],
        stdout_digest: output(2),
        execution_metadata: Some(re::ExecutedActionMetadata { worker: "load".to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

/// The operation of an action with that result, which was cached.
pub fn executed() -> Operation {
    let response = re::ExecuteResponse { result: Some(action_result()), cached_result: true, ..Default::default() };
    let response = Any {
        type_url: "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse".to_owned(),
        value: response.encode_to_vec(),
    };
    let name = format!("operations/cached-0-{}", "0".repeat(HASH_CHARS));
    Operation { name, done: true, result: Some(operation::Result::Response(response)), ..Default::default() }
}

/// A unary request that names digests, where each digest's hash is, and where the tail of its blob is, if it is there.
pub struct Pattern {
    bytes: Vec<u8>,
    places: Vec<(usize, Option<usize>)>,
}

impl Pattern {
    /// From a message that holds each of `hashes`, and from then on the blob that ends in its tail.
    ///
    /// # Errors
    /// A hash or a tail that the message does not hold.
    pub fn new(message: &impl Message, held: &[(Hash, Option<Tail>)]) -> Result<Self, String> {
        let bytes = framed(message);
        let mut places = Vec::with_capacity(held.len());
        let mut from = 0;
        for (hash, tail) in held {
            let hash_at = find(&bytes, from, hash)?;
            from = hash_at + HASH_CHARS;
            let tail_at = tail.map(|tail| find(&bytes, from, &tail)).transpose()?;
            from = tail_at.map_or(from, |at| at + TAIL_BYTES);
            places.push((hash_at, tail_at));
        }
        Ok(Self { bytes, places })
    }

    /// The request for other digests: `next` gives the hash, and the tail.
    pub fn with(&self, mut next: impl FnMut() -> (Hash, Tail)) -> Bytes {
        let mut bytes = self.bytes.clone();
        for (hash_at, tail_at) in &self.places {
            let (hash, tail) = next();
            bytes[*hash_at..hash_at + HASH_CHARS].copy_from_slice(&hash);
            if let Some(tail_at) = tail_at {
                bytes[*tail_at..tail_at + TAIL_BYTES].copy_from_slice(&tail);
            }
        }
        Bytes::from(bytes)
    }
}

/// The messages of one ByteStream.Write. All but the first and the last are shared between uploads, not copied.
pub struct Upload {
    messages: Vec<Bytes>,
    uuid_at: usize,
    hash_at: usize,
}

impl Upload {
    /// For blobs of `template`.
    ///
    /// # Errors
    /// Never, short of a fault of the encoder.
    pub fn new(instance: &str, template: &Template) -> Result<Self, String> {
        let placeholder = [b'#'; HASH_CHARS];
        let name = format!("{instance}uploads/{UUID}/blobs/{}/{}", text(&placeholder), template.size());
        let mut messages = Vec::new();
        for offset in (0..template.size()).step_by(WRITE_CHUNK_BYTES) {
            let end = (offset + WRITE_CHUNK_BYTES).min(template.size());
            messages.push(Bytes::from(framed(&bs::WriteRequest {
                resource_name: if offset == 0 { name.clone() } else { String::new() },
                write_offset: i64::try_from(offset).map_err(|e| e.to_string())?,
                finish_write: end == template.size(),
                data: template.bytes().slice(offset..end),
            })));
        }
        let uuid_at = find(&messages[0], 0, UUID.as_bytes())?;
        let hash_at = find(&messages[0], uuid_at, &placeholder)?;
        Ok(Self { messages, uuid_at, hash_at })
    }

    /// The upload of one blob; `mixed` makes its name its own.
    pub fn with(&self, hash: &Hash, tail: &Tail, mixed: [u64; 2]) -> Vec<Bytes> {
        let mut messages = self.messages.clone();
        let mut first = messages[0].to_vec();
        first[self.uuid_at..self.uuid_at + UUID_CHARS].copy_from_slice(&uuid(mixed));
        first[self.hash_at..self.hash_at + HASH_CHARS].copy_from_slice(hash);
        messages[0] = Bytes::from(first);
        if let Some(last) = messages.last_mut() {
            let mut bytes = last.to_vec();
            // Data is the field with the highest number, so the tail of the blob is the tail of the message.
            let at = bytes.len() - TAIL_BYTES;
            bytes[at..].copy_from_slice(tail);
            *last = Bytes::from(bytes);
        }
        messages
    }
}

fn uuid(mixed: [u64; 2]) -> [u8; UUID_CHARS] {
    let mut uuid = [0; UUID_CHARS];
    uuid.copy_from_slice(UUID.as_bytes());
    let mut bits = (u128::from(mixed[0]) << 64) | u128::from(mixed[1]);
    for place in &mut uuid {
        if *place == b'0' {
            *place = b"0123456789abcdef"[(bits & 15) as usize];
            bits >>= 4;
        }
    }
    uuid
}

fn find(bytes: &[u8], from: usize, needle: &[u8]) -> Result<usize, String> {
    let at = bytes[from..].windows(needle.len()).position(|window| window == needle);
    at.map(|at| from + at).ok_or_else(|| "a request lacks what is to be patched".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::ABSENT;
    use proptest::prelude::*;

    #[test]
    fn an_upload_is_the_blob_under_its_name() {
        let template = Template::new(2 * WRITE_CHUNK_BYTES + 100);
        let upload = Upload::new("i/", &template).unwrap();
        let tail = tail(ABSENT, 9);
        let hash = template.hash(&tail);
        let sent = upload.with(&hash, &tail, [1, 2]);
        let mut data = Vec::new();
        for message in &sent {
            let request = bs::WriteRequest::decode(unframed(message).unwrap()).unwrap();
            assert_eq!(request.write_offset as usize, data.len());
            assert_eq!(request.finish_write, data.len() + request.data.len() == template.size());
            if data.is_empty() {
                assert!(request.resource_name.starts_with("i/uploads/"));
                assert!(request.resource_name.ends_with(&format!("/blobs/{}/{}", text(&hash), template.size())));
            }
            data.extend_from_slice(&request.data);
        }
        assert_eq!(data, template.blob(&tail));
    }

    #[test]
    fn a_pattern_is_patched_in_each_place() {
        let template = Template::new(100);
        let request = |numbers: [u64; 2]| re::BatchUpdateBlobsRequest {
            requests: numbers
                .map(|number| re::batch_update_blobs_request::Request {
                    digest: Some(digest(&template.hash(&tail(ABSENT, number)), 100)),
                    data: template.blob(&tail(ABSENT, number)),
                    ..Default::default()
                })
                .to_vec(),
            ..Default::default()
        };
        let held = [7, 8].map(|number| (template.hash(&tail(ABSENT, number)), Some(tail(ABSENT, number))));
        let pattern = Pattern::new(&request([7, 8]), &held).unwrap();
        let mut number = 20;
        let patched = pattern.with(|| {
            number += 1;
            (template.hash(&tail(ABSENT, number)), tail(ABSENT, number))
        });
        assert_eq!(patched, framed(&request([21, 22])));
    }

    proptest! {
        #[test]
        fn any_reply_is_answered(bytes: Vec<u8>) {
            if let Ok(message) = unframed(&Bytes::from(bytes.clone())) {
                prop_assert_eq!(message.len() + FRAME_BYTES, bytes.len());
            }
        }
    }
}
