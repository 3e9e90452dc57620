//! What passes after the handshake: each frame is sealed under a number that only rises, so none can be altered, repeated,
//! left out or moved. Keys change by count and by time. No I/O and no clock: `now` is the time since any beginning.
//!
//! A frame is its length, 2 bytes, the highest first, and a Noise message of that length. Inside, the first byte is its
//! kind.

use std::fmt;
use std::io::IoSlice;
use std::ops::Range;
use std::time::Duration;

use crate::SessionError;
use crate::cipher::{Cipher, TAG_BYTES};

/// Of a Noise message (Noise section 3).
pub const MESSAGE_BYTES_MAX: usize = 65_535;
/// Of data in one frame: without the tag and the kind.
pub const DATA_BYTES_MAX: usize = MESSAGE_BYTES_MAX - TAG_BYTES - 1;
/// Of the text of a farewell; more is cut.
pub const CLOSE_TEXT_BYTES_MAX: usize = 512;
const LENGTH_BYTES: usize = 2;
/// How many frames a peer may send under one key, whatever its own limits are: 2^20 is when this end changes keys.
const FRAMES_PER_KEY_MAX: u64 = 1 << 21;

const DATA: u8 = 0;
const PING: u8 = 1;
const REKEY: u8 = 2;
const CLOSE: u8 = 3;

/// When keys change and when silence ends a session.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Frames under one key, this end's; at most 2^21.
    pub rekey_frames: u64,
    /// Time under one key, this end's.
    pub rekey_interval: Duration,
    /// After so much silence of its own this end sends a frame that says only that it is there.
    pub keep_alive: Duration,
    /// After so much silence of the peer the session is over.
    pub idle_timeout: Duration,
    /// When bytes wait to be sent for so long, the session is over.
    pub stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rekey_frames: 1 << 20,
            rekey_interval: Duration::from_secs(15 * 60),
            keep_alive: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(50),
            stall_timeout: Duration::from_secs(60),
        }
    }
}

/// What a frame was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Data, which lie here in the input now.
    Data(Range<usize>),
    /// The peer is there.
    Ping,
    /// The peer's next frames are under a new key.
    Rekeyed,
    /// The peer will send nothing more, and says why; code 0 is an orderly end.
    Closed {
        /// For the layers above.
        code: u8,
        /// For people.
        text: String,
    },
}

/// What [`Frames::open`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the input that were used: zero when there is no whole frame yet.
    pub consumed: usize,
    /// What it was.
    pub event: Option<Event>,
}

/// What the passing of time asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this moment.
    At(Duration),
    /// A ping.
    Ping,
    /// To end: the peer is silent.
    Idle,
}

/// Seals and opens frames.
pub struct Frames {
    sealing: Cipher,
    opening: Cipher,
    limits: Limits,
    /// Under the present key.
    sent: u64,
    received: u64,
    keyed_at: Duration,
    sent_at: Duration,
    heard_at: Duration,
    rekeys: u64,
    is_confirmed: bool,
    is_closed: bool,
    peer_closed: bool,
    is_broken: bool,
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("sent", &self.sent).field("received", &self.received).finish_non_exhaustive()
    }
}

impl Frames {
    pub(crate) fn new(
        (sealing, opening): (Cipher, Cipher),
        mut limits: Limits,
        is_confirmed: bool,
        now: Duration,
    ) -> Self {
        limits.rekey_frames = limits.rekey_frames.clamp(1, FRAMES_PER_KEY_MAX - 1);
        Self {
            sealing,
            opening,
            limits,
            sent: 0,
            received: 0,
            keyed_at: now,
            sent_at: now,
            heard_at: now,
            rekeys: 0,
            is_confirmed,
            is_closed: false,
            peer_closed: false,
            is_broken: false,
        }
    }

