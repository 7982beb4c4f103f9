-- For 021_storm.pl: the tables, who may write them, and what is compared with the truth. Variables: key (the target's
-- key column), unique (its unique columns), rows (keys), wrong (a condition on a row t of truth: the job has it wrong),
-- trap (is the source never to be updated by us?).

CREATE ROLE writer LOGIN;
GRANT pg_execute_server_program TO writer;
GRANT CREATE ON SCHEMA public TO app;

SET ROLE app;
CREATE TABLE events (id bigint PRIMARY KEY, org text, body text, n int NOT NULL DEFAULT 0);
CREATE TABLE embeddings (event_id :key, model text NOT NULL, UNIQUE (:unique));
GRANT SELECT, INSERT, UPDATE, DELETE ON events, embeddings TO writer;
GRANT TRUNCATE ON embeddings TO writer;
INSERT INTO events SELECT k, CASE WHEN k % 9 > 0 THEN 'org-' || k % 9 END, CASE WHEN k % 7 > 0 THEN 'text' END
	FROM generate_series(1, :rows) k WHERE k % 5 > 0;
INSERT INTO embeddings SELECT id, CASE WHEN id % 11 = 0 THEN 'draft' ELSE 'small' END FROM events WHERE id % 3 > 0;
ANALYZE events, embeddings;

CREATE VIEW truth AS
	SELECT id, org, coalesce(body <> '', false) AS eligible,
		EXISTS (SELECT FROM embeddings WHERE event_id = id AND model <> 'draft') AS matched
	FROM events;
CREATE TABLE stop (at timestamptz);
GRANT SELECT ON stop TO writer;
RESET ROLE;

-- Nothing of ours may update the source: neither a worker nor a trigger.
CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
	IF pg_trigger_depth() > 1 AND current_setting('storm.nested', true) IS DISTINCT FROM 'on'
		OR (SELECT backend_type FROM pg_stat_get_activity(pg_backend_pid())) IS DISTINCT FROM 'client backend'
	THEN
		RAISE EXCEPTION 'a statement of bgw_backfill updates the source';
	END IF;
	RETURN NULL;
END $$;
\if :trap
CREATE TRIGGER a_trap AFTER UPDATE ON events FOR EACH STATEMENT EXECUTE FUNCTION trap();
\endif

-- The application's own triggers, which nest statements of the same table in a statement: of a third of the keys in an
-- exception block that is undone, of another third in one that stays.
CREATE FUNCTION nest() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
	key bigint := CASE TG_TABLE_NAME WHEN 'events' THEN to_jsonb(NEW) ->> 'id' ELSE to_jsonb(NEW) ->> 'event_id' END;
BEGIN
	IF pg_trigger_depth() > 1 OR coalesce(key % 3, 0) = 0 THEN
		RETURN NULL;
	END IF;
	BEGIN
		SET LOCAL storm.nested = on;
		IF TG_TABLE_NAME = 'events' THEN
			UPDATE events SET org = org WHERE false;
			UPDATE events SET org = 'org-8', body = CASE WHEN key % 2 = 0 THEN 'nested' END WHERE id = key;
		ELSE
			UPDATE embeddings SET event_id = event_id WHERE false;
			UPDATE embeddings SET model = CASE WHEN key % 2 = 0 THEN 'draft' ELSE 'large' END WHERE event_id = key;
		END IF;
		SET LOCAL storm.nested = off;
		IF key % 3 = 1 THEN
			RAISE 'undone';
		END IF;
	EXCEPTION WHEN raise_exception OR unique_violation THEN
		NULL;
	END;
	RETURN NULL;
END $$;
CREATE TRIGGER z_nest AFTER UPDATE OF body, id ON events FOR EACH ROW EXECUTE FUNCTION nest();
CREATE TRIGGER z_nest AFTER INSERT OR UPDATE ON embeddings FOR EACH ROW EXECUTE FUNCTION nest();

-- Says so if a transaction sees a pending row more often than the row itself.
CREATE FUNCTION doubles() RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
	IF to_regclass('events_pending') IS NOT NULL THEN
		RETURN (SELECT 'double: ' || string_agg(id::text, ',') FROM (SELECT id FROM events_pending p GROUP BY id
			HAVING count(*) > greatest(1, (SELECT count(*) FROM events e WHERE e.id = p.id))) x);
	END IF;
	RETURN NULL;
END $$;

-- What one look at one snapshot found: the rows that the job has wrong, of those that its phase says are done.
CREATE TABLE look (at timestamptz NOT NULL DEFAULT clock_timestamp(), snapshot pg_snapshot NOT NULL DEFAULT pg_current_snapshot(),
	phase text, wrong bigint[]);
CREATE TABLE wrong (condition text);
INSERT INTO wrong VALUES (:'wrong');

CREATE PROCEDURE look() LANGUAGE plpgsql AS $$
DECLARE
	at_phase text;
	upto bigint;
	wrong_ids bigint[];
BEGIN
	SELECT phase, CASE WHEN phase = 'fill' THEN coalesce(walk_cursor::bigint, 0) END
		INTO at_phase, upto
		FROM bgw_backfill.progress JOIN bgw_backfill.job_state USING (job, phase) WHERE job = 'events';
	IF at_phase IN ('fill', 'index', 'verify', 'live') THEN
		EXECUTE (SELECT 'SELECT array_agg(id) FROM truth t WHERE (' || condition || ') AND (id <= $1 OR $1 IS NULL)
			AND NOT EXISTS (SELECT FROM bgw_backfill.job_skipped WHERE key = id::text)' FROM wrong)
			INTO wrong_ids USING upto;
		INSERT INTO look (phase, wrong) VALUES (at_phase, wrong_ids);
	END IF;
END $$;
