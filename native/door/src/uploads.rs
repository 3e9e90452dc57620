//! Uploads that broke off wait a while for their client to come back (google.bytestream.ByteStream, QueryWriteStatus).
//! Few, and not for long: what nobody resumes is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use buildnet_formats::WriteName;
use buildnet_store::BlobWriter;
use parking_lot::Mutex;

const WAITING_MAX: usize = 64;
const WAIT: Duration = Duration::from_secs(600);

/// A writer that a thread may still be writing to.
pub(crate) type Slot = Arc<Mutex<Option<BlobWriter>>>;

struct Waiting {
    slot: Slot,
    since: Instant,
}

/// Uploads by their names.
#[derive(Default)]
pub(crate) struct Uploads(Mutex<HashMap<String, Waiting>>);

fn key(name: &WriteName) -> String {
    format!("{}\0{}\0{}", name.instance, name.upload, name.digest)
}

impl Uploads {
    /// Keep an upload that broke off.
    pub(crate) fn park(&self, name: &WriteName, slot: Slot) {
        let mut waiting = self.0.lock();
        waiting.retain(|_, upload| upload.since.elapsed() < WAIT);
        if waiting.len() >= WAITING_MAX {
            let oldest = waiting.iter().min_by_key(|(_, upload)| upload.since).map(|(key, _)| key.clone());
            oldest.and_then(|key| waiting.remove(&key));
        }
        waiting.insert(key(name), Waiting { slot, since: Instant::now() });
    }

    /// Go on with an upload at `offset`, if that is where it stands.
    pub(crate) fn resume(&self, name: &WriteName, offset: u64) -> Option<BlobWriter> {
        let waiting = self.0.lock().remove(&key(name))?;
        let writer = waiting.slot.lock().take()?;
        if writer.offset() == offset {
            return Some(writer);
        }
        *waiting.slot.lock() = Some(writer);
        self.park(name, waiting.slot);
        None
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.0.lock().values().filter(|upload| upload.since.elapsed() < WAIT).count() as u64
    }

    /// How much of an upload is here.
    pub(crate) fn offset_of(&self, name: &WriteName) -> u64 {
        let slot = self.0.lock().get(&key(name)).map(|waiting| Arc::clone(&waiting.slot));
        slot.map_or(0, |slot| slot.lock().as_ref().map_or(0, BlobWriter::offset))
    }
}
