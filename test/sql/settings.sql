-- Settings: their defaults, values that are refused, and a job's own.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SELECT name, current_setting(name), min_val, max_val, unit FROM pg_settings WHERE name LIKE 'bgw\_backfill.%' ORDER BY name COLLATE "C";

-- refused, and the old value stays; the server's own words change with its version
\set VERBOSITY sqlstate
ALTER SYSTEM SET bgw_backfill.batch_size = 0;
ALTER SYSTEM SET bgw_backfill.batch_size = 1000001;
ALTER SYSTEM SET bgw_backfill.batch_size = 'many';
ALTER SYSTEM SET bgw_backfill.batch_size = '10 kB';
ALTER SYSTEM SET bgw_backfill.batch_sleep = '-1';
ALTER SYSTEM SET bgw_backfill.batch_sleep = '2h';
ALTER SYSTEM SET bgw_backfill.batch_sleep = '5 parsecs';
ALTER SYSTEM SET bgw_backfill.verify_interval = '-2';
ALTER SYSTEM SET bgw_backfill.scan_interval = 0;
ALTER SYSTEM SET bgw_backfill.max_workers = 0;
ALTER SYSTEM SET bgw_backfill.enabled = 'perhaps';
SET bgw_backfill.batch_size = 1;
SET bgw_backfill.nothing = 1;
\set VERBOSITY default
SELECT pg_reload_conf();
\c -
SHOW bgw_backfill.batch_size;
SHOW bgw_backfill.batch_sleep;
SELECT name, setting, error FROM pg_file_settings WHERE name LIKE 'bgw\_backfill.%';

-- nobody but who may
CREATE ROLE regress_stranger;
SET ROLE regress_stranger;
ALTER SYSTEM SET bgw_backfill.batch_size = 5;
SET bgw_backfill.enabled = off;
RESET ROLE;
DROP ROLE regress_stranger;

-- a job's own values, and where each value comes from
SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events);
SELECT bgw_backfill.track('events', 'vectors');
CREATE VIEW effective AS
SELECT key, value ->> 'value' AS value, value ->> 'source' AS source FROM bgw_backfill.jobs, jsonb_each(settings);
SELECT * FROM effective ORDER BY key COLLATE "C";
SELECT bgw_backfill.configure('events', 'batch_size', '500');
SELECT bgw_backfill.configure('events', 'BATCH_SLEEP', '1.5s');
SELECT bgw_backfill.configure('events', 'bgw_backfill.verify_interval', '-1');
SELECT bgw_backfill.configure('events', 'scan_interval', '2 min');
SELECT * FROM effective ORDER BY key COLLATE "C";
SELECT bgw_backfill.configure('events', 'batch_size', '501');
SELECT bgw_backfill.configure('events', 'batch_size', '0');
SELECT bgw_backfill.configure('events', 'batch_size', '10 kB');
SELECT bgw_backfill.configure('events', 'verify_interval', NULL);
SELECT bgw_backfill.configure('events', 'lock_timeout', NULL);
SELECT * FROM effective WHERE source <> 'default' ORDER BY key COLLATE "C";

-- the server's values, after a reload
RESET SESSION AUTHORIZATION;
ALTER SYSTEM SET bgw_backfill.lock_timeout = '2s';
ALTER SYSTEM SET bgw_backfill.batch_size = 777;
ALTER SYSTEM SET bgw_backfill.enabled = off;
SELECT pg_reload_conf();
\c -
SET ROLE regress_owner;
SELECT * FROM app.effective WHERE source <> 'default' ORDER BY key COLLATE "C";
SELECT bgw_backfill.configure('events', 'batch_size', NULL);
SELECT * FROM app.effective WHERE source <> 'default' ORDER BY key COLLATE "C";
CALL test.until('(SELECT waiting_for = ''bgw_backfill.enabled'' FROM bgw_backfill.progress)');
RESET ROLE;
ALTER SYSTEM RESET bgw_backfill.lock_timeout;
ALTER SYSTEM RESET bgw_backfill.batch_size;
ALTER SYSTEM RESET bgw_backfill.enabled;
SELECT pg_reload_conf();
\c -
SHOW bgw_backfill.lock_timeout;
CALL bgw_backfill.wait('events');
CALL test.until('(SELECT waiting_for IS NULL FROM bgw_backfill.progress)');

SELECT bgw_backfill.untrack('events');
CALL bgw_backfill.wait('events', 'uninstall');
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
