//! What waits to be written to a tier survives the death of the process, its blobs are kept from eviction, and it is bounded
//! in number and bytes: when it is full, writers wait a while and then are told. It decides neither when nor how to write.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use buildnet_formats::{FieldValue, NativeError};
use buildnet_store::Store;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::queue_file::{HEADER, Item, Record, read_all};

/// A file of dead records is rewritten once they are this many bytes and more than the living ones.
const DEAD_BYTES_MIN: u64 = 1 << 20;

/// Bounds of one queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) entries: usize,
    pub(crate) bytes: u64,
    /// How long a writer waits for room.
    pub(crate) wait: Duration,
}

/// One tier's queue and its file.
pub(crate) struct Queue {
    name: String,
    path: PathBuf,
    bounds: Bounds,
    /// Whether an acknowledged record must survive the loss of power.
    sync: bool,
    store: Arc<Store>,
    state: Mutex<State>,
    /// Something waits.
    pub(crate) pushed: Notify,
    room: Notify,
}

struct State {
    file: File,
    length: u64,
    waiting: BTreeMap<u64, Item>,
    /// Those whose turn has not come: a second write of the same waits with the first.
    idle: HashSet<Item>,
    bytes: u64,
    next: u64,
}

impl Queue {
    /// Open the queue of the tier `name` in `directory`, with what waited there when the last process ended. Also says how
    /// many bytes of the file were not records.
    ///
    /// # Errors
    /// `state_corrupt` when the file cannot be used.
    pub(crate) fn open(
        directory: &Path,
        name: &str,
        bounds: Bounds,
        store: &Arc<Store>,
    ) -> Result<(Self, u64), NativeError> {
        let path = directory.join(format!("{name}.queue"));
        let unusable = |e: io::Error| unusable(&path, &e);
        fs::create_dir_all(directory).map_err(unusable)?;
        if let Some(parent) = directory.parent() {
            sync_directory(parent).map_err(unusable)?;
        }
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut file) => file.read_to_end(&mut bytes).map(|_| ()).map_err(unusable)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unusable(error)),
        }
        let (records, read) = read_all(&bytes).unwrap_or_default();
        let strange = (bytes.len() - read) as u64;
        if strange > 0 && read < HEADER.len() {
            // Evidence; what it named is still in the store, and goes with the next entry that refers to it.
            fs::rename(&path, path.with_extension("queue.damaged")).map_err(unusable)?;
        }
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        for record in records {
            match record {
                Record::Waits(number, item) => {
                    next = next.max(number + 1);
                    waiting.insert(number, item);
                }
                Record::Done(number) => {
                    waiting.remove(&number);
                }
            }
        }
        let (file, length) = rewrite(&path, &waiting).map_err(unusable)?;
        let bytes = waiting.values().map(cost).sum();
        let idle = waiting.values().cloned().collect();
        let queue = Self {
            name: name.to_owned(),
            path: path.clone(),
            bounds,
            sync: store.waits_for_disk(),
            store: Arc::clone(store),
            state: Mutex::new(State { file, length, waiting, idle, bytes, next }),
            pushed: Notify::new(),
            room: Notify::new(),
        };
        for (number, item) in &queue.state.lock().waiting {
            queue.hold(*number, item)?;
        }
        Ok((queue, strange))
    }

    /// Remember that these are to be written, all or none; waits for room.
    ///
    /// # Errors
    /// `overloaded` when there was none in time; `storage_full`, `state_corrupt`.
    pub(crate) async fn push(&self, items: Vec<Item>) -> Result<(), NativeError> {
        let deadline = tokio::time::Instant::now() + self.bounds.wait;
        loop {
            // Registered before it looks, so that no room is missed.
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.try_push(&items)? {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(NativeError::new(
                    "overloaded",
                    format!(
                        "the queue of the tier {} is full ({} writes, {} bytes at most): the tier is down or slower than \
                         the writers; see it with /status, raise queue_entries_max or queue_size_max, or set write = \
                         \"never\"",
                        self.name, self.bounds.entries, self.bounds.bytes
                    ),
                )
                .with("limit", FieldValue::Int(self.bounds.entries as i64)));
            }
        }
    }

    fn try_push(&self, items: &[Item]) -> Result<bool, NativeError> {
        let mut state = self.state.lock();
        let mut fresh: Vec<&Item> = items.iter().filter(|item| !state.idle.contains(*item)).collect();
        let mut seen = HashSet::new();
        fresh.retain(|item| seen.insert(*item));
        if fresh.is_empty() {
            return Ok(true);
        }
        let more: u64 = fresh.iter().map(|item| cost(item)).sum();
        // One that is over the bound by itself may wait alone, or it could never go.
        let alone = state.waiting.is_empty();
        if !alone && (state.waiting.len() + fresh.len() > self.bounds.entries || state.bytes + more > self.bounds.bytes)
        {
            return Ok(false);
        }
        let first = state.next;
        let mut bytes = Vec::new();
        for (number, item) in (first..).zip(&fresh) {
            Record::Waits(number, (*item).clone()).append_to(&mut bytes);
        }
        let held = (first..).zip(&fresh).try_for_each(|(number, item)| self.hold(number, item));
        if let Err(error) = held.and_then(|()| self.append(&mut state, &bytes)) {
            for number in (first..).take(fresh.len()) {
                self.store.release(&self.hold_name(number));
            }
            return Err(error);
        }
        for (number, item) in (first..).zip(fresh) {
            state.waiting.insert(number, item.clone());
            state.idle.insert(item.clone());
            state.next = number + 1;
        }
        state.bytes += more;
        drop(state);
        self.pushed.notify_one();
        Ok(true)
    }

    /// The first `count_max` that wait, in order; their turn has come.
    pub(crate) fn head(&self, count_max: usize) -> Vec<(u64, Item)> {
        let mut state = self.state.lock();
        let head: Vec<(u64, Item)> = state.waiting.iter().take(count_max).map(|(n, item)| (*n, item.clone())).collect();
        for (_, item) in &head {
            state.idle.remove(item);
        }
        head
    }

    /// These need not be written any more.
    ///
    /// # Errors
    /// `storage_full`, `state_corrupt`: after a restart they are written once more, which alters nothing.
    pub(crate) fn done(&self, numbers: &[u64]) -> Result<(), NativeError> {
        let mut state = self.state.lock();
        for number in numbers {
            if let Some(item) = state.waiting.remove(number) {
                state.bytes -= cost(&item);
            }
            self.store.release(&self.hold_name(*number));
        }
        self.room.notify_waiters();
        let mut bytes = Vec::new();
        for number in numbers {
            Record::Done(*number).append_to(&mut bytes);
        }
        let living = 128 * state.waiting.len() as u64;
        if state.length + bytes.len() as u64 > living + DEAD_BYTES_MIN.max(living) {
            let (file, length) = rewrite(&self.path, &state.waiting).map_err(|e| unusable(&self.path, &e))?;
            (state.file, state.length) = (file, length);
            return Ok(());
        }
        self.append(&mut state, &bytes)
    }

    /// How many wait, and the bytes of their blobs.
    pub(crate) fn size(&self) -> (usize, u64) {
        let state = self.state.lock();
        (state.waiting.len(), state.bytes)
    }

    fn append(&self, state: &mut State, bytes: &[u8]) -> Result<(), NativeError> {
        let written =
            state.file.write_all(bytes).and_then(|()| if self.sync { state.file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            // Half a record would hide those that follow it.
            state.file.set_len(state.length).map_err(|e| unusable(&self.path, &e))?;
            return Err(unusable(&self.path, &error));
        }
        state.length += bytes.len() as u64;
        Ok(())
    }

    fn hold(&self, number: u64, item: &Item) -> Result<(), NativeError> {
        match item {
            Item::Blob(digest) => self.store.hold(&self.hold_name(number), &[*digest]),
            Item::Entry(key) => self.store.hold_entry(&self.hold_name(number), &key.local()?),
        }
    }

    fn hold_name(&self, number: u64) -> String {
        format!("tier {} {number}", self.name)
    }
}

