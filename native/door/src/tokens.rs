//! A token is believed for what an Ed25519 signature of a trusted key covers. Every other algorithm is refused, and so is
//! a token without an end (RFC 7519, RFC 8037, RFC 8725 sections 3.1 and 3.8).
//!
//! One algorithm and a fixed form are a page of code over ring, which TLS needs anyway; the libraries for JWT bring a
//! dozen algorithms whose confusion is the usual hole (decision 0008).

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::Deserialize;

/// The audience that every token names, so that a key trusted here may sign for others too.
const AUDIENCE: &str = "buildnet";
pub(crate) const TOKEN_BYTES_MAX: usize = 4096;
const INSTANCES_MAX: usize = 64;
const NAME_BYTES_MAX: usize = 255;
const NAMESPACE_BYTES_MAX: usize = 64;

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the call brings no credentials; send a token as `authorization: Bearer TOKEN`, or a client certificate")]
    Missing,
    #[error("the call brings more than one authorization header; send one")]
    Twice,
    #[error("the credentials are not a token of BuildNET; make one with: buildnet token create")]
    Foreign,
    #[error("the token is malformed ({0}); make one with: buildnet token create")]
    Malformed(&'static str),
    #[error("the token is signed by a key that is not trusted here; make one with: buildnet token create")]
    UnknownKey,
    #[error("the token's signature is not good; make one with: buildnet token create")]
    BadSignature,
    #[error("the token or certificate has expired; make a new one")]
    Expired,
    #[error("the token is not valid yet; check the clocks, or wait")]
    NotYet,
    #[error("the token was revoked; make a new one with: buildnet token create")]
    Revoked,
}

/// Public keys by their names.
#[derive(Debug, Default)]
pub(crate) struct Keys(HashMap<String, Vec<u8>>);

impl Keys {
    pub(crate) fn new(keys: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self(keys.into_iter().map(|key| (key_id(&key), key)).collect())
    }
}

/// A key is called by the first half of its SHA-256.
pub(crate) fn key_id(key: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, key);
    hex(&hash.as_ref()[..16])
}

fn hex(bytes: &[u8]) -> String {
    faster_hex::hex_string(bytes)
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Claims {
    aud: Audience,
    jti: String,
    exp: f64,
    nbf: Option<f64>,
    #[serde(default)]
    sub: String,
    scope: String,
    instances: Option<Vec<String>>,
    namespace: Option<String>,
}

/// What a good token says.
#[derive(Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) subject: String,
    pub(crate) scope: String,
    pub(crate) instances: Option<Vec<String>>,
    pub(crate) namespace: Option<String>,
    pub(crate) valid_from_unix_s: u64,
    pub(crate) expires_unix_s: u64,
}

/// Check everything about a token but the time and whether it was revoked. What is cheap is checked first.
///
/// # Errors
/// Why it is not believed.
pub(crate) fn verify(token: &str, keys: &Keys) -> Result<Token, Refusal> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refusal::Malformed("over 4096 bytes"));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(claims), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Foreign);
    };
    let signed = &token[..header.len() + 1 + claims.len()];
    let header: Header = json(header).ok_or(Refusal::Foreign)?;
    if header.alg != "EdDSA" {
        return Err(Refusal::Malformed("its algorithm is not EdDSA"));
    }
    if header.crit.is_some() {
        return Err(Refusal::Malformed("it demands an extension"));
    }
    let key = keys.0.get(&header.kid).ok_or(Refusal::UnknownKey)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Refusal::Malformed("its signature is not base64"))?;
    UnparsedPublicKey::new(&ED25519, key).verify(signed.as_bytes(), &signature).map_err(|_| Refusal::BadSignature)?;
    token_of(json(claims).ok_or(Refusal::Malformed("a claim lacks or has another type"))?)
}

