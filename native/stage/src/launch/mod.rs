//! Run one command so that it cannot change the host, cannot outlive the worker, and cannot pass its bounds unseen.
//!
//! worker thread (`watch`) --orders--> launcher --clone--> supervisor, pid 1 of the action's namespaces (`init`) --vfork--> the command.
//! It decides no policy: which bounds and which isolation come with the `Plan`; what was really used goes into the `Outcome`.

mod cgroup;
mod disk;
mod filter;
mod groups;
mod init;
mod launcher;
mod letters;
mod link;
mod logs;
mod mask;
mod mounts;
mod networks;
mod order_form;
mod orders;
mod plan;
mod probe;
mod report;
mod sys;
mod view;
mod watch;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use crate::error::{self, Result};

use cgroup::{Group, Hierarchies, Wants};
use disk::DiskWatch;
use logs::Log;
use mask::Mask;
use orders::{ChildFds, Limit, Orders, OrdersOf};
use view::ViewOf;
use watch::{News, ParentFds, Setting, Shared, Watch};

pub use launcher::launcher_main;
pub use link::{launcher_pid, set_interpreter, start_launcher};
pub use mask::MASKED_BYTES_MIN;
pub use plan::{Isolation, Outcome, Plan};
pub use probe::probe_isolation;

const THREAD_STACK_BYTES: usize = 512 << 10;

/// A piece of a stream: 1 for stdout or 2 for stderr, the offset of its first byte, its bytes.
pub type LogPiece = (u8, u64, Vec<u8>);

/// One running command and everything it starts. Dropping it kills them.
pub struct Process {
    control: Control,
    event: Arc<OwnedFd>,
}

impl Process {
    /// Returns once the program runs.
    ///
    /// # Errors
    /// `not_found` when there is no such program, `invalid_request` for a malformed plan, `sandbox_failed` when the
    /// sandbox cannot be made, `storage_full` when the log files cannot.
    pub fn start(plan: &Plan) -> Result<Self> {
        let event = Arc::new(sys::event_fd().map_err(|error| error::sandbox(format!("cannot make pipes: {error}")))?);
        let news = Arc::clone(&event);
        let run = Run::prepare(plan, Box::new(move || sys::raise_event(&news)))?;
        for log in &run.shared.logs {
            log.create().map_err(|error| error::io("write", log.path(), &error))?;
        }
        let process = Self { control: run.control(), event: Arc::clone(&event) };
        let (starter, started) = sync_channel(1);
        std::thread::Builder::new()
            .name("buildnet-action".to_owned())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || {
                sys::set_signal_mask(true);
                let shared = Arc::clone(&run.shared);
                // The starter waits for exactly one message; when it is gone nobody wants it.
                match run.go(&|| drop(starter.try_send(Ok(())))) {
                    Ok(outcome) => {
                        // One that was stopped at once may have ended before it was known to run.
                        drop(starter.try_send(Ok(())));
                        shared.state().outcome = Some(outcome);
                        sys::raise_event(&event);
                    }
                    Err(error) => drop(starter.try_send(Err(error))),
                }
            })
            .map_err(|error| error::sandbox(format!("cannot start a thread: {error}")))?;
        match started.recv() {
            Ok(result) => result.map(|()| process),
            Err(_) => Err(error::sandbox("the thread of the action ended")),
        }
    }

    /// Readable when there is new output (`read_logs` quiets that) and, for good, once the command has ended.
    pub fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// What was printed since the last call, at most `bytes_max` of it in all; the rest raises the event again.
    ///
    /// # Errors
    /// `sandbox_failed` when the log files cannot be read.
    pub fn read_logs(&self, bytes_max: usize) -> Result<Vec<LogPiece>> {
        sys::clear_event(&self.event);
        let shared = &self.control.0;
        let mut pieces = Vec::new();
        let mut left = bytes_max;
        for (stream, log) in [1, 2].into_iter().zip(&shared.logs) {
            let read = log.read_new(left);
            let (offset, data) = read.map_err(|error| error::io("read", Path::new("the action's log"), &error))?;
            left -= data.len();
            if !data.is_empty() {
                pieces.push((stream, offset, data));
            }
        }
        // The end stays signalled for good: a caller that polled just before it would otherwise never wake.
        let ended = shared.state().outcome.is_some();
        if ended || shared.logs.iter().any(Log::has_new) {
            sys::raise_event(&self.event);
        }
        Ok(pieces)
    }

    /// None while it runs.
    pub fn poll(&self) -> Option<Outcome> {
        self.control.0.state().outcome.clone()
    }

    /// End the command and all it started, at once; the first reason given is the outcome's.
    pub fn kill(&self, reason: &str) {
        self.control.kill(reason);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill("killed");
    }
}

