-- R18: statements that a user's trigger nests in a statement, in exception blocks that are rolled back or not. What the
-- outer statement has touched is settled all the same, in every mode that has triggers.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET client_min_messages = warning;
SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
-- a column's answer is on events; a sidecar's beside items
CREATE TABLE events (id int PRIMARY KEY, body text);
CREATE TABLE vectors (event_id int REFERENCES events ON UPDATE CASCADE ON DELETE CASCADE, n int NOT NULL);
CREATE INDEX ON vectors (event_id);
CREATE TABLE items (id int PRIMARY KEY, org text, body text, n int NOT NULL DEFAULT 0);
CREATE TABLE marks (item_id int REFERENCES items ON UPDATE CASCADE ON DELETE CASCADE, n int NOT NULL);
CREATE INDEX ON marks (item_id);
SELECT bgw_backfill.track('events', 'vectors', match_where => 'n > 0');
SELECT bgw_backfill.track('items', 'marks', mode => 'sidecar', pending_where => $$body <> ''$$, group_by => 'org');
CALL bgw_backfill.wait('events');
CALL bgw_backfill.wait('items');

CREATE FUNCTION compare() RETURNS text LANGUAGE sql AS $$
	SELECT concat_ws(', ', count(*) FILTER (WHERE has_embedding AND NOT matched) || ' wrongly true',
		count(*) FILTER (WHERE NOT has_embedding AND matched) || ' wrongly false',
		(SELECT count(*) FROM (SELECT id, org FROM app.items i WHERE body <> '' AND NOT EXISTS (SELECT FROM app.marks WHERE item_id = id)
			EXCEPT ALL SELECT id, org FROM app.items_sidecar) x) || ' lacking',
		(SELECT count(*) FROM (SELECT id, org FROM app.items_sidecar
			EXCEPT ALL SELECT id, org FROM app.items i WHERE body <> '' AND NOT EXISTS (SELECT FROM app.marks WHERE item_id = id)) x) || ' stale')
	FROM (SELECT has_embedding, EXISTS (SELECT FROM app.vectors WHERE event_id = id AND n > 0) AS matched FROM app.events) t
$$;

-- What the users' triggers do for each row: one statement nested in the block that is given.
CREATE TABLE deed (tab text, command text, ending text);
CREATE FUNCTION nest() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	d app.deed;
BEGIN
	IF pg_trigger_depth() > 1 THEN
		RETURN NULL;
	END IF;
	FOR d IN SELECT * FROM app.deed WHERE tab = TG_TABLE_NAME LOOP
		IF d.ending = 'plain' THEN
			EXECUTE d.command;
		ELSE
			BEGIN
				EXECUTE d.command;
				IF d.ending = 'raise' THEN
					RAISE 'undone';
				ELSIF d.ending = 'inner raise' THEN
					BEGIN
						EXECUTE d.command;
						RAISE 'undone';
					EXCEPTION WHEN OTHERS THEN
						NULL;
					END;
				END IF;
			EXCEPTION WHEN raise_exception OR division_by_zero THEN
				NULL;
			END;
		END IF;
	END LOOP;
	RETURN NULL;
END $$;
CREATE TRIGGER a_nest AFTER UPDATE ON events FOR EACH ROW EXECUTE FUNCTION nest();
CREATE TRIGGER a_nest AFTER UPDATE ON items FOR EACH ROW EXECUTE FUNCTION nest();
CREATE TRIGGER m_nest AFTER INSERT OR UPDATE OR DELETE ON vectors FOR EACH ROW EXECUTE FUNCTION nest();
CREATE TRIGGER z_nest AFTER INSERT OR UPDATE OR DELETE ON marks FOR EACH ROW EXECUTE FUNCTION nest();
CREATE TRIGGER z_nest AFTER UPDATE ON items FOR EACH ROW EXECUTE FUNCTION nest();

