-- The role that walhook runs as. `walhook setup --admin-url` grants it what it needs.
CREATE ROLE walhook LOGIN PASSWORD 'walhook';

-- The example's tables: what a product that sends webhooks has already.

CREATE TABLE accounts (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name  text NOT NULL
);

CREATE TABLE subscribers (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id  bigint NOT NULL REFERENCES accounts,
    email       text NOT NULL,
    status      text NOT NULL DEFAULT 'active'
);
ALTER TABLE subscribers REPLICA IDENTITY FULL;

CREATE TABLE webhooks (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id   bigint NOT NULL REFERENCES accounts,
    url          text NOT NULL,
    event_types  text[] NOT NULL DEFAULT '{*}',
    secret       text NOT NULL,
    enabled      boolean NOT NULL DEFAULT true
);
ALTER TABLE webhooks REPLICA IDENTITY FULL;

INSERT INTO accounts (name) VALUES ('Example');
INSERT INTO webhooks (account_id, url, secret)
    VALUES (1, 'http://mock-endpoint:8080/', 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw');
