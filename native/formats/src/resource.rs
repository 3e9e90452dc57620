//! ByteStream resource names, read from the right, because an instance name may hold slashes (REAPI section
//! ContentAddressableStorage). A name that asks for a compressor or digest function that is not offered is refused with
//! that word.

use crate::{Digest, Function, NativeError};

const NAME_BYTES_MAX: usize = 4096;
/// Digest functions of REAPI that are not offered.
const UNOFFERED: [&str; 4] = ["vso", "murmur3", "sha256tree", "gitsha1"];
/// Segments that an instance name may not hold.
const RESERVED: [&str; 7] =
    ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"];

/// How bytes travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compressor {
    /// As they are.
    #[default]
    Identity,
    /// One or more zstd frames (RFC 8878).
    Zstd,
}

/// `{instance}/blobs/{function/}{hash}/{size}` or `{instance}/compressed-blobs/zstd/{function/}{hash}/{size}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadName {
    /// Instance name, may be empty.
    pub instance: String,
    /// The blob.
    pub digest: Digest,
    /// How it travels.
    pub compressor: Compressor,
}

/// `{instance}/uploads/{uuid}/blobs/{function/}{hash}/{size}{/metadata}`, or with `compressed-blobs/zstd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteName {
    /// Instance name, may be empty.
    pub instance: String,
    /// The client's name for this upload.
    pub upload: String,
    /// The blob.
    pub digest: Digest,
    /// How it travels.
    pub compressor: Compressor,
}

impl ReadName {
    /// Parse the name of a blob to read.
    ///
    /// # Errors
    /// `invalid_request` when it is not such a name, or asks for what is not offered.
    pub fn parse(name: &str) -> Result<Self, NativeError> {
        let parts = segments(name)?;
        let marker = parts
            .iter()
            .rposition(|part| *part == "blobs" || *part == "compressed-blobs")
            .ok_or_else(|| refuse(name, "it has no blobs segment"))?;
        let (compressor, rest) = compressor(&parts[marker..], name)?;
        let (digest, rest) = blob(rest, name)?;
        if !rest.is_empty() {
            return Err(refuse(name, "something follows the size"));
        }
        Ok(Self { instance: instance(&parts[..marker], name)?, digest, compressor })
    }
}

impl WriteName {
    /// Parse the name of an upload; what follows the size is the client's own.
    ///
    /// # Errors
    /// As [`ReadName::parse`].
    pub fn parse(name: &str) -> Result<Self, NativeError> {
        let parts = segments(name)?;
        // The first `uploads`: an instance cannot hold one, the trailing metadata may.
        let marker = parts
            .iter()
            .position(|part| *part == "uploads")
            .ok_or_else(|| refuse(name, "it has no uploads segment"))?;
        let [upload, rest @ ..] = &parts[marker + 1..] else {
            return Err(refuse(name, "it ends too early"));
        };
        if upload.is_empty() {
            return Err(refuse(name, "the upload's id is empty"));
        }
        let (compressor, rest) = compressor(rest, name)?;
        let (digest, _metadata) = blob(rest, name)?;
        Ok(Self { instance: instance(&parts[..marker], name)?, upload: (*upload).to_owned(), digest, compressor })
    }
}

fn segments(name: &str) -> Result<Vec<&str>, NativeError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(refuse("", "it is empty or over 4096 bytes"));
    }
    // Some clients write a leading slash for an empty instance name.
    Ok(name.strip_prefix('/').unwrap_or(name).split('/').collect())
}

fn instance(parts: &[&str], name: &str) -> Result<String, NativeError> {
    match parts.iter().find(|part| part.is_empty() || RESERVED.contains(part)) {
        Some(part) => Err(refuse(name, &format!("{part:?} cannot be in an instance name"))),
        None => Ok(parts.join("/")),
    }
}

