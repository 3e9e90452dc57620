//! What a request's conditions ask of a representation: RFC 9110 sections 13 and 14. Headers that are malformed are as if
//! they were absent, as it says; nothing is refused for them.

use http::{HeaderMap, Method, header};

/// What to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// All of it.
    Whole,
    /// So many bytes from there on; at least one.
    Part { offset: u64, length: u64 },
    /// 304.
    NotModified,
    /// 416.
    Unsatisfiable,
    /// 412.
    Failed,
}

/// What to answer a GET or HEAD of a representation with this entity tag and size.
pub(super) fn decide(method: &Method, headers: &HeaderMap, tag: &str, size_bytes: u64) -> Decision {
    if precondition(headers, Some(tag)) == Some(false) {
        return Decision::Failed;
    }
    if headers.get_all(header::IF_NONE_MATCH).iter().any(|value| lists(value, Some(tag), true)) {
        return Decision::NotModified;
    }
    // RFC 9110 14.2: Range is defined for GET alone.
    let mut ranges = headers.get_all(header::RANGE).iter();
    let (Some(range), None, &Method::GET) = (ranges.next(), ranges.next(), method) else { return Decision::Whole };
    // If-Range holds with exactly this strong tag; a date never does, since none is kept.
    if headers.get(header::IF_RANGE).is_some_and(|value| value.as_bytes() != tag.as_bytes()) {
        return Decision::Whole;
    }
    part_of(range.as_bytes(), size_bytes)
}

/// Whether a write may go on: `tag` is of what is here now.
pub(super) fn may_write(headers: &HeaderMap, tag: Option<&str>) -> bool {
    precondition(headers, tag) != Some(false)
        && !headers.get_all(header::IF_NONE_MATCH).iter().any(|value| lists(value, tag, true))
}

/// Whether a request says anything that [`may_write`] looks at.
pub(super) fn conditional(headers: &HeaderMap) -> bool {
    headers.contains_key(header::IF_MATCH) || headers.contains_key(header::IF_NONE_MATCH)
}

fn precondition(headers: &HeaderMap, tag: Option<&str>) -> Option<bool> {
    headers.get(header::IF_MATCH)?;
    Some(headers.get_all(header::IF_MATCH).iter().any(|value| lists(value, tag, false)))
}

/// Whether a list of entity tags holds this one. Weak tags count only where the comparison is weak.
fn lists(value: &header::HeaderValue, tag: Option<&str>, weak: bool) -> bool {
    let Some(tag) = tag else { return false };
    let mut rest = value.as_bytes().trim_ascii();
    if rest == b"*" {
        return true;
    }
    while !rest.is_empty() {
        let (is_weak, quoted) = match rest.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let Some(length) = quoted.strip_prefix(b"\"").and_then(|inner| inner.iter().position(|b| *b == b'"')) else {
            return false;
        };
        let (found, more) = quoted.split_at(length + 2);
        if found == tag.as_bytes() && (weak || !is_weak) {
            return true;
        }
        rest = more.trim_ascii_start();
        rest = rest.strip_prefix(b",").unwrap_or(rest).trim_ascii_start();
    }
    false
}

/// One range of bytes. Of several the whole is sent, as RFC 9110 14.2 allows.
fn part_of(range: &[u8], size_bytes: u64) -> Decision {
    let parsed = || {
        let (unit, set) = std::str::from_utf8(range).ok()?.split_once('=')?;
        let (first, last) = set.trim().split_once('-')?;
        unit.trim().eq_ignore_ascii_case("bytes").then_some(())?;
        Some((position(first)?, position(last)?))
    };
    match parsed() {
        None | Some((None, None)) => Decision::Whole,
        Some((Some(first), Some(last))) if last < first => Decision::Whole,
        Some((Some(first), last)) if first < size_bytes => {
            let end = last.unwrap_or(u64::MAX).saturating_add(1).min(size_bytes);
            Decision::Part { offset: first, length: end - first }
        }
        Some((None, Some(suffix))) if suffix > 0 && size_bytes > 0 => {
            let length = suffix.min(size_bytes);
            Decision::Part { offset: size_bytes - length, length }
        }
        Some(_) => Decision::Unsatisfiable,
    }
}

