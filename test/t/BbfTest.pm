# What the TAP tests share: a node with the library, a pair of tables, conditions to wait for, the truth.
package BbfTest;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(new_node settings sql app create_pair track progress wait_for wait_phase
  wait_batches worker_pid workers job_exact history_begin history_is_sound old_snapshot
  end_session log_since log_position log_count error_of prepare_database no_crash
  waits_for_snapshot no_worker server_version scan accepts_connections);

# A started node with the library, the extension in database postgres, and the role app, who is no
# superuser. Named arguments: conf (lines), streaming (as init's allows_streaming), preload, start.
sub new_node
{
	my ($name, %args) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(allows_streaming => $args{streaming} // 0);
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'bgw_backfill'")
	  if $args{preload} // 1;
	$node->append_conf('postgresql.conf', <<'CONF');
restart_after_crash = on
autovacuum = off
log_statement = none
max_connections = 30
shared_buffers = 16MB
bgw_backfill.retry_delay = 100ms
bgw_backfill.verify_interval = -1
CONF
	$node->append_conf('postgresql.conf', $args{conf}) if $args{conf};
	$node->start;
	sql($node, 'CREATE ROLE app LOGIN');
	prepare_database($node, 'postgres') if $args{extension} // 1;
	return $node;
}

# The extension and a place for app's tables in a database.
sub prepare_database
{
	my ($node, $db) = @_;

	sql($node, 'CREATE EXTENSION bgw_backfill; GRANT CREATE ON SCHEMA public TO app', $db);
	return;
}

# Change settings of the server by a reload: name => value, without the prefix; undef: the default.
sub settings
{
	my ($node, %values) = @_;

	foreach my $name (sort keys %values)
	{
		sql($node,
			defined $values{$name}
			? "ALTER SYSTEM SET bgw_backfill.$name = '$values{$name}'"
			: "ALTER SYSTEM RESET bgw_backfill.$name");
	}
	sql($node, 'SELECT pg_reload_conf()');
	return;
}

# Run SQL as the superuser; returns its output.
sub sql
{
	my ($node, $sql, $db) = @_;

	return $node->safe_psql($db // 'postgres', $sql);
}

# The server's major version. (To perl's own comparison a release candidate is less than its release.)
sub server_version
{
	my ($node) = @_;

	return int(sql($node, 'SHOW server_version_num') / 10000);
}

# Run SQL as app, or as another role.
sub app
{
	my ($node, $sql, $db, $role) = @_;

	return $node->safe_psql($db // 'postgres', $sql, extra_params => [ '-U', $role // 'app' ]);
}

# The error that SQL ends with, as the superuser or a role; empty if it has none.
sub error_of
{
	my ($node, $sql, $db, $role) = @_;
	my ($status, undef, $stderr) =
	  $node->psql($db // 'postgres', $sql, $role ? (extra_params => [ '-U', $role ]) : ());

	return $status == 0 ? '' : $stderr;
}

# Two tables of app's: source (with gaps in its keys) and source_emb. A tenth of the rows has no
# embedding, nor have the last ones. Returns the number of source rows and how many lack one.
sub create_pair
{
	my ($node, %args) = @_;
	my $source = $args{source} // 'events';
	my $rows = $args{rows} // 20_000;
	my $owner = $args{owner} // 'app';

	return split /\|/, app($node, <<"SQL", $args{db}, $owner);
CREATE TABLE $source (id bigint PRIMARY KEY, org text, body text, n int NOT NULL DEFAULT 0);
CREATE TABLE ${source}_emb (event_id bigint PRIMARY KEY REFERENCES $source ON DELETE CASCADE, emb real[]);
INSERT INTO $source (id, org, body)
	SELECT n * 3 - n % 5, CASE WHEN n % 50 > 0 THEN 'org-' || n % 7 END,
		CASE WHEN n % 25 = 0 THEN NULL WHEN n % 31 = 0 THEN '' ELSE 'text ' || n END
	FROM generate_series(1, $rows) n WHERE n % 13 <> 5;
INSERT INTO ${source}_emb SELECT id, '{0.5}' FROM $source WHERE id % 10 <> 3 AND id < $rows * 29 / 10;
ANALYZE $source, ${source}_emb;
SELECT count(*), count(*) FILTER (WHERE NOT EXISTS (SELECT FROM ${source}_emb WHERE event_id = id)) FROM $source;
SQL
}

# Begin a job on such a pair.
sub track
{
	my ($node, %args) = @_;
	my $source = $args{source} // 'events';

	return app($node,
		"SELECT bgw_backfill.track('$source', '${source}_emb', pending_where => \$\$body <> ''\$\$, group_by => 'org')",
		$args{db}, $args{owner});
}

# Columns of the progress view, as psql shows them.
sub progress
{
	my ($node, $columns, $job, $db) = @_;

	return sql($node, "SELECT $columns FROM bgw_backfill.progress WHERE job = '" . ($job // 'events') . "'", $db);
}

# Wait until a job's row in the progress view fulfils a condition.
sub wait_for
{
	my ($node, $condition, $job, $db) = @_;
	my $ok = $node->poll_query_until($db // 'postgres',
		"SELECT $condition FROM bgw_backfill.progress WHERE job = '" . ($job // 'events') . "'");

	diag(sql($node, 'SELECT * FROM bgw_backfill.progress', $db)) unless $ok;
	return $ok;
}

sub wait_phase
{
	my ($node, $phase, $job, $db) = @_;

	return wait_for($node, "phase = '$phase'", $job, $db);
}

# Wait until the fill has committed that many batches and still goes on.
sub wait_batches
{
	my ($node, $batches, $job, $db) = @_;

	wait_for($node, "phase <> 'install' AND (phase <> 'fill' OR batches >= $batches)", $job, $db);
	return is(progress($node, 'phase', $job, $db), 'fill', "in mid-fill after $batches batches");
}

# The workers there are, by pid, in all databases or one.
sub workers
{
	my ($node, $db) = @_;

	return split /\n/, sql($node,
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'bgw_backfill worker'"
		  . ($db ? " AND datname = '$db'" : '')
		  . ' ORDER BY pid');
}

# The pid of the only worker, once there is one.
sub worker_pid
{
	my ($node) = @_;

	$node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'bgw_backfill worker'");
	return (workers($node))[0];
}

# Compare flags and view with the truth, in both directions.
sub job_exact
{
	my ($node, $what, %args) = @_;
	my $source = $args{source} // 'events';
	my $job = $args{job} // $source;
	my $where = $args{where} // "s.body <> ''";

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(sql($node, <<"SQL", $args{db}), '0|0|0|0|0', "$what: flags and view equal the truth");
WITH truth AS (SELECT s.id, s.org, s.has_embedding AS flag, coalesce($where, false) AS eligible,
		EXISTS (SELECT FROM ${source}_emb m WHERE m.event_id = s.id) AS matched FROM $source s),
	wanted AS (SELECT id, org FROM truth WHERE eligible AND NOT matched),
	shown AS (SELECT id, org FROM ${job}_pending)
SELECT (SELECT count(*) FROM truth WHERE flag AND NOT matched) AS wrong_true,
	(SELECT count(*) FROM truth WHERE NOT flag AND matched) AS wrong_false,
	(SELECT count(*) FROM truth WHERE flag IS NULL) AS null_flags,
	(SELECT count(*) FROM (SELECT * FROM wanted EXCEPT ALL SELECT * FROM shown) x) AS not_shown,
	(SELECT count(*) FROM (SELECT * FROM shown EXCEPT ALL SELECT * FROM wanted) x) AS wrongly_shown
SQL
}

# Keep a row for every committed change of a job's state.
sub history_begin
{
	my ($node, $db) = @_;

	sql($node, <<'SQL', $db);
CREATE TABLE history (seq bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), job text, phase text, generation bigint,
	walk_cursor bigint, rows_done bigint, rows_changed bigint, batches bigint, batch_size int);
CREATE FUNCTION note_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.history (job, phase, generation, walk_cursor, rows_done, rows_changed, batches, batch_size)
		VALUES (NEW.job, NEW.phase, NEW.generation, NEW.walk_cursor::pg_catalog.int8, NEW.rows_done,
			NEW.rows_changed, NEW.batches, NEW.batch_size);
	RETURN NULL;
END
$$;
CREATE TRIGGER note_history AFTER UPDATE ON bgw_backfill.job_state FOR EACH ROW EXECUTE FUNCTION note_history();
SQL
	return;
}

# One fill, whose cursor and counters only ever rose, and that ended with these counters.
sub history_is_sound
{
	my ($node, $what, $rows, $changed, $job, $db) = @_;

	$job //= 'events';
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is( sql($node, <<"SQL", $db), '0', "$what: the fill never went back");
SELECT count(*) FROM (SELECT (walk_cursor IS NULL AND lag(walk_cursor) OVER w IS NOT NULL) OR walk_cursor < lag(walk_cursor) OVER w
		OR rows_done < lag(rows_done) OVER w OR rows_changed < lag(rows_changed) OVER w OR batches < lag(batches) OVER w
		OR generation <> lag(generation) OVER w AS bad
	FROM history WHERE job = '$job' AND phase = 'fill' WINDOW w AS (ORDER BY seq)) x WHERE bad
SQL
	return is(
		sql($node,
			"SELECT rows_done, rows_changed FROM history WHERE job = '$job' AND phase = 'fill' ORDER BY seq DESC LIMIT 1",
			$db),
		"$rows|$changed",
		"$what: every row counted once");
}

# No process of the server ended in a way that nobody asked for.
sub no_crash
{
	my ($node) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(log_count($node, qr/TRAP:|PANIC:|terminated by signal (?!9\b)/), 0, 'no process crashed');
}

# Waits until a server that is coming up again takes connections. (A psql that is refused breaks the pipe that its query comes by.)
sub accepts_connections
{
	my ($node) = @_;

	foreach (1 .. 1800)
	{
		return 1 if system('pg_isready', '-q', '-d', $node->connstr('postgres')) == 0;
		usleep(100_000);
	}
	return 0;
}

# Wait until an index build waits for old snapshots.
sub waits_for_snapshot
{
	my ($node, $db) = @_;

	return $node->poll_query_until('postgres',
		"SELECT count(*) = 1 FROM pg_stat_progress_create_index WHERE datname = '"
		  . ($db // 'postgres')
		  . "' AND phase = 'waiting for old snapshots' AND lockers_done < lockers_total");
}

# Wait until no worker is there.
sub no_worker
{
	my ($node) = @_;

	return $node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'bgw_backfill worker'");
}

# A session with a snapshot that an index build has to wait for.
sub old_snapshot
{
	my ($node, $db) = @_;
	my $session = $node->background_psql($db // 'postgres', on_error_stop => 0);

	$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	return $session;
}

# One pending scan of a job, and all that follows it; to be used with a scan_interval that never comes. The worker
# leaves when it is done.
sub scan
{
	my ($node, $job, $db) = @_;
	my $seconds = $PostgreSQL::Test::Utils::timeout_default;

	$job //= 'events';
	return sql($node, <<"SQL", $db);
DO \$\$
DECLARE
	before bigint := (SELECT scans FROM bgw_backfill.job_state WHERE job = '$job');
	deadline timestamptz := clock_timestamp() + interval '$seconds s';
BEGIN
	UPDATE bgw_backfill.job_state SET scan_at = scan_at - interval '8 days', pass_at = pass_at - interval '8 days' WHERE job = '$job';
	UPDATE bgw_backfill.job SET paused = paused WHERE job = '$job';
	COMMIT;
	LOOP
		EXIT WHEN (SELECT scans > before FROM bgw_backfill.job_state WHERE job = '$job')
			AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'bgw_backfill worker' AND datname = current_database());
		IF clock_timestamp() > deadline THEN
			RAISE 'no scan of job $job in time';
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.005);
	END LOOP;
END
\$\$;
SQL
}

# End a session that the server may have ended before.
sub end_session
{
	my ($session) = @_;

	eval { $session->quit; };
	return;
}

sub log_position
{
	my ($node) = @_;

	return -s $node->logfile;
}

sub log_since
{
	my ($node, $position) = @_;

	return slurp_file($node->logfile, $position);
}

# How often the log says something, from a position on.
sub log_count
{
	my ($node, $pattern, $position) = @_;
	my $n = () = log_since($node, $position // 0) =~ /$pattern/g;

	return $n;
}

1;
