//! What a request has of the pool: a connection, a place in the line, or one that is opened for nobody.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::course::Wait;
use super::{Host, Kept, Pool};

/// A connection that a request has, for as long as this is there.
#[derive(Debug)]
pub(in super::super) struct Lent<C: Kept> {
    pub(super) pool: Arc<Pool<C>>,
    pub(super) shelf: usize,
    pub(super) host: Arc<Host>,
    pub(super) wait: Option<Arc<Wait>>,
}

impl<C: Kept> Lent<C> {
    /// The connection can serve another request.
    pub(in super::super) fn give_back(self, connection: C) {
        self.pool.give(self.shelf, &self.host, connection, Instant::now());
    }
}

impl<C: Kept> Drop for Lent<C> {
    fn drop(&mut self) {
        self.pool.on(self.shelf, |shelf| {
            if let Some(places) = shelf.hosts.get_mut(&self.host) {
                places.lent = places.lent.saturating_sub(1);
                if let Some(wait) = &self.wait {
                    places.behind.retain(|other| !Arc::ptr_eq(other, wait));
                }
            }
            shelf.tidy(&self.host);
        });
    }
}

/// A connection that is opened for no request.
#[derive(Debug)]
pub(in super::super) struct Spare<C: Kept> {
    pub(super) pool: Arc<Pool<C>>,
    pub(super) shelf: usize,
    pub(super) host: Arc<Host>,
}

impl<C: Kept> Spare<C> {
    /// Keeps it for the next request.
    pub(in super::super) fn keep(self, connection: C) {
        self.pool.give(self.shelf, &self.host, connection, Instant::now());
    }
}

impl<C: Kept> Drop for Spare<C> {
    fn drop(&mut self) {
        self.pool.on(self.shelf, |shelf| {
            if let Some(places) = shelf.hosts.get_mut(&self.host) {
                places.spare = places.spare.saturating_sub(1);
            }
            shelf.tidy(&self.host);
        });
    }
}

/// A request's place in the line: resolves to a connection, if one is given back.
#[derive(Debug)]
pub(in super::super) struct Waiting<C: Kept> {
    pub(super) pool: Arc<Pool<C>>,
    pub(super) shelf: usize,
    pub(super) host: Arc<Host>,
    pub(super) number: u64,
    pub(super) receiver: oneshot::Receiver<C>,
    pub(super) is_patient: bool,
}

impl<C: Kept> Waiting<C> {
    /// Whether one that is in use may well be given back soon.
    pub(in super::super) fn is_patient(&self) -> bool {
        self.is_patient
    }
}

impl<C: Kept> Future for Waiting<C> {
    type Output = C;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C> {
        match Pin::new(&mut self.receiver).poll(cx) {
            Poll::Ready(Ok(connection)) => Poll::Ready(connection),
            // The sender is dropped after it has sent, and by our own drop.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl<C: Kept> Drop for Waiting<C> {
    fn drop(&mut self) {
        self.pool.on(self.shelf, |shelf| {
            if let Some(places) = shelf.hosts.get_mut(&self.host) {
                places.waiting.remove(&self.number);
            }
            shelf.tidy(&self.host);
        });
        // One that came at the last moment serves another. A shared one has served all that it has room for.
        if let Ok(connection) = self.receiver.try_recv()
            && !connection.is_shared()
        {
            self.pool.give(self.shelf, &self.host, connection, Instant::now());
        }
    }
}
