# A server that has not preloaded the library: clear words, and triggers that serve all the same.
use strict;
use warnings;
use BbfTest;
use Test::More;

my $node = new_node('preload', preload => 0, extension => 0);
my (undef, undef, $stderr) = $node->psql('postgres', 'CREATE EXTENSION bgw_backfill');
like($stderr, qr/WARNING:  bgw_backfill is not in shared_preload_libraries.*HINT:  Add this line.*: shared_preload_libraries = 'bgw_backfill'/s,
	'CREATE EXTENSION warns, with the line to add');
sql($node, 'GRANT CREATE ON SCHEMA public TO app');
create_pair($node, rows => 2000);
like(error_of($node, "SELECT bgw_backfill.track('events', 'events_emb')", undef, 'app'),
	qr/ERROR:  bgw_backfill is not in shared_preload_libraries.*HINT:  Add this line.*: shared_preload_libraries = 'bgw_backfill'/s,
	'track() refuses, with the same line');
is(sql($node, 'SELECT count(*) FROM bgw_backfill.job'), '0', 'and leaves nothing');

$node->append_conf('postgresql.conf', "shared_preload_libraries = 'bgw_backfill'");
$node->restart;
track($node);
ok(wait_phase($node, 'live'), 'with that line, live');

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
is(error_of($node, <<'SQL', undef, 'app'), '', 'writes go through without it, without a warning');
DELETE FROM events_emb WHERE event_id % 5 = 1;
INSERT INTO events SELECT id + 100000, org, body FROM events WHERE id % 7 = 1;
INSERT INTO events_emb SELECT id FROM events WHERE id > 100500;
UPDATE events_emb SET event_id = 100000 + (SELECT min(id) FROM events WHERE id < 100000 AND id % 7 = 1)
	WHERE event_id = (SELECT max(event_id) FROM events_emb);
SQL
job_exact($node, 'without the library');
is(progress($node, 'phase, waiting_for'), 'live|shared_preload_libraries', 'the view says what is missing');
is(error_of($node, 'TRUNCATE events_emb', undef, 'app'), '', 'TRUNCATE goes through');
is(progress($node, 'phase'), 'fill', 'and the job is back in phase fill');
app($node, "SELECT bgw_backfill.pause('events'); SELECT bgw_backfill.resume('events'); SELECT bgw_backfill.verify('events')");

$node->append_conf('postgresql.conf', "shared_preload_libraries = 'bgw_backfill'");
$node->restart;
ok(wait_phase($node, 'live'), 'preloaded again, it goes on');
job_exact($node, 'preloaded again');
no_crash($node);
done_testing();
