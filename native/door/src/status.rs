//! The one map from native errors to gRPC status. Permanent errors are never INTERNAL or UNAVAILABLE: Go clients repeat
//! those five times.

use buildnet_formats::wire::google::rpc;
use buildnet_formats::{FieldValue, NativeError};
use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

fn code_of(error: &NativeError) -> Code {
    match error.code {
        "invalid_request" => Code::InvalidArgument,
        "not_found" => Code::NotFound,
        "out_of_range" => Code::OutOfRange,
        "blobs_missing" => Code::FailedPrecondition,
        "storage_full" | "overloaded" => Code::ResourceExhausted,
        // REAPI: a blob over max_cas_blob_size_bytes is INVALID_ARGUMENT.
        "too_large" => Code::InvalidArgument,
        // A rotten blob has been set apart and is absent from now on: say what the next call will say.
        "digest_mismatch" if blamed(error, "store") => Code::NotFound,
        "digest_mismatch" => Code::InvalidArgument,
        // Another try may reach it: a tier that does not answer, a server that stops.
        "node_down" => Code::Unavailable,
        "cancelled" => Code::Cancelled,
        "state_corrupt" => Code::DataLoss,
        _ => Code::Internal,
    }
}

fn blamed(error: &NativeError, who: &str) -> bool {
    error.fields.iter().any(|(name, value)| *name == "blame" && *value == FieldValue::Text(who.to_owned()))
}

/// The status of a call that failed.
pub(crate) fn status_of(error: &NativeError) -> Status {
    let code = code_of(error);
    let mut details = vec![any(
        "google.rpc.ErrorInfo",
        &rpc::ErrorInfo { reason: error.code.to_owned(), domain: "buildnet".to_owned(), ..Default::default() },
    )];
    for (name, value) in &error.fields {
        match (*name, value) {
            ("digests", FieldValue::Texts(digests)) => {
                let violations = digests.iter().map(|digest| rpc::precondition_failure::Violation {
                    r#type: "MISSING".to_owned(),
                    subject: format!("blobs/{digest}"),
                    ..Default::default()
                });
                let failure = rpc::PreconditionFailure { violations: violations.collect() };
                details.insert(0, any("google.rpc.PreconditionFailure", &failure));
            }
            ("field", FieldValue::Text(field)) => {
                let violation = rpc::bad_request::FieldViolation {
                    field: field.clone(),
                    description: error.message.clone(),
                    ..Default::default()
                };
                details.push(any("google.rpc.BadRequest", &rpc::BadRequest { field_violations: vec![violation] }));
            }
            _ => {}
        }
    }
    let status = rpc::Status { code: code as i32, message: error.message.clone(), details };
    Status::with_details(code, error.message.clone(), Bytes::from(status.encode_to_vec()))
}

/// The code of the error tree that a status names in its details; none where it names none.
pub(crate) fn reason_of(status: &Status) -> Option<String> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url.ends_with("/google.rpc.ErrorInfo"))?;
    Some(rpc::ErrorInfo::decode(info.value.as_slice()).ok()?.reason)
}

/// The status inside a batch's reply.
pub(crate) fn inner_status(done: &Result<(), NativeError>) -> rpc::Status {
    match done {
        Ok(()) => rpc::Status::default(),
        Err(error) => rpc::Status { code: code_of(error) as i32, message: error.message.clone(), details: Vec::new() },
    }
}

/// The HTTP status of the same error.
pub(crate) fn http_status_of(error: &NativeError) -> http::StatusCode {
    match error.code {
        "storage_full" => http::StatusCode::INSUFFICIENT_STORAGE,
        "too_large" => http::StatusCode::PAYLOAD_TOO_LARGE,
        "overloaded" => http::StatusCode::SERVICE_UNAVAILABLE,
        _ => match code_of(error) {
            Code::InvalidArgument => http::StatusCode::BAD_REQUEST,
            Code::NotFound => http::StatusCode::NOT_FOUND,
            Code::Unavailable | Code::Cancelled | Code::ResourceExhausted => http::StatusCode::SERVICE_UNAVAILABLE,
            _ => http::StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

pub(crate) fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}
