# What a job has made is the job's wherever it stands and whatever its name: the source goes to another schema, the owner
# renames a view, an index, the table of pending keys, or moves one away.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('objects', conf => "bgw_backfill.scan_interval = 7d\nbgw_backfill.batch_sleep = 0\nbgw_backfill.retry_delay = 10ms");
sql($node, 'CREATE SCHEMA other AUTHORIZATION app; CREATE SCHEMA third AUTHORIZATION app');

# All that is named after the job or stands on its tables, but for the tables' own.
sub made
{
	return sql($node, <<'SQL');
SELECT coalesce(string_agg(n.nspname || '.' || c.relname, ' ' ORDER BY n.nspname, c.relname), '') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN ('public', 'other', 'third') AND c.relname !~ '_pkey$' AND c.relname NOT IN ('events', 'events_emb', 'events_emb_id_seq')
	AND c.relname !~ 'events_emb'
SQL
}

sub identities { return sql($node, "SELECT objects FROM bgw_backfill.job"); }

# The view against the truth, both wherever they are.
sub wrong
{
	my ($source, $view, $target) = @_;

	return sql($node, <<"SQL");
SELECT (SELECT count(*) FROM (SELECT id FROM $source e WHERE NOT EXISTS (SELECT FROM $target t WHERE t.event_id = e.id) EXCEPT SELECT id FROM $view) x)
	|| ' ' || (SELECT count(*) FROM (SELECT id FROM $view EXCEPT SELECT id FROM $source e WHERE NOT EXISTS (SELECT FROM $target t WHERE t.event_id = e.id)) x)
SQL
}

