# A synchronous standby: a fill waits for it between batches, and holds nothing meanwhile.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Cluster;
use Test::More;

# Those who ask here wait for no standby themselves.
local $ENV{PGOPTIONS} = '-c synchronous_commit=local -c lock_timeout=15s';

my $primary = new_node('primary', streaming => 1,
	conf => "bgw_backfill.batch_size = 500\nbgw_backfill.batch_sleep = 0\nbgw_backfill.lock_timeout = 1s");
create_pair($primary, rows => 20_000);
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', "primary_conninfo = '" . $primary->connstr . " application_name=standby'");

# Whom the primary's commits wait for.
sub standbys
{
	my ($names) = @_;

	sql($primary, "ALTER SYSTEM SET synchronous_standby_names = '$names'");
	sql($primary, 'SELECT pg_reload_conf()');
	$primary->poll_query_until('postgres', "SELECT current_setting('synchronous_standby_names') = '$names'");
	return;
}

# It is lost before the fill begins: one batch, and then none.
standbys('standby');
track($primary);
ok(wait_for($primary, "waiting_for = 'synchronous standbys' AND waited > interval '1 second'"), 'the fill waits for the standby, and says so');
my $done = progress($primary, 'rows_done');
cmp_ok($done, '<=', 500, 'it is not more than a batch ahead');
is(sql($primary, "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'bgw_backfill%' AND (xact_start IS NOT NULL OR wait_event = 'SyncRep')"),
	'0', 'outside any transaction');
app($primary, 'UPDATE events SET n = 1 WHERE id <= 500');
app($primary, "INSERT INTO events_emb SELECT id, '{1}' FROM events WHERE id <= 500 AND NOT EXISTS (SELECT FROM events_emb WHERE event_id = id)");
pass('rows of the batch are free');
foreach my $call ('pause', 'resume')
{
	app($primary, "SELECT bgw_backfill.$call('events')");
	pass("$call() returns");
}
app($primary, "SELECT bgw_backfill.untrack('events')");
ok($primary->poll_query_until('postgres', 'SELECT count(*) = 0 FROM bgw_backfill.job'), 'untrack() ends the job');

# It is back, and lost again in mid-fill.
$standby->start;
settings($primary, batch_sleep => '20ms');
track($primary);
wait_batches($primary, 5);
$standby->stop('immediate');
ok(wait_for($primary, "waiting_for = 'synchronous standbys' AND waited > interval '1 second'"), 'lost in mid-fill');
is(progress($primary, 'state, errors'), 'sleeping|0', 'that is no error');
settings($primary, batch_sleep => 0);
$standby->start;
ok(wait_phase($primary, 'live'), 'once it is back, the fill goes on to its end');
job_exact($primary, 'with the standby');
$primary->wait_for_catchup('standby', 'replay', $primary->lsn('insert'));
job_exact($standby, 'on the standby');

# Lost for good: a sweep waits until nobody is to be waited for any more.
$standby->stop('immediate');
my $verified = progress($primary, 'verified_at');
app($primary, 'UPDATE events SET n = 1');
app($primary, "SELECT bgw_backfill.verify('events')");
ok(wait_for($primary, "waiting_for = 'synchronous standbys'"), 'a sweep waits as well');
standbys('');
ok(wait_for($primary, "verified_at > '$verified'"), 'and ends once nobody is to be waited for');
no_crash($primary);
done_testing();
