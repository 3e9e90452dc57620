//! Read-through: what is not here comes from the first tier that has it, is hashed while it is written here, and is served
//! only then. Bytes that are something else are counted, reported and never kept; the next tier is asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use buildnet_formats::{Digest, NativeError};
use buildnet_store::BlobWriter;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::inner::Inner;
use crate::port::{Pieces, TierError, blocking, collect};
use crate::tier::{Tier, count};

/// Blobs on their way at once, all readers together.
const FETCHES_AT_ONCE: usize = 32;
/// Blobs up to this are taken whole and written in one step.
const WHOLE_BYTES: u64 = 1 << 20;

/// A fetch that several readers wait for.
pub(crate) type Flight = Shared<BoxFuture<'static, Result<bool, NativeError>>>;

/// Ends a flight however its task ends.
struct Landing {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.inner.flights.lock().remove(&self.digest);
    }
}

impl Inner {
    /// Make sure that a blob is here; false when no tier that answers has it. Readers of one blob share one fetch, which
    /// goes on when they leave.
    ///
    /// # Errors
    /// Those of the local store: `storage_full`, `too_large`.
    pub(crate) async fn ensure(self: &Arc<Self>, digest: Digest) -> Result<bool, NativeError> {
        if self.store.contains(&digest) {
            return Ok(true);
        }
        if self.here.is_passed_on() {
            // Whoever waits for another server must not be waited for by it. It bounds how many it asks for at once.
            return self.fetch(&digest).await;
        }
        let flight = {
            let mut flights = self.flights.lock();
            match flights.get(&digest) {
                Some(flight) => flight.clone(),
                None => {
                    let landing = Landing { inner: Arc::clone(self), digest };
                    let task = self.runtime.spawn(async move {
                        match landing.inner.fetches.acquire().await {
                            Ok(_permit) => landing.inner.fetch(&landing.digest).await,
                            Err(_) => Ok(false),
                        }
                    });
                    let stopping = |_| Err(NativeError::new("cancelled", "the server is stopping"));
                    let flight: Flight = task.map(move |done| done.unwrap_or_else(stopping)).boxed().shared();
                    flights.insert(digest, flight.clone());
                    flight
                }
            }
        };
        flight.await
    }

    /// Make sure that these are here; returns those that are nowhere.
    ///
    /// # Errors
    /// As [`Inner::ensure`].
    pub(crate) async fn pull(self: &Arc<Self>, digests: &[Digest]) -> Result<Vec<Digest>, NativeError> {
        let wanted = self.store.find_missing(digests)?;
        stream::iter(wanted)
            .map(|digest| async move { Ok::<_, NativeError>((digest, self.ensure(digest).await?)) })
            .buffered(FETCHES_AT_ONCE)
            .try_filter_map(|(digest, here)| async move { Ok((!here).then_some(digest)) })
            .try_collect()
            .await
    }

    async fn fetch(self: &Arc<Self>, digest: &Digest) -> Result<bool, NativeError> {
        // Another fetch may have ended between the look-up and this.
        if self.store.contains(digest) {
            return Ok(true);
        }
        let mut damaged = Vec::new();
        let mut passed = Vec::new();
        for tier in self.readable().filter(|tier| tier.takes(digest)) {
            match self.fetch_from(tier, digest).await {
                Ok(true) => {
                    self.spread(digest, damaged, passed);
                    return Ok(true);
                }
                Ok(false) => passed.push(Arc::clone(tier)),
                Err(TierError::Local(error)) => return Err(error),
                Err(TierError::Damaged(text)) => {
                    count(&tier.counters.damaged, 1);
                    tier.existence.forget(digest);
                    tier.report(format_args!("what it holds as {digest} is something else: {text}"));
                    damaged.push(Arc::clone(tier));
                }
                // Counted where it happened; the next one may have it.
                Err(TierError::Down(_) | TierError::Refused(_)) => {}
            }
        }
        Ok(false)
    }

    async fn fetch_from(self: &Arc<Self>, tier: &Arc<Tier>, digest: &Digest) -> Result<bool, TierError> {
        let Some(pieces) = tier.get(digest).await? else { return Ok(false) };
        let writer = self.store.writer(*digest)?;
        let done = if digest.size_bytes() <= WHOLE_BYTES {
            let data = collect(pieces, digest.size_bytes()).await?;
            write(writer, data, true).await.map(|_| ())
        } else {
            stream_into(writer, pieces).await
        };
        done.map_err(|error| match error {
            // The local store only compared: the bytes came from the tier.
            TierError::Local(error) if error.code == "digest_mismatch" => TierError::Damaged(error.message),
            other => other,
        })?;
        count(&tier.counters.hits, 1);
        count(&tier.counters.read_bytes, digest.size_bytes());
        tier.existence.saw([*digest], std::time::Instant::now());
        Ok(true)
    }

    /// What one tier had is given to those before it that lacked it, so that a hot tier becomes hot, and to those that had
    /// something else in its place. Nobody waits for it, and when much of it is under way already it is left.
    fn spread(self: &Arc<Self>, digest: &Digest, damaged: Vec<Arc<Tier>>, passed: Vec<Arc<Tier>>) {
        for tier in damaged.into_iter().chain(passed).filter(|tier| tier.writes()) {
            let Ok(permit) = Arc::clone(&self.spreads).try_acquire_owned() else { return };
            let (inner, digest) = (Arc::clone(self), *digest);
            self.runtime.spawn(async move {
                let _permit = permit;
                if let Err(error) = inner.put(&tier, &digest).await {
                    tier.counters.dropped.fetch_add(1, Ordering::Relaxed);
                    tier.report(format_args!("{digest} was not copied to it: {}", error.text()));
                }
            });
        }
    }
}

/// Large blobs pass through a piece at a time, hashed and written by a thread.
async fn stream_into(writer: BlobWriter, mut pieces: Pieces) -> Result<(), TierError> {
    let mut writer = Some(writer);
    while let Some(piece) = pieces.try_next().await? {
        let Some(now) = writer.take() else { break };
        writer = write(now, piece, false).await?;
    }
    match writer {
        Some(writer) => write(writer, Bytes::new(), true).await.map(|_| ()),
        None => Ok(()),
    }
}

async fn write(mut writer: BlobWriter, data: Bytes, last: bool) -> Result<Option<BlobWriter>, TierError> {
    blocking(move || {
        writer.write(&data)?;
        if last {
            writer.commit()?;
            return Ok(None);
        }
        Ok(Some(writer))
    })
    .await
}
