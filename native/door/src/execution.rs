//! Execute, as far as no decision is needed: a cached result is answered, a malformed or incomplete action refused.
//! Only an action that could run is handed on (decision 0007).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::rpc;
use buildnet_formats::{Digest, Function, NativeError};
use buildnet_raw::{FRAME_BYTES, frame_of};
use buildnet_store::Store;
use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;

use crate::access::{Caller, Right};
use crate::behind::inlined_from;
use crate::bytestream::on_disk;
use crate::codec::decode;
use crate::results::{Inline, inlined};
use crate::services::Services;
use crate::status::status_of;

pub(crate) const EXECUTE: &str = "/build.bazel.remote.execution.v2.Execution/Execute";

const METADATA: &str = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteOperationMetadata";
const RESPONSE: &str = "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteResponse";
/// Of google.longrunning.Operation.
const NAME_FIELD: u32 = 1;
const METADATA_FIELD: u32 = 2;
const DONE: [u8; 2] = [0x18, 1];
const RESPONSE_FIELD: u32 = 5;
/// Of google.protobuf.Any.
const TYPE_FIELD: u32 = 1;
const VALUE_FIELD: u32 = 2;
/// Of ExecuteResponse.result.
const RESULT_FIELD: u32 = 1;

static CACHED: AtomicU64 = AtomicU64::new(0);

