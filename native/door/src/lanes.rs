//! The network's threads. A connection keeps the thread that it was given, so that its calls wake nothing on another one:
//! with threads that take each other's tasks a read cost a third more processor time, and its answers left one by one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};

/// Past so many, threads wait for the store's locks and for each other.
const LANES_MAX: usize = 8;
/// What may wait for a disk at once, of all threads together.
const BLOCKING_THREADS_MAX: usize = 512;

/// Those that this process may use.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// One for each processor, save one for Python and for what is done beside: a thread more than processors costs what is
/// gathered in a turn.
pub(crate) fn count() -> usize {
    (processors() - 1).clamp(1, LANES_MAX)
}

/// One thread with its own reactor, and how many connections it serves.
struct Lane {
    handle: Handle,
    open: AtomicUsize,
}

/// Where connections are served.
#[derive(Clone)]
pub(crate) struct Lanes(Arc<[Lane]>);

/// A connection's place on its thread, until it is dropped.
pub(crate) struct Place {
    lanes: Lanes,
    number: usize,
}

impl Lanes {
    /// The lanes of these threads, and whoever is to run beside the connections uses the first.
    pub(crate) fn of(runtimes: &[Runtime]) -> Self {
        let lane = |runtime: &Runtime| Lane { handle: runtime.handle().clone(), open: AtomicUsize::new(0) };
        Self(runtimes.iter().map(lane).collect())
    }

    /// A place where the fewest connections are.
    ///
    /// # Panics
    /// There is no lane.
    pub(crate) fn place(&self) -> Place {
        let open = |number: &usize| self.0[*number].open.load(Ordering::Relaxed);
        let number = (0..self.0.len()).min_by_key(open).expect("a door has a thread");
        self.0[number].open.fetch_add(1, Ordering::Relaxed);
        Place { lanes: self.clone(), number }
    }
}

impl Place {
    /// The thread.
    pub(crate) fn handle(&self) -> &Handle {
        &self.lanes.0[self.number].handle
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lanes.0[self.number].open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// So many threads, each a runtime of its own.
///
/// # Errors
/// The system refuses a thread or a descriptor.
pub(crate) fn start(count: usize) -> io::Result<Vec<Runtime>> {
    let one = || {
        Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(BLOCKING_THREADS_MAX / count)
            .thread_name("buildnet-door")
            .enable_all()
            .build()
    };
    (0..count).map(|_| one()).collect()
}

/// End what is left, all within `timeout`.
pub(crate) fn close(runtimes: Vec<Runtime>, timeout: Duration) {
    let deadline = Instant::now() + timeout;
    for runtime in runtimes {
        runtime.shutdown_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_comes_where_the_fewest_are() {
        let runtimes = start(3).unwrap();
        let lanes = Lanes::of(&runtimes);
        let mut places: Vec<Place> = (0..6).map(|_| lanes.place()).collect();
        assert_eq!(places.iter().map(|place| place.number).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
        places.retain(|place| place.number != 1);
        assert_eq!([lanes.place().number, lanes.place().number], [1, 1], "a place that was given back is taken first");
        close(runtimes, Duration::ZERO);
    }
}
