//! Behind the local store stand tiers: S3-compatible storage, Redis and its kin, another Remote Execution API server. They
//! are caches of the front and of each other: a tier that is down, slow or wrong costs hits, never a wrong byte and never
//! the server. What policy there is comes with the configuration.
//!
//! docs/design/tiers.md tells the whole.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod breaker;
mod closure;
mod config;
mod envelope;
mod existence;
mod fetch;
mod inner;
mod port;
mod queue;
mod queue_file;
mod reapi;
mod redis;
mod reports;
mod s3;
mod tier;
pub mod via;
mod written;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use buildnet_formats::{Digest, FieldValue, NativeError};
use buildnet_store::Store;
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

pub use crate::config::{Engine, Secret, TierConfig, Write};
pub use crate::inner::Keeper;
pub use crate::port::{ActionCache, BlobStore, EntryKey, Source, TierError, Value};

use crate::inner::{Inner, native};
use crate::queue::{Bounds, Queue};
use crate::reports::Reports;
use crate::tier::Tier;
use crate::via::{Here, carried};

const FETCHES_AT_ONCE: usize = 64;
const SPREADS_AT_ONCE: usize = 32;
/// Memory for blobs on their way to tiers.
const PUTS_MIB: usize = 128;
/// How long a writer waits for room in a queue.
const ROOM_WAIT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known of one tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierFacts {
    /// Its name: small letters, digits and dashes.
    pub name: String,
    /// `s3`, `redis` or `reapi`.
    pub kind: &'static str,
    /// Counts since the start; `queue_entries`, `queue_bytes` and `left_alone` are of now.
    pub counts: Vec<(&'static str, u64)>,
}

/// The tiers behind one store, with threads of their own: no caller's cancellation breaks off what others wait for.
pub struct Tiers {
    inner: Arc<Inner>,
    runtime: Mutex<Option<Runtime>>,
    stop: watch::Sender<bool>,
}

impl fmt::Debug for Tiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.inner.tiers.iter().map(|tier| &tier.config.name)).finish()
    }
}

impl Tiers {
    /// Open the tiers behind `store`, in order; their queues are in `directory`, and go on from where they were.
    ///
    /// # Errors
    /// `invalid_request` when one cannot be used as configured; `node_down` when a required one does not answer.
    pub fn open(store: &Arc<Store>, configs: Vec<TierConfig>, directory: &Path) -> Result<Self, NativeError> {
        s3::use_ring();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("buildnet-tiers")
            .enable_all()
            .build()
            .map_err(|e| NativeError::internal(format!("no threads for the tiers: {e}")))?;
        let reports = Arc::new(Reports::default());
        let here = Arc::new(Here::new());
        let inside = runtime.enter();
        let mut tiers = Vec::with_capacity(configs.len());
        for config in configs {
            let queue = match config.write {
                Write::Back => Some(open_queue(directory, &config, store, &reports)?),
                Write::Through | Write::Never => None,
            };
            tiers.push(Arc::new(Tier::new(config, queue, Arc::clone(&reports), &here)?));
        }
        drop(inside);
        runtime.block_on(probe(&tiers))?;
        let inner = Arc::new(Inner {
            store: Arc::clone(store),
            tiers,
            runtime: runtime.handle().clone(),
            flights: Mutex::default(),
            fetches: Semaphore::new(FETCHES_AT_ONCE),
            spreads: Arc::new(Semaphore::new(SPREADS_AT_ONCE)),
            puts: Semaphore::new(PUTS_MIB),
            reports,
            here,
            keeper: OnceLock::new(),
        });
        let (stop, _) = watch::channel(false);
        for tier in inner.tiers.iter().filter(|tier| tier.queue.is_some()) {
            runtime.spawn(Arc::clone(&inner).drain(Arc::clone(tier), stop.subscribe()));
        }
        Ok(Self { inner, runtime: Mutex::new(Some(runtime)), stop })
    }

