\set ECHO none
-- What every regression test begins with: the extension anew, a role that is not a superuser, its empty schema,
-- and some helpers. Included quietly, so that a test shows its own topic alone.
\set SHOW_CONTEXT never
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS bgw_backfill CASCADE;
DROP SCHEMA IF EXISTS app, test CASCADE;
CREATE EXTENSION bgw_backfill;
DO $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'regress_owner') THEN
		CREATE ROLE regress_owner LOGIN;
	END IF;
END $$;
CREATE SCHEMA app AUTHORIZATION regress_owner;
CREATE SCHEMA test;
GRANT USAGE ON SCHEMA test TO PUBLIC;

-- What a command comes to: its error in full, or "accepted". Undone in either case.
CREATE FUNCTION test.refused(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	state text;
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE command;
	RAISE EXCEPTION USING errcode = 'TTTTT';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	IF state = 'TTTTT' THEN
		RETURN 'accepted';
	END IF;
	RETURN state || ': ' || message || CASE WHEN detail <> '' THEN E'\n        ' || detail ELSE '' END ||
		CASE WHEN hint <> '' THEN E'\n        ' || hint ELSE '' END;
END $$;

-- Waits until a condition is true, without a snapshot that lasts.
CREATE PROCEDURE test.until(condition text) LANGUAGE plpgsql AS $$
DECLARE
	deadline timestamptz := clock_timestamp() + interval '1 minute';
	done boolean;
BEGIN
	LOOP
		EXECUTE 'SELECT ' || condition INTO done;
		COMMIT;
		EXIT WHEN done;
		IF clock_timestamp() > deadline THEN
			RAISE EXCEPTION 'not in time: %', condition;
		END IF;
	END LOOP;
END $$;

-- Everything in the tables' schema that a job could have made, as a fingerprint to compare.
CREATE FUNCTION test.objects(schema text) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(x, ' ' ORDER BY x COLLATE "C") FROM (
		SELECT relname FROM pg_class WHERE relnamespace = schema::regnamespace
		UNION ALL
		SELECT attrelid::regclass || '.' || attname FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid
			WHERE relnamespace = schema::regnamespace AND attnum > 0 AND NOT attisdropped AND relkind = 'r'
		UNION ALL
		SELECT tgrelid::regclass || ':' || tgname FROM pg_trigger JOIN pg_class ON tgrelid = pg_class.oid
			WHERE relnamespace = schema::regnamespace AND NOT tgisinternal) o (x)
$$;

RESET client_min_messages;
\pset format unaligned
\set ECHO all