/// One command that is to run for as long as a thread of the caller stays with it.
pub struct Run {
    shared: Arc<Shared>,
    orders: Orders,
    setting: Setting,
    group: Option<Group>,
    fds: ParentFds,
}

impl Run {
    /// Everything that can fail before a process exists. `printed` is called, by the thread that stays, when there is news.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn prepare(plan: &Plan, printed: Box<dyn Fn() + Send + Sync>) -> Result<Self> {
        plan.validate()?;
        let wants = Wants {
            memory_bytes: plan.memory_bytes,
            pids_max: plan.pids_max,
            cpu_milli: plan.cpu_milli,
            cpu_is_capped: plan.cpu_is_capped,
        };
        let group = groups::take(&plan.cgroup_name, wants)
            .map_err(|error| error::sandbox(format!("cannot make a control group: {error}")))?;
        let (orders, fds, shared) = prepare(plan, group.as_ref(), printed)?;
        let setting = setting(plan, orders.namespaces, group.as_ref());
        Ok(Self { shared: Arc::new(shared), orders, setting, group, fds })
    }

    /// For other threads, before and while it runs.
    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.shared))
    }

    /// Run it to its end; `begun` is called once it runs. The caller's thread should take no signals (`quiet_thread`).
    ///
    /// # Errors
    /// As [`Process::start`]; then nothing ran.
    pub fn go(self, begun: &dyn Fn()) -> Result<Outcome> {
        Watch::new(self.shared, self.setting, self.group, self.fds, begun).run(self.orders)
    }
}

/// How other threads reach a command that one stays with. It outlives the command.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

impl Control {
    /// End the command and all it started, at once; the first reason given is the outcome's. Safe to repeat, and after the end.
    pub fn kill(&self, reason: &str) {
        let mut state = self.0.state();
        if state.kill.is_none() {
            state.kill = Some(reason.to_owned());
        }
        drop(state);
        sys::raise_event(&self.0.wake);
    }

    /// Bytes of standard output and standard error so far.
    pub fn printed_bytes(&self) -> [u64; 2] {
        let [stdout, stderr] = &self.0.logs;
        [stdout.size_bytes(), stderr.size_bytes()]
    }

    /// The files that they are in, where there is one.
    pub fn logs(&self) -> [Option<&File>; 2] {
        let [stdout, stderr] = &self.0.logs;
        [stdout.file(), stderr.file()]
    }
}

/// Have signals of this process delivered to other threads than the one that calls.
pub fn quiet_thread() {
    sys::set_signal_mask(true);
}

/// Pipes and orders.
fn prepare(plan: &Plan, group: Option<&Group>, printed: News) -> Result<(Orders, ParentFds, Shared)> {
    let logs = [Log::at(&plan.stdout_path), Log::at(&plan.stderr_path)];
    let broken = |error: io::Error| error::sandbox(format!("cannot make pipes: {error}"));
    let (parent, child) = pipes(group).map_err(broken)?;
    let namespaces = match plan.isolation {
        Isolation::Namespaces => probe::Found::here().flags(plan.network),
        Isolation::Process => 0,
    };
    let (mounts, cwd) = if namespaces == 0 {
        (None, plan.cwd.clone())
    } else {
        (Some(view::plan_view(view_of(plan))?), view::inside(&plan.root, &plan.cwd)?)
    };
    let orders = Orders::new(OrdersOf {
        argv: &plan.argv,
        env: &plan.env,
        cwd: &cwd,
        namespaces,
        mounts,
        limits: rlimits(plan, group),
        fds: child,
    })?;
    let shared = Shared::new(logs, printed).map_err(broken)?;
    Ok((orders, parent, shared))
}

fn counted(plan: &Plan) -> Vec<PathBuf> {
    if plan.counted.is_empty() { vec![plan.root.clone(), plan.tmp.clone()] } else { plan.counted.clone() }
}

