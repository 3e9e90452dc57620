//! What calls in progress may hold in memory, all together, and what a connection must do to be kept. A client that is slow
//! or never reads is ended, never waited for by others; who asks for more than there is hears so.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::heap;

/// Bytes of requests that are gathered and not yet stored or answered.
const REQUEST_BYTES_MAX: usize = 256 << 20;
/// And of those that are small, so that they need not wait for those that are not.
const SMALL_REQUEST_BYTES_MAX: usize = 64 << 20;
const SMALL_BYTES: usize = 64 << 10;
/// Bytes of responses that their clients have not taken yet.
const RESPONSE_BYTES_MAX: usize = 256 << 20;
/// What one piece of a streamed response takes at most, the room before it included.
const PIECE_BYTES: usize = 264 << 10;
/// Smaller pieces are not counted: they cost less than counting them.
const COUNTED_BYTES: usize = 1 << 10;
const COUNTED_RESPONSE_BYTES: u64 = 64 << 10;
/// How long a call waits for room before it is refused.
const WAIT: Duration = Duration::from_secs(20);
/// How long a client may keep what it holds without going on, with room to spare and without.
const STALL: Duration = Duration::from_secs(60);
const STALL_SHORT: Duration = Duration::from_secs(5);
/// How long a connection may be without a call, with room for others and without.
const IDLE: Duration = Duration::from_secs(600);
const IDLE_SHORT: Duration = Duration::from_secs(5);
/// How long a connection may take to say what it speaks, with room for others and without.
const GREETING: Duration = Duration::from_secs(15);
const GREETING_SHORT: Duration = Duration::from_secs(3);
/// The preface of HTTP/2; no request of HTTP/1.1 that means anything is shorter.
const GREETING_BYTES: u64 = 24;
/// How often memory is looked after; over how much of it in use, and under how much again, it is given back.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(2);
/// What connections held beside what is counted is free only once they have ended, a little later.
const GIVE_BACK_TIMES: u32 = 5;
const USED_BYTES_MANY: usize = 32 << 20;
const USED_BYTES_FEW: usize = 8 << 20;
/// In how many looks it is asked once what the allocator holds: under load that comes and goes. Given back is what is not
/// used over so much, when so many pages were taken since it was last done: each of them costs a fault to take again.
const GIVE_BACK_SELDOM: u32 = 2;
const UNUSED_BYTES_MANY: usize = 6 << 20;
const TAKEN_PAGES_MANY: i64 = 512;
const LOOK_EVERY: Duration = Duration::from_secs(1);
const CONNECTIONS_MAX: usize = 4096;

/// What all connections share.
pub(crate) struct Budget {
    requests: Arc<Semaphore>,
    small_requests: Arc<Semaphore>,
    responses: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    began: Instant,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            requests: Arc::new(Semaphore::new(REQUEST_BYTES_MAX)),
            small_requests: Arc::new(Semaphore::new(SMALL_REQUEST_BYTES_MAX)),
            responses: Arc::new(Semaphore::new(RESPONSE_BYTES_MAX)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            began: Instant::now(),
        }
    }
}

