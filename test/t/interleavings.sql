-- For 020_interleavings.pl: runs two transactions, or one and the worker, in every order of their steps, and
-- compares the flags with the truth. The sessions are dblink's; what is asked of them is sent without waiting.

CREATE EXTENSION bgw_backfill;
CREATE EXTENSION dblink;
CREATE ROLE pair_owner LOGIN;
CREATE ROLE writer LOGIN;
CREATE SCHEMA il;
GRANT USAGE ON SCHEMA il TO PUBLIC;

-- Stops nobody but our worker: at lock 1 in its search for candidates, at lock 2 once it has rows locked.
CREATE FUNCTION il.gate(ok boolean) RETURNS boolean LANGUAGE plpgsql IMMUTABLE SET lock_timeout = 0 AS $$
DECLARE
	stage integer := CASE WHEN pg_current_xact_id_if_assigned() IS NULL THEN 1 ELSE 2 END;
BEGIN
	IF EXISTS (SELECT FROM pg_stat_get_activity(pg_backend_pid()) WHERE backend_type = 'bgw_backfill worker') THEN
		PERFORM pg_advisory_lock_shared(77, stage), pg_advisory_unlock_shared(77, stage);
	END IF;
	RETURN ok;
END $$;

-- One pair of tables for each way in which they may depend on each other.
CREATE TABLE il.variant (name text PRIMARY KEY, key_type text, foreign_key boolean, one_row boolean);
INSERT INTO il.variant VALUES
	('fk', 'integer NOT NULL REFERENCES source', true, false),
	('cascade', 'integer NOT NULL REFERENCES source ON UPDATE CASCADE ON DELETE CASCADE', true, false),
	('nofk', 'integer NOT NULL', false, false),
	('one_row', 'integer NOT NULL UNIQUE', false, true);

DO $$
DECLARE
	v il.variant;
BEGIN
	FOR v IN SELECT * FROM il.variant LOOP
		EXECUTE format('CREATE SCHEMA %I AUTHORIZATION pair_owner', v.name);
		PERFORM set_config('search_path', v.name, true);
		SET LOCAL ROLE pair_owner;
		CREATE TABLE source (id integer PRIMARY KEY);
		EXECUTE format('CREATE TABLE target (tid integer PRIMARY KEY, sid %s, ok boolean NOT NULL)', v.key_type);
		CREATE INDEX ON target (sid);
		GRANT SELECT, INSERT, UPDATE, DELETE ON source, target TO writer;
		EXECUTE format('GRANT USAGE ON SCHEMA %I TO writer', v.name);
		PERFORM bgw_backfill.track('source', 'target', job => v.name, match_where => 'il.gate(ok)',
			source_key => 'id', target_key => 'sid', flag_column => 'flag');
		PERFORM bgw_backfill.configure(v.name, 'scan_interval', '1h');
		PERFORM bgw_backfill.configure(v.name, 'lock_timeout', '5ms');
		PERFORM bgw_backfill.configure(v.name, 'batch_sleep', '0');
		RESET ROLE;
	END LOOP;
END $$;
CALL bgw_backfill.wait('fk');
CALL bgw_backfill.wait('cascade');
CALL bgw_backfill.wait('nofk');
CALL bgw_backfill.wait('one_row');

