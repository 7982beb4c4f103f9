-- Keys of several types, without a foreign key and with one; odd names.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE color AS ENUM ('red', 'green', 'blue', 'black', 'white', 'pink', 'gray', 'cyan', 'gold', 'lime');

-- Makes a pair of tables with keys of two types, and its job. The keys are value(1) .. value(10); 1 to 4 have a target row.
CREATE PROCEDURE pair(name text, source_type text, target_type text, value text, foreign_key boolean) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE TABLE %I (k %s PRIMARY KEY, body text)', name, source_type);
	EXECUTE format('CREATE TABLE %I (k %s UNIQUE %s)', name || '_target', target_type,
		CASE WHEN foreign_key THEN format('REFERENCES %I', name) ELSE '' END);
	EXECUTE format('INSERT INTO %I SELECT %s FROM generate_series(1, 8) i', name, value);
	EXECUTE format('INSERT INTO %I SELECT %s FROM generate_series(1, 4) i', name || '_target', value);
	PERFORM bgw_backfill.track(quote_ident(name)::regclass, quote_ident(name || '_target')::regclass, target_key => 'k', source_key => 'k');
	PERFORM bgw_backfill.configure(name, 'batch_size', '3');
	PERFORM bgw_backfill.configure(name, 'batch_sleep', '0');
END $$;
-- Changes both tables; returns the numbers of the pending rows.
CREATE PROCEDURE change(name text, value text, foreign_key boolean) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('INSERT INTO %I SELECT %s FROM generate_series(5, 6) i', name || '_target', value);
	EXECUTE format('DELETE FROM %I WHERE k IN (SELECT %s FROM generate_series(1, 2) i)', name || '_target', value);
	EXECUTE format('UPDATE %I SET k = (SELECT %s FROM generate_series(7, 7) i) WHERE k = (SELECT %s FROM generate_series(4, 4) i)',
		name || '_target', value, value);
	IF NOT foreign_key THEN		-- the target row may come first
		EXECUTE format('INSERT INTO %I SELECT %s FROM generate_series(9, 9) i', name || '_target', value);
	END IF;
	EXECUTE format('INSERT INTO %I SELECT %s FROM generate_series(9, 10) i', name, value);
