//! The unary byte services: Capabilities, CAS, ActionCache, health. They answer from the store and decide nothing.

use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::build::bazel::semver::SemVer;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_formats::wire::grpc::health::v1 as health;
use buildnet_formats::{Digest, NativeError, WriteName, check_digest_function};
use buildnet_store::{Origin, Store};
use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;

use crate::codec::{decode, encode};
use crate::status::{inner_status, status_of};

/// Payload of one batch. With a digest and a status for each blob a reply stays under the 4 MiB that clients accept.
pub(crate) const BATCH_BYTES_MAX: usize = 3 << 20;
/// What clients accept by default.
pub(crate) const REPLY_BYTES_MAX: usize = 4 << 20;
const INLINE_BYTES_MAX: usize = 3 << 20;
const BATCH_ENTRY_COST_BYTES: usize = 128;

/// Calls answered here by one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    GetCapabilities,
    FindMissingBlobs,
    BatchUpdateBlobs,
    BatchReadBlobs,
    GetActionResult,
    UpdateActionResult,
    QueryWriteStatus,
    HealthCheck,
    HealthList,
}

impl Method {
    pub(crate) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities" => Self::GetCapabilities,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs" => Self::FindMissingBlobs,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs" => Self::BatchUpdateBlobs,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs" => Self::BatchReadBlobs,
            "/build.bazel.remote.execution.v2.ActionCache/GetActionResult" => Self::GetActionResult,
            "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult" => Self::UpdateActionResult,
            "/google.bytestream.ByteStream/QueryWriteStatus" => Self::QueryWriteStatus,
            "/grpc.health.v1.Health/Check" => Self::HealthCheck,
            "/grpc.health.v1.Health/List" => Self::HealthList,
            _ => return None,
        })
    }
}

/// What the services stand on.
pub(crate) struct Services {
    pub(crate) store: Arc<Store>,
    pub(crate) execution: bool,
}

impl Services {
    /// Answer one call. Blocks on the disk.
    pub(crate) fn answer(&self, method: Method, body: Bytes) -> Result<Bytes, Status> {
        match method {
            Method::GetCapabilities => {
                decode::<re::GetCapabilitiesRequest>(body)?;
                Ok(encode(&self.capabilities()))
            }
            Method::FindMissingBlobs => self.find_missing(decode(body)?),
            Method::BatchUpdateBlobs => self.batch_update(decode(body)?),
            Method::BatchReadBlobs => self.batch_read(decode(body)?),
            Method::GetActionResult => self.get_action_result(&decode(body)?),
            Method::UpdateActionResult => self.update_action_result(body),
            Method::QueryWriteStatus => self.query_write_status(&decode(body)?),
            Method::HealthCheck => health_of(&decode::<health::HealthCheckRequest>(body)?.service),
            Method::HealthList => {
                let serving = health::HealthCheckResponse {
                    status: health::health_check_response::ServingStatus::Serving as i32,
                };
                let statuses = [(String::new(), serving)].into_iter().collect();
                Ok(encode(&health::HealthListResponse { statuses }))
            }
        }
    }

    fn capabilities(&self) -> re::ServerCapabilities {
        let sha256 = re::digest_function::Value::Sha256 as i32;
        let version = |minor| Some(SemVer { major: 2, minor, ..Default::default() });
        let all = re::PriorityCapabilities {
            priorities: vec![re::priority_capabilities::PriorityRange {
                min_priority: i32::MIN,
                max_priority: i32::MAX,
            }],
        };
        re::ServerCapabilities {
            cache_capabilities: Some(re::CacheCapabilities {
                digest_functions: vec![sha256],
                action_cache_update_capabilities: Some(re::ActionCacheUpdateCapabilities { update_enabled: true }),
                max_batch_total_size_bytes: BATCH_BYTES_MAX as i64,
                max_cas_blob_size_bytes: self.store.blob_size_bytes_max().cast_signed(),
                symlink_absolute_path_strategy: re::symlink_absolute_path_strategy::Value::Disallowed as i32,
                ..Default::default()
            }),
            execution_capabilities: self.execution.then(|| re::ExecutionCapabilities {
                digest_function: sha256,
                digest_functions: vec![sha256],
                exec_enabled: true,
                execution_priority_capabilities: Some(all),
                supported_node_properties: vec!["mtime".to_owned(), "unix_mode".to_owned()],
            }),
            // Bazel 4 refuses a server that does not speak 2.0 (docs/how-to/bazel.md).
            low_api_version: version(0),
            high_api_version: version(12),
            ..Default::default()
        }
    }

