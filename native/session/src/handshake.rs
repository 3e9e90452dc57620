//! From the first byte to keys that only two nodes have. Bytes come in as they come, in any pieces; bytes to send and, at
//! the end, the peer go out. No I/O and no clock; ephemeral keys alone are drawn here, as Noise demands.
//!
//! Messages are preceded by their length, 2 bytes, the highest first. Length zero from the responder is a refusal: a code and
//! a term, in the clear.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use snow::HandshakeState;
use zeroize::Zeroizing;

use crate::certificate::{self, CERTIFICATE_BYTES};
use crate::error::{Refusal, SessionError};
use crate::frames::{Frames, Limits};
use crate::identity::{Identity, NodeKey, SessionKey, array};
use crate::preamble::{ORGANISATION_BYTES_MAX, PREAMBLE_BYTES, Pattern, Preamble};
use crate::suite;

/// A join token.
pub const TOKEN_BYTES_MAX: usize = 512;
/// Keys, tags, a certificate and a token stay far below.
const MESSAGE_BYTES_MAX: usize = 1024;
const LENGTH_BYTES: usize = 2;
const REFUSAL_BYTES: usize = 9;

/// What both ends must agree on.
#[derive(Clone, Debug)]
pub struct Context {
    /// The organisation's name, at most [`ORGANISATION_BYTES_MAX`] bytes.
    pub organisation: String,
    /// Of the controller.
    pub term: u64,
}

/// Whom to dial.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    /// Who must answer.
    pub node_key: NodeKey,
    /// Known from an earlier session: then the pattern is IK, else XX.
    pub session_key: Option<SessionKey>,
}

/// Who is at the other end, proven.
#[derive(Clone)]
pub struct Peer {
    /// Its name.
    pub node_key: NodeKey,
    /// To dial it in one round trip next time.
    pub session_key: SessionKey,
    /// How it was met.
    pub pattern: Pattern,
    /// The join token that it showed.
    pub token: Option<Zeroizing<Vec<u8>>>,
    /// What names this session alone (Noise section 11.2); 32 bytes.
    pub handshake_hash: [u8; 32],
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("node_key", &self.node_key).field("pattern", &self.pattern).finish_non_exhaustive()
    }
}

/// What is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Await {
    Preamble,
    Length,
    Message(usize),
    Refusal,
    Nothing,
    /// It failed; nothing is taken any more.
    Broken,
}

/// One end of a handshake.
pub struct Handshake {
    noise: Option<HandshakeState>,
    is_initiator: bool,
    organisation: String,
    term: u64,
    now_unix_s: u64,
    identity: Arc<Identity>,
    pattern: Pattern,
    expected: Option<NodeKey>,
    token: Zeroizing<Vec<u8>>,
    awaited: Await,
    gathered: Vec<u8>,
    output: Vec<u8>,
    met: Option<(NodeKey, SessionKey)>,
    shown: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").field("awaited", &self.awaited).finish_non_exhaustive()
    }
}

