//! Which cache a path names, in which instance, and what in it. A path that could be read in two ways is refused, and none
//! ever becomes the name of a file.

use buildnet_formats::{Digest, Function};
use http::StatusCode;

use super::refusal::Refusal;

/// A decoded path is at most so long: with an instance and a team it still fits the name of an entry.
const PATH_BYTES_MAX: usize = 2048;
const NAME_BYTES_MAX: usize = 255;
const WHAT_IS_HERE: &str = "nothing is served at this path; caches are, each below an optional instance name, at /cas/HASH and \
     /ac/HASH (Bazel), /ccache/, /sccache/ (WebDAV), /gradle/, /v8/artifacts (Turborepo) and /v1/cache/HASH (Nx); /status \
     is a status";

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A blob by its hash; the size is not known.
    Blob(Digest),
    /// The result of an action, or what another client keeps under such a name.
    Entry(Digest),
    /// A value of one of the caches that choose their own names, which begin with that of the cache.
    Value { cache: Cache, path: String },
    /// A name that ends in a slash: what WebDAV calls a collection.
    Folder,
    /// A place that no cache is at; for WebDAV a collection too.
    Above,
    /// Turborepo: whether the cache is on.
    TurboStatus,
    /// Turborepo: what happened on the client.
    TurboEvents,
    /// Turborepo: which of many artifacts are here.
    TurboQuery,
    /// Turborepo: one artifact.
    TurboArtifact(String),
}

/// The caches with names of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cache {
    Ccache,
    Sccache,
    Gradle,
    Nx,
}

/// A target in an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) instance: String,
    pub(super) target: Target,
}

/// Take a path apart.
///
/// Errors: 400 for what is ambiguous or malformed, 404 for what no cache is at, 414.
pub(super) fn route(path: &str) -> Result<Route, Refusal> {
    let segments = segments_of(path)?;
    let is_folder = path.ends_with('/');
    let mount = segments.iter().enumerate().find_map(|(at, _)| mount_at(&segments[at..]).map(|mount| (at, mount)));
    let Some((at, (mount, length))) = mount else {
        return Ok(Route { instance: segments.join("/"), target: Target::Above });
    };
    let rest = &segments[at + length..];
    let target = match mount {
        Mount::Cas => Target::Blob(digest_of(rest)?),
        Mount::Ac => Target::Entry(digest_of(rest)?),
        Mount::Turbo => turbo_target(rest)?,
        Mount::Cache(_) if rest.is_empty() || is_folder => Target::Folder,
        Mount::Cache(Cache::Nx) => match rest {
            [hash] => Target::Value { cache: Cache::Nx, path: format!("v1/cache/{}", artifact_name(hash)?) },
            _ => return Err(nothing_here()),
        },
        Mount::Cache(cache) => Target::Value { cache, path: segments[at..].join("/") },
    };
    Ok(Route { instance: segments[..at].join("/"), target })
}

/// The answer where nothing is.
pub(super) fn nothing_here() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "not_found", WHAT_IS_HERE)
}

#[derive(Clone, Copy)]
enum Mount {
    Cas,
    Ac,
    Turbo,
    Cache(Cache),
}

/// The cache that these segments begin with, and how many of them name it. The first such word of a path decides.
fn mount_at(segments: &[String]) -> Option<(Mount, usize)> {
    let next = segments.get(1).map(String::as_str);
    Some(match (segments.first()?.as_str(), next) {
        ("cas", _) => (Mount::Cas, 1),
        ("ac", _) => (Mount::Ac, 1),
        ("ccache", _) => (Mount::Cache(Cache::Ccache), 1),
        ("sccache", _) => (Mount::Cache(Cache::Sccache), 1),
        ("gradle", _) => (Mount::Cache(Cache::Gradle), 1),
        ("v8", Some("artifacts")) => (Mount::Turbo, 2),
        ("v1", Some("cache")) => (Mount::Cache(Cache::Nx), 2),
        _ => return None,
    })
}

/// The decoded segments; empty ones count for nothing, as clients join prefixes with slashes to spare.
fn segments_of(path: &str) -> Result<Vec<String>, Refusal> {
    // Each byte may come as three.
    if path.len() > 3 * PATH_BYTES_MAX {
        return Err(too_long());
    }
    let mut segments = Vec::new();
    let mut length = 0;
    for raw in path.split('/').filter(|raw| !raw.is_empty()) {
        let segment = decoded(raw)?;
        if segment == "." || segment == ".." {
            return Err(bad("a path has no . and no .. in it"));
        }
        if segment.contains('/') {
            return Err(bad("an encoded slash would be taken for a separator by some; write it plainly"));
        }
        length += segment.len() + 1;
        segments.push(segment);
    }
    if length > PATH_BYTES_MAX {
        return Err(too_long());
    }
    Ok(segments)
}

/// Text without its percent-encoding.
///
/// Errors: 400 unless it is UTF-8 without control characters.
pub(super) fn decoded(raw: &str) -> Result<String, Refusal> {
    let bytes = raw.as_bytes();
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        if !bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(bad("a percent sign in a path begins two hex digits"));
        }
    }
    let text = percent_encoding::percent_decode_str(raw)
        .decode_utf8()
        .map_err(|_| bad("a path is UTF-8 once it is decoded"))?;
    if text.chars().any(char::is_control) {
        return Err(bad("a path has no control characters in it"));
    }
    Ok(text.into_owned())
}

