//! Pages against rows: a pipeline whose tables are of the version with pages, beside one of the version before,
//! given the same batches, answers the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::fixture::{Fixture, SCHEMA, dead, event, is_long, queue, row_id, set_up, tried};
use super::batch;
use crate::{DeferredCursor, DeferredFilter, DeliveryFilter, StateError, StateStore, schema_sql};
use walhook_core::delivery_log::{Entry, What};
use walhook_core::event::Event;
use walhook_core::id::JobId;
use walhook_core::persist::{
    Defer, DeferReason, Deferred, GapChange, PersistBatch, Purge, QueueId, Refill, RowId, RowKey,
    Tried,
};
use walhook_postgres::ident::quote_ident;

const ENDPOINTS: [&str; 3] = ["7", "8", "9"];

/// The version before, and that with pages.
struct Pair {
    fixture: Fixture,
    rows: StateStore,
    pages: StateStore,
}

impl Pair {
    async fn start() -> Self {
        let fixture = Fixture::start().await;
        set_up(&fixture.admin, &schema_sql(SCHEMA), "q").await;
        let mut rows = fixture.open().await;
        let pages = StateStore::open(&fixture.url, SCHEMA, "q").await.unwrap();
        rows.take_lease("one").await.unwrap();
        let mut pair = Self { fixture, rows, pages };
        pair.set_version(2).await;
        pair.pages.take_lease("one").await.unwrap();
        pair
    }

    async fn persist(&mut self, batch: &PersistBatch) {
        self.rows.persist(batch).await.unwrap();
        self.pages.persist(batch).await.unwrap();
    }

    async fn count(&self, what: &str, pipeline: &str) -> i64 {
        let sql = format!(
            "SELECT count(*) FROM {}.{what} WHERE pipeline = '{pipeline}'",
            quote_ident(SCHEMA)
        );
        self.fixture.admin.query_one(&sql, &[]).await.unwrap().get(0)
    }

