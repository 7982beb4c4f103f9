-- Who sees what, and who may do what.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

CREATE ROLE regress_member LOGIN;
CREATE ROLE regress_noinherit LOGIN NOINHERIT;
CREATE ROLE regress_stats LOGIN;
CREATE ROLE regress_stranger LOGIN;
CREATE ROLE regress_group;
GRANT regress_owner TO regress_member, regress_noinherit;
GRANT pg_read_all_stats TO regress_stats;
CREATE SCHEMA strange AUTHORIZATION regress_stranger;
GRANT USAGE ON SCHEMA app TO PUBLIC;

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org text);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events, v int);
INSERT INTO events SELECT i, 'org-' || i % 2 FROM generate_series(1, 10) i;
SELECT bgw_backfill.track('events', 'vectors', group_by => 'org', pending_where => 'id < 9');
CALL bgw_backfill.wait('events');
RESET SESSION AUTHORIZATION;
SET SESSION AUTHORIZATION regress_stranger;
SET search_path = strange;
CREATE TABLE mine (id bigint PRIMARY KEY);
CREATE TABLE of_mine (id bigint PRIMARY KEY REFERENCES mine);
INSERT INTO mine SELECT generate_series(1, 3);
SELECT bgw_backfill.track('mine', 'of_mine');
CALL bgw_backfill.wait('mine');
RESET SESSION AUTHORIZATION;
CALL test.until('(SELECT count(pending) = 2 FROM bgw_backfill.progress)');

-- what each sees
CREATE VIEW test.seen AS
SELECT (SELECT string_agg(job, ' ' ORDER BY job) FROM bgw_backfill.jobs) AS jobs,
	(SELECT string_agg(job, ' ' ORDER BY job) FROM bgw_backfill.progress) AS progress,
	(SELECT string_agg(job || ':' || coalesce(group_key, '-') || ':' || pending, ' ' ORDER BY job, group_key) FROM bgw_backfill.pending_groups) AS groups;
ALTER VIEW test.seen SET (security_invoker = true);
GRANT SELECT ON test.seen TO PUBLIC;
TABLE test.seen;
SET SESSION AUTHORIZATION regress_owner;
TABLE test.seen;
SET SESSION AUTHORIZATION regress_member;
TABLE test.seen;
SET SESSION AUTHORIZATION regress_noinherit;
TABLE test.seen;
SET SESSION AUTHORIZATION regress_stats;
TABLE test.seen;
SELECT count(*) >= 0 FROM bgw_backfill.worker_status();
SET SESSION AUTHORIZATION regress_stranger;
TABLE test.seen;
SET SESSION AUTHORIZATION regress_group;
TABLE test.seen;

-- a condition of the reader's that leaks what it is given
CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
	$$BEGIN RAISE NOTICE 'leak: %', $1; RETURN true; END$$;
SELECT job FROM bgw_backfill.jobs WHERE pg_temp.leak(pending_where);
SELECT job FROM bgw_backfill.progress WHERE pg_temp.leak(source);
SELECT job FROM bgw_backfill.pending_groups WHERE pg_temp.leak(group_key);
DROP FUNCTION pg_temp.leak;

