//! Who calls, and what they may do: a right is there or the call is refused. Refusals name the right that lacks, never
//! the credentials. How a caller proves who they are is `credentials.rs`.
//!
//! The blobs are shared, because content is truth. What an action's digest leads to is a claim, so the results of a
//! caller in a trust namespace are kept apart: that caller sees them before the trusted ones, and nobody else sees them.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use buildnet_formats::wire::google::rpc;
use buildnet_formats::{FieldValue, NativeError};
use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

use crate::hub::MetadataValue;
use crate::status::{any, status_of};

/// An instance name in a key, before the namespace: what an instance name may not hold.
const SEPARATOR: char = '\u{1}';
/// REAPI sets no limit; a path on disk and a header do.
pub(crate) const INSTANCE_BYTES_MAX: usize = 255;
/// Metadata of this prefix is the door's word to Python; a client's is dropped.
pub(crate) const CALLER_PREFIX: &str = "buildnet-caller-";
const NOBODY: &str = "a caller without credentials";

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Read,
    /// To ask which blobs lack: readers do, and so must writers.
    Find,
    WriteCas,
    WriteActionCache,
    Execute,
    /// To join as a worker.
    Work,
    /// To change the server itself.
    Administer,
}

impl Right {
    fn bits(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::WriteCas => 2,
            Self::Find => 1 | 2,
            Self::WriteActionCache => 4,
            Self::Execute => 8,
            Self::Work => 16,
            Self::Administer => 32,
        }
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Read => ("read", "read"),
            Self::Find => ("ask for missing blobs", "read"),
            Self::WriteCas => ("write blobs", "cas-only"),
            Self::WriteActionCache => ("write the action cache", "write"),
            Self::Execute => ("execute actions", "execute"),
            Self::Work => ("join as a worker", "worker"),
            Self::Administer => ("change the server", "admin"),
        }
    }
}

/// Scopes of a token or certificate, as rights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rights(u8);

impl Rights {
    pub(crate) const ALL: Self = Self(63);

    /// The rights of these scopes. A scope that is not known grants nothing (RFC 6749 section 3.3 lets a server ignore
    /// it), so that a newer token works as far as it is understood.
    pub(crate) fn of<'a>(scopes: impl IntoIterator<Item = &'a str>) -> Self {
        let rights = scopes.into_iter().map(|scope| match scope {
            "read" => 1,
            "write" => 2 | 4,
            "cas-only" => 2,
            "execute" => 8,
            // What an attempt takes: inputs are read, outputs stored. Its result is published by the controller.
            "worker" => 16 | 1 | 2,
            "admin" => Self::ALL.0,
            _ => 0,
        });
        Self(rights.fold(0, |all, one| all | one))
    }

    /// What is left of them in a trust namespace. A worker's results are published for everybody, and who changes the
    /// server could do the same.
    pub(crate) fn apart(self, namespace: Option<&str>) -> Self {
        if namespace.is_some() { Self(self.0 & !(16 | 32)) } else { self }
    }

    fn has(self, right: Right) -> bool {
        self.0 & right.bits() != 0
    }
}

/// What was granted to one caller.
#[derive(Debug, Default)]
pub(crate) struct Grant {
    pub(crate) rights: Rights,
    /// Instances with all below them; none for every instance.
    pub(crate) instances: Option<Vec<String>>,
    pub(crate) namespace: Option<String>,
    /// For people; empty when nobody said.
    pub(crate) subject: String,
    /// The key of the node whose session it is.
    pub(crate) node: Option<String>,
    pub(crate) valid_from_unix_s: u64,
    /// Zero for ever.
    pub(crate) expires_unix_s: u64,
    /// How often a right lacked, over all callers.
    pub(crate) refused: Arc<AtomicU64>,
}

/// The caller of one call.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Arc<Grant>);

impl Default for Caller {
    /// Whoever comes to an open door.
    fn default() -> Self {
        Self(Arc::new(Grant { rights: Rights::ALL, ..Grant::default() }))
    }
}

impl Caller {
    /// Who the caller's token or certificate names, if it has one.
    pub(crate) fn subject(&self) -> Option<&str> {
        Some(self.0.subject.as_str()).filter(|subject| !subject.is_empty())
    }

    /// Whether it calls within the session of its node.
    pub(crate) fn is_node(&self) -> bool {
        self.0.node.is_some()
    }

    /// Whether it calls as a worker does: what it reads and writes, it does for those whose actions it runs.
    pub(crate) fn works(&self) -> bool {
        self.is_node() || (self.0.rights.has(Right::Work) && !self.0.rights.has(Right::Administer))
    }

