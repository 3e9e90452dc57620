//! The scrubber reads everything once more: blobs against their digests, entries against their sums, and files that no
//! record names. What is damaged is reported and absent from then on; nothing is repaired by guessing.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use buildnet_formats::{Digest, Function, Hasher, NativeError};

use crate::record::{HEADER_BYTES, Key, Kind};
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
    pub fn scrub(&self, mut progress: impl FnMut(&Scrubbed) -> bool) -> Result<Scrubbed, NativeError> {
        let mut seen = Scrubbed::default();
        let unnamed = self.files_of_old()?;
        for segment in self.log.all() {
            let rows: Vec<_> =
                self.index.read().iter().filter(|(_, p)| p.segment == segment.number).map(|(k, p)| (*k, p)).collect();
            for (key, place) in rows {
                let Some((header, bytes)) = segment.read(&key, place) else {
                    if self.forget_at(&key, place) {
                        seen.damaged.push(format!("record {} at {}", segment.path.display(), place.offset));
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
    fn files_of_old(&self) -> Result<Vec<(PathBuf, Option<u64>)>, NativeError> {
        let mut found = Vec::new();
        let large = self.root.join("large");
        let at = |e: std::io::Error| unusable(&large, &e);
        let horizon_s = now_s().cast_signed() - ORPHAN_AGE_S;
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
