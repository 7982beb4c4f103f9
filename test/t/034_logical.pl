# A subscriber: replicated changes fire no ordinary trigger, and are followed all the same.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $publisher = new_node('publisher', streaming => 'logical', extension => 0, preload => 0);
my $subscriber = new_node('subscriber', streaming => 'logical', conf => "bgw_backfill.batch_size = 500\nbgw_backfill.batch_sleep = 0");
sql($publisher, 'GRANT CREATE ON SCHEMA public TO app');
create_pair($publisher, rows => 3000);
# On the subscriber the target's key may come before the source's: no foreign key.
app($subscriber, 'CREATE TABLE events (id bigint PRIMARY KEY, org text, body text, n int);'
	  . 'CREATE TABLE events_emb (event_id bigint PRIMARY KEY, emb real[])');
app($subscriber, <<'SQL');
SELECT bgw_backfill.track('events', 'events_emb', source_key => 'id', target_key => 'event_id',
	pending_where => $$body <> ''$$, group_by => 'org')
SQL
ok(wait_phase($subscriber, 'live'), 'live on an empty subscriber');
sql($publisher, 'CREATE PUBLICATION pub FOR TABLE events, events_emb');
my $connstr = $publisher->connstr . ' dbname=postgres';
sql($subscriber, "CREATE SUBSCRIPTION sub CONNECTION '$connstr' PUBLICATION pub");
$subscriber->wait_for_subscription_sync($publisher, 'sub');

# The two tables are copied by two transactions at once: what they missed of each other the sweep finds.
my $verified_at = progress($subscriber, 'verified_at');
app($subscriber, "SELECT bgw_backfill.verify('events')");
ok(wait_for($subscriber, "verified_at > '$verified_at'"), 'a sweep after the initial copy');
job_exact($subscriber, 'the initial copy');

sub follows
{
	my ($what, $sql) = @_;

	app($publisher, $sql);
	$publisher->wait_for_catchup('sub');
	return job_exact($subscriber, $what);
}
follows('inserts', 'INSERT INTO events_emb SELECT id FROM events WHERE id > 8700 AND id % 3 = 0 ON CONFLICT DO NOTHING');
follows('deletes', 'DELETE FROM events_emb WHERE event_id % 5 = 1');
follows('an update of the key', 'UPDATE events_emb SET event_id = (SELECT min(id) FROM events WHERE id NOT IN (SELECT event_id FROM events_emb)) WHERE event_id = (SELECT max(event_id) FROM events_emb)');
follows('other updates', "UPDATE events_emb SET emb = '{3}'; UPDATE events SET n = n + 1, body = CASE WHEN id % 4 = 0 THEN 'x' ELSE body END");
follows('both in one transaction',
	"BEGIN; INSERT INTO events SELECT id + 100000, org, body FROM events WHERE id < 500; "
	  . 'INSERT INTO events_emb SELECT id FROM events WHERE id BETWEEN 100100 AND 100300; '
	  . 'DELETE FROM events_emb WHERE event_id BETWEEN 100200 AND 100250; COMMIT');
follows('a new key of a source row', 'UPDATE events SET id = id + 200000 WHERE id BETWEEN 100400 AND 100420');
follows('cascading deletes', 'DELETE FROM events WHERE id % 6 = 2');
is(progress($subscriber, 'errors, phase'), '0|live', 'all the while live');

app($publisher, 'TRUNCATE events_emb');
$publisher->wait_for_catchup('sub');
ok(wait_for($subscriber, "phase = 'live' AND live_since > '$verified_at'"), 'TRUNCATE brings it back to phase fill, then live');
job_exact($subscriber, 'TRUNCATE');
is(sql($subscriber, 'SELECT count(*) FROM events_emb'), '0', 'there is no embedding');

# Writes on the subscriber itself.
app($subscriber, 'INSERT INTO events_emb SELECT id FROM events WHERE id % 2 = 0; DELETE FROM events_emb WHERE event_id % 4 = 0');
job_exact($subscriber, 'writes of its own');
is(sql($subscriber, "SELECT sum(value::int) FROM pg_stat_subscription_stats s, jsonb_each_text(to_jsonb(s)) WHERE key LIKE '%error_count'"), '0', 'the subscription met no error');
no_crash($subscriber);
done_testing();
