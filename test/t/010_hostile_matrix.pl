# Everything that can run a table owner's code, times everything that can be called, times who calls it. mallory owns
# tables, types and functions; each of these says as whom it ran, tries to make her superuser, and changes the session's
# settings. It runs as nobody but her, and leaves nobody's session other than it was.
#
# Where the server itself runs her code as whoever writes to her tables (triggers, checks, defaults, what makes index
# entries), that is not ours: the same statements are run on a pair of tables without a job first, and only what is more
# than that counts. What she is given to do all this with is in hostile_matrix.sql.
use strict;
use warnings;
use BbfTest;
use File::Basename qw(dirname);
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('matrix', conf => <<'CONF');
log_error_verbosity = terse
log_min_error_statement = fatal
bgw_backfill.batch_sleep = 0
bgw_backfill.scan_interval = 1h
bgw_backfill.retry_delay = 10ms
bgw_backfill.max_attempts = 1
CONF
$node->safe_psql('postgres', '', extra_params => [ '-v', 'ON_ERROR_STOP=1', '-f', dirname(__FILE__) . '/hostile_matrix.sql' ]);

# What of hers is called where; each hook has its name wherever it says something.
my @type_hooks = qw(key_domain group_domain column_domain comparison);
my @table_hooks = map { ("src_$_", "tgt_$_") } qw(default check generated idxexpr idxpred fold stats before after statement deferred policy);
my @condition_hooks = qw(pending_where match_where cast);
my @sidecar_hooks = map { "sc_$_" } qw(before after statement deferred idxexpr idxpred fold stats exclude rule policy check default);
my @other_hooks = qw(handler path view view_rule made_meanwhile path_public);
sql($node, "INSERT INTO chk.hook VALUES ('$_')") foreach @type_hooks, @table_hooks, @condition_hooks, @sidecar_hooks, @other_hooks;

# A pair of tables of hers. Kind types: with a key and a group of her types; hooks: with all that can stand on a table;
# plain: nothing of that. n is what the tests find rows by, without her code. Of each fifteen rows three are pending.
my %kind;		# of a pair

sub key { my ($pair, $n) = @_; return $kind{$pair} eq 'types' ? "[$n," . ($n + 1) . ')' : $n; }
sub group { my ($pair, $name) = @_; return $kind{$pair} eq 'types' ? "($name)" : $name; }

sub columns
{
	my ($kind) = @_;

	return $kind eq 'types' ? ('mal.rng', 'mal.grp') : $kind eq 'hooks' ? ('mal.dcolumn', 'mal.dgroup') : ('bigint', 'text');
}

sub make_pair
{
	my ($pair, $kind, $rls) = @_;
	my $types = $kind eq 'types';
	my ($key, $group) = columns($kind);
	my $n_to_key = $types ? "('[' || n || ',' || n + 1 || ')')::mal.rng" : 'n';
	my $n_to_group = $types ? "('(g' || n % 3 || ')')::mal.grp" : "'g' || n % 3";
	my $sql = <<"SQL";
CREATE TABLE $pair (k $key PRIMARY KEY, grp $group, body text, n int);
CREATE TABLE ${pair}_t (k $key PRIMARY KEY REFERENCES $pair ON DELETE CASCADE, n int, note text);
INSERT INTO $pair SELECT $n_to_key, $n_to_group, 'text', n FROM generate_series(1, 75) n;
INSERT INTO ${pair}_t SELECT k, n FROM $pair WHERE n % 15 NOT IN (4, 8, 12);
SQL
	$kind{$pair} = $kind;
	foreach my $table ($kind ne 'hooks' ? () : ([ 'src', $pair ], [ 'tgt', "${pair}_t" ]))
	{
		my ($h, $name) = @$table;
		$sql .= <<"SQL";
ALTER TABLE $name ADD x pg_catalog.text DEFAULT mal.same('${h}_default', 'x'::pg_catalog.text), ADD y pg_catalog.int4 GENERATED ALWAYS AS (mal.same('${h}_generated', n)) STORED,
	ADD CHECK (mal.imm('${h}_check', n));
CREATE INDEX ON $name (mal.imm('${h}_idxexpr', n));
CREATE INDEX ON $name (n) WHERE mal.imm('${h}_idxpred', n);
CREATE INDEX ON $name (mal.imm('${h}_fold', 1), n) WHERE mal.imm('${h}_fold', 2);
CREATE STATISTICS ${name}_stats ON (mal.imm('${h}_stats', 3)), n FROM $name;
CREATE TRIGGER a_before BEFORE INSERT OR UPDATE OR DELETE ON $name FOR EACH ROW EXECUTE FUNCTION mal.trg('${h}_before');
CREATE TRIGGER z_after AFTER INSERT OR UPDATE OR DELETE ON $name FOR EACH ROW EXECUTE FUNCTION mal.trg('${h}_after');
CREATE TRIGGER z_stmt AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON $name FOR EACH STATEMENT EXECUTE FUNCTION mal.trg('${h}_statement');
CREATE CONSTRAINT TRIGGER deferred AFTER INSERT OR UPDATE OR DELETE ON $name DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION mal.trg('${h}_deferred');
SQL
	}
	# as the index on pending rows does, so that an UPDATE of the group is no HOT one with a job or without
	$sql .= "CREATE INDEX ON $pair (grp, k);";
	foreach my $table ($kind ne 'hooks' ? () : "${pair}_t", $rls ? $pair : ())
	{
		my $h = $table eq $pair ? 'src' : 'tgt';
		$sql .= "ALTER TABLE $table ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON $table USING (mal.imm('${h}_policy', n));";
	}
	$sql .= "GRANT SELECT ON $pair TO wendy; GRANT SELECT, INSERT, UPDATE, DELETE ON ${pair}_t TO wendy; ANALYZE $pair, ${pair}_t;";
	app($node, $sql, undef, 'mallory');
	return;
}

