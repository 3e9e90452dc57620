//! Work that keeps a processor for some tens of microseconds, while other calls wait for the network's thread: a processor
//! that has nothing to do takes it, and if there is none the network's thread does it as ever.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

use crate::lanes;

/// Processors are the process's, whichever door uses them.
static TAKEN: AtomicUsize = AtomicUsize::new(0);
static SPARE: LazyLock<usize> = LazyLock::new(|| lanes::processors() - lanes::count());

/// A processor that was free.
struct Taken;

impl Taken {
    fn new() -> Option<Self> {
        let take = |taken| (taken < *SPARE).then_some(taken + 1);
        TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|_| Self)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Do work where a processor is free, else here.
///
/// # Errors
/// Unavailable when the door is closing.
pub(crate) async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    let Some(taken) = Taken::new() else { return Ok(work()) };
    let done = tokio::task::spawn_blocking(move || {
        let _taken = taken;
        work()
    });
    done.await.map_err(|_| Status::unavailable("the server is stopping"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_is_done_beside_than_there_are_processors_left() {
        let here = std::thread::current().id();
        let place = || std::thread::current().id();
        let taken: Vec<Taken> = std::iter::from_fn(Taken::new).collect();
        assert_eq!(taken.len(), *SPARE);
        assert_eq!(beside(place).await.unwrap(), here, "it waits for nobody");
        drop(taken);
        assert_eq!(beside(place).await.unwrap() == here, *SPARE == 0);
        assert_eq!(TAKEN.load(Ordering::Relaxed), 0, "and gives the processor back");
    }
}
