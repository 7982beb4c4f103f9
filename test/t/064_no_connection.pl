# Databases that nobody can connect to, because somebody has them to himself in a transaction that he leaves open: the
# schedulers that wait for them do not keep the other databases waiting.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('connect', conf => 'bgw_backfill.batch_sleep = 0');
my @held;

foreach my $db ('first', 'second')
{
	sql($node, "CREATE DATABASE $db");
	prepare_database($node, $db);
	create_pair($node, rows => 300, db => $db);
	track($node, db => $db);
	wait_phase($node, 'live', 'events', $db);
}
no_worker($node);
foreach my $db ('first', 'second')
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);

	$session->query_safe("BEGIN; ALTER DATABASE $db RENAME TO ${db}_away");
	push @held, $session;
}
# a reload has every database looked at
settings($node, scan_interval => '1s');
ok($node->poll_query_until('postgres', <<'SQL'), 'all schedulers wait for a connection');
SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'object' AND classid = 'pg_database'::regclass AND NOT granted
SQL
create_pair($node, rows => 300);
track($node);
ok(wait_phase($node, 'live'), 'a job in another database goes live');
like(log_since($node, 0), qr/terminating process \d+, which could not connect to database \d+/, 'the log says why');
foreach my $session (@held)
{
	$session->query_safe('ROLLBACK');
	$session->quit;
}
foreach my $db ('first', 'second')
{
	my $scans = sql($node, 'SELECT scans FROM bgw_backfill.job_state', $db);

	ok($node->poll_query_until($db, "SELECT scans > $scans FROM bgw_backfill.job_state"), "$db is served again");
}
no_crash($node);
done_testing();
