-- The table of outbox.sql's first way. The second needs none.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id bigint NOT NULL,
    type text NOT NULL,
    data json NOT NULL
);
