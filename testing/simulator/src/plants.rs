//! Faults of walhook's own, planted around it on purpose: each must be found, or the checkers see nothing.
//!
//! None of them is in walhook: an input is kept back or an effect is altered on its way.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use walhook_core::attempt::{Attempt, Delivery, Meaning, Outcome};
use walhook_core::event::{Event, Item};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{PersistBatch, Refilled};

use crate::faults::kinds;
use crate::postgres::Postgres;
use crate::receivers::answered;

kinds! {
    /// A planted fault.
    Plant {
        /// An outcome never reaches the dispatcher.
        OutcomeForgotten = "outcome-forgotten",
        /// A delivered outcome is told although the receiver refused.
        OutcomeFlattered = "outcome-flattered",
        /// The stored frontier is one transaction too far.
        FrontierTooFar = "frontier-too-far",
        /// The source is told to forget what is not stored.
        FlushTooFar = "flush-too-far",
        /// A request's outcome is told before the request has ended.
        KeyUnlockedEarly = "key-unlocked-early",
        /// What an instance stores after it lost the lease is taken.
        StaleWrite = "stale-write",
        /// A settled range is stored twice, the second time with what stands behind it.
        RangeTwice = "range-twice",
        /// A small account's request has to wait.
        TurnLate = "turn-late",
        /// A transaction's events come in another order.
        TurnOutOfOrder = "turn-out-of-order",
        /// A dead letter is not stored.
        LetterForgotten = "letter-forgotten",
        /// A deferred row is not stored.
        RowForgotten = "row-forgotten",
        /// A gap counts less than it stands for.
        GapMiscounted = "gap-miscounted",
        /// A request is sent twice.
        SentTwice = "sent-twice",
        /// A request goes to somebody else's endpoint.
        SentElsewhere = "sent-elsewhere",
        /// A Retry-After is not told, so that the retry comes before its time.
        RetryEarly = "retry-early",
        /// Deferred rows are read in the wrong order.
        PageReversed = "page-reversed",
        /// A pause is not told.
        PauseForgotten = "pause-forgotten",
        /// A row's body is another one's.
        BodyAltered = "body-altered",
        /// An event is left out of the stream.
        EventForgotten = "event-forgotten",
        /// Whose events an open transaction makes is forgotten, so that later ones of the same pass it.
        AccountsForgotten = "accounts-forgotten",
        /// The stored frontier passes a transaction that is still played.
        FrontierPastPlay = "frontier-past-play",
    }
}

/// The planted fault of a run, and where it strikes.
#[derive(Debug)]
pub(crate) struct Planted {
    plant: Option<Plant>,
    rng: SmallRng,
    /// Requests whose outcome was told before their end.
    pub(crate) early: BTreeSet<u64>,
    /// Requests that are not sent yet.
    pub(crate) kept_back: BTreeSet<u64>,
}

impl Planted {
    pub(crate) fn new(plant: Option<Plant>, rng: SmallRng) -> Self {
        Self { plant, rng, early: BTreeSet::new(), kept_back: BTreeSet::new() }
    }

    /// Whether this one is planted and strikes this time: one in fifty.
    pub(crate) fn is(&mut self, plant: Plant) -> bool {
        self.plant == Some(plant) && self.rng.random_bool(0.02)
    }

    /// Likewise, every other time.
    pub(crate) fn is_often(&mut self, plant: Plant) -> bool {
        self.plant == Some(plant) && self.rng.random_bool(0.5)
    }

    pub(crate) fn outcome(&mut self, outcome: Outcome) -> Outcome {
        if !outcome.delivered() && self.is(Plant::OutcomeFlattered) {
            return Outcome { elapsed: outcome.elapsed, ..answered(200, None) };
        }
        if let Meaning::Refused { retry_after: Some(_), overloaded } = outcome.meaning
            && self.is_often(Plant::RetryEarly)
        {
            let meaning = Meaning::Refused { retry_after: None, overloaded };
            return Outcome { meaning, ..outcome };
        }
        outcome
    }

    pub(crate) fn flush(&mut self, lsn: Lsn) -> Lsn {
        if self.is(Plant::FlushTooFar) { Lsn(lsn.0 + 1) } else { lsn }
    }

    /// The request, and how long it is kept back.
    pub(crate) fn turn(
        &mut self,
        attempt: Attempt,
        postgres: &Postgres,
    ) -> (Attempt, Option<Duration>) {
        let small = *attempt.first().event.account != *"a0" && attempt.first().number == 1;
        if small && self.is_often(Plant::TurnLate) {
            return (attempt, Some(Duration::from_secs(60)));
        }
        if self.is(Plant::SentElsewhere) {
            let other = postgres.elsewhere(&attempt.endpoint);
            return (Attempt { endpoint: other, ..attempt }, None);
        }
        if self.is(Plant::BodyAltered) {
            let event = Event { row: "\"data\":{}".into(), ..copy(&attempt.first().event) };
            let altered = Delivery { event: Arc::new(event), ..attempt.first().clone() };
            return (Attempt { deliveries: altered.into(), ..attempt }, None);
        }
        (attempt, None)
    }

    pub(crate) fn items(&mut self, mut items: Vec<Item>) -> Vec<Item> {
        let is_event = |item: &Item| matches!(item, Item::Event(_));
        if self.plant == Some(Plant::EventForgotten)
            && let Some(at) = items.iter().position(is_event)
            && self.is(Plant::EventForgotten)
        {
            items.remove(at);
        }
        if self.plant == Some(Plant::TurnOutOfOrder) {
            for at in 1..items.len() {
                let both =
                    items.get(at - 1).is_some_and(is_event) && items.get(at).is_some_and(is_event);
                if both && self.is(Plant::TurnOutOfOrder) {
                    items.swap(at - 1, at);
                }
            }
        }
        items
    }

    pub(crate) fn pages(&mut self, mut pages: Vec<Refilled>) -> Vec<Refilled> {
        for page in &mut pages {
            if self.is(Plant::PageReversed) {
                page.rows.reverse();
            }
        }
        pages
    }

    pub(crate) fn batch(
        &mut self,
        mut batch: Box<PersistBatch>,
        postgres: &Postgres,
        is_playing: bool,
    ) -> Box<PersistBatch> {
        if self.is(Plant::FrontierTooFar) || is_playing && self.is_often(Plant::FrontierPastPlay) {
            let next = postgres.txns.iter().find(|txn| txn.commit_lsn >= batch.frontier);
            batch.frontier = next.map_or(batch.frontier, |txn| txn.end_lsn);
        }
        if !batch.settled.is_empty() && self.is(Plant::RangeTwice) {
            let again = batch.settled.last().cloned();
            batch.settled.extend(again);
        }
        if !batch.dead_letters.is_empty() && self.is_often(Plant::LetterForgotten) {
            batch.dead_letters.pop();
        }
        if !batch.deferred.is_empty() && self.is(Plant::RowForgotten) {
            batch.deferred.pop();
        }
        for gap in &mut batch.gaps {
            if self.plant == Some(Plant::GapMiscounted) {
                gap.skipped /= 2;
            }
        }
        batch
    }
}

fn copy(event: &Event) -> Event {
    Event {
        id: event.id,
        position: event.position,
        event_type: Arc::clone(&event.event_type),
        account: event.account.clone(),
        operation: event.operation,
        commit_time_us: event.commit_time_us,
        keys: event.keys.clone(),
        row: event.row.clone(),
    }
}