    /// Append to `out` one frame with the first bytes of `parts`; returns how many bytes it took, at most
    /// [`DATA_BYTES_MAX`]. Nothing is sent for nothing.
    ///
    /// # Errors
    /// This end has said farewell.
    pub fn seal(&mut self, parts: &[IoSlice<'_>], now: Duration, out: &mut Vec<u8>) -> Result<usize, SessionError> {
        let size = parts.iter().map(|part| part.len()).sum::<usize>().min(DATA_BYTES_MAX);
        if size > 0 {
            self.send(DATA, parts, size, now, out)?;
        }
        Ok(size)
    }

    /// Append a frame that says only that this end is there.
    ///
    /// # Errors
    /// This end has said farewell.
    pub fn ping(&mut self, now: Duration, out: &mut Vec<u8>) -> Result<(), SessionError> {
        self.send(PING, &[], 0, now, out)
    }

    /// Append a farewell: this end sends nothing after it. Without one the peer reports a truncated session. A second one
    /// is not sent.
    ///
    /// # Errors
    /// The session is broken.
    pub fn close(&mut self, code: u8, text: &str, now: Duration, out: &mut Vec<u8>) -> Result<(), SessionError> {
        if self.is_closed {
            return Ok(());
        }
        let mut end = text.len().min(CLOSE_TEXT_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text.as_bytes()[..end];
        self.send(CLOSE, &[IoSlice::new(&[code]), IoSlice::new(text)], 1 + text.len(), now, out)?;
        self.is_closed = true;
        Ok(())
    }

    fn send(
        &mut self,
        kind: u8,
        parts: &[IoSlice<'_>],
        size: usize,
        now: Duration,
        out: &mut Vec<u8>,
    ) -> Result<(), SessionError> {
        if self.is_broken || self.is_closed {
            return Err(SessionError::Protocol("the session is over"));
        }
        let age = now.saturating_sub(self.keyed_at);
        // The frame that announces a key is the last under the old one.
        if self.sent + 1 >= self.limits.rekey_frames || age >= self.limits.rekey_interval {
            self.put(REKEY, &[], 0, out)?;
            self.sealing.rekey().map_err(|_| self.broken())?;
            (self.sent, self.keyed_at) = (0, now);
            self.rekeys += 1;
        }
        self.put(kind, parts, size, out)?;
        self.sent_at = now;
        Ok(())
    }

    /// A frame of this kind with the first `size` bytes of `parts`, copied once, to where they are sealed.
    fn put(&mut self, kind: u8, parts: &[IoSlice<'_>], size: usize, out: &mut Vec<u8>) -> Result<(), SessionError> {
        let begin = out.len();
        let length = 1 + size + TAG_BYTES;
        let prefix = u16::try_from(length).map_err(|_| SessionError::Oversize(length))?;
        out.reserve(LENGTH_BYTES + length);
        out.extend_from_slice(&prefix.to_be_bytes());
        out.push(kind);
        let mut left = size;
        for part in parts {
            let piece = &part[..part.len().min(left)];
            out.extend_from_slice(piece);
            left -= piece.len();
        }
        let Ok(tag) = self.sealing.seal(&mut out[begin + LENGTH_BYTES..]) else {
            out.truncate(begin);
            return Err(self.broken());
        };
        out.extend_from_slice(tag.as_ref());
        self.sent += 1;
        Ok(())
    }

    fn broken(&mut self) -> SessionError {
        self.is_broken = true;
        SessionError::Frame
    }

    /// Open the frame that `input` begins with, where it lies, if all of it is there.
    ///
    /// # Errors
    /// The frame is not the next of the peer's, or says what none may; the session is over then, and there is nothing to be
    /// read in `input`.
    pub fn open(&mut self, input: &mut [u8], now: Duration) -> Result<Opened, SessionError> {
        if self.is_broken {
            return Err(SessionError::Frame);
        }
        let opened = self.take(input, now);
        self.is_broken = opened.is_err();
        opened
    }

    fn take(&mut self, input: &mut [u8], now: Duration) -> Result<Opened, SessionError> {
        const NOTHING_YET: Opened = Opened { consumed: 0, event: None };
        let Some(end) = end_of_frame(input) else { return Ok(NOTHING_YET) };
        if end <= LENGTH_BYTES + TAG_BYTES {
            return Err(SessionError::Frame);
        }
        let Some(sealed) = input.get_mut(LENGTH_BYTES..end) else { return Ok(NOTHING_YET) };
        if self.peer_closed {
            return Err(SessionError::Protocol("a frame after the farewell"));
        }
        if self.received >= FRAMES_PER_KEY_MAX {
            return Err(SessionError::Protocol("too many frames under one key"));
        }
        let size = self.opening.open(sealed).map_err(|_| SessionError::Frame)?;
        self.received += 1;
        self.heard_at = now;
        self.is_confirmed = true;
        let event = self.sort(&input[LENGTH_BYTES..LENGTH_BYTES + size])?;
        Ok(Opened { consumed: end, event: Some(event) })
    }

    fn sort(&mut self, opened: &[u8]) -> Result<Event, SessionError> {
        match opened {
            [DATA, data @ ..] if !data.is_empty() => {
                let begin = LENGTH_BYTES + 1;
                Ok(Event::Data(begin..begin + data.len()))
            }
            [PING] => Ok(Event::Ping),
            [REKEY] => {
                self.opening.rekey().map_err(|_| SessionError::Frame)?;
                self.received = 0;
                Ok(Event::Rekeyed)
            }
            [CLOSE, code, text @ ..] if text.len() <= CLOSE_TEXT_BYTES_MAX => {
                let text = std::str::from_utf8(text).map_err(|_| SessionError::Protocol("a farewell in no UTF-8"))?;
                // It is shown to people: no line of theirs is a line of a log.
                let text = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
                self.peer_closed = true;
                Ok(Event::Closed { code: *code, text })
            }
            _ => Err(SessionError::Protocol("a frame of no known kind")),
        }
    }

    /// What the time asks for.
    pub fn due(&self, now: Duration) -> Due {
        // Of a peer that said farewell silence is expected; it may still wait for what this end has to say.
        let idle_at = (!self.peer_closed).then(|| self.heard_at + self.limits.idle_timeout);
        let ping_at = (!self.is_closed).then(|| self.sent_at + self.limits.keep_alive);
        if idle_at.is_some_and(|at| now >= at) {
            return Due::Idle;
        }
        if ping_at.is_some_and(|at| now >= at) {
            return Due::Ping;
        }
        Due::At(ping_at.into_iter().chain(idle_at).min().unwrap_or(now + self.limits.idle_timeout))
    }

    /// Whether the peer has shown that it holds the key it named: who repeats a recorded handshake cannot.
    pub fn is_confirmed(&self) -> bool {
        self.is_confirmed
    }

    /// How often this end has changed its key.
    pub fn rekeys(&self) -> u64 {
        self.rekeys
    }

    /// Whether this end has said farewell.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }
}

/// How many bytes the frame that `input` begins with takes, its length included; none before its length is there.
pub(crate) fn end_of_frame(input: &[u8]) -> Option<usize> {
    let prefix = input.first_chunk::<LENGTH_BYTES>()?;
    Some(LENGTH_BYTES + usize::from(u16::from_be_bytes(*prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, Handshake, Identity, Remote};
    use proptest::prelude::*;

    fn pair() -> (Frames, Frames) {
        let node = |n: u8| std::sync::Arc::new(Identity::new(&[n; 32], &[n + 2; 32]).unwrap());
        let (one, two) = (node(1), node(2));
        let remote = Remote { node_key: two.node_key(), session_key: Some(two.session_key()) };
        let context = Context { organisation: String::new(), term: 0 };
        let mut a = Handshake::initiator(&one, &remote, &context, b"", 1).unwrap();
        let mut b = Handshake::responder(&two, &context, 1).unwrap();
        b.feed(&a.take_output()).unwrap();
        a.feed(&b.take_output()).unwrap();
        let now = Duration::ZERO;
        (a.finish(Limits::default(), now).unwrap().1, b.finish(Limits::default(), now).unwrap().1)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
        /// A peer whose key is good may still say anything: it is understood or ends the session.
        #[test]
        fn a_proven_peer_may_send_anything(inside in proptest::collection::vec(any::<u8>(), 0..600), kind in 0u8..6) {
            for inside in [inside.clone(), [&[kind][..], &inside].concat()] {
                let (mut a, mut b) = pair();
                let mut wire = Vec::new();
                let Some((kind, rest)) = inside.split_first() else { continue };
                a.put(*kind, &[IoSlice::new(rest)], rest.len(), &mut wire).unwrap();
                match b.open(&mut wire, Duration::ZERO) {
                    Ok(Opened { event: Some(Event::Data(place)), .. }) => {
                        prop_assert_eq!((*kind, rest), (DATA, &wire[place]));
                    }
                    Ok(opened) => prop_assert!(opened.event.is_some()),
                    Err(_) => prop_assert!(b.is_broken),
                }
            }
        }
    }

    #[test]
    fn a_peer_that_never_changes_its_key_is_ended() {
        let (mut a, mut b) = pair();
        b.received = FRAMES_PER_KEY_MAX;
        let mut wire = Vec::new();
        a.ping(Duration::ZERO, &mut wire).unwrap();
        assert!(matches!(b.open(&mut wire, Duration::ZERO), Err(SessionError::Protocol(_))));
    }
}
