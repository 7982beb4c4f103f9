-- For 020_interleavings.pl: runs two transactions, or one and the worker, in every order of their steps, and
-- compares the flags, or the table of pending keys, with the truth. The sessions are dblink's; what is asked of them is sent without waiting.

CREATE EXTENSION bgw_backfill;
CREATE EXTENSION dblink;
CREATE SCHEMA il;
GRANT USAGE ON SCHEMA il TO PUBLIC;

-- Stops nobody but our worker: at lock 1 in its search for candidates, at lock 2 once it has rows locked.
CREATE FUNCTION il.stop() RETURNS void LANGUAGE plpgsql SET lock_timeout = 0 AS $$
DECLARE
	stage integer := CASE WHEN pg_current_xact_id_if_assigned() IS NULL THEN 1 ELSE 2 END;
BEGIN
	PERFORM pg_advisory_lock_shared(77, stage), pg_advisory_unlock_shared(77, stage);
END $$;
CREATE FUNCTION il.gate(ok boolean) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF session_user = 'pair_owner' THEN
		PERFORM il.stop();
	END IF;
	RETURN ok;
END $$;

-- Stops session A at lock 1 and B at lock 2 when a statement has written its rows and nothing has followed them yet.
CREATE FUNCTION il.pause() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
	IF current_setting('il.pause', true) <> '' AND pg_trigger_depth() = 1 THEN
		PERFORM pg_advisory_lock_shared(78, current_setting('il.pause')::integer),
			pg_advisory_unlock_shared(78, current_setting('il.pause')::integer);
	END IF;
	RETURN NULL;
END $$;

-- Stops our worker in its write, where no condition of the target does.
CREATE FUNCTION il.stop_write() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
	IF session_user = 'pair_owner' THEN
		PERFORM il.stop();
	END IF;
	RETURN NEW;
END $$;

-- A user's trigger that nests statements of the same table in a statement, and undoes them.
CREATE FUNCTION il.nest() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('il.pause', true) <> '' AND pg_trigger_depth() = 1 THEN
		BEGIN
			IF TG_TABLE_NAME = 'target' THEN
				UPDATE target SET sid = sid WHERE false;
				UPDATE target SET ok = NOT ok WHERE tid = NEW.tid;
			ELSIF current_schema() = 'sidecar' THEN
				UPDATE source SET body = body WHERE false;
				UPDATE source SET org = 'nested', body = '' WHERE id = NEW.id;
			ELSE
				UPDATE source SET id = id WHERE false;
				UPDATE source SET id = id + 100 WHERE id = NEW.id;
			END IF;
			RAISE 'undone';
		EXCEPTION WHEN raise_exception THEN
			NULL;
		END;
	END IF;
	RETURN NULL;
END $$;

-- One pair of tables for each way in which they may depend on each other, or where the answer is kept. In cascade and
-- sidecar, triggers of the user's nest statements.
CREATE TABLE il.variant (name text PRIMARY KEY, key_type text, foreign_key boolean, one_row boolean, match_where text);
INSERT INTO il.variant VALUES
	('fk', 'integer NOT NULL REFERENCES source', true, false, 'il.gate(ok)'),
	('cascade', 'integer NOT NULL REFERENCES source ON UPDATE CASCADE ON DELETE CASCADE', true, false, 'il.gate(ok)'),
	('set_null', 'integer REFERENCES source ON UPDATE SET NULL ON DELETE SET NULL', true, false, 'il.gate(ok)'),
	('nofk', 'integer NOT NULL', false, false, 'il.gate(ok)'),
	('one_row', 'integer NOT NULL UNIQUE', false, true, 'il.gate(ok)'),
	('plain', 'integer NOT NULL REFERENCES source', true, false, NULL),
	('sidecar', 'integer NOT NULL REFERENCES source ON UPDATE CASCADE ON DELETE CASCADE', true, false, NULL);

DO $$
DECLARE
	v il.variant;
