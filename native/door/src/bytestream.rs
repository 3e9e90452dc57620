//! ByteStream and GetTree: blobs and trees in pieces. A blob is visible whole or not at all.

use std::sync::Arc;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::wire::google::bytestream as bs;
use buildnet_formats::{Compressor, Digest, Function, NativeError, ReadName, WriteName};
use buildnet_store::{Checked, Store, TreeWalk};
use bytes::Bytes;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::access::{Caller, Right};
use crate::behind;
use crate::codec::decode;
use crate::grpc::{Answer, Messages};
use crate::reading::{Piece, Reading};
use crate::reads::{ReadRequest, read_response_prefix};
use crate::rope::Rope;
use crate::services::Services;
use crate::squeeze::Unpacker;
use crate::status::status_of;
use crate::uploads::Slot;
use crate::wire::{WriteRequest, framed};

/// One message of a Read: large enough to be cheap, small enough for a core's own cache, and so for any client.
const CHUNK_BYTES: usize = 256 << 10;
/// Smaller disk work is done where it stands: a hop to another thread costs more.
const INLINE_BYTES: usize = 64 << 10;
/// What is gathered of an upload before a thread hashes and writes it.
const GATHER_BYTES: usize = 256 << 10;
const PAGE_BYTES_MAX: usize = 3 << 20;
/// Frames of a small blob that are kept as they came.
const FRAMES_BYTES_KEPT: usize = 128 << 10;

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

pub(crate) async fn read(services: &Services, caller: &Caller, body: Bytes) -> Result<Answer, Status> {
    let request = ReadRequest::decode(&body)?;
    let name = ReadName::parse(&request.resource_name).map_err(|e| status_of(&e))?;
    caller.check(Right::Read, &name.instance)?;
    let Ok(offset) = u64::try_from(request.offset) else {
        return Err(Status::out_of_range(format!("read_offset {} is negative", request.offset)));
    };
    let limit = match request.limit {
        0 => None,
        limit => Some(u64::try_from(limit).map_err(|_| Status::invalid_argument("read_limit is negative"))?),
    };
    let store = &services.store;
    let zstd = name.compressor == Compressor::Zstd;
    if zstd && limit.is_some() {
        return Err(Status::invalid_argument("read_limit must be 0 when the blob travels compressed"));
    }
    if zstd
        && offset == 0
        && let Some(frames) = store.packed_zstd(&name.digest)
    {
        return Ok(Answer::One(Some(framed(&bs::ReadResponse { data: frames }))));
    }
    let place = (offset, limit);
    let reading = Box::pin(Reading::open(store, services.tiers.as_ref(), &name.digest, place, CHUNK_BYTES)).await;
    let mut reading = reading.map_err(|e| status_of(&e))?;
    if zstd {
        // The offset counts bytes of the blob; what is sent is one stream of all that follows it.
        reading = reading.packed().map_err(|e| status_of(&e))?;
    } else if reading.is_whole() {
        let chunk = reading.whole().map_err(|e| status_of(&e))?;
        return Ok(Answer::One(chunk.map(|chunk| message_of(Piece::Plain(chunk)))));
    }
    let pieces = stream::try_unfold(reading, |reading| async move {
        Ok::<_, Status>(reading.next().await?.map(|(piece, rest)| (message_of(piece), rest)))
    });
    Ok(Answer::Pieces(Box::pin(pieces)))
}

fn message_of(piece: Piece) -> Bytes {
    match piece {
        Piece::Plain(chunk) => {
            let (prefix, used) = read_response_prefix(chunk.len());
            chunk.framed(&prefix[..used])
        }
        Piece::Packed(bytes) => framed(&bs::ReadResponse { data: bytes.into() }),
    }
}

/// An upload; dropped before its end, it waits for its client.
struct Upload<'a> {
    services: &'a Services,
    name: &'a WriteName,
    slot: Slot,
    /// A thread that writes to the slot.
    writing: Option<tokio::task::JoinHandle<Result<(), NativeError>>>,
    gathered: Rope,
    ended: bool,
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.services.uploads.park(self.name, Arc::clone(&self.slot));
        }
    }
}

impl Upload<'_> {
    /// Take more bytes; much of it is hashed and written by a thread while more arrives.
    async fn take(&mut self, data: Rope, last: bool) -> Result<(), Status> {
        self.gathered.append(data);
        if self.gathered.len() < GATHER_BYTES && !last {
            return Ok(());
        }
        self.settle().await?;
        let gathered = std::mem::take(&mut self.gathered);
        if gathered.len() <= INLINE_BYTES {
            return write_all(&self.slot, &gathered).map_err(|e| status_of(&e));
        }
        let slot = Arc::clone(&self.slot);
        self.writing = Some(tokio::task::spawn_blocking(move || write_all(&slot, &gathered)));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), Status> {
        match self.writing.take() {
            None => Ok(()),
            Some(writing) => match writing.await {
                Ok(done) => done.map_err(|e| status_of(&e)),
                Err(_) => Err(Status::unavailable("the server is stopping")),
            },
        }
    }

    async fn commit(mut self) -> Result<(), Status> {
        self.settle().await?;
        self.ended = true;
        let Some(writer) = self.slot.lock().take() else { return Err(lost()) };
        // A rename is quick; waiting for the disk to have it is not.
        let cost = if self.services.store.waits_for_disk() { usize::MAX } else { 0 };
        on_disk(cost, move || writer.commit()).await
    }
}