impl Handshake {
    /// The end that dials; its first bytes are ready in [`Handshake::take_output`]. A `token`, empty for none, makes the pattern XX:
    /// the first message of IK can be repeated by whoever saw it.
    ///
    /// # Errors
    /// The organisation's name or the token is too long.
    pub fn initiator(
        identity: &Arc<Identity>,
        remote: &Remote,
        context: &Context,
        token: &[u8],
        now_unix_s: u64,
    ) -> Result<Self, SessionError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(SessionError::Invalid("a join token is 512 bytes at most"));
        }
        let session_key = remote.session_key.filter(|_| token.is_empty());
        let pattern = if session_key.is_some() { Pattern::Ik } else { Pattern::Xx };
        let mut end = Self::new(identity, context, now_unix_s)?;
        let preamble = Preamble { pattern, term: context.term };
        let noise = suite::build(
            pattern,
            identity.session_secret.as_ref(),
            session_key.as_ref().map(|key| &key.0[..]),
            &preamble.prologue(&context.organisation),
            true,
        )?;
        end.is_initiator = true;
        end.noise = Some(noise);
        end.pattern = pattern;
        end.expected = Some(remote.node_key);
        end.token = Zeroizing::new(token.to_vec());
        end.output.extend_from_slice(&preamble.encode());
        end.awaited = Await::Length;
        end.write(pattern == Pattern::Ik)?;
        Ok(end)
    }

    /// The end that is dialled.
    ///
    /// # Errors
    /// The organisation's name is too long.
    pub fn responder(identity: &Arc<Identity>, context: &Context, now_unix_s: u64) -> Result<Self, SessionError> {
        Self::new(identity, context, now_unix_s)
    }

    fn new(identity: &Arc<Identity>, context: &Context, now_unix_s: u64) -> Result<Self, SessionError> {
        if context.organisation.len() > ORGANISATION_BYTES_MAX {
            return Err(SessionError::Invalid("an organisation's name is 255 bytes at most"));
        }
        Ok(Self {
            noise: None,
            is_initiator: false,
            organisation: context.organisation.clone(),
            term: context.term,
            now_unix_s,
            identity: Arc::clone(identity),
            pattern: Pattern::Xx,
            expected: None,
            token: Zeroizing::default(),
            awaited: Await::Preamble,
            gathered: Vec::new(),
            output: Vec::new(),
            met: None,
            shown: None,
        })
    }

    /// Take from `input` what belongs to the handshake; returns how many bytes that was. What is left belongs to
    /// [`Frames`]. There may be output to send afterwards, also after an error.
    ///
    /// # Errors
    /// The peer is not who it must be, agrees on something else, or sends what no peer may. The handshake is over then.
    pub fn feed(&mut self, input: &[u8]) -> Result<usize, SessionError> {
        let mut taken = 0;
        loop {
            let wanted = match self.awaited {
                Await::Preamble => PREAMBLE_BYTES,
                Await::Length => LENGTH_BYTES,
                Await::Message(bytes) => bytes,
                Await::Refusal => REFUSAL_BYTES,
                Await::Nothing => return Ok(taken),
                Await::Broken => return Err(SessionError::Handshake),
            };
            let lacking = wanted - self.gathered.len();
            let piece = &input[taken..input.len().min(taken + lacking)];
            self.gathered.extend_from_slice(piece);
            taken += piece.len();
            if piece.len() < lacking {
                return self.doubt().map(|()| taken);
            }
            let whole = mem::take(&mut self.gathered);
            if let Err(error) = self.step(&whole) {
                self.awaited = Await::Broken;
                self.noise = None;
                self.tell(&error);
                return Err(error);
            }
        }
    }

    /// What cannot become a preamble is not waited for.
    fn doubt(&mut self) -> Result<(), SessionError> {
        let begun = &self.gathered[..self.gathered.len().min(crate::MAGIC.len())];
        if self.awaited == Await::Preamble && !crate::MAGIC.starts_with(begun) {
            self.awaited = Await::Broken;
            return Err(SessionError::NotASession);
        }
        Ok(())
    }

    fn step(&mut self, whole: &[u8]) -> Result<(), SessionError> {
        match self.awaited {
            Await::Preamble => self.begin(whole),
            Await::Length => {
                let length = usize::from(u16::from_be_bytes(array(whole)?));
                self.awaited = match length {
                    0 if self.is_initiator => Await::Refusal,
                    0 => return Err(SessionError::Handshake),
                    1..=MESSAGE_BYTES_MAX => Await::Message(length),
                    _ => return Err(SessionError::Oversize(length)),
                };
                Ok(())
            }
            Await::Message(_) => self.read(whole),
            Await::Refusal => {
                let theirs = u64::from_be_bytes(array(&whole[1..])?);
                Err(match Refusal::of(whole[0], theirs) {
                    Refusal::Term(theirs) => SessionError::Term { ours: self.term, theirs },
                    refusal => SessionError::Refused(refusal),
                })
            }
            Await::Nothing | Await::Broken => Ok(()),
        }
    }

    fn begin(&mut self, whole: &[u8]) -> Result<(), SessionError> {
        let preamble = Preamble::decode(&array(whole)?)?;
        if preamble.term != self.term {
            return Err(SessionError::Term { ours: self.term, theirs: preamble.term });
        }
        self.pattern = preamble.pattern;
        let prologue = preamble.prologue(&self.organisation);
        self.noise =
            Some(suite::build(preamble.pattern, self.identity.session_secret.as_ref(), None, &prologue, false)?);
        self.awaited = Await::Length;
        Ok(())
    }

    fn read(&mut self, message: &[u8]) -> Result<(), SessionError> {
        let noise = self.noise.as_mut().ok_or(SessionError::Handshake)?;
        let mut payload = Zeroizing::new(vec![0; message.len()]);
        let length = noise.read_message(message, &mut payload).map_err(|_| SessionError::Handshake)?;
        // The first message of XX tells nothing: there is nothing yet to tell it under.
        if noise.get_remote_static().is_some() {
            self.meet(&payload[..length])?;
        } else if length > 0 {
            return Err(SessionError::Protocol("a payload before there are keys"));
        }
        self.awaited = Await::Length;
        if !self.is_finished() {
            self.write(true)?;
        }
        if self.is_finished() {
            self.awaited = Await::Nothing;
        }
        Ok(())
    }

    /// A payload: the certificate, then the join token, its length first.
    fn meet(&mut self, payload: &[u8]) -> Result<(), SessionError> {
        let remote = self.noise.as_ref().and_then(HandshakeState::get_remote_static).ok_or(SessionError::Handshake)?;
        let session_key = SessionKey(array(remote)?);
        let (bytes, rest) =
            payload.split_first_chunk::<CERTIFICATE_BYTES>().ok_or(SessionError::Certificate("it is cut short"))?;
        let node_key = certificate::verify(bytes, session_key, &self.organisation, self.now_unix_s)?;
        if let Some(expected) = self.expected.filter(|expected| *expected != node_key) {
            return Err(SessionError::WrongPeer { expected, found: node_key });
        }
        let (length, token) = rest.split_first_chunk().ok_or(SessionError::Protocol("no token's length"))?;
        if usize::from(u16::from_be_bytes(*length)) != token.len() || token.len() > TOKEN_BYTES_MAX {
            return Err(SessionError::Protocol("a token's length is not its length"));
        }
        if !token.is_empty() {
            if self.is_initiator || self.pattern == Pattern::Ik {
                return Err(SessionError::Protocol("a token where none may be"));
            }
            self.shown = Some(Zeroizing::new(token.to_vec()));
        }
        self.met = Some((node_key, session_key));
        Ok(())
    }

    fn write(&mut self, introduces: bool) -> Result<(), SessionError> {
        let mut payload = Zeroizing::new(Vec::new());
        if introduces {
            // Signed only now: what a stranger sends costs no signature before it is a handshake.
            payload.extend_from_slice(&certificate::issue(&self.identity, &self.organisation, self.now_unix_s));
            payload.extend_from_slice(&u16::try_from(self.token.len()).unwrap_or(0).to_be_bytes());
            payload.extend_from_slice(&self.token);
        }
        let noise = self.noise.as_mut().ok_or(SessionError::Handshake)?;
        let mut message = [0; MESSAGE_BYTES_MAX];
        let length = noise.write_message(&payload, &mut message).map_err(|_| SessionError::Handshake)?;
        self.output.extend_from_slice(&u16::try_from(length).unwrap_or(0).to_be_bytes());
        self.output.extend_from_slice(&message[..length]);
        Ok(())
    }

    /// A responder says why it hangs up, as far as that is nobody's secret. What is no session gets no answer in its
    /// language.
    fn tell(&mut self, error: &SessionError) {
        let refusal = match error {
            _ if self.is_initiator => return,
            SessionError::NotASession => return,
            SessionError::Version(_) => Refusal::Version,
            SessionError::Pattern(_) => Refusal::Pattern,
            SessionError::Term { ours, .. } => Refusal::Term(*ours),
            _ => Refusal::Handshake,
        };
        self.output.extend_from_slice(&[0, 0, refusal.code()]);
        self.output.extend_from_slice(&refusal.term().to_be_bytes());
    }

    pub(crate) fn is_initiator(&self) -> bool {
        self.is_initiator
    }

    /// Bytes to send, if there are any.
    pub fn take_output(&mut self) -> Vec<u8> {
        mem::take(&mut self.output)
    }

    /// Whether nothing more is awaited. A responder in IK must still see one frame before it believes: see
    /// [`Frames::is_confirmed`].
    pub fn is_finished(&self) -> bool {
        self.noise.as_ref().is_some_and(HandshakeState::is_handshake_finished)
    }

    /// The peer, and what frames are made with.
    ///
    /// # Errors
    /// The handshake is not finished.
    pub fn finish(self, limits: Limits, now: Duration) -> Result<(Peer, Frames), SessionError> {
        let noise = self.noise.filter(HandshakeState::is_handshake_finished).ok_or(SessionError::Handshake)?;
        let (node_key, session_key) = self.met.ok_or(SessionError::Handshake)?;
        let handshake_hash = array(noise.get_handshake_hash())?;
        let ciphers = suite::split(noise, self.is_initiator);
        let peer = Peer { node_key, session_key, pattern: self.pattern, token: self.shown, handshake_hash };
        // Only in IK does the responder send last.
        let is_confirmed = self.is_initiator || self.pattern == Pattern::Xx;
        Ok((peer, Frames::new(ciphers, limits, is_confirmed, now)))
    }
}
