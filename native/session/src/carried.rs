//! The bytes of a session within a bidirectional gRPC call, where only HTTP/2 passes (`buildnet.v1.TransportService/Open`).
//! They are cut anyhow; whoever carries the call reads none of them. It decides nothing of what they say.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Waking, Poll, Waker, ready};

use buildnet_formats::wire::buildnet::v1::OpenRequest;
use buildnet_raw::{FRAME_BYTES, frame_of, length_of};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::Stream;
use http_body::Body;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::SessionError;
use crate::frames::MESSAGE_BYTES_MAX;

/// The largest frame of a session with its length, so that who likes to can send each of these alone.
pub const CARRIED_BYTES_MAX: usize = 2 + MESSAGE_BYTES_MAX;
/// Of a field's number and its length.
const FIELD_BYTES_MAX: usize = 4;
/// `bytes frame = 1`, of `OpenRequest` and of `OpenResponse` (Protocol Buffers, section Encoding).
const FRAME_KEY: u8 = 1 << 3 | 2;
/// While so many bytes wait for the call to take them, the writer waits too.
const WAITING_BYTES: usize = 64 << 10;

/// The frame of the next message, taken off what came; none where more has to come.
///
/// # Errors
/// [`SessionError::Oversize`] for a message of more than [`CARRIED_BYTES_MAX`] bytes; [`SessionError::Protocol`] for one
/// that is compressed, empty or none. Nothing can follow.
pub fn next_frame(came: &mut BytesMut) -> Result<Option<Bytes>, SessionError> {
    let Some(prefix) = came.first_chunk::<FRAME_BYTES>() else { return Ok(None) };
    let length = length_of(*prefix, usize::MAX).map_err(|_| SessionError::Protocol("a compressed message"))?;
    if length > CARRIED_BYTES_MAX + FIELD_BYTES_MAX {
        return Err(SessionError::Oversize(length));
    }
    if came.len() < FRAME_BYTES + length {
        return Ok(None);
    }
    came.advance(FRAME_BYTES);
    let message = OpenRequest::decode(came.split_to(length).freeze());
    let frame = message.map_err(|_| SessionError::Protocol("a message that is none of TransportService"))?.frame;
    if frame.is_empty() {
        return Err(SessionError::Protocol("a message without a frame"));
    }
    Ok(Some(frame))
}

/// Add one message that holds `frame`, of [`CARRIED_BYTES_MAX`] bytes at most.
fn put_frame(frame: &[u8], out: &mut BytesMut) {
    let length = 1 + prost::length_delimiter_len(frame.len()) + frame.len();
    out.reserve(FRAME_BYTES + length);
    out.put_slice(&frame_of(length));
    out.put_u8(FRAME_KEY);
    // It grows, so there is room.
    let _ = prost::encode_length_delimiter(frame.len(), out);
    out.put_slice(frame);
}

/// What was written and the call has not taken yet.
#[derive(Default)]
struct Outgoing {
    bytes: BytesMut,
    /// Nothing more will be written.
    finished: bool,
    /// The call takes nothing more.
    gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

fn held(outgoing: &Mutex<Outgoing>) -> MutexGuard<'_, Outgoing> {
    outgoing.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// What this end of a call writes. Dropping it ends what is sent.
#[derive(Default)]
pub struct Written(Arc<Mutex<Outgoing>>);

impl Written {
    /// What is written, for the call to take.
    pub fn carrying(&self) -> Carrying {
        Carrying(Arc::clone(&self.0))
    }

    fn finish(&self) {
        let mut outgoing = held(&self.0);
        outgoing.finished = true;
        wake(&mut outgoing.reader);
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A stream of bytes within a call: `body` is what the peer sends.
pub struct Carried<B> {
    body: B,
    came: BytesMut,
    frame: Bytes,
    written: Written,
}

impl<B> Carried<B> {
    /// The stream; nothing is read yet.
    pub fn new(body: B, written: Written) -> Self {
        Self { body, came: BytesMut::new(), frame: Bytes::new(), written }
    }
}

impl<B: Body<Data = Bytes, Error = io::Error> + Unpin> Carried<B> {
    /// Have bytes in `frame`; whether there are, or the peer has ended.
    fn poll_fill(&mut self, waking: &mut Waking<'_>) -> Poll<io::Result<bool>> {
        while self.frame.is_empty() {
            if let Some(frame) = next_frame(&mut self.came)? {
                self.frame = frame;
                break;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(waking)).transpose()?.map(http_body::Frame::into_data) {
                Some(Ok(data)) => self.came.extend_from_slice(&data),
                // Trailers say how the call ended; what it carried says how the session did.
                Some(Err(_)) => {}
                None if self.came.is_empty() => return Poll::Ready(Ok(false)),
                None => return Poll::Ready(Err(SessionError::Truncated.into())),
            }
        }
        Poll::Ready(Ok(true))
    }
}

impl<B: Body<Data = Bytes, Error = io::Error> + Unpin> AsyncRead for Carried<B> {
    fn poll_read(self: Pin<&mut Self>, waking: &mut Waking<'_>, wanted: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if ready!(this.poll_fill(waking))? {
            let count = this.frame.len().min(wanted.remaining());
            wanted.put_slice(&this.frame.split_to(count));
        }
        Poll::Ready(Ok(()))
    }
}

impl<B: Unpin> AsyncWrite for Carried<B> {
    fn poll_write(self: Pin<&mut Self>, waking: &mut Waking<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut outgoing = held(&self.written.0);
        if outgoing.gone || outgoing.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if outgoing.bytes.len() >= WAITING_BYTES {
            outgoing.writer = Some(waking.waker().clone());
            return Poll::Pending;
        }
        let count = data.len().min(CARRIED_BYTES_MAX);
        if count > 0 {
            put_frame(&data[..count], &mut outgoing.bytes);
            wake(&mut outgoing.reader);
        }
        Poll::Ready(Ok(count))
    }

    /// What was written leaves as soon as the call takes it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Waking<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Waking<'_>) -> Poll<io::Result<()>> {
        self.written.finish();
        Poll::Ready(Ok(()))
    }
}

/// What is written, as messages behind their prefixes. It ends when the [`Carried`] is shut down or dropped.
pub struct Carrying(Arc<Mutex<Outgoing>>);

impl Stream for Carrying {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, waking: &mut Waking<'_>) -> Poll<Option<Bytes>> {
        let mut outgoing = held(&self.0);
        if !outgoing.bytes.is_empty() {
            let bytes = outgoing.bytes.split().freeze();
            wake(&mut outgoing.writer);
            return Poll::Ready(Some(bytes));
        }
        if outgoing.finished {
            return Poll::Ready(None);
        }
        outgoing.reader = Some(waking.waker().clone());
        Poll::Pending
    }
}

impl Drop for Carrying {
    fn drop(&mut self) {
        let mut outgoing = held(&self.0);
        outgoing.gone = true;
        wake(&mut outgoing.writer);
    }
}
