//! Input trees onto disk, outputs off it, and the command between them; it decides no policy.
//!
//! No action can alter a cached blob (inputs are copies, or seen through a layer of its own), lead a path out of its execution root (every step is relative
//! to an open directory and follows no symlink), or outlive the worker.

mod collect;
mod error;
mod input_tree;
mod launch;
mod output_tree;
mod pending;
mod place;
mod remove;
mod stage;
mod trees;
mod view;
mod write;
mod written;

pub use collect::{CollectLimits, Collected, collect};
pub use error::Result;
pub use launch::{
    Isolation, LogPiece, MASKED_BYTES_MIN, Outcome, Plan, Process, launcher_main, launcher_pid, probe_isolation,
    set_interpreter, start_launcher,
};
pub use remove::remove_tree;
pub use stage::{Root, Staged, stage, stage_kept};
pub use trees::{KeptTree, Trees};
pub use view::View;
pub use written::{Written, undeclared_writes};
