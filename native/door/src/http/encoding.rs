//! Content codings (RFC 9110 section 8.4): as it is, or zstd (RFC 8878). Any other is refused on the way in and never used
//! on the way out.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::refusal::Refusal;

/// How the bytes of a body are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Identity,
    Zstd,
}

/// How a request's body is coded.
///
/// Errors: 415 for a coding that is not known here.
pub(super) fn coding_of(headers: &HeaderMap) -> Result<Coding, Refusal> {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    match (codings.next().map(HeaderValue::as_bytes), codings.next()) {
        (None, _) => Ok(Coding::Identity),
        (Some(name), None) if name.eq_ignore_ascii_case(b"identity") => Ok(Coding::Identity),
        (Some(name), None) if name.eq_ignore_ascii_case(b"zstd") => Ok(Coding::Zstd),
        _ => Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request",
            "the body has a Content-Encoding that is not known here; send it as it is or as zstd",
        )
        .with(header::ACCEPT_ENCODING, HeaderValue::from_static("zstd"))),
    }
}

/// Whether a client asks for zstd by its name. `*` is taken for a browser's politeness.
pub(super) fn accepts_zstd(headers: &HeaderMap) -> bool {
    let mut listed = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    listed.any(|value| value.split(',').any(wants_zstd))
}

fn wants_zstd(item: &str) -> bool {
    let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
    let refused = parameters.split(';').any(|parameter| {
        let (name, weight) = parameter.split_once('=').unwrap_or((parameter, ""));
        name.trim().eq_ignore_ascii_case("q") && weight.trim().parse::<f32>().is_ok_and(|weight| weight <= 0.0)
    });
    name.trim().eq_ignore_ascii_case("zstd") && !refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepts(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap());
        accepts_zstd(&headers)
    }

    #[test]
    fn zstd_is_sent_to_those_who_name_it() {
        for value in ["zstd", "gzip, ZSTD", "zstd;q=0.1", "br;q=1, zstd ; q=1"] {
            assert!(accepts(value), "{value}");
        }
        for value in ["", "*", "gzip", "zstd;q=0", "zstd;q=0.0", "x-zstd"] {
            assert!(!accepts(value), "{value}");
        }
    }

    #[test]
    fn other_codings_are_refused() {
        for (value, expected) in [("zstd", Some(Coding::Zstd)), ("identity", Some(Coding::Identity)), ("gzip", None)] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(coding_of(&headers).ok(), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(value in "[a-z;=,q0-9. *]{0,40}") {
            let _ = accepts(&value);
        }
    }
}