fn blob<'a>(parts: &'a [&'a str], name: &str) -> Result<(Digest, &'a [&'a str]), NativeError> {
    let function = parts.first().and_then(|part| Function::of_name(part));
    if let Some(other) = parts.first().filter(|part| UNOFFERED.contains(part)) {
        return Err(refuse(name, &format!("the digest function {other} is not offered, sha256 is")));
    }
    let parts = &parts[usize::from(function.is_some())..];
    let [hash, size, rest @ ..] = parts else {
        return Err(refuse(name, "it lacks a hash and a size"));
    };
    let malformed = || refuse(name, "its hash or size is malformed");
    let canonical = size.bytes().all(|b| b.is_ascii_digit()) && (*size == "0" || !size.starts_with('0'));
    let size = size.parse().ok().filter(|_| canonical).ok_or_else(malformed)?;
    let digest = Digest::from_parts(function, hash, size).map_err(|_| malformed())?;
    Ok((digest, rest))
}

/// What `blobs` or `compressed-blobs/zstd` says, and what follows it.
fn compressor<'a>(parts: &'a [&'a str], name: &str) -> Result<(Compressor, &'a [&'a str]), NativeError> {
    match parts {
        ["blobs", rest @ ..] => Ok((Compressor::Identity, rest)),
        ["compressed-blobs", "zstd", rest @ ..] => Ok((Compressor::Zstd, rest)),
        ["compressed-blobs", other, ..] => {
            Err(refuse(name, &format!("the compressor {other:?} is not offered, zstd is")))
        }
        _ => Err(refuse(name, "blobs or compressed-blobs must come here")),
    }
}

fn refuse(name: &str, why: &str) -> NativeError {
    NativeError::invalid("resource_name", format!("{name:?} is not the name of a blob: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn instances_may_be_empty_nested_or_led_by_a_slash() {
        let digest = Digest::of(b"x");
        for (prefix, instance) in [("", ""), ("/", ""), ("a/", "a"), ("a/b/c/", "a/b/c"), ("/a/", "a")] {
            assert_eq!(ReadName::parse(&format!("{prefix}blobs/{digest}")).unwrap().instance, instance);
            let write = WriteName::parse(&format!("{prefix}uploads/u-1/blobs/sha256/{digest}/name.o/blobs")).unwrap();
            assert_eq!((write.instance.as_str(), write.upload.as_str(), write.digest), (instance, "u-1", digest));
        }
    }

    #[test]
    fn what_is_not_offered_is_refused_by_name() {
        let digest = Digest::of(b"x");
        for (name, word) in [
            (format!("compressed-blobs/deflate/{digest}"), "compressor"),
            (format!("blobs/murmur3/{digest}"), "murmur3"),
            (format!("blobs/sha1/{digest}"), "malformed"),
            (format!("blobs/{digest}/more"), "follows"),
            (format!("operations/blobs/{digest}"), "instance"),
            (format!("a//blobs/{digest}"), "instance"),
        ] {
            assert!(ReadName::parse(&name).unwrap_err().message.contains(word), "{name}");
        }
    }

    #[test]
    fn compressors_and_functions_are_read() {
        let digest = Digest::by(Function::Blake3, b"x");
        let read = ReadName::parse(&format!("a/compressed-blobs/zstd/{digest}")).unwrap();
        assert_eq!(read, ReadName { instance: "a".to_owned(), digest, compressor: Compressor::Zstd });
        let write = WriteName::parse(&format!("uploads/u/compressed-blobs/zstd/{digest}/rest")).unwrap();
        assert_eq!((write.digest, write.compressor), (digest, Compressor::Zstd));
        let sha512 = Digest::by(Function::Sha512, b"x");
        assert_eq!(ReadName::parse(&format!("blobs/{sha512}")).unwrap().digest, sha512);
    }

    proptest! {
        #[test]
        fn no_name_panics(name in "(/|blobs|compressed-blobs|zstd|uploads|sha256|blake3|u|[0-9a-f]{64}|[0-9]{1,20}|.){0,12}") {
            let _ = ReadName::parse(&name);
            let _ = WriteName::parse(&name);
        }

        #[test]
        fn names_round_trip(instance in "([a-z]{1,4}(/[a-z]{1,4}){0,3})?", data: Vec<u8>) {
            prop_assume!(!instance.split('/').any(|p| RESERVED.contains(&p)));
            let digest = Digest::of(&data);
            let prefix = if instance.is_empty() { String::new() } else { format!("{instance}/") };
            let read = ReadName::parse(&format!("{prefix}blobs/{digest}")).unwrap();
            prop_assert_eq!(read, ReadName { instance, digest, compressor: Compressor::Identity });
        }
    }
}
