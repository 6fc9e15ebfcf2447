use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walhook_core::attempt::{Asked, FailureKind};
use walhook_core::delivery_log::{Entry, What};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::id::ReplayId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{DeadReason, NO_ENDPOINT, PersistBatch};
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_core::waits::{Cause, Waits};
use walhook_postgres::ident::quote_ident;

use super::{DeliveryCount, DeliveryCursor, DeliveryFilter, DeliveryKind, columns};
use crate::fixture::{Fixture, SCHEMA};
use crate::{StateError, StateStore};

/// 2100-01-01 00:00 UTC: no line is older than the clock.
const DAY_US: i64 = 4_102_444_800_000_000;

fn event(number: u64, committed_us: i64) -> EventId {
    let position = WalPosition {
        commit_lsn: Lsn(0x1_0000_0000 + number * 320),
        change_lsn: Lsn(0x1_0000_0000 + number * 320 - 120),
        relation: 16_384,
        n: 0,
    };
    EventId::derive(7, &Position::Wal(position), "subscriber.updated", committed_us)
}

/// An attempt that brought an event of this account through.
pub(crate) fn entry(account: &str, endpoint: &str) -> Entry {
    let number = account.bytes().fold(0, |sum, byte| sum * 31 % 100_003 + u64::from(byte));
    Entry {
        event: event(number, DAY_US),
        event_type: "subscriber.updated".into(),
        account: AccountId::new(account),
        endpoint: EndpointId::new(endpoint),
        commit_lsn: Lsn(0x1_0000_0000 + number * 320),
        committed_us: DAY_US,
        at_us: DAY_US + 20_000,
        attempt: 1,
        what: What::Delivered,
        status: Some(200),
        failure: None,
        elapsed_us: 12_345,
        waits: Waits::default(),
        excerpt: String::new(),
        asked: None,
    }
}

/// The `n`th delivery of a busy pipeline: 1,000 a second, 2,000 accounts with two endpoints each.
pub(crate) fn busy(n: u64) -> Entry {
    let mut rng = StdRng::seed_from_u64(n);
    let account = rng.random_range(0..2_000);
    let committed_us = DAY_US + i64::try_from(n).unwrap() * 1_000 + rng.random_range(0..900);
    let elapsed_us = rng.random_range(3_000..60_000);
    let mut waits = Waits::default();
    waits.add_us(Cause::Read, rng.random_range(200..5_000));
    waits.add_us(Cause::Turn, rng.random_range(5..200));
    waits.add_us(Cause::Attempt, elapsed_us);
    Entry {
        event: event(n, committed_us),
        commit_lsn: Lsn(0x1_0000_0000 + n * 320),
        committed_us,
        at_us: DAY_US + i64::try_from(n).unwrap() * 1_000 + 20_000,
        elapsed_us,
        waits,
        ..entry(&account.to_string(), &format!("{}", account * 2 + rng.random_range(0..2)))
    }
}

/// The data of a page of the first so many of them.
pub(crate) fn encoded(lines: u64) -> Vec<u8> {
    columns::encode(&(0..lines).map(busy).collect::<Vec<_>>())
}

/// The `n`th of many of all kinds.
fn any(n: u64) -> Entry {
    let mut rng = StdRng::seed_from_u64(n);
    let what: Vec<What> = What::all().collect();
    let what = what[rng.random_range(0..what.len())];
    let is_attempt = matches!(what, What::Delivered | What::Failed);
    let has_none = what == What::Dead(DeadReason::Unroutable);
    let number = n / 3;
    let committed_us = DAY_US + i64::try_from(number).unwrap() * 250_000;
    Entry {
        event: event(number, committed_us),
        event_type: ["a.b", "a.c", "order.paid"][rng.random_range(0..3)].into(),
        endpoint: EndpointId::new(if has_none {
            NO_ENDPOINT.to_owned()
        } else {
            rng.random_range(0..9).to_string()
        }),
        committed_us,
        at_us: committed_us + rng.random_range(0..3_600_000_000),
        attempt: if is_attempt { rng.random_range(1..5) } else { 0 },
        what,
        status: match is_attempt {
            true if what == What::Failed => Some(500),
            true => [None, Some(200)][rng.random_range(0..2)],
            false => None,
        },
        failure: rng.random_bool(0.1).then_some(FailureKind::Timeout),
        excerpt: if what == What::Failed { format!("status 500: {n}") } else { String::new() },
        asked: rng.random_bool(0.1).then_some(Asked::Replay(ReplayId(3))),
        ..entry(&rng.random_range(0..40).to_string(), "")
    }
}

async fn led() -> (Fixture, StateStore) {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    (fixture, store)
}

