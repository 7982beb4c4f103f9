-- The other functions: what they refuse, and whom.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

CREATE ROLE regress_stranger LOGIN;
CREATE ROLE regress_member LOGIN;
GRANT regress_owner TO regress_member;
CREATE ROLE regress_reader LOGIN;
GRANT pg_read_all_stats TO regress_reader;
SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events);
BEGIN;
SELECT bgw_backfill.track('events', 'vectors');
SELECT bgw_backfill.pause('events');
COMMIT;
\t on

-- no such job
SELECT x, test.refused('SELECT bgw_backfill.' || x) FROM (VALUES
	($$untrack('nothing')$$),
	($$untrack('nothing', false)$$),
	($$pause('nothing')$$),
	($$resume('nothing')$$),
	($$verify('nothing')$$),
	($$configure('nothing', 'batch_size', '1')$$),
	($$pause('')$$),
	($$pause('Events')$$)) v (x);

-- NULL
SELECT bgw_backfill.untrack(NULL), bgw_backfill.untrack('events', NULL), bgw_backfill.pause(NULL),
	bgw_backfill.resume(NULL), bgw_backfill.verify(NULL);
SELECT test.refused($$SELECT bgw_backfill.configure(NULL, 'batch_size', '1')$$);
SELECT test.refused($$SELECT bgw_backfill.configure('events', NULL, '1')$$);

-- configure
SELECT x, test.refused('SELECT bgw_backfill.configure(''events'', ' || x || ')') FROM (VALUES
	($$'batch_size', '1'$$),
	($$'batch_size', '1000000'$$),
	($$'batch_size', ' 50 '$$),
	($$'batch_size', '0x10'$$),
	($$'batch_size', NULL$$),
	($$'BATCH_SIZE', '7'$$),
	($$'bgw_backfill.batch_size', '7'$$),
	($$'batch_sleep', '0'$$),
	($$'batch_sleep', '1.5s'$$),
	($$'verify_interval', '-1'$$),
	($$'verify_interval', '2 d'$$),
	($$'batch_size', '0'$$),
	($$'batch_size', '-1'$$),
	($$'batch_size', '1000001'$$),
	($$'batch_size', '99999999999999999999'$$),
	($$'batch_size', '10kB'$$),
	($$'batch_size', 'many'$$),
	($$'batch_size', ''$$),
	($$'batch_size', '10; SELECT 1'$$),
	($$'batch_size', '10,batch_sleep=1'$$),
	($$'batch_sleep', '2h'$$),
	($$'batch_sleep', '5 parsecs'$$),
	($$'lock_timeout', '0'$$),
	($$'lock_timeout', '2min'$$),
	($$'statement_timeout', '1ms'$$),
	($$'scan_interval', '0'$$),
	($$'scan_interval', '30 d'$$),
	($$'scan_timeout', '0'$$),
	($$'verify_interval', '-2'$$),
	($$'max_workers', '1'$$),
	($$'enabled', 'off'$$),
	($$'retry_delay', '1s'$$),
	($$'work_mem', '1MB'$$),
	($$'nothing', '1'$$),
	($$'', '1'$$),
	($$'mode', 'column'$$),
	($$'handler', 'now()'$$),
	($$'pending_where', 'true'$$),
	($$'match_where', NULL$$)) v (x);

-- somebody else's
RESET SESSION AUTHORIZATION;
SET SESSION AUTHORIZATION regress_stranger;
SELECT x, test.refused('SELECT bgw_backfill.' || x) FROM (VALUES
	($$untrack('events')$$),
	($$pause('events')$$),
	($$resume('events')$$),
	($$verify('events')$$),
	($$configure('events', 'batch_size', '1')$$)) v (x);
CALL bgw_backfill.wait('events', timeout => '1 ms');
RESET SESSION AUTHORIZATION;
SET SESSION AUTHORIZATION regress_reader;
SELECT test.refused($$SELECT bgw_backfill.pause('events')$$);
CALL bgw_backfill.wait('events', timeout => '1 ms');
RESET SESSION AUTHORIZATION;
SET SESSION AUTHORIZATION regress_member;
SELECT test.refused($$SELECT bgw_backfill.resume('events')$$);
RESET SESSION AUTHORIZATION;
SELECT test.refused($$SELECT bgw_backfill.resume('events')$$);
SET SESSION AUTHORIZATION regress_owner;
BEGIN READ ONLY;
SELECT x, test.refused('SELECT bgw_backfill.' || x) FROM (VALUES
	($$untrack('events')$$),
	($$pause('events')$$),
	($$resume('events')$$),
	($$verify('events')$$),
	($$configure('events', 'batch_size', '1')$$)) v (x);
COMMIT;

-- wait
CALL bgw_backfill.wait('nothing');
CALL bgw_backfill.wait('events', 'nonsense');
CALL bgw_backfill.wait('events', '');
CALL bgw_backfill.wait(NULL);
CALL bgw_backfill.wait('events', NULL);
CALL bgw_backfill.wait('events', 'live', NULL);
\set VERBOSITY sqlstate
CALL bgw_backfill.wait('nothing');
CALL bgw_backfill.wait('events', 'nonsense');
CALL bgw_backfill.wait(NULL);
CALL bgw_backfill.wait('events', 'live', '1 ms');
CALL bgw_backfill.wait('events', 'live', '-1 s');
\set VERBOSITY default
CALL bgw_backfill.wait('events', 'live', '1 ms');
CALL bgw_backfill.wait('events', 'install', '-1 s');
BEGIN;
CALL bgw_backfill.wait('events');
ROLLBACK;
DO $$BEGIN CALL bgw_backfill.wait('events', 'install'); END$$;
SELECT test.refused($$CALL bgw_backfill.wait('events', 'install')$$);
SET statement_timeout = '100ms';
CALL bgw_backfill.wait('events');
RESET statement_timeout;

-- still there, and unchanged by all of that
\t off
SELECT job, paused, uninstall FROM bgw_backfill.jobs;
SELECT phase, state FROM bgw_backfill.progress;
SELECT bgw_backfill.resume('events');
CALL bgw_backfill.wait('events');
SELECT phase FROM bgw_backfill.progress;
SELECT bgw_backfill.untrack('events');
CALL bgw_backfill.wait('events', 'uninstall');
CALL bgw_backfill.wait('events');
RESET SESSION AUTHORIZATION;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
DROP ROLE regress_stranger, regress_member, regress_reader;
