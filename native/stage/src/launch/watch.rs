//! The thread that lives as long as one action: it has it launched, keeps its output, enforces its time, and says how it ended.
//!
//! It never touches Python and blocks every signal, so that none meant for the worker lands here.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{self, Result};

use buildnet_formats::{FieldValue, NativeError};

use super::cgroup::{Group, Sight};
use super::disk::{DiskWatch, Full};
use super::groups;
use super::link::{self, Supervisor};
use super::logs::Log;
use super::mask::{Mask, Masked};
use super::orders::Orders;
use super::plan::Outcome;
use super::report::{ENDED, FAILED, REPORT_SIZE, Report, STARTED, Stage};
use super::sys;

const CHUNK_BYTES: usize = 64 << 10;
/// What a pipe holds unless it is asked for more (pipe(7)), and what one that was found full is asked for.
const PIPE_BYTES: usize = 64 << 10;
const WIDE_PIPE_BYTES: usize = 256 << 10;
/// A sandbox that is not up by then never will be: a mount hangs.
const START_WAIT: Duration = Duration::from_secs(30);
/// How long the supervisor may take to kill its action before it is killed itself (its namespace goes with it).
const KILL_GRACE: Duration = Duration::from_secs(1);
/// Something that escaped the kill may hold the pipes open and go on writing; nobody waits for it longer.
const DRAIN_WAIT: Duration = Duration::from_millis(500);

/// execve(2): a quarter of the stack's limit, for arguments and environment together.
const ARGUMENTS_BYTES_MAX: u64 = 2 << 20;

/// What the handle and the thread share.
pub(crate) struct Shared {
    /// Called by the thread when there is new output.
    printed: News,
    /// For the thread: look at `state`.
    pub(crate) wake: OwnedFd,
    pub(crate) logs: [Log; 2],
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) kill: Option<String>,
    /// For those that do not wait in the thread itself.
    pub(crate) outcome: Option<Outcome>,
}

/// What to do when a command has printed something.
pub(crate) type News = Box<dyn Fn() + Send + Sync>;

impl Shared {
    pub(crate) fn new(logs: [Log; 2], printed: News) -> io::Result<Self> {
        Ok(Self { printed, wake: sys::event_fd()?, logs, state: Mutex::default() })
    }

    /// Every change of State is one assignment: a panic elsewhere cannot leave it half done.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|lock| lock.into_inner())
    }
}

/// What the outcome repeats of how the action was set up.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) program: String,
    pub(crate) isolation: &'static str,
    pub(crate) network: &'static str,
    pub(crate) limits: [(&'static str, &'static str); 5],
    pub(crate) log_size_bytes_max: u64,
    pub(crate) mask: Mask,
    pub(crate) timeout: Duration,
    pub(crate) cpu_s: Option<u64>,
    pub(crate) disk: DiskWatch,
}

/// The parent's ends of the pipes.
pub(crate) struct ParentFds {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) status: OwnedFd,
    pub(crate) control: OwnedFd,
}

