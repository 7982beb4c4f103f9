-- What an earlier job has left is taken up by the next one of its name: by untrack() that keeps it, or with the extension.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
SET client_min_messages = warning;
CREATE TABLE events (id bigint PRIMARY KEY, org text, body text);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events);
INSERT INTO events SELECT i, 'org-' || i % 3, CASE WHEN i % 5 > 0 THEN 'x' END FROM generate_series(1, 200) i;
INSERT INTO vectors SELECT i FROM generate_series(1, 100) i;
CREATE FUNCTION made() RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(relname || CASE relkind WHEN 'v' THEN ' view' WHEN 'i' THEN ' index' ELSE ' table' END, ', ' ORDER BY relname)
	FROM pg_class WHERE relnamespace = 'app'::regnamespace AND relname ~ '^events_' AND relname <> 'events_pkey'
$$;
CREATE FUNCTION wrong(OUT missing bigint, OUT stale bigint) LANGUAGE plpgsql AS $$
BEGIN
	SELECT count(*) FROM events e WHERE body IS NOT NULL AND NOT EXISTS (SELECT FROM vectors v WHERE v.event_id = e.id)
		AND NOT EXISTS (SELECT FROM events_pending p WHERE p.id = e.id) INTO missing;
	SELECT count(*) FROM events_pending p LEFT JOIN events e USING (id) WHERE e.body IS NULL OR EXISTS (SELECT FROM vectors v WHERE v.event_id = p.id) INTO stale;
END
$$;
-- to leave, change behind the job's back, take up; which of the objects are the same ones
CREATE PROCEDURE again(mode text, group_by name, pending_where text DEFAULT 'body IS NOT NULL') LANGUAGE plpgsql AS $$
DECLARE
	before oid[];
BEGIN
	PERFORM bgw_backfill.untrack('events', false);
	COMMIT;
	CALL bgw_backfill.wait('events', 'uninstall');
	before := ARRAY[to_regclass('events_pending'), to_regclass('events_sidecar'), to_regclass('events_sidecar_idx'), to_regclass('events_pending_idx')];
	RAISE WARNING 'left: %', made();
	DELETE FROM vectors WHERE event_id % 4 = 1;
	INSERT INTO vectors SELECT id FROM events WHERE id > 190 AND body IS NOT NULL ON CONFLICT DO NOTHING;
	UPDATE events SET body = CASE WHEN body IS NULL THEN 'y' END WHERE id IN (150, 151, 155);
	DELETE FROM events WHERE id = 149;
	PERFORM bgw_backfill.track('events', 'vectors', mode => mode, group_by => group_by, pending_where => pending_where);
	COMMIT;
	CALL bgw_backfill.wait('events', timeout => '1 min');
	RAISE WARNING 'made: %', made();
	RAISE WARNING 'the same: view %, sidecar %, its index %, index %', before[1] IS NOT DISTINCT FROM to_regclass('events_pending'),
		before[2] = to_regclass('events_sidecar'), before[3] = to_regclass('events_sidecar_idx'), before[4] = to_regclass('events_pending_idx');
END
$$;
SELECT bgw_backfill.track('events', 'vectors', group_by => 'org', pending_where => 'body IS NOT NULL');
CALL bgw_backfill.wait('events');
CALL again('column', 'org');
SELECT * FROM wrong();
-- another condition, another group: what does not fit is made anew
CALL again('column', 'org', 'body IS NOT NULL AND id > 0');
SELECT * FROM wrong();
CALL again('column', NULL);
SELECT * FROM wrong();
-- other modes
CALL again('sidecar', 'org');
SELECT * FROM wrong();
CALL again('sidecar', 'org');
SELECT * FROM wrong();
CALL again('sidecar', NULL);
SELECT * FROM wrong();
CALL again('watermark', NULL);
CALL again('watermark', 'org');
SELECT * FROM wrong();
CALL again('column', 'org');
SELECT * FROM wrong();
SELECT mode, group_by, pending_where FROM bgw_backfill.jobs;

-- with the extension, in each mode; what is taken up is said
CREATE PROCEDURE recreate() LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL client_min_messages = error;
	DROP EXTENSION bgw_backfill CASCADE;
	CREATE EXTENSION bgw_backfill;
END
$$;
RESET SESSION AUTHORIZATION;
CALL app.recreate();
SET SESSION AUTHORIZATION regress_owner;
SELECT made();
SET client_min_messages = notice;
SELECT bgw_backfill.track('events', 'vectors', group_by => 'org', pending_where => 'body IS NOT NULL');
SET client_min_messages = warning;
CALL bgw_backfill.wait('events');
SELECT * FROM wrong();
CALL again('sidecar', 'org');
RESET SESSION AUTHORIZATION;
CALL app.recreate();
SET SESSION AUTHORIZATION regress_owner;
SELECT made();
SET client_min_messages = notice;
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org', pending_where => 'body IS NOT NULL', dry_run => true);
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org', pending_where => 'body IS NOT NULL');
SET client_min_messages = warning;
CALL bgw_backfill.wait('events');
SELECT * FROM wrong();
-- all of it goes, whoever made it first: the flag as well
SELECT bgw_backfill.untrack('events');
CALL bgw_backfill.wait('events', 'uninstall');
SELECT made();
SELECT bgw_backfill.track('events', 'vectors', group_by => 'org', pending_where => 'body IS NOT NULL');
CALL bgw_backfill.wait('events');
CALL again('column', 'org');
SELECT bgw_backfill.untrack('events');
CALL bgw_backfill.wait('events', 'uninstall');
SELECT made(), count(*) FROM pg_attribute WHERE attrelid = 'events'::regclass AND attname = 'has_embedding';

-- what is a user's own is never taken; the hint's statement clears the way
CREATE VIEW events_pending AS SELECT id, org FROM events;
CREATE TABLE events_sidecar (id bigint NOT NULL, org text, enqueued_at timestamptz NOT NULL DEFAULT now());
CREATE INDEX events_pending_idx ON events (org, id);
ALTER TABLE vectors ADD CONSTRAINT events_sidecar_idx UNIQUE (event_id);
CREATE TYPE events_sidecar_key AS (a int);
COMMENT ON VIEW events_pending IS 'pending rows of job events';
\set VERBOSITY default
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org');
DROP VIEW app.events_pending;
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org');
DROP TABLE app.events_sidecar;
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org');
DROP TYPE app.events_sidecar_key;
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org');
ALTER TABLE app.vectors DROP CONSTRAINT events_sidecar_idx;
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org');
DROP INDEX app.events_pending_idx;
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org');
CALL bgw_backfill.wait('events');
-- nor is what somebody else has called so
SELECT bgw_backfill.untrack('events', false);
CALL bgw_backfill.wait('events', 'uninstall');
RESET SESSION AUTHORIZATION;
CREATE ROLE regress_other;
GRANT CREATE ON SCHEMA app TO regress_other;
ALTER VIEW app.events_pending OWNER TO regress_other;
SET SESSION AUTHORIZATION regress_owner;
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org');
RESET SESSION AUTHORIZATION;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
DROP ROLE regress_other;
