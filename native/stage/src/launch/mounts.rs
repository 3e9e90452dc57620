//! The action's view of the file system: a root of its own that holds what its plan shows, read-only, and nothing else.
//!
//! Runs between clone and exec: no allocation. Everything that comes from the host is copied as a detached mount before
//! the root is changed and attached after; then the host's root goes, so that no path leads back to it.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::os::fd::RawFd;

use super::report::{Failure, Stage};
use super::sys::{self, Errno};

/// Where the execution root is, whatever the host calls it: a tool that writes its directory down writes the same one
/// each time.
pub(crate) const EXECUTION_ROOT: &CStr = c"/buildnet/root";
const EXECUTION_ROOT_PARENT: &CStr = c"/buildnet";

/// A file or directory of the host, and where it appears.
pub(crate) struct Bind {
    pub(crate) source: CString,
    pub(crate) target: CString,
    pub(crate) directory: bool,
    /// The detached copy; open already when the caller brought a mount.
    pub(crate) fd: Cell<RawFd>,
}

/// One entry of the new root; each after the directory that holds it.
pub(crate) enum Entry {
    Directory(CString),
    Symlink { path: CString, target: CString },
    File { path: CString, text: Vec<u8> },
    Bind(Bind),
}

/// All that the action's mount namespace needs, made before clone.
pub(crate) struct Mounts {
    /// A directory of the host to build upon; what it holds is not needed under its own name.
    pub(crate) base: CString,
    pub(crate) entries: Vec<Entry>,
    /// Device files beside `DEVICES`.
    pub(crate) devices: Vec<Bind>,
    /// Directories of the new root that appear empty. One that is not to be seen at all may be named.
    pub(crate) masked: Vec<CString>,
    /// The execution root and the private /tmp, each writable, and a second /tmp where /var/tmp is the host's.
    pub(crate) root: Bind,
    pub(crate) tmp: Bind,
    pub(crate) var_tmp: Option<Bind>,
    /// Options of the tmpfs at /dev/shm.
    pub(crate) shm: CString,
}

