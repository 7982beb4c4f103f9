# Many owners with an idle job each: no process of theirs is started for it, and the scheduler comes for all of them at
# once. Whatever happens to a job's tables is seen all the same.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $owners = 24;

# An interval that is longer than a worker stays for what is due soon.
my $node = new_node('quiet',
	conf => "bgw_backfill.scan_interval = 3s\nbgw_backfill.batch_sleep = 0\nbgw_backfill.retry_delay = 10ms\nlog_min_messages = debug1\nmax_worker_processes = 12");

sql($node, join '', map { "CREATE ROLE o$_ LOGIN; CREATE SCHEMA o$_ AUTHORIZATION o$_;" } 1 .. $owners);
foreach my $i (1 .. $owners)
{
	my $mode = qw(column sidecar watermark)[ $i % 3 ];

	app($node, "CREATE TABLE o$i.src (id bigint PRIMARY KEY, org text); CREATE TABLE o$i.emb (src_id bigint PRIMARY KEY REFERENCES o$i.src ON DELETE CASCADE);
		INSERT INTO o$i.src SELECT i, 'x' FROM generate_series(1, 10) i; INSERT INTO o$i.emb SELECT id FROM o$i.src;
		SELECT bgw_backfill.track('o$i.src', 'o$i.emb', job => 'j$i', mode => '$mode', group_by => 'org')", undef, "o$i");
}
ok($node->poll_query_until('postgres', "SELECT count(*) = $owners FROM bgw_backfill.progress WHERE phase = 'live' AND pending = 0"), "$owners jobs are live");
ok($node->poll_query_until('postgres', 'SELECT min(quiet_scans) > 0 FROM bgw_backfill.job_state'), 'and idle');

# The processes that were started until each job has been passed by a few times more. (One in ten looks is a scan.)
sub started { return log_count($node, qr/starting background worker process "bgw_backfill $_[0] /) }
my ($workers, $schedulers) = (started('worker'), started('scheduler'));
my $times = 4;
sql($node, 'CREATE TABLE passed_by AS SELECT job, scan_at, 0 AS n FROM bgw_backfill.job_state');
ok($node->poll_query_until('postgres', <<"SQL"), "each is passed by $times times more");
WITH seen AS (UPDATE passed_by p SET scan_at = s.scan_at, n = n + 1 FROM bgw_backfill.job_state s WHERE s.job = p.job AND s.scan_at > p.scan_at RETURNING p.n)
SELECT min(n) >= $times FROM passed_by
SQL
$workers = started('worker') - $workers;
$schedulers = started('scheduler') - $schedulers;
note("$workers workers and $schedulers schedulers for " . $owners * $times . ' looks');
cmp_ok($workers, '<=', $owners * $times / 4, 'for few of those looks a worker is started');
cmp_ok($schedulers, '<=', $owners * $times / 4, 'and schedulers for many at once');

# What happens to the tables is seen at the next look: writes, and what tells no statistics.
foreach my $i (1 .. 3)
{
	my $mode = qw(column sidecar watermark)[ $i % 3 ];

	app($node, "INSERT INTO o$i.src VALUES (11, 'y')", undef, "o$i");
	ok(wait_for($node, 'pending = 1', "j$i"), "$mode: a new row is counted");
	app($node, "INSERT INTO o$i.emb VALUES (11)", undef, "o$i");
	ok(wait_for($node, 'pending = 0', "j$i"), "$mode: its match too");
	app($node, "DELETE FROM o$i.emb WHERE src_id = 3", undef, "o$i");
	if ($mode eq 'watermark')
	{
		app($node, "SELECT bgw_backfill.verify('j$i')", undef, "o$i");
	}
	ok(wait_for($node, 'pending = 1', "j$i"), "$mode: a match that is gone");
	app($node, "INSERT INTO o$i.emb VALUES (3)", undef, "o$i");
	ok(wait_for($node, 'pending = 0', "j$i"), "$mode: and comes again");
	$node->poll_query_until('postgres', "SELECT quiet_scans > 0 FROM bgw_backfill.job_state WHERE job = 'j$i'");
	app($node, "ALTER TABLE o$i.src RENAME org TO tenant", undef, "o$i");
	ok($node->poll_query_until('postgres', "SELECT group_by = 'tenant' AND array_to_string(source_columns, ',') ~ 'tenant' FROM bgw_backfill.job WHERE job = 'j$i'"), "$mode: a renamed column is followed");
	$node->poll_query_until('postgres', "SELECT quiet_scans > 0 FROM bgw_backfill.job_state WHERE job = 'j$i'");
	app($node, "DROP VIEW o$i.j${i}_pending", undef, "o$i");
	ok($node->poll_query_until('postgres', "SELECT to_regclass('o$i.j${i}_pending') IS NOT NULL"), "$mode: a view that is dropped is made again");
	wait_for($node, "phase = 'live' AND pending = 0", "j$i");
	next if $mode eq 'watermark';
	$node->poll_query_until('postgres', "SELECT quiet_scans > 0 FROM bgw_backfill.job_state WHERE job = 'j$i'");
	app($node, "ALTER TABLE o$i.emb DISABLE TRIGGER j${i}_bbf_collect", undef, "o$i");
	ok($node->poll_query_until('postgres', "SELECT tgenabled = 'O' FROM pg_trigger WHERE tgrelid = 'o$i.emb'::regclass AND tgname = 'j${i}_bbf_collect'"),
		"$mode: a disabled trigger is put right");
	wait_for($node, "phase = 'live' AND pending = 0", "j$i");
}
# Who reads is let in and kept out.
$node->poll_query_until('postgres', "SELECT quiet_scans > 0 FROM bgw_backfill.job_state WHERE job = 'j1'");
sql($node, 'CREATE ROLE reader; GRANT SELECT ON o1.src TO reader');
ok($node->poll_query_until('postgres', "SELECT has_table_privilege('reader', 'o1.j1_sidecar', 'SELECT')"), 'a grant on the source is followed');
sql($node, 'REVOKE SELECT ON o1.src FROM reader');
ok($node->poll_query_until('postgres', "SELECT NOT has_table_privilege('reader', 'o1.j1_sidecar', 'SELECT')"), 'and a revoke');
sql($node, 'ALTER TABLE o1.src ENABLE ROW LEVEL SECURITY; CREATE ROLE sees BYPASSRLS; GRANT SELECT ON o1.src TO sees');
ok($node->poll_query_until('postgres', "SELECT has_table_privilege('sees', 'o1.j1_sidecar', 'SELECT')"), 'under row security one that sees all');
$node->poll_query_until('postgres', "SELECT quiet_scans > 0 FROM bgw_backfill.job_state WHERE job = 'j1'");
sql($node, 'GRANT sees TO reader');
ok($node->poll_query_until('postgres', "SELECT NOT has_table_privilege('sees', 'o1.j1_sidecar', 'SELECT')"), 'until he has a member');
# A row that no statistics have counted is found after some looks.
sql($node, "SET track_counts = off; INSERT INTO o2.src VALUES (12, 'z')");
ok(wait_for($node, 'pending = 1', 'j2'), 'a row that no statistics have counted is found as well');
is(sql($node, "SELECT count(*) FROM bgw_backfill.progress WHERE errors > 0 OR state = 'failed'"), '0', 'no error');
no_crash($node);
done_testing();
