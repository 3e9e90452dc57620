//! The supervisor (pid 1 of the action's namespace) and the command it starts; both end with the worker.
//!
//! Runs in a copy of the launcher, which has one thread: no panics. It holds none of the worker's descriptors, and none of
//! its memory. Nothing that the command started outlives it.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use libc::{c_int, c_void};

use super::letters;
use super::mounts;
use super::networks;
use super::orders::Orders;
use super::report::{Failure, Report, Stage, Used};
use super::sys::{self, Errno};

const EXEC_BUSY_TRIES: u32 = 200;
/// A command that ends within this is told of once, by its end: each report wakes the worker.
const STARTED_LINGER_MS: c_int = 20;

/// What the command's first steps leave for the supervisor: they share memory until exec.
struct Start<'a> {
    orders: &'a Orders,
    stage: AtomicU32,
    errno: AtomicI32,
}

/// Never returns: sets the sandbox up, runs the command, reports. `network` is one that was made before, if the orders ask
/// for one without anything outside.
pub(crate) fn supervise(orders: &Orders, network: Option<&OwnedFd>) -> ! {
    report(orders, prepare(orders, network).and_then(|signals| run(orders, signals)));
    sys::exit(if network.is_some() && networks::is_unused() { networks::UNUSED } else { 0 })
}

/// Never returns: runs one command after the other as the letters of this socket order, without namespaces.
pub(crate) fn supervise_all(link: &OwnedFd) -> ! {
    let errno = match ready(link) {
        Ok(signals) => loop {
            match letters::receive(link) {
                Ok(Some((body, fds))) => match Orders::decode(&body, fds).filter(|orders| orders.namespaces == 0) {
                    Some(orders) => report(&orders, run(&orders, signals)),
                    None => break libc::EBADMSG,
                },
                Ok(None) => break 0,
                Err(errno) => break errno,
            }
        },
        Err((_, errno)) => errno,
    };
    sys::exit(errno)
}

/// The last word on these orders: nothing of the action is left, and the worker may send others.
fn report(orders: &Orders, ended: Result<Ended, Failure>) {
    match ended {
        // Together, so that the worker wakes once.
        Ok(Ended { started: Some(started), wait_status, used }) => {
            tell(orders, Report::all_bytes(&[started, Report::ended(wait_status, used)]));
        }
        Ok(Ended { started: None, wait_status, used }) => tell(orders, Report::ended(wait_status, used).as_bytes()),
        Err(failure) => tell(orders, Report::failed(failure).as_bytes()),
    }
}

fn tell(orders: &Orders, bytes: &[u8]) {
    // When the worker is gone there is nobody to tell.
    let _ = sys::write(orders.fds.status.as_raw_fd(), bytes);
}

/// How a command ended, and its start where that is not told yet.
struct Ended {
    started: Option<Report>,
    wait_status: c_int,
    used: Used,
}

/// As `prepare`, for many orders that change nothing of this process.
fn ready(link: &OwnedFd) -> Result<RawFd, Failure> {
    adopt(false).map_err(|errno| (Stage::Session, errno))?;
    sys::dup_to(0, 2)
        .and_then(|()| sys::close_all_but(3, &[link.as_raw_fd()]))
        .map_err(|errno| (Stage::Descriptors, errno))?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0).map_err(|errno| (Stage::Privileges, errno))?;
    sys::child_signal_fd().map_err(|errno| (Stage::Signals, errno))
}

