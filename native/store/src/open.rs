//! Opening: one process, one format, and an index made of what the segments say. Costs what the index costs, never a look
//! at every blob.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use buildnet_formats::{FieldValue, NativeError};
use parking_lot::{Mutex, RwLock};

use crate::completeness::Closures;
use crate::index::Index;
use crate::log::{Log, sync_directory};
use crate::record::{Salt, crc};
use crate::segment::{Row, Segment};
use crate::{Counters, Holds, Options, Store, Work, now_s, unusable};

const FORMAT: u32 = 3;

impl Store {
    /// Open or create the store below `root`.
    ///
    /// # Errors
    /// `state_newer` when a newer version wrote it, which is left untouched; `state_locked` when another process has
    /// it open, with its pid; `state_corrupt` when it cannot be read.
    pub fn open(root: &Path, options: Options) -> Result<Self, NativeError> {
        read_format(root)?;
        let at = |path: &Path, error: &io::Error| unusable(path, error);
        for directory in ["segments", "large", "tmp", "quarantine"] {
            let path = root.join(directory);
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(|e| at(&path, &e))?;
        }
        let lock = lock(root)?;
        let segments = root.join("segments");
        let (first, second) = random()?;
        let salt = match read_format(root)? {
            Some(salt) => salt,
            None => begin(root, &segments, Salt((first ^ second.rotate_left(17)).to_le_bytes()))?,
        };
        // What a killed process left half-written was never acknowledged.
        let temporary = root.join("tmp");
        for entry in fs::read_dir(&temporary).map_err(|e| at(&temporary, &e))? {
            let path = entry.map_err(|e| at(&temporary, &e))?.path();
            fs::remove_file(&path).map_err(|e| at(&path, &e))?;
        }
        let counters = Counters::default();
        // A second earlier than now: what is written from now on is told apart from what was here.
        let opened_s = now_s() - 1;
        let mut loading = Loading { index: Index::new((first, second)), counters: &counters, opened_s };
        let log = Log::open(&segments, salt, options.segment_bytes, options.durability, |segment, rows, damaged| {
            loading.add(segment, rows, damaged);
        })?;
        let Loading { index, .. } = loading;
        let store = Self {
            root: root.to_owned(),
            options,
            counters,
            index: RwLock::new(index),
            log,
            large_synced: std::array::from_fn(|_| AtomicBool::new(false)),
            next_large: AtomicU64::new(first.rotate_left(32) ^ second),
            holds: Mutex::new(Holds::default()),
            evicting: Mutex::new(()),
            closures: Closures::default(),
            opened_s,
            work: Work::default(),
            _lock: lock,
        };
        store.settle();
        Ok(store)
    }

    /// Count for every segment the bytes that the index points to, and all bytes of large files.
    fn settle(&self) {
        let segments: std::collections::HashMap<_, _> = self.log.all().into_iter().map(|s| (s.number, s)).collect();
        for (key, place) in self.index.read().iter() {
            if let Some(segment) = segments.get(&place.segment) {
                segment.live.fetch_add(u64::from(place.length()), Ordering::Relaxed);
            }
            if place.is_large() {
                self.counters.large_bytes.fetch_add(key.size_bytes(), Ordering::Relaxed);
            }
        }
    }
}

struct Loading<'a> {
    index: Index,
    counters: &'a Counters,
    opened_s: u64,
}

impl Loading<'_> {
    fn add(&mut self, segment: &Segment, rows: &[Row], damaged: u64) {
        self.counters.damaged.fetch_add(damaged, Ordering::Relaxed);
        self.index.reserve(rows.len());
        for row in rows {
            if row.removed {
                self.index.remove(&row.key);
            } else {
                self.index.insert(row.key, row.place(segment.number), self.opened_s);
            }
        }
    }
}

/// Two random numbers: they keep those who choose hashes from choosing cells of the index, and names of files apart.
fn random() -> Result<(u64, u64), NativeError> {
    let mut bytes = [0; 16];
    let path = Path::new("/dev/urandom");
    File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).map_err(|e| unusable(path, &e))?;
    let (a, b) = bytes.split_at(8);
    Ok((crate::record::u64_at(a, 0), crate::record::u64_at(b, 0)))
}

