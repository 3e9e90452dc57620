//! ByteStream and GetTree: blobs and trees in pieces. A blob is visible whole or not at all.

use std::pin::Pin;
use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_formats::{Digest, NativeError, ReadName, WriteName, check_digest_function};
use buildnet_store::{BlobReader, BlobWriter, Store};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tonic::{Response, Status, Streaming};

use crate::codec::{decode, encode};
use crate::status::status_of;

/// One message of a Read: large enough to be cheap, small enough for any client.
const CHUNK_BYTES: usize = 512 << 10;
/// Smaller disk work is done where it stands: a hop to another thread costs more.
const INLINE_BYTES: usize = 64 << 10;
const PAGE_BYTES_MAX: usize = 3 << 20;

pub(crate) type Replies = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Do disk work of about `bytes` without holding up the network.
pub(crate) async fn on_disk<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, NativeError> + Send + 'static,
) -> Result<T, Status> {
    if bytes <= INLINE_BYTES {
        return work().map_err(|e| status_of(&e));
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|e| status_of(&e)),
        Err(_) => Err(Status::unavailable("the server is stopping")),
    }
}

pub(crate) async fn read(store: Arc<Store>, body: Bytes) -> Result<Response<Replies>, Status> {
    let request: bs::ReadRequest = decode(body)?;
    let name = ReadName::parse(&request.resource_name).map_err(|e| status_of(&e))?;
    let Ok(offset) = u64::try_from(request.read_offset) else {
        return Err(Status::out_of_range(format!("read_offset {} is negative", request.read_offset)));
    };
    let limit = match request.read_limit {
        0 => None,
        limit => Some(u64::try_from(limit).map_err(|_| Status::invalid_argument("read_limit is negative"))?),
    };
    let reader = store.reader(&name.digest, offset, limit).map_err(|e| status_of(&e))?;
    let replies = stream::try_unfold((store, reader), |(store, reader)| async move {
        let size = usize::try_from(reader.remaining()).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let (store, reader, chunk) = on_disk(size, move || next_chunk(store, reader)).await?;
        Ok(chunk.map(|data| (encode(&bs::ReadResponse { data }), (store, reader))))
    });
    Ok(Response::new(Box::pin(replies)))
}

type Step = (Arc<Store>, BlobReader, Option<Bytes>);

fn next_chunk(store: Arc<Store>, mut reader: BlobReader) -> Result<Step, NativeError> {
    let chunk = store.next_chunk(&mut reader, CHUNK_BYTES)?;
    Ok((store, reader, chunk))
}

pub(crate) async fn write(store: Arc<Store>, mut requests: Streaming<Bytes>) -> Result<Response<Bytes>, Status> {
    let Some(first) = next(&mut requests).await? else {
        return Err(Status::invalid_argument("the upload ended before its first message"));
    };
    let name = WriteName::parse(&first.resource_name).map_err(|e| status_of(&e))?;
    let size = name.digest.size_bytes();
    let committed = |size: u64| Ok(Response::new(encode(&bs::WriteResponse { committed_size: size.cast_signed() })));
    // REAPI: an upload of what is already here ends at once, however much of it was sent.
    if store.contains(&name.digest) {
        return committed(size);
    }
    let mut writer = store.writer(name.digest).map_err(|e| status_of(&e))?;
    let mut request = first;
    loop {
        if !request.resource_name.is_empty() && WriteName::parse(&request.resource_name).ok().as_ref() != Some(&name) {
            return Err(Status::invalid_argument("resource_name changed within one upload"));
        }
        if u64::try_from(request.write_offset).ok() != Some(writer.offset()) {
            return Err(Status::invalid_argument(format!(
                "write_offset {} does not follow the {} bytes received",
                request.write_offset,
                writer.offset()
            )));
        }
        let (data, finish) = (request.data, request.finish_write);
        writer = on_disk(data.len(), move || append(writer, &data)).await?;
        if finish {
            // A rename is quick; waiting for the disk to have it is not.
            let cost = if store.waits_for_disk() { usize::MAX } else { 0 };
            on_disk(cost, move || writer.commit()).await?;
            return committed(size);
        }
        request = match next(&mut requests).await? {
            Some(request) => request,
            None => return Err(Status::invalid_argument("the upload ended before finish_write")),
        };
    }
}

fn append(mut writer: BlobWriter, data: &[u8]) -> Result<BlobWriter, NativeError> {
    writer.write(data)?;
    Ok(writer)
}

async fn next(requests: &mut Streaming<Bytes>) -> Result<Option<bs::WriteRequest>, Status> {
    match requests.message().await? {
        Some(body) => decode(body).map(Some),
        None => Ok(None),
    }
}

pub(crate) async fn get_tree(store: Arc<Store>, body: Bytes) -> Result<Response<Replies>, Status> {
    let request: re::GetTreeRequest = decode(body)?;
    check_digest_function(request.digest_function).map_err(|e| status_of(&e))?;
    let root = Digest::required(request.root_digest.as_ref(), "root_digest").map_err(|e| status_of(&e))?;
    let page_size =
        usize::try_from(request.page_size).map_err(|_| Status::invalid_argument("page_size is negative"))?;
    let first = page(Arc::clone(&store), root, page_size, request.page_token).await?;
    let replies = stream::try_unfold(Some(first), move |state| {
        let store = Arc::clone(&store);
        async move {
            let Some(reply) = state else { return Ok(None) };
            let token = reply.next_page_token.clone();
            let next = if token.is_empty() { None } else { Some(page(store, root, page_size, token).await?) };
            Ok(Some((encode(&reply), next)))
        }
    });
    Ok(Response::new(Box::pin(replies)))
}

async fn page(store: Arc<Store>, root: Digest, size: usize, token: String) -> Result<re::GetTreeResponse, Status> {
    let page = on_disk(usize::MAX, move || store.tree_page(&root, size, &token, PAGE_BYTES_MAX)).await?;
    Ok(re::GetTreeResponse { directories: page.directories, next_page_token: page.next_page_token })
}
