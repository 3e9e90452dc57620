//! An outbound connection moves blobs between this machine and a REAPI server, verifying every byte it receives.
//! It decides nothing: what to move is the caller's choice.
//!
//! Small blobs travel in batches, large ones in streams, several at a time; what the other side has is never sent.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod channel;
mod error;
mod input_tree;
mod pull;
mod transfer;

pub use channel::{Link, LinkOptions, TlsOptions};
pub use error::DialError;
pub use input_tree::{InputTree, Source};
pub use transfer::Moved;