-- One outer statement on the rows that every case begins with; what the job has wrong then.
CREATE FUNCTION outer_statement(command text, nested_tab text, nested text, ending text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	DELETE FROM app.deed;
	TRUNCATE app.vectors, app.marks, app.events, app.items;
	INSERT INTO app.events SELECT i, 'text' FROM generate_series(1, 6) i;
	INSERT INTO app.vectors SELECT i, 1 FROM generate_series(1, 3) i;
	INSERT INTO app.items SELECT i, 'a', CASE WHEN i < 4 THEN 'text' ELSE '' END FROM generate_series(1, 6) i;
	INSERT INTO app.marks VALUES (1, 1);
	INSERT INTO app.deed VALUES (nested_tab, nested, ending);
	EXECUTE command;
	RETURN app.compare();
END $$;

-- the fill is put back by the TRUNCATE of each case, and must not come in between
SELECT bgw_backfill.pause('events'), bgw_backfill.pause('items');

-- a column: the target's key moves, while the trigger nests an UPDATE of the same table
SELECT ending, app.outer_statement('UPDATE app.vectors SET event_id = event_id + 3 WHERE event_id = 2',
	'vectors', 'UPDATE app.vectors SET event_id = event_id WHERE false', ending)
FROM unnest('{plain,commit,raise,inner raise}'::text[]) ending;
SELECT ending, app.outer_statement('UPDATE app.vectors SET event_id = event_id + 3',
	'vectors', 'UPDATE app.vectors SET event_id = 6 WHERE event_id = 4', ending)
FROM unnest('{plain,commit,raise,inner raise}'::text[]) ending;
SELECT ending, app.outer_statement('UPDATE app.vectors SET n = -n',
	'vectors', 'UPDATE app.vectors SET event_id = event_id / (n + 1)', ending)
FROM unnest('{commit,raise}'::text[]) ending;
-- and a trigger of the source's, when a cascade moves the target's key, or we write the flag
SELECT ending, app.outer_statement('UPDATE app.events SET id = id + 10',
	'vectors', 'UPDATE app.vectors SET n = 0 WHERE event_id = 12', ending)
FROM unnest('{commit,raise}'::text[]) ending;
-- the same with what is read of transition tables
SELECT ending, app.outer_statement('INSERT INTO app.vectors SELECT i, 1 FROM generate_series(3, 5) i',
	'vectors', 'DELETE FROM app.vectors WHERE event_id = 4', ending)
FROM unnest('{commit,raise}'::text[]) ending;
SELECT ending, app.outer_statement('DELETE FROM app.vectors WHERE event_id < 3',
	'vectors', 'INSERT INTO app.vectors VALUES (1, 1)', ending)
FROM unnest('{commit,raise}'::text[]) ending;

-- a sidecar: rows become eligible, change their group, their key; target rows move
SELECT ending, app.outer_statement($$UPDATE app.items SET body = 'now eligible'$$,
	'items', 'UPDATE app.items SET body = body WHERE false', ending)
FROM unnest('{plain,commit,raise,inner raise}'::text[]) ending;
SELECT ending, app.outer_statement($$UPDATE app.items SET body = 'now eligible', org = 'b'$$,
	'items', $$UPDATE app.items SET org = 'c', body = '' WHERE id = 5$$, ending)
FROM unnest('{plain,commit,raise,inner raise}'::text[]) ending;
SELECT ending, app.outer_statement($$UPDATE app.items SET id = id + 10, body = 'text'$$,
	'items', 'UPDATE app.items SET id = id + 100 WHERE id IN (11, 12, 14)', ending)
FROM unnest('{plain,commit,raise,inner raise}'::text[]) ending;
SELECT ending, app.outer_statement('UPDATE app.marks SET item_id = item_id + 1',
	'marks', 'DELETE FROM app.items WHERE id IN (2, 3)', ending)
FROM unnest('{plain,commit,raise,inner raise}'::text[]) ending;
SELECT ending, app.outer_statement('DELETE FROM app.marks',
	'marks', 'UPDATE app.items SET n = 1 / n', ending)
FROM unnest('{commit,raise}'::text[]) ending;

-- savepoints: what a statement that failed had collected is no later one's business
BEGIN;
SELECT app.outer_statement('SELECT', 'vectors', 'SELECT 1', 'plain');
UPDATE deed SET command = 'DO $x$ BEGIN RAISE ''stop''; END $x$';
SAVEPOINT s;
UPDATE vectors SET event_id = event_id + 3;
ROLLBACK TO s;
DELETE FROM deed;
UPDATE vectors SET event_id = 5 WHERE event_id = 1;
SELECT compare();
SAVEPOINT s;
UPDATE vectors SET event_id = 6 WHERE event_id = 5;
RELEASE s;
SELECT compare();
SAVEPOINT s;
UPDATE vectors SET event_id = 1 WHERE event_id = 6;
SELECT compare();
ROLLBACK TO s;
SELECT compare();
ROLLBACK;

-- a key that is there already when its row is new is tried once without a statement: one row is put in, not two
SELECT app.outer_statement('SELECT', 'items', 'SELECT 1', 'plain');
INSERT INTO items_sidecar VALUES (7, 'old');
BEGIN;
CREATE TEMP TABLE counted AS SELECT n_tup_ins, n_tup_upd FROM pg_stat_xact_user_tables WHERE relid = 'items_sidecar'::regclass;
INSERT INTO items VALUES (7, 'b', 'text');
SELECT s.n_tup_ins - c.n_tup_ins AS inserted, s.n_tup_upd - c.n_tup_upd AS updated
FROM pg_stat_xact_user_tables s, counted c WHERE relid = 'items_sidecar'::regclass;
COMMIT;
SELECT compare();
