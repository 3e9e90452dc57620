//! A stream of bytes within a stream of bytes: what is written at one end is read at the other, or both learn that it was
//! not. It holds at most a few frames; a peer that takes none is ended, never waited for without end.
//!
//! Time passes for it while it is read from: whoever writes only, reads too.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Waking, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::SessionError;
use crate::closer::Closer;
use crate::frames::{Due, Event, Frames, Limits};
use crate::handshake::Peer;
use crate::inbox::Inbox;

/// Sealed bytes that wait are handed down from here on; while so many still wait, the writer waits too.
const WAITING_BYTES: usize = 64 << 10;

/// Bytes that are added at the end and taken from the front.
#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    begin: usize,
}

impl Queue {
    fn waiting(&self) -> &[u8] {
        &self.bytes[self.begin..]
    }

    fn is_empty(&self) -> bool {
        self.begin == self.bytes.len()
    }

    fn take(&mut self, count: usize) {
        self.begin += count;
        if self.is_empty() {
            self.bytes.clear();
            self.begin = 0;
        }
    }

    /// Let memory go that only a burst needed.
    fn rest(&mut self) {
        if self.is_empty() {
            self.bytes = Vec::new();
        }
    }
}

/// The plain text of a session over the stream `S`.
pub struct SessionStream<S> {
    inner: S,
    frames: Frames,
    peer: Arc<Peer>,
    closer: Closer,
    inbox: Inbox,
    outbox: Queue,
    began: Instant,
    timer: Pin<Box<Sleep>>,
    /// Since when the stream below has taken none of the bytes that wait.
    waits_since: Instant,
    stall_timeout: Duration,
    /// A ping waits that no writer will hand down.
    ping_waits: bool,
    /// Whoever waits for room in the outbox: the reader may make it, since pings go the same way.
    writer: Option<Waker>,
    farewell: Option<(u8, String)>,
    peer_rekeys: u64,
}

impl<S> std::fmt::Debug for SessionStream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionStream").field("peer", &self.peer).field("frames", &self.frames).finish_non_exhaustive()
    }
}

