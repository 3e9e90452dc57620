//! Another Remote Execution API server behind the ports: small blobs in batches, packed where it offers that, large ones in
//! streams. It knows no values under paths and no action by its hash alone, and those are passed over.

use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_formats::{Digest, Function, NativeError};
use buildnet_raw::Raw;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::OnceCell;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::config::{Engine, TierConfig};
use crate::port::{ActionCache, BlobStore, Done, EntryKey, Source, TierError, Value};
use crate::via::{self, Here};

const CAPABILITIES: &str = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities";
const FIND_MISSING: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
const BATCH_UPDATE: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
const BATCH_READ: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs";
const GET_RESULT: &str = "/build.bazel.remote.execution.v2.ActionCache/GetActionResult";
const UPDATE_RESULT: &str = "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult";
const WRITE: &str = "/google.bytestream.ByteStream/Write";
const READ: &str = "/google.bytestream.ByteStream/Read";

const WINDOW_BYTES: u32 = 4 << 20;
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const DIGESTS_PER_CALL: usize = 10_000;
/// Blobs up to this travel in batches, in both ways well under the 4 MiB that servers accept.
const SMALL_BYTES: u64 = 1 << 20;
const ZSTD: i32 = re::compressor::Value::Zstd as i32;
const ZSTD_LEVEL: i32 = 3;
/// Smaller blobs are not worth packing.
const PACKED_BYTES_MIN: usize = 512;
const MESSAGE_CHARS_MAX: usize = 300;

/// What the server says of itself.
#[derive(Clone, Copy)]
struct Offer {
    zstd_reads: bool,
    zstd_updates: bool,
}

/// One server and one instance name of it.
pub(crate) struct Reapi {
    channel: Channel,
    instance: String,
    authorization: Option<MetadataValue<Ascii>>,
    offer: OnceCell<Offer>,
    uploads: Mutex<fastrand::Rng>,
    here: Arc<Here>,
}

impl Reapi {
    /// Prepare a connection; the first call dials. Must be called within the runtime that will use it.
    pub(crate) fn new(config: &TierConfig, here: Arc<Here>) -> Result<Self, NativeError> {
        let Engine::Reapi { address, token, authorities, identity } = &config.engine else {
            return Err(NativeError::internal("not a tier of kind reapi"));
        };
        let unusable =
            |what: String| NativeError::invalid("tier", format!("the tier {:?} cannot be used: {what}", config.name));
        let (secure, authority) = match (address.strip_prefix("grpc://"), address.strip_prefix("grpcs://")) {
            (Some(authority), _) => (false, authority),
            (_, Some(authority)) => (true, authority),
            _ => return Err(unusable(format!("{address:?} is not grpc://HOST:PORT or grpcs://HOST:PORT"))),
        };
        let scheme = if secure { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", authority.trim_end_matches('/')))
            .map_err(|e| unusable(e.to_string()))?
            .connect_timeout(config.timeout)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .tcp_nodelay(true);
        if secure {
            let mut tls = match authorities {
                Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                None => ClientTlsConfig::new().with_native_roots(),
            };
            if let Some((chain, key)) = identity {
                tls = tls.identity(Identity::from_pem(chain, key.expose()));
            }
            endpoint = endpoint.tls_config(tls).map_err(|e| unusable(e.to_string()))?;
        }
        let authorization = match token {
            None => None,
            Some(token) => {
                let mut value = MetadataValue::try_from(format!("Bearer {}", token.expose()))
                    .map_err(|_| unusable("its token holds characters that no header may".to_owned()))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            channel: endpoint.connect_lazy(),
            instance: config.prefix.trim_matches('/').to_owned(),
            authorization,
            offer: OnceCell::new(),
            uploads: Mutex::new(fastrand::Rng::new()),
            here,
        })
    }

    fn client(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        if let Ok(servers) = self.here.onward().parse() {
            request.metadata_mut().insert(via::HEADER, servers);
        }
        request
    }

    async fn unary<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Status>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut client = self.client();
        ready(&mut client).await?;
        let codec = ProstCodec::<Q, A>::default();
        Ok(client.unary(self.request(message), PathAndQuery::from_static(path), codec).await?.into_inner())
    }