/// Write the format and the salt of a store that has neither.
fn begin(root: &Path, segments: &Path, salt: Salt) -> Result<Salt, NativeError> {
    let path = root.join("FORMAT");
    let mut known = fs::read_dir(segments).map_err(|e| unusable(segments, &e))?;
    if known.next().is_some() {
        return Err(malformed(root, "is not there although there are segments"));
    }
    let text = format!("{FORMAT} {}", hex::encode(salt.0));
    let line = format!("{text} {:08x}\n", crc(text.as_bytes()));
    // Whole or not at all, and on the disk before any record that needs it.
    let temporary = root.join("FORMAT.part");
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(line.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&temporary, &path)).map_err(|e| unusable(&path, &e))?;
    for directory in [root, root.parent().unwrap_or(root)] {
        sync_directory(directory)?;
    }
    Ok(salt)
}

/// The salt of the store below `root`; none when there is no store yet.
fn read_format(root: &Path) -> Result<Option<Salt>, NativeError> {
    let path = root.join("FORMAT");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(&path, &error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let number = text.split_whitespace().next().and_then(|word| word.parse::<u32>().ok());
    let Some(found) = number else { return Err(malformed(root, "does not hold a format number")) };
    match found.cmp(&FORMAT) {
        std::cmp::Ordering::Equal => match salt_of(&text) {
            Some(salt) => Ok(Some(salt)),
            None => Err(malformed(root, "is damaged")),
        },
        std::cmp::Ordering::Less => Err(malformed(
            root,
            &format!("is of format {found}, which this version no longer reads (it reads {FORMAT})"),
        )),
        std::cmp::Ordering::Greater => Err(NativeError::new(
            "state_newer",
            format!(
                "{} was written by a newer version (format {found}, this one reads up to {FORMAT}); upgrade",
                path.display()
            ),
        )
        .with("path", FieldValue::Text(path.display().to_string()))
        .with("found", FieldValue::Int(found.into()))
        .with("supported", FieldValue::Int(FORMAT.into()))),
    }
}

fn malformed(root: &Path, what: &str) -> NativeError {
    let path = root.join("FORMAT");
    NativeError::new(
        "state_corrupt",
        format!("{} {what}; the store is a cache: remove {} and it fills again", path.display(), root.display()),
    )
    .with("path", FieldValue::Text(path.display().to_string()))
}

/// `NUMBER SALT SUM`, in hexadecimal but for the number; the sum is of what stands before it.
fn salt_of(line: &str) -> Option<Salt> {
    let (text, sum) = line.strip_suffix('\n')?.rsplit_once(' ')?;
    let salt = text.split_once(' ')?.1;
    if sum != format!("{:08x}", crc(text.as_bytes())) {
        return None;
    }
    Some(Salt(hex::decode(salt).ok()?.try_into().ok()?))
}

/// That nobody else has the store open.
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Not by closing alone: a child that was forked and has not executed its program has the file open too.
        let _ = rustix::fs::flock(&self.0, rustix::fs::FlockOperation::Unlock);
    }
}

fn lock(root: &Path) -> Result<Lock, NativeError> {
    let path = root.join("lock");
    let at = |e: io::Error| unusable(&path, &e);
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(at)?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        // The pid is a help; a lock file without one is still held.
        let _ = file.take(20).read_to_string(&mut holder);
        let holder = holder.trim();
        let who = if holder.is_empty() { "another process".to_owned() } else { format!("process {holder}") };
        return Err(NativeError::new(
            "state_locked",
            format!("{who} uses the store in {}; stop it or choose another directory", root.display()),
        )
        .with("path", FieldValue::Text(root.display().to_string()))
        .with("pid", FieldValue::Text(holder.to_owned())));
    }
    file.set_len(0).map_err(at)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(at)?;
    Ok(Lock(file))
}
