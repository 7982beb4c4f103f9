# A storm of writers over the whole life of a job, in each mode: from before track() on, through fill, verify and live,
# some processes write both tables in every way there is, each a sequence of transactions that the seed repeats. A
# further one looks at snapshot after snapshot for rows that the job has wrong. In the end everything is compared with
# the truth, row for row. Tables and comparisons are in storm.sql; who writes what is here.
use strict;
use warnings;
use BbfTest;
use File::Basename qw(dirname);
use List::Util qw(sum);
use PostgreSQL::Test::Utils;
use Test::More;

my @modes = qw(column sidecar watermark);
my $seed = $ENV{SEED} // int(rand(1_000_000));
my $writers = 5;
my $seconds = 20;
my $rows = 5000;
# errors that writers get from each other, and what follows them in the same transaction
my %expected = map { $_ => 1 } qw(40001 40P01 23503 23505);
my %follows = map { $_ => 1 } qw(25P02 3B001);

# With a foreign key or without, with several target rows for a key or one: the seed says. What the foreign key does to
# target rows differs from mode to mode.
my $foreign_key = $seed % 2 == 0;
my @actions = ('NOT NULL REFERENCES events ON DELETE CASCADE ON UPDATE CASCADE', 'REFERENCES events ON DELETE SET NULL ON UPDATE SET NULL',
	'REFERENCES events ON DELETE CASCADE ON UPDATE SET NULL');
my $unique = int($seed / 2) % 2 == 0 ? 'event_id, model' : 'event_id';

my $lacking = 'eligible AND NOT matched AND NOT EXISTS
	(SELECT FROM events_pending p WHERE p.id = t.id AND p.org IS NOT DISTINCT FROM t.org)';
my $wrong_true = '(SELECT has_embedding FROM events e WHERE e.id = t.id) AND NOT matched';
my $wrong_flag = '(SELECT has_embedding FROM events e WHERE e.id = t.id) IS DISTINCT FROM matched';

# wrong: what no snapshot may show of a row behind the fill's cursor. after: what must not be there after the last
# sweep. append_only: nothing of ours updates the source. stale: the bound, before the last sweep, of stale rows by changes.
my %rules = (
	column => { wrong => $foreign_key ? $wrong_flag : $wrong_true, after => [qw(lacking stale wrong_flag)] },
	sidecar => { wrong => $lacking, after => [qw(lacking stale)], append_only => 1, stale => 0.001 },
	# between sweeps it promises less; see README
	watermark => { wrong => 'false', after => [qw(lacking stale)], append_only => 1 });
my %differences = (
	lacking => "SELECT count(*) FROM truth t WHERE $lacking",
	stale => 'SELECT count(*) FROM (SELECT id, org FROM events_pending EXCEPT ALL
		SELECT id, org FROM truth WHERE eligible AND NOT matched) x',
	wrong_flag => "SELECT count(*) FROM truth t WHERE $wrong_flag");

sub one_of { return $_[ int(rand(@_)) ]; }

# Half of all keys are among a few that everybody wants.
sub key { return rand() < 0.5 ? 1 + int(rand(40)) : 1 + int(rand($rows)); }

# Some keys, in no order.
sub some_keys
{
	my %place = map { key() => 0 } 1 .. 1 + int(rand(rand() < 0.2 ? 30 : 4));

	$place{$_} = rand() foreach sort keys %place;
	return sort { $place{$a} <=> $place{$b} } keys %place;
}

