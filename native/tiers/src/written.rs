//! Write-through and write-back: what was written here goes to the tiers, blobs before the entries that refer to them. A
//! through tier is waited for; a back tier's queue takes it, and a task of its own empties the queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use buildnet_formats::{Digest, FieldValue, NativeError};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::sync::watch;

use crate::inner::Inner;
use crate::port::{EntryKey, TierError};
use crate::queue::Queue;
use crate::queue_file::Item;
use crate::tier::Tier;

const PUTS_AT_ONCE: usize = 16;
/// Taken from a queue in one step.
const STEP_ITEMS: usize = 128;
const PAUSE_MIN_MS: u64 = 100;
const PAUSE_MAX_MS: u64 = 10_000;
/// Steps that an item may fail in while its tier answers others.
const ATTEMPTS_MAX: u32 = 20;

/// What became of one item of a queue.
enum Fate {
    Done,
    /// It will never go: the tier refuses it, or it is gone here.
    Dropped(String),
    Waits,
}

impl Inner {
    /// Blobs were written here, or were here already when a client sent them: one answer for each, in order.
    pub(crate) async fn written(self: &Arc<Self>, digests: Vec<Digest>) -> Vec<Result<(), NativeError>> {
        let mut answers: Vec<Result<(), NativeError>> = vec![Ok(()); digests.len()];
        for tier in self.tiers.iter().filter(|tier| tier.writes()) {
            let taken: Vec<Digest> = digests.iter().copied().filter(|digest| tier.takes(digest)).collect();
            if taken.is_empty() {
                continue;
            }
            match &tier.queue {
                Some(queue) => {
                    let now = std::time::Instant::now();
                    let fresh = taken.iter().filter(|digest| !tier.existence.holds(digest, now));
                    if let Err(error) = queue.push(fresh.map(|digest| Item::Blob(*digest)).collect()).await {
                        answers.iter_mut().for_each(|answer| *answer = Err(error.clone()));
                    }
                }
                None => {
                    let failed = self.put_blobs(tier, &taken).await;
                    for (answer, digest) in answers.iter_mut().zip(&digests) {
                        if let Some((_, error)) = failed.iter().find(|(blob, _)| blob == digest) {
                            *answer = Err(not_through(tier, error));
                        }
                    }
                }
            }
        }
        answers
    }

    /// An entry was written here.
    ///
    /// # Errors
    /// `node_down` when a through tier did not take it; `overloaded` when a back tier's queue is full.
    pub(crate) async fn entry_written(self: &Arc<Self>, key: EntryKey) -> Result<(), NativeError> {
        for tier in self.tiers.iter().filter(|tier| tier.writes()) {
            match &tier.queue {
                Some(queue) => queue.push(vec![Item::Entry(key.clone())]).await?,
                None => match self.put_entry(tier, &key).await {
                    Ok(Fate::Done | Fate::Waits) => {}
                    Ok(Fate::Dropped(text)) => self.drop_item(tier, &text),
                    Err(error) => return Err(not_through(tier, &error)),
                },
            }
        }
        Ok(())
    }

    /// Put what the tier lacks of these; returns those that failed.
    async fn put_blobs(&self, tier: &Tier, digests: &[Digest]) -> Vec<(Digest, TierError)> {
        let lacking = match tier.missing(digests).await {
            Ok(lacking) => lacking,
            Err(error) => return digests.iter().map(|digest| (*digest, error.clone())).collect(),
        };
        let put = stream::iter(lacking.into_iter().filter(|digest| tier.takes(digest)))
            .map(|digest| async move { tier.put(&self.store, &digest).await.map_err(|error| (digest, error)) })
            .buffer_unordered(PUTS_AT_ONCE);
        put.filter_map(|done| async move { done.err() }).collect().await
    }

    /// Put an entry after all that it refers to.
    async fn put_entry(self: &Arc<Self>, tier: &Tier, key: &EntryKey) -> Result<Fate, TierError> {
        let Some(value) = self.local_value(key)? else {
            return Ok(Fate::Dropped("an entry was gone here before its turn came".to_owned()));
        };
        let digests = match self.references_of(key, &value).await {
            Ok(Some(digests)) => digests,
            Ok(None) => return Ok(Fate::Dropped("an entry refers to blobs that are nowhere".to_owned())),
            Err(error) if error.code == "invalid_request" => return Ok(Fate::Dropped(error.message)),
            Err(error) => return Err(TierError::Local(error)),
        };
        let taken: Vec<Digest> = digests.into_iter().filter(|digest| tier.takes(digest)).collect();
        let mut failed = self.put_blobs(tier, &taken).await;
        if let Some((digest, _)) = failed.iter().find(|(_, error)| is_gone(error)) {
            return Ok(Fate::Dropped(format!("an entry refers to {digest}, which is not here to be put")));
        }
        if let Some((_, error)) = failed.pop() {
            return Err(error);
        }
        match tier.put_entry(key, value).await {
            Ok(()) => Ok(Fate::Done),
            Err(TierError::Refused(text)) => Ok(Fate::Dropped(format!("it refuses an entry: {text}"))),
            Err(error) => Err(error),
        }
    }