impl<S> SessionStream<S> {
    /// `early`: what came after the handshake already.
    pub(crate) fn new(
        inner: S,
        frames: Frames,
        peer: Arc<Peer>,
        closer: Closer,
        limits: &Limits,
        began: Instant,
        early: &[u8],
    ) -> Self {
        Self {
            inner,
            frames,
            peer,
            closer,
            inbox: Inbox::new(early),
            outbox: Queue::default(),
            began,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            waits_since: Instant::now(),
            stall_timeout: limits.stall_timeout,
            ping_waits: false,
            writer: None,
            farewell: None,
            peer_rekeys: 0,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// What ends the session from elsewhere.
    pub fn closer(&self) -> Closer {
        self.closer.clone()
    }

    /// How often this end has changed its key.
    pub fn rekeys(&self) -> u64 {
        self.frames.rekeys()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn tell_rekeys(&self) {
        self.closer.rekeyed(self.frames.rekeys() + self.peer_rekeys);
    }

    fn about_to_send(&mut self) {
        if self.outbox.is_empty() {
            self.waits_since = Instant::now();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> SessionStream<S> {
    /// Hand sealed bytes down. Ready when none wait.
    fn hand_down(&mut self, waking: &mut Waking<'_>) -> Poll<io::Result<()>> {
        while !self.outbox.is_empty() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(waking, self.outbox.waiting()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbox.take(count);
            self.waits_since = Instant::now();
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
        self.ping_waits = false;
        Poll::Ready(Ok(()))
    }

    fn put_out(&mut self, parts: &[IoSlice<'_>], waking: &mut Waking<'_>) -> Poll<io::Result<usize>> {
        if self.outbox.waiting().len() >= WAITING_BYTES
            && self.hand_down(waking)?.is_pending()
            && self.outbox.waiting().len() >= WAITING_BYTES
        {
            self.writer = Some(waking.waker().clone());
            return Poll::Pending;
        }
        self.about_to_send();
        let now = self.now();
        let taken = self.frames.seal(parts, now, &mut self.outbox.bytes)?;
        self.tell_rekeys();
        if self.outbox.waiting().len() >= WAITING_BYTES {
            // What does not go now goes when the caller flushes or writes more.
            let _ = self.hand_down(waking)?;
        }
        Poll::Ready(Ok(taken))
    }

    /// What the time asks for; an error when the session is over by it. Silence counts only where all that came was read.
    fn keep_time(&mut self, waking: &mut Waking<'_>, all_was_read: bool) -> io::Result<()> {
        while self.timer.as_mut().poll(waking).is_ready() {
            let (now, stall_timeout) = (self.now(), self.stall_timeout);
            // A thousand sessions of which few move bytes hold buffers for a few.
            self.inbox.rest();
            self.outbox.rest();
            let stalled_at = self.waits_since + stall_timeout;
            if !self.outbox.is_empty() && Instant::now() >= stalled_at {
                return Err(SessionError::Stalled.into());
            }
            let next = match self.frames.due(now) {
                Due::Idle if all_was_read => return Err(SessionError::Idle.into()),
                Due::At(at) => self.began + at,
                Due::Ping if self.outbox.is_empty() => {
                    self.about_to_send();
                    self.frames.ping(now, &mut self.outbox.bytes)?;
                    self.tell_rekeys();
                    self.ping_waits = true;
                    continue;
                }
                // What waits already shows that this end is there; and what was not read is no silence.
                Due::Ping | Due::Idle => Instant::now() + stall_timeout.min(Duration::from_secs(1)),
            };
            self.timer.as_mut().reset(if self.outbox.is_empty() { next } else { next.min(stalled_at) });
        }
        Ok(())
    }

    /// Open what has come, until there is plain text, a farewell, or nothing more; whether there is one of the first two.
    fn open(&mut self) -> Result<bool, SessionError> {
        let now = self.now();
        loop {
            match self.inbox.open(&mut self.frames, now)? {
                None => return Ok(false),
                Some(Event::Data(_)) => return Ok(true),
                Some(Event::Closed { code, text }) => {
                    self.farewell = Some((code, text));
                    return Ok(true);
                }
                Some(Event::Rekeyed) => {
                    self.peer_rekeys += 1;
                    self.tell_rekeys();
                }
                Some(Event::Ping) => {}
            }
        }
    }

    fn take_in(&mut self, waking: &mut Waking<'_>, wanted: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.inbox.give(wanted) {
                return Poll::Ready(Ok(()));
            }
            match &self.farewell {
                Some((0, _)) => return Poll::Ready(Ok(())),
                Some((code, text)) => {
                    return Poll::Ready(Err(SessionError::Closed { code: *code, text: text.clone() }.into()));
                }
                None => {}
            }
            if self.open()? {
                continue;
            }
            match self.inbox.poll_fill(&mut self.inner, waking)? {
                Poll::Ready(0) => return Poll::Ready(Err(SessionError::Truncated.into())),
                Poll::Ready(_) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn read_in_time(&mut self, waking: &mut Waking<'_>, wanted: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some((code, text)) = self.closer.asked(waking.waker()) {
            // The peer is told if it can be told at once; it is not waited for.
            let _ = self.say_farewell(code, &text, waking)?;
            return Poll::Ready(Err(SessionError::Ended(text).into()));
        }
        let done = self.take_in(waking, wanted);
        if !matches!(done, Poll::Ready(Err(_))) {
            self.keep_time(waking, done.is_pending())?;
            if self.ping_waits {
                // Not waited for here: what is pending wakes this task again.
                let _ = self.hand_down(waking)?;
            }
        }
        done
    }

    fn say_farewell(&mut self, code: u8, text: &str, waking: &mut Waking<'_>) -> Poll<io::Result<()>> {
        self.about_to_send();
        let now = self.now();
        self.frames.close(code, text, now, &mut self.outbox.bytes)?;
        self.hand_down(waking)
    }

    /// End the session with a reason that the peer is told: code 0 is an orderly end, others are for the layers above.
    ///
    /// # Errors
    /// The stream below fails, or takes nothing for too long.
    pub async fn close(mut self, code: u8, text: &str) -> io::Result<()> {
        let within = self.stall_timeout;
        let farewell = async {
            std::future::poll_fn(|waking| self.say_farewell(code, text, waking)).await?;
            std::future::poll_fn(|waking| Pin::new(&mut self.inner).poll_shutdown(waking)).await
        };
        tokio::time::timeout(within, farewell).await.unwrap_or_else(|_| Err(SessionError::Stalled.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for SessionStream<S> {
    fn poll_read(self: Pin<&mut Self>, waking: &mut Waking<'_>, wanted: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = this.read_in_time(waking, wanted);
        if let Poll::Ready(Err(error)) = &done {
            this.closer.failed(error);
        }
        done
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for SessionStream<S> {
    fn poll_write(self: Pin<&mut Self>, waking: &mut Waking<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().put_out(&[IoSlice::new(data)], waking)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        waking: &mut Waking<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().put_out(parts, waking)
    }

    /// A small header and what follows it go in one frame.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, waking: &mut Waking<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Poll::Ready(done) = this.hand_down(waking) else {
            this.writer = Some(waking.waker().clone());
            return Poll::Pending;
        };
        done?;
        Pin::new(&mut this.inner).poll_flush(waking)
    }

    fn poll_shutdown(self: Pin<&mut Self>, waking: &mut Waking<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.say_farewell(0, "", waking))?;
        Pin::new(&mut this.inner).poll_shutdown(waking)
    }
}