sub org { return one_of('NULL', map { "'org-$_'" } 1 .. 8); }
sub body { return one_of('NULL', "''", "'text'", "'text'", "'other'"); }
sub model { return one_of("'small'", "'small'", "'large'", "'draft'"); }
sub among { return "$_[0] IN (" . join(', ', some_keys()) . ')'; }
sub embed
{
	my $order = 'hashint8extended(id, ' . int(rand(1000)) . ')';
	return 'INSERT INTO embeddings SELECT id, ' . model() . " FROM events WHERE $_[0] ORDER BY $order ON CONFLICT DO NOTHING";
}
sub new_events { return join(', ', map { "($_, " . org() . ', ' . body() . ')' } @_); }
sub new_or_changed_events
{
	return 'INSERT INTO events VALUES ' . new_events(some_keys()) . ' ON CONFLICT (id) DO UPDATE SET org = excluded.org, body = excluded.body';
}
sub merge
{
	my ($table, $key, $value, $new, @keys) = @_;
	my $rows = join(', ', map { "(${_}::bigint, " . $new->() . ')' } @keys);
	my $when = one_of('', " WHEN MATCHED AND t.$value = " . $new->() . ' THEN DELETE');
	return "MERGE INTO $table t USING (VALUES $rows) v (k, x) ON t.$key = v.k$when WHEN MATCHED THEN UPDATE SET $value = v.x
		WHEN NOT MATCHED THEN INSERT ($key, $value) VALUES (v.k, v.x)";
}
sub copy
{
	my $lines = join('\n', map { "$_," . one_of(qw(small large draft)) } some_keys());
	return "COPY embeddings FROM PROGRAM 'printf \"$lines\n\"' (FORMAT csv)";
}
sub new_embeddings { return join(', ', map { "($_, " . model() . ')' } @_); }

