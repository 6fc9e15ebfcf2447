//! What comes from outside, in databases that cannot hold it.

use super::*;
use crate::fixture::{set_up, tried};
use std::sync::Arc;
use walhook_core::event::{AccountId, Event};
use walhook_core::notice::{Notice, NoticeKind};
use walhook_core::persist::{
    BacklogRow, Blocked, DeadLetter, Defer, DeferReason, EventKey, GapChange, PauseEndpoint,
    QueueId, Refill, RowId, RowKey, Tried,
};
use walhook_postgres::sql::Connection;

/// Accents, a currency, kana, an emoji, a control character of C1, what looks like an escape of ours, JSON.
const ODD: &str = "é€カ😀\u{85}&#x27;\"\\u0000{}\n";

fn of_account(commit: u64, account: &str) -> Arc<Event> {
    let event = event(commit, "1");
    Arc::new(Event {
        id: event.id,
        position: event.position,
        event_type: Arc::clone(&event.event_type),
        account: AccountId::new(account),
        operation: event.operation,
        commit_time_us: event.commit_time_us,
        keys: event.keys.clone(),
        row: event.row.clone(),
    })
}

fn defer_to(event: &Arc<Event>, endpoint: &str, tried: Tried) -> Defer {
    let queue = QueueId { account: event.account.clone(), endpoint: EndpointId::new(endpoint) };
    let id =
        RowId { queue, key: RowKey { event: EventKey::of(event), replay: None }, event: event.id };
    Defer { id, event: Arc::clone(event), reason: DeferReason::Failed, tried }
}

fn backlog(queue: &QueueId, rows: u64) -> BacklogRow {
    BacklogRow {
        queue: queue.clone(),
        blocked: Blocked::All,
        rows,
        failing_since_us: None,
        stopped_us: 0,
        open_until_us: None,
    }
}

/// Everything that says something from outside, stored and read back.
#[expect(clippy::too_many_lines, reason = "one test of one thing, step by step")]
async fn round_trip(url: &Secret) {
    let mut store = StateStore::open(url, SCHEMA, "p").await.unwrap();
    store.take_lease(ODD).await.unwrap();
    let long = "カ".repeat(ID_MAX / 3);
    let with = |text: &str| format!("{text}{ODD}\0");
    let mut attempt = tried(1);
    attempt.detail = with("status ");
    attempt.history[0].error = with("answered ");
    for (n, id) in [ODD, long.as_str()].into_iter().enumerate() {
        let (first, second) =
            (of_account(0x200 + 16 * n as u64, id), of_account(0x204 + 16 * n as u64, id));
        let defer = defer_to(&first, id, attempt.clone());
        let queue = defer.id.queue.clone();
        let letter =
            DeadLetter { detail: with(""), history: attempt.history.clone(), ..dead(&second, id) };
        let retimed = vec![(defer.id.clone(), Tried { attempts: 2, ..attempt.clone() })];
        let stored = PersistBatch {
            deferred: vec![defer],
            dead_letters: vec![letter],
            retimed,
            backlog: vec![backlog(&queue, 1)],
            disabled: vec![DisableEndpoint { endpoint: EndpointId::new(id), reason: with("") }],
            notices: vec![Notice {
                kind: NoticeKind::EndpointDisabled,
                endpoint: EndpointId::new(id),
                account: Some(AccountId::new(id)),
                detail: with(""),
                count: 1,
            }],
            ..batch(0x100)
        };
        store.persist(&stored).await.unwrap();
        store.persist(&stored).await.expect("twice");

        let page = Refill { queue: queue.clone(), from: None, rows: 10, bytes: 1 << 20 };
        let pages = store.refill(&[page]).await.unwrap();
        assert_eq!(pages[0].rows.len(), 1);
        assert_eq!(pages[0].rows[0].event.account, AccountId::new(id));
        let told = with("").replace('\0', "\u{fffd}");
        let filter = DeadLetterFilter {
            account: Some(id.to_owned()),
            endpoint: Some(id.to_owned()),
            ..DeadLetterFilter::default()
        };
        let letters = store.dead_letters(&filter, 0, 10).await.unwrap();
        assert_eq!(letters.len(), 1);
        assert_eq!((letters[0].endpoint.as_deref(), &letters[0].detail), (Some(id), &told));
        assert_eq!(letters[0].history[0].error, format!("answered {told}"));
        let filter = DeferredFilter { endpoint: Some(id.to_owned()), ..DeferredFilter::default() };
        let deferred = store.deferred(&filter, &DeferredCursor::default(), 10).await.unwrap();
        assert_eq!(
            (deferred.len(), deferred[0].account.as_str(), deferred[0].attempts),
            (1, id, 2)
        );
        let standings = store.standings(Some(&[id.to_owned()]), "", 10).await.unwrap();
        assert_eq!((standings.len(), standings[0].reason.as_deref()), (1, Some(told.as_str())));
        let notice = store.next_notice().await.unwrap().unwrap();
        assert_eq!((notice.endpoint.as_str(), notice.account.as_deref()), (id, Some(id)));
        store.end_notice(&notice).await.unwrap();
        store.store_halt(&told).await.unwrap();
        assert_eq!(store.overview().await.unwrap().halt_reason, Some(told));

        // Suspended, and its rows given up.
        let gap = GapChange {
            queue: queue.clone(),
            opens: Some(with("full: ")),
            skipped: 3,
            span: None,
            growing: true,
        };
        let purges = vec![walhook_core::persist::Purge { queue: queue.clone(), rows: 10 }];
        let suspended = PersistBatch {
            gaps: vec![gap],
            purges,
            enabled: vec![EndpointId::new(id)],
            paused: vec![PauseEndpoint {
                endpoint: EndpointId::new(id),
                reason: with(""),
                since_us: 1,
            }],
            ..batch(0x100)
        };
        let purged = store.persist(&suspended).await.unwrap().purged;
        assert_eq!((purged[0].rows, purged[0].all), (1, true));
        assert!(store.gaps(true).await.unwrap().iter().any(|g| g.account.as_deref() == Some(id)));
        let ask = Ask::RetryDeadLetters(DeadLetterFilter {
            account: Some(id.to_owned()),
            ..DeadLetterFilter::default()
        });
        let job = store.create_job(&ask).await.unwrap().unwrap().id;
        assert_eq!(store.next_job_beside(&[], true).await.unwrap().unwrap().ask, ask);
        store.finish_job(job, Some(&with(""))).await.unwrap();

        let recovery = store.take_lease("next").await.unwrap();
        assert!(recovery.start.backlog.iter().any(|row| row.queue == queue));
        assert!(recovery.start.paused.iter().any(|paused| &*paused.endpoint == id));
        assert!(recovery.start.suspended.iter().any(|gap| gap.queue == queue));
    }
}