my $next = 100000;
sub writes
{
	my ($source, $target) = @_;
	my $stderr = '';

	$next += 100;
	$node->psql('postgres', "INSERT INTO $source (id, org, body) SELECT $next + i, 'org-1', 'x' FROM generate_series(1, 20) i;
		INSERT INTO $target (event_id) SELECT $next + i FROM generate_series(1, 10) i; DELETE FROM $target WHERE event_id IN ($next + 1, $next + 3);
		DELETE FROM $source WHERE id = $next + 15", extra_params => [ '-U', 'app' ], stderr => \$stderr);
	return $stderr;
}

my %expected = (
	column => [ '%s.events_pending %s.events_pending_idx', '%s.events_pending' ],
	sidecar => [ '%s.events_pending %s.events_sidecar %s.events_sidecar_idx %s.events_sidecar_key' ],
	watermark => [ '%s.events_pending %s.events_sidecar %s.events_sidecar_idx %s.events_sidecar_key' ]);

foreach my $mode (qw(column sidecar watermark))
{
	create_pair($node, rows => 2000);
	my $before = made();
	app($node, "SELECT bgw_backfill.track('events', 'events_emb', mode => '$mode', source_key => 'id', target_key => 'event_id', group_by => 'org')");
	wait_for($node, 'pending IS NOT NULL AND worker_pid IS NULL');
	my $objects = $expected{$mode}[0];
	is(made(), $objects =~ s/%s/public/gr, "$mode: made beside the source");
	my $identities = identities();

	# The source goes away, and comes back.
	foreach my $schemas ([ 'public', 'other' ], [ 'other', 'public' ])
	{
		my ($from, $to) = @$schemas;

		app($node, "ALTER TABLE $from.events SET SCHEMA $to");
		is(writes("$to.events", 'events_emb'), '', "$mode, $to: writes are followed without a warning");
		is(wrong("$to.events", "$from.events_pending", 'events_emb'), '0 0', "$mode, $to: exact at once") if $mode ne 'watermark';
		scan($node);
		is(made(), $objects =~ s/%s/$to/gr, "$mode, $to: all of it has gone along");
		is(identities(), $identities, "$mode, $to: it is what it was");
		is(writes("$to.events", 'events_emb'), '', "$mode, $to: writes then");
		scan($node) if $mode eq 'watermark';
		is(wrong("$to.events", "$to.events_pending", 'events_emb'), '0 0', "$mode, $to: exact");
		is(progress($node, 'phase, errors, last_error'), 'live|0|', "$mode, $to: no error");
	}

	# The owner renames and moves what is ours.
	app($node, 'ALTER VIEW events_pending RENAME TO queue');
	app($node, $mode eq 'column' ? 'ALTER INDEX events_pending_idx RENAME TO my_idx' :
		'ALTER TABLE events_sidecar RENAME TO keys; ALTER INDEX events_sidecar_idx RENAME TO keys_a; ALTER INDEX events_sidecar_key RENAME TO keys_b');
	is(writes('events', 'events_emb'), '', "$mode, renamed: writes are followed without a warning");
	scan($node);
	is(made(), $mode eq 'column' ? 'public.my_idx public.queue' : 'public.keys public.keys_a public.keys_b public.queue', "$mode, renamed: nothing is made anew");
	is(identities(), $identities, "$mode, renamed: it is what it was");
	is(wrong('events', 'queue', 'events_emb'), '0 0', "$mode, renamed: exact");
	app($node, 'ALTER VIEW queue SET SCHEMA third');
	app($node, 'ALTER TABLE keys SET SCHEMA third') if $mode ne 'column';
	is(writes('events', 'events_emb'), '', "$mode, moved: writes are followed without a warning");
	scan($node);
	is(made(), $mode eq 'column' ? 'public.my_idx third.queue' : 'third.keys third.keys_a third.keys_b third.queue', "$mode, moved: nothing is made anew");
	is(wrong('events', 'third.queue', 'events_emb'), '0 0', "$mode, moved: exact");
	my $verified = progress($node, 'verified_at');
	app($node, "SELECT bgw_backfill.verify('events')");
	ok(wait_for($node, "verified_at > '$verified' AND mismatches = 0"), "$mode, moved: a sweep finds nothing");
	is(app($node, "SELECT count(*) FROM bgw_backfill.claim('events', 7)"), '7', "$mode, moved: claims go on");
	# an index that is gone is made where its table stands
	app($node, $mode eq 'column' ? 'DROP INDEX my_idx' : 'DROP INDEX third.keys_a');
	no_worker($node);
	sql($node, "UPDATE bgw_backfill.job_state SET scan_at = scan_at - interval '8 days'; UPDATE bgw_backfill.job SET paused = paused");
	ok($node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_class WHERE relname = 'events_" . ($mode eq 'column' ? 'pending' : 'sidecar') . "_idx'"), "$mode: an index that is dropped is made again");
	wait_for($node, "phase = 'live' AND worker_pid IS NULL");
	# what is dropped is made under its own name beside the source
	app($node, 'DROP VIEW third.queue');
	sql($node, "UPDATE bgw_backfill.job_state SET scan_at = scan_at - interval '8 days'; UPDATE bgw_backfill.job SET paused = paused");
	ok($node->poll_query_until('postgres', "SELECT to_regclass('public.events_pending') IS NOT NULL"), "$mode: a view that is dropped is made again");
	wait_for($node, "phase = 'live' AND worker_pid IS NULL");
	is(wrong('events', 'events_pending', 'events_emb'), '0 0', "$mode: exact");

	# untrack() with the source elsewhere, before anybody has seen that.
	app($node, 'ALTER TABLE events SET SCHEMA other');
	app($node, "SELECT bgw_backfill.untrack('events')");
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM bgw_backfill.jobs'), "$mode: taken away");
	is(made(), $before, "$mode: nothing stays behind");
	is(sql($node, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'other.events'::regclass AND attname = 'has_embedding'"), '0', "$mode: the flag neither");
	app($node, 'DROP TABLE events_emb, other.events');
}

# A name that is taken where the source goes to: said, and helped by the hint.
create_pair($node, rows => 200);
app($node, "SELECT bgw_backfill.track('events', 'events_emb', mode => 'sidecar', source_key => 'id', target_key => 'event_id')");
wait_for($node, 'pending IS NOT NULL AND worker_pid IS NULL');
app($node, 'CREATE TABLE other.events_pending (); ALTER TABLE events SET SCHEMA other');
sql($node, "UPDATE bgw_backfill.job_state SET scan_at = scan_at - interval '8 days'; UPDATE bgw_backfill.job SET paused = paused");
ok(wait_for($node, "last_error ~ 'relation or type \"events_pending\" already exists.*Rename it or drop it, then use bgw_backfill.resume'"), 'a name that is taken is an error, with a hint');
app($node, "DROP TABLE other.events_pending; SELECT bgw_backfill.resume('events')");
ok($node->poll_query_until('postgres', "SELECT to_regclass('other.events_pending') IS NOT NULL AND to_regclass('public.events_pending') IS NULL"), 'which helps');
is(wrong('other.events', 'other.events_pending', 'events_emb'), '0 0', 'exact');
no_crash($node);
done_testing();
