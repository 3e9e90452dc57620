//! The unary byte services: Capabilities, CAS, ActionCache, health. They answer from the store and decide nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::build::bazel::semver::SemVer;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_formats::wire::grpc::health::v1 as health;
use buildnet_formats::{Compressor, Digest, Function, NODE_PROPERTIES, NativeError, WriteName};
use buildnet_store::Store;
use buildnet_tiers::Tiers;
use bytes::Bytes;
use prost::Message;
use tonic::Status;

use crate::access::{Caller, Right};
use crate::check::Check;
use crate::chunks;
use crate::codec::decode;
use crate::observe::Observe;
use crate::reads::{BatchReadReply, ENTRY_BYTES_MAX};
use crate::squeeze;
use crate::status::{inner_status, status_of};
use crate::updates::Updates;
use crate::uploads::Uploads;
use crate::wire::{FindMissing, framed};
use crate::writes::Writes;

/// Payload of one batch. With a digest and a status for each blob a reply stays within the 4 MiB that clients accept.
pub(crate) const BATCH_BYTES_MAX: usize = 3 << 20;
/// What clients accept by default.
pub(crate) const REPLY_BYTES_MAX: usize = 4 << 20;
/// Of a request: to hand one over and hear of its end costs about as much as to look up half so many bytes of digests.
const LONG_BYTES: usize = 16 << 10;
/// Smaller blobs are not worth packing for a batch.
const PACKED_BYTES_MIN: u64 = 512;

/// Calls answered here by one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    GetCapabilities,
    FindMissingBlobs,
    BatchUpdateBlobs,
    BatchReadBlobs,
    GetActionResult,
    /// Answered by [`Services::update_action_result`], once the ledger has it.
    UpdateActionResult,
    SplitBlob,
    SpliceBlob,
    QueryWriteStatus,
    HealthCheck,
    HealthList,
}

impl Method {
    /// Every one, in the order of their numbers.
    pub(crate) const ALL: [Self; 11] = [
        Self::GetCapabilities,
        Self::FindMissingBlobs,
        Self::BatchUpdateBlobs,
        Self::BatchReadBlobs,
        Self::GetActionResult,
        Self::UpdateActionResult,
        Self::SplitBlob,
        Self::SpliceBlob,
        Self::QueryWriteStatus,
        Self::HealthCheck,
        Self::HealthList,
    ];

    pub(crate) fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.path() == path)
    }

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::GetCapabilities => "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
            Self::FindMissingBlobs => "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
            Self::BatchUpdateBlobs => "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
            Self::BatchReadBlobs => "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs",
            Self::SplitBlob => "/build.bazel.remote.execution.v2.ContentAddressableStorage/SplitBlob",
            Self::SpliceBlob => "/build.bazel.remote.execution.v2.ContentAddressableStorage/SpliceBlob",
            Self::GetActionResult => "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
            Self::UpdateActionResult => "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
            Self::QueryWriteStatus => "/google.bytestream.ByteStream/QueryWriteStatus",
            Self::HealthCheck => "/grpc.health.v1.Health/Check",
            Self::HealthList => "/grpc.health.v1.Health/List",
        }
    }

    /// Whether the call may wait for the disk or read much of it.
    pub(crate) fn is_slow(self, waits_for_disk: bool) -> bool {
        match self {
            Self::SplitBlob | Self::SpliceBlob => true,
            Self::BatchUpdateBlobs => waits_for_disk,
            _ => false,
        }
    }

    /// Whether to answer a request of so many bytes takes much longer than to hand it to another thread.
    pub(crate) fn is_long(self, request_bytes: usize) -> bool {
        self == Self::FindMissingBlobs && request_bytes >= LONG_BYTES
    }
}

/// What the services stand on.
pub(crate) struct Services {
    pub(crate) store: Arc<Store>,
    pub(crate) tiers: Option<Arc<Tiers>>,
    pub(crate) uploads: Uploads,
    pub(crate) writes: Writes,
    pub(crate) updates: Arc<Updates>,
    pub(crate) execution: bool,
    pub(crate) observe: Arc<Observe>,
}

