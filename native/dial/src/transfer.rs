//! Push what the server lacks, fetch what the store lacks; batches for small blobs, streams for large ones.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_formats::{Digest, Hasher};
use buildnet_store::{BlobReader, Chunk, Store};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use crate::channel::{bytes_of, ready};
use crate::input_tree::{Source, hash_file};
use crate::{DialError, InputTree, Link};

const FIND_MISSING: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
const BATCH_UPDATE: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
const BATCH_READ: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs";
const WRITE: &str = "/google.bytestream.ByteStream/Write";
const READ: &str = "/google.bytestream.ByteStream/Read";

/// Digests in one FindMissingBlobs: 20,000 of about 75 bytes stay under a 4 MiB message.
const DIGESTS_PER_CALL: usize = 20_000;
/// Payload of one batch; with a digest and a status for each blob the message stays under 4 MiB.
const BATCH_BYTES: u64 = 3 << 20;
const BATCH_BLOBS: usize = 4_000;
const SMALL_BYTES: u64 = 1 << 20;
const CHUNK_BYTES: usize = 512 << 10;
const CALLS_AT_ONCE: usize = 4;
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
const DIRECTORIES_MAX: usize = 1_000_000;
const LEVELS_MAX: usize = 1_000;

/// What a transfer moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Blobs that were asked for.
    pub asked: u64,
    /// Blobs that had to travel.
    pub blobs: u64,
    /// Their sizes together.
    pub bytes: u64,
}

