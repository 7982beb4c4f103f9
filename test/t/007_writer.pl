# Writers at work from before the fill to after the verify; the flags are exact in the end.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $seed = $ENV{BBF_SEED} // int(rand(1_000_000));
my $node = new_node('writer', conf => "bgw_backfill.batch_size = 1000\nbgw_backfill.batch_sleep = 50ms");
note("seed $seed (BBF_SEED=$seed repeats its choices)");
create_pair($node, rows => 40_000);

# What a writer does until there is a row in stop: one small transaction after another, keys in no order,
# now and then in a subtransaction, rolled back, or at repeatable read. Errors of its own kind are counted.
app($node, <<'SQL');
CREATE TABLE stop (at timestamptz);
CREATE TABLE stats (writer int, key text, n bigint, UNIQUE (writer, key));
CREATE SEQUENCE new_ids START 200001;
CREATE FUNCTION one_thing() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	at bigint := random() * 120000;
	done text;
BEGIN
	CASE floor(random() * 10)::int
		WHEN 0 THEN
			INSERT INTO events (id, org, body) SELECT nextval('new_ids'), 'org-' || n % 7, 'new'
				FROM generate_series(1, (random() * 5)::int) n;
			done := 'new events';
		WHEN 1 THEN
			WITH new AS (INSERT INTO events (id, org, body) VALUES (nextval('new_ids'), 'org-1', 'both') RETURNING id)
				SELECT 'x' INTO done FROM new;
			INSERT INTO events_emb VALUES (currval('new_ids'), '{1}');
			done := 'event and embedding';
		WHEN 2, 3, 4 THEN
			INSERT INTO events_emb SELECT id, '{1}' FROM events WHERE id BETWEEN at AND at + 30 ON CONFLICT DO NOTHING;
			done := 'embeddings';
		WHEN 5, 6 THEN
			DELETE FROM events_emb WHERE event_id BETWEEN at AND at + 30 AND event_id % 3 = 0;
			done := 'embeddings deleted';
		WHEN 7 THEN
			DELETE FROM events_emb WHERE event_id BETWEEN at AND at + 10;
			INSERT INTO events_emb SELECT id, '{2}' FROM events WHERE id BETWEEN at + 5 AND at + 15 ON CONFLICT DO NOTHING;
			done := 'embeddings replaced';
		WHEN 8 THEN
			UPDATE events SET body = CASE WHEN random() < 0.5 THEN 'again' END, n = n + 1 WHERE id BETWEEN at AND at + 5;
			UPDATE events_emb SET event_id = at WHERE event_id = at + 1 AND NOT EXISTS (SELECT FROM events_emb WHERE event_id = at)
				AND EXISTS (SELECT FROM events WHERE id = at);
			done := 'updates';
		ELSE
			DELETE FROM events WHERE id BETWEEN at AND at + 1;
			done := 'events deleted';
	END CASE;
	RETURN done;
END
$$;
CREATE FUNCTION one_thing_or_error() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	IF random() < 0.2 THEN
		PERFORM one_thing();
		RAISE EXCEPTION 'undone';
	END IF;
	RETURN one_thing();
EXCEPTION WHEN raise_exception THEN RETURN 'undone savepoint';
	WHEN deadlock_detected THEN RETURN 'deadlock';
	WHEN serialization_failure THEN RETURN 'serialization failure';
	WHEN foreign_key_violation OR unique_violation THEN RETURN 'violation';
END
$$;
CREATE PROCEDURE write(me int, seed float8) LANGUAGE plpgsql AS $$
DECLARE
	done text;
BEGIN
	PERFORM setseed(seed);
	LOOP
		PERFORM set_config('default_transaction_isolation',
			CASE WHEN random() < 0.2 THEN 'repeatable read' ELSE 'read committed' END, false);
		COMMIT;
		EXIT WHEN EXISTS (SELECT FROM stop);
		done := one_thing_or_error();
		IF random() < 0.3 THEN done := done || ', ' || one_thing_or_error(); END IF;
		IF random() < 0.2 THEN ROLLBACK; done := 'rolled back'; END IF;
		INSERT INTO stats VALUES (me, done, 1) ON CONFLICT (writer, key) DO UPDATE SET n = stats.n + 1;
		COMMIT;
		PERFORM pg_sleep(0.002);	-- or the table grows faster than it can be walked where the machine is busy
	END LOOP;
END
$$;
SQL

my @writers;
foreach my $me (1 .. 3)
{
	my $session = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'app' ]);
	my $part = (($seed + $me * 7919) % 1_000_000) / 1_000_000;
	$session->query_until(qr/begins/, "\\echo begins\nCALL write($me, $part);\n\\echo ended $me\n");
	push @writers, $session;
}
sub written { return sql($node, 'SELECT coalesce(sum(n), 0) FROM stats'); }
sub wait_written
{
	my ($more) = @_;
	my $n = written() + $more;
	return $node->poll_query_until('postgres', "SELECT coalesce(sum(n), 0) >= $n FROM stats");
}

ok(wait_written(20), 'the writers are at work');
track($node);
ok(wait_phase($node, 'live'), 'live while they are');
ok(wait_written(100), 'and they write on');
app($node, "SELECT bgw_backfill.verify('events')");
ok(wait_for($node, 'verified_at > live_since'), 'a sweep while they write');
is(progress($node, 'mismatches'), '0', 'that finds nothing to repair');
sql($node, 'INSERT INTO stop VALUES (now())');
foreach my $me (1 .. 3)
{
	$writers[ $me - 1 ]->query_until(qr/ended $me/, "\n");
	is($writers[ $me - 1 ]->{stderr} =~ s/background_psql: ready\n//r, '', "writer $me met no error");
	$writers[ $me - 1 ]->quit;
}
note(sql($node, q{SELECT key, sum(n) FROM stats GROUP BY key ORDER BY key ~ 'deadlock|failure' DESC, sum(n) DESC LIMIT 20}));
note(sql($node, 'SELECT * FROM bgw_backfill.progress'));
cmp_ok(written(), '>', 300, 'they wrote a lot');
job_exact($node, "writers with seed $seed");
is(progress($node, 'errors, state'), '0|idle', 'the job met no error');
no_crash($node);
done_testing();