# What a writer may do in one statement, and how often it does it.
my @statements = (
	[ 10, sub { 'INSERT INTO events VALUES ' . new_events(some_keys()) . ' ON CONFLICT DO NOTHING' } ],
	[ 2, sub { 'INSERT INTO events VALUES ' . new_events(key()) } ],
	[ 5, sub { 'DELETE FROM events WHERE ' . among('id') } ],
	[ 10, sub { 'UPDATE events SET body = ' . body() . ' WHERE ' . among('id') } ],
	[ 6, sub { 'UPDATE events SET org = ' . org() . ' WHERE ' . among('id') } ],
	[ 3, sub { 'UPDATE events SET body = ' . body() . ', org = ' . org() . ' WHERE id = ' . key() } ],
	[ 3, sub { 'UPDATE events SET n = n + 1 WHERE ' . among('id') } ],
	[ 1, sub { 'UPDATE events SET id = ' . key() . ' WHERE id = ' . key() } ],
	[ 12, sub { embed(among('id')) } ],
	[ 3, sub { my $k = key(); embed("id BETWEEN $k AND $k + 150") } ],
	[ 3, sub { 'INSERT INTO embeddings VALUES ' . new_embeddings(rand() < 0.3 ? some_keys() : key()) } ],
	[ 3, sub { 'INSERT INTO embeddings VALUES ' . new_embeddings(key()) . " ON CONFLICT ($unique) DO UPDATE SET model = " . model() } ],
	[ 10, sub { 'DELETE FROM embeddings WHERE ' . among('event_id') . one_of('', ' AND model = ' . model()) } ],
	[ 10, sub { 'UPDATE embeddings SET model = ' . model() . ' WHERE ' . among('event_id') . ' AND model = ' . model() } ],
	[ 4, sub { 'UPDATE embeddings SET event_id = ' . key() . ' WHERE event_id = ' . key() } ],
	[ 2, sub { 'UPDATE embeddings SET event_id = event_id + ' . one_of(-1, 1) . ' WHERE ' . among('event_id') } ],
	[ 3, sub { 'WITH e AS (INSERT INTO events VALUES ' . new_events(key()) . ' ON CONFLICT DO NOTHING RETURNING id)
		INSERT INTO embeddings SELECT id, ' . model() . ' FROM e' } ],
	[ 2, sub { 'WITH m AS (DELETE FROM embeddings WHERE ' . among('event_id') . ' RETURNING event_id)
		UPDATE events SET body = ' . body() . ' FROM m WHERE id = event_id' } ],
	[ 3, sub { new_or_changed_events() } ],
	[ 3, sub { merge('embeddings', 'event_id', 'model', \&model, some_keys()) } ],
	[ 2, sub { merge('events', 'id', 'body', \&body, some_keys()) } ],
	[ 2, sub { copy() } ],
	[ 1, sub { 'SELECT doubles()' } ],
	[ 3, sub { 'SELECT pg_sleep(0.003)' } ]);
my $weights = sum(map { $_->[0] } @statements);

sub statement
{
	my $at = rand($weights);

	foreach my $s (@statements)
	{
		return $s->[1]->() . ';' if ($at -= $s->[0]) < 0;
	}
}

# Some statements, now and then under a savepoint, which is mostly rolled back.
sub statements
{
	my @statements = map { statement() } 1 .. 1 + int(rand(4));

	return @statements if rand() < 0.7;
	return ('SAVEPOINT s;', @statements, 'RELEASE s;', rand() < 0.3 ? statement() : ()) if rand() < 0.3;
	return ('SAVEPOINT s;', @statements, 'ROLLBACK TO s;', '\echo undone', statement());
}

# Write a script that goes on until there is a row in stop, then anew from its top.
sub script
{
	my ($node, $name, @parts) = @_;
	my $file = $node->basedir . "/$name.sql";
	my $n = 0;
	my $stop = "SELECT EXISTS (SELECT FROM stop) AS stop \\gset\n\\if :stop\n\\q\n\\endif\n";

	append_to_file($file, join('', map { $_ . (++$n % 10 == 0 ? $stop : '') } @parts) . "\\ir $name.sql\n");
	return $file;
}

# The end of a transaction; now and then it is prepared first.
sub ending
{
	my ($me) = @_;

	return 'COMMIT;' if rand() < 0.9;
	return ("PREPARE TRANSACTION 'writer $me';", one_of('COMMIT', 'COMMIT', 'ROLLBACK') . " PREPARED 'writer $me';");
}

sub truncation
{
	return 'TRUNCATE embeddings;' if rand() < 0.5;
	return ('BEGIN ISOLATION LEVEL REPEATABLE READ;', 'SELECT pg_sleep(0.003);', 'TRUNCATE embeddings;', 'COMMIT;');
}

sub writer_script
{
	my ($node, $me) = @_;
	my @parts;

	foreach (1 .. 4000)
	{
		my @lines = statements();
		if (@lines > 1 || rand() < 0.5)
		{
			unshift @lines, 'BEGIN' . (rand() < 0.3 ? ' ISOLATION LEVEL REPEATABLE READ;' : ';');
			push @lines, rand() < 0.9 ? ending($me) : 'ROLLBACK;';
		}
		@lines = truncation() if $me == 1 && rand() < 0.003;
		push @parts, join("\n", @lines, '');
	}
	return script($node, "writer_$me", @parts);
}

# What a writer did, from what psql said: rows changed for good, how its transactions ended, and what was not expected.
sub read_output
{
	my ($text) = @_;
	my ($changed, %count, @unexpected, @kept, $open, $failed, $prepared) = (0);

	foreach my $line (split /\n/, $text)
	{
		if ($line =~ /^(?:INSERT 0|UPDATE|DELETE|MERGE|COPY) (\d+)$/) { $open ? $kept[-1] += $1 : ($changed += $1); }
		elsif ($line eq 'BEGIN') { ($open, $failed, @kept) = (1, 0, 0); }
		elsif ($line eq 'SAVEPOINT') { push @kept, 0; }
		elsif ($line eq 'RELEASE') { my $n = pop @kept; $kept[-1] += $n; }
		elsif ($line eq 'undone') { pop @kept if @kept > 1; }
		elsif ($line eq 'COMMIT') { $changed += $_ foreach @kept; $open = 0; $count{committed}++; }
		elsif ($line eq 'PREPARE TRANSACTION') { ($prepared, $open) = (sum(@kept), 0); }
		elsif ($line eq 'COMMIT PREPARED') { $changed += $prepared; $prepared = undef; $count{prepared}++; }
		elsif ($line eq 'ROLLBACK PREPARED') { $prepared = undef; $count{prepared}++; }
		# it could not be prepared
		elsif ($line =~ /ERROR:  42704$/ && !defined $prepared) { $open = 0; }
		elsif ($line eq 'TRUNCATE TABLE') { $count{truncated}++; }
		elsif ($line =~ /ERROR:  (\w{5})$/ && ($expected{$1} || ($failed && $follows{$1})))
		{
			$count{$1}++ if $expected{$1};
			$failed = $open;
		}
		elsif ($line !~ /^(?:ROLLBACK|)$/) { push @unexpected, $line; }
	}
	return ($changed, \%count, @unexpected);
}

# psql as a process of its own; its output goes to a file.
sub start_psql
{
	my ($node, $file, $role) = @_;
	my $out = "$file.out";
	my @command = ('psql', '-XAt', '-v', 'VERBOSITY=sqlstate', '-d', $node->connstr('postgres') . " user=$role", '-f', $file);

	return { out => $out, handle => IPC::Run::start(\@command, '<', \undef, '>', $out, '2>&1') };
}

sub difference
{
	my ($node, $what) = @_;
	return sql($node, $differences{$what});
}

sub by_phase
{
	my ($node, $table) = @_;
	return sql($node, "SELECT string_agg(phase || ' ' || n, ', ') FROM (SELECT phase, count(*) AS n FROM $table GROUP BY phase) t");
}

# Ask for a sweep, and wait for its end, or for something else.
sub sweep
{
	my ($node, $or) = @_;
	my $asked = sql($node, 'SELECT clock_timestamp()');

	app($node, "SELECT bgw_backfill.verify('events')");
	wait_for($node, "verified_at >= '$asked'" . ($or // ''));
	return progress($node, "verified_at >= '$asked'") eq 't';
}

# Let the storm last for its time, and have the job sweep now and then; returns how many sweeps came to their end.
sub weather
{
	my ($node) = @_;
	my $over = sql($node, "SELECT format('clock_timestamp() >= %L', clock_timestamp() + interval '$seconds s')");
	my $sweeps = 0;

	while (sql($node, "SELECT $over") eq 'f')
	{
		wait_for($node, "phase = 'live' OR $over");
		$sweeps++ if sweep($node, " OR phase <> 'live' OR $over");
		my $scans = sql($node, 'SELECT scans FROM bgw_backfill.job_state');
		$node->poll_query_until('postgres', "SELECT scans > $scans OR phase <> 'live' OR $over FROM bgw_backfill.job_state");
	}
	return $sweeps;
}

sub storm
{
	my ($mode, $n) = @_;
	my $rule = $rules{$mode};
	my $action = $actions[ (int($seed / 4) + $n) % @actions ];
	my $node = new_node($mode, extension => 0,
		conf => "bgw_backfill.batch_size = 100\nbgw_backfill.batch_sleep = 5ms\nbgw_backfill.scan_interval = 1s\n"
		  . "deadlock_timeout = 200ms\nbgw_backfill.retry_delay = 10ms\nautovacuum = on\nautovacuum_naptime = 1s\nmax_prepared_transactions = 10");
	my $key = 'bigint ' . ($foreign_key ? $action : 'NOT NULL');
	my %variables = (key => $key, unique => $unique, rows => $rows, wrong => $rule->{wrong}, trap => $rule->{append_only} // 0);

	sql($node, 'CREATE EXTENSION bgw_backfill');
	$node->psql('postgres', undef, on_error_die => 1, extra_params => [ '-v', 'ON_ERROR_STOP=1',
			(map { ('-v', "$_=$variables{$_}") } sort keys %variables), '-f', dirname(__FILE__) . '/storm.sql' ]);
	history_begin($node);

	note("$mode: event_id $key");
	srand($seed);
	my @psql = map { start_psql($node, writer_script($node, $_), 'writer') } 1 .. $writers;
	# the lock first: a snapshot from before a TRUNCATE shows an empty table
	my $look = "BEGIN ISOLATION LEVEL REPEATABLE READ;\nLOCK TABLE embeddings IN ACCESS SHARE MODE;\nCALL look();\nCOMMIT;\n";
	my $looker = start_psql($node, script($node, 'looker', ($look) x 1000), sql($node, 'SELECT current_user'));
	my $at_work = "SELECT count(*) = $writers FROM pg_stat_activity WHERE usename = 'writer' AND query <> ''";

	ok($node->poll_query_until('postgres', $at_work), "$mode: the writers are at work");
	app($node, "SELECT bgw_backfill.track('events', 'embeddings', mode => '$mode', source_key => 'id', target_key => 'event_id',
		pending_where => \$\$body <> ''\$\$, match_where => \$\$model <> 'draft'\$\$, group_by => 'org')");
	my $sweeps = 0;
	# a slow machine gets more time
	foreach (1 .. 4)
	{
		$sweeps += weather($node) if $sweeps == 0;
	}
	is(sql($node, $at_work), 't', "$mode: the writers still are");
	sql($node, 'INSERT INTO stop VALUES (clock_timestamp())');
	foreach my $psql (@psql, $looker)
	{
		IPC::Run::finish($psql->{handle});
	}

	my ($changes, %count, @unexpected) = (0);
	foreach my $psql (@psql)
	{
		my ($n, $count, @more) = read_output(slurp_file($psql->{out}));
		$changes += $n;
		$count{$_} += $count->{$_} foreach keys %$count;
		push @unexpected, @more;
	}
	note("$mode: $changes changes, " . join(', ', map { "$count{$_} $_" } sort keys %count) . ", $sweeps sweeps");
	is(join("\n", splice(@unexpected, 0, 10)), '', "$mode: no writer met an error but of the expected kinds");
	cmp_ok($changes, '>', 1000, "$mode: the writers changed a lot");
	cmp_ok($sweeps, '>', 0, "$mode: sweeps came to their end while they wrote");
	note("$mode: changes of the job by phase: " . by_phase($node, 'history'));
	is( sql($node, q{SELECT string_agg(DISTINCT phase, ' ' ORDER BY phase) FROM history, stop
			WHERE history.at < stop.at AND phase IN ('fill', 'verify', 'live')}),
		'fill live verify', "$mode: fill, verify and live while they wrote");

	unlike(slurp_file($looker->{out}), qr/ERROR/, "$mode: whoever looked met no error");
	note("$mode: looks by phase: " . by_phase($node, 'look'));
	is( sql($node, q{SELECT string_agg(DISTINCT phase, ' ' ORDER BY phase) FROM look WHERE phase <> 'index'}),
		'fill live verify', "$mode: snapshots in fill, verify and live");
	is( sql($node, 'SELECT * FROM look WHERE wrong IS NOT NULL ORDER BY at LIMIT 5'),
		'', "$mode: no snapshot showed a row that the job has wrong");

	wait_for($node, "phase = 'live' OR state = 'failed'");
	is(progress($node, 'phase, errors, last_error'), 'live|0|', "$mode: live in the end, and the job met no error") or return;
	my $stale = difference($node, 'stale');
	my $pruned = progress($node, 'stale_pruned');
	note(sprintf('%s: %d stale rows (%.4f %% of the changes), %d pruned before (%.4f %%)',
			$mode, $stale, 100 * $stale / $changes, $pruned, 100 * $pruned / $changes));
	cmp_ok($stale / $changes, '<', $rule->{stale}, "$mode: hardly any stale rows before the last sweep") if $rule->{stale};
	ok(sweep($node), "$mode: a last sweep");
	is(difference($node, $_), '0', "$mode: after it, none $_") foreach @{ $rule->{after} };
	is(progress($node, 'errors'), '0', "$mode: nor did it meet one then");
	unlike(slurp_file($node->logfile), qr/cannot follow changes/, "$mode: no trigger had to let a change pass");
	no_crash($node);
	$node->stop;
	return;
}

diag("seed $seed (SEED=$seed repeats what the writers do)");
note('foreign key: ' . ($foreign_key ? 'yes' : 'no') . ", unique ($unique)");
storm($modes[$_], $_) foreach 0 .. $#modes;
done_testing();