    async fn pending(&self, pipeline: &str) -> Vec<String> {
        let sql = format!(
            "SELECT concat_ws(' ', event_id, endpoint, account, event_type, committed_at, reason, attempts,
                              next_attempt_at, detail)
             FROM {}.deliveries_pending WHERE pipeline = '{pipeline}' ORDER BY 1",
            quote_ident(SCHEMA)
        );
        let rows = self.fixture.admin.query(&sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// What both show alike.
    async fn compare(&mut self, rng: &mut StdRng) {
        for endpoint in ENDPOINTS {
            let (rows, bytes) = (rng.random_range(1..300), rng.random_range(1..20_000));
            let from = walk(&self.rows, endpoint, rows, bytes).await;
            let same = walk(&self.pages, endpoint, rows, bytes).await;
            assert_eq!(from.len(), same.len(), "{endpoint}, {rows} rows, {bytes} bytes");
            for (row, same) in from.iter().zip(&same) {
                assert_eq!((&row.key, &row.event), (&same.key, &same.event));
                assert_eq!((row.attempts, row.due_us), (same.attempts, same.due_us));
                assert_eq!(row.first_attempt_us, same.first_attempt_us);
            }
        }
        assert_eq!(self.pending("p").await, self.pending("q").await);
        let filter = filter(rng);
        let of = async |store: &StateStore| {
            let (mut all, mut after) = (Vec::new(), DeferredCursor::default());
            loop {
                let some = store.deferred(&filter, &after, 70).await.unwrap();
                let Some(last) = some.last() else { break all };
                after = DeferredCursor {
                    event: last.event_id.clone(),
                    endpoint: last.endpoint.clone(),
                    ..DeferredCursor::default()
                };
                all.extend(some.iter().map(|row| {
                    format!("{} {} {} {}", row.event_id, row.endpoint, row.reason, row.attempts)
                }));
            }
        };
        let listed = of(&self.rows).await;
        assert_eq!(listed, of(&self.pages).await, "{filter:?}");
        let counted = i64::try_from(listed.len()).unwrap();
        assert_eq!(self.rows.count_deferred(&filter).await.unwrap(), counted);
        assert_eq!(self.pages.count_deferred(&filter).await.unwrap(), counted);
        let hurried = self.rows.begin_hurry(JobId(1), &filter).await.unwrap();
        assert_eq!(self.pages.begin_hurry(JobId(1), &filter).await.unwrap(), hurried, "{filter:?}");
    }

    async fn set_version(&self, version: i32) {
        let sql = format!(
            "UPDATE {}.meta SET schema_version = {version} WHERE pipeline = 'q'",
            quote_ident(SCHEMA)
        );
        self.fixture.admin.batch_execute(&sql).await.unwrap();
    }

    /// Goes back to the version before, which writes rows, and comes again.
    async fn go_back_and_on(&mut self) {
        let before = self.pending("q").await;
        let (rows, pages) = (self.count("deferred", "q").await, self.count("pages", "q").await);
        let made = self.pages.lower_version(1).await.unwrap();
        assert!(
            pages > 0 && self.count("pages", "q").await + self.count("page_done", "q").await == 0
        );
        assert_eq!(self.count("deferred", "q").await, rows + i64::try_from(made).unwrap());
        assert_eq!(before, self.pending("q").await);
        assert_eq!(self.count("bodies", "p").await, self.count("bodies", "q").await);
        let refused = self.pages.persist(&batch(0x200)).await.unwrap_err();
        assert!(matches!(refused, StateError::Fenced { .. }), "{refused}");
        self.set_version(2).await;
        self.pages.take_lease("two").await.unwrap();
    }

    /// One queue is suspended, the others are drained.
    async fn end(&mut self, rng: &mut StdRng) {
        let gap = GapChange {
            queue: queue("7"),
            opens: Some("full".into()),
            skipped: 0,
            span: None,
            growing: true,
        };
        let purges = vec![Purge { queue: queue("7"), rows: 700 }];
        let first = PersistBatch { gaps: vec![gap], purges, ..batch(0x200) };
        for store in [&mut self.rows, &mut self.pages] {
            let mut purge = first.clone();
            while !store.persist(&purge).await.unwrap().purged[0].all {
                purge.gaps.clear();
            }
        }
        let sum = |gaps: Vec<crate::Gap>| gaps.iter().map(|gap| gap.removed).sum::<i64>();
        let (rows, pages) =
            (self.rows.gaps(true).await.unwrap(), self.pages.gaps(true).await.unwrap());
        assert_eq!(sum(rows), sum(pages));
        for endpoint in ENDPOINTS {
            let left = walk(&self.rows, endpoint, 100, 1 << 20).await;
            let resolved = left.iter().map(|row| row_id(&row.event, endpoint)).collect();
            self.persist(&PersistBatch { resolved, ..batch(0x200) }).await;
        }
        self.compare(rng).await;
        for table in ["deferred", "pages", "page_done"] {
            assert_eq!(self.count(table, "q").await, 0, "{table}");
        }
        assert_eq!(self.count("bodies", "p").await, self.count("bodies", "q").await);
    }
}

fn filter(rng: &mut StdRng) -> DeferredFilter {
    let pick = |rng: &mut StdRng, of: &[&str]| {
        of.get(rng.random_range(0..of.len() * 2)).map(|text| (*text).to_owned())
    };
    let endpoint = pick(rng, &ENDPOINTS);
    let reason = pick(rng, &["overflow", "breaker", "failed"]);
    DeferredFilter { endpoint, reason, ..DeferredFilter::default() }
}

/// Discards as a job does: each of them is a line of the log.
async fn discard(
    store: &mut StateStore,
    filter: &DeferredFilter,
) -> (BTreeSet<(QueueId, RowKey)>, Vec<Entry>) {
    let (mut all, mut page, mut lines) = (BTreeSet::new(), None, 0);
    let at_us = Some(7);
    let job = JobId(1);
    while let Some(gone) = store.discard_pages(job, filter, page.as_ref(), at_us).await.unwrap() {
        let gone = gone.commit().await.unwrap();
        all.extend(gone.rows);
        lines += gone.logged.stored;
        page = Some(gone.next);
    }
    let mut after = DeferredCursor::default();
    while let Some(gone) = store.discard_deferred(Some(job), filter, &after, at_us).await.unwrap() {
        let gone = gone.commit().await.unwrap();
        all.extend(gone.rows);
        lines += gone.logged.stored;
        after = gone.next;
    }
    assert_eq!(lines, all.len() as u64);
    let told = store.deliveries(&DeliveryFilter::default(), 10_000, None).await.unwrap().entries;
    let mut told: Vec<Entry> = told.into_iter().take(all.len()).collect();
    assert!(told.iter().all(|line| line.what == What::Discarded && line.at_us == 7));
    told.sort_by_key(|line| (line.event, line.endpoint.to_string()));
    (all, told)
}

/// All rows of a queue, page by page.
async fn walk(store: &StateStore, endpoint: &str, rows: u32, bytes: u64) -> Vec<Deferred> {
    let (mut all, mut from) = (Vec::new(), None::<RowKey>);
    loop {
        let refill = Refill { queue: queue(endpoint), from: from.clone(), rows, bytes };
        let answer = store.refill(&[refill]).await.unwrap().remove(0);
        assert!(answer.rows.len() <= rows as usize);
        assert!(answer.rows.is_sorted_by(|a, b| a.key < b.key), "in order");
        assert!(from.as_ref().is_none_or(|from| answer.rows.iter().all(|row| row.key >= *from)));
        let last = answer.rows.last().map(|row| row.key.successor());
        all.extend(answer.rows);
        match last {
            _ if answer.end => return all,
            Some(_) => from = last,
            None => panic!("a walk that gets nothing, and no end, stands still"),
        }
    }
}

/// What may be deferred, and what is.
struct World {
    events: Vec<Arc<Event>>,
    fresh: BTreeMap<&'static str, Vec<usize>>,
    stored: BTreeMap<&'static str, Vec<usize>>,
}

impl World {
    fn new() -> Self {
        let events: Vec<_> = (0..3_000).map(|n| event(0x1000 + 16 * n, "1")).collect();
        let fresh = ENDPOINTS.map(|endpoint| (endpoint, (0..events.len()).collect())).into();
        Self { events, fresh, stored: ENDPOINTS.map(|endpoint| (endpoint, Vec::new())).into() }
    }

