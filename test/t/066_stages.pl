# A pending scan and what follows it: each stage has its own outcome, a round of scans and the rounds of a handler that
# is answered go on without waiting for the interval. Each scan is asked for by the test.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('stages', conf => "bgw_backfill.scan_interval = 7d\nbgw_backfill.batch_sleep = 0\nbgw_backfill.max_leased = 1000000");

app($node, <<'SQL');
CREATE TABLE calls (id bigserial PRIMARY KEY, org text, keys bigint[], token bigint);
CREATE TABLE mode (what text);
INSERT INTO mode VALUES ('notes');
CREATE FUNCTION work(job text, org text, k bigint[], t bigint) RETURNS void LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
	what text := (SELECT m.what FROM mode m);
BEGIN
	INSERT INTO calls (org, keys, token) VALUES (org, k, t);
	IF what = 'answers' THEN
		INSERT INTO events_emb SELECT unnest(k);
	ELSIF what = 'releases' THEN
		PERFORM bgw_backfill.release(job, k::text[], t);
	END IF;
END
$$;
SQL
create_pair($node, rows => 3000);
app($node, "SELECT bgw_backfill.track('events', 'events_emb', mode => 'sidecar', source_key => 'id', target_key => 'event_id',
	group_by => 'org', handler => 'work(text, text, bigint[], bigint)')");
wait_for($node, 'pending IS NOT NULL AND worker_pid IS NULL');

sub calls { return sql($node, 'SELECT count(*) FROM calls'); }

# Sweeps and scans that are asked for while somebody has a lock that one stage wants.
sub scan_against
{
	my ($lock) = @_;
	my $holder = $node->background_psql('postgres', on_error_stop => 0);

	$holder->query_safe("BEGIN; LOCK TABLE $lock");
	my $before = sql($node, 'SELECT coalesce(part_at, scan_at) FROM bgw_backfill.job_state');
	sql($node, "UPDATE bgw_backfill.job_state SET scan_at = scan_at - interval '8 days'");
	sql($node, 'UPDATE bgw_backfill.job SET paused = paused');
	local $PostgreSQL::Test::Utils::timeout_default = 30;
	my $ok = $node->poll_query_until('postgres', "SELECT cut_short IS NOT NULL AND worker_pid IS NULL FROM bgw_backfill.progress");
	diag(sql($node, 'SELECT * FROM bgw_backfill.progress')) unless $ok;
	$holder->query_safe('ROLLBACK');
	$holder->quit;
	return progress($node, 'cut_short, scans_skipped, errors');
}

# What a lock keeps waiting, and what runs out of time.
foreach my $case (
	[ 'a lock', "'lock_timeout', '50ms'", 'canceling statement due to lock timeout' ],
	[ 'the time', "'statement_timeout', '100ms'", 'canceling statement due to user request' ])
{
	my ($what, $setting, $message) = @$case;

	app($node, "SELECT bgw_backfill.configure('events', 'lock_timeout', '1min'), bgw_backfill.configure('events', $setting)");
	sql($node, 'INSERT INTO events_sidecar SELECT e.id, e.org FROM events e JOIN events_emb ON event_id = e.id ORDER BY 1 LIMIT 1; DELETE FROM bgw_backfill.claim');
	my $calls = calls();
	my $skipped = progress($node, 'scans_skipped');
	is(scan_against('events_sidecar IN EXCLUSIVE MODE'), "prune|$skipped|0", "$what: the prune is cut short, which is no error");
	ok(calls() > $calls, "$what: the handler has its calls all the same");
	ok(log_count($node, qr/job "events": pruning was cut short: /) > 0, "$what: the log says so");
	ok(sql($node, 'SELECT batch_size BETWEEN 1 AND 9999 FROM bgw_backfill.job_state') eq ($what eq 'the time' ? 't' : 'f'),
		"$what: batches are smaller after they ran out of time");
	app($node, 'UPDATE mode SET what = $$notes$$; DELETE FROM calls');
	sql($node, 'DELETE FROM bgw_backfill.claim');
	scan($node);
	is(progress($node, 'cut_short, scans_skipped, errors'), "|$skipped|0", "$what: forgotten when all goes well");
	app($node, "SELECT bgw_backfill.configure('events', 'lock_timeout', NULL), bgw_backfill.configure('events', 'statement_timeout', NULL)");
	sql($node, 'DELETE FROM bgw_backfill.claim; UPDATE bgw_backfill.job_state SET batch_size = 0');
	scan($node);
}

# The scan itself: what follows it has its turn.
app($node, "SELECT bgw_backfill.configure('events', 'scan_timeout', '100ms'), bgw_backfill.configure('events', 'lock_timeout', '1min')");
sql($node, 'DELETE FROM bgw_backfill.claim; DELETE FROM calls');
my $listener = $node->background_psql('postgres');
$listener->query_safe('LISTEN bgw_backfill');
like(scan_against('bgw_backfill.pending_group IN SHARE MODE'), qr/^scan\|1\|0$/, 'a scan that runs out of time is skipped, counted and shown');
ok(calls() > 0, 'the handler has its calls');
like($listener->query('SELECT 1'), qr/Asynchronous notification "bgw_backfill" with payload "events"/, 'who listens is told');
$listener->quit;
app($node, "SELECT bgw_backfill.configure('events', 'scan_timeout', NULL), bgw_backfill.configure('events', 'lock_timeout', NULL)");

