//! A layer as one file: a read-only file system (EROFS, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux)
//! without compression, whose every entry has the facts that its tree gives it. Nothing in it can be changed through a mount.
//!
//! One file is written instead of thousands made: the tables of inodes and names first, then each distinct blob once, from the
//! next block on, by several threads. Blobs are checked by the store as they are copied.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use buildnet_formats::{Digest, NativeError};
use buildnet_store::Store;

use crate::error::{self, Result};
use crate::nodes::{Content, Node, blobs_of};

const BLOCK_BYTES: usize = 4096;
const BLOCK_BITS: u8 = 12;
const SUPER_AT: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// Inodes follow the superblock; each is numbered by its place, in units of 32 bytes.
const INODES_AT: usize = 1152;
const INODE_BYTES: usize = 64;
const SLOT_BYTES: usize = 32;
/// Extended (64 bytes), its data in whole blocks without holes.
const EXTENDED_PLAIN: u16 = 1;
const ENTRY_BYTES: usize = 12;

/// What a thread writes at once, and what it holds of blobs meanwhile.
const WRITE_BYTES: usize = 1 << 20;
const THREADS_MAX: usize = 4;
/// Blobs that one thread takes at a time.
const BLOBS_AT_ONCE: usize = 128;
/// Of a name (EROFS_NAME_LEN), as on every other file system of Linux.
const NAME_BYTES_MAX: usize = 255;

/// A layer whose every byte has its place.
#[derive(Debug)]
pub(crate) struct Image {
    /// All that comes before the blobs.
    tables: Vec<u8>,
    /// With the block that each begins at, in that order.
    blobs: Vec<(Digest, u32)>,
    blocks: u32,
}

impl Image {
    /// Lay out `nodes`, of which the first is the root.
    ///
    /// # Errors
    /// `too_large` past what the format can number, `invalid_request` for a name that no file may have.
    pub(crate) fn new(nodes: &[Node]) -> Result<Self> {
        let mut named = nodes.iter().filter_map(entries_of).flatten();
        if let Some((name, _)) = named.find(|(name, _)| name.len() > NAME_BYTES_MAX) {
            let message = format!("a name has {} bytes, over the limit of {NAME_BYTES_MAX}", name.len());
            return Err(NativeError::invalid("input_root_digest", message));
        }
        let mut layout = Layout::new(nodes);
        let mut blobs = Vec::new();
        let mut block_of = HashMap::new();
        for digest in blobs_of(nodes) {
            block_of.insert(digest, layout.blocks);
            blobs.push((digest, number(layout.blocks)?));
            layout.blocks += digest.size_bytes().div_ceil(BLOCK_BYTES as u64);
        }
        let blocks = number(layout.blocks)?;
        layout.finish(nodes, &block_of, blocks)?;
        Ok(Self { tables: layout.tables, blobs, blocks })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES as u64
    }

    /// All but the blobs.
    pub(crate) fn write_tables(&self, file: &File) -> io::Result<()> {
        file.set_len(self.size_bytes())?;
        file.write_all_at(&self.tables, 0)
    }

