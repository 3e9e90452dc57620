//! The steps of one attempt, in the thread that stays with it. Each leaves the scratch to whoever calls.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use buildnet_formats::{Digest, NativeError};
use buildnet_stage::{self as stage, CollectLimits, Collected, Control, Root, View, Written};

use crate::crew::State;
use crate::events::{Event, Events};
use crate::inputs;
use crate::order::{Done, Ending, Order, RESULT_BYTES_SAID_MAX, Report, Room};
use crate::patience::Patience;
use crate::program;
use crate::record;
use crate::report::{self, Times};

/// What is collected and sent sooner than another attempt could be begun is not worth telling of.
const UNSENT_BYTES_MIN: u64 = 256 << 10;

/// What the steps work with.
pub(crate) struct Tools {
    pub(crate) room: Room,
    pub(crate) patience: Patience,
    pub(crate) events: Events,
}

/// An attempt whose command may start.
pub(crate) struct Begun {
    order: Order,
    scratch: PathBuf,
    /// Where this process finds the execution root.
    root: PathBuf,
    view: Option<View>,
    times: Times,
}

impl Begun {
    pub(crate) fn mount_fd(&self) -> i32 {
        self.view.as_ref().map_or(-1, View::fd)
    }
}

pub(crate) fn scratch_of(room: &Room, fence: u64) -> PathBuf {
    room.scratch.join(format!("{fence:016x}"))
}

/// Fetch and stage, and see that the program is there.
pub(crate) fn begin(mut order: Order, tools: &Tools, state: &State) -> Result<Begun, NativeError> {
    let room = &tools.room;
    let mut times = Times { worker_start: report::now(), input_fetch_start: report::now(), ..Times::default() };
    // In use from now on: it must not go before it is staged.
    let kept = room.trees.as_ref().and_then(|trees| trees.find(&order.input_root));
    if kept.is_none() {
        inputs::bring(room, &tools.patience, &[], Some(&order.input_root))?;
    }
    state.unless_stopped()?;
    let scratch = scratch_of(room, order.fence);
    make(&scratch)?;
    let tmp = scratch.join("tmp");
    make(&tmp)?;
    let view = staged(room, &order, &scratch)?;
    drop(kept);
    times.input_fetch_completed = report::now();
    state.unless_stopped()?;
    let root = view.as_ref().map_or_else(|| scratch.join("root"), View::path);
    let name = order.plan.argv.first().map_or(&[][..], Vec::as_slice);
    program::check(name, &order.search_path, &root.join(&order.working_directory))?;
    times.execution_start = report::now();
    let plan = &mut order.plan;
    plan.root = scratch.join("root");
    plan.root_mount = view.as_ref().map(View::fd);
    plan.cwd = plan.root.join(&order.working_directory);
    plan.counted = if view.is_some() { vec![scratch.join("upper"), tmp.clone()] } else { Vec::new() };
    plan.tmp = tmp;
    plan.stdout_path = scratch.join("stdout");
    plan.stderr_path = scratch.join("stderr");
    plan.cgroup_name = format!("{:016x}", order.fence);
    Ok(Begun { order, scratch, root, view, times })
}

/// Have the launcher run it, and stay until it has ended.
pub(crate) fn launched(begun: &Begun, tools: &Arc<Tools>, state: &State) -> Result<(Ending, Control), NativeError> {
    // Not the state itself: it holds the control, which holds this.
    let (news, told, fence) = (Arc::clone(tools), state.told(), state.fence);
    let printed = move || {
        if !told.swap(true, Ordering::SeqCst) {
            news.events.put(Event::Printed(fence));
        }
    };
    let run = stage::Run::prepare(&begun.order.plan, Box::new(printed))?;
    let control = run.control();
    state.runs(control.clone());
    state.unless_stopped()?;
    let ended = run.go(&|| {}).map_err(|error| seen(error, &begun.order));
    state.unless_stopped_after()?;
    Ok((Ending::from(&ended?), control))
}

/// A program that was there for the worker, but whose interpreter is not, or which the sandbox does not show.
fn seen(error: NativeError, order: &Order) -> NativeError {
    if error.code != "not_found" {
        return error;
    }
    NativeError::invalid("command.arguments", format!("{}{}", error.message, order.unseen_hint))
}

