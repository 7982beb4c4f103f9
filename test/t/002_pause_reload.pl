# pause and resume, in mid-fill and in an index build; settings from a reload.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('pause', conf => "bgw_backfill.batch_size = 500\nbgw_backfill.batch_sleep = 200ms");
my ($rows, $pending) = create_pair($node);
history_begin($node);

# pause in mid-fill: its worker leaves, and nothing brings the job on.
track($node);
wait_batches($node, 4);
app($node, "SELECT bgw_backfill.pause('events')");
ok(no_worker($node), 'the worker of the only job leaves after pause');
my $paused = progress($node, 'state, phase, rows_done, waiting_for IS NULL');
like($paused, qr/^paused\|fill\|\d+\|t$/, 'state paused, in phase fill');
like(error_of($node, "CALL bgw_backfill.wait('events', timeout => '200 ms')", undef, 'app'),
	qr/job "events" did not reach phase "live" in time/, 'wait() waits on while paused');
my $waiting = $node->background_psql('postgres', on_error_stop => 0);
$waiting->query_until(qr/calling/, "\\echo calling\nCALL bgw_backfill.wait('events');\n\\echo returned\n");
create_pair($node, source => 'other', rows => 1000);
track($node, source => 'other');
ok(wait_phase($node, 'live', 'other'), 'another job of the same owner comes and is done');
is(progress($node, 'state, phase, rows_done, waiting_for IS NULL'), $paused, 'no progress while paused');
is(sql($node, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CALL%' AND state = 'active'"),
	'1', 'wait() has not returned');
app($node, "SELECT bgw_backfill.resume('events')");
ok(wait_for($node, 'rows_done > ' . (split /\|/, $paused)[2]), 'resume goes on where it was');

# A reload takes effect at the next batch, a bad value not at all.
wait_batches($node, 8);
settings($node, batch_size => 200);
ok($node->poll_query_until('postgres', <<'SQL'), 'a reload of batch_size takes effect at the next batch');
SELECT EXISTS (SELECT FROM (SELECT rows_done - lag(rows_done) OVER (ORDER BY seq) AS n FROM history
	WHERE job = 'events' AND phase = 'fill') x WHERE n = 200)
SQL
my $position = log_position($node);
$node->append_conf('postgresql.auto.conf', "bgw_backfill.batch_size = 0");
$node->reload;
ok($node->poll_query_until('postgres', <<'SQL'), 'a bad value is seen');
SELECT error IS NOT NULL FROM pg_file_settings WHERE name = 'bgw_backfill.batch_size' ORDER BY seqno DESC LIMIT 1
SQL
my $done = progress($node, 'rows_done');
ok(wait_for($node, "rows_done > $done + 400"), 'the job goes on');
is(sql($node, 'SHOW bgw_backfill.batch_size'), '200', 'the old value stays');
like(log_since($node, $position), qr/0 is outside the valid range for parameter "bgw_backfill.batch_size"/, 'the log says so');
is(progress($node, 'batch_size'), '200', 'the view says the same');
sql($node, 'ALTER SYSTEM RESET bgw_backfill.batch_size');

# A job's own value, from the next batch on too.
app($node, "SELECT bgw_backfill.configure('events', 'batch_size', '150')");
ok($node->poll_query_until('postgres', <<'SQL'), 'configure() takes effect at the next batch');
SELECT EXISTS (SELECT FROM (SELECT rows_done - lag(rows_done) OVER (ORDER BY seq) AS n FROM history
	WHERE job = 'events' AND phase = 'fill') x WHERE n = 150)
SQL
app($node, "SELECT bgw_backfill.configure('events', 'batch_size', NULL)");

# enabled = off stops every worker; on brings them back.
settings($node, enabled => 'off');
ok(no_worker($node), 'enabled = off stops the worker');
$done = progress($node, 'phase, rows_done');
like($done, qr/^fill/, 'in mid-fill');
is(progress($node, 'waiting_for'), 'bgw_backfill.enabled', 'the view says what the job waits for');
app($node, "SELECT bgw_backfill.configure('events', 'batch_size', '400')");
is(progress($node, 'phase, rows_done'), $done, 'a change of the job brings no worker');
my $session = old_snapshot($node);
settings($node, enabled => 'on', batch_sleep => 0);
ok(wait_phase($node, 'index'), 'on brings it back');

# pause in an index build that waits for an old transaction.
ok(waits_for_snapshot($node), 'the index build waits for an old transaction');
app($node, q{DO $$ BEGIN PERFORM bgw_backfill.pause('events'); RAISE 'undone'; EXCEPTION WHEN raise_exception THEN NULL; END $$});
ok(waits_for_snapshot($node), 'a pause that is rolled back to a savepoint cancels nothing');
app($node, "SELECT bgw_backfill.pause('events')");
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_progress_create_index'),
	'pause cancels the build');
is(progress($node, 'state, phase, errors'), 'paused|index|0', 'state paused, in phase index, no error counted, by neither pause');
is($session->query_safe('SELECT 2'), '2', 'the old transaction is still there');
app($node, "SELECT bgw_backfill.resume('events')");
ok($node->poll_query_until('postgres', <<'SQL'), 'resume begins the build anew');
SELECT EXISTS (SELECT FROM pg_stat_progress_create_index) OR EXISTS (SELECT FROM pg_stat_activity
	WHERE backend_type = 'bgw_backfill worker' AND query LIKE 'DROP INDEX CONCURRENTLY%')
SQL
$session->query_safe('COMMIT');
$session->quit;
$waiting->query_until(qr/returned/, "\\echo and more\n");
pass('wait() returns');
$waiting->quit;
is(progress($node, 'phase'), 'live', 'live in the end');
is(sql($node, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'events_pending_idx'::regclass"), 't', 'the index is valid');
history_is_sound($node, 'pause and reload', $rows, $pending);
job_exact($node, 'pause and reload');

# For the record only: how long from track() to the first batch.
create_pair($node, source => 'third', rows => 1000);
track($node, source => 'third');
wait_phase($node, 'live', 'third');
note('from track() to the first batch: '
	  . sql($node, <<'SQL') . ' ms');
SELECT round(extract(epoch FROM s.fill_started_at - j.created_at) * 1000)
FROM bgw_backfill.job j JOIN bgw_backfill.job_state s USING (job) WHERE job = 'third'
SQL

no_crash($node);
done_testing();
