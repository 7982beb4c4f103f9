-- The life of a job, from track() to untrack(), for an owner who is no superuser.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org text, body text);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events ON DELETE CASCADE ON UPDATE CASCADE, v int);
INSERT INTO events SELECT i, CASE WHEN i % 7 > 0 THEN 'org-' || i % 3 END, CASE WHEN i % 10 > 0 THEN 'body' END
FROM generate_series(1, 1000) i;
INSERT INTO vectors SELECT i, 0 FROM generate_series(1, 900) i;
ANALYZE events, vectors;
SELECT test.objects('app') AS before \gset

-- small batches, and paused before it begins
BEGIN;
SELECT bgw_backfill.track('events', 'vectors', pending_where => 'body IS NOT NULL', group_by => 'org');
SELECT bgw_backfill.configure('events', 'batch_size', '64');
SELECT bgw_backfill.configure('events', 'batch_sleep', '0');
SELECT bgw_backfill.pause('events');
COMMIT;
SELECT job, owner, source, target, mode, source_key, target_key, flag_column, pending_where, match_where, group_by, handler,
	paused, uninstall FROM bgw_backfill.jobs;
SELECT job, source, target, mode, phase, state, percent, rows_done, rows_changed, pending, batches, eta, fill_ms,
	waiting_for, waited, errors, last_error, last_error_at, live_since, verified_at, mismatches, worker_pid, bar
FROM bgw_backfill.progress \gx
SELECT test.objects('app') = :'before';
SELECT bgw_backfill.resume('events');

-- the fill, and what follows
CALL bgw_backfill.wait('events', 'fill');
CALL bgw_backfill.wait('events', 'index', '2 minutes');
CALL bgw_backfill.wait('events');
CALL test.until('(SELECT pending IS NOT NULL AND state = ''idle'' FROM bgw_backfill.progress)');
SELECT job, source, target, mode, phase, state, percent, pending, eta, fill_ms > 0 AS fill_ms,
	waiting_for, waited, errors, last_error, last_error_at, started_at <= phase_started_at AS phase_started_at,
	live_since >= phase_started_at AS live_since, verified_at <= live_since AS verified_at, mismatches, worker_pid, bar
FROM bgw_backfill.progress \gx

-- what is there now
SELECT attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid IN ('events'::regclass, 'events_pending'::regclass) AND attnum > 0 ORDER BY 1, attnum;
SELECT pg_get_indexdef('events_pending_idx'::regclass);
SELECT tgname, tgenabled, pg_get_triggerdef(oid) FROM pg_trigger
WHERE tgrelid IN ('events'::regclass, 'vectors'::regclass) AND NOT tgisinternal ORDER BY 1;
SELECT relname, obj_description(oid) FROM pg_class WHERE relnamespace = 'app'::regnamespace AND relname LIKE 'events\_pending%' ORDER BY 1;
SELECT col_description('events'::regclass, 4);
SELECT indisvalid FROM pg_index WHERE indexrelid = 'events_pending_idx'::regclass;
SELECT reloptions, pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'events_pending'::regclass;

-- rows whose flag is not the truth, and rows that are in the view wrongly or not
CREATE VIEW pending_rows AS
SELECT id, org FROM events e WHERE body IS NOT NULL AND NOT EXISTS (SELECT FROM vectors v WHERE v.event_id = e.id);
CREATE VIEW wrong AS
SELECT id FROM events e WHERE has_embedding IS DISTINCT FROM EXISTS (SELECT FROM vectors v WHERE v.event_id = e.id)
UNION ALL
(SELECT id FROM (TABLE pending_rows EXCEPT TABLE events_pending) x)
UNION ALL
(SELECT id FROM (TABLE events_pending EXCEPT TABLE pending_rows) x);
SELECT count(*) FROM wrong;
SELECT count(*) FROM events_pending;
SELECT * FROM events_pending WHERE org = 'org-1' ORDER BY id LIMIT 3;
SELECT * FROM events_pending WHERE org IS NULL ORDER BY id LIMIT 3;
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT id FROM events_pending WHERE org = 'org-1' ORDER BY id LIMIT 3;
RESET enable_seqscan;

-- changes of the source
INSERT INTO events VALUES (1001, 'org-1', 'new'), (1002, 'org-1', NULL), (1003, NULL, 'new');
SELECT id, has_embedding FROM events WHERE id > 1000 ORDER BY id;
UPDATE events SET body = 'at last' WHERE id = 1002;
UPDATE events SET org = 'org-9' WHERE id = 1001;
UPDATE events SET id = 2001 WHERE id = 901;
UPDATE events SET id = 2002 WHERE id = 1;
DELETE FROM events WHERE id IN (902, 2);
SELECT id, org FROM events_pending WHERE id > 1000 ORDER BY id;
SELECT id FROM wrong;

-- changes of the target
INSERT INTO vectors VALUES (911, 1), (912, 1), (1001, 1);
INSERT INTO vectors SELECT id, 2 FROM events_pending WHERE org = 'org-2' AND id < 1000;
INSERT INTO vectors VALUES (911, 3), (913, 3) ON CONFLICT DO NOTHING;
INSERT INTO vectors VALUES (911, 4), (914, 4) ON CONFLICT (event_id) DO UPDATE SET v = excluded.v;
DELETE FROM vectors WHERE event_id BETWEEN 100 AND 110;
UPDATE vectors SET event_id = 903 WHERE event_id = 50;
UPDATE vectors SET event_id = event_id + 60 WHERE event_id BETWEEN 40 AND 45;
UPDATE vectors SET v = v + 1;
MERGE INTO vectors v USING generate_series(200, 210) i ON v.event_id = i
	WHEN MATCHED AND i % 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET v = 7;