impl Services {
    /// Answer one call by a framed message. Blocks on the disk.
    pub(crate) fn answer(&self, caller: &Caller, method: Method, body: Bytes) -> Result<Bytes, Status> {
        match method {
            Method::GetCapabilities => {
                let request: re::GetCapabilitiesRequest = decode(body)?;
                Ok(framed(&self.capabilities(caller, &request.instance_name)))
            }
            Method::FindMissingBlobs => self.find_missing(caller, &body),
            Method::BatchUpdateBlobs => self.batch_update(caller, decode(body)?),
            Method::BatchReadBlobs => self.batch_read(caller, decode(body)?),
            Method::GetActionResult => self.get_action_result(caller, body),
            Method::SplitBlob => self.split(caller, &decode(body)?),
            Method::SpliceBlob => self.splice(caller, &decode(body)?),
            Method::UpdateActionResult => Err(Status::internal("an update waits for the ledger elsewhere")),
            Method::QueryWriteStatus => self.query_write_status(caller, &decode(body)?),
            Method::HealthCheck => health_of(&decode::<health::HealthCheckRequest>(body)?.service),
            Method::HealthList => {
                let serving = health::HealthCheckResponse {
                    status: health::health_check_response::ServingStatus::Serving as i32,
                };
                let statuses = [(String::new(), serving)].into_iter().collect();
                Ok(framed(&health::HealthListResponse { statuses }))
            }
        }
    }

