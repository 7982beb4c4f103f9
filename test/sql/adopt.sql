-- A flag column that is there already is adopted: its NULLs filled, its wrong values mended, NOT NULL at the end, and kept.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org text, has_embedding boolean, flag2 boolean NOT NULL DEFAULT true);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events, v int);
INSERT INTO events SELECT i, 'org', CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END FROM generate_series(1, 300) i;
INSERT INTO vectors SELECT i, 0 FROM generate_series(1, 300, 2) i;
COMMENT ON COLUMN events.has_embedding IS 'ours';
CREATE VIEW flags AS
SELECT has_embedding, flag2, EXISTS (SELECT FROM vectors v WHERE v.event_id = e.id) AS truth, count(*)
FROM events e GROUP BY 1, 2, 3;
CREATE VIEW columns AS
SELECT attname, attnotnull, pg_get_expr(adbin, adrelid), col_description(attrelid, attnum)
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = 'events'::regclass AND attname IN ('has_embedding', 'flag2');

SELECT bgw_backfill.track('events', 'vectors');
CALL bgw_backfill.wait('events');
SELECT * FROM flags ORDER BY 1, 2, 3;
SELECT * FROM columns ORDER BY 1;
SELECT conname FROM pg_constraint WHERE conrelid = 'events'::regclass AND contype = 'c';
INSERT INTO events (id) VALUES (301);
INSERT INTO events (id, has_embedding) VALUES (302, NULL);
SELECT id, has_embedding FROM events WHERE id > 300;
SELECT count(*) FROM events_pending;
SELECT mismatches, errors, last_error FROM bgw_backfill.progress;

-- a second job on the same pair, with a column of its own that is never NULL
SELECT bgw_backfill.track('events', 'vectors', job => 'second', flag_column => 'flag2');
CALL bgw_backfill.wait('second');
SELECT * FROM flags ORDER BY 1, 2, 3;
SELECT * FROM columns ORDER BY 1;
DELETE FROM vectors WHERE event_id = 1;
INSERT INTO vectors VALUES (2);
SELECT * FROM flags ORDER BY 1, 2, 3;

-- and a third, whose column is added, and dropped in the end
SELECT bgw_backfill.track('events', 'vectors', job => 'third', flag_column => 'flag3');
CALL bgw_backfill.wait('third');
SELECT flag3, flag2, count(*) FROM events GROUP BY 1, 2 ORDER BY 1, 2;

SELECT bgw_backfill.untrack(job) FROM bgw_backfill.jobs ORDER BY job;
CALL test.until('NOT EXISTS (SELECT FROM bgw_backfill.jobs)');
DROP VIEW flags, columns;
SELECT test.objects('app');
RESET SESSION AUTHORIZATION;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
