//! The launcher: one small process of one thread per worker, from which every action is forked.
//!
//! To fork copies page tables: from a worker of 60 MiB that is 8 ms, from here 0.2 ms. It is executed, not forked, so it
//! holds nothing of the worker's memory, environment or descriptors. It ends when the worker's end of its socket closes,
//! by whatever death, after all that it started; what a killed supervisor leaves behind comes to it, and is killed.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use libc::c_int;

use super::cgroup;
use super::init;
use super::letters::{self, Answer};
use super::orders::Orders;
use super::sys::{self, Errno};

/// Serve the socket at standard input until it closes, then remove what the worker left of control groups in `homes`.
pub fn launcher_main(homes: &[PathBuf]) -> ! {
    let worker = std::os::unix::process::parent_id();
    match set_up() {
        Ok((link, signals)) => {
            let mut launcher = Launcher { link, signals, supervisors: Vec::new(), strays: false };
            launcher.serve();
            launcher.wait_for_all();
            cgroup::remove_all_of(worker, homes);
            sys::exit(0)
        }
        Err(errno) => sys::exit(errno),
    }
}

struct Launcher {
    link: OwnedFd,
    signals: RawFd,
    supervisors: Vec<libc::pid_t>,
    /// Whether a supervisor died without having killed what it started.
    strays: bool,
}

fn set_up() -> Result<(OwnedFd, RawFd), Errno> {
    sys::set_signal_mask(true);
    let link = sys::take_standard(0)?;
    let null = sys::open(c"/dev/null", libc::O_RDWR, 0)?;
    sys::dup_to(null, 0)?;
    sys::dup_to(null, 1)?;
    sys::close_all_but(3, &[link.as_raw_fd()])?;
    sys::chdir(c"/")?;
    // A terminal's Ctrl-C is the worker's to answer.
    // SAFETY: no arguments; EPERM would mean that it already leads a group.
    unsafe { libc::setsid() };
    sys::prctl(libc::PR_SET_NAME, c"buildnet-launch".as_ptr() as libc::c_ulong)?;
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)?;
    sys::leave_out_of_forks();
    Ok((link, sys::child_signal_fd()?))
}

impl Launcher {
    fn serve(&mut self) {
        let mut polled =
            [self.link.as_raw_fd(), self.signals].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        loop {
            // SAFETY: the array has two entries.
            unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) };
            if polled[1].revents != 0 {
                self.reap();
            }
            // Whatever breaks the stream ends it: what follows a torn letter has no meaning.
            if polled[0].revents != 0 && !self.take_order() {
                return;
            }
        }
    }

    fn take_order(&mut self) -> bool {
        let Ok(Some((body, fds))) = letters::receive(&self.link) else {
            return false;
        };
        let (said, process) = match Orders::decode(&body, fds) {
            None => (Answer { errno: libc::EBADMSG, pid: 0 }, None),
            Some(orders) => self.start(&orders),
        };
        letters::answer(&self.link, said, process.as_ref()).is_ok()
    }

    fn start(&mut self, orders: &Orders) -> (Answer, Option<OwnedFd>) {
        // SAFETY: this process has one thread, so the child may do what it could.
        match unsafe { sys::fork_with_pidfd(orders.namespaces) } {
            Ok(None) => init::supervise(orders),
            Ok(Some((pid, process))) => {
                self.supervisors.push(pid);
                (Answer { errno: 0, pid }, Some(process))
            }
            Err(errno) => (Answer { errno, pid: 0 }, None),
        }
    }

    fn reap(&mut self) {
        let mut taken = [0u8; size_of::<libc::signalfd_siginfo>()];
        while sys::read(self.signals, &mut taken).is_ok() {}
        while let Some((pid, wait_status)) = sys::wait_any(false) {
            self.ended(pid, wait_status);
        }
        self.kill_strays();
    }

    fn ended(&mut self, pid: libc::pid_t, wait_status: c_int) {
        if let Some(index) = self.supervisors.iter().position(|known| *known == pid) {
            self.supervisors.swap_remove(index);
            self.strays |= libc::WIFSIGNALED(wait_status);
        }
    }

    /// Each that dies brings its own children here, with another signal.
    fn kill_strays(&mut self) {
        if self.strays {
            let mut found = false;
            sys::for_each_child(|pid| {
                if !self.supervisors.contains(&pid) {
                    found = true;
                    sys::kill(pid, libc::SIGKILL);
                }
            });
            self.strays = found;
        }
    }

    /// The worker is gone, so every control pipe is closed and every supervisor ends what it started.
    fn wait_for_all(&mut self) {
        while let Some((pid, wait_status)) = sys::wait_any(true) {
            self.ended(pid, wait_status);
            self.kill_strays();
        }
    }
}
