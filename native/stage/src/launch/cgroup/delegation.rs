//! Groups of version 2 that were handed to the worker to divide: what runs there moves to a leaf, so that others may stand
//! beside it. A group of anybody else's is never touched.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where the worker and its neighbours go; systemd from 254 on can do so itself (systemd.unit(5), DelegateSubgroup=).
const LEAF: &str = "buildnet-self";
/// Members that start others while they are moved are seen in the next round.
const ROUNDS: usize = 100;

/// Whether `own`, where this process is, was handed over, and is now without processes of its own: only then may it share
/// out its controllers (cgroup-v2.rst, "No Internal Process Constraint").
pub(super) fn vacate(own: &Path, mount: &Path) -> bool {
    if !is_handed_over(own, mount) {
        return false;
    }
    let leaf = own.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return false,
        _ => {}
    }
    let emptied = (0..ROUNDS).find_map(|_| move_all(own, &leaf)).unwrap_or(false);
    if !emptied {
        // Nothing, unless it is empty.
        let _ = fs::remove_dir(&leaf);
    }
    emptied
}

/// systemd says so on the directory (its cgroup delegation document). A container's root is its own: nobody in it has
/// anything above, and a real root, which needs no leaf, has no type.
fn is_handed_over(own: &Path, mount: &Path) -> bool {
    let marked = ["user.delegate", "trusted.delegate"].into_iter().any(|name| attribute_is_one(own, name));
    marked || (own == mount && own.join("cgroup.type").exists())
}

/// None while there may be more to move.
fn move_all(from: &Path, to: &Path) -> Option<bool> {
    let Ok(members) = fs::read_to_string(from.join("cgroup.procs")) else { return Some(false) };
    if members.is_empty() {
        return Some(true);
    }
    for member in members.lines() {
        match fs::write(to.join("cgroup.procs"), member) {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(_) => return Some(false),
            Ok(()) => {}
        }
    }
    None
}

fn attribute_is_one(path: &Path, name: &str) -> bool {
    let texts = (CString::new(path.as_os_str().as_bytes()), CString::new(OsStr::new(name).as_bytes()));
    let (Ok(path), Ok(name)) = texts else { return false };
    let mut value = [0u8; 8];
    // SAFETY: both are NUL-terminated, and the kernel writes no more than the given size.
    let size = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    usize::try_from(size).is_ok_and(|size| value[..size] == *b"1")
}
