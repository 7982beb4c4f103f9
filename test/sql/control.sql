-- pause, resume, verify, untrack; and what a sweep mends.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org text, body text);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events ON DELETE CASCADE, v int);
INSERT INTO events SELECT i, 'org', 'body' FROM generate_series(1, 500) i;
INSERT INTO vectors SELECT i, 0 FROM generate_series(1, 400) i;
ANALYZE events, vectors;
CREATE VIEW wrong AS
SELECT id FROM events e
WHERE (to_jsonb(e) -> 'has_embedding')::boolean IS DISTINCT FROM EXISTS (SELECT FROM vectors v WHERE v.event_id = e.id);

-- paused in mid-fill it stays where it is, and the triggers serve meanwhile
BEGIN;
SELECT bgw_backfill.track('events', 'vectors');
SELECT bgw_backfill.configure('events', 'batch_size', '10');
SELECT bgw_backfill.configure('events', 'batch_sleep', '1h');
COMMIT;
CALL bgw_backfill.wait('events', 'fill');
SELECT phase, state IN ('running', 'sleeping') AS state, rows_done <= 10 AS rows_done, batches <= 1 AS batches FROM bgw_backfill.progress;
SELECT bgw_backfill.pause('events');
SELECT state FROM bgw_backfill.progress;
SELECT bgw_backfill.configure('events', 'batch_sleep', '0');
INSERT INTO events VALUES (501);
INSERT INTO vectors VALUES (501, 1), (500, 1);
DELETE FROM vectors WHERE event_id IN (1, 500);
SELECT id, has_embedding FROM events WHERE id IN (1, 500, 501) ORDER BY id;
SELECT phase, state FROM bgw_backfill.progress;
SELECT bgw_backfill.pause('events');
SELECT bgw_backfill.resume('events');
CALL bgw_backfill.wait('events');
SELECT count(*) FROM wrong;
SELECT bgw_backfill.resume('events');

-- a sweep, without anything wrong
SELECT verified_at AS before_sweep FROM bgw_backfill.progress \gset
SELECT bgw_backfill.verify('events');
SELECT format('(SELECT verified_at > %L FROM bgw_backfill.progress)', :'before_sweep') AS swept \gset
CALL test.until(:'swept');
SELECT phase, percent, mismatches FROM bgw_backfill.progress;

-- drift: what is written past the triggers is found, mended and counted
BEGIN;
ALTER TABLE vectors DISABLE TRIGGER events_bbf_insert, DISABLE TRIGGER events_bbf_delete;
DELETE FROM vectors WHERE event_id BETWEEN 11 AND 13;
INSERT INTO vectors VALUES (450, 1), (451, 1), (452, 1), (453, 1);
ALTER TABLE vectors ENABLE TRIGGER events_bbf_insert, ENABLE TRIGGER events_bbf_delete;
COMMIT;
UPDATE events SET has_embedding = NOT has_embedding WHERE id = 499;
INSERT INTO events VALUES (502, 'org', 'body', true);
SELECT count(*) FROM wrong;
SELECT verified_at AS before_sweep FROM bgw_backfill.progress \gset
SELECT bgw_backfill.verify('events');
SELECT format('(SELECT verified_at > %L FROM bgw_backfill.progress)', :'before_sweep') AS swept \gset
CALL test.until(:'swept');
SELECT phase, percent, mismatches FROM bgw_backfill.progress;
SELECT count(*) FROM wrong;

-- the installation: what is missing comes back, and what went by meanwhile is mended
SELECT bgw_backfill.pause('events');
ALTER TABLE vectors DISABLE TRIGGER events_bbf_insert;
DROP TRIGGER events_bbf_delete ON vectors;
DROP VIEW events_pending;
DROP INDEX events_pending_idx;
ALTER TABLE events ALTER has_embedding DROP DEFAULT;
INSERT INTO vectors VALUES (460, 1);
DELETE FROM vectors WHERE event_id = 20;
SELECT bgw_backfill.resume('events');
SELECT bgw_backfill.verify('events');
CALL test.until('(SELECT NOT EXISTS (SELECT FROM app.wrong) AND phase = ''live'' FROM bgw_backfill.progress)');
INSERT INTO vectors VALUES (461, 1);
DELETE FROM vectors WHERE event_id = 21;
INSERT INTO events VALUES (503);
SELECT count(*) FROM wrong;
SELECT count(*) FROM events_pending;
SELECT indisvalid FROM pg_index WHERE indexrelid = 'events_pending_idx'::regclass;
SELECT state <> 'failed' AS well, errors, last_error FROM bgw_backfill.progress;

