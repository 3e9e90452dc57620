//! What attempts have to say, gathered: the caller's event loop wakes once for as much as there is.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::order::Done;

/// One attempt's news, by its fence.
#[derive(Debug)]
pub enum Event {
    /// The command printed something; not told again before `Attempt::quiet`.
    Printed(u64),
    /// All is ready for a sandbox elsewhere. The mount that the command is to see in the place of its root, or -1, is the
    /// attempt's until it is finished.
    Staged(u64, RawFd),
    /// The command has ended, and enough is left to be collected and sent that something else may run meanwhile.
    CommandEnded(u64),
    /// Nothing of it is left.
    Ended(u64, Box<Done>),
}

/// Filled by the attempts' threads, emptied by the caller.
pub(crate) struct Events {
    waiting: Mutex<VecDeque<Event>>,
    fd: OwnedFd,
}

impl Events {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: plain numbers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given it to us.
        Ok(Self { waiting: Mutex::default(), fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Readable while something waits.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) fn put(&self, event: Event) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push_back(event);
        if waiting.len() == 1 {
            let count = 1u64;
            // SAFETY: eight bytes of a local. It cannot fail: the counter is one at most.
            unsafe { libc::write(self.fd(), (&raw const count).cast(), 8) };
        }
    }

    pub(crate) fn take(&self) -> VecDeque<Event> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.is_empty() {
            let mut count = 0u64;
            // SAFETY: eight bytes of a local. Whoever puts holds the lock, so the counter is not zero.
            unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
        }
        std::mem::take(&mut *waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(fd: RawFd) -> bool {
        let mut polled = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry.
        unsafe { libc::poll(&raw mut polled, 1, 0) == 1 }
    }

    #[test]
    fn what_was_put_is_taken_once_and_in_order() {
        let events = Events::new().unwrap();
        assert!(!readable(events.fd()));
        events.put(Event::Printed(1));
        events.put(Event::Printed(2));
        assert!(readable(events.fd()));
        let fences: Vec<u64> =
            events.take().into_iter().map(|event| if let Event::Printed(fence) = event { fence } else { 0 }).collect();
        assert_eq!(fences, [1, 2]);
        assert!(!readable(events.fd()));
        assert!(events.take().is_empty());
        events.put(Event::Printed(3));
        assert!(readable(events.fd()));
    }
}
