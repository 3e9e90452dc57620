//! Going through the whole store, segment after segment, beside those who use it: what is here, what it takes, what refers
//! to a blob, what an eviction would take. It changes nothing, not even when something was last used, and holds no lock
//! for longer than a few records.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use buildnet_formats::wire::build::bazel::remote::execution::v2 as re;
use buildnet_formats::{Digest, Function, MESSAGE_BYTES_MAX, NativeError};
use bytes::Bytes;
use prost::Message;

use crate::entries::Entry;
use crate::index::{Place, Use};
use crate::record::{HEADER_BYTES, Header, Key, Kind, LARGE, ZSTD, u64_at};
use crate::segment::{Row, Segment, read_at};
use crate::view::listed;
use crate::{EntryName, Evicted, Listed, Store, now_s};

/// Records looked at under one turn of the index's lock.
const AT_ONCE: usize = 256;
/// Records looked at for one page, so that a filter that fits nothing ends a page too.
const LOOKED_MAX: usize = 20_000;
/// Names read with a header; longer ones cost a second read.
const NAME_BYTES_LIKELY: usize = 96;
/// Groups told apart; the rest is told as one.
const GROUPS_MAX: usize = 1000;
/// Directories walked below one result's root.
const DIRECTORIES_WALKED_MAX: usize = 10_000;
/// Names of referring results that are returned.
const REFERRERS_MAX: usize = 100;

/// A place in the store to go on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the segment.
    pub segment: u32,
    /// The first offset in it that was not looked at.
    pub offset: u32,
}

/// Some records of a listing.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Those that fit the filter.
    pub rows: Vec<Listed>,
    /// Where the next page begins; none at the end.
    pub next: Option<Cursor>,
}

/// What records of one sort take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// How many.
    pub count: u64,
    /// Their contents.
    pub size_bytes: u64,
    /// Their bytes on the disk.
    pub stored_bytes: u64,
}

/// What the store takes, and for what.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// By kind (`blob`, `action`, `path`) and by function or namespace.
    pub groups: BTreeMap<(&'static str, String), Group>,
    /// Segment files.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Of those, bytes of records that are in use; the rest goes when a segment is rewritten or evicted.
    pub live_bytes: u64,
    /// Blobs that are files of their own.
    pub large_files: u64,
    /// Their bytes.
    pub large_bytes: u64,
}

/// What refers to a blob.
#[derive(Clone, Debug, Default)]
pub struct Referrers {
    /// Namespace and action of results, and paths, that refer to it; at most 100.
    pub names: Vec<String>,
    /// Entries that were looked at.
    pub looked: u64,
    /// Whether that was all of them.
    pub whole: bool,
}

