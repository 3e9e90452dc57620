//! What a connection writes in one turn leaves together: a system call and a packet for each frame would cost more than the
//! calls that they answer. A turn waits for calls that can end at once, and nothing waits longer than the turn in which it
//! was written, and nothing is reordered.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::budget::{Held, Line};

/// What is gathered at most: as much as one packet of the loopback device, and no more than the nearest caches hold.
const GATHERED_BYTES_MAX: usize = 64 << 10;
/// Slices that are written with what is gathered before them; the rest follows.
const SLICES_MAX: usize = 16;

thread_local! {
    /// One buffer serves all connections of a thread: it is empty again when a turn ends, unless a client takes nothing.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A stream, and what was written to it in this turn.
struct Gathered<S> {
    stream: S,
    line: Arc<Line>,
    bytes: Vec<u8>,
    /// How many of `bytes` the stream has taken.
    taken: usize,
    /// What the stream did not take in an earlier turn has its place in the budget.
    held: Option<Held>,
    /// Something was written since the stream was flushed.
    dirty: bool,
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    fn waiting(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Whether so many bytes may wait for the end of this turn.
    fn has_room(&self, more: usize) -> bool {
        self.held.is_none()
            && self.waiting() + more <= GATHERED_BYTES_MAX
            && (self.waiting() > 0 || !self.line.is_short())
    }

    fn gather(&mut self, slices: &[IoSlice<'_>]) {
        if self.bytes.capacity() == 0 {
            self.bytes = SPARE.take();
            self.bytes.reserve(GATHERED_BYTES_MAX);
        }
        for slice in slices {
            self.bytes.extend_from_slice(slice);
        }
    }

    /// Write what waits and then `slices`; returns how much of these was taken.
    fn poll_through(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            let waiting = self.waiting();
            if waiting == 0 && slices.iter().all(|slice| slice.is_empty()) {
                return Poll::Ready(Ok(0));
            }
            let mut parts = [IoSlice::new(&[]); SLICES_MAX];
            parts[0] = IoSlice::new(&self.bytes[self.taken..]);
            let first = usize::from(waiting > 0);
            let count = slices.len().min(SLICES_MAX - first);
            parts[first..first + count].copy_from_slice(&slices[..count]);
            let written = Pin::new(&mut self.stream).poll_write_vectored(context, &parts[..first + count]);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written if written > waiting || waiting == 0 => {
                    self.took(waiting);
                    return Poll::Ready(Ok(written - waiting));
                }
                written => self.took(written),
            }
        }
    }

    fn took(&mut self, count: usize) {
        self.taken += count;
        if self.waiting() == 0 {
            self.bytes.clear();
            self.taken = 0;
            self.held = None;
        } else if let Some(held) = &self.held {
            held.moved();
        }
    }

    fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.dirty {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_through(context, &[]))?;
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.dirty = false;
        Poll::Ready(Ok(()))
    }

    /// The turn ends: hand on what it wrote, and give the buffer to the next.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = self.poll_out(context);
        if self.waiting() == 0 || self.bytes.capacity() >= GATHERED_BYTES_MAX {
            let rest = self.bytes[self.taken..].to_vec();
            let mut spare = std::mem::replace(&mut self.bytes, rest);
            self.taken = 0;
            if spare.capacity() >= GATHERED_BYTES_MAX {
                spare.clear();
                SPARE.set(spare);
            }
        }
        if self.waiting() > 0 && self.held.is_none() {
            self.held = Some(self.line.hold(self.waiting()));
        }
        done
    }
}

/// A stream whose writes leave when its turn ends; who writes to it must poll it within [`Turns`].
pub(crate) struct Gathering<S>(Arc<Mutex<Gathered<S>>>);

impl<S: AsyncWrite + Unpin> Gathering<S> {
    pub(crate) fn new(stream: S, line: &Arc<Line>) -> Self {
        let line = Arc::clone(line);
        let bytes = Vec::new();
        Self(Arc::new(Mutex::new(Gathered { stream, line, bytes, taken: 0, held: None, dirty: false })))
    }

