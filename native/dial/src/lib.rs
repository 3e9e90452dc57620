//! An outbound connection moves blobs between this machine and a REAPI server, verifying every byte it receives.
//! It decides nothing: what to move is the caller's choice.
//!
//! Small blobs travel in batches, large ones in streams, several at a time; what the other side has is never sent.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod call;
mod carrier;
mod channel;
mod dialler;
mod error;
mod input_tree;
mod keep;
mod part;
mod pull;
mod secure;
mod transfer;
mod wire;

pub use call::{Call, Turn};
pub use carrier::Carrier;
pub use channel::{Link, LinkOptions, TlsOptions};
pub use dialler::{Dialler, DiallerOptions};
pub use error::DialError;
pub use input_tree::{InputTree, Source};
pub use transfer::Moved;
