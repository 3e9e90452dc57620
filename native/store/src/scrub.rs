//! The scrubber reads everything once more: blobs against their digests, entries against their sums, and files that no
//! record names. What is damaged is reported and absent from then on; nothing is repaired by guessing.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use buildnet_formats::{Digest, Function, Hasher, NativeError};

use crate::index::Place;
use crate::record::{HEADER_BYTES, Key, Kind};
use crate::survey::read_name;
use crate::view::listed;
use crate::{Store, now_s, unusable};

/// A file younger than this may be one whose record is about to be written.
const ORPHAN_AGE_S: i64 = 3600;

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
    pub fn scrub(&self, progress: impl FnMut(&Scrubbed) -> bool) -> Result<Scrubbed, NativeError> {
        self.scrub_with(ORPHAN_AGE_S, progress)
    }

    fn scrub_with(&self, age_s: i64, mut progress: impl FnMut(&Scrubbed) -> bool) -> Result<Scrubbed, NativeError> {
        let mut seen = Scrubbed::default();
        let unnamed = self.files_of_old(age_s)?;
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
                    if self.forget_at(&key, place) {
                        // The name has a checksum of its own, and often outlives what it names.
                        let named = read_name(&segment, place).and_then(|(h, name)| listed(&h, &name, &key, place));
                        let unnamed = || format!("a record at {} of segment {}", place.offset, segment.number);
                        seen.damaged.push(named.map_or_else(unnamed, |row| row.name));
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
        for segment in self.log.sealed() {
            let _one = self.evicting.lock();
            if self.log.segment(segment.number).is_some() && !segment.index_is_sound() {
                seen.damaged.push(format!("index of {}", segment.path.display()));
                self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                segment.seal(&segment.rows()?)?;
            }
        }
        seen.orphans = self.remove_orphans(&unnamed)?;
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
                let key = Key::of_blob(digest);
                let place = self.index.read().get(&key);
                place.is_none_or(|place| !self.forget_at(&key, place))
            }
            Err(_) => false,
        }
    }

    /// Files that have been below `large` for a while, by the numbers that are their names.
    fn files_of_old(&self, age_s: i64) -> Result<Vec<(PathBuf, Option<u64>)>, NativeError> {
        let mut found = Vec::new();
        let large = self.root.join("large");
        let at = |e: std::io::Error| unusable(&large, &e);
        let horizon_s = now_s().cast_signed() - age_s;
        for directory in fs::read_dir(&large).map_err(at)? {
            for entry in fs::read_dir(directory.map_err(at)?.path()).map_err(at)? {
                let entry = entry.map_err(at)?;
                // Since when it has this name; what it holds may have been written much earlier.
                let named_s = match entry.metadata() {
                    Ok(facts) => facts.ctime(),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(at(error)),
                };
                if named_s < horizon_s {
                    let number = entry.file_name().to_str().and_then(|n| u64::from_str_radix(n, 16).ok());
                    found.push((entry.path(), number));
                }
            }
        }
        Ok(found)
    }

    /// Remove those files that no record names. Nothing is moved or evicted meanwhile, so that none is overlooked.
    fn remove_orphans(&self, files: &[(PathBuf, Option<u64>)]) -> Result<u64, NativeError> {
        if files.is_empty() {
            return Ok(0);
        }
        let _one = self.evicting.lock();
        let places: Vec<_> =
            self.index.read().iter().filter(|(_, place)| place.is_large()).map(|(key, place)| (*key, place)).collect();
        let named: HashSet<u64> = places.iter().filter_map(|(key, place)| self.large_number(key, *place)).collect();
        let mut removed = 0;
        for (path, number) in files {
            if number.is_some_and(|number| named.contains(&number)) {
                continue;
            }
            match fs::remove_file(path) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(unusable(path, &error)),
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
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
        store.hold("someone", &[large]).unwrap();
        let key = Key::of_blob(&large);
        let place = store.index.read().get(&key).unwrap();
        let file = store.large_path(store.large_number(&key, place).unwrap());
        let stray = file.with_file_name("ff");
        fs::write(&stray, b"nobody's").unwrap();
        let mut evicted = None;
        // Every file is old enough.
        let seen = store.scrub_with(-2, |_| {
            evicted.get_or_insert_with(|| store.evict_to(0, 0).unwrap());
            true
        });
        assert!(evicted.unwrap().moved >= 1);
        assert_eq!(seen.unwrap().orphans, 1);
        assert!(file.exists() && !stray.exists());
        assert_eq!(store.get_bytes(&large, 4096).unwrap().len(), 4096);
    }
}