impl Budget {
    /// Room for one more connection; until there is, it waits in the kernel's queue. None when the door is gone.
    pub(crate) async fn admit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).acquire_owned().await.ok()
    }

    /// Give memory that a crowd took back to the system, now that it has gone. Never returns.
    pub(crate) async fn give_back(&self) {
        let mut look = tokio::time::interval(GIVE_BACK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut due, mut looks, mut taken_before) = (0, 0_u32, heap::taken_pages());
        loop {
            look.tick().await;
            let free = self.requests.available_permits() + self.responses.available_permits();
            let used = REQUEST_BYTES_MAX + RESPONSE_BYTES_MAX - free;
            looks += 1;
            if looks % GIVE_BACK_SELDOM == 0 {
                // What connections hold beside what is counted shows only by what is free once they have gone. The allocator
                // counts as free what was given back as well: that it was taken again, the system knows.
                let taken = heap::taken_pages();
                if heap::unused_bytes() > UNUSED_BYTES_MANY && taken - taken_before > TAKEN_PAGES_MANY {
                    due = due.max(1);
                    taken_before = taken;
                }
            }
            if due > 0 && used < USED_BYTES_FEW {
                due -= 1;
                // Whether there was something to give is the allocator's affair.
                let _ = tokio::task::spawn_blocking(heap::trim).await;
            }
            if used > USED_BYTES_MANY {
                due = GIVE_BACK_TIMES;
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_crowded(&self) -> bool {
        self.connections.available_permits() < CONNECTIONS_MAX / 8
    }

    /// Whether those who stall must make room for those who do not.
    fn is_short(&self) -> bool {
        self.requests.available_permits() < REQUEST_BYTES_MAX / 4
            || self.small_requests.available_permits() < SMALL_REQUEST_BYTES_MAX / 4
            || self.responses.available_permits() < RESPONSE_BYTES_MAX / 4
    }
}

fn crowded_out() -> Status {
    Status::resource_exhausted("the server holds as many responses in memory as it may; try again later")
}

async fn reserve(room: Arc<Semaphore>, bytes: usize, what: &str) -> Result<OwnedSemaphorePermit, Status> {
    let count = u32::try_from(bytes).unwrap_or(u32::MAX);
    match tokio::time::timeout(WAIT, room.acquire_many_owned(count)).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) => Err(Status::unavailable("the server is stopping")),
        Err(_) => Err(Status::resource_exhausted(format!(
            "the server holds as many {what} in memory as it may; try again later"
        ))),
    }
}

/// What is known of one connection.
pub(crate) struct Line {
    budget: Arc<Budget>,
    began_ms: u64,
    /// Bytes that came, up to [`GREETING_BYTES`].
    greeted: AtomicU64,
    calls: AtomicUsize,
    /// Calls that have no answer yet.
    answering: AtomicUsize,
    /// Pieces of responses on their way.
    sending: AtomicUsize,
    /// When a call last began or ended, and when a piece was last taken by the client.
    called_ms: AtomicU64,
    taken_ms: AtomicU64,
    /// Whether it speaks HTTP/1.1, where a call that moves no bytes is a client that stalls; and when bytes last moved.
    is_http1: AtomicBool,
    moved_ms: AtomicU64,
    /// A request on it stalled while room was short: what it has on its way takes room too.
    is_hopeless: AtomicBool,
}

impl Line {
    pub(crate) fn new(budget: &Arc<Budget>) -> Arc<Self> {
        let now_ms = budget.now_ms();
        Arc::new(Self {
            budget: Arc::clone(budget),
            began_ms: now_ms,
            greeted: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
            answering: AtomicUsize::new(0),
            sending: AtomicUsize::new(0),
            called_ms: AtomicU64::new(now_ms),
            taken_ms: AtomicU64::new(now_ms),
            is_http1: AtomicBool::new(false),
            moved_ms: AtomicU64::new(now_ms),
            is_hopeless: AtomicBool::new(false),
        })
    }

    /// One more, of what this one carries.
    pub(crate) fn another(&self) -> Arc<Self> {
        Self::new(&self.budget)
    }

