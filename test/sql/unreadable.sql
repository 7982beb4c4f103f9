-- Text that was stored and can no longer be read: an enum's label that has another name, a range over a domain with another check.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TYPE org AS ENUM ('a', 'b', 'c');
CREATE TABLE events (id bigint PRIMARY KEY, org org);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events);
INSERT INTO events SELECT i, ('{a,b,c}'::org[])[1 + i % 3] FROM generate_series(0, 8) i;
SELECT bgw_backfill.track('events', 'vectors', group_by => 'org');
SELECT bgw_backfill.configure('events', 'scan_interval', '1s');
CALL bgw_backfill.wait('events');
CALL test.until('(SELECT pending = 9 FROM bgw_backfill.progress)');
-- the turn has come to b, a scan's round too, a passed group and a stretch of groups that are stepped over are called so
SELECT key, group_key FROM bgw_backfill.claim('events', 2, '1 hour') ORDER BY 1;
RESET SESSION AUTHORIZATION;
UPDATE bgw_backfill.job_state SET scan_group = 'b';
INSERT INTO bgw_backfill.stretch (job, after_group, upto_group, until) VALUES ('events', 'a', 'b', clock_timestamp() + interval '1 hour');
INSERT INTO bgw_backfill.passed (job, group_key, key, looked_on) VALUES ('events', 'b', '1', 'epoch');
SELECT scans AS scans FROM bgw_backfill.job_state \gset
ALTER TYPE app.org RENAME VALUE 'b' TO 'z';
SET SESSION AUTHORIZATION regress_owner;
-- the next claim begins with the first group
SELECT key, group_key FROM bgw_backfill.claim('events', 1, '1 hour');
RESET SESSION AUTHORIZATION;
CALL test.until(format('(SELECT scans > %s + 1 FROM bgw_backfill.job_state)', :scans));
CALL test.until($$(SELECT count(*) = 0 FROM bgw_backfill.passed WHERE group_key = 'b')$$);
SELECT job, state IN ('idle', 'sleeping', 'running') AS well, errors, last_error FROM bgw_backfill.progress;
SELECT group_key, pending FROM bgw_backfill.pending_groups ORDER BY 1;

-- only an error of the text itself means that: what the check of a domain says of the server is passed on
SET SESSION AUTHORIZATION regress_owner;
SELECT bgw_backfill.untrack('events');
CALL test.until('(SELECT count(*) = 0 FROM bgw_backfill.progress)');
CREATE FUNCTION fine(integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
CREATE DOMAIN day AS integer CHECK (app.fine(VALUE));
CREATE TYPE term AS RANGE (subtype = day);
CREATE TABLE uploads (id bigint PRIMARY KEY, term term);
CREATE TABLE thumbs (upload_id bigint PRIMARY KEY REFERENCES uploads);
INSERT INTO uploads SELECT i, term(i % 3, i % 3 + 7) FROM generate_series(0, 8) i;
SELECT bgw_backfill.track('uploads', 'thumbs', group_by => 'term');
SELECT bgw_backfill.configure('uploads', 'scan_interval', '7d');
CALL bgw_backfill.wait('uploads');
CALL test.until('(SELECT pending = 9 FROM bgw_backfill.progress)');
SELECT key, group_key FROM bgw_backfill.claim('uploads', 2, '1 hour') ORDER BY 1;
CREATE OR REPLACE FUNCTION fine(integer) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE 'no more room' USING errcode = 'out_of_memory'; END $$;
SELECT key, group_key FROM bgw_backfill.claim('uploads', 2, '1 hour') ORDER BY 1;
CREATE OR REPLACE FUNCTION fine(integer) RETURNS boolean LANGUAGE plpgsql AS
	$$ BEGIN RAISE 'cancelled' USING errcode = 'query_canceled'; END $$;
SELECT key, group_key FROM bgw_backfill.claim('uploads', 2, '1 hour') ORDER BY 1;
CREATE OR REPLACE FUNCTION fine(integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN $1 <> 1; END';
SELECT key, group_key FROM bgw_backfill.claim('uploads', 1, '1 hour');

-- a job's name is no word of a message: its flag is gone, not the flag's default
CREATE OR REPLACE FUNCTION fine(integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
SELECT bgw_backfill.untrack('uploads');
CALL test.until('(SELECT count(*) = 0 FROM bgw_backfill.progress)');
SELECT bgw_backfill.track('uploads', 'thumbs', job => 'default_x', flag_column => 'default_flag');
CALL bgw_backfill.wait('default_x');
SELECT bgw_backfill.pause('default_x');
CALL test.until($$(SELECT worker_pid IS NULL AND state = 'paused' FROM bgw_backfill.progress)$$);
SET client_min_messages = warning;
ALTER TABLE uploads DROP COLUMN default_flag CASCADE;
INSERT INTO thumbs VALUES (1);
