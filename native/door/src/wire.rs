//! The few messages that are read and written by hand, because they are the ones that a build is made of. Whatever is not
//! in the shape that every client sends is left to the generated code.

use buildnet_formats::quick::{digest_of, raw_digest, take_bytes, take_u8, take_varint};
use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, Function, NativeError};
use buildnet_raw::{FRAME_BYTES, frame_of};
use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;

use crate::codec::decode;
use crate::rope::Rope;
use crate::status::status_of;

/// Digests of FindMissingBlobs without an allocation for each hash.
pub(crate) struct FindMissing {
    pub(crate) instance: String,
    pub(crate) digests: Vec<Digest>,
}

impl FindMissing {
    pub(crate) fn decode(body: &Bytes) -> Result<Self, Status> {
        Self::quick(body).map_or_else(|| Self::general(body), |found| found.map_err(|e| status_of(&e)))
    }

    fn quick(body: &[u8]) -> Option<Result<Self, NativeError>> {
        let mut rest = body;
        let mut raw: Vec<(&[u8], i64)> = Vec::with_capacity(body.len() / 72 + 1);
        let (mut instance, mut number) = ("", 0);
        while !rest.is_empty() {
            match take_u8(&mut rest)? {
                0x0a => instance = std::str::from_utf8(take_bytes(&mut rest)?).ok()?,
                0x12 => raw.push(raw_digest(take_bytes(&mut rest)?)?),
                0x18 => number = i32::try_from(take_varint(&mut rest)?).ok()?,
                _ => return None,
            }
        }
        let digests = Function::of_message(number)
            .and_then(|function| raw.into_iter().map(|(hash, size)| digest_of(function, hash, size)).collect());
        Some(digests.map(|digests| Self { instance: instance.to_owned(), digests }))
    }

    fn general(body: &Bytes) -> Result<Self, Status> {
        let request: re::FindMissingBlobsRequest = decode(body.clone())?;
        let parse = || {
            let function = Function::of_message(request.digest_function)?;
            let parsed = request.blob_digests.iter().map(|message| Digest::from_message_by(function, message));
            parsed.collect::<Result<Vec<Digest>, NativeError>>()
        };
        let digests = parse().map_err(|e| status_of(&e))?;
        Ok(Self { instance: request.instance_name, digests })
    }
}

/// GetActionResult that asks for nothing inside the result.
pub(crate) struct GetResult<'a> {
    pub(crate) instance: &'a str,
    /// Told once the caller is known to have the right.
    pub(crate) action: Result<Digest, NativeError>,
}

impl<'a> GetResult<'a> {
    /// None of a request that asks for more, or is not in the shape that every client sends.
    pub(crate) fn decode(body: &'a [u8]) -> Option<Self> {
        let mut rest = body;
        let (mut instance, mut action, mut number) = ("", None, 0);
        while !rest.is_empty() {
            match take_u8(&mut rest)? {
                0x0a => instance = std::str::from_utf8(take_bytes(&mut rest)?).ok()?,
                0x12 if action.is_none() => action = Some(raw_digest(take_bytes(&mut rest)?)?),
                0x30 => number = i32::try_from(take_varint(&mut rest)?).ok()?,
                _ => return None,
            }
        }
        let (hash, size) = action?;
        let action = Function::of_message(number).and_then(|function| digest_of(function, hash, size));
        Some(Self { instance, action })
    }
}

/// UpdateActionResult with the result's exact bytes, which are decoded once and elsewhere.
pub(crate) struct UpdateResult {
    pub(crate) instance: String,
    /// Told once the caller is known to have the right.
    pub(crate) action: Result<Digest, NativeError>,
    /// None when the field is not set.
    pub(crate) result: Option<Bytes>,
}

impl UpdateResult {
    pub(crate) fn decode(body: &Bytes) -> Result<Self, Status> {
        Self::quick(body).map_or_else(|| Self::general(body), Ok)
    }

