//! A session that tasks have in turn.

use std::ops::{Deref, DerefMut};

use tokio::sync::{Mutex, MutexGuard};
use walhook_postgres::sql::Connection;
use walhook_state::StateStore;

/// What can be told of a session without a question.
pub(crate) trait Lost {
    /// Whether it has ended.
    fn is_lost(&self) -> bool;
}

impl Lost for Connection {
    fn is_lost(&self) -> bool {
        self.is_closed()
    }
}

impl Lost for StateStore {
    fn is_lost(&self) -> bool {
        self.is_closed()
    }
}

/// A session that is opened when it is needed, and had by one task after the other, in the order in which
/// they asked.
///
/// Invariant: nothing of one turn is left in the next. A session stands here only between turns, and only
/// after [`Turn::end`]; a turn that is dropped instead (a task that is stopped, or has waited for too
/// long) may leave a statement under way, and takes the session with it.
#[derive(Debug)]
pub(crate) struct Shared<S>(Mutex<Option<S>>);

impl<S> Default for Shared<S> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<S: Lost> Shared<S> {
    /// Waits for the turn; `open` is asked for a session where there is none that has not ended.
    pub(crate) async fn turn<E>(
        &self,
        open: impl Future<Output = Result<S, E>>,
    ) -> Result<Turn<'_, S>, E> {
        let mut place = self.0.lock().await;
        let session = match place.take().filter(|session| !session.is_lost()) {
            Some(session) => session,
            None => open.await?,
        };
        Ok(Turn { place, session })
    }
}

/// The session, for as long as this is held.
#[derive(Debug)]
pub(crate) struct Turn<'a, S> {
    place: MutexGuard<'a, Option<S>>,
    session: S,
}

impl<S> Turn<'_, S> {
    /// Hands the session on. To be called when every statement was answered, were it by an error; a
    /// transaction that failed is rolled back where it was dropped.
    pub(crate) fn end(mut self) {
        *self.place = Some(self.session);
    }
}

impl<S> Deref for Turn<'_, S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.session
    }
}

impl<S> DerefMut for Turn<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.session
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;
    use std::time::Duration;

    /// A session with a number; lost where that is negative.
    #[derive(Debug)]
    struct Session(Cell<i32>);

    impl Lost for Session {
        fn is_lost(&self) -> bool {
            self.0.get() < 0
        }
    }

    async fn open(number: i32) -> Result<Session, Infallible> {
        Ok(Session(Cell::new(number)))
    }

    #[tokio::test]
    async fn session_goes_from_one_turn_to_the_next_until_it_is_lost() {
        let shared = Shared::default();
        let first = shared.turn(open(1)).await.unwrap();
        first.end();
        let second = shared.turn(open(2)).await.unwrap();
        assert_eq!(second.0.get(), 1, "the same");
        second.0.set(-1);
        second.end();
        assert_eq!(shared.turn(open(3)).await.unwrap().0.get(), 3);
    }

    #[tokio::test]
    async fn session_of_a_turn_that_is_dropped_is_never_used_again() {
        let shared = Shared::default();
        let hung = async {
            let _turn = shared.turn(open(1)).await.unwrap();
            std::future::pending::<()>().await;
        };
        assert!(tokio::time::timeout(Duration::from_millis(1), hung).await.is_err());
        let next = shared.turn(open(2)).await.unwrap();
        assert_eq!(next.0.get(), 2);
        next.end();
    }

    #[tokio::test]
    async fn session_that_cannot_be_opened_fails_one_turn_alone() {
        let shared: Shared<Session> = Shared::default();
        let refused = shared.turn(async { Err::<Session, &str>("no room") }).await;
        assert_eq!(refused.err(), Some("no room"));
        assert_eq!(shared.turn(open(1)).await.unwrap().0.get(), 1);
    }

    #[tokio::test]
    async fn turns_come_in_the_order_in_which_they_were_asked_for() {
        let shared = Shared::default();
        let order = Cell::new(0);
        let first = shared.turn(open(1)).await.unwrap();
        let wait = async |place: i32| {
            let turn = shared.turn(open(9)).await.unwrap();
            assert_eq!(order.replace(place), place - 1);
            turn.end();
        };
        let release = async {
            tokio::task::yield_now().await;
            first.end();
        };
        tokio::join!(wait(1), wait(2), wait(3), release);
        assert_eq!(order.get(), 3);
    }
}
