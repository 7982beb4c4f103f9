# Commands that want a database to themselves, while workers are at work there and elsewhere.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('databases', conf => "bgw_backfill.batch_size = 200\nbgw_backfill.batch_sleep = 200ms");

sub add_database
{
	my ($db, $extension) = @_;

	sql($node, "CREATE DATABASE $db");
	prepare_database($node, $db) if $extension;
	return;
}

# The job in database postgres goes on all the time.
create_pair($node, rows => 40_000);
track($node);
wait_batches($node, 2);

sub goes_on
{
	my ($what) = @_;
	my $done = progress($node, 'rows_done');

	return ok(wait_for($node, "phase = 'fill' AND rows_done > $done"), "$what: the worker elsewhere goes on");
}

add_database('plain', 0);
is(error_of($node, 'DROP DATABASE plain'), '', 'DROP DATABASE of one without the extension');
goes_on('plain');

# What an interrupted DROP DATABASE leaves cannot be connected to: no process tries.
add_database('broken', 1);
sql($node, "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'broken'");
$node->restart;
goes_on('broken');
is(log_count($node, qr/cannot connect to invalid database/), 0, 'no process tries to connect to an invalid database');
is(error_of($node, 'DROP DATABASE broken'), '', 'DROP DATABASE of that one');

add_database('busy', 1);
create_pair($node, db => 'busy');
track($node, db => 'busy');
wait_batches($node, 2, 'events', 'busy');
is(error_of($node, 'DROP DATABASE busy'), '', 'DROP DATABASE of one with a job in mid-fill');
goes_on('busy');
is(join(',', workers($node, 'busy')), '', 'no worker is left there');

# In an index build that waits.
add_database('indexing', 1);
create_pair($node, db => 'indexing', rows => 1000);
app($node, "SELECT bgw_backfill.track('events', 'events_emb')", 'indexing');
wait_phase($node, 'live', 'events', 'indexing');
is(error_of($node, 'DROP DATABASE indexing'), '', 'DROP DATABASE of one with a live job');

# One that may not drop it disturbs nobody.
add_database('kept', 1);
create_pair($node, db => 'kept', rows => 10_000);
track($node, db => 'kept');
wait_batches($node, 2, 'events', 'kept');
my ($pid) = workers($node, 'kept');
like(error_of($node, 'DROP DATABASE kept', undef, 'app'), qr/must be owner of database kept/, 'refused');
is((workers($node, 'kept'))[0], $pid, 'the worker there was not disturbed');

# Renamed and moved in mid-fill.
is(error_of($node, 'ALTER DATABASE kept RENAME TO renamed'), '', 'ALTER DATABASE RENAME of one with a job in mid-fill');
ok(wait_for($node, "rows_done > 400", 'events', 'renamed'), 'the job goes on under the new name');
settings($node, batch_sleep => 0);
ok(wait_phase($node, 'live', 'events', 'renamed'), 'and is live');
job_exact($node, 'renamed', db => 'renamed');

# A copy of a database with a live job: the job there is held, and resumed verifies first.
is(error_of($node, 'CREATE DATABASE copy TEMPLATE renamed'), '', 'CREATE DATABASE from one with a live job');
app($node, 'DELETE FROM events_emb WHERE event_id % 7 = 2; INSERT INTO events VALUES (1000000, \'org-1\', \'x\')', 'copy');
job_exact($node, 'in the copy, before anything else', db => 'copy');
is(progress($node, 'worker_pid IS NULL', 'events', 'copy'), 't', 'no worker takes the job in the copy');
# What would wake nobody is noticed when the launcher begins anew.
sql($node, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'bgw_backfill launcher'");
ok(wait_for($node, "state = 'held'", 'events', 'copy'), 'the job in the copy is held');
like(progress($node, 'last_error', 'events', 'copy'), qr/another database.*bgw_backfill\.resume\('events'\)/, 'and says why');
like(error_of($node, "CALL bgw_backfill.wait('events')", 'copy', 'app'), qr/job "events" is held/, 'wait() does not wait for it');
app($node, "SELECT bgw_backfill.resume('events')", 'copy');
ok(wait_for($node, "phase = 'live' AND verified_at > started_at", 'events', 'copy'), 'resumed and live');
job_exact($node, 'the copy', db => 'copy');
app($node, "SELECT bgw_backfill.verify('events')", 'renamed');
ok(wait_for($node, "phase = 'live' AND state <> 'held' AND verified_at > live_since", 'events', 'renamed'), 'the original is as it was');

ok(wait_phase($node, 'live'), 'the first job is live');
job_exact($node, 'postgres');
is(log_count($node, qr/is being accessed by other users/), 0, 'nobody was in the way');
is(error_of($node, 'DROP DATABASE copy; '), '', 'DROP DATABASE of the copy');
no_crash($node);
done_testing();
