//! A kept tree as one action sees it: an overlay of the action's own above it. What is written goes to the action's
//! scratch directory, and the tree below stays as it is, whatever the action does, chmod and truncation included.
//!
//! The overlay is a mount that hangs nowhere (fsmount(2)): this process reaches it by its descriptor, and the launcher puts
//! it into the action's own mount namespace. It ends with both.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use libc::{c_int, c_long, c_uint};

use crate::error::{self, Result};
use crate::trees::KeptTree;

const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const MOUNT_ATTR_NOSUID: c_uint = 2;
const MOUNT_ATTR_NODEV: c_uint = 4;

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
        let mount = layered(tree.path(), scratch);
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
        PathBuf::from(format!("/proc/self/fd/{}/.", self.fd()))
    }
}

/// Whether this process may make such mounts with what it writes below `directory`.
pub(crate) fn possible(directory: &Path) -> bool {
    let lower = directory.join("lower");
    fs::create_dir(&lower).is_ok() && layered(&lower, directory).is_ok()
}

fn layered(tree: &Path, scratch: &Path) -> io::Result<OwnedFd> {
    let (upper, work) = (scratch.join(UPPER), scratch.join(WORK));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    // The root of what is seen is that of the upper layer.
    let facts = fs::metadata(tree)?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(facts.mode() & 0o7777))?;
    let times = fs::FileTimes::new().set_modified(facts.modified()?);
    File::open(&upper)?.set_times(times)?;
    let layers = [("lowerdir", tree), ("upperdir", &upper), ("workdir", &work)];
    let mut opened = Vec::with_capacity(layers.len());
    for (option, path) in layers {
        let directory = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_PATH).open(path)?;
        opened.push((option, directory));
    }
    match overlay(&opened, true) {
        // Before Linux 5.10 there is no `volatile`.
        Err(failed) if failed.raw_os_error() == Some(libc::EINVAL) => overlay(&opened, false),
        made => made,
    }
}

/// `volatile`: what is written is never synced, because it is of no use to anybody once this process has ended.
fn overlay(layers: &[(&str, File)], volatile: bool) -> io::Result<OwnedFd> {
    // SAFETY: the name is NUL-terminated.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), FSOPEN_CLOEXEC) })?;
    for (option, directory) in layers {
        // By descriptor: commas and colons of a path would be taken for separators.
        let path = CString::new(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        configure(&context, FSCONFIG_SET_STRING, Some(&CString::new(*option)?), Some(&path))?;
    }
    if volatile {
        configure(&context, FSCONFIG_SET_FLAG, Some(c"volatile"), None)?;
    }
    configure(&context, FSCONFIG_CMD_CREATE, None, None)?;
    let attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    // SAFETY: plain numbers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
}

fn configure(context: &OwnedFd, command: c_uint, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: both strings are NUL-terminated or absent, and outlive the call.
    let done = unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), 0 as c_int)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn owned(fd: c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
