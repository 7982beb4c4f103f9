-- Bad calls of claim, fail, release, extend and requeue: each is refused in words that help, and changes nothing.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET client_min_messages = warning;
CREATE ROLE regress_consumer;
CREATE ROLE regress_reader;
CREATE ROLE regress_stranger;
CREATE ROLE regress_member;
GRANT regress_owner TO regress_member;
GRANT USAGE ON SCHEMA app TO PUBLIC;
-- All that a call could change, but for what a refused one may draw from a sequence; and what it has locked.
CREATE FUNCTION test.state() RETURNS text LANGUAGE sql AS $$
	SELECT md5(concat((SELECT string_agg(c::text, ',' ORDER BY token) FROM bgw_backfill.claim c),
		(SELECT string_agg(a::text, ',' ORDER BY job, key) FROM bgw_backfill.attempt a),
		(SELECT string_agg(p::text, ',' ORDER BY job, key) FROM bgw_backfill.passed p)))
	|| (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')
$$;
SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org int);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events, model text);
INSERT INTO events SELECT i, i % 3 FROM generate_series(1, 20) i;
INSERT INTO vectors VALUES (20);
CREATE TABLE plain (id uuid PRIMARY KEY);
CREATE TABLE of_plain (id uuid PRIMARY KEY REFERENCES plain);
INSERT INTO plain SELECT ('00000000-0000-0000-0000-' || lpad(i::text, 12, '0'))::uuid FROM generate_series(1, 9) i;
SELECT bgw_backfill.track('events', 'vectors', group_by => 'org');
SELECT bgw_backfill.track('plain', 'of_plain', mode => 'sidecar');
SELECT bgw_backfill.configure('events', 'max_attempts', '1');
SELECT bgw_backfill.configure('events', 'scan_interval', '7d'), bgw_backfill.configure('plain', 'scan_interval', '7d');
CALL bgw_backfill.wait('events');
CALL bgw_backfill.wait('plain');
CALL test.until('(SELECT count(pending) = 2 FROM bgw_backfill.progress)');
-- tokens: events 1 (0, 1 and 2 of each group), 2 (expired, its row handed out under 3), 4 (a quarantined row); plain 5
SELECT key, group_key, token FROM bgw_backfill.claim('events', 3);
SELECT bgw_backfill.configure('events', 'max_attempts', '5');
SELECT key, group_key, token FROM bgw_backfill.claim('events', 1);
RESET SESSION AUTHORIZATION;
UPDATE bgw_backfill.claim SET expires_at = clock_timestamp() WHERE token = 2;
SET SESSION AUTHORIZATION regress_owner;
SELECT key, group_key, token FROM bgw_backfill.claim('events', 1, group_key => '1');
RESET SESSION AUTHORIZATION;
UPDATE bgw_backfill.attempt SET next_at = clock_timestamp();
SET SESSION AUTHORIZATION regress_owner;
SELECT bgw_backfill.configure('events', 'max_attempts', '1');
SELECT key, group_key, token FROM bgw_backfill.claim('events', 1, group_key => '0');
SELECT bgw_backfill.fail('events', '{6}', 4, 'no luck');
SELECT key, group_key, token FROM bgw_backfill.claim('plain', 1);
RESET SESSION AUTHORIZATION;
SELECT test.state() AS before \gset
SET SESSION AUTHORIZATION regress_owner;
\t on

