//! The scrubber reads everything once more: blobs against their digests, entries against their sums, and files that no
//! record names. What is damaged is reported and absent from then on; nothing is repaired by guessing.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use buildnet_formats::{Digest, Function, Hasher, NativeError};

use crate::record::{HEADER_BYTES, Kind, u64_at};
use crate::{Store, unusable};

/// A file younger than this may be one whose record is about to be written.
const ORPHAN_AGE: Duration = Duration::from_secs(3600);

/// What a scrub saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Records read.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Blobs that are not what their digest says, and entries that are not what was written.
    pub damaged: Vec<String>,
    /// Files that no record named, removed.
    pub orphans: u64,
}

impl Store {
    /// Read every record, and every file that belongs to one.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn scrub(&self, mut progress: impl FnMut(&Scrubbed) -> bool) -> Result<Scrubbed, NativeError> {
        let mut seen = Scrubbed::default();
        let mut named = HashSet::new();
        for segment in self.log.all() {
            let rows: Vec<_> =
                self.index.read().iter().filter(|(_, p)| p.segment == segment.number).map(|(k, p)| (*k, p)).collect();
            for (key, place) in rows {
                let Some((header, bytes)) = segment.read(&key, place) else {
                    if self.index.read().get(&key) == Some(place) {
                        seen.damaged.push(format!("record {} at {}", segment.path.display(), place.offset));
                        self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                        self.counters.removals.fetch_add(1, Ordering::Release);
                        self.index.write().remove(&key);
                    }
                    continue;
                };
                seen.records += 1;
                seen.bytes += bytes.len() as u64;
                if place.is_large() {
                    named.insert(u64_at(&bytes[header.payload_at()..], 0));
                    seen.bytes += key.size_bytes();
                }
                if header.kind == Kind::Blob
                    && let Some(function) = Function::of_byte(header.function)
                {
                    let name = &bytes[HEADER_BYTES..header.payload_at()];
                    let digest = Digest::new(function, name, header.size_bytes);
                    if !self.is_sound(&digest) {
                        seen.damaged.push(digest.to_string());
                    }
                }
                if seen.records.is_multiple_of(1024) && !progress(&seen) {
                    return Ok(seen);
                }
            }
        }
        seen.orphans = self.remove_orphans(&named)?;
        progress(&seen);
        Ok(seen)
    }

    fn is_sound(&self, digest: &Digest) -> bool {
        let mut hasher = Hasher::new(digest.function());
        let read = self.copy_to(digest, &mut |chunk| {
            hasher.update(chunk);
            Ok(())
        });
        match read {
            Ok(()) if hasher.finish() == *digest => true,
            // Evicted meanwhile.
            Err(error) if error.code == "not_found" => true,
            Ok(()) => {
                // Every sum holds and the digest does not: it was written so. It goes as one that rotted.
                self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                self.forget(&crate::record::Key::of_blob(digest), digest.function() as u8, digest.hash());
                false
            }
            Err(_) => false,
        }
    }

    fn remove_orphans(&self, named: &HashSet<u64>) -> Result<u64, NativeError> {
        let mut removed = 0;
        let large = self.root.join("large");
        let at = |e: std::io::Error| unusable(&large, &e);
        for directory in fs::read_dir(&large).map_err(at)? {
            for entry in fs::read_dir(directory.map_err(at)?.path()).map_err(at)? {
                let entry = entry.map_err(at)?;
                let number = entry.file_name().to_str().and_then(|n| u64::from_str_radix(n, 16).ok());
                let modified = entry.metadata().and_then(|m| m.modified()).map_err(at)?;
                let old = SystemTime::now().duration_since(modified).is_ok_and(|age| age > ORPHAN_AGE);
                if old && number.is_none_or(|number| !named.contains(&number)) {
                    fs::remove_file(entry.path()).map_err(at)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}