/// Stores lines with a state transaction.
async fn store_lines(store: &mut StateStore, number: u64, log: Vec<Entry>) -> u64 {
    let frontier = store.frontier().await.unwrap();
    let batch = PersistBatch { number, frontier, log, ..PersistBatch::default() };
    store.persist(&batch).await.unwrap().log_dropped
}

async fn merge_all(store: &mut StateStore) {
    let mut from = Some(DeliveryCursor(0));
    while let Some(cursor) = from {
        from = store.merge_deliveries(cursor).await.unwrap().next;
    }
}

fn wanted(entries: &[Entry], filter: &DeliveryFilter) -> Vec<Entry> {
    entries.iter().rev().filter(|entry| filter.admits(entry)).cloned().collect()
}

async fn listed(store: &StateStore, filter: &DeliveryFilter, limit: usize) -> Vec<Entry> {
    let (mut all, mut before) = (Vec::new(), None);
    loop {
        let page = store.deliveries(filter, limit, before).await.unwrap();
        assert!(page.entries.len() <= limit);
        all.extend(page.entries);
        match page.next {
            None => return all,
            next => before = next,
        }
    }
}

fn counted(entries: &[Entry]) -> BTreeMap<DeliveryKind, DeliveryCount> {
    let kinds: BTreeSet<DeliveryKind> = entries.iter().map(DeliveryKind::from).collect();
    let count = |kind: DeliveryKind| {
        let at = |kept: &&Entry| DeliveryKind::from(*kept) == kind;
        let mut times: Vec<i64> = entries.iter().filter(at).map(|entry| entry.at_us).collect();
        times.sort_unstable();
        let (lines, last_us) = (times.len() as u64, times[times.len() - 1]);
        (kind, DeliveryCount { lines, first_us: times[0], last_us })
    };
    kinds.into_iter().map(count).collect()
}

fn filters(entries: &[Entry]) -> Vec<DeliveryFilter> {
    let any = DeliveryFilter::default();
    let (some, from) = (&entries[entries.len() / 2], entries[entries.len() / 3].at_us);
    let mut filters = vec![
        any.clone(),
        DeliveryFilter { account: Some("7".into()), ..any.clone() },
        DeliveryFilter { account: Some("nobody".into()), ..any.clone() },
        DeliveryFilter { endpoint: Some("3".into()), account: Some("8".into()), ..any.clone() },
        DeliveryFilter { event_type: Some("order.paid".into()), ..any.clone() },
        DeliveryFilter { event_type: Some("a.*".into()), ..any.clone() },
        DeliveryFilter { event_type: Some("*".into()), ..any.clone() },
        DeliveryFilter { event: Some(some.event), ..any.clone() },
        DeliveryFilter { event: Some(event(999_999, DAY_US)), ..any.clone() },
        DeliveryFilter { from_us: Some(from), to_us: Some(from + 60_000_000), ..any.clone() },
        DeliveryFilter { outcome: Some("none".into()), ..any.clone() },
    ];
    filters.extend(
        What::WORDS.map(|word| DeliveryFilter { outcome: Some(word.into()), ..any.clone() }),
    );
    filters
}

#[test]
fn pattern_admits_the_types_that_an_endpoint_with_it_would_take() {
    let line = entry("1", "2");
    for (pattern, admitted) in [
        ("subscriber.*", true),
        ("*", true),
        ("subscriber.updated", true),
        ("subscriber", false),
        ("sub.*", false),
    ] {
        let filter =
            DeliveryFilter { event_type: Some(pattern.into()), ..DeliveryFilter::default() };
        assert_eq!(filter.admits(&line), admitted, "{pattern}");
    }
}

#[tokio::test]
async fn search_finds_what_a_look_at_every_line_finds_before_and_after_pages_are_merged() {
    let (fixture, mut store) = led().await;
    let entries: Vec<Entry> = (0..6_000).map(any).collect();
    let mut rest = &entries[..];
    let mut rng = StdRng::seed_from_u64(1);
    let mut number = 0;
    while !rest.is_empty() {
        let most = if rng.random_bool(0.02) { 900 } else { 60 };
        let (page, behind) = rest.split_at(rng.random_range(1..=most).min(rest.len()));
        number += 1;
        assert_eq!(store_lines(&mut store, number, page.to_vec()).await, 0);
        rest = behind;
    }
    let reader = fixture.open().await;
    let mut pages = Vec::new();
    for merged in [false, true] {
        if merged {
            merge_all(&mut store).await;
        }
        pages.push(fixture.count("delivery_log").await);
        for filter in filters(&entries) {
            let wanted = wanted(&entries, &filter);
            let counts = reader.count_deliveries(&filter).await.unwrap();
            assert_eq!(counts, counted(&wanted), "{filter:?}, merged: {merged}");
            for limit in [101, 10_000] {
                let found = listed(&reader, &filter, limit).await;
                assert_eq!(found, wanted, "{filter:?} by {limit}, merged: {merged}");
            }
        }
        for at in [0, 1_500, 5_999] {
            let event = entries[at].event;
            let story = reader.story(event, 100).await.unwrap();
            let wanted: Vec<_> = entries.iter().filter(|e| e.event == event).cloned().collect();
            assert_eq!(story, wanted);
            assert_eq!(reader.story(event, 1).await.unwrap(), wanted[..1]);
        }
    }
    assert!(pages[1] * 10 < pages[0], "{} pages were merged into {}", pages[0], pages[1]);
}