fn digest_of(rest: &[String]) -> Result<Digest, Refusal> {
    let (function, hash) = match rest {
        [hash] => (None, hash),
        [function, hash] => {
            (Some(Function::of_name(function).ok_or_else(|| bad("that is not a digest function offered here"))?), hash)
        }
        _ => return Err(bad("write /cas/HASH or /ac/HASH; BLAKE3 is spelled out as in /cas/blake3/HASH")),
    };
    Digest::from_parts(function, hash, 0).map_err(|_| {
        bad("that is not a hash: it is lower-case hex digits, 64 for SHA-256, 40 for SHA-1, 32 for MD5, 96 or 128 for SHA-2")
    })
}

fn turbo_target(rest: &[String]) -> Result<Target, Refusal> {
    Ok(match rest {
        [] => Target::TurboQuery,
        [word] if word == "status" => Target::TurboStatus,
        [word] if word == "events" => Target::TurboEvents,
        [hash] => Target::TurboArtifact(artifact_name(hash)?.to_owned()),
        _ => return Err(nothing_here()),
    })
}

/// The name of an artifact, as it comes in paths and in lists.
pub(super) fn artifact_name(name: &str) -> Result<&str, Refusal> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !plain {
        return Err(bad("the name of an artifact is up to 255 letters, digits, hyphens, dots and underscores"));
    }
    Ok(name)
}

/// A team as the last part of an instance's name.
pub(super) fn instance_of_team(instance: &str, team: &str) -> Result<String, Refusal> {
    if artifact_name(team).is_err() || team == "." || team == ".." {
        return Err(bad("teamId and slug are up to 255 letters, digits, hyphens, dots and underscores"));
    }
    Ok(if instance.is_empty() { team.to_owned() } else { format!("{instance}/{team}") })
}

pub(super) fn bad(message: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "invalid_request", message)
}

fn too_long() -> Refusal {
    Refusal::new(
        StatusCode::URI_TOO_LONG,
        "invalid_request",
        format!("a path is at most {PATH_BYTES_MAX} bytes here; use a shorter instance name or prefix"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(path: &str) -> Option<(String, Cache, String)> {
        match route(path).unwrap() {
            Route { instance, target: Target::Value { cache, path } } => Some((instance, cache, path)),
            _ => None,
        }
    }

    #[test]
    fn a_path_names_an_instance_a_cache_and_a_name() {
        let digest = Digest::from_parts(None, &Digest::of(b"x").hex(), 0).unwrap();
        let hash = digest.hex();
        for (path, instance, target) in [
            (format!("/cas/{hash}"), "", Target::Blob(digest)),
            (format!("//a/b//ac/{hash}"), "a/b", Target::Entry(digest)),
            ("/v8/artifacts".to_owned(), "", Target::TurboQuery),
            ("/t/v8/artifacts/status".to_owned(), "t", Target::TurboStatus),
            ("/v8/artifacts/events".to_owned(), "", Target::TurboEvents),
            ("/v8/artifacts/0a1b".to_owned(), "", Target::TurboArtifact("0a1b".to_owned())),
            ("/sccache/a/8/".to_owned(), "", Target::Folder),
            ("/team/a/".to_owned(), "team/a", Target::Above),
        ] {
            assert_eq!(route(&path).unwrap(), Route { instance: instance.to_owned(), target }, "{path}");
        }
        let blake3 = Digest::by(Function::Blake3, b"x").hex();
        let Target::Blob(named) = route(&format!("/cas/blake3/{blake3}")).unwrap().target else { panic!() };
        assert_eq!(named.function(), Function::Blake3);
    }

    #[test]
    fn the_first_cache_in_a_path_decides() {
        assert_eq!(value("/x/ccache/ac/0123").unwrap(), ("x".to_owned(), Cache::Ccache, "ccache/ac/0123".to_owned()));
        assert_eq!(value("/gradle/cas/k%2B1").unwrap().2, "gradle/cas/k+1");
        assert_eq!(value("/v1/cache/123").unwrap(), (String::new(), Cache::Nx, "v1/cache/123".to_owned()));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (path, status) in [
            ("/ccache/../etc/passwd", 400),
            ("/ccache/%2e%2e/x", 400),
            ("/ccache/./x", 400),
            ("/ccache/a%2fb", 400),
            ("/ccache/a%00b", 400),
            ("/ccache/a%0ab", 400),
            ("/ccache/%ff", 400),
            ("/ccache/%4", 400),
            ("/cas/123", 400),
            ("/cas/md4/00", 400),
            ("/ac", 400),
            ("/v8/artifacts/a/b", 404),
            ("/v8/artifacts/a%20b", 400),
            ("/v1/cache/a/b", 404),
        ] {
            assert_eq!(route(path).unwrap_err().status.as_u16(), status, "{path}");
        }
        assert_eq!(route(&format!("/ccache/{}", "a".repeat(3000))).unwrap_err().status.as_u16(), 414);
    }

    proptest! {
        #[test]
        fn no_path_panics_and_none_climbs(path in "(/|%2[eEfF]|\\.|cas|ac|ccache|gradle|v1/cache|[a-z0-9%]|.){0,40}") {
            if let Ok(Route { instance, target }) = route(&path) {
                let named = match target {
                    Target::Value { path, .. } => path,
                    _ => String::new(),
                };
                for text in [instance, named] {
                    prop_assert!(!text.split('/').any(|segment| segment == ".." || segment == "."));
                    prop_assert!(!text.contains('\0') && !text.starts_with('/'));
                }
            }
        }

        #[test]
        fn what_is_encoded_names_the_same(name in "[a-zA-Z0-9 +:=é]{1,20}") {
            let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(value(&format!("/ccache/{encoded}")).unwrap().2, format!("ccache/{name}"));
        }
    }
}
