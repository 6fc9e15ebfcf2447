//! A stream of bytes with somebody who reads along.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Decides what is read of a stream, and sees what is written.
pub(super) trait Guard<S> {
    /// As [`AsyncRead::poll_read`] of the stream.
    fn poll_read(
        &mut self,
        stream: Pin<&mut S>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>>;

    /// The first `n` bytes of these were written.
    fn wrote(&mut self, bufs: &[IoSlice<'_>], n: usize) {
        let _ = (bufs, n);
    }
}

/// A stream under a guard.
#[derive(Debug)]
pub(super) struct Guarded<S, G> {
    pub(super) stream: S,
    pub(super) guard: G,
}

impl<S: Unpin, G: Guard<S> + Unpin> AsyncRead for Guarded<S, G> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, guard } = self.get_mut();
        guard.poll_read(Pin::new(stream), cx, buf)
    }
}

impl<S: AsyncWrite + Unpin, G: Guard<S> + Unpin> AsyncWrite for Guarded<S, G> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.guard.wrote(&[IoSlice::new(buf)], n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.guard.wrote(bufs, n);
        Poll::Ready(Ok(n))
    }
}
