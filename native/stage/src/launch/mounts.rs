//! The action's view of the file system: the host read-only, its own /tmp, /dev and /proc, and nothing else writable.
//!
//! Runs between clone and exec: no allocation. Copies of what stays writable are taken before the host is sealed and
//! attached after, because a copy taken later would be read-only too.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::os::fd::RawFd;

use super::report::{Failure, Stage};
use super::sys::{self, Errno};

/// A directory of the host that appears, writable, at `target`; or a mount that hangs nowhere, when `fd` is open already.
pub(crate) struct Writable {
    pub(crate) source: CString,
    /// Every proper ancestor of `target`, outermost first: hiding or /tmp may have taken them away.
    pub(crate) ancestors: Vec<CString>,
    pub(crate) target: CString,
    pub(crate) fd: Cell<RawFd>,
}

/// A directory of the host that appears empty.
pub(crate) struct Hidden {
    pub(crate) path: CString,
    /// The empty mount itself: its path may lead elsewhere once /tmp is replaced.
    pub(crate) fd: Cell<RawFd>,
}

/// All that the action's mount namespace needs, made before clone.
pub(crate) struct Mounts {
    pub(crate) hidden: Vec<Hidden>,
    pub(crate) tmp: Vec<Writable>,
    pub(crate) writable: Vec<Writable>,
}

/// Device nodes that build tools use; no disk, no terminal but its own.
const DEVICES: [&CStr; 6] = [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom", c"/dev/tty"];

/// Parts of /proc that change the machine: the kernel checks the uid there, not the capability (proc_sysctl.c).
const PROC_SEALED: [&CStr; 4] = [c"/proc/sys", c"/proc/sysrq-trigger", c"/proc/irq", c"/proc/bus"];

fn at(stage: Stage) -> impl Fn(Errno) -> Failure {
    move |errno| (stage, errno)
}

/// Build the view.
pub(crate) fn enter(mounts: &Mounts) -> Result<(), Failure> {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    sys::mount(c"none", c"/", c"none", private, c"").map_err(at(Stage::MountPrivate))?;
    let devices = clone_devices().map_err(at(Stage::MountClone))?;
    for place in mounts.tmp.iter().chain(&mounts.writable).filter(|place| place.fd.get() < 0) {
        let fd = sys::clone_mount(&place.source).map_err(at(Stage::MountClone))?;
        place.fd.set(fd);
    }
    sys::seal_mounts(c"/").map_err(at(Stage::MountSeal))?;
    for hidden in &mounts.hidden {
        hide(hidden).map_err(at(Stage::MountHidden))?;
    }
    private_dev(&devices).map_err(at(Stage::MountDev))?;
    for place in &mounts.tmp {
        attach(place).map_err(at(Stage::MountTmp))?;
    }
    make_ancestors(&mounts.writable);
    for hidden in &mounts.hidden {
        sys::seal_mount_of(hidden.fd.get()).map_err(at(Stage::MountHidden))?;
        sys::close(hidden.fd.get());
    }
    for place in &mounts.writable {
        attach(place).map_err(at(Stage::MountWritable))?;
    }
    private_proc().map_err(at(Stage::MountProc))
}

fn hide(hidden: &Hidden) -> Result<(), Errno> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount(c"tmpfs", &hidden.path, c"tmpfs", flags, c"mode=0755,size=1m")?;
    hidden.fd.set(sys::open(&hidden.path, libc::O_PATH, 0)?);
    Ok(())
}

fn attach(place: &Writable) -> Result<(), Errno> {
    sys::attach_mount(place.fd.get(), &place.target)?;
    sys::close(place.fd.get());
    Ok(())
}

/// Only what hiding or the new /tmp took away is really made; the rest exists or is read-only, and attaching tells.
fn make_ancestors(places: &[Writable]) {
    for place in places {
        for ancestor in &place.ancestors {
            let _ = sys::mkdir(ancestor, 0o755);
        }
        let _ = sys::mkdir(&place.target, 0o755);
    }
}

fn clone_devices() -> Result<[RawFd; DEVICES.len()], Errno> {
    let mut fds = [-1; DEVICES.len()];
    for (slot, path) in fds.iter_mut().zip(DEVICES) {
        match sys::clone_mount(path) {
            Ok(fd) => *slot = fd,
            Err(libc::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(fds)
}

fn private_dev(devices: &[RawFd]) -> Result<(), Errno> {
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    sys::mount(c"tmpfs", c"/dev", c"tmpfs", flags, c"mode=0755,size=1m")?;
    for (&fd, path) in devices.iter().zip(DEVICES) {
        if fd >= 0 {
            sys::close(sys::open(path, libc::O_CREAT | libc::O_WRONLY, 0o666)?);
            sys::attach_mount(fd, path)?;
            sys::close(fd);
        }
    }
    sys::symlink(c"/proc/self/fd", c"/dev/fd")?;
    sys::symlink(c"/proc/self/fd/0", c"/dev/stdin")?;
    sys::symlink(c"/proc/self/fd/1", c"/dev/stdout")?;
    sys::symlink(c"/proc/self/fd/2", c"/dev/stderr")?;
    sys::symlink(c"pts/ptmx", c"/dev/ptmx")?;
    sys::mkdir(c"/dev/pts", 0o755)?;
    sys::mkdir(c"/dev/shm", 0o1777)?;
    sys::seal_devices(c"/dev")?;
    let options = c"newinstance,ptmxmode=0666,mode=0620";
    // Some kernels refuse devpts to a user namespace: then there are no pseudo-terminals, which builds rarely want.
    let _ = sys::mount(c"devpts", c"/dev/pts", c"devpts", flags, options);
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    sys::mount(c"tmpfs", c"/dev/shm", c"tmpfs", flags, c"mode=1777")
}

fn private_proc() -> Result<(), Errno> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    sys::mount(c"proc", c"/proc", c"proc", flags, c"")?;
    for path in PROC_SEALED {
        match sys::clone_mount(path) {
            Ok(fd) => {
                sys::attach_mount(fd, path)?;
                sys::close(fd);
                sys::seal_mounts(path)?;
            }
            Err(libc::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
