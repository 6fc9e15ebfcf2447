//! What is kept of a queue whose deliveries go by way of the table: what is known of its rows, whether its endpoint's
//! breaker is open, and whether it is suspended.
//!
//! # Invariants
//!
//! - While its breaker is open every delivery of the queue joins the table; afterwards each that may share a key with
//!   a row, until none is left.
//! - The queue's own clock ([`DeferredQueue::stopped_us`]) stands still while the breaker is open, and never goes
//!   back: a breaker that closes adds what it stopped.
//! - It stands once at most among the queues that want a page, and once among those of which the table `backlog` is
//!   outdated: who is told to put it there is told once, until it has been taken out.
//! - A queue that is suspended has no breaker, and nothing of it is read back.

use std::time::Duration;

use rand::Rng;

use super::super::backlog::Backlog;
use super::super::breaker::{Breaker, Closed};
use super::super::lane::Insertion;
use super::super::schedule::Pool;
use super::deferred_keys::{DeferredKeys, FilterNo};
use super::queues::QueueNo;
use super::spans::{self, Spans};
use super::suspensions::Suspension;
use walhook_core::event::RowKeys;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{BacklogRow, Blocked, DeferReason, QueueId};
use walhook_core::tick::{Tick, micros};
use walhook_core::waits::Cause;

/// What was dropped of a queue's rows.
#[derive(Debug)]
pub(super) struct Dropped {
    pub(super) deliveries: u64,
    /// The first and the last of their commits.
    pub(super) first: Lsn,
    pub(super) last: Lsn,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct DeferredQueue {
    backlog: Backlog,
    /// It stands in the line of those that want a page, as one of this pool.
    in_line: Option<Pool>,
    /// The first of the timers that were set for it.
    timer: Option<Tick>,
    /// What the table `backlog` says of it is outdated.
    is_stale: bool,
    /// What was dropped since its endpoint was found removed.
    dropped: Option<Box<Dropped>>,
    failing_since_us: Option<i64>,
    /// For how long it was stopped before it was last started.
    stopped_before_us: i64,
    /// `None`: closed.
    breaker: Option<Breaker>,
    /// How it closed the last time.
    closed: Option<Closed>,
    suspension: Option<Suspension>,
    /// All keys of its rows were added since then; `None`: an earlier leader left rows, whose keys nobody knows.
    keys_since: Option<FilterNo>,
    /// When nothing was sent to its endpoint, and why.
    stops: Spans,
}

/// Its rows.
impl DeferredQueue {
    fn new(backlog: Backlog) -> Self {
        Self {
            backlog,
            in_line: None,
            timer: None,
            is_stale: false,
            dropped: None,
            failing_since_us: None,
            stopped_before_us: 0,
            breaker: None,
            closed: None,
            suspension: None,
            keys_since: None,
            stops: Spans::default(),
        }
    }

    /// No row, and nothing that blocks.
    pub(super) fn empty() -> Self {
        Self::new(Backlog::new(Blocked::Keys(Vec::new()), DeferReason::Behind))
    }

    /// What an earlier leader left, and its name.
    pub(super) fn recovered(row: BacklogRow) -> (QueueId, Self) {
        let BacklogRow { queue, blocked, rows, failing_since_us, stopped_us, .. } = row;
        let deferred = Self {
            failing_since_us,
            stopped_before_us: stopped_us,
            ..Self::new(Backlog::recovered(blocked, rows))
        };
        (queue, deferred)
    }

    /// What is known of its rows.
    pub(super) fn backlog(&self) -> &Backlog {
        &self.backlog
    }

    /// As [`DeferredQueue::backlog`], to be changed.
    pub(super) fn backlog_mut(&mut self) -> &mut Backlog {
        &mut self.backlog
    }

    /// What is known of its rows, to which one is added whose keys are in this filter.
    pub(super) fn backlog_for(&mut self, filter: FilterNo) -> &mut Backlog {
        if self.rows() == 0 {
            self.keys_since = Some(filter);
        }
        &mut self.backlog
    }

    /// Why a delivery with these keys must join its rows, if it must. `queue`: its own handle.
    pub(super) fn why_behind(
        &self,
        queue: QueueNo,
        keys: &RowKeys,
        of_rows: &DeferredKeys,
    ) -> Option<DeferReason> {
        let may_hold = |keys: &RowKeys| {
            let is_known = self.keys_since.is_some_and(|since| of_rows.knows(since));
            !is_known || of_rows.may_hold(queue, keys)
        };
        let joins = self.rows() > 0 && self.backlog.blocks(keys, may_hold);
        joins.then(|| self.backlog.why())
    }

    /// Deliveries that are deferred and have not ended.
    pub(super) fn rows(&self) -> u64 {
        self.backlog.rows()
    }

