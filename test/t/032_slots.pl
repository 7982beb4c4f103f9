# No background worker slot is left: said once, shown, and gone on with when there is one.
use strict;
use warnings;
use BbfTest;
use Test::More;

# One for the launcher of logical replication, one for ours, one for a scheduler or a worker.
my $node = new_node('slots',
	conf => "max_worker_processes = 3\nbgw_backfill.batch_size = 200\nbgw_backfill.batch_sleep = 300ms");
sql($node, 'CREATE DATABASE second');
prepare_database($node, 'second');
create_pair($node, rows => 40_000);
create_pair($node, rows => 2000, db => 'second');
track($node);
wait_batches($node, 2);

my $position = log_position($node);
track($node, db => 'second');
ok(wait_for($node, "waiting_for = 'max_worker_processes' AND phase = 'install'", 'events', 'second'),
	'the view says what the second job waits for, where it is');
is(progress($node, 'phase'), 'fill', 'the first job is at work');
my $done = progress($node, 'rows_done');
ok(wait_for($node, "rows_done > $done + 1500"), 'and goes on');
is(log_count($node, qr/WARNING:  bgw_backfill found no free background worker slot/, $position), 1, 'one warning');
like(log_since($node, $position), qr/HINT:  Consider increasing max_worker_processes/, 'with a hint');
ok(wait_phase($node, 'live', 'events', 'second'), 'the first worker makes room after a while, and the second job has its turn');
is(progress($node, 'phase'), 'fill', 'before the first is done');
settings($node, batch_sleep => 0);
foreach my $db ('postgres', 'second')
{
	ok(wait_phase($node, 'live', 'events', $db), "the job in $db is live once a slot is free");
	job_exact($node, $db, db => $db);
}
ok(wait_for($node, 'waiting_for IS NULL', 'events', 'second'), 'and waits for nothing');
no_crash($node);
done_testing();
