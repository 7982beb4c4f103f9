-- Equal keys that are written in several ways: the table of pending keys has each as its source row does.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

CREATE COLLATION app.ignore_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
-- a, b, c: three rows, each written in one way by the source and in another by the target
CREATE TABLE kinds (name text, type text, source_has text[], target_has text[], foreign_key boolean);
INSERT INTO kinds
SELECT name || CASE WHEN foreign_key THEN '_fk' ELSE '' END, type, source_has::text[], target_has::text[], foreign_key
FROM (VALUES ('num', 'numeric', '{1.00,2.0,3}', '{1.0,2,3.000}'),
	('txt', 'text COLLATE ignore_case', '{Aa,bB,CC}', '{aA,BB,cC}')) k (name, type, source_has, target_has),
	(VALUES (true), (false)) f (foreign_key);
CREATE PROCEDURE each(command text) LANGUAGE plpgsql AS $$
DECLARE
	k kinds;
BEGIN
	FOR k IN SELECT * FROM kinds ORDER BY name LOOP
		EXECUTE replace(replace(replace(replace(replace(command, '@name', k.name), '@type', k.type),
			'@fk', CASE WHEN k.foreign_key THEN 'REFERENCES ' || k.name || ' ON UPDATE CASCADE ON DELETE CASCADE' ELSE '' END),
			'@source', quote_literal(k.source_has)), '@target', quote_literal(k.target_has));
	END LOOP;
END $$;
-- What is in the tables of pending keys, as text.
CREATE FUNCTION pending() RETURNS TABLE (name text, keys text) LANGUAGE plpgsql AS $$
DECLARE
	k kinds;
BEGIN
	FOR k IN SELECT * FROM kinds ORDER BY kinds.name LOOP
		RETURN QUERY EXECUTE format('SELECT %L, string_agg(concat_ws('':'', k::text, g::text), '' '' ORDER BY k) FROM %I', k.name, k.name || '_sidecar');
	END LOOP;
END $$;

CALL each('CREATE TABLE @name (k @type PRIMARY KEY, g @type, body text)');
CALL each('CREATE TABLE @name_target (k @type UNIQUE @fk)');
CALL each('INSERT INTO @name SELECT k::@type, k::@type FROM unnest(@source::text[]) k');
CALL each('INSERT INTO @name_target SELECT k::@type FROM unnest(@target::text[]) k');
CALL each($$SELECT bgw_backfill.track('@name', '@name_target', target_key => 'k', source_key => 'k', mode => 'sidecar', group_by => 'g')$$);
CALL test.until('(SELECT bool_and(phase = ''live'') FROM bgw_backfill.progress)');
SELECT * FROM pending();

-- the target rows go, one alone and two together
CALL each('DELETE FROM @name_target WHERE k = ((@target::text[])[1])::@type');
CALL each('DELETE FROM @name_target');
SELECT * FROM pending();

-- a claim that was answered, by a target row that is gone again, does not hold its rows any more
CALL each($$CREATE TABLE @name_claim AS SELECT token, key FROM bgw_backfill.claim('@name', 10)$$);
CALL each('INSERT INTO @name_target SELECT k::@type FROM unnest(@target::text[]) k');
SELECT * FROM pending();
CALL each('DELETE FROM @name_target');
SELECT * FROM pending();
CALL each($$INSERT INTO @name_claim SELECT token, key FROM bgw_backfill.claim('@name', 10)$$);
CREATE VIEW claimed AS
SELECT 'num' AS name, * FROM num_claim UNION ALL SELECT 'num_fk', * FROM num_fk_claim UNION ALL
SELECT 'txt', * FROM txt_claim UNION ALL SELECT 'txt_fk', * FROM txt_fk_claim;
SELECT name, dense_rank() OVER (PARTITION BY name ORDER BY token) AS claim, key FROM claimed ORDER BY name, token, key COLLATE "C";

-- the source row is written in another way: key, group, both
CALL each('UPDATE @name SET g = ((@target::text[])[1])::@type WHERE k = ((@source::text[])[1])::@type');
CALL each('UPDATE @name SET k = ((@target::text[])[2])::@type WHERE k = ((@source::text[])[2])::@type');
CALL each('UPDATE @name SET g = ((@target::text[])[3])::@type, k = ((@target::text[])[3])::@type WHERE k = ((@source::text[])[3])::@type');
SELECT * FROM pending();

