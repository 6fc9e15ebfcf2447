//! The model of the state tables against the real ones: the same batches, table by table.

#![expect(clippy::unwrap_used, reason = "a test fails with what went wrong")]

use std::collections::{BTreeMap, BTreeSet};

use walhook_core::endpoint::Secret;
use walhook_core::event::{Event, rfc3339};
use walhook_core::id::JobId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{BacklogRow, Blocked, EventKey, PersistBatch};
use walhook_core::position::Position;
use walhook_core::settled;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_simulator::state::{GapKind, Job, State, Stopped};
use walhook_simulator::{Fault, Options, Wishes, run};
use walhook_state::{StateStore, replay_column, schema_sql};
use walhook_testkit::cluster::Cluster;
use walhook_testkit::extent::is_long;

const FIRST: Lsn = Lsn(0x0100_0000);

/// Table → its rows as text, in any order.
type Tables = BTreeMap<&'static str, BTreeSet<String>>;

fn time(us: Option<i64>) -> String {
    us.map_or("-".to_owned(), |us| us.to_string())
}

fn place(key: &EventKey) -> String {
    let Position::Wal(at) = key.position;
    format!("{}|{}|{}|{}|{}", at.commit_lsn, at.change_lsn, at.relation, at.n, key.event_type)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keys(keys: &[u64]) -> String {
    let keys: Vec<String> = keys.iter().map(|key| key.cast_signed().to_string()).collect();
    format!("{{{}}}", keys.join(","))
}

fn status(status: Option<u16>) -> String {
    status.map_or("-".to_owned(), |status| status.to_string())
}

fn history(history: &[walhook_core::persist::AttemptRecord]) -> String {
    let of = |attempt: &walhook_core::persist::AttemptRecord| {
        format!("{} {}", rfc3339(attempt.at_us), status(attempt.status))
    };
    history.iter().map(of).collect::<Vec<_>>().join(",")
}

fn body(event: &Event) -> String {
    format!(
        "{}|{}|{}|{}|{}|{}|{}|{}",
        event.id,
        event.account,
        event.operation.as_str(),
        event.commit_time_us,
        place(&EventKey::of(event)),
        keys(&event.keys),
        hex(&event.row),
        "",
    )
}

fn backlog(row: &BacklogRow) -> String {
    let blocked = match &row.blocked {
        Blocked::All => "-".to_owned(),
        Blocked::Keys(of) => keys(of),
    };
    format!(
        "{}|{}|{blocked}|{}|{}|{}|{}",
        row.queue.endpoint,
        row.queue.account,
        row.rows,
        time(row.failing_since_us),
        row.stopped_us,
        time(row.open_until_us)
    )
}

/// What the model's tables hold.
fn tables_of(state: &State) -> Tables {
    let mut tables = Tables::new();
    let mut put = |table, row: String| _ = tables.entry(table).or_default().insert(row);
    put_rows(state, &mut put);
    put_letters(state, &mut put);
    put_unrouted(state, &mut put);
    put_endpoints(state, &mut put);
    tables
}

fn put_rows(state: &State, put: &mut impl FnMut(&'static str, String)) {
    put("checkpoint", format!("{}|{}", state.frontier, state.epoch));
    for (last, ranges) in &state.settled {
        put("settled", format!("{last}|{}", hex(&settled::encode(ranges))));
    }
    for event in state.bodies().values() {
        put("bodies", body(event));
    }
    for (queue, rows) in &state.deferred {
        for (key, row) in rows {
            let tried = &row.tried;
            put(
                "deferred",
                format!(
                    "{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}|{}",
                    queue.endpoint,
                    queue.account,
                    place(&key.event),
                    replay_column::of(key.replay),
                    row.event.id,
                    row.reason.as_str(),
                    tried.attempts,
                    time(tried.first_attempt_us),
                    time(tried.due_us),
                    status(tried.last_status),
                    tried.detail,
                    history(&tried.history)
                ),
            );
        }
    }
    for row in state.backlog.values() {
        put("backlog", backlog(row));
    }
}

fn put_letters(state: &State, put: &mut impl FnMut(&'static str, String)) {
    for ((event, endpoint, replay), letter) in &state.letters {
        let job = letter.last_job.map_or("-".to_owned(), |job| job.to_string());
        put(
            "dead_letters",
            format!(
                "{}|{event}|{endpoint}|{}|{}|{}|{}|{}|{}|{job}|{}",
                letter.id,
                replay_column::of(*replay),
                letter.event.account,
                letter.reason.as_str(),
                letter.detail,
                letter.attempts,
                status(letter.last_status),
                history(&letter.history)
            ),
        );
    }
    for (queue, letters) in state.letter_counts.iter().filter(|(_, letters)| **letters > 0) {
        put("dead_letter_counts", format!("{}|{}|{letters}", queue.endpoint, queue.account));
    }
    for gap in &state.gaps {
        let (letters, unrouted) = (gap.kind == GapKind::Letters, gap.kind == GapKind::Unrouted);
        put(
            "gaps",
            format!(
                "{}|{}|{}|{}|{}|{}|{}|{letters}|{unrouted}",
                gap.queue.endpoint,
                gap.queue.account,
                gap.from,
                gap.to,
                gap.removed,
                gap.skipped,
                gap.growing
            ),
        );
    }
}

fn put_unrouted(state: &State, put: &mut impl FnMut(&'static str, String)) {
    for (event, routed_to) in state.unrouted.values().flat_map(BTreeMap::values) {
        put("unrouted", format!("{}{}", body(event), routed_to.as_deref().unwrap_or("-")));
    }
    for (account, row) in &state.unrouted_accounts {
        let settled = if row.settled.is_empty() {
            "-".to_owned()
        } else {
            hex(&settled::encode(&row.settled))
        };
        put("unrouted_accounts", format!("{account}|{}|{settled}", row.rows));
    }
    for (endpoint, at) in &state.joined {
        put("unrouted_joined", format!("{endpoint}|{at}"));
    }
    for xid in &state.unseen {
        put("unseen", xid.to_string());
    }
}

fn put_endpoints(state: &State, put: &mut impl FnMut(&'static str, String)) {
    for (endpoint, stopped) in &state.stopped {
        let row = match stopped {
            Stopped::Disabled(reason) => format!("{endpoint}|disabled|{reason}|-"),
            Stopped::Paused(reason, since) => format!("{endpoint}|paused|{reason}|{since}"),
        };
        put("endpoint_state", row);
    }
    for error in state.errors.values() {
        let (queue, since, last) = (&error.queue, error.since_us, error.last_us);
        let (failed, text) = (error.failed, &error.error);
        put(
            "endpoint_errors",
            format!("{}|{}|{since}|{failed}|{last}|{text}", queue.endpoint, queue.account),
        );
    }
    for ((endpoint, kind), count) in &state.notices {
        put("notices", format!("{endpoint}|{}|{count}", kind.as_str()));
    }
    for (id, job) in &state.jobs {
        let Job { finished, done, failed, counts, late } = job;
        put(
            "jobs",
            format!(
                "{id}|{finished}|{}|{}|{}|{}|{}|{}|{}|{}|{}",
                done + counts.done,
                failed + counts.failed,
                counts.deferred,
                counts.dropped,
                counts.in_gaps,
                late.done,
                late.failed,
                late.dropped,
                late.in_gaps
            ),
        );
    }
}

/// For each table the query whose rows read as the model's.
const QUERIES: [(&str, &str); 17] = [
    (
        "checkpoint",
        "SELECT concat_ws('|', frontier, (SELECT epoch FROM s.lease)) FROM s.checkpoint",
    ),
    ("settled", "SELECT concat_ws('|', last_commit_lsn, encode(ranges, 'hex')) FROM s.settled"),
    (
        "bodies",
        "SELECT concat_ws('|', event_id, account, operation, us(committed_at), commit_lsn, change_lsn, \
         relation, n, event_type, keys, encode(row, 'hex'), '') FROM s.bodies",
    ),
    (
        "deferred",
        "SELECT concat_ws('|', endpoint, account, commit_lsn, change_lsn, relation, n, event_type, \
         replay_id, event_id, reason, attempts, coalesce(first_attempt_us::text, '-'), \
         us(next_attempt_at), coalesce(last_status::text, '-'), detail, past(history)) FROM s.deferred",
    ),
    (
        "backlog",
        "SELECT concat_ws('|', endpoint, account, coalesce(blocked::text, '-'), deferred, \
         us(failing_since), stopped_us, us(breaker_open_until)) FROM s.backlog",
    ),
    (
        "dead_letters",
        "SELECT concat_ws('|', id, event_id, endpoint, replay_id, account, reason, detail, attempts, \
         coalesce(last_status::text, '-'), coalesce(last_job::text, '-'), past(history)) \
         FROM s.dead_letters",
    ),
    (
        "dead_letter_counts",
        "SELECT concat_ws('|', endpoint, account, letters) FROM s.dead_letter_counts WHERE letters > 0",
    ),
    (
        "gaps",
        "SELECT concat_ws('|', coalesce(endpoint, ''), coalesce(account, ''), from_lsn, to_lsn, removed, \
         skipped, growing::text, dead_letters::text, unrouted::text) FROM s.gaps",
    ),
    (
        "unrouted",
        "SELECT concat_ws('|', event_id, account, operation, us(committed_at), commit_lsn, change_lsn, \
         relation, n, event_type, keys, encode(row, 'hex'), coalesce(routed_to, '-')) FROM s.unrouted",
    ),
    (
        "unrouted_accounts",
        "SELECT concat_ws('|', account, rows, coalesce(encode(settled, 'hex'), '-')) \
         FROM s.unrouted_accounts",
    ),
    ("unrouted_joined", "SELECT concat_ws('|', endpoint, joined_lsn) FROM s.unrouted_joined"),
    ("unseen", "SELECT xid::text FROM s.unseen"),
    (
        "endpoint_state",
        "SELECT concat_ws('|', endpoint, kind, reason, \
         CASE WHEN kind = 'paused' THEN us(disabled_at) ELSE '-' END) FROM s.endpoint_state",
    ),
    (
        "endpoint_errors",
        "SELECT concat_ws('|', endpoint, account, us(failing_since), failed, us(last_at), error) \
         FROM s.endpoint_errors",
    ),
    ("notices", "SELECT concat_ws('|', endpoint, type, count) FROM s.notices"),
    (
        "jobs",
        "SELECT concat_ws('|', id, (finished_at IS NOT NULL)::text, done, failed, deferred, dropped, \
         in_gaps, late_done, late_failed, late_dropped, late_in_gaps) FROM s.jobs",
    ),
    ("meta", "SELECT 'x' WHERE false"),
];

/// What the real tables hold.
async fn of_database(admin: &Connection) -> Tables {
    let mut tables = Tables::new();
    for (table, sql) in QUERIES {
        let rows = admin.query(sql, &[]).await.unwrap();
        let rows: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        if !rows.is_empty() {
            tables.insert(table, rows);
        }
    }
    tables
}

/// Tables whose rows depend on whether deliveries stand in pages, until these are taken apart.
const BY_FORM: [&str; 2] = ["deferred", "bodies"];

fn compare(at: &str, model: &Tables, real: &Tables, is_compared: impl Fn(&str) -> bool) {
    for (table, _) in QUERIES.into_iter().filter(|(table, _)| is_compared(table)) {
        let nothing = BTreeSet::new();
        let of_model = model.get(table).unwrap_or(&nothing);
        let of_real = real.get(table).unwrap_or(&nothing);
        let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| -> Vec<String> {
            a.difference(b).take(3).cloned().collect()
        };
        assert!(
            of_model == of_real,
            "{at}: the table {table} differs\n  only in the model: {:#?}\n  only in PostgreSQL: {:#?}",
            only(of_model, of_real),
            only(of_real, of_model)
        );
    }
}

/// Jobs that a batch counts in.
fn jobs_of(batch: &PersistBatch) -> BTreeSet<JobId> {
    let done = batch.jobs_done.iter().map(|done| done.job);
    let retried = batch.retried.iter().map(|retried| retried.job);
    let replayed = batch.replayed.iter().map(|(replay, _)| JobId::from(*replay));
    done.chain(retried).chain(replayed).collect()
}

const HELPERS: &str = "
    CREATE FUNCTION us(at timestamptz) RETURNS text LANGUAGE sql AS
        $$ SELECT coalesce((extract(epoch FROM at) * 1000000)::bigint::text, '-') $$;
    CREATE FUNCTION past(history jsonb) RETURNS text LANGUAGE sql AS
        $$ SELECT coalesce(string_agg(concat_ws(' ', a->>'at', coalesce(a->>'status', '-')), ','), '')
           FROM jsonb_array_elements(history) a $$;";

/// Stores what a simulation stored, in tables of that version. Returns how many batches these were, and how
/// many pages there were when most of them stood there.
async fn apply(seed: u64, version: i32, admin: &Connection, cluster: &Cluster) -> (usize, i64) {
    // What operators change in the tables by themselves is no batch.
    let without = [Fault::Hurry, Fault::Discard, Fault::ReplayCancelled, Fault::Halt];
    let options = Options {
        transactions: 500,
        accounts: 20,
        without: without.into_iter().collect(),
        plant: None,
    };
    let report = run(seed, &options, &Wishes { batches: true, ..Wishes::default() });
    let batches = report.unwrap_or_else(|failure| panic!("seed {seed}: {failure:?}")).batches;
    let set_up = format!(
        "DROP SCHEMA IF EXISTS s CASCADE; {};
         INSERT INTO s.meta (pipeline, schema_version, system_identifier, timeline, host, database)
             VALUES ('p', {version}, 7, 1, 'db', 'app');
         INSERT INTO s.lease (pipeline, epoch) VALUES ('p', 0);
         INSERT INTO s.checkpoint (pipeline, frontier) VALUES ('p', '{FIRST}');",
        schema_sql("s")
    );
    admin.batch_execute(&set_up).await.unwrap();
    let url = Secret::new(cluster.url("postgres"));
    let mut store = StateStore::open(&url, "s", "p").await.unwrap();
    let mut model = State::set_up(FIRST);
    let mut most_pages = 0;
    for (number, (epoch, batch)) in batches.iter().enumerate() {
        while model.epoch < *epoch {
            model.take_lease();
            store.take_lease("simulated").await.unwrap();
        }
        for job in jobs_of(batch) {
            if model.jobs.contains_key(&job) {
                continue;
            }
            model.jobs.insert(job, Job::default());
            let sql = format!(
                "INSERT INTO s.jobs (id, pipeline, kind, args) OVERRIDING SYSTEM VALUE
                 VALUES ({job}, 'p', 'simulated', '{{}}')"
            );
            admin.batch_execute(&sql).await.unwrap();
        }
        let of_model = model.persist(*epoch, batch).unwrap();
        let of_store = store.persist(batch).await.unwrap();
        assert_eq!(of_model, of_store, "seed {seed}, version {version}, batch {number}");
        if number % 25 == 0 || number + 1 == batches.len() {
            let at = format!("seed {seed}, version {version}, batch {number} of {}", batches.len());
            let pages = admin.query_one("SELECT count(*) FROM s.pages", &[]).await.unwrap();
            most_pages = most_pages.max(pages.get(0));
            let is_compared = |table: &str| version == 1 || !BY_FORM.contains(&table);
            compare(&at, &tables_of(&model), &of_database(admin).await, is_compared);
        }
    }
    store.lower_version(1).await.unwrap();
    let at = format!("seed {seed}, version {version}, at the end");
    compare(&at, &tables_of(&model), &of_database(admin).await, |table| BY_FORM.contains(&table));
    (batches.len(), most_pages)
}

#[tokio::test]
async fn state_model_equals_postgresql() {
    let cluster = Cluster::start_copied(&std::env::temp_dir(), &[]).await.unwrap();
    let url = Secret::new(cluster.url("postgres"));
    let admin = Connection::open_with_path(&url, "test", SERVER_SEARCH_PATH).await.unwrap();
    admin.batch_execute(HELPERS).await.unwrap();
    let (mut batches, mut pages) = (0, 0);
    let seeds = if is_long() { vec![0, 7, 8] } else { vec![7] };
    for (seed, version) in seeds.into_iter().flat_map(|seed| [(seed, 1), (seed, 2)]) {
        let (stored, most) = apply(seed, version, &admin, &cluster).await;
        batches += stored;
        pages += most;
    }
    println!("{batches} batches, {pages} pages");
    assert!(batches > 200, "only {batches} batches: nothing was tried");
}
