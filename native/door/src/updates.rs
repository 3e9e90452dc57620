//! Values that clients write under names of their own: the ledger has them before the cache does, many with one entry.
//! Nothing is visible that is not audited (docs/design/ledger.md).

use std::sync::Arc;

use buildnet_formats::{Digest, Function, Hasher, NativeError};
use buildnet_store::{Draft, EntryName, Origin, Store};
use buildnet_tiers::{EntryKey, Keeper, Tiers, Value};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::bytestream::on_disk;
use crate::hub::{ClientResult, Hub};
use crate::status::status_of;

/// Values that wait for the ledger; their writers wait beyond that.
const WAITING_MAX: usize = 1024;
/// Values in one batch.
const BATCH_MAX: usize = 512;
/// Longer names are told by their hash.
const NAME_BYTES_TOLD: usize = 512;

/// A value that a client wants kept.
pub(crate) struct Update {
    key: EntryKey,
    draft: Draft,
    /// What the ledger says of it: what it is under, and the SHA-256 of its bytes.
    row: String,
    /// For the history, where there is more to say of it.
    pub(crate) client: Option<ClientResult>,
}

impl Update {
    /// The result of an action.
    pub(crate) fn of_action(namespace: &str, action: &Digest, value: Bytes) -> Result<Self, NativeError> {
        let row = format!("{} {action} {}", told(namespace), Digest::of(&value).hex());
        let key = EntryKey::Action { namespace: namespace.to_owned(), action: *action, size_known: true };
        Ok(Self { key, draft: Draft::action(namespace, action, value)?, row, client: None })
    }

    /// A value under a name.
    pub(crate) fn of_value(key: EntryKey, value: Bytes) -> Result<Self, NativeError> {
        let name = key.local()?;
        Ok(Self { row: row_of(&name, &Digest::of(&value)), key, draft: Draft::path(name, value), client: None })
    }

    /// A blob that is here, by its SHA-256, as the value under a name.
    pub(crate) fn of_blob(key: EntryKey, digest: &Digest) -> Result<Self, NativeError> {
        let name = key.local()?;
        Ok(Self { row: row_of(&name, digest), key, draft: Draft::path_blob(name, digest), client: None })
    }

    /// What a tier holds under a name.
    fn of_tier(key: EntryKey, value: Value) -> Result<Self, NativeError> {
        match key {
            EntryKey::Path { .. } if value.as_blob => Self::of_blob(key, &value.blob()?),
            EntryKey::Action { namespace, action, size_known: true } => {
                Self::of_action(&namespace, &action, value.bytes)
            }
            _ => Self::of_value(key, value.bytes),
        }
    }
}

fn row_of(name: &EntryName, value: &Digest) -> String {
    let (namespace, path) = name.words();
    format!("{} {} {}", told(&namespace), told(&path), value.hex())
}

/// A name as the ledger tells it: short, and without what would tear a row apart.
fn told(name: &str) -> String {
    if name.len() <= NAME_BYTES_TOLD && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == ':') {
        return name.to_owned();
    }
    let mut hasher = Hasher::new(Function::Sha256);
    hasher.update(name.as_bytes());
    format!("sha256:{}", hasher.finish().hex())
}

struct Waiting {
    update: Update,
    done: oneshot::Sender<Result<(), Status>>,
}

/// The way of every such value into the store.
pub(crate) struct Updates {
    tiers: Option<Arc<Tiers>>,
    queue: mpsc::Sender<Waiting>,
    /// Taken by the one writer.
    waiting: Mutex<Option<mpsc::Receiver<Waiting>>>,
}

impl Updates {
    pub(crate) fn new(tiers: Option<Arc<Tiers>>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        Self { tiers, queue, waiting: Mutex::new(Some(waiting)) }
    }

    /// Write a value; it is in the ledger, in the store and where the tiers promise it to be when this returns.
    pub(crate) async fn keep(&self, update: Update) -> Result<(), Status> {
        let behind = self.tiers.as_ref().map(|tiers| (tiers, update.key.clone()));
        self.written(update).await?;
        match behind {
            None => Ok(()),
            Some((tiers, key)) => tiers.entry_written(key).await.map_err(|e| status_of(&e)),
        }
    }

