//! A node's Ed25519 key says which X25519 key speaks for it, in which organisation, and until when. It proves nothing
//! about who holds that key: the handshake does.
//!
//! In bytes: version 1, the Ed25519 key (32), the end in Unix seconds (8, the highest first), the signature (64) over a domain,
//! the X25519 key, the end, and the organisation's name.

use ring::signature::{ED25519, UnparsedPublicKey};

use crate::SessionError;
use crate::identity::{Identity, KEY_BYTES, NodeKey, SessionKey, array};

pub(crate) const CERTIFICATE_BYTES: usize = 1 + KEY_BYTES + 8 + 64;
const VERSION: u8 = 1;
const DOMAIN: &[u8] = b"buildnet session key 1\0";
/// One is signed for each handshake; the day is for clocks that differ.
pub(crate) const LIFE_S: u64 = 86_400;

fn signed(session_key: SessionKey, expires_unix_s: u64, organisation: &str) -> Vec<u8> {
    // Only the last part varies in length: no two of them have the same bytes.
    [DOMAIN, &session_key.0, &expires_unix_s.to_be_bytes(), organisation.as_bytes()].concat()
}

pub(crate) fn issue(identity: &Identity, organisation: &str, now_unix_s: u64) -> [u8; CERTIFICATE_BYTES] {
    let expires_unix_s = now_unix_s.saturating_add(LIFE_S);
    let signature = identity.signing.sign(&signed(identity.session_key(), expires_unix_s, organisation));
    let mut bytes = [0; CERTIFICATE_BYTES];
    bytes[0] = VERSION;
    bytes[1..33].copy_from_slice(&identity.node_key().0);
    bytes[33..41].copy_from_slice(&expires_unix_s.to_be_bytes());
    bytes[41..].copy_from_slice(signature.as_ref());
    bytes
}

/// Whom the holder of `session_key` speaks for.
pub(crate) fn verify(
    bytes: &[u8; CERTIFICATE_BYTES],
    session_key: SessionKey,
    organisation: &str,
    now_unix_s: u64,
) -> Result<NodeKey, SessionError> {
    if bytes[0] != VERSION {
        return Err(SessionError::Certificate("it is of an unknown version; update the older node of both"));
    }
    let node_key = NodeKey(array(&bytes[1..33])?);
    let expires_unix_s = u64::from_be_bytes(array(&bytes[33..41])?);
    UnparsedPublicKey::new(&ED25519, &node_key.0)
        .verify(&signed(session_key, expires_unix_s, organisation), &bytes[41..])
        .map_err(|_| SessionError::Certificate("its signature is of another key or organisation"))?;
    if now_unix_s >= expires_unix_s {
        return Err(SessionError::Certificate("it has ended; set the clocks of both nodes"));
    }
    Ok(node_key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity(n: u8) -> Identity {
        Identity::new(&[n; 32], &[n + 100; 32]).unwrap()
    }

    #[test]
    fn it_holds_for_its_key_organisation_and_time_only() {
        let (one, two) = (identity(1), identity(2));
        let bytes = issue(&one, "team", 1_000);
        assert_eq!(verify(&bytes, one.session_key(), "team", 1_000).unwrap(), one.node_key());
        assert_eq!(verify(&bytes, one.session_key(), "team", 1_000 + LIFE_S - 1).unwrap(), one.node_key());
        for (key, organisation, now) in [
            (two.session_key(), "team", 1_000),
            (one.session_key(), "teams", 1_000),
            (one.session_key(), "", 1_000),
            (one.session_key(), "team", 1_000 + LIFE_S),
        ] {
            assert!(matches!(verify(&bytes, key, organisation, now), Err(SessionError::Certificate(_))));
        }
    }

    proptest! {
        #[test]
        fn no_altered_byte_passes(at in 0..CERTIFICATE_BYTES, bits in 1u8..) {
            let one = identity(1);
            let mut bytes = issue(&one, "team", 1_000);
            bytes[at] ^= bits;
            prop_assert!(verify(&bytes, one.session_key(), "team", 1_000).is_err());
        }
    }
}