-- What a transaction may do; {n} is a number that the other one does not use.
CREATE TABLE il.action (kind text, variants text, keys integer[], steps text[]);
INSERT INTO il.action VALUES
	('target insert', 'fk cascade nofk one_row', '{1}', '{"INSERT INTO target VALUES ({n}, 1, true)"}'),
	('target insert', 'fk nofk', '{2}', '{"INSERT INTO target VALUES ({n}, 2, true)"}'),
	('target insert', 'fk nofk', '{3}', '{"INSERT INTO target VALUES ({n}, 3, true)"}'),
	('target insert', 'fk nofk', '{4}', '{"INSERT INTO target VALUES ({n}, 4, false)"}'),
	('target insert', 'nofk', '{12}', '{"INSERT INTO target VALUES ({n}, 12, true)"}'),
	('target insert', 'fk nofk one_row', '{13}', '{"INSERT INTO target VALUES ({n}, 13, true)"}'),
	('target delete', 'fk cascade nofk one_row', '{2}', '{"DELETE FROM target WHERE tid = 21"}'),
	('target delete', 'fk cascade nofk', '{4}', '{"DELETE FROM target WHERE tid = 41"}'),
	('target delete', 'fk cascade nofk', '{4}', '{"DELETE FROM target WHERE tid = 42"}'),
	('target delete', 'nofk one_row', '{11}', '{"DELETE FROM target WHERE tid = 111"}'),
	('target key update', 'fk cascade nofk one_row', '{1,2}', '{"UPDATE target SET sid = 1 WHERE tid = 21"}'),
	('target key update', 'fk nofk', '{1,4}', '{"UPDATE target SET sid = 1 WHERE tid = 41"}'),
	('target key update', 'fk nofk', '{3,4}', '{"UPDATE target SET sid = CASE sid WHEN 3 THEN 4 ELSE 3 END WHERE sid IN (3, 4)"}'),
	('target key update', 'nofk one_row', '{1,11}', '{"UPDATE target SET sid = 1 WHERE tid = 111"}'),
	('target key update', 'nofk one_row', '{2,13}', '{"UPDATE target SET sid = 13 WHERE tid = 21"}'),
	('target key update', 'nofk one_row', '{11,13}', '{"UPDATE target SET sid = 13 WHERE tid = 111"}'),
	('target match update', 'fk cascade nofk one_row', '{2}', '{"UPDATE target SET ok = false WHERE tid = 21"}'),
	('target match update', 'fk nofk one_row', '{3}', '{"UPDATE target SET ok = true WHERE tid = 31"}'),
	('target match update', 'fk nofk', '{4}', '{"UPDATE target SET ok = false WHERE tid = 42"}'),
	('target match update', 'nofk one_row', '{11}', '{"UPDATE target SET ok = false WHERE tid = 111"}'),
	('target match update', 'nofk one_row', '{12}', '{"UPDATE target SET ok = true WHERE tid = 121"}'),
	('source insert', 'nofk one_row', '{11}', '{"INSERT INTO source VALUES (11)"}'),
	('source insert', 'nofk one_row', '{12}', '{"INSERT INTO source VALUES (12)"}'),
	('source insert', 'fk nofk one_row', '{13}', '{"INSERT INTO source VALUES (13)"}'),
	('source key update', 'nofk one_row', '{1,11}', '{"UPDATE source SET id = 11 WHERE id = 1"}'),
	('source key update', 'nofk one_row', '{2,12}', '{"UPDATE source SET id = 12 WHERE id = 2"}'),
	('source key update', 'fk cascade nofk one_row', '{1,13}', '{"UPDATE source SET id = 13 WHERE id = 1"}'),
	('source key update', 'cascade nofk one_row', '{2,13}', '{"UPDATE source SET id = 13 WHERE id = 2"}'),
	('source delete', 'fk cascade nofk', '{1}', '{"DELETE FROM source WHERE id = 1"}'),
	('source delete', 'fk cascade nofk', '{2}', '{"DELETE FROM source WHERE id = 2"}'),
	('two statements', 'fk nofk', '{1,2}', '{"INSERT INTO target VALUES ({n}, 1, true)","DELETE FROM target WHERE tid = 21"}'),
	('two statements', 'fk nofk', '{1,2}', '{"DELETE FROM target WHERE tid = 21","INSERT INTO target VALUES ({n}, 1, true)"}'),
	('two statements', 'nofk', '{2,3}', '{"UPDATE target SET ok = true WHERE tid = 31","UPDATE target SET ok = false WHERE tid = 21"}'),
	('two statements', 'fk nofk', '{13}', '{"INSERT INTO source VALUES (13)","INSERT INTO target VALUES ({n}, 13, true)"}'),
	('two statements', 'nofk', '{13}', '{"INSERT INTO target VALUES ({n}, 13, true)","INSERT INTO source VALUES (13)"}');