impl Link {
    /// Which of `digests` the server lacks.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, DialError> {
        self.runtime.block_on(self.missing(digests))
    }

    /// Upload bytes in memory unless the server has them.
    ///
    /// # Errors
    /// As [`Link::push`].
    pub fn put_bytes(&self, data: Bytes) -> Result<Digest, DialError> {
        let digest = Digest::of(&data);
        self.push(&HashMap::from([(digest, Source::Bytes(data))]))?;
        Ok(digest)
    }

    /// Upload a local file unless the server has it.
    ///
    /// # Errors
    /// As [`Link::push`].
    pub fn put_file(&self, path: &Path) -> Result<Digest, DialError> {
        let digest = hash_file(path)?;
        self.push(&HashMap::from([(digest, Source::Path(path.to_owned()))]))?;
        Ok(digest)
    }

    /// Upload what the server lacks of a tree.
    ///
    /// # Errors
    /// As [`Link::push`].
    pub fn push_tree(&self, tree: &InputTree) -> Result<Moved, DialError> {
        self.push(tree.blobs())
    }

    /// Upload what the server lacks of these blobs of a store.
    ///
    /// # Errors
    /// As [`Link::push`]; also when the store lacks one of them.
    pub fn push_blobs(&self, store: &Arc<Store>, digests: &[Digest]) -> Result<Moved, DialError> {
        let mut blobs = HashMap::with_capacity(digests.len());
        for digest in digests {
            if !digest.is_empty() {
                blobs.insert(*digest, Source::Stored(Arc::clone(store), *digest));
            }
        }
        self.push(&blobs)
    }

    /// Upload what the server lacks of these blobs.
    ///
    /// # Errors
    /// A source cannot be read or changed since it was hashed; the server cannot be reached or refuses.
    pub fn push(&self, blobs: &HashMap<Digest, Source>) -> Result<Moved, DialError> {
        self.runtime.block_on(async {
            let mut wanted: Vec<Digest> = blobs.keys().copied().collect();
            wanted.sort_unstable();
            let missing = self.missing(&wanted).await?;
            let (small, large): (Vec<Digest>, Vec<Digest>) =
                missing.iter().copied().partition(|d| d.size_bytes() <= SMALL_BYTES);
            let batches = batches_of(&small);
            stream::iter(batches.into_iter().map(|batch| self.send_batch(batch, blobs)))
                .buffer_unordered(CALLS_AT_ONCE)
                .try_collect::<()>()
                .await?;
            stream::iter(large.into_iter().map(|digest| self.send_stream(digest, blobs[&digest].clone())))
                .buffer_unordered(CALLS_AT_ONCE)
                .try_collect::<()>()
                .await?;
            Ok(Moved {
                asked: wanted.len() as u64,
                blobs: missing.len() as u64,
                bytes: missing.iter().map(|d| d.size_bytes()).sum(),
            })
        })
    }

    /// Download a blob into memory, verified.
    ///
    /// # Errors
    /// The blob is absent or over `size_bytes_max`; what arrives is not the blob.
    pub fn get_bytes(&self, digest: &Digest, size_bytes_max: u64) -> Result<Bytes, DialError> {
        if digest.size_bytes() > size_bytes_max {
            return Err(DialError::Refused {
                call: "get",
                code: "too_large",
                message: format!("{digest} is over the limit of {size_bytes_max} bytes; fetch it to a file"),
            });
        }
        let mut data = Vec::with_capacity(digest.size_bytes().min(size_bytes_max) as usize);
        self.runtime.block_on(self.receive(digest, |chunk| {
            data.extend_from_slice(&chunk);
            Ok(())
        }))?;
        Ok(bytes_of(data))
    }

    /// Copy what the store lacks of these blobs from the server, verified.
    ///
    /// # Errors
    /// [`DialError::Missing`] names every blob that the server lacks too.
    pub fn fetch_blobs(&self, store: &Arc<Store>, digests: &[Digest]) -> Result<Moved, DialError> {
        self.runtime.block_on(self.fetch(store, digests))
    }

    /// Copy what the store lacks of a whole input tree from the server, verified.
    ///
    /// # Errors
    /// [`DialError::Missing`] names every blob found absent; a tree that is malformed or past its limits.
    pub fn fetch_tree(&self, store: &Arc<Store>, root: &Digest) -> Result<Moved, DialError> {
        self.runtime.block_on(async {
            let mut moved = Moved::default();
            let mut seen = HashSet::from([*root]);
            let mut files = HashSet::new();
            let mut level = vec![*root];
            for _ in 0..LEVELS_MAX {
                if level.is_empty() {
                    let files: Vec<Digest> = files.into_iter().collect();
                    moved += self.fetch(store, &files).await?;
                    return Ok(moved);
                }
                moved += self.fetch(store, &level).await?;
                let mut next = Vec::new();
                for digest in &level {
                    let directory = decode_directory(&store.get_bytes(digest, DIRECTORY_BYTES_MAX)?, digest)?;
                    for file in &directory.files {
                        files.insert(digest_of(file.digest.as_ref())?);
                    }
                    for child in &directory.directories {
                        let child = digest_of(child.digest.as_ref())?;
                        if seen.insert(child) {
                            next.push(child);
                        }
                    }
                }
                if seen.len() > DIRECTORIES_MAX {
                    return Err(DialError::Invalid(format!("the tree {root} has over {DIRECTORIES_MAX} directories")));
                }
                level = next;
            }
            Err(DialError::Invalid(format!("the tree {root} is nested deeper than {LEVELS_MAX} levels")))
        })
    }

    async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, DialError> {
        let mut missing = Vec::new();
        for part in digests.chunks(DIGESTS_PER_CALL) {
            let request = re::FindMissingBlobsRequest {
                instance_name: self.options.instance.clone(),
                blob_digests: part.iter().map(Digest::to_message).collect(),
                ..Default::default()
            };
            let answer: re::FindMissingBlobsResponse = self.unary(FIND_MISSING, request).await?;
            for digest in &answer.missing_blob_digests {
                missing.push(digest_of(Some(digest))?);
            }
        }
        Ok(missing)
    }

    async fn send_batch(&self, batch: Vec<Digest>, blobs: &HashMap<Digest, Source>) -> Result<(), DialError> {
        let mut request =
            re::BatchUpdateBlobsRequest { instance_name: self.options.instance.clone(), ..Default::default() };
        for digest in &batch {
            let data = match &blobs[digest] {
                Source::Bytes(data) => data.clone(),
                Source::Path(path) => bytes_of(std::fs::read(path).map_err(|e| DialError::local(path, e))?),
                Source::Stored(store, digest) => store.get_bytes(digest, SMALL_BYTES)?,
            };
            if data.len() as u64 != digest.size_bytes() {
                return Err(changed(digest));
            }
            request.requests.push(re::batch_update_blobs_request::Request {
                digest: Some(digest.to_message()),
                data,
                ..Default::default()
            });
        }
        let answer: re::BatchUpdateBlobsResponse = self.unary(BATCH_UPDATE, request).await?;
        for response in answer.responses {
            if let Some(status) = response.status.filter(|s| s.code != 0) {
                let status = tonic::Status::new(tonic::Code::from_i32(status.code), status.message);
                return Err(DialError::from_status("BatchUpdateBlobs", &self.url, &status));
            }
        }
        Ok(())
    }

    async fn send_stream(&self, digest: Digest, source: Source) -> Result<(), DialError> {
        let name = format!("{}uploads/{}/blobs/{digest}", self.prefix(), upload_id(&digest));
        let chunks = Chunks::open(&source)?;
        let total = digest.size_bytes();
        let messages = stream::unfold((chunks, 0u64, false), move |(mut chunks, offset, ended)| {
            let name = name.clone();
            async move {
                if ended {
                    return None;
                }
                // A read that fails or a file that shrank ends the stream early; the server then refuses the upload.
                let data = chunks.read_at(offset).ok()?;
                let after = offset + data.len() as u64;
                let finish = after >= total || data.is_empty();
                let message = bs::WriteRequest {
                    resource_name: if offset == 0 { name } else { String::new() },
                    write_offset: offset as i64,
                    finish_write: finish,
                    data,
                };
                Some((message, (chunks, after, finish)))
            }
        });
        let mut client = self.client();
        let refused = |status: tonic::Status| DialError::from_status(WRITE, &self.url, &status);
        ready(&mut client).await.map_err(refused)?;
        let answer: tonic::Response<bs::WriteResponse> = client
            .client_streaming(
                tonic::Request::new(messages),
                PathAndQuery::from_static(WRITE),
                ProstCodec::<bs::WriteRequest, bs::WriteResponse>::default(),
            )
            .await
            .map_err(refused)?;
        let committed = answer.into_inner().committed_size;
        if committed == total as i64 { Ok(()) } else { Err(changed(&digest)) }
    }

    async fn fetch(&self, store: &Arc<Store>, digests: &[Digest]) -> Result<Moved, DialError> {
        let lacking = store.find_missing(digests)?;
        let (small, large): (Vec<Digest>, Vec<Digest>) =
            lacking.iter().copied().partition(|d| d.size_bytes() <= SMALL_BYTES);
        let mut absent: Vec<Digest> = stream::iter(batches_of(&small).into_iter().map(|b| self.read_batch(store, b)))
            .buffer_unordered(CALLS_AT_ONCE)
            .try_concat()
            .await?;
        let streamed: Vec<Option<Digest>> = stream::iter(large.into_iter().map(|digest| self.read_into(store, digest)))
            .buffer_unordered(CALLS_AT_ONCE)
            .try_collect()
            .await?;
        absent.extend(streamed.into_iter().flatten());
        if !absent.is_empty() {
            absent.sort_unstable();
            return Err(DialError::Missing(absent.iter().map(ToString::to_string).collect()));
        }
        Ok(Moved {
            asked: digests.len() as u64,
            blobs: lacking.len() as u64,
            bytes: lacking.iter().map(|d| d.size_bytes()).sum(),
        })
    }

    /// Blobs by batch; `None` for what the server lacks.
    pub(crate) async fn batch_read(&self, batch: &[Digest]) -> Result<Vec<(Digest, Option<Bytes>)>, DialError> {
        let request = re::BatchReadBlobsRequest {
            instance_name: self.options.instance.clone(),
            digests: batch.iter().map(Digest::to_message).collect(),
            ..Default::default()
        };
        let answer: re::BatchReadBlobsResponse = self.unary(BATCH_READ, request).await?;
        let mut wanted: HashSet<Digest> = batch.iter().copied().collect();
        let mut blobs = Vec::with_capacity(batch.len());
        for response in answer.responses {
            let digest = digest_of(response.digest.as_ref())?;
            if !wanted.remove(&digest) {
                return Err(DialError::Mismatch(digest.to_string()));
            }
            match response.status.unwrap_or_default() {
                status if status.code == 0 => {
                    if Digest::of(&response.data) != digest {
                        return Err(DialError::Mismatch(digest.to_string()));
                    }
                    blobs.push((digest, Some(response.data)));
                }
                status if status.code == tonic::Code::NotFound as i32 => blobs.push((digest, None)),
                status => {
                    let status = tonic::Status::new(tonic::Code::from_i32(status.code), status.message);
                    return Err(DialError::from_status("BatchReadBlobs", &self.url, &status));
                }
            }
        }
        blobs.extend(wanted.into_iter().map(|digest| (digest, None)));
        Ok(blobs)
    }

    async fn read_batch(&self, store: &Arc<Store>, batch: Vec<Digest>) -> Result<Vec<Digest>, DialError> {
        let mut absent = Vec::new();
        for (digest, data) in self.batch_read(&batch).await? {
            match data {
                Some(data) => {
                    store.put_bytes(&data)?;
                }
                None => absent.push(digest),
            }
        }
        Ok(absent)
    }

    async fn read_into(&self, store: &Arc<Store>, digest: Digest) -> Result<Option<Digest>, DialError> {
        let mut writer = store.writer(digest)?;
        let done = self
            .receive(&digest, |chunk| {
                writer.write(&chunk)?;
                Ok(())
            })
            .await;
        match done {
            Ok(()) => {
                writer.commit()?;
                Ok(None)
            }
            Err(DialError::Missing(_)) => Ok(Some(digest)),
            Err(error) => Err(error),
        }
    }

    /// Hand each chunk of a blob to `take`, then check that together they were the blob.
    pub(crate) async fn receive(
        &self,
        digest: &Digest,
        mut take: impl FnMut(Bytes) -> Result<(), DialError>,
    ) -> Result<(), DialError> {
        let mut hasher = Hasher::default();
        let mut received = 0;
        if !digest.is_empty() {
            let request =
                bs::ReadRequest { resource_name: format!("{}blobs/{digest}", self.prefix()), ..Default::default() };
            let refused = |status: tonic::Status| match status.code() {
                tonic::Code::NotFound => DialError::Missing(vec![digest.to_string()]),
                _ => DialError::from_status(READ, &self.url, &status),
            };
            let mut client = self.client();
            ready(&mut client).await.map_err(refused)?;
            let answer = client
                .server_streaming(
                    tonic::Request::new(request),
                    PathAndQuery::from_static(READ),
                    ProstCodec::<bs::ReadRequest, bs::ReadResponse>::default(),
                )
                .await
                .map_err(refused)?;
            let mut chunks = answer.into_inner();
            while let Some(chunk) = chunks.message().await.map_err(refused)? {
                received += chunk.data.len() as u64;
                if received > digest.size_bytes() {
                    return Err(DialError::Mismatch(digest.to_string()));
                }
                hasher.update(&chunk.data);
                take(chunk.data)?;
            }
        }
        if hasher.finish() == *digest { Ok(()) } else { Err(DialError::Mismatch(digest.to_string())) }
    }
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, more: Self) {
        self.asked += more.asked;
        self.blobs += more.blobs;
        self.bytes += more.bytes;
    }
}

