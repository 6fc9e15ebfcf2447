-- What the demo's product keeps: accounts, their subscribers, and the webhooks they registered.

CREATE TABLE accounts (
    id    bigint PRIMARY KEY,
    name  text NOT NULL
);

-- Never goes back, not even in a rollback: with it each change has a number of its own, by which
-- the receivers' books are held against the writers'.
CREATE SEQUENCE change_number;

CREATE TABLE subscribers (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id  bigint NOT NULL REFERENCES accounts,
    email       text NOT NULL,
    status      text NOT NULL DEFAULT 'active',
    version     bigint NOT NULL DEFAULT nextval('change_number')
);
-- So that a delete carries the whole old row, and an update the old values.
ALTER TABLE subscribers REPLICA IDENTITY FULL;

CREATE TABLE segments (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id  bigint NOT NULL REFERENCES accounts,
    name        text NOT NULL
);

CREATE TABLE webhooks (
    id           bigint PRIMARY KEY,
    account_id   bigint NOT NULL REFERENCES accounts,
    url          text NOT NULL,
    event_types  text[] NOT NULL,
    secret       text NOT NULL,
    enabled      boolean NOT NULL DEFAULT true
);
ALTER TABLE webhooks REPLICA IDENTITY FULL;
-- By which walhook looks an account's endpoints up.
CREATE INDEX webhooks_by_account ON webhooks (account_id);
