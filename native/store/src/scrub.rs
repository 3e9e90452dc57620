//! The scrubber reads everything once more: blobs against their digests, entries against their sums, and files that no
//! record names. What is damaged is reported and absent from then on; nothing is repaired by guessing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use buildnet_formats::{Digest, Function, Hasher, NativeError};

use crate::index::Place;
use crate::record::{HEADER_BYTES, Key, Kind, u64_at};
use crate::survey::read_name;
use crate::view::listed;
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
        let mut by_segment: HashMap<u32, Vec<(Key, Place)>> = HashMap::new();
        for number in 0.. {
            let Some(rows) = self.index.read().block(number) else { break };
            for (key, place) in rows {
                by_segment.entry(place.segment).or_default().push((key, place));
            }
        }
        for segment in self.log.all() {
            for (key, place) in by_segment.remove(&segment.number).unwrap_or_default() {
                let Some((header, bytes)) = segment.read(&key, place) else {
                    if self.index.read().get(&key) == Some(place) {
                        // The name has a checksum of its own, and often outlives what it names.
                        let named = read_name(&segment, place).and_then(|(h, name)| listed(&h, &name, &key, place));
                        let unnamed = || format!("a record at {} of segment {}", place.offset, segment.number);
                        seen.damaged.push(named.map_or_else(unnamed, |row| row.name));
                        self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                        self.counters.removals.fetch_add(1, Ordering::Release);
                        self.index.write().remove(&key);
                    }
                    continue;
                };
                seen.records += 1;
                seen.bytes += bytes.len() as u64;
                if place.is_large() {
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
        seen.orphans = self.remove_orphans()?;
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
                self.forget(&Key::of_blob(digest), digest.function() as u8, digest.hash());
                false
            }
            Err(_) => false,
        }
    }

    /// Files of their own that a record names now.
    fn named_files(&self) -> HashSet<u64> {
        let blocks = (0..).map_while(|number| self.index.read().block(number));
        let large = blocks.flatten().filter(|(_, place)| place.is_large());
        let read = |(key, place): (Key, Place)| self.log.segment(place.segment)?.read(&key, place);
        large.filter_map(read).map(|(header, bytes)| u64_at(&bytes[header.payload_at()..], 0)).collect()
    }

    fn remove_orphans(&self) -> Result<u64, NativeError> {
        // While records may move, one that names a file could be missed.
        let _still = self.evicting.lock();
        let named = self.named_files();
        let mut removed = 0;
        let large = self.root.join("large");
        let at = |e: std::io::Error| unusable(&large, &e);
        for directory in fs::read_dir(&large).map_err(at)? {
            for entry in fs::read_dir(directory.map_err(at)?.path()).map_err(at)? {
                let entry = entry.map_err(at)?;
                let number = entry.file_name().to_str().and_then(|n| u64::from_str_radix(n, 16).ok());
                let modified = match entry.metadata().and_then(|m| m.modified()) {
                    // Found damaged meanwhile, and set apart.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    other => other.map_err(at)?,
                };
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::Options;

    #[test]
    fn a_large_blob_that_is_moved_meanwhile_keeps_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 64 << 10, packed_bytes_max: 1024, keep_s: 0, ..Options::default() };
        let store = std::sync::Arc::new(Store::open(directory.path(), options).unwrap());
        for number in 0..2000 {
            store.put_bytes(format!("small {number}").as_bytes()).unwrap();
        }
        let large = store.put_bytes(&[7; 4096]).unwrap();
        store.hold("someone", &[large]);
        let file = store.large_path(*store.named_files().iter().next().unwrap());
        let stray = file.with_file_name("ff");
        for path in [&file, &stray] {
            let file = File::options().create(true).append(true).open(path).or_else(|_| File::open(path)).unwrap();
            file.set_modified(SystemTime::now() - ORPHAN_AGE * 2).unwrap();
        }
        let mut evicted = None;
        let seen = store.scrub(|_| {
            evicted.get_or_insert_with(|| store.evict_to(0, 0).unwrap());
            true
        });
        assert!(evicted.unwrap().moved >= 1);
        assert_eq!(seen.unwrap().orphans, 1);
        assert!(file.exists() && !stray.exists());
        assert_eq!(store.get_bytes(&large, 4096).unwrap().len(), 4096);
    }
}
