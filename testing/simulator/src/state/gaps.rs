//! The table `gaps`.

use walhook_core::event::EndpointId;
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{GapChange, Purge, Purged, QueueId, RowId};

use super::State;

/// What a record of the table tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Deliveries of a suspended queue.
    Suspended,
    /// Dead letters beyond those that are rows.
    Letters,
    /// Events of an account whose endpoints could not be looked up.
    Unrouted,
    /// A range of the whole stream.
    Stream,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What it tells of.
    pub kind: Kind,
    /// Whose; of an account the endpoint is empty, of the stream both.
    pub queue: QueueId,
    /// The first commit in it.
    pub from: Lsn,
    /// The last; of the stream the end.
    pub to: Lsn,
    /// Rows that were removed.
    pub removed: u64,
    /// What came later.
    pub skipped: u64,
    /// Whether its queue is still suspended.
    pub growing: bool,
    /// What counted last: epoch and step.
    pub counted: Option<(Epoch, u64)>,
}

impl Gap {
    pub(super) fn widen(&mut self, at: Lsn) {
        let is_new = self.removed + self.skipped <= 1 && self.kind != Kind::Suspended;
        self.from = if is_new { at } else { self.from.min(at) };
        self.to = if is_new { at } else { self.to.max(at) };
    }
}

impl State {
    /// The queue's record of dead letters.
    pub(super) fn record_of(&self, queue: &QueueId) -> Option<&Gap> {
        self.gaps.iter().find(|gap| gap.kind == Kind::Letters && gap.queue == *queue)
    }

    /// The record of this kind, made where there is none.
    #[expect(clippy::indexing_slicing, reason = "the place was just found or made")]
    pub(super) fn record(&mut self, queue: &QueueId, kind: Kind) -> &mut Gap {
        let found = self.gaps.iter().position(|gap| gap.kind == kind && gap.queue == *queue);
        let at = found.unwrap_or_else(|| {
            self.gaps.push(Gap {
                kind,
                queue: queue.clone(),
                from: Lsn(0),
                to: Lsn(0),
                removed: 0,
                skipped: 0,
                growing: false,
                counted: None,
            });
            self.gaps.len() - 1
        });
        &mut self.gaps[at]
    }

    fn growing(&mut self, queue: &QueueId) -> Option<&mut Gap> {
        let mut all = self.gaps.iter_mut();
        all.find(|gap| gap.growing && gap.queue == *queue)
    }

    /// What a new leader must know of suspended queues.
    #[must_use]
    pub fn suspended(&self) -> Vec<GapChange> {
        let growing = self.gaps.iter().filter(|gap| gap.growing);
        let change = |gap: &Gap| GapChange {
            queue: gap.queue.clone(),
            opens: None,
            skipped: gap.skipped,
            span: None,
            growing: true,
        };
        growing.map(change).collect()
    }

    pub(super) fn store_gaps(&mut self, frontier: Lsn, changes: &[GapChange]) {
        for change in changes.iter().filter(|change| change.opens.is_some()) {
            if self.growing(&change.queue).is_some() {
                continue;
            }
            let first = self.deferred.get(&change.queue).and_then(|rows| rows.keys().next());
            let first = first.map(|key| key.event.position.commit_lsn());
            let at = first.or(change.span.map(|(first, _)| first)).unwrap_or(frontier);
            self.gaps.push(Gap {
                kind: Kind::Suspended,
                queue: change.queue.clone(),
                from: at,
                to: at,
                removed: 0,
                skipped: 0,
                growing: true,
                counted: None,
            });
        }
        for GapChange { queue, skipped, span, growing, .. } in changes {
            let Some(gap) = self.growing(queue) else { continue };
            gap.skipped = *skipped;
            if let Some((first, last)) = span {
                (gap.from, gap.to) = (gap.from.min(*first), gap.to.max(*last));
            }
            gap.growing = *growing;
        }
        let named =
            |gap: &Gap| changes.iter().any(|change| change.queue.endpoint == gap.queue.endpoint);
        self.gaps.retain(|gap| {
            gap.growing || gap.kind == Kind::Stream || gap.removed + gap.skipped > 0 || !named(gap)
        });
    }

    pub(super) fn purge(&mut self, Purge { queue, rows }: &Purge) -> Purged {
        let mut removed = 0;
        if self.growing(queue).is_some() {
            let of_queue = self.deferred.get(queue).into_iter().flatten().take(*rows as usize);
            let ids: Vec<RowId> = of_queue
                .map(|(key, row)| RowId {
                    queue: queue.clone(),
                    key: key.clone(),
                    event: row.event.id,
                })
                .collect();
            removed = ids.len() as u64;
            for id in ids {
                self.remove_row(&id, |late| late.in_gaps += 1);
                let commit = id.key.event.position.commit_lsn();
                let Some(gap) = self.growing(queue) else { continue };
                gap.removed += 1;
                (gap.from, gap.to) = (gap.from.min(commit), gap.to.max(commit));
            }
        }
        Purged { queue: queue.clone(), rows: removed, all: removed < u64::from(*rows) }
    }

    /// An operator gives a range of the stream up: `from` is the checkpoint.
    pub fn accept_gap(&mut self, from: Lsn, to: Lsn) {
        self.record_stream(from, to);
        self.frontier = to;
        self.settled.clear();
        self.unseen.clear();
    }

    /// An operator gives up what cannot be read of the transaction that commits there.
    pub fn leave_out(&mut self, commit: Lsn) {
        self.record_stream(commit, Lsn(commit.0 + 1));
        self.left_out.insert(commit);
    }

    fn record_stream(&mut self, from: Lsn, to: Lsn) {
        self.take_lease();
        let account = walhook_core::event::AccountId::new("");
        self.gaps.push(Gap {
            kind: Kind::Stream,
            queue: QueueId { account, endpoint: EndpointId::new("") },
            from,
            to,
            removed: 0,
            skipped: 0,
            growing: false,
            counted: None,
        });
    }

    /// Whether a record covers the event, for this endpoint.
    #[must_use]
    pub fn is_in_gap(&self, at: Lsn, account: &str, endpoint: &str) -> bool {
        self.gaps.iter().any(|gap| {
            let inside = (gap.from..=gap.to).contains(&at);
            let of_account = *gap.queue.account == *account;
            inside
                && match gap.kind {
                    Kind::Stream => true,
                    Kind::Unrouted => of_account,
                    Kind::Suspended | Kind::Letters => {
                        of_account
                            && (*gap.queue.endpoint == *endpoint || gap.queue.endpoint.is_empty())
                    }
                }
        })
    }
}
