//! Two nodes that know each other by key, and what passes between them unread and unaltered: the Noise protocol over any
//! stream of bytes. Whom to let in is for the layers above, which are told the peer's key.
//!
//! [`Handshake`] and [`Frames`] are pure: bytes and the time come in, bytes and events go out. [`SessionStream`] is the
//! edge: a stream within a stream. The format is in `docs/design/sessions.md`; the protocol is that of
//! <https://noiseprotocol.org/noise.html>, revision 34.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod carried;
mod certificate;
mod cipher;
mod closer;
mod error;
mod establish;
mod frames;
mod handshake;
mod identity;
mod inbox;
mod preamble;
mod socket;
mod stream;
mod suite;

pub use carried::{CARRIED_BYTES_MAX, Carried, Carrying, Written, next_frame};
pub use closer::{Closer, Failure, FailureKind};
pub use error::{Refusal, SessionError};
pub use establish::{TurnedAway, establish, establish_if};
pub use frames::{CLOSE_TEXT_BYTES_MAX, DATA_BYTES_MAX, Due, Event, Frames, Limits, MESSAGE_BYTES_MAX, Opened};
pub use handshake::{Context, Handshake, Peer, Remote, TOKEN_BYTES_MAX};
pub use identity::{Identity, NodeKey, SessionKey};
pub use preamble::{MAGIC, ORGANISATION_BYTES_MAX, PREAMBLE_BYTES, Pattern};
pub use socket::bound_unsent;
pub use stream::SessionStream;
