//! The threads that attempts have, and the strings by which the caller holds them.
//!
//! Threads are made when an order finds none idle, up to a bound, and stay. A panic ends the attempt, not the thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use buildnet_formats::{Digest, NativeError};
use buildnet_stage::{Control, quiet_thread};

use crate::attempt::{self, Begun, Tools, scratch_of};
use crate::clearing::Clearing;
use crate::events::{Event, Events};
use crate::inputs;
use crate::order::{Done, Ending, Order, Room};
use crate::patience::Patience;

const THREAD_STACK_BYTES: usize = 1 << 20;
/// How long a close waits for attempts that were left behind; they end with the process.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// The attempts of one worker.
pub struct Crew {
    inner: Arc<Inner>,
}

struct Inner {
    tools: Arc<Tools>,
    clearing: Clearing,
    queue: Mutex<Queue>,
    /// There is a job, or no more will come.
    work: Condvar,
    /// A thread has ended.
    left: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

enum Job {
    Run(Box<Order>, Arc<State>),
    Finish(Option<Box<Ending>>, Arc<State>),
}

/// One attempt, as its caller and its thread share it.
pub(crate) struct State {
    pub(crate) fence: u64,
    told: Arc<AtomicBool>,
    stopped: Mutex<Option<String>>,
    control: Mutex<Option<Control>>,
    /// One that another sandbox runs.
    begun: Mutex<Option<Begun>>,
}

impl State {
    /// True once it was said that something was printed, until somebody has looked.
    pub(crate) fn told(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.told)
    }

    pub(crate) fn runs(&self, control: Control) {
        *lock(&self.control) = Some(control);
    }

    pub(crate) fn unless_stopped(&self) -> Result<(), NativeError> {
        self.unless("stopped before it ran")
    }

    pub(crate) fn unless_stopped_after(&self) -> Result<(), NativeError> {
        self.unless("stopped")
    }

    fn unless(&self, when: &str) -> Result<(), NativeError> {
        match &*lock(&self.stopped) {
            None => Ok(()),
            Some(reason) => Err(NativeError::new("cancelled", format!("{when}: {reason}"))),
        }
    }
}

/// A caller's hold on one attempt. Dropping it stops nothing.
pub struct Attempt {
    state: Arc<State>,
    /// The store is closed with the crew, however long somebody holds this.
    inner: Weak<Inner>,
}

impl Attempt {
    /// Stop it, in whatever step it is; the first reason counts. Safe to repeat, and after its end.
    pub fn stop(&self, reason: &str) {
        lock(&self.state.stopped).get_or_insert_with(|| reason.to_owned());
        // In this order, as the thread does the contrary: one of both sees the other.
        if let Some(control) = &*lock(&self.state.control) {
            control.kill("killed");
        }
    }

    /// Tell the next time that something is printed; what came before is to be looked at after this.
    pub fn quiet(&self) {
        self.state.told.store(false, Ordering::SeqCst);
    }

    /// Tell nothing until `quiet`.
    pub fn mute(&self) {
        self.state.told.store(true, Ordering::SeqCst);
    }

    /// Standard output and standard error as files to read, for those that there are by now.
    ///
    /// # Errors
    /// No more descriptors are to be had.
    pub fn logs(&self) -> io::Result<[Option<OwnedFd>; 2]> {
        let control = lock(&self.state.control).clone();
        let Some(control) = control else { return Ok([None, None]) };
        let [stdout, stderr] =
            control.logs().map(|file| file.map(|file| file.as_fd().try_clone_to_owned()).transpose());
        Ok([stdout?, stderr?])
    }

    /// The sandbox elsewhere has run it, or could not.
    pub fn finish(&self, ending: Option<Ending>) {
        if let Some(inner) = self.inner.upgrade() {
            inner.give(Job::Finish(ending.map(Box::new), Arc::clone(&self.state)));
        }
    }
}

impl Crew {
    /// Empties the scratch directory. Blocks; before the first attempt.
    ///
    /// # Errors
    /// It cannot be emptied or made.
    pub fn open(room: Room) -> Result<Self, NativeError> {
        attempt::clear_all(&room.scratch)?;
        let clearing = Clearing::open(&room.cleared)?;
        let events = Events::new().map_err(|error| NativeError::internal(format!("cannot make an event: {error}")))?;
        let patience = Patience::new(room.away_timeout);
        let tools = Arc::new(Tools { room, patience, events });
        let (work, left) = (Condvar::new(), Condvar::new());
        Ok(Self { inner: Arc::new(Inner { tools, clearing, queue: Mutex::default(), work, left }) })
    }

    /// Readable while there are events to take.
    pub fn fd(&self) -> RawFd {
        self.inner.tools.events.fd()
    }

