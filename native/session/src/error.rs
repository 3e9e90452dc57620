//! Why there is no session, or no longer one. Nothing here tells a peer more than that it was refused, and no text holds
//! a secret.

use crate::identity::NodeKey;

/// What a responder says in the clear before it hangs up: a hint, since nobody signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It speaks another version.
    Version,
    /// It knows no such pattern.
    Pattern,
    /// It is of another term, which it names.
    Term(u64),
    /// A message was not what it had to be.
    Handshake,
}

impl Refusal {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::Pattern => 2,
            Self::Term(_) => 3,
            Self::Handshake => 4,
        }
    }

    pub(crate) fn term(self) -> u64 {
        if let Self::Term(term) = self { term } else { 0 }
    }

    pub(crate) fn of(code: u8, term: u64) -> Self {
        match code {
            1 => Self::Version,
            2 => Self::Pattern,
            3 => Self::Term(term),
            _ => Self::Handshake,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Version => "it speaks another version of the session protocol; update the older of both",
            Self::Pattern => "it knows no such handshake; update the older of both",
            Self::Term(_) => "it serves another term of the controller",
            Self::Handshake => {
                "its key, organisation or term is another than the join line says, or its clock; ask for a new join line"
            }
        }
    }
}

/// Why there is no session, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The first bytes are of something else.
    #[error("the peer does not speak the session protocol")]
    NotASession,
    /// The peer speaks a version that this end does not.
    #[error("the peer speaks version {0} of the session protocol, this end version 1; update the older of both")]
    Version(u8),
    /// The preamble names no pattern.
    #[error("the peer asks for the unknown handshake {0}")]
    Pattern(u8),
    /// Both ends know another term of the controller.
    #[error("the peer is of term {theirs} of the controller, this end of term {ours}")]
    Term {
        /// Of this end.
        ours: u64,
        /// Of the peer.
        theirs: u64,
    },
    /// The responder hung up.
    #[error("the peer refused the session: {}", .0.words())]
    Refused(Refusal),
    /// A message of the handshake cannot be opened: another key, organisation or term, or it was altered.
    #[error("the handshake failed: key, organisation or term differ, or a message was altered")]
    Handshake,
    /// What signs for the peer's key does not hold.
    #[error("the peer's certificate is not good: {0}")]
    Certificate(&'static str),
    /// Somebody else answered.
    #[error("{found} answered, not {expected}; ask for a new join line if the controller's key has changed")]
    WrongPeer {
        /// Who was dialled.
        expected: NodeKey,
        /// Who answered.
        found: NodeKey,
    },
    /// A message is larger than there may be.
    #[error("a message of {0} bytes is larger than a session allows")]
    Oversize(usize),
    /// A frame was altered, repeated, left out or moved.
    #[error("a frame was altered, repeated, left out or out of order")]
    Frame,
    /// A frame that could be opened says what none may.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// The stream ended without a farewell: something may be lacking.
    #[error("the connection ended in the middle of the session")]
    Truncated,
    /// The peer ended the session, and says why.
    #[error("the peer ended the session: {text}")]
    Closed {
        /// Zero for an orderly end; others are for the layers above.
        code: u8,
        /// For people.
        text: String,
    },
    /// This end ended the session, and why.
    #[error("this end ended the session: {0}")]
    Ended(String),
    /// The peer said nothing for too long.
    #[error("the peer has been silent for too long")]
    Idle,
    /// The peer took nothing for too long.
    #[error("the peer takes no bytes")]
    Stalled,
    /// The handshake took too long.
    #[error("the handshake took too long")]
    Slow,
    /// A limit of this end's own input.
    #[error("{0}")]
    Invalid(&'static str),
    /// The stream below.
    #[error(transparent)]
    Io(std::io::Error),
}

impl From<std::io::Error> for SessionError {
    /// A stream below that is more than a socket may say itself what was wrong.
    fn from(error: std::io::Error) -> Self {
        error.downcast().unwrap_or_else(Self::Io)
    }
}

impl From<SessionError> for std::io::Error {
    fn from(error: SessionError) -> Self {
        use std::io::ErrorKind;
        let kind = match &error {
            SessionError::Io(_) => ErrorKind::Other,
            SessionError::Truncated => ErrorKind::UnexpectedEof,
            SessionError::Idle | SessionError::Stalled | SessionError::Slow => ErrorKind::TimedOut,
            SessionError::Closed { .. } | SessionError::Ended(_) => ErrorKind::ConnectionAborted,
            SessionError::Refused(_) | SessionError::Term { .. } => ErrorKind::ConnectionRefused,
            SessionError::WrongPeer { .. } | SessionError::Certificate(_) => ErrorKind::PermissionDenied,
            SessionError::Invalid(_) => ErrorKind::InvalidInput,
            _ => ErrorKind::InvalidData,
        };
        match error {
            SessionError::Io(error) => error,
            other => Self::new(kind, other),
        }
    }
}
