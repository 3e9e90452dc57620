//! A command started as vfork would, on a stack of its own and, where the kernel can, within its control group.

use std::os::fd::{AsRawFd, OwnedFd};

use libc::{c_int, c_void};

use super::{Errno, errno};

const STACK_BYTES: usize = 64 << 10;
const FLAGS: c_int = libc::CLONE_VM | libc::CLONE_VFORK;

/// What the child runs: it shares memory with its parent, which stands still meanwhile, and ends in exec or exit.
pub(crate) type Main = extern "C" fn(*mut c_void) -> c_int;

/// Start `main` as a process of its own.
///
/// # Safety
/// `main` must not return, and `argument` must be what it expects.
pub(crate) unsafe fn start(main: Main, argument: *mut c_void) -> Result<libc::pid_t, Errno> {
    let stack = Vec::<u8>::with_capacity(STACK_BYTES);
    // SAFETY: the child runs on its own stack while this thread is suspended; it ends in exec or exit.
    let pid = unsafe { libc::clone(main, top_of(&stack) as *mut c_void, FLAGS | libc::SIGCHLD, argument) };
    if pid < 0 { Err(errno()) } else { Ok(pid) }
}

/// Likewise, in the group of version 2 whose directory this is.
///
/// A process that is moved there afterwards waits for every processor to have paused: 16 ms for a start that comes alone,
/// where one that is born there waits for nothing (kernel/cgroup/cgroup.c, `cgroup_attach_lock` and `cgroup_css_set_fork`).
///
/// It dies at its birth where `cgroup.kill` was ever used on the group, or on the parent's, but not equally often: seen with
/// Linux 6.1.176 and 6.18.44, which compare the one's count of such kills with the other's.
///
/// # Errors
/// ENOSYS where the kernel (before 5.7), a filter of calls or this kind of processor has no such call.
///
/// # Safety
/// As for `start`.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn start_within(group: &OwnedFd, main: Main, argument: *mut c_void) -> Result<libc::pid_t, Errno> {
    let stack = Vec::<u8>::with_capacity(STACK_BYTES);
    let bottom = stack.as_ptr() as u64;
    let call = CloneArgs {
        flags: FLAGS.cast_unsigned().into(),
        exit_signal: libc::SIGCHLD.cast_unsigned().into(),
        stack: bottom,
        stack_size: top_of(&stack) as u64 - bottom,
        cgroup: group.as_raw_fd().cast_unsigned().into(),
        ..CloneArgs::default()
    };
    let call = CloneArgs { flags: call.flags | CLONE_INTO_CGROUP, ..call };
    let result: libc::c_long;
    // SAFETY: the kernel reads `call`. Parent and child come back here; the child has the new stack, so it may use nothing
    // of this frame but registers, and goes on in `main`, which never returns.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const call,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") argument,
            in("r13") main,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    let result = c_int::try_from(result).unwrap_or(-libc::EOVERFLOW);
    if result < 0 { Err(-result) } else { Ok(result) }
}

/// Nowhere else is it built: who asks moves the process afterwards.
///
/// # Safety
/// Does nothing.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn start_within(_: &OwnedFd, _: Main, _: *mut c_void) -> Result<libc::pid_t, Errno> {
    Err(libc::ENOSYS)
}

#[cfg(target_arch = "x86_64")]
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// clone3(2), `struct clone_args` as of Linux 5.7.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// The highest aligned address: stacks grow down.
fn top_of(stack: &Vec<u8>) -> usize {
    (stack.as_ptr() as usize + stack.capacity()) & !0xF
}

/// Whether a descriptor is of a directory.
pub(crate) fn is_directory(fd: &OwnedFd) -> bool {
    // SAFETY: stat is plain data; all zeroes is a valid value, and it is valid for the call.
    let mut about: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    unsafe { libc::fstat(fd.as_raw_fd(), &raw mut about) == 0 && about.st_mode & libc::S_IFMT == libc::S_IFDIR }
}