BEGIN
	FOR v IN SELECT * FROM il.variant LOOP
		EXECUTE format('CREATE SCHEMA %I AUTHORIZATION pair_owner', v.name);
		PERFORM set_config('search_path', v.name, true);
		SET LOCAL ROLE pair_owner;
		CREATE TABLE source (id integer PRIMARY KEY);
		IF v.name = 'sidecar' THEN
			ALTER TABLE source ADD org text, ADD body text DEFAULT 'text';
		END IF;
		EXECUTE format('CREATE TABLE target (tid integer PRIMARY KEY, sid %s, ok boolean NOT NULL)', v.key_type);
		CREATE INDEX ON target (sid);
		CREATE TRIGGER a_pause AFTER INSERT OR UPDATE OR DELETE ON source FOR EACH ROW EXECUTE FUNCTION il.pause();
		CREATE TRIGGER a_pause AFTER INSERT OR UPDATE OR DELETE ON target FOR EACH ROW EXECUTE FUNCTION il.pause();
		IF v.name IN ('cascade', 'sidecar') THEN
			CREATE TRIGGER z_nest AFTER INSERT OR UPDATE ON target FOR EACH ROW EXECUTE FUNCTION il.nest();
			CREATE TRIGGER z_nest AFTER UPDATE ON source FOR EACH ROW EXECUTE FUNCTION il.nest();
		END IF;
		IF v.name = 'plain' THEN
			CREATE TRIGGER a_stop BEFORE UPDATE ON source FOR EACH ROW EXECUTE FUNCTION il.stop_write();
		END IF;
		GRANT SELECT, INSERT, UPDATE, DELETE ON source, target TO writer;
		EXECUTE format('GRANT USAGE ON SCHEMA %I TO writer', v.name);
		IF v.name = 'sidecar' THEN
			PERFORM bgw_backfill.track('source', 'target', job => v.name, mode => 'sidecar', target_key => 'sid',
				pending_where => $p$body <> ''$p$, group_by => 'org');
		ELSE
			PERFORM bgw_backfill.track('source', 'target', job => v.name, match_where => v.match_where,
				source_key => 'id', target_key => 'sid', flag_column => 'flag');
		END IF;
		PERFORM bgw_backfill.configure(v.name, 'scan_interval', '1h');
		PERFORM bgw_backfill.configure(v.name, 'lock_timeout', '5ms');
		PERFORM bgw_backfill.configure(v.name, 'batch_sleep', '0');
		RESET ROLE;
	END LOOP;
END $$;
CALL bgw_backfill.wait('fk');
CALL bgw_backfill.wait('cascade');
CALL bgw_backfill.wait('set_null');
CALL bgw_backfill.wait('nofk');
CALL bgw_backfill.wait('one_row');
CALL bgw_backfill.wait('plain');
CALL bgw_backfill.wait('sidecar');

-- For each source row: does the job count it as done, and is it? And the pending keys of no row.
DO $$
DECLARE
	v il.variant;
BEGIN
	FOR v IN SELECT * FROM il.variant LOOP
		PERFORM set_config('search_path', v.name, true);
		IF v.name = 'sidecar' THEN
			CREATE VIEW answer AS SELECT id, NOT EXISTS (SELECT FROM sidecar_pending p WHERE p.id = s.id AND p.org IS NOT DISTINCT FROM s.org) AS done,
				body = '' OR EXISTS (SELECT FROM target WHERE sid = id) AS true_done FROM source s;
			CREATE VIEW orphan AS SELECT id FROM sidecar_pending p WHERE NOT EXISTS (SELECT FROM source s WHERE s.id = p.id);
		ELSE
			CREATE VIEW answer AS SELECT id, flag AS done, EXISTS (SELECT FROM target WHERE sid = id AND (ok OR current_schema() = 'plain')) AS true_done FROM source;
			CREATE VIEW orphan AS SELECT 1 AS id WHERE false;
		END IF;
	END LOOP;
END $$;