-- no rights on what is beneath
SET SESSION AUTHORIZATION regress_owner;
SELECT * FROM bgw_backfill.job;
SELECT * FROM bgw_backfill.job_state;
SELECT * FROM bgw_backfill.job_skipped;
SELECT * FROM bgw_backfill.pending_group;
SELECT * FROM bgw_backfill.visible_job;
INSERT INTO bgw_backfill.job (job) VALUES ('x');
UPDATE bgw_backfill.job_state SET phase = 'live';
DELETE FROM bgw_backfill.job;
TRUNCATE bgw_backfill.job;
UPDATE bgw_backfill.jobs SET paused = true;
DELETE FROM bgw_backfill.progress;
CREATE TABLE bgw_backfill.mine ();
SELECT relname, relkind FROM pg_class WHERE relnamespace = 'bgw_backfill'::regnamespace AND relkind IN ('r', 'v', 'S')
	AND has_table_privilege('public', oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') ORDER BY 1;

-- the view of pending rows is a matter of grants, and of those on the source
SET SESSION AUTHORIZATION regress_stranger;
SELECT count(*) FROM app.events_pending;
SET SESSION AUTHORIZATION regress_owner;
GRANT SELECT ON app.events_pending TO regress_stranger;
SET SESSION AUTHORIZATION regress_stranger;
SELECT count(*) FROM app.events_pending;
SET SESSION AUTHORIZATION regress_owner;
GRANT SELECT ON app.events TO regress_stranger;
SET SESSION AUTHORIZATION regress_stranger;
SELECT count(*) FROM app.events_pending;

-- who may write the target need have no right on the source
SET SESSION AUTHORIZATION regress_owner;
GRANT INSERT, DELETE, TRUNCATE, SELECT ON app.vectors TO regress_stranger;
REVOKE SELECT ON app.events FROM regress_stranger;
SET SESSION AUTHORIZATION regress_stranger;
INSERT INTO app.vectors VALUES (1, 1), (2, 1);
DELETE FROM app.vectors WHERE event_id = 2;
UPDATE app.events SET has_embedding = true;
SET SESSION AUTHORIZATION regress_owner;
SELECT id FROM app.events WHERE has_embedding;

-- a trigger on a stranger's table that gives somebody else's job
SET SESSION AUTHORIZATION regress_stranger;
SET search_path = strange;
CREATE TABLE trap (event_id bigint, id bigint);
CREATE TRIGGER a AFTER INSERT ON trap REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION bgw_backfill.target_changed('events');
CREATE TRIGGER b AFTER INSERT ON trap FOR EACH ROW EXECUTE FUNCTION bgw_backfill.source_changed('events', 'row');
CREATE TRIGGER c AFTER TRUNCATE ON trap FOR EACH STATEMENT EXECUTE FUNCTION bgw_backfill.target_truncated('events');
CREATE TRIGGER d AFTER DELETE ON trap FOR EACH ROW EXECUTE FUNCTION bgw_backfill.target_changed('no such job', 'row');
INSERT INTO trap VALUES (3, 3);
DELETE FROM trap;
TRUNCATE trap;
DROP TABLE trap;
CREATE TABLE trap (event_id bigint);
CREATE TRIGGER a BEFORE INSERT ON trap FOR EACH ROW EXECUTE FUNCTION bgw_backfill.target_changed('events');
INSERT INTO trap VALUES (3);
DROP TRIGGER a ON trap;
CREATE TRIGGER a AFTER INSERT ON trap FOR EACH ROW EXECUTE FUNCTION bgw_backfill.target_changed();
INSERT INTO trap VALUES (3);
DROP TRIGGER a ON trap;
CREATE TRIGGER a AFTER INSERT ON trap FOR EACH ROW EXECUTE FUNCTION bgw_backfill.job_changed();
INSERT INTO trap VALUES (3);
SELECT bgw_backfill.target_changed();
DROP TABLE trap;
SET SESSION AUTHORIZATION regress_owner;
SELECT job, phase FROM bgw_backfill.progress;
SELECT id, has_embedding FROM app.events WHERE id IN (1, 3) ORDER BY 1;

-- rights that the owner lost: the write goes through, and says so
CREATE TABLE app.loose (id bigint PRIMARY KEY);
CREATE TABLE app.of_loose (id bigint PRIMARY KEY);
INSERT INTO app.loose VALUES (1), (2), (3);
SELECT bgw_backfill.track('app.loose', 'app.of_loose', target_key => 'id');
CALL bgw_backfill.wait('loose');
INSERT INTO app.of_loose VALUES (1);
REVOKE UPDATE ON app.loose FROM regress_owner;
INSERT INTO app.of_loose VALUES (2);
GRANT UPDATE ON app.loose TO regress_owner;
INSERT INTO app.of_loose VALUES (3);
SELECT * FROM app.loose ORDER BY 1;
SELECT bgw_backfill.verify('loose');
CALL test.until('(SELECT mismatches = 1 FROM bgw_backfill.progress WHERE job = ''loose'')');
SELECT * FROM app.loose ORDER BY 1;

-- the extension is not to be dropped from under the triggers, nor by anybody
DROP EXTENSION bgw_backfill;
RESET SESSION AUTHORIZATION;
\set VERBOSITY terse
DROP EXTENSION bgw_backfill;
\set VERBOSITY default
SELECT count(*) FROM bgw_backfill.jobs;
SET client_min_messages = warning;
DROP EXTENSION bgw_backfill CASCADE;
RESET client_min_messages;
INSERT INTO app.vectors VALUES (6, 1);
SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%\_bbf\_%';
SELECT count(*) FROM app.events_pending;

-- a schema that somebody has prepared is refused
CREATE SCHEMA bgw_backfill AUTHORIZATION regress_stranger;
CREATE EXTENSION bgw_backfill;
DROP SCHEMA bgw_backfill;
SET ROLE regress_stranger;
CREATE EXTENSION bgw_backfill;
RESET ROLE;

SET client_min_messages = warning;
DROP SCHEMA app, strange, test CASCADE;
DROP ROLE regress_member, regress_noinherit, regress_stats, regress_stranger, regress_group;
