# What wakes nobody is found within a minute: a prepared transaction, and a database made from a template.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('minute', conf => "max_prepared_transactions = 2\nbgw_backfill.batch_sleep = 0");
sql($node, 'CREATE DATABASE original');
prepare_database($node, 'original');
create_pair($node, rows => 500, db => 'original');
track($node, db => 'original');
wait_phase($node, 'live', 'events', 'original');
create_pair($node, rows => 500);
create_pair($node, rows => 500, source => 'other');

is(error_of($node, 'CREATE DATABASE copy TEMPLATE original'), '', 'a copy of a database with a live job');
app($node, "BEGIN; SELECT bgw_backfill.track('events', 'events_emb', pending_where => \$\$body <> ''\$\$, group_by => 'org'); PREPARE TRANSACTION 'x'");
is(sql($node, 'SELECT count(*) FROM bgw_backfill.job'), '0', 'a prepared job is not seen yet');
app($node, "COMMIT PREPARED 'x'");
is(progress($node, 'phase'), 'install', 'committed, it is there');
app($node, "BEGIN; SELECT bgw_backfill.track('other', 'other_emb'); PREPARE TRANSACTION 'y'; ROLLBACK PREPARED 'y'");
ok(wait_phase($node, 'live'), 'and live within a minute or so');
job_exact($node, 'prepared');
ok(wait_for($node, "state = 'held'", 'events', 'copy'), 'the job in the copy is held');
is(sql($node, 'SELECT count(*) FROM bgw_backfill.job'), '1', 'the one rolled back is not there');
no_crash($node);
done_testing();
