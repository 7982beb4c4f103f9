# One job's row that somebody has locked, and tables of it that are gone: the other jobs of the database go on, its
# owner's as well.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('stuck', conf => "bgw_backfill.batch_sleep = 0\nbgw_backfill.lock_timeout = 1s\nbgw_backfill.max_workers = 1");
sql($node, 'CREATE ROLE mallory LOGIN; CREATE ROLE bob LOGIN; GRANT CREATE ON SCHEMA public TO mallory, bob');

# A job that the scheduler has something to say of, and whose row is locked.
create_pair($node, rows => 300, source => 'm1', owner => 'mallory');
track($node, source => 'm1', owner => 'mallory');
wait_phase($node, 'live', 'm1');
my $held = $node->background_psql('postgres', extra_params => [ '-U', 'mallory' ], on_error_stop => 0);
$held->query_safe("BEGIN; SELECT bgw_backfill.resume('m1')");
app($node, 'DROP TABLE m1_emb, m1 CASCADE', undef, 'mallory');
create_pair($node, rows => 300, source => 'b1', owner => 'bob');
track($node, source => 'b1', owner => 'bob');
ok(wait_phase($node, 'live', 'b1'), "another owner's new job goes live meanwhile");
create_pair($node, rows => 300, source => 'm2', owner => 'mallory');
track($node, source => 'm2', owner => 'mallory');
ok(wait_phase($node, 'live', 'm2'), "and a new one of the same owner's");
is(progress($node, 'state', 'm1'), 'idle', 'nothing could be said of the job itself');
$held->query_safe('COMMIT');
$held->quit;
ok(wait_for($node, "state = 'failed' AND last_error LIKE '%m1\" does not exist%'", 'm1'), 'it is said once the row is free');

# The same for one that is to be uninstalled, of which nothing is left.
create_pair($node, rows => 300, source => 'm3', owner => 'mallory');
track($node, source => 'm3', owner => 'mallory');
wait_phase($node, 'live', 'm3');
$held = $node->background_psql('postgres', on_error_stop => 0);
sql($node, "UPDATE bgw_backfill.job SET paused = true WHERE job = 'm3'");
$held->query_safe("BEGIN; SELECT FROM bgw_backfill.job_state WHERE job = 'm3' FOR UPDATE");
app($node, 'DROP TABLE m3_emb, m3 CASCADE', undef, 'mallory');
sql($node, "UPDATE bgw_backfill.job SET uninstall = true WHERE job = 'm3'");
create_pair($node, rows => 300, source => 'b2', owner => 'bob');
track($node, source => 'b2', owner => 'bob');
ok(wait_phase($node, 'live', 'b2'), 'live while a job that is to go cannot');
$held->query_safe('COMMIT');
$held->quit;
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM bgw_backfill.job WHERE job = 'm3'"), 'then it goes');

# A job whose look-up is an error: a phase that nobody knows, where nothing checks it any more.
sql($node, 'ALTER TABLE bgw_backfill.job_state DROP CONSTRAINT job_state_phase_check');
sql($node, "UPDATE bgw_backfill.job_state SET phase = 'nonsense' WHERE job = 'm2'");
create_pair($node, rows => 300, source => 'b3', owner => 'bob');
track($node, source => 'b3', owner => 'bob');
ok(wait_phase($node, 'live', 'b3'), 'live while a job cannot be read');
sql($node, "UPDATE bgw_backfill.job_state SET phase = 'live' WHERE job = 'm2'");

# A worker: several jobs of one owner whose rows are locked, and one of his that is not, and another owner's.
foreach my $i (1 .. 6)
{
	create_pair($node, rows => 300, source => "w$i", owner => 'mallory');
	track($node, source => "w$i", owner => 'mallory');
	wait_phase($node, 'live', "w$i");
}
$held = $node->background_psql('postgres', on_error_stop => 0);
$held->query_safe("BEGIN; SELECT FROM bgw_backfill.job_state WHERE job LIKE 'w%' FOR UPDATE");
sql($node, "UPDATE bgw_backfill.job SET verify_requests = 1 WHERE job LIKE 'w%'");
create_pair($node, rows => 20_000, source => 'm4', owner => 'mallory');
app($node, "SELECT bgw_backfill.track('m4', 'm4_emb'); SELECT bgw_backfill.configure('m4', 'batch_size', '500')", undef, 'mallory');
my $began = time;
ok(wait_phase($node, 'live', 'm4'), 'a job of the same owner goes live while six others have locked rows');
cmp_ok(time - $began, '<', 45, 'and is not held up for each of its batches');
create_pair($node, rows => 300, source => 'b4', owner => 'bob');
track($node, source => 'b4', owner => 'bob');
ok(wait_phase($node, 'live', 'b4'), "another owner's gets the only worker's place");
$held->query_safe('COMMIT');
$held->quit;
ok(wait_for($node, 'verified_at > live_since', 'w6'), 'and what was locked is done once it is free');
no_crash($node);
done_testing();
