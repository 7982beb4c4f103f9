# A job's handler: what it is called with, how often, as whom, and what becomes of its errors. Each scan is asked for by
# the test, which then looks at what it did.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('handoff',
	conf => "bgw_backfill.retry_delay = 10ms\nbgw_backfill.scan_interval = 7d\nbgw_backfill.batch_sleep = 0\n"
	  . "bgw_backfill.max_leased = 100000");

# The application's side: a run of its work per organization, at most one at a time; who it was called as, and what is
# broken in it, at once or only at the commit.
app($node, <<'SQL');
CREATE TABLE runs (id bigserial PRIMARY KEY, job text, org text, keys text[], token bigint, done boolean NOT NULL DEFAULT false,
	who text DEFAULT current_user || ' ' || session_user);
CREATE UNIQUE INDEX one_run ON runs (job, org) NULLS NOT DISTINCT WHERE NOT done;
CREATE TABLE calls (id bigserial PRIMARY KEY, job text, org text, keys text[], token bigint);
CREATE TABLE broken (org text, what text);
CREATE FUNCTION note_run(job text, org text, k text[], t bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	b text := (SELECT what FROM broken WHERE broken.org = note_run.org);
BEGIN
	INSERT INTO calls (job, org, keys, token) VALUES (job, org, k, t);
	INSERT INTO runs (job, org, keys, token) VALUES (job, org, k, t) ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		PERFORM bgw_backfill.release(job, k, t);
	END IF;
	IF b = 'error' THEN
		RAISE EXCEPTION 'no run for %', org USING DETAIL = 'Its budget is spent.';
	ELSIF b = 'slow' THEN
		PERFORM pg_sleep(600);
	ELSIF b = 'cancels' THEN
		RAISE EXCEPTION 'the other server gave up' USING ERRCODE = 'query_canceled';
	ELSIF b = 'pauses' THEN
		PERFORM bgw_backfill.pause(job);
	ELSIF b = 'sets' THEN
		PERFORM set_config('role', 'other', false), set_config('search_path', 'nowhere', false),
			set_config('timezone', 'Asia/Tokyo', false), set_config('default_transaction_read_only', 'on', false),
			set_config('statement_timeout', '1', false), set_config('default_transaction_isolation', 'serializable', false);
	ELSIF b = 'answers' THEN
		EXECUTE format('INSERT INTO %I SELECT unnest($1)::bigint', job || '_emb') USING k;
	END IF;
END
$$;
CREATE FUNCTION start_run(job text, group_key text, keys bigint[], token bigint) RETURNS void
	LANGUAGE sql SET search_path = public, pg_temp AS 'SELECT note_run(job, group_key, keys::text[], token)';
CREATE FUNCTION start_run(job text, group_key text, keys text[], token bigint) RETURNS void
	LANGUAGE sql SET search_path = public, pg_temp AS 'SELECT note_run(job, group_key, keys, token)';
CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
	b text := (SELECT what FROM broken WHERE org = NEW.org);
BEGIN
	IF b = 'late' THEN
		RAISE EXCEPTION 'too late for %', NEW.org;
	ELSIF b = 'late and slow' THEN
		PERFORM pg_sleep(600);
	END IF;
	RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON runs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION at_commit();
SQL
sql($node, 'CREATE ROLE other; GRANT other TO app');

# A pair of tables in some mode, and its job with a handler; further arguments of track() and settings of the job. The
# first scan has been made.
sub begin
{
	my ($job, $mode, %settings) = @_;
	my $more = delete $settings{more} // '';

	create_pair($node, source => $job, rows => delete $settings{rows} // 3000);
	app($node, "UPDATE $job SET org = NULL WHERE org = 'org-6'; BEGIN; SELECT bgw_backfill.track('$job', '${job}_emb', mode => '$mode', pending_where => \$\$body <> ''\$\$,
			source_key => 'id', target_key => 'event_id', handler => 'start_run(text, text, bigint[], bigint)' $more);"
		. join('', map { "SELECT bgw_backfill.configure('$job', '$_', '$settings{$_}');" } sort keys %settings)
		. 'COMMIT');
	wait_for($node, "pending IS NOT NULL AND worker_pid IS NULL", $job);
	return;
}

sub configure
{
	my ($job, $setting, $value) = @_;

	app($node, "SELECT bgw_backfill.configure('$job', '$setting', " . (defined $value ? "'$value'" : 'NULL') . ')');
	return;
}

sub broken
{
	my (%what) = @_;

	app($node, join(';', 'TRUNCATE broken', map { "INSERT INTO broken VALUES ('$_', '$what{$_}')" } sort keys %what));
	return;
}

# The work of all runs is done.
sub answer
{
	my ($job) = @_;

	app($node, "INSERT INTO ${job}_emb SELECT unnest(keys)::bigint FROM runs WHERE job = '$job' AND NOT done;
		UPDATE runs SET done = true WHERE job = '$job'");
	return;
}

# Scan and answer until all that is pending is a group's, or nothing.
sub drain
{
	my ($job, @groups) = @_;
	my $others = @groups ? "WHERE coalesce(org, '') NOT IN (" . join(', ', map { "'$_'" } @groups) . ')' : '';

	foreach (1 .. 30)
	{
		answer($job);
		return 1 if sql($node, "SELECT count(*) FROM ${job}_pending $others") == 0;
		scan($node, $job);
	}
	return 0;
}

sub calls { return sql($node, "SELECT count(*) FROM calls WHERE job = '$_[0]'"); }

# The groups that wait may be called again.
sub may_again
{
	return sql($node, "UPDATE bgw_backfill.group_wait SET next_at = clock_timestamp() WHERE job = '$_[0]'");
}

my $by_org = "string_agg(coalesce(org, 'null'), ' ' ORDER BY org)";

sub runs
{
	my ($mode) = @_;
	my $job = "m_$mode";

	broken('org-3' => 'error', 'org-5' => 'late');
	begin($job, $mode, more => ", group_by => 'org'", handoff_rows => 6);
	my $pending = sql($node, "SELECT count(*) FROM ${job}_pending");
	is(sql($node, "SELECT $by_org FROM runs WHERE job = '$job'"),
		'org-0 org-1 org-2 org-4 null', "$mode: a run for each organization but the broken ones");
	is(sql($node, "SELECT DISTINCT cardinality(keys), who, job FROM runs WHERE job = '$job'"),
		"6|app app|$job", "$mode: of handoff_rows rows, called as the owner");
	is( sql($node, "SELECT count(*) FROM runs r, unnest(keys) WITH ORDINALITY k (key, i) WHERE job = '$job' AND NOT EXISTS (
			SELECT FROM (SELECT id, row_number() OVER (ORDER BY id) AS i FROM ${job}_pending p WHERE p.org IS NOT DISTINCT FROM r.org) p
			WHERE p.id::text = k.key AND p.i = k.i)"),
		'0', "$mode: the oldest of each, in order");
	is( sql($node, "SELECT count(*) FROM runs r LEFT JOIN bgw_backfill.claim c ON c.token = r.token AND c.keys = r.keys
			WHERE r.job = '$job' AND c.token IS NULL"),
		'0', "$mode: handed out under the tokens it was given");
	is(progress($node, 'phase, leased, quarantined, waiting_groups, errors', $job), 'live|30|0|2|2', "$mode: progress tells");
	like(progress($node, 'last_error', $job), qr/^handler, group org-5: too late for org-5/, "$mode: with the error");
	is(sql($node, "SELECT count(*) FROM bgw_backfill.attempt WHERE job = '$job'"), '0', "$mode: nobody is charged");

	# Each of the others has its run: the rows come back. The broken ones' waits grow.
	my ($waits, $wait) = ("SELECT string_agg(group_key || ':' || failures, ' ' ORDER BY group_key) FROM bgw_backfill.group_wait WHERE job = '$job'",
		"SELECT max(next_at - clock_timestamp()) FROM bgw_backfill.group_wait WHERE job = '$job'");
	may_again($job);
	scan($node, $job);
	is(sql($node, $waits), 'org-3:2 org-5:2', "$mode: they are tried again");
	is(calls($job), 10, "$mode: and so are the others");
	is(progress($node, 'leased', $job), '30', "$mode: who has a run gives the rows back");
	is(sql($node, "SELECT count(*), max(attempts), bool_and(last_error IS NULL) FROM bgw_backfill.attempt WHERE job = '$job'"),
		'30|0|t', "$mode: uncharged");
	sql($node, "UPDATE bgw_backfill.group_wait SET failures = 20 WHERE job = '$job'");
	may_again($job);
	scan($node, $job);
	is(sql($node, "SELECT bool_and(next_at - clock_timestamp() BETWEEN '3 min' AND '7 min') FROM bgw_backfill.group_wait WHERE job = '$job'"),
		't', "$mode: the waits grow up to five minutes or so");
	my $errors = progress($node, 'errors', $job);
	ok(drain($job, 'org-3', 'org-5'), "$mode: all others are served");
	is(progress($node, 'errors, waiting_groups, phase', $job), "$errors|2|live", "$mode: meanwhile the broken ones wait");
	is(sql($node, "SELECT $by_org FROM (SELECT DISTINCT org FROM ${job}_pending) p"), 'org-3 org-5', "$mode: and nobody else");

	broken();
	scan($node, $job);
	is(sql($node, $waits), 'org-3:21 org-5:21', "$mode: who is mended waits until his time has come");
	may_again($job);
	ok(drain($job), "$mode: then he is served");
	scan($node, $job);
	is(progress($node, 'waiting_groups, errors, leased, quarantined', $job), "0|$errors|0|0", "$mode: and waits no more");
	is(sql($node, "SELECT count(*), count(DISTINCT key) FROM runs, unnest(keys) key WHERE job = '$job'"),
		"$pending|$pending", "$mode: each row had one run");
	is(sql($node, "SELECT (SELECT count(*) FROM bgw_backfill.claim WHERE job = '$job' AND keys <> '{}'),
			(SELECT count(*) FROM bgw_backfill.attempt WHERE job = '$job'), (SELECT count(*) FROM bgw_backfill.group_wait WHERE job = '$job')"),
		'0|0|0', "$mode: and nothing is kept of it");
	return;
}

runs($_) foreach qw(column sidecar watermark);

# Keys of another type, no groups: one call a scan.
app($node, <<'SQL');
CREATE TABLE docs (id text PRIMARY KEY);
CREATE TABLE docs_emb (id text PRIMARY KEY REFERENCES docs);
INSERT INTO docs VALUES ('a,b'), (''), ('NULL'), (E'q"\\uote'), ('{}'), ('blank '), ('ü');
INSERT INTO docs SELECT 'n' || i FROM generate_series(1, 20) i;
BEGIN;
SELECT bgw_backfill.track('docs', 'docs_emb', handler => 'start_run(text, text, text[], bigint)');
SELECT bgw_backfill.configure('docs', 'handoff_rows', '15');
COMMIT;
SQL
wait_for($node, 'pending IS NOT NULL AND worker_pid IS NULL', 'docs');
is(sql($node, "SELECT count(*), max(cardinality(keys)), bool_and(org IS NULL) FROM calls WHERE job = 'docs'"),
	'1|15|t', 'no groups: one call, with no group');
app($node, "INSERT INTO docs_emb SELECT unnest(keys) FROM runs WHERE job = 'docs'; UPDATE runs SET done = true WHERE job = 'docs'");
scan($node, 'docs');
is(sql($node, "SELECT count(*), count(DISTINCT key), count(DISTINCT id) FROM runs, unnest(keys) key WHERE job = 'docs'"),
	'27|27|2', 'the rest in the next');
is(sql($node, "SELECT count(*) FROM runs, unnest(keys) key LEFT JOIN docs USING (id) WHERE job = 'docs' AND docs.id IS NULL" =~ s/USING \(id\)/ON docs.id = key/r),
	'0', 'texts come as they are');

# How much at a time.
begin('bounds', 'sidecar', more => ", group_by => 'org'", handoff_rows => 3, handoff_groups => 2);
is(sql($node, "SELECT count(*), min(cardinality(keys)), max(cardinality(keys)) FROM calls WHERE job = 'bounds'"),
	'2|3|3', 'handoff_groups calls of handoff_rows rows');
scan($node, 'bounds') foreach (1 .. 3);
is(sql($node, "SELECT $by_org FROM (SELECT * FROM calls WHERE job = 'bounds' ORDER BY id LIMIT 7) c"),
	'org-0 org-1 org-2 org-3 org-4 org-5 null', 'each group in its turn');
answer('bounds');
configure('bounds', 'max_leased', 10);
configure('bounds', 'handoff_groups', 100);
configure('bounds', 'handoff_rows', 4);
my $n = calls('bounds');
scan($node, 'bounds');
is(sql($node, "SELECT string_agg(cardinality(keys)::text, ' ' ORDER BY id) FROM calls WHERE job = 'bounds' AND id > (SELECT id FROM calls WHERE job = 'bounds' ORDER BY id OFFSET $n - 1 LIMIT 1)"),
	'4 4 2', 'never more than max_leased');
is(progress($node, 'leased', 'bounds'), '10', 'in all');
scan($node, 'bounds');
is(calls('bounds'), $n + 3, 'then nobody is called');
is(app($node, "SELECT count(*) FROM bgw_backfill.claim('bounds')"), '0', 'and nothing claimed');
answer('bounds');
configure('bounds', 'handoff_groups', 1);
broken('org-3' => 'error');
my $token = sql($node, 'SELECT max(token) FROM runs');
foreach (1 .. 15)
{
	scan($node, 'bounds');
	answer('bounds');
}
is(sql($node, "SELECT count(DISTINCT coalesce(org, 'null')) FROM runs WHERE job = 'bounds' AND token > $token"),
	'6', 'with one call a scan, a group that fails does not keep the others from theirs');

# Who cancels: the time limit, the handler itself.
begin('slow', 'column', more => ", group_by => 'org'", statement_timeout => '2s', handoff_rows => 5);
answer('slow');
broken('org-1' => 'slow', 'org-2' => 'late and slow', 'org-4' => 'cancels');
scan($node, 'slow');
is(sql($node, "SELECT group_key, last_error FROM bgw_backfill.group_wait WHERE job = 'slow' ORDER BY 1"),
	"org-1|handler, group org-1: canceling statement due to statement timeout\n"
	  . "org-2|handler, group org-2: canceling statement due to statement timeout\n"
	  . 'org-4|handler, group org-4: the other server gave up',
	'a call that takes longer than statement_timeout is a failure of its group, at the commit as well, and so is one that was cancelled elsewhere');
is(sql($node, "SELECT $by_org FROM runs WHERE job = 'slow' AND NOT done"), 'org-0 org-3 org-5 null', 'the others are served');
is(progress($node, 'phase, state, batch_size', 'slow') =~ s/\|\d+$//r, 'live|idle', 'the job is well');

# What a handler sets, answers, and does to its job.
configure('slow', 'statement_timeout', undef);
broken('org-0' => 'sets', 'org-3' => 'answers');
answer('slow');
my $pending = sql($node, "SELECT count(*) FROM slow_pending WHERE org = 'org-3'");
sql($node, "UPDATE bgw_backfill.group_wait SET next_at = 'infinity'");
scan($node, 'slow');
is(sql($node, "SELECT string_agg(coalesce(org, 'null') || ' ' || who, ', ' ORDER BY org) FROM runs WHERE job = 'slow' AND NOT done"),
	'org-0 app app, org-3 app app, org-5 app app, null app app', 'what a handler sets does not last');
is(sql($node, "SELECT $pending - count(*) FROM slow_pending WHERE org = 'org-3'"), '5', 'a handler may answer at once');
app($node, "UPDATE runs SET done = true WHERE job = 'slow' AND org = 'org-3'");
broken('org-0' => 'pauses');
answer('slow');
my $errors = progress($node, 'errors', 'slow');
sql($node, "UPDATE bgw_backfill.job_state SET scan_at = scan_at - interval '8 days' WHERE job = 'slow'; UPDATE bgw_backfill.job SET paused = paused WHERE job = 'slow'");
ok(wait_for($node, "state = 'paused' AND worker_pid IS NULL", 'slow'), 'a handler may pause its job');
is(progress($node, 'errors', 'slow'), $errors, 'which is no error');
is(sql($node, "SELECT count(*) FROM runs WHERE job = 'slow' AND NOT done AND org = 'org-0'"), '1', 'and its call counts');

# A paused job calls nobody: another one's scan shows that the worker has been there.
$n = calls('slow');
sql($node, "UPDATE bgw_backfill.job_state SET scan_at = scan_at - interval '8 days' WHERE job = 'slow'");
scan($node, 'docs');
is(calls('slow'), $n, 'a paused job calls nobody');
broken();
answer('slow');
app($node, "SELECT bgw_backfill.resume('slow')");
ok($node->poll_query_until('postgres', "SELECT count(*) > $n FROM calls WHERE job = 'slow'"), 'when it is resumed, it does');
wait_for($node, 'worker_pid IS NULL', 'slow');

# No handler any more, in two ways; and back.
sql($node, "DELETE FROM bgw_backfill.group_wait");
answer('bounds');
app($node, 'ALTER FUNCTION start_run(text, text, bigint[], bigint) RENAME TO away');
configure('bounds', 'handoff_groups', 100);
configure('bounds', 'max_leased', undef);
$n = calls('bounds');
scan($node, 'bounds');
like(progress($node, 'last_error', 'bounds'), qr/^handler, group \S+: handler public\.start_run\(.*\) of job "bounds" does not exist/,
	'a handler that is gone is an error that says so');
like(progress($node, 'phase || state || waiting_groups', 'bounds'), qr/^liveidle7$/, 'and the job goes on');
app($node, 'ALTER FUNCTION away(text, text, bigint[], bigint) RENAME TO start_run');
may_again('bounds');
scan($node, 'bounds');
cmp_ok(calls('bounds'), '>=', $n + 6, 'once it is back, it is called');
is(progress($node, 'waiting_groups', 'bounds'), '0', 'and nobody waits any more');
answer('bounds');
configure('bounds', 'handler', undef);
is(sql($node, "SELECT handler IS NULL FROM bgw_backfill.jobs WHERE job = 'bounds'"), 't', 'a job without a handler');
$n = calls('bounds');
scan($node, 'bounds');
is(calls('bounds'), $n, 'calls nobody');
configure('bounds', 'handler', 'public.start_run(text, text, bigint[], bigint)');
$errors = progress($node, 'errors', 'bounds');
broken(map { $_ => 'error' } map { "org-$_" } 0 .. 5);
scan($node, 'bounds');
is(progress($node, "errors - $errors", 'bounds'), '6', 'one that has it again calls it');
broken();
app($node, 'INSERT INTO bounds_emb SELECT id FROM bounds_pending');
scan($node, 'bounds');
is(progress($node, 'pending, waiting_groups', 'bounds'), '0|0', 'a group of which nothing is pending does not wait');

# Whoever listens hears of each scan that leaves something to hand out, once.
my $listener = $node->background_psql('postgres');
$listener->query_safe('LISTEN bgw_backfill');
my $heard = sub {
	my $output = $listener->query_safe('SELECT 1');
	my @all = $output =~ /Asynchronous notification "(bgw_backfill" with payload "\w+)"/g;
	return join(' ', @all);
};
begin('told', 'watermark', more => ", group_by => 'org'", handoff_rows => 2);
is($heard->(), 'bgw_backfill" with payload "told', 'a scan that finds something is told');
scan($node, 'told') foreach (1 .. 2);
is($heard->(), join(' ', ('bgw_backfill" with payload "told') x 2), 'each of them once');
configure('told', 'max_leased', 1);
scan($node, 'told');
is($heard->(), '', 'not while max_leased is reached');
configure('told', 'max_leased', undef);
configure('told', 'handler', undef);
scan($node, 'told');
is($heard->(), 'bgw_backfill" with payload "told', 'without a handler as well');
my $claimed = app($node, "SELECT count(*) FROM bgw_backfill.claim('told', 100000, '1 h')");
scan($node, 'told');
cmp_ok($claimed, '>', 10, 'something was left to claim');
is($heard->(), '', 'when all of it is handed out, nobody is told');
scan($node, 'told');
is($heard->(), '', 'however often');
scan($node, 'bounds');
is($heard->(), '', 'nor when nothing is pending');
$listener->quit;

# A run that dies: a failed attempt, when the lease has ended; in the end the rows are left alone.
begin('dying', 'column', more => ", group_by => 'org'", handoff_rows => 2, max_attempts => 2, handoff_lease => '1s', rows => 200);
app($node, "UPDATE runs SET done = true WHERE job = 'dying'");
my $expire = sub {
	$node->poll_query_until('postgres', "SELECT bool_and(expires_at < clock_timestamp()) FROM bgw_backfill.claim WHERE job = 'dying'");
};
is( sql($node, "SELECT bool_and(expires_at - claimed_at BETWEEN '0.9 s' AND '1.1 s') FROM bgw_backfill.claim WHERE job = 'dying'"),
	't', 'the lease is handoff_lease');
my $first = sql($node, "SELECT array_agg(key ORDER BY key) FROM runs, unnest(keys) key WHERE job = 'dying'");
$expire->();
configure('dying', 'handler', undef);
scan($node, 'dying');
is( sql($node, "SELECT array_agg(key ORDER BY key), max(attempts), max(last_error), count(quarantined_at) FROM bgw_backfill.attempt WHERE job = 'dying'"),
	"$first|1|the lease expired|0", 'a lease that ends is a failed attempt, whether somebody claims or not');
configure('dying', 'handler', 'public.start_run(text, text, bigint[], bigint)');
$node->poll_query_until('postgres', "SELECT bool_and(next_at < clock_timestamp()) FROM bgw_backfill.attempt WHERE job = 'dying'");
scan($node, 'dying');
is( sql($node, "SELECT array_agg(key ORDER BY key) FROM runs, unnest(keys) key WHERE job = 'dying' AND NOT done"),
	$first, 'the rows are handed out again');
app($node, "UPDATE runs SET done = true WHERE job = 'dying'");
$expire->();
scan($node, 'dying');
is( app($node, "SELECT array_agg(key ORDER BY key), max(attempts), max(last_error) FROM bgw_backfill.quarantine WHERE job = 'dying'"),
	"$first|2|the lease expired", 'after max_attempts they are in quarantine');
foreach (1 .. 10)
{
	answer('dying');
	scan($node, 'dying');
}
is(sql($node, "SELECT array_agg(id::text ORDER BY id::text) FROM dying_pending"), $first, 'all others are served, and these are left alone');
is(progress($node, 'quarantined, leased', 'dying'), split(/,/, $first) . '|0', 'so progress says');
app($node, "SELECT bgw_backfill.requeue('dying')");
ok(drain('dying'), 'until they are taken out of it');

# A copy of the database holds its jobs: its handlers are not called there before somebody says so.
begin('copied', 'column', more => ", group_by => 'org'", handoff_rows => 2, rows => 200);
app($node, "UPDATE runs SET done = true WHERE job = 'copied'");
ok(no_worker($node), 'all is quiet');
sql($node, 'CREATE DATABASE copy TEMPLATE postgres', 'template1');
# the launcher looks for new databases once a minute, and at once when a job changes
sql($node, 'UPDATE bgw_backfill.job SET paused = paused', 'copy');
ok(wait_for($node, "state = 'held'", 'copied', 'copy'), 'in a copy the job is held');
no_worker($node);
my $seen = 'SELECT count(*) FROM calls';
is(sql($node, $seen, 'copy'), sql($node, $seen), 'and its handler is not called before it is resumed');
$n = sql($node, $seen, 'copy');
app($node, "SELECT bgw_backfill.resume('copied')", 'copy');
ok($node->poll_query_until('copy', "SELECT count(*) > $n FROM calls"), 'then it is');
no_crash($node);
done_testing();