fn lost() -> Status {
    Status::aborted("the upload was taken over by another call of the same name")
}

fn write_all(slot: &Slot, data: &Rope) -> Result<(), NativeError> {
    let mut slot = slot.lock();
    let writer = slot.as_mut().ok_or_else(|| NativeError::internal("the upload has no writer"))?;
    data.pieces().try_for_each(|piece| writer.write(piece))
}

pub(crate) async fn write(services: &Services, caller: &Caller, mut requests: Messages<'_>) -> Result<Bytes, Status> {
    let Some(first) = requests.next().await? else {
        return Err(Status::invalid_argument("the upload ended before its first message"));
    };
    let mut first = WriteRequest::decode(first)?;
    requests.record().saw(|| Bytes::copy_from_slice(first.resource_name.as_bytes()));
    let name = WriteName::parse(&first.resource_name).map_err(|e| status_of(&e))?;
    caller.check(Right::WriteCas, &name.instance)?;
    let size = name.digest.size_bytes().cast_signed();
    let compressed = name.compressor == Compressor::Zstd;
    // REAPI: an upload of what is already here ends at once, however much of it was sent.
    let answer = if services.store.is_promised(&name.digest) {
        committed(if compressed { -1 } else { size })
    } else if compressed {
        Box::pin(write_zstd(services, &name, first, requests)).await?
    } else if first.finish_write && first.write_offset == 0 && first.data.len() <= INLINE_BYTES {
        let _room = first.data.take_charges();
        let blob = Checked::new(name.digest, first.data.into_bytes()).map_err(|e| status_of(&e))?;
        services.writes.keep(&services.store, blob, requests.line()).await?;
        committed(size)
    } else {
        Box::pin(write_pieces(services, &name, first, requests)).await?
    };
    if let Some(tiers) = &services.tiers {
        Box::pin(behind::written(tiers, name.digest)).await?;
    }
    Ok(answer)
}

/// A blob in more than one message.
async fn write_pieces(
    services: &Services,
    name: &WriteName,
    first: WriteRequest,
    mut requests: Messages<'_>,
) -> Result<Bytes, Status> {
    let size = name.digest.size_bytes().cast_signed();
    let offset = offset_of(&first)?;
    let resumed = if offset > 0 { services.uploads.resume(name, offset) } else { None };
    let writer = match resumed {
        Some(writer) => writer,
        None if offset > 0 => return Err(not_there(offset, services.uploads.offset_of(name))),
        None => services.store.writer(name.digest).map_err(|e| status_of(&e))?,
    };
    let slot = Arc::new(Mutex::new(Some(writer)));
    let mut upload = Upload { services, name, slot, writing: None, gathered: Rope::default(), ended: false };
    let mut offset = offset;
    let mut request = first;
    loop {
        check_name(&request, name)?;
        if offset_of(&request)? != offset {
            upload.take(Rope::default(), true).await?;
            return Err(not_there(offset_of(&request)?, offset));
        }
        offset += request.data.len() as u64;
        if offset > name.digest.size_bytes() {
            upload.ended = true;
            return Err(Status::invalid_argument(format!("more than the {size} bytes that the name says were sent")));
        }
        upload.take(request.data, request.finish_write).await?;
        if request.finish_write {
            upload.commit().await?;
            return Ok(committed(size));
        }
        request = match requests.next().await {
            Ok(Some(message)) => WriteRequest::decode(message)?,
            broken => {
                // What arrived is kept for the client to go on from.
                upload.take(Rope::default(), true).await?;
                upload.settle().await?;
                broken?;
                return Err(Status::invalid_argument("the upload ended before finish_write"));
            }
        };
    }
}

