-- Handing out: the life of a claim in each mode, turns, the cap, failures, quarantine; kinds of keys and groups.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

-- no row comes back by itself while this test looks
ALTER SYSTEM SET bgw_backfill.retry_delay = '1min';
SELECT pg_reload_conf();
\c -
SET client_min_messages = warning;
-- A claim as one line: group:key, and #attempt unless it is the first. Its token is kept under the job's name.
CREATE FUNCTION test.take(job text, max_rows integer DEFAULT 100, lease interval DEFAULT '1 hour', group_key text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	line text;
	mark text;
BEGIN
	SELECT string_agg(coalesce(c.group_key, '-') || ':' || c.key || CASE WHEN c.attempt > 1 THEN '#' || c.attempt ELSE '' END, ' '),
		nullif(string_agg(DISTINCT c.token::text, ' and '), '')
	INTO line, mark FROM bgw_backfill.claim(job, max_rows, lease, group_key) c;
	IF mark IS NOT NULL THEN
		PERFORM set_config('test.token_' || job, mark, false);
	END IF;
	RETURN coalesce(line, 'nothing');
END $$;
-- The same by key, where the turn is not what is looked at: a stale row in watermark mode loses its group the turn.
CREATE FUNCTION test.sorted(line text) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(w, ' ' ORDER BY split_part(split_part(w, ':', 2), '#', 1)::integer) FROM string_to_table(line, ' ') w
	WHERE w <> 'nothing' $$;
CREATE FUNCTION test.token(job text) RETURNS bigint LANGUAGE sql AS $$ SELECT current_setting('test.token_' || job)::bigint $$;
-- As if the time had come: for a lease to end, for the next attempt.
CREATE FUNCTION test.expire(job text) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
	UPDATE bgw_backfill.claim SET expires_at = clock_timestamp() WHERE claim.job = $1 $$;
CREATE FUNCTION test.due(job text) RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
	UPDATE bgw_backfill.attempt SET next_at = clock_timestamp() WHERE attempt.job = $1 $$;
-- How long the next attempt waits, in units of retry_delay, jitter taken off.
CREATE FUNCTION test.delay(job text, key text) RETURNS text LANGUAGE sql SECURITY DEFINER AS $$
	SELECT min(n)::text FROM bgw_backfill.attempt a, unnest('{0,1,2,4,5}'::integer[]) n
	WHERE (a.job, a.key) = ($1, $2)
		AND a.next_at - a.last_error_at BETWEEN n * interval '45 s' - interval '1 s' AND n * interval '75 s' + interval '1 s' $$;
-- What is known of rows that came back.
CREATE FUNCTION test.attempts(job text) RETURNS text LANGUAGE sql SECURITY DEFINER AS $$
	SELECT string_agg(a.key || '#' || a.attempts || CASE WHEN a.quarantined_at IS NOT NULL THEN '!' ELSE '' END, ' ' ORDER BY a.key)
	FROM bgw_backfill.attempt a WHERE a.job = $1 $$;

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
-- Three pairs of tables, alike; the job is named after its mode. The worker has nothing to do after its first scan.
CREATE TABLE modes (mode text COLLATE "C" PRIMARY KEY);
INSERT INTO modes VALUES ('column'), ('sidecar'), ('watermark');
CREATE PROCEDURE each(command text) LANGUAGE plpgsql AS $$
DECLARE
	m text;
BEGIN
	FOR m IN SELECT mode FROM app.modes ORDER BY 1 LOOP
		EXECUTE format(command, m);
	END LOOP;
END $$;
CALL each('CREATE TABLE %1$s_events (id bigint PRIMARY KEY, org text, body text)');
CALL each('CREATE TABLE %1$s_vectors (event_id bigint PRIMARY KEY REFERENCES %1$s_events ON DELETE CASCADE, model text)');
-- org a: 1 4 7 10 13, org b: 2 5 8 11 14, none: 3 6 9 12 15; 16 is not eligible, 17 has its match
CALL each($$INSERT INTO %1$s_events SELECT i, (ARRAY['a', 'b', NULL])[1 + (i - 1) %% 3], 'body' FROM generate_series(1, 15) i$$);
CALL each($$INSERT INTO %1$s_events VALUES (16, 'a', NULL), (17, 'b', 'body')$$);
CALL each($$INSERT INTO %1$s_vectors VALUES (17, 'new'), (1, 'old')$$);
CALL each($$DO 'BEGIN
	PERFORM bgw_backfill.track(''%1$s_events'', ''%1$s_vectors'', job => ''%1$s'', mode => ''%1$s'', group_by => ''org'',
		pending_where => $x$body <> ''''$x$, match_where => $x$model = ''new''$x$);
	PERFORM bgw_backfill.configure(''%1$s'', ''scan_interval'', ''7d'');
END'$$);
CALL bgw_backfill.wait('column');
CALL bgw_backfill.wait('sidecar');
CALL bgw_backfill.wait('watermark');
CALL test.until('(SELECT count(pending) = 3 FROM bgw_backfill.progress)');

-- one of each group in turn, the oldest first, those without a group last; the next claim goes on after the last one
SELECT mode, test.take(mode, 4) FROM modes ORDER BY 1;
SELECT mode, test.take(mode, 2) FROM modes ORDER BY 1;
SELECT job, leased, quarantined FROM bgw_backfill.progress ORDER BY 1;
-- success needs no call: what has its target row is not given again, and is not charged when the lease ends
CALL each($$UPDATE %1$s_vectors SET model = 'new' WHERE event_id = 1$$);
CALL each($$INSERT INTO %1$s_vectors VALUES (2, 'new'), (3, 'old'), (4, 'new')$$);
SELECT mode, test.expire(mode) IS NULL AS expired FROM modes ORDER BY 1;
SELECT mode, test.sorted(test.take(mode, 3)) FROM modes ORDER BY 1;
SELECT mode, test.attempts(mode) FROM modes ORDER BY 1;
SELECT mode, test.delay(mode, '3'), test.delay(mode, '5') FROM modes ORDER BY 1;
-- expired or not, nobody has it before its time has come
SELECT mode, test.sorted(test.take(mode)) FROM modes ORDER BY 1;
SELECT mode, test.sorted(test.take(mode)) FROM modes ORDER BY 1;
SELECT mode, test.due(mode) IS NULL AS due FROM modes ORDER BY 1;
SELECT mode, test.sorted(test.take(mode)) FROM modes ORDER BY 1;
-- a match that goes away again: the row is pending, and its earlier claim is over
CALL each($$DELETE FROM %1$s_vectors WHERE event_id = 2$$);
SELECT bgw_backfill.verify('watermark');
CALL test.until('(SELECT mismatches > 0 FROM bgw_backfill.progress WHERE job = ''watermark'')');
SELECT mode, test.sorted(test.take(mode)) FROM modes ORDER BY 1;
-- everything answered: nothing is handed out, nothing is leased any more once a claim needs the room
CALL each($$INSERT INTO %1$s_vectors SELECT id, 'new' FROM %1$s_events ON CONFLICT (event_id) DO UPDATE SET model = 'new'$$);
SELECT mode, test.expire(mode) IS NULL AS expired FROM modes ORDER BY 1;
SELECT mode, test.take(mode) FROM modes ORDER BY 1;
SELECT job, leased, quarantined FROM bgw_backfill.progress ORDER BY 1;

-- a row of the list that has its match is taken out when it is met, and counted; others come in its place
INSERT INTO sidecar_sidecar SELECT id, org FROM sidecar_events WHERE id IN (1, 2, 4);
CALL each('DELETE FROM %1$s_vectors WHERE event_id IN (8, 11)');
SELECT id FROM sidecar_sidecar ORDER BY 1;
SELECT test.take('column', 1), test.take('sidecar', 1);
SELECT test.take('column', 1), test.take('sidecar', 1);
SELECT test.take('column', 1), test.take('sidecar', 1);
SELECT id FROM sidecar_sidecar ORDER BY 1;
-- nothing to hand out but that: it is taken out all the same
INSERT INTO sidecar_sidecar SELECT id, org FROM sidecar_events WHERE id IN (1, 2, 4);
SELECT test.take('sidecar');
SELECT id FROM sidecar_sidecar ORDER BY 1;
SELECT stale_pruned FROM bgw_backfill.progress WHERE job = 'sidecar';

-- the cap is full; rows that are deleted or not eligible any more make room, as those do that have their match
SELECT bgw_backfill.configure(mode, 'max_leased', '2') FROM modes WHERE mode <> 'watermark' ORDER BY mode;
CALL each($$INSERT INTO %1$s_events VALUES (18, 'a', 'body'), (19, 'b', 'body')$$);
SELECT test.take('column'), test.take('sidecar');
CALL each('DELETE FROM %1$s_events WHERE id = 8');
SELECT test.take('column'), test.take('sidecar');
CALL each($$UPDATE %1$s_events SET body = '' WHERE id = 11$$);
SELECT test.take('column'), test.take('sidecar');
SELECT test.take('column'), test.take('sidecar');

-- from here on in one mode: fresh tables
CREATE TABLE events (id bigint PRIMARY KEY, org text);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events);
INSERT INTO events SELECT i, 'org-' || i % 4 FROM generate_series(1, 40) i;
INSERT INTO events VALUES (41, NULL), (42, '');
DO $$BEGIN
	PERFORM bgw_backfill.track('events', 'vectors', group_by => 'org');
	PERFORM bgw_backfill.configure('events', 'scan_interval', '7d');
	PERFORM bgw_backfill.configure('events', 'max_leased', '10');
	PERFORM bgw_backfill.configure('events', 'max_attempts', '3');
END$$;
CALL bgw_backfill.wait('events');

-- one group, which leaves the turn where it is; the empty one; no such group; max_rows
SELECT test.take('events', 1);
SELECT test.take('events', 2, group_key => 'org-3');
SELECT test.take('events', 2, group_key => '');
SELECT test.take('events', 2, group_key => 'no such group');
SELECT test.take('events', 1);
-- the cap: fewer, then none; uncommitted claims count; what is answered makes room
SELECT test.take('events', 3);
BEGIN;
SELECT test.take('events', 2);
SELECT test.take('events', 2);
SELECT test.take('events', 2);
SELECT leased FROM bgw_backfill.progress WHERE job = 'events';
INSERT INTO vectors VALUES (1), (3), (7);
SELECT test.take('events', 4);
ROLLBACK;
SELECT leased FROM bgw_backfill.progress WHERE job = 'events';
SELECT test.take('events', 4, group_key => 'org-2');
SELECT test.take('events', 1);
INSERT INTO vectors VALUES (3), (7);
SELECT test.take('events', 5);
SELECT test.take('events', 5);
-- a cap that is lowered, raised
SELECT bgw_backfill.configure('events', 'max_leased', '1');
SELECT test.take('events', 5);
SELECT bgw_backfill.configure('events', 'max_leased', '12');
SELECT test.take('events', 5, group_key => 'org-1');
SELECT test.take('events', 5, group_key => 'org-1');

-- anew
RESET SESSION AUTHORIZATION;
DELETE FROM bgw_backfill.claim;
SET SESSION AUTHORIZATION regress_owner;
DELETE FROM vectors;
DELETE FROM events WHERE id > 12;
SELECT test.take('events', 6);
-- partial success: of those given back, the answered one is passed by, and none is charged twice
INSERT INTO vectors VALUES (1), (2);
SELECT bgw_backfill.fail('events', '{1,3}', test.token('events'), 'no luck');
SELECT test.attempts('events'), test.delay('events', '3');
SELECT bgw_backfill.fail('events', '{1,3}', test.token('events'), 'no luck');
SELECT bgw_backfill.fail('events', '{1}', test.token('events'), 'no luck');
SELECT bgw_backfill.release('events', '{5,5,2}', test.token('events'));
SELECT test.attempts('events');
SELECT test.take('events', 100, group_key => 'org-1');
SELECT bgw_backfill.release('events', '{5,9}', test.token('events'));
-- extended while anything is left of it, and after
SELECT bgw_backfill.extend('events', test.token('events'), '1 day') > now() + interval '23 hours';
-- failures: each waits twice as long, up to five minutes; the third is the last
SELECT test.due('events');
SELECT test.take('events', 100, group_key => 'org-3');
SELECT bgw_backfill.fail('events', '{3}', test.token('events'), 'no luck again');
SELECT test.attempts('events'), test.delay('events', '3');
SELECT test.take('events', 100, group_key => 'org-3');
SELECT test.due('events');
SELECT test.take('events', 100, group_key => 'org-3');
SELECT * FROM bgw_backfill.quarantine;
SELECT bgw_backfill.fail('events', '{3}', test.token('events'), E'the last\nerror');
SELECT test.due('events');
SELECT test.take('events', 100, group_key => 'org-3');
SELECT job, key, group_key, attempts, last_error, last_error_at <= quarantined_at AS ordered FROM bgw_backfill.quarantine;
SELECT quarantined FROM bgw_backfill.progress WHERE job = 'events';
-- an expired lease is a failure as well; an error of NULL
SELECT test.take('events', 1, group_key => 'org-1');
SELECT bgw_backfill.fail('events', '{5}', test.token('events'), NULL);
SELECT test.due('events');
SELECT test.take('events', 1, group_key => 'org-1');
SELECT test.expire('events');
SELECT test.take('events', 1, group_key => 'no such group');
SELECT test.attempts('events');
SELECT bgw_backfill.extend('events', test.token('events'), '1 hour');
SELECT test.due('events');
SELECT test.take('events', 1, group_key => 'org-1');
SELECT test.expire('events');
SELECT test.take('events', 1, group_key => 'no such group');
SELECT key, group_key, attempts, last_error FROM bgw_backfill.quarantine ORDER BY key;
-- requeued: some, those that are not in quarantine, all; the count begins anew
SELECT bgw_backfill.requeue('events', '{3,4,1000}');
SELECT key FROM bgw_backfill.quarantine ORDER BY key;
SELECT bgw_backfill.requeue('events', '{3}');
SELECT test.take('events', 1, group_key => 'org-3');
SELECT bgw_backfill.release('events', '{3}', test.token('events'));
SELECT test.take('events', 1, group_key => 'org-3');
SELECT bgw_backfill.requeue('events');
SELECT bgw_backfill.requeue('events');
SELECT key FROM bgw_backfill.quarantine ORDER BY key;

-- more rows in the way at the beginning of a group than a claim likes to pass: those whose turn has come are found all the same
INSERT INTO events SELECT i, 'long' FROM generate_series(1001, 1300) i;
SELECT bgw_backfill.configure('events', 'max_leased', '1000');
SELECT bgw_backfill.configure('events', 'max_attempts', '1');
SELECT cardinality(string_to_array(test.take('events', 200, group_key => 'long'), ' '));
SELECT bgw_backfill.fail('events', (SELECT array_agg(i::text) FROM generate_series(1001, 1150) i), test.token('events'), 'no luck');
SELECT bgw_backfill.configure('events', 'max_attempts', '5');
SELECT bgw_backfill.fail('events', '{1160,1170,1180}', test.token('events'), 'no luck');
SELECT test.take('events', 2, group_key => 'long');
SELECT test.due('events');
SELECT test.take('events', 1, group_key => 'long');
INSERT INTO vectors VALUES (1160);
SELECT test.take('events', 1, group_key => 'long');
SELECT test.take('events', 1, group_key => 'long');
SELECT bgw_backfill.requeue('events', '{1010,1020}');
SELECT test.take('events', 3, group_key => 'long');
SELECT bgw_backfill.requeue('events');
SELECT cardinality(string_to_array(test.take('events', 300, group_key => 'long'), ' '));
SELECT test.take('events', 300, group_key => 'long');

-- no groups
CREATE TABLE plain (id int PRIMARY KEY);
CREATE TABLE of_plain (id int PRIMARY KEY REFERENCES plain);
INSERT INTO plain SELECT generate_series(1, 12);
SELECT bgw_backfill.track('plain', 'of_plain', mode => 'sidecar');
CALL bgw_backfill.wait('plain');
SELECT test.take('plain', 5);
INSERT INTO of_plain VALUES (6);
SELECT test.take('plain', 2, '1 day');
SELECT test.take('plain', 2, '1 millisecond');
CALL test.until('test.take(''plain'', 1) IS NOT NULL AND test.attempts(''plain'') IS NOT NULL');
SELECT test.attempts('plain');

-- keys are written and read one way, whatever the session says
SET datestyle = 'SQL, DMY';
SET intervalstyle = 'iso_8601';
SET timezone = 'Asia/Kolkata';
SET extra_float_digits = -5;
SET bytea_output = 'escape';
CREATE TABLE keys (kind text PRIMARY KEY, type text, low text, high text);
INSERT INTO keys VALUES ('texts', 'text', 'a "quoted", {key}\', ' ü  '), ('uuids', 'uuid', '0000000A-0000-0000-0000-000000000001', 'ffffffff-ffff-ffff-ffff-ffffffffffff'),
	('times', 'timestamptz', '2024-02-01 12:00:00.000001+00', '2024-02-01 12:00:00.000002+00'), ('varchars', 'varchar(10)', 'NULL', 'a,b'),
	('numerics', 'numeric', '1.50', '12345678901234567890.123'), ('dates', 'date', '2024-02-01', 'infinity'), ('floats', 'float8', '0.1', '0.30000000000000004'),
	('bytes', 'bytea', '\x005c', '\xff'), ('spans', 'interval', '1 day 02:03:04', '1 mon');
CREATE PROCEDURE keys_each(command text) LANGUAGE plpgsql AS $$
DECLARE
	k app.keys;
BEGIN
	FOR k IN SELECT * FROM app.keys ORDER BY kind COLLATE "C" LOOP
		EXECUTE format(command, k.kind, k.type, k.low, k.high);
	END LOOP;
END $$;
SET datestyle = 'ISO, YMD';
CALL keys_each('CREATE TABLE %1$s (id %2$s PRIMARY KEY); CREATE TABLE of_%1$s (id %2$s PRIMARY KEY REFERENCES %1$s); INSERT INTO %1$s VALUES (%3$L), (%4$L)');
SET datestyle = 'SQL, DMY';
CALL keys_each('SELECT bgw_backfill.track(''%1$s'', ''of_%1$s'')');
CALL test.until('(SELECT count(*) = count(*) FILTER (WHERE phase = ''live'') FROM bgw_backfill.progress)');
CREATE TABLE given (kind text, key text, token bigint);
GRANT ALL ON given TO PUBLIC;
CALL keys_each('INSERT INTO given SELECT ''%1$s'', key, token FROM bgw_backfill.claim(''%1$s'')');
SELECT kind, key FROM given ORDER BY kind COLLATE "C", key COLLATE "C";
-- another session: nobody is given what somebody has, and its keys are taken back
SET datestyle = 'Postgres, MDY';
SET timezone = 'America/St_Johns';
SELECT kind FROM keys, LATERAL bgw_backfill.claim(kind);
SELECT kind, bgw_backfill.release(kind, array_agg(key), token) FROM given GROUP BY kind, token ORDER BY kind COLLATE "C";
SELECT count(*) FROM keys, LATERAL bgw_backfill.claim(kind);
-- what has the same value is the same key, however it is written
SELECT bgw_backfill.track('numerics', 'of_numerics', 'again', flag_column => 'again');
CALL bgw_backfill.wait('again');
SELECT test.take('again');
SELECT bgw_backfill.release('again', '{1.5,12345678901234567890.1230}', test.token('again'));

-- groups of other types, one with values that are equal and not the same
CREATE TABLE grouped (id int PRIMARY KEY, i int, t timestamptz, n numeric, v varchar(3));
CREATE TABLE of_grouped (id int PRIMARY KEY REFERENCES grouped);
INSERT INTO grouped VALUES (1, 10, '2024-02-01 12:00:00+00', 1.0, 'b'), (2, 9, '2024-02-01 11:00:00+00', 1.00, 'B'),
	(3, 10, '2024-02-01 12:00:00+00', 1, 'b'), (4, NULL, NULL, 2, 'a'), (5, -1, 'infinity', NULL, '');
CREATE PROCEDURE groups_each(command text) LANGUAGE plpgsql AS $$
DECLARE
	g text;
BEGIN
	FOREACH g IN ARRAY '{i,n,t,v}'::text[] LOOP
		EXECUTE format(command, g);
	END LOOP;
END $$;
CALL groups_each('SELECT bgw_backfill.track(''grouped'', ''of_grouped'', ''by_%1$s'', flag_column => ''by_%1$s'', group_by => ''%1$s'')');
CALL test.until('(SELECT count(*) = count(*) FILTER (WHERE phase = ''live'') FROM bgw_backfill.progress)');
SELECT g, test.take('by_' || g, 3) FROM unnest('{i,t,v}'::text[]) g;
SELECT g, test.take('by_' || g, 3) FROM unnest('{i,t,v}'::text[]) g;
SELECT key FROM bgw_backfill.claim('by_n', 3);
SELECT key FROM bgw_backfill.claim('by_n', 3);
RESET SESSION AUTHORIZATION;
DELETE FROM bgw_backfill.claim;
DELETE FROM bgw_backfill.attempt;
SET SESSION AUTHORIZATION regress_owner;
SELECT key FROM bgw_backfill.claim('by_n', 3, group_key => '1.000');
SELECT test.take('by_i', 3, group_key => '010'), test.take('by_t', 3, group_key => '2024-02-01 17:30+05:30'),
	test.take('by_v', 3, group_key => 'b');

RESET ALL;
RESET SESSION AUTHORIZATION;
ALTER SYSTEM RESET bgw_backfill.retry_delay;
SELECT pg_reload_conf();
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
