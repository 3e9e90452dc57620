//! The sorts of calls and the codes they end with: names of ours, never a caller's, so that what is counted is bounded.

use crate::services::Method;
use crate::usage::Use;

/// gRPC's codes by their numbers; the HTTP ones share the places behind them.
pub(crate) const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// Every other HTTP status is counted under `other`; 499 is a caller that left before the end.
pub(crate) const HTTP_CODES: [&str; 22] = [
    "200", "201", "202", "204", "206", "207", "304", "400", "401", "403", "404", "405", "409", "411", "413", "414",
    "416", "431", "499", "500", "507", "other",
];
/// All of them.
pub(crate) const CODES: usize = GRPC_CODES.len() + HTTP_CODES.len();
const OK: u8 = 0;
pub(crate) const CANCELLED: u8 = 1;
pub(crate) const UNKNOWN: u8 = 2;
const NOT_FOUND: u8 = 5;

/// Calls that end in the door and are not one message each way, after those of [`Method`].
const STREAMS: [&str; 5] = [
    "google.bytestream.ByteStream/Write",
    "google.bytestream.ByteStream/Read",
    "build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree",
    "grpc.health.v1.Health/Watch",
    "buildnet.v1.TransportService/Open",
];
const HTTP_VERBS: [&str; 4] = ["GET", "HEAD", "PUT", "other"];
/// By what a path is of; the last is everything else.
const HTTP_KINDS: [&str; 11] =
    ["page", "cas", "ac", "ccache", "sccache", "gradle", "turborepo", "nx", "web", "events", "other"];
/// Where in them those stand that are a part of a path.
const CACHES: std::ops::Range<usize> = 1..6;

/// Which method a call is of: an index of [`Observe::methods`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sort(u16);

impl Sort {
    pub(crate) const WRITE: Self = Self(Method::ALL.len() as u16);
    pub(crate) const READ: Self = Self(Self::WRITE.0 + 1);
    pub(crate) const GET_TREE: Self = Self(Self::WRITE.0 + 2);
    pub(crate) const WATCH: Self = Self(Self::WRITE.0 + 3);
    pub(crate) const OPEN: Self = Self(Self::WRITE.0 + 4);
    /// A method that nobody offers.
    const UNKNOWN: Self = Self(Self::WRITE.0 + STREAMS.len() as u16);
    const HTTP: u16 = Self::UNKNOWN.0 + 1;
    pub(crate) const PYTHON: u16 = Self::HTTP + (HTTP_VERBS.len() * HTTP_KINDS.len()) as u16;

    /// The one at a place.
    pub(crate) fn at(place: usize) -> Self {
        Self(u16::try_from(place).unwrap_or(u16::MAX))
    }

    /// Its place.
    pub(crate) fn place(self) -> usize {
        usize::from(self.0)
    }

    pub(crate) fn of(method: Method) -> Self {
        Self(method as u16)
    }

    /// A method that Python answers, by its index.
    pub(crate) fn of_python(index: Option<u32>) -> Self {
        let place = index.and_then(|index| u16::try_from(index).ok()?.checked_add(Self::PYTHON));
        place.map_or(Self::UNKNOWN, Self)
    }

    pub(crate) fn of_http(verb: &http::Method, path: &str) -> Self {
        let verb = HTTP_VERBS.iter().position(|name| *name == verb.as_str()).unwrap_or(HTTP_VERBS.len() - 1);
        let kind = http_kind(path);
        Self(Self::HTTP + (kind * HTTP_VERBS.len() + verb) as u16)
    }

    /// Whether it ends with an HTTP status.
    pub(crate) fn is_http(self) -> bool {
        (Self::HTTP..Self::PYTHON).contains(&self.0)
    }

    /// What it does with the cache, if it does anything.
    pub(crate) fn uses(self) -> Option<Use> {
        if self.is_http() {
            let (verb, kind) = self.verb_and_kind();
            return match (verb, kind) {
                (_, "page" | "web" | "events" | "other") => None,
                ("GET", "cas") => Some(Use::Read),
                ("GET", _) => Some(Use::Result),
                ("PUT", _) => Some(Use::Write),
                _ => None,
            };
        }
        match self {
            Self::READ | Self::GET_TREE => Some(Use::Read),
            Self::WRITE => Some(Use::Write),
            _ if self == Self::of(Method::BatchReadBlobs) => Some(Use::Read),
            _ if self == Self::of(Method::GetActionResult) => Some(Use::Result),
            _ if self == Self::of(Method::BatchUpdateBlobs) || self == Self::of(Method::UpdateActionResult) => {
                Some(Use::Write)
            }
            _ => None,
        }
    }

    /// What it is called outside; a method that Python answers is named by whoever adds it.
    pub(crate) fn name(self) -> String {
        let place = usize::from(self.0);
        if let Some(method) = Method::ALL.get(place) {
            return method.path().trim_start_matches('/').to_owned();
        }
        if let Some(stream) = STREAMS.get(place - Method::ALL.len()) {
            return (*stream).to_owned();
        }
        if self == Self::UNKNOWN {
            return "unknown".to_owned();
        }
        let (verb, kind) = self.verb_and_kind();
        format!("http {verb} {kind}")
    }

    /// Of one that is HTTP's.
    fn verb_and_kind(self) -> (&'static str, &'static str) {
        let place = usize::from(self.0 - Self::HTTP);
        (HTTP_VERBS[place % HTTP_VERBS.len()], HTTP_KINDS[place / HTTP_VERBS.len()])
    }
}

