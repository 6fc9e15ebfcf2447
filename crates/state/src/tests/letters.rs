//! Dead letters beyond those that are rows, and who holds most of the tables.

use super::super::fixture::{Fixture, dead, defer, event, queue, row_id};
use super::batch;
use crate::{Ask, DeadLetterFilter, Gap, StateStore, StoredDeadLetter};
use walhook_core::event::EndpointId;
use walhook_core::id::DeadLetterId;
use walhook_core::persist::{
    BacklogRow, Blocked, DeadLetter, DeadReason, PersistBatch, Purge, QueueId, Retried,
};
use walhook_core::room::Holder;

const MAX: u64 = 1_000;

fn letters(endpoint: &str, numbers: std::ops::Range<u64>) -> Vec<DeadLetter> {
    numbers.map(|n| dead(&event(0x1000 + 16 * n, "1"), endpoint)).collect()
}

fn dying(number: u64, dead_letters: Vec<DeadLetter>) -> PersistBatch {
    PersistBatch { number, dead_letters, ..batch(0x100) }
}

async fn only_gap(store: &StateStore) -> Gap {
    let gaps = store.gaps(false).await.unwrap();
    let [gap] = &gaps[..] else { panic!("{gaps:?}") };
    gap.clone()
}

/// Letters of a queue by its count, which is that of its rows.
async fn counted(fixture: &Fixture, endpoint: &str) -> i64 {
    let s = walhook_postgres::ident::quote_ident(super::SCHEMA);
    let sql = format!(
        "SELECT coalesce((SELECT letters FROM {s}.dead_letter_counts WHERE endpoint = $1), 0),
                (SELECT count(*) FROM {s}.dead_letters WHERE endpoint = $1),
                coalesce((SELECT bytes FROM {s}.dead_letter_counts WHERE endpoint = $1), 0),
                (SELECT coalesce(sum(bytes), 0)::int8 FROM {s}.dead_letters WHERE endpoint = $1)"
    );
    let row = fixture.admin.query_one(&sql, &[&endpoint]).await.unwrap();
    let (letters, rows): (i64, i64) = (row.get(0), row.get(1));
    assert_eq!(letters, rows, "{endpoint}: letters miscounted");
    assert_eq!(row.get::<_, i64>(2), row.get::<_, i64>(3), "{endpoint}: bytes miscounted");
    letters
}

#[tokio::test]
async fn dead_letters_beyond_the_first_thousand_of_an_endpoint_are_one_growing_record() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let first = store.persist(&dying(1, letters("7", 0..MAX - 10))).await.unwrap();
    assert!(first.beyond.is_empty() && store.gaps(true).await.unwrap().is_empty());
    let mut second = dying(2, letters("7", MAX - 10..MAX + 5));
    second.dead_letters.extend(letters("8", 0..3));
    let unroutable = DeadLetter { endpoint: None, ..dead(&event(0xf000, "1"), "") };
    second.dead_letters.push(unroutable);
    assert_eq!(store.persist(&second).await.unwrap().beyond, [queue("7")]);
    // The commit's answer was lost: the same batch again, and it counts once.
    for _ in 0..2 {
        let gap = only_gap(&store).await;
        let told = (gap.endpoint.as_deref(), gap.account.as_deref(), gap.removed, gap.skipped);
        assert_eq!(told, (Some("7"), Some("1"), 0, 5));
        let (from, to) = (0x1000 + 16 * MAX, 0x1000 + 16 * (MAX + 4));
        assert_eq!((gap.from_lsn, gap.to_lsn), (format!("0/{from:X}"), format!("0/{to:X}")));
        assert!(gap.dead_letters && !gap.growing && gap.last_at_us.is_some());
        assert!(gap.reason.contains("exhausted, status 500"), "{}", gap.reason);
        assert_eq!(counted(&fixture, "7").await, 1_000);
        assert_eq!((counted(&fixture, "8").await, counted(&fixture, "").await), (3, 1));
        // No body stays for what is only counted.
        assert_eq!(fixture.count("bodies").await, 1_001);
        assert!(store.persist(&second).await.unwrap().beyond.is_empty());
    }

    // The next leader goes on with the record, by numbers of its own.
    let mut next = fixture.open().await;
    next.take_lease("two").await.unwrap();
    for _ in 0..2 {
        next.persist(&dying(1, letters("7", MAX + 5..MAX + 7))).await.unwrap();
        assert_eq!(only_gap(&next).await.skipped, 7);
    }
    // What an operator removes makes room for rows; what he closes is not added to.
    let some = DeadLetterFilter { ids: Some(vec![1, 2, 3]), ..DeadLetterFilter::default() };
    assert_eq!(next.discard_dead_letters(&some).await.unwrap(), 3);
    assert_eq!(counted(&fixture, "7").await, 997);
    let closed = next.close_gap(only_gap(&next).await.id, None).await.unwrap().unwrap();
    assert_eq!(closed.skipped, 7);
    let fourth = next.persist(&dying(2, letters("7", MAX + 7..MAX + 12))).await.unwrap();
    assert_eq!(fourth.beyond, [queue("7")]);
    assert_eq!((only_gap(&next).await.skipped, counted(&fixture, "7").await), (2, 1_000));
}

