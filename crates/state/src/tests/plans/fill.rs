//! Tables of any size, and statistics that say something else.

use walhook_core::settled;
use walhook_postgres::ident::{quote_ident, quote_literal};

use super::super::super::fixture::{Fixture, SCHEMA, event};
use crate::{deliveries, page};

/// Deliveries of a page.
const PAGE: u64 = 10;

/// Rows `from..to` of every table that grows, `i` being the number of one.
pub(super) async fn fill(fixture: &Fixture, from: u64, to: u64) {
    let s = quote_ident(SCHEMA);
    // What is read at every start is never so much.
    let (few_from, few_to) = (from.min(10_000), to.min(10_000));
    let few = format!("generate_series({few_from}, {few_to} - 1) i");
    let id = "'evt_' || lpad(i::text, 26, '0')";
    let lsn = "('0/0'::pg_lsn + i)";
    let rows = format!("generate_series({from}, {to} - 1) i");
    let ranges: String = settled::encode(&[]).iter().map(|byte| format!("\\{byte:03o}")).collect();
    let like = event(0x100, "1");
    let data = page::encode((0..PAGE).map(|_| &*like));
    let data: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = deliveries::tests::encoded(1);
    let line: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
    let sql = format!(
        "INSERT INTO {s}.bodies SELECT 'p', {id}, 'a.b', '1', 'insert', now(), {lsn}, {lsn}, 1, 0, '{{}}',
             '\"data\":1' FROM {rows} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.deferred (pipeline, endpoint, account, commit_lsn, change_lsn, relation, n,
             event_type, event_id, reason, attempts, detail, next_attempt_at)
             SELECT 'p', '7', '1', {lsn}, {lsn}, 1, 0, 'a.b', {id}, 'failed', 1, '', now() FROM {rows} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.pages (pipeline, endpoint, account, commit_lsn, change_lsn, relation, n, event_type,
             first_commit_lsn, first_change_lsn, first_relation, first_n, first_event_type, reason,
             deliveries, bytes, event_ids, commit_lsns, change_lsns, relations, ns, event_types,
             committed_ats, data)
             SELECT 'p', '8', '1', max({lsn}), max({lsn}), 1, 0, 'a.b', min({lsn}), min({lsn}), 1, 0, 'a.b',
                 'overflow', count(*), 16 * count(*), array_agg({id} ORDER BY i),
                 array_agg({lsn} ORDER BY i), array_agg({lsn} ORDER BY i), array_agg(1::oid),
                 array_agg(0::bigint), array_agg('a.b'::text), array_agg(now()), decode('{data}', 'hex')
             FROM {rows} GROUP BY i / {PAGE} HAVING count(*) = {PAGE} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.page_done SELECT 'p', page, '{{1}}' FROM {s}.pages WHERE page % 2 = 0 ON CONFLICT DO NOTHING;
         INSERT INTO {s}.dead_letters (pipeline, event_id, endpoint, reason, detail, attempts, account, bytes)
             SELECT 'p', {id}, '7', 'exhausted', '', 1, '1', 500 FROM {rows} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.dead_letter_counts SELECT 'p', 'e' || i, '1', 1, 500 FROM {rows} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.backlog (pipeline, endpoint, account, deferred, stopped_us)
             SELECT 'p', 'e' || i, '1', 1, 0 FROM {few} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.gaps (pipeline, from_lsn, to_lsn, reason, endpoint, account, dead_letters, growing,
                               closed_at)
             SELECT 'p', '0/1', '0/2', 'x', 'g' || i, '1', i % 3 = 0, i % 3 = 1,
                    CASE WHEN i % 3 = 2 THEN now() END FROM {few} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.jobs (pipeline, kind, args, finished_at)
             SELECT 'p', 'deferred.retry', '{{}}', now() FROM {rows} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.notices (pipeline, endpoint, type, detail, count, first_at, last_at, due_at)
             SELECT 'p', 'e' || i, 'x', '', 1, now(), now(), now() + interval '1 hour' FROM {rows} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.unrouted SELECT 'p', '1', {lsn}, {lsn}, 1, 0, 'a.b', {id}, 'insert', now(), '{{}}',
             '\"data\":1' FROM {rows} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.unrouted_accounts SELECT 'p', 'a' || i, 1 FROM {few} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.unrouted_joined SELECT 'p', 'e' || i, '0/1' FROM {few} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.unseen SELECT 'p', i FROM {few} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.endpoint_state SELECT 'p', 'e' || i, 'x' FROM {few} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.endpoint_errors SELECT 'p', 'e' || i, '1', now(), 1, now(), 'x' FROM {few} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.settled (pipeline, last_commit_lsn, ranges)
             SELECT 'p', 'F/0'::pg_lsn + i, '{ranges}' FROM {few} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.checkpoint_history
             SELECT 'p', 'epoch'::timestamptz + i * interval '1 minute', {lsn}
             FROM {few} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.delivery_log
             SELECT 'p', 0, i, 1, 1, i, i, i, i, CASE WHEN i % 2 = 0 THEN '\\x0000000000000000'::bytea END,
                 decode('{line}', 'hex') FROM {rows} ON CONFLICT DO NOTHING;
         INSERT INTO {s}.delivery_erasures (pipeline, account, erased_by) SELECT 'p', 'a' || i, 'x' FROM {few};
         INSERT INTO {s}.replay_discards SELECT 'p', 1000000 + i % 2, {id}, '7' FROM {rows} ON CONFLICT DO NOTHING;"
    );
    fixture.admin.batch_execute(&sql).await.unwrap();
}

/// What the statistics say of the state tables.
#[derive(Debug, Clone, Copy)]
pub(super) enum Statistics {
    /// What was true of other sizes.
    Stale,
    /// Nothing: as in a database that has just been restored.
    None,
    /// So many rows, on the pages that are there.
    Rows(i64),
    /// The truth.
    True,
}

pub(super) async fn set_statistics(fixture: &Fixture, statistics: Statistics) {
    let schema = quote_literal(SCHEMA);
    let of = format!(
        "(SELECT oid FROM pg_class WHERE relnamespace = \
         (SELECT oid FROM pg_namespace WHERE nspname = {schema}))"
    );
    let forget = format!("DELETE FROM pg_statistic WHERE starelid IN {of}");
    let (rows, pages) = match statistics {
        Statistics::Stale => return,
        Statistics::True => {
            return fixture.admin.batch_execute("ANALYZE").await.unwrap();
        }
        Statistics::None => (-1, "0"),
        Statistics::Rows(rows) => (rows, "greatest(pg_relation_size(oid) / 8192, 1)"),
    };
    let set = format!(
        "SET allow_system_table_mods = on; {forget};
         UPDATE pg_class SET reltuples = {rows}, relpages = {pages} WHERE oid IN {of} AND relkind IN ('r', 'i')"
    );
    fixture.admin.batch_execute(&set).await.unwrap();
}
