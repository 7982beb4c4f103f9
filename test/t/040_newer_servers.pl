# What only newer servers have: used where it helps, refused where it could not work.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('newer');
my $version = server_version($node);

create_pair($node, rows => 1000);
track($node);
wait_phase($node, 'live');

SKIP:
{
	skip 'custom wait events are of PostgreSQL 17', 3 if $version < 17;
	is( sql($node, "SELECT wait_event_type || '/' || wait_event FROM pg_stat_activity WHERE backend_type = 'bgw_backfill launcher'"),
		'Extension/BgwBackfillLauncherMain',
		'the launcher waits under its own name');
	settings($node, batch_size => 1, batch_sleep => '1900ms');
	app($node, "SELECT bgw_backfill.verify('events')");
	ok( $node->poll_query_until('postgres', "SELECT wait_event = 'BgwBackfillWorkerSleep' FROM pg_stat_activity WHERE backend_type = 'bgw_backfill worker'"),
		'a worker between two batches, too');
	my $session = $node->background_psql('postgres');
	$session->query_until(qr/waits/, "\\echo waits\nCALL bgw_backfill.wait('events', 'uninstall', '1 minute');\n");
	ok( $node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'BgwBackfillWaitForPhase'"),
		'and wait()');
	settings($node, batch_size => undef, batch_sleep => undef);
	app($node, "SELECT bgw_backfill.untrack('events')");
	$session->quit;
}

SKIP:
{
	skip 'virtual generated columns are of PostgreSQL 18', 6 if $version < 18;
	app($node, <<'SQL');
CREATE TABLE docs (id bigint PRIMARY KEY, body text, has_body boolean GENERATED ALWAYS AS (body IS NOT NULL) VIRTUAL);
CREATE TABLE docs_emb (event_id bigint PRIMARY KEY REFERENCES docs, model text, counts boolean GENERATED ALWAYS AS (model = 'm1') VIRTUAL);
INSERT INTO docs SELECT n, 'x' FROM generate_series(1, 20) n;
INSERT INTO docs_emb SELECT n, 'm' || n % 2 FROM generate_series(1, 10) n;
SQL
	my $refused = qr/column "has_body" of table "docs" is a virtual generated column.*HINT:  Use a stored generated column/s;
	like(error_of($node, "SELECT bgw_backfill.track('docs', 'docs_emb', pending_where => 'has_body')", undef, 'app'), $refused, 'one in pending_where is refused');
	like(error_of($node, "SELECT bgw_backfill.track('docs', 'docs_emb', group_by => 'has_body')", undef, 'app'), $refused, 'one in group_by, too');
	like(error_of($node, "SELECT bgw_backfill.track('docs', 'docs_emb', flag_column => 'has_body')", undef, 'app'), qr/is a generated column/, 'it cannot be the flag');

	app($node, "SELECT bgw_backfill.track('docs', 'docs_emb', match_where => 'counts')");
	ok(wait_phase($node, 'live', 'docs'), 'one in match_where works');
	app($node, "UPDATE docs_emb SET model = 'm' || (event_id + 1) % 2; INSERT INTO docs_emb SELECT n, 'm' || n % 2 FROM generate_series(11, 20) n");
	is(app($node, 'SELECT count(*) FROM docs WHERE has_embedding <> EXISTS (SELECT FROM docs_emb WHERE event_id = id AND counts)'),
		'0', 'and is followed by the triggers');
	is(app($node, 'SELECT count(*) FROM docs_pending'), '10', 'its rows are pending');
}

SKIP:
{
	skip 'foreign keys that are not enforced are of PostgreSQL 18', 3 if $version < 18;
	app($node, 'CREATE TABLE loose (id bigint PRIMARY KEY); CREATE TABLE loose_emb (event_id bigint PRIMARY KEY REFERENCES loose NOT ENFORCED)');
	my (undef, undef, $notices) = $node->psql('postgres', "SELECT bgw_backfill.track('loose', 'loose_emb', dry_run => true)", extra_params => [ '-U', 'app' ]);
	like($notices, qr/hazard: no validated, immediate foreign key/, 'one that is not enforced counts for nothing');
	app($node, "SELECT bgw_backfill.track('loose', 'loose_emb')");
	ok(wait_phase($node, 'live', 'loose'), 'though the keys default from it');
	app($node, 'INSERT INTO loose_emb VALUES (1), (2); INSERT INTO loose VALUES (1), (2), (3); DELETE FROM loose_emb WHERE event_id = 1; UPDATE loose SET id = 4 WHERE id = 2');
	is(app($node, 'SELECT count(*) FROM loose WHERE has_embedding <> EXISTS (SELECT FROM loose_emb WHERE event_id = id)'),
		'0', 'target rows that come first, and keys that leave theirs');
}

SKIP:
{
	skip 'loaded modules are listed from PostgreSQL 18 on', 1 if $version < 18;
	is(sql($node, "SELECT version FROM pg_get_loaded_modules() WHERE module_name = 'bgw_backfill'"), '1.0', 'the library says its version');
}

SKIP:
{
	skip 'the server itself terminates workers from PostgreSQL 19 on', 2 if $version < 19;
	sql($node, 'CREATE DATABASE kept');
	prepare_database($node, 'kept');
	create_pair($node, db => 'kept');
	settings($node, batch_size => 1, batch_sleep => '1900ms');
	track($node, db => 'kept');
	wait_for($node, "phase = 'fill' AND batches > 0", 'events', 'kept');
	my ($pid) = workers($node, 'kept');
	like(error_of($node, 'BEGIN; DROP DATABASE kept'), qr/cannot run inside a transaction block/, 'a command that fails before');
	is((workers($node, 'kept'))[0], $pid, 'disturbs no worker');
}

no_crash($node);
done_testing();
