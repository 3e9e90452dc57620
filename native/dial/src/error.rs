//! Errors of outbound transfers, each with the slug that the rest of the house knows it by.

use buildnet_formats::{FieldValue, NativeError};
use tonic::{Code, Status};

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The URL is not one this end can dial.
    #[error("{0:?} is not a server's URL; write grpc://HOST:PORT, or grpcs://HOST:PORT for TLS")]
    Url(String),
    /// Nobody answers.
    #[error("cannot reach {url}: {reason}")]
    Down {
        /// Where it was dialled.
        url: String,
        /// What the transport said.
        reason: String,
    },
    /// There is no session with the controller, and dialling again as before will not change that.
    #[error("{url}: {message}")]
    Unmet {
        /// Where it was dialled.
        url: String,
        /// Slug of the error tree.
        code: &'static str,
        /// Why, with the remedy.
        message: String,
    },
    /// The server does not have these blobs.
    #[error("the server lacks {} blobs, the first is {}", .0.len(), .0.first().map_or("", String::as_str))]
    Missing(Vec<String>),
    /// The server answered with an error.
    #[error("{call}: {message}")]
    Refused {
        /// The call that failed.
        call: &'static str,
        /// Slug of the error tree.
        code: &'static str,
        /// The server's words.
        message: String,
    },
    /// What arrived is not what was asked for.
    #[error("the server sent other bytes than {0}")]
    Mismatch(String),
    /// The request is malformed.
    #[error("{0}")]
    Invalid(String),
    /// A local file could not be read or written.
    #[error("{path}: {source}")]
    Local {
        /// The path.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The local store or a format refused.
    #[error(transparent)]
    Native(#[from] NativeError),
}

impl From<DialError> for NativeError {
    fn from(error: DialError) -> Self {
        let message = error.to_string();
        match error {
            DialError::Native(error) => error,
            DialError::Url(_) => Self::invalid("url", message),
            DialError::Invalid(_) => Self::invalid("inputs", message),
            DialError::Local { .. } => Self::invalid("path", message),
            DialError::Unmet { url, code, .. } => Self::new(code, message).with("url", FieldValue::Text(url)),
            DialError::Down { url, .. } => Self::new("node_down", message).with("url", FieldValue::Text(url)),
            DialError::Missing(digests) => {
                Self::new("blobs_missing", message).with("digests", FieldValue::Texts(digests))
            }
            DialError::Refused { code, .. } => Self::new(code, message),
            DialError::Mismatch(digest) => Self::new("digest_mismatch", message)
                .with("expected", FieldValue::Text(digest))
                .with("blame", FieldValue::Text("peer".to_owned())),
        }
    }
}

impl DialError {
    /// Translate the status of a call.
    pub(crate) fn from_status(call: &'static str, url: &str, status: &Status) -> Self {
        let code = match status.code() {
            Code::Unavailable => {
                return Self::Down { url: url.to_owned(), reason: status.message().to_owned() };
            }
            Code::NotFound => "not_found",
            Code::Unauthenticated => "unauthenticated",
            Code::PermissionDenied => "forbidden",
            Code::InvalidArgument => "invalid_request",
            Code::FailedPrecondition => "blobs_missing",
            Code::OutOfRange => "out_of_range",
            Code::ResourceExhausted => "storage_full",
            Code::DeadlineExceeded => "deadline_passed",
            Code::Cancelled => "cancelled",
            Code::Unimplemented => "unimplemented",
            _ => "internal",
        };
        Self::Refused { call, code, message: status.message().to_owned() }
    }

    /// The slug of a dial that failed.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Unmet { code, .. } => code,
            _ => "node_down",
        }
    }

    /// Name the path of a local failure.
    pub(crate) fn local(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Local { path: path.display().to_string(), source }
    }
}