/// The thread's whole state.
pub(crate) struct Watch<'a> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) setting: Setting,
    pub(crate) group: Option<Group>,
    streams: [Option<OwnedFd>; 2],
    masked: [Masked; 2],
    status: OwnedFd,
    control: Option<OwnedFd>,
    /// Told once that the command runs.
    begun: Option<&'a dyn Fn()>,
    failure: Option<NativeError>,
    begun_unix_ns: u64,
    started: Option<Instant>,
    ended: Option<(Report, Instant)>,
    /// Whether the supervisor said how it ended, or that it did not begin.
    answered: bool,
    reason: String,
    /// When to give up waiting: for the start, for the command, or for the supervisor.
    deadline: Instant,
    buffer: Vec<u8>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(
        shared: Arc<Shared>,
        setting: Setting,
        group: Option<Group>,
        fds: ParentFds,
        begun: &'a dyn Fn(),
    ) -> Self {
        Self {
            shared,
            setting,
            group,
            streams: [Some(fds.stdout), Some(fds.stderr)],
            masked: [Masked::default(), Masked::default()],
            status: fds.status,
            control: Some(fds.control),
            begun: Some(begun),
            failure: None,
            begun_unix_ns: 0,
            started: None,
            ended: None,
            answered: false,
            reason: String::new(),
            deadline: Instant::now() + START_WAIT,
            buffer: Vec::new(),
        }
    }

    /// Have it launched and stay until it has ended.
    pub(crate) fn run(mut self, orders: Orders) -> Result<Outcome> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.begun_unix_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let launched = link::launch(&orders);
        // The child's ends: the pipes must end with the action.
        drop(orders);
        let supervisor = launched?;
        while self.step(&supervisor) {}
        supervisor.finish(self.answered);
        self.drain();
        // One that was stopped, and whose supervisor was killed before it told of the start, has run all the same.
        if self.started.is_none() && (self.reason.is_empty() || self.failure.is_some()) {
            return Err(self.failure.unwrap_or_else(|| error::sandbox("the sandbox ended before it ran the program")));
        }
        if self.setting.disk.is_limited() {
            // What came after the last look counts too.
            self.look_at_disk(true);
        }
        let sight = self.group.as_ref().map(Group::look).unwrap_or_default();
        let outcome = self.outcome(sight);
        if let Some(group) = self.group.take() {
            groups::give_back(group, sight);
        }
        Ok(outcome)
    }

    /// One wait; false once the supervisor has said its last word, or is gone.
    fn step(&mut self, supervisor: &Supervisor) -> bool {
        let fd = |fd: &Option<OwnedFd>| fd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let [stdout, stderr] = &self.streams;
        let wake = self.shared.wake.as_raw_fd();
        let polled = [self.status.as_raw_fd(), fd(stdout), fd(stderr), wake];
        let ready = poll(polled, self.deadline.min(self.setting.disk.due()));
        if ready[3] {
            sys::clear_event(&self.shared.wake);
            let reason = self.shared.state().kill.clone();
            if let Some(reason) = reason {
                self.stop(&reason);
            }
        }
        for stream in [0, 1] {
            if ready[stream + 1] {
                self.keep_output(stream);
            }
        }
        let now = Instant::now();
        if now >= self.deadline {
            self.overdue(supervisor);
        }
        if self.control.is_some() && now >= self.setting.disk.due() {
            self.look_at_disk(false);
        }
        !ready[0] || self.take_reports()
    }

    fn look_at_disk(&mut self, surely: bool) {
        match self.setting.disk.look(surely) {
            Some(Full::Limit) => self.stop("disk"),
            // One that has ended needs no more of it.
            Some(Full::Machine) if self.ended.is_none() => self.stop("storage_full"),
            _ => {}
        }
    }

    /// The command's time is over, or the supervisor's time to obey.
    fn overdue(&mut self, supervisor: &Supervisor) {
        if self.control.is_some() && self.started.is_some() {
            self.stop("timeout");
            return;
        }
        self.control = None;
        supervisor.kill();
        self.kill_group();
        self.deadline = Instant::now() + KILL_GRACE;
    }

    /// Closing the control pipe makes the supervisor kill everything; the first reason counts.
    fn stop(&mut self, reason: &str) {
        if self.control.take().is_none() {
            return;
        }
        self.reason = reason.to_owned();
        self.deadline = Instant::now() + KILL_GRACE;
        self.kill_group();
    }

    fn kill_group(&self) {
        if let Some(group) = &self.group {
            group.kill();
        }
    }

    /// False after the supervisor's last word, which comes when all of the action is gone.
    fn take_reports(&mut self) -> bool {
        let mut bytes = [0; 2 * REPORT_SIZE];
        let read = match sys::read(self.status.as_raw_fd(), &mut bytes) {
            Err(libc::EINTR) => return true,
            Err(_) | Ok(0) => return false,
            Ok(read) => read,
        };
        // Each is written whole, so read whole.
        let (reports, _) = bytes[..read].as_chunks();
        for report in reports {
            self.take_report(Report::from_bytes(report));
        }
        !self.answered
    }

    fn take_report(&mut self, report: Report) {
        match report.kind {
            STARTED => {
                let started = Instant::now().checked_sub(report.age()).unwrap_or_else(Instant::now);
                self.started = Some(started);
                self.setting.disk.begin(started);
                if self.control.is_some() {
                    self.deadline = started + self.setting.timeout;
                }
                if let Some(begun) = self.begun.take() {
                    begun();
                }
            }
            FAILED => {
                self.answered = true;
                self.fail(report);
            }
            ENDED => {
                self.answered = true;
                let ended = Instant::now().checked_sub(report.age()).unwrap_or_else(Instant::now);
                self.ended = Some((report, ended));
            }
            _ => {}
        }
    }

    fn fail(&mut self, report: Report) {
        let program = self.setting.program.clone();
        let reason = io::Error::from_raw_os_error(report.errno);
        let error = match (Stage::of(report.stage), report.errno) {
            (Some(Stage::Exec), libc::ENOENT) => not_found(&program),
            (Some(Stage::Exec), libc::E2BIG) => NativeError::too_large(
                format!("{program}: its arguments and environment are too large"),
                ARGUMENTS_BYTES_MAX,
            ),
            (Some(Stage::Exec), _) => error::sandbox(format!("cannot run {program}: {reason}")),
            _ => error::sandbox(format!("the sandbox could not {}: {reason}", Stage::text(report.stage))),
        };
        self.failure = Some(error);
    }

    /// Move what a pipe holds to its file; past the limit the action ends, and the rest is thrown away.
    fn keep_output(&mut self, stream: usize) -> bool {
        let Some(pipe) = &self.streams[stream] else {
            return false;
        };
        // Most of a long log goes this way; its ends, its limit and every failure are the reader's below.
        if self.setting.mask.is_empty()
            && let Some(count) = self.shared.logs[stream].splice(pipe, self.room_bytes().min(WIDE_PIPE_BYTES))
        {
            if count == PIPE_BYTES {
                sys::widen(pipe, WIDE_PIPE_BYTES);
            }
            (self.shared.printed)();
            return true;
        }
        // Most print nothing, and need none.
        self.buffer.resize(CHUNK_BYTES, 0);
        let count = match sys::read(pipe.as_raw_fd(), &mut self.buffer) {
            Ok(0) => {
                self.streams[stream] = None;
                self.end_output(stream);
                return false;
            }
            Ok(count) => count,
            Err(_) => return false,
        };
        if self.setting.mask.is_empty() {
            // Out and in again, so that `append` may have the rest of `self`.
            let buffer = std::mem::take(&mut self.buffer);
            self.append(stream, &buffer[..count]);
            self.buffer = buffer;
        } else {
            let data = self.masked[stream].pass(&self.setting.mask, &self.buffer[..count], false);
            self.append(stream, &data);
        }
        true
    }

    fn room_bytes(&self) -> usize {
        let used: u64 = self.shared.logs.iter().map(Log::size_bytes).sum();
        usize::try_from(self.setting.log_size_bytes_max.saturating_sub(used)).unwrap_or(usize::MAX)
    }

    /// Keep what was held back because a secret might have begun there.
    fn end_output(&mut self, stream: usize) {
        let data = self.masked[stream].pass(&self.setting.mask, &[], true);
        if !data.is_empty() {
            self.append(stream, &data);
        }
    }

    fn append(&mut self, stream: usize, data: &[u8]) {
        let count = data.len();
        let kept = self.room_bytes().min(count);
        let written = self.shared.logs[stream].append(&data[..kept]);
        if kept > 0 {
            (self.shared.printed)();
        }
        if let Err(error) = written {
            let full = matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
            self.stop(if full { "storage_full" } else { "sandbox_failed" });
        } else if kept < count {
            self.stop("log_limit");
        }
    }

    fn drain(&mut self) {
        let end = Instant::now() + DRAIN_WAIT;
        for stream in [0, 1] {
            // The pipes do not block: an empty one whose writer lives on ends the loop.
            while self.keep_output(stream) && Instant::now() < end {}
            self.end_output(stream);
        }
    }

    fn outcome(&self, sight: Sight) -> Outcome {
        let now = Instant::now();
        let (report, end) = self.ended.unwrap_or_else(|| {
            // The supervisor was killed, and everything with it.
            (Report::ended_unseen(libc::SIGKILL), now)
        });
        let (exit_code, signal) = exit_of(report.wait_status);
        // A process starts as a copy of the launcher, whose size stays in its ru_maxrss across exec (exec_mmap): for a
        // small action the group's peak is nearer the truth.
        let max_rss_bytes = report.max_rss_kib * 1024;
        let max_rss_bytes = sight.memory_peak_bytes.map_or(max_rss_bytes, |peak| peak.min(max_rss_bytes));
        let used_s = (report.user_us + report.system_us) as f64 / 1e6;
        // The kernel keeps the limit by counting ticks, and tells exactly what was used: on a busy machine that is less.
        let over_cpu = |share: f64| self.setting.cpu_s.is_some_and(|limit| used_s >= limit as f64 * share);
        let past_cpu =
            (exit_code == 128 + libc::SIGXCPU && over_cpu(0.5)) || (exit_code == 128 + libc::SIGKILL && over_cpu(0.9));
        let reason = if !self.reason.is_empty() {
            self.reason.as_str()
        } else if self.ended.is_none() {
            // Nobody here asked for that: what the command would have said is not known.
            "sandbox_failed"
        } else if sight.memory_kills > 0 {
            // Whatever the command made of it: a process of it was killed, and what that one would have done is missing.
            "memory"
        } else if exit_code == 0 {
            ""
        } else if past_cpu {
            "cpu"
        } else if exit_code == 128 + libc::SIGXFSZ && self.setting.disk.is_limited() {
            "disk"
        } else if sight.fork_refusals > 0 {
            "pids"
        } else {
            ""
        };
        let [stdout, stderr] = &self.shared.logs;
        Outcome {
            exit_code,
            signal,
            reason: reason.to_owned(),
            wall_s: self.started.map_or(0.0, |start| (end - start).as_secs_f64()),
            user_s: report.user_us as f64 / 1e6,
            system_s: report.system_us as f64 / 1e6,
            max_rss_bytes,
            isolation: self.setting.isolation,
            network: self.setting.network,
            limits: self.setting.limits,
            begun_unix_ns: self.begun_unix_ns,
            stdout_bytes: stdout.size_bytes(),
            stderr_bytes: stderr.size_bytes(),
        }
    }
}