#[tokio::test]
async fn deferred_row_that_dies_beyond_the_first_thousand_letters_is_counted_and_leaves_no_body() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    store.persist(&dying(1, letters("7", 0..MAX - 1))).await.unwrap();
    let events: Vec<_> = (0..3).map(|n| event(0x9_0000 + 16 * n, "1")).collect();
    let deferred = events.iter().map(|e| defer(e, "7")).chain([defer(&events[2], "8")]).collect();
    store.persist(&PersistBatch { deferred, number: 2, ..batch(0x100) }).await.unwrap();
    let died = events.iter().map(|e| (row_id(e, "7"), dead(e, "7"))).collect();
    let died = PersistBatch { died, number: 3, ..batch(0x100) };
    assert_eq!(store.persist(&died).await.unwrap().beyond, [queue("7")]);
    for _ in 0..2 {
        let gap = only_gap(&store).await;
        assert_eq!(
            (gap.skipped, gap.from_lsn.as_str(), gap.to_lsn.as_str()),
            (2, "0/90010", "0/90020")
        );
        assert_eq!(counted(&fixture, "7").await, 1_000);
        assert_eq!(fixture.count("deferred").await, 1, "that of the other endpoint");
        assert_eq!(fixture.count("bodies").await, 1_001, "which needs the body");
        store.persist(&died).await.unwrap();
    }
    // The one that became a row knows the attempts of its deferred row too.
    let filter = DeadLetterFilter { endpoint: Some("7".into()), ..DeadLetterFilter::default() };
    let letter = store.dead_letters(&filter, 999, 10).await.unwrap().pop().unwrap();
    assert_eq!((letter.event.id, letter.history.len()), (events[0].id, 1));
}

