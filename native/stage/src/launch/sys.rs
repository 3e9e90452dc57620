//! Thin system calls for the code that runs between clone and exec: they never allocate, lock or panic.
//!
//! After clone in a process with other threads only async-signal-safe work is allowed (signal-safety(7)), so each
//! wrapper takes C strings made beforehand and returns the bare errno.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_long, c_uint, c_ulong, c_void};

mod mount;
mod start;

pub(crate) use mount::*;
pub(crate) use start::*;

/// A bare errno: making an `io::Error` is safe here too, but the report to the parent is a number anyway.
pub(crate) type Errno = c_int;

const SIOCGIFFLAGS: c_ulong = 0x8913;
const SIOCSIFFLAGS: c_ulong = 0x8914;
const PR_CAPBSET_READ: c_int = 23;
const PR_CAPBSET_DROP: c_int = 24;
const PR_CAP_AMBIENT: c_int = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: c_ulong = 4;
const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Above every capability that a kernel has; dropping one that does not exist is EINVAL and ends the loop.
const CAPABILITY_MAX: c_ulong = 63;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

pub(crate) fn errno() -> Errno {
    // SAFETY: the location of errno is valid in every thread.
    unsafe { *libc::__errno_location() }
}

/// Where this thread keeps its errno, so what it has for itself.
pub(crate) fn errno_address() -> usize {
    // SAFETY: as in `errno`.
    unsafe { libc::__errno_location() as usize }
}

fn check(result: c_long) -> Result<c_long, Errno> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn check_int(result: c_int) -> Result<c_int, Errno> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// clone(2) without a new stack: fork that skips libc's handlers and may make namespaces.
///
/// # Safety
/// The child may only do async-signal-safe work until it exits or execs.
pub(crate) unsafe fn fork_into(flags: c_int) -> Result<libc::pid_t, Errno> {
    let flags = (flags | libc::SIGCHLD) as c_ulong;
    // SAFETY: no pointers are passed; the caller keeps the child async-signal-safe.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0u64, 0u64, 0u64, 0u64) };
    check(pid).map(|pid| pid as libc::pid_t)
}

/// As `fork_into`, with a descriptor of the new process: None in the child.
///
/// # Safety
/// As for `fork_into`.
pub(crate) unsafe fn fork_with_pidfd(flags: c_int) -> Result<Option<(libc::pid_t, OwnedFd)>, Errno> {
    let flags = (flags | libc::CLONE_PIDFD | libc::SIGCHLD) as c_ulong;
    let mut process: RawFd = -1;
    // SAFETY: the kernel writes the descriptor to `process`; the caller keeps the child async-signal-safe.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0u64, &raw mut process, 0u64, 0u64) })?;
    // SAFETY: the kernel just gave it to us.
    Ok((pid != 0).then(|| (pid as libc::pid_t, unsafe { OwnedFd::from_raw_fd(process) })))
}

pub(crate) fn mkdir(path: &CStr, mode: libc::mode_t) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated.
    check_int(unsafe { libc::mkdir(path.as_ptr(), mode) }).map(drop)
}

pub(crate) fn symlink(target: &CStr, path: &CStr) -> Result<(), Errno> {
    // SAFETY: both are NUL-terminated.
    check_int(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) }).map(drop)
}