-- A session: what it has to do, how far it is, and what became of it.
CREATE TYPE il.session AS (conn text, pid integer, steps text[], done integer, busy boolean, error text, touches_source boolean, touches_target boolean);

CREATE TABLE il.failure (id integer GENERATED ALWAYS AS IDENTITY, kinds text, isolation text, variant text, message text);
CREATE TABLE il.count (kinds text, isolation text, what text, n bigint, PRIMARY KEY (kinds, isolation, what));

CREATE PROCEDURE il.count(kinds text, isolation text, what text) LANGUAGE sql AS $$
	INSERT INTO il.count VALUES (kinds, isolation, what, 1) ON CONFLICT ON CONSTRAINT count_pkey DO UPDATE SET n = count.n + 1;
$$;

-- All orders of n steps of A and m steps of B.
CREATE FUNCTION il.orders(n integer, m integer) RETURNS SETOF text LANGUAGE sql AS $$
	SELECT translate(right(i::bit(12)::text, n + m), '01', 'AB')
	FROM generate_series(0, (1 << (n + m)) - 1) i WHERE bit_count(i::bit(12)) = m;
$$;

-- The rows that every interleaving begins with.
CREATE PROCEDURE il.reset(v il.variant) LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM target;
	DELETE FROM source;
	INSERT INTO source SELECT * FROM generate_series(1, 6);
	INSERT INTO target VALUES (21, 2, true), (31, 3, false), (41, 4, true), (61, 6, true);
	IF NOT v.one_row THEN
		INSERT INTO target VALUES (42, 4, true);
	END IF;
	IF NOT v.foreign_key THEN
		INSERT INTO target VALUES (111, 11, true), (121, 12, false);
	END IF;
END $$;

-- The keys whose flag is wrong that way.
CREATE FUNCTION il.wrong(what boolean) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT string_agg(s.id::text, ',' ORDER BY s.id) FROM source s
		WHERE s.flag = what AND s.flag <> EXISTS (SELECT FROM target t WHERE t.sid = s.id AND t.ok));
END $$;

-- What has become of a session's statement: it waits for somebody, is done, or has failed with this SQLSTATE.
CREATE FUNCTION il.look(s il.session) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text := 'done';
	until timestamptz := clock_timestamp() + '60 s';
BEGIN
	WHILE dblink_is_busy(s.conn) = 1 LOOP
		IF cardinality(pg_blocking_pids(s.pid)) > 0 THEN
			RETURN 'waits';
		ELSIF clock_timestamp() > until THEN
			RAISE 'a statement does not end: %', s.steps[s.done + 1];
		END IF;
	END LOOP;
	BEGIN
		PERFORM FROM dblink_get_result(s.conn) AS r (x text);
	EXCEPTION WHEN OTHERS THEN
		result := SQLSTATE;
	END;
	LOOP
		PERFORM FROM dblink_get_result(s.conn, false) AS r (x text);
		EXIT WHEN NOT FOUND;
	END LOOP;
	RETURN result;
END $$;

-- Take note of what a session's statement has come to.
CREATE PROCEDURE il.note(INOUT s il.session, INOUT trace text) LANGUAGE plpgsql AS $$
DECLARE
	result text := il.look(s);
BEGIN
	IF result = 'waits' THEN
		IF NOT s.busy THEN
			trace := trace || ' (waits)';
		END IF;
		s.busy := true;
		RETURN;
	ELSIF s.busy THEN
		trace := trace || format('; %s goes on', s.conn);
	END IF;
	s.busy := false;
	s.done := s.done + 1;
	IF result <> 'done' THEN
		trace := trace || format(' (%s)', result);
		s.error := result;
		s.done := greatest(s.done, cardinality(s.steps) - 1);
	END IF;
END $$;

