//! Every refusal of the HTTP side has a status that its client understands, a stable code and a remedy. It never repeats
//! what a client sent as credentials.

use buildnet_formats::NativeError;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;
use tonic::Status;
use tonic::body::Body;

use super::outbound::respond;
use crate::status::{http_meaning_of, http_status_of};

const CODE_HEADER: &str = "buildnet-code";

/// Why a request is not answered as it wished.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    header: Option<(header::HeaderName, HeaderValue)>,
}

/// How a client expects to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// A sentence, as plain text.
    Plain,
    /// A sentence; a full store is 413, the one refusal of a write after which Gradle goes on reading.
    Gradle,
    /// JSON with a code, never a 5xx for what will not go away: turbo repeats those.
    Turbo,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), header: None }
    }

    #[must_use]
    pub(super) fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }

    pub(super) fn method(allowed: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request", format!("use {allowed} here"))
            .with(header::ALLOW, HeaderValue::from_static(allowed))
    }

    /// The response, as the client expects it.
    pub(super) fn into_response(self, dialect: Dialect) -> Response<Body> {
        let full = self.code == "storage_full";
        let status = match dialect {
            Dialect::Gradle if full => StatusCode::PAYLOAD_TOO_LARGE,
            Dialect::Turbo if full => StatusCode::FORBIDDEN,
            _ => self.status,
        };
        let mut response = match dialect {
            Dialect::Turbo => {
                let code = if full { "remote_caching_over_limit" } else { self.code };
                let text = json!({ "error": { "code": code, "message": self.message } }).to_string();
                respond(status, "application/json", text)
            }
            _ => respond(status, "text/plain; charset=utf-8", format!("{}\n", self.message)),
        };
        response.headers_mut().insert(CODE_HEADER, HeaderValue::from_static(self.code));
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<NativeError> for Refusal {
    fn from(error: NativeError) -> Self {
        Self::new(http_status_of(&error), error.code, error.message)
    }
}

/// What the check of a caller's rights said, or the ledger.
impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let (code, told) = http_meaning_of(&status);
        let refusal = Self::new(told, code, status.message());
        match told {
            StatusCode::UNAUTHORIZED => {
                refusal.with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"buildnet\""))
            }
            _ => refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ERRORS, status_of};
    use buildnet_formats::Digest;
    use tonic::Code;

    #[test]
    fn a_refusal_is_the_same_whether_it_came_by_grpc_or_not() {
        for (code, status, gradle, turbo) in [
            ("storage_full", 507, 413, 403),
            ("overloaded", 503, 503, 503),
            ("node_down", 503, 503, 503),
            ("invalid_request", 400, 400, 400),
        ] {
            let error = NativeError::new(code, "why");
            for dialect in [(Dialect::Plain, status), (Dialect::Gradle, gradle), (Dialect::Turbo, turbo)] {
                let refusals = [Refusal::from(error.clone()), Refusal::from(status_of(&error))];
                let told = refusals.map(|refusal| refusal.into_response(dialect.0).status().as_u16());
                assert_eq!(told, [dialect.1; 2], "{code} {dialect:?}");
            }
        }
    }

    #[test]
    fn every_error_means_the_same_by_either_way() {
        for (code, grpc, http) in ERRORS {
            let error = NativeError::new(code, "why");
            assert_eq!(status_of(&error).code(), grpc, "{code}");
            for refusal in [Refusal::from(error.clone()), Refusal::from(status_of(&error))] {
                assert_eq!((refusal.code, refusal.status.as_u16()), (code, http), "{code}");
            }
        }
        let rotten = NativeError::mismatch(Digest::of(b"a"), Digest::of(b"b"), "store");
        for refusal in [Refusal::from(rotten.clone()), Refusal::from(status_of(&rotten))] {
            assert_eq!((refusal.code, refusal.status), ("digest_mismatch", StatusCode::NOT_FOUND));
        }
    }

    #[test]
    fn a_status_without_details_means_what_its_code_says() {
        for (code, told) in [
            (Code::ResourceExhausted, (503, "overloaded")),
            (Code::Unavailable, (503, "node_down")),
            (Code::Cancelled, (503, "cancelled")),
            (Code::DeadlineExceeded, (504, "deadline_passed")),
            (Code::Unauthenticated, (401, "unauthenticated")),
            (Code::PermissionDenied, (403, "forbidden")),
            (Code::InvalidArgument, (400, "invalid_request")),
            (Code::NotFound, (404, "not_found")),
            (Code::FailedPrecondition, (409, "invalid_request")),
            (Code::DataLoss, (500, "internal")),
            (Code::Internal, (500, "internal")),
            (Code::Unknown, (500, "internal")),
        ] {
            let refusal = Refusal::from(Status::new(code, "why"));
            assert_eq!((refusal.status.as_u16(), refusal.code), told, "{code:?}");
        }
    }
}
