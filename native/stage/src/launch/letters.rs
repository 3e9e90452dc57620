//! How orders reach the launcher: length, bytes and descriptors over one stream, and a fixed answer with one descriptor back.
//!
//! It knows nothing of what the bytes mean. What is too long, cut short or without its descriptors is refused.

use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::sys::{self, Errno};

/// A Command's own message is at most 4 MiB, and a view has at most some hundred paths of 4 KiB.
pub(crate) const LETTER_BYTES_MAX: usize = 16 << 20;
/// Standard streams, status, control, a root and the groups are fewer.
pub(crate) const FDS_MAX: usize = 32;

const HEADER_BYTES: usize = size_of::<u64>();
const FD_BYTES: usize = size_of::<RawFd>();

/// Room for the descriptors' control message, aligned as cmsghdr wants.
#[repr(C, align(8))]
struct Control([u8; 256]);

/// What the launcher says to one order: zero and a pid, or why there is no process.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Answer {
    pub(crate) errno: Errno,
    pub(crate) pid: libc::pid_t,
}

/// Send one letter whole.
pub(crate) fn send(link: &OwnedFd, body: &[u8], fds: &[RawFd]) -> Result<(), Errno> {
    if body.len() > LETTER_BYTES_MAX || fds.len() > FDS_MAX {
        return Err(libc::E2BIG);
    }
    let header = (body.len() as u64).to_ne_bytes();
    send_with_fds(link, &header, fds)?;
    send_all(link, body)
}

/// What a letter says, and what came with it.
pub(crate) type Letter = (Vec<u8>, Vec<OwnedFd>);

/// The next letter, or None at the end of the stream.
pub(crate) fn receive(link: &OwnedFd) -> Result<Option<Letter>, Errno> {
    let mut header = [0; HEADER_BYTES];
    let (count, fds) = receive_with_fds(link, &mut header)?;
    if count == 0 {
        return Ok(None);
    }
    receive_all(link, &mut header[count..])?;
    let size = usize::try_from(u64::from_ne_bytes(header)).unwrap_or(usize::MAX);
    if size > LETTER_BYTES_MAX {
        return Err(libc::E2BIG);
    }
    let mut body = vec![0; size];
    receive_all(link, &mut body)?;
    Ok(Some((body, fds)))
}

/// Answer a letter; a process comes with its pidfd.
pub(crate) fn answer(link: &OwnedFd, answer: Answer, process: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut bytes = [0; size_of::<Answer>()];
    bytes[..4].copy_from_slice(&answer.errno.to_ne_bytes());
    bytes[4..].copy_from_slice(&answer.pid.to_ne_bytes());
    let fds: Vec<RawFd> = process.iter().map(|fd| fd.as_raw_fd()).collect();
    send_with_fds(link, &bytes, &fds)
}

/// The answer to the letter sent last; EPIPE when there is nobody any more.
pub(crate) fn answered(link: &OwnedFd) -> Result<(Answer, Option<OwnedFd>), Errno> {
    let mut bytes = [0; size_of::<Answer>()];
    let (count, fds) = receive_with_fds(link, &mut bytes)?;
    if count == 0 {
        return Err(libc::EPIPE);
    }
    receive_all(link, &mut bytes[count..])?;
    let [a, b, c, d, e, f, g, h] = bytes;
    let answer = Answer { errno: Errno::from_ne_bytes([a, b, c, d]), pid: libc::pid_t::from_ne_bytes([e, f, g, h]) };
    Ok((answer, fds.into_iter().next()))
}

/// A pair of connected streams, close-on-exec and above the standard three.
pub(crate) fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0 as RawFd; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for two.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us both.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    Ok((sys::above_stdio(ours)?, sys::above_stdio(theirs)?))
}

/// Reading from this socket, or writing to it, fails after so long.
pub(crate) fn limit_wait(socket: &OwnedFd, seconds: i64) -> std::io::Result<()> {
    let time = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    for option in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let size = size_of::<libc::timeval>() as libc::socklen_t;
        // SAFETY: `time` lives through the call and its size is given.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const time).cast::<libc::c_void>(),
                size,
            )
        };
        if set < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

fn send_with_fds(link: &OwnedFd, data: &[u8], fds: &[RawFd]) -> Result<(), Errno> {
    let mut control = Control([0; 256]);
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: msghdr is plain data; CMSG_* stay within `control`, which has room for FDS_MAX descriptors.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if !fds.is_empty() {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE((fds.len() * FD_BYTES) as u32) as _;
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            (*head).cmsg_level = libc::SOL_SOCKET;
            (*head).cmsg_type = libc::SCM_RIGHTS;
            (*head).cmsg_len = libc::CMSG_LEN((fds.len() * FD_BYTES) as u32) as _;
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(head), fds.len() * FD_BYTES);
        }
        loop {
            let sent = libc::sendmsg(link.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL);
            if sent >= 0 || sys::errno() != libc::EINTR {
                break sent;
            }
        }
    };
    match usize::try_from(sent) {
        Ok(sent) => send_all(link, &data[sent..]),
        Err(_) => Err(sys::errno()),
    }
}

