//! System calls by which one action could leave something for another past every namespace: the kernel answers as if
//! it had none of them, to all that the launcher starts.
//!
//! Keyrings belong to the user id, so to every action of a worker and to the machine's own user (keyrings(7)): none of
//! the three calls for them works. Sockets of some families are in no network namespace (vsock(7) reaches the machine
//! below this one): there are only those that a namespace holds. io_uring makes sockets past any filter, so it goes
//! with them. Also where an action has the machine's network: to install a filter costs 0.1 ms of processor time, once
//! for each worker and not for each action. It refuses nothing else: a sandbox for builds must run what compilers and
//! tests do.

use std::mem::offset_of;

use libc::{c_int, c_ulong, sock_filter, sock_fprog};

use super::sys::{self, Errno};

/// One way in which programs call the kernel, with its numbers (asm/unistd*.h); libc tells the native ones.
struct Calls {
    arch: u32,
    /// add_key, request_key, keyctl.
    keys: [u32; 3],
    socket: u32,
    /// The older call for all that sockets do, whose arguments a filter cannot see.
    socketcall: Option<u32>,
}

/// The same everywhere since it is newer than the last reform of the numbers.
const IO_URING_SETUP: u32 = 425;

#[cfg(target_arch = "x86_64")]
const CALLS: &[Calls] = &[
    Calls { arch: 0xC000_003E, keys: [248, 249, 250], socket: 41, socketcall: None },
    Calls { arch: 0x4000_0003, keys: [286, 287, 288], socket: 359, socketcall: Some(102) },
];
#[cfg(target_arch = "aarch64")]
const CALLS: &[Calls] = &[
    Calls { arch: 0xC000_00B7, keys: [217, 218, 219], socket: 198, socketcall: None },
    Calls { arch: 0x4000_0028, keys: [309, 310, 311], socket: 281, socketcall: Some(102) },
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("name the calls of this architecture: asm/unistd.h and linux/audit.h have their numbers");

/// Set in the numbers of x32 programs (asm/unistd_x32.h); no other number is so large.
const X32_BIT: u32 = 0x4000_0000;
/// Those whose sockets a network namespace holds.
const FAMILIES: [c_int; 5] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET];

/// Install it in this process and all that it starts, for good.
pub(crate) fn refuse_what_namespaces_share() -> Result<(), Errno> {
    // An unprivileged process must have given up to gain rights before it may filter.
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    let mut steps = program();
    let program = sock_fprog { len: u16::try_from(steps.len()).map_err(|_| libc::E2BIG)?, filter: steps.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which outlives the call.
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, c_ulong::from(libc::SECCOMP_MODE_FILTER), &raw const program, 0u64, 0u64)
    };
    if result < 0 { Err(sys::errno()) } else { Ok(()) }
}

/// A program of classic BPF, as seccomp(2) takes it.
fn program() -> Vec<sock_filter> {
    let mut steps = vec![load(offset_of!(libc::seccomp_data, arch))];
    for calls in CALLS {
        let block = block_of(calls);
        steps.push(unless_equal(calls.arch, block.len()));
        steps.extend(block);
    }
    steps.push(allow());
    steps
}

/// What to answer to programs that call the kernel in one way; it ends in an answer whatever is called.
fn block_of(calls: &Calls) -> Vec<sock_filter> {
    let mut block = vec![load(offset_of!(libc::seccomp_data, nr)), and(!X32_BIT)];
    for number in [&calls.keys[..], &[IO_URING_SETUP]].concat() {
        block.extend([unless_equal(number, 1), refuse(libc::ENOSYS)]);
    }
    if let Some(number) = calls.socketcall {
        block.extend([unless_equal(number, 1), refuse(libc::EAFNOSUPPORT)]);
    }
    let mut families = vec![load(offset_of!(libc::seccomp_data, args) + low_half())];
    for family in FAMILIES {
        families.extend([unless_equal(family.cast_unsigned(), 1), allow()]);
    }
    families.push(refuse(libc::EAFNOSUPPORT));
    block.push(unless_equal(calls.socket, families.len()));
    block.extend(families);
    block.push(allow());
    block
}

/// Where in a 64-bit argument the kernel's `int` lies.
const fn low_half() -> usize {
    if cfg!(target_endian = "big") { 4 } else { 0 }
}

fn load(offset: usize) -> sock_filter {
    step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, u32::try_from(offset).unwrap_or(u32::MAX))
}

fn and(mask: u32) -> sock_filter {
    step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, mask)
}

/// Go on with the next step, or pass over so many.
fn unless_equal(value: u32, over: usize) -> sock_filter {
    step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u8::try_from(over).unwrap_or(u8::MAX), value)
}

fn allow() -> sock_filter {
    step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW)
}

fn refuse(errno: c_int) -> sock_filter {
    step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned())
}

fn step(code: u32, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVE: u32 = CALLS[0].arch;

    /// What the kernel would do: the subset of classic BPF that is used here.
    fn answer(arch: u32, nr: u32, first: u32) -> Option<u32> {
        let program = program();
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let step = program.get(at)?;
            at += 1;
            match u32::from(step.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    accumulator = match step.k as usize {
                        0 => nr,
                        4 => arch,
                        offset if offset == 16 + low_half() => first,
                        _ => return None,
                    };
                }
                code if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => accumulator &= step.k,
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => {
                    at += usize::from(if accumulator == step.k { step.jt } else { step.jf });
                }
                code if code == libc::BPF_RET | libc::BPF_K => return Some(step.k),
                _ => return None,
            }
        }
    }

    fn no_call() -> u32 {
        libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()
    }

    fn no_family() -> u32 {
        libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT.cast_unsigned()
    }

    #[test]
    fn numbers_are_those_of_this_machine() {
        let native = &CALLS[0];
        let numbers = [libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl].map(|number| number as u32);
        assert_eq!(native.keys, numbers);
        assert_eq!((native.socket, IO_URING_SETUP), (libc::SYS_socket as u32, libc::SYS_io_uring_setup as u32));
    }

    #[test]
    fn keyrings_are_not_there_however_they_are_called() {
        for calls in CALLS {
            for number in calls.keys {
                assert_eq!(answer(calls.arch, number, 0), Some(no_call()));
            }
        }
        assert_eq!(answer(NATIVE, CALLS[0].keys[2] | X32_BIT, 0), Some(no_call()));
    }

    #[test]
    fn only_sockets_that_a_namespace_holds_are_there() {
        let vsock = libc::AF_VSOCK.cast_unsigned();
        for calls in CALLS {
            for family in FAMILIES {
                let answer = answer(calls.arch, calls.socket, family.cast_unsigned());
                assert_eq!(answer, Some(libc::SECCOMP_RET_ALLOW));
            }
            assert_eq!(answer(calls.arch, calls.socket, vsock), Some(no_family()));
            assert_eq!(answer(calls.arch, IO_URING_SETUP, 0), Some(no_call()));
            if let Some(number) = calls.socketcall {
                assert_eq!(answer(calls.arch, number, 1), Some(no_family()));
            }
        }
    }

    #[test]
    fn nothing_else_is_refused() {
        let is_refused = |number: &u32| answer(NATIVE, *number, 1) != Some(libc::SECCOMP_RET_ALLOW);
        let refused: Vec<u32> = (0..600).filter(is_refused).collect();
        let mut expected = CALLS[0].keys.to_vec();
        expected.push(IO_URING_SETUP);
        assert_eq!(refused, expected);
    }
}
