//! A connection of a stack as a byte stream, which the HTTP server reads and writes.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use smoltcp::iface::SocketHandle;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::stack::Stack;

/// A stack that the task of its port drives, and its connections use.
#[derive(Debug)]
pub(super) struct Shared {
    stack: Mutex<Stack>,
    /// A connection did something that the stack has to act on.
    pub(super) work: Notify,
}

impl Shared {
    pub(super) fn new(stack: Stack) -> Self {
        Self {
            stack: Mutex::new(stack),
            work: Notify::new(),
        }
    }

    pub(super) fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream. The connection is closed when it goes.
#[derive(Debug)]
pub(crate) struct Stream {
    shared: Arc<Shared>,
    handle: SocketHandle,
}

impl Stream {
    /// The stream of a connection, with exclusive ownership.
    pub(super) fn new(shared: Arc<Shared>, handle: SocketHandle) -> Self {
        Self { shared, handle }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.stack().release(self.handle);
        self.shared.work.notify_one();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.initialize_unfilled();
        let read = self.shared.stack().read(self.handle, room, context.waker());
        let Some(len) = read else {
            return Poll::Pending;
        };
        buffer.advance(len);
        // The guest may send so much more.
        self.shared.work.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self
            .shared
            .stack()
            .write(self.handle, bytes, context.waker());
        match written {
            None => Poll::Pending,
            Some(0) if !bytes.is_empty() => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Some(len) => {
                self.shared.work.notify_one();
                Poll::Ready(Ok(len))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is written is on its way.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.stack().shut_down(self.handle);
        self.shared.work.notify_one();
        Poll::Ready(Ok(()))
    }
}
