//! The errors of this crate, each one sentence with its stable code; nothing here decides what becomes of them.

use std::io;
use std::path::Path;

use buildnet_formats::{FieldValue, NativeError};

/// The crate's result.
pub type Result<T> = std::result::Result<T, NativeError>;

pub(crate) fn invalid(field: &str, message: impl std::fmt::Display) -> NativeError {
    NativeError::invalid(field, format!("{field}: {message}"))
}

/// An output that the Command does not allow; `path` is relative to the execution root.
pub(crate) fn output(path: &Path, message: impl std::fmt::Display) -> NativeError {
    let path = path.display().to_string();
    NativeError::new("output_invalid", format!("the output {path} {message}")).with("path", FieldValue::Text(path))
}

pub(crate) fn sandbox(message: impl Into<String>) -> NativeError {
    NativeError::new("sandbox_failed", message)
}

/// A failed system call on `path`; a full disk keeps its own code because the caller should wait, not give up.
pub(crate) fn io(doing: &str, path: &Path, error: &io::Error) -> NativeError {
    let code = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => "storage_full",
        _ => "sandbox_failed",
    };
    NativeError::new(code, format!("cannot {doing} {}: {error}", path.display()))
        .with("path", FieldValue::Text(path.display().to_string()))
}
