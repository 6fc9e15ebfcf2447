-- walhook's state, in the schema that `state.schema` names ({schema} below).
-- Every key begins with `pipeline` (the slot's name) and, where a leader writes, `partition` ({partition} today).
-- Applied by `walhook setup`, idempotent: only CREATE ... IF NOT EXISTS and ADD COLUMN IF NOT EXISTS
-- (for tables that an earlier version made), never a rewrite. Views, and an index that was too narrow,
-- are replaced.

CREATE SCHEMA IF NOT EXISTS {schema};

-- Who we are talking to. Another cluster, timeline or database than the stored one halts.
CREATE TABLE IF NOT EXISTS {schema}.meta (
    pipeline           pg_catalog.text PRIMARY KEY,
    schema_version     integer NOT NULL,
    system_identifier  numeric(20) NOT NULL,
    timeline           integer NOT NULL,
    host               pg_catalog.text NOT NULL,
    database           pg_catalog.text NOT NULL,
    created_at         pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now()
);

-- The fence: every state transaction takes FOR SHARE on its row, a new leader increments the epoch.
CREATE TABLE IF NOT EXISTS {schema}.lease (
    pipeline   pg_catalog.text NOT NULL,
    partition  integer NOT NULL DEFAULT {partition},
    epoch      bigint NOT NULL,
    holder     pg_catalog.text,
    taken_at   pg_catalog.timestamptz,
    PRIMARY KEY (pipeline, partition)
);

-- What fails now, as the leader says, for `walhook status`.
CREATE TABLE IF NOT EXISTS {schema}.troubles (
    pipeline   pg_catalog.text NOT NULL,
    partition  integer NOT NULL DEFAULT {partition},
    part       pg_catalog.text NOT NULL,
    says       pg_catalog.text NOT NULL,
    since      pg_catalog.text NOT NULL,
    error      pg_catalog.text NOT NULL,
    fix        pg_catalog.text NOT NULL,
    PRIMARY KEY (pipeline, partition, part)
);

-- Everything before `frontier` is settled.
CREATE TABLE IF NOT EXISTS {schema}.checkpoint (
    pipeline     pg_catalog.text NOT NULL,
    partition    integer NOT NULL DEFAULT {partition},
    frontier     pg_catalog.pg_lsn NOT NULL,
    updated_at   pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    halt_reason  pg_catalog.text,
    halted_at    pg_catalog.timestamptz,
    PRIMARY KEY (pipeline, partition)
) WITH (fillfactor = 50);

-- Deliveries settled ahead of the frontier: appended with each persisted batch, removed when the
-- frontier has passed `last_commit_lsn`. `ranges` is the encoding of walhook_core::settled.
CREATE TABLE IF NOT EXISTS {schema}.settled (
    pipeline         pg_catalog.text NOT NULL,
    partition        integer NOT NULL DEFAULT {partition},
    seq              bigint GENERATED ALWAYS AS IDENTITY,
    last_commit_lsn  pg_catalog.pg_lsn NOT NULL,
    ranges           pg_catalog.bytea NOT NULL,
    -- In this order, so that removing what the frontier has passed reads only that.
    PRIMARY KEY (pipeline, partition, last_commit_lsn, seq)
);

-- An event that left memory: once, however many of its deliveries did. The last deferred row or dead
-- letter of the event takes it along. `n` and `keys` are unsigned in the program; `keys` holds their
-- bits.
CREATE TABLE IF NOT EXISTS {schema}.bodies (
    pipeline      pg_catalog.text NOT NULL,
    event_id      pg_catalog.text NOT NULL,
    event_type    pg_catalog.text NOT NULL,
    account       pg_catalog.text NOT NULL,
    operation     pg_catalog.text NOT NULL,
    committed_at  pg_catalog.timestamptz NOT NULL,
    commit_lsn    pg_catalog.pg_lsn NOT NULL,
    change_lsn    pg_catalog.pg_lsn NOT NULL,
    relation      pg_catalog.oid NOT NULL,
    n             bigint NOT NULL,
    keys          bigint[] NOT NULL,
    row           pg_catalog.bytea NOT NULL,
    PRIMARY KEY (pipeline, event_id)
) WITH (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.1,
        toast.autovacuum_vacuum_threshold = 20000, toast.autovacuum_vacuum_scale_factor = 0.1);

-- Deliveries that left memory and will be tried again. The key is the delivery's place in its queue
-- (account and endpoint), so that to read a queue in order is a walk along the index. Text compares by
-- its bytes, as in the program. `first_attempt_us` is a time of the queue's own clock, which stands
-- still while it is stopped (`backlog.stopped_us`). `next_attempt_at` null: as soon as its turn comes.
CREATE TABLE IF NOT EXISTS {schema}.deferred (
    pipeline          pg_catalog.text NOT NULL,
    endpoint          pg_catalog.text NOT NULL,
    account           pg_catalog.text NOT NULL,
    commit_lsn        pg_catalog.pg_lsn NOT NULL,
    change_lsn        pg_catalog.pg_lsn NOT NULL,
    relation          pg_catalog.oid NOT NULL,
    n                 bigint NOT NULL,
    event_type        pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    replay_id         bigint NOT NULL DEFAULT 0,
    event_id          pg_catalog.text NOT NULL,
    reason            pg_catalog.text NOT NULL,
    attempts          integer NOT NULL,
    first_attempt_us  bigint,
    next_attempt_at   pg_catalog.timestamptz,
    last_status       integer,
    detail            pg_catalog.text NOT NULL,
    history           pg_catalog.jsonb,
    deferred_at       pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (pipeline, endpoint, account, commit_lsn, change_lsn, relation, n, event_type, replay_id),
    UNIQUE (pipeline, event_id, endpoint, replay_id)
) WITH (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.1);

-- The same in bulk: deliveries of one queue that were never tried, in the order of their places; those of
-- two pages of a queue do not overlap. The key's place is that of the last one. What lists show of each
-- stands in arrays, the rest of the events in `data` (crates/state/src/page.rs); `bytes` are those of their
-- bodies. Leaders write pages where `meta.schema_version` is 2.
CREATE TABLE IF NOT EXISTS {schema}.pages (
    pipeline          pg_catalog.text NOT NULL,
    endpoint          pg_catalog.text NOT NULL,
    account           pg_catalog.text NOT NULL,
    commit_lsn        pg_catalog.pg_lsn NOT NULL,
    change_lsn        pg_catalog.pg_lsn NOT NULL,
    relation          pg_catalog.oid NOT NULL,
    n                 bigint NOT NULL,
    event_type        pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    first_commit_lsn  pg_catalog.pg_lsn NOT NULL,
    first_change_lsn  pg_catalog.pg_lsn NOT NULL,
    first_relation    pg_catalog.oid NOT NULL,
    first_n           bigint NOT NULL,
    first_event_type  pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    page              bigint GENERATED ALWAYS AS IDENTITY,
    reason            pg_catalog.text NOT NULL,
    deferred_at       pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    deliveries        integer NOT NULL,
    bytes             integer NOT NULL,
    event_ids         pg_catalog.text[] NOT NULL,
    commit_lsns       pg_catalog.pg_lsn[] NOT NULL,
    change_lsns       pg_catalog.pg_lsn[] NOT NULL,
    relations         pg_catalog.oid[] NOT NULL,
    ns                bigint[] NOT NULL,
    event_types       pg_catalog.text[] NOT NULL,
    committed_ats     pg_catalog.timestamptz[] NOT NULL,
    data              pg_catalog.bytea NOT NULL,
    PRIMARY KEY (pipeline, endpoint, account, commit_lsn, change_lsn, relation, n, event_type)
) WITH (autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.1,
        toast.autovacuum_vacuum_threshold = 5000, toast.autovacuum_vacuum_scale_factor = 0.1);

-- It is compressed already.
ALTER TABLE {schema}.pages ALTER COLUMN data SET STORAGE EXTERNAL;

-- What has left a page: by the places in its arrays, from 1 on. With the last delivery both rows go.
CREATE TABLE IF NOT EXISTS {schema}.page_done (
    pipeline  pg_catalog.text NOT NULL,
    page      bigint NOT NULL,
    slots     smallint[] NOT NULL,
    PRIMARY KEY (pipeline, page)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.5);

-- What the next leader must know of a queue that has deferred rows: how many, and which of its further
-- deliveries join them: those that hold one of `blocked`, or all where that is null. The bits of `blocked`
-- are unsigned in the program.
CREATE TABLE IF NOT EXISTS {schema}.backlog (
    pipeline            pg_catalog.text NOT NULL,
    endpoint            pg_catalog.text NOT NULL,
    account             pg_catalog.text NOT NULL,
    blocked             bigint[],
    deferred            bigint NOT NULL,
    failing_since       pg_catalog.timestamptz,
    stopped_us          bigint NOT NULL,
    breaker_open_until  pg_catalog.timestamptz,
    PRIMARY KEY (pipeline, endpoint, account)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.5);

-- Deliveries that ended without success. `endpoint` is '' for an unroutable change. `last_job` is the
-- retry that failed last: it keeps a result that is stored twice from counting twice.
CREATE TABLE IF NOT EXISTS {schema}.dead_letters (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     pg_catalog.text NOT NULL,
    event_id     pg_catalog.text NOT NULL,
    endpoint     pg_catalog.text NOT NULL,
    replay_id    bigint NOT NULL DEFAULT 0,
    reason       pg_catalog.text NOT NULL,
    detail       pg_catalog.text NOT NULL,
    attempts     integer NOT NULL,
    last_status  integer,
    died_at      pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    tried_at     pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    last_job     bigint,
    UNIQUE (pipeline, event_id, endpoint, replay_id)
);

-- The last ten attempts, the oldest first: time, status, latency and error of each.
ALTER TABLE {schema}.dead_letters ADD COLUMN IF NOT EXISTS history pg_catalog.jsonb;

-- The account, and what the letter takes with its event's body, in bytes. Null in an earlier version's,
-- which counts for nobody.
ALTER TABLE {schema}.dead_letters ADD COLUMN IF NOT EXISTS account pg_catalog.text;
ALTER TABLE {schema}.dead_letters ADD COLUMN IF NOT EXISTS bytes bigint;

-- How many of them a queue has, and what they take: the sums over `dead_letters`. No row: none.
CREATE TABLE IF NOT EXISTS {schema}.dead_letter_counts (
    pipeline  pg_catalog.text NOT NULL,
    endpoint  pg_catalog.text NOT NULL,
    account   pg_catalog.text NOT NULL,
    letters   bigint NOT NULL,
    bytes     bigint NOT NULL,
    PRIMARY KEY (pipeline, endpoint, account)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.5);

-- To the letters of one queue. Without the pipeline, so that it is no way to a letter by its event.
CREATE INDEX IF NOT EXISTS dead_letters_of ON {schema}.dead_letters (endpoint, account);

-- For their retention. Likewise.
CREATE INDEX IF NOT EXISTS dead_letters_died ON {schema}.dead_letters (died_at);

-- Ranges of WAL whose changes were not delivered, and which the operator knows of.
CREATE TABLE IF NOT EXISTS {schema}.gaps (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     pg_catalog.text NOT NULL,
    from_lsn     pg_catalog.pg_lsn NOT NULL,
    to_lsn       pg_catalog.pg_lsn NOT NULL,
    reason       pg_catalog.text NOT NULL,
    recorded_at  pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    closed_at    pg_catalog.timestamptz
);

-- Of one endpoint, where it is not the whole stream that has the gap: both ends are then commit LSNs
-- of transactions in it. `removed` deliveries were taken out of `deferred`, `skipped` ones came later.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS endpoint pg_catalog.text;
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS account pg_catalog.text;
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS removed bigint NOT NULL DEFAULT 0;
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS skipped bigint NOT NULL DEFAULT 0;
-- While its endpoint is suspended a gap still grows.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS growing boolean NOT NULL DEFAULT false;

-- An earlier version's, which an endpoint that moved to another account could meet.
DROP INDEX IF EXISTS {schema}.gaps_growing;
CREATE UNIQUE INDEX IF NOT EXISTS gaps_growing_of_account
    ON {schema}.gaps (pipeline, endpoint, account) WHERE growing;

-- The commit LSN of the one transaction whose unreadable rest is given up, where that is the gap.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS left_out pg_catalog.pg_lsn;
-- What the operator said when closing it.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS note pg_catalog.text;

-- Of one table of the source, whose changes were not in the stream: a replay does not send them either.
-- `find_rows` is the query that finds the rows.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS source_table pg_catalog.text;
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS find_rows pg_catalog.text;

-- The last look at what the publication covers: where the WAL ended and the oldest open transaction
-- before it, what it saw (as JSON), and what is wrong with single tables. The next look
-- is compared with it, also after a restart.
CREATE TABLE IF NOT EXISTS {schema}.coverage (
    pipeline   pg_catalog.text NOT NULL,
    partition  integer NOT NULL DEFAULT {partition},
    lsn        pg_catalog.pg_lsn NOT NULL,
    xid        bigint NOT NULL,
    looked_at  timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    seen       pg_catalog.text NOT NULL,
    alarms     pg_catalog.text[] NOT NULL,
    PRIMARY KEY (pipeline, partition)
) WITH (fillfactor = 50);

-- A queue's dead letters beyond those that are rows: `removed` were rows, `skipped` never. `endpoint` is ''
-- for unroutable changes. The record grows until it is closed; then the next one begins. What counted
-- last keeps a batch that is stored twice from counting twice.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS dead_letters boolean NOT NULL DEFAULT false;
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS last_at pg_catalog.timestamptz;
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS counted_epoch bigint;
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS counted_step bigint;

CREATE UNIQUE INDEX IF NOT EXISTS gaps_of_dead_letters
    ON {schema}.gaps (pipeline, endpoint, account) WHERE dead_letters AND closed_at IS NULL;

-- Events that could not be routed, since their account's endpoints could not be looked up: deliveries
-- without an endpoint yet. The key is the event's place among its account's. Such a row holds its event
-- itself: a version that does not know of this table removes bodies that no deferred row needs. Endpoints
-- up to `routed_to`, in the order of the bytes of their ids, have theirs.
CREATE TABLE IF NOT EXISTS {schema}.unrouted (
    pipeline      pg_catalog.text NOT NULL,
    account       pg_catalog.text NOT NULL,
    commit_lsn    pg_catalog.pg_lsn NOT NULL,
    change_lsn    pg_catalog.pg_lsn NOT NULL,
    relation      pg_catalog.oid NOT NULL,
    n             bigint NOT NULL,
    event_type    pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
    event_id      pg_catalog.text NOT NULL,
    operation     pg_catalog.text NOT NULL,
    committed_at  pg_catalog.timestamptz NOT NULL,
    keys          bigint[] NOT NULL,
    row           pg_catalog.bytea NOT NULL,
    routed_to     pg_catalog.text,
    stored_at     pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (pipeline, account, commit_lsn, change_lsn, relation, n, event_type)
) WITH (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.1,
        toast.autovacuum_vacuum_threshold = 20000, toast.autovacuum_vacuum_scale_factor = 0.1);

-- What the next leader must know of an account that has such events: how many, and which of their
-- deliveries were settled before they came here (the encoding of walhook_core::settled; null: none).
CREATE TABLE IF NOT EXISTS {schema}.unrouted_accounts (
    pipeline  pg_catalog.text NOT NULL,
    account   pg_catalog.text NOT NULL,
    rows      bigint NOT NULL,
    settled   pg_catalog.bytea,
    PRIMARY KEY (pipeline, account)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.5);

-- Endpoints that joined while there are such events: one that commits before `joined_lsn` is not for it.
CREATE TABLE IF NOT EXISTS {schema}.unrouted_joined (
    pipeline    pg_catalog.text NOT NULL,
    endpoint    pg_catalog.text NOT NULL,
    joined_lsn  pg_catalog.pg_lsn NOT NULL,
    PRIMARY KEY (pipeline, endpoint)
) WITH (fillfactor = 50);

-- Transactions (by their 32-bit ids) that changed a watched table, that the frontier has passed, and that no
-- look-up is known to have seen.
CREATE TABLE IF NOT EXISTS {schema}.unseen (
    pipeline  pg_catalog.text NOT NULL,
    xid       bigint NOT NULL,
    PRIMARY KEY (pipeline, xid)
) WITH (fillfactor = 50);

-- Such events that were given up, of one account: `removed` were rows, and `endpoint` is ''. The record
-- grows until it is closed; then the next one begins.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS unrouted boolean NOT NULL DEFAULT false;

CREATE UNIQUE INDEX IF NOT EXISTS gaps_of_unrouted
    ON {schema}.gaps (pipeline, account) WHERE unrouted AND closed_at IS NULL;

-- What the command line asks of the running leader. `total` is how many it concerned when it was asked.
CREATE TABLE IF NOT EXISTS {schema}.jobs (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     pg_catalog.text NOT NULL,
    kind         pg_catalog.text NOT NULL,
    args         pg_catalog.jsonb NOT NULL,
    total        bigint,
    done         bigint NOT NULL DEFAULT 0,
    failed       bigint NOT NULL DEFAULT 0,
    created_at   pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    finished_at  pg_catalog.timestamptz,
    error        pg_catalog.text
);

-- Of a replay: everything before it was sent again.
ALTER TABLE {schema}.jobs ADD COLUMN IF NOT EXISTS position pg_catalog.pg_lsn;

-- Of a replay: how many of its deliveries were deferred under its id, dropped as their endpoint was removed,
-- and counted in gaps, beside `done` and `failed`: so each is in one of the five. What became of those that
-- were deferred: the rows that are gone, by how. The others wait.
ALTER TABLE {schema}.jobs ADD COLUMN IF NOT EXISTS deferred bigint NOT NULL DEFAULT 0;
ALTER TABLE {schema}.jobs ADD COLUMN IF NOT EXISTS dropped bigint NOT NULL DEFAULT 0;
ALTER TABLE {schema}.jobs ADD COLUMN IF NOT EXISTS in_gaps bigint NOT NULL DEFAULT 0;
ALTER TABLE {schema}.jobs ADD COLUMN IF NOT EXISTS late_done bigint NOT NULL DEFAULT 0;
ALTER TABLE {schema}.jobs ADD COLUMN IF NOT EXISTS late_failed bigint NOT NULL DEFAULT 0;
ALTER TABLE {schema}.jobs ADD COLUMN IF NOT EXISTS late_dropped bigint NOT NULL DEFAULT 0;
ALTER TABLE {schema}.jobs ADD COLUMN IF NOT EXISTS late_in_gaps bigint NOT NULL DEFAULT 0;

CREATE INDEX IF NOT EXISTS jobs_unfinished ON {schema}.jobs (pipeline, id) WHERE finished_at IS NULL;

-- To replays that an operator has ended: the leader looks for them all the time.
CREATE INDEX IF NOT EXISTS jobs_cancelled ON {schema}.jobs (pipeline, id)
    WHERE error OPERATOR(pg_catalog.=) 'cancelled';

-- Endpoints that are stopped, by walhook (`disabled`) or by an operator (`paused`), since
-- `disabled_at`. One that is suspended has a growing gap instead. A change of the endpoint's row switches a disabled one on again.
CREATE TABLE IF NOT EXISTS {schema}.endpoint_state (
    pipeline     pg_catalog.text NOT NULL,
    endpoint     pg_catalog.text NOT NULL,
    reason       pg_catalog.text NOT NULL,
    disabled_at  pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (pipeline, endpoint)
);

ALTER TABLE {schema}.endpoint_state ADD COLUMN IF NOT EXISTS kind pg_catalog.text NOT NULL DEFAULT 'disabled';

-- What somebody is to be told of, one row for each endpoint and type: what happens again before it is
-- sent adds to `count`. Sent, the row stays for a while with 0, so that the next one waits until `due_at`.
CREATE TABLE IF NOT EXISTS {schema}.notices (
    pipeline  pg_catalog.text NOT NULL,
    endpoint  pg_catalog.text NOT NULL,
    type      pg_catalog.text NOT NULL,
    account   pg_catalog.text,
    detail    pg_catalog.text NOT NULL,
    count     bigint NOT NULL,
    first_at  pg_catalog.timestamptz NOT NULL,
    last_at   pg_catalog.timestamptz NOT NULL,
    attempts  integer NOT NULL DEFAULT 0,
    due_at    pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (pipeline, endpoint, type)
) WITH (fillfactor = 50);

CREATE INDEX IF NOT EXISTS notices_due ON {schema}.notices (pipeline, due_at);

-- Endpoints that fail: since when, how often, when last and by what. Written when one begins to fail and once
-- a minute at most while it does; the row goes when the endpoint takes something again, or its account sends
-- nothing to it any more.
CREATE TABLE IF NOT EXISTS {schema}.endpoint_errors (
    pipeline       pg_catalog.text NOT NULL,
    endpoint       pg_catalog.text NOT NULL,
    account        pg_catalog.text NOT NULL,
    failing_since  pg_catalog.timestamptz NOT NULL,
    failed         bigint NOT NULL,
    last_at        pg_catalog.timestamptz NOT NULL,
    error          pg_catalog.text NOT NULL,
    PRIMARY KEY (pipeline, endpoint, account)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.5);

-- For people: every endpoint that has something in these tables.
CREATE OR REPLACE VIEW {schema}.endpoints AS
WITH behind AS (SELECT pipeline, endpoint, pg_catalog.string_agg(account, ', ') AS account,
                       pg_catalog.sum(deferred)::bigint AS deferred,
                       pg_catalog.min(failing_since) AS failing_since,
                       pg_catalog.max(breaker_open_until) AS breaker_open_until
                FROM {schema}.backlog GROUP BY 1, 2),
     dead AS (SELECT pipeline, endpoint, pg_catalog.sum(n)::bigint AS dead_letters
              FROM (SELECT pipeline, endpoint, pg_catalog.count(*) AS n
                    FROM {schema}.dead_letters GROUP BY 1, 2
                    UNION ALL
                    SELECT pipeline, endpoint, removed OPERATOR(pg_catalog.+) skipped
                    FROM {schema}.gaps WHERE dead_letters AND closed_at IS NULL) d
              WHERE endpoint OPERATOR(pg_catalog.<>) '' GROUP BY 1, 2),
     gap AS (SELECT pipeline, endpoint,
                    pg_catalog.sum(removed OPERATOR(pg_catalog.+) skipped)::bigint AS in_gaps,
                    pg_catalog.max(reason) FILTER (WHERE growing) AS suspended,
                    pg_catalog.min(recorded_at) FILTER (WHERE growing) AS suspended_at
             FROM {schema}.gaps
             WHERE endpoint IS NOT NULL AND NOT dead_letters AND NOT unrouted AND closed_at IS NULL
             GROUP BY 1, 2),
     bad AS (SELECT pipeline, endpoint, pg_catalog.string_agg(account, ', ') AS account,
                    pg_catalog.min(failing_since) AS failing_since,
                    pg_catalog.sum(failed)::bigint AS failed, pg_catalog.max(last_at) AS last_at,
                    (pg_catalog.array_agg(error ORDER BY last_at DESC))[1] AS error
             FROM {schema}.endpoint_errors GROUP BY 1, 2)
SELECT coalesce(coalesce(coalesce(coalesce(b.pipeline, s.pipeline), d.pipeline), g.pipeline),
                e.pipeline) AS pipeline,
       coalesce(coalesce(coalesce(coalesce(b.endpoint, s.endpoint), d.endpoint), g.endpoint),
                e.endpoint) AS endpoint,
       coalesce(b.account, e.account) AS account,
       CASE WHEN g.suspended IS NOT NULL THEN 'suspended'
            WHEN s.kind IS NOT NULL THEN s.kind
            WHEN b.breaker_open_until IS NOT NULL THEN 'breaker_open'
            WHEN coalesce(b.failing_since, e.failing_since) IS NOT NULL THEN 'failing'
            ELSE 'ok' END AS state,
       coalesce(g.suspended, s.reason) AS reason,
       coalesce(g.suspended_at, s.disabled_at, b.failing_since, e.failing_since) AS since,
       coalesce(b.deferred, 0) AS deferred, coalesce(d.dead_letters, 0) AS dead_letters,
       coalesce(g.in_gaps, 0) AS in_gaps, b.breaker_open_until,
       e.error AS last_error, e.last_at AS last_error_at, coalesce(e.failed, 0) AS failed
FROM behind b
     FULL JOIN {schema}.endpoint_state s
          ON s.pipeline OPERATOR(pg_catalog.=) b.pipeline
         AND s.endpoint OPERATOR(pg_catalog.=) b.endpoint
     FULL JOIN dead d
          ON d.pipeline OPERATOR(pg_catalog.=) coalesce(b.pipeline, s.pipeline)
         AND d.endpoint OPERATOR(pg_catalog.=) coalesce(b.endpoint, s.endpoint)
     FULL JOIN gap g
          ON g.pipeline OPERATOR(pg_catalog.=) coalesce(coalesce(b.pipeline, s.pipeline), d.pipeline)
         AND g.endpoint OPERATOR(pg_catalog.=) coalesce(coalesce(b.endpoint, s.endpoint), d.endpoint)
     FULL JOIN bad e
          ON e.pipeline OPERATOR(pg_catalog.=)
             coalesce(coalesce(coalesce(b.pipeline, s.pipeline), d.pipeline), g.pipeline)
         AND e.endpoint OPERATOR(pg_catalog.=)
             coalesce(coalesce(coalesce(b.endpoint, s.endpoint), d.endpoint), g.endpoint);

-- For people: every delivery that waits in a table. `endpoint` is '' for an event that could not be routed.
CREATE OR REPLACE VIEW {schema}.deliveries_pending AS
SELECT d.pipeline, d.endpoint, d.account, d.event_id, d.event_type, b.committed_at, d.reason,
       d.attempts, d.next_attempt_at, d.last_status, d.detail, d.deferred_at, d.replay_id
FROM {schema}.deferred d
     JOIN {schema}.bodies b ON b.pipeline OPERATOR(pg_catalog.=) d.pipeline
                           AND b.event_id OPERATOR(pg_catalog.=) d.event_id
UNION ALL
SELECT u.pipeline, '', u.account, u.event_id, u.event_type, u.committed_at, 'unrouted', 0, NULL, NULL, '',
       u.stored_at, 0
FROM {schema}.unrouted u
UNION ALL
SELECT p.pipeline, p.endpoint, p.account, u.event_id, u.event_type COLLATE pg_catalog."C", u.committed_at,
       p.reason, 0, NULL, NULL, '', p.deferred_at, 0
FROM {schema}.pages p
     CROSS JOIN LATERAL unnest(p.event_ids, p.event_types, p.committed_ats)
          WITH ORDINALITY AS u(event_id, event_type, committed_at, slot)
WHERE NOT EXISTS (SELECT FROM {schema}.page_done d
                  WHERE d.pipeline OPERATOR(pg_catalog.=) p.pipeline
                    AND d.page OPERATOR(pg_catalog.=) p.page
                    AND u.slot::smallint OPERATOR(pg_catalog.=) ANY (d.slots));

-- Where the WAL ended when: maps the time that an operator names to a position. Bounded: what is older
-- than the replay window goes, and at most so many rows stay.
CREATE TABLE IF NOT EXISTS {schema}.checkpoint_history (
    pipeline  pg_catalog.text NOT NULL,
    at        pg_catalog.timestamptz NOT NULL,
    lsn       pg_catalog.pg_lsn NOT NULL,
    PRIMARY KEY (pipeline, at)
);

-- The slots of the source that walhook makes: written before the slot is, so that one of the same name
-- that somebody else made is never taken for ours.
CREATE TABLE IF NOT EXISTS {schema}.slots (
    pipeline     pg_catalog.text NOT NULL,
    slot         pg_catalog.text NOT NULL,
    recorded_at  pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (pipeline, slot)
);

-- What `walhook upgrade prepare` found settled. It counts while the lease has `epoch`: nobody has led since.
CREATE TABLE IF NOT EXISTS {schema}.upgrades (
    pipeline        pg_catalog.text PRIMARY KEY,
    epoch           bigint NOT NULL,
    server_version  integer NOT NULL,
    lsn             pg_catalog.pg_lsn NOT NULL,
    prepared_at     pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now()
);

-- The positions are of the WAL of an earlier cluster: nothing can be sent again from there.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS other_wal boolean NOT NULL DEFAULT false;

-- The workers that the leader knows, as it saw them last, for people. Unlogged, for the fleet says it again:
-- after a crash of the server, and on a standby that was promoted, it is empty until the leader's next look.
-- A standby cannot read it.
CREATE UNLOGGED TABLE IF NOT EXISTS {schema}.workers (
    pipeline   pg_catalog.text NOT NULL,
    partition  integer NOT NULL DEFAULT {partition},
    session    pg_catalog.text NOT NULL,
    epoch      bigint NOT NULL,
    host       pg_catalog.text NOT NULL,
    build      pg_catalog.text NOT NULL,
    state      pg_catalog.text NOT NULL,
    slots      bigint NOT NULL,
    in_flight  bigint NOT NULL,
    lost       bigint NOT NULL,
    since      pg_catalog.timestamptz NOT NULL,
    seen_at    pg_catalog.timestamptz NOT NULL,
    PRIMARY KEY (pipeline, partition, session)
) WITH (fillfactor = 50);

-- The transactions that the leader receives while they are open, as it saw them last, for people. Unlogged, as
-- `workers` is.
CREATE UNLOGGED TABLE IF NOT EXISTS {schema}.open_transactions (
    pipeline    pg_catalog.text NOT NULL,
    partition   integer NOT NULL DEFAULT {partition},
    xid         bigint NOT NULL,
    epoch       bigint NOT NULL,
    state       pg_catalog.text NOT NULL,
    since       pg_catalog.timestamptz NOT NULL,
    row_count   bigint NOT NULL,
    bytes       bigint NOT NULL,
    kept_in     pg_catalog.text NOT NULL,
    PRIMARY KEY (pipeline, partition, xid)
) WITH (fillfactor = 50);

-- The delivery log: lines in pages, each the columns of many, compressed (crates/state/src/deliveries/columns.rs).
-- `last` is the number of the page's last line; numbers grow along the log. What a search goes by stands beside: times
-- in microseconds since 1970 UTC, a bit for each outcome, and of large pages a filter of what they hold. It is no part
-- of what `state.max_size` bounds.
CREATE TABLE IF NOT EXISTS {schema}.delivery_log (
    pipeline           pg_catalog.text NOT NULL,
    partition          integer NOT NULL DEFAULT {partition},
    last               bigint NOT NULL,
    lines              integer NOT NULL,
    outcomes           integer NOT NULL,
    from_us            bigint NOT NULL,
    to_us              bigint NOT NULL,
    from_committed_us  bigint NOT NULL,
    to_committed_us    bigint NOT NULL,
    filter             pg_catalog.bytea,
    data               pg_catalog.bytea NOT NULL,
    PRIMARY KEY (pipeline, partition, last)
);

-- What of the delivery log an operator erased, and who that was. These rows stay.
CREATE TABLE IF NOT EXISTS {schema}.delivery_erasures (
    pipeline     pg_catalog.text NOT NULL,
    id           bigint GENERATED ALWAYS AS IDENTITY,
    account      pg_catalog.text NOT NULL,
    erased_by    pg_catalog.text NOT NULL,
    begun_at     pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at  pg_catalog.timestamptz,
    lines        bigint NOT NULL DEFAULT 0,
    unreadable   bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (pipeline, id)
);

-- What was removed of a replay whose range is being read: a leader that reads it again from `jobs.position` on passes
-- over these deliveries, as over those that are deferred or dead. They go when the position has passed them.
CREATE TABLE IF NOT EXISTS {schema}.replay_discards (
    pipeline   pg_catalog.text NOT NULL,
    replay_id  bigint NOT NULL,
    event_id   pg_catalog.text NOT NULL,
    endpoint   pg_catalog.text NOT NULL,
    PRIMARY KEY (pipeline, replay_id, event_id, endpoint)
);