-- claim
SELECT x, test.refused('SELECT * FROM bgw_backfill.claim(' || x || ')') FROM (VALUES
	($$'events'$$),
	($$'nothing'$$),
	($$''$$),
	($$'Events'$$),
	($$NULL$$),
	($$'events', 0$$),
	($$'events', -1$$),
	($$'events', -2147483648$$),
	($$'events', 2147483647$$),
	($$'events', NULL$$),
	($$'events', 1, NULL$$),
	($$'events', 1, '0'$$),
	($$'events', 1, '-1 s'$$),
	($$'events', 1, '1 microsecond'$$),
	($$'events', 1, '1 ms'$$),
	($$'events', 1, '1 day'$$),
	($$'events', 1, '24:00:00.001'$$),
	($$'events', 1, '2 days -24:00:00'$$),
	($$'events', 1, '1 day -24:00:00'$$),
	($$'events', 1, '1 year'$$),
	($$'events', 1, '1 month -30 days'$$),
	($$'events', 1, '178000000 years'$$),
	($$'events', 1, '2147483647 days'$$),
	($$'events', 1, '-2147483648 days'$$),
	($$'events', 1, make_interval(hours => 2147483647)$$),
	($$'events', 1, make_interval(days => -1000, hours => 24024)$$),
	($$'events', 1, '1 h', NULL$$),
	($$'events', 1, '1 h', '2'$$),
	($$'events', 1, '1 h', '-7'$$),
	($$'events', 1, '1 h', '99999999999'$$),
	($$'events', 1, '1 h', ''$$),
	($$'events', 1, '1 h', 'org-1'$$),
	($$'plain', 1, '1 h', 'org-1'$$)) v (x);

-- fail and release: keys
SELECT x, test.refused('SELECT bgw_backfill.fail(' || x || ', ''no luck'')'), test.refused('SELECT bgw_backfill.release(' || x || ')') FROM (VALUES
	($$NULL, '{3}', 1$$),
	($$'events', NULL, 1$$),
	($$'events', '{3}', NULL$$),
	($$'nothing', '{3}', 1$$),
	($$'events', '{}', 1$$),
	($$'events', '{3,NULL}', 1$$),
	($$'events', '{x}', 1$$),
	($$'events', '{""}', 1$$),
	($$'events', '{3,99999999999999999999}', 1$$),
	($$'events', '{" 03 "}', 1$$),
	($$'events', '{{3},{1}}', 1$$),
	($$'events', '{{3,1},{2,NULL}}', 1$$),
	($$'events', '[-5:-3]={3,1,2}', 1$$),
	($$'events', '{3,1,2,5}', 1$$),
	($$'events', ARRAY(SELECT '3' FROM generate_series(1, 100000)), 1$$),
	($$'events', ARRAY(SELECT i::text FROM generate_series(1, 100000) i), 1$$),
	($$'plain', '{3}', 5$$)) v (x);
-- not its token's
SELECT x, test.refused('SELECT bgw_backfill.fail(' || x || ', ''no luck'')'), test.refused('SELECT bgw_backfill.release(' || x || ')') FROM (VALUES
	($$'events', '{3}', 0$$),
	($$'events', '{3}', -1$$),
	($$'events', '{3}', 1000000$$),
	($$'events', '{}', 1000000$$),
	($$'plain', '{00000000-0000-0000-0000-000000000001}', 1$$),
	($$'events', '{3}', 5$$),
	($$'events', '{3,4}', 1$$),
	($$'events', '{3,10}', 1$$),
	($$'events', '{4}', 2$$),
	($$'events', '{6}', 4$$)) v (x);
-- what is not pending is passed by, whoever had it: answered, gone, never there
SELECT bgw_backfill.release('events', '{20,1000}', 1), bgw_backfill.fail('events', '{20}', 2, 'no luck');

-- extend
SELECT x, test.refused('SELECT bgw_backfill.extend(' || x || ')') FROM (VALUES
	($$'events', 1, '1 h'$$),
	($$NULL, 1, '1 h'$$),
	($$'events', NULL, '1 h'$$),
	($$'events', 1, NULL$$),
	($$'nothing', 1, '1 h'$$),
	($$'plain', 1, '1 h'$$),
	($$'events', 0, '1 h'$$),
	($$'events', 2, '1 h'$$),
	($$'events', 5, '1 h'$$),
	($$'events', 9223372036854775807, '1 h'$$),
	($$'events', 1, '0'$$),
	($$'events', 1, '-5 min'$$),
	($$'events', 1, '1 year'$$)) v (x);

