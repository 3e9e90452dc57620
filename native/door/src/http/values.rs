//! Caches that choose their own names: ccache, sccache, Gradle, Nx. A value is whatever its writer sent, seen whole or not
//! at all, in the namespaces of the caller and in no other.

use buildnet_formats::{Function, NativeError};
use buildnet_store::{EntryName, Intake, Kept, VALUE_BYTES_PACKED};
use buildnet_tiers::EntryKey;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, StatusCode, header};
use tonic::body::Body;

use super::HttpCache;
use super::conditions::{conditional, may_write};
use super::encoding::coding_of;
use super::inbound::{Inbound, on_disk};
use super::outbound::{Asked, empty, precondition_failed, respond, send_bytes, tag_of, tag_of_bytes};
use super::refusal::Refusal;
use super::route::{Cache, bad};
use crate::access::Caller;
use crate::updates::Update;

/// A value to be answered for: which cache, in which instance, under which path.
pub(super) struct Named<'a> {
    pub(super) cache: Cache,
    pub(super) instance: &'a str,
    pub(super) path: &'a str,
}

/// What the store and the tiers know a path by.
pub(super) fn key_of(namespace: &str, path: &str) -> EntryKey {
    EntryKey::Path { namespace: namespace.to_owned(), path: path.to_owned() }
}

impl HttpCache {
    pub(super) async fn value(
        &self,
        caller: &Caller,
        named: &Named<'_>,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> Result<Response<Body>, Refusal> {
        match parts.method {
            Method::GET | Method::HEAD => {
                let asked = Asked { method: &parts.method, headers: &parts.headers, coded: false };
                match self.look_up(caller, named.instance, named.path).await? {
                    Some(Kept::Here(value)) => send_bytes(value, asked),
                    Some(Kept::Blob(digest)) => self.send_blob(&digest, asked).await,
                    None => Err(NativeError::not_found("value", named.path).into()),
                }
            }
            Method::PUT if named.cache == Cache::Nx => self.write_once(caller, named, parts, inbound).await,
            Method::PUT => {
                let key = key_of(&caller.written(named.instance), named.path);
                let replaced = self.store.has_path(&key.local()?);
                self.write_value(key, u64::MAX, parts, inbound).await?;
                Ok(empty(if replaced { StatusCode::NO_CONTENT } else { StatusCode::CREATED }))
            }
            Method::DELETE if named.cache != Cache::Nx => {
                self.remove_value(key_of(&caller.written(named.instance), named.path)).await
            }
            _ if named.cache == Cache::Nx => Err(Refusal::method("GET, HEAD, PUT")),
            _ => self.webdav(caller, Some(named), parts).await,
        }
    }

    /// The value that a caller sees under a path.
    pub(super) async fn look_up(
        &self,
        caller: &Caller,
        instance: &str,
        path: &str,
    ) -> Result<Option<Kept>, NativeError> {
        for namespace in caller.looked_up(instance) {
            let name = EntryName::path(&namespace, path)?;
            let mut kept = self.store.kept(&name)?;
            if let (None, Some(tiers)) = (&kept, &self.tiers)
                && tiers.pull_entry(key_of(&namespace, path)).await?
            {
                kept = self.store.kept(&name)?;
            }
            if kept.is_some() {
                return Ok(kept);
            }
        }
        Ok(None)
    }

    /// Forget what is under a name, here and in the tiers that are ours to write: 204, or 404 where nothing was.
    ///
    /// # Errors
    /// 503 when a tier may have it still.
    pub(super) async fn remove_value(&self, key: EntryKey) -> Result<Response<Body>, Refusal> {
        let here = self.store.remove_path(&key.local()?);
        let behind = match &self.tiers {
            Some(tiers) => tiers.entry_removed(key).await?,
            None => false,
        };
        Ok(empty(if here || behind { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }))
    }

    /// Keep a body under a name, whatever was there.
    ///
    /// # Errors
    /// 412 by the client's own conditions; 413, 415, 507; those of the body.
    pub(super) async fn write_value(
        &self,
        key: EntryKey,
        size_bytes_max: u64,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> Result<(), Refusal> {
        if conditional(&parts.headers) {
            let tag = self.store.kept(&key.local()?)?.map(|kept| match kept {
                Kept::Here(value) => tag_of_bytes(&value),
                Kept::Blob(digest) => tag_of(&digest),
            });
            if !may_write(&parts.headers, tag.as_deref()) {
                return Err(precondition_failed());
            }
        }
        let intake = self.take_in(size_bytes_max, parts, inbound).await?;
        self.keep(key, intake).await
    }

    /// Take a body in without keeping it yet.
    pub(super) async fn take_in(
        &self,
        size_bytes_max: u64,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> Result<Intake, Refusal> {
        if parts.headers.contains_key(header::CONTENT_RANGE) {
            // RFC 9110 14.4: a server that does not understand it must refuse it.
            return Err(bad("a value is written as a whole; send it without Content-Range"));
        }
        let limit = size_bytes_max.min(self.store.blob_size_bytes_max());
        inbound.check_announced(limit)?;
        // One that will not stay in memory need not begin there.
        let large = inbound.announced().is_some_and(|size| size > VALUE_BYTES_PACKED as u64);
        let memory = if large { 0 } else { VALUE_BYTES_PACKED };
        let intake = self.store.intake(Function::Sha256, limit, memory);
        Ok(inbound.take(intake, coding_of(&parts.headers)?).await?.sink)
    }

    async fn keep(&self, key: EntryKey, intake: Intake) -> Result<(), Refusal> {
        let work = move || match intake.in_memory() {
            Some(bytes) => Update::of_value(key, Bytes::copy_from_slice(bytes)),
            None => intake.commit().and_then(|digest| Update::of_blob(key, &digest)),
        };
        let update = on_disk(self.store.waits_for_disk(), work).await?;
        Ok(self.updates.keep(update).await?)
    }

    /// Nx: the first value under a name stays, so that nobody can replace what others have read.
    async fn write_once(
        &self,
        caller: &Caller,
        named: &Named<'_>,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> Result<Response<Body>, Refusal> {
        let taken = || {
            let message = format!("{} is here already and is not replaced", named.path);
            Refusal::new(StatusCode::CONFLICT, "invalid_request", message)
        };
        if self.look_up(caller, named.instance, named.path).await?.is_some() {
            return Err(taken());
        }
        let intake = self.take_in(u64::MAX, parts, inbound).await?;
        let key = key_of(&caller.written(named.instance), named.path);
        // Of two that came this far at once, one is first.
        let _turn = self.first_writes.lock().await;
        if self.look_up(caller, named.instance, named.path).await?.is_some() {
            return Err(taken());
        }
        self.keep(key, intake).await?;
        Ok(respond(StatusCode::OK, "text/plain", ""))
    }
}
