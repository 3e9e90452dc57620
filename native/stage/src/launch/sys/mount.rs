//! Calls that mount, copy, move and seal mounts, under the law of `sys`: they never allocate, lock or panic.

use std::ffi::CStr;
use std::os::fd::RawFd;

use libc::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MOVE_MOUNT_F_EMPTY_PATH, OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE, c_int, c_uint, c_ulong, mount_attr,
};

use super::{Errno, check, check_int};

pub(crate) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: c_ulong, data: &CStr) -> Result<(), Errno> {
    // SAFETY: all arguments are NUL-terminated strings that outlive the call.
    check_int(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) })
        .map(drop)
}

/// A detached copy of the mounts at and below `path`.
pub(crate) fn clone_mount(path: &CStr) -> Result<RawFd, Errno> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as c_uint;
    // SAFETY: `path` is NUL-terminated.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    check(fd).map(|fd| fd as RawFd)
}

pub(crate) fn attach_mount(fd: RawFd, target: &CStr) -> Result<(), Errno> {
    // SAFETY: both strings are NUL-terminated.
    check(unsafe {
        libc::syscall(libc::SYS_move_mount, fd, c"".as_ptr(), libc::AT_FDCWD, target.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    })
    .map(drop)
}

/// Make everything mounted at and below `path` read-only, without devices and set-uid programs (Linux 5.12).
pub(crate) fn seal_mounts(path: &CStr) -> Result<(), Errno> {
    let attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    set_mount_attributes(libc::AT_FDCWD, path, libc::AT_RECURSIVE, attributes)
}

/// Make one mount read-only, and none below it.
pub(crate) fn seal_mount(path: &CStr) -> Result<(), Errno> {
    set_mount_attributes(libc::AT_FDCWD, path, 0, MOUNT_ATTR_RDONLY)
}

/// As `seal_mounts`, of a detached copy.
pub(crate) fn seal_tree(fd: RawFd) -> Result<(), Errno> {
    let attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    set_mount_attributes(fd, c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, attributes)
}

/// A detached copy of one device: it works as it did (a mount that is read-only does not bound what is written to devices),
/// but its mode, owner and times, which it shares with the machine's own, stay as they are.
pub(crate) fn seal_device(fd: RawFd) -> Result<(), Errno> {
    set_mount_attributes(fd, c"", libc::AT_EMPTY_PATH, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID)
}

/// Let a detached copy be written, but let no device and no set-uid program in it work.
pub(crate) fn distrust_tree(fd: RawFd) -> Result<(), Errno> {
    let attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    set_mount_attributes(fd, c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, attributes)
}

/// pivot_root(2): with the same path twice the old root is stacked beneath the new one.
pub(crate) fn pivot_root(new: &CStr, old: &CStr) -> Result<(), Errno> {
    // SAFETY: both are NUL-terminated.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, new.as_ptr(), old.as_ptr()) }).map(drop)
}

/// Take a mount out of sight at once; it goes when its last user does.
pub(crate) fn detach_mount(path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated.
    check_int(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

fn set_mount_attributes(dir: RawFd, path: &CStr, flags: c_int, attr_set: u64) -> Result<(), Errno> {
    let attr = mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `attr` lives through the call and its size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            flags as c_ulong,
            &raw const attr,
            size_of::<mount_attr>(),
        )
    })
    .map(drop)
}
