# A standby: silent until it is promoted, then it goes on where the primary was.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $primary = new_node('primary', streaming => 1,
	conf => "bgw_backfill.batch_size = 500\nbgw_backfill.batch_sleep = 200ms");
my ($rows, $pending) = create_pair($primary);
create_pair($primary, source => 'other', rows => 100);
history_begin($primary);
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;

track($primary);
wait_batches($primary, 5);
ok($standby->poll_query_until('postgres', 'SELECT rows_done > 0 FROM bgw_backfill.progress'),
	'the progress is seen on the standby');
is(sql($standby, "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'bgw_backfill%'"), '0',
	'no process of ours runs there');
foreach my $call ("bgw_backfill.track('other', 'other_emb')", "bgw_backfill.pause('events')",
	"bgw_backfill.resume('events')", "bgw_backfill.verify('events')", "bgw_backfill.untrack('events')",
	"bgw_backfill.configure('events', 'batch_size', '1')")
{
	my ($name) = $call =~ /\.(\w+)/;
	like(error_of($standby, "SELECT $call", undef, 'app'),
		qr/cannot execute bgw_backfill.$name\(\) during recovery.*HINT:  Call it on the primary/s, "$name() is refused clearly");
}
is(progress($standby, "worker_pid IS NULL, state <> 'failed'"), 't|t', 'the view says nothing of a worker');

wait_batches($primary, 8);
$primary->stop('immediate');
my $done = progress($standby, 'rows_done');
$standby->promote;
ok(wait_for($standby, "rows_done > $done"), 'promoted, it goes on');
settings($standby, batch_sleep => 0);
ok(wait_phase($standby, 'live'), 'to the end');
history_is_sound($standby, 'promoted', $rows, $pending);
job_exact($standby, 'promoted');
no_crash($standby);
done_testing();