-- What a transaction may do; {n} is a number that the other one does not use.
CREATE TABLE il.action (kind text, variants text, keys integer[], steps text[]);
INSERT INTO il.action VALUES
	('target insert', 'fk plain cascade nofk one_row sidecar', '{1}', '{"INSERT INTO target VALUES ({n}, 1, true)"}'),
	('target insert', 'fk plain nofk set_null', '{2}', '{"INSERT INTO target VALUES ({n}, 2, true)"}'),
	('target insert', 'fk nofk', '{3}', '{"INSERT INTO target VALUES ({n}, 3, true)"}'),
	('target insert', 'fk nofk', '{4}', '{"INSERT INTO target VALUES ({n}, 4, false)"}'),
	('target insert', 'nofk', '{12}', '{"INSERT INTO target VALUES ({n}, 12, true)"}'),
	('target insert', 'fk nofk one_row', '{13}', '{"INSERT INTO target VALUES ({n}, 13, true)"}'),
	('target insert', 'fk plain nofk', '{1,2,4}', '{"INSERT INTO target VALUES ({n}, 4, true), (1{n}, 2, true), (2{n}, 1, true)"}'),
	('target delete', 'fk plain cascade nofk one_row set_null sidecar', '{2}', '{"DELETE FROM target WHERE tid = 21"}'),
	('target delete', 'fk plain cascade nofk sidecar', '{4}', '{"DELETE FROM target WHERE tid = 41"}'),
	('target delete', 'fk cascade nofk', '{4}', '{"DELETE FROM target WHERE tid = 42"}'),
	('target delete', 'nofk one_row', '{11}', '{"DELETE FROM target WHERE tid = 111"}'),
	('target delete', 'fk plain nofk', '{2,4}', '{"DELETE FROM target WHERE sid IN (2, 4)"}'),
	('target key update', 'fk plain cascade nofk one_row set_null sidecar', '{1,2}', '{"UPDATE target SET sid = 1 WHERE tid = 21"}'),
	('target key update', 'fk plain nofk', '{1,4}', '{"UPDATE target SET sid = 1 WHERE tid = 41"}'),
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
	('source key update', 'cascade nofk one_row set_null sidecar', '{2,13}', '{"UPDATE source SET id = 13 WHERE id = 2"}'),
	('source delete', 'fk cascade nofk sidecar', '{1}', '{"DELETE FROM source WHERE id = 1"}'),
	('source delete', 'fk plain cascade nofk set_null sidecar', '{2}', '{"DELETE FROM source WHERE id = 2"}'),
	('two statements', 'fk plain nofk', '{1,2}', '{"INSERT INTO target VALUES ({n}, 1, true)","DELETE FROM target WHERE tid = 21"}'),
	('two statements', 'fk plain nofk', '{1,2}', '{"DELETE FROM target WHERE tid = 21","INSERT INTO target VALUES ({n}, 1, true)"}'),
	('two statements', 'nofk', '{2,3}', '{"UPDATE target SET ok = true WHERE tid = 31","UPDATE target SET ok = false WHERE tid = 21"}'),
	('two statements', 'fk plain nofk', '{13}', '{"INSERT INTO source VALUES (13)","INSERT INTO target VALUES ({n}, 13, true)"}'),
	('two statements', 'nofk', '{13}', '{"INSERT INTO target VALUES ({n}, 13, true)","INSERT INTO source VALUES (13)"}'),
	('target key update', 'set_null', '{2}', '{"UPDATE target SET sid = NULL WHERE tid = 21"}'),
	('target insert', 'fk sidecar', '{1,2}', ARRAY['COPY target FROM PROGRAM ''printf "{n},2,t\\n1{n},1,t\\n"'' (FORMAT csv)']),
	('source update', 'sidecar', '{1}', '{"UPDATE source SET org = ''b'' WHERE id = 1"}'),
	('source update', 'sidecar', '{1,2}', '{"UPDATE source SET org = ''c'', body = ''{n}'' WHERE id IN (1, 2)"}'),
	('source update', 'sidecar', '{2}', '{"UPDATE source SET body = '''' WHERE id = 2"}'),
	-- one, but with triggers for several events
	('two statements', 'fk sidecar', '{1,3}', '{"INSERT INTO target VALUES ({n}, 1, true), (31, 1, true) ON CONFLICT (tid) DO UPDATE SET sid = excluded.sid, ok = true"}'),
	('two statements', 'fk sidecar', '{1,2,4}', ARRAY['MERGE INTO target t USING (VALUES (21, 1), (41, NULL), ({n}, 2)) v (tid, sid) ON t.tid = v.tid
		WHEN MATCHED AND v.sid IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET sid = v.sid WHEN NOT MATCHED AND v.sid > 0 THEN INSERT VALUES (v.tid, v.sid, true)']);
GRANT pg_execute_server_program TO writer;

-- A session: what it has to do, how far it is, and what became of it. lock: what it pauses at, if held by us.
CREATE TYPE il.session AS (conn text, lock integer, held boolean, pid integer, steps text[], done integer, busy boolean, error text);

CREATE TABLE il.failure (id integer GENERATED ALWAYS AS IDENTITY, kinds text, isolation text, variant text, message text);
CREATE TABLE il.count (kinds text, isolation text, what text, n bigint, PRIMARY KEY (kinds, isolation, what));

CREATE PROCEDURE il.count(kinds text, isolation text, what text) LANGUAGE sql AS $$
	INSERT INTO il.count VALUES (kinds, isolation, what, 1) ON CONFLICT ON CONSTRAINT count_pkey DO UPDATE SET n = count.n + 1;
$$;

CREATE PROCEDURE il.fail(kinds text, isolation text, variant text, problem text, trace text) LANGUAGE sql AS $$
	INSERT INTO il.failure (kinds, isolation, variant, message) VALUES (kinds, isolation, variant, problem || ' after' || ltrim(trace, ';'));
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
	INSERT INTO source (id) SELECT * FROM generate_series(1, 6);
	INSERT INTO target SELECT * FROM (VALUES (21, 2, true), (31, 3, false), (41, 4, true), (42, 4, true), (61, 6, true),
		(111, 11, true), (121, 12, false)) r (tid, sid, ok)
	WHERE NOT (v.one_row AND tid = 42) AND NOT (v.foreign_key AND tid > 100);
END $$;

-- The keys whose answer is wrong that way.
CREATE FUNCTION il.wrong(what boolean) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT string_agg(id::text, ',' ORDER BY id) FROM answer WHERE done = what AND done <> true_done);
END $$;
CREATE FUNCTION il.orphans() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT string_agg(id::text, ',' ORDER BY id) FROM orphan);
END $$;

-- What has become of a session's statement: it waits for somebody, has come to its pause, is done, or has failed with
-- this SQLSTATE.
CREATE FUNCTION il.look(s il.session) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text := 'done';
	until timestamptz := clock_timestamp() + '60 s';
	blockers integer[];
BEGIN
	WHILE dblink_is_busy(s.conn) = 1 LOOP
		blockers := pg_blocking_pids(s.pid);
		IF blockers = ARRAY[pg_backend_pid()] THEN
			RETURN 'pauses';
		ELSIF cardinality(blockers) > 0 THEN
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

-- Take note of what a session's statement has come to. Step '...' is the rest of the statement before it.
CREATE PROCEDURE il.note(INOUT s il.session, INOUT trace text) LANGUAGE plpgsql AS $$
DECLARE
	result text := il.look(s);
BEGIN
	IF result = 'waits' THEN
		trace := trace || CASE WHEN s.busy THEN '' ELSE ' (waits)' END;
		s.busy := true;
		RETURN;
	END IF;
	trace := trace || CASE WHEN s.busy THEN format('; %s goes on', s.conn) ELSE '' END;
	s.busy := false;
	s.done := s.done + 1;
	IF result = 'pauses' THEN
		RETURN;
	ELSIF result <> 'done' THEN
		trace := trace || format(' (%s)', result);
		s.error := result;
		s.done := cardinality(s.steps) - 1;
	ELSIF s.steps[s.done + 1] = '...' THEN
		s.done := s.done + 1;
	END IF;
	IF s.held THEN
		PERFORM pg_advisory_unlock(78, s.lock);
		s.held := false;
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
	IF step = '...' THEN
		PERFORM pg_advisory_unlock(78, s.lock);
		s.held := false;
	ELSE
		IF s.steps[s.done + 2] = '...' THEN
			PERFORM pg_advisory_lock(78, s.lock);
			s.held := true;
		END IF;
		PERFORM dblink_send_query(s.conn, step);
	END IF;
	CALL il.note(s, trace);
END $$;

-- A session ready to do an action. At read committed, a single statement is cut in two if it shall be committed;
-- else the first step is to take the snapshot.
CREATE FUNCTION il.ready(session_name text, action il.action, isolation text, cut boolean, ending text) RETURNS il.session LANGUAGE plpgsql AS $$
DECLARE
	s il.session;
BEGIN
	s.conn := session_name;
	s.lock := CASE s.conn WHEN 'A' THEN 1 ELSE 2 END;
	s.held := false;
	SELECT pid INTO s.pid FROM il.connection c WHERE c.name = s.conn;
	s.steps := replace(action.steps::text, '{n}', (90 + s.lock)::text)::text[];
	IF isolation <> 'read committed' THEN
		s.steps := 'SELECT count(*) FROM target'::text || s.steps;
	ELSIF cut AND cardinality(s.steps) = 1 THEN
		s.steps := s.steps || '...'::text;
	END IF;
	s.steps := s.steps || CASE ending WHEN 'C' THEN '{COMMIT}'
		WHEN 'P' THEN ARRAY[format('PREPARE TRANSACTION %L', s.conn), format('COMMIT PREPARED %L', s.conn)] ELSE '{ROLLBACK}' END;
	s.done := 0;
	s.busy := false;
	RETURN s;
END $$;

CREATE TABLE il.connection (name text, pid integer);

CREATE PROCEDURE il.connect(v il.variant) LANGUAGE plpgsql AS $$
DECLARE
	conn text;
BEGIN
	PERFORM set_config('search_path', v.name || ', public', false);
	DELETE FROM il.connection;
	FOREACH conn IN ARRAY '{A,B}'::text[] LOOP
		IF conn = ANY (dblink_get_connections()) THEN
			PERFORM dblink_disconnect(conn);
		END IF;
		PERFORM dblink_connect(conn, format('host=%s port=%s dbname=%s user=%s',
			current_setting('unix_socket_directories'), current_setting('port'), current_database(), session_user));
		PERFORM dblink_exec(conn, 'SET deadlock_timeout = ''20ms''');
		PERFORM dblink_exec(conn, 'SET SESSION AUTHORIZATION writer');
		PERFORM dblink_exec(conn, format('SET il.pause = %s', CASE conn WHEN 'A' THEN 1 ELSE 2 END));
		PERFORM dblink_exec(conn, format('SET search_path = %I', v.name));
		INSERT INTO il.connection SELECT conn, pid FROM dblink(conn, 'SELECT pg_backend_pid()') AS r (pid integer);
	END LOOP;
	COMMIT;
