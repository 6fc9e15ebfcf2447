//! What a request carries: one piece, or, of a large event, the envelope and the row that its requests share.
//!
//! An event may be for very many endpoints, and a request may wait long for its receiver: with a copy each they
//! would take memory that no limit counts.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use walhook_core::event::Event;

/// To send a smaller row in one piece costs less than to send it apart.
const APART_BYTES: usize = 32 << 10;

/// A request's body. Invariant: `pieces` from `next` on are what is still to be sent.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pieces: [Bytes; 3],
    next: usize,
}

impl Content {
    /// The event's body.
    pub(super) fn of(event: &Event) -> Self {
        if event.row.len() < APART_BYTES {
            return Self::whole(event.body());
        }
        let end = Bytes::from_static(Event::BODY_END);
        Self { pieces: [event.envelope(), event.row.clone(), end], next: 0 }
    }

    /// In one piece.
    pub(super) fn whole(body: Bytes) -> Self {
        Self { pieces: [body, Bytes::new(), Bytes::new()], next: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.left().iter().map(Bytes::len).sum()
    }

    /// In one piece: a copy where it has several.
    pub(super) fn to_bytes(&self) -> Bytes {
        match self.left() {
            [only] => only.clone(),
            [first, rest @ ..] if rest.iter().all(Bytes::is_empty) => first.clone(),
            pieces => {
                let mut whole = BytesMut::with_capacity(self.len());
                pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
                whole.freeze()
            }
        }
    }

    fn left(&self) -> &[Bytes] {
        self.pieces.get(self.next..).unwrap_or_default()
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            let next = self.next;
            let Some(piece) = self.pieces.get_mut(next) else { return Poll::Ready(None) };
            let piece = std::mem::take(piece);
            self.next += 1;
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left().iter().all(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;
    use walhook_core::event::Event;

    use super::super::tests::{attempt, endpoint};
    use super::*;

    fn event(row_bytes: usize) -> Arc<Event> {
        let attempt = attempt(endpoint("http://127.0.0.1/"));
        let mut event = Arc::clone(&attempt.first().event);
        drop(attempt);
        let row = format!("\"data\":{{\"x\":\"{}\"}}", "y".repeat(row_bytes));
        Arc::get_mut(&mut event).unwrap().row = row.into();
        event
    }

    #[tokio::test]
    async fn content_is_the_body_in_however_many_pieces_and_shares_a_large_row() {
        for (bytes, pieces) in [(10, 1), (APART_BYTES, 3)] {
            let event = event(bytes);
            let body = event.body();
            let content = Content::of(&event);
            assert_eq!((content.len(), content.to_bytes()), (body.len(), body.clone()));
            assert_eq!(content.size_hint().exact(), Some(body.len() as u64));
            assert!(!content.is_end_stream());
            let (mut sent, mut count) = (content.clone(), 0);
            while let Some(frame) = sent.frame().await {
                let piece = frame.unwrap().into_data().unwrap();
                count += 1;
                let is_shared = piece.as_ptr() == event.row.as_ptr();
                assert_eq!(is_shared, pieces == 3 && count == 2);
            }
            assert_eq!((count, sent.len(), sent.is_end_stream()), (pieces, 0, true));
            assert_eq!(content.collect().await.unwrap().to_bytes(), body);
        }
        let nothing = Content::whole(Bytes::new());
        assert!(nothing.is_end_stream() && nothing.collect().await.unwrap().to_bytes().is_empty());
    }
}
