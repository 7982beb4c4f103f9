-- An owner who may not log in. Before PostgreSQL 17 no worker could connect as one, and he is refused
-- (nologin_1.out); from 17 on his job runs like any other (nologin.out).
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common
SET client_min_messages = warning;
ALTER ROLE regress_owner NOLOGIN;
SET ROLE regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events);
INSERT INTO events SELECT generate_series(1, 10);
INSERT INTO vectors SELECT generate_series(1, 8);

SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors')$$) AS tracked \gset
\echo :tracked
SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors', dry_run => true)$$) = :'tracked' AS "the same in a dry run";

SELECT :'tracked' = 'accepted' AS can_run \gset
\if :can_run
	SELECT bgw_backfill.track('events', 'vectors');
	CALL bgw_backfill.wait('events');
	INSERT INTO events VALUES (11);
	INSERT INTO vectors VALUES (9);
	SELECT * FROM events_pending ORDER BY id;
	SELECT bgw_backfill.untrack('events');
	CALL bgw_backfill.wait('events', 'uninstall');
\endif
RESET ROLE;
ALTER ROLE regress_owner LOGIN;
DROP SCHEMA app CASCADE;