/// Returns the descriptor that tells of ended children.
fn prepare(orders: &Orders, network: Option<&OwnedFd>) -> Result<RawFd, Failure> {
    if let Some(network) = network {
        networks::enter(network).map_err(|errno| (Stage::Loopback, errno))?;
    }
    adopt(in_pid_namespace(orders)).map_err(|errno| (Stage::Session, errno))?;
    stdio_only(orders).map_err(|errno| (Stage::Descriptors, errno))?;
    if let Some(identity) = &orders.identity {
        identity.write().map_err(|errno| (Stage::Identity, errno))?;
    }
    // The orders hold the variables of the command; what else there is, nobody need read through /proc/1/mem.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).map_err(|errno| (Stage::Privileges, errno))?;
    if let Some(mounts) = &orders.mounts {
        // SAFETY: plain number.
        unsafe { libc::umask(0) };
        mounts::enter(mounts)?;
    }
    if network.is_none() && orders.namespaces & libc::CLONE_NEWNET != 0 {
        sys::raise_loopback().map_err(|errno| (Stage::Loopback, errno))?;
    }
    if orders.namespaces & libc::CLONE_NEWUTS != 0 {
        // SAFETY: eight bytes of a literal.
        unsafe { libc::sethostname(c"buildnet".as_ptr(), 8) };
    }
    sys::child_signal_fd().map_err(|errno| (Stage::Signals, errno))
}

/// Leave the terminal and tie the lifetimes together.
fn adopt(first_of_namespace: bool) -> Result<(), Errno> {
    // SAFETY: no arguments; EPERM would mean that it already leads a group.
    unsafe { libc::setsid() };
    if first_of_namespace {
        return sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
    }
    // Without a pid namespace a killed supervisor would leave orphans: it stays, sees the control pipe close and
    // kills them. Orphans come to it instead of to the host's init.
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)
}

fn in_pid_namespace(orders: &Orders) -> bool {
    orders.namespaces & libc::CLONE_NEWPID != 0 && sys::getpid() == 1
}

fn stdio_only(orders: &Orders) -> Result<(), Errno> {
    let stdin = orders.fds.stdin.as_raw_fd();
    for standard in 0..3 {
        sys::dup_to(stdin, standard)?;
    }
    let mut keep = orders.fds_in_order();
    keep.sort_unstable();
    sys::close_all_but(3, &keep)
}

/// Returns once the command and all that it started are gone.
fn run(orders: &Orders, signals: RawFd) -> Result<Ended, Failure> {
    let command = spawn(orders)?;
    let mut ended = Ended { started: Some(Report::started()), wait_status: 0, used: Used::default() };
    ended.wait_status = watch(orders, signals, command, &mut ended);
    kill_all(orders, command, &mut ended.used);
    Ok(ended)
}

/// Start the command as vfork would, on a stack of its own: no second copy of its page tables.
fn spawn(orders: &Orders) -> Result<libc::pid_t, Failure> {
    let start = Start { orders, stage: AtomicU32::new(0), errno: AtomicI32::new(0) };
    let argument = (&raw const start).cast_mut().cast::<c_void>();
    let group = orders.fds.groups.first().filter(|group| sys::is_directory(group));
    // SAFETY: `command_main` never returns, and takes a Start that outlives it.
    let started = unsafe {
        match group {
            Some(group) => sys::start_within(group, command_main, argument),
            None => sys::start(command_main, argument),
        }
    };
    let pid = started.map_err(|errno| (Stage::Clone, errno))?;
    match Stage::of(start.stage.load(Ordering::SeqCst)) {
        None => Ok(pid),
        Some(stage) => {
            let _ = sys::wait_any(true);
            Err((stage, start.errno.load(Ordering::SeqCst)))
        }
    }
}