/// The cache that a path is of, below whatever instance. Paths that no cache has cost the caller a 404 and are counted
/// together.
fn http_kind(path: &str) -> usize {
    let kind = match path {
        "/status" | "/metrics" => Some("page"),
        "/" => Some("web"),
        // It lasts as long as somebody looks, and must not be taken for a slow page.
        "/api/v1/events" => Some("events"),
        _ => cache_of(path).or_else(|| ["/api/", "/assets/"].iter().any(|at| path.starts_with(at)).then_some("web")),
    };
    kind.and_then(|kind| HTTP_KINDS.iter().position(|known| *known == kind)).unwrap_or(HTTP_KINDS.len() - 1)
}

fn cache_of(path: &str) -> Option<&'static str> {
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let found = match (part, parts.peek()) {
            ("v8", Some(&"artifacts")) => Some("turborepo"),
            ("v1", Some(&"cache")) => Some("nx"),
            _ => HTTP_KINDS[CACHES].iter().find(|kind| **kind == part).copied(),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The place of an HTTP status among the codes.
pub(crate) fn http_code(status: u16) -> u8 {
    let known = HTTP_CODES.iter().position(|code| code.parse() == Ok(status)).unwrap_or(HTTP_CODES.len() - 1);
    (GRPC_CODES.len() + known) as u8
}

/// What a code is called.
pub(crate) fn code_name(code: u8) -> &'static str {
    let code = usize::from(code);
    GRPC_CODES.get(code).or_else(|| HTTP_CODES.get(code.wrapping_sub(GRPC_CODES.len()))).copied().unwrap_or("UNKNOWN")
}

/// Whether a call that ended so did what it was asked.
pub(crate) fn is_done(code: u8) -> bool {
    code == OK || code_name(code).starts_with('2')
}

/// Misses are what caches are asked for, and the end of a call that its caller gave up is the caller's.
pub(crate) fn is_error(sort: Sort, code: u8) -> bool {
    if sort.is_http() {
        let name = code_name(code);
        return name == "other" || name >= "400" && name != "404" && name != "499";
    }
    let missed = code == NOT_FOUND && sort == Sort::of(Method::GetActionResult);
    !(matches!(code, OK | CANCELLED) || missed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sort_has_its_name_and_its_place() {
        let name = |sort: Sort| sort.name();
        assert_eq!(name(Sort::of(Method::HealthList)), "grpc.health.v1.Health/List");
        assert_eq!(name(Sort::WATCH), "grpc.health.v1.Health/Watch");
        assert_eq!(name(Sort::OPEN), "buildnet.v1.TransportService/Open");
        assert_eq!(name(Sort::of_python(None)), "unknown");
        assert_eq!(name(Sort::of_http(&http::Method::HEAD, "/a/cas/x")), "http HEAD cas");
        assert_eq!(name(Sort::of_http(&http::Method::DELETE, "/x")), "http other other");
        for (path, kind) in [
            ("/status", "page"),
            ("/", "web"),
            ("/api/v1/nodes", "web"),
            ("/api/v1/events", "events"),
            ("/api/cas/x", "cas"),
            ("/a/v1/cache/x", "nx"),
            ("/v8/artifacts", "turborepo"),
            ("/web", "other"),
        ] {
            assert_eq!(name(Sort::of_http(&http::Method::GET, path)), format!("http GET {kind}"));
        }
        for (place, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(Sort::of(method), Sort::at(place));
            assert_eq!(Method::of(method.path()), Some(method));
        }
        let names: std::collections::HashSet<String> = (0..Sort::PYTHON).map(|n| Sort(n).name()).collect();
        assert_eq!(names.len(), usize::from(Sort::PYTHON));
    }

    #[test]
    fn what_a_call_does_with_the_cache() {
        let http = |verb: http::Method, path| Sort::of_http(&verb, path).uses();
        assert_eq!(http(http::Method::GET, "/cas/x"), Some(Use::Read));
        assert_eq!(http(http::Method::GET, "/ac/x"), Some(Use::Result));
        assert_eq!(http(http::Method::PUT, "/i/ccache/x"), Some(Use::Write));
        assert_eq!(http(http::Method::HEAD, "/cas/x"), None);
        assert_eq!(http(http::Method::GET, "/api/v1/nodes"), None);
        assert_eq!(http(http::Method::GET, "/status"), None);
        assert_eq!(Sort::READ.uses(), Some(Use::Read));
        assert_eq!(Sort::of(Method::BatchUpdateBlobs).uses(), Some(Use::Write));
        assert_eq!(Sort::of(Method::FindMissingBlobs).uses(), None);
        assert_eq!(Sort::of_python(Some(0)).uses(), None);
        assert!(is_done(OK) && is_done(http_code(206)) && !is_done(http_code(304)) && !is_done(NOT_FOUND));
    }

    #[test]
    fn a_miss_is_no_error_and_a_refusal_is() {
        let get = Sort::of_http(&http::Method::GET, "/cas/x");
        for (status, error) in [(200, false), (404, false), (499, false), (403, true), (418, true), (507, true)] {
            assert_eq!(is_error(get, http_code(status)), error, "{status}");
        }
        assert!(!is_error(Sort::of(Method::GetActionResult), NOT_FOUND));
        assert!(is_error(Sort::READ, NOT_FOUND));
        assert!(is_error(Sort::READ, UNKNOWN));
    }
}