    fn drop_item(&self, tier: &Tier, text: &str) {
        tier.counters.dropped.fetch_add(1, Ordering::Relaxed);
        tier.report(text);
    }

    /// Empty the tier's queue for as long as the server runs.
    pub(crate) async fn drain(self: Arc<Self>, tier: Arc<Tier>, mut stop: watch::Receiver<bool>) {
        let Some(queue) = &tier.queue else { return };
        let mut random = fastrand::Rng::new();
        let (mut failures, mut attempts) = (0u32, 0u32);
        loop {
            let head = queue.head(STEP_ITEMS);
            let pause = if head.is_empty() {
                None
            } else {
                let waits = tokio::select! {
                    waits = self.step(&tier, queue, &head, attempts >= ATTEMPTS_MAX) => waits,
                    _ = stop.wait_for(|stopped| *stopped) => return,
                };
                if !waits {
                    (failures, attempts) = (0, 0);
                    continue;
                }
                failures += 1;
                // Only what fails while its tier answers others counts against it.
                attempts = if tier.is_open() { 0 } else { attempts + 1 };
                let most = PAUSE_MIN_MS.saturating_mul(1 << failures.min(12)).min(PAUSE_MAX_MS);
                Some(Duration::from_millis(random.u64(most / 2..=most)))
            };
            let wake = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => queue.pushed.notified().await,
                }
            };
            tokio::select! {
                () = wake => {}
                _ = stop.wait_for(|stopped| *stopped) => return,
            }
        }
    }

    /// Write one step of a queue; returns whether some of it must be tried again.
    async fn step(self: &Arc<Self>, tier: &Arc<Tier>, queue: &Queue, head: &[(u64, Item)], give_up: bool) -> bool {
        let blobs: Vec<Digest> = head.iter().filter_map(|(_, item)| blob_of(item)).collect();
        let failed = self.put_blobs(tier, &blobs).await;
        let entries = head.iter().filter_map(|(number, item)| entry_of(item).map(|key| (*number, key)));
        // The newest value is read for each, so of equal names any order does.
        let entries = join_all(entries.map(|(number, key)| async move {
            let fate = match self.put_entry(tier, key).await {
                Ok(fate) => fate,
                Err(error) => fate_of(&error, give_up),
            };
            (number, fate)
        }))
        .await;
        let blobs = head.iter().filter_map(|(number, item)| {
            let digest = blob_of(item)?;
            let error = failed.iter().find(|(blob, _)| *blob == digest).map(|(_, error)| error);
            Some((*number, error.map_or(Fate::Done, |error| fate_of(error, give_up))))
        });
        let mut done = Vec::with_capacity(head.len());
        for (number, fate) in blobs.chain(entries) {
            match fate {
                Fate::Done => done.push(number),
                Fate::Waits => {}
                Fate::Dropped(text) => {
                    self.drop_item(tier, &text);
                    done.push(number);
                }
            }
        }
        let waits = done.len() < head.len();
        if !done.is_empty()
            && let Err(error) = queue.done(&done)
        {
            tier.report(format_args!("its queue cannot be written: {}", error.message));
        }
        waits
    }
}

fn blob_of(item: &Item) -> Option<Digest> {
    match item {
        Item::Blob(digest) => Some(*digest),
        Item::Entry(_) => None,
    }
}

fn entry_of(item: &Item) -> Option<&EntryKey> {
    match item {
        Item::Blob(_) => None,
        Item::Entry(key) => Some(key),
    }
}

/// Whether the blob is not here, or not as it was.
fn is_gone(error: &TierError) -> bool {
    matches!(error, TierError::Local(error) if matches!(error.code, "not_found" | "digest_mismatch"))
}

fn fate_of(error: &TierError, give_up: bool) -> Fate {
    match error {
        TierError::Refused(text) => Fate::Dropped(format!("it refuses what was written: {text}")),
        error if is_gone(error) => Fate::Dropped(format!("what was to be written is gone here: {}", error.text())),
        other if give_up => Fate::Dropped(format!("given up after {ATTEMPTS_MAX} attempts: {}", other.text())),
        _ => Fate::Waits,
    }
}

fn not_through(tier: &Tier, error: &TierError) -> NativeError {
    if let TierError::Local(error) = error {
        return error.clone();
    }
    NativeError::new(
        "node_down",
        format!(
            "it is kept here, but the tier {} did not take it: {}; send it again, or set write = \"back\" for that tier \
             to be acknowledged before it has it",
            tier.config.name,
            error.text()
        ),
    )
    .with("url", FieldValue::Text(tier.config.name.clone()))
}
