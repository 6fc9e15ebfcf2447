//! What the tables take, and what is kept no longer.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::fixture::{Fixture, SCHEMA, dead, defer, event, is_long, row_id};
use super::batch;
use crate::{DeadLetterFilter, StateError};
use walhook_core::id::Epoch;
use walhook_core::persist::PersistBatch;
use walhook_postgres::ident::quote_ident;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn expire_removes_what_is_older_than_the_retention_and_nothing_else() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    assert!(matches!(store.expire(DAY).await, Err(StateError::Fenced { .. })));
    store.take_lease("one").await.unwrap();
    let events: Vec<_> = (1..=3).map(|n| event(0x100 * n, "1")).collect();
    let stored = PersistBatch {
        dead_letters: events.iter().map(|event| dead(event, "7")).collect(),
        deferred: vec![defer(&events[1], "8")],
        ..batch(0x100)
    };
    store.persist(&stored).await.unwrap();
    let s = quote_ident(SCHEMA);
    let age = format!(
        "UPDATE {s}.dead_letters SET died_at = now() - interval '25 hours' WHERE id < 3;
         INSERT INTO {s}.jobs (pipeline, kind, args, finished_at) VALUES
             ('p', 'x', '{{}}', now() - interval '2 days'), ('p', 'x', '{{}}', now()), ('p', 'x', '{{}}', NULL);
         INSERT INTO {s}.gaps (pipeline, from_lsn, to_lsn, reason, recorded_at, closed_at) VALUES
             ('p', '0/1', '0/2', 'x', now() - interval '9 days', now() - interval '2 days'),
             ('p', '0/1', '0/2', 'x', now() - interval '9 days', NULL);"
    );
    fixture.admin.batch_execute(&age).await.unwrap();
    assert_eq!(store.expire(DAY).await.unwrap(), 4);
    assert_eq!(store.expire(DAY).await.unwrap(), 0);
    let left = store.dead_letters(&DeadLetterFilter::default(), 0, 9).await.unwrap();
    assert_eq!(left.iter().map(|l| l.event.id).collect::<Vec<_>>(), [events[2].id]);
    assert_eq!(fixture.count("bodies").await, 2, "the deferred row's body stays");
    assert_eq!((fixture.count("jobs").await, fixture.count("gaps").await), (2, 1));

    let old = format!("UPDATE {s}.jobs SET finished_at = now() - interval '2 days'");
    fixture.admin.batch_execute(&old).await.unwrap();
    fixture.open().await.take_lease("two").await.unwrap();
    assert!(matches!(store.expire(DAY).await, Err(StateError::Fenced { epoch: Some(Epoch(1)) })));
}

#[tokio::test]
async fn asked_is_what_next_job_cancelled_replay_and_next_replay_return() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let s = quote_ident(SCHEMA);
    let job = "kind, args, finished_at, error, deferred";
    let pause = r#"'endpoints.pause', '{"endpoint": "7", "reason": "x"}'"#;
    let replay = r#"'replay', '{"from": "0/1", "to": "0/2"}'"#;
    for (rows, asked) in [
        (String::new(), (false, false)),
        (format!("({pause}, now(), NULL, 0), ({replay}, now(), NULL, 1)"), (false, false)),
        (format!("({pause}, NULL, NULL, 0)"), (true, false)),
        (format!("({replay}, NULL, NULL, 0)"), (false, true)),
        (format!("({replay}, now(), 'cancelled', 1)"), (true, false)),
        (format!("({replay}, now(), 'cancelled', 0)"), (false, false)),
    ] {
        let insert = match rows.as_str() {
            "" => String::new(),
            rows => format!(
                "INSERT INTO {s}.jobs (pipeline, {job}) SELECT 'p', kind,
                     args::jsonb, finished_at::timestamptz, error, deferred
                 FROM (VALUES {rows}) AS v ({job})"
            ),
        };
        fixture.admin.batch_execute(&format!("DELETE FROM {s}.jobs; {insert}")).await.unwrap();
        let found = store.asked().await.unwrap();
        assert_eq!((found.job, found.replay), asked, "{rows}");
        let next = store.next_job_beside(&[], true).await.unwrap().is_some();
        let cancelled = store.cancelled_replay().await.unwrap().is_some();
        assert_eq!(found.job, next || cancelled, "{rows}");
        assert_eq!(found.replay, store.next_replay().await.unwrap().is_some(), "{rows}");
    }
}

#[tokio::test]
async fn tables_stay_bounded_over_rounds_of_filling_and_draining() {
    const ROWS: u64 = 12_000;
    let fixture = Fixture::start_with(&[("autovacuum", "off")]).await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let mut totals = Vec::new();
    for round in 0..if is_long() { 10 } else { 5 } {
        let events: Vec<_> = (0..ROWS).map(|n| event(0x100 + round * ROWS + n, "1")).collect();
        for some in events.chunks(4_000) {
            let deferred = some.iter().map(|event| defer(event, "7")).collect();
            store.persist(&PersistBatch { deferred, ..batch(0x100) }).await.unwrap();
        }
        // What a session did reaches the statistics within a second or so.
        let measured = async {
            loop {
                let sizes = store.sizes().await.unwrap();
                if sizes.used_bytes > sizes.total_bytes / 2 {
                    return sizes;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let full = tokio::time::timeout(Duration::from_secs(60), measured).await.unwrap();
        for some in events.chunks(4_000) {
            let resolved = some.iter().map(|event| row_id(event, "7")).collect();
            store.persist(&PersistBatch { resolved, ..batch(0x100) }).await.unwrap();
        }
        let vacuumed = async {
            let mut vacuumed = BTreeSet::new();
            while vacuumed.len() < 2 {
                for table in store.worth_a_vacuum(false).await.unwrap() {
                    store.vacuum(&table).await.unwrap();
                    vacuumed.insert(table);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            vacuumed.into_iter().collect::<Vec<_>>()
        };
        let vacuumed = tokio::time::timeout(Duration::from_secs(60), vacuumed).await.unwrap();
        assert_eq!(vacuumed, ["bodies", "deferred"]);
        let empty = store.sizes().await.unwrap();
        println!("round {round}: full {full:?}, drained {empty:?}");
        totals.push(full.total_bytes);
        assert!(empty.used_bytes < full.used_bytes / 4, "{full:?} {empty:?}");
    }
    let first = totals[0];
    let most = totals.iter().copied().max().unwrap();
    assert!(most < 2 * first, "{totals:?}");
}
