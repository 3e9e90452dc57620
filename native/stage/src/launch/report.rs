//! What the supervising process tells the worker through a pipe: one fixed record per event, smaller than PIPE_BUF.

use std::time::Duration;

use super::sys::{self, Errno};

/// The step that failed before the command ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Stage {
    Clone = 1,
    Descriptors,
    Identity,
    MountPrivate,
    MountClone,
    MountPivot,
    MountDev,
    MountTmp,
    MountShown,
    MountWritable,
    MountProc,
    MountHidden,
    MountSeal,
    Loopback,
    Signals,
    Session,
    Cgroup,
    Limits,
    Directory,
    Privileges,
    Exec,
}

impl Stage {
    const ALL: [(Self, &'static str); 21] = [
        (Self::Clone, "make its processes"),
        (Self::Descriptors, "set up its descriptors"),
        (Self::Identity, "map its user"),
        (Self::MountPrivate, "make its mounts private"),
        (Self::MountClone, "copy the mounts that it is shown"),
        (Self::MountPivot, "enter a root of its own"),
        (Self::MountDev, "mount its /dev"),
        (Self::MountTmp, "mount its /tmp"),
        (Self::MountShown, "mount the paths that it is shown"),
        (Self::MountWritable, "mount its execution root"),
        (Self::MountProc, "mount its /proc"),
        (Self::MountHidden, "hide paths of the host"),
        (Self::MountSeal, "make its root read-only"),
        (Self::Loopback, "raise its loopback interface"),
        (Self::Signals, "set up its signals"),
        (Self::Session, "make its session"),
        (Self::Cgroup, "join its cgroup"),
        (Self::Limits, "set its resource limits"),
        (Self::Directory, "enter its working directory"),
        (Self::Privileges, "drop its privileges"),
        (Self::Exec, "run the program"),
    ];

    /// The stage with this number; zero is none.
    pub(crate) fn of(code: u32) -> Option<Self> {
        let mut known = Self::ALL.iter().map(|(stage, _)| *stage);
        known.find(|stage| *stage as u32 == code)
    }

    /// What was being done, to follow "the sandbox could not".
    pub(crate) fn text(code: u32) -> &'static str {
        let known = Self::ALL.iter().find(|(stage, _)| *stage as u32 == code);
        known.map_or("start", |(_, text)| text)
    }
}

/// Where a start failed, and why.
pub(crate) type Failure = (Stage, Errno);

/// One record. `kind` says which fields mean something.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Report {
    pub(crate) kind: u32,
    pub(crate) stage: u32,
    pub(crate) errno: i32,
    pub(crate) wait_status: i32,
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) max_rss_kib: u64,
    /// When it happened, by the clock that counts from the machine's start.
    pub(crate) at_ns: u64,
}

pub(crate) const STARTED: u32 = 1;
pub(crate) const FAILED: u32 = 2;
pub(crate) const ENDED: u32 = 3;
pub(crate) const REPORT_SIZE: usize = size_of::<Report>();

impl Report {
    pub(crate) fn started() -> Self {
        Self { kind: STARTED, at_ns: sys::monotonic_ns(), ..Self::default() }
    }

    pub(crate) fn failed((stage, errno): Failure) -> Self {
        Self { kind: FAILED, stage: stage as u32, errno, ..Self::default() }
    }

    pub(crate) fn ended(wait_status: i32, used: Used) -> Self {
        let Used { user_us, system_us, max_rss_kib } = used;
        let at_ns = sys::monotonic_ns();
        Self { kind: ENDED, wait_status, user_us, system_us, max_rss_kib, at_ns, ..Self::default() }
    }

    /// The supervisor ended without a word; what the action used went with it.
    pub(crate) fn ended_unseen(wait_status: i32) -> Self {
        Self { kind: ENDED, wait_status, ..Self::default() }
    }

    /// How long ago it was.
    pub(crate) fn age(&self) -> Duration {
        Duration::from_nanos(sys::monotonic_ns().saturating_sub(self.at_ns))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        Self::all_bytes(std::slice::from_ref(self))
    }

    pub(crate) fn all_bytes(reports: &[Self]) -> &[u8] {
        // SAFETY: repr(C), no padding (four 4-byte fields, then four of 8 bytes), all bytes initialised.
        unsafe { std::slice::from_raw_parts(reports.as_ptr().cast(), size_of_val(reports)) }
    }

    pub(crate) fn from_bytes(bytes: &[u8; REPORT_SIZE]) -> Self {
        // SAFETY: every bit pattern is a valid Report; the read does not need alignment.
        unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
    }
}

/// What every process that a supervisor reaped for one action has used, so the whole action.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    user_us: u64,
    system_us: u64,
    max_rss_kib: u64,
}

impl Used {
    pub(crate) fn add(&mut self, usage: &libc::rusage) {
        self.user_us += micros(usage.ru_utime);
        self.system_us += micros(usage.ru_stime);
        self.max_rss_kib = self.max_rss_kib.max(usage.ru_maxrss.unsigned_abs());
    }
}

fn micros(time: libc::timeval) -> u64 {
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_usec.unsigned_abs()
}
