-- Who may read the table of pending keys: who may read the source's keys, and nobody else, whatever has been granted
-- or revoked since.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

CREATE ROLE regress_table;
CREATE ROLE regress_columns;
CREATE ROLE regress_key;
CREATE ROLE regress_later;
CREATE ROLE regress_org;
CREATE ROLE regress_bypass BYPASSRLS;
CREATE ROLE regress_bypassers BYPASSRLS;
CREATE ROLE regress_member;
GRANT regress_bypassers TO regress_member;
GRANT USAGE ON SCHEMA app TO PUBLIC;
SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org text, body text);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events);
INSERT INTO events SELECT i, 'org', 'x' FROM generate_series(1, 5) i;
ANALYZE events, vectors;
GRANT SELECT ON events TO regress_table, regress_bypass, regress_bypassers;
GRANT SELECT (id, org) ON events TO regress_columns;
GRANT SELECT (id) ON events TO regress_key;
CREATE FUNCTION rights() RETURNS TABLE (role text, rights text) LANGUAGE sql AS $$
	SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, string_agg(a.privilege_type || CASE WHEN is_grantable THEN '*' ELSE '' END, ' ' ORDER BY privilege_type)
	FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = to_regclass('app.events_sidecar') AND a.grantee <> c.relowner GROUP BY a.grantee
	UNION ALL SELECT a.grantee::regrole::text, 'of column ' || attname FROM pg_attribute, aclexplode(attacl) a WHERE attrelid = to_regclass('app.events_sidecar')
	ORDER BY 1, 2 $$;

-- what is going to be granted is said before
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org', dry_run => true);
SELECT bgw_backfill.track('events', 'vectors', mode => 'sidecar', group_by => 'org');
CALL bgw_backfill.wait('events');
SELECT bgw_backfill.configure('events', 'scan_interval', '1s');
SELECT * FROM rights();

-- a REVOKE of the source, what the owner has granted himself, and who may read the source now
REVOKE SELECT ON events FROM regress_table;
REVOKE SELECT (org) ON events FROM regress_columns;
GRANT ALL ON events_sidecar TO regress_key WITH GRANT OPTION;
GRANT SELECT (id) ON events_sidecar TO regress_key;
GRANT TRIGGER ON events_sidecar TO PUBLIC, regress_bypass;
GRANT SELECT ON events TO regress_later;
CALL test.until('has_table_privilege(''regress_later'', ''app.events_sidecar'', ''SELECT'')');
SELECT * FROM rights();
RESET SESSION AUTHORIZATION;
SET ROLE regress_table;
SELECT * FROM app.events_sidecar;
RESET ROLE;
SET SESSION AUTHORIZATION regress_owner;

-- what somebody has passed on goes with his right to do so; who may read it keeps it
BEGIN;
GRANT SELECT ON events TO regress_table;
GRANT SELECT ON events_sidecar TO regress_later WITH GRANT OPTION;
SET LOCAL SESSION AUTHORIZATION regress_later;
GRANT SELECT ON events_sidecar TO regress_table;
COMMIT;
CALL test.until('NOT has_table_privilege(''regress_later'', ''app.events_sidecar'', ''SELECT WITH GRANT OPTION'')');
SELECT * FROM rights();

-- who may read one of the columns, and everybody the other
GRANT SELECT (org) ON events TO regress_org;
GRANT SELECT (id) ON events TO PUBLIC;
CALL test.until('has_table_privilege(''regress_org'', ''app.events_sidecar'', ''SELECT'')');
REVOKE SELECT (id) ON events FROM PUBLIC;
CALL test.until('NOT has_table_privilege(''regress_org'', ''app.events_sidecar'', ''SELECT'')');
SELECT * FROM rights();

-- before anything that may keep the job from going on
BEGIN;
ALTER TABLE events_sidecar ADD COLUMN extra integer NOT NULL DEFAULT 1;
ALTER TABLE events_sidecar ALTER COLUMN extra DROP DEFAULT;
GRANT TRIGGER, SELECT ON events_sidecar TO PUBLIC;
COMMIT;
CALL test.until('(SELECT state = ''failed'' FROM bgw_backfill.progress)');
SELECT last_error FROM bgw_backfill.progress;
SELECT * FROM rights();
ALTER TABLE events_sidecar DROP COLUMN extra;
SELECT bgw_backfill.resume('events');
CALL bgw_backfill.wait('events');

-- row security: only whom it does not bind, and whose rights nobody else has
ALTER TABLE events ENABLE ROW LEVEL SECURITY;
CALL test.until('NOT has_table_privilege(''regress_later'', ''app.events_sidecar'', ''SELECT'')');
SELECT * FROM rights();
SELECT bgw_backfill.track('events', 'vectors', job => 'again', mode => 'watermark', group_by => 'org', dry_run => true);
ALTER TABLE events DISABLE ROW LEVEL SECURITY;
GRANT SELECT ON events TO PUBLIC;
CALL test.until('has_table_privilege(''regress_table'', ''app.events_sidecar'', ''SELECT'')');
SELECT * FROM rights();

SELECT bgw_backfill.untrack('events');
CALL bgw_backfill.wait('events', 'uninstall');

-- a flag is granted to who may read key and group; a move says what it will grant
REVOKE SELECT ON events FROM PUBLIC;
GRANT SELECT (id, org) ON events TO regress_columns;
SELECT bgw_backfill.track('events', 'vectors', group_by => 'org', dry_run => true);
SELECT bgw_backfill.track('events', 'vectors', group_by => 'org');
CALL bgw_backfill.wait('events');
SELECT has_column_privilege('regress_columns', 'app.events', 'has_embedding', 'SELECT');
SELECT bgw_backfill.configure('events', 'mode', 'watermark');
SELECT bgw_backfill.untrack('events');
CALL bgw_backfill.wait('events', 'uninstall');

-- in the middle of a long fill as well
CREATE TABLE many (id bigint PRIMARY KEY);
CREATE TABLE of_many (many_id bigint PRIMARY KEY REFERENCES many);
INSERT INTO many SELECT generate_series(1, 5000);
GRANT SELECT ON many TO regress_table;
BEGIN;
SELECT bgw_backfill.track('many', 'of_many', mode => 'sidecar');
SELECT count(*) AS settings FROM (VALUES ('batch_size', '1'), ('batch_sleep', '50ms'), ('scan_interval', '1s')) s (name, value),
	LATERAL bgw_backfill.configure('many', name, value);
COMMIT;
CALL test.until('(SELECT phase = ''fill'' AND batches > 1 FROM bgw_backfill.progress)');
SELECT has_table_privilege('regress_table', 'many_sidecar', 'SELECT');
REVOKE SELECT ON many FROM regress_table;
CALL test.until('NOT has_table_privilege(''regress_table'', ''app.many_sidecar'', ''SELECT'')');
SELECT phase FROM bgw_backfill.progress;
SELECT bgw_backfill.untrack('many');
CALL bgw_backfill.wait('many', 'uninstall');
RESET SESSION AUTHORIZATION;
DROP SCHEMA app CASCADE;
DROP ROLE regress_table, regress_columns, regress_key, regress_later, regress_org, regress_bypass, regress_bypassers, regress_member;
