//! The worker's end of its launcher: started when first needed, and again when it has died.
//!
//! One order is on its way at a time. An order whose answer did not come is never given again: it may have been obeyed.

use std::ffi::{CStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::error::{self, Result};

use super::cgroup::Hierarchies;
use super::letters;
use super::orders::Orders;
use super::sys::{self, Errno};

/// The launcher is an interpreter that loads this library and nothing else; `-I -S` keeps the user's own modules out.
const CODE: &str = "\
import sys, _imp, _frozen_importlib as f, _frozen_importlib_external as e
n, p, h = 'buildnet._native', sys.argv[1], sys.argv[2:]
m = _imp.create_dynamic(f.ModuleSpec(n, e.ExtensionFileLoader(n, p), origin=p))
_imp.exec_dynamic(m)
m.launcher_main(h)
";
/// Of the worker's variables, those that the interpreter may need to be found by the dynamic linker.
const ENVIRONMENT: [&str; 2] = ["LD_LIBRARY_PATH", "PYTHONHOME"];
const ANSWER_WAIT_S: i64 = 30;

static INTERPRETER: OnceLock<PathBuf> = OnceLock::new();
/// Launchers so far; the last has this number.
static STARTED: AtomicU64 = AtomicU64::new(0);
static LAUNCHER: Mutex<Option<Running>> = Mutex::new(None);

struct Running {
    link: OwnedFd,
    child: Child,
    number: u64,
}

/// Supervisors without namespaces, which wait for their next action.
static IDLE: Mutex<Vec<Supervisor>> = Mutex::new(Vec::new());
/// More slots than this start some of theirs anew.
const IDLE_MAX: usize = 64;

/// One supervisor, as the worker knows it.
#[derive(Debug)]
pub(crate) struct Supervisor {
    process: OwnedFd,
    /// Where it takes further orders; None for the first process of a namespace, which ends with it.
    link: Option<OwnedFd>,
    /// Of the launcher that is to kill what it leaves, should it be killed.
    launcher: u64,
}

impl Supervisor {
    pub(crate) fn kill(&self) {
        sys::kill_process(&self.process);
    }

    /// It has closed its end of status. Return once everything of the action is gone; `answered`: it said how that ended.
    pub(crate) fn finish(self, answered: bool) {
        if answered && self.link.is_some() {
            let mut idle = lock_idle();
            if idle.len() < IDLE_MAX && self.launcher == STARTED.load(Ordering::SeqCst) {
                idle.push(self);
            }
            return;
        }
        sys::wait_readable(&self.process);
    }

    /// A new one without namespaces.
    fn new() -> Result<Self> {
        let broken = |failed: std::io::Error| error::sandbox(format!("cannot make a socket: {failed}"));
        let (ours, theirs) = letters::pair().map_err(broken)?;
        letters::limit_wait(&ours, ANSWER_WAIT_S).map_err(broken)?;
        let (process, launcher) = ask(&[], &[theirs.as_raw_fd()])?;
        Ok(Self { process, link: Some(ours), launcher })
    }
}

/// Say which interpreter loads this library; the first word counts.
pub fn set_interpreter(path: PathBuf) {
    let _ = INTERPRETER.set(path);
}

/// Start the launcher, so that the first action need not wait for it.
///
/// # Errors
/// `sandbox_failed` when it cannot be started.
pub fn start_launcher() -> Result<()> {
    running(&mut lock()).map(|_| ())
}

/// The pid of the launcher that runs, for those who account for processor time.
pub fn launcher_pid() -> Option<u32> {
    lock().as_ref().map(|running| running.child.id())
}

/// A supervisor that obeys these orders.
pub(crate) fn launch(orders: &Orders) -> Result<Supervisor> {
    let (body, fds) = (orders.encode(), orders.fds_in_order());
    if body.len() > letters::LETTER_BYTES_MAX {
        return Err(error::sandbox(format!(
            "the command, with its environment, is too long for the launcher: {} bytes, and the limit is {}",
            body.len(),
            letters::LETTER_BYTES_MAX
        )));
    }
    if orders.namespaces != 0 {
        return ask(&body, &fds).map(|(process, launcher)| Supervisor { process, link: None, launcher });
    }
    // One that has died took those that wait for it out of use.
    running(&mut lock())?;
    loop {
        // The lock is not held while it is written to.
        let waiting = lock_idle().pop();
        let is_new = waiting.is_none();
        let supervisor = waiting.map_or_else(Supervisor::new, Ok)?;
        match supervisor.link.as_ref().map(|link| letters::send(link, &body, &fds)) {
            Some(Err(errno)) if is_new => return Err(error::sandbox(format!("a supervisor ended: {}", said(errno)))),
            // It died while it waited, and nothing was begun: a letter that is cut is not obeyed.
            Some(Err(_)) => supervisor.kill(),
            _ => return Ok(supervisor),
        }
    }
}

/// Have the launcher make a process; which launcher it was comes with it.
fn ask(body: &[u8], fds: &[RawFd]) -> Result<(OwnedFd, u64)> {
    let mut slot = lock();
    let Running { link, number, .. } = running(&mut slot)?;
    match letters::send(link, body, fds).and_then(|()| letters::answered(link)) {
        Ok((answer, Some(process))) if answer.errno == 0 => Ok((process, *number)),
        Ok((answer, _)) => {
            Err(error::sandbox(format!("the sandbox could not make its processes: {}", said(answer.errno))))
        }
        Err(errno) => {
            // Whatever it is in the middle of, the next order must not follow it.
            end(&mut slot);
            Err(error::sandbox(format!(
                "the launcher of this worker ended ({}); the next action has a new one",
                said(errno)
            )))
        }
    }
}

fn lock_idle() -> MutexGuard<'static, Vec<Supervisor>> {
    IDLE.lock().unwrap_or_else(|lock| lock.into_inner())
}