    fn find_missing(&self, request: re::FindMissingBlobsRequest) -> Result<Bytes, Status> {
        let work = || {
            check_digest_function(request.digest_function)?;
            let digests: Vec<Digest> =
                request.blob_digests.iter().map(Digest::from_message).collect::<Result<_, _>>()?;
            self.store.find_missing(&digests)
        };
        let missing = work().map_err(|e| status_of(&e))?;
        Ok(encode(&re::FindMissingBlobsResponse {
            missing_blob_digests: missing.iter().map(Digest::to_message).collect(),
        }))
    }

    fn batch_update(&self, request: re::BatchUpdateBlobsRequest) -> Result<Bytes, Status> {
        check_digest_function(request.digest_function).map_err(|e| status_of(&e))?;
        let total: usize = request.requests.iter().map(|r| r.data.len()).sum();
        check_batch(total)?;
        let responses = request.requests.into_iter().map(|entry| {
            let done = self.update_one(&entry);
            re::batch_update_blobs_response::Response { digest: entry.digest, status: Some(inner_status(&done)) }
        });
        Ok(encode(&re::BatchUpdateBlobsResponse { responses: responses.collect() }))
    }

    fn update_one(&self, entry: &re::batch_update_blobs_request::Request) -> Result<(), NativeError> {
        if entry.compressor != re::compressor::Value::Identity as i32 {
            return Err(NativeError::invalid("compressor", "no compressor is offered; send the blob as it is"));
        }
        let digest = Digest::required(entry.digest.as_ref(), "digest")?;
        self.store.put_expected(&digest, &entry.data)
    }

    fn batch_read(&self, request: re::BatchReadBlobsRequest) -> Result<Bytes, Status> {
        check_digest_function(request.digest_function).map_err(|e| status_of(&e))?;
        let total = request.digests.iter().fold(0u64, |sum, d| sum.saturating_add(d.size_bytes.max(0).cast_unsigned()));
        let cost = request.digests.len() * BATCH_ENTRY_COST_BYTES;
        check_batch(usize::try_from(total).unwrap_or(usize::MAX))?;
        if cost > REPLY_BYTES_MAX - BATCH_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "{} blobs are too many for one batch",
                request.digests.len()
            )));
        }
        let responses = request.digests.into_iter().map(|message| {
            let read = Digest::from_message(&message).and_then(|d| self.store.get_bytes(&d, BATCH_BYTES_MAX as u64));
            let (data, done) = match read {
                Ok(data) => (data, Ok(())),
                Err(error) => (Bytes::new(), Err(error)),
            };
            re::batch_read_blobs_response::Response {
                digest: Some(message),
                data,
                status: Some(inner_status(&done)),
                ..Default::default()
            }
        });
        Ok(encode(&re::BatchReadBlobsResponse { responses: responses.collect() }))
    }

    fn get_action_result(&self, request: &re::GetActionResultRequest) -> Result<Bytes, Status> {
        let found = || {
            check_digest_function(request.digest_function)?;
            let action = Digest::required(request.action_digest.as_ref(), "action_digest")?;
            let result = self.store.get_action_result(&request.instance_name, &action)?;
            result.ok_or_else(|| NativeError::not_found("result for action", action.to_string()))
        };
        let result = found().map_err(|e| status_of(&e))?;
        let inline = Inline {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: &request.inline_output_files,
        };
        inlined(&self.store, result, &inline)
    }

    fn update_action_result(&self, body: Bytes) -> Result<Bytes, Status> {
        let exact = exact_field(body.clone(), 3)?;
        let request: re::UpdateActionResultRequest = decode(body)?;
        let work = || {
            check_digest_function(request.digest_function)?;
            let action = Digest::required(request.action_digest.as_ref(), "action_digest")?;
            let Some(mut result) = exact else {
                return Err(NativeError::invalid("action_result", "action_result is not set"));
            };
            if result.is_empty() {
                // Some clients take a result of no bytes for a miss (REAPI ActionResult): it is given a worker.
                let worker = re::ExecutedActionMetadata { worker: "client".to_owned(), ..Default::default() };
                result = encode(&re::ActionResult { execution_metadata: Some(worker), ..Default::default() });
            }
            self.store.put_action_result(&request.instance_name, &action, &result, Origin::Client)?;
            Ok(result)
        };
        work().map_err(|e| status_of(&e))
    }

    fn query_write_status(&self, request: &bs::QueryWriteStatusRequest) -> Result<Bytes, Status> {
        let name = WriteName::parse(&request.resource_name).map_err(|e| status_of(&e))?;
        // An upload that broke off kept nothing: it begins anew, at 0.
        let complete = self.store.contains(&name.digest);
        let committed_size = if complete { name.digest.size_bytes().cast_signed() } else { 0 };
        Ok(encode(&bs::QueryWriteStatusResponse { committed_size, complete }))
    }
}