    /// Deliveries that leave memory: mostly the next ones in order, sometimes any.
    fn defer(&mut self, rng: &mut StdRng) -> Vec<Defer> {
        let endpoint = ENDPOINTS[rng.random_range(0..ENDPOINTS.len())];
        let fresh = self.fresh.get_mut(endpoint).unwrap();
        let (count, in_order) = (rng.random_range(1..500), rng.random_bool(0.7));
        let at = if in_order { 0 } else { rng.random_range(0..fresh.len().max(1)) };
        let mut chosen = Vec::new();
        let mut left = Vec::new();
        for (n, number) in fresh.drain(..).enumerate() {
            let skipped = n < at || (!in_order && rng.random_bool(0.3));
            if skipped || chosen.len() >= count {
                left.push(number);
            } else {
                chosen.push(number);
            }
        }
        *fresh = left;
        let reason =
            [DeferReason::Overflow, DeferReason::Breaker][usize::from(rng.random_bool(0.5))];
        self.stored.get_mut(endpoint).unwrap().extend(&chosen);
        let defer = |number: usize| {
            let event = &self.events[number];
            let failed = number.is_multiple_of(97);
            Defer {
                id: row_id(event, endpoint),
                event: Arc::clone(event),
                reason: if failed { DeferReason::Failed } else { reason },
                tried: if failed { tried(1) } else { Tried::default() },
            }
        };
        chosen.into_iter().map(defer).collect()
    }

    /// Some that are stored: from the front mostly, as they are read.
    fn take(&mut self, rng: &mut StdRng, most: usize) -> Vec<(RowId, Arc<Event>)> {
        let endpoint = ENDPOINTS[rng.random_range(0..ENDPOINTS.len())];
        let stored = self.stored.get_mut(endpoint).unwrap();
        stored.sort_unstable();
        let count = rng.random_range(0..=most).min(stored.len());
        let from =
            if rng.random_bool(0.7) { 0 } else { rng.random_range(0..=stored.len() - count) };
        let chosen = stored.drain(from..from + count).map(|number| {
            let event = &self.events[number];
            (row_id(event, endpoint), Arc::clone(event))
        });
        chosen.collect()
    }

