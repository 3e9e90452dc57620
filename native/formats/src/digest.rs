//! Content is truth: a digest is a function, a hash and a size, and the three travel together (REAPI Digest). Hex is
//! lower case; a text that is not exactly that is refused.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use digest::Digest as _;

use crate::NativeError;
use crate::wire::build::bazel::remote::execution::v2 as re;

const HASH_BYTES_MAX: usize = 64;

/// How content is hashed. The numbers are those of REAPI's `DigestFunction.Value`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Function {
    /// The default.
    #[default]
    Sha256 = 1,
    /// Kept for old clients; it is broken for content that an adversary chose.
    Sha1 = 2,
    /// As SHA-1.
    Md5 = 3,
    /// SHA-2 with 384 bits.
    Sha384 = 5,
    /// SHA-2 with 512 bits.
    Sha512 = 6,
    /// BLAKE3; must be spelled out in requests and resource names.
    Blake3 = 9,
}

impl Function {
    /// Every function that is offered, the default first.
    pub const ALL: [Self; 6] = [Self::Sha256, Self::Blake3, Self::Sha1, Self::Sha384, Self::Sha512, Self::Md5];

    /// From the number in a message; none when it is unset and must be inferred.
    ///
    /// # Errors
    /// `invalid_request` naming a function that is not offered.
    pub fn of_message(number: i32) -> Result<Option<Self>, NativeError> {
        if number == 0 {
            return Ok(None);
        }
        if let Some(function) = Self::ALL.into_iter().find(|function| function.number() == number) {
            return Ok(Some(function));
        }
        let message = match re::digest_function::Value::try_from(number) {
            Ok(other) => format!("the digest function {} is not offered; see GetCapabilities", other.as_str_name()),
            Err(_) => format!("there is no digest function {number}"),
        };
        Err(NativeError::invalid("digest_function", message))
    }

    /// From its lower-case name in a resource name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|function| function.name() == name)
    }

    /// The only function with hashes of this many hex digits that may be inferred (REAPI DigestFunction).
    pub fn of_hex_length(length: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|function| *function != Self::Blake3 && 2 * function.hash_bytes() == length)
    }

    /// The number in a message.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// From the number kept on disk.
    pub fn of_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|function| *function as u8 == byte)
    }

    /// The lower-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha1 => "sha1",
            Self::Md5 => "md5",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    /// Bytes of a hash.
    pub const fn hash_bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// The identity of a blob: how it is hashed, its hash and its size in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    function: Function,
    hash: [u8; HASH_BYTES_MAX],
    size_bytes: u64,
}

impl Digest {
    /// A digest from its parts.
    ///
    /// # Panics
    /// When `hash` is longer than any function's.
    pub fn new(function: Function, hash: &[u8], size_bytes: u64) -> Self {
        let mut whole = [0; HASH_BYTES_MAX];
        whole[..hash.len()].copy_from_slice(hash);
        Self { function, hash: whole, size_bytes }
    }

    /// The SHA-256 digest of bytes in memory.
    pub fn of(data: &[u8]) -> Self {
        Self::by(Function::Sha256, data)
    }

    /// The digest of bytes in memory.
    pub fn by(function: Function, data: &[u8]) -> Self {
        let size = data.len() as u64;
        match function {
            Function::Sha256 => Self::new(function, &sha2::Sha256::digest(data), size),
            Function::Blake3 => Self::new(function, blake3::hash(data).as_bytes(), size),
            Function::Sha1 => Self::new(function, &sha1::Sha1::digest(data), size),
            Function::Md5 => Self::new(function, &md5::Md5::digest(data), size),
            Function::Sha384 => Self::new(function, &sha2::Sha384::digest(data), size),
            Function::Sha512 => Self::new(function, &sha2::Sha512::digest(data), size),
        }
    }

    /// The SHA-256 digest of no bytes.
    pub fn empty() -> Self {
        Self::empty_by(Function::Sha256)
    }

