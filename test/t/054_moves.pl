# A live job moves to another mode while its tables are written, between the verification and the switch as well; what is
# asked of it meanwhile; and who may read the view before and after.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('moves', conf => "bgw_backfill.batch_sleep = 0\nbgw_backfill.scan_interval = 1s\nbgw_backfill.lookback = 100\n"
	  . "bgw_backfill.lock_timeout = 10s");
sql($node, 'CREATE ROLE reader LOGIN; CREATE ROLE clerk LOGIN; CREATE ROLE narrow LOGIN');
create_pair($node, rows => 3000);
app($node, <<'SQL');
GRANT SELECT ON events TO reader;
GRANT SELECT (id, org, body) ON events TO clerk;
GRANT SELECT (id, org) ON events TO narrow;
SELECT bgw_backfill.track('events', 'events_emb', pending_where => $$body <> ''$$, group_by => 'org');
SQL
wait_phase($node, 'live');
app($node, 'GRANT SELECT ON events_pending TO reader, clerk, narrow; GRANT SELECT (has_embedding) ON events TO clerk');

# What is asked for, or the error and its hint.
sub mode
{
	my ($mode) = @_;

	my (undef, undef, $said) = $node->psql('postgres', "SELECT bgw_backfill.configure('events', 'mode', '$mode')",
		extra_params => [ '-U', 'app' ]);
	return $said;
}

# The view against the truth, in one snapshot, and with it the mode.
sub seen
{
	return app($node, <<'SQL');
WITH truth AS (SELECT id, org FROM events s WHERE body <> '' AND NOT EXISTS (SELECT FROM events_emb WHERE event_id = s.id))
SELECT mode, (SELECT count(*) FROM (TABLE truth EXCEPT ALL TABLE events_pending) x) AS lacking,
	(SELECT count(*) FROM (TABLE events_pending EXCEPT ALL TABLE truth) x) AS stale FROM bgw_backfill.progress
SQL
}

# Far below the newest keys, and at them: what starts to be pending, stops, goes, and changes its group.
my $round = 0;
sub change
{
	$round++;
	return app($node, <<"SQL");
DELETE FROM events_emb WHERE event_id BETWEEN $round * 300 AND $round * 300 + 99;
UPDATE events SET body = 'text' WHERE id BETWEEN $round * 300 + 100 AND $round * 300 + 149;
UPDATE events SET body = NULL WHERE id BETWEEN $round * 300 + 150 AND $round * 300 + 159;
UPDATE events SET org = 'moved' WHERE id BETWEEN $round * 300 + 160 AND $round * 300 + 199;
DELETE FROM events WHERE id BETWEEN $round * 300 + 200 AND $round * 300 + 209;
INSERT INTO events_emb SELECT id FROM events WHERE id BETWEEN $round * 300 + 210 AND $round * 300 + 249 ON CONFLICT DO NOTHING;
INSERT INTO events SELECT max(id) + 1, 'new', 'text' FROM events;
SQL
}

# Who reads the view by then without the right to.
my %lacks = (
	watermark => qr/WARNING: .* columns of table "events_emb" that reader, clerk, narrow may not.*GRANT SELECT ON public\.events_emb TO reader, clerk, narrow/s,
	column => qr/WARNING: .* columns of table "events" that narrow may not/,
	sidecar => qr/\A(?!.*WARNING)/s);
my $from = 'column';
foreach my $to (qw(watermark sidecar column sidecar watermark column))
{
	# the switch waits for it, and the build of an index before that
	my $old = old_snapshot($node);

	like(mode($to), $lacks{$to}, "$from to $to: readers that need more are named");
	like(mode($to), qr/NOTICE:  job "events" is being moved to mode "$to" already/, 'asked again');
	my ($third) = grep { $_ ne $from && $_ ne $to } qw(column sidecar watermark);
	like(mode($third), qr/ERROR:  job "events" is being moved to mode "$to".*HINT:.*configure\('events', 'mode', '$from'\)/s, 'asked for the third mode');
	my $step = $to eq 'column' ? 'index%' : 'verified, waits for older snapshots';
	ok(wait_for($node, "rebuilding LIKE 'mode $to: $step'"), 'waits for older snapshots');
	change();
	is(seen(), "$from|0|0", 'the view is right before the switch') if $from ne 'watermark';
	if ($from eq 'watermark' || $to eq 'column')
	{
		end_session($old);
	}
	else
	{
		# the switch waits for a lock, and whoever has it empties the target: what was verified is not so any more
		my $truncate = $node->background_psql('postgres', on_error_stop => 0);

		app($node, 'CREATE TABLE backup_rows AS SELECT event_id FROM events_emb');
		$truncate->query_safe('BEGIN; TRUNCATE events_emb');
		end_session($old);
		ok($node->poll_query_until('postgres',
			"SELECT count(*) > 0 FROM pg_locks WHERE relation = 'events_emb'::regclass AND NOT granted"), 'the switch waits for a lock');
		$truncate->query_safe('COMMIT');
		end_session($truncate);
	}
	ok(wait_for($node, "mode = '$to' AND rebuilding IS NULL"), 'moved');
	is(seen(), "$to|0|0", 'the view is right after the switch') if $from ne 'watermark';
	is(app($node, 'SELECT count(*) > 0 FROM events_pending', undef, $_), 't', "$_ may read it")
	  foreach $to eq 'watermark' ? () : $to eq 'column' ? qw(reader clerk) : qw(reader clerk narrow);
	app($node, 'INSERT INTO events_emb SELECT event_id FROM backup_rows b WHERE EXISTS (SELECT FROM events WHERE id = event_id)
		ON CONFLICT DO NOTHING; DROP TABLE backup_rows') if sql($node, "SELECT to_regclass('backup_rows') IS NOT NULL") eq 't';
	$from = $to;
}
no_crash($node);
done_testing();