-- Let a session do its next step, unless it waits for somebody.
CREATE PROCEDURE il.go(INOUT s il.session, INOUT trace text) LANGUAGE plpgsql AS $$
DECLARE
	step text;
BEGIN
	IF s.busy THEN
		CALL il.note(s, trace);
	END IF;
	IF s.busy OR s.done >= cardinality(s.steps) THEN
		RETURN;
	END IF;
	step := s.steps[s.done + 1];
	IF s.error IS NOT NULL THEN
		step := 'ROLLBACK';
	END IF;
	trace := trace || format('; %s: %s', s.conn, step);
	PERFORM dblink_send_query(s.conn, step);
	CALL il.note(s, trace);
END $$;

-- A session ready to do an action's steps; at read committed, to begin is no step.
CREATE FUNCTION il.ready(conn text, action il.action, n integer, isolation text, ending text) RETURNS il.session LANGUAGE plpgsql AS $$
DECLARE
	s il.session;
BEGIN
	s.conn := conn;
	SELECT pid INTO s.pid FROM dblink(conn, 'SELECT pg_backend_pid()') AS r (pid integer);
	s.steps := replace(action.steps::text, '{n}', n::text)::text[] || CASE ending WHEN 'C' THEN 'COMMIT' ELSE 'ROLLBACK' END;
	s.touches_source := s.steps::text ~ 'source';
	s.touches_target := s.steps::text ~ 'target';
	s.done := 0;
	s.busy := false;
	PERFORM dblink_exec(conn, 'BEGIN ISOLATION LEVEL ' || isolation);
	IF isolation <> 'read committed' THEN
		s.steps := 'SELECT count(*) FROM target'::text || s.steps;
	END IF;
	RETURN s;
END $$;

CREATE FUNCTION il.steps(action il.action, isolation text) RETURNS integer LANGUAGE sql AS $$
	SELECT cardinality(action.steps) + 1 + (isolation <> 'read committed')::integer;
$$;

CREATE PROCEDURE il.connect(v il.variant) LANGUAGE plpgsql AS $$
DECLARE
	conn text;
BEGIN
	PERFORM set_config('search_path', v.name || ', public', false);
	FOREACH conn IN ARRAY '{A,B}'::text[] LOOP
		IF conn = ANY (dblink_get_connections()) THEN
			PERFORM dblink_disconnect(conn);
		END IF;
		PERFORM dblink_connect(conn, format('host=%s port=%s dbname=%s user=%s',
			current_setting('unix_socket_directories'), current_setting('port'), current_database(), session_user));
		PERFORM dblink_exec(conn, 'SET deadlock_timeout = ''20ms''');
		PERFORM dblink_exec(conn, 'SET SESSION AUTHORIZATION writer');
		PERFORM dblink_exec(conn, format('SET search_path = %I', v.name));
	END LOOP;
END $$;

-- Errors that are nobody's fault: what a missing source row or a second row of the same key brings.
CREATE FUNCTION il.check_error(s il.session, isolation text, both_long boolean) RETURNS text LANGUAGE sql AS $$
	SELECT format('%s failed with %s', s.conn, s.error)
	WHERE s.error IS NOT NULL AND s.error NOT IN ('23503', '23505')
		AND NOT (s.error = '40001' AND isolation <> 'read committed') AND NOT (s.error = '40P01' AND both_long);
$$;

-- A sweep, from its request to its end; it has to leave everything exact.
CREATE PROCEDURE il.sweep(job text) LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz := clock_timestamp();
BEGIN
	PERFORM bgw_backfill.verify(job);
	COMMIT;
	WHILE NOT EXISTS (SELECT FROM bgw_backfill.progress p WHERE p.job = sweep.job AND p.verified_at > began) LOOP
		IF clock_timestamp() > began + '60 s' THEN
			RAISE 'no sweep of job % in time', job;
		END IF;
		COMMIT;
	END LOOP;
END $$;