END $$;

-- Errors but those that have their reasons: what a missing source row or a second row of the same key brings; 40001
-- above read committed. A deadlock is one between two transactions of several statements, or between one that has
-- written a target row and one that takes its source row away: the rows are locked in opposite order.
CREATE FUNCTION il.check_error(s il.session, isolation text, deadlock_allowed boolean) RETURNS text LANGUAGE sql AS $$
	SELECT format('%s failed with %s', s.conn, s.error)
	WHERE s.error IS NOT NULL AND s.error NOT IN ('23503', '23505')
		AND NOT (s.error = '40001' AND isolation <> 'read committed') AND NOT (s.error = '40P01' AND deadlock_allowed);
$$;

CREATE FUNCTION il.is_swept(job text, since timestamptz) RETURNS boolean LANGUAGE sql AS $$
	SELECT verified_at > since FROM bgw_backfill.job_state s WHERE s.job = is_swept.job;
$$;

-- Wait until a sweep that was asked for at that time has ended.
CREATE PROCEDURE il.wait_sweep(job text, since timestamptz) LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT il.is_swept(job, since) LOOP
		COMMIT;
		IF clock_timestamp() > since + '60 s' THEN
			RAISE 'no sweep of job % in time', job;
		END IF;
	END LOOP;
END $$;