#[tokio::test]
async fn purge_of_letters_counts_them_in_the_record_of_their_queue_and_the_largest_holder_is_known()
{
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let none = || DeadLetter { endpoint: None, ..dead(&event(0xa_0000, "1"), "") };
    let mut dead_letters = [letters("7", 0..20), letters("8", 0..2), vec![none()]].concat();
    // Few, but large.
    let large = walhook_core::event::Event {
        row: vec![b'1'; 100_000].into(),
        ..std::sync::Arc::into_inner(event(0xb_0000, "1")).unwrap()
    };
    dead_letters.push(dead(&std::sync::Arc::new(large), "9"));
    let deferred = (0..50).map(|n| defer(&event(0xc_0000 + 16 * n, "1"), "6")).collect();
    let backlog = vec![BacklogRow {
        queue: queue("6"),
        blocked: Blocked::All,
        rows: 50,
        failing_since_us: None,
        stopped_us: 0,
        open_until_us: None,
    }];
    let stored = PersistBatch { deferred, backlog, ..dying(1, dead_letters) };
    store.persist(&stored).await.unwrap();
    let held = store.holders().await.unwrap();
    let of = |h: &Holder| (h.queue.endpoint.to_string(), h.letters);
    let expected =
        [("6", 0), ("9", 1), ("7", 20), ("8", 2), ("", 1)].map(|(e, n)| (e.to_owned(), n));
    assert_eq!(held.iter().map(of).collect::<Vec<_>>(), expected);
    assert!(held[1].letter_bytes > 100_000, "it counts for more than 20 small ones");

    let nobody = QueueId { endpoint: EndpointId::new(""), ..queue("") };
    let purge = |queue: QueueId, rows| PersistBatch {
        letter_purges: vec![Purge { queue, rows }],
        ..batch(0x100)
    };
    let purged = store.persist(&purge(queue("7"), 15)).await.unwrap().letters_purged;
    assert_eq!((purged[0].rows, purged[0].all), (15, false));
    let purged = store.persist(&purge(queue("7"), 15)).await.unwrap().letters_purged;
    assert_eq!((purged[0].rows, purged[0].all), (5, true));
    let purged = store.persist(&purge(queue("7"), 15)).await.unwrap().letters_purged;
    assert_eq!((purged[0].rows, purged[0].all), (0, true));
    assert!(store.persist(&purge(nobody, 15)).await.unwrap().letters_purged[0].all);
    let gaps = store.gaps(false).await.unwrap();
    let told: Vec<_> = gaps.iter().map(|g| (g.endpoint.as_deref(), g.removed, g.skipped)).collect();
    assert_eq!(told, [(Some("7"), 20, 0), (Some(""), 1, 0)]);
    let (from, to) = (0x1000, 0x1000 + 16 * 19);
    assert_eq!(
        (&gaps[0].from_lsn, &gaps[0].to_lsn),
        (&format!("0/{from:X}"), &format!("0/{to:X}"))
    );
    assert_eq!((counted(&fixture, "7").await, counted(&fixture, "8").await), (0, 2));
    // Bodies: those of endpoint 8, the large one, those that are deferred.
    assert_eq!(fixture.count("bodies").await, 53);
    // Another letter is a row again, and beyond it the record goes on.
    store.persist(&dying(2, letters("7", 30..31))).await.unwrap();
    assert_eq!(counted(&fixture, "7").await, 1);
}

#[tokio::test]
async fn letter_whose_retry_sent_nothing_says_why_and_stays_what_it_was() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let letter = dead(&event(0x1000, "1"), "7");
    store.persist(&dying(1, vec![letter.clone()])).await.unwrap();
    let all = DeadLetterFilter::default();
    let ask = Ask::RetryDeadLetters(all.clone());
    // What the letter is before and after a retry that came to this.
    let mut retry = async |error: DeadLetter| {
        let job = store.create_job(&ask).await.unwrap().unwrap();
        let before = store.dead_letters(&all, 0, 1).await.unwrap().remove(0);
        let (dead_letter, error) = (DeadLetterId(before.id), Some(error));
        let retried = vec![Retried { dead_letter, job: job.id, error }];
        store.persist(&PersistBatch { retried, ..batch(0x100) }).await.unwrap();
        let vain = store.retried_in_vain(job.id, 10).await.unwrap();
        assert_eq!(vain.len(), 1, "the job tells of it");
        assert_eq!(store.job(job.id).await.unwrap().unwrap().failed, 1);
        store.finish_job(job.id, None).await.unwrap();
        (before, store.dead_letters(&all, 0, 1).await.unwrap().remove(0))
    };
    let off = DeadLetter {
        attempts: 0,
        last_status: None,
        reason: DeadReason::EndpointDisabled,
        detail: "switched off".to_owned(),
        ..letter.clone()
    };
    let (before, after) = retry(off.clone()).await;
    assert_eq!(after.detail, "switched off");
    let kept = |l: &StoredDeadLetter| (l.reason.clone(), l.last_status, l.tried_at_us, l.attempts);
    assert_eq!(kept(&after), kept(&before));

    // One that was sent is another.
    let (before, after) = retry(DeadLetter { attempts: 1, ..off }).await;
    assert_eq!((after.reason.as_str(), after.last_status), ("endpoint_disabled", None));
    assert!(after.attempts == before.attempts + 1 && after.tried_at_us > before.tried_at_us);
}