    /// `connection`, which reads and writes this stream, in turns.
    pub(crate) fn turns<F>(&self, connection: F) -> Turns<F, S> {
        let line = Arc::clone(&self.0.lock().line);
        Turns { connection: Box::pin(connection), gathered: Arc::clone(&self.0), line, put_off: false }
    }

    /// The stream, for the connection to own.
    pub(crate) fn end(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.lock();
        let more = slices.iter().map(|slice| slice.len()).sum();
        gathered.dirty = true;
        if gathered.has_room(more) {
            gathered.gather(slices);
            return Poll::Ready(Ok(more));
        }
        gathered.poll_through(context, slices)
    }

    /// The turn's end flushes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.lock();
        ready!(gathered.poll_out(context))?;
        Pin::new(&mut gathered.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// A connection that is polled in turns. It ends with the connection, or when its stream takes nothing more for good.
///
/// Each call is a task of its own and wakes the connection when it has an answer, which would then be served before the next
/// call: one write for each answer. While several are being answered, a turn is put off once, behind all tasks that can run.
pub(crate) struct Turns<F, S> {
    connection: Pin<Box<F>>,
    gathered: Arc<Mutex<Gathered<S>>>,
    line: Arc<Line>,
    put_off: bool,
}

impl<F, S> Turns<F, S> {
    /// Whether this turn comes later; it is woken for it once the tasks before it have run.
    fn puts_off(&mut self, context: &mut Context<'_>) -> bool {
        self.put_off = !self.put_off && self.line.answers_many();
        self.put_off && std::pin::pin!(tokio::task::yield_now()).poll(context).is_pending()
    }
}

impl<F, S, E> Future for Turns<F, S>
where
    F: Future<Output = Result<(), E>>,
    S: AsyncWrite + Unpin,
{
    /// Whether it ended in an orderly way.
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<bool> {
        if self.puts_off(context) {
            return Poll::Pending;
        }
        let done = self.connection.as_mut().poll(context);
        let flushed = self.gathered.lock().poll_end(context);
        match (done, flushed) {
            (Poll::Ready(done), _) => Poll::Ready(done.is_ok()),
            (Poll::Pending, Poll::Ready(Err(_))) => Poll::Ready(false),
            (Poll::Pending, _) => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A stream that takes what it is told to, and remembers it.
    #[derive(Default)]
    struct Narrow {
        takes: VecDeque<usize>,
        got: Vec<u8>,
        calls: usize,
        flushed: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.calls += 1;
            match self.takes.pop_front() {
                Some(0) => Poll::Pending,
                take => {
                    let count = take.unwrap_or(usize::MAX).min(bytes.len());
                    self.got.extend_from_slice(&bytes[..count]);
                    Poll::Ready(Ok(count))
                }
            }
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let whole = slices.iter().map(|slice| &**slice).collect::<Vec<&[u8]>>().concat();
            self.poll_write(context, &whole)
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushed = self.got.len();
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn context() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    fn gathering(takes: impl IntoIterator<Item = usize>) -> Gathering<Narrow> {
        let narrow = Narrow { takes: takes.into_iter().collect(), ..Narrow::default() };
        Gathering::new(narrow, &Line::new(&Arc::new(Budget::default())))
    }

    fn write(stream: &mut Gathering<Narrow>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (first, last) = bytes.split_at(bytes.len() / 2);
        Pin::new(stream).poll_write_vectored(&mut context(), &[IoSlice::new(first), IoSlice::new(last)])
    }

    #[test]
    fn what_a_turn_writes_leaves_by_one_call() {
        let stream = gathering([]);
        let mut end = stream.end();
        let mut turns = stream.turns(std::future::poll_fn(move |context| {
            for piece in [&[1u8; 300][..], &[2; 16_384], &[3; 20]] {
                assert!(matches!(write(&mut end, piece), Poll::Ready(Ok(count)) if count == piece.len()));
                assert!(Pin::new(&mut end).poll_flush(context).is_ready());
            }
            assert_eq!(end.0.lock().stream.calls, 0);
            Poll::<Result<(), ()>>::Pending
        }));
        assert!(Pin::new(&mut turns).poll(&mut context()).is_pending());
        let gathered = stream.0.lock();
        assert_eq!((gathered.stream.calls, gathered.stream.got.len()), (1, 16_704));
        assert_eq!(gathered.stream.flushed, 16_704);
        assert_eq!(gathered.bytes.capacity(), 0, "an idle connection keeps a buffer");
    }

    #[test]
    fn a_turn_is_put_off_once_while_several_calls_are_answered() {
        let budget = Arc::new(Budget::default());
        let line = Line::new(&budget);
        let stream = Gathering::new(Narrow::default(), &line);
        let turns_taken = Arc::new(Mutex::new(0));
        let count = Arc::clone(&turns_taken);
        let mut turns = stream.turns(std::future::poll_fn(move |_| {
            *count.lock() += 1;
            Poll::<Result<(), ()>>::Pending
        }));
        let taken_after = |turns: &mut Turns<_, _>| {
            assert!(Pin::new(turns).poll(&mut context()).is_pending());
            *turns_taken.lock()
        };
        let one = line.answering();
        assert_eq!(taken_after(&mut turns), 1, "a call that is alone waits for nobody");
        let two = line.answering();
        assert_eq!([taken_after(&mut turns), taken_after(&mut turns)], [1, 2]);
        assert_eq!([taken_after(&mut turns), taken_after(&mut turns)], [2, 3]);
        assert_eq!(taken_after(&mut turns), 3);
        drop((one, two));
        assert_eq!(taken_after(&mut turns), 4, "a turn that was put off comes, whatever has ended since");
    }

    #[test]
    fn what_a_client_does_not_take_has_its_place_in_the_budget_and_gathers_no_more() {
        let mut stream = gathering([100, 0, 0, 0, 0]);
        assert!(write(&mut stream, &[7; 1000]).is_ready());
        assert!(stream.0.lock().poll_end(&mut context()).is_pending());
        assert!(stream.0.lock().held.is_some());
        assert!(write(&mut stream, &[8; 10]).is_pending());
        assert_eq!(stream.0.lock().waiting(), 900);
        stream.0.lock().stream.takes.clear();
        assert!(stream.0.lock().poll_end(&mut context()).is_ready());
        assert!(stream.0.lock().held.is_none());
    }

    #[test]
    fn a_stream_that_takes_nothing_for_good_ends_its_connection() {
        struct Broken;
        impl AsyncWrite for Broken {
            fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        let stream = Gathering::new(Broken, &Line::new(&Arc::new(Budget::default())));
        let mut end = stream.end();
        let mut turns = stream.turns(std::future::poll_fn(move |context| {
            assert!(Pin::new(&mut end).poll_write(context, b"x").is_ready());
            Poll::<Result<(), ()>>::Pending
        }));
        assert_eq!(Pin::new(&mut turns).poll(&mut context()), Poll::Ready(false));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_byte_leaves_once_and_in_order(
            steps in proptest::collection::vec((0usize..4, prop_oneof![1usize..300, 60_000usize..90_000]), 1..10),
            takes in proptest::collection::vec(prop_oneof![Just(0usize), 1usize..100_000], 0..20),
        ) {
            let mut stream = gathering(takes);
            let mut sent = Vec::new();
            for (number, (step, length)) in steps.into_iter().enumerate() {
                if step == 0 {
                    let _ = stream.0.lock().poll_end(&mut context());
                    continue;
                }
                let bytes = vec![number as u8; length];
                let mut rest = &bytes[..];
                // A stream that is not ready is asked again, as its waker would have it.
                for _ in 0..40 {
                    if rest.is_empty() {
                        break;
                    }
                    if let Poll::Ready(count) = write(&mut stream, rest) {
                        rest = &rest[count.unwrap()..];
                    }
                }
                prop_assert!(rest.is_empty());
                sent.extend_from_slice(&bytes);
                prop_assert!(stream.0.lock().waiting() <= GATHERED_BYTES_MAX);
            }
            for _ in 0..40 {
                let _ = stream.0.lock().poll_end(&mut context());
            }
            let gathered = stream.0.lock();
            prop_assert!(gathered.stream.got == sent);
            prop_assert_eq!(gathered.stream.flushed, sent.len());
        }
    }
}