-- requeue
SELECT x, test.refused('SELECT bgw_backfill.requeue(' || x || ')') FROM (VALUES
	($$'events'$$),
	($$'events', '{6}'$$),
	($$'events', '{}'$$),
	($$'events', NULL$$),
	($$NULL$$),
	($$NULL, '{6}'$$),
	($$'nothing'$$),
	($$'events', '{6,NULL}'$$),
	($$'events', '{x}'$$),
	($$'events', '{{6},{7}}'$$),
	($$'events', ARRAY(SELECT i::text FROM generate_series(1, 100000) i)$$),
	($$'plain', '{6}'$$)) v (x);

-- whose rows they are not: rights on the one table, on the other, on columns, on none; a member does as the owner does
RESET SESSION AUTHORIZATION;
SELECT test.state() = :'before';
CREATE TABLE test.calls (n int, x text);
INSERT INTO test.calls VALUES (1, $$SELECT key FROM bgw_backfill.claim('events', 1)$$), (2, $$SELECT bgw_backfill.fail('events', '{3}', 1, 'no luck')$$),
	(3, $$SELECT bgw_backfill.release('events', '{3}', 1)$$), (4, $$SELECT bgw_backfill.extend('events', 1, '1 h')$$),
	(5, $$SELECT bgw_backfill.requeue('events')$$);
GRANT SELECT ON test.calls TO PUBLIC;
GRANT SELECT ON app.events TO regress_consumer, regress_reader;
GRANT INSERT ON app.vectors TO regress_consumer, regress_stranger;
SET SESSION AUTHORIZATION regress_stranger;
SELECT x, test.refused(x) FROM test.calls ORDER BY n;
SET SESSION AUTHORIZATION regress_reader;
SELECT x, test.refused(x) FROM test.calls ORDER BY n;
SET SESSION AUTHORIZATION regress_consumer;
SELECT x, test.refused(x) FROM test.calls ORDER BY n;
SET SESSION AUTHORIZATION regress_member;
SELECT x, test.refused(x) FROM test.calls ORDER BY n;
RESET SESSION AUTHORIZATION;
SELECT x, test.refused(x) FROM test.calls ORDER BY n;
REVOKE SELECT ON app.events FROM regress_reader;
GRANT SELECT (id, org) ON app.events TO regress_reader;
REVOKE INSERT ON app.vectors FROM regress_consumer;
GRANT INSERT (event_id) ON app.vectors TO regress_consumer, regress_reader;
SET SESSION AUTHORIZATION regress_reader;
SELECT test.refused(x) FROM test.calls WHERE n = 1;
SET SESSION AUTHORIZATION regress_consumer;
SELECT test.refused(x) FROM test.calls WHERE n = 1;
-- what there is to see of it: nothing but for those whose job it is
SELECT count(*) FROM bgw_backfill.quarantine;
SELECT test.refused('TABLE bgw_backfill.claim'), test.refused('TABLE bgw_backfill.attempt'), test.refused('TABLE bgw_backfill.passed');
SELECT test.refused($$SELECT nextval('bgw_backfill.claim_token')$$), test.refused('SELECT last_value FROM bgw_backfill.claim_token');
SET SESSION AUTHORIZATION regress_member;
SELECT key FROM bgw_backfill.quarantine;
RESET SESSION AUTHORIZATION;

