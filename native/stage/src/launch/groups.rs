//! Control groups that wait for their next action: to make and remove one costs the kernel as much as to start a process.
//!
//! Only a group that is empty, has the very same limits and holds little of an earlier action's cache is used again.
//! The launcher removes those that are left when the worker ends (`cgroup::remove_all_of`).

use std::io;
use std::sync::{Mutex, MutexGuard};

use super::cgroup::{Group, Sight, Wants};

/// More slots than this make and remove some of theirs.
const IDLE_MAX: usize = 64;

static IDLE: Mutex<Vec<Group>> = Mutex::new(Vec::new());

/// A group with these limits; `Ok(None)` when there is nothing to bound or nothing to bound it with.
pub(crate) fn take(name: &str, wants: Wants) -> io::Result<Option<Group>> {
    let mut idle = lock();
    if let Some(index) = idle.iter().position(|group| group.wants == wants) {
        return Ok(Some(idle.swap_remove(index)));
    }
    drop(idle);
    Group::make(name, wants)
}

/// An action in it has ended, and this is what it saw.
pub(crate) fn give_back(mut group: Group, seen: Sight) {
    if group.renew(seen) {
        let mut idle = lock();
        if idle.len() < IDLE_MAX {
            idle.push(group);
        } else {
            // Of limits that nobody asked for lately: the oldest goes.
            let oldest = std::mem::replace(&mut idle[0], group);
            drop(idle);
            drop(oldest);
        }
    }
}

/// A panic elsewhere leaves the list whole: every change is one call.
fn lock() -> MutexGuard<'static, Vec<Group>> {
    IDLE.lock().unwrap_or_else(|lock| lock.into_inner())
}
