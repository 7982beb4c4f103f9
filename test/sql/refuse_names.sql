-- track() refuses names that are in use or cannot be used: of the job, its objects, the flag, the group.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common
\t on

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE DOMAIN yes_or_no AS boolean;
CREATE TABLE events (
	id bigint PRIMARY KEY,
	org text,
	number int,
	doc json,
	docb jsonb,
	place point,
	xid xid,
	flag boolean,
	flag_not_null boolean NOT NULL,
	flag_domain yes_or_no,
	flag_generated boolean GENERATED ALWAYS AS (id > 0) STORED,
	has_embedding integer);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events, v int);
CREATE TABLE a_source_with_a_name_of_fifty_two_bytes_which_is_long (id bigint PRIMARY KEY);
CREATE TABLE target_of_it (id bigint PRIMARY KEY REFERENCES a_source_with_a_name_of_fifty_two_bytes_which_is_long);
CREATE FUNCTION track(more text) RETURNS text LANGUAGE sql AS
	$$SELECT test.refused(format('SELECT bgw_backfill.track(%L, %L, %s)', 'app.events', 'app.vectors', more))$$;
SELECT test.objects('app') AS before \gset

-- the flag column
SELECT track('dry_run => false');
SELECT x, track(format('flag_column => %L', x))
FROM unnest(ARRAY['flag', 'flag_not_null', 'new_one', 'New "One"', 'flag_domain', 'flag_generated', 'org', 'number', 'id',
	'ctid', '']) x;
SELECT track('flag_column => NULL');

-- the job's name
SELECT length(x), track(format('job => %L, flag_column => %L', x, 'flag'))
FROM unnest(ARRAY['', 'x', repeat('x', 51), repeat('x', 52), repeat('ä', 25), repeat('ä', 26), repeat('x', 200), '~x']) x;
SELECT x, track(format('job => %L, flag_column => %L', x, 'flag'))
FROM unnest(ARRAY['two words', 'it''s', '"quoted"', 'back\slash', '%s', E'a\nb', 'a,b=c', '$1']) x;
SELECT test.refused($$SELECT bgw_backfill.track('a_source_with_a_name_of_fifty_two_bytes_which_is_long', 'target_of_it')$$);
SELECT test.refused($$SELECT bgw_backfill.track('a_source_with_a_name_of_fifty_two_bytes_which_is_long', 'target_of_it', job => 'short')$$);

-- names of its objects
CREATE TABLE a_pending ();
CREATE INDEX b_pending_idx ON events (org);
CREATE VIEW c_sidecar AS SELECT 1;
CREATE SEQUENCE d_sidecar_idx;
SELECT x, track(format('job => %L, flag_column => %L', x, 'flag')) FROM unnest('{a,b,c,d,e}'::text[]) x;
DROP TABLE a_pending;
DROP INDEX b_pending_idx;
DROP VIEW c_sidecar;
DROP SEQUENCE d_sidecar_idx;

-- the group column
SELECT x, track(format('flag_column => %L, group_by => %L', 'flag', x))
FROM unnest('{org,number,docb,flag_not_null,doc,place,xid,nothing,ctid,""}'::text[]) x;
SELECT x, track(format('flag_column => %L, group_by => %L', 'flag', x)) FROM unnest('{flag,id}'::text[]) x;

-- another job's name, and its flag column
CREATE TABLE others (id bigint PRIMARY KEY, flag boolean);
CREATE TABLE other_vectors (id bigint PRIMARY KEY REFERENCES others);
BEGIN;
SELECT bgw_backfill.track('others', 'other_vectors', job => 'taken', flag_column => 'flag');
SELECT track('flag_column => ''flag''');
SELECT track('flag_column => ''flag'', job => ''taken''');
SELECT test.refused($$SELECT bgw_backfill.track('others', 'other_vectors', job => 'taken', flag_column => 'other_flag')$$);
SELECT test.refused($$SELECT bgw_backfill.track('others', 'other_vectors', job => 'other', flag_column => 'flag')$$);
SELECT test.refused($$SELECT bgw_backfill.track('others', 'other_vectors', job => 'other', flag_column => 'flag', dry_run => true)$$);
SELECT test.refused($$SELECT bgw_backfill.track('others', 'other_vectors', job => 'other', flag_column => 'other_flag')$$);
ROLLBACK;
DROP TABLE others, other_vectors;

-- nothing is left behind
RESET SESSION AUTHORIZATION;
SELECT count(*) FROM bgw_backfill.job;
SELECT count(*) FROM bgw_backfill.job_state;
SET search_path = app;
SELECT test.objects('app') = :'before';
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
