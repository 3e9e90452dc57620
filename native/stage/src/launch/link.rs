//! The worker's end of its launcher: started when first needed, and again when it has died.
//!
//! One order is on its way at a time. An order whose answer did not come is never given again: it may have been obeyed.

use std::ffi::{CStr, OsString};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
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
static LAUNCHER: Mutex<Option<Running>> = Mutex::new(None);

struct Running {
    link: OwnedFd,
    child: Child,
}

/// One supervisor, as the worker knows it.
#[derive(Debug)]
pub(crate) struct Supervisor(OwnedFd);

impl Supervisor {
    pub(crate) fn kill(&self) {
        sys::kill_process(&self.0);
    }

    /// Return once it is gone, and with it what its namespace held.
    pub(crate) fn wait(&self) {
        sys::wait_readable(&self.0);
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
    let body = orders.encode();
    let mut slot = lock();
    let link = &running(&mut slot)?.link;
    let answer = give(link, &body, &orders.fds_in_order());
    match answer {
        Ok(Ok(supervisor)) => Ok(supervisor),
        Ok(Err(errno)) => Err(error::sandbox(format!("the sandbox could not make its processes: {}", said(errno)))),
        Err(libc::E2BIG) => Err(error::sandbox("the command, with its environment, is too long for the launcher")),
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

fn give(
    link: &OwnedFd,
    body: &[u8],
    fds: &[RawFd],
) -> std::result::Result<std::result::Result<Supervisor, Errno>, Errno> {
    letters::send(link, body, fds)?;
    let (answer, process) = letters::answered(link)?;
    match process {
        Some(process) if answer.errno == 0 => Ok(Ok(Supervisor(process))),
        _ => Ok(Err(answer.errno)),
    }
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
    sys::limit_wait(&ours, ANSWER_WAIT_S).map_err(broken)?;
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
    Ok(Running { link: ours, child })
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
