# Several databases and several owners: as many workers as max_workers says, and everybody gets on.
use strict;
use warnings;
use BbfTest;
use Test::More;

# Longer than a worker keeps its place while others wait: 10 s of 100 batches of a quarter second each.
my $node = new_node('fairness',
	conf => "bgw_backfill.batch_size = 100\nbgw_backfill.batch_sleep = 250ms\nbgw_backfill.max_workers = 1");
sql($node, 'CREATE ROLE app2 LOGIN; GRANT CREATE ON SCHEMA public TO app2');
sql($node, 'CREATE DATABASE second');
prepare_database($node, 'second');

create_pair($node, rows => 15_000);
create_pair($node, rows => 15_000, source => 'things', owner => 'app2');
create_pair($node, rows => 15_000, db => 'second');

track($node);
wait_batches($node, 2);
track($node, source => 'things', owner => 'app2');
track($node, db => 'second');

# One worker at a time; each of the three jobs gets the place before another one is done with it.
foreach my $other (['things', 'postgres'], ['events', 'second'])
{
	ok(wait_for($node, 'batches > 2', @$other), "job $other->[0] in $other->[1] gets the only worker's place");
	is(scalar(workers($node)), 1, 'there is one worker');
}
my $done = progress($node, 'rows_done');
ok(wait_for($node, "rows_done > $done"), 'and the first job gets it back');
foreach my $job (['events', 'postgres'], ['things', 'postgres'], ['events', 'second'])
{
	is(progress($node, 'phase', @$job), 'fill', "job $job->[0] in $job->[1] is still in its fill");
}

# Two at a time.
settings($node, max_workers => 2);
ok($node->poll_query_until('postgres', <<'SQL'), 'with max_workers = 2 two workers are at work');
SELECT count(*) = 2 FROM pg_stat_activity WHERE backend_type = 'bgw_backfill worker'
SQL

settings($node, batch_sleep => 0);
foreach my $job (['events', 'postgres'], ['things', 'postgres'], ['events', 'second'])
{
	ok(wait_phase($node, 'live', @$job), "job $job->[0] in $job->[1] is live");
	job_exact($node, "$job->[0] in $job->[1]", source => $job->[0], db => $job->[1]);
}
no_crash($node);
done_testing();
