//! Handshakes over a real stream, each in its time. Nobody is named to the layers above before they have proven
//! themselves, and nothing is said to a dialler before it is let in.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::SessionError;
use crate::closer::Closer;
use crate::frames::{Event, Frames, Limits};
use crate::handshake::{Handshake, Peer};
use crate::stream::SessionStream;

/// A whole handshake and the first frame are smaller; what a stranger may make this end hold.
const GREETING_BYTES: usize = 4 << 10;

/// Why a dialler is turned away: a code for the layers above, not zero, and a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnedAway {
    /// As in a farewell.
    pub code: u8,
    /// As in a farewell.
    pub text: String,
}

/// Run a handshake, of either end, over `inner`, on which nothing was sent and from which nothing was read. An initiator
/// that returns has sent its proof and was let in; a responder that returns has seen its peer's, and lets everybody in.
///
/// # Errors
/// As [`Handshake::feed`]; also when the stream ends, `timeout` passes, or the responder says why it does not let this
/// end in ([`SessionError::Closed`]).
pub async fn establish<S: AsyncRead + AsyncWrite + Unpin>(
    inner: S,
    handshake: Handshake,
    limits: Limits,
    timeout: Duration,
) -> Result<SessionStream<S>, SessionError> {
    establish_if(inner, handshake, limits, timeout, |_| std::future::ready(Ok(Closer::default()))).await
}

/// The same, where a responder asks `admit` about a peer that has proven itself: the closer that will end the session, or
/// what the peer is told. An initiator does not ask.
///
/// # Errors
/// As [`establish`]; [`SessionError::Ended`] when the peer was turned away.
pub async fn establish_if<S, A, F>(
    inner: S,
    handshake: Handshake,
    limits: Limits,
    timeout: Duration,
    admit: A,
) -> Result<SessionStream<S>, SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: FnOnce(Arc<Peer>) -> F,
    F: Future<Output = Result<Closer, TurnedAway>>,
{
    tokio::time::timeout(timeout, open(inner, handshake, limits, admit)).await.map_err(|_| SessionError::Slow)?
}

async fn open<S, A, F>(
    mut inner: S,
    mut handshake: Handshake,
    limits: Limits,
    admit: A,
) -> Result<SessionStream<S>, SessionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: FnOnce(Arc<Peer>) -> F,
    F: Future<Output = Result<Closer, TurnedAway>>,
{
    let mut waiting = Vec::with_capacity(GREETING_BYTES);
    shake(&mut inner, &mut handshake, &mut waiting).await?;
    let began = Instant::now();
    let dials = handshake.is_initiator();
    let (peer, mut frames) = handshake.finish(limits, Duration::ZERO)?;
    let peer = Arc::new(peer);
    let mut first = Vec::new();
    let closer = if dials {
        frames.ping(Duration::ZERO, &mut first)?;
        send(&mut inner, &first).await?;
        hear(&mut inner, &mut frames, &mut waiting, began).await?;
        Closer::default()
    } else {
        // Whoever repeats a recorded handshake gets no further than here.
        if !frames.is_confirmed() {
            hear(&mut inner, &mut frames, &mut waiting, began).await?;
        }
        match admit(Arc::clone(&peer)).await {
            Ok(closer) => {
                frames.ping(began.elapsed(), &mut first)?;
                send(&mut inner, &first).await?;
                closer
            }
            Err(TurnedAway { code, text }) => {
                frames.close(code.max(1), &text, began.elapsed(), &mut first)?;
                send(&mut inner, &first).await?;
                inner.shutdown().await?;
                return Err(SessionError::Ended(text));
            }
        }
    };
    Ok(SessionStream::new(inner, frames, peer, closer, &limits, began, &waiting))
}

/// Messages to and fro until both have keys; what came after them stays in `waiting`.
async fn shake<S: AsyncRead + AsyncWrite + Unpin>(
    inner: &mut S,
    handshake: &mut Handshake,
    waiting: &mut Vec<u8>,
) -> Result<(), SessionError> {
    loop {
        send(inner, &handshake.take_output()).await?;
        if handshake.is_finished() {
            return Ok(());
        }
        read(inner, waiting).await?;
        match handshake.feed(waiting) {
            Ok(taken) => drop(waiting.drain(..taken)),
            Err(error) => {
                // Whether the peer hears why is its own affair.
                let _ = inner.write_all(&handshake.take_output()).await;
                let _ = inner.shutdown().await;
                return Err(error);
            }
        }
    }
}

/// The peer's first frame: that it is there and has let this end in, or why not.
async fn hear<S: AsyncRead + Unpin>(
    inner: &mut S,
    frames: &mut Frames,
    waiting: &mut Vec<u8>,
    began: Instant,
) -> Result<(), SessionError> {
    loop {
        let opened = frames.open(waiting, began.elapsed())?;
        waiting.drain(..opened.consumed);
        match opened.event {
            Some(Event::Ping) => return Ok(()),
            Some(Event::Rekeyed) => {}
            Some(Event::Closed { code, text }) => return Err(SessionError::Closed { code, text }),
            Some(Event::Data(_)) => return Err(SessionError::Protocol("the first frame is not a ping")),
            None => read(inner, waiting).await?,
        }
    }
}

async fn send<S: AsyncWrite + Unpin>(inner: &mut S, bytes: &[u8]) -> Result<(), SessionError> {
    inner.write_all(bytes).await?;
    inner.flush().await?;
    Ok(())
}

async fn read<S: AsyncRead + Unpin>(inner: &mut S, waiting: &mut Vec<u8>) -> Result<(), SessionError> {
    let room = GREETING_BYTES.saturating_sub(waiting.len());
    if room == 0 {
        return Err(SessionError::Oversize(waiting.len()));
    }
    let count = inner.take(room as u64).read_buf(waiting).await?;
    if count == 0 { Err(SessionError::Truncated) } else { Ok(()) }
}