    async fn written(&self, update: Update) -> Result<(), Status> {
        let stopping = || Status::unavailable("the server is stopping");
        let (done, answer) = oneshot::channel();
        self.queue.send(Waiting { update, done }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// What keeps what comes from the tiers: the ledger has it first, as it has a client's.
    pub(crate) fn keeper(self: &Arc<Self>) -> Keeper {
        // The tiers are held from here.
        let updates = Arc::downgrade(self);
        Box::new(move |key, value| {
            let updates = updates.clone();
            Box::pin(async move {
                let Some(updates) = updates.upgrade() else {
                    return Err(NativeError::new("cancelled", "the server is stopping"));
                };
                let done = updates.written(Update::of_tier(key, value)?).await;
                done.map_err(|status| NativeError::new("overloaded", status.message()))
            })
        })
    }

    /// The writer: the ledger is told of one batch at a time, so that what comes meanwhile is one batch too, and while the
    /// store takes the batch before. The order in the ledger is the order in the store.
    pub(crate) fn writer(&self, hub: &Arc<Hub>, store: &Arc<Store>) -> impl Future<Output = ()> + Send + 'static {
        let (hub, store) = (Arc::clone(hub), Arc::clone(store));
        let waiting = self.waiting.lock().take();
        async move {
            let Some(mut waiting) = waiting else { return };
            let (told, mut entered) = mpsc::channel::<Entered>(1);
            let tell = async move {
                let mut batch = Vec::with_capacity(BATCH_MAX);
                while waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
                    let Some(batch) = enter(&hub, std::mem::take(&mut batch)).await else { continue };
                    if told.send(batch).await.is_err() {
                        return;
                    }
                }
            };
            let keep = async {
                while let Some(batch) = entered.recv().await {
                    batch.keep(&store).await;
                }
            };
            tokio::join!(tell, keep);
        }
    }
}

/// A batch that the ledger holds.
struct Entered {
    drafts: Vec<(Draft, Origin)>,
    writers: Vec<oneshot::Sender<Result<(), Status>>>,
}

impl Entered {
    async fn keep(self, store: &Arc<Store>) {
        let Self { drafts, writers } = self;
        let cost = if store.waits_for_disk() { usize::MAX } else { 0 };
        let store = Arc::clone(store);
        answer(writers, &on_disk(cost, move || store.put_drafts(drafts)).await);
    }
}

/// Tell the ledger of a batch; none when it refused, and the writers know.
async fn enter(hub: &Arc<Hub>, batch: Vec<Waiting>) -> Option<Entered> {
    let (mut drafts, mut rows, mut writers) = (Vec::new(), Vec::new(), Vec::with_capacity(batch.len()));
    let mut actions = Vec::new();
    for Waiting { update: Update { draft, row, client, .. }, done } in batch {
        actions.extend(client.map(|client| (rows.len(), client)));
        drafts.push(draft);
        rows.push(row);
        writers.push(done);
    }
    let refusal = match hub.tell_results(rows, actions).await {
        Ok(indices) if indices.len() == drafts.len() => {
            let drafts = drafts.into_iter().zip(indices).map(|(draft, index)| (draft, Origin::Client(Some(index))));
            return Some(Entered { drafts: drafts.collect(), writers });
        }
        Ok(_) => status_of(&NativeError::internal("the ledger answered for another batch")),
        Err(status) => status,
    };
    answer(writers, &Err(refusal));
    None
}

fn answer(writers: Vec<oneshot::Sender<Result<(), Status>>>, told: &Result<(), Status>) {
    for writer in writers {
        // A writer that is gone does not wait for an answer.
        let _ = writer.send(told.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_three_words_whatever_the_name() {
        let action = Digest::of(b"action");
        for namespace in ["", "a/b", "a b", "a\nb", "sha256:x", &"x".repeat(600)] {
            let update = Update::of_action(namespace, &action, Bytes::from_static(b"v")).unwrap();
            assert_eq!(update.row.split(' ').count(), 3, "{:?}", update.row);
            assert!(update.row.ends_with(&Digest::of(b"v").hex()));
        }
        assert_ne!(told("a b"), told("a\nb"));
    }
}