/// The finished operation of an Execute, framed, when the result is cached; none when Python has to answer it, and then
/// all that the action needs is here.
pub(crate) async fn execute(services: &Services, caller: &Caller, message: Bytes) -> Result<Option<Bytes>, Status> {
    let execute: re::ExecuteRequest = decode(message)?;
    caller.check(Right::Execute, &execute.instance_name)?;
    check_function(execute.digest_function).map_err(|e| status_of(&e))?;
    let action = Digest::required(execute.action_digest.as_ref(), "action_digest").map_err(|e| status_of(&e))?;
    let result = admit(services, caller, &execute, action).await?;
    // Who skips the look-up neither hits nor misses.
    if !execute.skip_cache_lookup {
        let observe = &services.observe;
        let counter = if result.is_some() { &observe.execute_hits } else { &observe.execute_misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    if result.is_some() {
        services.observe.usage_of(caller).result();
    }
    Ok(result.map(|result| operation_of(&execute.instance_name, &action, &result)))
}

/// The result when it is cached here or in a tier; none when the action is to be run, with all that it needs here.
async fn admit(
    services: &Services,
    caller: &Caller,
    request: &re::ExecuteRequest,
    action: Digest,
) -> Result<Option<Bytes>, Status> {
    let complete = || {
        let store = Arc::clone(&services.store);
        on_disk(usize::MAX, move || Ok(complete(&store, &action)))
    };
    // A result that is here waits for no disk: a hop to another thread would cost more than the answer.
    let first = match hit(&services.store, caller, request, &action) {
        Ok(None) => complete().await?,
        answered => answered,
    };
    let Some(tiers) = services.tiers.as_ref().filter(|_| !matches!(first, Ok(Some(_)))) else {
        return first.map_err(|e| status_of(&e));
    };
    if !request.skip_cache_lookup {
        for namespace in caller.looked_up(&request.instance_name) {
            let found = tiers.action_result(namespace.into_owned(), action).await.map_err(|e| status_of(&e))?;
            if let Some(result) = found {
                return inlined_from(&services.store, tiers, &action, result, &inline_of(request)).await.map(Some);
            }
        }
    }
    match first {
        Err(error) if error.code == "blobs_missing" => {
            tiers.pull_action(action).await.map_err(|e| status_of(&e))?;
            complete().await?.map_err(|e| status_of(&e))
        }
        other => other.map_err(|e| status_of(&e)),
    }
}

fn inline_of(request: &re::ExecuteRequest) -> Inline<'_> {
    Inline { stdout: request.inline_stdout, stderr: request.inline_stderr, files: &request.inline_output_files }
}

/// Actions are executed under SHA-256; the other functions are for caching (GetCapabilities says so).
fn check_function(number: i32) -> Result<(), NativeError> {
    match Function::of_message(number)? {
        None | Some(Function::Sha256) => Ok(()),
        Some(other) => Err(NativeError::invalid(
            "digest_function",
            format!("actions are executed under sha256, not under {}; see ExecutionCapabilities", other.name()),
        )),
    }
}

/// The result when it is cached here.
fn hit(
    store: &Store,
    caller: &Caller,
    request: &re::ExecuteRequest,
    action: &Digest,
) -> Result<Option<Bytes>, NativeError> {
    if request.skip_cache_lookup {
        return Ok(None);
    }
    for namespace in caller.looked_up(&request.instance_name) {
        if let Some(hit) = store.get_action_result(&namespace, action)? {
            return inlined(store, action.function(), hit, &inline_of(request)).map(Some);
        }
    }
    Ok(None)
}

/// None when all that an action needs is here.
fn complete(store: &Store, action: &Digest) -> Result<Option<Bytes>, NativeError> {
    let missing = store.missing_of_action(action)?;
    if missing.is_empty() { Ok(None) } else { Err(NativeError::missing(&missing)) }
}

/// The framed operation of a result that has inside what was asked. It is written by hand, so that the result, which is
/// nearly all of it, is copied once.
fn operation_of(instance: &str, action: &Digest, result: &[u8]) -> Bytes {
    let number = CACHED.fetch_add(1, Ordering::Relaxed);
    let separator = if instance.is_empty() { "" } else { "/" };
    let name = format!("{instance}{separator}operations/cached-{number}-{}", action.hex());
    let metadata = re::ExecuteOperationMetadata {
        stage: re::execution_stage::Value::Completed as i32,
        action_digest: Some(action.to_message()),
        digest_function: re::digest_function::Value::Sha256 as i32,
        ..Default::default()
    };
    let rest = re::ExecuteResponse { cached_result: true, status: Some(rpc::Status::default()), ..Default::default() };
    let response_bytes = field_bytes(RESULT_FIELD, result.len()) + rest.encoded_len();
    let answer_bytes = field_bytes(TYPE_FIELD, RESPONSE.len()) + field_bytes(VALUE_FIELD, response_bytes);
    let metadata_bytes = field_bytes(TYPE_FIELD, METADATA.len()) + field_bytes(VALUE_FIELD, metadata.encoded_len());
    let bytes = field_bytes(NAME_FIELD, name.len())
        + field_bytes(METADATA_FIELD, metadata_bytes)
        + DONE.len()
        + field_bytes(RESPONSE_FIELD, answer_bytes);
    let mut framed = Vec::with_capacity(FRAME_BYTES + bytes);
    framed.extend_from_slice(&frame_of(bytes));
    put(NAME_FIELD, name.as_bytes(), &mut framed);
    begin(METADATA_FIELD, metadata_bytes, &mut framed);
    put(TYPE_FIELD, METADATA.as_bytes(), &mut framed);
    begin(VALUE_FIELD, metadata.encoded_len(), &mut framed);
    metadata.encode_raw(&mut framed);
    framed.extend_from_slice(&DONE);
    begin(RESPONSE_FIELD, answer_bytes, &mut framed);
    put(TYPE_FIELD, RESPONSE.as_bytes(), &mut framed);
    begin(VALUE_FIELD, response_bytes, &mut framed);
    put(RESULT_FIELD, result, &mut framed);
    rest.encode_raw(&mut framed);
    Bytes::from(framed)
}

/// A length-delimited field with its tag and length.
fn field_bytes(number: u32, length: usize) -> usize {
    key_len(number) + encoded_len_varint(length as u64) + length
}

fn begin(number: u32, length: usize, out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

fn put(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    begin(number, bytes.len(), out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildnet_formats::wire::google::longrunning::{Operation, operation};
    use proptest::prelude::*;
    use prost_types::Any;

    proptest! {
        #[test]
        fn an_operation_is_what_the_generated_code_writes(
            instance in "[a-z/]{0,9}", stdout in proptest::collection::vec(any::<u8>(), 0..400), exit_code: i32
        ) {
            let result = re::ActionResult { exit_code, stdout_raw: Bytes::from(stdout), ..Default::default() };
            let action = Digest::of(b"action");
            let framed = operation_of(&instance, &action, &result.encode_to_vec());
            let read = Operation::decode(framed.slice(FRAME_BYTES..)).unwrap();
            let metadata = re::ExecuteOperationMetadata {
                stage: re::execution_stage::Value::Completed as i32,
                action_digest: Some(action.to_message()),
                digest_function: re::digest_function::Value::Sha256 as i32,
                ..Default::default()
            };
            let response = re::ExecuteResponse {
                result: Some(result),
                cached_result: true,
                status: Some(rpc::Status::default()),
                ..Default::default()
            };
            let any = |name: &str, value| Any { type_url: name.to_owned(), value };
            let expected = Operation {
                name: read.name.clone(),
                metadata: Some(any(METADATA, metadata.encode_to_vec())),
                done: true,
                result: Some(operation::Result::Response(any(RESPONSE, response.encode_to_vec()))),
            };
            let prefix = if instance.is_empty() { String::new() } else { format!("{instance}/") };
            let begins = format!("{prefix}operations/cached-");
            prop_assert!(read.name.starts_with(&begins));
            prop_assert!(read.name.ends_with(&action.hex()));
            prop_assert_eq!(framed.slice(FRAME_BYTES..), expected.encode_to_vec());
            prop_assert_eq!(framed[1..FRAME_BYTES].to_vec(), (framed.len() as u32 - 5).to_be_bytes().to_vec());
        }
    }
}
