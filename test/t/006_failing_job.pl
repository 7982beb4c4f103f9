# A job that cannot go on ends in state failed, and costs nothing there.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('failing',
	conf => "bgw_backfill.batch_size = 500\nbgw_backfill.batch_sleep = 50ms\nlog_min_messages = debug1");
my ($rows, $pending) = create_pair($node);
history_begin($node);
my $starts = qr/starting background worker process "bgw_backfill worker/;
my $looks = qr/starting background worker process "bgw_backfill scheduler/;

app($node, <<'SQL');
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.id > 20000 THEN RAISE 'no updates of %', NEW.id USING HINT = 'Ask me.'; END IF;
	RETURN NEW;
END
$$;
CREATE TRIGGER refuse AFTER UPDATE ON events FOR EACH ROW EXECUTE FUNCTION refuse();
SQL
track($node);
ok(wait_for($node, "state = 'failed'"), 'the job fails');
like(progress($node, 'last_error'), qr/^no updates of 20\d\d\d.*Ask me\./, 'with its error');
is(progress($node, 'errors, phase, worker_pid IS NULL'), '5|fill|t', 'after a few tries, in phase fill, without a worker');
like(error_of($node, "CALL bgw_backfill.wait('events')", undef, 'app'),
	qr/job "events" is failed.*no updates of.*bgw_backfill\.resume/s, 'wait() ends with that error');

# However often the launcher looks, nothing is started for it.
my $position = log_position($node);
foreach my $pass (1 .. 4)
{
	my $seen = log_count($node, $looks);
	$node->reload;
	my $n = 0;
	$node->poll_query_until('postgres', 'SELECT true') while log_count($node, $looks) == $seen && $n++ < 1000;
}
cmp_ok(log_count($node, $looks, $position), '>=', 3, 'schedulers have looked');
is(log_count($node, $starts, $position), 0, 'and started no worker');

# Nor while another job of the same owner keeps a worker coming.
create_pair($node, source => 'other', rows => 500);
track($node, source => 'other');
wait_phase($node, 'live', 'other');
app($node, "SELECT bgw_backfill.configure('other', 'scan_interval', '1 s')");
my $scans = sql($node, "SELECT scans FROM bgw_backfill.job_state WHERE job = 'other'");
ok($node->poll_query_until('postgres', "SELECT scans >= $scans + 3 FROM bgw_backfill.job_state WHERE job = 'other'"),
	'another job is scanned three times');
is(progress($node, 'errors, state'), '5|failed', 'no further try');
is(log_count($node, qr/LOG:  job "events":/), 5, 'and no further line in the log');
app($node, "SELECT bgw_backfill.untrack('other')");
$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM bgw_backfill.jobs WHERE job = 'other'");

# resume while nothing has changed: it fails again, the work done before is kept.
my $done = progress($node, 'rows_done');
cmp_ok($done, '>', 0, 'rows before the failing one are done');
app($node, "SELECT bgw_backfill.resume('events')");
ok(wait_for($node, "state = 'failed' AND errors > 5"), 'resumed without a change it fails again');
is(progress($node, 'rows_done'), $done, 'what was done stays done');

# resume once the cause is gone.
app($node, "DROP TRIGGER refuse ON events; SELECT bgw_backfill.resume('events')");
ok(wait_phase($node, 'live'), 'resume goes on once the trigger is gone');
history_is_sound($node, 'failed and resumed', $rows, $pending);
job_exact($node, 'failed and resumed');

# A trigger that suppresses the write is found as well.
app($node, <<'SQL');
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER swallow BEFORE UPDATE ON events FOR EACH ROW EXECUTE FUNCTION swallow();
DELETE FROM events_emb WHERE event_id % 100 = 1;
SELECT bgw_backfill.verify('events');
SQL
ok(wait_for($node, "state = 'failed'"), 'a sweep fails when its writes are suppressed');
like(progress($node, 'last_error'), qr/an update of table .*events.* was suppressed.*BEFORE UPDATE trigger/, 'and says so');
my $verified_at = progress($node, 'verified_at');
app($node, "DROP TRIGGER swallow ON events; SELECT bgw_backfill.resume('events')");
ok(wait_for($node, "state <> 'failed' AND phase = 'live' AND verified_at > '$verified_at'"), 'resume sweeps again');
job_exact($node, 'suppressed');

# untrack of a failed job.
app($node, "CREATE TRIGGER refuse AFTER UPDATE ON events FOR EACH ROW EXECUTE FUNCTION refuse()");
sql($node, "UPDATE bgw_backfill.job_state SET health = 'failed' WHERE job = 'events'");
app($node, "SELECT bgw_backfill.untrack('events')");
ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM bgw_backfill.jobs'), 'a failed job can be untracked');
is(sql($node, <<'SQL'), '0|1|0|', 'and leaves nothing');
SELECT (SELECT count(*) FROM pg_attribute WHERE attrelid = 'events'::regclass AND attname = 'has_embedding'),
	(SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('events'::regclass, 'events_emb'::regclass) AND NOT tgisinternal),
	(SELECT count(*) FROM bgw_backfill.job_state), to_regclass('events_pending')
SQL
no_crash($node);
done_testing();
