-- track() refuses an owner as whom no worker could connect or create, and a source that could not be updated.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common
\t on

SELECT current_database() AS db \gset
CREATE ROLE regress_other LOGIN;
CREATE SCHEMA side;
GRANT USAGE, CREATE ON SCHEMA side TO regress_owner;
SET search_path = app;
SET ROLE regress_owner;
CREATE TABLE events (id bigint PRIMARY KEY, org text);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events, v int);
CREATE TABLE side.events (id bigint PRIMARY KEY);
CREATE TABLE side.vectors (event_id bigint PRIMARY KEY REFERENCES side.events);
RESET ROLE;
SELECT test.objects('app') || test.objects('side') AS before \gset
CREATE FUNCTION test.track(more text DEFAULT 'dry_run => false') RETURNS text LANGUAGE sql AS
	$$SELECT test.refused(format('SELECT bgw_backfill.track(%L, %L, %s)', 'app.events', 'app.vectors', more))$$;

-- a superuser may track for an owner who could do it himself
SELECT test.track();

-- one owner for both
ALTER TABLE vectors OWNER TO regress_other;
SELECT test.track();
GRANT regress_other TO regress_owner;
SET ROLE regress_owner;
SELECT test.track();
RESET ROLE;
REVOKE regress_other FROM regress_owner;
ALTER TABLE vectors OWNER TO regress_owner;

-- a member of the owner role may, too
CREATE ROLE regress_member LOGIN;
GRANT USAGE ON SCHEMA app TO regress_member;
SET ROLE regress_member;
SELECT test.track();
RESET ROLE;
GRANT regress_owner TO regress_member;
SET ROLE regress_member;
SELECT test.track();
RESET ROLE;

-- CONNECT
REVOKE CONNECT ON DATABASE :"db" FROM PUBLIC;
SELECT replace(test.track(), :'db', 'DB');
GRANT CONNECT ON DATABASE :"db" TO regress_owner;
SELECT test.track();
REVOKE CONNECT ON DATABASE :"db" FROM regress_owner;
GRANT CONNECT ON DATABASE :"db" TO PUBLIC;

-- CREATE and USAGE on the source's schema
SELECT test.refused($$SELECT bgw_backfill.track('side.events', 'side.vectors')$$);
REVOKE CREATE ON SCHEMA side FROM regress_owner;
SELECT test.refused($$SELECT bgw_backfill.track('side.events', 'side.vectors')$$);
GRANT CREATE ON SCHEMA side TO regress_owner;
REVOKE USAGE ON SCHEMA side FROM regress_owner;
SELECT test.refused($$SELECT bgw_backfill.track('side.events', 'side.vectors')$$);
GRANT USAGE ON SCHEMA side TO regress_owner;

-- CREATE on the source's tablespace
SET allow_in_place_tablespaces = true;
CREATE TABLESPACE regress_space LOCATION '';
ALTER TABLE events SET TABLESPACE regress_space;
SELECT test.track();
GRANT CREATE ON TABLESPACE regress_space TO regress_owner;
SELECT test.track();
ALTER TABLE events SET TABLESPACE pg_default;
REVOKE CREATE ON TABLESPACE regress_space FROM regress_owner;
DROP TABLESPACE regress_space;

-- row-level security that applies to the owner
ALTER TABLE events ENABLE ROW LEVEL SECURITY;
SELECT test.track();
ALTER TABLE events FORCE ROW LEVEL SECURITY;
SELECT test.track();
ALTER TABLE events DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;
ALTER TABLE vectors ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
SELECT test.track();
ALTER ROLE regress_owner BYPASSRLS;
SELECT test.track();
ALTER ROLE regress_owner NOBYPASSRLS;
ALTER TABLE vectors DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;

-- rules: on UPDATE of the source only
CREATE RULE quiet AS ON INSERT TO events WHERE false DO INSTEAD NOTHING;
CREATE RULE quiet AS ON UPDATE TO vectors WHERE false DO INSTEAD NOTHING;
SELECT test.track();
CREATE RULE frozen AS ON UPDATE TO events DO INSTEAD NOTHING;
SELECT test.track();
DROP RULE frozen ON events;
DROP RULE quiet ON events;
DROP RULE quiet ON vectors;

-- publications: of UPDATE, without replica identity
SET client_min_messages = error;	-- wal_level is of no concern here
ALTER TABLE events REPLICA IDENTITY NOTHING;
SELECT test.track();
CREATE PUBLICATION regress_publication FOR TABLE events WITH (publish = 'insert, truncate');
SELECT test.track();
ALTER PUBLICATION regress_publication SET (publish = 'insert, update');
SELECT test.track();
ALTER TABLE events REPLICA IDENTITY FULL;
SELECT test.track();
ALTER TABLE events REPLICA IDENTITY DEFAULT;
SELECT test.track();
DROP PUBLICATION regress_publication;
ALTER TABLE events REPLICA IDENTITY NOTHING;
CREATE PUBLICATION regress_publication FOR ALL TABLES;
SELECT test.track();
DROP PUBLICATION regress_publication;
ALTER TABLE events REPLICA IDENTITY DEFAULT;
RESET client_min_messages;

-- the modes there are, and what is none
SELECT x, test.track(format('mode => %L', x)) FROM unnest('{column,sidecar,watermark,Column,nonsense,""}'::text[]) x;
SELECT test.track('mode => NULL');
SELECT test.track('dry_run => NULL');
SELECT test.track('handler => ''now()''');

-- read-only transactions
BEGIN READ ONLY;
SELECT test.track();
ROLLBACK;

-- nothing is left behind
SELECT count(*) FROM bgw_backfill.job;
SELECT count(*) FROM bgw_backfill.job_state;
SELECT test.objects('app') || test.objects('side') = :'before';
SET client_min_messages = warning;
DROP SCHEMA app, side CASCADE;
DROP ROLE regress_member, regress_other;
