-- Keys that were stored and can no longer be read, or stand elsewhere in the order: an enum's label that has another
-- name, a key of another type, a collation of another version.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
SET client_min_messages = warning;
DO $$
BEGIN
	EXECUTE 'CREATE TYPE place AS ENUM (' || (SELECT string_agg(quote_literal('p' || lpad(i::text, 3, '0')), ', ') FROM generate_series(1, 200) i) || ')';
END
$$;
CREATE TABLE events (id place PRIMARY KEY, org int);
CREATE TABLE vectors (event_id place PRIMARY KEY);
INSERT INTO events SELECT x, 1 FROM unnest(enum_range(NULL::place)) x;
INSERT INTO vectors SELECT id FROM events WHERE id < 'p100';
CREATE FUNCTION wrong(OUT missing bigint, OUT stale bigint) LANGUAGE plpgsql AS $$
BEGIN
	SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT FROM vectors v WHERE v.event_id = e.id)
		AND NOT EXISTS (SELECT FROM events_pending p WHERE p.id = e.id) INTO missing;
	SELECT count(*) FROM events_pending p WHERE EXISTS (SELECT FROM vectors v WHERE v.event_id = p.id) INTO stale;
END
$$;

-- in mid-fill: where the walk is, and where it ends
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', source_key => 'id', target_key => 'event_id', group_by => 'org');
SELECT bgw_backfill.configure('events', 'batch_size', '7'), bgw_backfill.configure('events', 'batch_sleep', '30ms'),
	bgw_backfill.configure('events', 'scan_interval', '1s');
CALL test.until($$(SELECT batches >= 3 FROM bgw_backfill.progress)$$);
SELECT bgw_backfill.pause('events');
CALL test.until($$(SELECT worker_pid IS NULL FROM bgw_backfill.progress)$$);
RESET SESSION AUTHORIZATION;
SELECT walk_cursor, high_mark FROM bgw_backfill.job_state WHERE phase = 'fill' \gset
SELECT :'high_mark' AS high_mark, :'walk_cursor' > 'p007' AS far;
SELECT format('ALTER TYPE app.place RENAME VALUE %L TO %L', :'walk_cursor', 'z001') \gexec
SET SESSION AUTHORIZATION regress_owner;
SELECT bgw_backfill.configure('events', 'batch_sleep', '0'), bgw_backfill.resume('events');
CALL bgw_backfill.wait('events', timeout => '1 minute');
CALL test.until($$(SELECT pending = 101 FROM bgw_backfill.progress)$$);
SELECT errors, last_error FROM bgw_backfill.progress;
SELECT * FROM wrong();

-- what is handed out, came back and was passed
SELECT count(*) AS rows, max(token) AS token FROM bgw_backfill.claim('events', 70, '1 hour') \gset
SELECT :rows AS claimed;
SELECT bgw_backfill.fail('events', '{p105,p106,p107}', :token, 'no');
SELECT bgw_backfill.release('events', '{p110,p111,p112}', :token);
-- of those that came back one, of the claim's own one, and the one that comes next
ALTER TYPE place RENAME VALUE 'p106' TO 'y106';
ALTER TYPE place RENAME VALUE 'p110' TO 'y110';
ALTER TYPE place RENAME VALUE 'p120' TO 'y120';
ALTER TYPE place RENAME VALUE 'p170' TO 'y170';
RESET SESSION AUTHORIZATION;
UPDATE bgw_backfill.attempt SET next_at = clock_timestamp();
INSERT INTO bgw_backfill.passed (job, group_key, key, looked_at, looked_on) VALUES ('events', '1', 'p106', 'p106', 'epoch');
UPDATE bgw_backfill.job_state SET prune_cursor = 'p106';
SET SESSION AUTHORIZATION regress_owner;
-- who holds a claim can go on with the rest of it; the rows that have another key now are handed out as such
SELECT bgw_backfill.release('events', '{p121}', :token);
SELECT key FROM bgw_backfill.claim('events', 200, '1 hour') ORDER BY 1 LIMIT 8;
SELECT count(*) FROM bgw_backfill.claim('events', 200, '1 hour');
CALL test.until($$(SELECT leased = 101 FROM bgw_backfill.progress)$$);
RESET SESSION AUTHORIZATION;
CALL test.until($$(SELECT count(*) = 0 FROM bgw_backfill.attempt WHERE key IN ('p106', 'p110', 'p120', 'p170'))$$);
CALL test.until($$(SELECT count(*) = 0 FROM bgw_backfill.passed)$$);
CALL test.until($$(SELECT prune_cursor IS NULL FROM bgw_backfill.job_state)$$);
SET SESSION AUTHORIZATION regress_owner;
SELECT state IN ('idle', 'sleeping', 'running') AS well, errors, last_error FROM bgw_backfill.progress;
SELECT * FROM wrong();

-- another collation, or another version of it: a sweep
SELECT verified_at AS before_sweep FROM bgw_backfill.progress \gset
RESET SESSION AUTHORIZATION;
UPDATE bgw_backfill.job_state SET key_order = key_order || ' 2.99';
SET SESSION AUTHORIZATION regress_owner;
CALL test.until(format('(SELECT verified_at > %L FROM bgw_backfill.progress)', :'before_sweep'));
SELECT mismatches, errors FROM bgw_backfill.progress;
SELECT bgw_backfill.untrack('events');
CALL test.until('(SELECT count(*) = 0 FROM bgw_backfill.progress)');

-- in mid-fill, a key of another type that the cursor is a value of as well, in another order
CREATE TABLE orders (id bigint PRIMARY KEY, total int);
CREATE TABLE invoices (order_id bigint PRIMARY KEY);
INSERT INTO orders SELECT i, 1 FROM generate_series(1, 2000) i;
INSERT INTO invoices SELECT i FROM generate_series(1, 2000, 2) i;
SELECT bgw_backfill.track('orders', 'invoices', mode => 'watermark', source_key => 'id', target_key => 'order_id');
SELECT bgw_backfill.configure('orders', 'batch_size', '10'), bgw_backfill.configure('orders', 'batch_sleep', '30ms'),
	bgw_backfill.configure('orders', 'scan_interval', '1s');
CALL test.until($$(SELECT batches >= 5 FROM bgw_backfill.progress)$$);
SELECT bgw_backfill.pause('orders');
CALL test.until($$(SELECT worker_pid IS NULL FROM bgw_backfill.progress)$$);
DROP VIEW orders_pending;
DROP TABLE orders_sidecar;
ALTER TABLE orders ALTER COLUMN id TYPE text;
ALTER TABLE invoices ALTER COLUMN order_id TYPE text;
SELECT bgw_backfill.configure('orders', 'batch_size', NULL), bgw_backfill.configure('orders', 'batch_sleep', '0'), bgw_backfill.resume('orders');
CALL bgw_backfill.wait('orders', timeout => '1 minute');
SELECT (SELECT count(*) FROM orders o WHERE EXISTS (SELECT FROM orders_pending p WHERE p.id = o.id) = EXISTS (SELECT FROM invoices i WHERE i.order_id = o.id)) AS wrong,
	mismatches, errors FROM bgw_backfill.progress;
SELECT bgw_backfill.untrack('orders');
CALL test.until('(SELECT count(*) = 0 FROM bgw_backfill.progress)');
RESET SESSION AUTHORIZATION;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