    async fn offer(&self) -> Result<Offer, TierError> {
        let ask = || async {
            let request = re::GetCapabilitiesRequest { instance_name: self.instance.clone() };
            let answer: re::ServerCapabilities = match self.unary(CAPABILITIES, request).await {
                Ok(answer) => answer,
                // Some caches offer nothing but the calls that move bytes.
                Err(status) if status.code() == Code::Unimplemented => re::ServerCapabilities::default(),
                Err(status) => return Err(failed(&status)),
            };
            let cache = answer.cache_capabilities.unwrap_or_default();
            Ok(Offer {
                zstd_reads: cache.supported_compressors.contains(&ZSTD),
                zstd_updates: cache.supported_batch_update_compressors.contains(&ZSTD),
            })
        };
        self.offer.get_or_try_init(ask).await.copied()
    }

    async fn read_small(&self, digest: &Digest) -> Result<Option<Bytes>, TierError> {
        let mut acceptable_compressors = vec![re::compressor::Value::Identity as i32];
        if self.offer().await?.zstd_reads {
            acceptable_compressors.push(ZSTD);
        }
        let request = re::BatchReadBlobsRequest {
            instance_name: self.instance.clone(),
            digests: vec![digest.to_message()],
            acceptable_compressors,
            digest_function: digest.function().number(),
        };
        let answer: Result<re::BatchReadBlobsResponse, Status> = self.unary(BATCH_READ, request).await;
        let answer = answer.map_err(|s| failed(&s))?;
        let Some(response) = answer.responses.into_iter().next() else {
            return Err(TierError::Damaged("the batch was answered without the blob".to_owned()));
        };
        match response.status.as_ref().map_or(0, |status| status.code) {
            0 => {}
            code if code == Code::NotFound as i32 => return Ok(None),
            code => {
                let text = response.status.map(|status| status.message).unwrap_or_default();
                return Err(failed(&Status::new(Code::from_i32(code), text)));
            }
        }
        if response.compressor != ZSTD {
            return Ok(Some(response.data));
        }
        let size = usize::try_from(digest.size_bytes()).unwrap_or(0);
        // The capacity is a bound: what unpacks to more is no such blob.
        let unpacked = zstd::bulk::decompress(&response.data, size);
        unpacked.map(|data| Some(data.into())).map_err(|e| TierError::Damaged(format!("{digest} does not unpack: {e}")))
    }

