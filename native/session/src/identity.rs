//! The keys of a node: Ed25519 names it and signs, X25519 keeps its sessions secret. Secrets are wiped when dropped and in
//! no text; randomness is the caller's.

use std::fmt;
use std::str::FromStr;

use ring::signature::{Ed25519KeyPair, KeyPair};
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};
use zeroize::Zeroizing;

use crate::SessionError;

pub(crate) const KEY_BYTES: usize = 32;

macro_rules! key {
    ($(#[$meta:meta])* $name:ident, $what:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; KEY_BYTES]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = SessionError;

            fn from_str(text: &str) -> Result<Self, SessionError> {
                let mut key = [0; KEY_BYTES];
                hex::decode_to_slice(text, &mut key).map_err(|_| SessionError::Invalid($what))?;
                Ok(Self(key))
            }
        }
    };
}

key! {
    /// The public half of a node's Ed25519 key (RFC 8032): its name everywhere. In text, 64 hexadecimal digits.
    NodeKey, "a node's key is 64 hexadecimal digits"
}

key! {
    /// The public half of a node's X25519 key (RFC 7748): Noise's static key. In text, 64 hexadecimal digits.
    SessionKey, "a session key is 64 hexadecimal digits"
}

/// What a node proves itself with.
pub struct Identity {
    pub(crate) signing: Ed25519KeyPair,
    pub(crate) session_secret: Zeroizing<[u8; KEY_BYTES]>,
    node_key: NodeKey,
    session_key: SessionKey,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("node_key", &self.node_key).finish_non_exhaustive()
    }
}

impl Identity {
    /// From the seed of the Ed25519 key (RFC 8032, section 5.1.5) and the secret X25519 scalar, 32 bytes each.
    ///
    /// # Errors
    /// Either has another length.
    pub fn new(node_seed: &[u8], session_secret: &[u8]) -> Result<Self, SessionError> {
        let signing = Ed25519KeyPair::from_seed_unchecked(node_seed)
            .map_err(|_| SessionError::Invalid("the seed of an Ed25519 key is 32 bytes"))?;
        let secret: [u8; KEY_BYTES] =
            session_secret.try_into().map_err(|_| SessionError::Invalid("an X25519 secret is 32 bytes"))?;
        let session_secret = Zeroizing::new(secret);
        let mut dh = DefaultResolver
            .resolve_dh(&DHChoice::Curve25519)
            .ok_or(SessionError::Invalid("this build knows no X25519"))?;
        dh.set(session_secret.as_ref());
        let node_key = NodeKey(array(signing.public_key().as_ref())?);
        let session_key = SessionKey(array(dh.pubkey())?);
        Ok(Self { signing, session_secret, node_key, session_key })
    }

    /// Its name.
    pub fn node_key(&self) -> NodeKey {
        self.node_key
    }

    /// What it is dialled by in one round trip.
    pub fn session_key(&self) -> SessionKey {
        self.session_key
    }
}

pub(crate) fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], SessionError> {
    bytes.try_into().map_err(|_| SessionError::Handshake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_standards() {
        // RFC 8032 section 7.1, test 1; RFC 7748 section 6.1, Alice.
        let seed = hex::decode("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let secret = hex::decode("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a").unwrap();
        let identity = Identity::new(&seed, &secret).unwrap();
        let name = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(identity.node_key().to_string(), name);
        assert_eq!(name.parse::<NodeKey>().unwrap(), identity.node_key());
        assert_eq!(
            identity.session_key().to_string(),
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        );
    }

    #[test]
    fn no_text_holds_a_secret() {
        let identity = Identity::new(&[0x5a; 32], &[0xa5; 32]).unwrap();
        let shown = format!("{identity:?}");
        assert!(!shown.contains("5a5a5a") && !shown.contains("a5a5a5") && !shown.contains("90, 90"), "{shown}");
    }

    #[test]
    fn keys_of_another_length_are_refused() {
        for bytes in [0, 31, 33, 64] {
            assert!(Identity::new(&vec![1; bytes], &[1; 32]).is_err());
            assert!(Identity::new(&[1; 32], &vec![1; bytes]).is_err());
        }
        for text in ["", "zz", "d75a", &"0".repeat(66)] {
            assert!(text.parse::<NodeKey>().is_err(), "{text}");
        }
    }
}
