//! Input trees onto disk, outputs off it, and the command between them; it decides no policy.
//!
//! No action can alter a cached blob (inputs are copies, or seen through a layer of its own), lead a path out of its execution root (every step is relative
//! to an open directory and follows no symlink), or outlive the worker.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod collect;
mod error;
mod image;
mod input_tree;
mod launch;
mod layer;
mod mounting;
mod nodes;
mod output_tree;
mod pending;
mod place;
mod remove;
mod stage;
mod trees;
mod view;
mod write;
mod written;

pub use collect::{CollectLimits, Collected, FILE_COUNT_MAX, SIZE_BYTES_MAX, collect, outputs_exceed};
pub use error::Result;
pub use launch::{
    Control, Isolation, LogPiece, MASKED_BYTES_MIN, Outcome, Plan, Process, Run, launcher_main, launcher_pid,
    probe_isolation, quiet_thread, set_interpreter, start_launcher,
};
pub use remove::remove_tree;
pub use stage::{Root, Staged, stage, stage_kept};
pub use trees::{KeptTree, Trees};
pub use view::View;
pub use written::{Written, undeclared_writes};