/// Collect and push.
pub(crate) fn end(begun: Begun, ending: &Ending, logs: Option<&Control>, tools: &Tools, state: &State) -> Done {
    let (room, order) = (&tools.room, &begun.order);
    if leaves_much(order, &begun.root, ending) {
        tools.events.put(Event::CommandEnded(order.fence));
    }
    let mut times = begun.times;
    times.execution_completed = report::now();
    times.output_upload_start = report::now();
    let layered = begun.view.is_some();
    let looked_at = if layered { begun.scratch.join("upper") } else { begun.root.clone() };
    let written = stage::undeclared_writes(
        &room.store,
        &order.input_root,
        &looked_at,
        &order.command,
        ending.begun_unix_ns,
        layered,
    )?;
    let (mut collected, failure) = match outputs(room, order, &begun.root, ending, &written) {
        Ok(collected) => (collected, None),
        // An output that breaks the Command's rules still leaves the logs.
        Err(error) => (Collected::default(), Some(error)),
    };
    if ending.printed_bytes > 0 {
        let digests = record::digests_of(room, state, logs, &begun.scratch, &mut collected.digests)?;
        [collected.result.stdout_digest, collected.result.stderr_digest] = digests;
    }
    let push = |digests: &[Digest]| {
        tools.patience.tried(|| {
            // Cancelled meanwhile, nobody wants them.
            state.unless_stopped_after()?;
            room.link.push_blobs(&room.store, digests).map_err(NativeError::from)
        })
    };
    if !collected.digests.is_empty() {
        push(&collected.digests)?;
    }
    times.output_upload_completed = report::now();
    times.worker_completed = report::now();
    let result = report::encode(collected.result, order, ending, times, &written, &room.node);
    if result.len() > RESULT_BYTES_SAID_MAX {
        push(&[room.store.put_bytes(&result)?])?;
    }
    Ok(Report { result, exit_code: ending.exit_code, reason: ending.reason.clone(), failure, written })
}

fn leaves_much(order: &Order, root: &Path, ending: &Ending) -> bool {
    let collected = order.has_outputs && ending.reason.is_empty();
    ending.printed_bytes > UNSENT_BYTES_MIN
        || (collected && stage::outputs_exceed(root, &order.command, UNSENT_BYTES_MIN))
}

fn outputs(
    room: &Room,
    order: &Order,
    root: &Path,
    ending: &Ending,
    written: &Written,
) -> Result<Collected, NativeError> {
    let forbidden = order.writes_are_strict && (written.count > 0 || !written.whole);
    if !order.has_outputs || !ending.reason.is_empty() || forbidden {
        return Ok(Collected::default());
    }
    stage::collect(&room.store, root, &order.command, CollectLimits::default())
}

fn staged(room: &Room, order: &Order, scratch: &Path) -> Result<Option<View>, NativeError> {
    let Some(trees) = &room.trees else {
        stage::stage(&room.store, &order.input_root, &scratch.join("root"), &order.command)?;
        return Ok(None);
    };
    match stage::stage_kept(trees, &room.store, &order.input_root, scratch, &order.command)? {
        Root::Copied(_) => Ok(None),
        Root::Seen(view) => Ok(Some(view)),
    }
}

/// Make a directory for this user alone. A fence is used once; what is there was left by a worker that was killed while its
/// scratch was being cleared.
fn make(path: &Path) -> Result<(), NativeError> {
    let made = || DirBuilder::new().mode(0o700).create(path);
    let made = match made() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            stage::remove_tree(path)?;
            made()
        }
        made => made,
    };
    made.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            NativeError::new("storage_full", format!("the worker's disk is full: {error}; free some space"))
        }
        _ => NativeError::new("sandbox_failed", format!("cannot make {}: {error}", path.display())),
    })
}

/// Remove what a killed worker left.
pub(crate) fn clear_all(scratch: &Path) -> Result<(), NativeError> {
    let failed =
        |error: io::Error| NativeError::new("sandbox_failed", format!("cannot empty {}: {error}", scratch.display()));
    DirBuilder::new().recursive(true).mode(0o700).create(scratch).map_err(failed)?;
    for leftover in fs::read_dir(scratch).map_err(failed)? {
        stage::remove_tree(&leftover.map_err(failed)?.path())?;
    }
    Ok(())
}
