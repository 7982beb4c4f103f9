# What an owner, a writer and somebody without any right can do with a partition, a trigger of ours on a table of theirs, a
# domain, and a function that the planner evaluates.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('corners', conf => 'max_worker_processes = 16');
create_pair($node, rows => 200);
create_pair($node, source => 'side', rows => 200);
sql($node, 'CREATE ROLE wendy LOGIN; CREATE ROLE bob LOGIN; CREATE SCHEMA wendy AUTHORIZATION wendy; CREATE SCHEMA bob AUTHORIZATION bob');
track($node);
app($node, q{SELECT bgw_backfill.track('side', 'side_emb', mode => 'sidecar', group_by => 'org')});
ok(wait_phase($node, 'live') && wait_phase($node, 'live', 'side'), 'two jobs are live');
app($node, 'GRANT SELECT, INSERT, UPDATE, DELETE ON events_emb, side_emb TO wendy; GRANT SELECT ON events, side TO wendy');

# The source becomes a partition: its bounds call the owner's function, which names another without its schema.
app($node, <<'SQL');
CREATE FUNCTION bound(bigint) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN upper($1::text); END';
CREATE TABLE parent (LIKE events) PARTITION BY RANGE (bound(id));
ALTER TABLE parent ATTACH PARTITION events FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
SQL
app($node, <<'SQL', undef, 'wendy');
CREATE TABLE wendy.loot (who text);
GRANT INSERT ON wendy.loot TO PUBLIC;
GRANT USAGE ON SCHEMA wendy TO PUBLIC;
CREATE FUNCTION wendy.upper(text) RETURNS text LANGUAGE plpgsql AS
	'BEGIN INSERT INTO wendy.loot VALUES (current_user); RETURN pg_catalog.upper($1); END';
SET search_path = wendy, pg_catalog;
INSERT INTO public.events_emb SELECT min(id), '{1}' FROM public.events e WHERE NOT has_embedding
	AND NOT EXISTS (SELECT FROM public.events_emb m WHERE m.event_id = e.id);
SQL
is(sql($node, 'SELECT count(*) FROM wendy.loot'), '0', 'a writer\'s path does not lead the owner\'s function to code of the writer\'s');
app($node, 'ALTER TABLE parent DETACH PARTITION events');

# A trigger of ours on a table of somebody's who has no right on the job's.
app($node, <<'SQL', undef, 'bob');
CREATE TABLE bob.t (i int);
CREATE TRIGGER a AFTER DELETE ON bob.t REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION bgw_backfill.target_changed('events');
CREATE TRIGGER b AFTER DELETE ON bob.t REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION bgw_backfill.target_changed('side');
SQL
my $locks = q{SELECT string_agg(DISTINCT relation::regclass::text, ' ') FROM pg_locks WHERE pid = pg_backend_pid() AND relation::regclass::text ~ '^(events|side)'};
is(app($node, "BEGIN; DELETE FROM bob.t; $locks; DELETE FROM bob.t; $locks; COMMIT", undef, 'bob'), "\n", 'it locks nothing of the job\'s');

# A column of a domain that refuses nulls, on the table of pending keys.
app($node, 'CREATE DOMAIN never_null AS int CHECK (VALUE IS NOT NULL); DELETE FROM side_sidecar; ALTER TABLE side_sidecar ADD COLUMN x never_null');
is(error_of($node, 'DELETE FROM side_emb WHERE event_id = (SELECT min(event_id) FROM side_emb)', undef, 'wendy') =~ /ERROR/ ? 'refused' : 'passed',
	'passed', 'a column that refuses our rows does not fail a write of the application\'s');

# An immutable function in match_where that calls us, more often than there is room for plans, while a plan is being made.
app($node, <<"SQL") foreach 1 .. 16;
CREATE TABLE j$_ (id bigint PRIMARY KEY, org text);
CREATE TABLE j${_}_emb (event_id bigint PRIMARY KEY REFERENCES j$_);
INSERT INTO j$_ SELECT n, 'g' || n % 5 FROM generate_series(1, 50) n;
SELECT bgw_backfill.track('j$_', 'j${_}_emb', mode => 'sidecar', group_by => 'org');
SQL
is(scalar(grep { wait_phase($node, 'live', "j$_") } 1 .. 16), 16, 'sixteen more jobs are live');
app($node, <<'SQL');
CREATE FUNCTION calls_us(int) RETURNS int IMMUTABLE LANGUAGE plpgsql SET search_path = public, pg_catalog AS $$
BEGIN
	IF (SELECT backend_type ~ 'worker' FROM pg_stat_activity WHERE pid = pg_backend_pid()) THEN
		FOR i IN 1 .. 16 LOOP
			PERFORM bgw_backfill.claim('j' || i, 3, '1 minute');
		END LOOP;
	END IF;
	RETURN 1;
END $$;
CREATE TABLE big (id bigint PRIMARY KEY, org text);
CREATE TABLE big_emb (event_id bigint PRIMARY KEY REFERENCES big, emb int);
INSERT INTO big SELECT n, 'g' FROM generate_series(1, 30000) n;
ANALYZE big, big_emb;
SELECT bgw_backfill.track('big', 'big_emb', mode => 'sidecar', match_where => 'emb > calls_us(0)');
SQL
ok(wait_for($node, "phase = 'live' OR state = 'failed'", 'big'), 'a function that calls us while we plan does no harm');
no_crash($node);
done_testing();
