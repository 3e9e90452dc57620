//! What this kernel and this user can really do, found by doing it in a child; opening a device or reading a version says nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libc::c_int;

use super::cgroup::Hierarchies;
use super::mounts::{self, Mounts};
use super::orders::{self, Identity};
use super::sys::{self, Errno};
use super::view::{self, ViewOf};

const BASE: c_int = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Zero, or CLONE_NEWUSER where the other namespaces need it.
    user: c_int,
    pub(crate) namespaces: bool,
    pub(crate) network: bool,
    user_possible: bool,
    pids_possible: bool,
    mounts_possible: bool,
    overlay: bool,
}

impl Found {
    /// Tried once per process.
    pub(crate) fn here() -> &'static Self {
        static HERE: OnceLock<Found> = OnceLock::new();
        HERE.get_or_init(|| {
            // A thread of its own, because signals are blocked while children are made.
            let thread = std::thread::Builder::new().name("buildnet-probe".to_owned());
            let found = thread.spawn(Self::find).ok().and_then(|thread| thread.join().ok());
            found.unwrap_or_else(Self::nothing)
        })
    }

    fn nothing() -> Self {
        Self {
            user: 0,
            namespaces: false,
            network: false,
            user_possible: false,
            pids_possible: false,
            mounts_possible: false,
            overlay: false,
        }
    }

    fn find() -> Self {
        sys::set_signal_mask(true);
        let tmp = Path::new("/tmp");
        let shown = [PathBuf::from("/")];
        let of = ViewOf {
            root: tmp,
            root_mount: None,
            tmp,
            shown: &shown,
            hidden: &[],
            files: &[],
            devices: &[],
            shm_size_bytes: None,
        };
        let Ok(mounts) = view::plan_view(of) else {
            return Self::nothing();
        };
        let view = |try_: &Try| mounts::enter(try_.mounts).map_err(|(_, errno)| errno);
        let attempt = |flags, step| attempt(flags, &mounts, step);
        let user_possible = attempt(libc::CLONE_NEWUSER, |_| Ok(()));
        let direct = attempt(libc::CLONE_NEWNS, |_| Ok(()));
        let user = if direct || !user_possible { 0 } else { libc::CLONE_NEWUSER };
        let full = attempt(user | BASE, view);
        let networked = user | libc::CLONE_NEWNET;
        Self {
            user,
            namespaces: full,
            network: attempt(networked, |_| sys::raise_loopback()),
            user_possible,
            pids_possible: attempt(user | libc::CLONE_NEWPID, |_| Ok(())),
            mounts_possible: full || attempt(user | libc::CLONE_NEWNS, |_| sys::seal_mounts(c"/")),
            overlay: attempt(user | libc::CLONE_NEWNS, |try_| overlay(try_.identity.is_some())),
        }
    }

    /// The clone flags for an action.
    pub(crate) fn flags(&self, network: bool) -> c_int {
        if !self.namespaces {
            return 0;
        }
        let own_network = !network && self.network;
        self.user | BASE | if own_network { libc::CLONE_NEWNET } else { 0 }
    }
}

struct Try<'a> {
    mounts: &'a Mounts,
    identity: Option<Identity>,
}

/// Do `step` in a child with these namespaces; true when it came through.
fn attempt(flags: c_int, mounts: &Mounts, step: fn(&Try) -> Result<(), Errno>) -> bool {
    let Ok(identity) = orders::identity(flags) else {
        return false;
    };
    let try_ = Try { mounts, identity };
    // SAFETY: the child does system calls only, through `sys`, and exits.
    match unsafe { sys::fork_into(flags) } {
        Ok(0) => {
            let mapped = try_.identity.as_ref().map_or(Ok(()), Identity::write);
            let result = mapped.and_then(|()| step(&try_));
            sys::exit(c_int::from(result.is_err()))
        }
        Ok(pid) => sys::wait_for(pid) == 0,
        Err(_) => false,
    }
}

/// Runs in the child: a read-only layer below a writable one, both in memory.
fn overlay(in_user_namespace: bool) -> Result<(), Errno> {
    sys::mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE, c"")?;
    sys::mount(c"tmpfs", c"/tmp", c"tmpfs", 0, c"size=1m")?;
    for dir in [c"/tmp/low", c"/tmp/up", c"/tmp/work", c"/tmp/all"] {
        sys::mkdir(dir, 0o755)?;
    }
    let options = if in_user_namespace {
        c"lowerdir=/tmp/low,upperdir=/tmp/up,workdir=/tmp/work,userxattr"
    } else {
        c"lowerdir=/tmp/low,upperdir=/tmp/up,workdir=/tmp/work"
    };
    sys::mount(c"overlay", c"/tmp/all", c"overlay", 0, options)
}

/// What an operator or a policy may ask: each facility and whether it works here.
pub fn probe_isolation() -> BTreeMap<&'static str, bool> {
    let found = Found::here();
    let groups = Hierarchies::here();
    // SAFETY: cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    BTreeMap::from([
        ("namespaces", found.namespaces),
        ("mount_namespace", found.mounts_possible),
        ("pid_namespace", found.pids_possible),
        ("network_namespace", found.network),
        ("user_namespace", found.user_possible),
        ("overlay", found.overlay),
        ("cgroup", groups.has_memory() || groups.has_pids()),
        ("cgroup_memory", groups.has_memory()),
        ("cgroup_pids", groups.has_pids()),
        ("cgroup_cpu", groups.has_cpu()),
        ("root", root),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flags_are_given_where_nothing_works() {
        assert_eq!(Found::nothing().flags(false), 0);
    }
}
