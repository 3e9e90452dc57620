//! What to run and within which bounds, as the caller's policy decided; nothing here decides.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{self, Result};

/// How the action is kept apart from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces, as far as the kernel allows; the outcome says what was really used.
    Namespaces,
    /// A process group and a supervisor only.
    Process,
}

/// One command and its bounds. Paths are absolute paths of the host.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory: `root` joined with the Command's `working_directory`.
    pub cwd: PathBuf,
    /// The execution root, writable; with namespaces it appears as `/buildnet/root`.
    pub root: PathBuf,
    /// A mount that hangs nowhere and is shown in the place of `root` (namespaces only), open until the start is over.
    pub root_mount: Option<RawFd>,
    /// Files and directories of the host that appear, read-only, at their own path; `/` means all (namespaces only).
    pub shown: Vec<PathBuf>,
    /// Directories that appear empty (namespaces only): the worker's keys and state, sockets of host services.
    pub hidden: Vec<PathBuf>,
    /// Small files to make where nothing is shown (namespaces only).
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// Device files of the host, and where below /dev each appears besides null and the like (namespaces only). One that
    /// is not there fails the start.
    pub devices: Vec<(PathBuf, PathBuf)>,
    /// The private directory that appears as /tmp and /var/tmp (namespaces only).
    pub tmp: PathBuf,
    /// File that receives standard output.
    pub stdout_path: PathBuf,
    /// File that receives standard error.
    pub stderr_path: PathBuf,
    /// Both streams together; past it the action is killed.
    pub log_size_bytes_max: u64,
    /// Texts that neither stream may show; those under [`MASKED_BYTES_MIN`](crate::MASKED_BYTES_MIN) are not looked for.
    pub masked: Vec<Vec<u8>>,
    /// Wall time from exec to end.
    pub timeout: Duration,
    /// Memory of the whole action.
    pub memory_bytes: Option<u64>,
    /// Processes and threads of the whole action.
    pub pids_max: Option<u64>,
    /// Processor seconds of each process.
    pub cpu_s: Option<u64>,
    /// Its share of the processors beside others, in thousandths of one.
    pub cpu_milli: Option<u64>,
    /// Whether that is all it may have, also when nobody else wants them (control groups only).
    pub cpu_is_capped: bool,
    /// Space that `counted` may take together.
    pub disk_bytes: Option<u64>,
    /// Directories of the host where what the action writes ends up; none means `root` and `tmp`.
    pub counted: Vec<PathBuf>,
    /// Whether the host's network is visible.
    pub network: bool,
    /// How to keep it apart.
    pub isolation: Isolation,
    /// Name of its control group: letters, digits, `.`, `_`, `-`.
    pub cgroup_name: String,
}

impl Plan {
    pub(crate) fn validate(&self) -> Result<()> {
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let name = &self.cgroup_name;
        if name.is_empty() || name.len() > 100 || !name.bytes().all(named) {
            return Err(error::invalid("cgroup_name", "use 1 to 100 of A-Z a-z 0-9 . _ -"));
        }
        if !self.cwd.is_absolute() {
            return Err(error::invalid("cwd", "is not absolute"));
        }
        if self.timeout.is_zero() {
            return Err(error::invalid("timeout_s", "must be more than 0"));
        }
        let limits = [
            ("memory_bytes", self.memory_bytes),
            ("pids_max", self.pids_max),
            ("cpu_s", self.cpu_s),
            ("cpu_milli", self.cpu_milli),
            ("disk_bytes", self.disk_bytes),
        ];
        for (field, limit) in limits {
            if limit == Some(0) {
                return Err(error::invalid(field, "must be more than 0, or absent for no limit"));
            }
        }
        Ok(())
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// As a shell would say: the exit status, or 128 plus the signal.
    pub exit_code: i32,
    /// The signal that ended the command, else 0.
    pub signal: i32,
    /// Empty, or why it was stopped: timeout, memory, pids, cpu, disk, log_limit, storage_full, or what `kill` was told.
    pub reason: String,
    /// Wall time from exec to end.
    pub wall_s: f64,
    /// Processor time of the whole action in user mode.
    pub user_s: f64,
    /// Processor time of the whole action in the kernel.
    pub system_s: f64,
    /// Largest resident set; an upper bound when the action is smaller than the worker (see `watch`).
    pub max_rss_bytes: u64,
    /// `namespaces` or `process`: what was really used.
    pub isolation: &'static str,
    /// `none` or `host`: what the action could really reach.
    pub network: &'static str,
    /// What bounded memory, pids, cpu (time), share (of the processors) and disk: cgroup1, cgroup2, rlimit, watched
    /// (looked at from time to time), none (asked for, not possible), unset.
    pub limits: [(&'static str, &'static str); 5],
    /// When it was about to begin, in nanoseconds since 1970: what is older it did not write.
    pub begun_unix_ns: u64,
    /// Bytes of standard output that were kept.
    pub stdout_bytes: u64,
    /// Bytes of standard error that were kept.
    pub stderr_bytes: u64,
}
