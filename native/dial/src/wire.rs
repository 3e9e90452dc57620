//! A socket that whoever turns a call drives, in their own thread: nothing is read before they look, and no thread of
//! ours wakes for it. One descriptor tells them when a look is worth it.

use std::cell::Cell;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const NEWS: u64 = 0;
const SOCKET: u64 = 1;

thread_local! {
    /// The bell whose owner is in a turn in this thread: it looks again anyway.
    static TURNING: Cell<*const Bell> = const { Cell::new(std::ptr::null()) };
}

pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernel's word that a descriptor could not be made or watched.
fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Readable when a turn is worth it: the socket can move bytes, or another thread has news.
pub(crate) struct Bell {
    /// Where there is no socket to watch, `news` is all.
    epoll: Option<OwnedFd>,
    news: OwnedFd,
    rung: AtomicBool,
    socket: Mutex<Option<Arc<Ready>>>,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: it takes no pointer, and what it returns is ours alone.
        let epoll = unsafe { OwnedFd::from_raw_fd(checked(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        let bell = Self { epoll: Some(epoll), ..Self::alone()? };
        bell.watch(bell.news.as_raw_fd(), libc::EPOLLIN, NEWS)?;
        Ok(bell)
    }

    /// One for news of other threads only.
    pub(crate) fn alone() -> io::Result<Self> {
        // SAFETY: it takes no pointer, and what it returns is ours alone.
        let news = unsafe { OwnedFd::from_raw_fd(checked(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))?) };
        Ok(Self { epoll: None, news, rung: AtomicBool::new(false), socket: Mutex::default() })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.epoll.as_ref().unwrap_or(&self.news).as_raw_fd()
    }

    fn watch(&self, fd: RawFd, events: libc::c_int, name: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: name };
        // SAFETY: the event outlives the call; both descriptors are open.
        checked(unsafe { libc::epoll_ctl(self.fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
        Ok(())
    }

    /// Have its owner take a turn.
    pub(crate) fn ring(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of a live integer. It can fail by overflow alone, and then it is readable anyway.
        unsafe { libc::write(self.news.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Whether something was woken since the last look.
    pub(crate) fn take_rung(&self) -> bool {
        self.rung.swap(false, Ordering::AcqRel)
    }

    /// Until the guard is dropped, what is woken in this thread rings for nobody: its owner is about to look.
    pub(crate) fn quiet(&self) -> Quiet {
        Quiet(TURNING.replace(std::ptr::from_ref(self)))
    }

    /// Take in what the descriptor told.
    pub(crate) fn listen(&self) {
        if self.epoll.is_none() {
            self.hear_news();
            return;
        }
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
        // SAFETY: the array has room for the two events that are asked for; nothing is waited for.
        let count = unsafe { libc::epoll_wait(self.fd(), events.as_mut_ptr(), 2, 0) };
        for event in events.iter().take(usize::try_from(count).unwrap_or(0)) {
            // Copied out: the struct is packed.
            let (name, told) = (event.u64, event.events.cast_signed());
            if name == NEWS {
                self.hear_news();
            } else if let Some(socket) = &*held(&self.socket) {
                socket.told(told);
            }
        }
    }
}

impl Bell {
    fn hear_news(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes into a live integer.
        unsafe { libc::read(self.news.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        if TURNING.get() != Arc::as_ptr(self) {
            self.ring();
        }
    }
}

/// See [`Bell::quiet`].
pub(crate) struct Quiet(*const Bell);

impl Drop for Quiet {
    fn drop(&mut self) {
        TURNING.set(self.0);
    }
}

/// One direction of a socket.
struct Direction {
    open: bool,
    waker: Option<Waker>,
}

/// What is known of a socket; the kernel tells each change once.
struct Ready {
    reads: Mutex<Direction>,
    writes: Mutex<Direction>,
    /// The peer has ended or the connection broke: there will be no further word, so every read asks the kernel.
    ended: AtomicBool,
}

impl Ready {
    fn told(&self, events: libc::c_int) {
        let broke = events & (libc::EPOLLERR | libc::EPOLLHUP) != 0;
        let ends = broke || events & libc::EPOLLRDHUP != 0;
        if ends {
            self.ended.store(true, Ordering::Release);
        }
        for (direction, comes) in
            [(&self.reads, ends || events & libc::EPOLLIN != 0), (&self.writes, broke || events & libc::EPOLLOUT != 0)]
        {
            if comes {
                let mut direction = held(direction);
                direction.open = true;
                if let Some(waker) = direction.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// One try to move `wanted` bytes. What moved fewer leaves nothing more to move: the next word of the kernel comes.
    fn attempt(
        &self,
        side: &Mutex<Direction>,
        waking: &Context<'_>,
        wanted: usize,
        mut moves: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let mut direction = held(side);
        while direction.open {
            match moves() {
                Ok(count) => {
                    direction.open = count == wanted || count == 0 || self.ended.load(Ordering::Acquire);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => direction.open = false,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        direction.waker = Some(waking.waker().clone());
        Poll::Pending
    }
}

/// A connected socket that a bell watches.
pub(crate) struct Wire {
    socket: TcpStream,
    ready: Arc<Ready>,
}

impl Wire {
    /// Watch `socket`, which must not block, from now on; a bell watches one.
    pub(crate) fn new(socket: TcpStream, bell: &Bell) -> io::Result<Self> {
        let side = || Mutex::new(Direction { open: true, waker: None });
        let ready = Arc::new(Ready { reads: side(), writes: side(), ended: AtomicBool::new(false) });
        *held(&bell.socket) = Some(Arc::clone(&ready));
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        bell.watch(socket.as_raw_fd(), events, SOCKET)?;
        Ok(Self { socket, ready })
    }
}

fn received(socket: &TcpStream, room: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // SAFETY: the memory is exclusively ours for the call, and as long as it is said to be.
    let count = unsafe { libc::recv(socket.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, waking: &mut Context<'_>, wanted: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // To fill it with zeros at each read would cost as much as a copy of what comes.
        // SAFETY: it is written to by the kernel alone.
        let room = unsafe { wanted.unfilled_mut() };
        let size = room.len();
        let done = this.ready.attempt(&this.ready.reads, waking, size, || received(&this.socket, room));
        done.map_ok(|count| {
            // SAFETY: so many bytes at its beginning were written.
            unsafe { wanted.assume_init(count) };
            wanted.advance(count);
        })
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, waking: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(waking, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        waking: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let size = parts.iter().map(|part| part.len()).sum();
        this.ready.attempt(&this.ready.writes, waking, size, || (&this.socket).write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.socket.shutdown(Shutdown::Write) {
            // The peer was first.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}
