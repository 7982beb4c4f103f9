# Names that another role takes first: of a job, of its successor, of the objects beside the source. Nobody waits for her,
# and what is said helps.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('names', conf => "bgw_backfill.batch_sleep = 0\nbgw_backfill.scan_interval = 1s\nbgw_backfill.retry_delay = 500ms");
sql($node, 'CREATE ROLE mallory LOGIN; CREATE ROLE bob LOGIN; GRANT CREATE ON SCHEMA public TO mallory, bob');
create_pair($node, rows => 300, source => 'm', owner => 'mallory');
create_pair($node, rows => 300, owner => 'bob');

sub bob { return app($node, $_[0], undef, 'bob'); }
sub mallory { return app($node, $_[0], undef, 'mallory'); }

# Begin something as mallory and leave it open.
sub left_open
{
	my $session = $node->background_psql('postgres', extra_params => [ '-U', 'mallory' ], on_error_stop => 0);

	$session->query_safe("BEGIN; $_[0]; SELECT 1");
	return $session;
}

sub over
{
	my ($session, $end) = @_;

	$session->query_safe($end // 'ROLLBACK');
	return $session->quit;
}

# What is said to bob, who does not wait for long.
sub told { return error_of($node, "SET statement_timeout = '30s'; $_[0]", undef, 'bob'); }

# A job's name.
my $track = "SELECT bgw_backfill.track('events', 'events_emb', pending_where => \$\$body <> ''\$\$, group_by => 'org')";
my $open = left_open("SELECT bgw_backfill.track('m', 'm_emb', job => 'events')");
like(told($track), qr/another transaction is about to make a job named "events".*HINT:.*Try again later, or give another name as job/s,
	'a name that an open transaction gives to its job');
is(told("BEGIN; SELECT bgw_backfill.track('events', 'events_emb', job => 'mine'); ROLLBACK"), '', 'another name is free');
over($open);
like(error_of($node, "SELECT bgw_backfill.track('m', 'm_emb', job => '~' || md5('events'))", undef, 'mallory'),
	qr/invalid job name.*DETAIL:.*HINT:.*Give another name/s, "nobody may have a successor's name");

# An object's name, taken while track() is not committed: by a table, a view, a type, and by what is not committed itself.
foreach my $taken ('TABLE events_pending ()', 'VIEW events_pending AS SELECT 1', "TYPE events_pending AS ENUM ('a')", 'SEQUENCE events_pending_idx')
{
	my ($kind, $name) = $taken =~ /^(\w+) (\w+)/;
	my $tracking = $node->background_psql('postgres', extra_params => [ '-U', 'bob' ], on_error_stop => 0);

	$tracking->query_safe("BEGIN; $track");
	mallory("CREATE $taken");
	over($tracking, 'COMMIT');
	ok(wait_for($node, "state = 'failed'"), "$kind $name taken after track()");
	like(progress($node, 'last_error'), qr/"$name" already exists .*belongs to role "mallory".*can drop it.*untrack\('events'\)/, 'it is said whose it is, and what to do');
	mallory("DROP $kind $name");
	bob("SELECT bgw_backfill.resume('events')");
	ok(wait_phase($node, 'live'), 'and that helps');
	bob("SELECT bgw_backfill.untrack('events')");
	$node->poll_query_until('postgres', "SELECT count(*) = 0 FROM bgw_backfill.job WHERE job = 'events'");
}
$open = left_open('CREATE TABLE events_pending ()');
like(told($track), qr/another transaction is about to make a relation or type "events_pending".*role "mallory".*HINT:.*Give another name/s, 'a table of an open transaction');
over($open);
my $tracking = $node->background_psql('postgres', extra_params => [ '-U', 'bob' ], on_error_stop => 0);
$tracking->query_safe("BEGIN; $track");
$open = left_open('CREATE TABLE events_pending ()');
over($tracking, 'COMMIT');
ok(wait_for($node, "last_error LIKE '%is about to make%'"), 'the same after track()');
is(progress($node, 'waiting_for'), '', 'which is no wait for a lock');
over($open);
ok(wait_phase($node, 'live'), 'it goes on by itself');

# A move: all names are mallory's, committed or not.
foreach my $taken ('TABLE events_sidecar ()', "TYPE events_sidecar AS ENUM ('a')", 'SEQUENCE events_sidecar_key')
{
	my ($kind, $name) = $taken =~ /^(\w+) (\w+)/;

	$open = left_open("CREATE $taken");
	like(told("SELECT bgw_backfill.configure('events', 'mode', 'sidecar')"), qr/another transaction is about to make.*"$name".*HINT:.*try again/s, "a move while $kind $name is about to be");
	over($open, 'COMMIT');
	like(told("SELECT bgw_backfill.configure('events', 'mode', 'sidecar')"), qr/"$name" already exists.*HINT:.*can drop it; then try again.*untrack\('events'\).*mode "sidecar"/s, 'and is');
	mallory("DROP $kind $name");
}
# after configure() has looked
bob("SELECT bgw_backfill.pause('events')");
bob("SELECT bgw_backfill.configure('events', 'mode', 'sidecar')");
isnt(sql($node, "SELECT job FROM bgw_backfill.job WHERE successor_of = 'events'"), '~' . sql($node, "SELECT md5('events')"), "the successor's name is not to be guessed");
mallory('CREATE TABLE events_sidecar ()');
bob("SELECT bgw_backfill.resume('events')");
ok(wait_for($node, "rebuilding LIKE '%events_sidecar\" already exists%belongs to role \"mallory\"%can drop it%resume(''events'')%'"), 'a move whose name is taken says so');
is(progress($node, 'phase, mode'), 'live|column', 'while the job stays as it was');
mallory('DROP TABLE events_sidecar');
bob("SELECT bgw_backfill.resume('events')");
ok(wait_for($node, "mode = 'sidecar' AND rebuilding IS NULL"), 'and goes on with what it says');

# What holds a job's own row.
$open = $node->background_psql('postgres', on_error_stop => 0);
$open->query_safe("BEGIN; SELECT FROM bgw_backfill.job WHERE job = 'events' FOR UPDATE");
like(told("SELECT bgw_backfill.$_"), qr/lock timeout/, "$_ does not wait for ever") foreach "pause('events')";
over($open);
no_crash($node);
done_testing();