-- One interleaving of two transactions.
CREATE PROCEDURE il.play(v il.variant, kinds text, isolation text, INOUT a il.session, INOUT b il.session, ord text,
	deadlock_allowed boolean, INOUT swept boolean) LANGUAGE plpgsql AS $$
DECLARE
	who text;
	trace text := '';
	problem text;
	since timestamptz := clock_timestamp();
BEGIN
	CALL il.reset(v);
	COMMIT;
	PERFORM dblink_exec('A', 'BEGIN ISOLATION LEVEL ' || isolation), dblink_exec('B', 'BEGIN ISOLATION LEVEL ' || isolation);
	FOREACH who IN ARRAY string_to_array(ord, NULL) LOOP
		IF who = 'A' THEN CALL il.go(a, trace); ELSE CALL il.go(b, trace); END IF;
	END LOOP;
	WHILE a.done < cardinality(a.steps) OR b.done < cardinality(b.steps) LOOP
		CALL il.go(a, trace);
		CALL il.go(b, trace);
		IF clock_timestamp() > since + '60 s' THEN
			RAISE 'both wait after%', trace;
		END IF;
	END LOOP;

	problem := concat_ws(', ', il.check_error(a, isolation, deadlock_allowed), il.check_error(b, isolation, deadlock_allowed),
		'wrong true: ' || il.wrong(true), 'orphans: ' || il.orphans());
	IF il.wrong(false) IS NOT NULL THEN
		-- allowed where overlapping transactions bring together a source row and a match of it; a sidecar may have a stale key
		IF ord ~ '^(A+B+|B+A+)$' OR v.name <> 'sidecar' AND (v.foreign_key OR
			NOT (a.steps::text ~ 'source' AND b.steps::text ~ 'target' OR a.steps::text ~ 'target' AND b.steps::text ~ 'source'))
		THEN
			problem := concat_ws(', ', problem, 'wrong false: ' || il.wrong(false));
		ELSE
			CALL il.count(kinds, isolation, 'wrong false');
			IF NOT swept THEN
				since := clock_timestamp();
				PERFORM bgw_backfill.verify(v.name);
				COMMIT;
				CALL il.wait_sweep(v.name, since);
				problem := concat_ws(', ', problem, 'after a sweep wrong true: ' || il.wrong(true),
					'after a sweep wrong false: ' || il.wrong(false));
				swept := true;
			END IF;
		END IF;
	END IF;
	IF problem <> '' THEN
		CALL il.fail(kinds, isolation, v.name, problem, trace);
	END IF;
	CALL il.count(kinds, isolation, 'interleavings');
	IF a.error IS NOT NULL THEN
		CALL il.count(kinds, isolation, a.error);
	END IF;
	IF b.error IS NOT NULL THEN
		CALL il.count(kinds, isolation, b.error);
	END IF;
	COMMIT;
