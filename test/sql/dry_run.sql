-- dry_run says what would be done, and does nothing.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org text, body text);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events, model text);
CREATE TABLE votes (event_id bigint NOT NULL, vote int, adopted boolean);
CREATE INDEX ON votes (event_id);
INSERT INTO events SELECT i, 'org-' || i % 10, 'body' FROM generate_series(1, 25000) i;
INSERT INTO vectors SELECT i, 'v1' FROM generate_series(1, 24000) i;
ANALYZE events, vectors, votes;
SELECT test.objects('app') AS before \gset

SELECT bgw_backfill.track('events', 'vectors', dry_run => true);
SELECT bgw_backfill.track('events', 'vectors', job => 'Odd "name"', flag_column => 'Odd flag',
	pending_where => $$body IS NOT NULL AND body <> ''$$, match_where => $$model = 'v2'$$, group_by => 'org', dry_run => true);

-- several target rows for a source row, no foreign key
SELECT bgw_backfill.track('events', 'votes', target_key => 'event_id', dry_run => true);

-- columns that are there already
ALTER TABLE events ADD COLUMN nullable boolean, ADD COLUMN strict boolean NOT NULL DEFAULT false;
SELECT bgw_backfill.track('events', 'vectors', flag_column => 'nullable', dry_run => true);
SELECT bgw_backfill.track('events', 'vectors', flag_column => 'strict', dry_run => true);
ALTER TABLE events DROP COLUMN nullable, DROP COLUMN strict;

-- hazards: triggers of the user's that each write would fire
CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER before_update BEFORE UPDATE ON events FOR EACH ROW EXECUTE FUNCTION touched();
CREATE TRIGGER on_org AFTER UPDATE OF org ON events FOR EACH ROW EXECUTE FUNCTION touched();
CREATE TRIGGER after_insert AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION touched();
CREATE TRIGGER disabled AFTER UPDATE ON events FOR EACH ROW EXECUTE FUNCTION touched();
ALTER TABLE events DISABLE TRIGGER disabled;
SELECT bgw_backfill.track('events', 'vectors', dry_run => true);
DROP TRIGGER before_update ON events;
DROP TRIGGER on_org ON events;
DROP TRIGGER after_insert ON events;
DROP TRIGGER disabled ON events;
DROP FUNCTION touched;

-- an empty source
CREATE TABLE nothing (id int PRIMARY KEY);
CREATE TABLE of_nothing (id int PRIMARY KEY REFERENCES nothing);
SELECT bgw_backfill.track('nothing', 'of_nothing', dry_run => true);
DROP TABLE of_nothing, nothing;

-- what is refused is refused in the same words
SELECT bgw_backfill.track('events', 'vectors', pending_where => 'true) OR (true', dry_run => true);
SELECT bgw_backfill.track('events', 'events', dry_run => true);

-- no lock that lasts
BEGIN;
SET LOCAL client_min_messages = warning;
SELECT bgw_backfill.track('events', 'vectors', dry_run => true);
SELECT bgw_backfill.track('events', 'vectors');
SELECT relation::regclass, mode FROM pg_locks
WHERE pid = pg_backend_pid() AND relation IN ('events'::regclass, 'vectors'::regclass)
	AND mode NOT IN ('AccessShareLock');
ROLLBACK;

-- nothing is left behind
RESET SESSION AUTHORIZATION;
SELECT count(*) FROM bgw_backfill.job;
SELECT count(*) FROM bgw_backfill.job_state;
SET search_path = app;
SELECT test.objects('app') = :'before';
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