    /// Whether the caller may do this in that instance.
    pub(crate) fn check(&self, right: Right, instance: &str) -> Result<(), Status> {
        check_instance(instance).map_err(|e| status_of(&e))?;
        if self.may(right, instance) {
            return Ok(());
        }
        let (deed, scope) = right.words();
        let who = self.name();
        Err(self.forbid(if self.0.rights.has(right) {
            format!("{who} may not use instance {instance:?}; ask for a token made with --instance {instance:?}")
        } else {
            format!("{who} may not {deed} in instance {instance:?}; ask for a token with the scope {scope}")
        }))
    }

    /// The same, without a refusal.
    pub(crate) fn may(&self, right: Right, instance: &str) -> bool {
        self.0.rights.has(right) && self.0.instances.as_ref().is_none_or(|all| all.iter().any(|i| below(instance, i)))
    }

    /// Whether the caller may make a call that Python answers.
    pub(crate) fn check_call(&self, path: &str) -> Result<(), Status> {
        self.check_need(path, need_of(path))
    }

    fn check_need(&self, path: &str, need: Need) -> Result<(), Status> {
        let (right, everywhere) = match need {
            Need::Nothing => return Ok(()),
            Need::Somewhere(right) => (right, false),
            Need::Everywhere(right) => (right, true),
        };
        let (deed, scope) = right.words();
        let call = path.trim_start_matches('/');
        if !self.0.rights.has(right) {
            let who = self.name();
            return Err(self.forbid(format!(
                "{call}: {who} may not {deed} in any instance; ask for a token with the scope {scope}"
            )));
        }
        if everywhere && self.0.instances.is_some() {
            let who = self.name();
            return Err(self.forbid(format!(
                "{call} concerns every instance, and {who} is limited to some; ask for a token made without --instance"
            )));
        }
        Ok(())
    }

    /// Whether the caller may ask Python's application for this path.
    pub(crate) fn check_page(&self, method: &http::Method, path: &str) -> Result<(), Status> {
        self.check_need(path, need_of_page(method, path))
    }

    /// The action-cache namespace that the caller's results go to in that instance.
    pub(crate) fn written<'a>(&self, instance: &'a str) -> Cow<'a, str> {
        match &self.0.namespace {
            None => Cow::Borrowed(instance),
            Some(namespace) => Cow::Owned(format!("{instance}{SEPARATOR}{namespace}")),
        }
    }

    /// The namespaces that the caller's look-ups go through in that instance, in this order.
    pub(crate) fn looked_up<'a>(&self, instance: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        let own = self.0.namespace.is_some().then(|| self.written(instance));
        own.into_iter().chain(std::iter::once(Cow::Borrowed(instance)))
    }

    /// What Python is told of a caller who may not do everything everywhere.
    pub(crate) fn facts(&self) -> Vec<(String, MetadataValue)> {
        let grant = &self.0;
        let fact = |name: &str, value: &str| (format!("{CALLER_PREFIX}{name}"), MetadataValue::Text(value.to_owned()));
        let mut facts = Vec::new();
        if !grant.subject.is_empty() {
            facts.push(fact("subject", &grant.subject));
        }
        if let Some(node) = &grant.node {
            facts.push(fact("node", node));
        }
        if let Some(namespace) = &grant.namespace {
            facts.push(fact("namespace", namespace));
        }
        if let Some(instances) = &grant.instances {
            facts.push(fact("limited", "1"));
            facts.extend(instances.iter().map(|instance| fact("instance", instance)));
        }
        facts
    }

    fn name(&self) -> String {
        match self.0.subject.as_str() {
            "" => NOBODY.to_owned(),
            subject => format!("{subject:?}"),
        }
    }

    fn forbid(&self, message: String) -> Status {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        refusal(Code::PermissionDenied, "forbidden", message)
    }
}

/// A status whose details name the code of the error tree.
pub(crate) fn refusal(code: Code, reason: &str, message: String) -> Status {
    let info = rpc::ErrorInfo { reason: reason.to_owned(), domain: "buildnet".to_owned(), ..Default::default() };
    let details = vec![any("google.rpc.ErrorInfo", &info)];
    let status = rpc::Status { code: code as i32, message: message.clone(), details };
    Status::with_details(code, message, Bytes::from(status.encode_to_vec()))
}

/// `team` grants `team` and `team/x`, not `teams`: by segments, never by letters.
fn below(instance: &str, granted: &str) -> bool {
    match instance.strip_prefix(granted) {
        Some(rest) => rest.is_empty() || (rest.starts_with('/') && !granted.is_empty()),
        None => false,
    }
}

