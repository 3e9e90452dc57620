//! From the credentials of a call to its caller: a bearer token, a Basic password that is one, a client's certificate, or
//! nothing on an open door. A token that was seen before costs one look-up; its end is still checked at each call.
//!
//! It never keeps, echoes or logs what it refuses.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use buildnet_formats::NativeError;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use parking_lot::{Mutex, RwLock};
use tonic::Code;
use tonic::body::Body;

use crate::access::{Caller, Grant, Rights, refusal};
use crate::tokens::{self, Keys, Refusal, TOKEN_BYTES_MAX};
use crate::watch::Stamp;

/// Verified tokens that are remembered; past it all are forgotten and verified anew.
const KNOWN_MAX: usize = 4096;
const REFUSED_MAX: usize = 4096;
const TAIL_BYTES: usize = 32;
/// A clock that is behind another's does not refuse a fresh token.
const CLOCK_SKEW_S: u64 = 30;
const REVOKED_BYTES_MAX: u64 = 16 << 20;

/// What a client's certificate may do.
#[derive(Clone, Debug, Default)]
pub struct CertificateRule {
    /// `CN=…`, `DNS:…`, `URI:…` or `EMAIL:…` of the certificate; empty for any.
    pub name: String,
    /// Scopes, as a token's.
    pub scopes: Vec<String>,
    /// Instances with all below them; none for every one.
    pub instances: Option<Vec<String>>,
    /// The trust namespace.
    pub namespace: Option<String>,
}

/// Who is let in.
#[derive(Clone, Debug, Default)]
pub struct AccessOptions {
    /// Ed25519 public keys whose tokens are believed.
    pub keys: Vec<Vec<u8>>,
    /// A file of revoked tokens, one `ID EXPIRY` a line; read again when it changes.
    pub revoked: Option<PathBuf>,
    /// Scopes of a caller without credentials; none for no such caller.
    pub anonymous: Vec<String>,
    /// The first that names a certificate is its.
    pub certificates: Vec<CertificateRule>,
}

impl AccessOptions {
    /// Everybody may do everything.
    pub fn open() -> Self {
        Self { anonymous: vec!["admin".to_owned()], ..Self::default() }
    }
}

struct Known {
    header: Box<[u8]>,
    caller: Caller,
}

/// Who is let in, and whom it has seen.
pub(crate) struct Access {
    keys: Keys,
    certificates: Vec<CertificateRule>,
    anonymous: Option<Caller>,
    nobody: Caller,
    /// Whether nothing is to be had by credentials.
    open: bool,
    revoked_file: Option<PathBuf>,
    revoked_stamp: Mutex<Stamp>,
    revoked: RwLock<HashSet<String>>,
    /// Whole headers, so that a known one is not even taken apart, by a hash of their ends: a signature is as good as
    /// random, and hashing all of a token would cost more than all the rest.
    known: RwLock<HashMap<u64, Known>>,
    /// Hashes, under a key of our own, of headers whose signature was not good: they cost no second verification.
    refused: Mutex<HashSet<u64>>,
    hasher: RandomState,
    unauthenticated: AtomicU64,
    forbidden: Arc<AtomicU64>,
}

impl Access {
    /// # Errors
    /// `invalid_request` when the list of revoked tokens cannot be read.
    pub(crate) fn new(options: AccessOptions) -> Result<Self, NativeError> {
        let forbidden = Arc::new(AtomicU64::new(0));
        let caller = |rights| Caller(Arc::new(Grant { rights, refused: Arc::clone(&forbidden), ..Grant::default() }));
        let anonymous = Rights::of(options.anonymous.iter().map(String::as_str));
        let access = Self {
            keys: Keys::new(options.keys),
            certificates: options.certificates,
            anonymous: (anonymous != Rights::default()).then(|| caller(anonymous)),
            nobody: caller(Rights::default()),
            open: anonymous == Rights::ALL,
            revoked_file: options.revoked,
            revoked_stamp: Mutex::default(),
            revoked: RwLock::default(),
            known: RwLock::default(),
            refused: Mutex::default(),
            hasher: RandomState::new(),
            unauthenticated: AtomicU64::new(0),
            forbidden: Arc::clone(&forbidden),
        };
        access.refresh()?;
        Ok(access)
    }