impl Store {
    /// Records from a cursor on, oldest segment first. One that is moved meanwhile may come twice, none is left out.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn page(&self, from: Cursor, kind: Option<&str>, prefix: &str, count_max: usize) -> Result<Page, NativeError> {
        let mut page = Page::default();
        let mut looked = 0;
        self.walk_segments(from, |segment, row, place| {
            if page.rows.len() >= count_max || looked >= LOOKED_MAX {
                page.next = Some(Cursor { segment: segment.number, offset: row.offset });
                return false;
            }
            looked += 1;
            let found = read_name(segment, place).and_then(|(header, name)| listed(&header, &name, &row.key, place));
            page.rows
                .extend(found.filter(|row| kind.is_none_or(|kind| row.kind == kind) && row.name.starts_with(prefix)));
            true
        })?;
        Ok(page)
    }

    /// What the store takes. Ends early, with what was seen, when `progress` (records so far) says no.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn taken(&self, mut progress: impl FnMut(u64) -> bool) -> Result<Taken, NativeError> {
        let mut taken = Taken::default();
        for segment in self.log.all() {
            taken.segments += 1;
            taken.segment_bytes += segment.end.load(Ordering::Relaxed);
            taken.live_bytes += segment.live.load(Ordering::Relaxed);
        }
        let mut looked = 0;
        self.walk_segments(Cursor::default(), |segment, row, place| {
            looked += 1;
            if let Some((header, name)) = read_name(segment, place)
                && let Some(found) = listed(&header, &name, &row.key, place)
            {
                taken.large_files += u64::from(place.is_large());
                taken.large_bytes += row.large_bytes();
                let mut sort = (found.kind, group_of(&header, &name));
                if taken.groups.len() >= GROUPS_MAX && !taken.groups.contains_key(&sort) {
                    sort.1 = "(others)".to_owned();
                }
                let group = taken.groups.entry(sort).or_default();
                group.count += 1;
                group.size_bytes += found.size_bytes;
                group.stored_bytes += found.stored_bytes;
            }
            looked % 4096 != 0 || progress(looked)
        })?;
        Ok(taken)
    }

    /// Action results, and values under paths, that refer to a blob: by themselves, by a Tree, by Directories below a
    /// root. At most `looked_max` entries are looked at; `progress` (entries so far) may end it.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn referrers(
        &self,
        digest: &Digest,
        looked_max: u64,
        mut progress: impl FnMut(u64) -> bool,
    ) -> Result<Referrers, NativeError> {
        let mut found = Referrers { whole: true, ..Referrers::default() };
        self.walk_segments(Cursor::default(), |segment, row, place| {
            // A blob's size and function stand in its key, an entry's kind alone.
            if row.key.what != Kind::Entry as u64 {
                return true;
            }
            if found.looked >= looked_max || found.names.len() >= REFERRERS_MAX {
                found.whole = false;
                return false;
            }
            found.looked += 1;
            if let Some((header, bytes)) = segment.read(&row.key, place)
                && let Some(name) = self.refers(&header, Bytes::from(bytes), digest)
            {
                found.names.push(name);
            }
            if found.looked.is_multiple_of(256) && !progress(found.looked) {
                found.whole = false;
                return false;
            }
            true
        })?;
        Ok(found)
    }

    /// About what [`Store::evict_to`] would do, said twice over where records have a second chance.
    ///
    /// # Errors
    /// `state_corrupt` when the disk fails.
    pub fn rehearse(&self, size_bytes: u64) -> Result<Evicted, NativeError> {
        let mut done = Evicted::default();
        let mut left = self.used_bytes();
        let now = now_s();
        for goes in [Use::Idle, Use::Referenced] {
            for segment in self.log.all() {
                if left <= size_bytes {
                    return Ok(done);
                }
                let mut gone = 0;
                let mut staying = 0;
                self.each_live(&segment, 0, |row, place| {
                    let usage = self.index.read().usage(&row.key, now, self.options.keep_s, self.opened_s);
                    if usage == Some(goes) && !self.holds.lock().counts.contains_key(&row.key) {
                        gone += u64::from(place.length()) + row.large_bytes();
                        done.records += 1;
                    } else if usage.is_some() && usage != Some(Use::Idle) {
                        staying += 1;
                    }
                    true
                })?;
                done.bytes += gone;
                done.moved += if goes == Use::Idle { staying } else { 0 };
                let dead = segment.end.load(Ordering::Relaxed).saturating_sub(segment.live.load(Ordering::Relaxed));
                left = left.saturating_sub(gone + if goes == Use::Idle { dead } else { 0 });
            }
        }
        Ok(done)
    }

    /// Whether an entry refers to the blob: its name if so.
    fn refers(&self, header: &Header, record: Bytes, digest: &Digest) -> Option<String> {
        let (kind, namespace, name) = EntryName::describe(&record[HEADER_BYTES..header.payload_at()])?;
        let full = || if namespace.is_empty() { name.clone() } else { format!("{namespace}:{name}") };
        let entry = Entry::decode(record.slice(header.payload_at()..))?;
        if entry.as_blob() {
            let value: Digest = std::str::from_utf8(&entry.value).ok()?.parse().ok()?;
            if value == *digest {
                return Some(full());
            }
            // The result itself is a blob.
            let result = self.peek(&value)?;
            return (kind == "action" && self.result_refers(result, digest)).then(full);
        }
        (kind == "action" && self.result_refers(entry.value, digest)).then(full)
    }

    fn result_refers(&self, result: Bytes, digest: &Digest) -> bool {
        let Ok(result) = re::ActionResult::decode(result) else { return false };
        let function = digest.function();
        let is = |message: Option<&re::Digest>| {
            message.and_then(|m| Digest::from_message_by(Some(function), m).ok()).as_ref() == Some(digest)
        };
        let logs = [&result.stdout_digest, &result.stderr_digest];
        if logs.into_iter().any(|log| is(log.as_ref())) || result.output_files.iter().any(|f| is(f.digest.as_ref())) {
            return true;
        }
        result.output_directories.iter().any(|directory| {
            let root = directory.root_directory_digest.as_ref();
            let tree = directory.tree_digest.as_ref();
            is(tree) || is(root) || self.tree_refers(function, tree, digest) || self.root_refers(function, root, digest)
        })
    }

    fn tree_refers(&self, function: Function, tree: Option<&re::Digest>, digest: &Digest) -> bool {
        let bytes = tree.and_then(|tree| self.peek(&Digest::from_message_by(Some(function), tree).ok()?));
        let Some(tree) = bytes.and_then(|bytes| re::Tree::decode(bytes).ok()) else { return false };
        let files = tree.root.iter().chain(&tree.children).flat_map(|directory| &directory.files);
        files
            .filter_map(|file| Digest::from_message_by(Some(function), file.digest.as_ref()?).ok())
            .any(|d| d == *digest)
    }

    fn root_refers(&self, function: Function, root: Option<&re::Digest>, digest: &Digest) -> bool {
        let read = |message: Option<&re::Digest>| Digest::from_message_by(Some(function), message?).ok();
        let mut waiting: Vec<Digest> = read(root).into_iter().collect();
        let mut seen: HashSet<Digest> = waiting.iter().copied().collect();
        while let Some(next) = waiting.pop() {
            let Some(directory) = self.peek(&next).and_then(|bytes| re::Directory::decode(bytes).ok()) else {
                continue;
            };
            if next == *digest || directory.files.iter().any(|file| read(file.digest.as_ref()) == Some(*digest)) {
                return true;
            }
            let children = directory.directories.iter().filter_map(|child| read(child.digest.as_ref()));
            waiting.extend(children.filter(|child| seen.len() < DIRECTORIES_WALKED_MAX && seen.insert(*child)));
        }
        false
    }

    /// A message that is kept as a blob, read without being used; none when it is absent or too large for a message.
    fn peek(&self, digest: &Digest) -> Option<Bytes> {
        if digest.is_empty() {
            return Some(Bytes::new());
        }
        if digest.size_bytes() > MESSAGE_BYTES_MAX {
            return None;
        }
        let key = Key::of_blob(digest);
        let place = self.index.read().get(&key)?;
        let (header, bytes) = self.log.segment(place.segment)?.read(&key, place)?;
        let payload = &bytes[header.payload_at()..];
        if header.flags & LARGE != 0 {
            let path = self.large_path(u64_at(payload, 0));
            return std::fs::read(path)
                .ok()
                .filter(|data| Digest::by(digest.function(), data) == *digest)
                .map(Bytes::from);
        }
        if header.flags & ZSTD != 0 {
            let size = usize::try_from(digest.size_bytes()).ok()?;
            return zstd::bulk::decompress(payload, size).ok().map(Bytes::from);
        }
        Some(Bytes::copy_from_slice(payload))
    }

    /// Every live record from a cursor on, until `each` says no.
    fn walk_segments(
        &self,
        from: Cursor,
        mut each: impl FnMut(&Arc<Segment>, &Row, Place) -> bool,
    ) -> Result<(), NativeError> {
        for segment in self.log.all().into_iter().filter(|segment| segment.number >= from.segment) {
            let offset = if segment.number == from.segment { from.offset } else { 0 };
            if !self.each_live(&segment, offset, |row, place| each(&segment, row, place))? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Live records of one segment; whether `each` wanted all of them.
    fn each_live(
        &self,
        segment: &Segment,
        offset: u32,
        mut each: impl FnMut(&Row, Place) -> bool,
    ) -> Result<bool, NativeError> {
        let rows = match segment.rows() {
            Ok(rows) => rows,
            // Evicted meanwhile.
            Err(_) if self.log.segment(segment.number).is_none() => return Ok(true),
            Err(error) => return Err(error),
        };
        for chunk in rows.chunks(AT_ONCE) {
            let live: Vec<(&Row, Place)> = {
                let index = self.index.read();
                let placed = chunk.iter().filter(|row| row.offset >= offset && !row.removed);
                placed
                    .map(|row| (row, row.place(segment.number)))
                    .filter(|(r, p)| index.get(&r.key) == Some(*p))
                    .collect()
            };
            for (row, place) in live {
                if !each(row, place) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Header and name of a record, without its payload.
pub(crate) fn read_name(segment: &Segment, place: Place) -> Option<(Header, Vec<u8>)> {
    let length = place.length() as usize;
    let read = |length: usize| read_at(&segment.file, u64::from(place.offset), length, 0);
    let mut bytes = read(length.min(HEADER_BYTES + NAME_BYTES_LIKELY))?;
    let name_length = usize::from(u16::from_le_bytes([*bytes.get(8)?, *bytes.get(9)?]));
    if HEADER_BYTES + name_length > bytes.len() {
        bytes = read(length.min(HEADER_BYTES + name_length))?;
    }
    let header = Header::decode(segment.salt, &bytes)?;
    Some((header, bytes.get(HEADER_BYTES..header.payload_at())?.to_vec()))
}

/// The function of a blob, the namespace of an entry.
fn group_of(header: &Header, name: &[u8]) -> String {
    if header.kind == Kind::Blob {
        return Function::of_byte(header.function).map(|function| function.name().to_owned()).unwrap_or_default();
    }
    EntryName::describe(name).map(|(_, namespace, _)| namespace).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, Origin};

    fn store(directory: &std::path::Path) -> Arc<Store> {
        Arc::new(Store::open(directory, Options { segment_bytes: 4096, keep_s: 0, ..Options::default() }).unwrap())
    }

    #[test]
    fn pages_hold_every_record_once_and_filters_fit() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let mut wanted: Vec<String> =
            (0..100).map(|n| store.put_bytes(format!("blob {n}").repeat(20).as_bytes()).unwrap().to_string()).collect();
        let action = Digest::of(b"action");
        store.put_action_result("team", &action, &[], Origin::Client(None)).unwrap();
        let (mut found, mut from) = (Vec::new(), Some(Cursor::default()));
        while let Some(cursor) = from {
            let page = store.page(cursor, Some("blob"), "", 7).unwrap();
            assert!(page.rows.len() <= 7);
            found.extend(page.rows.into_iter().map(|row| row.name));
            from = page.next;
        }
        wanted.sort();
        found.sort();
        assert_eq!(found, wanted);
        let page = store.page(Cursor::default(), None, "team:", 10).unwrap();
        assert_eq!(page.rows.len(), 1);
        let taken = store.taken(|_| true).unwrap();
        assert_eq!(taken.groups[&("blob", "sha256".to_owned())].count, 100);
        assert_eq!(taken.groups[&("action", "team".to_owned())].count, 1);
        assert!(taken.segments > 1 && taken.live_bytes <= taken.segment_bytes);
    }

    #[test]
    fn a_result_refers_to_its_files_those_of_its_trees_and_those_below_its_roots() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let [direct, treed, rooted, lone] =
            ["direct", "treed", "rooted", "lone"].map(|t| store.put_bytes(t.as_bytes()).unwrap());
        let file = |digest: &Digest| re::FileNode {
            name: "f".to_owned(),
            digest: Some(digest.to_message()),
            ..Default::default()
        };
        let tree = re::Tree {
            children: vec![re::Directory { files: vec![file(&treed)], ..Default::default() }],
            ..Default::default()
        };
        let tree = store.put_bytes(&tree.encode_to_vec()).unwrap();
        let below = re::Directory { files: vec![file(&rooted)], ..Default::default() };
        let below = store.put_bytes(&below.encode_to_vec()).unwrap();
        let node = re::DirectoryNode { name: "d".to_owned(), digest: Some(below.to_message()) };
        let root =
            store.put_bytes(&re::Directory { directories: vec![node], ..Default::default() }.encode_to_vec()).unwrap();
        let result = re::ActionResult {
            output_files: vec![re::OutputFile { digest: Some(direct.to_message()), ..Default::default() }],
            output_directories: vec![re::OutputDirectory {
                tree_digest: Some(tree.to_message()),
                root_directory_digest: Some(root.to_message()),
                ..Default::default()
            }],
            ..Default::default()
        };
        let action = Digest::of(b"action");
        store.put_action_result("", &action, &result.encode_to_vec(), Origin::Client(None)).unwrap();
        for digest in [direct, treed, rooted, tree, root, below] {
            let found = store.referrers(&digest, 1000, |_| true).unwrap();
            assert_eq!((found.names.len(), found.looked, found.whole), (1, 1, true), "{digest}");
        }
        assert!(store.referrers(&lone, 1000, |_| true).unwrap().names.is_empty());
        assert!(!store.referrers(&direct, 0, |_| true).unwrap().whole);
    }

    #[test]
    fn a_rehearsal_says_what_the_eviction_then_does() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        for n in 0..100 {
            store.put_bytes(format!("blob {n}").repeat(20).as_bytes()).unwrap();
        }
        let held = store.put_bytes(b"held").unwrap();
        store.hold("someone", &[held]).unwrap();
        let before = store.used_bytes();
        let said = store.rehearse(0).unwrap();
        assert_eq!(store.used_bytes(), before);
        let done = store.evict_to(0, 0).unwrap();
        assert_eq!((said.records, said.bytes), (done.records, done.bytes));
        assert_eq!(done.records, 100);
    }
}
