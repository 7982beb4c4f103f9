-- Wide rows: what follows a statement copies none of them, and so needs no temporary file.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, body text);
CREATE TABLE other_events (id bigint PRIMARY KEY, body text);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events ON DELETE CASCADE, v real[]);
CREATE TABLE other_vectors (event_id bigint PRIMARY KEY, v real[]);
INSERT INTO events SELECT i, 'body' FROM generate_series(1, 2000) i;
INSERT INTO other_events TABLE events;
SELECT bgw_backfill.track('events', 'vectors', job => 'a', flag_column => 'flag');
SELECT bgw_backfill.track('events', 'vectors', job => 'b', mode => 'sidecar');
SELECT bgw_backfill.track('other_events', 'other_vectors', job => 'c', flag_column => 'flag', target_key => 'event_id', source_key => 'id');
SELECT bgw_backfill.track('other_events', 'other_vectors', job => 'd', mode => 'sidecar', target_key => 'event_id', source_key => 'id');
CALL test.until('(SELECT bool_and(phase = ''live'') FROM bgw_backfill.progress)');
CREATE VIEW counts AS
SELECT (SELECT count(*) FROM a_pending) AS a, (SELECT count(*) FROM b_pending) AS b, (SELECT count(*) FROM c_pending) AS c, (SELECT count(*) FROM d_pending) AS d;
TABLE counts;

-- What a statement writes to temporary files, its triggers included.
CREATE FUNCTION temporary(statement text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	line text;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF) ' || statement LOOP
		IF line ~ 'temp' THEN
			RETURN NEXT line;
		END IF;
	END LOOP;
END $$;
SET work_mem = '1MB';
-- what a transition table would do
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
BEGIN;
CREATE TRIGGER copies AFTER INSERT ON vectors REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION nothing();
SELECT count(*) > 0 AS copied FROM temporary($$INSERT INTO vectors SELECT i, (SELECT array_agg(random()::real) FROM generate_series(1, 1536 + 0 * i)) FROM generate_series(1, 2000) i$$);
ROLLBACK;
-- ours
SELECT temporary($$INSERT INTO vectors SELECT i, (SELECT array_agg(random()::real) FROM generate_series(1, 1536 + 0 * i)) FROM generate_series(1, 2000) i$$);
SELECT temporary($$INSERT INTO other_vectors TABLE vectors$$);
TABLE counts;
SELECT temporary($$DELETE FROM vectors WHERE event_id > 1$$);
SELECT temporary($$DELETE FROM other_vectors WHERE event_id > 1$$);
TABLE counts;
SELECT temporary($$INSERT INTO events SELECT i, repeat(md5(i::text), 100) FROM generate_series(3001, 5000) i$$);
SELECT temporary($$INSERT INTO other_events SELECT i, repeat(md5(i::text), 100) FROM generate_series(3001, 5000) i$$);
TABLE counts;

DROP VIEW counts;
SELECT count(bgw_backfill.untrack(job)) FROM bgw_backfill.jobs;
CALL test.until('NOT EXISTS (SELECT FROM bgw_backfill.jobs)');
RESET SESSION AUTHORIZATION;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
