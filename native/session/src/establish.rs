//! Handshakes over a real stream, each in its time. Nobody is named to the layers above before they have proven
//! themselves.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::SessionError;
use crate::frames::{Event, Limits};
use crate::handshake::Handshake;
use crate::stream::SessionStream;

/// A whole handshake and the first frame are smaller; what a stranger may make this end hold.
const GREETING_BYTES: usize = 4 << 10;

/// Run a handshake, of either end, over `inner`, on which nothing was sent and from which nothing was read. An initiator
/// that returns has sent its proof; a responder that returns has seen its peer's.
///
/// # Errors
/// As [`Handshake::feed`]; also when the stream ends or `timeout` passes.
pub async fn establish<S: AsyncRead + AsyncWrite + Unpin>(
    inner: S,
    handshake: Handshake,
    limits: Limits,
    timeout: Duration,
) -> Result<SessionStream<S>, SessionError> {
    tokio::time::timeout(timeout, open(inner, handshake, limits)).await.map_err(|_| SessionError::Slow)?
}

async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    mut inner: S,
    mut handshake: Handshake,
    limits: Limits,
) -> Result<SessionStream<S>, SessionError> {
    let mut waiting = Vec::with_capacity(GREETING_BYTES);
    loop {
        inner.write_all(&handshake.take_output()).await?;
        inner.flush().await?;
        if handshake.is_finished() {
            break;
        }
        read(&mut inner, &mut waiting).await?;
        match handshake.feed(&waiting) {
            Ok(taken) => drop(waiting.drain(..taken)),
            Err(error) => {
                // Whether the peer hears why is its own affair.
                let _ = inner.write_all(&handshake.take_output()).await;
                let _ = inner.shutdown().await;
                return Err(error);
            }
        }
    }
    let began = Instant::now();
    let (peer, mut frames) = handshake.finish(limits, Duration::ZERO)?;
    let mut first = Vec::new();
    frames.ping(Duration::ZERO, &mut first)?;
    inner.write_all(&first).await?;
    inner.flush().await?;
    // Whoever repeats a recorded handshake gets no further than here.
    while !frames.is_confirmed() {
        let mut plain = Vec::new();
        let opened = frames.open(&waiting, began.elapsed(), &mut plain)?;
        waiting.drain(..opened.consumed);
        match opened.event {
            Some(Event::Ping | Event::Rekeyed) => {}
            Some(_) => return Err(SessionError::Protocol("the first frame is not a ping")),
            None => read(&mut inner, &mut waiting).await?,
        }
    }
    Ok(SessionStream::new(inner, frames, peer, &limits, began, &waiting))
}

async fn read<S: AsyncRead + Unpin>(inner: &mut S, waiting: &mut Vec<u8>) -> Result<(), SessionError> {
    let room = GREETING_BYTES.saturating_sub(waiting.len());
    if room == 0 {
        return Err(SessionError::Oversize(waiting.len()));
    }
    let count = inner.take(room as u64).read_buf(waiting).await?;
    if count == 0 { Err(SessionError::Truncated) } else { Ok(()) }
}
