//! SplitBlob and SpliceBlob: a large blob as chunks that its content chooses, so that a change costs its chunks alone.
//! FastCDC 2020 by the parameters that GetCapabilities tells (REAPI ChunkingFunction).

use std::io::{self, Read};
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::build::bazel::remote::execution::v2::chunking_function::Value as Chunking;
use buildnet_formats::{Digest, Function, NativeError};
use buildnet_store::{BlobReader, EntryName, Store};
use bytes::Bytes;
use fastcdc::v2020::{self, Normalization, StreamCDC};
use prost::Message;
use tonic::Status;

use crate::access::{Caller, Right};
use crate::services::Services;
use crate::status::status_of;
use crate::wire::framed;

/// As the specification recommends.
pub(crate) const AVERAGE_BYTES: usize = 512 << 10;
const SEED: u64 = 0;
const CHUNKS_MAX: usize = 40_000;
const READ_BYTES: usize = 512 << 10;
/// Namespace of what is known of splits; no instance name begins with a slash.
const NAMESPACE: &str = "/chunks";

struct Stored {
    store: Arc<Store>,
    reader: BlobReader,
    held: Bytes,
}

impl Read for Stored {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.held.is_empty() {
            let next = self.store.next_chunk(&mut self.reader, READ_BYTES).map_err(io::Error::other)?;
            self.held = next.map(buildnet_store::Chunk::into_bytes).unwrap_or_default();
        }
        let length = self.held.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.held.split_to(length));
        Ok(length)
    }
}

impl Services {
    pub(crate) fn split(&self, caller: &Caller, request: &re::SplitBlobRequest) -> Result<Bytes, Status> {
        caller.check(Right::Read, &request.instance_name)?;
        let work = || {
            let function = Function::of_message(request.digest_function)?;
            let blob = Digest::required_by(function, request.blob_digest.as_ref(), "blob_digest")?;
            check_chunking(request.chunking_function)?;
            let chunks = self.chunks_of(&blob)?;
            Ok(re::SplitBlobResponse {
                chunk_digests: chunks.iter().map(Digest::to_message).collect(),
                chunking_function: Chunking::FastCdc2020 as i32,
            })
        };
        work().map(|response| framed(&response)).map_err(|e: NativeError| status_of(&e))
    }

    /// The chunks of a blob, which are here once this returns.
    fn chunks_of(&self, blob: &Digest) -> Result<Vec<Digest>, NativeError> {
        if !self.store.contains(blob) {
            return Err(NativeError::not_found("blob", blob.to_string()));
        }
        if is_whole(blob.size_bytes()) {
            return Ok(vec![*blob]);
        }
        let name = EntryName::path(NAMESPACE, &blob.to_string())?;
        if let Some(known) = self.store.get_path(&name)?
            && let Ok(known) = re::SplitBlobResponse::decode(known)
        {
            let digests: Vec<Digest> = known
                .chunk_digests
                .iter()
                .map(|message| Digest::from_message_by(Some(blob.function()), message))
                .collect::<Result<_, _>>()?;
            if self.store.find_missing(&digests)?.is_empty() {
                return Ok(digests);
            }
        }
        let reader = self.store.reader(blob, 0, None)?;
        let stored = Stored { store: Arc::clone(&self.store), reader, held: Bytes::new() };
        let mut chunks = Vec::new();
        let (least, most) = (AVERAGE_BYTES / 4, AVERAGE_BYTES * 4);
        let level = Normalization::Level2;
        for chunk in StreamCDC::with_level_and_seed(stored, least, AVERAGE_BYTES, most, level, SEED) {
            let data = chunk.map_err(|e| unread(e, blob))?.data;
            let digest = Digest::by(blob.function(), &data);
            self.store.put_expected(&digest, &data)?;
            chunks.push(digest);
        }
        let chunk_digests = chunks.iter().map(Digest::to_message).collect();
        let known = re::SplitBlobResponse { chunk_digests, ..Default::default() };
        self.store.put_path(&name, &known.encode_to_vec())?;
        Ok(chunks)
    }

    pub(crate) fn splice(&self, caller: &Caller, request: &re::SpliceBlobRequest) -> Result<Bytes, Status> {
        caller.check(Right::WriteCas, &request.instance_name)?;
        let work = || {
            let function = Function::of_message(request.digest_function)?;
            let blob = Digest::required_by(function, request.blob_digest.as_ref(), "blob_digest")?;
            check_chunking(request.chunking_function)?;
            if request.chunk_digests.len() > CHUNKS_MAX {
                return Err(NativeError::invalid(
                    "chunk_digests",
                    format!("more than {CHUNKS_MAX} chunks are too many"),
                ));
            }
            let chunks: Vec<Digest> = request
                .chunk_digests
                .iter()
                .map(|message| Digest::from_message_by(Some(blob.function()), message))
                .collect::<Result<_, _>>()?;
            if let Some(first) = self.store.find_missing(&chunks)?.first() {
                return Err(NativeError::not_found("chunk", first.to_string()));
            }
            if !self.store.is_promised(&blob) {
                let mut writer = self.store.writer(blob)?;
                for chunk in &chunks {
                    self.store.copy_to(chunk, &mut |data| writer.write(data))?;
                }
                writer.commit()?;
            }
            Ok(re::SpliceBlobResponse { blob_digest: Some(blob.to_message()) })
        };
        work().map(|response| framed(&response)).map_err(|e: NativeError| status_of(&e))
    }
}

/// Whether a blob is its own only chunk: one of a few is cheaper whole (REAPI ChunkingFunction: SHOULD NOT be chunked), and
/// the chunks of one that is very large would not fit a reply, nor could SpliceBlob take them.
fn is_whole(size_bytes: u64) -> bool {
    let average = AVERAGE_BYTES as u64;
    size_bytes < 4 * average || size_bytes > CHUNKS_MAX as u64 * average
}

/// Why a blob could not be cut: what the store said of it, where it was the store.
fn unread(error: v2020::Error, blob: &Digest) -> NativeError {
    let text = format!("cannot cut {blob}: {error}");
    match error {
        v2020::Error::IoError(error) => match error.into_inner().map(|inner| inner.downcast::<NativeError>()) {
            Some(Ok(said)) => *said,
            _ => NativeError::internal(text),
        },
        _ => NativeError::internal(text),
    }
}

/// UNKNOWN must always be accepted: the client need not say how it cut.
fn check_chunking(number: i32) -> Result<(), NativeError> {
    match Chunking::try_from(number) {
        Ok(Chunking::Unknown | Chunking::FastCdc2020) => Ok(()),
        _ => Err(NativeError::invalid(
            "chunking_function",
            format!("the chunking function {number} is not offered, FAST_CDC_2020 is"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunks_of_a_blob_fit_a_reply_and_a_splice() {
        assert!(is_whole(2 << 20) != is_whole((2 << 20) - 1));
        assert!(!is_whole(20_000 << 20));
        assert!(is_whole(64 << 30));
        let digest = Digest::of(b"chunk").to_message();
        let chunk_digests = vec![digest; CHUNKS_MAX];
        let reply = re::SplitBlobResponse { chunk_digests, ..Default::default() };
        assert!(reply.encoded_len() < crate::services::REPLY_BYTES_MAX);
    }

    #[test]
    fn a_rotten_blob_is_told_as_the_store_tells_it() {
        let blob = Digest::of(b"blob");
        let said = NativeError::not_found("blob", blob.to_string());
        assert_eq!(unread(v2020::Error::IoError(io::Error::other(said.clone())), &blob), said);
        assert_eq!(unread(v2020::Error::Empty, &blob).code, "internal");
    }
}