    /// With no row left deliveries are sent directly again.
    pub(super) fn rest_if_empty(&mut self, now: Tick) {
        if self.rows() == 0 {
            self.close_breaker(now);
            self.backlog.unblock();
        }
    }

    /// Whether nothing remains to be known, nor to be said in the table.
    pub(super) fn is_forgettable(&self) -> bool {
        self.backlog.is_forgettable() && !self.is_stale
    }
}

/// Where it stands, and what is told of it.
impl DeferredQueue {
    /// It stands in the line of those that want a page, as one of this pool; `None`: it does not. Returns how it stood
    /// there before.
    pub(super) fn set_in_line(&mut self, pool: Option<Pool>) -> Option<Pool> {
        std::mem::replace(&mut self.in_line, pool)
    }

    /// A row of this commit was dropped.
    pub(super) fn note_dropped(&mut self, commit: Lsn) {
        let so_far = self.dropped.get_or_insert_with(|| {
            Box::new(Dropped { deliveries: 0, first: commit, last: commit })
        });
        so_far.deliveries += 1;
        (so_far.first, so_far.last) = (so_far.first.min(commit), so_far.last.max(commit));
    }

    /// What was dropped since this was asked, where nothing is left to be dropped: no row, or the endpoint `is_back`.
    pub(super) fn take_dropped(&mut self, is_back: bool) -> Option<Box<Dropped>> {
        let is_over = is_back || self.rows() == 0;
        self.dropped.take_if(|_| is_over)
    }

    /// What the table says is outdated. Whether it was not before.
    pub(super) fn outdate(&mut self) -> bool {
        !std::mem::replace(&mut self.is_stale, true)
    }

    /// What the table says of it is in the batch that is handed out: this, or, where nothing is left, nothing more.
    pub(super) fn hand_out(
        &mut self,
        queue: &QueueId,
        now: Tick,
        unix_us_at_zero: i64,
    ) -> Option<BacklogRow> {
        self.is_stale = false;
        if self.backlog.is_over() {
            return None;
        }
        let until_us = |until: Tick| unix_us_at_zero.saturating_add_unsigned(until.0);
        let open_until_us = self.breaker.as_ref().map(Breaker::next_try).map(until_us);
        Some(BacklogRow {
            queue: queue.clone(),
            blocked: self.backlog.blocked().clone(),
            rows: self.backlog.in_table(),
            failing_since_us: self.failing_since_us,
            stopped_us: self.stopped_us(now),
            open_until_us,
        })
    }

    /// When a page may be wanted although nothing else happens, where no timer is set that comes as soon. It is to
    /// be set.
    pub(super) fn take_timer(&mut self, now: Tick) -> Option<Tick> {
        let next = match &self.breaker {
            Some(breaker) => breaker.open_until(),
            None => self.backlog.next_due(),
        };
        let is_sooner = |due: &Tick| self.timer.is_none_or(|timer| *due < timer);
        let due = next.filter(|due| *due > now).filter(is_sooner)?;
        self.timer = Some(due);
        Some(due)
    }

    /// A timer has come.
    pub(super) fn wake(&mut self, now: Tick) {
        self.timer = self.timer.filter(|timer| *timer > now);
    }
}

/// Its endpoint's health.
impl DeferredQueue {
    /// The breaker; none: it is closed.
    pub(super) fn breaker(&self) -> Option<&Breaker> {
        self.breaker.as_ref()
    }

    /// As [`DeferredQueue::breaker`], to be changed.
    pub(super) fn breaker_mut(&mut self) -> Option<&mut Breaker> {
        self.breaker.as_mut()
    }

    /// Whether the breaker is open.
    pub(super) fn is_open(&self) -> bool {
        self.breaker.is_some()
    }

    /// Opens the breaker of an endpoint that `asked` for a wait. Returns until when nothing is sent.
    pub(super) fn open_breaker(
        &mut self,
        asked: Option<Duration>,
        now: Tick,
        rng: &mut impl Rng,
    ) -> Tick {
        let breaker = Breaker::open(now, asked, self.closed, rng);
        let until = breaker.next_try();
        self.stops.set(Some(Cause::Breaker), spans::at(now));
        self.breaker = Some(breaker);
        self.backlog.block_all(DeferReason::Breaker);
        until
    }

    /// An earlier leader's breaker was open; `now` is `now_us` since 1970-01-01 UTC.
    pub(super) fn recover_breaker(&mut self, now: Tick, now_us: i64, rng: &mut impl Rng) {
        let dead_us = self.failing_since_us.map_or(0, |since| now_us.saturating_sub(since));
        let dead = Duration::from_micros(u64::try_from(dead_us).unwrap_or(0));
        self.stops.set(Some(Cause::Breaker), spans::at(now));
        self.breaker = Some(Breaker::recovered(dead, now, rng));
        self.backlog.block_all(DeferReason::Breaker);
    }