/// A source read in chunks by offset.
enum Chunks {
    File(File),
    Bytes(Bytes),
    Stored(Arc<Store>, BlobReader),
}

impl Chunks {
    fn open(source: &Source) -> Result<Self, DialError> {
        match source {
            Source::Bytes(data) => Ok(Self::Bytes(data.clone())),
            Source::Path(path) => Ok(Self::File(File::open(path).map_err(|e| DialError::local(path, e))?)),
            Source::Stored(store, digest) => {
                let reader = store.reader(digest, 0, None)?;
                Ok(Self::Stored(Arc::clone(store), reader))
            }
        }
    }

    fn read_at(&mut self, offset: u64) -> std::io::Result<Bytes> {
        match self {
            // Asked in order, so the reader stands at `offset`.
            Self::Stored(store, reader) => {
                let chunk = store.next_chunk(reader, CHUNK_BYTES).map_err(std::io::Error::other)?;
                Ok(chunk.map(Chunk::into_bytes).unwrap_or_default())
            }
            Self::Bytes(data) => {
                let start = (offset as usize).min(data.len());
                Ok(data.slice(start..(start + CHUNK_BYTES).min(data.len())))
            }
            Self::File(file) => {
                let mut buffer = vec![0; CHUNK_BYTES];
                let n = file.read_at(&mut buffer, offset)?;
                buffer.truncate(n);
                Ok(bytes_of(buffer))
            }
        }
    }
}

