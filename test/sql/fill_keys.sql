-- The fill of a table of pending keys, for keys of several types: what the batches of three find, of rows with no match, with
-- one and with several, and with one that does not count.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE color AS ENUM ('red', 'green', 'blue', 'black', 'white', 'pink', 'gray', 'cyan', 'gold', 'lime');

-- Makes a pair of tables and its job. The keys are value(1) .. value(10); 5, 7, 9 and 10 are pending.
CREATE PROCEDURE pair(name text, source_type text, target_type text, value text, mode text, one_match boolean) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE TABLE %I (k %s PRIMARY KEY, body text)', name, source_type);
	EXECUTE format('CREATE TABLE %I (k %s, ok boolean)', name || '_target', target_type);
	EXECUTE format('CREATE %s INDEX ON %I (k)', CASE WHEN one_match THEN 'UNIQUE' ELSE '' END, name || '_target');
	EXECUTE format('INSERT INTO %I SELECT %s, CASE WHEN i <> 8 THEN ''text'' ELSE '''' END FROM generate_series(1, 10) i', name, value);
	EXECUTE format('INSERT INTO %I SELECT %s, i <> 5 FROM unnest(%L::int[]) i', name || '_target', value,
		CASE WHEN one_match THEN '{1,2,3,4,5,6}' ELSE '{1,2,3,3,3,4,4,5,5,6}' END);
	PERFORM bgw_backfill.track(quote_ident(name)::regclass, quote_ident(name || '_target')::regclass, target_key => 'k', source_key => 'k',
		mode => mode, pending_where => $w$body <> ''$w$, match_where => 'ok');
	PERFORM bgw_backfill.configure(name, 'batch_size', '3');
	PERFORM bgw_backfill.configure(name, 'batch_sleep', '0');
END $$;
CREATE FUNCTION pending(name text, value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	EXECUTE format('SELECT string_agg(i::text, '' '' ORDER BY i) FROM generate_series(1, 10) i JOIN %I p ON p.k = %s',
		name || '_sidecar', value) INTO result;
	RETURN result;
END $$;

CREATE TABLE kinds (name text, source_type text, target_type text, value text);
INSERT INTO kinds VALUES
	('int_bigint', 'int', 'bigint', 'i'),
	('bigint_int', 'bigint', 'int', '(-i)'),
	('a_uuid', 'uuid', 'uuid', 'md5(i::text)::uuid'),
	('a_text', 'text', 'text', '(''it''''s "'' || i || E''\\\\\n, {}'')'),
	('long_text', 'text', 'text', '(i || repeat(''long '', 2000))'),
	('b_text', 'text', 'varchar(50)', '(''key '' || i)'),
	('c_text', 'text COLLATE "C"', 'text COLLATE "C"', 'chr(70 - i)'),
	('a_char', 'char(5)', 'char(5)', 'i::text::char(5)'),
	('a_numeric', 'numeric', 'numeric', '(i / 3.0)'),
	('a_date', 'date', 'timestamp', '(''2024-01-30''::date + i)'),
	('a_float', 'float8', 'float4', '(i / 8.0)::float8'),
	('a_bytea', 'bytea', 'bytea', 'sha256(i::text::bytea)'),
	('a_domain', 'positive', 'int', 'i'),
	('an_enum', 'color', 'color', '(enum_range(NULL::app.color))[i]');
CREATE TABLE pairs AS
	SELECT name || '_' || mode || CASE WHEN one_match THEN '' ELSE '_s' END AS name, source_type, target_type, value, mode, one_match
	FROM kinds, unnest('{sidecar,watermark}'::text[]) mode, unnest('{t,f}'::boolean[]) one_match;
DO $$
DECLARE
	p pairs;
BEGIN
	FOR p IN SELECT * FROM pairs LOOP
		BEGIN
			CALL pair(p.name, p.source_type, p.target_type, p.value, p.mode, p.one_match);
		EXCEPTION WHEN OTHERS THEN
			RAISE WARNING '%: %', p.name, SQLERRM;
		END;
	END LOOP;
END $$;
CALL test.until('(SELECT bool_and(phase = ''live'' OR state = ''failed'') FROM bgw_backfill.progress)');

-- the sweep that followed found nothing to mend
SELECT p.name, pending(p.name, p.value), j.phase, j.errors, j.mismatches
FROM pairs p JOIN bgw_backfill.progress j ON j.job = p.name
WHERE (pending(p.name, p.value), j.phase, j.errors, j.mismatches) IS DISTINCT FROM ('5 7 9 10', 'live', 0, 0)
ORDER BY p.name COLLATE "C";
SELECT count(*), count(DISTINCT source_type) AS types FROM pairs p JOIN bgw_backfill.progress j ON j.job = p.name;

SELECT count(bgw_backfill.untrack(job)::text) FROM bgw_backfill.jobs;
CALL test.until('NOT EXISTS (SELECT FROM bgw_backfill.jobs)');
RESET SESSION AUTHORIZATION;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