/// Device nodes that build tools use; no disk and no terminal.
const DEVICES: [&CStr; 5] = [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom"];

/// Parts of /proc that change the machine: the kernel checks the uid there, not the capability (proc_sysctl.c).
const PROC_SEALED: [&CStr; 4] = [c"/proc/sys", c"/proc/sysrq-trigger", c"/proc/irq", c"/proc/bus"];

const FROM_NOBODY: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

fn at(stage: Stage) -> impl Fn(Errno) -> Failure {
    move |errno| (stage, errno)
}

/// Build the view and make it the only one.
pub(crate) fn enter(mounts: &Mounts) -> Result<(), Failure> {
    let private = libc::MS_REC | libc::MS_PRIVATE;
    sys::mount(c"none", c"/", c"none", private, c"").map_err(at(Stage::MountPrivate))?;
    let devices = clone_devices().map_err(at(Stage::MountClone))?;
    take(mounts).map_err(at(Stage::MountClone))?;
    let host = pivot(&mounts.base).map_err(at(Stage::MountPivot))?;
    private_dev(&devices, &mounts.shm).map_err(at(Stage::MountDev))?;
    for device in &mounts.devices {
        put(device).map_err(at(Stage::MountDev))?;
    }
    put(&mounts.tmp).map_err(at(Stage::MountTmp))?;
    for entry in &mounts.entries {
        lay_out(entry).map_err(at(Stage::MountShown))?;
    }
    if let Some(var_tmp) = &mounts.var_tmp {
        attach(var_tmp).map_err(at(Stage::MountTmp))?;
    }
    sys::mkdir(EXECUTION_ROOT_PARENT, 0o755).and_then(|()| put(&mounts.root)).map_err(at(Stage::MountWritable))?;
    // While the host's is still mounted: a user namespace may mount another only beside one that it sees whole.
    private_proc().map_err(at(Stage::MountProc))?;
    for path in &mounts.masked {
        mask(path).map_err(at(Stage::MountHidden))?;
    }
    leave(host).map_err(at(Stage::MountPivot))?;
    sys::seal_mount(c"/").map_err(at(Stage::MountSeal))
}

/// Copy what the host gives, each with the rights that it will have.
fn take(mounts: &Mounts) -> Result<(), Errno> {
    for entry in &mounts.entries {
        if let Entry::Bind(bind) = entry {
            bind.fd.set(sys::clone_mount(&bind.source)?);
            sys::seal_tree(bind.fd.get())?;
        }
    }
    for bind in &mounts.devices {
        bind.fd.set(sys::clone_mount(&bind.source)?);
        sys::seal_device(bind.fd.get())?;
    }
    for bind in [&mounts.root, &mounts.tmp].into_iter().chain(&mounts.var_tmp) {
        // A root that is a mount of its own is no copy.
        if bind.fd.get() < 0 {
            bind.fd.set(sys::clone_mount(&bind.source)?);
        }
        sys::distrust_tree(bind.fd.get())?;
    }
    Ok(())
}

/// Make an empty root and enter it; returns the host's, which is still mounted beneath.
fn pivot(base: &CStr) -> Result<RawFd, Errno> {
    sys::mount(c"tmpfs", base, c"tmpfs", FROM_NOBODY, c"mode=0755,size=4m")?;
    let host = sys::open(c"/", libc::O_PATH | libc::O_DIRECTORY, 0)?;
    sys::chdir(base)?;
    sys::pivot_root(c".", c".")?;
    Ok(host)
}

/// Nothing of the host can be reached after this.
fn leave(host: RawFd) -> Result<(), Errno> {
    sys::fchdir(host)?;
    sys::detach_mount(c".")?;
    sys::close(host);
    sys::chdir(c"/")
}

fn lay_out(entry: &Entry) -> Result<(), Errno> {
    match entry {
        // It may be there: below /tmp, or /dev.
        Entry::Directory(path) => absent_or(sys::mkdir(path, 0o755)),
        Entry::Symlink { path, target } => sys::symlink(target, path),
        Entry::File { path, text } => {
            let fd = sys::open(path, libc::O_CREAT | libc::O_WRONLY, 0o644)?;
            let written = sys::write(fd, text);
            sys::close(fd);
            written.map(drop)
        }
        Entry::Bind(bind) => put(bind),
    }
}

/// Make the place and attach the copy.
fn put(bind: &Bind) -> Result<(), Errno> {
    if bind.directory {
        absent_or(sys::mkdir(&bind.target, 0o755))?;
    } else {
        sys::close(sys::open(&bind.target, libc::O_CREAT | libc::O_WRONLY, 0o644)?);
    }
    attach(bind)
}

fn attach(bind: &Bind) -> Result<(), Errno> {
    sys::attach_mount(bind.fd.get(), &bind.target)?;
    sys::close(bind.fd.get());
    Ok(())
}

fn absent_or(made: Result<(), Errno>) -> Result<(), Errno> {
    match made {
        Err(libc::EEXIST) => Ok(()),
        made => made,
    }
}

fn mask(path: &CStr) -> Result<(), Errno> {
    match sys::mount(c"tmpfs", path, c"tmpfs", FROM_NOBODY | libc::MS_RDONLY, c"mode=0755,size=4k") {
        // Another mask, or the private /tmp, took it away: then it is hidden already.
        Err(libc::ENOENT | libc::ENOTDIR) => Ok(()),
        mounted => mounted,
    }
}

fn clone_devices() -> Result<[RawFd; DEVICES.len()], Errno> {
    let mut fds = [-1; DEVICES.len()];
    for (slot, path) in fds.iter_mut().zip(DEVICES) {
        match sys::clone_mount(path) {
            Ok(fd) => {
                // Who is uid 0 owns them: it could take the machine's /dev/null from everybody else.
                sys::seal_device(fd)?;
                *slot = fd;
            }
            Err(libc::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(fds)
}

fn private_dev(devices: &[RawFd], shm: &CStr) -> Result<(), Errno> {
    sys::mkdir(c"/dev", 0o755)?;
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
    let options = c"newinstance,ptmxmode=0666,mode=0620";
    // Some kernels refuse devpts to a user namespace: then there are no pseudo-terminals, which builds rarely want.
    let _ = sys::mount(c"devpts", c"/dev/pts", c"devpts", libc::MS_NOSUID | libc::MS_NOEXEC, options);
    sys::mount(c"tmpfs", c"/dev/shm", c"tmpfs", FROM_NOBODY, shm)
}

fn private_proc() -> Result<(), Errno> {
    absent_or(sys::mkdir(c"/proc", 0o555))?;
    let flags = FROM_NOBODY | libc::MS_NOEXEC;
    sys::mount(c"proc", c"/proc", c"proc", flags, c"")?;
    for path in PROC_SEALED {
        match sys::clone_mount(path) {
            Ok(fd) => {
                sys::seal_tree(fd)?;
                sys::attach_mount(fd, path)?;
                sys::close(fd);
            }
            Err(libc::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