    /// Room for one more that this one carries. The last places are for connections, of which nobody makes many by one.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        if self.budget.is_crowded() {
            return None;
        }
        Arc::clone(&self.budget.connections).try_acquire_owned().ok()
    }

    /// Return once the connection has no right to be kept any longer.
    pub(crate) async fn outstayed(&self) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let (crowded, short) = (self.budget.is_crowded(), self.budget.is_short());
            let now_ms = self.budget.now_ms();
            let over = |since_ms: u64, plenty: Duration, scarce: Duration, scarcity: bool| {
                u128::from(now_ms.saturating_sub(since_ms)) > if scarcity { scarce } else { plenty }.as_millis()
            };
            let silent = self.greeted.load(Ordering::Relaxed) < GREETING_BYTES
                && over(self.began_ms, GREETING, GREETING_SHORT, crowded);
            let idle = self.calls.load(Ordering::Relaxed) == 0
                && over(self.called_ms.load(Ordering::Relaxed), IDLE, IDLE_SHORT, crowded);
            let stalled = self.sending.load(Ordering::Relaxed) > 0
                && over(self.taken_ms.load(Ordering::Relaxed), STALL, STALL_SHORT, short);
            let stuck = self.is_http1.load(Ordering::Relaxed)
                && self.calls.load(Ordering::Relaxed) > 0
                && over(self.moved_ms.load(Ordering::Relaxed), STALL, STALL_SHORT, crowded || short);
            if silent || idle || stalled || stuck || self.is_hopeless.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Count a call until the answer ends or is dropped.
    pub(crate) fn begin(self: &Arc<Self>, is_http1: bool) -> Call {
        if is_http1 {
            self.is_http1.store(true, Ordering::Relaxed);
            self.moved_ms.store(self.budget.now_ms(), Ordering::Relaxed);
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.called_ms.store(self.budget.now_ms(), Ordering::Relaxed);
        Call(Arc::clone(self))
    }

    /// Count a call until it has an answer or is dropped.
    pub(crate) fn answering(self: &Arc<Self>) -> Answering {
        self.answering.fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(self))
    }

    /// Whether more answers may come soon than the one that is there.
    pub(crate) fn answers_many(&self) -> bool {
        self.answering.load(Ordering::Relaxed) > 1
    }

    /// Room for bytes of a message that says it has so many; none is needed for few.
    pub(crate) async fn gather(&self, bytes: usize, of: Option<usize>) -> Result<Option<OwnedSemaphorePermit>, Status> {
        if bytes < COUNTED_BYTES {
            return Ok(None);
        }
        let small = of.is_some_and(|length| length <= SMALL_BYTES) && bytes <= SMALL_BYTES;
        let room = Arc::clone(if small { &self.budget.small_requests } else { &self.budget.requests });
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        match Arc::clone(&room).try_acquire_many_owned(count) {
            Ok(permit) => Ok(Some(permit)),
            Err(_) => reserve(room, bytes, "requests").await.map(Some),
        }
    }

    /// Wait for more of a request, but not for a client that has stopped to send it.
    pub(crate) async fn patient<T>(&self, more: impl Future<Output = T>) -> Result<T, Status> {
        let mut more = std::pin::pin!(more);
        let began = Instant::now();
        loop {
            if let Ok(done) = tokio::time::timeout(STALL_SHORT, &mut more).await {
                return Ok(done);
            }
            let short = self.budget.is_short();
            let allowed = if short { STALL_SHORT } else { STALL };
            if began.elapsed() >= allowed {
                self.is_hopeless.fetch_or(short, Ordering::Relaxed);
                return Err(Status::deadline_exceeded(format!(
                    "nothing of the request came for {} s; send it again",
                    allowed.as_secs()
                )));
            }
        }
    }

    /// Bytes of a response that is not a stream, counted until the client has taken them.
    pub(crate) fn charge(self: &Arc<Self>, bytes: Bytes) -> Result<Bytes, Status> {
        if (bytes.len() as u64) < COUNTED_RESPONSE_BYTES {
            return Ok(bytes);
        }
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match Arc::clone(&self.budget.responses).try_acquire_many_owned(count) {
            Ok(permit) => Ok(self.held(bytes, permit)),
            Err(_) => Err(crowded_out()),
        }
    }

    /// A piece for which room was reserved before its size was known.
    fn counted(self: &Arc<Self>, data: Bytes, mut permit: OwnedSemaphorePermit) -> Result<Bytes, Status> {
        if let Some(more) = data.len().checked_sub(PIECE_BYTES).filter(|more| *more > 0) {
            let count = u32::try_from(more).unwrap_or(u32::MAX);
            let more = Arc::clone(&self.budget.responses).try_acquire_many_owned(count);
            permit.merge(more.map_err(|_| crowded_out())?);
            return Ok(self.held(data, permit));
        }
        let taken = permit.split(data.len()).unwrap_or(permit);
        Ok(self.held(data, taken))
    }

    /// Bytes of its client came.
    pub(crate) fn heard(&self, bytes: usize) {
        if bytes > 0 {
            self.moved();
        }
        if self.greeted.load(Ordering::Relaxed) < GREETING_BYTES {
            self.greeted.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Bytes came or left.
    pub(crate) fn moved(&self) {
        if self.is_http1.load(Ordering::Relaxed) {
            self.moved_ms.store(self.budget.now_ms(), Ordering::Relaxed);
        }
    }

    fn held(self: &Arc<Self>, bytes: Bytes, permit: OwnedSemaphorePermit) -> Bytes {
        Bytes::from_owner(Sending { bytes, _held: self.begin_to_hold(Some(permit)) })
    }

    /// A place for bytes that are written already and that the client does not take. They were gathered while room was
    /// not short, so that there is some for them; if it has gone since, they are few and stay all the same.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Held {
        let count = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.begin_to_hold(Arc::clone(&self.budget.responses).try_acquire_many_owned(count).ok())
    }

    fn begin_to_hold(self: &Arc<Self>, permit: Option<OwnedSemaphorePermit>) -> Held {
        if self.sending.fetch_add(1, Ordering::Relaxed) == 0 {
            self.taken_ms.store(self.budget.now_ms(), Ordering::Relaxed);
        }
        Held { line: Arc::clone(self), _permit: permit }
    }

    /// Whether those who stall must make room for those who do not.
    pub(crate) fn is_short(&self) -> bool {
        self.budget.is_short()
    }
}