/// An instance name is part of the key of a result. What separates namespaces in it must not come from a client.
fn check_instance(instance: &str) -> Result<(), NativeError> {
    let refuse = |why: &str| {
        let shown: String = instance.chars().take(64).collect();
        NativeError::invalid("instance_name", format!("the instance name {shown:?} {why}"))
            .with("limit", FieldValue::Int(INSTANCE_BYTES_MAX as i64))
    };
    if instance.len() > INSTANCE_BYTES_MAX {
        return Err(refuse(&format!("is over {INSTANCE_BYTES_MAX} bytes; choose a shorter one")));
    }
    if instance.chars().any(char::is_control) {
        return Err(refuse("holds a control character; leave it out"));
    }
    Ok(())
}

/// What a call that Python answers needs.
enum Need {
    /// Being somebody.
    Nothing,
    /// A right in some instance; Python shows only what belongs to the caller's instances.
    Somewhere(Right),
    /// A right in every instance.
    Everywhere(Right),
}

fn need_of(path: &str) -> Need {
    use Need::{Everywhere, Nothing, Somewhere};
    // The first that the path begins with.
    const CALLS: [(&str, Need); 22] = [
        ("/build.bazel.remote.execution.v2.Execution/", Somewhere(Right::Execute)),
        ("/google.longrunning.Operations/", Somewhere(Right::Execute)),
        ("/buildnet.v1.ActionService/SubmitAction", Somewhere(Right::Execute)),
        ("/buildnet.v1.ActionService/CancelAction", Somewhere(Right::Execute)),
        ("/buildnet.v1.ActionService/", Somewhere(Right::Read)),
        ("/buildnet.v1.JobService/SubmitJob", Somewhere(Right::Execute)),
        ("/buildnet.v1.JobService/CancelJob", Somewhere(Right::Execute)),
        ("/buildnet.v1.JobService/", Somewhere(Right::Read)),
        ("/buildnet.v1.LedgerService/Append", Everywhere(Right::Administer)),
        ("/buildnet.v1.LedgerService/ListAccounts", Everywhere(Right::Read)),
        ("/buildnet.v1.LedgerService/Statement", Everywhere(Right::Read)),
        ("/buildnet.v1.LedgerService/", Somewhere(Right::Read)),
        ("/buildnet.v1.FleetService/Join", Everywhere(Right::Work)),
        ("/buildnet.v1.FleetService/KeepLog", Everywhere(Right::Work)),
        ("/buildnet.v1.FleetService/ListNodes", Somewhere(Right::Read)),
        ("/buildnet.v1.FleetService/WatchNodes", Somewhere(Right::Read)),
        ("/buildnet.v1.ResourceService/", Somewhere(Right::Read)),
        ("/buildnet.v1.CacheService/Collect", Everywhere(Right::Administer)),
        ("/buildnet.v1.CacheService/Scrub", Everywhere(Right::Administer)),
        ("/buildnet.v1.CacheService/", Everywhere(Right::Read)),
        ("/grpc.reflection.v1.ServerReflection/", Nothing),
        ("/grpc.reflection.v1alpha.ServerReflection/", Nothing),
    ];
    let found = CALLS.into_iter().find(|(prefix, _)| path.starts_with(prefix));
    // What nobody thought about is for those who may do everything.
    found.map_or(Need::Everywhere(Right::Administer), |(_, need)| need)
}