    /// The digest of no bytes.
    pub fn empty_by(function: Function) -> Self {
        static EMPTY: LazyLock<[Digest; 6]> = LazyLock::new(|| Function::ALL.map(|f| Digest::by(f, &[])));
        let found = EMPTY.iter().find(|digest| digest.function == function);
        found.copied().unwrap_or_else(|| Self::by(function, &[]))
    }

    /// Whether this is the blob that always exists.
    pub fn is_empty(&self) -> bool {
        self.size_bytes == 0 && *self == Self::empty_by(self.function)
    }

    /// How it is hashed.
    pub fn function(&self) -> Function {
        self.function
    }

    /// The hash.
    pub fn hash(&self) -> &[u8] {
        &self.hash[..self.function.hash_bytes()]
    }

    /// The hash in lower-case hex.
    pub fn hex(&self) -> String {
        faster_hex::hex_string(self.hash())
    }

    /// The size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// From hex and size as they come in messages and names; the function is inferred from the length of `hash` unless
    /// it is given.
    ///
    /// # Errors
    /// `invalid_request` unless the hash is so many lower-case hex digits and the size is not negative.
    pub fn from_parts(function: Option<Function>, hash: &str, size_bytes: i64) -> Result<Self, NativeError> {
        let parsed = || {
            let function = function.or_else(|| Function::of_hex_length(hash.len()))?;
            let length = function.hash_bytes();
            if hash.len() != 2 * length || hash.bytes().any(|b| b.is_ascii_uppercase()) {
                return None;
            }
            let mut bytes = [0; HASH_BYTES_MAX];
            faster_hex::hex_decode(hash.as_bytes(), &mut bytes[..length]).ok()?;
            Some(Self { function, hash: bytes, size_bytes: u64::try_from(size_bytes).ok()? })
        };
        parsed().ok_or_else(|| {
            let name = function.unwrap_or_default().name();
            let shown: String = hash.chars().take(2 * HASH_BYTES_MAX).collect();
            NativeError::invalid(
                "digest",
                format!(
                    "{shown:?} with size {size_bytes} is not a {name} digest: {} lower-case hex digits and a size",
                    2 * function.unwrap_or_default().hash_bytes()
                ),
            )
        })
    }

    /// From a REAPI message; the function is inferred.
    ///
    /// # Errors
    /// As [`Digest::from_parts`].
    pub fn from_message(message: &re::Digest) -> Result<Self, NativeError> {
        Self::from_parts(None, &message.hash, message.size_bytes)
    }

    /// From a REAPI message of a request that names its function, or of a message reached from a digest by it.
    ///
    /// # Errors
    /// As [`Digest::from_parts`].
    pub fn from_message_by(function: Option<Function>, message: &re::Digest) -> Result<Self, NativeError> {
        Self::from_parts(function, &message.hash, message.size_bytes)
    }

    /// From a message field that must be set.
    ///
    /// # Errors
    /// `invalid_request` naming `field`.
    pub fn required(message: Option<&re::Digest>, field: &'static str) -> Result<Self, NativeError> {
        Self::required_by(None, message, field)
    }

    /// As [`Digest::required`], by a function.
    ///
    /// # Errors
    /// `invalid_request` naming `field`.
    pub fn required_by(
        function: Option<Function>,
        message: Option<&re::Digest>,
        field: &'static str,
    ) -> Result<Self, NativeError> {
        match message {
            None => Err(NativeError::invalid(field, format!("{field} is not set"))),
            Some(message) => Self::from_message_by(function, message),
        }
    }

    /// As a REAPI message.
    pub fn to_message(&self) -> re::Digest {
        re::Digest { hash: self.hex(), size_bytes: self.size_bytes.cast_signed() }
    }
}

