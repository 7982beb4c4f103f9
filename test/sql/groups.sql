-- The pending scan: groups, the NULL group, caps; without a group; kinds of group columns.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org text, day date, kind int, late boolean DEFAULT false);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events);
INSERT INTO events SELECT i, 'org-' || i % 3, '2024-01-01'::date + (i % 2)::int, i % 4 FROM generate_series(1, 60) i;
INSERT INTO events SELECT i, NULL, NULL, NULL FROM generate_series(101, 105) i;
INSERT INTO events SELECT i, 'big', '2025-01-01', 9 FROM generate_series(1001, 2101) i;
INSERT INTO events SELECT i, 'just', '2025-01-01', 9 FROM generate_series(3001, 4000) i;
INSERT INTO events SELECT i, 'none', '2025-01-01', 9 FROM generate_series(5001, 5100) i;
INSERT INTO vectors SELECT id FROM events WHERE org = 'none' OR id <= 9;
-- the first scan comes at the beginning of phase live
SELECT bgw_backfill.track('events', 'vectors', job => 'by_org', flag_column => 'by_org', group_by => 'org');
SELECT bgw_backfill.track('events', 'vectors', job => 'by_day', flag_column => 'by_day', group_by => 'day');
SELECT bgw_backfill.track('events', 'vectors', job => 'by_flag', flag_column => 'by_flag', group_by => 'late');
SELECT bgw_backfill.track('events', 'vectors', job => 'one', flag_column => 'one');
CALL bgw_backfill.wait('by_org');
CALL bgw_backfill.wait('by_day');
CALL bgw_backfill.wait('by_flag');
CALL bgw_backfill.wait('one');
CALL test.until('(SELECT count(pending) = 4 FROM bgw_backfill.progress)');
SELECT job, group_key, pending, capped, oldest_key FROM bgw_backfill.pending_groups
ORDER BY job, group_key;
SELECT job, pending FROM bgw_backfill.progress ORDER BY job;
SELECT job, bool_and(scanned_at BETWEEN live_since AND clock_timestamp()) FROM bgw_backfill.pending_groups JOIN bgw_backfill.progress USING (job)
GROUP BY 1 ORDER BY 1;
SELECT * FROM by_org_pending WHERE id < 12 ORDER BY id;
SELECT * FROM one_pending WHERE id < 12 ORDER BY id;

-- the next scan, after changes: groups without pending rows vanish
INSERT INTO vectors SELECT id FROM by_org_pending WHERE org = 'big' AND id > 1500 OR org IS NULL OR org = 'org-1';
INSERT INTO events VALUES (6001, 'new'), (6002, NULL);
SELECT bgw_backfill.configure('by_org', 'scan_interval', '1s');
CALL test.until('EXISTS (SELECT FROM bgw_backfill.pending_groups WHERE job = ''by_org'' AND group_key = ''new'')');
SELECT group_key, pending, capped, oldest_key FROM bgw_backfill.pending_groups WHERE job = 'by_org' ORDER BY group_key;
SELECT pending FROM bgw_backfill.progress WHERE job = 'by_org';
INSERT INTO vectors SELECT id FROM by_org_pending;
CALL test.until('NOT EXISTS (SELECT FROM bgw_backfill.pending_groups WHERE job = ''by_org'')');
SELECT pending FROM bgw_backfill.progress WHERE job = 'by_org';

-- more rows than one scan counts, more groups than one scan visits
DELETE FROM vectors;
INSERT INTO events SELECT 10000 + i, 'many-' || lpad((i / 100)::text, 4, '0'), NULL, 1 FROM generate_series(0, 59999) i;
SELECT count(DISTINCT org) + 1 AS groups FROM events \gset
SELECT format('(SELECT count(*) = %s FROM bgw_backfill.pending_groups WHERE job = ''by_org'')', :groups) AS all_seen \gset
CALL test.until(:'all_seen');
SELECT min(pending), max(pending) FROM bgw_backfill.pending_groups WHERE job = 'by_org' AND group_key LIKE 'many%' AND NOT capped;
SELECT pending > 40000 FROM bgw_backfill.progress WHERE job = 'by_org';

SELECT bgw_backfill.untrack(job) FROM bgw_backfill.jobs ORDER BY job;
CALL test.until('NOT EXISTS (SELECT FROM bgw_backfill.jobs)');
RESET SESSION AUTHORIZATION;
SELECT count(*) FROM bgw_backfill.pending_group;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
