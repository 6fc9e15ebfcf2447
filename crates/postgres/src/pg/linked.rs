//! How tokio-postgres takes a socket on which TLS stands already.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::dial::Socket;

/// Stands where tokio-postgres expects to make TLS, and only says what to bind to.
#[derive(Debug)]
pub(crate) struct Linked {
    pub(crate) end_point: Option<Vec<u8>>,
}

impl<S: Socket> TlsConnect<S> for Linked {
    type Stream = LinkedSocket<S>;
    type Error = Infallible;
    type Future = Ready<Result<LinkedSocket<S>, Infallible>>;

    fn connect(self, socket: S) -> Self::Future {
        ready(Ok(LinkedSocket { socket, end_point: self.end_point }))
    }
}

/// A socket, encrypted or not.
pub(crate) struct LinkedSocket<S> {
    socket: S,
    end_point: Option<Vec<u8>>,
}

impl<S: Socket> TlsStream for LinkedSocket<S> {
    fn channel_binding(&self) -> ChannelBinding {
        let bind = ChannelBinding::tls_server_end_point;
        self.end_point.clone().map_or_else(ChannelBinding::none, bind)
    }
}

impl<S: Socket> AsyncRead for LinkedSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: Socket> AsyncWrite for LinkedSocket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
