# DROP EXTENSION under a worker at work.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('drop', conf => "bgw_backfill.batch_size = 200\nbgw_backfill.batch_sleep = 200ms");

# After the drop: no process of ours stays or comes, and the tables work as tables do.
sub gone
{
	my ($what, $position) = @_;

	ok($node->poll_query_until('postgres', <<'SQL'), "$what: worker and scheduler end");
SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type IN ('bgw_backfill worker', 'bgw_backfill scheduler')
SQL
	is(error_of($node, <<'SQL', undef, 'app'), '', "$what: both tables stay usable, without a warning");
INSERT INTO events (id, org, body) VALUES (1000000, 'org-1', 'x'), (1000001, 'org-1', 'y');
INSERT INTO events_emb VALUES (1000000, '{1}');
UPDATE events_emb SET event_id = 1000001 WHERE event_id = 1000000;
UPDATE events SET id = 1000002 WHERE id = 1000000;
DELETE FROM events WHERE id > 999999;
SQL
	is(sql($node, "SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('events'::regclass, 'events_emb'::regclass) AND NOT tgisinternal"),
		'0', "$what: no trigger is left");
	# Reloads make the launcher look at every database that it knows.
	foreach my $pass (1 .. 3)
	{
		$node->reload;
		$node->poll_query_until('postgres', 'SELECT pg_conf_load_time() > now() - interval \'1 minute\'');
	}
	is(log_count($node, qr/ERROR:|PANIC:|TRAP:/, $position), 0, "$what: no error in the log");
	cmp_ok(log_count($node, qr/bgw_backfill/, $position), '<=', 5, "$what: no loop in the log");
	return;
}

create_pair($node);
track($node);
wait_batches($node, 3);
like(error_of($node, 'DROP EXTENSION bgw_backfill'), qr/other objects depend on it.*CASCADE/s,
	'without CASCADE it is refused, with a hint');
my $done = progress($node, 'rows_done');
ok(wait_for($node, "rows_done > $done"), 'and the fill goes on');
my $position = log_position($node);
is(error_of($node, 'SET lock_timeout = 10000; DROP EXTENSION bgw_backfill CASCADE') =~ /ERROR/ ? 1 : 0, 0,
	'DROP EXTENSION CASCADE in mid-fill');
gone('in mid-fill', $position);

# Once more, over what is left: all of it is taken up.
sql($node, 'CREATE EXTENSION bgw_backfill');
my $session = old_snapshot($node);
settings($node, batch_sleep => 0);
track($node);
ok(waits_for_snapshot($node), 'the index build waits for an old transaction');
$position = log_position($node);
is(error_of($node, 'SET lock_timeout = 10000; DROP EXTENSION bgw_backfill CASCADE') =~ /ERROR/ ? 1 : 0, 0,
	'DROP EXTENSION CASCADE in mid-index-build');
is($session->query_safe('SELECT 2'), '2', 'the old transaction is still there');
gone('in mid-index-build', $position);
$session->query_safe('COMMIT');
$session->quit;

app($node, 'DROP VIEW events_pending; DROP INDEX events_pending_idx');
sql($node, 'CREATE EXTENSION bgw_backfill');
track($node);
ok(wait_phase($node, 'live'), 'created and tracked again, live');
job_exact($node, 'created again');

# In phase live, and in a transaction that is undone.
$node->psql('postgres', 'BEGIN; DROP EXTENSION bgw_backfill CASCADE; ROLLBACK');
app($node, "DELETE FROM events_emb WHERE event_id % 7 = 1; SELECT bgw_backfill.verify('events')");
ok(wait_for($node, 'verified_at > live_since'), 'after a DROP EXTENSION that was undone the job lives on');
job_exact($node, 'undone');

no_crash($node);
done_testing();