END $$;
CREATE FUNCTION pending(name text, value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	EXECUTE format('SELECT string_agg(i::text, '' '' ORDER BY i) FROM generate_series(1, 10) i JOIN %I p ON p.k = %s',
		name || '_pending', value) INTO result;
	RETURN result;
END $$;

CREATE TABLE kinds (name text, source_type text, target_type text, value text, foreign_key boolean);
INSERT INTO kinds VALUES
	('int_int', 'int', 'int', 'i', true),
	('int_bigint', 'int', 'bigint', 'i', true),
	('bigint_int', 'bigint', 'int', 'i', false),
	('smallint_bigint', 'smallint', 'bigint', 'i', false),
	('negative', 'bigint', 'bigint', '(-i * 1000000000000)', true),
	('a_uuid', 'uuid', 'uuid', 'md5(i::text)::uuid', true),
	('b_uuid', 'uuid', 'uuid', 'md5(i::text)::uuid', false),
	('a_text', 'text', 'text', '(''it''''s "'' || i || E''\\\\\n, {}'')', true),
	('b_text', 'text', 'varchar(50)', '(''key '' || i)', false),
	('c_text', 'text COLLATE "C"', 'text COLLATE "C"', 'chr(70 - i)', true),
	('a_varchar', 'varchar(20)', 'varchar(30)', '(''key '' || i)', true),
	('a_char', 'char(5)', 'char(5)', 'i::text::char(5)', true),
	('a_numeric', 'numeric', 'numeric', '(i / 3.0)', true),
	('a_date', 'date', 'date', '(''2024-01-30''::date + i)', true),
	('a_timestamptz', 'timestamptz', 'timestamptz', '(''2024-03-31 00:30+01''::timestamptz + i * interval ''17 minutes 1 microsecond'')', false),
	('a_float', 'float8', 'float8', '(i / 7.0)::float8', false),
	('a_bytea', 'bytea', 'bytea', 'sha256(i::text::bytea)', true),
	('a_inet', 'inet', 'inet', '(''10.0.0.0''::inet + i)', true),
	('a_domain', 'positive', 'int', 'i', true),
	('b_domain', 'int', 'positive', 'i', false),
	('an_enum', 'color', 'color', '(enum_range(NULL::app.color))[i]', true),
	('Odd "key, name"', 'bigint', 'bigint', 'i', true);
DO $$
DECLARE
	kind kinds;
BEGIN
	FOR kind IN SELECT * FROM kinds LOOP
		BEGIN
			CALL pair(kind.name, kind.source_type, kind.target_type, kind.value, kind.foreign_key);
		EXCEPTION WHEN OTHERS THEN
			RAISE WARNING '%: %', kind.name, SQLERRM;
		END;
	END LOOP;
END $$;
CALL test.until('(SELECT bool_and(phase = ''live'' OR state = ''failed'') FROM bgw_backfill.progress)');
SELECT job, phase, last_error FROM bgw_backfill.progress WHERE phase <> 'live' OR errors > 0;
SELECT name, pending(name, value) FROM kinds ORDER BY name COLLATE "C";
DO $$
DECLARE
	kind kinds;
BEGIN
	FOR kind IN SELECT * FROM kinds LOOP
		CALL change(kind.name, kind.value, kind.foreign_key);
	END LOOP;
END $$;
SELECT name, pending(name, value) FROM kinds ORDER BY name COLLATE "C";

-- a target row that names no source row, then the source row; then the source row takes another key
INSERT INTO b_text VALUES ('key 20'), ('key 21');
INSERT INTO b_text_target VALUES ('key 30'), ('key 31');
INSERT INTO b_text VALUES ('key 30'), ('key 40');
UPDATE b_text SET k = 'key 31' WHERE k = 'key 20';
UPDATE b_text SET k = 'key 50' WHERE k = 'key 30';
UPDATE b_text SET body = 'x';
SELECT k, has_embedding FROM b_text WHERE length(k) = 6 ORDER BY 1;

-- names that need quotes everywhere
CREATE TABLE "The ""Source"" Table" ("The Key" bigint PRIMARY KEY, "Group by" text, "select" boolean);
CREATE TABLE "target; drop" ("from" bigint REFERENCES "The ""Source"" Table" ON UPDATE CASCADE, "where" text);
CREATE INDEX ON "target; drop" ("from");
INSERT INTO "The ""Source"" Table" SELECT i, 'it''s', i > 2 FROM generate_series(1, 5) i;
INSERT INTO "target; drop" VALUES (1, 'yes'), (2, 'no'), (3, 'yes');
SELECT bgw_backfill.track('"The ""Source"" Table"', '"target; drop"', flag_column => 'Has "it"', group_by => 'Group by',
	pending_where => '"The Key" > 0 AND "Group by" = $q$it''s$q$', match_where => '"where" = ''yes''');
CALL bgw_backfill.wait('The "Source" Table');
INSERT INTO "target; drop" VALUES (4, 'yes'), (5, 'no');
UPDATE "target; drop" SET "where" = 'no' WHERE "from" = 3;
UPDATE "The ""Source"" Table" SET "The Key" = 10 WHERE "The Key" = 1;
SELECT * FROM "The ""Source"" Table_pending" ORDER BY 1;
SELECT * FROM "The ""Source"" Table" ORDER BY 1;
CALL test.until('(SELECT pending IS NOT NULL FROM bgw_backfill.progress WHERE job LIKE ''The%'')');
SELECT job, source, target, phase, errors FROM bgw_backfill.progress WHERE job LIKE 'The%';

SELECT count(bgw_backfill.untrack(job)::text) FROM bgw_backfill.jobs;
CALL test.until('NOT EXISTS (SELECT FROM bgw_backfill.jobs)');
SELECT count(*) FROM pg_trigger JOIN pg_class ON tgrelid = pg_class.oid WHERE relnamespace = 'app'::regnamespace AND NOT tgisinternal;
SELECT count(*) FROM pg_class WHERE relnamespace = 'app'::regnamespace AND relname ~ 'pending';
RESET SESSION AUTHORIZATION;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