    fn quick(body: &Bytes) -> Option<Self> {
        let mut rest = body.as_ref();
        let (mut instance, mut action, mut result, mut number) = ("", None, None, 0);
        while !rest.is_empty() {
            match take_u8(&mut rest)? {
                0x0a => instance = std::str::from_utf8(take_bytes(&mut rest)?).ok()?,
                0x12 if action.is_none() => action = Some(raw_digest(take_bytes(&mut rest)?)?),
                0x1a if result.is_none() => result = Some(body.slice_ref(take_bytes(&mut rest)?)),
                // The policy's one field, a priority, is of no use here.
                0x22 => drop(take_bytes(&mut rest)?),
                0x28 => number = i32::try_from(take_varint(&mut rest)?).ok()?,
                _ => return None,
            }
        }
        let (hash, size) = action?;
        let action = Function::of_message(number).and_then(|function| digest_of(function, hash, size));
        Some(Self { instance: instance.to_owned(), action, result })
    }

    fn general(body: &Bytes) -> Result<Self, Status> {
        let result = exact_field(body.clone(), 3)?;
        let request: re::UpdateActionResultRequest = decode(body.clone())?;
        let action = Function::of_message(request.digest_function)
            .and_then(|function| Digest::required_by(function, request.action_digest.as_ref(), "action_digest"));
        Ok(Self { instance: request.instance_name, action, result })
    }
}

/// A WriteRequest whose data stays in the pieces that came from the network.
pub(crate) struct WriteRequest {
    pub(crate) resource_name: String,
    pub(crate) write_offset: i64,
    pub(crate) finish_write: bool,
    pub(crate) data: Rope,
}

impl WriteRequest {
    pub(crate) fn decode(mut message: Rope) -> Result<Self, Status> {
        if let Some(found) = Self::quick(&mut message) {
            return Ok(found);
        }
        let request: buildnet_formats::wire::google::bytestream::WriteRequest = decode(message.into_bytes())?;
        Ok(Self {
            resource_name: request.resource_name,
            write_offset: request.write_offset,
            finish_write: request.finish_write,
            data: Rope::from(request.data),
        })
    }

    /// Fields in the order of their numbers, all before the data within the first piece.
    fn quick(message: &mut Rope) -> Option<Self> {
        let whole = message.len();
        let first = message.first();
        let mut rest = first;
        let mut found =
            Self { resource_name: String::new(), write_offset: 0, finish_write: false, data: Rope::default() };
        while !rest.is_empty() {
            match take_u8(&mut rest)? {
                0x0a => found.resource_name = std::str::from_utf8(take_bytes(&mut rest)?).ok()?.to_owned(),
                0x10 => found.write_offset = take_varint(&mut rest)?.cast_signed(),
                0x18 => found.finish_write = take_varint(&mut rest)? != 0,
                0x52 => {
                    let length = usize::try_from(take_varint(&mut rest)?).ok()?;
                    let before = first.len() - rest.len();
                    if before + length != whole {
                        return None;
                    }
                    message.advance(before);
                    found.data = std::mem::take(message);
                    return Some(found);
                }
                _ => return None,
            }
        }
        (first.len() == whole).then_some(found)
    }
}

/// A framed message.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(FRAME_BYTES + length);
    bytes.extend_from_slice(&frame_of(length));
    // A Vec takes whatever is put into it.
    let _ = message.encode(&mut bytes);
    Bytes::from(bytes)
}