fn json<T: for<'a> Deserialize<'a>>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn token_of(claims: Claims) -> Result<Token, Refusal> {
    let ours = match &claims.aud {
        Audience::One(name) => name == AUDIENCE,
        Audience::Many(names) => names.iter().any(|name| name == AUDIENCE),
    };
    if !ours {
        return Err(Refusal::Malformed("it is meant for another audience"));
    }
    let plain = |text: &str, max: usize| text.len() <= max && !text.chars().any(char::is_control);
    if claims.jti.is_empty() || !plain(&claims.jti, NAME_BYTES_MAX) || !plain(&claims.sub, NAME_BYTES_MAX) {
        return Err(Refusal::Malformed("jti or sub is not a name"));
    }
    let instances = claims.instances.map(|all| all.iter().map(|i| i.trim_end_matches('/').to_owned()).collect());
    if instances.as_ref().is_some_and(|all: &Vec<String>| {
        all.len() > INSTANCES_MAX || !all.iter().all(|instance| plain(instance, NAME_BYTES_MAX))
    }) {
        return Err(Refusal::Malformed("instances are too many or not names"));
    }
    if claims.namespace.as_ref().is_some_and(|name| name.is_empty() || !plain(name, NAMESPACE_BYTES_MAX)) {
        return Err(Refusal::Malformed("namespace is not a name"));
    }
    // RFC 7519 section 2: seconds, perhaps with a fraction. Out of range saturates: never valid, or long over.
    let seconds = |number: f64| number as u64;
    Ok(Token {
        id: claims.jti,
        subject: claims.sub,
        scope: claims.scope,
        instances,
        namespace: claims.namespace,
        valid_from_unix_s: claims.nbf.map_or(0, seconds),
        expires_unix_s: seconds(claims.exp).max(1),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    pub(crate) fn pair(seed: u8) -> (Ed25519KeyPair, Vec<u8>) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let public = pair.public_key().as_ref().to_vec();
        (pair, public)
    }

    pub(crate) fn sign(pair: &Ed25519KeyPair, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    pub(crate) fn minted(seed: u8, claims: &str) -> (String, Vec<u8>) {
        let (pair, public) = pair(seed);
        let header = format!(r#"{{"alg":"EdDSA","typ":"JWT","kid":"{}"}}"#, key_id(&public));
        (sign(&pair, &header, claims), public)
    }

    const GOOD: &str =
        r#"{"aud":"buildnet","jti":"1","sub":"ci","exp":4e9,"scope":"read write","instances":["team/"]}"#;

    #[test]
    fn a_good_token_says_what_was_signed() {
        let (token, key) = minted(1, GOOD);
        let said = verify(&token, &Keys::new([key])).unwrap();
        assert_eq!((said.id.as_str(), said.subject.as_str(), said.scope.as_str()), ("1", "ci", "read write"));
        assert_eq!((said.instances, said.expires_unix_s), (Some(vec!["team".to_owned()]), 4_000_000_000));
    }

    #[test]
    fn another_key_algorithm_or_audience_is_refused() {
        let (pair, key) = pair(1);
        let keys = Keys::new([key.clone()]);
        let kid = key_id(&key);
        assert_eq!(verify(&minted(2, GOOD).0, &keys), Err(Refusal::UnknownKey));
        for alg in ["none", "HS256", "ES256", "eddsa"] {
            let token = sign(&pair, &format!(r#"{{"alg":"{alg}","kid":"{kid}"}}"#), GOOD);
            assert!(matches!(verify(&token, &keys), Err(Refusal::Malformed(_))), "{alg}");
        }
        let crit = sign(&pair, &format!(r#"{{"alg":"EdDSA","kid":"{kid}","crit":["x"]}}"#), GOOD);
        assert!(matches!(verify(&crit, &keys), Err(Refusal::Malformed(_))));
        // Another key that calls itself by the trusted one's name.
        let forged = sign(&super::tests::pair(2).0, &format!(r#"{{"alg":"EdDSA","kid":"{kid}"}}"#), GOOD);
        assert_eq!(verify(&forged, &keys), Err(Refusal::BadSignature));
    }

    #[test]
    fn claims_of_the_wrong_type_are_refused() {
        for (from, to) in [
            (r#""exp":4e9"#, r#""exp":"4000000000""#),
            (r#""exp":4e9,"#, ""),
            (r#""jti":"1","#, ""),
            (r#""jti":"1""#, r#""jti":"""#),
            (r#""aud":"buildnet""#, r#""aud":"others""#),
            (r#"["team/"]"#, r#""team/""#),
            (r#"["team/"]"#, r#"["a\u0001b"]"#),
            (r#""scope""#, r#""nbf":"soon","scope""#),
            (r#""scope""#, r#""namespace":"","scope""#),
        ] {
            let (token, key) = minted(1, &GOOD.replace(from, to));
            assert!(matches!(verify(&token, &Keys::new([key])), Err(Refusal::Malformed(_))), "{to}");
        }
    }

    proptest! {
        #[test]
        fn no_token_panics_and_none_is_believed(token in "\\PC*", parts in prop::collection::vec("[-_A-Za-z0-9=]{0,60}", 0..5)) {
            let keys = Keys::new([pair(1).1]);
            prop_assert!(verify(&token, &keys).is_err());
            prop_assert!(verify(&parts.join("."), &keys).is_err());
        }

        #[test]
        fn a_token_with_one_character_changed_is_refused(at: prop::sample::Index, to in "[-_A-Za-z0-9.]") {
            let (token, key) = minted(1, GOOD);
            let at = at.index(token.len());
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            let said = verify(&changed, &Keys::new([key.clone()]));
            // The last character of a part has bits that mean nothing; strict base64 refuses those, so only equals pass.
            prop_assert_eq!(said.is_ok(), changed == token);
        }

        #[test]
        fn no_claims_panic(claims in "\\PC*", exp: f64) {
            let (token, key) = minted(1, &claims);
            prop_assert!(verify(&token, &Keys::new([key])).is_err());
            let (token, key) = minted(1, &GOOD.replace("4e9", &format!("{exp:?}")));
            let _ = verify(&token, &Keys::new([key]));
        }
    }
}
