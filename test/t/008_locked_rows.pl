# Rows that somebody has locked are passed by and done later; nothing is held while the worker sleeps.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('locked', conf => "bgw_backfill.batch_size = 500\nbgw_backfill.batch_sleep = 200ms");
my ($rows, $pending) = create_pair($node);
history_begin($node);
track($node);
wait_batches($node, 3);

my $session = $node->background_psql('postgres', on_error_stop => 0);
my $locked = $session->query_safe(<<'SQL');
BEGIN;
WITH l AS (SELECT id FROM events WHERE id > 50000 FOR UPDATE),
	u AS (SELECT count(*) FROM l LEFT JOIN events_emb ON event_id = id WHERE event_id IS NULL)
SELECT * FROM u;
SQL
cmp_ok($locked, '>', 100, 'rows without an embedding are locked');
cmp_ok(sql($node, 'SELECT max(walk_cursor) FROM history'), '<', 50000, 'the fill is not there yet');

# While the worker sleeps between two batches it holds no snapshot.
my ($asleep, $holding) = (0, 0);
settings($node, batch_sleep => '1 s');
while ($asleep < 20)
{
	my ($idle, $xmin) = split /\|/, sql($node, <<'SQL');
SELECT count(*) FILTER (WHERE state = 'idle'),
	count(*) FILTER (WHERE state = 'idle' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL OR xact_start IS NOT NULL))
FROM pg_stat_activity WHERE backend_type = 'bgw_backfill worker'
SQL
	$asleep += $idle;
	$holding += $xmin;
}
is($holding, 0, 'a sleeping worker holds no transaction open');
settings($node, batch_sleep => '0');

ok($node->poll_query_until('postgres', "SELECT max(rows_done) = $rows FROM history WHERE phase = 'fill'"),
	'the walk comes to its end');
ok(wait_for($node, "waiting_for = 'a lock'"), 'and the view says that it waits for a lock');
is(progress($node, 'phase, errors, rows_done'), "fill|0|$rows", 'in phase fill, without an error');
is(sql($node, 'SELECT count(*) FROM bgw_backfill.job_skipped'), $locked, 'the locked rows are remembered');
is(sql($node, 'SELECT count(*) FROM events WHERE id <= 50000 AND has_embedding <> EXISTS (SELECT FROM events_emb WHERE event_id = id)'),
	'0', 'all others are done');
is(sql($node, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'bgw_backfill worker' AND state = 'idle' AND backend_xmin IS NOT NULL"),
	'0', 'nothing is held while it waits');
# A writer's statement on them does not wait for the worker.
is($session->query('UPDATE events SET n = 1 WHERE id > 50000 AND id < 50100; SELECT 3'), '3', 'the locker writes on');
$session->query_safe('COMMIT');
$session->quit;
ok(wait_phase($node, 'live'), 'live once the locks are gone');
history_is_sound($node, 'locked rows', $rows, $pending);
is(sql($node, 'SELECT count(*) FROM bgw_backfill.job_skipped'), '0', 'none is remembered any more');
job_exact($node, 'locked rows');

# Locked rows in a sweep, rolled back.
$session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe("BEGIN; DELETE FROM events_emb WHERE event_id % 50 = 1; SELECT count(*) FROM (SELECT FROM events WHERE id < 3000 FOR UPDATE) x");
sql($node, 'SET session_replication_role = replica; UPDATE events SET has_embedding = NOT has_embedding WHERE id > 40000 AND id % 50 = 7');
app($node, "SELECT bgw_backfill.verify('events')");
ok(wait_for($node, 'verified_at > live_since'), 'a sweep is done while rows are locked that need no repair');
cmp_ok(progress($node, 'mismatches'), '>', 100, 'it counts what it repaired');
$session->query_safe('ROLLBACK');
$session->quit;
job_exact($node, 'after the sweep');
no_crash($node);
done_testing();
