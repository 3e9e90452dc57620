//! Write-through and write-back: what was written here goes to the tiers, blobs before the entries that refer to them. A
//! through tier is waited for; a back tier's queue takes it, and a task of its own empties the queue.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use buildnet_formats::{Digest, FieldValue, NativeError};
use futures_util::stream::{self, StreamExt};
use tokio::sync::watch;

use crate::inner::Inner;
use crate::port::{EntryKey, TierError};
use crate::queue::Queue;
use crate::queue_file::Item;
use crate::tier::Tier;

const PUTS_AT_ONCE: usize = 16;
const ENTRIES_AT_ONCE: usize = 8;
/// What one blob takes of the memory for puts at most: a large one goes up in parts.
const PUT_MIB_MAX: u32 = 24;
/// Taken from a queue in one step.
const STEP_ITEMS: usize = 128;
const PAUSE_MIN_MS: u64 = 100;
const PAUSE_MAX_MS: u64 = 10_000;
/// Steps in which an item may fail while others pass.
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

    /// An entry was removed here; whether a tier that is ours to write had it.
    ///
    /// # Errors
    /// `node_down` when such a tier may have it still; the others were asked all the same.
    pub(crate) async fn entry_removed(self: &Arc<Self>, key: &EntryKey) -> Result<bool, NativeError> {
        let mut done = Ok(false);
        for tier in self.tiers.iter().filter(|tier| tier.writes()) {
            match tier.remove_entry(key).await {
                Ok(known) => done = done.map(|before| before || known),
                Err(error) => done = Err(not_removed(tier, &error)),
            }
        }
        done
    }

    /// Put what the tier lacks of these; returns those that failed.
    async fn put_blobs(&self, tier: &Tier, digests: &[Digest]) -> Vec<(Digest, TierError)> {
        match tier.missing(digests).await {
            Ok(lacking) => self.put_all(tier, lacking).await,
            Err(error) => digests.iter().map(|digest| (*digest, error.clone())).collect(),
        }
    }

    async fn put_all(&self, tier: &Tier, lacking: Vec<Digest>) -> Vec<(Digest, TierError)> {
        let put = stream::iter(lacking.into_iter().filter(|digest| tier.takes(digest)))
            .map(|digest| async move { self.put(tier, &digest).await.map_err(|error| (digest, error)) })
            .buffer_unordered(PUTS_AT_ONCE);
        put.filter_map(|done| async move { done.err() }).collect().await
    }

    /// Put one blob; all that are under way at once fit the memory set aside for them.
    pub(crate) async fn put(&self, tier: &Tier, digest: &Digest) -> Result<(), TierError> {
        let mib = u32::try_from(digest.size_bytes() >> 20).unwrap_or(PUT_MIB_MAX).min(PUT_MIB_MAX);
        let Ok(_room) = self.puts.acquire_many(1 + mib).await else {
            return Err(TierError::Down("the server is stopping".to_owned()));
        };
        tier.put(&self.store, digest).await
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
        let lacking = tier.missing(&taken).await?;
        // A client does not send what another tier has.
        self.pull(&lacking).await?;
        let mut failed = self.put_all(tier, lacking).await;
        if let Some((digest, _)) = failed.iter().find(|(_, error)| is_gone(error)) {
            return Ok(Fate::Dropped(format!("an entry refers to {digest}, which is not here to be put")));
        }
        if let Some((_, error)) = failed.pop() {
            return Err(error);
        }
        match tier.put_entry(key, value).await {
            // Who removed it meanwhile may have asked the tier before it had it.
            Ok(()) if self.local_value(key)?.is_none() => tier.remove_entry(key).await.map(|_| Fate::Done),
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
        let mut failures = 0u32;
        let mut attempts: HashMap<u64, u32> = HashMap::new();
        loop {
            let head = queue.head(STEP_ITEMS);
            let pause = if head.is_empty() {
                None
            } else {
                let waits = tokio::select! {
                    waits = self.step(&tier, queue, &head, &attempts) => waits,
                    _ = stop.wait_for(|stopped| *stopped) => return,
                };
                if waits.is_empty() {
                    failures = 0;
                    attempts.clear();
                    continue;
                }
                // Some went, so the tier answers: what did not go need not wait long.
                failures = if waits.len() < head.len() { 1 } else { failures + 1 };
                attempts.retain(|number, _| waits.contains(number));
                if waits.len() < head.len() {
                    // Only what fails beside others that pass is at fault itself.
                    waits.iter().for_each(|number| *attempts.entry(*number).or_default() += 1);
                }
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

    /// Write one step of a queue; returns what of it must be tried again.
    async fn step(
        self: &Arc<Self>,
        tier: &Arc<Tier>,
        queue: &Queue,
        head: &[(u64, Item)],
        attempts: &HashMap<u64, u32>,
    ) -> HashSet<u64> {
        let give_up = |number: &u64| attempts.get(number).is_some_and(|failed| *failed >= ATTEMPTS_MAX);
        let blobs: Vec<Digest> = head.iter().filter_map(|(_, item)| blob_of(item)).collect();
        let failed: HashMap<Digest, TierError> = self.put_blobs(tier, &blobs).await.into_iter().collect();
        let mut keys = Vec::new();
        for (number, item) in head {
            if let Item::Entry(key) = item {
                keys.push((*number, key.clone(), give_up(number)));
            }
        }
        // The newest value is read for each, so of equal names any order does.
        let entries: Vec<(u64, Fate)> = stream::iter(keys)
            .map(|(number, key, give_up)| async move {
                let fate = match self.put_entry(tier, &key).await {
                    Ok(fate) => fate,
                    Err(error) => fate_of(&error, give_up),
                };
                (number, fate)
            })
            .buffer_unordered(ENTRIES_AT_ONCE)
            .collect()
            .await;
        let blobs = head.iter().filter_map(|(number, item)| {
            let error = failed.get(&blob_of(item)?);
            Some((*number, error.map_or(Fate::Done, |error| fate_of(error, give_up(number)))))
        });
        let (mut done, mut waits) = (Vec::with_capacity(head.len()), HashSet::new());
        for (number, fate) in blobs.chain(entries) {
            match fate {
                Fate::Done => done.push(number),
                Fate::Waits => {
                    waits.insert(number);
                }
                Fate::Dropped(text) => {
                    self.drop_item(tier, &text);
                    done.push(number);
                }
            }
        }
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

fn not_removed(tier: &Tier, error: &TierError) -> NativeError {
    let text = format!(
        "it is removed here, but the tier {} may have it still, and the next read would bring it back: {}; send it again",
        tier.config.name,
        error.text()
    );
    NativeError::new("node_down", text).with("url", FieldValue::Text(tier.config.name.clone()))
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
