-- postgresql.conf.sample and the settings are the same.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common
\set sample `cat "$PG_ABS_SRCDIR/../postgresql.conf.sample"`
SELECT :'sample' AS sample, setting[1] AS name, setting[2] AS value INTO TEMPORARY sample
FROM regexp_matches(:'sample', '^#(bgw_backfill\.\w+) = (.*)$', 'gn') setting;

-- settings on one side only
SELECT name, s.name IS NOT NULL AS in_sample, p.name IS NOT NULL AS in_server
FROM sample s FULL JOIN (SELECT name FROM pg_settings WHERE name LIKE 'bgw\_backfill.%') p USING (name)
WHERE s.name IS NULL OR p.name IS NULL ORDER BY name;

-- another default; those with a unit are compared as times, so that 1d is 86400
SELECT name, value, boot_val, unit FROM sample JOIN pg_settings USING (name)
WHERE CASE WHEN value LIKE '-%' OR unit IS NULL THEN value <> boot_val
	ELSE value::interval <> (boot_val || unit)::interval END ORDER BY name;

-- another description, unit or range
SELECT block AS missing FROM sample JOIN pg_settings USING (name), LATERAL (SELECT
	E'\n\n# ' || short_desc || coalesce(E'\n# ' || extra_desc, '') || E'\n# Range: ' ||
	CASE vartype WHEN 'bool' THEN 'on, off' ELSE min_val || ' .. ' || max_val END || coalesce(' ' || unit, '') ||
	CASE WHEN bgw_backfill.effective_settings('{}') ? substr(name, 14) THEN '; per job' ELSE '' END || E'.\n#' || name || ' = ') b (block)
WHERE position(block IN sample) = 0 ORDER BY name;

-- all can be changed by a reload
SELECT name, context FROM pg_settings WHERE name LIKE 'bgw\_backfill.%' AND context <> 'sighup';

SELECT count(*) FROM sample;
