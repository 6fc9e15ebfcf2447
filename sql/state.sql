-- walhook's state, in the schema that `state.schema` names ({schema} below).
-- Every key begins with `pipeline` (the slot's name) and, where a leader writes, `partition` (0 today).
-- Applied by `walhook setup`, idempotent: only CREATE … IF NOT EXISTS, never a rewrite.

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

-- An event that left memory: once, however many of its deliveries did. Who adds or removes one of
-- its dead letters locks this row first; the last one takes it along. `n` and `keys` are unsigned
-- in the program; `keys` holds their bits.
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
);

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

CREATE INDEX IF NOT EXISTS jobs_unfinished ON {schema}.jobs (pipeline, id) WHERE finished_at IS NULL;

-- Endpoints that walhook has switched off. A change of the endpoint's row switches it on again.
CREATE TABLE IF NOT EXISTS {schema}.endpoint_state (
    pipeline     text NOT NULL,
    endpoint     text NOT NULL,
    reason       text NOT NULL,
    disabled_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, endpoint)
);
