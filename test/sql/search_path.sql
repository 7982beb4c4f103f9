-- A condition means what it meant when the job was tracked, whatever the search path of worker, writer or reader.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

CREATE ROLE regress_reader LOGIN;
CREATE SCHEMA hostile AUTHORIZATION regress_reader;
CREATE SCHEMA tracker AUTHORIZATION regress_owner;
GRANT USAGE ON SCHEMA app, hostile, tracker TO PUBLIC;

-- the caller's own operator and function, before the server's of the same name
SET SESSION AUTHORIZATION regress_owner;
CREATE FUNCTION tracker.never(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT false';
CREATE FUNCTION tracker.lower(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$BEGIN RETURN 'LOW'; END$$;
CREATE OPERATOR tracker.<> (FUNCTION = tracker.never, LEFTARG = text, RIGHTARG = text);
CREATE DOMAIN tracker.short AS text;
CREATE TABLE app.events (id bigint PRIMARY KEY, body text, "Odd Name" text, flag2 boolean);
CREATE TABLE app.vectors (event_id bigint PRIMARY KEY REFERENCES app.events, model text);
INSERT INTO app.events SELECT i, CASE WHEN i % 2 = 0 THEN 'body' ELSE '' END, 'x' FROM generate_series(1, 10) i;
INSERT INTO app.vectors VALUES (2, 'v1'), (4, 'v2');

SET search_path = pg_catalog, app;
SELECT bgw_backfill.track('events', 'vectors', job => 'plain', pending_where => $$body <> ''$$);
SET search_path = tracker, pg_catalog, app;
SELECT bgw_backfill.track('events', 'vectors', job => 'shadowed', flag_column => 'flag2',
	pending_where => $$lower(body) = 'LOW' AND "Odd Name"::short = 'x' OR body <> ''$$,
	match_where => $$lower(model) = 'LOW' AND model <> 'v1' IS NOT TRUE$$);
RESET search_path;
CALL bgw_backfill.wait('plain');
CALL bgw_backfill.wait('shadowed');
SELECT job, pending_where, match_where FROM bgw_backfill.jobs ORDER BY job;
SELECT array_agg(id ORDER BY id) FROM app.plain_pending;
SELECT array_agg(id ORDER BY id) FROM app.shadowed_pending;

-- the writer
GRANT SELECT ON app.events, app.plain_pending, app.shadowed_pending TO regress_reader;
GRANT INSERT, DELETE, SELECT ON app.vectors TO regress_reader;
RESET SESSION AUTHORIZATION;
SET SESSION AUTHORIZATION regress_reader;
CREATE FUNCTION hostile.always(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE FUNCTION hostile.always(bigint, bigint) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE FUNCTION hostile.always(tid, tid) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE FUNCTION hostile.not_it(boolean) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';
CREATE OPERATOR hostile.<> (FUNCTION = hostile.always, LEFTARG = text, RIGHTARG = text);
CREATE OPERATOR hostile.= (FUNCTION = hostile.always, LEFTARG = text, RIGHTARG = text);
CREATE OPERATOR hostile.= (FUNCTION = hostile.always, LEFTARG = bigint, RIGHTARG = bigint);
CREATE OPERATOR hostile.= (FUNCTION = hostile.always, LEFTARG = tid, RIGHTARG = tid);
CREATE FUNCTION hostile.lower(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'high'$$;
CREATE TEMPORARY TABLE events (id bigint, body text, has_embedding boolean);
CREATE TEMPORARY TABLE vectors (event_id bigint);
SET search_path = hostile, pg_temp, pg_catalog, app;
INSERT INTO app.vectors VALUES (6, 'v1');
DELETE FROM app.vectors WHERE event_id OPERATOR(pg_catalog.=) 2;

-- the reader
SELECT array_agg(id ORDER BY id) FROM app.plain_pending;
SELECT array_agg(id ORDER BY id) FROM app.shadowed_pending;
SELECT array_agg(id ORDER BY id) FROM app.events WHERE has_embedding;
SELECT array_agg(id ORDER BY id) FROM app.events WHERE flag2;
RESET search_path;
SELECT array_agg(id ORDER BY id) FROM app.plain_pending;

-- the view gives no more than the reader has
RESET SESSION AUTHORIZATION;
REVOKE SELECT ON app.events FROM regress_reader;
SET SESSION AUTHORIZATION regress_reader;
SELECT array_agg(id ORDER BY id) FROM app.plain_pending;

RESET SESSION AUTHORIZATION;
SELECT bgw_backfill.untrack(job) FROM bgw_backfill.jobs ORDER BY job;
CALL bgw_backfill.wait('plain', 'uninstall');
CALL bgw_backfill.wait('shadowed', 'uninstall');
SET client_min_messages = warning;
DROP TABLE pg_temp.events, pg_temp.vectors;
DROP SCHEMA app, hostile, tracker CASCADE;
DROP ROLE regress_reader;
