# Another model: what counts as a match of a live job changes. Rows become pending again while the job stays live, readers
# read, writers write the old model's rows and the new one's; what is pending in the end is the truth of the new condition.
use strict;
use warnings;
use BbfTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('model',
	conf => "bgw_backfill.retry_delay = 10ms\nbgw_backfill.scan_interval = 1s\nbgw_backfill.batch_sleep = 0\n"
	  . 'bgw_backfill.max_leased = 100000');

sub configure
{
	my ($job, $setting, $value) = @_;

	return error_of($node, "SELECT bgw_backfill.configure('$job', '$setting', " . (defined $value ? "\$x\$$value\$x\$" : 'NULL') . ')',
		undef, 'app');
}

# The view is the truth, in both directions.
sub exact
{
	my ($job, $match, $what, $where) = @_;
	$where //= "body <> ''";
	my $truth = "SELECT id, org FROM $job s WHERE $where AND NOT EXISTS (SELECT FROM ${job}_emb WHERE event_id = s.id AND $match)";

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(sql($node, "SELECT (SELECT count(*) FROM ($truth EXCEPT ALL TABLE ${job}_pending) x), (SELECT count(*) FROM (TABLE ${job}_pending EXCEPT ALL $truth) x)"),
		'0|0', $what);
}

# Wait until the conditions hold everywhere.
sub refilled
{
	my ($job) = @_;

	return wait_for($node, 'rebuilding IS NULL', $job);
}

# Wait until a whole scan has been made, with the pass before it and the pruning after it: another one has begun.
sub scanned
{
	my ($job) = @_;
	my $scans = sql($node, "SELECT scans FROM bgw_backfill.job_state WHERE job = '$job'");

	return $node->poll_query_until('postgres', "SELECT scans > $scans + 1 FROM bgw_backfill.job_state WHERE job = '$job'");
}