    /// Run on the tiers' own threads, to its end even if the caller leaves.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, NativeError>> + Send + 'static,
    ) -> Result<T, NativeError> {
        let stopping = |_| Err(NativeError::new("cancelled", "the server is stopping"));
        self.inner.runtime.spawn(carried(work)).await.unwrap_or_else(stopping)
    }

    /// As [`Tiers::run`], for a thread that may wait.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, NativeError>> + Send + 'static,
    ) -> Result<T, NativeError> {
        self.inner.runtime.block_on(self.run(work))
    }

    /// Have entries that come from a tier kept by this; without one they go into the store as they are. Once.
    pub fn keep_by(&self, keeper: Keeper) {
        let _ = self.inner.keeper.set(keeper);
    }

    /// Those of `digests`, all absent from the store, that no tier has.
    ///
    /// # Errors
    /// `cancelled` when the server stops.
    pub async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, NativeError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { Ok(inner.missing(digests).await) }).await
    }

    /// Bring blobs into the store; returns those that are nowhere.
    ///
    /// # Errors
    /// Those of the store: `storage_full`, `too_large`.
    pub async fn pull(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, NativeError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.pull(&digests).await }).await
    }

    /// Bring the Directories below `root` into the store; returns whether all are there.
    ///
    /// # Errors
    /// As [`Tiers::pull`]; `invalid_request` when one is malformed.
    pub async fn pull_tree(&self, root: Digest) -> Result<bool, NativeError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.pull_tree(root).await }).await
    }

    /// Bring everything that an action needs into the store, as far as the tiers have it.
    ///
    /// # Errors
    /// As [`Tiers::pull_tree`].
    pub async fn pull_action(&self, action: Digest) -> Result<(), NativeError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.pull_action(action).await }).await
    }

    /// Bring everything that a result refers to into the store, as far as the tiers have it; blocks.
    ///
    /// # Errors
    /// As [`Tiers::pull_tree`].
    pub fn pull_result(&self, result: Bytes) -> Result<(), NativeError> {
        let inner = Arc::clone(&self.inner);
        self.wait(async move { inner.pull_result(result).await })
    }

    /// The result of an action that the store has no complete one for, if each blob that it refers to is here or in a tier.
    ///
    /// # Errors
    /// As [`Tiers::pull`].
    pub async fn action_result(&self, namespace: String, action: Digest) -> Result<Option<Bytes>, NativeError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.action_result(namespace, action).await }).await
    }

    /// Bring an entry and all that it refers to into the store; false when no tier has it whole.
    ///
    /// # Errors
    /// As [`Tiers::pull`].
    pub async fn pull_entry(&self, key: EntryKey) -> Result<bool, NativeError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.pull_entry(key).await }).await
    }

    /// Bring the blob with the hash of `hash` into the store, whatever its size; false when no tier has one.
    ///
    /// # Errors
    /// As [`Tiers::pull`].
    pub async fn pull_by_hash(&self, hash: Digest) -> Result<bool, NativeError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move {
            match inner.find_by_hash(hash).await {
                Some(digest) => inner.ensure(digest).await,
                None => Ok(false),
            }
        })
        .await
    }

    /// Blobs are in the store that a client sent: one answer for each, in order.
    ///
    /// # Errors
    /// For each blob: `node_down` when a through tier did not take it, `overloaded` when a back tier's queue is full.
    pub async fn written(&self, digests: Vec<Digest>) -> Vec<Result<(), NativeError>> {
        let (inner, count) = (Arc::clone(&self.inner), digests.len());
        let done = self.run(async move { Ok(inner.written(digests).await) }).await;
        done.unwrap_or_else(|error| vec![Err(error); count])
    }

    /// As [`Tiers::written`] of one blob that came otherwise; blocks.
    ///
    /// # Errors
    /// As [`Tiers::written`].
    pub fn wait_written(&self, digest: Digest) -> Result<(), NativeError> {
        let inner = Arc::clone(&self.inner);
        self.wait(async move { inner.written(vec![digest]).await.into_iter().collect() })
    }

    /// An entry is in the store that was not there before, or is another now.
    ///
    /// # Errors
    /// As [`Tiers::written`].
    pub async fn entry_written(&self, key: EntryKey) -> Result<(), NativeError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.entry_written(key).await }).await
    }

    /// An entry was removed from the store, or was not there: no tier that is ours to write has it either when this
    /// returns. Whether one had it.
    ///
    /// # Errors
    /// `node_down` when one may have it still.
    pub async fn entry_removed(&self, key: EntryKey) -> Result<bool, NativeError> {
        let inner = Arc::clone(&self.inner);
        self.run(async move { inner.entry_removed(&key).await }).await
    }

    /// As [`Tiers::entry_written`]; blocks.
    ///
    /// # Errors
    /// As [`Tiers::written`].
    pub fn wait_entry_written(&self, key: EntryKey) -> Result<(), NativeError> {
        let inner = Arc::clone(&self.inner);
        self.wait(async move { inner.entry_written(key).await })
    }

    /// The next thing that a person should hear of; blocks until there is one, and is none once closed.
    pub fn next_report(&self) -> Option<String> {
        self.inner.reports.next()
    }

    /// What is known of each tier, in their order.
    pub fn statistics(&self) -> Vec<TierFacts> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let rows = self.inner.tiers.iter().map(|tier| {
            let counters = &tier.counters;
            let (queue_entries, queue_bytes) = tier.queue.as_ref().map_or((0, 0), Queue::size);
            let counts = vec![
                ("hits", read(&counters.hits)),
                ("misses", read(&counters.misses)),
                ("entry_hits", read(&counters.entry_hits)),
                ("entry_misses", read(&counters.entry_misses)),
                ("errors", read(&counters.errors)),
                ("damaged", read(&counters.damaged)),
                ("read_bytes", read(&counters.read_bytes)),
                ("blobs_written", read(&counters.blobs_written)),
                ("entries_written", read(&counters.entries_written)),
                ("written_bytes", read(&counters.written_bytes)),
                ("dropped", read(&counters.dropped)),
                ("queue_entries", queue_entries as u64),
                ("queue_bytes", queue_bytes),
                ("left_alone", u64::from(tier.is_open())),
            ];
            TierFacts { name: tier.config.name.clone(), kind: tier.kind(), counts }
        });
        rows.collect()
    }

    /// End the threads; what waits in a queue goes with the next start.
    pub fn close(&self) {
        self.stop.send_replace(true);
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_timeout(CLOSE_TIMEOUT);
        }
        self.inner.reports.close();
    }
}