/// Every change is one assignment: a panic elsewhere cannot leave it half done.
fn lock() -> MutexGuard<'static, Option<Running>> {
    LAUNCHER.lock().unwrap_or_else(|lock| lock.into_inner())
}

fn running(slot: &mut Option<Running>) -> Result<&mut Running> {
    let dead = slot.as_mut().is_some_and(|running| !matches!(running.child.try_wait(), Ok(None)));
    if dead {
        end(slot);
    }
    match slot {
        Some(running) => Ok(running),
        None => Ok(slot.insert(start()?)),
    }
}

fn end(slot: &mut Option<Running>) {
    if let Some(mut running) = slot.take() {
        // It may have ended by itself; either way nothing of it may stay.
        let _ = running.child.kill();
        let _ = running.child.wait();
        // Those that it started serve on, but what a killed one leaves would have nobody.
        lock_idle().clear();
    }
}

fn start() -> Result<Running> {
    let broken = |failed: std::io::Error| error::sandbox(format!("cannot start the launcher: {failed}"));
    let interpreter = INTERPRETER.get().filter(|path| path.is_absolute());
    let interpreter = interpreter.ok_or_else(|| {
        error::sandbox("cannot start the launcher: sys.executable names no interpreter; run the worker as a command")
    })?;
    let library = own_path().ok_or_else(|| error::sandbox("cannot start the launcher: this library has no path"))?;
    let (ours, theirs) = letters::pair().map_err(broken)?;
    letters::limit_wait(&ours, ANSWER_WAIT_S).map_err(broken)?;
    let kept = ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let child = Command::new(interpreter)
        .args(["-I", "-S", "-c", CODE])
        .arg(library)
        .args(Hierarchies::here().homes())
        .env_clear()
        .envs(kept)
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(broken)?;
    Ok(Running { link: ours, child, number: STARTED.fetch_add(1, Ordering::SeqCst) + 1 })
}

/// Where this library was loaded from.
fn own_path() -> Option<OsString> {
    // SAFETY: dladdr fills `found` and answers 0 when it knows nothing; the name lives as long as the library.
    let name = unsafe {
        let mut found: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(own_path as *const libc::c_void, &raw mut found) == 0 || found.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(found.dli_fname)
    };
    let path = std::path::absolute(std::ffi::OsStr::from_bytes(name.to_bytes())).ok()?;
    Some(path.into_os_string())
}

fn said(errno: Errno) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno)
}