    /// Calls without good credentials, and calls whose caller lacked a right.
    pub(crate) fn refusals(&self) -> (u64, u64) {
        (self.unauthenticated.load(Ordering::Relaxed), self.forbidden.load(Ordering::Relaxed))
    }

    /// The caller of a call that needs no credentials.
    pub(crate) fn nobody(&self) -> Caller {
        self.nobody.clone()
    }

    /// Who calls. `certified` is the caller that the connection's certificate makes; `strict` admits nobody without
    /// credentials.
    pub(crate) fn caller(
        &self,
        headers: &HeaderMap,
        certified: Option<&Caller>,
        strict: bool,
    ) -> Result<Caller, Refusal> {
        let found = self.identify(headers, certified, strict).and_then(in_time);
        if found.is_err() {
            self.unauthenticated.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    fn identify(&self, headers: &HeaderMap, certified: Option<&Caller>, strict: bool) -> Result<Caller, Refusal> {
        let anonymous = self.anonymous.as_ref().filter(|_| !strict);
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        match (values.next(), values.next()) {
            (None, _) => certified.or(anonymous).cloned().ok_or(Refusal::Missing),
            (Some(_), Some(_)) => Err(Refusal::Twice),
            (Some(value), None) => match (self.by_token(value.as_bytes()), anonymous) {
                // Some clients always send a token; what is none of ours takes nothing away on an open door.
                (Err(Refusal::Foreign), Some(anyone)) if self.open => Ok(anyone.clone()),
                (done, _) => done,
            },
        }
    }

    fn by_token(&self, value: &[u8]) -> Result<Caller, Refusal> {
        let end = self.hasher.hash_one(&value[value.len().saturating_sub(TAIL_BYTES)..]);
        if let Some(known) = self.known.read().get(&end)
            && known.header.as_ref() == value
        {
            return Ok(known.caller.clone());
        }
        let hash = self.hasher.hash_one(value);
        if self.refused.lock().contains(&hash) {
            return Err(Refusal::BadSignature);
        }
        let token = match tokens::verify(&credentials_of(value)?, &self.keys) {
            Ok(token) => token,
            Err(refusal) => {
                if refusal == Refusal::BadSignature {
                    let mut refused = self.refused.lock();
                    if refused.len() >= REFUSED_MAX {
                        refused.clear();
                    }
                    refused.insert(hash);
                }
                return Err(refusal);
            }
        };
        let caller = Caller(Arc::new(Grant {
            rights: Rights::of(token.scope.split(' ')).apart(token.namespace.as_deref()),
            instances: token.instances,
            namespace: token.namespace,
            subject: if token.subject.is_empty() { token.id.clone() } else { token.subject },
            node: None,
            valid_from_unix_s: token.valid_from_unix_s,
            expires_unix_s: token.expires_unix_s,
            refused: Arc::clone(&self.forbidden),
        }));
        // Looked up under the lock that a change of the list takes last: no token outlives its revocation in `known`.
        let mut known = self.known.write();
        if self.revoked.read().contains(&token.id) {
            return Err(Refusal::Revoked);
        }
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(end, Known { header: value.into(), caller: caller.clone() });
        Ok(caller)
    }

    /// The caller that a certificate makes, by its names and its end.
    pub(crate) fn by_certificate(&self, names: &[String], expires_unix_s: u64) -> Option<Caller> {
        let rule = self.certificates.iter().find(|rule| rule.name.is_empty() || names.contains(&rule.name))?;
        Some(Caller(Arc::new(Grant {
            rights: Rights::of(rule.scopes.iter().map(String::as_str)).apart(rule.namespace.as_deref()),
            instances: rule.instances.clone(),
            namespace: rule.namespace.clone(),
            subject: names.first().cloned().unwrap_or_default(),
            node: None,
            valid_from_unix_s: 0,
            expires_unix_s,
            refused: Arc::clone(&self.forbidden),
        })))
    }

    /// The caller at the other end of a session: a worker, known by its node's key.
    pub(crate) fn by_node(&self, node_key: &str) -> Caller {
        Caller(Arc::new(Grant {
            rights: Rights::of(["worker"]),
            subject: node_key.to_owned(),
            node: Some(node_key.to_owned()),
            refused: Arc::clone(&self.forbidden),
            ..Grant::default()
        }))
    }

    /// Read the list of revoked tokens again if it has changed.
    ///
    /// # Errors
    /// It cannot be read: the list known before stays in force.
    pub(crate) fn refresh(&self) -> Result<(), NativeError> {
        let Some(path) = &self.revoked_file else { return Ok(()) };
        let mut stamp = self.revoked_stamp.lock();
        let now = Stamp::of(path);
        if now == *stamp {
            return Ok(());
        }
        // First, so that a list that stays unreadable is told once.
        stamp.clone_from(&now);
        let revoked = match now.size_bytes() {
            None => HashSet::new(),
            Some(size) if size > REVOKED_BYTES_MAX => {
                return Err(NativeError::invalid("revoked", format!("{} is over 16 MiB", path.display())));
            }
            Some(_) => std::fs::read_to_string(path)
                .map_err(|e| NativeError::invalid("revoked", format!("cannot read {}: {e}", path.display())))?
                .lines()
                .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
                .collect(),
        };
        *self.revoked.write() = revoked;
        self.known.write().clear();
        Ok(())
    }
}

fn in_time(caller: Caller) -> Result<Caller, Refusal> {
    let grant = &caller.0;
    if grant.expires_unix_s == 0 {
        return Ok(caller);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if now >= grant.expires_unix_s {
        return Err(Refusal::Expired);
    }
    if now + CLOCK_SKEW_S < grant.valid_from_unix_s {
        return Err(Refusal::NotYet);
    }
    Ok(caller)
}

/// The token in `Bearer TOKEN` (RFC 6750), or the password in `Basic …` (RFC 7617): many HTTP caches know nothing else.
fn credentials_of(value: &[u8]) -> Result<String, Refusal> {
    let text = std::str::from_utf8(value).map_err(|_| Refusal::Foreign)?;
    let (scheme, rest) = text.split_once(' ').ok_or(Refusal::Foreign)?;
    let rest = rest.trim_matches(' ');
    if rest.len() > 2 * TOKEN_BYTES_MAX {
        return Err(Refusal::Malformed("over 4096 bytes"));
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(Refusal::Foreign);
    }
    let pair = STANDARD.decode(rest).map_err(|_| Refusal::Foreign)?;
    let pair = String::from_utf8(pair).map_err(|_| Refusal::Foreign)?;
    let (_, password) = pair.split_once(':').ok_or(Refusal::Foreign)?;
    Ok(password.to_owned())
}

/// UNAUTHENTICATED, or 401 with a challenge (RFC 6750 section 3, RFC 9110 section 11.6.1).
pub(crate) fn refuse(reason: Refusal, grpc: bool) -> Response<Body> {
    if grpc {
        return refusal(Code::Unauthenticated, "unauthenticated", reason.to_string()).into_http();
    }
    let mut response = Response::new(Body::new(http_body_util::Full::new(format!("{reason}\n").into())));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let bearer = match reason {
        Refusal::Missing => "Bearer realm=\"buildnet\"",
        _ => "Bearer realm=\"buildnet\", error=\"invalid_token\"",
    };
    headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(bearer));
    headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"buildnet\", charset=\"UTF-8\""));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Right;
    use crate::tokens::tests::minted;
    use proptest::prelude::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        headers
    }

    fn closed(key: Vec<u8>, revoked: Option<PathBuf>) -> Access {
        Access::new(AccessOptions { keys: vec![key], revoked, ..AccessOptions::default() }).unwrap()
    }

    fn claims(exp: u64, more: &str) -> String {
        format!(r#"{{"aud":"buildnet","jti":"7","exp":{exp},"scope":"read"{more}}}"#)
    }

    #[test]
    fn bearer_and_basic_bring_the_same_token() {
        let (token, key) = minted(1, &claims(4_000_000_000, ""));
        let access = closed(key, None);
        let basic = format!("Basic {}", STANDARD.encode(format!("anyone:{token}")));
        for value in [format!("Bearer {token}"), format!("bearer  {token}"), basic] {
            for _ in 0..2 {
                let caller = access.caller(&headers(&value), None, false).unwrap();
                assert!(caller.may(Right::Read, "") && !caller.may(Right::WriteCas, ""));
            }
        }
        assert_eq!(access.refusals(), (0, 0));
        let caller = access.caller(&headers(&format!("Bearer {token}")), None, false).unwrap();
        assert!(caller.check(Right::WriteCas, "").is_err());
        assert!(access.caller(&HeaderMap::new(), None, false).is_err());
        assert_eq!(access.refusals(), (1, 1));
    }

    #[test]
    fn time_is_checked_though_the_token_is_known() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        for (exp, more, expected) in [
            (now, String::new(), Some(Refusal::Expired)),
            (now + 600, format!(",\"nbf\":{}", now + 300), Some(Refusal::NotYet)),
            (now + 600, format!(",\"nbf\":{}", now + 5), None),
        ] {
            let (token, key) = minted(1, &claims(exp, &more));
            let access = closed(key, None);
            for _ in 0..2 {
                assert_eq!(access.caller(&headers(&format!("Bearer {token}")), None, false).err(), expected);
            }
            assert_eq!(access.known.read().len(), 1);
        }
    }

    #[test]
    fn a_revoked_token_is_refused_from_the_next_reading_of_the_list() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("revoked");
        let (token, key) = minted(1, &claims(4_000_000_000, ""));
        let access = closed(key, Some(list.clone()));
        let value = headers(&format!("Bearer {token}"));
        assert!(access.caller(&value, None, false).is_ok());
        std::fs::write(&list, "other 1\n7 4000000000\n").unwrap();
        access.refresh().unwrap();
        assert_eq!(access.caller(&value, None, false).err(), Some(Refusal::Revoked));
        std::fs::write(&list, "other 1\n").unwrap();
        access.refresh().unwrap();
        assert!(access.caller(&value, None, false).is_ok());
    }

    #[test]
    fn what_is_no_token_of_ours_takes_nothing_away_on_an_open_door() {
        let open = Access::new(AccessOptions::open()).unwrap();
        for value in ["Bearer whatever", "Basic !", "Digest x", "Bearer"] {
            assert!(open.caller(&headers(value), None, false).is_ok(), "{value}");
            assert_eq!(open.caller(&headers(value), None, true).err(), Some(Refusal::Foreign));
        }
        // One that claims to be ours is held to it: its holder may have meant to be restricted.
        let (token, _) = minted(1, &claims(1, ""));
        assert_eq!(open.caller(&headers(&format!("Bearer {token}")), None, false).err(), Some(Refusal::UnknownKey));
        assert!(open.caller(&HeaderMap::new(), None, false).is_ok());
        assert_eq!(open.caller(&HeaderMap::new(), None, true).err(), Some(Refusal::Missing));
    }

    #[test]
    fn the_first_rule_that_names_a_certificate_is_its() {
        let rule = |name: &str, scope: &str| CertificateRule {
            name: name.to_owned(),
            scopes: vec![scope.to_owned()],
            ..CertificateRule::default()
        };
        let certificates = vec![rule("DNS:ci", "admin"), rule("", "read")];
        let access = Access::new(AccessOptions { certificates, ..AccessOptions::default() }).unwrap();
        assert!(access.by_certificate(&["CN=x".into(), "DNS:ci".into()], 0).unwrap().may(Right::Administer, ""));
        assert!(!access.by_certificate(&["CN=ci".into()], 0).unwrap().may(Right::Administer, ""));
        let late = access.by_certificate(&[], 1).unwrap();
        assert_eq!(access.caller(&HeaderMap::new(), Some(&late), false).err(), Some(Refusal::Expired));
    }

    proptest! {
        #[test]
        fn no_header_panics_and_none_is_believed(value in prop::collection::vec(prop::sample::select((32u8..=255).filter(|b| *b != 127).collect::<Vec<_>>()), 0..200), scheme in "(Bearer|Basic|basic|) ?") {
            let access = closed(minted(1, "{}").1, None);
            let mut bytes = scheme.into_bytes();
            bytes.extend(value);
            let mut map = HeaderMap::new();
            map.insert(header::AUTHORIZATION, HeaderValue::from_bytes(&bytes).unwrap());
            prop_assert!(access.caller(&map, None, false).is_err());
            prop_assert!(access.known.read().is_empty());
        }
    }
}
