//! File systems mounted where nobody sees them: each hangs nowhere (fsmount(2)), is reached by its descriptor, and goes with
//! the last one. No name of the host is hidden or taken by one.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{
    FSCONFIG_CMD_CREATE, FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSMOUNT_CLOEXEC, FSOPEN_CLOEXEC, MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, c_int, c_long, c_uint,
};

/// An overlay of `layers`, the topmost first, and of the two directories that take what is written.
///
/// `volatile`: what is written is never synced, because it is of no use to anybody once this process has ended.
pub(crate) fn overlay(layers: &[File], upper: &File, work: &File, volatile: bool) -> io::Result<OwnedFd> {
    let context = open(c"overlay")?;
    // By descriptor: commas and colons of a path would be taken for separators.
    let layers: Vec<String> = layers.iter().map(|layer| path_of(layer.as_raw_fd())).collect();
    let options = [
        (c"lowerdir", layers.join(":")),
        (c"upperdir", path_of(upper.as_raw_fd())),
        (c"workdir", path_of(work.as_raw_fd())),
        // Numbers of inodes stay when a file is copied up from a file system that is not the upper layer's.
        (c"xino", "auto".to_owned()),
    ];
    for (option, value) in options {
        configure(&context, FSCONFIG_SET_STRING, Some(option), Some(&CString::new(value)?))?;
    }
    if volatile {
        configure(&context, FSCONFIG_SET_FLAG, Some(c"volatile"), None)?;
    }
    made(&context, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
}

/// The file system that is in a file, read-only (EROFS on a file: Linux 6.12).
pub(crate) fn image(file: &File) -> io::Result<OwnedFd> {
    let context = open(c"erofs")?;
    let source = CString::new(path_of(file.as_raw_fd()))?;
    configure(&context, FSCONFIG_SET_STRING, Some(c"source"), Some(&source))?;
    configure(&context, FSCONFIG_SET_FLAG, Some(c"ro"), None)?;
    made(&context, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_RDONLY)
}

/// A path of this process that leads to what a descriptor names.
pub(crate) fn path_of(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}

fn open(kind: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name is NUL-terminated.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })
}

fn made(context: &OwnedFd, attributes: u64) -> io::Result<OwnedFd> {
    configure(context, FSCONFIG_CMD_CREATE, None, None)?;
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
