//! The bound of the state tables: the queue that holds most rows is suspended, and its rows become one
//! record in `gaps`.
//!
//! While a queue is suspended nothing of it becomes a row any more: what leaves memory is counted in
//! the gap, in the state transaction that settles it. Its rows are removed some at a time, each time in
//! a state transaction that counts them in the gap. So each delivery is a row or counted, whenever a
//! crash comes; and a growing gap tells the next leader to go on with it.
//!
//! Rows are removed when memory knows of none of them (what is in flight has ended, what was being
//! stored is), so that the backlog's numbers stay exact. Before the next queue is suspended the removal
//! is over, and the server's statistics show it.
//!
//! With room again a queue goes on by itself, with an empty backlog.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::backlog::Backlog;
use super::super::event::EndpointId;
use super::super::lsn::Lsn;
use super::super::persist::{
    Blocked, DeferReason, GapChange, PersistBatch, Purge, Purged, QueueId,
};
use super::super::room::{Room, StateSize};
use super::super::tick::Tick;
use super::Dispatcher;
use super::changes::EndpointChange;
use super::defer::{Detour, Exit};

/// How late the server's statistics may tell of rows that were removed. A session reports at once, or,
/// when it has just done so and falls silent, after ten seconds.
const STATISTICS_LAG: Duration = Duration::from_secs(15);

/// How often it is said that nothing is left to give up.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// The suspended queues.
#[derive(Debug, Default)]
pub(super) struct Suspensions {
    queues: BTreeSet<QueueId>,
    /// A size that was measured before may not show what was removed.
    trusts_from: Tick,
    said: Option<Tick>,
}

/// What is known of one.
#[derive(Debug, Default)]
pub(super) struct Suspension {
    /// Why, until the gap is stored.
    opens: Option<String>,
    skipped: u64,
    span: Option<(Lsn, Lsn)>,
    /// Rows that this leader removed.
    removed: u64,
    /// What the table `gaps` says is outdated.
    is_stale: bool,
    /// Rows may be left in the table.
    rows_left: bool,
    /// The queue goes on, but what left memory up to this insertion is still counted.
    ends_with: Option<u64>,
}

impl Detour {
    /// Whether its deliveries are counted in a gap instead of being deferred.
    pub(super) fn is_suspended(&self) -> bool {
        self.suspension.as_ref().is_some_and(|suspension| suspension.ends_with.is_none())
    }

    /// Whether rows may be removed without anybody knowing one of them.
    fn wants_purge(&self) -> bool {
        let rows_left = self.suspension.as_ref().is_some_and(|s| s.rows_left);
        rows_left && self.backlog.is_all_in_table()
    }
}

impl Dispatcher {
    /// Goes on with the suspensions that an earlier leader left.
    pub(super) fn recover_suspensions(&mut self, gaps: Vec<GapChange>) {
        for GapChange { queue, skipped, .. } in gaps {
            let suspension = Suspension { skipped, rows_left: true, ..Suspension::default() };
            self.detour(&queue).suspension = Some(suspension);
            self.suspensions.queues.insert(queue);
            self.durable.touch();
        }
    }

    /// Takes what the state tables were measured to take. Says, once a minute, that they are full and no
    /// queue has rows to give up.
    pub fn handle_state_size(&mut self, size: StateSize, now: Tick) -> bool {
        if self.stopping {
            return false;
        }
        match size.room(self.settings.state_max) {
            Room::None => self.give_up_rows(size, now),
            Room::Enough => {
                self.resume_suspended();
                false
            }
            Room::Little => false,
        }
    }

    /// Whether deliveries to the queue's endpoint are counted in a gap.
    pub(super) fn is_suspended(&self, queue: &QueueId) -> bool {
        self.detours.get(queue).is_some_and(|detour| detour.is_suspended())
    }

    fn give_up_rows(&mut self, size: StateSize, now: Tick) -> bool {
        let rows_left = |queue| {
            let suspension = self.detours.get(queue).and_then(|detour| detour.suspension.as_ref());
            suspension.is_some_and(|suspension| suspension.rows_left)
        };
        if now < self.suspensions.trusts_from || self.suspensions.queues.iter().any(rows_left) {
            return false;
        }
        let most = self
            .detours
            .iter()
            .filter(|(_, detour)| detour.suspension.is_none() && detour.rows() > 0)
            .max_by(|(a, x), (b, y)| (x.rows(), b).cmp(&(y.rows(), a)));
        let Some((queue, detour)) = most else {
            let said = self.suspensions.said.is_some_and(|said| now.since(said) < SAID_EVERY);
            if !said {
                self.suspensions.said = Some(now);
            }
            return !said;
        };
        let (queue, rows) = (queue.clone(), detour.rows());
        self.suspend(&queue, now);
        let detail = format!(
            "the state tables take {} bytes (used: {}), and it has the most deferred deliveries, {rows}",
            size.total_bytes, size.used_bytes
        );
        self.tell_of(&queue, EndpointChange::Suspended, detail);
        false
    }

