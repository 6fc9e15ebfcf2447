-- walhook's state, in the schema that `state.schema` names ({schema} below).
-- Every key begins with `pipeline` (the slot's name) and, where a leader writes, `partition` (0 today).
-- Applied by `walhook setup`, idempotent: only CREATE ... IF NOT EXISTS and ADD COLUMN IF NOT EXISTS
-- (for tables that an earlier version made), never a rewrite. Views, and an index that was too narrow,
-- are replaced.

CREATE SCHEMA IF NOT EXISTS {schema};

-- Who we are talking to. Another cluster, timeline or database than the stored one halts.
CREATE TABLE IF NOT EXISTS {schema}.meta (
    pipeline           text PRIMARY KEY,
    schema_version     integer NOT NULL,
    system_identifier  numeric(20) NOT NULL,
    timeline           integer NOT NULL,
    host               text NOT NULL,
    database           text NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now()
);

-- The fence: every state transaction takes FOR SHARE on its row, a new leader increments the epoch.
CREATE TABLE IF NOT EXISTS {schema}.lease (
    pipeline   text NOT NULL,
    partition  integer NOT NULL DEFAULT 0,
    epoch      bigint NOT NULL,
    holder     text,
    taken_at   timestamptz,
    PRIMARY KEY (pipeline, partition)
);

-- Everything before `frontier` is settled.
CREATE TABLE IF NOT EXISTS {schema}.checkpoint (
    pipeline     text NOT NULL,
    partition    integer NOT NULL DEFAULT 0,
    frontier     pg_lsn NOT NULL,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    halt_reason  text,
    halted_at    timestamptz,
    PRIMARY KEY (pipeline, partition)
) WITH (fillfactor = 50);

-- Deliveries settled ahead of the frontier: appended with each persisted batch, removed when the
-- frontier has passed `last_commit_lsn`. `ranges` is engine::settled's encoding.
CREATE TABLE IF NOT EXISTS {schema}.settled (
    pipeline         text NOT NULL,
    partition        integer NOT NULL DEFAULT 0,
    seq              bigint GENERATED ALWAYS AS IDENTITY,
    last_commit_lsn  pg_lsn NOT NULL,
    ranges           bytea NOT NULL,
    -- In this order, so that removing what the frontier has passed reads only that.
    PRIMARY KEY (pipeline, partition, last_commit_lsn, seq)
);

-- An event that left memory: once, however many of its deliveries did. The last deferred row or dead
-- letter of the event takes it along. `n` and `keys` are unsigned in the program; `keys` holds their
-- bits.
CREATE TABLE IF NOT EXISTS {schema}.bodies (
    pipeline      text NOT NULL,
    event_id      text NOT NULL,
    event_type    text NOT NULL,
    account       text NOT NULL,
    operation     text NOT NULL,
    committed_at  timestamptz NOT NULL,
    commit_lsn    pg_lsn NOT NULL,
    change_lsn    pg_lsn NOT NULL,
    relation      oid NOT NULL,
    n             bigint NOT NULL,
    keys          bigint[] NOT NULL,
    row           bytea NOT NULL,
    PRIMARY KEY (pipeline, event_id)
) WITH (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.1,
        toast.autovacuum_vacuum_threshold = 20000, toast.autovacuum_vacuum_scale_factor = 0.1);

-- Deliveries that left memory and will be tried again. The key is the delivery's place in its queue
-- (account and endpoint), so that to read a queue in order is a walk along the index. Text compares by
-- its bytes, as in the program. `first_attempt_us` is a time of the queue's own clock, which stands
-- still while it is stopped (`backlog.stopped_us`). `next_attempt_at` null: as soon as its turn comes.
CREATE TABLE IF NOT EXISTS {schema}.deferred (
    pipeline          text NOT NULL,
    endpoint          text NOT NULL,
    account           text NOT NULL,
    commit_lsn        pg_lsn NOT NULL,
    change_lsn        pg_lsn NOT NULL,
    relation          oid NOT NULL,
    n                 bigint NOT NULL,
    event_type        text COLLATE "C" NOT NULL,
    replay_id         bigint NOT NULL DEFAULT 0,
    event_id          text NOT NULL,
    reason            text NOT NULL,
    attempts          integer NOT NULL,
    first_attempt_us  bigint,
    next_attempt_at   timestamptz,
    last_status       integer,
    detail            text NOT NULL,
    history           jsonb,
    deferred_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, endpoint, account, commit_lsn, change_lsn, relation, n, event_type, replay_id),
    UNIQUE (pipeline, event_id, endpoint, replay_id)
) WITH (autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_scale_factor = 0.1);

