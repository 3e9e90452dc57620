//! The one map from native errors to gRPC status. Permanent errors are never INTERNAL or UNAVAILABLE: Go clients repeat
//! those five times.

use buildnet_formats::wire::google::rpc;
use buildnet_formats::{FieldValue, NativeError};
use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

/// Every code of the error tree: its gRPC status, and its status over HTTP. `src/buildnet/edge/status.py` has the same rows,
/// and `tests/unit/test_status.py` compares them.
pub(crate) const ERRORS: [(&str, Code, u16); 29] = [
    ("invalid_request", Code::InvalidArgument, 400),
    ("not_found", Code::NotFound, 404),
    ("unauthenticated", Code::Unauthenticated, 401),
    ("forbidden", Code::PermissionDenied, 403),
    ("unimplemented", Code::Unimplemented, 501),
    // REAPI: a blob over max_cas_blob_size_bytes is INVALID_ARGUMENT.
    ("too_large", Code::InvalidArgument, 413),
    ("out_of_range", Code::OutOfRange, 400),
    ("transfer_refused", Code::FailedPrecondition, 409),
    ("blobs_missing", Code::FailedPrecondition, 409),
    ("output_invalid", Code::FailedPrecondition, 409),
    ("dependency_failed", Code::FailedPrecondition, 409),
    ("lease_lost", Code::Aborted, 409),
    ("overloaded", Code::ResourceExhausted, 503),
    ("storage_full", Code::ResourceExhausted, 507),
    // Another try may reach it: a tier that does not answer, a server that stops.
    ("node_down", Code::Unavailable, 503),
    ("no_capable_worker", Code::FailedPrecondition, 409),
    ("deadline_passed", Code::DeadlineExceeded, 504),
    ("cancelled", Code::Cancelled, 503),
    ("digest_mismatch", Code::InvalidArgument, 400),
    ("bad_signature", Code::InvalidArgument, 400),
    ("replayed", Code::InvalidArgument, 400),
    ("expired", Code::InvalidArgument, 400),
    ("ledger_corrupt", Code::DataLoss, 500),
    ("sandbox_failed", Code::FailedPrecondition, 409),
    ("state_corrupt", Code::DataLoss, 500),
    ("state_newer", Code::FailedPrecondition, 409),
    ("state_locked", Code::FailedPrecondition, 409),
    ("port_in_use", Code::FailedPrecondition, 409),
    ("internal", Code::Internal, 500),
];

/// The row of an error that is known by its code, or as a bug.
fn row_of(error: &NativeError) -> (&'static str, Code, u16) {
    // A rotten blob has been set apart and is absent from now on: say what the next call will say.
    let code = if error.code == "digest_mismatch" && blamed(error, "store") { "not_found" } else { error.code };
    row(code).unwrap_or(("internal", Code::Internal, 500))
}

fn row(code: &str) -> Option<(&'static str, Code, u16)> {
    ERRORS.into_iter().find(|(known, ..)| *known == code)
}

fn code_of(error: &NativeError) -> Code {
    row_of(error).1
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
fn reason_of(status: &Status) -> Option<String> {
    let details = rpc::Status::decode(status.details()).ok()?.details;
    let info = details.iter().find(|detail| detail.type_url.ends_with("/google.rpc.ErrorInfo"))?;
    Some(rpc::ErrorInfo::decode(info.value.as_slice()).ok()?.reason)
}

/// What a status means over HTTP: the code of the error tree that it names, or the one that its gRPC code alone tells, and the
/// HTTP status.
pub(crate) fn http_meaning_of(status: &Status) -> (&'static str, http::StatusCode) {
    let named = reason_of(status).and_then(|reason| row(&reason));
    let (code, number) = match (named, status.code()) {
        // Rot that reads as absence keeps its own name.
        (Some((code, _, _)), Code::NotFound) => (code, 404),
        (Some((code, _, number)), _) => (code, number),
        // Without details these say no more: that it passes, that it will not, that something is broken.
        (None, Code::ResourceExhausted) => ("overloaded", 503),
        (None, Code::FailedPrecondition) => ("invalid_request", 409),
        (None, Code::DataLoss) => ("internal", 500),
        (None, code) => ERRORS.into_iter().find(|row| row.1 == code).map_or(("internal", 500), |row| (row.0, row.2)),
    };
    (code, http_status(number))
}

fn http_status(number: u16) -> http::StatusCode {
    http::StatusCode::from_u16(number).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR)
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
    http_status(row_of(error).2)
}

pub(crate) fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}
