//! Small blobs that come together are written together: the kernel asks for much less a byte of one large write than of many
//! small ones. Each was compared with its digest by its own call, and none is acknowledged before it is written.

use std::sync::Arc;

use buildnet_formats::NativeError;
use buildnet_store::{Checked, Store};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tonic::Status;

use crate::budget::Line;
use crate::bytestream::on_disk;
use crate::status::status_of;

/// What is written at once; more gains little, and others wait for the thread that writes.
const BATCH_BYTES: u64 = 128 << 10;

struct Waiting {
    number: u64,
    blob: Checked,
    done: oneshot::Sender<Result<(), NativeError>>,
}

/// What waits, oldest first.
#[derive(Default)]
struct Queue {
    next: u64,
    waiting: Vec<Waiting>,
}

/// Blobs that wait to be written, by whichever of their calls comes first.
#[derive(Default)]
pub(crate) struct Writes(Mutex<Queue>);

/// The place of a call that may be given up: what nobody waits for is not kept in memory.
struct Place<'a> {
    writes: &'a Writes,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = self.writes.0.lock();
        if queue.waiting.first().is_some_and(|first| first.number <= self.number) {
            queue.waiting.retain(|waiting| waiting.number != self.number);
        }
    }
}

impl Writes {
    /// Write a blob, with those of other calls where `line` answers several.
    pub(crate) async fn keep(&self, store: &Arc<Store>, blob: Checked, line: &Line) -> Result<(), Status> {
        if !line.answers_many() {
            let (here, cost) = (Arc::clone(store), cost(store));
            return on_disk(cost, move || here.put_checked(&[blob])).await;
        }
        let (place, done) = self.wait(blob);
        // All that can run now comes first, and leaves what it has here.
        tokio::task::yield_now().await;
        while let Some(batch) = self.batch_upto(place.number) {
            let (here, cost) = (Arc::clone(store), cost(store));
            // A call that is given up while a thread writes must not keep the others from their answers.
            on_disk(cost, move || {
                write(&here, batch);
                Ok(())
            })
            .await?;
        }
        match done.await {
            Ok(done) => done.map_err(|e| status_of(&e)),
            Err(_) => Err(Status::unavailable("the server is stopping")),
        }
    }

    fn wait(&self, blob: Checked) -> (Place<'_>, oneshot::Receiver<Result<(), NativeError>>) {
        let (done, answer) = oneshot::channel();
        let mut queue = self.0.lock();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push(Waiting { number, blob, done });
        (Place { writes: self, number }, answer)
    }

    /// The oldest, as long as blob `number` or one before it waits.
    fn batch_upto(&self, number: u64) -> Option<Vec<Waiting>> {
        let mut queue = self.0.lock();
        if queue.waiting.first()?.number > number {
            return None;
        }
        let mut bytes = 0;
        let count = queue.waiting.iter().take_while(|waiting| {
            let fits = bytes < BATCH_BYTES;
            bytes += waiting.blob.size_bytes();
            fits
        });
        let count = count.count();
        Some(queue.waiting.drain(..count).collect())
    }
}

/// What the network's threads may do themselves, and what waits for the disk.
fn cost(store: &Store) -> usize {
    if store.waits_for_disk() { usize::MAX } else { 0 }
}

fn write(store: &Arc<Store>, batch: Vec<Waiting>) {
    let (blobs, waiters): (Vec<Checked>, Vec<_>) =
        batch.into_iter().map(|waiting| (waiting.blob, waiting.done)).unzip();
    let done = store.put_checked(&blobs);
    for waiter in waiters {
        // A call that was given up does not wait for an answer.
        let _ = waiter.send(done.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildnet_formats::Digest;
    use buildnet_store::Options;
    use bytes::Bytes;

    fn blob(size: usize, salt: u8) -> Checked {
        let data = Bytes::from(vec![salt; size]);
        Checked::new(Digest::of(&data), data).unwrap()
    }

    #[test]
    fn a_batch_is_the_oldest_and_no_call_writes_for_those_after_it_alone() {
        let writes = Writes::default();
        let places: Vec<_> = (0..5).map(|salt| writes.wait(blob(60 << 10, salt))).collect();
        let numbers = |batch: Vec<Waiting>| batch.iter().map(|waiting| waiting.number).collect::<Vec<_>>();
        assert_eq!(writes.batch_upto(1).map(numbers), Some(vec![0, 1, 2]));
        assert!(writes.batch_upto(2).is_none());
        assert_eq!(writes.batch_upto(4).map(numbers), Some(vec![3, 4]));
        assert!(writes.batch_upto(4).is_none());
        drop(places);
    }

    #[test]
    fn what_nobody_waits_for_is_not_kept() {
        let writes = Writes::default();
        let first = writes.wait(blob(10, 1));
        let second = writes.wait(blob(10, 2));
        drop(first);
        assert_eq!(writes.0.lock().waiting.len(), 1);
        drop(second);
        assert!(writes.0.lock().waiting.is_empty());
    }

    #[test]
    fn all_that_were_written_together_are_told_and_there() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), Options::default()).unwrap());
        let writes = Writes::default();
        let (place, mut one) = writes.wait(blob(10, 1));
        let (_other, mut two) = writes.wait(blob(20, 2));
        write(&store, writes.batch_upto(place.number).unwrap());
        assert!(one.try_recv().unwrap().is_ok() && two.try_recv().unwrap().is_ok());
        assert!(store.contains(&Digest::of(&[1; 10])) && store.contains(&Digest::of(&[2; 20])));
        assert_eq!(Checked::new(Digest::of(b"a"), Bytes::from_static(b"b")).unwrap_err().code, "digest_mismatch");
    }
}
