//! Descriptors that are kept, so that probes are answered when the process has no others left.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// So many are kept. Some are lost: between giving one up and accepting in its place a request may be quicker,
/// and keeps it for as long as its connection is used.
const KEPT: usize = 16;

/// The spares, each a copy of the listener.
#[derive(Debug)]
pub(super) struct Spares {
    listener: Arc<TcpListener>,
    kept: Mutex<Vec<OwnedFd>>,
}

impl Spares {
    pub(super) fn new(listener: Arc<TcpListener>) -> Arc<Self> {
        let spares = Arc::new(Self { listener, kept: Mutex::default() });
        spares.refill();
        spares
    }

    /// Takes what the process has free.
    pub(super) fn refill(&self) {
        let mut kept = self.kept();
        while kept.len() < KEPT
            && let Ok(spare) = self.listener.as_fd().try_clone_to_owned()
        {
            kept.push(spare);
        }
    }

    /// Frees one, for a connection to be accepted in its place. False: there is none.
    pub(super) fn give_up(&self) -> bool {
        self.kept().pop().is_some()
    }

    /// Closes a connection, and keeps its descriptor where spares are missing: at no moment is it free for
    /// a request to take.
    fn take_back(&self, stream: TcpStream) {
        let Ok(stream) = stream.into_std() else { return };
        let mut descriptor = OwnedFd::from(stream);
        let mut kept = self.kept();
        if kept.len() < KEPT && rustix::io::dup2(&*self.listener, &mut descriptor).is_ok() {
            kept.push(descriptor);
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<OwnedFd>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection whose descriptor goes back to the spares however it ends.
#[derive(Debug)]
pub(super) struct Returning {
    /// Until it is dropped.
    stream: Option<TcpStream>,
    spares: Arc<Spares>,
}

impl Returning {
    pub(super) fn new(stream: TcpStream, spares: Arc<Spares>) -> Self {
        Self { stream: Some(stream), spares }
    }

    fn poll<T>(
        &mut self,
        poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.stream {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.spares.take_back(stream);
        }
    }
}

impl AsyncRead for Returning {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Returning {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn descriptor_of_a_closed_connection_is_a_spare_at_once_where_one_is_missing() {
        use std::os::fd::AsRawFd;

        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let spares = Spares::new(Arc::clone(&listener));
        for (given_up, taken_back) in [(1, true), (0, false)] {
            for _ in 0..given_up {
                assert!(spares.give_up());
            }
            let mut client = TcpStream::connect(address).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let number = stream.as_raw_fd();
            drop(Returning::new(stream, Arc::clone(&spares)));
            // It is closed all the same.
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
            let kept = spares.kept();
            assert_eq!(kept.len(), KEPT);
            assert_eq!(kept.iter().any(|spare| spare.as_raw_fd() == number), taken_back);
        }
    }
}