    fn capabilities(&self, caller: &Caller, instance: &str) -> re::ServerCapabilities {
        // By caller: a client that is told what it may not do does not fail half-way at it.
        let update_enabled = caller.may(Right::WriteActionCache, instance);
        let execution = self.execution && caller.may(Right::Execute, instance);
        let zstd = vec![re::compressor::Value::Zstd as i32];
        let version = |minor| Some(SemVer { major: 2, minor, ..Default::default() });
        let all = re::PriorityCapabilities {
            priorities: vec![re::priority_capabilities::PriorityRange {
                min_priority: i32::MIN,
                max_priority: i32::MAX,
            }],
        };
        re::ServerCapabilities {
            cache_capabilities: Some(re::CacheCapabilities {
                digest_functions: Function::ALL.into_iter().map(Function::number).collect(),
                action_cache_update_capabilities: Some(re::ActionCacheUpdateCapabilities { update_enabled }),
                max_batch_total_size_bytes: BATCH_BYTES_MAX as i64,
                max_cas_blob_size_bytes: self.store.blob_size_bytes_max().cast_signed(),
                symlink_absolute_path_strategy: re::symlink_absolute_path_strategy::Value::Disallowed as i32,
                supported_compressors: zstd.clone(),
                supported_batch_update_compressors: zstd,
                split_blob_support: true,
                splice_blob_support: true,
                fast_cdc_2020_params: Some(re::FastCdc2020Params {
                    avg_chunk_size_bytes: chunks::AVERAGE_BYTES as u64,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            execution_capabilities: execution.then(|| re::ExecutionCapabilities {
                digest_function: Function::Sha256.number(),
                digest_functions: vec![Function::Sha256.number()],
                exec_enabled: true,
                execution_priority_capabilities: Some(all),
                supported_node_properties: NODE_PROPERTIES.map(str::to_owned).to_vec(),
            }),
            // Bazel 4 refuses a server that does not speak 2.0 (docs/how-to/bazel.md).
            low_api_version: version(0),
            high_api_version: version(12),
            ..Default::default()
        }
    }

    fn find_missing(&self, caller: &Caller, body: &Bytes) -> Result<Bytes, Status> {
        let request = FindMissing::decode(body)?;
        caller.check(Right::Find, &request.instance)?;
        let missing = self.store.find_missing(&request.digests).map_err(|e| status_of(&e))?;
        self.observe.digests_asked.fetch_add(request.digests.len() as u64, Ordering::Relaxed);
        self.observe.digests_missing.fetch_add(missing.len() as u64, Ordering::Relaxed);
        Ok(framed(&re::FindMissingBlobsResponse {
            missing_blob_digests: missing.iter().map(Digest::to_message).collect(),
        }))
    }

    fn batch_update(&self, caller: &Caller, request: re::BatchUpdateBlobsRequest) -> Result<Bytes, Status> {
        caller.check(Right::WriteCas, &request.instance_name)?;
        let function = Function::of_message(request.digest_function).map_err(|e| status_of(&e))?;
        let total: usize = request.requests.iter().map(|r| r.data.len()).sum();
        check_batch(total)?;
        let mut answers: Vec<Result<(), NativeError>> = Vec::with_capacity(request.requests.len());
        let (mut plain, mut numbers) = (Vec::with_capacity(request.requests.len()), Vec::new());
        for (number, entry) in request.requests.iter().enumerate() {
            let digest = Digest::required_by(function, entry.digest.as_ref(), "digest");
            let done = match (digest, re::compressor::Value::try_from(entry.compressor)) {
                (Err(error), _) => Err(error),
                (Ok(digest), Ok(re::compressor::Value::Identity)) => {
                    plain.push((digest, entry.data.as_ref()));
                    numbers.push(number);
                    Ok(())
                }
                (Ok(digest), Ok(re::compressor::Value::Zstd)) => self.update_zstd(digest, &entry.data),
                _ => Err(NativeError::invalid(
                    "compressor",
                    format!("the compressor {} is not offered, ZSTD is", entry.compressor),
                )),
            };
            answers.push(done);
        }
        for (number, done) in numbers.into_iter().zip(self.store.put_many(&plain)) {
            answers[number] = done;
        }
        let responses = request.requests.into_iter().zip(answers).map(|(entry, done)| {
            re::batch_update_blobs_response::Response { digest: entry.digest, status: Some(inner_status(&done)) }
        });
        Ok(framed(&re::BatchUpdateBlobsResponse { responses: responses.collect() }))
    }

    fn update_zstd(&self, digest: Digest, frames: &[u8]) -> Result<(), NativeError> {
        let mut unpacker = squeeze::Unpacker::new()?;
        if self.store.is_promised(&digest) {
            let mut check = Check::new(digest);
            unpacker.feed(frames, |data| check.write(data))?;
            unpacker.finish()?;
            return check.finish();
        }
        let mut writer = self.store.writer(digest)?;
        unpacker.feed(frames, |data| writer.write(data))?;
        unpacker.finish()?;
        writer.commit_as(Some(frames))
    }

    fn batch_read(&self, caller: &Caller, request: re::BatchReadBlobsRequest) -> Result<Bytes, Status> {
        caller.check(Right::Read, &request.instance_name)?;
        let function = Function::of_message(request.digest_function).map_err(|e| status_of(&e))?;
        let total = request.digests.iter().fold(0u64, |sum, d| sum.saturating_add(d.size_bytes.max(0).cast_unsigned()));
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        check_batch(total)?;
        let least: usize = request.digests.iter().map(|digest| ENTRY_BYTES_MAX + digest.encoded_len()).sum();
        let least = total + least;
        let Some(left) = REPLY_BYTES_MAX.checked_sub(least) else {
            return Err(Status::invalid_argument(format!(
                "{} blobs are too many for one batch: with their digests the reply would be of {least} bytes, over the \
                 limit of {REPLY_BYTES_MAX}; ask for fewer",
                request.digests.len(),
            )));
        };
        let zstd = request.acceptable_compressors.contains(&(re::compressor::Value::Zstd as i32));
        let mut reply = BatchReadReply::with_capacity(least, left);
        for message in &request.digests {
            let digest = Digest::from_message_by(function, message);
            let done = digest.and_then(|digest| match self.packed(&digest, zstd)? {
                Some(frames) => {
                    reply.packed(message, &frames);
                    Ok(())
                }
                None => reply.plain(message, digest.size_bytes(), |out| self.store.read_onto(&digest, out)),
            });
            if done.is_err() {
                reply.refused(message, inner_status(&done));
            }
        }
        Ok(reply.framed())
    }

    /// The blob as zstd frames, if that is wanted and worth it.
    fn packed(&self, digest: &Digest, zstd: bool) -> Result<Option<Bytes>, NativeError> {
        if !zstd {
            return Ok(None);
        }
        if let Some(frames) = self.store.packed_zstd(digest) {
            return Ok(Some(frames));
        }
        if digest.size_bytes() < PACKED_BYTES_MIN {
            return Ok(None);
        }
        let data = self.store.get_bytes(digest, BATCH_BYTES_MAX as u64)?;
        Ok(Some(squeeze::pack(&data)?).filter(|frames| frames.len() < data.len()))
    }

    fn query_write_status(&self, caller: &Caller, request: &bs::QueryWriteStatusRequest) -> Result<Bytes, Status> {
        let name = WriteName::parse(&request.resource_name).map_err(|e| status_of(&e))?;
        caller.check(Right::WriteCas, &name.instance)?;
        let complete = self.store.is_promised(&name.digest);
        let committed_size = if complete {
            name.digest.size_bytes().cast_signed()
        } else if name.compressor == Compressor::Identity {
            self.uploads.offset_of(&name).cast_signed()
        } else {
            // A compressed upload that broke off begins anew: its frames cannot be cut at any byte.
            0
        };
        Ok(framed(&bs::QueryWriteStatusResponse { committed_size, complete }))
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
    Ok(framed(&health::HealthCheckResponse { status }))
}
