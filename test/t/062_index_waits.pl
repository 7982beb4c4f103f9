# An index build that waits for old transactions keeps nobody else from anything: no other build, no job that needs none,
# no worker's place for long. Nor does a vacuum that waits for a lock.
use strict;
use warnings;
use BbfTest;
use Test::More;

# who has waited for a place for as long as statement_timeout and 20 s gets one
my $node = new_node('index', conf => "bgw_backfill.batch_sleep = 0\nbgw_backfill.statement_timeout = 2s");
sql($node, 'CREATE ROLE mallory LOGIN; CREATE ROLE bob LOGIN; GRANT CREATE ON SCHEMA public TO mallory, bob');
sql($node, 'CREATE DATABASE second');
prepare_database($node, 'second');
sql($node, 'GRANT CREATE ON SCHEMA public TO mallory, bob', 'second');

# An idle transaction of its owner's, and an index build that waits for it.
sub waiting_build
{
	my ($source, $db) = @_;
	my $session = $node->background_psql($db, extra_params => [ '-U', 'mallory' ], on_error_stop => 0);

	create_pair($node, rows => 300, source => $source, owner => 'mallory', db => $db);
	$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	track($node, source => $source, owner => 'mallory', db => $db);
	ok(waits_for_snapshot($node, $db), "the build of $source in $db waits for its owner's idle transaction");
	is(progress($node, 'phase, waiting_for', $source, $db), 'index|older transactions', 'the view says so');
	return $session;
}

sub track_bob
{
	my ($source, $mode, $db) = @_;

	create_pair($node, rows => 300, source => $source, owner => 'bob', db => $db);
	return app($node, "SELECT bgw_backfill.track('$source', '${source}_emb', mode => '$mode')", $db, 'bob');
}

my $first = waiting_build('m1', 'postgres');
track_bob('b1', 'sidecar', 'postgres');
ok(wait_phase($node, 'live', 'b1', 'postgres'), 'a job that builds no index goes live beside it, in the same database');
track_bob('b2', 'watermark', 'second');
ok(wait_phase($node, 'live', 'b2', 'second'), 'and in another');
track_bob('b3', 'column', 'second');
ok(wait_phase($node, 'live', 'b3', 'second'), 'so does one that builds an index where nothing has to be waited for');
waits_for_snapshot($node);
is(progress($node, 'phase, errors', 'm1'), 'index|0', 'the one that waits is left in peace');

# Both places, in two databases: one is given up.
my $second = waiting_build('m2', 'second');
is(scalar(workers($node)), 2, 'two workers of one owner have all places, and wait');
track_bob('b4', 'sidecar', 'postgres');
ok(wait_phase($node, 'live', 'b4', 'postgres'), "another owner's job gets a place");
my $gave = sql($node, q{SELECT count(*) FROM bgw_backfill.progress WHERE last_error LIKE '%gave its place up to another owner%'})
  + sql($node, q{SELECT count(*) FROM bgw_backfill.progress WHERE last_error LIKE '%gave its place up to another owner%'}, 'second');
cmp_ok($gave, '>=', 1, 'of a build that says why it was given up');
end_session($_) foreach ($first, $second);
ok(wait_phase($node, 'live', 'm1', 'postgres'), 'built once the transaction has ended');
ok(wait_phase($node, 'live', 'm2', 'second'), 'in both databases');
is(sql($node, 'SELECT count(*) FROM pg_index WHERE NOT indisvalid'), '0', 'nothing invalid is left');
job_exact($node, 'after all that', source => 'm1');

# A vacuum that waits for a lock.
settings($node, max_workers => 1);
my $held = $node->background_psql('postgres', extra_params => [ '-U', 'mallory' ], on_error_stop => 0);
create_pair($node, rows => 300, source => 'm3', owner => 'mallory');
app($node, "SELECT bgw_backfill.track('m3', 'm3_emb', mode => 'sidecar')", undef, 'mallory');
ok(wait_phase($node, 'live', 'm3'), 'a job is live');
$held->query_safe('BEGIN; LOCK TABLE m3_sidecar IN SHARE UPDATE EXCLUSIVE MODE');
sql($node, "UPDATE bgw_backfill.job_state SET phase = 'index' WHERE job = 'm3'; UPDATE bgw_backfill.job SET paused = paused WHERE job = 'm3'");
ok(wait_for($node, "phase = 'index' AND state = 'retrying' AND waiting_for = 'a lock'", 'm3'), 'its vacuum waits for a lock for a while, and is tried again');
track_bob('b5', 'column', 'postgres');
ok(wait_phase($node, 'live', 'b5'), "another owner's job gets the only place");
end_session($held);
ok(wait_phase($node, 'live', 'm3'), 'and it is done once the lock is free');
no_crash($node);
done_testing();
