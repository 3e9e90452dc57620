//! Keys of nodes, logs and tokens: Ed25519 signatures (RFC 8032), and the PEM that keys are kept in, PKCS 8 for private ones and
//! SubjectPublicKeyInfo for public ones (RFC 8410), which other tools read too. Randomness and files are the caller's.

#![cfg_attr(test, allow(clippy::unwrap_used))]

use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, KeypairBytes};
use ed25519_dalek::{Signature, Signer, VerifyingKey};
use pkcs8::der::Decode;
use pkcs8::der::asn1::OctetStringRef;
use pkcs8::spki::AlgorithmIdentifierRef;
use pkcs8::{Document, LineEnding, ObjectIdentifier, PrivateKeyInfo, SecretDocument};
use zeroize::Zeroizing;

/// Bytes of a secret or public key of either kind.
pub const KEY_BYTES: usize = 32;
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

const PRIVATE_LABEL: &str = "PRIVATE KEY";
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const X25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.110");

/// Why bytes are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is not PEM of a key, or is damaged.
    #[error("it is not a key")]
    NotAKey,
    /// It is a key for something else.
    #[error("it is a key of another kind")]
    OtherKind,
}

/// A secret of 32 bytes that forgets itself.
pub type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// A key that signs.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// The key of a seed, which is to be random.
    #[must_use]
    pub fn of_seed(seed: &[u8; KEY_BYTES]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Read PKCS 8 PEM, of version 1 or 2.
    ///
    /// # Errors
    /// It holds no Ed25519 key.
    pub fn of_pem(pem: &str) -> Result<Self, KeyError> {
        let document = private(pem, ED25519)?;
        ed25519_dalek::SigningKey::from_pkcs8_der(document.as_bytes()).map(Self).map_err(|_| KeyError::NotAKey)
    }

    /// PKCS 8 PEM. Version 1, without the public key: not every tool reads the other.
    #[must_use]
    pub fn pem(&self) -> Zeroizing<String> {
        let pair = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        pair.to_pkcs8_pem(LineEnding::LF).expect("32 bytes fit")
    }

    /// What it is made of.
    #[must_use]
    pub fn seed(&self) -> Secret {
        Zeroizing::new(self.0.to_bytes())
    }

    /// What its signatures are verified with.
    #[must_use]
    pub fn public(&self) -> [u8; KEY_BYTES] {
        self.0.verifying_key().to_bytes()
    }

    /// Sign a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(message).to_bytes()
    }
}

/// Whether an Ed25519 key made this signature of a message. A key with which a signature could be of many messages made none.
#[must_use]
pub fn is_signed(public: &[u8], signature: &[u8], message: &[u8]) -> bool {
    let key = public.try_into().ok().and_then(|bytes| VerifyingKey::from_bytes(bytes).ok());
    let signature = Signature::from_slice(signature).ok();
    key.zip(signature).is_some_and(|(key, signature)| key.verify_strict(message, &signature).is_ok())
}

/// An Ed25519 public key as PEM.
///
/// # Errors
/// The bytes are none.
pub fn public_pem(public: &[u8]) -> Result<String, KeyError> {
    let bytes = public.try_into().map_err(|_| KeyError::NotAKey)?;
    let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotAKey)?;
    key.to_public_key_pem(LineEnding::LF).map_err(|_| KeyError::NotAKey)
}

/// The Ed25519 public key in PEM.
///
/// # Errors
/// It holds none.
pub fn public_of_pem(pem: &str) -> Result<[u8; KEY_BYTES], KeyError> {
    let (label, document) = Document::from_pem(pem.trim()).map_err(|_| KeyError::NotAKey)?;
    if label != "PUBLIC KEY" {
        return Err(KeyError::NotAKey);
    }
    let info: pkcs8::spki::SubjectPublicKeyInfoRef<'_> = document.decode_msg().map_err(|_| KeyError::NotAKey)?;
    if info.algorithm.oid != ED25519 {
        return Err(KeyError::OtherKind);
    }
    let key = VerifyingKey::from_public_key_der(document.as_bytes()).map_err(|_| KeyError::NotAKey)?;
    Ok(key.to_bytes())
}

/// The X25519 secret of PKCS 8 PEM.
///
/// # Errors
/// It holds none.
pub fn session_secret_of_pem(pem: &str) -> Result<Secret, KeyError> {
    let document = private(pem, X25519)?;
    let info = PrivateKeyInfo::try_from(document.as_bytes()).map_err(|_| KeyError::NotAKey)?;
    let inner = OctetStringRef::from_der(info.private_key).map_err(|_| KeyError::NotAKey)?;
    inner.as_bytes().try_into().map(Zeroizing::new).map_err(|_| KeyError::NotAKey)
}

