//! The table `dead_letters`, and the records of those beyond.

use walhook_core::event::EndpointId;
use walhook_core::id::DeadLetterId;
use walhook_core::id::Epoch;
use walhook_core::persist::{DeadLetter, Purge, Purged, QueueId, Retried};

use super::gaps::Kind;
use super::rows::last_ten;
use super::{Letter, LetterKey, State};

fn queue_of(letter: &DeadLetter) -> QueueId {
    let endpoint = letter.endpoint.clone().unwrap_or_else(|| EndpointId::new(""));
    QueueId { account: letter.event.account.clone(), endpoint }
}

impl State {
    /// Inserts letters; those beyond the first of a queue are counted. Returns the queues whose record
    /// begins with it.
    pub(super) fn insert_letters<'a>(
        &mut self,
        letters: impl Iterator<Item = &'a DeadLetter>,
        step: (Epoch, u64),
    ) -> Vec<QueueId> {
        let mut opened = Vec::new();
        let mut counted = std::collections::BTreeSet::new();
        for letter in letters {
            let queue = queue_of(letter);
            let key = (letter.event.id, queue.endpoint.clone(), letter.replay);
            if self.letters.contains_key(&key) {
                continue;
            }
            let rows = self.letter_counts.entry(queue.clone()).or_default();
            if *rows >= self.letters_max {
                let is_new = self.record_of(&queue).is_none();
                let record = self.record(&queue, Kind::Letters);
                if record.counted.is_none_or(|last| last < step) || counted.contains(&queue) {
                    record.counted = Some(step);
                    record.skipped += 1;
                    record.widen(letter.event.position.commit_lsn());
                    counted.insert(queue.clone());
                }
                if is_new {
                    opened.push(queue);
                }
                continue;
            }
            *rows += 1;
            self.next_letter += 1;
            let id = DeadLetterId(self.next_letter);
            self.letters.insert(key, row(id, letter));
        }
        opened
    }

    pub(super) fn mark_failed(&mut self, retried: &[Retried]) {
        for Retried { dead_letter, job, error } in retried {
            let Some(error) = error else { continue };
            let letter = self.letters.values_mut().find(|letter| letter.id == *dead_letter);
            let Some(letter) = letter.filter(|letter| letter.last_job != Some(*job)) else {
                continue;
            };
            if error.attempts > 0 {
                letter.reason = error.reason;
                letter.last_status = error.last_status;
            }
            letter.detail.clone_from(&error.detail);
            letter.attempts += error.attempts;
            letter.history = last_ten(&letter.history, &error.history);
            letter.last_job = Some(*job);
            if let Some(job) = self.jobs.get_mut(job) {
                job.failed += 1;
            }
        }
    }

    pub(super) fn remove_delivered(&mut self, retried: &[Retried]) {
        for Retried { dead_letter, job, error } in retried {
            let key = self.letters.iter().find(|(_, letter)| letter.id == *dead_letter);
            let Some(key) = key.map(|(key, _)| key.clone()).filter(|_| error.is_none()) else {
                continue;
            };
            self.remove_letter(&key);
            if let Some(job) = self.jobs.get_mut(job) {
                job.done += 1;
            }
        }
    }

    fn remove_letter(&mut self, key: &LetterKey) -> Option<Letter> {
        let letter = self.letters.remove(key)?;
        let queue = QueueId { account: letter.event.account.clone(), endpoint: key.1.clone() };
        if let Some(rows) = self.letter_counts.get_mut(&queue) {
            *rows = rows.saturating_sub(1);
        }
        Some(letter)
    }

    pub(super) fn purge_letters(&mut self, Purge { queue, rows }: &Purge) -> Purged {
        let of_queue = self.letters.iter().filter(|((_, endpoint, _), letter)| {
            *endpoint == queue.endpoint && letter.event.account == queue.account
        });
        let keys: Vec<LetterKey> =
            of_queue.map(|(key, _)| key.clone()).take(*rows as usize).collect();
        let removed = keys.len() as u64;
        for key in keys {
            let Some(letter) = self.remove_letter(&key) else { continue };
            let record = self.record(queue, Kind::Letters);
            record.removed += 1;
            record.widen(letter.event.position.commit_lsn());
        }
        Purged { queue: queue.clone(), rows: removed, all: removed < u64::from(*rows) }
    }
}

fn row(id: DeadLetterId, letter: &DeadLetter) -> Letter {
    Letter {
        id,
        event: letter.event.clone(),
        reason: letter.reason,
        detail: letter.detail.clone(),
        attempts: letter.attempts,
        last_status: letter.last_status,
        history: last_ten(&[], &letter.history),
        last_job: None,
    }
}