/// `{function/}hash/size`, the function only where it cannot be inferred: the form of resource names and of MISSING
/// violations.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.function == Function::Blake3 {
            f.write_str("blake3/")?;
        }
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
        let (hash, size) = text.rsplit_once('/').ok_or_else(refuse)?;
        let (function, hash) = match hash.split_once('/') {
            Some((name, hash)) => (Some(Function::of_name(name).ok_or_else(refuse)?), hash),
            None => (None, hash),
        };
        let canonical =
            !size.is_empty() && size.bytes().all(|b| b.is_ascii_digit()) && (size == "0" || !size.starts_with('0'));
        if !canonical {
            return Err(refuse());
        }
        Self::from_parts(function, hash, size.parse().map_err(|_| refuse())?)
    }
}

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha1(sha1::Sha1),
    Md5(md5::Md5),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
    Blake3(Box<blake3::Hasher>),
}

/// Hashes a blob while it streams by.
#[derive(Clone)]
pub struct Hasher {
    state: State,
    size_bytes: u64,
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new(Function::Sha256)
    }
}

impl Hasher {
    /// Nothing seen yet.
    pub fn new(function: Function) -> Self {
        let state = match function {
            Function::Sha256 => State::Sha256(sha2::Sha256::new()),
            Function::Sha1 => State::Sha1(sha1::Sha1::new()),
            Function::Md5 => State::Md5(md5::Md5::new()),
            Function::Sha384 => State::Sha384(sha2::Sha384::new()),
            Function::Sha512 => State::Sha512(sha2::Sha512::new()),
            Function::Blake3 => State::Blake3(Box::default()),
        };
        Self { state, size_bytes: 0 }
    }

    /// See more bytes.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.state {
            State::Sha256(state) => state.update(data),
            State::Sha1(state) => state.update(data),
            State::Md5(state) => state.update(data),
            State::Sha384(state) => state.update(data),
            State::Sha512(state) => state.update(data),
            State::Blake3(state) => {
                state.update(data);
            }
        }
        self.size_bytes += data.len() as u64;
    }

    /// Bytes seen so far.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The digest of all that was seen.
    pub fn finish(self) -> Digest {
        let size = self.size_bytes;
        match self.state {
            State::Sha256(state) => Digest::new(Function::Sha256, &state.finalize(), size),
            State::Sha1(state) => Digest::new(Function::Sha1, &state.finalize(), size),
            State::Md5(state) => Digest::new(Function::Md5, &state.finalize(), size),
            State::Sha384(state) => Digest::new(Function::Sha384, &state.finalize(), size),
            State::Sha512(state) => Digest::new(Function::Sha512, &state.finalize(), size),
            State::Blake3(state) => Digest::new(Function::Blake3, state.finalize().as_bytes(), size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_function() -> impl Strategy<Value = Function> {
        proptest::sample::select(Function::ALL.as_slice())
    }

    #[test]
    fn the_empty_blob_is_known_under_every_function() {
        assert_eq!(Digest::empty().to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855/0");
        for (function, start) in [
            (Function::Blake3, "af1349b9f5f9a1a6"),
            (Function::Sha1, "da39a3ee5e6b4b0d"),
            (Function::Md5, "d41d8cd98f00b204"),
            (Function::Sha384, "38b060a751ac9638"),
            (Function::Sha512, "cf83e1357eefb8bd"),
        ] {
            let empty = Digest::empty_by(function);
            assert!(empty.is_empty() && empty.hex().starts_with(start), "{function:?}");
        }
        assert!(!Digest::new(Function::Sha256, &[7; 32], 0).is_empty());
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
            "md4/".to_owned() + &hash + "/0",
            "sha1/".to_owned() + &hash + "/0",
            hash + "/9223372036854775808",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_message_round_trip(function in any_function(), data: Vec<u8>) {
            let digest = Digest::by(function, &data);
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
            prop_assert_eq!(Digest::from_message_by(Some(function), &digest.to_message()).unwrap(), digest);
        }

        #[test]
        fn any_text_parses_or_is_refused(text: String) {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn hashing_in_pieces_is_hashing_whole(function in any_function(), pieces: Vec<Vec<u8>>) {
            let mut hasher = Hasher::new(function);
            for piece in &pieces {
                hasher.update(piece);
            }
            prop_assert_eq!(hasher.finish(), Digest::by(function, &pieces.concat()));
        }
    }
}
