# Columns that are renamed are followed, by writes at once; what cannot be followed is put right by configure(), in any
# state of the job.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('renames', conf => "bgw_backfill.scan_interval = 1s\nbgw_backfill.batch_sleep = 0\nbgw_backfill.retry_delay = 10ms");

# A pair and its job: eligible rows have a body, a match is of model v2. Some of all kinds.
sub begin
{
	my ($mode, $more) = @_;

	app($node, <<"SQL");
CREATE TABLE events (id bigint PRIMARY KEY, org text, body text, note text);
CREATE TABLE emb (id bigserial PRIMARY KEY, event_id bigint NOT NULL REFERENCES events ON DELETE CASCADE, model text);
CREATE INDEX ON emb (event_id);
INSERT INTO events SELECT i, 'org-' || i % 5, CASE WHEN i % 7 > 0 THEN 'x' ELSE '' END FROM generate_series(1, 3000) i;
INSERT INTO emb (event_id, model) SELECT i, CASE WHEN i % 3 > 0 THEN 'v2' ELSE 'v1' END FROM generate_series(1, 2000) i;
SELECT bgw_backfill.track('events', 'emb', mode => '$mode', source_key => 'id', target_key => 'event_id', group_by => 'org',
	pending_where => \$\$body <> ''\$\$, match_where => \$\$model = 'v2'\$\$);
@{[ $more // '' ]}
SQL
	return;
}

sub finish
{
	my ($what) = @_;

	is(progress($node, "errors, last_error"), '0|', "$what: no error") if $what !~ /gone/;
	app($node, "SELECT bgw_backfill.untrack('events')");
	ok($node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM bgw_backfill.jobs'), "$what: taken away");
	is(sql($node, "SELECT count(*) FROM pg_class WHERE relname ~ '^events_' AND relkind <> 'i'"), '0', "$what: with all that was made");
	app($node, 'DROP TABLE emb, events');
	return;
}

# The view against the truth, with the columns' names as they are.
sub wrong
{
	my (%n) = @_;
	my $match = $n{match} // "$n{model} = 'v2'";

	return sql($node, <<"SQL");
SELECT (SELECT count(*) FROM (SELECT e.$n{id} FROM events e WHERE ($n{where}) AND NOT EXISTS (SELECT FROM emb t WHERE t.$n{event_id} = e.$n{id} AND ($match))
	EXCEPT SELECT $n{id} FROM events_pending) x) || ' ' || (SELECT count(*) FROM (SELECT $n{id} FROM events_pending
	EXCEPT SELECT e.$n{id} FROM events e WHERE ($n{where}) AND NOT EXISTS (SELECT FROM emb t WHERE t.$n{event_id} = e.$n{id} AND ($match))) x)
SQL
}

# A pass over what no trigger tells of, and the scan after it.
sub look
{
	app($node, "SELECT bgw_backfill.configure('events', 'scan_interval', '7d')");
	no_worker($node);
	scan($node);
	app($node, "SELECT bgw_backfill.configure('events', 'scan_interval', NULL)");
	return;
}

# Writes of all kinds; returns the warnings.
my $next = 10000;
sub writes
{
	my (%n) = @_;
	my ($stdout, $stderr) = ('', '');

	$next += 100;
	$node->psql('postgres', <<"SQL", extra_params => [ '-U', 'app' ], stdout => \$stdout, stderr => \$stderr);
INSERT INTO events ($n{id}, $n{org}, $n{body}) SELECT $next + i, 'org-' || i % 5, CASE WHEN i % 7 > 0 THEN 'x' ELSE '' END FROM generate_series(1, 50) i;
INSERT INTO emb ($n{event_id}, $n{model}) SELECT $next + i, CASE WHEN i % 3 > 0 THEN 'v2' ELSE 'v1' END FROM generate_series(1, 20) i;
INSERT INTO emb ($n{event_id}, $n{model}) VALUES ($next + 30, 'v2'), ($next + 31, 'v1');
DELETE FROM emb WHERE $n{event_id} IN ($next + 2, $next + 4);
UPDATE emb SET $n{model} = 'v1' WHERE $n{event_id} = $next + 5;
UPDATE events SET $n{body} = '' WHERE $n{id} = $next + 40;
UPDATE events SET $n{body} = 'y' WHERE $n{id} = $next + 42;
UPDATE events SET $n{id} = $n{id} + 50 WHERE $n{id} = $next + 45;
DELETE FROM events WHERE $n{id} IN ($next + 41, $next + 1);
SQL
	return $stderr;
}

my %old = (id => 'id', org => 'org', body => 'body', event_id => 'event_id', model => 'model', where => "body <> ''");
foreach my $mode (qw(column sidecar watermark))
{
	begin($mode);
	wait_phase($node, 'live');
	app($node, "SELECT bgw_backfill.configure('events', 'scan_interval', '7d')");
	no_worker($node);

	# The conditions' columns; others come to the names that they had.
	app($node, 'ALTER TABLE events RENAME body TO content; ALTER TABLE emb RENAME model TO m;
		ALTER TABLE events RENAME note TO body; ALTER TABLE emb ADD COLUMN model int');
	my %n = (%old, body => 'content', model => 'm', where => "content <> ''");
	is(writes(%n), '', "$mode: no write is warned of after the conditions' columns were renamed");
	is(wrong(%n), '0 0', "$mode: and all of them are followed at once") if $mode ne 'watermark';
	scan($node);
	is(wrong(%n), '0 0', "$mode: exact after the next scan");
	is(sql($node, 'SELECT pending_where, match_where FROM bgw_backfill.jobs'), "(content <> ''::text)|(m = 'v2'::text)", "$mode: shown under the new names");
	is(writes(%n), '', "$mode: nor is any warned of then");
	scan($node) if $mode eq 'watermark';
	is(wrong(%n), '0 0', "$mode: exact");

	# Key, group, flag, the target's key.
	app($node, 'ALTER TABLE events RENAME id TO eid; ALTER TABLE events RENAME org TO tenant; ALTER TABLE emb RENAME event_id TO event');
	app($node, 'ALTER TABLE events RENAME has_embedding TO done') if $mode eq 'column';
	%n = (%n, id => 'eid', org => 'tenant', event_id => 'event');
	my $warnings = writes(%n);
	is($warnings, '', "$mode: no write is warned of after the keys were renamed") if $mode ne 'sidecar';
	my $verified = progress($node, 'verified_at');
	scan($node);
	ok(wait_for($node, "verified_at > '$verified'"), "$mode: a sweep follows") if $mode eq 'sidecar';
	is(sql($node, 'SELECT source_key, target_key, group_by, flag_column FROM bgw_backfill.jobs'),
		'eid|event|tenant|' . ($mode eq 'column' ? 'done' : ''), "$mode: keys, group and flag are followed");
	is(wrong(%n), '0 0', "$mode: exact, the view having the new names as well");
	is(writes(%n), '', "$mode: no write is warned of");
	scan($node);
	is(wrong(%n), '0 0', "$mode: exact");
	is(app($node, "SELECT count(*) = 5, count(DISTINCT group_key) = 5 FROM bgw_backfill.claim('events', 5)"), 't|t', "$mode: claims go on");
	finish($mode);

	# In mid-fill.
	begin($mode, "SELECT bgw_backfill.configure('events', 'batch_size', '10'), bgw_backfill.configure('events', 'batch_sleep', '20ms');");
	wait_batches($node, 5);
	app($node, 'ALTER TABLE events RENAME id TO eid; ALTER TABLE events RENAME org TO tenant; ALTER TABLE events RENAME body TO content;
		ALTER TABLE emb RENAME event_id TO event; ALTER TABLE emb RENAME model TO m');
	%n = (id => 'eid', org => 'tenant', body => 'content', event_id => 'event', model => 'm', where => "content <> ''");
	writes(%n);
	app($node, "SELECT bgw_backfill.configure('events', 'batch_size', NULL), bgw_backfill.configure('events', 'batch_sleep', '0')");
	ok(wait_phase($node, 'live'), "$mode: renames in mid-fill");
	look() if $mode eq 'watermark';
	is(wrong(%n), '0 0', "$mode: exact");
	finish("$mode, mid-fill");

	# A condition that is changed in mid-fill.
	begin($mode, "SELECT bgw_backfill.configure('events', 'batch_size', '10'), bgw_backfill.configure('events', 'batch_sleep', '20ms');");
	wait_batches($node, 5);
	app($node, "SELECT bgw_backfill.configure('events', 'match_where', \$\$model = 'v1'\$\$), bgw_backfill.configure('events', 'pending_where', \$\$body = ''\$\$),
		bgw_backfill.configure('events', 'batch_size', NULL), bgw_backfill.configure('events', 'batch_sleep', '0')");
	is(writes(%old), '', "$mode: writes after new conditions in mid-fill");
	ok(wait_phase($node, 'live'), "$mode: live with them");
	look() if $mode eq 'watermark';
	is(wrong(%old, match => "model = 'v1'", where => "body = ''"), '0 0', "$mode: exact");
	is(writes(%old), '', "$mode: writes then");
	look() if $mode eq 'watermark';
	is(wrong(%old, match => "model = 'v1'", where => "body = ''"), '0 0', "$mode: exact");
	finish("$mode, new conditions");

	# A column that is gone: the job fails, and says what to do, which helps.
	begin($mode);
	wait_phase($node, 'live');
	app($node, 'ALTER TABLE emb DROP COLUMN model CASCADE');
	ok(wait_for($node, "state = 'failed'"), "$mode: a condition's column is gone: the job fails");
	like(progress($node, 'last_error'), qr/column "model" does not exist.*change it with bgw_backfill\.configure\(\)/, "$mode: with a hint");
	app($node, "SELECT bgw_backfill.configure('events', 'match_where', NULL)");
	app($node, "CALL bgw_backfill.wait('events', timeout => '1 min')");
	look() if $mode eq 'watermark';
	is(wrong(%old, match => 'true'), '0 0', "$mode: which helps when it is followed");
	app($node, 'ALTER TABLE events DROP COLUMN body CASCADE');
	ok(wait_for($node, "state = 'failed'"), "$mode: so does the source's");
	app($node, "SELECT bgw_backfill.configure('events', 'pending_where', 'org IS NOT NULL')");
	app($node, "CALL bgw_backfill.wait('events', timeout => '1 min')");
	look() if $mode eq 'watermark';
	is(wrong(%old, match => 'true', where => 'true'), '0 0', "$mode: and is helped");
	finish("$mode, gone");
}

is(error_of($node, "SELECT bgw_backfill.configure('nothing', 'match_where', NULL)", 'app') =~ /does not exist/, 1, 'no such job');
no_crash($node);
done_testing();