END $$;

-- All orders of two actions, at read committed also with a rollback of one, or a transaction that is prepared. Above that, both snapshots come first: one
-- that is taken later, but before the other's commit, shows the same; one after it is the serial order.
CREATE PROCEDURE il.run_actions(v il.variant, kinds text, isolation text, a_action il.action, b_action il.action, INOUT swept boolean) LANGUAGE plpgsql AS $$
DECLARE
	deadlock_allowed boolean := 'two statements' IN (a_action.kind, b_action.kind) OR
		a_action.kind ~ 'target' AND b_action.kind ~ 'source (key|delete)';
	ending text;
	ord text;
	a il.session;
	b il.session;
BEGIN
	FOREACH ending IN ARRAY CASE WHEN isolation <> 'read committed' THEN '{CC}' WHEN v.name IN ('set_null', 'sidecar') THEN '{CC,PC}'
		ELSE '{CC,CR,RC}' END::text[] LOOP
		a := il.ready('A', a_action, isolation, ending = 'CC', left(ending, 1));
		b := il.ready('B', b_action, isolation, ending = 'CC', right(ending, 1));
		FOR ord IN SELECT o FROM il.orders(cardinality(a.steps), cardinality(b.steps)) o
			WHERE isolation = 'read committed' OR o ~ '^AB'
		LOOP
			CALL il.play(v, kinds, isolation, a, b, ord, deadlock_allowed, swept);
			a.done := 0;
			a.error := NULL;
			b.done := 0;
			b.error := NULL;
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
		-- to our triggers serializable is repeatable read: a few variants are enough
		CONTINUE WHEN isolation = 'serializable' AND v.name NOT IN ('fk', 'nofk', 'sidecar');
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

-- Is the worker at this lock?
CREATE FUNCTION il.is_at(stage integer) RETURNS boolean LANGUAGE sql AS $$
	SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 77 AND objid = stage AND NOT granted);
$$;

-- Has the worker committed the batch of the sweep?
CREATE FUNCTION il.is_walked(job text, since timestamptz) RETURNS boolean LANGUAGE sql AS $$
	SELECT il.is_swept(job, since) OR coalesce(sweep_started_at > since AND walk_cursor = high_mark, false)
	FROM bgw_backfill.job_state s WHERE s.job = is_walked.job;