-- All orders of two actions, each with all endings but two rollbacks.
CREATE PROCEDURE il.run_actions(v il.variant, kinds text, isolation text, a_action il.action, b_action il.action, INOUT swept boolean) LANGUAGE plpgsql AS $$
DECLARE
	ending text;
	ord text;
	a il.session;
	b il.session;
	who text;
	trace text;
	problem text;
	serial boolean;
	until timestamptz;
BEGIN
	FOREACH ending IN ARRAY '{CC,CR,RC}'::text[] LOOP
		FOR ord IN SELECT * FROM il.orders(il.steps(a_action, isolation), il.steps(b_action, isolation)) LOOP
			CALL il.reset(v);
			COMMIT;
			a := il.ready('A', a_action, 91, isolation, left(ending, 1));
			b := il.ready('B', b_action, 92, isolation, right(ending, 1));
			trace := '';
			until := clock_timestamp() + '60 s';
			FOREACH who IN ARRAY string_to_array(ord, NULL) LOOP
				IF who = 'A' THEN CALL il.go(a, trace); ELSE CALL il.go(b, trace); END IF;
			END LOOP;
			WHILE a.done < cardinality(a.steps) OR b.done < cardinality(b.steps) LOOP
				CALL il.go(a, trace);
				CALL il.go(b, trace);
				IF clock_timestamp() > until THEN
					RAISE '%: both wait', trace;
				END IF;
			END LOOP;
			COMMIT;

			serial := ord ~ '^(A+B+|B+A+)$';
			problem := concat_ws(', ',
				il.check_error(a, isolation, cardinality(a_action.steps) > 1 AND cardinality(b_action.steps) > 1),
				il.check_error(b, isolation, cardinality(a_action.steps) > 1 AND cardinality(b_action.steps) > 1),
				'wrong true: ' || il.wrong(true));
			IF il.wrong(false) IS NOT NULL THEN
				IF v.foreign_key OR serial OR NOT (a.touches_source AND b.touches_target OR a.touches_target AND b.touches_source) THEN
					problem := concat_ws(', ', problem, 'wrong false: ' || il.wrong(false));
				ELSE
					CALL il.count(kinds, isolation, 'wrong false');
					IF NOT swept THEN
						CALL il.sweep(v.name);
						problem := concat_ws(', ', problem, 'after a sweep wrong true: ' || il.wrong(true),
							'after a sweep wrong false: ' || il.wrong(false));
						swept := true;
					END IF;
				END IF;
			END IF;
			IF problem <> '' THEN
				INSERT INTO il.failure (kinds, isolation, variant, message) VALUES (kinds, isolation, v.name, problem || ' after' || ltrim(trace, ';'));
			END IF;
			CALL il.count(kinds, isolation, 'interleavings');
			IF a.error IS NOT NULL THEN CALL il.count(kinds, isolation, a.error); END IF;
			IF b.error IS NOT NULL THEN CALL il.count(kinds, isolation, b.error); END IF;
			COMMIT;
		END LOOP;
	END LOOP;
END $$;

-- Every action of one kind with every one of another that has to do with the same keys.
CREATE PROCEDURE il.run_kinds(a_kind text, b_kind text, isolation text) LANGUAGE plpgsql AS $$
DECLARE
	v il.variant;
	a_action il.action;
	b_action il.action;
	swept boolean;
BEGIN
	FOR v IN SELECT * FROM il.variant LOOP
		CALL il.connect(v);
		swept := false;
		FOR a_action IN SELECT * FROM il.action WHERE kind = a_kind AND v.name = ANY (string_to_array(variants, ' ')) LOOP
			FOR b_action IN SELECT * FROM il.action WHERE kind = b_kind AND v.name = ANY (string_to_array(variants, ' '))
				AND keys && a_action.keys AND (a_kind <> b_kind OR steps >= a_action.steps)
			LOOP
				CALL il.run_actions(v, a_kind || ', ' || b_kind, isolation, a_action, b_action, swept);
			END LOOP;
		END LOOP;
	END LOOP;
END $$;
