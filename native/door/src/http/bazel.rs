//! Bazel's `/cas/HASH` and `/ac/HASH`. A blob must be what its name says; an entry that is an ActionResult is returned only
//! while it is complete, and is the one that gRPC knows by the same action. What is no ActionResult is kept untouched.

use std::sync::Arc;

use buildnet_formats::{Digest, NativeError};
use buildnet_store::{BlobWriter, EntryName, Kept};
use buildnet_tiers::EntryKey;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use tonic::body::Body;

use super::HttpCache;
use super::encoding::{Coding, coding_of};
use super::inbound::{Inbound, on_disk};
use super::outbound::{Asked, respond, send_bytes};
use super::refusal::Refusal;
use super::route::bad;
use crate::access::Caller;
use crate::check::Check;

/// Larger ones are no results (docs/reference/limits.md).
pub(super) const ENTRY_BYTES_MAX: u64 = 64 << 20;
/// What a blob whose size nobody said may unpack to.
const UNPACKED_BYTES_MAX: u64 = 1 << 30;
const SIZE_HEADER: &str = "x-digest-sizebytes";

/// HTTP names an action by its hash alone.
fn key_of(namespace: &str, action: &Digest) -> EntryKey {
    EntryKey::Action { namespace: namespace.to_owned(), action: *action, size_known: false }
}

impl HttpCache {
    pub(super) async fn blob(
        &self,
        named: &Digest,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> Result<Response<Body>, Refusal> {
        match parts.method {
            Method::GET | Method::HEAD => {
                let digest = self.find(named).await?;
                let asked = Asked { method: &parts.method, headers: &parts.headers, coded: true };
                self.send_blob(&digest, asked).await
            }
            Method::PUT => self.write_blob(named, parts, inbound).await,
            _ => Err(Refusal::method("GET, HEAD, PUT")),
        }
    }

    /// The blob with this hash, here or brought here.
    async fn find(&self, named: &Digest) -> Result<Digest, NativeError> {
        if let Some(digest) = self.store.find_by_hash(named) {
            return Ok(digest);
        }
        let brought = match &self.tiers {
            None => false,
            Some(tiers) => tiers.pull_by_hash(*named).await?,
        };
        let found = if brought { self.store.find_by_hash(named) } else { None };
        found.ok_or_else(|| NativeError::not_found("blob", named.hex()))
    }

    async fn write_blob(
        &self,
        named: &Digest,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> Result<Response<Body>, Refusal> {
        let coding = coding_of(&parts.headers)?;
        let said = match (coding, parts.headers.get(SIZE_HEADER)) {
            (Coding::Identity, None) => inbound.announced(),
            (_, None) => None,
            (_, Some(value)) => Some(
                value
                    .to_str()
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| bad("X-Digest-SizeBytes is the size of the blob in bytes"))?,
            ),
        };
        inbound.check_announced(self.store.blob_size_bytes_max())?;
        let here = self.store.find_by_hash(named).filter(|d| said.is_none_or(|size| size == d.size_bytes()));
        let here = here.filter(|digest| self.store.is_promised(digest));
        if let Some(digest) = here {
            // Who waits for a word before sending is spared the sending.
            if !inbound.waits() {
                inbound.take(Check::new(digest), coding).await?.sink.finish()?;
            }
            return self.blob_written(digest).await;
        }
        let waits = self.store.waits_for_disk();
        let digest = match said {
            Some(size) => {
                let digest = Digest::new(named.function(), named.hash(), size);
                let writer = self.store.writer(digest)?;
                let taken = inbound.take::<BlobWriter>(writer, coding).await?;
                on_disk(waits, move || taken.sink.commit_as(taken.frames.as_deref())).await?;
                digest
            }
            None => {
                let limit = if coding == Coding::Zstd { UNPACKED_BYTES_MAX } else { u64::MAX };
                let memory = usize::try_from(self.store.packed_bytes_max()).unwrap_or(usize::MAX);
                let intake = self.store.intake(named.function(), limit, memory);
                let taken = inbound.take(intake, coding).await?;
                let named = *named;
                on_disk(waits, move || taken.commit_blob(&named)).await?
            }
        };
        self.blob_written(digest).await
    }

    async fn blob_written(&self, digest: Digest) -> Result<Response<Body>, Refusal> {
        if let Some(tiers) = &self.tiers {
            tiers.written(vec![digest]).await.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(respond(StatusCode::OK, "text/plain", ""))
    }

    pub(super) async fn entry(
        &self,
        caller: &Caller,
        instance: &str,
        action: &Digest,
        parts: &Parts,
        inbound: &mut Inbound,
    ) -> Result<Response<Body>, Refusal> {
        match parts.method {
            Method::GET | Method::HEAD => self.read_entry(caller, instance, action, parts).await,
            Method::PUT => {
                let name = key_of(&caller.written(instance), action);
                self.write_value(name, ENTRY_BYTES_MAX, parts, inbound).await?;
                Ok(respond(StatusCode::OK, "text/plain", ""))
            }
            Method::DELETE => self.remove_value(key_of(&caller.written(instance), action)).await,
            _ => Err(Refusal::method("GET, HEAD, PUT, DELETE")),
        }
    }

    async fn read_entry(
        &self,
        caller: &Caller,
        instance: &str,
        action: &Digest,
        parts: &Parts,
    ) -> Result<Response<Body>, Refusal> {
        let asked = Asked { method: &parts.method, headers: &parts.headers, coded: true };
        for namespace in caller.looked_up(instance) {
            let name = EntryName::action(&namespace, action)?;
            let mut kept = self.complete(action, &name).await?;
            if let (None, Some(tiers)) = (&kept, &self.tiers)
                && tiers.pull_entry(key_of(&namespace, action)).await?
            {
                kept = self.complete(action, &name).await?;
            }
            match kept {
                Some(Kept::Here(value)) => return send_bytes(value, asked),
                Some(Kept::Blob(digest)) => return self.send_blob(&digest, asked).await,
                None => {}
            }
        }
        Err(NativeError::not_found("entry", action.hex()).into())
    }

    /// The entry of this name, if what it refers to is here.
    async fn complete(&self, action: &Digest, name: &EntryName) -> Result<Option<Kept>, Refusal> {
        let kept = self.store.kept(name)?;
        let complete = match &kept {
            None => false,
            Some(Kept::Here(value)) => self.store.entry_is_complete(action.function(), value)?,
            Some(Kept::Blob(digest)) => self.is_large_entry_complete(action, *digest).await?,
        };
        Ok(kept.filter(|_| complete))
    }

    /// A large value must be in memory to be understood: few at a time.
    async fn is_large_entry_complete(&self, action: &Digest, value: Digest) -> Result<bool, Refusal> {
        let closing = |_| NativeError::new("overloaded", "the server is stopping; try again");
        let _permit = self.large_entries.acquire().await.map_err(closing)?;
        let (store, function) = (Arc::clone(&self.store), action.function());
        on_disk(true, move || match store.get_bytes(&value, ENTRY_BYTES_MAX) {
            Ok(bytes) => store.entry_is_complete(function, &bytes),
            Err(error) if matches!(error.code, "not_found" | "digest_mismatch") => Ok(false),
            Err(error) => Err(error),
        })
        .await
    }
}
