//! One suite of algorithms and no negotiation of another: what cannot be chosen cannot be weakened. A new suite is a new
//! version of the protocol.

use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use crate::SessionError;
use crate::cipher::Cipher;
use crate::preamble::Pattern;

/// AES-GCM and SHA-256, since the machines that this is for have instructions for both.
const IK: &str = "Noise_IK_25519_AESGCM_SHA256";
const XX: &str = "Noise_XX_25519_AESGCM_SHA256";

/// A pattern's state machine, before its keys are set.
pub(crate) fn builder<'a>(pattern: Pattern) -> Result<Builder<'a>, SessionError> {
    let name = match pattern {
        Pattern::Ik => IK,
        Pattern::Xx => XX,
    };
    let params: NoiseParams = name.parse().map_err(|_| SessionError::Invalid("this build lacks the suite"))?;
    Ok(Builder::new(params))
}

pub(crate) fn build(
    pattern: Pattern,
    secret: &[u8],
    remote: Option<&[u8]>,
    prologue: &[u8],
    initiator: bool,
) -> Result<HandshakeState, SessionError> {
    let refused = |_| SessionError::Invalid("the keys do not suit the handshake");
    let mut builder =
        self::builder(pattern)?.local_private_key(secret).and_then(|b| b.prologue(prologue)).map_err(refused)?;
    if let Some(remote) = remote {
        builder = builder.remote_public_key(remote).map_err(refused)?;
    }
    if initiator { builder.build_initiator() } else { builder.build_responder() }.map_err(refused)
}

/// What seals and what opens after a finished handshake (Noise section 5.2: the initiator sends under the first key).
/// The keys leave `snow`, since it seals and opens from one buffer into another only.
pub(crate) fn split(mut noise: HandshakeState, is_initiator: bool) -> (Cipher, Cipher) {
    let (first, second) = noise.dangerously_get_raw_split();
    let (first, second) = (Zeroizing::new(first), Zeroizing::new(second));
    let (first, second) = (Cipher::new(&first), Cipher::new(&second));
    if is_initiator { (first, second) } else { (second, first) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Published by `cacophony` and by `snow`, see <https://github.com/noiseprotocol/noise_wiki/wiki/Test-vectors>.
    const VECTORS: &str = include_str!("../tests/vectors.json");

    fn bytes(value: &Value, name: &str) -> Option<Vec<u8>> {
        value.get(name).and_then(Value::as_str).map(|text| hex::decode(text).unwrap())
    }

    fn end(vector: &Value, side: &str, pattern: Pattern) -> HandshakeState {
        let field = |name: &str| bytes(vector, &format!("{side}_{name}"));
        let (secret, ephemeral) = (field("static").unwrap(), field("ephemeral").unwrap());
        let (prologue, remote) = (field("prologue").unwrap(), field("remote_static"));
        let mut builder = builder(pattern).unwrap().local_private_key(&secret).unwrap().prologue(&prologue).unwrap();
        builder = builder.fixed_ephemeral_key_for_testing_only(&ephemeral);
        if let Some(remote) = &remote {
            builder = builder.remote_public_key(remote).unwrap();
        }
        if side == "init" { builder.build_initiator() } else { builder.build_responder() }.unwrap()
    }

    #[test]
    fn messages_are_those_of_the_published_vectors() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let vectors = vectors.as_array().unwrap();
        assert_eq!(vectors.len(), 4);
        for vector in vectors {
            let name = vector["protocol_name"].as_str().unwrap();
            let pattern = if name == IK { Pattern::Ik } else { Pattern::Xx };
            assert_eq!(name, if pattern == Pattern::Ik { IK } else { XX });
            let (mut one, mut two) = (end(vector, "init", pattern), end(vector, "resp", pattern));
            let mut messages = vector["messages"].as_array().unwrap().iter();
            let (mut out, mut back) = (vec![0; 65_535], vec![0; 65_535]);
            let mut initiator_writes = true;
            while !one.is_handshake_finished() {
                let message = messages.next().unwrap();
                let (payload, expected) = (bytes(message, "payload").unwrap(), bytes(message, "ciphertext").unwrap());
                let (from, to) = if initiator_writes { (&mut one, &mut two) } else { (&mut two, &mut one) };
                let length = from.write_message(&payload, &mut out).unwrap();
                assert_eq!(out[..length], expected, "{name}");
                let read = to.read_message(&out[..length], &mut back).unwrap();
                assert_eq!(back[..read], payload, "{name}");
                initiator_writes = !initiator_writes;
            }
            if let Some(hash) = bytes(vector, "handshake_hash") {
                assert_eq!(one.get_handshake_hash(), hash, "{name}");
            }
            let (mut one, mut two) = (split(one, true), split(two, false));
            for message in messages {
                let (payload, expected) = (bytes(message, "payload").unwrap(), bytes(message, "ciphertext").unwrap());
                let (from, to) = if initiator_writes { (&mut one, &mut two) } else { (&mut two, &mut one) };
                let mut sealed = payload.clone();
                let tag = from.0.seal(&mut sealed).unwrap();
                sealed.extend_from_slice(tag.as_ref());
                assert_eq!(sealed, expected, "{name}");
                let open = to.1.open(&mut sealed).unwrap();
                assert_eq!(sealed[..open], payload, "{name}");
                initiator_writes = !initiator_writes;
            }
        }
    }

    /// A new key and what is sealed under it are those of `snow`, which follows Noise section 4.2.
    #[test]
    fn keys_change_as_noise_says() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let vector = vectors.as_array().unwrap().iter().find(|vector| vector["protocol_name"] == IK).unwrap();
        let shaken = || {
            let (mut one, mut two) = (end(vector, "init", Pattern::Ik), end(vector, "resp", Pattern::Ik));
            let (mut there, mut back) = ([0; 1024], [0; 1024]);
            let length = one.write_message(b"", &mut there).unwrap();
            two.read_message(&there[..length], &mut back).unwrap();
            let length = two.write_message(b"", &mut there).unwrap();
            one.read_message(&there[..length], &mut back).unwrap();
            one
        };
        let (mut ours, mut theirs) = (split(shaken(), true).0, shaken().into_transport_mode().unwrap());
        for _ in 0..3 {
            let (mut sealed, mut expected) = (*b"some bytes", [0; 10 + 16]);
            let tag = ours.seal(&mut sealed).unwrap();
            theirs.write_message(b"some bytes", &mut expected).unwrap();
            assert_eq!([&sealed[..], tag.as_ref()].concat(), expected);
            ours.rekey().unwrap();
            theirs.rekey_outgoing();
        }
    }
}
