# batch_sleep is each job's own, whatever else goes on in its database.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('pacing', conf => "bgw_backfill.batch_size = 50\nbgw_backfill.batch_sleep = 1s");
create_pair($node, source => 'slow', rows => 5000);
create_pair($node, source => 'fast', rows => 10_000);
create_pair($node, source => 'other', rows => 500);
history_begin($node);

# No more batches than pauses allow, and one each for the first batch and for each change that cuts a pause short.
sub paced
{
	my ($what, $allowed) = @_;

	return is(sql($node, <<"SQL"), 't', $what);
SELECT count(*) - 1 <= extract(epoch FROM max(at) - min(at)) + $allowed
FROM (SELECT at, batches > lag(batches) OVER (ORDER BY seq) AS batch FROM history WHERE job = 'slow' AND phase = 'fill') x WHERE batch
SQL
}

track($node, source => 'slow');
wait_batches($node, 2, 'slow');
app($node, <<'SQL');
BEGIN;
SELECT bgw_backfill.track('fast', 'fast_emb', group_by => 'org');
SELECT bgw_backfill.configure('fast', 'batch_sleep', '0');
COMMIT;
SQL
ok(wait_phase($node, 'live', 'fast'), 'a job of the same owner without a pause is done');
is(progress($node, 'phase', 'slow'), 'fill', 'the one with pauses is not');
cmp_ok(progress($node, 'batches', 'slow'), '<', 40, 'nor anywhere near');
paced('batch_sleep was kept beside a job without one', 4);

# Longer than a worker stays: somebody else's wake-up is no reason to go on.
app($node, "SELECT bgw_backfill.configure('slow', 'batch_sleep', '1 h')");
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM bgw_backfill.worker_status() WHERE job = 'slow'"), 'its worker leaves');
my $batches = progress($node, 'batches', 'slow');
app($node, "SELECT bgw_backfill.track('other', 'other_emb', group_by => 'org')");
wait_phase($node, 'live', 'other');
app($node, "SELECT bgw_backfill.configure('other', 'scan_interval', '1 s')");
my $scans = sql($node, "SELECT scans FROM bgw_backfill.job_state WHERE job = 'other'");
ok($node->poll_query_until('postgres', "SELECT scans >= $scans + 3 FROM bgw_backfill.job_state WHERE job = 'other'"), 'another job is scanned');
cmp_ok(progress($node, 'batches', 'slow') - $batches, '<=', 3, 'a pause of an hour is kept beside it');

# But a change of the job itself cuts it short.
app($node, "SELECT bgw_backfill.configure('slow', 'batch_sleep', '0')");
ok(wait_phase($node, 'live', 'slow'), 'another batch_sleep takes effect at once');
foreach my $source ('slow', 'fast', 'other')
{
	job_exact($node, $source, source => $source, where => $source eq 'slow' ? "s.body <> ''" : 'true');
}
no_crash($node);
done_testing();