fn not_found(program: &str) -> NativeError {
    let message = format!("{program}: there is no such program; check the first argument and the PATH of the Command");
    NativeError::new("not_found", message)
        .with("kind", FieldValue::Text("program".to_owned()))
        .with("name", FieldValue::Text(program.to_owned()))
}

/// (exit code as a shell says it, signal or 0).
fn exit_of(wait_status: i32) -> (i32, i32) {
    if libc::WIFSIGNALED(wait_status) {
        let signal = libc::WTERMSIG(wait_status);
        (128 + signal, signal)
    } else {
        (libc::WEXITSTATUS(wait_status), 0)
    }
}

/// Wait until one of four descriptors is ready (negative ones never are) or the deadline has come.
fn poll(fds: [RawFd; 4], deadline: Instant) -> [bool; 4] {
    let mut polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up, or the last millisecond would be spent spinning.
    let left_ms = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
    // SAFETY: the array has four entries. An interrupted wait reads as nothing ready.
    if unsafe { libc::poll(polled.as_mut_ptr(), 4, left_ms) } <= 0 {
        return [false; 4];
    }
    polled.map(|one| one.revents != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(exit_of(0), (0, 0));
        assert_eq!(exit_of(3 << 8), (3, 0));
        assert_eq!(exit_of(9), (137, 9));
        assert_eq!(exit_of(11 | 0x80), (139, 11));
    }
}
