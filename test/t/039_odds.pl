# untrack in mid-work; roles that are renamed or may not connect; commands that race with a worker's start.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('odds', conf => "bgw_backfill.batch_size = 500\nbgw_backfill.batch_sleep = 200ms");

sub untracked
{
	my ($what) = @_;

	app($node, "SELECT bgw_backfill.untrack('events')");
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM bgw_backfill.jobs'), "$what: untracked");
	return is(sql($node, <<'SQL'), 'id,org,body,n|0|events_pkey|', "$what: the tables are as they were");
SELECT (SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'events'::regclass AND attnum > 0 AND NOT attisdropped),
	(SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('events'::regclass, 'events_emb'::regclass) AND NOT tgisinternal),
	(SELECT string_agg(indexrelid::regclass::text, ',') FROM pg_index WHERE indrelid = 'events'::regclass), to_regclass('events_pending')
SQL
}

create_pair($node, rows => 10_000);
track($node);
wait_batches($node, 3);
untracked('in mid-fill');

my $session = old_snapshot($node);
settings($node, batch_sleep => 0);
track($node);
ok(waits_for_snapshot($node), 'the index build waits for an old transaction');
untracked('in an index build that waits');
$session->query_safe('COMMIT');
$session->quit;

track($node);
wait_phase($node, 'live');
app($node, "SELECT bgw_backfill.pause('events')");
untracked('paused');

# TRUNCATE of the target in mid-fill, and of both.
settings($node, batch_sleep => '200ms');
track($node);
wait_batches($node, 4);
app($node, 'TRUNCATE events_emb; INSERT INTO events_emb SELECT id FROM events WHERE id % 3 = 1 AND id < 20000');
settings($node, batch_sleep => 0);
ok(wait_phase($node, 'live'), 'live after TRUNCATE of the target in mid-fill');
job_exact($node, 'TRUNCATE in mid-fill');
app($node, 'TRUNCATE events, events_emb; INSERT INTO events VALUES (1, \'org-1\', \'x\')');
ok($node->poll_query_until('postgres', "SELECT phase = 'live' AND pending = 1 FROM bgw_backfill.progress"), 'live after TRUNCATE of both');
job_exact($node, 'TRUNCATE of both');
untracked('live');

# A renamed owner is the same owner.
app($node, 'DROP TABLE events CASCADE; DROP TABLE events_emb');
create_pair($node, rows => 10_000);
settings($node, batch_sleep => '200ms');
track($node);
wait_batches($node, 3);
sql($node, 'ALTER ROLE app RENAME TO app_renamed');
my $done = progress($node, 'rows_done');
ok(wait_for($node, "rows_done > $done OR state = 'failed'"), 'a renamed owner: goes on, or says why not');
note(progress($node, 'state, last_error'));
sql($node, 'ALTER ROLE app_renamed RENAME TO app');
app($node, "SELECT bgw_backfill.resume('events')");
$done = progress($node, 'rows_done');
ok(wait_for($node, "rows_done > $done"), 'and goes on under the old name');

# An owner whose connections are used up.
sql($node, 'ALTER ROLE app CONNECTION LIMIT 0');
$session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe('SET SESSION AUTHORIZATION app');
$session->quit;
sql($node, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'bgw_backfill worker'");
$done = progress($node, 'rows_done');
ok(wait_for($node, "rows_done > $done OR last_error LIKE '%connection%' OR waiting_for LIKE '%connection%'"),
	'an owner with a connection limit: goes on, or says why not');
sql($node, 'ALTER ROLE app CONNECTION LIMIT -1');
settings($node, batch_sleep => 0);
app($node, "SELECT bgw_backfill.resume('events')");
ok(wait_phase($node, 'live'), 'live in the end');
job_exact($node, 'in the end');

# Dropped at the moment that its first scheduler or worker is started.
my $failed = 0;
foreach my $pass (1 .. 15)
{
	sql($node, 'CREATE DATABASE brief');
	prepare_database($node, 'brief');
	create_pair($node, rows => 200, db => 'brief');
	track($node, db => 'brief');
	# In a third of the passes at once, later or much later in the first job's life.
	sql($node, 'SELECT count(*) FROM generate_series(1, 40000)') foreach 1 .. ($pass % 5);
	$failed++ if error_of($node, $pass % 2 ? 'DROP DATABASE brief' : 'SET statement_timeout = 20000; DROP EXTENSION bgw_backfill CASCADE',
		$pass % 2 ? 'postgres' : 'brief') =~ /ERROR/;
	$failed++ if $pass % 2 == 0 && error_of($node, 'DROP DATABASE brief') =~ /ERROR/;
}
is($failed, 0, 'a database or extension can be dropped at any moment of a first worker');
is(progress($node, "phase, state <> 'failed'"), 'live|t', 'the other job does not mind');
no_crash($node);
done_testing();