    fn suspend(&mut self, queue: &QueueId, now: Tick) {
        let reason =
            "suspended: state.max_size was reached, and it had the most deferred deliveries";
        let detour = self.detour(queue);
        detour.close_breaker(now);
        detour.backlog.give_up();
        detour.suspension = Some(Suspension {
            opens: Some(reason.to_owned()),
            is_stale: true,
            rows_left: true,
            ..Suspension::default()
        });
        self.suspensions.queues.insert(queue.clone());
        self.skip_leaving(queue);
        if let Some(lane_id) = self.lane_of.get(&queue.account).copied()
            && let Some(in_memory) = self.lanes.get(&lane_id).and_then(|l| l.queue(&queue.endpoint))
        {
            let idle: Vec<_> = in_memory.idle().map(|pending| pending.id).collect();
            let endpoint: EndpointId = queue.endpoint.clone();
            self.leave(lane_id, &endpoint, &idle, Exit::Other(DeferReason::Overflow), now);
        }
        self.outdate(queue);
        self.durable.touch();
    }

    /// What was on its way into the table is counted instead, unless it is in flight as well.
    fn skip_leaving(&mut self, queue: &QueueId) {
        let Some(detour) = self.detours.get_mut(queue) else { return };
        for leaving in self.durable.leaving_mut().filter(|l| l.row.id.queue == *queue) {
            if !detour.backlog.is_loaded(&leaving.row.id.key) {
                leaving.skip = true;
                detour.backlog.skip(&leaving.row.id.key);
            }
        }
    }

    fn resume_suspended(&mut self) {
        let mut resumed = Vec::new();
        let last = self.durable.insertions();
        for queue in &self.suspensions.queues {
            let Some(detour) = self.detours.get_mut(queue) else { continue };
            let can = detour.is_suspended() && detour.backlog.is_forgettable();
            let Some(suspension) = detour.suspension.as_mut().filter(|s| can && !s.rows_left)
            else {
                continue;
            };
            suspension.ends_with = Some(last);
            let counted = suspension.skipped + suspension.removed;
            detour.backlog = Backlog::new(Blocked::Keys(Vec::new()), DeferReason::Behind);
            self.durable.touch();
            resumed.push((queue.clone(), counted));
        }
        for (queue, counted) in resumed {
            let detail =
                format!("the state tables have room again; its gap counts {counted} deliveries");
            self.tell_of(&queue, EndpointChange::Unsuspended, detail);
        }
    }

    /// One that was on its way into the table is counted in its queue's gap instead.
    pub(super) fn count_skipped(&mut self, queue: &QueueId, commit_lsn: Lsn) {
        self.counters.in_gaps += 1;
        let suspension = self.detours.get_mut(queue).and_then(|d| d.suspension.as_mut());
        debug_assert!(suspension.is_some(), "skipped, and nothing counts it");
        if let Some(suspension) = suspension {
            suspension.skipped += 1;
            suspension.is_stale = true;
            let (first, last) = suspension.span.unwrap_or((commit_lsn, commit_lsn));
            suspension.span = Some((first.min(commit_lsn), last.max(commit_lsn)));
        }
    }

    /// What gaps are to say, and at most `rows` rows to be removed.
    pub(super) fn hand_out_gaps(&mut self, batch: &mut PersistBatch, mut rows: usize) {
        let handed_out = self.durable.handed_out();
        let mut ended = Vec::new();
        for queue in &self.suspensions.queues {
            let Some(detour) = self.detours.get_mut(queue) else { continue };
            let purges = rows > 0 && detour.wants_purge();
            let in_table = usize::try_from(detour.backlog.in_table()).unwrap_or(usize::MAX);
            let Some(suspension) = &mut detour.suspension else { continue };
            let growing = suspension.ends_with.is_none_or(|last| last > handed_out);
            if std::mem::take(&mut suspension.is_stale) || !growing {
                batch.gaps.push(GapChange {
                    queue: queue.clone(),
                    opens: suspension.opens.take(),
                    skipped: suspension.skipped,
                    span: suspension.span,
                    growing,
                });
            }
            if purges {
                let at_once = u32::try_from(rows).unwrap_or(u32::MAX);
                batch.purges.push(Purge { queue: queue.clone(), rows: at_once });
                rows = rows.saturating_sub(in_table.max(1));
            }
            if !growing {
                detour.suspension = None;
                ended.push(queue.clone());
            }
        }
        for queue in ended {
            self.suspensions.queues.remove(&queue);
            // It is looked after, and forgotten where nothing is left, with the next batch.
            self.outdate(&queue);
        }
    }

    pub(super) fn handle_purged(&mut self, purged: &[Purged], now: Tick) {
        for Purged { queue, rows, all } in purged {
            self.counters.in_gaps += rows;
            let Some(detour) = self.detours.get_mut(queue) else { continue };
            detour.backlog.purged(*rows, *all);
            if let Some(suspension) = &mut detour.suspension {
                suspension.removed += rows;
                suspension.rows_left = !all;
            }
            if *all {
                self.suspensions.trusts_from = now + STATISTICS_LAG;
            }
            self.outdate(queue);
        }
    }
}