/// The exact bytes of a length-delimited field, so that what a client hashed or signed is stored as it came.
pub(crate) fn exact_field(mut body: Bytes, tag: u32) -> Result<Option<Bytes>, Status> {
    let malformed = |_| Status::invalid_argument("the request cannot be decoded");
    let mut found = None;
    while body.has_remaining() {
        let (here, wire) = decode_key(&mut body).map_err(malformed)?;
        if here != tag || wire != WireType::LengthDelimited {
            skip_field(wire, here, &mut body, DecodeContext::default()).map_err(malformed)?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut body).map_err(malformed)?).unwrap_or(usize::MAX);
        if length > body.remaining() {
            return Err(Status::invalid_argument("the request is truncated"));
        }
        if found.replace(body.split_to(length)).is_some() {
            return Err(Status::invalid_argument("a field of the request is given twice"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::encode;
    use buildnet_formats::wire::google::bytestream as bs;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_exact_field_is_what_was_sent(stdout: Vec<u8>, instance in "[a-z]{0,5}") {
            let result = re::ActionResult { stdout_raw: stdout.into(), exit_code: 3, ..Default::default() };
            let request = re::UpdateActionResultRequest {
                instance_name: instance,
                action_result: Some(result.clone()),
                ..Default::default()
            };
            prop_assert_eq!(exact_field(encode(&request), 3).unwrap().unwrap(), encode(&result));
        }

        #[test]
        fn a_plain_get_is_read_as_the_generated_code_reads_it(
            instance in "[a-z/]{0,9}", data: Vec<u8>, function in 0i32..11, out: bool
        ) {
            let request = re::GetActionResultRequest {
                instance_name: instance.clone(), action_digest: Some(Digest::of(&data).to_message()),
                inline_stdout: out, digest_function: function, ..Default::default()
            };
            let body = encode(&request);
            match GetResult::decode(&body) {
                None => prop_assert!(out),
                Some(quick) => {
                    let general = Function::of_message(function)
                        .and_then(|f| Digest::required_by(f, request.action_digest.as_ref(), "action_digest"));
                    prop_assert!(!out);
                    prop_assert_eq!(quick.action.ok(), general.ok());
                    prop_assert_eq!(quick.instance, instance);
                }
            }
        }

        #[test]
        fn the_exact_result_is_read_either_way(
            stdout: Vec<u8>, instance in "[a-z]{0,5}", function in 0i32..11, priority: i32, set: bool
        ) {
            let result = re::ActionResult { stdout_raw: stdout.into(), exit_code: 3, ..Default::default() };
            let request = re::UpdateActionResultRequest {
                instance_name: instance,
                action_digest: Some(Digest::of(b"action").to_message()),
                action_result: set.then(|| result.clone()),
                results_cache_policy: Some(re::ResultsCachePolicy { priority }),
                digest_function: function,
            };
            let body = encode(&request);
            let (quick, general) = (UpdateResult::quick(&body).unwrap(), UpdateResult::general(&body));
            let general = general.unwrap();
            prop_assert_eq!((&quick.instance, quick.action.ok()), (&general.instance, general.action.ok()));
            prop_assert_eq!(&quick.result, &general.result);
            prop_assert_eq!(quick.result, set.then(|| encode(&result)));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = UpdateResult::decode(&bytes.clone().into());
            let _ = exact_field(bytes.clone().into(), 3);
            let _ = FindMissing::decode(&bytes.clone().into());
            let _ = WriteRequest::decode(Rope::from(Bytes::from(bytes)));
        }

        #[test]
        fn the_quick_way_and_the_general_one_agree(
            data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..5),
            instance in "[a-z]{0,5}", function in 0i32..11, wrong: bool
        ) {
            let mut digests: Vec<re::Digest> = data.iter().map(|d| Digest::of(d).to_message()).collect();
            if let (true, Some(first)) = (wrong, digests.first_mut()) {
                first.hash = first.hash.to_uppercase();
            }
            let request = re::FindMissingBlobsRequest {
                instance_name: instance, blob_digests: digests, digest_function: function,
            };
            let body = encode(&request);
            let (quick, general) = (FindMissing::quick(&body).unwrap(), FindMissing::general(&body));
            prop_assert_eq!(quick.is_ok(), general.is_ok());
            if let (Ok(quick), Ok(general)) = (quick, general) {
                prop_assert_eq!((quick.instance, quick.digests), (general.instance, general.digests));
            }
        }

        #[test]
        fn a_write_request_is_read_from_pieces(
            name in "[a-z/]{0,30}", offset in 0i64.., finish: bool, data: Vec<u8>, cuts in proptest::collection::vec(1usize..40, 0..4)
        ) {
            let request = bs::WriteRequest {
                resource_name: name.clone(), write_offset: offset, finish_write: finish, data: data.clone().into(),
            };
            let mut bytes = encode(&request);
            let mut rope = Rope::default();
            for cut in cuts {
                rope.push(bytes.split_to(cut.min(bytes.len())));
            }
            rope.push(bytes);
            let read = WriteRequest::decode(rope).unwrap();
            prop_assert_eq!((read.resource_name, read.write_offset, read.finish_write), (name, offset, finish));
            prop_assert_eq!(read.data.into_bytes(), data);
        }
    }
}