-- a key that is there before its source row
CALL each('DELETE FROM @name');
SELECT * FROM pending();
CALL each('INSERT INTO @name_sidecar SELECT k::@type FROM unnest(@target::text[]) k');
CALL each('INSERT INTO @name SELECT k::@type, k::@type FROM unnest(@source::text[]) k');
SELECT * FROM pending();

-- what is wrong all the same is mended by a sweep
CALL each('ALTER TABLE @name DISABLE TRIGGER USER');
CALL each('UPDATE @name SET k = ((@target::text[])[1])::@type WHERE k = ((@source::text[])[1])::@type');
CALL each('UPDATE @name SET g = ((@target::text[])[2])::@type WHERE k = ((@source::text[])[2])::@type');
CALL each('ALTER TABLE @name ENABLE TRIGGER USER');
SELECT * FROM pending();
SELECT max(verified_at) AS verified FROM bgw_backfill.progress \gset
SELECT count(bgw_backfill.verify(job)) FROM bgw_backfill.jobs;
CALL test.until(format('(SELECT min(verified_at) > %L FROM bgw_backfill.progress)', :'verified'));
SELECT * FROM pending();
SELECT job, mismatches FROM bgw_backfill.progress ORDER BY job;

-- a target's key that no source row can have: too large, too long, against a domain's check
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE narrow (name text, source_type text, target_type text, key text, strange text);
INSERT INTO narrow VALUES ('large', 'int', 'bigint', '2', '3000000000'), ('long', 'varchar(3)', 'varchar(9)', 'abc', 'too long'),
	('negative', 'positive', 'int', '2', '-2'), ('fine', 'numeric(6,2)', 'numeric', '2.00', '2.001');
CREATE PROCEDURE each_narrow(command text) LANGUAGE plpgsql AS $$
DECLARE
	n narrow;
BEGIN
	FOR n IN SELECT * FROM narrow ORDER BY name LOOP
		EXECUTE replace(replace(replace(replace(replace(command, '@name', n.name), '@source', n.source_type),
			'@target', n.target_type), '@key', quote_literal(n.key)), '@strange', quote_literal(n.strange));
	END LOOP;
END $$;
CREATE FUNCTION narrow_pending() RETURNS TABLE (name text, keys text) LANGUAGE plpgsql AS $$
DECLARE
	n narrow;
BEGIN
	FOR n IN SELECT * FROM narrow ORDER BY narrow.name LOOP
		RETURN QUERY EXECUTE format('SELECT %L, string_agg(k::text, '' '' ORDER BY k) FROM %I', n.name, n.name || '_sidecar');
	END LOOP;
END $$;
CALL each_narrow('CREATE TABLE @name (k @source PRIMARY KEY, body text)');
CALL each_narrow('CREATE TABLE @name_target (k @target UNIQUE)');
CALL each_narrow('INSERT INTO @name VALUES (@key)');
CALL each_narrow('INSERT INTO @name_target VALUES (@key), (@strange)');
CALL each_narrow($$SELECT bgw_backfill.track('@name', '@name_target', target_key => 'k', source_key => 'k', mode => 'sidecar')$$);
CALL test.until('(SELECT bool_and(phase = ''live'') FROM bgw_backfill.progress)');
CALL each_narrow('DELETE FROM @name_target WHERE k = @strange');
CALL each_narrow('UPDATE @name_target SET k = @strange WHERE k = @key');
SELECT * FROM narrow_pending();
CALL each_narrow('UPDATE @name_target SET k = @key');
CALL each_narrow('INSERT INTO @name_target VALUES (@strange)');
SELECT * FROM narrow_pending();
CALL each_narrow('DELETE FROM @name_target');
SELECT * FROM narrow_pending();

SELECT count(bgw_backfill.untrack(job)) FROM bgw_backfill.jobs;
CALL test.until('NOT EXISTS (SELECT FROM bgw_backfill.jobs)');
RESET SESSION AUTHORIZATION;
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