#[tokio::test]
async fn state_keeps_every_text_whatever_the_encoding_of_its_database() {
    let fixture = Fixture::start().await;
    round_trip(&fixture.url).await;
    for encoding in ["LATIN1", "WIN1252", "EUC_JP", "SQL_ASCII", "KOI8R"] {
        let name = encoding.to_lowercase();
        let create =
            format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        fixture.admin.batch_execute(&create).await.unwrap();
        let url = Secret::new(fixture.cluster.url(&name));
        let admin = Connection::open(&url, "test").await.unwrap();
        set_up(&admin, &schema_sql(SCHEMA), "p").await;
        round_trip(&url).await;
    }
}

/// What stands in the tables after a batch in which one row in ten is refused.
#[tokio::test]
async fn row_that_the_server_refuses_is_stored_by_its_position_and_all_others_as_they_are() {
    let fixture = Fixture::start().await;
    let s = quote_ident(SCHEMA);
    let constraints = format!(
        "ALTER TABLE {s}.deferred ADD CHECK (endpoint <> 'bad' AND detail NOT LIKE '%odd%');
         ALTER TABLE {s}.dead_letters ADD CHECK (endpoint <> 'bad' AND detail NOT LIKE '%odd%')"
    );
    fixture.admin.batch_execute(&constraints).await.unwrap();
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let long = "y".repeat(3_000);
    let name = |n: u64| match n % 40 {
        7 => "bad",
        // An index entry that is too large.
        19 => long.as_str(),
        _ => "7",
    };
    let odd = |n: u64| if n % 40 == 31 { "odd" } else { "status 500" };
    let deferred = (0..200).map(|n| {
        let event = event(0x1000 + 2 * n, "1");
        // Not compressed, so that it does not fit.
        let name = if name(n) == long { noise() } else { name(n).to_owned() };
        defer_to(&event, &name, Tried { detail: odd(n).into(), ..tried(1) })
    });
    let dead_letters = (0..200).map(|n| {
        let event = event(0x2000 + 2 * n, "1");
        let name = if name(n) == long { noise() } else { name(n).to_owned() };
        DeadLetter { detail: odd(n).into(), ..dead(&event, &name) }
    });
    let stored = PersistBatch {
        deferred: deferred.collect(),
        dead_letters: dead_letters.collect(),
        ..batch(0x180)
    };
    for _ in 0..2 {
        store.persist(&stored).await.unwrap();
        assert_eq!(store.frontier().await.unwrap(), Lsn(0x180));
        assert_eq!(fixture.count("deferred").await, 190);
        assert_eq!(fixture.count("dead_letters").await, 210);
        let refused = format!(
            "dead_letters d JOIN {s}.bodies b USING (pipeline, event_id)
             WHERE endpoint = '' AND b.account = '' AND reason = 'unroutable'
               AND detail ~ 'SQLSTATE (23514|54000)' AND row = '\"data\":null'"
        );
        assert_eq!(fixture.count(&refused).await, 20);
        assert_eq!(fixture.count("deferred WHERE detail ~ 'SQLSTATE 23514'").await, 5);
    }
}

/// Too long for an index, and what compression cannot shorten.
fn noise() -> String {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand::rngs::SmallRng::seed_from_u64(7);
    (0..5_000).map(|_| char::from(rng.random_range(b'!'..=b'~'))).collect()
}

const ID_MAX: usize = walhook_core::event::ID_MAX_BYTES;