# How a pair is tracked.
sub track_call
{
	my ($pair, %args) = @_;
	my $hooks = $kind{$pair} eq 'hooks';
	my @conditions = $hooks
	  ? ("pending_where => \$\$mal.imm('pending_where', n) AND 1::mal.color OPERATOR(pg_catalog.=) 'red'::mal.color\$\$",
		"match_where => \$\$mal.imm('match_where', n)\$\$")
	  : ();

	push @conditions, "handler => 'mal.handler(pg_catalog.text, pg_catalog.text, pg_catalog._int8, pg_catalog.int8)'" if $args{handler};
	return "SELECT bgw_backfill.track('$pair', '${pair}_t', " . join(', ', @conditions,
		map({ "$_ => '$args{$_}'" } grep { $_ ne 'handler' && $_ ne 'dry_run' } sort keys %args), "group_by => 'grp'",
		'dry_run => ' . ($args{dry_run} ? 'true' : 'false')) . ');';
}

# A session of a role whose search path begins with her schema, and in it one cell after the other: [ name, statement,
# what goes before it, what after ]. Each cell's name is what the log is searched for. Returns cell => what has changed
# in the session, and fills in %done: cell => its statement ended without an error.
my %done;
my %changed;

sub session
{
	my ($caller, $where, @cells) = @_;
	my $user = $caller eq 'admin' ? undef : $caller;
	my $sql = "\\set k ''\n\\set ks '{}'\n\\set t 0\n\\pset tuples_only on\n\\pset format unaligned\n";
	my ($out, $err);

	foreach my $cell (@cells)
	{
		my ($name, $statement, $before, $after) = @$cell;

		$sql .= "SET application_name = '$where/$caller/$name';\n" . ($before ? "$before\n" : '') . "$statement\n"
		  . "\\if :ERROR\n\\echo \@\@error $where/$caller/$name :LAST_ERROR_MESSAGE\n\\else\n\\echo \@\@done $where/$caller/$name\n\\endif\n"
		  . ($after ? "$after\n" : '')
		  . "SELECT '\@\@changed $where/$caller/$name ', chk.changed(pg_catalog.current_setting('search_path'));\n"
		  . "RESET search_path; RESET datestyle; RESET work_mem;\n";
		$sql .= "DISCARD TEMP;\n" . ($caller eq 'admin' ? "ALTER ROLE mallory NOSUPERUSER;\n" : '');
	}
	local $ENV{PGOPTIONS} = '-c search_path=mal,public,pg_catalog';
	$node->psql('postgres', $sql, stdout => \$out, stderr => \$err, on_error_stop => 0,
		$user ? (extra_params => [ '-U', $user ]) : ());
	return read_session($out);
}

sub read_session
{
	my ($out) = @_;

	foreach my $line (split /\n/, $out)
	{
		$done{$1} = 1 if $line =~ /^\@\@done (\S+)$/;
		$done{$1} = $2 if $line =~ /^\@\@error (\S+) (.*)$/;
		$changed{$1} = [ split / /, $2 ] if $line =~ /^\@\@changed (\S+) \|(.*)$/;
	}
	return;
}