fn cost(item: &Item) -> u64 {
    match item {
        Item::Blob(digest) => digest.size_bytes(),
        Item::Entry(_) => 0,
    }
}

/// Have the names in it on the disk.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// A new file of what waits, in place of the old one.
fn rewrite(path: &Path, waiting: &BTreeMap<u64, Item>) -> io::Result<(File, u64)> {
    let mut bytes = HEADER.to_vec();
    for (number, item) in waiting {
        Record::Waits(*number, item.clone()).append_to(&mut bytes);
    }
    let temporary = path.with_extension("queue.new");
    let mut file = File::options().write(true).create(true).truncate(true).open(&temporary)?;
    file.write_all(&bytes)?;
    // Synced whatever the durability: the rename must not outlive the bytes.
    file.sync_data()?;
    drop(file);
    fs::rename(&temporary, path)?;
    // And what is appended must not be to a file that only had the name until the power went.
    if let Some(directory) = path.parent() {
        sync_directory(directory)?;
    }
    Ok((File::options().append(true).open(path)?, bytes.len() as u64))
}

fn unusable(path: &Path, error: &io::Error) -> NativeError {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "storage_full",
        _ => "state_corrupt",
    };
    NativeError::new(code, format!("{}: {error}; make room, or name another state directory", path.display()))
        .with("path", FieldValue::Text(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildnet_formats::Digest;
    use buildnet_store::Options;

    struct Place {
        _directory: tempfile::TempDir,
        root: PathBuf,
        store: Arc<Store>,
    }

    fn place() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let store = Arc::new(Store::open(&root.join("cas"), Options::default()).unwrap());
        Place { _directory: directory, root, store }
    }

    fn open(place: &Place, entries: usize) -> Queue {
        Queue::open(
            &place.root,
            "t",
            Bounds { entries, bytes: 1 << 20, wait: Duration::from_millis(300) },
            &place.store,
        )
        .unwrap()
        .0
    }

    fn blob(n: u64) -> Item {
        Item::Blob(Digest::of(&n.to_le_bytes()))
    }

    #[tokio::test]
    async fn what_waits_is_there_after_a_reopening_and_held_and_what_is_done_is_not() {
        let place = place();
        let queue = open(&place, 100);
        queue.push((0..10).map(blob).collect()).await.unwrap();
        let done: Vec<u64> = queue.head(4).iter().map(|(n, _)| *n).collect();
        queue.done(&done).unwrap();
        drop(queue);
        let queue = open(&place, 100);
        let rest: Vec<Item> = queue.head(100).into_iter().map(|(_, item)| item).collect();
        assert_eq!(rest, (4..10).map(blob).collect::<Vec<_>>());
        let Item::Blob(held) = blob(5) else { unreachable!() };
        assert_eq!(place.store.holders(&held).len(), 1);
        queue.done(&(0..10).collect::<Vec<_>>()).unwrap();
        assert!(place.store.holders(&held).is_empty());
        assert_eq!(queue.size(), (0, 0));
    }

    #[tokio::test]
    async fn a_torn_tail_is_cut_and_a_file_that_is_none_is_set_apart() {
        let place = place();
        let queue = open(&place, 100);
        queue.push(vec![blob(1), blob(2)]).await.unwrap();
        drop(queue);
        let path = place.root.join("t.queue");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        let (queue, strange) =
            Queue::open(&place.root, "t", Bounds { entries: 9, bytes: 9, wait: Duration::ZERO }, &place.store).unwrap();
        assert!(strange > 0);
        assert_eq!(queue.head(9).len(), 1);
        drop(queue);
        fs::write(&path, b"what is this").unwrap();
        assert_eq!(open(&place, 9).size().0, 0);
        assert!(place.root.join("t.queue.damaged").exists());
    }

    #[tokio::test]
    async fn a_full_queue_makes_writers_wait_and_then_tells_them() {
        let place = place();
        let queue = Arc::new(open(&place, 2));
        queue.push(vec![blob(1), blob(2)]).await.unwrap();
        // The same again takes no room.
        queue.push(vec![blob(2)]).await.unwrap();
        let error = queue.push(vec![blob(3)]).await.unwrap_err();
        assert_eq!(error.code, "overloaded");
        let waiting = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.push(vec![blob(3)]).await }
        });
        tokio::task::yield_now().await;
        let first = queue.head(1)[0].0;
        queue.done(&[first]).unwrap();
        waiting.await.unwrap().unwrap();
        assert_eq!(queue.size().0, 2);
    }

    #[tokio::test]
    async fn its_file_stays_small_however_much_went_through() {
        let place = place();
        let queue = open(&place, 1000);
        for round in 0..60u64 {
            queue.push((0..500).map(|n| blob(round * 1000 + n)).collect()).await.unwrap();
            let numbers: Vec<u64> = queue.head(1000).iter().map(|(n, _)| *n).collect();
            queue.done(&numbers).unwrap();
        }
        assert!(fs::metadata(place.root.join("t.queue")).unwrap().len() <= DEAD_BYTES_MIN + (256 << 10));
    }
}
