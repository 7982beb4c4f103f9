# What somebody took from a live job's installation is put back when a worker next takes the job.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('repair', conf => "bgw_backfill.batch_sleep = 0\nbgw_backfill.scan_interval = 1s");
create_pair($node, rows => 3000);
track($node);
wait_phase($node, 'live');
app($node, 'CREATE TABLE backup_rows AS SELECT * FROM events_emb');

# Break something, write what is then not followed, and wait until it is whole and exact again.
sub repairs
{
	my ($what, $break, $is_whole) = @_;
	my $live_since = progress($node, 'live_since');

	app($node, "BEGIN; $break; DELETE FROM events_emb WHERE event_id % 5 = 1; "
		  . 'INSERT INTO events_emb SELECT id FROM events WHERE id > 8800 ON CONFLICT DO NOTHING; COMMIT');
	ok($node->poll_query_until('postgres', $is_whole), "$what: repaired");
	ok(wait_for($node, "phase = 'live' AND state <> 'failed'"), "$what: live again");
	job_exact($node, $what);
	app($node, 'DELETE FROM events_emb; INSERT INTO events_emb SELECT * FROM backup_rows');
	return job_exact($node, "$what, and followed again");
}

my $index = "SELECT count(*) = 1 FROM pg_index WHERE indexrelid = to_regclass('events_pending_idx') AND indisvalid";
sub trigger_is { return "SELECT count(*) = 1 FROM pg_trigger WHERE tgrelid = '$_[0]'::regclass AND tgname = '$_[1]' AND tgenabled = '$_[2]'"; }
sub live_again { return "SELECT phase = 'live' AND live_since > '" . progress($node, 'live_since') . "' FROM bgw_backfill.progress"; }

repairs('index dropped', 'DROP INDEX events_pending_idx', $index);
repairs('view dropped', 'DROP VIEW events_pending', "SELECT to_regclass('events_pending') IS NOT NULL");
repairs('trigger dropped', 'DROP TRIGGER events_bbf_delete ON events_emb', trigger_is('events_emb', 'events_bbf_delete', 'O'));
repairs('trigger disabled', 'ALTER TABLE events_emb DISABLE TRIGGER events_bbf_insert', trigger_is('events_emb', 'events_bbf_insert', 'O'));
repairs('replica trigger disabled', 'ALTER TABLE events_emb DISABLE TRIGGER events_bbf_row', trigger_is('events_emb', 'events_bbf_row', 'R'));
repairs('all triggers disabled', 'ALTER TABLE events_emb DISABLE TRIGGER USER', trigger_is('events_emb', 'events_bbf_trunc', 'A'));
repairs('trigger enabled otherwise', 'ALTER TABLE events_emb ENABLE REPLICA TRIGGER events_bbf_insert', trigger_is('events_emb', 'events_bbf_insert', 'O'));
repairs('default dropped', 'ALTER TABLE events ALTER has_embedding DROP DEFAULT; INSERT INTO events (id, body, has_embedding) VALUES (500000, \'x\', true)', <<'SQL');
SELECT pg_get_expr(adbin, adrelid) = 'false' FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = adrelid AND a.attnum = adnum
WHERE adrelid = 'events'::regclass AND attname = 'has_embedding'
SQL
repairs('column dropped', 'ALTER TABLE events DROP has_embedding CASCADE', live_again());

# In the fill, between two batches.
create_pair($node, source => 'docs', rows => 3000);
app($node, "BEGIN; SELECT bgw_backfill.track('docs', 'docs_emb', pending_where => \$\$body <> ''\$\$, group_by => 'org'); "
	  . "SELECT bgw_backfill.configure('docs', 'batch_size', '100'), bgw_backfill.configure('docs', 'batch_sleep', '1h'); COMMIT");
wait_batches($node, 1, 'docs');
is(progress($node, 'phase', 'docs'), 'fill', 'in the fill');
app($node, 'ALTER TABLE docs DROP has_embedding CASCADE');
app($node, "SELECT bgw_backfill.configure('docs', 'batch_sleep', '0')");
wait_phase($node, 'live', 'docs');
job_exact($node, 'column dropped in the fill: repaired', source => 'docs', job => 'docs');
app($node, "SELECT bgw_backfill.untrack('docs')");
ok($node->poll_query_until('postgres', 'SELECT count(*) = 1 FROM bgw_backfill.job'), 'one job left');

# Renamed tables and columns of the job's own are found again; wrong flags are a sweep's work.
repairs('tables renamed', 'ALTER TABLE events RENAME TO events2; ALTER TABLE events_emb RENAME TO events2_emb;'
	  . 'ALTER TABLE events2 RENAME TO events; ALTER TABLE events2_emb RENAME TO events_emb', $index);
