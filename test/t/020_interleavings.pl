# Every pair of those who lock or write flags, in every order of their steps, compared with the truth: two
# transactions of the application, at each isolation level, and the worker with one. The sessions and the comparison
# are in interleavings.sql; here is who meets whom. (The worker has no action of kind 'source update' to meet.)
use strict;
use warnings;
use File::Basename qw(dirname);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @kinds = (
	'target insert', 'target delete', 'target key update', 'target match update',
	'source insert', 'source update', 'source key update', 'source delete', 'two statements');
my @levels = ('read committed', 'repeatable read', 'serializable');

my $node = PostgreSQL::Test::Cluster->new('interleavings');
$node->init;
$node->append_conf('postgresql.conf', <<'CONF');
shared_preload_libraries = 'bgw_backfill'
bgw_backfill.retry_delay = 10ms
log_min_messages = warning
max_prepared_transactions = 10
CONF
$node->start;

# Two databases, so that the two halves can run side by side: their locks do not meet.
$node->safe_psql('postgres', 'CREATE ROLE pair_owner LOGIN; CREATE ROLE writer LOGIN;');
foreach my $db ('pairs', 'workers')
{
	$node->safe_psql('postgres', "CREATE DATABASE $db");
	$node->psql($db, undef, on_error_die => 1,
		extra_params => [ '-v', 'ON_ERROR_STOP=1', '-f', dirname(__FILE__) . '/interleavings.sql' ]);
}

my @pairs;
foreach my $i (0 .. $#kinds)
{
	push @pairs, map { [ $kinds[$i], $_ ] } @kinds[ $i .. $#kinds ];
}
my %calls = (
	pairs => [ map { my $level = $_; map { "CALL il.run_kinds('$_->[0]', '$_->[1]', '$level');" } @pairs } @levels ],
	workers => [ map { my $level = $_; map { "CALL il.run_worker('$_', '$level');" } @kinds } @levels ]);

my %runs;
foreach my $db (sort keys %calls)
{
	my ($in, $out, $err) = (join("\n", @{ $calls{$db} }), '', '');
	my @command = ('psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($db), '-f', '-');
	$runs{$db} = { handle => IPC::Run::start(\@command, '<', \$in, '>', \$out, '2>', \$err), err => \$err };
}
foreach my $db (sort keys %runs)
{
	IPC::Run::finish($runs{$db}->{handle});
	is(${ $runs{$db}->{err} }, '', "$db: every interleaving came to its end");
}

# What was found about one pair at one level.
sub check
{
	my ($db, $kinds, $level) = @_;
	my $where = "kinds = '$kinds' AND isolation = '$level'";
	my $failures = $node->safe_psql($db, "SELECT variant || ': ' || message FROM il.failure WHERE $where ORDER BY id LIMIT 5");
	is($failures, '', "$kinds, $level");
	return;
}

foreach my $level (@levels)
{
	check('pairs', "$_->[0], $_->[1]", $level) foreach @pairs;
	check('workers', "worker, $_", $level) foreach @kinds;
}

foreach my $db (sort keys %calls)
{
	is( $node->safe_psql($db, "SELECT job, health, last_error FROM bgw_backfill.job_state WHERE health <> 'ok' OR errors > 0"),
		'', "$db: no job met an error");
	note($node->safe_psql($db, "SELECT isolation || ': ' || string_agg(n || ' ' || what, ', ' ORDER BY what)
		FROM (SELECT isolation, what, sum(n) AS n FROM il.count GROUP BY 1, 2) c GROUP BY isolation ORDER BY isolation"));
}
unlike(slurp_file($node->logfile), qr/cannot follow changes/, 'no trigger had to let a change pass');
$node->stop;
done_testing();
