-- For 021_storm.pl: the tables, who may write them, and what is compared with the truth. Variables: key (the target's
-- key column), unique (its unique columns), rows (keys), wrong (a condition on a row t of truth: the job has it wrong),
-- trap (is the source never to be updated by us?).

CREATE ROLE writer LOGIN;
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
	IF pg_trigger_depth() > 1
		OR (SELECT backend_type FROM pg_stat_get_activity(pg_backend_pid())) IS DISTINCT FROM 'client backend'
	THEN
		RAISE EXCEPTION 'a statement of bgw_backfill updates the source';
	END IF;
	RETURN NULL;
END $$;
\if :trap
CREATE TRIGGER a_trap AFTER UPDATE ON events FOR EACH STATEMENT EXECUTE FUNCTION trap();
\endif

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
