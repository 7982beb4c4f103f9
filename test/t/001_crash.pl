# Whatever is killed, whenever: no work is lost or counted twice, and it goes on without a hand.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('crash', conf => "bgw_backfill.batch_size = 500\nbgw_backfill.batch_sleep = 200ms");
my ($rows, $pending) = create_pair($node);
history_begin($node);

# A worker is killed in mid-fill, which restarts the cluster.
track($node);
wait_batches($node, 4);
my $done = progress($node, 'rows_done');
kill 'KILL', worker_pid($node);
ok(wait_for($node, "rows_done > $done AND worker_pid IS NOT NULL"), 'the fill goes on after kill -9 of the worker');

# The whole server, in mid-fill.
wait_batches($node, 12);
$done = progress($node, 'rows_done');
$node->stop('immediate');
$node->start;
ok(wait_for($node, "rows_done > $done"), 'the fill goes on after an immediate shutdown');

# The launcher, in mid-fill.
wait_batches($node, 18);
$done = progress($node, 'rows_done');
kill 'KILL', sql($node, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'bgw_backfill launcher'");
ok(wait_for($node, "rows_done > $done"), 'the fill goes on after kill -9 of the launcher');

# A polite end of either restarts nothing but that process.
$done = progress($node, 'rows_done');
sql($node, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'bgw_backfill %'");
ok(wait_for($node, "rows_done > $done"), 'the fill goes on after termination of its processes');

settings($node, batch_sleep => 0);
ok(wait_phase($node, 'live'), 'live in the end');
history_is_sound($node, 'three crashes', $rows, $pending);
job_exact($node, 'three crashes');
is(sql($node, 'SELECT count(*) FROM bgw_backfill.job_skipped'), '0', 'no row left over');

# The same in the phase that runs outside of a transaction: an invalid index is left behind.
sub index_is
{
	my ($job, $valid) = @_;
	return $node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_index WHERE indexrelid = to_regclass('${job}_pending_idx') AND indisvalid = $valid");
}

foreach my $way ('kill -9 of the worker', 'immediate shutdown')
{
	my $job = $way =~ /kill/ ? 'docs' : 'notes';
	my $session = old_snapshot($node);

	create_pair($node, source => $job, rows => 2000);
	track($node, source => $job);
	ok(index_is($job, 'false'), "an unfinished index at $way");
	is(progress($node, 'phase', $job), 'index', "in phase index at $way");
	if ($job eq 'docs')
	{
		kill 'KILL', worker_pid($node);
		# The snapshot goes with the cluster.
		ok(accepts_connections($node), 'the server is up again');
	}
	else
	{
		$node->stop('immediate');
		$node->start;
	}
	end_session($session);
	ok(wait_phase($node, 'live', $job), "live after $way in phase index");
	ok(index_is($job, 'true'), 'the index is valid');
	is( sql($node, "SELECT count(*) FROM pg_index WHERE indrelid = '$job'::regclass AND NOT indisvalid"),
		'0', 'and the only one');
	job_exact($node, $way, source => $job);
}

no_crash($node);
done_testing();
