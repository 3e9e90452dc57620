//! Many frames a system call. What `h2` writes in one turn goes out together at the end of it, and never waits longer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const READ_BYTES: usize = 256 << 10;
const WRITE_BYTES: usize = 256 << 10;

struct Inner {
    stream: TcpStream,
    read: Box<[u8]>,
    read_from: usize,
    read_to: usize,
    write: Vec<u8>,
    write_from: usize,
}

/// A socket that gathers; clones share it, on one thread.
#[derive(Clone)]
pub struct Socket(Rc<RefCell<Inner>>);

impl Socket {
    /// Over a connected stream.
    pub fn new(stream: TcpStream) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            stream,
            read: vec![0; READ_BYTES].into_boxed_slice(),
            read_from: 0,
            read_to: 0,
            write: Vec::with_capacity(2 * WRITE_BYTES),
            write_from: 0,
        })))
    }

    /// Drive `connection`, and send what it wrote after each turn.
    pub async fn drive<E>(self, connection: impl Future<Output = Result<(), E>>) {
        let mut connection = std::pin::pin!(connection);
        std::future::poll_fn(move |context| {
            let ended = connection.as_mut().poll(context).is_ready();
            let sent = self.0.borrow_mut().drain(context);
            // How the connection ended is seen by the calls on it.
            if ended || matches!(sent, Poll::Ready(Err(_))) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Inner {
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.write_from < self.write.len() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, &self.write[self.write_from..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.write_from += sent;
        }
        self.write.clear();
        self.write_from = 0;
        Poll::Ready(Ok(()))
    }

    /// Make room for more, sending only when there is none.
    fn room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write.len() >= WRITE_BYTES { self.drain(context) } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        if inner.read_from == inner.read_to {
            let mut buffer = ReadBuf::new(&mut inner.read);
            ready!(Pin::new(&mut inner.stream).poll_read(context, &mut buffer))?;
            (inner.read_from, inner.read_to) = (0, buffer.filled().len());
        }
        let end = inner.read_to.min(inner.read_from + into.remaining());
        into.put_slice(&inner.read[inner.read_from..end]);
        inner.read_from = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.room(context))?;
        inner.write.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.room(context))?;
        let before = inner.write.len();
        pieces.iter().for_each(|piece| inner.write.extend_from_slice(piece));
        Poll::Ready(Ok(inner.write.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // `h2` flushes after each frame; the end of the turn does it once for all.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.0.borrow_mut();
        ready!(inner.drain(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}
