//! The state database: what a batch does to it, and what it tells.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::World;
use walhook_core::event::{EndpointId, Event};
use walhook_core::id::ReplayId;
use walhook_core::persist::{
    Deferred, PersistBatch, Persisted, QueueId, Refill, Refilled, ReplayCounts, RowId, RowKey,
    Tried,
};

impl World {
    pub(in crate::dispatcher::simulation) fn store(&mut self, batch: PersistBatch) -> Persisted {
        assert!(batch.frontier >= self.frontier, "the checkpoint went back");
        self.frontier = batch.frontier;
        let unrouted_purged = self.unrouted.store(&batch);
        let last = batch.settled.iter().map(|r| r.to.position.commit_lsn()).max();
        self.settled.extend(last.map(|last| (last, batch.settled)));
        self.settled.retain(|(last, _)| *last >= batch.frontier);
        for letter in batch.dead_letters {
            let endpoint = letter.endpoint.clone().unwrap_or_else(|| EndpointId::new(""));
            let account = letter.event.account.clone();
            self.store_letter(QueueId { account, endpoint }, &letter);
        }
        self.store_rows(batch.deferred.into_iter().map(|d| (d.id, d.event, d.tried)));
        for row in batch.resolved {
            if self.take_row(&row) {
                self.count_late(row.key.replay, |counts| counts.done += 1);
            }
        }
        for row in batch.dropped {
            if self.take_row(&row) {
                self.count_late(row.key.replay, |counts| counts.dropped += 1);
            }
        }
        self.replays.extend(batch.replayed);
        for (row, tried) in batch.retimed {
            if self.discarded.contains(&(row.queue.clone(), row.key.clone())) {
                continue;
            }
            let table = self.deferred.get_mut(&row.queue).unwrap();
            table.get_mut(&row.key).unwrap().1 = tried;
        }
        for (row, letter) in batch.died {
            if self.take_row(&row) {
                self.count_late(row.key.replay, |counts| counts.failed += 1);
                self.store_letter(row.queue, &letter);
            }
        }
        for row in batch.backlog {
            let stored = self.deferred.get(&row.queue).map_or(0, BTreeMap::len);
            // Of what somebody else has removed it may count some until it knows; never too few.
            let (exact, stored) = (self.discarded.is_empty(), stored as u64);
            let is_right = row.rows == stored || !exact && row.rows > stored;
            assert!(is_right, "the backlog miscounts its rows");
            self.backlog.insert(row.queue.clone(), row);
        }
        for queue in batch.backlog_gone {
            assert!(!self.deferred.contains_key(&queue), "rows are left and nobody knows");
            self.backlog.remove(&queue);
        }
        assert!(
            !self.discarded.is_empty()
                || self
                    .deferred
                    .keys()
                    .eq(self.backlog.keys().filter(|q| self.deferred.contains_key(*q)))
        );
        for d in batch.disabled {
            self.disabled.insert(d.endpoint, d.reason);
        }
        for e in batch.enabled {
            self.disabled.remove(&e);
            self.paused.remove(&e);
        }
        for p in batch.paused {
            self.disabled.remove(&p.endpoint);
            self.paused.insert(p.endpoint, p.since_us);
        }
        self.job.take_if(|(job, ..)| batch.jobs_done.iter().any(|done| done.job == *job));
        self.store_gaps(batch.gaps);
        let purged = batch.purges.into_iter().map(|purge| self.purge(purge)).collect();
        let letters_purged = batch.letter_purges.into_iter();
        let letters_purged = letters_purged.map(|purge| self.purge_letters(purge)).collect();
        Persisted { purged, letters_purged, unrouted_purged, ..Persisted::default() }
    }

    fn store_rows(&mut self, rows: impl Iterator<Item = (RowId, Arc<Event>, Tried)>) {
        for (id, event, tried) in rows {
            self.deferrals += 1;
            let before = self.deferred.entry(id.queue).or_default().insert(id.key, (event, tried));
            assert!(before.is_none(), "deferred twice");
        }
    }

    /// What became of a row of a replay.
    pub(in crate::dispatcher::simulation) fn count_late(
        &mut self,
        replay: Option<ReplayId>,
        add: impl FnOnce(&mut ReplayCounts),
    ) {
        if let Some(replay) = replay {
            add(self.late.entry(replay).or_default());
        }
    }

    /// False: an operator has discarded it meanwhile.
    fn take_row(&mut self, row: &RowId) -> bool {
        if self.discarded.contains(&(row.queue.clone(), row.key.clone())) {
            return false;
        }
        let table = self.deferred.get_mut(&row.queue).expect("the queue has rows");
        table.remove(&row.key).expect("the row is there");
        if table.is_empty() {
            self.deferred.remove(&row.queue);
        }
        true
    }

    pub(in crate::dispatcher::simulation) fn refill(&self, pages: &[Refill]) -> Vec<Refilled> {
        let read = |page: &Refill| {
            let from = |key: &RowKey| page.from.as_ref().is_none_or(|from| from <= key);
            let table = self.deferred.get(&page.queue).into_iter().flatten();
            let mut behind = table.filter(|(key, _)| from(key));
            let row = |(key, (event, tried)): (&RowKey, &(Arc<Event>, Tried))| Deferred {
                key: key.clone(),
                event: Arc::clone(event),
                attempts: tried.attempts,
                first_attempt_us: tried.first_attempt_us,
                due_us: tried.due_us,
            };
            let rows = behind.by_ref().take(page.rows as usize).map(row).collect();
            Refilled { queue: page.queue.clone(), rows, end: behind.next().is_none() }
        };
        pages.iter().map(read).collect()
    }
}
