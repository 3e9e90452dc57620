//! One tier: its engine behind a time limit, a breaker, counters and a short memory of what it holds. What it answers late,
//! or not at all, is never waited for longer than its `timeout`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use buildnet_formats::{Digest, NativeError};
use buildnet_store::Store;
use futures_util::stream::StreamExt;
use parking_lot::Mutex;

use crate::breaker::Breaker;
use crate::config::{Engine, TierConfig, Write};
use crate::existence::Existence;
use crate::port::{ActionCache, BlobStore, EntryKey, Pieces, Source, TierError, Value};
use crate::queue::Queue;
use crate::reapi::Reapi;
use crate::redis::{self, Redis};
use crate::reports::Reports;
use crate::s3::S3;
use crate::via::Here;

/// A large blob may take its timeout and a second more for each so many bytes.
const BYTES_PER_S_MIN: u64 = 1 << 20;
/// Of many names at once, so many more for each second more.
const NAMES_PER_S_MIN: u64 = 200;

/// Counts since the start.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    pub(crate) entry_hits: AtomicU64,
    pub(crate) entry_misses: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) damaged: AtomicU64,
    pub(crate) read_bytes: AtomicU64,
    pub(crate) blobs_written: AtomicU64,
    pub(crate) entries_written: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// One engine and what is known of it.
pub(crate) struct Tier {
    pub(crate) config: TierConfig,
    pub(crate) counters: Counters,
    pub(crate) existence: Existence,
    /// Of a tier that is written back.
    pub(crate) queue: Option<Queue>,
    blobs: Arc<dyn BlobStore>,
    entries: Arc<dyn ActionCache>,
    breaker: Mutex<Breaker>,
    reports: Arc<Reports>,
}

/// One call that the breaker let out; given up, it teaches nothing.
struct Admitted<'a> {
    tier: &'a Tier,
    settled: bool,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.tier.breaker.lock().abandoned();
        }
    }
}

