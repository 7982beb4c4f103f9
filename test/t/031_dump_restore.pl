# A dump carries the job along; what is restored is held until somebody resumes it, and verified first.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('dump', conf => "bgw_backfill.batch_size = 500\nbgw_backfill.batch_sleep = 100ms");
create_pair($node, rows => 5000);
track($node);
app($node, "SELECT bgw_backfill.configure('events', 'scan_interval', '7 s')");
wait_phase($node, 'live');
my $token = app($node, "SELECT max(token) FROM (SELECT token FROM bgw_backfill.claim('events', 1) UNION ALL SELECT token FROM bgw_backfill.claim('events', 1)) c");
create_pair($node, rows => 20_000, source => 'half');
track($node, source => 'half');
wait_batches($node, 3, 'half');

my $file = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $file, '-d', $node->connstr('postgres') ], 'pg_dump');
sql($node, 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $file, '-d', $node->connstr('restored') ], 'restored');

foreach my $job ('events', 'half')
{
	ok(wait_for($node, "state = 'held' AND worker_pid IS NULL", $job, 'restored'), "job $job is held");
	like(progress($node, 'last_error', $job, 'restored'), qr/another database.*bgw_backfill\.resume\('$job'\)/, 'and says why');
}
is(sql($node, 'SELECT count(*) FROM bgw_backfill.job', 'restored'), '2', 'both are there');
like(sql($node, "SELECT settings -> 'scan_interval' FROM bgw_backfill.jobs WHERE job = 'events'", 'restored'),
	qr/"7s"|"7 s"/, 'with their settings');
is(progress($node, 'state', 'events') =~ /idle|sleeping/ ? 1 : 0, 1, 'the original is as it was');

# The triggers serve meanwhile.
is(error_of($node, 'DELETE FROM events_emb WHERE event_id % 9 = 1', 'restored', 'app'), '', 'a write in the restored database');
job_exact($node, 'held', db => 'restored');

# What nobody kept up with, the verify finds.
sql($node, 'SET session_replication_role = replica; DELETE FROM events_emb WHERE event_id % 11 = 1; '
	  . 'INSERT INTO events VALUES (1000000, \'org-1\', \'x\'); INSERT INTO events_emb VALUES (1000000)', 'restored');
settings($node, batch_sleep => 0);
foreach my $job ('events', 'half')
{
	app($node, "SELECT bgw_backfill.resume('$job')", 'restored');
	ok(wait_for($node, "phase = 'live' AND state <> 'held' AND verified_at > now() - interval '1 hour'", $job, 'restored'),
		"$job is resumed and live");
	job_exact($node, "$job resumed", source => $job, db => 'restored');
	ok(wait_phase($node, 'live', $job), 'and so is the original');
	job_exact($node, "$job at home", source => $job);
}

# A consumer that still holds a token from before the dump must not take another's claim for his own.
cmp_ok(app($node, "SELECT max(token) FROM bgw_backfill.claim('events', 1)", 'restored'), '>', $token, 'tokens rise over a restore');

# In a server without the library a restore goes through.
my $bare = new_node('bare', preload => 0, extension => 0);
my ($stdout, $stderr) = run_command([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $file, '-d', $bare->connstr('postgres') ]);
like($stderr, qr/WARNING:  bgw_backfill is not in shared_preload_libraries.*shared_preload_libraries = 'bgw_backfill'/s,
	'a restore without the library warns');
unlike($stderr, qr/ERROR/, 'and goes through');
job_exact($bare, 'without the library');
no_crash($node);
done_testing();
