//! The table `deferred`.

use walhook_core::id::Epoch;
use walhook_core::persist::{
    AttemptRecord, DeadLetter, Defer, Deferred, QueueId, Refill, Refilled, ReplayCounts, RowId,
    RowKey, Tried,
};

use super::{DeferredRow, State};

/// Attempts that a row tells of.
const HISTORY: usize = 10;

/// What is told by then, with what is new; the last ten.
pub(super) fn last_ten(old: &[AttemptRecord], new: &[AttemptRecord]) -> Vec<AttemptRecord> {
    let all = [old, new].concat();
    all.get(all.len().saturating_sub(HISTORY)..).unwrap_or_default().to_vec()
}

impl State {
    pub(super) fn insert_deferred(&mut self, rows: &[Defer]) {
        for Defer { id, event, reason, tried } in rows {
            let of_queue = self.deferred.entry(id.queue.clone()).or_default();
            of_queue.entry(id.key.clone()).or_insert_with(|| {
                let history = last_ten(&[], &tried.history);
                let tried = Tried { history, ..tried.clone() };
                DeferredRow { event: event.clone(), reason: *reason, tried }
            });
        }
    }

    pub(super) fn retime(&mut self, retimed: &[(RowId, Tried)]) {
        for (id, tried) in retimed {
            let row = self.deferred.get_mut(&id.queue).and_then(|rows| rows.get_mut(&id.key));
            let Some(row) = row else { continue };
            let is_new = row.tried.attempts < tried.attempts;
            let new: &[AttemptRecord] = if is_new { &tried.history } else { &[] };
            let history = last_ten(&row.tried.history, new);
            row.tried = Tried { history, ..tried.clone() };
        }
    }

    /// Rows become dead letters. One that is gone is passed over.
    pub(super) fn die(&mut self, died: &[(RowId, DeadLetter)], step: (Epoch, u64)) -> Vec<QueueId> {
        let mut letters = Vec::new();
        for (id, letter) in died {
            let Some(row) = self.deferred.get(&id.queue).and_then(|rows| rows.get(&id.key)) else {
                continue;
            };
            let history = last_ten(&row.tried.history, &letter.history);
            letters.push(DeadLetter { history, ..letter.clone() });
        }
        let beyond = self.insert_letters(letters.iter(), step);
        for (id, _) in died {
            self.remove_row(id, |late| late.failed += 1);
        }
        beyond
    }

    /// Removes a row; `late` counts what became of one of a replay.
    pub fn remove_row(&mut self, id: &RowId, late: impl FnOnce(&mut ReplayCounts)) -> bool {
        let Some(rows) = self.deferred.get_mut(&id.queue) else { return false };
        let removed = rows.remove(&id.key).is_some();
        if rows.is_empty() {
            self.deferred.remove(&id.queue);
        }
        if removed {
            self.count_late(&id.key, late);
        }
        removed
    }

    pub(super) fn count_late(&mut self, key: &RowKey, late: impl FnOnce(&mut ReplayCounts)) {
        if let Some(job) = key.replay.and_then(|replay| self.jobs.get_mut(&replay.into())) {
            late(&mut job.late);
        }
    }

    /// Pages of rows, in their order.
    #[must_use]
    pub fn refill(&self, pages: &[Refill]) -> Vec<Refilled> {
        let read = |page: &Refill| {
            let from = |key: &RowKey| page.from.as_ref().is_none_or(|from| from <= key);
            let rows = self.deferred.get(&page.queue).into_iter().flatten();
            let mut behind = rows.filter(|(key, _)| from(key)).peekable();
            let (mut rows, mut bytes) = (Vec::new(), 0);
            while let Some((key, row)) = behind.peek() {
                bytes += row.event.row.len() as u64;
                let fits =
                    rows.len() < page.rows as usize && (bytes <= page.bytes || rows.is_empty());
                if !fits {
                    break;
                }
                rows.push(Deferred {
                    key: (*key).clone(),
                    event: row.event.clone(),
                    attempts: row.tried.attempts,
                    first_attempt_us: row.tried.first_attempt_us,
                    due_us: row.tried.due_us,
                });
                behind.next();
            }
            let end = behind.peek().is_none() && rows.len() < page.rows as usize;
            Refilled { queue: page.queue.clone(), rows, end }
        };
        pages.iter().map(read).collect()
    }
}
