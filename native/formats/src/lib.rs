//! Formats decide what bytes mean. Pure: no I/O, no clock, no global state; every parser of outside bytes is here.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod digest;
mod error;
pub mod quick;
mod resource;
mod validate;

#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod wire;

pub use digest::{Digest, Function, Hasher};
pub use error::{FieldValue, NativeError};
pub use resource::{Compressor, ReadName, WriteName};
pub use validate::{
    DEPTH_MAX, DIRECTORIES_MAX, MESSAGE_BYTES_MAX, NODE_PROPERTIES, decode_action, decode_command, decode_directory,
    symlink_target_stays,
};
