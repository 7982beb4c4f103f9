-- What mallory has for 010: functions that say as whom they ran, and types, casts and operators that call them.
-- Run as the superuser; what is hers is made as her.
SET search_path = pg_catalog;

CREATE ROLE mallory LOGIN;
CREATE ROLE wendy LOGIN;
CREATE ROLE bob LOGIN;
GRANT CREATE ON SCHEMA public TO mallory, bob;
CREATE SCHEMA mal AUTHORIZATION mallory;
GRANT USAGE ON SCHEMA mal TO PUBLIC;

-- Which of the caller's settings are not what the session began with, and hers that are set; back to what they were.
CREATE SCHEMA chk;
GRANT USAGE ON SCHEMA chk TO PUBLIC;
CREATE TABLE chk.hook (name text PRIMARY KEY);
GRANT SELECT ON chk.hook TO PUBLIC;
CREATE FUNCTION chk.changed(path text) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	result text;
BEGIN
	SELECT string_agg(x, ' ' ORDER BY x) INTO result FROM (
		SELECT 'setting:search_path' AS x WHERE path <> 'mal,public,pg_catalog'
		UNION SELECT 'setting:' || s.name FROM pg_settings s WHERE s.name IN ('DateStyle', 'work_mem') AND s.setting <> s.reset_val
		UNION SELECT 'role' WHERE current_user <> session_user
		UNION SELECT 'temp' FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relowner = 'mallory'::regrole
		UNION SELECT 'left:' || h.name FROM chk.hook h WHERE current_setting('evil.' || h.name, true) = '1') c;
	PERFORM set_config('evil.' || h.name, '', false) FROM chk.hook h WHERE current_setting('evil.' || h.name, true) = '1';
	RETURN coalesce(result, '');
END
$$;

SET SESSION AUTHORIZATION mallory;