app($node, 'ALTER TABLE events RENAME TO renamed; ALTER TABLE events_emb RENAME TO renamed_emb');
ok($node->poll_query_until('postgres', "SELECT source = 'public.renamed' FROM bgw_backfill.progress"), 'a renamed table is followed');
app($node, 'DELETE FROM renamed_emb WHERE event_id % 7 = 2');
job_exact($node, 'renamed', source => 'renamed', job => 'events');
my $verified_at = progress($node, 'verified_at');
app($node, 'UPDATE renamed SET has_embedding = NOT has_embedding WHERE id % 9 = 1');
app($node, "SELECT bgw_backfill.verify('events')");
ok(wait_for($node, "verified_at > '$verified_at'"), 'a sweep over flags that somebody wrote');
cmp_ok(progress($node, 'mismatches'), '>', 100, 'finds them, in both directions');
job_exact($node, 'swept', source => 'renamed', job => 'events');
is(progress($node, 'state <> \'failed\', errors'), 't|0', 'without an error');

# What was mended is gone on with, by a worker that has connected: none is just about to.
sub resumes
{
	my ($what) = @_;
	my $verified_at = progress($node, 'verified_at');

	app($node, "SELECT bgw_backfill.resume('events'), bgw_backfill.verify('events')");
	return ok(wait_for($node, "phase = 'live' AND state <> 'failed' AND verified_at > '$verified_at'"), $what);
}

# What cannot be repaired is said: another owner.
sql($node, 'CREATE ROLE app2 LOGIN; GRANT CREATE ON SCHEMA public TO app2; ALTER TABLE renamed_emb OWNER TO app2');
ok(wait_for($node, "state = 'failed'"), 'with another owner of the target the job fails');
like(progress($node, 'last_error'), qr/target of job "events" does not belong to role "app".*must have the same owner.*bgw_backfill\.resume/, 'with a hint');
sql($node, 'ALTER TABLE renamed_emb OWNER TO app');
resumes('and lives on once that is mended');
# Or tables that track() would refuse.
app($node, 'CREATE TABLE child () INHERITS (renamed)');
ok(wait_for($node, "state = 'failed'"), 'with a child of the source the job fails');
like(progress($node, 'last_error'), qr/source "renamed" is part of an inheritance tree.*must be plain tables/, 'with a hint');
app($node, 'DROP TABLE child');
resumes('and lives on without');
app($node, 'ALTER TABLE renamed_emb SET UNLOGGED');
ok(wait_for($node, "state = 'failed'"), 'with an unlogged target the job fails');
like(progress($node, 'last_error'), qr/target "renamed_emb" is an unlogged table.*ALTER TABLE public\.renamed_emb SET LOGGED/, 'with a hint');
app($node, 'ALTER TABLE renamed_emb SET LOGGED');
resumes('and lives on once it is logged');
# An owner who may not connect to the database any more.
sql($node, 'REVOKE CONNECT ON DATABASE postgres FROM PUBLIC');
sql($node, 'UPDATE bgw_backfill.job SET verify_requests = verify_requests + 1');
ok(wait_for($node, "state = 'failed'"), 'an owner who may not connect: failed');
like(progress($node, 'last_error'), qr/role "app" has no CONNECT privilege.*GRANT CONNECT ON DATABASE postgres TO app/, 'with a hint');
sql($node, 'GRANT CONNECT ON DATABASE postgres TO PUBLIC');
resumes('and lives on once he may');

# Or who may not log in. From PostgreSQL 17 on a worker can connect as such a role.
$verified_at = progress($node, 'verified_at');
sql($node, 'ALTER ROLE app NOLOGIN');
sql($node, 'UPDATE bgw_backfill.job SET verify_requests = verify_requests + 1');
if (server_version($node) >= 17)
{
	ok(wait_for($node, "verified_at > '$verified_at' AND state <> 'failed'"), 'an owner who may not log in: his job goes on');
}
else
{
	ok(wait_for($node, "state = 'failed'"), 'an owner who may not log in: failed');
	like(progress($node, 'last_error'), qr/role "app" is not permitted to log in.*ALTER ROLE app LOGIN/, 'with a hint');
}

# Due while his worker is busy, and not allowed to log in by the time it is not: none is started for what was judged
# before. app2's job shows when the scheduler has been there.
sql($node, 'ALTER ROLE app LOGIN');
resumes('an owner who may log in');
my $old = old_snapshot($node);
app($node, "SELECT bgw_backfill.track('docs', 'docs_emb')");
ok(waits_for_snapshot($node), 'his worker builds an index');
create_pair($node, source => 'notes', owner => 'app2', rows => 10);
sql($node, 'UPDATE bgw_backfill.job SET verify_requests = verify_requests + 1');
app($node, "SELECT bgw_backfill.track('notes', 'notes_emb')", undef, 'app2');
ok(wait_for($node, "phase <> 'install'", 'notes'), 'another job became due meanwhile');
sql($node, 'ALTER ROLE app NOLOGIN');
sql($node, "SELECT bgw_backfill.pause('events'), bgw_backfill.pause('docs')");
ok(wait_for($node, 'worker_pid IS NULL', 'docs'), 'his worker stops');
end_session($old);
wait_phase($node, 'live', 'notes');

is(log_count($node, qr/FATAL:  (role "app" is not permitted to log in|permission denied for database)/), 0, 'and no process died of any of that');
no_crash($node);
done_testing();