# A handler that answers is called until all is done; one that gives everything back, or does nothing, once for a scan.
sub asked
{
	my ($what) = @_;

	sql($node, "DELETE FROM bgw_backfill.claim; DELETE FROM bgw_backfill.attempt; DELETE FROM calls; UPDATE mode SET what = '$what'");
	scan($node);
	return calls();
}
app($node, "SELECT bgw_backfill.configure('events', 'handoff_rows', '10'), bgw_backfill.configure('events', 'handoff_groups', '4')");
is(asked('notes'), 4, 'without an answer a scan is followed by one round of calls');
is(sql($node, 'SELECT handoff_at IS NULL FROM bgw_backfill.job_state'), 't', 'and no other is due');
is(asked('releases'), 4, 'nor is what is given back an answer');
is(asked('fails') > 0 ? sql($node, 'SELECT handoff_at IS NULL FROM bgw_backfill.job_state') : 'no call', 't', 'nor is a call alone');
my $lacking = sql($node, 'SELECT count(*) FROM events_pending');
asked('answers');
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM events_pending'), "rounds go on until all $lacking rows are answered");
ok($node->poll_query_until('postgres', 'SELECT handoff_at IS NULL FROM bgw_backfill.job_state'), 'then no other is due');
ok(calls() >= $lacking / 10, 'each call had ten rows at most');

# A round of scans: many groups, in parts that do not wait for the interval.
app($node, "SELECT bgw_backfill.configure('events', 'handler', NULL); DELETE FROM events_emb; DELETE FROM events;
	INSERT INTO events (id, org, body) SELECT i, 'org-' || i / 2, 'x' FROM generate_series(1, 100000) i; ANALYZE events");
foreach my $mode (qw(sidecar column watermark))
{
	if ($mode ne 'sidecar')
	{
		app($node, "SELECT bgw_backfill.configure('events', 'mode', '$mode')");
		wait_for($node, "mode = '$mode' AND rebuilding IS NULL AND phase = 'live'");
		sql($node, 'UPDATE bgw_backfill.job_state SET rounded_at = NULL, scan_group = NULL');
	}
	# as autovacuum would by and by
	sql($node, 'VACUUM ANALYZE events' . ($mode eq 'column' ? '' : ', events_sidecar'));
	my $parts = $node->background_psql('postgres', on_error_stop => 0);
	$parts->query_safe(<<'SQL');
CREATE TABLE parts (pending bigint, capped boolean, estimate bigint, percent integer);
CREATE FUNCTION note_part() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.parts SELECT pending, pending_capped, pending_estimate, round_percent FROM bgw_backfill.progress;
	RETURN NULL;
END $$;
CREATE TRIGGER note_part AFTER UPDATE OF part_at ON bgw_backfill.job_state FOR EACH ROW EXECUTE FUNCTION note_part();
UPDATE bgw_backfill.job_state SET rounded_at = NULL, pending = NULL, scan_at = scan_at - interval '8 days', pass_at = pass_at - interval '8 days';
UPDATE bgw_backfill.job SET paused = paused;
SQL
	ok(wait_for($node, 'pending = 100000 AND NOT pending_capped AND round_percent = 100'), "$mode: a round goes on to its end");
	is(sql($node, 'SELECT count(*), sum(pending), count(*) FILTER (WHERE NOT capped AND pending = 2) FROM bgw_backfill.pending_groups'),
		'50001|100000|49999', "$mode: and has seen every group");
	is(sql($node, 'SELECT count(*) > 1, bool_and(capped OR percent = 100), bool_and(percent BETWEEN 1 AND 99 OR NOT capped) FROM parts'),
		't|t|t', "$mode: in parts, which show that they are");
	is(sql($node, 'SELECT coalesce(string_agg(estimate::text, $$,$$) FILTER (WHERE NOT estimate BETWEEN 90000 AND 110000), $$t$$) FROM parts'), 't', "$mode: how much is pending was known about all the while");
	is(progress($node, 'pending_estimate'), '100000', "$mode: and is known at the end");
	$parts->query_safe('DROP TRIGGER note_part ON bgw_backfill.job_state; DROP FUNCTION note_part(); DROP TABLE parts');
	$parts->quit;
}

# A scan in which most of what it reads has got its match reads no more than others.
app($node, 'INSERT INTO events_emb SELECT id FROM events WHERE id <= 99000');
scan($node);
wait_for($node, 'round_percent = 100');
is(progress($node, 'pending'), '1000', 'watermark: matched rows are not counted');
is(progress($node, 'errors'), '0', 'no error in all that');
no_crash($node);
done_testing();
