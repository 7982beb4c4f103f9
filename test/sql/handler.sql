-- What track() and configure() refuse of a handler, in words that help; what they take, and where it is shown.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common
\t on

SET client_min_messages = warning;
CREATE ROLE regress_other;
CREATE SCHEMA other;
CREATE FUNCTION other.private(job text, group_key text, keys bigint[], token bigint) RETURNS void
	LANGUAGE sql SET search_path = app AS '';
CREATE SCHEMA closed;
CREATE FUNCTION closed.hidden(job text, group_key text, keys bigint[], token bigint) RETURNS void
	LANGUAGE sql SET search_path = app AS '';
REVOKE EXECUTE ON FUNCTION other.private FROM PUBLIC;
GRANT USAGE ON SCHEMA other TO PUBLIC;
SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE events (id bigint PRIMARY KEY, org int);
CREATE TABLE vectors (event_id bigint PRIMARY KEY REFERENCES events, model text);
CREATE TABLE docs (id varchar(20) PRIMARY KEY);
CREATE TABLE of_docs (id varchar(20) PRIMARY KEY REFERENCES docs);

-- names, argument types, result
CREATE FUNCTION good(job text, group_key text, keys bigint[], token bigint) RETURNS void LANGUAGE sql SET search_path = app AS '';
CREATE FUNCTION "Odd, one"(text, text, bigint[], bigint) RETURNS int LANGUAGE sql SET search_path = app AS 'SELECT 1';
CREATE FUNCTION with_text(text, text, text[], bigint) RETURNS void LANGUAGE sql SET search_path = app AS '';
CREATE FUNCTION with_varchar(text, text, varchar[], bigint) RETURNS void LANGUAGE sql SET search_path = app AS '';
CREATE FUNCTION with_int(text, text, int[], bigint) RETURNS void LANGUAGE sql SET search_path = app AS '';
CREATE FUNCTION with_any(text, text, anyarray, bigint) RETURNS void LANGUAGE sql SET search_path = app AS '';
CREATE FUNCTION with_token(text, text, bigint[], int) RETURNS void LANGUAGE sql SET search_path = app AS '';
CREATE FUNCTION with_name(name, text, bigint[], bigint) RETURNS void LANGUAGE sql SET search_path = app AS '';
CREATE FUNCTION three(text, text, bigint[]) RETURNS void LANGUAGE sql SET search_path = app AS '';
CREATE FUNCTION five(text, text, bigint[], bigint, int DEFAULT 1) RETURNS void LANGUAGE sql SET search_path = app AS '';
CREATE FUNCTION with_out(text, text, bigint[], bigint, OUT int) LANGUAGE sql SET search_path = app AS 'SELECT 1';
CREATE FUNCTION a_set(text, text, bigint[], bigint) RETURNS SETOF int LANGUAGE sql SET search_path = app AS 'SELECT 1';
CREATE PROCEDURE a_procedure(text, text, bigint[], bigint) LANGUAGE sql SET search_path = app AS '';
CREATE FUNCTION state(int, text, text, bigint[], bigint) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE an_aggregate(text, text, bigint[], bigint) (SFUNC = state, STYPE = int);
CREATE FUNCTION no_path(text, text, bigint[], bigint) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION parsed(text, text, bigint[], bigint) RETURNS int LANGUAGE sql RETURN 1;
CREATE FUNCTION twice(text) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT f, test.refused(format('SELECT bgw_backfill.track(''events'', ''vectors'', handler => %L)', f)) FROM (VALUES
	('good(text, text, bigint[], bigint)'),
	('"Odd, one"(text, text, int8[], int8)'),
	('with_text(text, text, text[], bigint)'),
	('with_int(text, text, int[], bigint)'),
	('with_any(text, text, anyarray, bigint)'),
	('with_token(text, text, bigint[], int)'),
	('with_name(name, text, bigint[], bigint)'),
	('three(text, text, bigint[])'),
	('five(text, text, bigint[], bigint, int)'),
	('with_out(text, text, bigint[], bigint)'),
	('a_set(text, text, bigint[], bigint)'),
	('a_procedure(text, text, bigint[], bigint)'),
	('an_aggregate(text, text, bigint[], bigint)'),
	('other.private(text, text, bigint[], bigint)'),
	('closed.hidden(text, text, bigint[], bigint)'),
	('nowhere(text, text, bigint[], bigint)'),
	('0')) v (f);
SELECT f, test.refused(format('SELECT bgw_backfill.track(''docs'', ''of_docs'', handler => %L)', f)) FROM (VALUES
	('with_varchar(text, text, varchar[], bigint)'),
	('with_text(text, text, text[], bigint)'),
	('good(text, text, bigint[], bigint)')) v (f);

-- what the function names would not be found: a warning
SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors', handler => 'no_path(text, text, bigint[], bigint)')$$);
SELECT test.refused($$SELECT bgw_backfill.track('events', 'vectors', handler => 'parsed(text, text, bigint[], bigint)')$$);

-- a dry run refuses the same, and says what would be called
SET client_min_messages = notice;
SELECT bgw_backfill.track('events', 'vectors', handler => 'a_set(text, text, bigint[], bigint)', dry_run => true);
SELECT bgw_backfill.track('events', 'vectors', handler => '"Odd, one"(text, text, bigint[], bigint)', dry_run => true);
SET client_min_messages = warning;

-- with a job
SELECT bgw_backfill.track('events', 'vectors', handler => '"Odd, one"(text, text, bigint[], bigint)');
SELECT handler FROM bgw_backfill.jobs;
CALL bgw_backfill.wait('events');
SELECT f, test.refused(format('SELECT bgw_backfill.configure(''events'', ''handler'', %L)', f)) FROM (VALUES
	('good'),
	('app.good'),
	('app.good(text, text, bigint[], bigint)'),
	('good(text,text,bigint[])'),
	('three'),
	('twice'),
	('a_set'),
	('a_procedure'),
	('an_aggregate'),
	('with_text'),
	('other.private'),
	('public.nowhere'),
	('nowhere'),
	(''),
	('good('),
	('good; SELECT 1')) v (f);
SELECT handler FROM bgw_backfill.jobs;
SELECT bgw_backfill.configure('events', 'handler', 'good');
SELECT handler FROM bgw_backfill.jobs;
-- the way it is written does not depend on who looks
SET search_path = pg_catalog;
SELECT handler FROM bgw_backfill.jobs;
SET search_path = app;
SELECT bgw_backfill.configure('events', 'handler', NULL);
SELECT handler IS NULL FROM bgw_backfill.jobs;
RESET SESSION AUTHORIZATION;
SET ROLE regress_other;
SELECT test.refused($$SELECT bgw_backfill.configure('events', 'handler', NULL)$$);
RESET ROLE;

-- the owner's rights count, not those of the superuser who asks
SELECT test.refused($$SELECT bgw_backfill.configure('events', 'handler', 'other.private')$$);
GRANT EXECUTE ON FUNCTION other.private TO regress_owner;
SELECT test.refused($$SELECT bgw_backfill.configure('events', 'handler', 'other.private')$$);

SET client_min_messages = warning;
DROP SCHEMA app, other, closed CASCADE;
DROP ROLE regress_other;