$$;

-- The worker's next step: it comes to the search for candidates, decides for the locked ones, commits.
CREATE PROCEDURE il.go_worker(job text, since timestamptz, INOUT step integer, INOUT trace text) LANGUAGE plpgsql AS $$
BEGIN
	step := step + 1;
	IF step = 1 THEN
		PERFORM bgw_backfill.verify(job);
	ELSE
		PERFORM pg_advisory_unlock(77, step - 1);
	END IF;
	COMMIT;
	trace := trace || '; worker: ' || CASE step WHEN 1 THEN 'search' WHEN 2 THEN 'lock, decide' ELSE 'commit' END;
	WHILE NOT (step < 3 AND (il.is_at(step) OR il.is_at(2)) OR step > 1 AND il.is_walked(job, since)) LOOP
		IF clock_timestamp() > since + '60 s' THEN
			RAISE 'the worker does not come after%', trace;
		END IF;
		COMMIT;
	END LOOP;
END $$;

-- One interleaving of the worker, which finds wrong flags of all sorts, and a transaction.
CREATE PROCEDURE il.play_worker(v il.variant, kinds text, isolation text, INOUT b il.session, ord text) LANGUAGE plpgsql AS $$
DECLARE
	who text;
	trace text := '';
	problem text;
	since timestamptz;
	step integer := 0;
BEGIN
	CALL il.reset(v);
	UPDATE source SET flag = NOT flag WHERE id < 5;
	COMMIT;
	PERFORM pg_advisory_lock(77, 1), pg_advisory_lock(77, 2);
	PERFORM dblink_exec('B', 'BEGIN ISOLATION LEVEL ' || isolation);
	since := clock_timestamp();
	FOREACH who IN ARRAY string_to_array(ord, NULL) LOOP
		IF who = 'A' THEN CALL il.go_worker(v.name, since, step, trace); ELSE CALL il.go(b, trace); END IF;
	END LOOP;
	WHILE b.done < cardinality(b.steps) LOOP
		CALL il.go(b, trace);
		IF clock_timestamp() > since + '60 s' THEN
			RAISE 'the writer waits after%', trace;
		END IF;
	END LOOP;
	CALL il.wait_sweep(v.name, since);

	problem := concat_ws(', ', il.check_error(b, isolation, false), 'wrong true: ' || il.wrong(true), 'wrong false: ' || il.wrong(false));
	IF problem <> '' THEN
		CALL il.fail(kinds, isolation, v.name, problem, trace);
	END IF;
	CALL il.count(kinds, isolation, 'interleavings');
	IF b.error IS NOT NULL THEN
		CALL il.count(kinds, isolation, b.error);
	END IF;
	COMMIT;
END $$;

-- The worker with every action of a kind.
CREATE PROCEDURE il.run_worker(kind text, isolation text) LANGUAGE plpgsql AS $$
DECLARE
	v il.variant;
	action il.action;
	ending text;
	ord text;
	b il.session;
BEGIN
	FOR v IN SELECT * FROM il.variant WHERE name IN ('fk', 'nofk', 'plain') LOOP
		-- each action once, but for what goes another way without a foreign key or a condition
		CONTINUE WHEN v.name = 'nofk' AND kind !~ 'source' OR v.name = 'plain' AND (kind ~ 'source' OR isolation <> 'read committed');
		CALL il.connect(v);
		FOR action IN SELECT * FROM il.action a WHERE a.kind = run_worker.kind AND v.name = ANY (string_to_array(variants, ' ')) LOOP
			FOREACH ending IN ARRAY CASE isolation WHEN 'read committed' THEN '{C,R}' ELSE '{C}' END::text[] LOOP
				b := il.ready('B', action, isolation, ending = 'C', ending);
				FOR ord IN SELECT o FROM il.orders(3, cardinality(b.steps)) o WHERE isolation = 'read committed' OR o ~ '^B' LOOP
					CALL il.play_worker(v, 'worker, ' || kind, isolation, b, ord);
					b.done := 0;
					b.error := NULL;
				END LOOP;
			END LOOP;
		END LOOP;
	END LOOP;
END $$;
