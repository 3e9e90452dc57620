//! Every refusal of the HTTP side has a status that its client understands, a stable code and a remedy. It never repeats
//! what a client sent as credentials.

use buildnet_formats::NativeError;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;
use tonic::body::Body;
use tonic::{Code, Status};

use super::outbound::respond;
use crate::status::{http_status_of, reason_of};

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
        match status.code() {
            Code::Unauthenticated => Self::new(StatusCode::UNAUTHORIZED, "forbidden", status.message())
                .with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"buildnet\"")),
            Code::PermissionDenied => Self::new(StatusCode::FORBIDDEN, "forbidden", status.message()),
            Code::InvalidArgument => Self::new(StatusCode::BAD_REQUEST, "invalid_request", status.message()),
            // The code says no more than that something is exhausted: what passes must not be told as what does not.
            Code::ResourceExhausted if reason_of(&status).as_deref() == Some("storage_full") => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "storage_full", status.message())
            }
            _ => Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", status.message()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::status_of;

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
        // Without details it is known only that it passes.
        let refusal = Refusal::from(Status::resource_exhausted("too many calls are open"));
        assert_eq!((refusal.status, refusal.code), (StatusCode::SERVICE_UNAVAILABLE, "overloaded"));
    }
}
