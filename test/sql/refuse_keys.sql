-- track() refuses keys that a walk, or a look for a match, could not use.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common
\t on

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (
	id bigint PRIMARY KEY,
	plain bigint,
	partly bigint,
	first bigint,
	second bigint,
	late bigint UNIQUE DEFERRABLE,
	hashed bigint,
	called text COLLATE "C" NOT NULL UNIQUE,
	number int NOT NULL UNIQUE,
	exact numeric NOT NULL UNIQUE,
	code uuid NOT NULL UNIQUE,
	maybe bigint UNIQUE,
	point point,
	list int[] NOT NULL UNIQUE);
CREATE INDEX ON events (plain);
CREATE UNIQUE INDEX ON events (partly) WHERE partly > 0;
CREATE UNIQUE INDEX ON events (first, second);
CREATE UNIQUE INDEX ON events ((second + 1));
CREATE INDEX ON events USING hash (hashed);
CREATE TABLE vectors (
	id bigint PRIMARY KEY REFERENCES events,
	unindexed bigint,
	partly bigint,
	second bigint,
	hashed bigint,
	called text COLLATE "POSIX",
	label text COLLATE "C",
	number int,
	small smallint,
	list int[] UNIQUE);
CREATE INDEX ON vectors (partly) WHERE partly > 0;
CREATE INDEX ON vectors (id, second);
CREATE INDEX ON vectors USING hash (hashed);
CREATE INDEX ON vectors (called);
CREATE INDEX ON vectors (label);
CREATE INDEX ON vectors (number);
CREATE INDEX ON vectors (small, number);
SELECT test.objects('app') AS before \gset

-- the source key needs a unique index of its own
SELECT x, test.refused(format($$SELECT bgw_backfill.track('events', 'vectors', source_key => %L, target_key => 'id')$$, x))
FROM unnest('{id,plain,partly,first,second,late,hashed,point,maybe,nothing,ctid,""}'::text[]) x;

-- the target key needs an index that begins with it
SELECT x, test.refused(format($$SELECT bgw_backfill.track('events', 'vectors', source_key => 'id', target_key => %L)$$, x))
FROM unnest('{id,unindexed,partly,second,hashed,nothing,ctid,""}'::text[]) x;

-- types: across integers, but no further
SELECT s, t, test.refused(format($$SELECT bgw_backfill.track('events', 'vectors', source_key => %L, target_key => %L)$$, s, t))
FROM (VALUES ('id', 'number'), ('id', 'small'), ('number', 'id'), ('number', 'small'), ('called', 'label'),
	('id', 'label'), ('called', 'id'), ('exact', 'id'), ('code', 'label'), ('called', 'called')) v (s, t);

-- arrays of keys are needed, and there are no arrays of arrays
SELECT left(test.refused($$SELECT bgw_backfill.track('events', 'vectors', source_key => 'list', target_key => 'list')$$), 5);

-- a row type is no key, under a domain neither; the hint helps
CREATE TYPE place AS (shelf integer, slot integer);
CREATE DOMAIN spot AS place;
CREATE TABLE boxes (at place NOT NULL UNIQUE, spot spot NOT NULL UNIQUE, id bigint GENERATED ALWAYS AS IDENTITY UNIQUE);
CREATE TABLE labels (box_at place UNIQUE, box_spot spot UNIQUE, box_id bigint UNIQUE);
SELECT test.refused($$SELECT bgw_backfill.track('boxes', 'labels', source_key => 'at', target_key => 'box_at')$$);
SELECT test.refused($$SELECT bgw_backfill.track('boxes', 'labels', source_key => 'spot', target_key => 'box_spot', mode => 'sidecar')$$);
SELECT test.refused($$SELECT bgw_backfill.track('boxes', 'labels', source_key => 'id', target_key => 'box_id')$$);
DROP TABLE boxes, labels;
DROP DOMAIN spot;
DROP TYPE place;

-- a date is a moment in somebody's time zone
CREATE TABLE days (day date PRIMARY KEY);
CREATE TABLE moments (day timestamptz UNIQUE);
SELECT test.refused($$SELECT bgw_backfill.track('days', 'moments', source_key => 'day', target_key => 'day')$$);
DROP TABLE days, moments;

-- keys that are not given come from the foreign key, or from the primary key
CREATE TABLE two_ways (
	first bigint PRIMARY KEY REFERENCES events,
	second bigint UNIQUE REFERENCES events);
CREATE TABLE no_foreign_key (event_id bigint PRIMARY KEY);
CREATE TABLE no_primary_key (id bigint NOT NULL UNIQUE);
CREATE TABLE wide (a int, b int, PRIMARY KEY (a, b));
CREATE TABLE to_wide (a int, b int, PRIMARY KEY (a, b), FOREIGN KEY (a, b) REFERENCES wide);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'two_ways')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'two_ways', target_key => 'second')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'no_foreign_key')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'no_foreign_key', source_key => 'id')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'no_foreign_key', target_key => 'event_id')$$);
SELECT test.refused($$SELECT bgw_backfill.track('no_primary_key', 'vectors', target_key => 'id')$$);
SELECT test.refused($$SELECT bgw_backfill.track('no_primary_key', 'vectors', source_key => 'id', target_key => 'id')$$);
SELECT test.refused($$SELECT bgw_backfill.track('wide', 'to_wide')$$);
SELECT test.refused($$SELECT bgw_backfill.track('wide', 'to_wide', target_key => 'a')$$);
DROP TABLE two_ways, no_foreign_key, no_primary_key, to_wide, wide;

-- of several indexes on a key, any that fits will do
CREATE UNIQUE INDEX called_pattern ON events (called text_pattern_ops);
CREATE INDEX label_include ON vectors (label text_pattern_ops);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors', source_key => 'called', target_key => 'label')$$);
CREATE TABLE pattern_first (k text COLLATE "C");
CREATE INDEX ON pattern_first (k text_pattern_ops);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'pattern_first', source_key => 'called', target_key => 'k')$$);
CREATE INDEX ON pattern_first (k);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'pattern_first', source_key => 'called', target_key => 'k')$$);
DROP TABLE pattern_first;
DROP INDEX called_pattern, label_include;

-- nothing is left behind
RESET SESSION AUTHORIZATION;
SELECT count(*) FROM bgw_backfill.job;
SELECT count(*) FROM bgw_backfill.job_state;
SET search_path = app;
SELECT test.objects('app') = :'before';
DROP SCHEMA app CASCADE;
