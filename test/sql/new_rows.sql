-- Mode sidecar: new source rows, which are added to the table of pending keys without a statement where that is
-- possible. Whatever a transaction does to them before our trigger runs, and whatever is in that table already.
\getenv srcdir PG_ABS_SRCDIR
\set common :srcdir /common.sql
\i :common

SET client_min_messages = warning;
SET SESSION AUTHORIZATION regress_owner;
SET search_path = app;
CREATE TABLE items (id int PRIMARY KEY, org text, body text, deed text);
CREATE TABLE marks (item_id int PRIMARY KEY REFERENCES items ON DELETE CASCADE);
SELECT bgw_backfill.track('items', 'marks', mode => 'sidecar', pending_where => $$body <> ''$$, group_by => 'org');
CALL bgw_backfill.wait('items');
SELECT tgname FROM pg_trigger WHERE tgrelid = 'items'::regclass AND tgname LIKE 'items\_bbf%' AND tgtype & 4 <> 0 ORDER BY 1;

CREATE VIEW truth AS
SELECT id, org FROM items i WHERE body <> '' AND NOT EXISTS (SELECT FROM marks m WHERE m.item_id = i.id);
-- what the table of pending keys lacks, what is stale in it, what it has
CREATE FUNCTION compare() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	RETURN format('%s lacking, %s stale, %s there',
		(SELECT count(*) FROM (TABLE app.truth EXCEPT ALL SELECT id, org FROM app.items_sidecar) x),
		(SELECT count(*) FROM (SELECT id, org FROM app.items_sidecar EXCEPT ALL TABLE app.truth) x),
		(SELECT count(*) FROM app.items_sidecar));
END $$;

-- eligible, not eligible, neither; no group; a value that is kept out of line
INSERT INTO items VALUES (1, 'a', 'x'), (2, 'a', ''), (3, 'b', NULL), (4, NULL, 'x');
SELECT id, org, enqueued_at = (SELECT min(enqueued_at) FROM items_sidecar) AS same_time FROM items_sidecar ORDER BY id;
ALTER TABLE items ALTER org SET STORAGE EXTERNAL, ALTER body SET STORAGE EXTERNAL;
INSERT INTO items VALUES (5, repeat('long', 600), repeat('long', 600));
SELECT length(org), compare() FROM items_sidecar WHERE id = 5;
DELETE FROM items WHERE id = 5;
COPY items FROM stdin;
10	a	x	\N
11	a		\N
12	b	x	\N
\.
SELECT compare();

-- a target row that comes with the source row, in each order
WITH i AS (INSERT INTO items VALUES (20, 'a', 'x'), (21, 'a', 'x') RETURNING id) INSERT INTO marks SELECT id FROM i WHERE id = 20;
WITH m AS (INSERT INTO marks VALUES (22)) INSERT INTO items VALUES (22, 'a', 'x'), (23, 'a', 'x');
WITH i AS (INSERT INTO items VALUES (24, 'a', 'x'), (25, 'a', 'x')) INSERT INTO marks VALUES (24);
WITH i AS (INSERT INTO items SELECT i, 'a', 'x' FROM generate_series(26, 28) i RETURNING id) INSERT INTO marks SELECT id + 1 FROM i WHERE id < 28;
SELECT compare();

-- another trigger's deeds, before ours and after: a target row; the row gone, changed, in another group, with another key
CREATE FUNCTION do_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN EXECUTE replace(NEW.deed, 'ID', NEW.id::text); RETURN NULL; END $$;
CREATE TRIGGER a_first AFTER INSERT ON items FOR EACH ROW WHEN (NEW.id % 10 < 5) EXECUTE FUNCTION do_it();
CREATE TRIGGER z_last AFTER INSERT ON items FOR EACH ROW WHEN (NEW.id % 10 >= 5) EXECUTE FUNCTION do_it();
INSERT INTO items SELECT 100 + 10 * n + d, 'a', CASE WHEN n < 9 THEN 'x' END, deed
FROM (VALUES (1, 'INSERT INTO app.marks VALUES (ID)'), (2, 'DELETE FROM app.items WHERE id = ID'),
	(3, 'UPDATE app.items SET body = NULL WHERE id = ID'), (4, 'UPDATE app.items SET org = ''c'' WHERE id = ID'),
	(5, 'UPDATE app.items SET id = id + 1000 WHERE id = ID'), (6, 'UPDATE app.items SET deed = ''none'' WHERE id = ID'),
	(7, 'DELETE FROM app.items WHERE id = ID - 10'), (8, 'INSERT INTO app.marks VALUES (ID); DELETE FROM app.marks WHERE item_id = ID'),
	(9, 'UPDATE app.items SET body = ''x'' WHERE id = ID')) v (n, deed), unnest(ARRAY[1, 6]) d;
