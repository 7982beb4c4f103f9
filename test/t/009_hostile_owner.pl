# An owner whose triggers, fired by the batch, try to take the worker over: he gains nothing.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('hostile', conf => "bgw_backfill.batch_size = 300\nbgw_backfill.batch_sleep = 0");
my $super = sql($node, 'SELECT rolname FROM pg_roles WHERE oid = 10');
my ($rows, $pending) = create_pair($node, rows => 3000);
sql($node, 'CREATE ROLE other NOLOGIN; GRANT other TO app; CREATE ROLE stranger LOGIN SUPERUSER; CREATE ROLE writer LOGIN');
sql($node, 'GRANT CREATE ON DATABASE postgres TO app');

app($node, <<"SQL");
CREATE TABLE loot (at bigserial, what text, cu name, su name, is_superuser text, result text);
GRANT INSERT ON loot TO PUBLIC;
GRANT USAGE ON SEQUENCE loot_at_seq TO PUBLIC;
CREATE SCHEMA evil;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
CREATE FUNCTION evil.spy(what text, result text DEFAULT NULL) RETURNS void LANGUAGE plpgsql
	SET search_path = pg_catalog AS \$\$
BEGIN
	INSERT INTO public.loot (what, cu, su, is_superuser, result)
		VALUES (what, current_user, session_user, current_setting('is_superuser'), result);
END
\$\$;

-- What unqualified names in our statements would find.
CREATE FUNCTION evil.text_eq(text, text) RETURNS boolean LANGUAGE plpgsql AS
	'BEGIN PERFORM evil.spy(''operator text = text''); RETURN pg_catalog.texteq(\$1, \$2); END';