/// Group small blobs so that each group fits one message.
pub(crate) fn batches_of(digests: &[Digest]) -> Vec<Vec<Digest>> {
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for digest in digests {
        if !batch.is_empty() && (bytes + digest.size_bytes() > BATCH_BYTES || batch.len() >= BATCH_BLOBS) {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += digest.size_bytes();
        batch.push(*digest);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

pub(crate) fn digest_of(message: Option<&re::Digest>) -> Result<Digest, DialError> {
    let message = message.ok_or_else(|| DialError::Invalid("a digest is absent".to_owned()))?;
    Ok(Digest::from_message(message)?)
}

pub(crate) fn decode_directory(bytes: &[u8], digest: &Digest) -> Result<re::Directory, DialError> {
    re::Directory::decode(bytes).map_err(|_| DialError::Invalid(format!("{digest} is not a Directory")))
}

fn changed(digest: &Digest) -> DialError {
    DialError::Invalid(format!("the file of {digest} changed while it was uploaded; run again"))
}

/// An upload id that is stable for one blob from one process, in the form of a UUID.
fn upload_id(digest: &Digest) -> String {
    let mut random = [0u8; 16];
    // A short read only makes two uploads share a name, which servers must bear (ByteStream resource names).
    if File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut random)).is_err() {
        random.copy_from_slice(&digest.hash()[..16]);
    }
    let hex: String = random.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