SELECT compare();
SELECT id, org FROM items_sidecar WHERE id > 100 ORDER BY id;
-- and of a function that the statement calls
CREATE FUNCTION mark(int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN INSERT INTO app.marks SELECT id FROM app.items WHERE id = $1; RETURN 'x'; END $$;
INSERT INTO items SELECT i, 'a', mark(i - 1), 'SELECT' FROM generate_series(300, 305) i;
SELECT compare();
DROP TRIGGER a_first ON items;
DROP TRIGGER z_last ON items;

-- after target rows of the same transaction, and undone
BEGIN;
INSERT INTO marks VALUES (1);
INSERT INTO items VALUES (400, 'a', 'x');
SAVEPOINT s;
INSERT INTO items VALUES (401, 'a', 'x');
INSERT INTO marks VALUES (401);
ROLLBACK TO s;
INSERT INTO items VALUES (401, 'b', 'x'), (402, 'b', 'x');
DELETE FROM marks WHERE item_id = 1;
INSERT INTO items VALUES (403, 'b', 'x') ON CONFLICT (id) DO UPDATE SET org = 'z';
INSERT INTO items VALUES (403, 'c', 'x') ON CONFLICT (id) DO UPDATE SET org = 'z';
COMMIT;
SELECT compare();

-- the key is there already, and has an old group
INSERT INTO items_sidecar SELECT i, 'old', '2001-01-01' FROM generate_series(501, 503) i;
INSERT INTO items SELECT i, CASE WHEN i % 2 = 0 THEN 'new' END, 'x' FROM generate_series(500, 504) i;
SELECT id, org, enqueued_at < '2002-01-01' AS old FROM items_sidecar WHERE id BETWEEN 500 AND 504 ORDER BY id;
BEGIN ISOLATION LEVEL SERIALIZABLE;
INSERT INTO items_sidecar VALUES (505, 'old');
INSERT INTO items VALUES (505, 'new', 'x'), (506, 'new', 'x');
COMMIT;
SELECT compare();

-- the table of pending keys gets a trigger: it is never fired, and the worker takes it away and mends what was missed
CREATE TABLE log (id int);
CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO app.log VALUES (NEW.id); RETURN NULL; END $$;
CREATE TRIGGER log AFTER INSERT ON items_sidecar FOR EACH ROW EXECUTE FUNCTION log();
INSERT INTO items VALUES (600, 'a', 'x'), (601, 'a', ''), (602, 'a', 'x');
SELECT bgw_backfill.configure('items', 'scan_interval', '1s');
CALL test.until('NOT EXISTS (SELECT FROM pg_trigger WHERE tgname = ''log'')');
CALL bgw_backfill.wait('items');
INSERT INTO items VALUES (603, 'a', 'x'), (604, 'a', ''), (605, 'a', 'x');
SELECT array_agg(id ORDER BY id), compare() FROM log;

-- so is all that could run somebody's code there, or refuse a row; an index that cannot may stay
CREATE FUNCTION mine(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN $1; END $$;
CREATE POLICY p ON items_sidecar USING (true);
ALTER TABLE items_sidecar ENABLE ROW LEVEL SECURITY, ADD CONSTRAINT c CHECK (org <> 'b') NOT VALID;
CREATE INDEX with_code ON items_sidecar (mine(org));
CREATE INDEX without_code ON items_sidecar (lower(org)) WHERE id > 5;
CREATE UNIQUE INDEX other_key ON items_sidecar (id, org);
CREATE RULE r AS ON DELETE TO items_sidecar DO ALSO SELECT 1;
CALL test.until('NOT EXISTS (SELECT FROM pg_rewrite WHERE ev_class = ''app.items_sidecar''::regclass)');
CALL bgw_backfill.wait('items');
SELECT relrowsecurity, (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid) AS policies,
	(SELECT count(*) FROM pg_constraint WHERE conrelid = c.oid AND contype = 'c') AS checks,
	(SELECT string_agg(i::regclass::text, ' ' ORDER BY i::regclass::text COLLATE "C") FROM pg_index, LATERAL (SELECT indexrelid) x (i) WHERE indrelid = c.oid) AS indexes
	FROM pg_class c WHERE oid = 'items_sidecar'::regclass;
SELECT compare();
-- what the worker cannot take away alone is said, with what to do about it
CREATE TABLE child () INHERITS (items_sidecar);
CALL test.until('(SELECT state FROM bgw_backfill.progress) = ''failed''');
SELECT last_error FROM bgw_backfill.progress;
DROP TABLE items_sidecar CASCADE;
SELECT bgw_backfill.resume('items');
CALL bgw_backfill.wait('items');
SELECT compare();
SELECT bgw_backfill.configure('items', 'scan_interval', '7d');

-- other things that a row must not go round
CREATE FUNCTION settled(change text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
BEGIN
	EXECUTE change;
	INSERT INTO app.items VALUES (700, 'a', 'x');
	SELECT string_agg(s::text, ' ') INTO result FROM (SELECT id, org FROM app.items_sidecar WHERE id = 700) s;
	RAISE EXCEPTION USING errcode = 'TTTTT', message = coalesce(result, 'nothing');
EXCEPTION WHEN OTHERS THEN
	RETURN SQLERRM;
END $$;
SELECT settled('SELECT');
SELECT settled('ALTER TABLE app.items_sidecar ADD more int DEFAULT 7');
SELECT settled('CREATE RULE r AS ON INSERT TO app.items_sidecar DO ALSO INSERT INTO app.log VALUES (NEW.id)');
SELECT settled('ALTER TABLE app.items_sidecar ALTER enqueued_at SET DEFAULT ''2001-01-01''');
SELECT settled('CREATE UNIQUE INDEX ON app.items_sidecar (id) WHERE org = ''a''');
SELECT settled('ALTER TABLE app.items_sidecar ADD CHECK (org <> ''a'') NOT VALID');
CREATE TABLE few (id int PRIMARY KEY);
SELECT settled('ALTER TABLE app.items_sidecar ADD FOREIGN KEY (id) REFERENCES app.few NOT VALID');
SELECT settled('ALTER TABLE app.marks DROP CONSTRAINT marks_item_id_fkey');
SELECT compare();

RESET SESSION AUTHORIZATION;
CREATE EXTENSION amcheck;
SELECT bt_index_check(indexrelid, true) FROM pg_index WHERE indrelid = 'items_sidecar'::regclass;
DROP EXTENSION amcheck;
SELECT bgw_backfill.untrack('items');
CALL bgw_backfill.wait('items', 'uninstall');
DROP SCHEMA app CASCADE;