-- What the next leader must know of a queue that has deferred rows: how many, and which of its further
-- deliveries join them: those that hold one of `blocked`, or all where that is null. The bits of `blocked`
-- are unsigned in the program.
CREATE TABLE IF NOT EXISTS {schema}.backlog (
    pipeline            text NOT NULL,
    endpoint            text NOT NULL,
    account             text NOT NULL,
    blocked             bigint[],
    deferred            bigint NOT NULL,
    failing_since       timestamptz,
    stopped_us          bigint NOT NULL,
    breaker_open_until  timestamptz,
    PRIMARY KEY (pipeline, endpoint, account)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.5);

-- Deliveries that ended without success. `endpoint` is '' for an unroutable change. `last_job` is the
-- retry that failed last: it keeps a result that is stored twice from counting twice.
CREATE TABLE IF NOT EXISTS {schema}.dead_letters (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     text NOT NULL,
    event_id     text NOT NULL,
    endpoint     text NOT NULL,
    replay_id    bigint NOT NULL DEFAULT 0,
    reason       text NOT NULL,
    detail       text NOT NULL,
    attempts     integer NOT NULL,
    last_status  integer,
    died_at      timestamptz NOT NULL DEFAULT now(),
    tried_at     timestamptz NOT NULL DEFAULT now(),
    last_job     bigint,
    UNIQUE (pipeline, event_id, endpoint, replay_id)
);

-- The last ten attempts, the oldest first: time, status, latency and error of each.
ALTER TABLE {schema}.dead_letters ADD COLUMN IF NOT EXISTS history jsonb;

-- For their retention. Without the pipeline, so that it is no way to a letter by its event.
CREATE INDEX IF NOT EXISTS dead_letters_died ON {schema}.dead_letters (died_at);

-- Ranges of WAL whose changes were not delivered, and which the operator knows of.
CREATE TABLE IF NOT EXISTS {schema}.gaps (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     text NOT NULL,
    from_lsn     pg_lsn NOT NULL,
    to_lsn       pg_lsn NOT NULL,
    reason       text NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    closed_at    timestamptz
);

-- Of one endpoint, where it is not the whole stream that has the gap: both ends are then commit LSNs
-- of transactions in it. `removed` deliveries were taken out of `deferred`, `skipped` ones came later.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS endpoint text;
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS account text;
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS removed bigint NOT NULL DEFAULT 0;
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS skipped bigint NOT NULL DEFAULT 0;
-- While its endpoint is suspended a gap still grows.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS growing boolean NOT NULL DEFAULT false;

-- An earlier version's, which an endpoint that moved to another account could meet.
DROP INDEX IF EXISTS {schema}.gaps_growing;
CREATE UNIQUE INDEX IF NOT EXISTS gaps_growing_of_account
    ON {schema}.gaps (pipeline, endpoint, account) WHERE growing;

-- The commit LSN of the one transaction whose unreadable rest is given up, where that is the gap.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS left_out pg_lsn;
-- What the operator said when closing it.
ALTER TABLE {schema}.gaps ADD COLUMN IF NOT EXISTS note text;

-- What the command line asks of the running leader. `total` is how many it concerned when it was asked.
CREATE TABLE IF NOT EXISTS {schema}.jobs (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     text NOT NULL,
    kind         text NOT NULL,
    args         jsonb NOT NULL,
    total        bigint,
    done         bigint NOT NULL DEFAULT 0,
    failed       bigint NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    error        text
);

-- Of a replay: everything before it was sent again.
ALTER TABLE {schema}.jobs ADD COLUMN IF NOT EXISTS position pg_lsn;