    async fn read_large(&self, digest: &Digest) -> Result<Option<crate::port::Pieces>, TierError> {
        let name = format!("{}blobs/{}", prefix(&self.instance), digest);
        let request = self.request(bs::ReadRequest { resource_name: name, ..Default::default() });
        let mut client = self.client();
        ready(&mut client).await.map_err(|s| failed(&s))?;
        let codec = ProstCodec::<bs::ReadRequest, bs::ReadResponse>::default();
        let mut pieces = match client.server_streaming(request, PathAndQuery::from_static(READ), codec).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(failed(&status)),
        };
        // Absence may be said by the status at the end, so the first piece is waited for.
        let first = match pieces.message().await {
            Ok(first) => first,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(failed(&status)),
        };
        let rest = pieces.map_ok(|piece| piece.data).map_err(|status| failed(&status));
        let first = stream::iter(first.map(|piece| Ok(piece.data)));
        Ok(Some(first.chain(rest).boxed()))
    }

    async fn write_small(&self, digest: &Digest, data: Bytes) -> Result<(), TierError> {
        let mut entry =
            re::batch_update_blobs_request::Request { digest: Some(digest.to_message()), data, ..Default::default() };
        if entry.data.len() >= PACKED_BYTES_MIN
            && self.offer().await?.zstd_updates
            && let Ok(packed) = zstd::bulk::compress(&entry.data, ZSTD_LEVEL)
            && packed.len() < entry.data.len()
        {
            entry.data = packed.into();
            entry.compressor = ZSTD;
        }
        let request = re::BatchUpdateBlobsRequest {
            instance_name: self.instance.clone(),
            requests: vec![entry],
            digest_function: digest.function().number(),
        };
        let answer: Result<re::BatchUpdateBlobsResponse, Status> = self.unary(BATCH_UPDATE, request).await;
        let status = answer.map_err(|s| failed(&s))?.responses.into_iter().next().and_then(|r| r.status);
        match status {
            Some(status) if status.code != 0 => Err(failed(&Status::new(Code::from_i32(status.code), status.message))),
            _ => Ok(()),
        }
    }

    async fn write_large(&self, digest: &Digest, source: Source) -> Result<(), TierError> {
        let upload = {
            let mut random = self.uploads.lock();
            format!("{:016x}{:016x}", random.u64(..), random.u64(..))
        };
        let name = format!("{}uploads/{upload}/blobs/{}", prefix(&self.instance), digest);
        let size = digest.size_bytes();
        // A local error ends the stream early; the server's refusal of that is not the cause to tell.
        let broken = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&broken);
        let start = (source.pieces(), name, 0u64);
        let messages = stream::unfold(start, move |(mut pieces, resource_name, write_offset)| {
            let seen = Arc::clone(&seen);
            async move {
                let data = match pieces.try_next().await {
                    Ok(piece) => piece?,
                    Err(error) => {
                        *seen.lock() = Some(error);
                        return None;
                    }
                };
                let next = write_offset + data.len() as u64;
                let message = bs::WriteRequest {
                    resource_name,
                    write_offset: write_offset.cast_signed(),
                    finish_write: next == size,
                    data,
                };
                Some((message, (pieces, String::new(), next)))
            }
        });
        let mut client = self.client();
        ready(&mut client).await.map_err(|s| failed(&s))?;
        let codec = ProstCodec::<bs::WriteRequest, bs::WriteResponse>::default();
        let done = client.client_streaming(self.request(messages), PathAndQuery::from_static(WRITE), codec).await;
        if let Some(error) = broken.lock().take() {
            return Err(error);
        }
        let committed = done.map_err(|s| failed(&s))?.into_inner().committed_size;
        if committed != size.cast_signed() {
            return Err(TierError::Down(format!("{committed} of {size} bytes of {digest} were taken")));
        }
        Ok(())
    }

    fn instance_of(&self, namespace: &str) -> String {
        match (self.instance.as_str(), namespace) {
            (instance, "") => instance.to_owned(),
            ("", namespace) => namespace.to_owned(),
            (instance, namespace) => format!("{instance}/{namespace}"),
        }
    }
}

fn prefix(instance: &str) -> String {
    if instance.is_empty() { String::new() } else { format!("{instance}/") }
}

async fn ready(client: &mut Grpc<Channel>) -> Result<(), Status> {
    client.ready().await.map_err(|error| {
        let mut deepest: &dyn std::error::Error = &error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        Status::unavailable(deepest.to_string())
    })
}

fn failed(status: &Status) -> TierError {
    let text = format!("{:?}: {}", status.code(), status.message());
    let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect();
    match status.code() {
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::Unimplemented => {
            TierError::Refused(text)
        }
        Code::DataLoss => TierError::Damaged(text),
        _ => TierError::Down(text),
    }
}

