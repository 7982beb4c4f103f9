# A user's function that catches its being cancelled and goes on: it ends with its process, and the job fails.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('swallow', conf => "bgw_backfill.batch_sleep = 0\nbgw_backfill.scan_interval = 1s\nbgw_backfill.statement_timeout = 2s");
my $reason = qr/went on for 10 s after it had been cancelled, and its worker was terminated/;
sql($node, 'CREATE ROLE mallory LOGIN; CREATE ROLE bob LOGIN');
sql($node, 'CREATE DATABASE second');
prepare_database($node, 'second');
foreach my $db ('postgres', 'second')
{
	sql($node, 'GRANT CREATE ON SCHEMA public TO mallory, bob', $db);
	app($node, <<'SQL', $db, 'mallory');
CREATE FUNCTION never_ends() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		BEGIN
			PERFORM pg_catalog.pg_sleep(1000);
		EXCEPTION WHEN query_canceled THEN
		END;
	END LOOP;
END $$;
CREATE FUNCTION handler(job text, group_key text, keys bigint[], token bigint) RETURNS void LANGUAGE sql
	SET search_path = public AS 'SELECT public.never_ends()';
CREATE FUNCTION slow_handler(job text, group_key text, keys bigint[], token bigint) RETURNS void LANGUAGE sql
	SET search_path = public AS 'SELECT pg_sleep(1000)';
CREATE FUNCTION on_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.never_ends(); RETURN NULL; END $$;
CREATE FUNCTION condition(body text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN public.never_ends(); END $$;
SQL
}

# A job of mallory's that calls a handler.
sub with_handler
{
	my ($source, $handler, $db) = @_;

	create_pair($node, rows => 300, source => $source, owner => 'mallory', db => $db);
	app($node, "SELECT bgw_backfill.track('$source', '${source}_emb', handler => '$handler(text,text,bigint[],bigint)')", $db, 'mallory');
	return;
}

# Wait until the worker of a job is in that function.
sub runs
{
	my ($source, $db) = @_;

	return $node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'bgw_backfill worker' AND datname = '"
		  . ($db // 'postgres') . "' AND wait_event = 'PgSleep' AND query LIKE '%live of job $source'");
}

# Wait until no function of mallory's runs.
sub nothing_runs
{
	return $node->poll_query_until('postgres', "SELECT count(*) = 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
}

sub bob
{
	my ($source, $what) = @_;

	create_pair($node, rows => 300, source => $source, owner => 'bob');
	track($node, source => $source, owner => 'bob');
	return ok(wait_phase($node, 'live', $source), "another owner's job gets a place: $what");
}

# In two databases: all the places there are.
with_handler('m1', 'handler', 'postgres');
with_handler('m1', 'handler', 'second');
ok(runs('m1', $_), "a handler in $_ goes on for ever") foreach ('postgres', 'second');
bob('b1', 'of a handler that caught its cancel');
foreach my $db ('postgres', 'second')
{
	ok(wait_for($node, "state = 'failed'", 'm1', $db), "the job in $db fails");
	like(progress($node, 'last_error', 'm1', $db), $reason, 'and says why');
}
ok(nothing_runs(), 'nothing of it runs any more');
is(sql($node, 'SELECT count(*) FROM bgw_backfill.claim WHERE keys <> \'{}\''), '0', 'nothing stays handed out');

# pause() and untrack() end it, long before its time is over.
with_handler('m2', 'handler', 'postgres');
app($node, "SELECT bgw_backfill.configure('m2', 'statement_timeout', '1h')", undef, 'mallory');
ok(runs('m2'), 'a handler whose job has a long statement_timeout goes on for ever');
app($node, "SELECT bgw_backfill.pause('m2')", undef, 'mallory');
ok(nothing_runs(), 'pause() ends it');
is(progress($node, 'state, errors', 'm2'), 'paused|0', 'the job is paused, without an error');
app($node, "SELECT bgw_backfill.resume('m2')", undef, 'mallory');
ok(runs('m2'), 'and resumed');
app($node, "SELECT bgw_backfill.untrack('m2')", undef, 'mallory');
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM bgw_backfill.job WHERE job = 'm2'"), 'untrack() ends it');

# One that ends when it is cancelled, but has all the time in the world: not while others wait.
settings($node, max_workers => 1);
with_handler('m3', 'slow_handler', 'postgres');
app($node, "SELECT bgw_backfill.configure('m3', 'statement_timeout', '1h')", undef, 'mallory');
ok(runs('m3'), 'a slow handler, whose job has a long statement_timeout, is called');
bob('b3', 'of a handler that is slow');
ok(wait_for($node, "last_error LIKE '%gave its place up to another owner%'", 'm3'), 'its job says why it was cancelled');
is(progress($node, 'state IN (\'failed\')', 'm3'), 'f', 'and is well');
app($node, "SELECT bgw_backfill.untrack('m3')", undef, 'mallory');
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM bgw_backfill.job WHERE job = 'm3'");

# Other code of a user's: a deferred trigger at the commit of a batch, a condition, an index's condition.
create_pair($node, rows => 300, source => 'm4', owner => 'mallory');
app($node, <<'SQL', undef, 'mallory');
CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON m4 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION on_row();
SELECT bgw_backfill.track('m4', 'm4_emb');
SQL
ok(wait_for($node, "state = 'failed'", 'm4'), 'a deferred trigger that catches its cancel fails its job');
like(progress($node, 'last_error', 'm4'), $reason, 'with the reason');
create_pair($node, rows => 300, source => 'm5', owner => 'mallory');
app($node, "SELECT bgw_backfill.track('m5', 'm5_emb', mode => 'sidecar', pending_where => 'public.condition(body)')", undef, 'mallory');
ok(wait_for($node, "state = 'failed'", 'm5'), 'so does a condition');
like(progress($node, 'last_error', 'm5'), $reason, 'with the reason');
bob('b5', 'after all of them');
no_crash($node);
done_testing();
