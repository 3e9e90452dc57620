//! A request's body on its way in: hashed and written by another thread while more arrives, never held whole, and dropped
//! when its client falls silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use buildnet_formats::{Digest, NativeError};
use buildnet_store::{BlobWriter, Intake};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::request::Parts;
use http::{StatusCode, header};
use http_body_util::{BodyStream, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;

use super::encoding::Coding;
use super::refusal::Refusal;
use super::route::bad;
use crate::check::Check;
use crate::rope::Rope;
use crate::squeeze::Unpacker;
use crate::watched::Received;

/// A body of which nothing comes for so long is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// What is gathered before a thread hashes and writes it.
const GATHER_BYTES: usize = 512 << 10;
/// Less is written where it stands.
const INLINE_BYTES: usize = 64 << 10;
/// A body that nobody wants is read before the answer when it is so small: the connection can be used again.
const SETTLED_BYTES_MAX: u64 = 1 << 20;
/// How much of one is read after the answer, before the connection is closed.
const DRAINED_BYTES_MAX: u64 = 256 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames of a small blob that are kept as they came.
const FRAMES_BYTES_KEPT: usize = 128 << 10;
/// What a piece of a body takes besides its bytes: a body may come one byte at a time.
const PIECE_BYTES: usize = 64;
/// Bytes of bodies that all requests together hold in memory. Past it they go to the disk in small pieces.
const HELD_BYTES_MAX: usize = 64 << 20;

/// How many bytes of bodies are in memory.
#[derive(Clone, Default)]
pub(super) struct Budget(Arc<AtomicUsize>);

/// The part of one body.
struct Held {
    budget: Budget,
    bytes: usize,
}

impl Held {
    fn set(&mut self, bytes: usize) {
        self.budget.0.fetch_add(bytes, Ordering::Relaxed);
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }

    fn is_pressed(&self) -> bool {
        self.budget.0.load(Ordering::Relaxed) > HELD_BYTES_MAX
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The body of one request.
pub(super) struct Inbound {
    body: BodyStream<Incoming>,
    announced: Option<u64>,
    /// The client sends nothing: it waits for a word first, or has fallen silent.
    waits: bool,
    ended: bool,
    budget: Budget,
    /// What came of it is counted here: what is announced may never come, and need not be announced.
    received: Arc<Received>,
}

impl Inbound {
    pub(super) fn new(parts: &Parts, body: Incoming, budget: &Budget, received: Arc<Received>) -> Self {
        Self {
            budget: budget.clone(),
            received,
            announced: body.size_hint().exact(),
            waits: parts
                .headers
                .get(header::EXPECT)
                .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue")),
            ended: body.is_end_stream(),
            body: BodyStream::new(body),
        }
    }

    /// The size of the body, where its client said it.
    pub(super) fn announced(&self) -> Option<u64> {
        self.announced
    }

    /// Refuse a body by the size that is announced, before any of it is read.
    ///
    /// # Errors
    /// 413.
    pub(super) fn check_announced(&self, bytes_max: u64) -> Result<(), Refusal> {
        match self.announced {
            Some(size) if size > bytes_max => {
                let message = format!("a body of {size} bytes is over the limit of {bytes_max} here");
                Err(NativeError::too_large(message, bytes_max).into())
            }
            _ => Ok(()),
        }
    }

    /// Whether the client sends nothing until it is told to.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    fn held(&self) -> Held {
        Held { budget: self.budget.clone(), bytes: 0 }
    }

    /// The next bytes.
    ///
    /// # Errors
    /// 400 when the body breaks off, 408 when nothing comes.
    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        // From the first look on the client has been told to send.
        self.waits = false;
        loop {
            match timeout(IDLE_TIMEOUT, self.body.next()).await {
                Err(_) => {
                    self.waits = true;
                    return Err(Refusal::new(
                        StatusCode::REQUEST_TIMEOUT,
                        "deadline_passed",
                        format!("nothing of the body came for {} s; send it again", IDLE_TIMEOUT.as_secs()),
                    ));
                }
                Ok(None) => {
                    self.ended = true;
                    return Ok(None);
                }
                Ok(Some(Err(error))) => {
                    self.waits = true;
                    return Err(bad(&format!("the body broke off: {error}")));
                }
                // What is not data are trailers.
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.received.came(data.len());
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// A small body as a whole.
    ///
    /// # Errors
    /// 413; 503 while there is no memory for it; else as [`Inbound::take`].
    pub(super) async fn whole(&mut self, bytes_max: usize) -> Result<Bytes, Refusal> {
        self.check_announced(bytes_max as u64)?;
        let (mut body, mut held) = (BytesMut::new(), self.held());
        while let Some(data) = self.next().await? {
            body.extend_from_slice(&data);
            held.set(body.len());
            if held.is_pressed() {
                return Err(NativeError::new("overloaded", "many requests are being read; try again").into());
            }
            if body.len() > bytes_max {
                let message = format!("the body is over the limit of {bytes_max} bytes here");
                return Err(NativeError::too_large(message, bytes_max as u64).into());
            }
        }
        Ok(body.freeze())
    }

    /// Let the body go through a sink.
    ///
    /// # Errors
    /// Those of the sink; 400 when the body breaks off or is not the zstd that it says; 408.
    pub(super) async fn take<S: Sink>(&mut self, sink: S, coding: Coding) -> Result<Taken<S>, Refusal> {
        let unpacker = match coding {
            Coding::Identity => None,
            Coding::Zstd => Some(Unpacker::new()?),
        };
        let mut idle = Some(Flow { sink, frames: unpacker.is_some().then(Vec::new), unpacker });
        let mut busy: Option<JoinHandle<Result<Flow<S>, NativeError>>> = None;
        let (mut gathered, mut in_sink, mut held) = (Rope::default(), 0, self.held());
        let mut gathered_bytes = 0;
        loop {
            let data = self.next().await?;
            let last = data.is_none();
            let data = data.unwrap_or_default();
            gathered_bytes += data.len() + PIECE_BYTES;
            gathered.push(data);
            held.set(gathered_bytes + in_sink);
            let pressed = held.is_pressed();
            if gathered_bytes < (if pressed { INLINE_BYTES } else { GATHER_BYTES }) && !last {
                continue;
            }
            if let Some(writing) = busy.take() {
                idle = Some(join(writing).await?);
            }
            let Some(mut flow) = idle.take() else { return Err(NativeError::internal("a body without a sink").into()) };
            let batch = std::mem::take(&mut gathered);
            gathered_bytes = 0;
            in_sink = batch.len() + flow.sink.held_bytes();
            // A few bytes of zstd may be very many: they are unpacked by another thread always.
            if flow.unpacker.is_none() && batch.len() <= INLINE_BYTES && !pressed {
                flow.write(&batch, false)?;
                idle = Some(flow);
            } else {
                busy = Some(tokio::task::spawn_blocking(move || flow.write(&batch, pressed).map(|()| flow)));
            }
            if last {
                let flow = match busy.take() {
                    Some(writing) => Some(join(writing).await?),
                    None => idle.take(),
                };
                let flow = flow.ok_or_else(|| NativeError::internal("a body without a sink"))?;
                return Ok(flow.finish()?);
            }
        }
    }

    /// Read the little that is left, so that the connection can be used again.
    pub(super) async fn settle(&mut self) -> Rest {
        if !self.ended && !self.waits && self.announced.is_some_and(|size| size <= SETTLED_BYTES_MAX) {
            self.waits = !self.drain(SETTLED_BYTES_MAX).await;
        }
        match (self.ended, self.waits) {
            (true, _) => Rest::Nothing,
            (_, true) => Rest::NeverSent,
            _ => Rest::Coming,
        }
    }

    /// Read what still comes, within limits, for clients that read no answer before they have sent all.
    /// Returns whether there was enough time.
    async fn drain(&mut self, bytes_max: u64) -> bool {
        let reading = timeout(DRAIN_TIMEOUT, async {
            let mut read = 0;
            while let Ok(Some(data)) = self.next().await {
                read += data.len() as u64;
                if read > bytes_max {
                    return;
                }
            }
        });
        reading.await.is_ok()
    }

    /// A response's body that begins with `body` at once, and ends when what still comes has been read or was too much:
    /// a connection that is closed before that may take the answer with it.
    pub(super) fn linger(mut self, body: Body) -> Body {
        let rest = futures_util::stream::once(async move {
            self.drain(DRAINED_BYTES_MAX).await;
            Ok::<_, Status>(Frame::data(Bytes::new()))
        });
        Body::new(StreamBody::new(BodyStream::new(body).chain(rest)))
    }
}

/// What is left of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Nothing,
    /// Nothing more comes: the client waited for a word that it did not get, or fell silent.
    NeverSent,
    Coming,
}

async fn join<T>(working: JoinHandle<Result<T, NativeError>>) -> Result<T, Refusal> {
    match working.await {
        Ok(done) => Ok(done?),
        Err(_) => Err(NativeError::new("overloaded", "the server is stopping; try again").into()),
    }
}

/// Do disk work on another thread where it may take long.
pub(super) async fn on_disk<T: Send + 'static>(
    is_slow: bool,
    work: impl FnOnce() -> Result<T, NativeError> + Send + 'static,
) -> Result<T, Refusal> {
    if is_slow { join(tokio::task::spawn_blocking(work)).await } else { Ok(work()?) }
}

/// Where bytes go.
pub(super) trait Sink: Send + 'static {
    fn write(&mut self, data: &[u8]) -> Result<(), NativeError>;

    /// Bytes that it keeps in memory.
    fn held_bytes(&self) -> usize;

    /// Keep less of them there.
    fn spill(&mut self) -> Result<(), NativeError>;
}

impl Sink for BlobWriter {
    fn write(&mut self, data: &[u8]) -> Result<(), NativeError> {
        Self::write(self, data)
    }

    fn held_bytes(&self) -> usize {
        // Of a large blob nothing, but small ones are what there are many of.
        usize::try_from(self.offset()).unwrap_or(usize::MAX).min(FRAMES_BYTES_KEPT)
    }

    fn spill(&mut self) -> Result<(), NativeError> {
        Ok(())
    }
}

impl Sink for Intake {
    fn write(&mut self, data: &[u8]) -> Result<(), NativeError> {
        Self::write(self, data)
    }

    fn held_bytes(&self) -> usize {
        self.in_memory().map_or(0, <[u8]>::len)
    }

    fn spill(&mut self) -> Result<(), NativeError> {
        Self::spill(self)
    }
}

impl Sink for Check {
    fn write(&mut self, data: &[u8]) -> Result<(), NativeError> {
        Self::write(self, data)
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn spill(&mut self) -> Result<(), NativeError> {
        Ok(())
    }
}

/// What a body went through.
pub(super) struct Taken<S> {
    pub(super) sink: S,
    /// The zstd frames as they came, when they are few.
    pub(super) frames: Option<Vec<u8>>,
}

impl Taken<Intake> {
    /// Keep it as the blob with the hash of `named`.
    pub(super) fn commit_blob(self, named: &Digest) -> Result<Digest, NativeError> {
        self.sink.commit_as(Some(named.hash()), self.frames.as_deref())
    }
}

struct Flow<S> {
    sink: S,
    unpacker: Option<Unpacker>,
    frames: Option<Vec<u8>>,
}

impl<S: Sink> Flow<S> {
    fn write(&mut self, batch: &Rope, pressed: bool) -> Result<(), NativeError> {
        // Small values stay: a file for each would cost more than it gives back.
        if pressed && self.sink.held_bytes() > INLINE_BYTES {
            self.sink.spill()?;
        }
        for piece in batch.pieces() {
            let Some(unpacker) = &mut self.unpacker else {
                self.sink.write(piece)?;
                continue;
            };
            let sink = &mut self.sink;
            unpacker.feed(piece, |data| sink.write(data))?;
            self.frames = self.frames.take().filter(|frames| frames.len() + piece.len() <= FRAMES_BYTES_KEPT);
            if let Some(frames) = &mut self.frames {
                frames.extend_from_slice(piece);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Taken<S>, NativeError> {
        if let Some(unpacker) = &self.unpacker {
            unpacker.finish()?;
        }
        Ok(Taken { sink: self.sink, frames: self.frames })
    }
}