pub(crate) fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` is NUL-terminated.
    check_int(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

pub(crate) fn fchdir(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: plain number.
    check_int(unsafe { libc::fchdir(fd) }).map(drop)
}

pub(crate) fn open(path: &CStr, flags: c_int, mode: c_uint) -> Result<RawFd, Errno> {
    // SAFETY: `path` is NUL-terminated.
    check_int(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) })
}

pub(crate) fn close(fd: RawFd) {
    // SAFETY: closing a number that is not open is EBADF, nothing else. Nothing is left to do when close fails.
    unsafe { libc::close(fd) };
}

pub(crate) fn write_file(path: &CStr, text: &[u8]) -> Result<(), Errno> {
    let fd = open(path, libc::O_WRONLY, 0)?;
    let result = write(fd, text);
    close(fd);
    result.map(drop)
}

pub(crate) fn write(fd: RawFd, data: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the slice is valid for its length.
    check(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) } as c_long).map(|n| n as usize)
}

pub(crate) fn read(fd: RawFd, data: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the slice is valid for its length.
    check(unsafe { libc::read(fd, data.as_mut_ptr().cast(), data.len()) } as c_long).map(|n| n as usize)
}

pub(crate) fn dup_to(from: RawFd, to: RawFd) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    check_int(unsafe { libc::dup2(from, to) }).map(drop)
}

/// Close every descriptor from `first` on except those in `keep`, which is sorted.
pub(crate) fn close_all_but(first: RawFd, keep: &[RawFd]) -> Result<(), Errno> {
    let mut next = first;
    for &fd in keep {
        if fd > next {
            close_range(next, fd - 1)?;
        }
        next = next.max(fd + 1);
    }
    close_range(next, c_int::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    // SAFETY: plain numbers; no descriptor in the range is used again by this process.
    check(unsafe { libc::syscall(libc::SYS_close_range, first as c_uint, last as c_uint, 0) }).map(drop)
}

pub(crate) fn prctl(option: c_int, argument: c_ulong) -> Result<(), Errno> {
    // SAFETY: only options that take numbers are used.
    check_int(unsafe { libc::prctl(option, argument, 0, 0, 0) }).map(drop)
}

/// Keep every program that is executed later from capabilities; what this process has it keeps.
pub(crate) fn bound_capabilities() -> Result<(), Errno> {
    for capability in 0..=CAPABILITY_MAX {
        match prctl(PR_CAPBSET_DROP, capability) {
            // EPERM: an ordinary user has none to drop. EINVAL: past the last one that this kernel knows.
            Ok(()) => {}
            Err(libc::EPERM | libc::EINVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Give up every capability for good: uid 0 without them cannot remount, make devices or load modules.
pub(crate) fn drop_capabilities() -> Result<(), Errno> {
    // SAFETY: plain numbers. The launcher has bounded its children; a user namespace begins unbounded (create_user_ns).
    let bounded = unsafe { libc::prctl(PR_CAPBSET_READ, 0 as c_ulong) } == 0;
    if !bounded {
        bound_capabilities()?;
    }
    match prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL) {
        Ok(()) | Err(libc::EINVAL) => {}
        Err(errno) => return Err(errno),
    }
    let header = CapHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let data = [CapData::default(); 2];
    // SAFETY: version 3 reads two data records.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Step into a new network, which has nothing but a loopback that is down.
pub(crate) fn leave_network() -> Result<(), Errno> {
    // SAFETY: plain number.
    check_int(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Step into the network that this descriptor names.
pub(crate) fn enter_network(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: plain numbers.
    check_int(unsafe { libc::setns(fd, libc::CLONE_NEWNET) }).map(drop)
}

/// The loopback of a new network namespace starts down.
pub(crate) fn raise_loopback() -> Result<(), Errno> {
    // SAFETY: plain numbers.
    let socket = check_int(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: ifreq is plain data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = *byte as libc::c_char;
    }
    // SAFETY: the request lives through both calls.
    let result = check_int(unsafe { libc::ioctl(socket, SIOCGIFFLAGS as _, &raw mut request) }).and_then(|_| {
        // SAFETY: the union holds flags after SIOCGIFFLAGS.
        unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
        // SAFETY: as above.
        check_int(unsafe { libc::ioctl(socket, SIOCSIFFLAGS as _, &raw mut request) })
    });
    close(socket);
    result.map(drop)
}

pub(crate) fn set_limit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> Result<(), Errno> {
    // Asking for more than the hard limit that we have would fail; a lower one already there is as good.
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `now` is valid for the call.
    check_int(unsafe { libc::getrlimit(resource, &raw mut now) })?;
    let wanted = libc::rlimit { rlim_cur: soft.min(now.rlim_max), rlim_max: hard.min(now.rlim_max) };
    // SAFETY: `wanted` is valid for the call.
    check_int(unsafe { libc::setrlimit(resource, &raw const wanted) }).map(drop)
}

/// Every signal to its default: Python ignores SIGPIPE, and ignoring survives exec.
pub(crate) fn reset_signals() {
    // The kernel's own call: libc refuses the two signals that it keeps, and they may have been ignored by our parent.
    // All zeros is SIG_DFL with no flags and an empty mask (struct sigaction of the kernel, rt_sigaction(2)).
    let default = [0u64; 4];
    for signal in 1..65 {
        // SAFETY: `default` outlives the call; SIGKILL and SIGSTOP answer EINVAL, which is harmless.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), size_of::<u64>())
        };
    }
}

/// Block every signal, or none.
pub(crate) fn set_signal_mask(block: bool) {
    // SAFETY: sigset_t is plain data and initialised by sigfillset or sigemptyset.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        if block {
            libc::sigfillset(&raw mut set);
        } else {
            libc::sigemptyset(&raw mut set);
        }
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// A descriptor that is readable while a SIGCHLD is pending.
pub(crate) fn child_signal_fd() -> Result<RawFd, Errno> {
    // SAFETY: as in `set_signal_mask`.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check_int(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// The caller's pid, asked of the kernel: libc may remember the parent's.
pub(crate) fn getpid() -> libc::pid_t {
    // SAFETY: no arguments.
    unsafe { libc::syscall(libc::SYS_getpid) as libc::pid_t }
}

pub(crate) fn kill(pid: libc::pid_t, signal: c_int) {
    // SAFETY: plain numbers. ESRCH means that it is gone, which is what was wanted.
    unsafe { libc::kill(pid, signal) };
}

/// SIGKILL to the process of a pidfd. ESRCH means that it is gone, which is what was wanted.
pub(crate) fn kill_process(process: &OwnedFd) {
    // SAFETY: plain numbers and no siginfo.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, std::ptr::null::<c_void>(), 0u64)
    };
}

/// Return once a descriptor is readable: a pidfd is when its process has ended.
pub(crate) fn wait_readable(fd: &OwnedFd) {
    let mut polled = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry.
    while unsafe { libc::poll(&raw mut polled, 1, -1) } < 0 && errno() == libc::EINTR {}
}

/// Each child of this thread that the kernel lists. False when it keeps no list.
pub(crate) fn for_each_child(mut each: impl FnMut(libc::pid_t)) -> bool {
    let Ok(fd) = open(c"/proc/thread-self/children", libc::O_RDONLY, 0) else {
        return false;
    };
    let mut text = [0u8; 4096];
    let count = read(fd, &mut text).unwrap_or(0);
    close(fd);
    let mut pid: libc::pid_t = 0;
    for &byte in text.iter().take(count) {
        if byte.is_ascii_digit() {
            pid = pid.saturating_mul(10).saturating_add(libc::pid_t::from(byte - b'0'));
        } else {
            // A number cut at the end of the buffer is dropped: the next round sees it whole.
            if pid > 1 {
                each(pid);
            }
            pid = 0;
        }
    }
    true
}

/// A standard stream at a number of its own.
pub(crate) fn take_standard(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: plain numbers; the result is ours.
    let moved = check_int(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// A child that was reaped. The usage is its own and that of all that it had reaped itself.
pub(crate) struct Reaped {
    pub(crate) pid: libc::pid_t,
    pub(crate) wait_status: c_int,
    pub(crate) usage: libc::rusage,
}

/// One reaped child, or None when none has ended (`block` false) or none exists.
pub(crate) fn wait_any(block: bool) -> Option<Reaped> {
    let mut wait_status = 0;
    // SAFETY: rusage is plain data; all zeroes is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let flags = if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: both are valid for the call.
        let pid = unsafe { libc::wait4(-1, &raw mut wait_status, flags | libc::__WALL, &raw mut usage) };
        if pid > 0 {
            return Some(Reaped { pid, wait_status, usage });
        }
        if pid == 0 || errno() != libc::EINTR {
            return None;
        }
    }
}

/// The wait status of one child of ours, once it has ended.
pub(crate) fn wait_for(pid: libc::pid_t) -> c_int {
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } < 0 && errno() == libc::EINTR {}
    status
}

/// CLOCK_MONOTONIC, which all processes of a machine share: no action has a time namespace.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

pub(crate) fn exit(status: c_int) -> ! {
    // SAFETY: ends the process without running any handler.
    unsafe { libc::_exit(status) }
}

pub(crate) fn nap_ms(ms: i64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
    // SAFETY: `time` is valid for the call; waking early is harmless.
    unsafe { libc::nanosleep(&raw const time, std::ptr::null_mut()) };
}

/// A close-on-exec pipe: (read end, write end), both above the standard three.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0 as RawFd; 2];
    // SAFETY: the array has room for two.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us both.
    let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    Ok((above_stdio(read)?, above_stdio(write)?))
}

/// Have a pipe hold more, where the kernel allows it: whoever fills it waits less often.
pub(crate) fn widen(pipe: &OwnedFd, size_bytes: usize) {
    let size = c_int::try_from(size_bytes).unwrap_or(c_int::MAX);
    // SAFETY: no pointer is given. A refusal (pipe-user-pages-soft) leaves the pipe as it is.
    unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
}

/// The same file at a number past 2: a worker started with a closed stdin would otherwise hand out 0.
pub(crate) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    // SAFETY: plain numbers; the result is ours.
    let moved = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

pub(crate) fn event_fd() -> io::Result<OwnedFd> {
    // SAFETY: plain numbers; the result is ours.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    above_stdio(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Add one to an eventfd. A full counter is already signalled.
pub(crate) fn raise_event(fd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight bytes, as eventfd(2) wants.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast::<c_void>(), one.len()) };
}

/// Take what an eventfd holds, so that it is quiet until the next event.
pub(crate) fn clear_event(fd: &OwnedFd) {
    let mut count = [0u8; 8];
    // SAFETY: eight bytes, as eventfd(2) wants; EAGAIN means that it was quiet.
    unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast::<c_void>(), count.len()) };
}
