//! A digest names content by hash and size together; right hash with wrong size is another digest (REAPI Digest).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::NativeError;
use crate::wire::build::bazel::remote::execution::v2 as re;

const HASH_BYTES: usize = 32;

/// SHA-256 and size of a blob.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    hash: [u8; HASH_BYTES],
    size_bytes: u64,
}

impl Digest {
    /// A digest from its parts.
    pub fn new(hash: [u8; HASH_BYTES], size_bytes: u64) -> Self {
        Self { hash, size_bytes }
    }

    /// The digest of bytes in memory.
    pub fn of(data: &[u8]) -> Self {
        Self { hash: Sha256::digest(data).into(), size_bytes: data.len() as u64 }
    }

    /// The digest of no bytes.
    pub fn empty() -> Self {
        Self::of(&[])
    }

    /// Whether this is the blob that always exists.
    pub fn is_empty(&self) -> bool {
        *self == Self::empty()
    }

    /// The hash.
    pub fn hash(&self) -> &[u8; HASH_BYTES] {
        &self.hash
    }

    /// The hash in lower-case hex.
    pub fn hex(&self) -> String {
        hex::encode(self.hash)
    }

    /// The size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// From hex and size as they come in messages and names.
    ///
    /// # Errors
    /// `invalid_request` unless the hash is 64 lower-case hex digits and the size is not negative.
    pub fn from_parts(hash: &str, size_bytes: i64) -> Result<Self, NativeError> {
        let refuse = || {
            NativeError::invalid(
                "digest",
                format!("{hash:?} with size {size_bytes} is not a SHA-256 digest: 64 lower-case hex digits and a size"),
            )
        };
        if hash.len() != 2 * HASH_BYTES || hash.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refuse());
        }
        let mut bytes = [0; HASH_BYTES];
        hex::decode_to_slice(hash, &mut bytes).map_err(|_| refuse())?;
        let size_bytes = u64::try_from(size_bytes).map_err(|_| refuse())?;
        Ok(Self { hash: bytes, size_bytes })
    }

    /// From a REAPI message.
    ///
    /// # Errors
    /// As [`Digest::from_parts`].
    pub fn from_message(message: &re::Digest) -> Result<Self, NativeError> {
        Self::from_parts(&message.hash, message.size_bytes)
    }

    /// From a message field that must be set.
    ///
    /// # Errors
    /// `invalid_request` naming `field`.
    pub fn required(message: Option<&re::Digest>, field: &'static str) -> Result<Self, NativeError> {
        message.map_or_else(|| Err(NativeError::invalid(field, format!("{field} is not set"))), Self::from_message)
    }

    /// As a REAPI message.
    pub fn to_message(&self) -> re::Digest {
        re::Digest { hash: self.hex(), size_bytes: self.size_bytes.cast_signed() }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hex(), self.size_bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NativeError;

    fn from_str(text: &str) -> Result<Self, NativeError> {
        let refuse = || NativeError::invalid("digest", format!("{text:?} is not a digest; write HASH/SIZE"));
        let (hash, size) = text.split_once('/').ok_or_else(refuse)?;
        let canonical =
            !size.is_empty() && size.bytes().all(|b| b.is_ascii_digit()) && (size == "0" || !size.starts_with('0'));
        if !canonical {
            return Err(refuse());
        }
        Self::from_parts(hash, size.parse().map_err(|_| refuse())?)
    }
}

/// Hashes a blob while it streams by.
#[derive(Clone, Default)]
pub struct Hasher {
    state: Sha256,
    size_bytes: u64,
}

impl Hasher {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// See more bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.state.update(data);
        self.size_bytes += data.len() as u64;
    }

    /// Bytes seen so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of all that was seen.
    pub fn finish(self) -> Digest {
        Digest { hash: self.state.finalize().into(), size_bytes: self.size_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_empty_blob_is_known() {
        assert_eq!(Digest::empty().to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855/0");
    }

    #[test]
    fn other_spellings_are_refused() {
        let hash = Digest::empty().hex();
        for text in [
            hash.to_uppercase() + "/0",
            hash.clone() + "/00",
            hash.clone() + "/-1",
            hash.clone() + "/+1",
            hash.clone() + "/",
            hash.clone(),
            hash[1..].to_owned() + "/0",
            hash + "/9223372036854775808",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_message_round_trip(data: Vec<u8>) {
            let digest = Digest::of(&data);
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
            prop_assert_eq!(Digest::from_message(&digest.to_message()).unwrap(), digest);
        }

        #[test]
        fn any_text_parses_or_is_refused(text: String) {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn hashing_in_pieces_is_hashing_whole(pieces: Vec<Vec<u8>>) {
            let mut hasher = Hasher::new();
            for piece in &pieces {
                hasher.update(piece);
            }
            prop_assert_eq!(hasher.finish(), Digest::of(&pieces.concat()));
        }
    }
}
