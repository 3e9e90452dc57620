//! ByteStream resource names, read from the right, because an instance name may hold slashes (REAPI section
//! ContentAddressableStorage). Names that ask for a compressor or another digest function are refused with their word.

use crate::{Digest, NativeError};

const NAME_BYTES_MAX: usize = 4096;
const FUNCTIONS: [&str; 10] =
    ["sha256", "sha1", "md5", "vso", "sha384", "sha512", "murmur3", "sha256tree", "blake3", "gitsha1"];
/// Segments that an instance name may not hold.
const RESERVED: [&str; 7] =
    ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"];

/// `{instance}/blobs/{hash}/{size}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadName {
    /// Instance name, may be empty.
    pub instance: String,
    /// The blob.
    pub digest: Digest,
}

/// `{instance}/uploads/{uuid}/blobs/{hash}/{size}{/metadata}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteName {
    /// Instance name, may be empty.
    pub instance: String,
    /// The client's name for this upload.
    pub upload: String,
    /// The blob.
    pub digest: Digest,
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
        refuse_compressed(parts[marker], name)?;
        let (digest, rest) = blob(&parts[marker + 1..], name)?;
        if !rest.is_empty() {
            return Err(refuse(name, "something follows the size"));
        }
        Ok(Self { instance: instance(&parts[..marker], name)?, digest })
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
        let [upload, kind, rest @ ..] = &parts[marker + 1..] else {
            return Err(refuse(name, "it ends too early"));
        };
        if upload.is_empty() {
            return Err(refuse(name, "the upload's id is empty"));
        }
        refuse_compressed(kind, name)?;
        if *kind != "blobs" {
            return Err(refuse(name, "blobs must follow the upload's id"));
        }
        let (digest, _metadata) = blob(rest, name)?;
        Ok(Self { instance: instance(&parts[..marker], name)?, upload: (*upload).to_owned(), digest })
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
    let parts = match parts.first() {
        Some(&"sha256") => &parts[1..],
        Some(function) if FUNCTIONS.contains(function) => {
            return Err(refuse(name, &format!("the digest function {function} is not offered, sha256 is")));
        }
        _ => parts,
    };
    let [hash, size, rest @ ..] = parts else {
        return Err(refuse(name, "it lacks a hash and a size"));
    };
    let digest = format!("{hash}/{size}").parse().map_err(|_| refuse(name, "its hash or size is malformed"))?;
    Ok((digest, rest))
}

fn refuse_compressed(kind: &str, name: &str) -> Result<(), NativeError> {
    if kind == "compressed-blobs" {
        return Err(refuse(name, "no compressor is offered; use blobs"));
    }
    Ok(())
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
            (format!("compressed-blobs/zstd/{digest}"), "compressor"),
            (format!("blobs/blake3/{digest}"), "blake3"),
            (format!("blobs/{digest}/more"), "follows"),
            (format!("operations/blobs/{digest}"), "instance"),
            (format!("a//blobs/{digest}"), "instance"),
        ] {
            assert!(ReadName::parse(&name).unwrap_err().message.contains(word), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_name_panics(name in "(/|blobs|uploads|sha256|u|[0-9a-f]{64}|[0-9]{1,20}|.){0,12}") {
            let _ = ReadName::parse(&name);
            let _ = WriteName::parse(&name);
        }

        #[test]
        fn names_round_trip(instance in "([a-z]{1,4}(/[a-z]{1,4}){0,3})?", data: Vec<u8>) {
            prop_assume!(!instance.split('/').any(|p| RESERVED.contains(&p)));
            let digest = Digest::of(&data);
            let prefix = if instance.is_empty() { String::new() } else { format!("{instance}/") };
            let read = ReadName::parse(&format!("{prefix}blobs/{digest}")).unwrap();
            prop_assert_eq!(read, ReadName { instance, digest });
        }
    }
}