fn check_batch(total: usize) -> Result<(), Status> {
    if total > BATCH_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "the batch holds {total} bytes, over the limit of {BATCH_BYTES_MAX}; use ByteStream for large blobs"
        )));
    }
    Ok(())
}

pub(crate) fn health_of(service: &str) -> Result<Bytes, Status> {
    if !service.is_empty() && !service.starts_with("build.bazel.") && !service.starts_with("google.") {
        return Err(Status::not_found(format!("the health of {service:?} is not watched; ask for the empty name")));
    }
    let status = health::health_check_response::ServingStatus::Serving as i32;
    Ok(encode(&health::HealthCheckResponse { status }))
}

/// What a caller wants inside the result rather than beside it.
pub(crate) struct Inline<'a> {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) files: &'a [String],
}

/// The result with what was asked put inside, as long as it fits a reply (REAPI: MUST omit else).
pub(crate) fn inlined(store: &Store, result: Bytes, inline: &Inline<'_>) -> Result<Bytes, Status> {
    let nothing = !inline.stdout && !inline.stderr && inline.files.is_empty();
    if nothing && result.len() <= REPLY_BYTES_MAX {
        return Ok(result);
    }
    let mut decoded: re::ActionResult = decode(result)?;
    if decoded.encoded_len() > INLINE_BYTES_MAX {
        shrink(&mut decoded);
    }
    let mut room = INLINE_BYTES_MAX.saturating_sub(decoded.encoded_len());
    let mut take = |digest: Option<&re::Digest>| -> Option<Bytes> {
        let digest = Digest::from_message(digest?).ok()?;
        // A blob that cannot be read now is not inlined; its digest stays.
        let data = store.get_bytes(&digest, room as u64).ok()?;
        room -= data.len();
        Some(data)
    };
    if inline.stdout && decoded.stdout_raw.is_empty() {
        decoded.stdout_raw = take(decoded.stdout_digest.as_ref()).unwrap_or_default();
    }
    if inline.stderr && decoded.stderr_raw.is_empty() {
        decoded.stderr_raw = take(decoded.stderr_digest.as_ref()).unwrap_or_default();
    }
    for file in &mut decoded.output_files {
        if file.contents.is_empty() && inline.files.contains(&file.path) {
            file.contents = take(file.digest.as_ref()).unwrap_or_default();
        }
    }
    Ok(encode(&decoded))
}

/// Take out what an uploader put inside although it has a digest, so that the reply stays legal.
fn shrink(result: &mut re::ActionResult) {
    if result.stdout_digest.is_some() {
        result.stdout_raw = Bytes::new();
    }
    if result.stderr_digest.is_some() {
        result.stderr_raw = Bytes::new();
    }
    for file in &mut result.output_files {
        file.contents = Bytes::new();
    }
}

/// The exact bytes of a length-delimited field, so that what a client hashed or signed is stored as it came.
fn exact_field(mut body: Bytes, tag: u32) -> Result<Option<Bytes>, Status> {
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
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = exact_field(bytes.into(), 3);
        }
    }
}
