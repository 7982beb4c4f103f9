# Consumers as applications have them: programs of their own, in another language, some of which die at their work. In
# each mode everything that can be done is done in the end, each row by one consumer at a time, and what cannot be done
# stands in nobody's way. The program is ../consumer.js; what it says is the evidence.
use strict;
use warnings;
use BbfTest;
use File::Basename qw(dirname);
use IPC::Run;
use List::Util qw(max);
use POSIX qw(WNOHANG);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my @modes = qw(column sidecar watermark);
my $lease = 1000;			# ms
my $max_leased = 100;
my $max_attempts = 4;
my $consumers = 5;			# of 25 rows at a time: more than max_leased
my $program = dirname(__FILE__) . '/../consumer.js';

# Does node find its package pg: where the caller says, where npm put it for us (../setup), or where Debian has it?
sub have_pg
{
	delete $ENV{NODE_EXTRA_CA_CERTS} unless -r ($ENV{NODE_EXTRA_CA_CERTS} // '');	# node would warn in each consumer
	$ENV{NODE_PATH} = join(':', grep { $_ } $ENV{NODE_PATH}, dirname($program) . '/node_modules', '/usr/share/nodejs');
	return system("node -e \"require('pg')\" >/dev/null 2>&1") == 0;
}

plan skip_all => "no node with its package pg, neither Debian's nor npm's" unless have_pg();

# Run a consumer; its output goes to files.
sub consumer
{
	my ($node, $name, %arguments) = @_;
	my $file = $node->basedir . "/$name";
	my %environment = (PGHOST => $node->host, PGPORT => $node->port, PGUSER => 'app', PGDATABASE => 'postgres');
	append_to_file("$file.$_", '') foreach qw(out err);
	my $pid = fork() // die "could not fork: $!";

	if ($pid == 0)
	{
		@ENV{keys %environment} = values %environment;
		open(STDOUT, '>', "$file.out");
		open(STDERR, '>', "$file.err");
		exec('node', $program, "lease=$lease", 'batch=25', map { "$_=$arguments{$_}" } sort keys %arguments) or POSIX::_exit(1);
	}
	return { pid => $pid, file => $file };
}

sub said { return split /\n/, slurp_file("$_[0]->{file}.out"); }

# Wait until a consumer has said something.
sub wait_until_said
{
	my ($consumer, $event) = @_;

	foreach (1 .. 10 * $PostgreSQL::Test::Utils::timeout_default)
	{
		return 1 if grep { /^{"event":"$event"/ } said($consumer);
		usleep(100_000);
	}
	return 0;
}

# Wait for a consumer's end; returns its status as waitpid has it, or nothing if it is still running.
sub ended
{
	my ($consumer, $flags) = @_;

	return if waitpid($consumer->{pid}, $flags // 0) != $consumer->{pid};
	return $?;
}

# Keep as many consumers running, in the place of each that was killed another one, until all say that nothing is left.
# Returns them all.
sub drain
{
	my ($node, $name, $count) = @_;
	my @all = map { consumer($node, "$name-$_") } 1 .. $count;
	my @running = @all;
	my $over = time() + $PostgreSQL::Test::Utils::timeout_default;

	while (@running && time() < $over)
	{
		my @still;
		foreach my $consumer (@running)
		{
			my $status = ended($consumer, WNOHANG);
			next if defined $status && ($consumer->{status} = $status) != 9;
			$consumer = consumer($node, "$name-" . (@all + 1)) if defined $status;
			push @all, $consumer if defined $status;
			push @still, $consumer;
		}
		@running = @still;
		usleep(20_000);
	}
	kill 'KILL', map { $_->{pid} } @running;
	ended($_) foreach @running;
	is(scalar(@running), 0, "$name: consumers ran until nothing was left");
	is(join('', map { slurp_file("$_->{file}.err") } @all), '', "$name: none of them met an error");
	return @all;
}

# What the consumers said, in the order in which they began to do it.
sub events
{
	my @lines = grep { /"before":/ } map { said($_) } @_;
	my @events;

	foreach my $line (@lines)
	{
		my %event = map { $_ => ($line =~ /"$_":"?([^",}]*)/)[0] } qw(event pid token lease before after);
		foreach my $list (qw(keys attempts))
		{
			my ($items) = $line =~ /"$list":\[(.*?)\]/;
			$event{$list} = [ map { s/"//gr } split /,/, $items // '' ];
		}
		push @events, \%event;
	}
	return sort { $a->{before} <=> $b->{before} } @events;
}

# Which keys were handed out while another token held them, or were handed out although they were done? A token holds a
# key at least from the end of its claim until it is answered, given back, or so long as the lease was when it was last
# asked for. Who says that it began to answer may have been heard at once.
sub handed_out_wrongly
{
	my @events = @_;
	my (%lease_ends, %held, %done, @wrong);

	foreach my $event (grep { $_->{event} =~ /claimed|extended/ } @events)
	{
		push @{ $lease_ends{ $event->{token} } }, [ $event->{before}, $event->{before} + $event->{lease} ];
	}
	# tokens are given in order
	foreach my $claim (sort { $a->{token} <=> $b->{token} } grep { $_->{event} eq 'claimed' } @events)
	{
		push @{ $held{$_} }, { token => $claim->{token}, after => $claim->{after} } foreach @{ $claim->{keys} };
	}
	my %answers;
	foreach my $event (grep { $_->{event} =~ /done|failed|released/ } @events)
	{
		$answers{"$event->{token} $_"} = $event foreach @{ $event->{keys} };
		next if $event->{event} ne 'done';
		$done{$_} = $event->{after} foreach @{ $event->{keys} };
	}
	my %claim_began = map { $_->{token} => $_->{before} } grep { $_->{event} eq 'claimed' } @events;
	foreach my $key (keys %held)
	{
		my @tokens = @{ $held{$key} };
		foreach my $i (0 .. $#tokens)
		{
			my $next = $tokens[ $i + 1 ] // next;
			my $answer = $answers{"$tokens[$i]->{token} $key"};
			my $until = max(map { $_->[1] } grep { $_->[0] <= $next->{after} } @{ $lease_ends{ $tokens[$i]->{token} } });
			push @wrong, "key $key: token $next->{token} while $tokens[$i]->{token} held it"
			  if $next->{after} < $until && !($answer && $answer->{before} <= $next->{after});
		}
		push @wrong, "key $key: token $tokens[-1]->{token} though it was done"
		  if defined $done{$key} && $claim_began{ $tokens[-1]->{token} } > $done{$key};
	}
	return @wrong;
}

# Look again and again at how much is handed out and not answered, and note the most; until there is a row in stop.
# (progress counts what is answered as well, until the next claim that wants its place.)
sub watch_the_cap
{
	my ($node) = @_;
	my $file = $node->basedir . '/watch.out';

	sql($node, <<'SQL');
CREATE TABLE stop (at timestamptz);
CREATE TABLE most (leased bigint);
CREATE PROCEDURE watch() LANGUAGE plpgsql AS $$
DECLARE
	most bigint := 0;
BEGIN
	LOOP
		SELECT greatest(most, count(DISTINCT k)) INTO most FROM bgw_backfill.claim c, unnest(c.keys) k
			WHERE c.expires_at > clock_timestamp() AND NOT EXISTS (SELECT FROM events_emb WHERE event_id = k::bigint);
		EXIT WHEN EXISTS (SELECT FROM stop);
		COMMIT;
		PERFORM pg_sleep(0.01);
	END LOOP;
	INSERT INTO most VALUES (most);
END
$$;
SQL
	return IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', 'CALL watch()' ], '<', \undef, '>', $file,
		'2>&1');
}

my $not_done = "FROM events WHERE body <> '' AND NOT EXISTS (SELECT FROM events_emb WHERE event_id = id)";
my $quarantine = 'SELECT count(*) FROM bgw_backfill.quarantine';

sub consume
{
	my ($mode) = @_;
	my $node = new_node($mode,
		conf => "bgw_backfill.retry_delay = 10ms\nbgw_backfill.scan_interval = 1s\nbgw_backfill.batch_sleep = 0\n"
		  . "bgw_backfill.max_leased = $max_leased\nbgw_backfill.max_attempts = $max_attempts");

	create_pair($node);
	# more than a claim passes by one after another, at the head of one group; a few elsewhere
	my $pending = "$not_done AND org";
	app($node, <<"SQL");
UPDATE events SET org = NULL WHERE org = 'org-6';
CREATE TABLE bad AS (SELECT id, 'poison' AS body $pending = 'org-3' ORDER BY id LIMIT 70);
INSERT INTO bad (SELECT id, 'poison' $pending IS NULL ORDER BY id LIMIT 3)
	UNION ALL (SELECT id, 'poison' $pending = 'org-1' ORDER BY id LIMIT 3)
	UNION ALL (SELECT id, 'killer' $pending = 'org-5' ORDER BY id OFFSET 50 LIMIT 1);
UPDATE events SET body = bad.body FROM bad WHERE bad.id = events.id;
SQL
	app($node, "SELECT bgw_backfill.track('events', 'events_emb', mode => '$mode', source_key => 'id', target_key => 'event_id',
		pending_where => \$\$body <> ''\$\$, group_by => 'org')");
	wait_phase($node, 'live');
	my $bad = sql($node, 'SELECT count(*) FROM bad');
	my $all = sql($node, "SELECT count(*) $not_done");
	my $watch = watch_the_cap($node);

	# One dies before it has written anything, one with its work written and not committed.
	my @victims = map { consumer($node, "$mode-victim-$_", hang => $_) } qw(embed insert);
	ok(wait_until_said($victims[0], 'claimed'), "$mode: a consumer is in the middle of its batch");
	ok(wait_until_said($victims[1], 'inserted'), "$mode: another has not committed yet");
	kill 'KILL', map { $_->{pid} } @victims;
	is(join(' ', map { ended($_) } @victims), '9 9', "$mode: both are killed");

	# One takes longer for its rows than the lease lasts, and says so in time.
	my $slow = consumer($node, "$mode-slow", work => 2 * $lease, extend => $lease / 5, loops => 1);
	ok(wait_until_said($slow, 'claimed'), "$mode: a slow consumer is at work");
	my @drained = drain($node, $mode, $consumers);
	is(ended($slow), 0, "$mode: and comes to its end");
	my $killed = grep { ($_->{status} // -1) == 9 } @drained;
	my @all = (@victims, $slow, @drained);
	my @events = events(@all);
	my %count;
	$count{ $_->{event} } += @{ $_->{keys} } || 1 foreach @events;
	note("$mode: $all rows; " . join(', ', map { "$count{$_} $_" } sort keys %count));

	is(sql($node, "SELECT count(*) $not_done AND id NOT IN (SELECT id FROM bad)"), '0', "$mode: all that can be done is done");
	is( sql($node, 'SELECT count(*) FROM events_emb JOIN bad ON id = event_id'),
		'0', "$mode: nothing is done that cannot be done");
	my @wrong = handed_out_wrongly(@events);
	is(join("\n", splice(@wrong, 0, 10)), '', "$mode: no row was two consumers' at a time, or handed out when it was done");
	cmp_ok($count{extended}, '>', 2, "$mode: the slow one was heard of");
	is($killed, $max_attempts, "$mode: a row killed as many consumers as it had attempts");

	is( sql($node, "SELECT last_error, attempts, count(*), string_agg(DISTINCT coalesce(group_key, 'null'), ' ') FROM bgw_backfill.quarantine GROUP BY 1, 2 ORDER BY 1"),
		"cannot embed poison|$max_attempts|76|null org-1 org-3\nthe lease expired|$max_attempts|1|org-5",
		"$mode: what cannot be done is in quarantine, with its error");
	is( sql($node, 'SELECT count(*) FROM bad LEFT JOIN bgw_backfill.quarantine q ON q.key = bad.id::text WHERE q.key IS NULL'),
		'0', "$mode: all of it, and nothing else");
	is(progress($node, 'quarantined'), $bad, "$mode: so progress says");

	# Everybody who has no row there is through, while the others' rows still are.
	is( sql($node, "SELECT string_agg(DISTINCT coalesce(org, 'null'), ' ') FROM events_pending"),
		'null org-1 org-3 org-5', "$mode: pending is what is in quarantine");
	is(app($node, "SELECT count(*) FROM bgw_backfill.claim('events', 10)"), '0', "$mode: nothing is handed out any more");

	# Some once more as they are, then all, when the cause has gone.
	is(app($node, "SELECT bgw_backfill.requeue('events', ARRAY(SELECT id::text FROM bad WHERE body = 'killer'))"),
		'1', "$mode: one row is taken out of quarantine");
	is( app($node, "SELECT key = id::text, attempt FROM bgw_backfill.claim('events', 10, '1 ms'), bad WHERE bad.body = 'killer'"),
		't|1', "$mode: and handed out as if for the first time");
	app($node, "UPDATE events SET body = 'text' FROM bad WHERE bad.id = events.id; SELECT bgw_backfill.requeue('events')");
	is(sql($node, $quarantine), '0', "$mode: the rest follows");
	push @all, drain($node, "$mode-again", 2);
	is(sql($node, "SELECT count(*) $not_done"), '0', "$mode: and is done");
	is(sql($node, $quarantine), '0', "$mode: for good");

	sql($node, 'INSERT INTO stop VALUES (clock_timestamp())');
	IPC::Run::finish($watch);
	my $most = sql($node, 'SELECT leased FROM most');
	cmp_ok($most, '<=', $max_leased, "$mode: never more was handed out than max_leased");
	cmp_ok($most, '>', $max_leased / 2, "$mode: and not much less");
	no_crash($node);
	$node->stop;
	return;
}

foreach my $mode (@modes)
{
	consume($mode);
}
done_testing();