/// An X25519 secret, any 32 bytes, as PKCS 8 PEM.
#[must_use]
pub fn session_pem(secret: &[u8; KEY_BYTES]) -> Zeroizing<String> {
    // An OCTET STRING in one: the tag, the length, the secret (RFC 8410 section 7).
    let mut inner = Zeroizing::new([0; 2 + KEY_BYTES]);
    inner[..2].copy_from_slice(&[0x04, KEY_BYTES as u8]);
    inner[2..].copy_from_slice(secret);
    let info = PrivateKeyInfo::new(AlgorithmIdentifierRef { oid: X25519, parameters: None }, &inner[..]);
    let document = SecretDocument::try_from(info).expect("32 bytes fit");
    document.to_pem(PRIVATE_LABEL, LineEnding::LF).expect("32 bytes fit")
}

fn private(pem: &str, kind: ObjectIdentifier) -> Result<SecretDocument, KeyError> {
    let (label, document) = SecretDocument::from_pem(pem.trim()).map_err(|_| KeyError::NotAKey)?;
    if label != PRIVATE_LABEL {
        return Err(KeyError::NotAKey);
    }
    let info = PrivateKeyInfo::try_from(document.as_bytes()).map_err(|_| KeyError::NotAKey)?;
    if info.algorithm.oid == kind { Ok(document) } else { Err(KeyError::OtherKind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 8410 section 10.3.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
";
    /// The same with its public key: version 2.
    const PRIVATE_2: &str = "-----BEGIN PRIVATE KEY-----
MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB
Z9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PRIVATE KEY-----
";
    /// RFC 8410 section 10.1.
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
";

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn it_reads_and_writes_the_examples_of_rfc_8410() {
        let public = public_of_pem(PUBLIC).unwrap();
        assert_eq!(public_pem(&public).unwrap(), PUBLIC);
        let key = SigningKey::of_pem(PRIVATE).unwrap();
        assert_eq!((key.public(), key.pem().as_str()), (public, PRIVATE));
        assert_eq!(SigningKey::of_pem(PRIVATE_2).map(|key| *key.seed()), Ok(*key.seed()));
    }

    /// RFC 8032 section 7.1, test 3.
    #[test]
    fn it_signs_as_rfc_8032_says() {
        let key = SigningKey::of_seed(&bytes("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"));
        let signature = bytes::<64>(
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
             18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        );
        let message = [0xaf, 0x82];
        assert_eq!(key.sign(&message), signature);
        assert!(is_signed(&key.public(), &signature, &message));
    }

    /// The neutral element as the key, and as the point of a signature, "signs" whatever one likes.
    #[test]
    fn a_key_of_small_order_signed_nothing() {
        let mut neutral = [0; KEY_BYTES];
        neutral[0] = 1;
        let mut signature = [0; SIGNATURE_BYTES];
        signature[0] = 1;
        assert!(!is_signed(&neutral, &signature, b"anything"));
    }

    #[test]
    fn a_key_of_another_kind_is_none() {
        let session = session_pem(&[7; KEY_BYTES]);
        assert_eq!(*session_secret_of_pem(&session).unwrap(), [7; KEY_BYTES]);
        assert_eq!(SigningKey::of_pem(&session).err(), Some(KeyError::OtherKind));
        assert_eq!(session_secret_of_pem(PRIVATE).err(), Some(KeyError::OtherKind));
        assert_eq!(SigningKey::of_pem(PUBLIC).err(), Some(KeyError::NotAKey));
        assert_eq!(public_of_pem(PRIVATE), Err(KeyError::NotAKey));
        assert_eq!(public_pem(&[0; 31]), Err(KeyError::NotAKey));
    }

    proptest! {
        #[test]
        fn what_is_signed_is_verified_and_nothing_else(seed: [u8; 32], message: Vec<u8>, at in 0usize..64, bit in 0u8..8) {
            let key = SigningKey::of_seed(&seed);
            prop_assert_eq!(SigningKey::of_pem(&key.pem()).map(|read| *read.seed()), Ok(seed));
            let signature = key.sign(&message);
            prop_assert!(is_signed(&key.public(), &signature, &message));
            let mut other = signature;
            other[at] ^= 1 << bit;
            prop_assert!(!is_signed(&key.public(), &other, &message));
            prop_assert!(!is_signed(&key.public(), &signature, &[&message[..], &[0]].concat()));
            prop_assert!(!is_signed(&key.public(), &signature[..at], &message));
        }

        #[test]
        fn no_text_panics(cut in 0usize..PRIVATE_2.len(), with in any::<char>(), text: String) {
            for sample in [PRIVATE, PRIVATE_2, PUBLIC] {
                let mut torn: String = sample.chars().take(cut).collect();
                torn.push(with);
                torn.extend(sample.chars().skip(cut + 1));
                for text in [&text, &torn] {
                    let _ = (SigningKey::of_pem(text).is_ok(), public_of_pem(text), session_secret_of_pem(text).is_ok());
                }
            }
        }
    }
}
