-- track() refuses what is not a plain table of the caller's.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common
\t on

CREATE ROLE regress_stranger LOGIN;
GRANT USAGE ON SCHEMA app TO regress_stranger;
CREATE FOREIGN DATA WRAPPER regress_wrapper;
CREATE SERVER regress_server FOREIGN DATA WRAPPER regress_wrapper;
GRANT USAGE ON FOREIGN SERVER regress_server TO regress_owner;

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org text, body text);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events, v int);
CREATE UNLOGGED TABLE unlogged (event_id bigint PRIMARY KEY REFERENCES events);
CREATE VIEW a_view AS SELECT * FROM events;
CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM events;
CREATE SEQUENCE a_sequence;
CREATE FOREIGN TABLE a_foreign_table (id bigint) SERVER regress_server;
CREATE TEMPORARY TABLE a_temp_table (id bigint PRIMARY KEY);
CREATE TABLE parts (id bigint PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE parent (id bigint PRIMARY KEY);
CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
CREATE TYPE a_row AS (id bigint);
CREATE TABLE a_typed_table OF a_row (PRIMARY KEY (id));
CREATE TABLE used_as_type (id bigint PRIMARY KEY);
CREATE TABLE uses_it (id bigint PRIMARY KEY, old used_as_type);
SELECT test.objects('app') AS before \gset

-- all is well with these two
SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors')$$);

-- none
SELECT test.refused($$SELECT bgw_backfill.track('nothing', 'vectors')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'nothing')$$);
SELECT test.refused($$SELECT bgw_backfill.track(1::regclass, 'vectors')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 1::regclass)$$);
SELECT test.refused($$SELECT bgw_backfill.track(NULL, 'vectors')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', NULL)$$);

-- not a table
SELECT test.refused(format('SELECT bgw_backfill.track(%L, %L)', x, 'vectors'))
FROM unnest('{a_view,a_matview,a_foreign_table,a_sequence,events_pkey,a_row}'::text[]) x;
SELECT test.refused(format('SELECT bgw_backfill.track(%L, %L)', 'events', x))
FROM unnest('{a_view,a_matview,a_foreign_table,a_sequence,vectors_pkey,a_row}'::text[]) x;

-- not a lasting one of the user's
SELECT test.refused($$SELECT bgw_backfill.track('a_temp_table', 'vectors')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'a_temp_table')$$);
SELECT test.refused($$SELECT bgw_backfill.track('pg_class', 'vectors')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'pg_class')$$);
SELECT test.refused($$SELECT bgw_backfill.track('pg_authid', 'pg_database')$$);

-- one that a crash empties, and not the other
SELECT test.refused($$SELECT bgw_backfill.track('events', 'unlogged')$$);

-- twice the same
SELECT test.refused($$SELECT bgw_backfill.track('events', 'events')$$);

-- not alone
SELECT test.refused(format('SELECT bgw_backfill.track(%L, %L, target_key => %L)', x, 'vectors', 'event_id'))
FROM unnest('{parts,part,parent,child,a_typed_table,used_as_type}'::text[]) x;
SELECT test.refused(format('SELECT bgw_backfill.track(%L, %L, target_key => %L)', 'events', x, 'id'))
FROM unnest('{parts,part,parent,child,a_typed_table,used_as_type}'::text[]) x;

-- somebody else's
RESET SESSION AUTHORIZATION;
SET SESSION AUTHORIZATION regress_stranger;
SET search_path = app;
SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors', dry_run => true)$$);
RESET SESSION AUTHORIZATION;
GRANT CREATE ON SCHEMA app TO regress_stranger;
SET SESSION AUTHORIZATION regress_stranger;
CREATE TABLE mine (id bigint PRIMARY KEY);
SELECT test.refused($$SELECT bgw_backfill.track('mine', 'vectors', target_key => 'event_id')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'mine', target_key => 'id')$$);
DROP TABLE mine;

-- and the server's own, for who may do anything
RESET SESSION AUTHORIZATION;
SET search_path = app;
SELECT test.refused($$SELECT bgw_backfill.track('pg_authid', 'pg_database', target_key => 'datdba')$$);
SELECT test.refused(format('SELECT bgw_backfill.track(%L, %L)', reltoastrelid::regclass, 'vectors'))
	~ '^42809: source "pg_toast_\d+" is not a table\n' FROM pg_class WHERE oid = 'events'::regclass;

-- nothing is left behind
SELECT count(*) FROM bgw_backfill.job;
SELECT count(*) FROM bgw_backfill.job_state;
SELECT test.objects('app') = :'before';

SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
DROP FOREIGN DATA WRAPPER regress_wrapper CASCADE;
DROP ROLE regress_stranger;