fn view_of(plan: &Plan) -> ViewOf<'_> {
    ViewOf {
        root: &plan.root,
        root_mount: plan.root_mount,
        tmp: &plan.tmp,
        shown: &plan.shown,
        hidden: &plan.hidden,
        files: &plan.files,
        devices: &plan.devices,
        shm_size_bytes: plan.memory_bytes,
    }
}

fn pipes(group: Option<&Group>) -> io::Result<(ParentFds, ChildFds)> {
    let (stdout, stdout_child) = sys::pipe()?;
    let (stderr, stderr_child) = sys::pipe()?;
    let (status, status_child) = sys::pipe()?;
    let (control_child, control) = sys::pipe()?;
    sys::set_nonblocking(&stdout)?;
    sys::set_nonblocking(&stderr)?;
    let parent = ParentFds { stdout, stderr, status, control };
    let child = ChildFds {
        stdin: sys::above_stdio(File::open("/dev/null")?.into())?,
        stdout: stdout_child,
        stderr: stderr_child,
        status: status_child,
        control: control_child,
        groups: group.map_or_else(|| Ok(Vec::new()), Group::entrances)?,
    };
    Ok((parent, child))
}

/// Resource limits of each process: those asked for that no group keeps, and no core files.
fn rlimits(plan: &Plan, group: Option<&Group>) -> Vec<Limit> {
    let mut limits = vec![(libc::RLIMIT_CORE, 0, 0)];
    if let Some(cpu_s) = plan.cpu_s {
        // SIGXCPU first, SIGKILL a second later for those that catch it.
        limits.push((libc::RLIMIT_CPU, cpu_s, cpu_s.saturating_add(1)));
    }
    if let Some(bytes) = plan.disk_bytes {
        // What is watched is seen a moment late; no single file goes on growing even then. It gets a byte over: a file
        // that was cut is too large when it is looked at, also where the command ended well with half an output.
        let cut = bytes.saturating_add(1);
        limits.push((libc::RLIMIT_FSIZE, cut, cut));
    }
    if let Some(bytes) = plan.memory_bytes.filter(|_| !group.is_some_and(Group::bounds_memory)) {
        // Not RLIMIT_AS: runtimes reserve far more address space than they use.
        limits.push((libc::RLIMIT_DATA, bytes, bytes));
    }
    if let Some(count) = plan.pids_max.filter(|_| limits_pids_by_user(group)) {
        limits.push((libc::RLIMIT_NPROC, count, count));
    }
    limits
}

/// RLIMIT_NPROC does not bind root (setrlimit(2)), and a group is exact where there is one.
fn limits_pids_by_user(group: Option<&Group>) -> bool {
    // SAFETY: cannot fail.
    !group.is_some_and(Group::bounds_pids) && unsafe { libc::geteuid() } != 0
}

fn setting(plan: &Plan, namespaces: libc::c_int, group: Option<&Group>) -> Setting {
    let by_group = Hierarchies::here().name();
    let memory = match plan.memory_bytes {
        None => "unset",
        Some(_) if group.is_some_and(Group::bounds_memory) => by_group,
        Some(_) => "rlimit",
    };
    let pids = match plan.pids_max {
        None => "unset",
        Some(_) if group.is_some_and(Group::bounds_pids) => by_group,
        Some(_) if limits_pids_by_user(group) => "rlimit",
        Some(_) => "none",
    };
    let cpu = if plan.cpu_s.is_some() { "rlimit" } else { "unset" };
    let share = match plan.cpu_milli {
        None => "unset",
        Some(_) if group.is_some_and(Group::shares_cpu) => by_group,
        Some(_) => "none",
    };
    let disk = if plan.disk_bytes.is_some() { "watched" } else { "unset" };
    let program = plan.argv.first().map(|word| String::from_utf8_lossy(word).into_owned());
    Setting {
        program: program.unwrap_or_default(),
        isolation: if namespaces == 0 { "process" } else { "namespaces" },
        network: if namespaces & libc::CLONE_NEWNET == 0 { "host" } else { "none" },
        limits: [("memory", memory), ("pids", pids), ("cpu", cpu), ("share", share), ("disk", disk)],
        log_size_bytes_max: plan.log_size_bytes_max,
        mask: Mask::new(&plan.masked),
        timeout: plan.timeout,
        cpu_s: plan.cpu_s,
        disk: DiskWatch::new(counted(plan), plan.disk_bytes),
    }
}