impl Tier {
    /// Must be called within the runtime that will use it.
    pub(crate) fn new(
        config: TierConfig,
        queue: Option<Queue>,
        reports: Arc<Reports>,
        here: &Arc<Here>,
    ) -> Result<Self, NativeError> {
        fn both<T: BlobStore + ActionCache + 'static>(engine: T) -> (Arc<dyn BlobStore>, Arc<dyn ActionCache>) {
            let engine = Arc::new(engine);
            (Arc::clone(&engine) as Arc<dyn BlobStore>, engine)
        }
        let (blobs, entries) = match &config.engine {
            Engine::S3 { .. } => both(S3::new(&config)?),
            Engine::Redis { .. } => both(Redis::new(&config)?),
            Engine::Reapi { .. } => both(Reapi::new(&config, Arc::clone(here))?),
        };
        Ok(Self {
            config,
            counters: Counters::default(),
            existence: Existence::default(),
            queue,
            blobs,
            entries,
            breaker: Mutex::default(),
            reports,
        })
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self.config.engine {
            Engine::S3 { .. } => "s3",
            Engine::Redis { .. } => "redis",
            Engine::Reapi { .. } => "reapi",
        }
    }

    /// Whether it may have tiers of its own, this server among them.
    pub(crate) fn is_server(&self) -> bool {
        matches!(self.config.engine, Engine::Reapi { .. })
    }

    pub(crate) fn writes(&self) -> bool {
        self.config.write != Write::Never
    }

    pub(crate) fn takes(&self, digest: &Digest) -> bool {
        let most = match self.config.engine {
            Engine::Redis { .. } => self.config.blob_size_bytes_max.min(redis::VALUE_BYTES_MAX),
            _ => self.config.blob_size_bytes_max,
        };
        // Nothing but the empty blob has no bytes, and that one is everywhere.
        (1..=most).contains(&digest.size_bytes())
    }

    pub(crate) fn is_open(&self) -> bool {
        self.breaker.lock().is_open()
    }

    pub(crate) fn report(&self, text: impl std::fmt::Display) {
        self.reports.push(format!("tier {}: {text}", self.config.name));
    }

    /// One call within the time limit, if the breaker lets it out.
    async fn call<T>(&self, limit: Duration, work: impl Future<Output = Result<T, TierError>>) -> Result<T, TierError> {
        if !self.breaker.lock().admit(Instant::now()) {
            return Err(TierError::Down("left alone for a while after it failed several times".to_owned()));
        }
        let mut admitted = Admitted { tier: self, settled: false };
        let done = match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_) => Err(TierError::Down(format!("no answer within {limit:?}"))),
        };
        admitted.settled = true;
        self.learn(done.as_ref().err());
        done
    }

    fn learn(&self, error: Option<&TierError>) {
        let mut breaker = self.breaker.lock();
        let was_open = breaker.is_open();
        match error {
            Some(TierError::Down(_)) => breaker.failed(Instant::now()),
            Some(TierError::Local(_)) => breaker.abandoned(),
            Some(TierError::Refused(_) | TierError::Damaged(_)) | None => breaker.succeeded(),
        }
        let is_open = breaker.is_open();
        drop(breaker);
        if let Some(error) = error
            && !matches!(error, TierError::Local(_))
        {
            count(&self.counters.errors, 1);
            if is_open && !was_open {
                self.report(format_args!("left alone after several failures, the last: {}", error.text()));
            }
        }
        if was_open && !is_open {
            self.report("answers again");
        }
    }

    pub(crate) async fn probe(&self) -> Result<(), TierError> {
        self.call(self.config.timeout, self.blobs.probe()).await
    }

    /// Those that it lacks, will not take, or is not asked about.
    pub(crate) async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, TierError> {
        let now = Instant::now();
        let (unsure, mut missing): (Vec<Digest>, Vec<Digest>) = digests
            .iter()
            .filter(|digest| !self.existence.holds(digest, now))
            .copied()
            .partition(|digest| self.takes(digest));
        if unsure.is_empty() {
            return Ok(missing);
        }
        let limit = self.config.timeout + Duration::from_secs(unsure.len() as u64 / NAMES_PER_S_MIN);
        let absent = self.call(limit, self.blobs.missing(&unsure)).await?;
        let lacks: std::collections::HashSet<&Digest> = absent.iter().collect();
        self.existence.saw(unsure.iter().filter(|digest| !lacks.contains(digest)).copied(), now);
        missing.extend(absent);
        Ok(missing)
    }

    /// The pieces of a blob, each within the time limit.
    pub(crate) async fn get(self: &Arc<Self>, digest: &Digest) -> Result<Option<Pieces>, TierError> {
        let found = self.call(self.config.timeout, self.blobs.get(digest)).await;
        let Some(pieces) = found? else {
            count(&self.counters.misses, 1);
            self.existence.forget(digest);
            return Ok(None);
        };
        let tier = Arc::clone(self);
        let timed = futures_util::stream::unfold((pieces, tier), |(mut pieces, tier)| async move {
            let piece = match tokio::time::timeout(tier.config.timeout, pieces.next()).await {
                Ok(piece) => piece?,
                Err(_) => Err(TierError::Down(format!("no more bytes within {:?}", tier.config.timeout))),
            };
            if let Err(error) = &piece {
                tier.learn(Some(error));
            }
            Some((piece, (pieces, tier)))
        });
        Ok(Some(timed.boxed()))
    }

    /// Keep a local blob there, whether or not it seems to be there.
    pub(crate) async fn put(&self, store: &Arc<Store>, digest: &Digest) -> Result<(), TierError> {
        let limit = self.config.timeout + Duration::from_secs(digest.size_bytes() / BYTES_PER_S_MIN);
        let source = Source::new(Arc::clone(store), *digest);
        self.call(limit, self.blobs.put(digest, source)).await?;
        count(&self.counters.blobs_written, 1);
        count(&self.counters.written_bytes, digest.size_bytes());
        self.existence.saw([*digest], Instant::now());
        Ok(())
    }

    pub(crate) async fn find_by_hash(&self, digest: &Digest) -> Result<Option<Digest>, TierError> {
        self.call(self.config.timeout, self.blobs.find_by_hash(digest)).await
    }

    pub(crate) async fn entry(&self, key: &EntryKey) -> Result<Option<Value>, TierError> {
        let found = self.call(self.config.timeout, self.entries.get(key)).await;
        match &found {
            Ok(Some(_)) => count(&self.counters.entry_hits, 1),
            Ok(None) => count(&self.counters.entry_misses, 1),
            Err(TierError::Damaged(text)) => {
                count(&self.counters.damaged, 1);
                self.report(text);
            }
            Err(_) => {}
        }
        found
    }

    pub(crate) async fn put_entry(&self, key: &EntryKey, value: Value) -> Result<(), TierError> {
        let size = value.bytes.len() as u64;
        let limit = self.config.timeout + Duration::from_secs(size / BYTES_PER_S_MIN);
        self.call(limit, self.entries.put(key, value)).await?;
        count(&self.counters.entries_written, 1);
        count(&self.counters.written_bytes, size);
        Ok(())
    }

    pub(crate) async fn remove_entry(&self, key: &EntryKey) -> Result<bool, TierError> {
        self.call(self.config.timeout, self.entries.remove(key)).await
    }
}
