//! The launcher: one small process of one thread per worker, from which every action is forked.
//!
//! To fork copies page tables: from a worker of 60 MiB that is 8 ms, from here 0.2 ms. It is executed, not forked, so it
//! holds nothing of the worker's memory, environment or descriptors. It ends when the worker's end of its socket closes,
//! by whatever death, after all that it started; what a killed supervisor leaves behind comes to it, and is killed.

use std::convert::Infallible;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use libc::c_int;

use super::cgroup;
use super::filter;
use super::init;
use super::letters::{self, Answer};
use super::networks::{self, Networks};
use super::orders::Orders;
use super::sys::{self, Errno, Reaped};

/// Serve the socket at standard input until it closes, then remove what the worker left of control groups in `homes`.
pub fn launcher_main(homes: &[PathBuf]) -> ! {
    let worker = std::os::unix::process::parent_id();
    match set_up() {
        Ok((link, signals)) => {
            let networks = Networks::here();
            let mut launcher = Launcher { link, signals, supervisors: Vec::new(), networks, strays: false };
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
    supervisors: Vec<(libc::pid_t, Option<OwnedFd>)>,
    networks: Option<Networks>,
    /// Whether a supervisor died without having killed what it started.
    strays: bool,
}

fn set_up() -> Result<(OwnedFd, RawFd), Errno> {
    sys::set_signal_mask(true);
    // For all that it starts, once.
    sys::reset_signals();
    sys::bound_capabilities()?;
    filter::refuse_what_namespaces_share()?;
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
    leave_out_of_forks();
    Ok((link, sys::child_signal_fd()?))
}

fn refused() -> (Answer, Option<OwnedFd>) {
    (Answer { errno: libc::EBADMSG, pid: 0 }, None)
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
        let (said, process) = if body.is_empty() {
            // Nothing but a socket: a supervisor that takes its orders there.
            fds.first().map_or_else(refused, |link| self.start(0, None, |_| init::supervise_all(link)))
        } else {
            Orders::decode(&body, fds).map_or_else(refused, |orders| self.obey(&orders))
        };
        letters::answer(&self.link, said, process.as_ref()).is_ok()
    }

    fn obey(&mut self, orders: &Orders) -> (Answer, Option<OwnedFd>) {
        let alone = orders.namespaces & libc::CLONE_NEWNET != 0;
        match self.networks.as_mut().filter(|_| alone).map(Networks::take).transpose() {
            Ok(None) => self.start(orders.namespaces, None, |_| init::supervise(orders, None)),
            Ok(network) => {
                let rest = orders.namespaces & !libc::CLONE_NEWNET;
                self.start(rest, network, |network| init::supervise(orders, network))
            }
            Err(errno) => (Answer { errno, pid: 0 }, None),
        }
    }

    fn start(
        &mut self,
        namespaces: c_int,
        network: Option<OwnedFd>,
        body: impl FnOnce(Option<&OwnedFd>) -> Infallible,
    ) -> (Answer, Option<OwnedFd>) {
        // The child has no answer to give: what it calls never returns.
        #[allow(unreachable_code)]
        // SAFETY: this process has one thread, so the child may do what it could.
        match unsafe { sys::fork_with_pidfd(namespaces) } {
            Ok(None) => match body(network.as_ref()) {},
            Ok(Some((pid, process))) => {
                self.supervisors.push((pid, network));
                (Answer { errno: 0, pid }, Some(process))
            }
            Err(errno) => (Answer { errno, pid: 0 }, None),
        }
    }

    fn reap(&mut self) {
        let mut taken = [0u8; size_of::<libc::signalfd_siginfo>()];
        while sys::read(self.signals, &mut taken).is_ok() {}
        while let Some(reaped) = sys::wait_any(false) {
            self.ended(&reaped);
        }
        self.kill_strays();
    }

    fn ended(&mut self, reaped: &Reaped) {
        let Some(index) = self.supervisors.iter().position(|(known, _)| *known == reaped.pid) else { return };
        let (_, network) = self.supervisors.swap_remove(index);
        self.strays |= libc::WIFSIGNALED(reaped.wait_status);
        let unused = libc::WIFEXITED(reaped.wait_status) && libc::WEXITSTATUS(reaped.wait_status) == networks::UNUSED;
        if let Some((networks, network)) = self.networks.as_mut().zip(network.filter(|_| unused)) {
            networks.give_back(network);
        }
    }

    /// Each that dies brings its own children here, with another signal.
    fn kill_strays(&mut self) {
        if self.strays {
            let mut found = false;
            sys::for_each_child(|pid| {
                if !self.supervisors.iter().any(|(known, _)| *known == pid) {
                    found = true;
                    sys::kill(pid, libc::SIGKILL);
                }
            });
            self.strays = found;
        }
    }

    /// The worker is gone, so every control pipe is closed and every supervisor ends what it started.
    fn wait_for_all(&mut self) {
        while let Some(reaped) = sys::wait_any(true) {
            self.ended(&reaped);
            self.kill_strays();
        }
    }
}

/// Keep the interpreter's own memory out of children: what no native code uses need not be copied.
///
/// Kept are libc's heap, this thread's stack and what it holds for itself, and what belongs to a library. A child that
/// touched the rest would die of it, and be told of as a sandbox that failed.
fn leave_out_of_forks() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let own = [(&raw const maps) as usize, sys::errno_address(), maps.as_ptr() as usize];
    let mut file_end = 0;
    for line in maps.lines() {
        // proc_pid_maps(5): start-end permissions offset device inode [name]
        let mut words = line.split_ascii_whitespace();
        let range = words.next().and_then(|range| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).ok();
        let Some((start, end)) = range.and_then(|(start, end)| Some((number(start)?, number(end)?))) else { continue };
        let permissions = words.next().unwrap_or_default();
        let (inode, name) = (words.nth(2).unwrap_or_default(), words.next().unwrap_or_default());
        if inode != "0" {
            file_end = end;
            if permissions.starts_with("rw") && name.contains("/libpython") {
                // SAFETY: as below.
                unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTFORK) };
            }
        } else if name.is_empty() && start != file_end && !own.iter().any(|address| (start..end).contains(address)) {
            // SAFETY: the range is mapped; this changes nothing for this process itself.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTFORK) };
        }
    }
}