# Readers: in snapshots of their own, phase and view, as long as there is no row in stop. They note the phases, how long the
# slowest look took, and rows they saw that had a target row of the new model, written when it counted already.
# A writer: rows of both models for pending ones, and new source rows.
sub load
{
	my ($job, $mode) = @_;
	# a stale row out of an overlap of transactions stays in a sidecar until it is pruned
	my $late = $mode eq 'sidecar' ? '5 s' : '0 s';
	my @runs;

	app($node, "DROP TABLE IF EXISTS stop, phases; CREATE TABLE stop (); CREATE TABLE phases (phase text, ms float, reads bigint, wrong bigint);
		CREATE TABLE IF NOT EXISTS effective (at timestamptz)");
	my $loop = sub {
		my ($declare, $body, $end) = @_;
		return "DO \$\$ DECLARE turn bigint := 0; $declare BEGIN LOOP $body COMMIT; turn := turn + 1; EXIT WHEN EXISTS (SELECT FROM stop);"
		  . " COMMIT; PERFORM pg_sleep(0.002); END LOOP; $end END \$\$";
	};
	my $read = $loop->(
		'p text; seen text[] := \'{}\'; t timestamptz; slowest float := 0; wrong bigint := 0;',
		"t := clock_timestamp();"
		  . " SELECT phase INTO p FROM bgw_backfill.progress WHERE job = '$job';"
		  . " PERFORM count(*) FROM ${job}_pending; PERFORM id FROM ${job}_pending WHERE org = 'org-2' ORDER BY id LIMIT 10;"
		  . " slowest := greatest(slowest, extract(epoch FROM clock_timestamp() - t) * 1000);"
		  . " wrong := greatest(wrong, (SELECT count(*) FROM ${job}_pending p, ${job}_emb m, effective e WHERE m.event_id = p.id"
		  . "  AND m.model = 'm2' AND m.at BETWEEN e.at AND t - interval '$late'));"
		  . " IF p <> ALL (seen) THEN seen := seen || p; END IF;",
		'INSERT INTO phases VALUES (array_to_string(seen, \' \'), slowest, turn, wrong);');
	my $write = $loop->(
		'',
		"INSERT INTO ${job}_emb (event_id, model) SELECT id, CASE WHEN turn % 2 = 0 THEN 'm1' ELSE 'm2' END FROM"
		  . " (SELECT id FROM $job WHERE id > turn * 7 % 18000 ORDER BY id LIMIT 3) x ON CONFLICT DO NOTHING;"
		  . " INSERT INTO $job (id, org, body) VALUES ((SELECT max(id) FROM $job) + 1, 'org-' || turn % 7, 'new');"
		  . " DELETE FROM ${job}_emb WHERE event_id = (SELECT max(event_id) - turn % 50 FROM ${job}_emb WHERE event_id < 900000) AND model = 'm2';",
		'');
	foreach my $sql ($read, $read, $write)
	{
		my $out = '';
		local $ENV{PGOPTIONS} = '-c default_transaction_isolation=' . ($sql eq $read ? 'repeatable\\ read' : 'read\\ committed');
		push @runs, { out => \$out,
			run => IPC::Run::start([ 'psql', '-XAtq', '-U', 'app', '-d', $node->connstr('postgres'), '-c', $sql ], '<', \undef, '>&', \$out) };
	}
	return @runs;
}

sub unload
{
	my ($job, $mode, @runs) = @_;

	app($node, 'INSERT INTO stop DEFAULT VALUES');
	IPC::Run::finish($_->{run}) foreach @runs;
	is(join('', map { ${ $_->{out} } } @runs), '', "$mode: no reader or writer met an error");
	is(sql($node, "SELECT DISTINCT phase FROM phases"), 'live', "$mode: readers saw the job live all the time");
	is(sql($node, 'SELECT max(wrong) FROM phases'), '0', "$mode: no row was shown that had the new model's target row");
	my $slowest = sql($node, 'SELECT max(ms) FROM phases');
	cmp_ok($slowest, '<', 2000, "$mode: no reader stood still");
	note("$mode: slowest read $slowest ms of " . sql($node, 'SELECT sum(reads) FROM phases'));
	return;
}

sub change
{
	my ($mode) = @_;
	my $job = "e_$mode";

	create_pair($node, source => $job, rows => 5000);
	app($node, <<"SQL");
ALTER TABLE ${job}_emb DROP CONSTRAINT ${job}_emb_pkey, ADD model text NOT NULL DEFAULT 'm1', ADD PRIMARY KEY (event_id, model), ADD at timestamptz NOT NULL DEFAULT clock_timestamp();
DROP TABLE IF EXISTS effective;
CREATE INDEX ON ${job}_emb (event_id);
SELECT bgw_backfill.track('$job', '${job}_emb', mode => '$mode', source_key => 'id', target_key => 'event_id',
	pending_where => \$\$body <> ''\$\$, match_where => \$\$model = 'm1'\$\$, group_by => 'org');
SQL
	wait_phase($node, 'live', $job);
	exact($job, "model = 'm1'", "$mode: the old model");
	my $old = sql($node, "SELECT count(*) FROM ${job}_emb WHERE model = 'm1'");

	# what is refused changes nothing
	my $state = "SELECT match_where, pending_where, changing FROM bgw_backfill.job WHERE job = '$job'";
	my $before = sql($node, $state);
	like(configure($job, 'match_where', $_), qr/ERROR/, "$mode: refused: $_")
	  foreach ('nothing = 1', 'model = ', "model = 'm2') OR (true", 'random() > 0.5', '(SELECT true)', 'sum(event_id) > 1', '42');
	is(sql($node, $state), $before, "$mode: which changes nothing");

	# small batches, so that there is a middle
	app($node, "SELECT bgw_backfill.configure('$job', 'batch_size', '200'), bgw_backfill.configure('$job', 'batch_sleep', '20ms')");
	my @runs = load($job, $mode);
	is(configure($job, 'match_where', "model = 'm2'"), '', "$mode: another model");
	ok(wait_for($node, "rebuilding ~ 'refill, [1-9]'", $job), "$mode: progress shows the refill");
	app($node, 'INSERT INTO effective VALUES (clock_timestamp())');

	# killed in the middle of it
	my ($pid) = workers($node);
	my $rows = sql($node, "SELECT sweep_rows FROM bgw_backfill.job_state WHERE job = '$job'");
	kill('KILL', $pid);
	unload_after_crash(@runs);
	ok(wait_for($node, 'rebuilding IS NOT NULL', $job), "$mode: killed in mid-refill");
	cmp_ok(sql($node, "SELECT sweep_rows FROM bgw_backfill.job_state WHERE job = '$job'"), '>=', $rows, "$mode: it goes on where it was");
	@runs = load($job, $mode);
	ok(refilled($job), "$mode: and comes to its end");
	unload($job, $mode, @runs);
	scanned($job);
	exact($job, "model = 'm2'", "$mode: pending is what lacks the new model");
	cmp_ok(sql($node, "SELECT count(*) FROM ${job}_emb WHERE model = 'm1'"), '>=', $old, "$mode: the old rows are still there");
	my $coverage = progress($node, 'coverage', $job);
	cmp_ok($coverage, '<', 50, "$mode: little is covered");

	# consumers catch up
	app($node, "SELECT bgw_backfill.configure('$job', 'batch_size', NULL), bgw_backfill.configure('$job', 'batch_sleep', NULL)");
	my $covered = sub {
		my $at = sql($node, 'SELECT clock_timestamp()');
		app($node, "SELECT bgw_backfill.verify('$job')");
		wait_for($node, "verified_at > '$at'", $job);
		return progress($node, 'coverage', $job);
	};
	my $embed = "INSERT INTO ${job}_emb (event_id, model) SELECT key::bigint, 'm2' FROM bgw_backfill.claim('$job', %d)";
	app($node, sprintf($embed, 2500));
	my $half = $covered->();
	ok($half > $coverage && $half < 100, "$mode: coverage rises: $coverage, $half");
	app($node, sprintf($embed, 50000));
	is($covered->() + 0, 100, "$mode: to 100");
	is(sql($node, "SELECT count(*) FROM ${job}_pending"), '0', "$mode: nothing is pending");

	# a second change while the first one is under way; and back to any model
	app($node, "SELECT bgw_backfill.configure('$job', 'batch_size', '300'), bgw_backfill.configure('$job', 'batch_sleep', '20ms')");
	is(configure($job, 'match_where', "model = 'm3'"), '', "$mode: a third model");
	ok(wait_for($node, "rebuilding ~ 'refill'", $job), "$mode: its refill is under way");
	like(configure($job, 'pending_where', 'n = 1'), qr/cannot be changed/, "$mode: pending_where is the index's") if $mode eq 'column';
	is(configure($job, 'match_where', "model = 'm1'"), '', "$mode: back to the first one");
	ok(refilled($job), "$mode: one refill for both");
	exact($job, "model = 'm1'", "$mode: pending is what lacks the first model");
	is(configure($job, 'match_where', undef), '', "$mode: any model");
	ok(refilled($job), "$mode: is a refill, too");
	exact($job, 'true', "$mode: pending is what lacks any");
	is(sql($node, "SELECT match_where IS NULL FROM bgw_backfill.jobs WHERE job = '$job'"), 't', "$mode: so the configuration says");

	if ($mode ne 'column')
	{
		is(configure($job, 'pending_where', "org = 'org-1'"), '', "$mode: other rows count");
		ok(refilled($job), "$mode: which is a refill");
		exact($job, 'true', "$mode: fewer rows are pending", "org = 'org-1'");
		is(configure($job, 'pending_where', undef), '', "$mode: all rows count");
		ok(refilled($job), "$mode: which is a refill");
		exact($job, 'true', "$mode: more rows are pending", 'true');
	}

	# not while the job moves
	app($node, "SELECT bgw_backfill.configure('$job', 'batch_size', '100'), bgw_backfill.configure('$job', 'batch_sleep', '1s'),
		bgw_backfill.configure('$job', 'mode', '" . ($mode eq 'column' ? 'sidecar' : 'column') . "')");
	like(configure($job, 'match_where', "model = 'm2'"), qr/is being moved to another mode/, "$mode: no change during a move");
	app($node, "SELECT bgw_backfill.configure('$job', 'mode', '$mode')");
	ok(wait_for($node, 'rebuilding IS NULL', $job), "$mode: the move is given up");
	# how far it is
	is(configure($job, 'match_where', "model = 'm1'"), '', "$mode: a slow change");
	ok(wait_for($node, "substring(rebuilding from 'conditions: refill, (.*) %')::int BETWEEN 1 AND 60", $job), "$mode: shows how far the refill is");
	app($node, "SELECT bgw_backfill.untrack('$job')");
	return;
}

# Their sessions have ended with the server's.
sub unload_after_crash
{
	eval { IPC::Run::finish($_->{run}) } foreach @_;
	$node->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()');
	return;
}

change($_) foreach qw(column sidecar watermark);
no_crash($node);
done_testing();