#[tokio::test]
async fn lines_of_pages_that_are_merged_meanwhile_are_met_once() {
    let (fixture, mut store) = led().await;
    let entries: Vec<Entry> = (0..6_000).map(any).collect();
    for (number, page) in (1..).zip(entries.chunks(10)) {
        store_lines(&mut store, number, page.to_vec()).await;
    }
    let (reader, all) = (fixture.open().await, DeliveryFilter::default());
    let before = fixture.count("delivery_log").await;
    let read = async {
        for _ in 0..4 {
            let counts = reader.count_deliveries(&all).await.unwrap();
            assert_eq!(counts.values().map(|count| count.lines).sum::<u64>(), 6_000);
            let listed = reader.deliveries(&all, 10_000, None).await.unwrap();
            assert_eq!(listed.entries.len(), 6_000);
        }
    };
    tokio::join!(merge_all(&mut store), read);
    assert!(fixture.count("delivery_log").await < before / 2, "nothing was merged");
}

#[tokio::test]
async fn list_goes_on_where_it_was_although_pages_are_merged_meanwhile() {
    let (_fixture, mut store) = led().await;
    let entries: Vec<Entry> = (0..5_000).map(busy).collect();
    for (page, number) in entries.chunks(50).zip(1..) {
        store_lines(&mut store, number, page.to_vec()).await;
    }
    let any = DeliveryFilter::default();
    let first = store.deliveries(&any, 1_234, None).await.unwrap();
    merge_all(&mut store).await;
    let second = store.deliveries(&any, 10_000, first.next).await.unwrap();
    assert_eq!(second.next, None);
    let found: Vec<EventId> =
        first.entries.iter().chain(&second.entries).map(|entry| entry.event).collect();
    assert!(found.into_iter().eq(entries.iter().rev().map(|entry| entry.event)));
}

