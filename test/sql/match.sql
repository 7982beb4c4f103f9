-- match_where, and several target rows for a source row.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org text);
CREATE TABLE votes (id serial, event_id bigint REFERENCES events, model text, info json, weight numeric, other int);
CREATE INDEX ON votes (event_id);
INSERT INTO events SELECT i, 'org-' || i % 2 FROM generate_series(1, 100) i;
INSERT INTO votes (event_id, model, info, weight) SELECT i % 80 + 1, 'v' || i % 3, '{"good": 1}', 1.0 FROM generate_series(1, 200) i;
INSERT INTO votes (event_id, model) VALUES (NULL, 'v2');
-- how a session quotes names does not decide what is stored
SET quote_all_identifiers = on;
SELECT bgw_backfill.track('events', 'votes', job => 'any', flag_column => 'of_any');
SELECT bgw_backfill.track('events', 'votes', job => 'v2', flag_column => 'of_v2', group_by => 'org',
	match_where => $$model = 'v2' AND info ->> 'good' = '1' AND weight::text = '1.0'$$);
RESET quote_all_identifiers;
SELECT job, match_where FROM bgw_backfill.jobs ORDER BY job;
CALL bgw_backfill.wait('any');
CALL bgw_backfill.wait('v2');
CREATE VIEW wrong AS
SELECT 'any' AS job, id FROM events e WHERE of_any IS DISTINCT FROM EXISTS (SELECT FROM votes v WHERE v.event_id = e.id)
UNION ALL
SELECT 'v2', id FROM events e WHERE of_v2 IS DISTINCT FROM EXISTS (
	SELECT FROM votes v WHERE v.event_id = e.id AND model = 'v2' AND info ->> 'good' = '1' AND weight::text = '1.0');
SELECT of_any, of_v2, count(*) FROM events GROUP BY 1, 2 ORDER BY 1, 2;
SELECT * FROM wrong;

-- one of several goes, the last of several goes
DELETE FROM votes WHERE ctid IN (SELECT min(ctid) FROM votes GROUP BY event_id);
SELECT * FROM wrong;
DELETE FROM votes WHERE event_id BETWEEN 10 AND 20;
SELECT * FROM wrong;
INSERT INTO votes (event_id, model, info, weight) VALUES (10, 'v1', '{"good": 1}', 1.0), (10, 'v2', '{"good": 1}', 1.0), (11, 'v2', '{"good": 0}', 1.0),
	(12, 'v2', '{"good": 1}', 1.00), (13, 'v2', '{"good": 1}', 1.0), (13, 'v2', '{"good": 1}', 1.0), (NULL, 'v2', '{"good": 1}', 1.0);
SELECT id, of_any, of_v2 FROM events WHERE id BETWEEN 10 AND 14 ORDER BY id;
SELECT * FROM wrong;

-- updates that make a match, or unmake it, by each column of the condition; the last two compare equal but are not the same
UPDATE votes SET model = 'v2' WHERE event_id = 10;
UPDATE votes SET model = 'v3' WHERE event_id = 13 AND id = (SELECT max(id) FROM votes WHERE event_id = 13);
UPDATE votes SET info = '{"good":  1}' WHERE event_id = 11;
UPDATE votes SET weight = 1.0 WHERE event_id = 12;
SELECT id, of_any, of_v2 FROM events WHERE id BETWEEN 10 AND 14 ORDER BY id;
SELECT * FROM wrong;
UPDATE votes SET weight = 1.000 WHERE event_id IN (11, 12);
SELECT * FROM wrong;
UPDATE votes SET event_id = event_id + 1 WHERE event_id IN (10, 13);
UPDATE votes SET event_id = NULL WHERE event_id = 11;
UPDATE votes SET event_id = 20 WHERE event_id IS NULL AND model = 'v2';
UPDATE votes SET other = 1;
SELECT * FROM wrong;
SELECT id, of_any, of_v2 FROM events WHERE id BETWEEN 10 AND 20 ORDER BY id;

-- a table that is altered under a cached plan
ALTER TABLE votes ADD COLUMN later int DEFAULT 3;
INSERT INTO votes (event_id, model, info, weight) VALUES (90, 'v2', '{"good": 1}', 1.0), (91, 'v1', '{}', 1);
ALTER TABLE votes DROP COLUMN other;
DELETE FROM votes WHERE event_id IN (90, 20);
ALTER TABLE events ADD COLUMN more text DEFAULT 'x';
INSERT INTO votes (event_id, model, info, weight) VALUES (92, 'v2', '{"good": 1}', 1.0), (93, 'v1', '{}', 1);
SELECT * FROM wrong;

-- a sweep finds nothing
SELECT verified_at AS before_sweep FROM bgw_backfill.progress WHERE job = 'v2' \gset
SELECT bgw_backfill.verify('v2');
SELECT format('(SELECT verified_at > %L FROM bgw_backfill.progress WHERE job = ''v2'')', :'before_sweep') AS swept \gset
CALL test.until(:'swept');
SELECT mismatches, errors, last_error FROM bgw_backfill.progress WHERE job = 'v2';

DROP VIEW wrong;
SELECT bgw_backfill.untrack(job) FROM bgw_backfill.jobs ORDER BY job;
CALL test.until('NOT EXISTS (SELECT FROM bgw_backfill.jobs)');
SELECT test.objects('app');
RESET SESSION AUTHORIZATION;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
