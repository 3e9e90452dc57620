//! A kept tree as one action sees it: an overlay of the action's own above it. What is written goes to the action's
//! scratch directory, and the tree below stays as it is, whatever the action does, chmod and truncation included.
//!
//! The overlay is a mount that hangs nowhere (fsmount(2)): this process reaches it by its descriptor, and the launcher puts
//! it into the action's own mount namespace. It ends with both.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{self, Result};
use crate::layer::Layer;
use crate::mounting;
use crate::trees::KeptTree;

/// What the action changes, and what the kernel needs beside it (overlayfs.rst: an empty directory on the same filesystem).
const UPPER: &str = "upper";
const WORK: &str = "work";

/// Keeps its tree in use, and the mount alive.
#[derive(Debug)]
pub struct View {
    mount: OwnedFd,
    _tree: KeptTree,
}

impl View {
    pub(crate) fn new(tree: KeptTree, scratch: &Path) -> Result<Self> {
        let mount = tree.open().and_then(|layers| layered(&layers, scratch));
        let mount = mount.map_err(|failed| error::io("lay a layer over an input tree in", scratch, &failed))?;
        Ok(Self { mount, _tree: tree })
    }

    /// The mount.
    pub fn fd(&self) -> RawFd {
        self.mount.as_raw_fd()
    }

    /// A path of this process that leads to its root while this lives.
    pub fn path(&self) -> PathBuf {
        // The dot, because the name before it is a symlink, which careful callers refuse as their last step.
        PathBuf::from(format!("{}/.", mounting::path_of(self.fd())))
    }
}

/// Whether this process may make such mounts of a directory, with what it writes below `directory`.
pub(crate) fn possible(directory: &Path) -> bool {
    let lower = directory.join("lower");
    fs::create_dir(&lower).and_then(|()| opened(&lower)).and_then(|lower| layered(&[lower], directory)).is_ok()
}

/// As `possible`, of this layer, which has a `file`.
pub(crate) fn possible_over(layer: &Layer, directory: &Path) -> bool {
    let seen = || -> io::Result<fs::Metadata> {
        let mount = layered(&[layer.open()?], directory)?;
        fs::metadata(PathBuf::from(mounting::path_of(mount.as_raw_fd())).join("file"))
    };
    seen().is_ok_and(|facts| facts.is_file())
}

fn opened(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_PATH).open(path)
}

/// `layers`: the topmost first.
fn layered(layers: &[File], scratch: &Path) -> io::Result<OwnedFd> {
    let (upper, work) = (scratch.join(UPPER), scratch.join(WORK));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    // The root of what is seen is that of the upper layer.
    let top = layers.first().ok_or(io::ErrorKind::InvalidInput)?;
    let facts = top.metadata()?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(facts.mode() & 0o7777))?;
    let times = fs::FileTimes::new().set_modified(facts.modified()?);
    File::open(&upper)?.set_times(times)?;
    let (upper, work) = (opened(&upper)?, opened(&work)?);
    match mounting::overlay(layers, &upper, &work, true) {
        // Before Linux 5.10 there is no `volatile`.
        Err(failed) if failed.raw_os_error() == Some(libc::EINVAL) => mounting::overlay(layers, &upper, &work, false),
        made => made,
    }
}