    /// What attempts have to say since the last call. Never blocks.
    pub fn take(&self) -> VecDeque<Event> {
        self.inner.tools.events.take()
    }

    /// Have an attempt made; `Event::Ended` tells its end. Never blocks.
    pub fn run(&self, order: Order) -> Attempt {
        let state = Arc::new(State {
            fence: order.fence,
            told: Arc::default(),
            stopped: Mutex::default(),
            control: Mutex::default(),
            begun: Mutex::default(),
        });
        self.inner.give(Job::Run(Box::new(order), Arc::clone(&state)));
        Attempt { state, inner: Arc::downgrade(&self.inner) }
    }

    /// Bring blobs, and a tree, into the worker's store, or say everything that is missing. Blocks.
    ///
    /// # Errors
    /// `blobs_missing`; the controller cannot be reached, or refuses.
    pub fn fetch(&self, blobs: &[Digest], tree: Option<&Digest>) -> Result<(), NativeError> {
        inputs::bring(&self.inner.tools.room, &self.inner.tools.patience, blobs, tree)
    }

    /// Return once nothing of any attempt is left, or some that were left behind take too long. Blocks; after the last
    /// attempt.
    pub fn close(&self) {
        self.inner.tools.patience.give_up();
        let until = Instant::now() + CLOSE_WAIT;
        let mut queue = lock(&self.inner.queue);
        queue.closed = true;
        self.inner.work.notify_all();
        while queue.threads > 0 && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            queue = self.inner.left.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(queue);
        self.inner.clearing.close();
    }
}

impl Inner {
    fn give(self: &Arc<Self>, job: Job) {
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(job);
        if queue.idle >= queue.jobs.len() || queue.threads >= self.tools.room.threads_max {
            drop(queue);
            self.work.notify_one();
            return;
        }
        let inner = Arc::clone(self);
        let thread = std::thread::Builder::new().name("attempt".to_owned()).stack_size(THREAD_STACK_BYTES);
        match thread.spawn(move || inner.serve()) {
            Ok(_) => queue.threads += 1,
            // Those that there are do it later; without any it must be told now.
            Err(error) if queue.threads == 0 => {
                if let Some(Job::Run(_, state) | Job::Finish(_, state)) = queue.jobs.pop_back() {
                    let error = NativeError::new("sandbox_failed", format!("cannot start a thread: {error}"));
                    self.tools.events.put(Event::Ended(state.fence, Box::new(Err(error))));
                }
            }
            Err(_) => {}
        }
    }

    fn serve(self: &Arc<Self>) {
        quiet_thread();
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                self.obey(job);
                queue = lock(&self.queue);
            } else if queue.closed {
                queue.threads -= 1;
                self.left.notify_all();
                return;
            } else {
                queue.idle += 1;
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }

    fn obey(&self, job: Job) {
        let (Job::Run(_, state) | Job::Finish(_, state)) = &job;
        let state = Arc::clone(state);
        let done = catch_unwind(AssertUnwindSafe(|| match job {
            Job::Run(order, state) => self.make(*order, &state),
            Job::Finish(ending, state) => self.finish(ending.as_deref(), &state).map(Some),
        }));
        // One attempt's bug must not end the others; it is told.
        let done = done.unwrap_or_else(|_| Err(NativeError::internal("the worker failed: an attempt panicked")));
        let Some(done) = done.map_or_else(|error| Some(Err(error)), |report| report.map(Ok)) else { return };
        self.clearing.take(&scratch_of(&self.tools.room, state.fence));
        self.tools.events.put(Event::Ended(state.fence, Box::new(done)));
    }

    /// None while a sandbox elsewhere runs it.
    fn make(&self, order: Order, state: &Arc<State>) -> Result<Option<crate::order::Report>, NativeError> {
        state.unless_stopped()?;
        let elsewhere = order.elsewhere;
        let begun = attempt::begin(order, &self.tools, state)?;
        if elsewhere {
            let mount = begun.mount_fd();
            *lock(&state.begun) = Some(begun);
            self.tools.events.put(Event::Staged(state.fence, mount));
            return Ok(None);
        }
        let (ending, control) = attempt::launched(&begun, &self.tools, state)?;
        attempt::end(begun, &ending, Some(&control), &self.tools, state).map(Some)
    }

    fn finish(&self, ending: Option<&Ending>, state: &State) -> Done {
        let begun = lock(&state.begun).take();
        let begun = begun.ok_or_else(|| NativeError::internal("an attempt was finished that no sandbox had"))?;
        state.unless_stopped_after()?;
        let ending = ending.ok_or_else(|| NativeError::new("sandbox_failed", "the sandbox did not run it"))?;
        attempt::end(begun, ending, None, &self.tools, state)
    }
}

/// Every change is whole when the lock is given back: a panic elsewhere cannot leave it half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