-- The server's log is where it stays, whatever is rolled back. Names are qualified: any search path may be set.
CREATE FUNCTION mal.note(what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE LOG 'EVIL|%|%|%|%|%|', pg_catalog.current_setting('application_name'), what, current_user, session_user,
		pg_catalog.current_setting('is_superuser');
	PERFORM pg_catalog.set_config(pg_catalog.concat('evil.', what), '1', false);
END
$$;

CREATE FUNCTION mal.evil(what text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM mal.note(what);
	BEGIN
		-- Not what the server itself runs as a writer to her tables: another role changed in his statement is a reason to
		-- give the job up for it, and what comes after that would not be tried.
		IF what OPERATOR(pg_catalog.~) '^(src|tgt)_' OR (what OPERATOR(pg_catalog.~) '_domain$' AND
			pg_catalog.current_setting('application_name') OPERATOR(pg_catalog.~) '/(free_|held_|s_)') THEN
			RAISE 'not now';
		END IF;
		ALTER ROLE mallory SUPERUSER;
		RAISE LOG 'SUPER|%|%|', pg_catalog.current_setting('application_name'), what;
	EXCEPTION WHEN OTHERS THEN
		NULL;
	END;
	PERFORM pg_catalog.set_config('search_path', 'mal, evil_was_here, public, pg_catalog', false),
		pg_catalog.set_config('datestyle', 'German, DMY', false), pg_catalog.set_config('work_mem', '77kB', false);
END
$$;

-- The lies that hooks are made of: what they call is immutable, they say.
CREATE FUNCTION mal.imm(what text, v anyelement) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM mal.evil(what);
	RETURN true;
END
$$;
CREATE FUNCTION mal.same(what text, v anyelement) RETURNS anyelement LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM mal.evil(what);
	RETURN v;
END
$$;
-- Once armed: in conflict with each other, as long as she is the current user; so that it is looked at again at commit.
CREATE SEQUENCE mal.armed;
GRANT SELECT ON SEQUENCE mal.armed TO PUBLIC;
CREATE FUNCTION mal.alt(what text, v bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM mal.evil(what);
	IF current_user OPERATOR(pg_catalog.=) 'mallory' AND (SELECT is_called FROM mal.armed) THEN
		RETURN 0;
	END IF;
	RETURN v;
END
$$;
CREATE FUNCTION mal.trg() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM mal.evil(TG_ARGV[0]);
	BEGIN
		EXECUTE pg_catalog.concat('CREATE TEMP TABLE IF NOT EXISTS ', TG_ARGV[0], ' ()');
	EXCEPTION WHEN OTHERS THEN
		NULL;
	END;
	IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
		RETURN OLD;
	END IF;
	RETURN NEW;
END
$$;
CREATE FUNCTION mal.handler(job text, group_key text, keys bigint[], token bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM mal.evil('handler');
	PERFORM bgw_backfill.release(job, keys::pg_catalog._text, token);
END
$$;

-- Types.
CREATE DOMAIN mal.dkey AS int4 CHECK (mal.imm('key_domain', VALUE)) CHECK (VALUE <> 666);
CREATE DOMAIN mal.dcolumn AS int8 CHECK (mal.imm('column_domain', VALUE));
CREATE DOMAIN mal.dgroup AS text CHECK (mal.imm('group_domain', VALUE));
CREATE TYPE mal.grp AS (g mal.dgroup);
CREATE TYPE mal.color AS ENUM ('red', 'blue');
CREATE FUNCTION mal.to_color(int4) RETURNS mal.color LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM mal.evil('cast');
	RETURN 'red';
END
$$;
CREATE CAST (int4 AS mal.color) WITH FUNCTION mal.to_color(int4);

-- A comparison, called while the index's page is locked: it only says that it ran, once a statement or so.
CREATE FUNCTION mal.cmp(a int4, b int4) RETURNS int4 LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM mal.note('comparison');
	RETURN pg_catalog.btint4cmp(a, b);
END
$$;
RESET SESSION AUTHORIZATION;
-- (Only a superuser can make an operator class; an extension may have given her hers.)
CREATE OPERATOR CLASS mal.cmp_ops FOR TYPE int4 USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =,
	OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 mal.cmp(int4, int4);
ALTER OPERATOR CLASS mal.cmp_ops USING btree OWNER TO mallory;
ALTER OPERATOR FAMILY mal.cmp_ops USING btree OWNER TO mallory;
SET SESSION AUTHORIZATION mallory;
CREATE TYPE mal.rng AS RANGE (subtype = mal.dkey, subtype_opclass = mal.cmp_ops);

-- What an unqualified name in one of our statements would find, where the caller's search path begins with her schema:
-- the server's operators on the usual types again, and exact ones where it has none.
DO $$
DECLARE
	o record;
BEGIN
	FOR o IN SELECT oprname AS name, format_type(oprleft, NULL) AS l, format_type(oprright, NULL) AS r,
			format_type(oprresult, NULL) AS result, format('OPERATOR(pg_catalog.%s)', oprname) AS op
		FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprkind = 'b'
			AND oprname IN ('=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '||', '~~')
			AND oprleft::regtype::text IN ('oid', 'integer', 'bigint', 'smallint', 'text', 'name', '"char"', 'boolean',
				'timestamp with time zone', 'interval', 'double precision', 'numeric', 'xid', 'tid', 'regclass')
			AND oprright::regtype::text IN ('oid', 'integer', 'bigint', 'smallint', 'text', 'name', '"char"', 'boolean',
				'timestamp with time zone', 'interval', 'double precision', 'numeric', 'xid', 'tid', 'regclass')
		UNION ALL SELECT '=', 'oid', t, 'boolean', 'OPERATOR(pg_catalog.=)' FROM unnest('{integer,bigint,smallint}'::text[]) t
		UNION ALL SELECT '||', 'text[]', 'text', 'text[]', 'OPERATOR(pg_catalog.||)'
		UNION ALL SELECT op, t, t, 'boolean', format('OPERATOR(pg_catalog.%s)', op)
			FROM unnest('{=,<>}'::text[]) op, unnest('{text[],smallint[],bigint[],integer[]}'::text[]) t
	LOOP
		EXECUTE format($f$CREATE FUNCTION mal.%I(a %s, b %s) RETURNS %s LANGUAGE plpgsql AS
			'BEGIN PERFORM mal.evil(''path''); RETURN a %s b; END'$f$,
			'op ' || o.name || ' ' || o.l || ' ' || o.r, o.l, o.r, o.result, o.op);
		EXECUTE format('CREATE OPERATOR mal.%s (leftarg = %s, rightarg = %s, function = mal.%I)',
			o.name, o.l, o.r, 'op ' || o.name || ' ' || o.l || ' ' || o.r);
	END LOOP;
	FOR o IN SELECT p.oid::regprocedure::text AS signature, pg_get_function_result(p.oid) AS result FROM pg_proc p
		WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND NOT proretset AND provariadic = 0
			AND NOT EXISTS (SELECT FROM unnest(proargtypes::oid[] || prorettype) a WHERE (SELECT typtype FROM pg_type WHERE oid = a) = 'p')
			AND proname IN ('lower', 'upper', 'md5', 'quote_ident', 'quote_literal', 'split_part', 'clock_timestamp', 'now',
				'nextval', 'pg_get_userbyid', 'format', 'length', 'substr', 'make_interval', 'date_part', 'current_database',
				'has_column_privilege', 'pg_has_role', 'floor', 'round', 'repeat', 'lpad', 'date_trunc', 'pg_snapshot_xmax',
				'pg_current_snapshot', 'current_setting', 'text', 'int8', 'int4')
	LOOP
		EXECUTE format($f$CREATE FUNCTION mal.%s RETURNS %s LANGUAGE plpgsql AS
			'BEGIN PERFORM mal.evil(''path''); RETURN NULL; END'$f$, o.signature, o.result);
	END LOOP;
END
$$;
CREATE DOMAIN mal.text AS pg_catalog.text CHECK (mal.imm('path'::pg_catalog.text, VALUE));
CREATE DOMAIN mal.int8 AS pg_catalog.int8 CHECK (mal.imm('path'::pg_catalog.text, VALUE));
CREATE DOMAIN mal.oid AS pg_catalog.oid CHECK (mal.imm('path'::pg_catalog.text, VALUE));
CREATE DOMAIN mal.timestamptz AS pg_catalog.timestamptz CHECK (mal.imm('path'::pg_catalog.text, VALUE));
CREATE TABLE mal.job (job pg_catalog.text);
CREATE TABLE mal.job_state (job pg_catalog.text);