-- row security, also when the caller has switched it off or owns the table and is not exempt
ALTER TABLE app.events ENABLE ROW LEVEL SECURITY;
CREATE POLICY few ON app.events USING (id < 3);
SET SESSION AUTHORIZATION regress_consumer;
SELECT x, test.refused(x) FROM test.calls ORDER BY n;
SET row_security = off;
SELECT test.refused(x) FROM test.calls WHERE n = 1;
RESET SESSION AUTHORIZATION;
ALTER ROLE regress_consumer BYPASSRLS;
SET SESSION AUTHORIZATION regress_consumer;
SELECT test.refused(x) FROM test.calls WHERE n = 1;
RESET SESSION AUTHORIZATION;
ALTER TABLE app.events FORCE ROW LEVEL SECURITY;
SET SESSION AUTHORIZATION regress_owner;
SELECT x, test.refused(x) FROM test.calls ORDER BY n;
RESET SESSION AUTHORIZATION;
RESET row_security;
SET SESSION AUTHORIZATION regress_owner;
SELECT x, test.refused(x) FROM test.calls ORDER BY n;
RESET SESSION AUTHORIZATION;
ALTER TABLE app.events NO FORCE ROW LEVEL SECURITY;
ALTER TABLE app.events DISABLE ROW LEVEL SECURITY;
SELECT test.state() = :'before';

-- a transaction that only reads
SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
BEGIN READ ONLY;
SELECT x, test.refused(x) FROM test.calls ORDER BY n;
COMMIT;

-- a paused job's rows are handed out; before it is installed there is nothing to hand out from
SELECT bgw_backfill.pause('events');
SELECT test.refused(x) FROM test.calls WHERE n = 1;
SELECT bgw_backfill.resume('events');
CREATE TABLE late (id bigint PRIMARY KEY);
CREATE TABLE of_late (id bigint PRIMARY KEY REFERENCES late);
BEGIN;
SELECT bgw_backfill.track('late', 'of_late');
SELECT bgw_backfill.pause('late');
COMMIT;
SELECT test.refused($$SELECT * FROM bgw_backfill.claim('late')$$);
SELECT test.refused($$SELECT bgw_backfill.fail('late', '{1}', 1, 'no luck')$$);
SELECT test.refused($$SELECT bgw_backfill.requeue('late')$$);
BEGIN;
SELECT bgw_backfill.untrack('late');
SELECT test.refused($$SELECT * FROM bgw_backfill.claim('late')$$);
SELECT test.refused($$SELECT bgw_backfill.release('late', '{1}', 1)$$);
COMMIT;
CALL bgw_backfill.wait('late', 'uninstall');
SELECT test.refused($$SELECT * FROM bgw_backfill.claim('late')$$);

-- the index gone, a table gone
BEGIN;
DROP INDEX events_pending_idx;
SELECT left(test.refused(x), 5) FROM test.calls ORDER BY n;
ROLLBACK;
BEGIN;
DROP TABLE vectors CASCADE;
SELECT test.refused(x) FROM test.calls ORDER BY n;
ROLLBACK;
BEGIN;
SET client_min_messages = error;
DROP TABLE events CASCADE;
SELECT test.refused(x) FROM test.calls ORDER BY n;
ROLLBACK;
-- held, and with a new owner
RESET SESSION AUTHORIZATION;
SELECT test.state() = :'before';
BEGIN;
UPDATE bgw_backfill.job_state SET health = 'held' WHERE job = 'events';
SET LOCAL SESSION AUTHORIZATION regress_owner;
SELECT test.refused(x) FROM test.calls ORDER BY n;
ROLLBACK;
BEGIN;
UPDATE bgw_backfill.job SET system_id = 0 WHERE job = 'events';
SET LOCAL SESSION AUTHORIZATION regress_owner;
SELECT test.refused(x) FROM test.calls ORDER BY n;
ROLLBACK;
BEGIN;
ALTER TABLE app.events OWNER TO regress_stranger;
SET LOCAL SESSION AUTHORIZATION regress_stranger;
SELECT test.refused(x) FROM test.calls ORDER BY n;
ROLLBACK;

-- an error in the middle of a call leaves neither a claim nor its lock behind
SET SESSION AUTHORIZATION regress_owner;
SELECT test.refused($$SELECT * FROM bgw_backfill.claim('events', 2) WHERE 1 / (key::int - key::int) = 1$$);
RESET SESSION AUTHORIZATION;
SELECT test.state() = :'before';
\t off
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
DROP ROLE regress_consumer, regress_reader, regress_stranger, regress_member;