fn send_all(link: &OwnedFd, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        // SAFETY: the slice is valid for its length.
        let sent = unsafe { libc::send(link.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(sent) => data = &data[sent..],
            Err(_) if sys::errno() == libc::EINTR => {}
            Err(_) => return Err(sys::errno()),
        }
    }
    Ok(())
}

fn receive_with_fds(link: &OwnedFd, data: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut control = Control([0; 256]);
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    let mut fds = Vec::new();
    // SAFETY: msghdr is plain data; the kernel fills at most what is given, and every descriptor that it gives is ours.
    let count = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len() as _;
        let count = loop {
            let count = libc::recvmsg(link.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
            if count >= 0 || sys::errno() != libc::EINTR {
                break count;
            }
        };
        if count < 0 {
            return Err(sys::errno());
        }
        let mut head = libc::CMSG_FIRSTHDR(&raw const message);
        while !head.is_null() {
            if (*head).cmsg_level == libc::SOL_SOCKET && (*head).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*head).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                for index in 0..bytes / FD_BYTES {
                    let fd = ptr::read_unaligned(libc::CMSG_DATA(head).cast::<RawFd>().add(index));
                    fds.push(OwnedFd::from_raw_fd(fd));
                }
            }
            head = libc::CMSG_NXTHDR(&raw const message, head);
        }
        if message.msg_flags & libc::MSG_CTRUNC != 0 {
            return Err(libc::EMFILE);
        }
        count
    };
    Ok((usize::try_from(count).unwrap_or(0), fds))
}

fn receive_all(link: &OwnedFd, mut data: &mut [u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        match sys::read(link.as_raw_fd(), data) {
            Ok(0) => return Err(libc::EPIPE),
            Ok(count) => data = &mut data[count..],
            Err(libc::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Test = Result<(), Box<dyn std::error::Error>>;

    fn failed(errno: Errno) -> Box<dyn std::error::Error> {
        format!("errno {errno}").into()
    }

    #[test]
    fn a_letter_comes_whole_and_with_its_descriptors() -> Test {
        let (ours, theirs) = pair()?;
        let body: Vec<u8> = (0..1 << 20).map(|index: u32| index as u8).collect();
        let sent = body.clone();
        let (read, write) = sys::pipe()?;
        let sending = std::thread::spawn(move || send(&ours, &sent, &[write.as_raw_fd()]));
        let (got, fds) = receive(&theirs).map_err(failed)?.ok_or("no letter")?;
        assert!(matches!(sending.join(), Ok(Ok(()))));
        assert!(got == body && fds.len() == 1);
        sys::write(fds[0].as_raw_fd(), b"x").map_err(failed)?;
        assert_eq!(sys::read(read.as_raw_fd(), &mut [0; 2]), Ok(1));
        assert!(receive(&theirs).map_err(failed)?.is_none(), "the other end is closed");
        Ok(())
    }

    #[test]
    fn an_answer_may_bring_a_process() -> Test {
        let (ours, theirs) = pair()?;
        answer(&theirs, Answer { errno: libc::EAGAIN, pid: 0 }, None).map_err(failed)?;
        let (got, process) = answered(&ours).map_err(failed)?;
        assert!(got.errno == libc::EAGAIN && process.is_none());
        let event = sys::event_fd()?;
        answer(&theirs, Answer { errno: 0, pid: 7 }, Some(&event)).map_err(failed)?;
        let (got, process) = answered(&ours).map_err(failed)?;
        assert!(got.errno == 0 && got.pid == 7 && process.is_some());
        drop(theirs);
        assert_eq!(answered(&ours).map(|_| ()), Err(libc::EPIPE));
        Ok(())
    }

    #[test]
    fn a_letter_that_is_cut_or_too_long_is_refused() -> Test {
        let (ours, theirs) = pair()?;
        assert_eq!(send(&ours, &vec![0; LETTER_BYTES_MAX + 1], &[]), Err(libc::E2BIG));
        send_all(&ours, &(LETTER_BYTES_MAX as u64 + 1).to_ne_bytes()).map_err(failed)?;
        assert_eq!(receive(&theirs).map(|_| ()), Err(libc::E2BIG));
        send_all(&ours, &9u64.to_ne_bytes()).map_err(failed)?;
        drop(ours);
        assert_eq!(receive(&theirs).map(|_| ()), Err(libc::EPIPE));
        Ok(())
    }
}
