//! One layer of a kept tree: a file system in a file where the kernel can mount one, else a directory. It is whole before
//! anybody is given it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use buildnet_formats::Digest;
use buildnet_store::Store;

use crate::error::{self, Result};
use crate::image::Image;
use crate::input_tree::InputTree;
use crate::mounting;
use crate::nodes::{Content, Node};
use crate::place::Cursor;
use crate::remove::remove_tree;
use crate::write;

/// It takes `disk_bytes` of the disk until it is removed.
#[derive(Debug)]
pub(crate) struct Layer {
    path: PathBuf,
    mount: Option<OwnedFd>,
    pub(crate) disk_bytes: u64,
}

impl Layer {
    /// Write the whole of `tree` as a directory.
    ///
    /// # Errors
    /// As `write::write`.
    pub(crate) fn directory(store: &Store, root: &Digest, tree: &InputTree, path: &Path) -> Result<Self> {
        let layer = Self { path: path.to_owned(), mount: None, disk_bytes: tree.whole.disk_bytes };
        let made = fs::create_dir(path).and_then(|()| Cursor::open(path));
        let mut cursor = made.map_err(|failed| error::io("make", path, &failed))?;
        write::write(tree, store, root, &mut cursor, path)?;
        Ok(layer)
    }

    /// Write an image and mount it.
    ///
    /// # Errors
    /// As [`Image::write`].
    pub(crate) fn image(store: &Store, image: &Image, path: &Path) -> Result<Self> {
        let failed = |failed: io::Error| error::io("make", path, &failed);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        let mut layer = Self { path: path.to_owned(), mount: None, disk_bytes: image.size_bytes() };
        image.write(store, &file, path)?;
        layer.mount = Some(mounting::image(&file).map_err(|failed| error::io("mount", path, &failed))?);
        Ok(layer)
    }

    /// A layer that hides nothing and holds an empty file `file`: whether such can be mounted here.
    pub(crate) fn probe(path: &Path) -> io::Result<Self> {
        let node = |content| Node { mode: 0o755, mtime: None, content };
        let root = Content::Directory(vec![("file".to_owned(), 1)]);
        let image = Image::new(&[node(root), node(Content::File(Digest::empty()))]).map_err(io::Error::other)?;
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let mut layer = Self { path: path.to_owned(), mount: None, disk_bytes: image.size_bytes() };
        image.write_tables(&file)?;
        layer.mount = Some(mounting::image(&file)?);
        Ok(layer)
    }

    /// Its root, for a mount.
    pub(crate) fn open(&self) -> io::Result<File> {
        let named = |mount: &OwnedFd| PathBuf::from(mounting::path_of(mount.as_raw_fd()));
        let path = self.mount.as_ref().map_or_else(|| self.path.clone(), named);
        File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_PATH).open(path)
    }

    /// Take it off the disk. What cannot be removed goes at the next start.
    pub(crate) fn remove(mut self) {
        self.mount = None;
        let _ = remove_tree(&self.path);
    }
}