/// The first offset is in bytes of the blob, those that follow count the compressed bytes sent (REAPI, ByteStream). An
/// upload that broke off begins anew.
async fn write_zstd(
    services: &Services,
    name: &WriteName,
    first: WriteRequest,
    mut requests: Messages<'_>,
) -> Result<Bytes, Status> {
    if offset_of(&first)? != 0 {
        return Err(not_there(offset_of(&first)?, 0));
    }
    let mut state = (
        services.store.writer(name.digest).map_err(|e| status_of(&e))?,
        Unpacker::new().map_err(|e| status_of(&e))?,
        Vec::new(),
    );
    let keeps = name.digest.size_bytes() <= FRAMES_BYTES_KEPT as u64;
    let mut sent = 0u64;
    let mut request = first;
    loop {
        check_name(&request, name)?;
        if offset_of(&request)? != sent {
            return Err(not_there(offset_of(&request)?, sent));
        }
        sent += request.data.len() as u64;
        let (data, finish) = (request.data, request.finish_write);
        // What it unpacks to is not known; more than a little goes to a thread.
        let cost = data.len().saturating_mul(4);
        state = on_disk(cost, move || {
            let (mut writer, mut unpacker, mut frames) = state;
            for piece in data.pieces() {
                unpacker.feed(piece, |more| writer.write(more))?;
                if keeps && frames.len() + piece.len() <= FRAMES_BYTES_KEPT {
                    frames.extend_from_slice(piece);
                }
            }
            Ok((writer, unpacker, frames))
        })
        .await?;
        if finish {
            let (writer, unpacker, frames) = state;
            unpacker.finish().map_err(|e| status_of(&e))?;
            let cost = if services.store.waits_for_disk() { usize::MAX } else { 0 };
            let whole = frames.len() as u64 == sent;
            on_disk(cost, move || writer.commit_as(whole.then_some(frames.as_slice()))).await?;
            return Ok(committed(sent.cast_signed()));
        }
        request = match requests.next().await? {
            Some(message) => WriteRequest::decode(message)?,
            None => return Err(Status::invalid_argument("the upload ended before finish_write")),
        };
    }
}

fn committed(committed_size: i64) -> Bytes {
    framed(&bs::WriteResponse { committed_size })
}

fn offset_of(request: &WriteRequest) -> Result<u64, Status> {
    u64::try_from(request.write_offset).map_err(|_| Status::invalid_argument("write_offset is negative"))
}

fn not_there(offset: u64, received: u64) -> Status {
    Status::invalid_argument(format!("write_offset {offset} does not follow the {received} bytes received"))
}

fn check_name(request: &WriteRequest, name: &WriteName) -> Result<(), Status> {
    if !request.resource_name.is_empty() && WriteName::parse(&request.resource_name).ok().as_ref() != Some(name) {
        return Err(Status::invalid_argument("resource_name changed within one upload"));
    }
    Ok(())
}

pub(crate) async fn get_tree(services: &Services, caller: &Caller, body: Bytes) -> Result<Answer, Status> {
    let request: re::GetTreeRequest = decode(body)?;
    caller.check(Right::Read, &request.instance_name)?;
    let function = Function::of_message(request.digest_function).map_err(|e| status_of(&e))?;
    let root = Digest::required_by(function, request.root_digest.as_ref(), "root_digest");
    let root = root.map_err(|e| status_of(&e))?;
    let page_size =
        usize::try_from(request.page_size).map_err(|_| Status::invalid_argument("page_size is negative"))?;
    if let Some(tiers) = &services.tiers {
        // What is nowhere, or no Directory, is the walk's to say.
        match tiers.pull_tree(root).await {
            Err(error) if error.code != "invalid_request" => return Err(status_of(&error)),
            _ => {}
        }
    }
    let mut tree = Tree {
        store: Arc::clone(&services.store),
        memory: Arc::clone(&services.walks),
        root,
        page_size,
        token: request.page_token,
        walk: None,
    };
    let first = tree.page().await?;
    let pages = stream::try_unfold((tree, Some(first)), |(mut tree, reply)| async move {
        let Some(reply) = reply else { return Ok(None) };
        let next = if tree.token.is_empty() { None } else { Some(tree.page().await?) };
        Ok(Some((framed(&reply), (tree, next))))
    });
    Ok(Answer::Pieces(Box::pin(pages)))
}

/// What all walks of GetTree remember between pages at most: about 160 MB. One that finds no room looks for its place anew.
pub(crate) const WALKED_DIRECTORIES_MAX: usize = 1_000_000;

/// A tree on its way to a client.
struct Tree {
    store: Arc<Store>,
    memory: Arc<Semaphore>,
    root: Digest,
    page_size: usize,
    /// Where the next page begins.
    token: String,
    walk: Option<(TreeWalk, OwnedSemaphorePermit)>,
}

impl Tree {
    async fn page(&mut self) -> Result<re::GetTreeResponse, Status> {
        let (walk, permit) = self.walk.take().unzip();
        let (store, root, size, token) = (Arc::clone(&self.store), self.root, self.page_size, self.token.clone());
        let (walk, page) = on_disk(usize::MAX, move || {
            let mut walk = match walk {
                Some(walk) => walk,
                None => store.tree_walk(&root, size, &token, PAGE_BYTES_MAX)?,
            };
            let page = walk.next_page()?;
            Ok((walk, page))
        })
        .await?;
        drop(permit);
        if !page.next_page_token.is_empty() {
            let known = u32::try_from(walk.known()).unwrap_or(u32::MAX);
            self.walk = Arc::clone(&self.memory).try_acquire_many_owned(known).ok().map(|permit| (walk, permit));
        }
        self.token.clone_from(&page.next_page_token);
        Ok(re::GetTreeResponse { directories: page.directories, next_page_token: page.next_page_token })
    }
}