# A cell whose statement is taken back.
sub tried { my ($name, $statement, $mode) = @_; return [ $name, $statement, 'BEGIN ' . ($mode // '') . ';', 'ROLLBACK;' ]; }

# "n is one of these", by the server's own operator whatever the search path.
sub n_is { my ($alias, @n) = @_; return "${alias}n OPERATOR(pg_catalog.=) ANY ('{" . join(',', @n) . "}')"; }

# A target row: given, or where its type's input would be her code, read from the source.
sub target_row
{
	my ($pair, $n) = @_;

	return "INSERT INTO ${pair}_t (k, n) " . ($kind{$pair} eq 'types' ? "SELECT k, n FROM $pair WHERE " . n_is('', $n) : "VALUES ($n, $n)") . ';';
}

# What writers do to a pair's rows, fifteen of them from $b + 1 on; 4, 8 and 12 are pending.
sub writes_to_target
{
	my ($pair, $b) = @_;
	my $t = "${pair}_t";
	my $copied = join('', map { key($pair, $b + $_) . "\t" . ($b + $_) . "\n" } 8, 12);

	return (
		[ 'ins', target_row($pair, $b + 4) ],
		[ 'insmany', "INSERT INTO $t (k, n) SELECT k, n FROM $pair WHERE " . n_is('', $b + 8, $b + 12) . ';' ],
		[ 'upd', "UPDATE $t SET note = 'x' WHERE " . n_is('', $b + 1) . ';' ],
		[ 'del', "DELETE FROM $t WHERE " . n_is('', $b + 4) . ';' ],
		[ 'updkey', "UPDATE $t SET k = (SELECT s.k FROM $pair s WHERE " . n_is('s.', $b + 4) . ') WHERE ' . n_is('', $b + 1) . ';' ],
		[ 'delmany', "DELETE FROM $t WHERE " . n_is('', $b + 8, $b + 12) . ';' ],
		[ 'copy', "COPY $t (k, n) FROM STDIN;\n$copied\\." ],
		[ 'merge', "MERGE INTO $t t USING (SELECT k, n FROM $pair WHERE " . n_is('', $b + 1, $b + 8, $b + 9) . ') s'
			  . ' ON t.n OPERATOR(pg_catalog.=) s.n WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT (k, n) VALUES (s.k, s.n);' ]);
}

sub writes_to_source
{
	my ($pair, $b) = @_;
	my $row = sub { my ($n) = @_; return "('" . key($pair, $n) . "', '" . group($pair, 'g1') . "', 'new', $n)" };
	my $n = 1000 + $b;

	return (
		[ 's_ins', "INSERT INTO $pair (k, grp, body, n) VALUES " . $row->($n + 1) . ';' ],
		[ 's_insmany', "INSERT INTO $pair (k, grp, body, n) VALUES " . $row->($n + 2) . ', ' . $row->($n + 3) . ';' ],
		[ 's_copy', "COPY $pair (k, grp, body, n) FROM STDIN;\n" . key($pair, $n + 4) . "\t" . group($pair, 'g2') . "\tnew\t" . ($n + 4) . "\n\\." ],
		[ 's_updgrp', "UPDATE $pair SET grp = (SELECT s.grp FROM $pair s WHERE " . n_is('s.', $b + 2) . ') WHERE ' . n_is('', $n + 1) . ';' ],
		[ 's_updn', "UPDATE $pair SET n = " . ($n + 5) . ' WHERE ' . n_is('', $n + 1) . ';' ],
		[ 's_updkey', "UPDATE $pair SET k = '" . key($pair, $n + 6) . "' WHERE " . n_is('', $n + 2) . ';' ],
		[ 's_updany', "UPDATE $pair SET body = 'x' WHERE " . n_is('', $b + 2) . ';' ],
		[ 's_del', "DELETE FROM $pair WHERE " . n_is('', $n + 3, $b + 3) . ';' ],
		[ 's_merge', "MERGE INTO $pair t USING (SELECT k, grp, n FROM $pair WHERE " . n_is('', $b + 5, $b + 6) . ') s'
			  . ' ON t.n OPERATOR(pg_catalog.=) s.n WHEN MATCHED AND ' . n_is('t.', $b + 5) . " THEN DELETE WHEN MATCHED THEN UPDATE SET grp = NULL;" ]);
}

# DML of admin and of wendy; with all that is pending handed out to them first, or not.
sub writes
{
	my ($pair, $claim, @blocks) = @_;
	my ($admin, $wendy) = @blocks;
	my @claimed = $claim ? [ 'hold', "SELECT pg_catalog.count(*) FROM bgw_backfill.claim('$pair', 200);" ] : ();

	my $name = $claim ? 'held_' : 'free_';
	my @cells = (writes_to_target($pair, $admin), writes_to_source($pair, $admin),
		tried('trunc', "TRUNCATE ${pair}_t;"), tried('s_trunc', "TRUNCATE $pair, ${pair}_t;"));

	session('admin', $pair, @claimed, map { [ $name . $_->[0], @$_[ 1 .. $#$_ ] ] } @cells);
	session('wendy', $pair, @claimed, map { [ $name . $_->[0], $_->[1] ] } writes_to_target($pair, $wendy));
	return;
}

# Every function and view. Most is taken back, so that the job stays what it is.
sub calls
{
	my ($pair) = @_;
	my $job = "'$pair'";
	my $hooks = $kind{$pair} eq 'hooks';
	my $condition = $hooks ? "\$\$mal.imm('%s', n)\$\$" : "'n OPERATOR(pg_catalog.>) 0'";
	my $group = group($pair, 'g1');
	my $claim = "SELECT coalesce((pg_catalog.array_agg(key))[1], '') AS k, coalesce(pg_catalog.array_agg(key), '{}') AS ks,"
	  . " coalesce(pg_catalog.max(token), 0) AS t FROM bgw_backfill.claim";
	my @cells = (
		[ 'claim', "$claim($job, 4) \\gset" ],
		[ 'extend', "SELECT bgw_backfill.extend($job, :t, '5 minutes');" ],
		tried('claim_room', "SELECT pg_catalog.count(*) FROM bgw_backfill.claim($job, 300);"),
		[ 'fail', "SELECT bgw_backfill.fail($job, ARRAY[:'k'], :t, 'no');" ],
		[ 'requeue', "SELECT bgw_backfill.requeue($job, ARRAY[:'k']);" ],
		[ 'requeue_all', "SELECT bgw_backfill.requeue($job);" ],
		[ 'claim_group', "$claim($job, 2, '5 minutes', '$group') \\gset" ],
		[ 'release', "SELECT bgw_backfill.release($job, :'ks', :t);" ],
		[ 'claim_short', "$claim($job, 2, '1 millisecond') \\gset" ],
		[ 'claim_again', "$claim($job, 2, '1 millisecond', '$group') \\gset" ],
		[ 'fail_late', "SELECT bgw_backfill.fail($job, :'ks', 1, 'no');" ],
		tried('claim_repeatable', "SELECT pg_catalog.count(*) FROM bgw_backfill.claim($job, 4);", 'ISOLATION LEVEL REPEATABLE READ'),
		[ 'raise', "SELECT bgw_backfill.requeue($job, ARRAY['" . key($pair, 666) . "']);" ],
		[ 'raise_caught', "DO 'BEGIN PERFORM bgw_backfill.requeue(''$pair'', ARRAY[''" . key($pair, 666) . "'']); EXCEPTION WHEN OTHERS THEN NULL; END';" ],
		[ 'wrong_key', "SELECT bgw_backfill.requeue($job, '{no such key}');" ],
		(map { [ $_, "SELECT pg_catalog.count(*) FROM bgw_backfill.$_ q;" ] } qw(progress jobs pending_groups quarantine)),
		[ 'wait', "CALL bgw_backfill.wait($job, 'live', '1 minute');" ],
		(map { tried($_, "SELECT bgw_backfill.$_($job);") } qw(pause resume verify untrack)),
		tried('untrack_keep', "SELECT bgw_backfill.untrack($job, false);"),
		(map { tried("set_$_->[0]", "SELECT bgw_backfill.configure($job, '$_->[0]', $_->[1]);") }
			[ 'batch_size', "'100'" ], [ 'scan_interval', "'1 min'" ], [ 'max_attempts', 'NULL' ], [ 'max_leased', "'10'" ],
			[ 'handler', "'mal.handler(pg_catalog.text, pg_catalog.text, pg_catalog._int8, pg_catalog.int8)'" ],
			(map { [ $_, sprintf($condition, $_) ] } qw(pending_where match_where))),
		(map { tried("move_$_", "SELECT bgw_backfill.configure($job, 'mode', '$_');") } qw(column sidecar watermark)));

	foreach my $mode (qw(column sidecar watermark))
	{
		my %args = (job => "x$mode", mode => $mode, flag_column => 'flag2');
		push @cells, tried("dry_$mode", track_call($pair, %args, dry_run => 1)), tried("track_$mode", track_call($pair, %args));
	}
	return @cells;
}

# Let a job be live, if it may be at all: what is refused with a clear error is as well.
my %refused;

sub live_job
{
	my ($pair, $owner, %args) = @_;
	my $error = error_of($node, track_call($pair, %args), undef, $owner);

	if ($error =~ /^psql.*ERROR:  (.*)/ && $error !~ /internal|XX000/)
	{
		note("job $pair is refused: $1");
		$refused{$pair} = $1;
		return pass("job $pair is refused");
	}
	return ok(wait_for($node, "phase = 'live' OR state = 'failed'", $pair) && progress($node, 'phase', $pair) eq 'live', "job $pair is live");
}

# Nothing is handed out any more, nor in quarantine; what expired is settled by whoever comes next.
sub give_back
{
	my ($pair) = @_;

	return sql($node, "UPDATE bgw_backfill.claim SET expires_at = '-infinity' WHERE job = '$pair'; DELETE FROM bgw_backfill.attempt WHERE job = '$pair'");
}

my @jobs = (
	[ 'tside', 'types', 0, mode => 'sidecar' ],
	[ 'tcol', 'types', 0, mode => 'column' ],
	[ 'hside', 'hooks', 0, mode => 'sidecar' ],
	[ 'hcol', 'hooks', 1, mode => 'column', handler => 1 ],
	[ 'hwm', 'hooks', 0, mode => 'watermark' ]);
my %control = (tside => 'tctl', tcol => 'tctl', hside => 'hctl', hcol => 'rctl', pre => 'hctl');

make_pair(@$_[ 0 .. 2 ]) foreach @jobs, [ 'tctl', 'types', 0 ], [ 'hctl', 'hooks', 0 ], [ 'rctl', 'hooks', 1 ], [ 'pre', 'hooks', 0 ];
# bob has a job of his own, of nothing but the server's own.
$kind{bobs} = 'bob';
app($node, <<'SQL', undef, 'bob');
CREATE TABLE bobs (k bigint PRIMARY KEY, grp text, n int);
CREATE TABLE bobs_t (k bigint PRIMARY KEY REFERENCES bobs ON DELETE CASCADE, n int);
INSERT INTO bobs SELECT n, 'g' || n % 3, n FROM generate_series(1, 40) n;
INSERT INTO bobs_t SELECT n, n FROM generate_series(1, 20) n;
SQL

# What the server does without us. (Tables with a job have their claims open, or not: without one it is the same.)
foreach my $pair (qw(tctl hctl rctl))
{
	writes($pair, 0, 0, 15);
}

live_job($_->[0], 'mallory', @$_[ 3 .. $#$_ ]) foreach @jobs;
live_job('bobs', 'bob', mode => 'sidecar');
app($node, "GRANT SELECT ON $_->[0]_pending TO wendy, PUBLIC", undef, 'mallory') foreach grep { !$refused{ $_->[0] } } @jobs;
foreach my $pair (grep { !$refused{$_} } qw(tside tcol hside hcol))
{
	writes($pair, 0, 0, 15);
	writes($pair, 1, 30, 45);
	give_back($pair);
}
# The same without a deferred trigger on a source that we write.
if (!$refused{hcol})
{
	app($node, 'DROP TRIGGER deferred ON hcol', undef, 'mallory');
	session('wendy', 'hcol+restricted', map { [ "free_$_->[0]", $_->[1] ] } writes_to_target('hcol', 60));
}
app($node, <<'SQL', undef, 'mallory');
CREATE OR REPLACE VIEW hside_pending AS SELECT k, grp FROM hside_sidecar WHERE mal.imm('view', k);
CREATE RULE r AS ON INSERT TO hside_pending DO INSTEAD SELECT mal.evil('view_rule');
SQL
foreach my $pair ('bobs', grep { !$refused{$_} } map { $_->[0] } @jobs)
{
	foreach my $caller (qw(admin wendy bob mallory))
	{
		session($caller, $pair, calls($pair));
		give_back($pair);
	}
}

# What she puts on the table of pending keys, which is the extension's as far as writers go. It may be refused, or gone
# at any time. A direct write of hers shows whether it is there.
my %on_sidecar = (
	sc_before => "CREATE TRIGGER h BEFORE INSERT OR UPDATE OR DELETE ON SC FOR EACH ROW EXECUTE FUNCTION mal.trg('sc_before')",
	sc_after => "CREATE TRIGGER h AFTER INSERT OR UPDATE OR DELETE ON SC FOR EACH ROW EXECUTE FUNCTION mal.trg('sc_after')",
	sc_statement => "CREATE TRIGGER h AFTER INSERT OR UPDATE OR DELETE ON SC FOR EACH STATEMENT EXECUTE FUNCTION mal.trg('sc_statement')",
	sc_deferred => "CREATE CONSTRAINT TRIGGER h AFTER INSERT OR UPDATE OR DELETE ON SC DEFERRABLE INITIALLY DEFERRED"
	  . " FOR EACH ROW EXECUTE FUNCTION mal.trg('sc_deferred')",
	sc_idxexpr => "CREATE INDEX h ON SC (mal.imm('sc_idxexpr', k))",
	sc_idxpred => "CREATE INDEX h ON SC (k) WHERE mal.imm('sc_idxpred', k)",
	sc_fold => "CREATE INDEX h ON SC (mal.imm('sc_fold', 1), k) WHERE mal.imm('sc_fold', 2)",
	sc_stats => "CREATE STATISTICS h ON (mal.imm('sc_stats', 1)), k FROM SC",
	sc_exclude => "ALTER TABLE SC ADD CONSTRAINT h EXCLUDE USING btree ((mal.alt('sc_exclude', k)) WITH OPERATOR(pg_catalog.=)) DEFERRABLE INITIALLY DEFERRED",
	sc_rule => "CREATE RULE h AS ON DELETE TO SC DO ALSO SELECT mal.evil('sc_rule')",
	sc_policy => "CREATE POLICY h ON SC USING (mal.imm('sc_policy', k)); ALTER TABLE SC ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
	sc_check => "ALTER TABLE SC ADD CONSTRAINT h CHECK (mal.imm('sc_check', k)) NOT VALID",
	sc_default => "ALTER TABLE SC ALTER enqueued_at SET DEFAULT mal.same('sc_default', pg_catalog.now())");
my %off_sidecar = (
	(map { $_ => 'DROP TRIGGER IF EXISTS h ON SC' } qw(sc_before sc_after sc_statement sc_deferred)),
	(map { $_ => 'DROP INDEX IF EXISTS h' } qw(sc_idxexpr sc_idxpred sc_fold)),
	sc_stats => 'DROP STATISTICS IF EXISTS h',
	(map { $_ => 'ALTER TABLE SC DROP CONSTRAINT IF EXISTS h' } qw(sc_exclude sc_check)),
	sc_rule => 'DROP RULE IF EXISTS h ON SC',
	sc_policy => 'DROP POLICY IF EXISTS h ON SC; ALTER TABLE SC DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY',
	sc_default => 'ALTER TABLE SC ALTER enqueued_at SET DEFAULT pg_catalog.now()');

sub on_table { my ($sql, $table) = @_; $sql =~ s/\bSC\b/$table/g; return "$sql;"; }

# The writes that reach it, after which all is as it was; and claims, one of which takes a stale key away.
sub sidecar_writes
{
	my ($pair, $source_too) = @_;
	my $t = "${pair}_t";
	my @n = (64, 68, 72);
	my $row = sub { my ($n) = @_; return "('" . key($pair, $n) . "', '" . group($pair, 'g1') . "', 'new', $n)" };
	my @source = (
		[ 's_ins', "INSERT INTO $pair (k, grp, body, n) VALUES " . $row->(2000) . ';' ],
		[ 's_insmany', "INSERT INTO $pair (k, grp, body, n) VALUES " . $row->(2001) . ', ' . $row->(2002) . ';' ],
		[ 's_updgrp', "UPDATE $pair SET grp = (SELECT s.grp FROM $pair s WHERE " . n_is('s.', 62) . ') WHERE ' . n_is('', 2000, 2001) . ';' ],
		[ 's_del', "DELETE FROM $pair WHERE " . n_is('', 2000, 2001, 2002) . ';' ],
		[ 'claim', "SELECT pg_catalog.count(*) FROM bgw_backfill.claim('$pair', 100, '1 millisecond');" ],
		tried('s_trunc', "TRUNCATE $pair, $t;"));

	return ([ 'ins', target_row($pair, $n[0]) ],
		[ 'del', "DELETE FROM $t WHERE " . n_is('', $n[0]) . ';' ],
		[ 'insmany', "INSERT INTO $t (k, n) SELECT k, n FROM $pair WHERE " . n_is('', @n) . ';' ],
		[ 'delmany', "DELETE FROM $t WHERE " . n_is('', @n) . ';' ],
		$source_too ? @source : (),
		tried('claim_tried', "SELECT pg_catalog.count(*) FROM bgw_backfill.claim('$pair', 100);"),
		tried('dry_track', track_call($pair, job => 'xdry', mode => 'sidecar', dry_run => 1)));
}

# Matched, and in the table of pending keys all the same, so that a claim has something to take away; and no more.
sub stale { my ($pair) = @_; return sql($node, "SET session_replication_role = replica; INSERT INTO ${pair}_t (k, n) SELECT k, n FROM $pair WHERE n = 72; ALTER ROLE mallory NOSUPERUSER"); }
sub not_stale { my ($pair) = @_; return sql($node, "DELETE FROM ${pair}_t WHERE n = 72; ALTER ROLE mallory NOSUPERUSER"); }

# Is what she has put there still there?
sub hook_is_there
{
	my ($table) = @_;

	return sql($node, <<"SQL") > 0;
SELECT (SELECT count(*) FROM pg_trigger WHERE tgname = 'h' AND tgrelid = '$table'::regclass) + (SELECT count(*) FROM pg_class WHERE relname = 'h')
	+ (SELECT count(*) FROM pg_constraint WHERE conname = 'h' AND conrelid = '$table'::regclass) + (SELECT count(*) FROM pg_rewrite WHERE rulename = 'h')
	+ (SELECT count(*) FROM pg_policy WHERE polname = 'h') + (SELECT count(*) FROM pg_statistic_ext WHERE stxname = 'h')
	+ (SELECT count(*) FROM pg_attrdef WHERE adrelid = '$table'::regclass AND pg_get_expr(adbin, adrelid) ~ 'sc_default')
SQL
}

my @unheard;	# hooks of hers on the table of pending keys that are there: she has to hear of them when she writes to it
foreach my $pair (grep { !$refused{$_} } qw(hside tside))
{
	my $row = "('" . key($pair, -1) . "')";

	foreach my $hook (grep { $pair eq 'hside' || $_ ne 'sc_exclude' } @sidecar_hooks)
	{
		my $error = error_of($node, on_table($on_sidecar{$hook}, "${pair}_sidecar"), undef, 'mallory');

		note("$pair, $hook: $error") if $error;
		sql($node, "SELECT nextval('mal.armed')") if $hook eq 'sc_exclude';
		session('admin', "$pair+$hook", sidecar_writes($pair, 1));
		session('wendy', "$pair+$hook", sidecar_writes($pair, 0));
		give_back($pair);
		stale($pair);
		session('admin', "$pair+$hook", [ 'claim_stale', "SELECT pg_catalog.count(*) FROM bgw_backfill.claim('$pair', 100, '1 millisecond');" ]);
		not_stale($pair);
		push @unheard, [ $pair, $hook ] if !$error && hook_is_there("${pair}_sidecar");
		session('mallory', "self+$hook", tried($pair, "INSERT INTO ${pair}_sidecar (k) VALUES $row;\nDELETE FROM ${pair}_sidecar WHERE k IS NOT NULL;\nSET CONSTRAINTS ALL IMMEDIATE;"));
		sql($node, 'ALTER SEQUENCE mal.armed RESTART');
		error_of($node, on_table($off_sidecar{$hook}, "${pair}_sidecar"), undef, 'mallory');
		give_back($pair);
	}
}

# A table of that name that she has made before the worker comes to it, with all of that on it.
{
	my $error = error_of($node, 'BEGIN; ' . track_call('pre', mode => 'sidecar')
		  . ' CREATE TABLE pre_sidecar (k mal.dcolumn NOT NULL, grp mal.dgroup, enqueued_at timestamptz NOT NULL DEFAULT now());'
		  . join('', map { (my $statement = on_table($on_sidecar{$_}, 'pre_sidecar')) =~ s/ h / h_$_ /; $statement } grep { !/^sc_(?:rule|policy|default)$/ } @sidecar_hooks)
		  . ' COMMIT', undef, 'mallory');
	note("pre: $error") if $error;
	ok($error || wait_for($node, "phase = 'live' OR state = 'failed'", 'pre'), 'a table that was there before is taken, or not');
	note(progress($node, 'phase, state, last_error', 'pre'));
	sql($node, "SELECT nextval('mal.armed')");
	if (!$error)
	{
		session('admin', 'pre', sidecar_writes('pre', 1));
		session('wendy', 'pre', sidecar_writes('pre', 0));
	}
}

# The worker: a sweep of each job, other conditions, other modes, and the end.
sub wants { my ($pair, $call, $condition) = @_; app($node, "SELECT bgw_backfill.$call", undef, 'mallory'); return wait_for($node, "($condition) OR state = 'failed'", $pair); }

my $begun = sql($node, 'SELECT clock_timestamp()');
foreach my $pair (grep { !$refused{$_} } map { $_->[0] } @jobs)
{
	ok(wants($pair, "verify('$pair')", "verified_at > '$begun'"), "$pair: swept");
}
if (!$refused{hside} && !$refused{hwm} && !$refused{tcol})
{
	wants('hside', "configure('hside', 'match_where', \$\$mal.imm('match_where', n) AND n > 0\$\$)", "rebuilding IS NULL");
	wants('tcol', "configure('tcol', 'mode', 'sidecar')", "mode = 'sidecar'");
	wants('hwm', "configure('hwm', 'mode', 'column')", "mode = 'column'");
	wants('hside', "configure('hside', 'mode', 'watermark')", "mode = 'watermark'");
	note(sql($node, 'SELECT job, mode, phase, state, rebuilding, last_error FROM bgw_backfill.progress'));
}

# An index lock that admin waits for in track(), and a table whose index is an expression of hers meanwhile.
make_pair('late', 'plain', 0);
foreach my $dry (1, 0)
{
	my $mallory = $node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'mallory' ]);
	my $admin = $node->background_psql('postgres', on_error_stop => 0);
	my $cell = 'late/admin/' . ($dry ? 'dry_sidecar' : 'track_sidecar');

	$mallory->query_safe('BEGIN; REINDEX INDEX late_pkey');
	$admin->query_safe("SET application_name = '$cell'");
	$admin->query_until(qr/begun/, "\\echo begun\nBEGIN;\n" . track_call('late', mode => 'sidecar', dry_run => $dry) . "\n");
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = '$cell' AND wait_event_type = 'Lock'"),
		"$cell: waits for her lock");
	$mallory->query_safe('CREATE TABLE late_sidecar (k bigint NOT NULL, grp text, enqueued_at timestamptz NOT NULL DEFAULT now());'
		  . "CREATE INDEX ON late_sidecar (mal.imm('made_meanwhile', 1)); CREATE INDEX ON late_sidecar (k) WHERE mal.imm('made_meanwhile', 2); COMMIT");
	$admin->query('ROLLBACK');
	end_session($_) foreach $admin, $mallory;
	sql($node, 'DROP TABLE late_sidecar; ALTER ROLE mallory NOSUPERUSER');
}

# An operator that the server lacks, in a schema that is in everybody's path.
app($node, <<'SQL', undef, 'mallory');
CREATE FUNCTION public.oid_int4_eq(oid, integer) RETURNS boolean LANGUAGE plpgsql AS
	'BEGIN PERFORM mal.evil(''path_public''); RETURN pg_catalog.oideq($1, $2::pg_catalog.oid); END';
CREATE OPERATOR public.= (leftarg = oid, rightarg = integer, function = public.oid_int4_eq);
SQL
foreach my $call ("configure('hcol', 'mode', 'watermark')", "configure('hcol', 'mode', 'sidecar')")
{
	error_of($node, "SET application_name = 'public/admin/move'; BEGIN; SELECT bgw_backfill.$call; ROLLBACK");
}
app($node, 'DROP OPERATOR public.= (oid, integer)', undef, 'mallory');

foreach my $pair (grep { !$refused{$_} } map { $_->[0] } @jobs)
{
	app($node, "SELECT bgw_backfill.untrack('$pair')", undef, 'mallory');
}
ok($node->poll_query_until('postgres', "SELECT count(*) = 0 FROM bgw_backfill.job WHERE job IN ('tside', 'tcol', 'hside', 'hcol', 'hwm')"), 'the jobs are gone');
no_worker($node);

# (That her operators are found, where somebody asks for them.)
session('mallory', 'self', [ 'path', "SELECT 1 WHERE 'a'::pg_catalog.text = 'b'::pg_catalog.text;" ]);

# What the log says: cell => hook => role => that was not its own session's.
my %ran;
my %super;
my $log = log_since($node, 0);
while ($log =~ /(EVIL|SUPER)\|([^|\n]*)\|([^|\n]*)\|(?:([^|\n]*)\|([^|\n]*)\|)?/g)
{
	my ($what, $cell, $hook, $current) = ($1, $2, $3, $4, $5);

	$cell = 'worker' if $cell eq '' || $cell =~ /worker/;
	next if $cell !~ m{/|^worker$};	# what the test itself does
	if ($what eq 'SUPER')
	{
		$super{$cell}{$hook} = 1;
		next;
	}
	$ran{$cell}{$hook}{$current} = 1;
}

# Cells in which the job was given up for the statement, with a warning: nothing was tried there.
my %given_up = map { $_ => 1 } $log =~ /\] (\S+) WARNING:  job "\w+" cannot follow/g;

# The same cell without a job, if it has one.
sub control_of
{
	my ($cell) = @_;

	return unless $cell =~ m{^([^/+]+)(?:\+\w+)?/(admin|wendy)/(?:free_|held_)?(\w+)$} && $control{$1};
	return exists $changed{"$control{$1}/$2/free_$3"} ? "$control{$1}/$2/free_$3" : undef;
}

# What the server does by itself: as whom a hook ran there, or what it left in the session. Comparisons depend on the
# shape of an index: those count that any statement of the same caller made.
my %any_control;
foreach my $cell (grep { m{^(?:tctl|hctl|rctl)/} } keys %ran)
{
	my ($caller) = $cell =~ m{/(\w+)/};
	$any_control{$caller}{$_} = 1 foreach map { my $hook = $_; map { "$hook $_" } keys %{ $ran{$cell}{$hook} } } 'comparison';
	$any_control{$caller}{"left:comparison"} = 1;
}

sub servers_own
{
	my ($cell, $hook, $role) = @_;
	my $control = control_of($cell) or return 0;
	my ($caller) = $control =~ m{/(\w+)/};

	# mode column: the index that we make has her condition, which the server folds and evaluates as who reads or writes
	# her source; an update of an indexed column makes entries in all of her indexes; and deferred triggers on her source
	# fire as who commits (README, "Rights")
	return 1 if $cell =~ m{^hcol[/+]} && ($hook =~ /^(?:pending_where|cast|src_deferred)$/ || ($hook =~ /^src_idx/ && $cell =~ /_s_/));
	# where there is one, our write of the source is not restricted, which would refuse it
	return 1 if $cell =~ m{^hcol/} && $hook eq 'temp';
	return 1 if $any_control{$caller}{ $role ? "$hook $role" : "left:$hook" };
	return $role ? $ran{$control}{$hook}{$role} : scalar grep { $_ eq "left:$hook" || $_ eq $hook } @{ $changed{$control} // [] };
}

sub is_control { return $_[0] =~ m{^(?:tctl|hctl|rctl|self)[/+]}; }

# What is bad about each hook, how => cells; written short.
sub listed
{
	my ($bad) = @_;

	return join("\n", map { "$_: " . join(' ', @{ $bad->{$_} }) } sort keys %$bad);
}

my @cells = grep { !is_control($_) } sort keys %ran;
foreach my $hook (sort map { split /\n/ } sql($node, 'SELECT name FROM chk.hook'))
{
	my %bad;

	foreach my $cell (@cells)
	{
		foreach my $role (grep { $_ ne 'mallory' && !servers_own($cell, $hook, $_) } sort keys %{ $ran{$cell}{$hook} // {} })
		{
			push @{ $bad{"as $role" . ($super{$cell}{$hook} ? ', and made her superuser' : '')} }, $cell;
		}
	}
	foreach my $cell (grep { !is_control($_) } sort keys %changed)
	{
		push @{ $bad{'left in the session'} }, $cell if grep { $_ eq "left:$hook" } @{ $changed{$cell} } and !servers_own($cell, $hook);
	}
	is(listed(\%bad), '', "$hook: her code ran as nobody but her, and left nothing behind");
}
# Cells after which something in the session was not as before, which without a job is.
sub changed_cells
{
	my ($what) = @_;

	return grep { my $cell = $_; !is_control($cell) && grep({ $_ eq $what } @{ $changed{$cell} }) && !servers_own($cell, $what) } sort keys %changed;
}

foreach my $setting (qw(search_path DateStyle work_mem))
{
	is(join(' ', changed_cells("setting:$setting")), '', "nobody's $setting was changed");
}
is(join(' ', changed_cells('role')), '', 'everybody was himself afterwards');
is(join(' ', changed_cells('temp')), '', "nothing of hers was left in anybody's temporary schema");
is(join(' ', grep { !is_control($_) && !control_of($_) } sort keys %super), '', 'and no call made her superuser');
is(sql($node, "SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper AND oid <> 10"), '', 'nor is she, or anybody else');

# That all of this was tried: her code did run, as her, in what we call on her behalf.
my %as_her = map { my $cell = $_; map { $ran{$cell}{$_}{mallory} ? ($_ => 1) : () } keys %{ $ran{$cell} } } @cells;
my @expected = (
	$refused{tside} || $refused{tcol} ? () : grep({ $_ ne 'column_domain' || !$refused{hside} } @type_hooks),
	$refused{hside} || $refused{hcol} ? () : (@condition_hooks, 'handler', map { "src_$_" } qw(check generated idxexpr idxpred before after statement)));
is(join(' ', grep { !$as_her{$_} } @expected), '', 'where it is to run, it ran as her');
is(join(' ', map { "$_->[0]+$_->[1]" } grep { !$ran{"self+$_->[1]/mallory/$_->[0]"}{ $_->[1] } } @unheard), '',
	'what she put on the table of pending keys, and was let there, is heard of when she writes to it');
is(join(' ', grep { m{/(?:free|held)_} } sort keys %given_up), '', 'what was written to her tables was followed');
ok($ran{'self/mallory/path'}{path}{mallory}, 'her operators were to be found');
# (Token 0: the group had nothing left to claim.)
foreach my $pair (grep { !$refused{$_} } qw(tside tcol hside hcol hwm))
{
	my %caller = map { $_ => 1 } qw(admin mallory), $pair eq 'hcol' ? () : 'wendy';	# row security
	is(join(' ', map { my $caller = $_; map { "$caller/$_: " . ($done{"$pair/$caller/$_"} // 'not run') } grep { ($done{"$pair/$caller/$_"} // '') !~ /^1$|^token 0 / }
				qw(claim extend fail release claim_group claim_again progress quarantine), $caller eq 'wendy' ? () : 'wait' } sort keys %caller),
		'', "$pair: who may, claimed and gave back");
}
note("$_: $done{$_}") foreach grep { $done{$_} ne '1' && $_ !~ m{/bob/|^bobs/} } sort keys %done;
no_crash($node);
done_testing();
