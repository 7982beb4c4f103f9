# A source or target is dropped, in mid-fill and live: the job ends clearly, and nothing loops.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('droptable',
	conf => "bgw_backfill.batch_size = 500\nbgw_backfill.batch_sleep = 100ms\nlog_min_messages = debug1");
my $starts = qr/starting background worker process "bgw_backfill worker/;
my $looks = qr/starting background worker process "bgw_backfill scheduler/;

# However often the launcher looks, nothing more is started for the job.
sub is_quiet
{
	my ($what, $job) = @_;
	my $position = log_position($node);
	my $errors = progress($node, 'errors', $job);

	foreach my $pass (1 .. 3)
	{
		my $seen = log_count($node, $looks, $position);
		my $tries = 0;
		$node->reload;
		sql($node, 'SELECT 1') while log_count($node, $looks, $position) == $seen && $tries++ < 500;
	}
	cmp_ok(log_count($node, $looks, $position), '>=', 3, "$what: schedulers have looked");
	is(log_count($node, $starts, $position), 0, "$what: no worker is started");
	is(log_count($node, qr/LOG:  job "$job"/, $position), 0, "$what: the log is quiet");
	return is(progress($node, 'errors', $job), $errors, "$what: no further error");
}

sub untracked
{
	my ($what, $job) = @_;

	is(error_of($node, "SELECT bgw_backfill.untrack('$job')", undef, 'app') =~ /ERROR/ ? 1 : 0, 0, "$what: untrack");
	ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM bgw_backfill.jobs WHERE job = '$job'"), "$what: the job is gone");
	return is(sql($node, "SELECT (SELECT count(*) FROM bgw_backfill.job_state) + (SELECT count(*) FROM bgw_backfill.job_skipped)"
		  . " + (SELECT count(*) FROM bgw_backfill.pending_group)"), '0', "$what: with all that we knew of it");
}

foreach my $when ('in mid-fill', 'live')
{
	foreach my $which ('target', 'source')
	{
		my $what = "$which dropped $when";
		my $job = "events_$which";

		create_pair($node, source => $job, rows => $when eq 'live' ? 1000 : 20_000);
		track($node, source => $job);
		$when eq 'live' ? wait_phase($node, 'live', $job) : wait_batches($node, 3, $job);
		if ($which eq 'target')
		{
			app($node, "SET lock_timeout = 10000; DROP TABLE ${job}_emb");
			# Live, the next pending scan looks at the installation; a change of the job brings it about.
			app($node, "SELECT bgw_backfill.verify('$job')") if $when eq 'live';
			ok(wait_for($node, "state = 'failed'", $job), "$what: the job fails");
			like(progress($node, 'last_error', $job), qr/target.*does not exist/, "$what: and says why");
		}
		else
		{
			like(error_of($node, "DROP TABLE $job, ${job}_emb", undef, 'app'), qr/${job}_pending depends on table $job/,
				"$what: the view stands in the way");
			app($node, "SET lock_timeout = 10000; DROP TABLE $job, ${job}_emb CASCADE");
			app($node, "SELECT bgw_backfill.verify('$job')") if $when eq 'live';
			ok(wait_for($node, "state = 'failed'", $job), "$what: the job fails");
			like(progress($node, 'last_error', $job), qr/source.*does not exist.*bgw_backfill\.untrack\('$job'\)/, "$what: and says what to do");
		}
		is_quiet($what, $job);
		like(error_of($node, "SELECT bgw_backfill.resume('$job')", undef, 'app'),
			qr/$which table of job "$job" does not exist.*HINT:  Use bgw_backfill.untrack\('$job'\)/s, "$what: resume refuses, with a hint");
		untracked($what, $job);
		if ($which eq 'target')
		{
			is(sql($node, "SELECT to_regclass('${job}_pending') IS NULL"), 't', "$what: the view is gone");
			is(sql($node, "SELECT count(*) FROM pg_trigger WHERE tgrelid = '$job'::regclass AND NOT tgisinternal"), '0', "$what: and the triggers");
			app($node, "DROP TABLE $job");
		}
	}
}

# Dropped while an old transaction holds up the index build: the drop waits for the build, as for any, and both end.
create_pair($node, rows => 1000);
my $session = old_snapshot($node);
track($node);
ok(waits_for_snapshot($node), 'the index build waits for an old transaction');
like(error_of($node, "SET lock_timeout = '200 ms'; DROP TABLE events CASCADE", undef, 'app'), qr/lock timeout/, 'DROP TABLE waits for it');
app($node, "SELECT bgw_backfill.pause('events')");
is(error_of($node, "SET lock_timeout = '10 s'; DROP TABLE events CASCADE", undef, 'app') =~ /ERROR/ ? 1 : 0, 0, 'not after pause');
$session->query_safe('COMMIT');
$session->quit;
untracked('dropped in an index build', 'events');
no_crash($node);
done_testing();