extern "C" fn command_main(argument: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a Start that lives until this process execs or exits.
    let start = unsafe { &*argument.cast::<Start<'_>>() };
    let (stage, errno) = become_command(start.orders);
    start.errno.store(errno, Ordering::SeqCst);
    start.stage.store(stage as u32, Ordering::SeqCst);
    sys::exit(127)
}

/// Returns only when it could not become the command.
fn become_command(orders: &Orders) -> Failure {
    match confine(orders) {
        Ok(()) => (Stage::Exec, exec(orders)),
        Err(failure) => failure,
    }
}

fn confine(orders: &Orders) -> Result<(), Failure> {
    let descriptors = |errno| (Stage::Descriptors, errno);
    let privileges = |errno| (Stage::Privileges, errno);
    // SAFETY: no arguments; a fresh process never leads a group, so it cannot fail.
    unsafe { libc::setsid() };
    // A directory is a group that it was born in.
    for group in orders.fds.groups.iter().filter(|group| !sys::is_directory(group)) {
        sys::write(group.as_raw_fd(), b"0").map_err(|errno| (Stage::Cgroup, errno))?;
    }
    let fds = &orders.fds;
    for (from, to) in [(&fds.stdin, 0), (&fds.stdout, 1), (&fds.stderr, 2)] {
        sys::dup_to(from.as_raw_fd(), to).map_err(descriptors)?;
    }
    sys::close_all_but(3, &[]).map_err(descriptors)?;
    for &(resource, soft, hard) in &orders.limits {
        sys::set_limit(resource, soft, hard).map_err(|errno| (Stage::Limits, errno))?;
    }
    // SAFETY: plain number.
    unsafe { libc::umask(0o022) };
    sys::chdir(&orders.cwd).map_err(|errno| (Stage::Directory, errno))?;
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(privileges)?;
    sys::drop_capabilities().map_err(privileges)?;
    // After the credentials: changing them clears it (prctl(2)).
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).map_err(privileges)?;
    // Their actions are the launcher's: the defaults.
    sys::set_signal_mask(false);
    Ok(())
}

/// As execvp(3): a candidate that is absent or forbidden does not end the search.
fn exec(orders: &Orders) -> Errno {
    let mut answer = libc::ENOENT;
    for path in &orders.candidates {
        let mut tries = 0;
        loop {
            // SAFETY: all strings and both arrays are NUL- or NULL-terminated and outlive the call.
            unsafe { libc::execve(path.as_ptr(), orders.argv.as_ptr(), orders.env.as_ptr()) };
            // A process just cloned elsewhere may still hold a staged program open for writing, for a moment.
            tries += 1;
            if sys::errno() != libc::ETXTBSY || tries > EXEC_BUSY_TRIES {
                break;
            }
            sys::nap_ms(1);
        }
        match sys::errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => answer = libc::EACCES,
            errno => return errno,
        }
    }
    answer
}

/// Reap until the command itself has ended; kill everything when the worker says so or is gone.
fn watch(orders: &Orders, signals: RawFd, command: libc::pid_t, ended: &mut Ended) -> c_int {
    let mut polled =
        [orders.fds.control.as_raw_fd(), signals].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    loop {
        while let Some(reaped) = sys::wait_any(false) {
            ended.used.add(&reaped.usage);
            if reaped.pid == command {
                return reaped.wait_status;
            }
        }
        let linger_ms = if ended.started.is_some() { STARTED_LINGER_MS } else { -1 };
        // SAFETY: the array has two entries.
        if unsafe { libc::poll(polled.as_mut_ptr(), 2, linger_ms) } == 0
            && let Some(started) = ended.started.take()
        {
            tell(orders, started.as_bytes());
        }
        if polled[0].revents != 0 {
            polled[0].fd = -1;
            polled[0].revents = 0;
            sys::kill(-command, libc::SIGKILL);
            kill_others(orders);
        }
        let mut taken = [0u8; size_of::<libc::signalfd_siginfo>()];
        // Signals that come while it waits merge into one; reaping above looks at all children anyway.
        while sys::read(signals, &mut taken).is_ok() {}
    }
}

/// After the command: whatever it left behind.
fn kill_all(orders: &Orders, command: libc::pid_t, used: &mut Used) {
    sys::kill(-command, libc::SIGKILL);
    loop {
        let known = kill_others(orders);
        // Without a list of children, waiting could be for ever; what is dead already is still reaped.
        match sys::wait_any(known) {
            Some(reaped) => used.add(&reaped.usage),
            None => return,
        }
    }
}

/// SIGKILL to all that this process supervises. False when it cannot know them.
fn kill_others(orders: &Orders) -> bool {
    if in_pid_namespace(orders) {
        sys::kill(-1, libc::SIGKILL);
        return true;
    }
    sys::for_each_child(|pid| sys::kill(pid, libc::SIGKILL))
}
