//! The suspended queues, and what each one's gap is to say.
//!
//! # Invariants
//!
//! - A queue stands among the suspended ones as long as it has a [`Suspension`], and no longer.
//! - A gap's numbers only grow. What it is to say is handed out when something has changed, and once more when it
//!   grows no longer.
//! - Nothing else is given up while rows or letters may be left to be removed, nor before a size can show what was.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::lane::Insertion;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{GapChange, QueueId};
use walhook_core::tick::Tick;

/// How late the server's statistics may tell of rows that were removed. A session reports at once, or,
/// when it has just done so and falls silent, after ten seconds.
const STATISTICS_LAG: Duration = Duration::from_secs(15);

/// How often it is said that nothing is left to give up.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Suspensions {
    queues: BTreeSet<QueueId>,
    /// A size that was measured before may not show what was removed.
    trusts_from: Tick,
    said: Option<Tick>,
    /// Queues whose dead letters are being removed.
    letters: BTreeSet<QueueId>,
}

impl Suspensions {
    /// The queue is suspended.
    pub(super) fn begin(&mut self, queue: QueueId) {
        self.queues.insert(queue);
    }

    /// The queue is suspended no longer.
    pub(super) fn end(&mut self, queue: &QueueId) {
        self.queues.remove(queue);
    }

    /// The suspended queues, and those that go on and whose gap is not closed in the table.
    pub(super) fn queues(&self) -> impl Iterator<Item = &QueueId> {
        self.queues.iter()
    }

    /// The queue's dead letters are to be removed.
    pub(super) fn give_up_letters(&mut self, queue: QueueId) {
        self.letters.insert(queue);
    }

    /// The queues whose dead letters are being removed.
    pub(super) fn letters(&self) -> impl Iterator<Item = &QueueId> {
        self.letters.iter()
    }

    /// Whether dead letters are being removed.
    pub(super) fn gives_up_letters(&self) -> bool {
        !self.letters.is_empty()
    }

    /// None of the queue's dead letters is left.
    pub(super) fn letters_gone(&mut self, queue: &QueueId, now: Tick) {
        self.letters.remove(queue);
        self.all_removed(now);
    }

    /// All of something was removed: sizes show it only later.
    pub(super) fn all_removed(&mut self, now: Tick) {
        self.trusts_from = now + STATISTICS_LAG;
    }

    /// Whether a size that is measured now shows all that was removed.
    pub(super) fn trusts_sizes(&self, now: Tick) -> bool {
        now >= self.trusts_from
    }

    /// Whether it is time to say that nothing is left to give up; then it is said.
    pub(super) fn may_say(&mut self, now: Tick) -> bool {
        let may = self.said.is_none_or(|said| now.since(said) >= SAID_EVERY);
        if may {
            self.said = Some(now);
        }
        may
    }
}

/// What is known of one queue's suspension.
#[derive(Debug)]
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
    ends_with: Option<Insertion>,
    /// The last of it is in the state transaction under way.
    is_ending: bool,
}

impl Suspension {
    /// One that begins, for this reason.
    pub(super) fn new(reason: &str) -> Self {
        let opens = Some(reason.to_owned());
        Self { opens, is_stale: true, ..Self::recovered(0) }
    }

    /// One that an earlier leader began, whose gap counts so many that were not deferred.
    pub(super) fn recovered(skipped: u64) -> Self {
        Self {
            opens: None,
            skipped,
            span: None,
            removed: 0,
            is_stale: false,
            rows_left: true,
            ends_with: None,
            is_ending: false,
        }
    }

    /// Whether the queue's deliveries are counted instead of being deferred.
    pub(super) fn is_on(&self) -> bool {
        self.ends_with.is_none()
    }

    /// Whether rows may be left in the table.
    pub(super) fn rows_left(&self) -> bool {
        self.rows_left
    }

    /// Rows were removed; `all`: none is left.
    pub(super) fn removed(&mut self, rows: u64, all: bool) {
        self.removed += rows;
        self.rows_left = !all;
    }

    /// One more was counted that commits there.
    pub(super) fn skip(&mut self, commit_lsn: Lsn) {
        self.skipped += 1;
        self.is_stale = true;
        let (first, last) = self.span.unwrap_or((commit_lsn, commit_lsn));
        self.span = Some((first.min(commit_lsn), last.max(commit_lsn)));
    }

    /// The queue goes on; what leaves memory up to `last` is still counted. Returns how many that is so far, as far
    /// as this leader knows.
    pub(super) fn go_on(&mut self, last: Insertion) -> u64 {
        self.ends_with = Some(last);
        self.skipped + self.removed
    }

    /// What the gap is to say, where that has changed, when the rows up to `handed_out` are in the batch; and
    /// whether that is its last.
    pub(super) fn hand_out(
        &mut self,
        queue: &QueueId,
        handed_out: Insertion,
    ) -> (Option<GapChange>, bool) {
        let growing = self.ends_with.is_none_or(|last| last > handed_out);
        let says = std::mem::take(&mut self.is_stale) || !growing;
        let change = says.then(|| GapChange {
            queue: queue.clone(),
            opens: self.opens.take(),
            skipped: self.skipped,
            span: self.span,
            growing,
        });
        self.is_ending |= !growing;
        (change, !growing)
    }

    /// Whether the last of it is in the state transaction under way.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending
    }
}

#[cfg(test)]
mod tests;