CREATE INDEX IF NOT EXISTS jobs_unfinished ON {schema}.jobs (pipeline, id) WHERE finished_at IS NULL;

-- Endpoints that are stopped, by walhook (`disabled`) or by an operator (`paused`), since
-- `disabled_at`. One that is suspended has a growing gap instead. A change of the endpoint's row switches a disabled one on again.
CREATE TABLE IF NOT EXISTS {schema}.endpoint_state (
    pipeline     text NOT NULL,
    endpoint     text NOT NULL,
    reason       text NOT NULL,
    disabled_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, endpoint)
);

ALTER TABLE {schema}.endpoint_state ADD COLUMN IF NOT EXISTS kind text NOT NULL DEFAULT 'disabled';

-- What somebody is to be told of, one row for each endpoint and type: what happens again before it is
-- sent adds to `count`. Sent, the row stays for a while with 0, so that the next one waits until `due_at`.
CREATE TABLE IF NOT EXISTS {schema}.notices (
    pipeline  text NOT NULL,
    endpoint  text NOT NULL,
    type      text NOT NULL,
    account   text,
    detail    text NOT NULL,
    count     bigint NOT NULL,
    first_at  timestamptz NOT NULL,
    last_at   timestamptz NOT NULL,
    attempts  integer NOT NULL DEFAULT 0,
    due_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, endpoint, type)
) WITH (fillfactor = 50);

CREATE INDEX IF NOT EXISTS notices_due ON {schema}.notices (pipeline, due_at);

-- For people: every endpoint that has something in these tables.
CREATE OR REPLACE VIEW {schema}.endpoints AS
WITH behind AS (SELECT pipeline, endpoint, string_agg(account, ', ') AS account,
                       sum(deferred)::bigint AS deferred, min(failing_since) AS failing_since,
                       max(breaker_open_until) AS breaker_open_until
                FROM {schema}.backlog GROUP BY 1, 2),
     dead AS (SELECT pipeline, endpoint, count(*) AS dead_letters FROM {schema}.dead_letters
              WHERE endpoint <> '' GROUP BY 1, 2),
     gap AS (SELECT pipeline, endpoint, sum(removed + skipped)::bigint AS in_gaps,
                    max(reason) FILTER (WHERE growing) AS suspended,
                    min(recorded_at) FILTER (WHERE growing) AS suspended_at FROM {schema}.gaps
             WHERE endpoint IS NOT NULL AND closed_at IS NULL GROUP BY 1, 2)
SELECT pipeline, endpoint, b.account,
       CASE WHEN suspended IS NOT NULL THEN 'suspended'
            WHEN s.kind IS NOT NULL THEN s.kind
            WHEN b.breaker_open_until IS NOT NULL THEN 'breaker_open'
            WHEN b.failing_since IS NOT NULL THEN 'failing'
            ELSE 'ok' END AS state,
       coalesce(suspended, s.reason) AS reason,
       coalesce(suspended_at, s.disabled_at, b.failing_since) AS since,
       coalesce(b.deferred, 0) AS deferred, coalesce(dead_letters, 0) AS dead_letters,
       coalesce(in_gaps, 0) AS in_gaps, b.breaker_open_until
FROM behind b
     FULL JOIN {schema}.endpoint_state s USING (pipeline, endpoint)
     FULL JOIN dead USING (pipeline, endpoint)
     FULL JOIN gap USING (pipeline, endpoint);

-- For people: every delivery that waits in the table.
CREATE OR REPLACE VIEW {schema}.deliveries_pending AS
SELECT pipeline, endpoint, d.account, event_id, d.event_type, b.committed_at, d.reason, d.attempts,
       d.next_attempt_at, d.last_status, d.detail, d.deferred_at, d.replay_id
FROM {schema}.deferred d JOIN {schema}.bodies b USING (pipeline, event_id);

-- Where the WAL ended when: maps the time that an operator names to a position. Bounded: what is older
-- than the replay window goes, and at most so many rows stay.
CREATE TABLE IF NOT EXISTS {schema}.checkpoint_history (
    pipeline  text NOT NULL,
    at        timestamptz NOT NULL,
    lsn       pg_lsn NOT NULL,
    PRIMARY KEY (pipeline, at)
);