impl BlobStore for Reapi {
    fn missing<'a>(&'a self, digests: &'a [Digest]) -> Done<'a, Vec<Digest>> {
        Box::pin(async move {
            let mut missing = Vec::new();
            for function in Function::ALL {
                let by: Vec<Digest> = digests.iter().copied().filter(|d| d.function() == function).collect();
                for some in by.chunks(DIGESTS_PER_CALL) {
                    let request = re::FindMissingBlobsRequest {
                        instance_name: self.instance.clone(),
                        blob_digests: some.iter().map(Digest::to_message).collect(),
                        digest_function: function.number(),
                    };
                    let answer: Result<re::FindMissingBlobsResponse, Status> = self.unary(FIND_MISSING, request).await;
                    for message in answer.map_err(|s| failed(&s))?.missing_blob_digests {
                        missing.push(Digest::from_message_by(Some(function), &message)?);
                    }
                }
            }
            Ok(missing)
        })
    }

    fn get<'a>(&'a self, digest: &'a Digest) -> Done<'a, Option<crate::port::Pieces>> {
        Box::pin(async move {
            if digest.size_bytes() > SMALL_BYTES {
                return self.read_large(digest).await;
            }
            let data = self.read_small(digest).await?;
            Ok(data.map(|data| stream::iter([Ok(data)]).boxed()))
        })
    }

    fn put<'a>(&'a self, digest: &'a Digest, source: Source) -> Done<'a, ()> {
        Box::pin(async move {
            if digest.size_bytes() > SMALL_BYTES {
                return self.write_large(digest, source).await;
            }
            let data = source.bytes().await?;
            self.write_small(digest, data).await
        })
    }

    fn find_by_hash<'a>(&'a self, _digest: &'a Digest) -> Done<'a, Option<Digest>> {
        Box::pin(async { Ok(None) })
    }

    fn probe(&self) -> Done<'_, ()> {
        Box::pin(async move { self.offer().await.map(|_| ()) })
    }
}

impl ActionCache for Reapi {
    fn get<'a>(&'a self, key: &'a EntryKey) -> Done<'a, Option<Value>> {
        Box::pin(async move {
            let EntryKey::Action { namespace, action, size_known: true } = key else { return Ok(None) };
            let request = re::GetActionResultRequest {
                instance_name: self.instance_of(namespace),
                action_digest: Some(action.to_message()),
                digest_function: action.function().number(),
                ..Default::default()
            };
            let request = self.request(Bytes::from(request.encode_to_vec()));
            let mut client = self.client();
            ready(&mut client).await.map_err(|s| failed(&s))?;
            match client.unary(request, PathAndQuery::from_static(GET_RESULT), Raw).await {
                Ok(answer) => {
                    let bytes = answer.into_inner();
                    Ok(Some(Value { action_size: Some(action.size_bytes()), as_blob: false, bytes }))
                }
                Err(status) if status.code() == Code::NotFound => Ok(None),
                Err(status) => Err(failed(&status)),
            }
        })
    }

    fn put<'a>(&'a self, key: &'a EntryKey, value: Value) -> Done<'a, ()> {
        Box::pin(async move {
            let EntryKey::Action { namespace, action, size_known: true } = key else { return Ok(()) };
            let mut request = re::UpdateActionResultRequest {
                instance_name: self.instance_of(namespace),
                action_digest: Some(action.to_message()),
                digest_function: action.function().number(),
                ..Default::default()
            }
            .encode_to_vec();
            // Field 3, `action_result`, by hand: decoding and encoding it again could alter its bytes.
            prost::encoding::encode_key(3, prost::encoding::WireType::LengthDelimited, &mut request);
            prost::encoding::encode_varint(value.bytes.len() as u64, &mut request);
            request.extend_from_slice(&value.bytes);
            let mut client = self.client();
            ready(&mut client).await.map_err(|s| failed(&s))?;
            let request = self.request(Bytes::from(request));
            client
                .unary(request, PathAndQuery::from_static(UPDATE_RESULT), Raw)
                .await
                .map(|_| ())
                .map_err(|s| failed(&s))
        })
    }

    fn remove<'a>(&'a self, _key: &'a EntryKey) -> Done<'a, bool> {
        // The protocol has no call for it.
        Box::pin(async { Ok(false) })
    }
}