    /// Write it all into an empty file, which is `path` in messages.
    ///
    /// # Errors
    /// `storage_full`, `sandbox_failed`; `blobs_missing` for a blob that went since the tree was read.
    pub(crate) fn write(&self, store: &Store, file: &File, path: &Path) -> Result<()> {
        self.write_tables(file).map_err(|failed| error::io("write", path, &failed))?;
        let parts: Vec<&[(Digest, u32)]> = self.blobs.chunks(BLOBS_AT_ONCE).collect();
        let threads = match parts.len() {
            0 | 1 => 1,
            more => std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(more),
        };
        let next = AtomicUsize::new(0);
        let broken: Mutex<Option<NativeError>> = Mutex::new(None);
        let work = || {
            while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = copy(store, part, file, path) {
                    // The others stop at their next part; the first error is the one to tell.
                    next.store(parts.len(), Ordering::Relaxed);
                    broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        broken.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Blobs whose blocks follow each other.
fn copy(store: &Store, blobs: &[(Digest, u32)], file: &File, path: &Path) -> Result<()> {
    let Some((_, first)) = blobs.first() else { return Ok(()) };
    let mut at = u64::from(*first) * BLOCK_BYTES as u64;
    let mut waiting = Vec::with_capacity(WRITE_BYTES);
    let mut put = |waiting: &mut Vec<u8>| {
        file.write_all_at(waiting, at).map_err(|failed| error::io("write", path, &failed))?;
        at += waiting.len() as u64;
        waiting.clear();
        Ok(())
    };
    for (digest, _) in blobs {
        let copied = if digest.size_bytes() <= WRITE_BYTES as u64 {
            store.read_onto(digest, &mut waiting)
        } else {
            store.copy_to(digest, &mut |chunk| {
                waiting.extend_from_slice(chunk);
                if waiting.len() >= WRITE_BYTES { put(&mut waiting) } else { Ok(()) }
            })
        };
        copied.map_err(|failed| match failed.code {
            "storage_full" | "sandbox_failed" => failed,
            _ => NativeError::missing(&[*digest]),
        })?;
        waiting.resize(waiting.len().next_multiple_of(BLOCK_BYTES), 0);
        if waiting.len() >= WRITE_BYTES {
            put(&mut waiting)?;
        }
    }
    put(&mut waiting)
}

/// The tables while they are made.
struct Layout {
    tables: Vec<u8>,
    /// Where the data of a directory or a symlink begins, and its bytes; by node.
    data: HashMap<usize, (u64, u64)>,
    /// Of the whole so far.
    blocks: u64,
}

impl Layout {
    /// Places for all inodes, and what directories and symlinks hold.
    fn new(nodes: &[Node]) -> Self {
        let mut layout = Self { tables: Vec::new(), data: HashMap::new(), blocks: 0 };
        layout.tables.resize((INODES_AT + nodes.len() * INODE_BYTES).next_multiple_of(BLOCK_BYTES), 0);
        let mut parents = vec![0; nodes.len()];
        for (node, entries) in nodes.iter().enumerate().filter_map(|(at, node)| Some((at, entries_of(node)?))) {
            entries.iter().for_each(|(_, child)| parents[*child] = node);
        }
        for (node, described) in nodes.iter().enumerate() {
            let data = match &described.content {
                Content::Directory(entries) => names(entries, node, parents[node], nodes),
                Content::Symlink(target) => target.clone().into_bytes(),
                Content::File(_) | Content::Gone => continue,
            };
            let block = (layout.tables.len() / BLOCK_BYTES) as u64;
            layout.data.insert(node, (block, data.len() as u64));
            layout.tables.extend_from_slice(&data);
            layout.tables.resize(layout.tables.len().next_multiple_of(BLOCK_BYTES), 0);
        }
        layout.blocks = (layout.tables.len() / BLOCK_BYTES) as u64;
        layout
    }

    /// Fill in the superblock and the inodes.
    fn finish(&mut self, nodes: &[Node], block_of: &HashMap<Digest, u64>, blocks: u32) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = (now.as_secs(), now.subsec_nanos());
        let root = u16::try_from(slot_of(0)).map_err(|_| NativeError::internal("the root has a place of its own"))?;
        let head = &mut self.tables[SUPER_AT..];
        put(head, 0, &MAGIC.to_le_bytes());
        put(head, 12, &[BLOCK_BITS]);
        put(head, 14, &root.to_le_bytes());
        put(head, 16, &(nodes.len() as u64).to_le_bytes());
        put(head, 24, &now.0.to_le_bytes());
        put(head, 32, &now.1.to_le_bytes());
        put(head, 36, &blocks.to_le_bytes());
        for (at, node) in nodes.iter().enumerate() {
            let (block, size_bytes) = match &node.content {
                Content::File(digest) => (block_of.get(digest).copied().unwrap_or(0), digest.size_bytes()),
                _ => self.data.get(&at).copied().unwrap_or((0, 0)),
            };
            let serial = number(at as u64 + 1)?;
            let inode = &mut self.tables[INODES_AT + at * INODE_BYTES..][..INODE_BYTES];
            describe(inode, node, serial, (number(block)?, size_bytes), now);
            if let Some(entries) = entries_of(node) {
                let below = |child: &usize| matches!(nodes[*child].content, Content::Directory(_));
                let links = 2 + entries.iter().filter(|(_, child)| below(child)).count() as u64;
                put(inode, 44, &number(links)?.to_le_bytes());
            }
        }
        // An overlay numbers inodes alike over all its layers only where each has an identity (super.c, ovl_get_fsid).
        let identity = Digest::of(&self.tables);
        put(&mut self.tables[SUPER_AT..], 48, &identity.hash()[..16]);
        Ok(())
    }
}

/// struct erofs_inode_extended.
fn describe(inode: &mut [u8], node: &Node, serial: u32, (block, size_bytes): (u32, u64), now: (u64, u32)) {
    let kind = match node.content {
        Content::Directory(_) => libc::S_IFDIR,
        Content::File(_) => libc::S_IFREG,
        Content::Symlink(_) => libc::S_IFLNK,
        // A device of number 0: overlayfs.rst, "whiteouts and opaque directories".
        Content::Gone => libc::S_IFCHR,
    };
    let (seconds, nanos) = node.mtime.map_or(now, |(seconds, nanos)| (seconds.cast_unsigned(), nanos));
    // SAFETY: neither can fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    // Twelve bits and the kind fill sixteen.
    let mode = ((kind | node.mode) & 0xFFFF) as u16;
    put(inode, 0, &EXTENDED_PLAIN.to_le_bytes());
    put(inode, 4, &mode.to_le_bytes());
    put(inode, 8, &size_bytes.to_le_bytes());
    put(inode, 16, &block.to_le_bytes());
    put(inode, 20, &serial.to_le_bytes());
    put(inode, 24, &user.to_le_bytes());
    put(inode, 28, &group.to_le_bytes());
    put(inode, 32, &seconds.to_le_bytes());
    put(inode, 40, &nanos.to_le_bytes());
    put(inode, 44, &1_u32.to_le_bytes());
}

fn entries_of(node: &Node) -> Option<&Vec<(String, usize)>> {
    match &node.content {
        Content::Directory(entries) => Some(entries),
        _ => None,
    }
}

/// The blocks of a directory: names in the order of their bytes, with `.` and `..` among them, each block by itself.
fn names(entries: &[(String, usize)], own: usize, parent: usize, nodes: &[Node]) -> Vec<u8> {
    let mut all: Vec<(&[u8], usize)> = entries.iter().map(|(name, node)| (name.as_bytes(), *node)).collect();
    all.extend([(&b"."[..], own), (&b".."[..], parent)]);
    all.sort_unstable();
    let mut blocks = Vec::new();
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let mut used = 0;
        let fits = |(name, _): &&(&[u8], usize)| {
            used += ENTRY_BYTES + name.len();
            used <= BLOCK_BYTES
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count());
        blocks.resize(blocks.len().next_multiple_of(BLOCK_BYTES), 0);
        let mut name_at = now.len() * ENTRY_BYTES;
        for (name, node) in now {
            blocks.extend_from_slice(&slot_of(*node).to_le_bytes());
            // Within a block of 4096 bytes.
            blocks.extend_from_slice(&(name_at as u16).to_le_bytes());
            blocks.extend_from_slice(&[kind_of(&nodes[*node].content), 0]);
            name_at += name.len();
        }
        now.iter().for_each(|(name, _)| blocks.extend_from_slice(name));
        rest = later;
    }
    blocks
}

/// The file types of directory entries (fs_types.h).
fn kind_of(content: &Content) -> u8 {
    match content {
        Content::File(_) => 1,
        Content::Directory(_) => 2,
        Content::Gone => 3,
        Content::Symlink(_) => 7,
    }
}

fn slot_of(node: usize) -> u64 {
    ((INODES_AT + node * INODE_BYTES) / SLOT_BYTES) as u64
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn number(value: u64) -> Result<u32> {
    u32::try_from(value).map_err(|_| NativeError::too_large("the input tree has too many blocks to keep", value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::mounting;
    use buildnet_store::Options;

    fn node(mode: u32, content: Content) -> Node {
        Node { mode, mtime: None, content }
    }

    /// A root with so many files of growing size, one of them twice, and one of each other kind.
    fn nodes(store: &Arc<Store>, count: usize) -> (Vec<Node>, BTreeMap<String, Vec<u8>>) {
        let mut nodes = vec![node(0o750, Content::Directory(Vec::new()))];
        let (mut entries, mut contents) = (Vec::new(), BTreeMap::new());
        for number in 0..count {
            let name = format!("{}{number}", ["f", "-", "é"][number % 3].repeat(1 + number % 40));
            let data = vec![(number % 251) as u8; number * number % 20_000];
            entries.push((name.clone(), nodes.len()));
            nodes.push(node(0o640, Content::File(store.put_bytes(&data).unwrap())));
            contents.insert(name, data);
        }
        for (name, content) in [
            ("again", Content::File(store.put_bytes(&[7; 3 << 20]).unwrap())),
            ("once", Content::File(store.put_bytes(&[7; 3 << 20]).unwrap())),
            ("link", Content::Symlink("below/../once".to_owned())),
            ("gone", Content::Gone),
            ("below", Content::Directory(vec![("deeper".to_owned(), nodes.len() + 5)])),
            ("", Content::Directory(Vec::new())),
        ] {
            if !name.is_empty() {
                entries.push((name.to_owned(), nodes.len()));
            }
            nodes.push(Node { mtime: Some((-5, 7)), ..node(0o701, content) });
        }
        nodes[0].content = Content::Directory(entries);
        (nodes, contents)
    }

    #[test]
    fn the_kernel_reads_what_was_laid_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("store"), Options::default()).unwrap());
        let (nodes, contents) = nodes(&store, 600);
        let image = Image::new(&nodes).unwrap();
        let path = dir.path().join("image");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        image.write(&store, &file, &path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), image.size_bytes());
        // Not every machine may mount one, or can.
        let Ok(mount) = mounting::image(&file) else { return };
        let root = PathBuf::from(mounting::path_of(mount.as_raw_fd()));
        let named = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(named.count(), contents.len() + 5);
        for (name, data) in &contents {
            assert_eq!(fs::read(root.join(name)).unwrap(), *data, "{name}");
            assert_eq!(root.join(name).metadata().unwrap().mode(), 0o100_640);
        }
        assert_eq!(root.metadata().unwrap().mode(), 0o040_750);
        assert_eq!((root.metadata().unwrap().nlink(), root.join("below").metadata().unwrap().nlink()), (3, 3));
        assert_eq!(fs::read_link(root.join("link")).unwrap(), PathBuf::from("below/../once"));
        let gone = root.join("gone").symlink_metadata().unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        for name in ["again", "link"] {
            let read = fs::read(root.join(name)).unwrap();
            assert!(read.len() == 3 << 20 && read.iter().all(|byte| *byte == 7));
        }
        let once = root.join("once").metadata().unwrap();
        assert_eq!((once.mtime(), once.mtime_nsec(), once.nlink()), (-5, 7, 1));
        assert!(fs::read_dir(root.join("below/deeper")).unwrap().next().is_none());
        assert_eq!(fs::write(root.join("once"), "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        let long = vec![("x".repeat(256), 1)];
        let nodes = [node(0o755, Content::Directory(long)), node(0, Content::Gone)];
        assert_eq!(Image::new(&nodes).unwrap_err().code, "invalid_request");
    }

    #[test]
    fn a_blob_that_went_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("store"), Options::default()).unwrap());
        let (nodes, _) = nodes(&store, 0);
        let image = Image::new(&nodes).unwrap();
        let path = dir.path().join("image");
        let empty = Store::open(&dir.path().join("empty"), Options::default()).unwrap();
        let failed = image.write(&empty, &File::create(&path).unwrap(), &path).unwrap_err();
        assert_eq!(failed.code, "blobs_missing");
    }
}
