//! What an attempt is given, and what it gives. Holds no logic.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use buildnet_dial::Link;
use buildnet_formats::{Digest, NativeError};
use buildnet_stage::{Outcome, Plan, Trees, Written};
use buildnet_store::Store;

/// What all attempts of one worker share.
pub struct Room {
    /// The worker's own CAS.
    pub store: Arc<Store>,
    /// To the controller's.
    pub link: Arc<Link>,
    /// Input trees that are kept, where they can be.
    pub trees: Option<Arc<Trees>>,
    /// One directory below it for each fence; on the file system of the store.
    pub scratch: PathBuf,
    /// Where what attempts left waits to be removed; on the same file system.
    pub cleared: PathBuf,
    /// Written into every result.
    pub node: String,
    /// How long a transfer waits for a controller that cannot be reached.
    pub away_timeout: Duration,
    /// Attempts at once; more wait.
    pub threads_max: usize,
}

/// An effect, its level, and whether it is enforced.
#[derive(Clone, Debug)]
pub struct Grant {
    /// For example `network`.
    pub name: String,
    /// For example `none`.
    pub level: String,
    /// Whether the command could not do otherwise.
    pub enforced: bool,
}

/// One attempt, decided.
#[derive(Clone, Debug)]
pub struct Order {
    /// Used once.
    pub fence: u64,
    /// What to run. Where (`cwd`, `root`, `root_mount`, `tmp`, the logs' paths, `counted`, `cgroup_name`) follows from the
    /// fence, and need not be filled in.
    pub plan: Plan,
    /// The exact bytes of the Command, which the caller has checked against its digest.
    pub command: Vec<u8>,
    /// The Command's.
    pub working_directory: String,
    /// Where a program named without a slash is looked for; a relative entry counts from the working directory.
    pub search_path: Vec<String>,
    /// Of the Action.
    pub input_root: Digest,
    /// Whether the Command names any output.
    pub has_outputs: bool,
    /// Whether to write anything but declared outputs leaves no outputs.
    pub writes_are_strict: bool,
    /// For the result.
    pub effects: Vec<Grant>,
    /// Numbers of the gpus that it is given, for the result.
    pub gpus: Vec<u32>,
    /// Follows the error of a program that the worker has and the command does not see.
    pub unseen_hint: String,
    /// Another sandbox than the launcher runs it: the attempt is staged, says so, and waits for `Attempt::finish`.
    pub elsewhere: bool,
}

/// How a command ended, whoever ran it; see [`Outcome`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ending {
    /// As a shell says it.
    pub exit_code: i32,
    /// Empty, or why it was stopped.
    pub reason: String,
    /// From exec to end.
    pub wall_s: f64,
    /// In user mode.
    pub user_s: f64,
    /// In the kernel.
    pub system_s: f64,
    /// Largest resident set.
    pub max_rss_bytes: u64,
    /// What was really used.
    pub isolation: String,
    /// What bounded what.
    pub limits: Vec<(String, String)>,
    /// What is older it did not write.
    pub begun_unix_ns: u64,
    /// Of standard output and standard error together.
    pub printed_bytes: u64,
}

impl From<&Outcome> for Ending {
    fn from(outcome: &Outcome) -> Self {
        Self {
            exit_code: outcome.exit_code,
            reason: outcome.reason.clone(),
            wall_s: outcome.wall_s,
            user_s: outcome.user_s,
            system_s: outcome.system_s,
            max_rss_bytes: outcome.max_rss_bytes,
            isolation: outcome.isolation.to_owned(),
            limits: outcome.limits.iter().map(|(name, by)| ((*name).to_owned(), (*by).to_owned())).collect(),
            begun_unix_ns: outcome.begun_unix_ns,
            printed_bytes: outcome.stdout_bytes + outcome.stderr_bytes,
        }
    }
}

/// A longer result is a blob at the controller too: a session carries messages of 4 MiB, so it is named there.
pub const RESULT_BYTES_SAID_MAX: usize = 3 << 20;

/// What a command that ran came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// An encoded ActionResult: outputs, logs and metadata. Every blob of it is at the controller.
    pub result: Vec<u8>,
    /// As a shell says it.
    pub exit_code: i32,
    /// Empty, or why it was stopped.
    pub reason: String,
    /// Why its outputs are not in the result.
    pub failure: Option<NativeError>,
    /// What it wrote and did not declare.
    pub written: Written,
}

/// How an attempt ended: with a report, or before there was one. `cancelled` is the code of one that was stopped.
pub type Done = Result<Report, NativeError>;