/// What a path of Python's application needs. To look takes the right to read; to change, every right.
fn need_of_page(method: &http::Method, path: &str) -> Need {
    // What is told of every instance.
    const EVERYWHERE: [&str; 2] = ["/api/v1/ledger", "/ledger"];
    match *method {
        http::Method::GET | http::Method::HEAD if EVERYWHERE.iter().any(|prefix| path.starts_with(prefix)) => {
            Need::Everywhere(Right::Read)
        }
        http::Method::GET | http::Method::HEAD => Need::Somewhere(Right::Read),
        // It computes and changes nothing; a body says of what.
        http::Method::POST if path == "/api/v1/ledger/verify" => Need::Everywhere(Right::Read),
        _ => Need::Everywhere(Right::Administer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn granted(scopes: &[&str], instances: Option<&[&str]>, namespace: Option<&str>) -> Caller {
        Caller(Arc::new(Grant {
            rights: Rights::of(scopes.iter().copied()).apart(namespace),
            instances: instances.map(|all| all.iter().map(|&i| i.to_owned()).collect()),
            namespace: namespace.map(str::to_owned),
            subject: "ci".to_owned(),
            ..Grant::default()
        }))
    }

    #[test]
    fn scopes_grant_what_they_say_and_no_more() {
        use Right::{Administer, Execute, Find, Read, Work, WriteActionCache, WriteCas};
        let table: [(&str, &[Right]); 7] = [
            ("read", &[Read, Find]),
            ("write", &[WriteCas, WriteActionCache, Find]),
            ("cas-only", &[WriteCas, Find]),
            ("execute", &[Execute]),
            ("worker", &[Work, Read, WriteCas, Find]),
            ("admin", &[Read, WriteCas, WriteActionCache, Execute, Work, Administer, Find]),
            ("unheard-of", &[]),
        ];
        for (scope, rights) in table {
            for right in [Read, WriteCas, WriteActionCache, Execute, Work, Administer, Find] {
                let done = granted(&[scope], None, None).check(right, "any");
                assert_eq!(done.is_ok(), rights.contains(&right), "{scope} {right:?}");
                if let Err(status) = done {
                    assert_eq!(status.code(), Code::PermissionDenied);
                    assert!(status.message().contains("\"any\""), "{}", status.message());
                }
            }
        }
    }

    #[test]
    fn in_a_namespace_nobody_joins_as_a_worker() {
        let caller = granted(&["admin", "worker"], None, Some("pr"));
        for right in [Right::Work, Right::Administer] {
            assert!(!caller.may(right, ""), "{right:?}");
        }
        assert!(caller.may(Right::Execute, "") && caller.may(Right::WriteActionCache, ""));
    }

    #[test]
    fn instances_are_granted_by_segments() {
        let caller = granted(&["read"], Some(&["team", ""]), None);
        for (instance, allowed) in
            [("team", true), ("team/a", true), ("teams", false), ("", true), ("other", false), ("/team", false)]
        {
            assert_eq!(caller.check(Right::Read, instance).is_ok(), allowed, "{instance}");
        }
        assert!(!granted(&["read"], Some(&[]), None).may(Right::Read, ""));
    }

    #[test]
    fn a_call_of_python_needs_its_right() {
        let reader = granted(&["read"], Some(&["team"]), None);
        assert!(reader.check_call("/buildnet.v1.ActionService/ListActions").is_ok());
        assert!(reader.check_call("/buildnet.v1.LedgerService/GetReceipt").is_ok());
        for path in [
            "/buildnet.v1.ActionService/CancelAction",
            "/build.bazel.remote.execution.v2.Execution/Execute",
            "/buildnet.v1.LedgerService/ListAccounts",
            "/buildnet.v1.LedgerService/Statement",
            "/buildnet.v1.FleetService/Join",
            "/buildnet.v1.JobService/SubmitJob",
            "/buildnet.v1.LedgerService/Append",
            "/buildnet.v1.FleetService/DrainNode",
        ] {
            assert_eq!(reader.check_call(path).unwrap_err().code(), Code::PermissionDenied, "{path}");
        }
    }

    #[test]
    fn a_page_needs_its_right() {
        use http::Method;
        let (team, reader, admin) = (
            granted(&["read"], Some(&["team"]), None),
            granted(&["read"], None, None),
            granted(&["admin"], None, None),
        );
        let table: [(Method, &str, [bool; 3]); 7] = [
            (Method::GET, "/", [true, true, true]),
            (Method::HEAD, "/api/v1/actions", [true, true, true]),
            (Method::GET, "/api/v1/ledger/head", [false, true, true]),
            (Method::GET, "/api/v1/ledger/verify", [false, true, true]),
            (Method::POST, "/", [false, false, true]),
            (Method::POST, "/api/v1/ledger/verify", [false, true, true]),
            (Method::POST, "/api/v1/ledger", [false, false, true]),
        ];
        for (method, path, allowed) in table {
            let done = [&team, &reader, &admin].map(|caller| caller.check_page(&method, path).is_ok());
            assert_eq!(done, allowed, "{method} {path}");
        }
        assert!(granted(&["write"], None, None).check_page(&Method::GET, "/").is_err());
    }

    proptest! {
        /// No instance name that is let through can name another's namespace.
        #[test]
        fn namespaces_cannot_be_forged(instance in "\\PC{0,8}[\u{0}-\u{1f}]?\\PC{0,8}", namespace in "[a-z]{1,4}") {
            let trusted = granted(&["admin"], None, None);
            let apart = granted(&["admin"], None, Some(&namespace));
            if trusted.check(Right::Read, &instance).is_ok() {
                prop_assert!(!trusted.written(&instance).contains(SEPARATOR));
                prop_assert!(apart.written(&instance).contains(SEPARATOR));
                let seen: Vec<_> = apart.looked_up(&instance).collect();
                prop_assert_eq!(seen, vec![apart.written(&instance), trusted.written(&instance)]);
            }
        }
    }
}