    /// Closes the breaker, if it is not closed.
    pub(super) fn close_breaker(&mut self, now: Tick) -> bool {
        self.stopped_before_us = self.stopped_us(now);
        let Some(breaker) = self.breaker.take() else { return false };
        self.closed = Some(breaker.close(now));
        self.stops.set(None, spans::at(now));
        self.backlog.block_all(DeferReason::Behind);
        true
    }

    /// For how long the queue was stopped so far, a pause that lasts not counted.
    pub(super) fn stopped_us(&self, now: Tick) -> i64 {
        let open = self.breaker.as_ref().map_or(Duration::ZERO, |b| now.since(b.since()));
        self.stopped_before_us.saturating_add_unsigned(micros(open))
    }

    /// When nothing was sent to its endpoint, and why.
    pub(super) fn stops(&self) -> &Spans {
        &self.stops
    }

    /// It was paused for so long, until now.
    pub(super) fn end_pause(&mut self, stood_us: i64, now: Tick) {
        let until = spans::at(now);
        self.stops.add(Cause::Stopped, until.saturating_sub(stood_us), until);
        self.stopped_before_us = self.stopped_before_us.saturating_add(stood_us);
        let failing = self.failing_since_us;
        self.failing_since_us = failing.map(|since| since.saturating_add(stood_us));
    }

    /// Nothing could be sent for want of something of our own, for so long, until `until_us`. Its own clock went on
    /// by `passed_us` meanwhile.
    pub(super) fn stand_still(&mut self, passed_us: i64, stood_us: i64, until_us: i64) {
        self.stopped_before_us = self.stopped_before_us.saturating_add(passed_us);
        let later = |since: i64| since.saturating_add(stood_us).min(until_us.max(since));
        self.failing_since_us = self.failing_since_us.map(later);
    }

    /// Since when its endpoint has answered with nothing but failures; none: the first one came just now.
    pub(super) fn fail_since_us(&mut self, now_us: i64) -> Option<i64> {
        let before = self.failing_since_us;
        self.failing_since_us.get_or_insert(now_us);
        before
    }

    /// Its endpoint has taken something. False: it had not failed.
    pub(super) fn end_failing(&mut self) -> bool {
        self.failing_since_us.take().is_some()
    }
}

/// Its suspension.
impl DeferredQueue {
    /// Its gap, while that grows or is to be closed.
    pub(super) fn suspension(&self) -> Option<&Suspension> {
        self.suspension.as_ref()
    }

    /// As [`DeferredQueue::suspension`], to be changed.
    pub(super) fn suspension_mut(&mut self) -> Option<&mut Suspension> {
        self.suspension.as_mut()
    }

    /// Whether its deliveries are counted in a gap instead of being deferred.
    pub(super) fn is_suspended(&self) -> bool {
        self.suspension.as_ref().is_some_and(Suspension::is_on)
    }

    /// Whether rows are to be removed, and nobody knows one of them.
    pub(super) fn wants_purge(&self) -> bool {
        let rows_left = self.suspension.as_ref().is_some_and(Suspension::rows_left);
        rows_left && self.backlog.is_all_in_table()
    }

    /// From now on its deliveries are counted in a gap.
    pub(super) fn suspend(&mut self, reason: &'static str, now: Tick) {
        self.close_breaker(now);
        self.backlog.give_up();
        self.suspension = Some(Suspension::new(reason));
    }

    /// An earlier leader had suspended it, and skipped so many.
    pub(super) fn recover_suspension(&mut self, skipped: u64, now: Tick) {
        self.close_breaker(now);
        self.suspension = Some(Suspension::recovered(skipped));
    }

    /// There is room again: its deliveries are deferred, until what was counted up to the insertion `last` is stored.
    /// Returns how many were counted; none: it is not suspended, or not all that it had is gone.
    pub(super) fn go_on(&mut self, last: Insertion) -> Option<u64> {
        let can = self.is_suspended() && self.backlog.is_forgettable();
        let suspension = self.suspension.as_mut().filter(|s| can && !s.rows_left())?;
        let counted = suspension.go_on(last);
        self.backlog = Backlog::new(Blocked::Keys(Vec::new()), DeferReason::Behind);
        Some(counted)
    }

    /// Rows of it were removed without being read; `all`: none is left.
    pub(super) fn purged(&mut self, rows: u64, all: bool) {
        self.backlog.purged(rows, all);
        if let Some(suspension) = &mut self.suspension {
            suspension.removed(rows, all);
        }
    }

    /// All that was counted is stored.
    pub(super) fn end_suspension(&mut self) {
        self.suspension = None;
    }
}

#[cfg(test)]
mod tests;