-- untrack: column, index and view stay if asked, the triggers go
SELECT bgw_backfill.untrack('events', false);
CALL bgw_backfill.wait('events', 'uninstall');
SELECT * FROM bgw_backfill.progress;
SELECT test.objects('app');
SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('events'::regclass, 'vectors'::regclass) AND NOT tgisinternal;
INSERT INTO vectors VALUES (470, 1);
SELECT count(*) FROM wrong;

-- the flag that stayed can be adopted by a job of another name
SELECT bgw_backfill.track('events', 'vectors', job => 'again');
CALL bgw_backfill.wait('again');
SELECT count(*) FROM wrong;

-- untrack while paused, and while failed
SELECT bgw_backfill.pause('again');
SELECT bgw_backfill.untrack('again');
CALL bgw_backfill.wait('again', 'uninstall');
SELECT attname FROM pg_attribute WHERE attrelid = 'events'::regclass AND attname = 'has_embedding';
DROP VIEW events_pending;
DROP INDEX events_pending_idx;
ALTER TABLE events DROP has_embedding;
SELECT count(*) FROM events;

-- untrack in the transaction that tracked
BEGIN;
SELECT bgw_backfill.track('events', 'vectors');
SELECT bgw_backfill.untrack('events');
COMMIT;
CALL bgw_backfill.wait('events', 'uninstall');
SELECT test.objects('app');

-- dropped tables
SELECT bgw_backfill.track('events', 'vectors');
CALL bgw_backfill.wait('events');
DROP VIEW wrong;
DROP TABLE vectors;
SELECT bgw_backfill.verify('events');
CALL test.until('(SELECT state = ''failed'' FROM bgw_backfill.progress)');
SELECT phase, state, last_error FROM bgw_backfill.progress;
CALL bgw_backfill.wait('events', 'uninstall');
SELECT bgw_backfill.resume('events');
SELECT bgw_backfill.untrack('events');
CALL bgw_backfill.wait('events', 'uninstall');
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events);
SELECT bgw_backfill.track('events', 'vectors');
CALL bgw_backfill.wait('events');
SET client_min_messages = warning;
DROP TABLE events CASCADE;
RESET client_min_messages;
INSERT INTO vectors VALUES (1);
SELECT job FROM bgw_backfill.jobs;
SELECT bgw_backfill.verify('events');
CALL test.until('(SELECT state = ''failed'' FROM bgw_backfill.progress)');
SELECT last_error FROM bgw_backfill.progress;
SELECT bgw_backfill.resume('events');
SELECT bgw_backfill.untrack('events');
CALL test.until('NOT EXISTS (SELECT FROM bgw_backfill.jobs)');

RESET SESSION AUTHORIZATION;
SELECT (SELECT count(*) FROM bgw_backfill.job), (SELECT count(*) FROM bgw_backfill.job_state),
	(SELECT count(*) FROM bgw_backfill.job_skipped), (SELECT count(*) FROM bgw_backfill.pending_group);
-- what the tables refuse, whoever writes them
\set VERBOSITY terse
INSERT INTO bgw_backfill.job_state (job) VALUES ('nobody');
INSERT INTO bgw_backfill.job_skipped (job, key) VALUES ('nobody', '1');
INSERT INTO bgw_backfill.job (job, owner, role_oid, database_oid, system_id, source_oid, target_oid, source_schema, source_name,
	target_schema, target_name, mode, source_key, target_key) VALUES ('x', '', 0, 0, 0, 0, 0, '', '', '', '', 'nonsense', '', '');
INSERT INTO bgw_backfill.claim (token, job, claimed_by, expires_at, granted, keys, group_keys, attempts)
	VALUES (-1, 'x', 0, now(), 1, '{1}', '{}', '{1}');
SELECT count(DISTINCT attcollation), min(c.collname) FROM pg_attribute a JOIN pg_class t ON t.oid = attrelid JOIN pg_collation c ON c.oid = attcollation
WHERE attname = 'job' AND relnamespace = 'bgw_backfill'::regnamespace AND relkind IN ('r', 'v');
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