/// Digits, or nothing; past what a number holds is past any end.
fn position(text: &str) -> Option<Option<u64>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(None);
    }
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn get(pairs: &[(header::HeaderName, &str)]) -> Decision {
        decide(&Method::GET, &headers(pairs), "\"t\"", 10)
    }

    #[test]
    fn ranges_are_those_of_rfc_9110() {
        for (range, expected) in [
            ("bytes=0-0", Decision::Part { offset: 0, length: 1 }),
            ("bytes=3-", Decision::Part { offset: 3, length: 7 }),
            ("bytes=-4", Decision::Part { offset: 6, length: 4 }),
            ("bytes=-40", Decision::Part { offset: 0, length: 10 }),
            ("Bytes=2-99999999999999999999999", Decision::Part { offset: 2, length: 8 }),
            ("bytes=10-", Decision::Unsatisfiable),
            ("bytes=-0", Decision::Unsatisfiable),
            ("bytes=5-4", Decision::Whole),
            ("bytes=0-1,3-4", Decision::Whole),
            ("bytes=-", Decision::Whole),
            ("lines=0-1", Decision::Whole),
            ("bytes=+1-2", Decision::Whole),
        ] {
            assert_eq!(get(&[(header::RANGE, range)]), expected, "{range}");
        }
        let part = headers(&[(header::RANGE, "bytes=0-1")]);
        assert_eq!(decide(&Method::HEAD, &part, "\"t\"", 10), Decision::Whole);
        assert_eq!(decide(&Method::GET, &part, "\"t\"", 0), Decision::Unsatisfiable);
    }

    #[test]
    fn tags_are_compared_as_rfc_9110_says() {
        let range = (header::RANGE, "bytes=0-1");
        let part = Decision::Part { offset: 0, length: 2 };
        for (pairs, expected) in [
            (vec![(header::IF_NONE_MATCH, "\"x\", W/\"t\"")], Decision::NotModified),
            (vec![(header::IF_NONE_MATCH, "*")], Decision::NotModified),
            (vec![(header::IF_NONE_MATCH, "\"x\"")], Decision::Whole),
            (vec![(header::IF_NONE_MATCH, "t")], Decision::Whole),
            (vec![(header::IF_MATCH, "\"t\"")], Decision::Whole),
            (vec![(header::IF_MATCH, "W/\"t\"")], Decision::Failed),
            (vec![(header::IF_MATCH, "*")], Decision::Whole),
            (vec![range.clone(), (header::IF_RANGE, "\"t\"")], part),
            (vec![range.clone(), (header::IF_RANGE, "W/\"t\"")], Decision::Whole),
            (vec![range, (header::IF_RANGE, "Sat, 29 Oct 1994 19:43:31 GMT")], Decision::Whole),
        ] {
            assert_eq!(get(&pairs), expected, "{pairs:?}");
        }
        let create = headers(&[(header::IF_NONE_MATCH, "*")]);
        assert!(may_write(&create, None) && !may_write(&create, Some("\"t\"")));
        let update = headers(&[(header::IF_MATCH, "\"t\"")]);
        assert!(may_write(&update, Some("\"t\"")) && !may_write(&update, None) && !may_write(&update, Some("\"u\"")));
    }

    proptest! {
        #[test]
        fn no_header_panics_and_parts_are_within(
            range in "(bytes=)?[0-9,\\- ]{0,30}", tags in "[tW/\", *]{0,20}", size in 0u64..50
        ) {
            let asked = headers(&[(header::RANGE, &range), (header::IF_NONE_MATCH, &tags), (header::IF_RANGE, "\"t\"")]);
            if let Decision::Part { offset, length } = decide(&Method::GET, &asked, "\"t\"", size) {
                prop_assert!(length > 0 && offset + length <= size);
            }
        }

        #[test]
        fn any_bytes_are_a_header(bytes in proptest::collection::vec(0x20u8..0x7f, 0..40)) {
            let value = HeaderValue::from_bytes(&bytes).unwrap();
            let mut asked = HeaderMap::new();
            for name in [header::RANGE, header::IF_MATCH, header::IF_NONE_MATCH] {
                asked.insert(name, value.clone());
            }
            let _ = decide(&Method::GET, &asked, "\"t\"", 10);
        }
    }
}