MERGE INTO vectors v USING generate_series(200, 204) i ON v.event_id = i
	WHEN NOT MATCHED THEN INSERT VALUES (i, 8);
WITH gone AS (DELETE FROM vectors WHERE event_id IN (300, 301) RETURNING event_id)
	INSERT INTO vectors SELECT event_id + 606, 9 FROM gone;
SELECT id FROM wrong;
COPY vectors FROM stdin;
300	1
301	1
\.
INSERT INTO vectors SELECT id FROM events_pending WHERE id = 305 OR id > 990;
SELECT id FROM wrong;

-- what is refused changes nothing
INSERT INTO vectors VALUES (915), (999999);
INSERT INTO vectors VALUES (915), (915);
SELECT id FROM wrong;

-- ON DELETE CASCADE, ON UPDATE CASCADE
DELETE FROM events WHERE id BETWEEN 400 AND 420;
UPDATE events SET id = id + 5000 WHERE id BETWEEN 500 AND 510;
SELECT id FROM wrong;

-- one transaction, several changes, some of them undone (R11)
BEGIN;
INSERT INTO events VALUES (3001, 'a', 'x'), (3002, 'a', 'x'), (3003, 'a', 'x'), (3004, 'a', 'x'), (3005, 'a', 'x');
INSERT INTO vectors VALUES (3001), (3002);
DELETE FROM vectors WHERE event_id = 3002;
SAVEPOINT a;
INSERT INTO vectors VALUES (3002), (3003);
DELETE FROM vectors WHERE event_id = 3001;
SELECT id FROM wrong;
ROLLBACK TO a;
SELECT id FROM wrong;
SAVEPOINT b;
INSERT INTO vectors VALUES (3004);
RELEASE b;
SAVEPOINT c;
DELETE FROM vectors WHERE event_id = 3004;
DELETE FROM events WHERE id = 3005;
SAVEPOINT d;
INSERT INTO vectors VALUES (3004);
UPDATE vectors SET event_id = 3003 WHERE event_id = 3004;
SELECT id FROM wrong;
ROLLBACK TO d;
INSERT INTO events VALUES (3005, 'a', 'again');
INSERT INTO vectors VALUES (3005);
RELEASE c;
DELETE FROM vectors WHERE event_id = 3001;
INSERT INTO vectors VALUES (3001);
DELETE FROM events WHERE id = 3001;
COMMIT;
SELECT id, has_embedding FROM events WHERE id BETWEEN 3001 AND 3005 ORDER BY id;
SELECT id FROM wrong;

BEGIN ISOLATION LEVEL SERIALIZABLE;
INSERT INTO vectors VALUES (3003);
DELETE FROM vectors WHERE event_id = 3005;
UPDATE vectors SET event_id = 3004 WHERE event_id = 3003;
SELECT id FROM wrong;
COMMIT;
SELECT id FROM wrong;

-- TRUNCATE
TRUNCATE vectors;
CALL bgw_backfill.wait('events');
SELECT count(*) FROM events WHERE has_embedding;
SELECT count(*) FROM wrong;
INSERT INTO vectors SELECT id, 1 FROM events WHERE id < 800;
BEGIN;
TRUNCATE vectors;
SELECT phase, percent, live_since FROM bgw_backfill.progress;
ROLLBACK;
SELECT phase, percent FROM bgw_backfill.progress;
BEGIN;
TRUNCATE vectors;
INSERT INTO vectors SELECT id, 1 FROM events WHERE id > 700;
COMMIT;
CALL bgw_backfill.wait('events');
SELECT id FROM wrong;
TRUNCATE events CASCADE;
CALL bgw_backfill.wait('events');
SELECT count(*) FROM events_pending;
INSERT INTO events SELECT i, 'org', 'body' FROM generate_series(1, 100) i;
INSERT INTO vectors SELECT i FROM generate_series(1, 50) i;
SELECT id FROM wrong;

-- the tables' names may change
ALTER TABLE events RENAME TO happenings;
ALTER TABLE vectors RENAME TO embeddings;
INSERT INTO embeddings VALUES (60);
SELECT bgw_backfill.verify('events');
CALL test.until('(SELECT source = ''app.happenings'' AND target = ''app.embeddings'' FROM bgw_backfill.progress)');
ALTER TABLE happenings RENAME TO events;
ALTER TABLE embeddings RENAME TO vectors;
DELETE FROM vectors WHERE event_id = 60;
SELECT id FROM wrong;

-- the end: nothing of it is left
DROP VIEW wrong, pending_rows;
SELECT bgw_backfill.untrack('events');
CALL bgw_backfill.wait('events', 'uninstall');
SELECT test.objects('app') = :'before';
SELECT * FROM bgw_backfill.jobs;
RESET SESSION AUTHORIZATION;
SELECT (SELECT count(*) FROM bgw_backfill.job), (SELECT count(*) FROM bgw_backfill.job_state),
	(SELECT count(*) FROM bgw_backfill.job_skipped), (SELECT count(*) FROM bgw_backfill.pending_group);
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
