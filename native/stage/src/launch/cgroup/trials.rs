//! What can really be done with a group somewhere, found by making one that goes at once.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use super::super::sys;
use super::{MEMBERS, make, remove, unique};

/// Whether a process of ours can really enter a new group there that has this limit.
pub(super) fn can_bound(dir: &Path, file: &str) -> bool {
    with_probe(dir, |group| group.join(file).exists() && can_enter(group))
}

/// What is found with a new group there, which then goes.
pub(super) fn with_probe(dir: &Path, find: impl Fn(&Path) -> bool) -> bool {
    let name = unique("probe");
    let Ok(group) = make(dir, &name) else {
        return false;
    };
    let found = find(&group);
    remove(dir, &name) && found
}

fn can_enter(group: &Path) -> bool {
    let Ok(procs) = OpenOptions::new().write(true).open(group.join(MEMBERS)) else {
        return false;
    };
    // SAFETY: the child makes one system call and exits.
    match unsafe { sys::fork_into(0) } {
        Ok(0) => sys::exit(i32::from(sys::write(procs.as_raw_fd(), b"0").is_err())),
        Ok(pid) => sys::wait_for(pid) == 0,
        Err(_) => false,
    }
}

pub(super) fn can_be_born(group: &Path) -> bool {
    extern "C" fn leave(_: *mut libc::c_void) -> libc::c_int {
        sys::exit(0)
    }
    let Ok(group) = File::open(group) else { return false };
    // SAFETY: `leave` does not return, and looks at no argument.
    let started = unsafe { sys::start_within(&group.into(), leave, std::ptr::null_mut()) };
    // It can have died of what nobody did to it: see there.
    started.is_ok_and(|pid| sys::wait_for(pid) == 0)
}
