//! Messages read by hand, without an allocation: the few that a build is made of. What is not in the shape that every
//! client sends is none here, and left to the generated code.

use prost::encoding::decode_varint;

use crate::{Digest, Function, NativeError};

/// The next byte.
pub fn take_u8(rest: &mut &[u8]) -> Option<u8> {
    let (first, tail) = rest.split_first()?;
    *rest = tail;
    Some(*first)
}

/// The next varint.
pub fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    if let Some((first, tail)) = rest.split_first()
        && *first < 0x80
    {
        *rest = tail;
        return Some(u64::from(*first));
    }
    decode_varint(rest).ok()
}

/// The next length and so many bytes.
pub fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(rest)?).ok()?;
    let (bytes, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(bytes)
}

/// The hash and size of a Digest in the order in which every client writes them.
pub fn raw_digest(message: &[u8]) -> Option<(&[u8], i64)> {
    let mut rest = message;
    let hash = if rest.first() == Some(&0x0a) {
        take_u8(&mut rest)?;
        take_bytes(&mut rest)?
    } else {
        &[]
    };
    let size = if rest.is_empty() {
        0
    } else {
        (take_u8(&mut rest)? == 0x10).then_some(())?;
        take_varint(&mut rest)?.cast_signed()
    };
    rest.is_empty().then_some((hash, size))
}

/// Hex read sixteen digits at a time; what is wrong with a bad one is said by the general parser.
///
/// # Errors
/// As [`Digest::from_parts`].
pub fn digest_of(function: Option<Function>, hash: &[u8], size: i64) -> Result<Digest, NativeError> {
    let mut bytes = [0; 64];
    if let Some(function) = function.or_else(|| Function::of_hex_length(hash.len()))
        && hash.len() == 2 * function.hash_bytes()
        && size >= 0
        && !hash.iter().any(u8::is_ascii_uppercase)
        && faster_hex::hex_decode(hash, &mut bytes[..hash.len() / 2]).is_ok()
    {
        return Ok(Digest::new(function, &bytes[..hash.len() / 2], size.cast_unsigned()));
    }
    Digest::from_parts(function, &String::from_utf8_lossy(hash), size)
}

/// What a result refers to, when that is files and logs alone.
#[derive(Debug, PartialEq, Eq)]
pub struct References {
    /// Digests of output files, stdout and stderr.
    pub digests: Vec<Digest>,
    /// Whether bytes that have a digest stand inside the result as well.
    pub holds_contents: bool,
}

/// The references of an ActionResult whose message is known to be well-formed.
pub fn references(function: Function, result: &[u8]) -> Option<Result<References, NativeError>> {
    let mut rest = result;
    let mut raw = Vec::with_capacity(8);
    let (mut inside, mut out, mut err) = (false, [false; 2], [false; 2]);
    while !rest.is_empty() {
        match take_u8(&mut rest)? {
            // output_files
            0x12 => {
                let (digest, contents) = output_file(take_bytes(&mut rest)?)?;
                raw.push(digest);
                inside |= contents;
            }
            // exit_code
            0x20 => drop(take_varint(&mut rest)?),
            // stdout_raw, stdout_digest, stderr_raw, stderr_digest
            0x2a => out[0] |= !take_bytes(&mut rest)?.is_empty(),
            0x32 => {
                raw.push(raw_digest(take_bytes(&mut rest)?)?);
                out[1] = true;
            }
            0x3a => err[0] |= !take_bytes(&mut rest)?.is_empty(),
            0x42 => {
                raw.push(raw_digest(take_bytes(&mut rest)?)?);
                err[1] = true;
            }
            // execution_metadata, and symlinks in their three fields: they refer to nothing.
            0x4a | 0x52 | 0x5a | 0x62 => drop(take_bytes(&mut rest)?),
            _ => return None,
        }
    }
    let holds_contents = inside || out == [true; 2] || err == [true; 2];
    let digests = raw.into_iter().map(|(hash, size)| digest_of(Some(function), hash, size)).collect();
    Some(match digests {
        Ok(digests) => Ok(References { digests, holds_contents }),
        Err(error) => Err(error),
    })
}

/// The digest of an OutputFile, and whether its bytes stand inside.
fn output_file(message: &[u8]) -> Option<((&[u8], i64), bool)> {
    let mut rest = message;
    let (mut digest, mut contents) = (None, false);
    while !rest.is_empty() {
        match take_u8(&mut rest)? {
            // path, node_properties
            0x0a | 0x3a => drop(take_bytes(&mut rest)?),
            0x12 if digest.is_none() => digest = Some(raw_digest(take_bytes(&mut rest)?)?),
            // is_executable
            0x20 => drop(take_varint(&mut rest)?),
            // contents
            0x2a => contents |= !take_bytes(&mut rest)?.is_empty(),
            _ => return None,
        }
    }
    Some((digest?, contents))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::build::bazel::remote::execution::v2 as re;
    use proptest::prelude::*;
    use prost::Message;

    proptest! {
        #[test]
        fn references_are_those_of_the_generated_code(
            files in proptest::collection::vec((any::<Vec<u8>>(), any::<bool>(), any::<bool>()), 0..4),
            out in proptest::option::of(any::<Vec<u8>>()), raw: Vec<u8>, code: i32
        ) {
            let digest = |data: &[u8]| Some(Digest::of(data).to_message());
            let result = re::ActionResult {
                output_files: files.iter().map(|(data, executable, inside)| re::OutputFile {
                    path: "a/b".to_owned(), digest: digest(data), is_executable: *executable,
                    contents: if *inside { data.clone().into() } else { Vec::new().into() }, ..Default::default()
                }).collect(),
                stdout_digest: out.as_ref().and_then(|data| digest(data)),
                stderr_raw: raw.clone().into(),
                stdout_raw: raw.into(),
                exit_code: code,
                execution_metadata: Some(re::ExecutedActionMetadata { worker: "w".to_owned(), ..Default::default() }),
                ..Default::default()
            };
            let found = references(Function::Sha256, &result.encode_to_vec()).unwrap().unwrap();
            let expected: Vec<Digest> =
                files.iter().map(|(data, ..)| Digest::of(data)).chain(out.as_ref().map(|data| Digest::of(data))).collect();
            let (mut sorted, mut wanted) = (found.digests, expected);
            sorted.sort();
            wanted.sort();
            prop_assert_eq!(sorted, wanted);
            let inside = files.iter().any(|(data, _, inside)| *inside && !data.is_empty());
            prop_assert_eq!(found.holds_contents, inside || (out.is_some() && !result.stdout_raw.is_empty()));
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = references(Function::Sha256, &bytes);
        }
    }

    #[test]
    fn a_result_with_directories_is_left_to_the_generated_code() {
        let result =
            re::ActionResult { output_directories: vec![re::OutputDirectory::default()], ..Default::default() };
        assert!(references(Function::Sha256, &result.encode_to_vec()).is_none());
    }
}