    /// What changes next: some are deferred, and something becomes of some that are.
    fn changes(&mut self, rng: &mut StdRng, step: u64) -> PersistBatch {
        let deferred = self.defer(rng);
        let of_batch = deferred.first().map(|defer| (defer.id.clone(), Arc::clone(&defer.event)));
        let mut ids =
            |most| self.take(rng, most).into_iter().map(|(id, _)| id).collect::<Vec<RowId>>();
        let (mut resolved, dropped) = (ids(300), ids(5));
        let retimed: Vec<(RowId, Tried)> =
            ids(2).into_iter().map(|id| (id, tried(u32::try_from(step).unwrap() + 1))).collect();
        let died = self.take(rng, 2);
        let died = died.into_iter().map(|(id, event)| {
            let endpoint = id.queue.endpoint.to_string();
            (id, dead(&event, &endpoint))
        });
        let died: Vec<_> = died.collect();
        for (id, _) in &retimed {
            let number = self.events.iter().position(|event| event.id == id.event).unwrap();
            let endpoint = ENDPOINTS.into_iter().find(|e| **e == *id.queue.endpoint).unwrap();
            self.stored.get_mut(endpoint).unwrap().push(number);
        }
        // One that is deferred and delivered in one batch.
        let named = |id: &RowId| {
            let died = died.iter().map(|(id, _)| id).chain(retimed.iter().map(|(id, _)| id));
            resolved.iter().chain(&dropped).chain(died).any(|other| other == id)
        };
        if let Some((id, _)) = of_batch.filter(|(id, _)| step.is_multiple_of(3) && !named(id)) {
            let number = self.events.iter().position(|event| event.id == id.event).unwrap();
            for stored in self.stored.values_mut() {
                stored.retain(|other| *other != number);
            }
            for endpoint in ENDPOINTS.into_iter().filter(|e| **e != *id.queue.endpoint) {
                if !self.fresh[endpoint].contains(&number) {
                    resolved.push(row_id(&self.events[number], endpoint));
                }
            }
            resolved.push(id);
            resolved.retain(|id| !dropped.contains(id));
            resolved.sort();
            resolved.dedup();
        }
        PersistBatch { deferred, resolved, dropped, retimed, died, number: step, ..batch(0x200) }
    }
}

#[tokio::test]
async fn pages_answer_as_rows_do_whatever_becomes_of_single_deliveries() {
    for seed in 0..if is_long() { 4 } else { 1 } {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pair = Pair::start().await;
        let mut world = World::new();
        let mut most_pages = 0;
        for step in 0..40u64 {
            let changes = world.changes(&mut rng, step);
            pair.persist(&changes).await;
            if rng.random_bool(0.2) {
                pair.persist(&changes).await;
            }
            most_pages = most_pages.max(pair.count("pages", "q").await);
            if step % 4 == 0 {
                pair.compare(&mut rng).await;
            }
            if step == 20 {
                pair.go_back_and_on().await;
            }
            if step % 10 == 9 {
                let filter = filter(&mut rng);
                let gone = discard(&mut pair.rows, &filter).await;
                assert_eq!(gone, discard(&mut pair.pages, &filter).await, "{filter:?}");
                for (queue, key) in gone.0 {
                    let of = world.stored.get_mut(&*queue.endpoint.to_string()).unwrap();
                    of.retain(|number| world.events[*number].position != key.event.position);
                }
                pair.compare(&mut rng).await;
            }
        }
        assert!(most_pages > 5, "{most_pages} pages");
        assert_eq!(pair.count("pages", "p").await, 0);
        let letters = pair.count("dead_letters", "p").await;
        assert_eq!(letters, pair.count("dead_letters", "q").await);
        pair.end(&mut rng).await;
    }
}