/// The place of bytes that a client has not taken yet; a client that takes nothing for long is one that stalls.
pub(crate) struct Held {
    line: Arc<Line>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// The client has taken some of them.
    pub(crate) fn moved(&self) {
        self.line.taken_ms.store(self.line.budget.now_ms(), Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.line.sending.fetch_sub(1, Ordering::Relaxed);
        self.moved();
    }
}

/// A piece of a response, until the last of it is written to the socket.
struct Sending {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A call in progress.
pub(crate) struct Call(Arc<Line>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.called_ms.store(self.0.budget.now_ms(), Ordering::Relaxed);
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call that has no answer yet.
pub(crate) struct Answering(Arc<Line>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that lasts as long as its call.
pub(crate) struct During<B> {
    pub(crate) body: B,
    pub(crate) _call: Call,
}

impl<B: Body<Data = Bytes> + Unpin> Body for During<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

type Reserved = BoxFuture<'static, Result<OwnedSemaphorePermit, Status>>;

/// A body of large pieces, made one at a time, each only when there is room for it.
pub(crate) struct Metered<B> {
    body: B,
    line: Arc<Line>,
    reserving: Option<Reserved>,
    permit: Option<OwnedSemaphorePermit>,
}

impl<B> Metered<B> {
    pub(crate) fn new(body: B, line: &Arc<Line>) -> Self {
        Self { body, line: Arc::clone(line), reserving: None, permit: None }
    }
}

impl<B> Body for Metered<B>
where
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.permit.is_none() {
            let room = &this.line.budget.responses;
            let count = u32::try_from(PIECE_BYTES).unwrap_or(u32::MAX);
            let permit = match Arc::clone(room).try_acquire_many_owned(count) {
                Ok(permit) => Ok(permit),
                Err(_) => {
                    let wait = || Box::pin(reserve(Arc::clone(room), PIECE_BYTES, "responses")) as Reserved;
                    let done = ready!(this.reserving.get_or_insert_with(wait).as_mut().poll(context));
                    this.reserving = None;
                    done
                }
            };
            match permit {
                Ok(permit) => this.permit = Some(permit),
                Err(status) => return Poll::Ready(Some(Err(status))),
            }
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        let Some(permit) = this.permit.take() else { return Poll::Ready(frame) };
        Poll::Ready(frame.map(|frame| match frame?.into_data() {
            Ok(data) if data.len() >= COUNTED_BYTES => this.line.counted(data, permit).map(Frame::data),
            Ok(data) => Ok(Frame::data(data)),
            Err(other) => Ok(other),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_carries_leaves_places_for_connections() {
        let budget = Arc::new(Budget::default());
        let line = Line::new(&budget);
        let mut taken: Vec<_> = std::iter::from_fn(|| line.another().place()).collect();
        let left = budget.connections.available_permits();
        assert!(left > 0 && left + taken.len() == CONNECTIONS_MAX, "{left} of {} are left", taken.len());
        assert!(line.place().is_none());
        taken.truncate(CONNECTIONS_MAX / 2);
        assert!(line.place().is_some());
    }
}