impl Drop for Tiers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.lock().take() {
            // The last owner may be a network thread, which must not wait.
            runtime.shutdown_background();
        }
        self.inner.reports.close();
    }
}

fn open_queue(
    directory: &Path,
    config: &TierConfig,
    store: &Arc<Store>,
    reports: &Reports,
) -> Result<Queue, NativeError> {
    let bounds = Bounds { entries: config.queue_entries_max, bytes: config.queue_bytes_max, wait: ROOM_WAIT };
    let (queue, strange) = Queue::open(directory, &config.name, bounds, store)?;
    if strange > 0 {
        reports.push(format!("tier {}: {strange} bytes at the end of its queue's file were no records", config.name));
    }
    Ok(queue)
}

/// Ask every tier once: one that does not answer is reported, or refuses the start.
async fn probe(tiers: &[Arc<Tier>]) -> Result<(), NativeError> {
    for (tier, answer) in tiers.iter().zip(join_all(tiers.iter().map(|tier| tier.probe())).await) {
        let Err(error) = answer else { continue };
        let error = native(error);
        if tier.config.required {
            return Err(NativeError::new(
                "node_down",
                format!(
                    "the tier {} does not answer: {}; start it, correct its address or credentials, or let the server \
                     start without it by required = false",
                    tier.config.name, error.message
                ),
            )
            .with("url", FieldValue::Text(tier.config.name.clone())));
        }
        tier.report(format_args!("does not answer at the start: {}", error.message));
    }
    Ok(())
}
