-- pending_where and match_where: one immutable condition on the table's own columns, and no way out of it.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common
\t on

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org text, body text, done boolean, at timestamptz, has_embedding boolean,
	tags text[]);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events, model text, good boolean);
CREATE TABLE events_secret (id bigint);
CREATE FUNCTION not_marked(text) RETURNS boolean LANGUAGE sql AS 'SELECT $1 IS NOT NULL';
CREATE FUNCTION stable_one(text) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT $1 IS NOT NULL';
CREATE FUNCTION stable_two(text) RETURNS boolean LANGUAGE plpgsql STABLE AS 'BEGIN RETURN true; END';
CREATE FUNCTION immutable_one(text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 IS NOT NULL';
CREATE FUNCTION many(text) RETURNS SETOF boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 IS NOT NULL';
SELECT test.objects('app') AS before \gset

-- The server's hints on what does not exist change with its version: not shown.
CREATE FUNCTION test_pending(condition text) RETURNS text LANGUAGE sql AS
	$$SELECT regexp_replace(test.refused(format('SELECT bgw_backfill.track(%L, %L, pending_where => %L)',
		'app.events', 'app.vectors', condition)), '^(42883: [^\n]*)\n.*', '\1')$$;
CREATE FUNCTION test_match(condition text) RETURNS text LANGUAGE sql AS
	$$SELECT test.refused(format('SELECT bgw_backfill.track(%L, %L, match_where => %L)', 'app.events', 'app.vectors', condition))$$;

-- accepted
SELECT x, test_pending(x) FROM (VALUES
	($$body IS NOT NULL AND body <> ''$$),
	($$org = 'a' OR body LIKE '%x'$$),
	($$events.body > 'b'$$),
	($$done$$),
	($$true$$),
	($$NULL$$),
	($$'true'$$),
	($$lower(body) = ANY ('{a,b}')$$),
	($$immutable_one(body)$$),
	($$(id, org) > (1, 'x')$$),
	($$CASE WHEN done THEN body <> '' ELSE false END$$),
	($$body COLLATE "C" < 'x'$$),
	($$true -- $$),
	($$/* so */ true /* it is */$$),
	($$at > '2020-01-01 00:00:00+00'$$),
	($$tags @> '{x}'$$)) v (x);
SELECT x, test_match(x) FROM (VALUES
	($$model = 'v2' AND good$$),
	($$vectors.good$$)) v (x);

-- not an expression, or more than one
SELECT x, test_pending(x) FROM (VALUES
	($$$$),
	($$   $$),
	($$-- $$),
	($$body IS$$),
	($$body = 'x$$),
	($$body = $a$x$$),
	($$(done$$),
	($$done)$$),
	($$done, done$$),
	($$done AS done$$),
	($$done really$$),
	($$events.*$$),
	($$DISTINCT done$$),
	($$x := true$$),
	($$done = $$)) v (x);

-- every column at once
SELECT test_pending('*');
SELECT test_match('*');

-- out of its parentheses
SELECT x, test_pending(x) FROM (VALUES
	($$true) OR (true$$),
	($$true; DROP TABLE events$$),
	($$true; $$),
	($$true FROM pg_class$$),
	($$true WHERE true$$),
	($$true GROUP BY id$$),
	($$true HAVING true$$),
	($$true ORDER BY 1$$),
	($$true LIMIT 1$$),
	($$true OFFSET 1$$),
	($$true FETCH FIRST ROW ONLY$$),
	($$true FOR UPDATE$$),
	($$true UNION SELECT true$$),
	($$true WINDOW w AS ()$$),
	($$true INTO events_secret$$),
	($$1=1) FROM events_secret WHERE (1=1$$),
	($$SELECT true$$),
	($$WITH x AS (SELECT 1) SELECT true$$),
	($$VALUES (true)$$),
	($$TABLE events$$),
	($$true' OR 'true$$),
	(E'true\n) OR (true\n--')) v (x);

-- not a condition
SELECT x, test_pending(x) FROM (VALUES
	($$body$$),
	($$1$$),
	($$id + 1$$),
	($$'maybe'$$),
	($$events$$),
	($$ROW(done)$$)) v (x);

-- not of one row, or not always the same
SELECT x, test_pending(x) FROM (VALUES
	($$(SELECT true)$$),
	($$EXISTS (SELECT FROM vectors)$$),
	($$id IN (SELECT id FROM events_secret)$$),
	($$count(*) > 0$$),
	($$bool_or(done)$$),
	($$row_number() OVER () = 1$$),
	($$many(body)$$),
	($$unnest('{t,f}'::boolean[])$$),
	($$done = $1$$),
	($$done = :done$$),
	($$at < now()$$),
	($$at < current_timestamp$$),
	($$random() > 0.5$$),
	($$current_user = 'me'$$),
	($$at::text > ''$$),
	($$at > '2020-01-01'::date$$),
	($$not_marked(body)$$),
	($$stable_one(body)$$),
	($$stable_two(body)$$),
	($$to_tsvector(body) @@ 'x'::tsquery$$),
	($$currval('s') > 1$$)) v (x);

-- not its columns
SELECT x, test_pending(x) FROM (VALUES
	($$nothing$$),
	($$model = 'v2'$$),
	($$vectors.good$$),
	($$events_secret.id = 1$$),
	($$nothing(body)$$),
	($$body + 1 = 2$$),
	($$body = 1$$),
	($$events IS NOT NULL$$),
	($$events.* IS NOT NULL$$),
	($$immutable_one(events::text)$$),
	($$ctid = '(0,1)'$$),
	($$tableoid = 1$$),
	($$xmin IS NOT NULL$$),
	($$has_embedding$$),
	($$NOT has_embedding AND done$$)) v (x);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors', flag_column => 'done', pending_where => 'done')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors', flag_column => 'new_one', pending_where => 'new_one')$$);

-- as a user sees it
\set SHOW_CONTEXT errors
SELECT bgw_backfill.track('events', 'vectors', pending_where => 'body IS NOT NULL AND nothing');
SELECT bgw_backfill.track('events', 'vectors', pending_where => 'body IS NOT NULL) OR (true');
SELECT bgw_backfill.track('events', 'vectors', match_where => 'length(modell) > 0');
\set SHOW_CONTEXT never

-- the same for match_where, over the target
SELECT x, test_match(x) FROM (VALUES
	($$body <> ''$$),
	($$model$$),
	($$good) OR (true$$),
	($$good; DROP TABLE vectors$$),
	($$good FROM pg_class$$),
	($$good, good$$),
	($$EXISTS (SELECT)$$),
	($$bool_and(good)$$),
	($$good = $1$$),
	($$random() > 0.5$$),
	($$vectors IS NOT NULL$$),
	($$ctid = '(0,1)'$$),
	($$$$)) v (x);

-- nothing is left behind
DROP FUNCTION test_pending, test_match;
RESET SESSION AUTHORIZATION;
SELECT count(*) FROM bgw_backfill.job;
SELECT count(*) FROM bgw_backfill.job_state;
SET search_path = app;
SELECT test.objects('app') = :'before';
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