#[tokio::test]
async fn page_that_cannot_be_read_is_named_and_stops_neither_merging_nor_an_erasure() {
    let (fixture, mut store) = led().await;
    let entries: Vec<Entry> = (0..9_000).map(busy).collect();
    for (page, number) in entries.chunks(50).zip(1..) {
        store_lines(&mut store, number, page.to_vec()).await;
    }
    let damage = format!(
        "UPDATE {}.delivery_log SET data = '\\x01ff' WHERE last = 300",
        quote_ident(SCHEMA)
    );
    fixture.admin.batch_execute(&damage).await.unwrap();
    let event = entries[250].event;
    let refused = store.story(event, 9).await.unwrap_err();
    assert!(refused.to_string().contains("page 300 of the delivery log"), "{refused}");
    let (mut from, mut refused, mut merged) = (Some(DeliveryCursor(0)), 0, 0);
    while let Some(cursor) = from {
        let step = store.merge_deliveries(cursor).await.unwrap();
        refused += usize::from(matches!(step.refused, Some(StateError::Unreadable { .. })));
        merged += step.pages.0;
        from = step.next;
    }
    assert_eq!(refused, 1);
    assert!(merged > 60, "{merged} pages were merged");
    let erasure = store.erase_deliveries("7", "an operator").await.unwrap();
    assert_eq!(erasure.unreadable, 1);
    assert!(store.story(event, 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn erasure_removes_all_of_an_account_and_nothing_else_and_is_recorded() {
    let (fixture, mut store) = led().await;
    let entries: Vec<Entry> = (0..3_000).map(any).collect();
    for (page, number) in entries.chunks(50).zip(1..) {
        store_lines(&mut store, number, page.to_vec()).await;
    }
    store_lines(&mut store, 100, vec![entry("7", "1")]).await;
    for merged in [false, true] {
        let account = if merged { "8" } else { "7" };
        if merged {
            merge_all(&mut store).await;
        }
        let of = DeliveryFilter { account: Some(account.into()), ..DeliveryFilter::default() };
        let there = listed(&store, &of, 10_000).await.len();
        assert!(there > 20, "{there}");
        let mut other = fixture.open().await;
        let erasure = other.erase_deliveries(account, "support, ticket 5").await.unwrap();
        assert_eq!(erasure.lines, i64::try_from(there).unwrap());
        assert!(erasure.finished_us >= Some(erasure.begun_us));
        assert!(listed(&store, &of, 10).await.is_empty());
    }
    let kept: Vec<Entry> =
        entries.iter().filter(|e| !["7", "8"].contains(&e.account.as_str())).cloned().collect();
    let any = DeliveryFilter::default();
    assert_eq!(listed(&store, &any, 10_000).await, wanted(&kept, &any));
    let told = store.erasures(9).await.unwrap();
    let told: Vec<_> = told.iter().map(|e| (&*e.account, &*e.by)).collect();
    assert_eq!(told, [("8", "support, ticket 5"), ("7", "support, ticket 5")]);
}

#[tokio::test]
async fn oldest_pages_go_when_they_are_old_or_too_much_is_there() {
    let (_fixture, mut store) = led().await;
    let entries: Vec<Entry> = (0..2_000).map(busy).collect();
    for (page, number) in entries.chunks(100).zip(1..) {
        store_lines(&mut store, number, page.to_vec()).await;
    }
    let long = Duration::from_secs(1_000 * 365 * 86_400);
    let size = store.deliveries_size().await.unwrap();
    assert!(size.total_bytes > size.pages_bytes && size.pages_bytes > 20 * 2_000, "{size:?}");
    assert_eq!(store.expire_deliveries(long, 0).await.unwrap(), (0, 0));
    let (pages, bytes) = store.expire_deliveries(long, size.pages_bytes / 2).await.unwrap();
    assert!((10..12).contains(&pages) && bytes >= size.pages_bytes / 2, "{pages} {bytes}");
    let left = listed(&store, &DeliveryFilter::default(), 10_000).await;
    let oldest = &entries[usize::try_from(pages).unwrap() * 100];
    assert_eq!(left.last().map(|entry| entry.event), Some(oldest.event));
    assert_eq!(
        store.expire_deliveries(Duration::ZERO, 0).await.unwrap().0,
        0,
        "the clock is behind"
    );
    let past: Vec<Entry> =
        entries.iter().map(|e| Entry { at_us: e.at_us - DAY_US, ..e.clone() }).collect();
    for (page, number) in past.chunks(100).zip(100..) {
        store_lines(&mut store, number, page.to_vec()).await;
    }
    while store.expire_deliveries(long, 1).await.unwrap().0 > 0 {}
    assert_eq!(store.deliveries_size().await.unwrap().pages_bytes, 0);
}

#[tokio::test]
async fn state_transaction_is_stored_without_its_lines_where_the_log_refuses_them() {
    let (fixture, mut store) = led().await;
    let s = quote_ident(SCHEMA);
    let lines = vec![entry("1", "1"), entry("2", "2")];
    let batch = |number, frontier| PersistBatch {
        number,
        frontier: Lsn(frontier),
        log: lines.clone(),
        ..PersistBatch::default()
    };
    // Somebody works on the table.
    let lock = format!("BEGIN; LOCK TABLE {s}.delivery_log IN ACCESS EXCLUSIVE MODE");
    fixture.admin.batch_execute(&lock).await.unwrap();
    assert_eq!(store.persist(&batch(1, 0x101)).await.unwrap().log_dropped, 2);
    assert!(matches!(store.log_refused(), Some(StateError::LogRefused(_))));
    fixture.admin.batch_execute("COMMIT").await.unwrap();
    assert_eq!(store.persist(&batch(2, 0x102)).await.unwrap().log_dropped, 0);
    assert!(store.log_refused().is_none());
    let broken = format!("ALTER TABLE {s}.delivery_log ADD CHECK (lines < 0) NOT VALID");
    fixture.admin.batch_execute(&broken).await.unwrap();
    for number in 3..50 {
        let done = store.persist(&batch(number, 0x100 + number)).await.unwrap();
        assert_eq!(done.log_dropped, 2);
        assert!(store.log_refused().is_some());
    }
    assert_eq!(store.frontier().await.unwrap(), Lsn(0x131));
    let fixed = format!("ALTER TABLE {s}.delivery_log DROP CONSTRAINT delivery_log_lines_check");
    fixture.admin.batch_execute(&fixed).await.unwrap();
    let mut number = 50;
    while store.persist(&batch(number, 0x100 + number)).await.unwrap().log_dropped > 0 {
        number += 1;
        assert!(number < 200, "the log is never tried again");
    }
    assert!(store.log_refused().is_none());
    assert_eq!(fixture.count("delivery_log").await, 2);
}

#[tokio::test]
async fn lines_of_a_batch_that_is_stored_again_stand_there_once() {
    let (_fixture, mut store) = led().await;
    let frontier = store.frontier().await.unwrap();
    let log = vec![entry("1", "1")];
    let batch = PersistBatch { number: 1, frontier, log, ..PersistBatch::default() };
    store.persist(&batch).await.unwrap();
    assert_eq!(listed(&store, &DeliveryFilter::default(), 9).await.len(), 1);
    assert!(batch.unanswered().log.is_empty(), "what is stored is not stored again");
}
