//! What the reader does without a stream: it waits for the next one, or for a halt to be due.

use tokio::time::timeout;

use super::Reader;
use crate::server::leadership::{self, OpenError, Place, Session, reopen};
use crate::server::stop::Stop;
use crate::server::trouble::SLOW_FIX;
use walhook_postgres::fix::Failure;

impl Reader {
    /// Waits, without a stream, until the halt is due.
    pub(super) async fn halt(&mut self) -> Result<(), Stop> {
        loop {
            if let Some(halt) = self.due_halt() {
                return Err(Stop::Halted(halt));
            }
            tokio::select! {
                biased;
                () = self.drain.cancelled() => return Ok(()),
                () = self.abort.cancelled() => return Ok(()),
                room = self.batches.reserve(), if !self.turns.is_empty() => match room {
                    Ok(room) => room.send(self.turns.take()),
                    Err(_) => return Ok(()),
                },
                changed = self.flushed.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
        }
    }

    /// Opens the next stream. The waits before it grow from one to the next, until one has shown that it leads on.
    pub(super) async fn reconnect(&mut self) -> Result<Option<Session>, Stop> {
        loop {
            let at = Place { at: self.resume_lsn(), flushed: *self.flushed.borrow() };
            tokio::select! {
                biased;
                () = self.drain.cancelled() => return Ok(None),
                () = self.abort.cancelled() => return Ok(None),
                () = self.backoff.wait() => {}
            }
            let opened = tokio::select! {
                biased;
                () = self.drain.cancelled() => return Ok(None),
                () = self.abort.cancelled() => return Ok(None),
                opened = timeout(
                    leadership::OPEN_TIMEOUT,
                    reopen(&self.config, &self.known, self.epoch, at, self.streaming.is_on()),
                ) => opened,
            };
            let Ok(opened) = opened else {
                self.stream_fails(&leadership::too_slow(), SLOW_FIX);
                continue;
            };
            match opened {
                Ok(session) => return Ok(Some(session)),
                Err(OpenError::Stop(Stop::Halted(halt))) => {
                    return Err(Stop::Halted(halt.since(*self.flushed.borrow())));
                }
                Err(OpenError::Stop(stop)) => return Err(stop),
                Err(OpenError::Refused { later: Some(halt), .. }) => {
                    return Err(Stop::Halted(halt.since(*self.flushed.borrow())));
                }
                Err(OpenError::SlotInUse) => {
                    let (problem, fix) = (leadership::IN_USE, leadership::IN_USE_FIX);
                    self.stream_fails(problem, fix);
                }
                Err(OpenError::Passing(problem) | OpenError::Refused { problem, .. }) => {
                    tracing::debug!(problem = %problem.line(), "cannot connect; trying again");
                    self.stream_fails(&problem.line(), &problem.fix());
                }
            }
        }
    }
}
