-- Writing events in the transaction that makes them true: both commit, or neither does.
-- The rules for it are in outbox.toml, and docs/outbox.md explains both ways.

BEGIN;
-- ... what the application does ...
INSERT INTO outbox (account_id, type, data)
VALUES (42, 'order.paid', '{"order": 7, "total": "19.90", "lines": [{"sku": "a-1", "count": 2}]}');
-- The WAL has the insert, and the table stays empty.
DELETE FROM outbox;
COMMIT;

BEGIN;
-- ... what the application does ...
SELECT pg_logical_emit_message(true, 'order.note', '{"account_id": 42, "text": "left at the door"}');
COMMIT;