CREATE OPERATOR evil.= (leftarg = text, rightarg = text, function = evil.text_eq);
CREATE FUNCTION evil.int8_eq(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
	'BEGIN PERFORM evil.spy(''operator int8 = int8''); RETURN pg_catalog.int8eq(\$1, \$2); END';
CREATE OPERATOR evil.= (leftarg = bigint, rightarg = bigint, function = evil.int8_eq);
CREATE FUNCTION evil.int8_plus(bigint, bigint) RETURNS bigint LANGUAGE plpgsql AS
	'BEGIN PERFORM evil.spy(''operator int8 + int8''); RETURN pg_catalog.int8pl(\$1, \$2); END';
CREATE OPERATOR evil.+ (leftarg = bigint, rightarg = bigint, function = evil.int8_plus);
CREATE FUNCTION evil.int84_plus(bigint, integer) RETURNS bigint LANGUAGE plpgsql AS
	'BEGIN PERFORM evil.spy(''operator int8 + int4''); RETURN pg_catalog.int84pl(\$1, \$2); END';
CREATE OPERATOR evil.+ (leftarg = bigint, rightarg = integer, function = evil.int84_plus);
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
	'BEGIN PERFORM evil.spy(''clock_timestamp''); RETURN pg_catalog.clock_timestamp(); END';
CREATE FUNCTION evil.date_part(text, interval) RETURNS float8 LANGUAGE plpgsql AS
	'BEGIN PERFORM evil.spy(''date_part''); RETURN pg_catalog.date_part(\$1, \$2); END';
CREATE FUNCTION evil.make_interval(secs float8) RETURNS interval LANGUAGE plpgsql AS
	'BEGIN PERFORM evil.spy(''make_interval''); RETURN pg_catalog.make_interval(secs => \$1); END';
CREATE FUNCTION evil.array_to_string(text[], text) RETURNS text LANGUAGE plpgsql AS
	'BEGIN PERFORM evil.spy(''array_to_string''); RETURN NULL; END';
CREATE TABLE evil.job (LIKE events);
CREATE TABLE evil.job_state (LIKE events);
CREATE TABLE evil.job_skipped (LIKE events);
CREATE TABLE evil.events (LIKE events);
CREATE TABLE evil.events_emb (LIKE events_emb);
CREATE DOMAIN evil.text AS pg_catalog.int4;
CREATE DOMAIN evil.int8 AS pg_catalog.text;
CREATE DOMAIN evil.bool AS pg_catalog.int4;

CREATE FUNCTION evil.try(command text) RETURNS void LANGUAGE plpgsql AS \$\$
BEGIN
	EXECUTE command;
	PERFORM evil.spy(command, 'done');
EXCEPTION WHEN OTHERS THEN
	PERFORM evil.spy(command, SQLSTATE || ' ' || SQLERRM);
END
\$\$;

CREATE FUNCTION evil.before_row() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	PERFORM evil.spy('before row');
	PERFORM evil.try('RESET SESSION AUTHORIZATION');
	PERFORM evil.try('SET SESSION AUTHORIZATION $super');
	PERFORM evil.try('SET SESSION AUTHORIZATION stranger');
	PERFORM evil.try('SET ROLE $super');
	PERFORM evil.try('SET ROLE pg_write_all_data');
	PERFORM evil.try('RESET ROLE');
	PERFORM evil.try('SET ROLE NONE');
	PERFORM evil.try('SET session_replication_role = replica');
	PERFORM evil.try('UPDATE pg_catalog.pg_authid SET rolsuper = true WHERE rolname = ''app''');
	PERFORM evil.try('UPDATE bgw_backfill.job SET owner = ''$super''');
	PERFORM evil.try('UPDATE bgw_backfill.job_state SET health = ''ok''');
	PERFORM evil.try('SELECT count(*) FROM bgw_backfill.job');
	PERFORM evil.try('ALTER ROLE app SUPERUSER');
	PERFORM evil.try('COPY public.loot FROM PROGRAM ''true''');
	RETURN NEW;
END
\$\$;
CREATE TRIGGER a_before BEFORE UPDATE ON events FOR EACH ROW WHEN (NEW.id % 7 = 0) EXECUTE FUNCTION evil.before_row();

-- What stays set after the trigger has returned.
CREATE FUNCTION evil.after_statement() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	PERFORM evil.spy('after statement');
	PERFORM evil.try('CREATE TEMP TABLE job (job text, phase text)');
	PERFORM evil.try('CREATE TEMP TABLE job_state (job text)');
	PERFORM evil.try('CREATE TEMP TABLE events (id bigint, has_embedding boolean)');
	PERFORM evil.try('CREATE TEMP TABLE pg_class (LIKE pg_catalog.pg_class)');
	PERFORM evil.try('CREATE DOMAIN pg_temp.int8 AS pg_catalog.text');
	PERFORM evil.try('CREATE DOMAIN pg_temp.text AS pg_catalog.int4');
	PERFORM evil.try('CREATE TYPE pg_temp.record AS (a int)');
	PERFORM evil.try('CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS ''SELECT evil.clock_timestamp()''');
	PERFORM evil.try('SET datestyle = ''SQL, DMY''');
	PERFORM evil.try('SET default_transaction_isolation = ''serializable''');
	PERFORM evil.try('SET default_transaction_read_only = on');
	PERFORM evil.try('SET default_tablespace = ''nowhere''');
	PERFORM evil.try('SET row_security = on');
	PERFORM evil.try('SET statement_timeout = ''1 ms''');
	PERFORM evil.try('SET lock_timeout = ''1 ms''');
	PERFORM evil.try('SET idle_in_transaction_session_timeout = ''1 ms''');
	PERFORM evil.try('SET standard_conforming_strings = off');
	PERFORM evil.try('SET array_nulls = off');
	PERFORM evil.try('SET transform_null_equals = on');
	PERFORM evil.try('SET plan_cache_mode = force_generic_plan');
	PERFORM evil.try('SET timezone = ''Asia/Kathmandu''');
	PERFORM evil.try('SET search_path = evil, pg_temp, pg_catalog, public');
	PERFORM evil.try('PREPARE p AS SELECT 1');
	PERFORM evil.try('LISTEN something');
	PERFORM evil.try('DECLARE c CURSOR WITH HOLD FOR SELECT evil.spy(''held cursor'')');
	PERFORM evil.try('SET ROLE other');
	PERFORM pg_catalog.set_config('search_path', 'evil, pg_temp, pg_catalog, public', false);
	RETURN NULL;
END
\$\$;
CREATE TRIGGER z_after AFTER UPDATE ON events FOR EACH STATEMENT EXECUTE FUNCTION evil.after_statement();

-- At commit, when the worker's own statements are over.
CREATE FUNCTION evil.at_commit() RETURNS trigger LANGUAGE plpgsql AS \$\$
BEGIN
	PERFORM evil.spy('at commit');
	PERFORM evil.try('RESET ROLE');
	PERFORM evil.try('RESET SESSION AUTHORIZATION');
	PERFORM evil.try('UPDATE bgw_backfill.job SET owner = ''$super''');
	PERFORM evil.try('DELETE FROM bgw_backfill.job_state');
	PERFORM evil.try('UPDATE pg_catalog.pg_authid SET rolsuper = true');
	PERFORM evil.try('SET ROLE $super');
	PERFORM evil.try('GRANT $super TO app');
	PERFORM evil.try('DROP EXTENSION bgw_backfill CASCADE');
	RETURN NULL;
END
\$\$;
CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON events DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW WHEN (NEW.id % 7 = 0) EXECUTE FUNCTION evil.at_commit();
GRANT ALL ON FUNCTION evil.spy, evil.try TO PUBLIC;
SQL
sql($node, 'GRANT USAGE ON SCHEMA public TO other');

# A schema prepared for the extension is refused.
sql($node, 'CREATE DATABASE trap');
sql($node, 'CREATE SCHEMA bgw_backfill AUTHORIZATION app', 'trap');
like(error_of($node, 'CREATE EXTENSION bgw_backfill', 'trap'), qr/schema "bgw_backfill" already exists/,
	'a prepared schema is refused');

my $before = sql($node, 'SELECT rolname, rolsuper, rolcreaterole FROM pg_roles ORDER BY 1');
track($node);
ok(wait_phase($node, 'live'), 'the job is live in spite of it all');
my $job = sql($node, "SELECT owner, source_name, paused, uninstall, settings, verify_requests FROM bgw_backfill.job WHERE job = 'events'");

# His triggers, fired by our trigger in a session of his own and of somebody else's; and by a sweep.
app($node, 'GRANT INSERT ON events_emb TO writer; GRANT SELECT ON events TO writer; DELETE FROM events_emb WHERE event_id % 14 = 0');
app($node, 'INSERT INTO events_emb SELECT id FROM events WHERE id % 28 = 0 ON CONFLICT DO NOTHING', undef, 'writer');
sql($node, 'SET session_replication_role = replica; UPDATE events SET has_embedding = NOT has_embedding WHERE id % 70 = 0');
sql($node, 'UPDATE bgw_backfill.job SET verify_requests = verify_requests + 1');
ok(wait_for($node, "phase = 'live' AND verified_at > live_since"), 'a sweep comes to its end');
job_exact($node, 'hostile owner');

cmp_ok(sql($node, "SELECT count(*) FROM loot WHERE what = 'before row'"), '>', 50, 'his triggers were fired');
cmp_ok(sql($node, "SELECT count(*) FROM loot WHERE what = 'at commit'"), '>', 50, 'the deferred one too');
is(sql($node, "SELECT DISTINCT su FROM loot WHERE what = 'before row' ORDER BY 1"),
	"app\nwriter", 'in the worker, and in the session of somebody who wrote');
is(sql($node, "SELECT count(*) FROM loot WHERE su = 'app' AND cu NOT IN ('app', 'other')"), '0',
	'in the worker he never was anybody but himself, or whom he may be');
is(sql($node, "SELECT count(*) FROM loot WHERE su = 'app' AND is_superuser <> 'off'"), '0', 'nor was is_superuser on there');
is(sql($node, "SELECT string_agg(DISTINCT cu, ',') FROM loot WHERE su = 'writer' AND what = 'before row'"), 'app',
	'a trigger that another\'s write fires through ours runs as the owner');
is( sql($node, <<"SQL"), '', 'nothing that he must not do was done');
SELECT DISTINCT su, what, result FROM loot WHERE result = 'done' AND what ~
	'(SET (SESSION AUTHORIZATION|ROLE) ($super|stranger|pg_)|session_replication|pg_authid|bgw_backfill|SUPERUSER|PROGRAM|^GRANT|DROP EXT)'
SQL
is(sql($node, "SELECT string_agg(DISTINCT what, ',') FROM loot WHERE what ~ '^(operator|clock|date_part|make_|array_to)'"), '',
	'none of his operators and functions was found by our statements');
is(sql($node, 'SELECT rolname, rolsuper, rolcreaterole FROM pg_roles ORDER BY 1'), $before, 'no role has changed');
is(sql($node, "SELECT owner, source_name, paused, uninstall, settings, verify_requests - 1 FROM bgw_backfill.job WHERE job = 'events'"),
	$job, 'nor has the job');
is(sql($node, 'SELECT (SELECT count(*) FROM evil.job) + (SELECT count(*) FROM evil.job_state) + (SELECT count(*) FROM evil.events)'),
	'0', 'nothing was written where he put a table of ours');
cmp_ok(progress($node, 'errors'), '<=', 1, 'and the job met no error');
note(sql($node, "SELECT su, cu, is_superuser, what, result, count(*) FROM loot GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 4"));
no_crash($node);
done_testing();
