//! The tiers in their order, as one: what is asked of which. The local store is always the front and is asked by the callers
//! first; nothing here serves a byte that the local store has not verified.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use buildnet_formats::{Digest, NativeError};
use buildnet_store::{Kept, Origin, Store};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::fetch::Flight;
use crate::port::{EntryKey, TierError, Value, blocking};
use crate::reports::Reports;
use crate::tier::Tier;
use crate::via::Here;

/// Keeps an entry of a tier in the store, after whatever must come before.
pub type Keeper = Box<dyn Fn(EntryKey, Value) -> BoxFuture<'static, Result<(), NativeError>> + Send + Sync>;

pub(crate) struct Inner {
    pub(crate) store: Arc<Store>,
    pub(crate) tiers: Vec<Arc<Tier>>,
    pub(crate) runtime: Handle,
    pub(crate) flights: Mutex<HashMap<Digest, Flight>>,
    pub(crate) fetches: Semaphore,
    pub(crate) spreads: Arc<Semaphore>,
    /// MiB.
    pub(crate) puts: Semaphore,
    pub(crate) reports: Arc<Reports>,
    pub(crate) here: Arc<Here>,
    pub(crate) keeper: OnceLock<Keeper>,
}

impl Inner {
    /// Those that may be asked for what this question is after.
    pub(crate) fn readable(&self) -> impl Iterator<Item = &Arc<Tier>> {
        self.tiers.iter().filter(|tier| tier.config.read && !(tier.is_server() && self.here.is_end()))
    }

    /// Those of `digests`, all absent here, that are in no tier that answers.
    pub(crate) async fn missing(&self, digests: Vec<Digest>) -> Vec<Digest> {
        let mut missing = digests;
        for tier in self.readable() {
            if missing.is_empty() {
                break;
            }
            // A tier that fails has nothing for now: the client sends the blob again, and that is safe.
            if let Ok(absent) = tier.missing(&missing).await {
                missing = absent;
            }
        }
        missing
    }

    /// The result of an action, if each blob that it refers to is here or in a tier; its Trees and Directories are here
    /// then.
    pub(crate) async fn action_result(
        self: &Arc<Self>,
        namespace: String,
        action: Digest,
    ) -> Result<Option<Bytes>, NativeError> {
        if let Some(result) = self.store.stored_result(&namespace, &action)?
            && self.is_complete(&action, &result).await?
        {
            return Ok(Some(result));
        }
        let key = EntryKey::Action { namespace: namespace.clone(), action, size_known: true };
        for tier in self.readable() {
            let Ok(Some(value)) = tier.entry(&key).await else { continue };
            if value.as_blob || value.action_size.is_some_and(|size| size != action.size_bytes()) {
                continue;
            }
            if self.is_complete(&action, &value.bytes).await? {
                self.keep_entry(&key, &value).await?;
                return Ok(Some(value.bytes));
            }
        }
        Ok(None)
    }

    async fn is_complete(self: &Arc<Self>, action: &Digest, result: &[u8]) -> Result<bool, NativeError> {
        match self.references(action.function(), result).await {
            Ok(None) => Ok(false),
            Ok(Some(digests)) => {
                let absent = self.store.find_missing(&digests)?;
                Ok(self.missing(absent).await.is_empty())
            }
            // What HTTP clients keep under a hash need not be an ActionResult; here it is a miss.
            Err(error) if error.code == "invalid_request" => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Bring an entry that is not here, or not complete here, and all blobs that it refers to; false when it is nowhere.
    pub(crate) async fn pull_entry(self: &Arc<Self>, key: EntryKey) -> Result<bool, NativeError> {
        if let Some(value) = self.local_value(&key)?
            && self.pull_value(&key, &value).await?
        {
            return Ok(true);
        }
        for tier in self.readable() {
            let Ok(Some(value)) = tier.entry(&key).await else { continue };
            if self.pull_value(&key, &value).await? {
                self.keep_entry(&key, &value).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn pull_value(self: &Arc<Self>, key: &EntryKey, value: &Value) -> Result<bool, NativeError> {
        match self.references_of(key, value).await? {
            Some(digests) => Ok(self.pull(&digests).await?.is_empty()),
            None => Ok(false),
        }
    }

    /// Bring everything that a result refers to, as far as the tiers have it.
    pub(crate) async fn pull_result(self: &Arc<Self>, result: Bytes) -> Result<(), NativeError> {
        let digests = self.references(buildnet_formats::Function::Sha256, &result).await?;
        self.pull(&digests.unwrap_or_default()).await.map(|_| ())
    }

    /// Bring everything that an action needs, as far as the tiers have it.
    pub(crate) async fn pull_action(self: &Arc<Self>, action: Digest) -> Result<(), NativeError> {
        let files = self.files_of_action(&action).await?;
        self.pull(&files).await.map(|_| ())
    }

    /// The digest of the blob with the hash of `digest`, from the first tier that finds one.
    pub(crate) async fn find_by_hash(&self, digest: Digest) -> Option<Digest> {
        for tier in self.readable() {
            if let Ok(Some(found)) = tier.find_by_hash(&digest).await {
                return Some(found);
            }
        }
        None
    }

    /// The value of a local entry; a large one is the digest of its blob.
    pub(crate) fn local_value(&self, key: &EntryKey) -> Result<Option<Value>, NativeError> {
        let name = key.local()?;
        let action_size = match key {
            EntryKey::Action { action, size_known: true, .. } => Some(action.size_bytes()),
            _ => None,
        };
        if let EntryKey::Path { .. } = key
            && let Some(Kept::Blob(blob)) = self.store.kept(&name)?
        {
            return Ok(Some(Value { action_size, as_blob: true, bytes: blob.to_string().into() }));
        }
        let bytes = self.store.get_path(&name)?;
        Ok(bytes.map(|bytes| Value { action_size, as_blob: false, bytes }))
    }

    /// Keep an entry of a tier here too. It was a client's there, and it is one here.
    async fn keep_entry(&self, key: &EntryKey, value: &Value) -> Result<(), NativeError> {
        let key = match (key, value.action_size) {
            (EntryKey::Action { namespace, action, size_known: false }, Some(size)) => EntryKey::Action {
                namespace: namespace.clone(),
                action: Digest::new(action.function(), action.hash(), size),
                size_known: true,
            },
            _ => key.clone(),
        };
        if let Some(keeper) = self.keeper.get() {
            return keeper(key, value.clone()).await;
        }
        let (store, value) = (Arc::clone(&self.store), value.clone());
        let kept = blocking(move || match &key {
            EntryKey::Path { .. } if value.as_blob => store.put_path_blob(&key.local()?, &value.blob()?),
            EntryKey::Action { namespace, action, size_known: true } => {
                store.put_action_result(namespace, action, &value.bytes, Origin::Client(None))
            }
            _ => store.put_path(&key.local()?, &value.bytes),
        });
        kept.await.map_err(native)
    }
}

/// A failure below a port as the rest of the house knows it.
pub(crate) fn native(error: TierError) -> NativeError {
    match error {
        TierError::Local(error) => error,
        other => NativeError::new("cancelled", other.text()),
    }
}
