# Rows that become pending below where claims have passed a group by: they are handed out after the next scan. And what
# is kept of claims goes when there is nothing to remember.
use strict;
use warnings;
use BbfTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('late',
	conf => "bgw_backfill.retry_delay = 10ms\nbgw_backfill.scan_interval = 7d\nbgw_backfill.batch_sleep = 0\n"
	  . "bgw_backfill.max_leased = 100000\nbgw_backfill.max_attempts = 1");

sub kept
{
	my ($job) = @_;

	return sql($node, 'SELECT ' . join(', ', map { "(SELECT count(*) FROM bgw_backfill.$_ WHERE job = '$job')" }
				qw(attempt passed stretch answered group_wait)) . ", (SELECT count(*) FROM bgw_backfill.claim WHERE job = '$job' AND keys <> '{}')"
			. ", (SELECT count(*) <= 1 FROM bgw_backfill.claim WHERE job = '$job')");
}

# As if a long time had passed: leases have ended, and a passed group is due for another look.
sub age
{
	my ($job) = @_;

	sql($node, "UPDATE bgw_backfill.claim SET expires_at = clock_timestamp() WHERE job = '$job';
		UPDATE bgw_backfill.answered SET noted_at = noted_at - interval '1 hour' WHERE job = '$job'") unless $_[1];
	return sql($node, "UPDATE bgw_backfill.passed SET looked_on = '-infinity' WHERE job = '$job'");
}

sub late_rows
{
	my ($mode, $group) = @_;
	my $name = "l_$mode" . ($group ? "" : "_plain");
	my $of_one = $group ? "org = 'org-1'" : 'true';

	create_pair($node, source => $name, rows => 3000);
	# one group has many bad rows in a row, and everything there is pending from the first row on
	app($node, "UPDATE $name SET org = NULL WHERE org = 'org-6'; DELETE FROM ${name}_emb WHERE event_id IN (SELECT id FROM $name WHERE $of_one);
		SELECT bgw_backfill.track('$name', '${name}_emb', mode => '$mode', pending_where => \$\$body <> ''\$\$ "
		  . ($group ? ", group_by => 'org'" : '') . ')');
	wait_for($node, 'pending IS NOT NULL AND worker_pid IS NULL', $name);
	my $first = sql($node, "SELECT min(id) FROM ${name}_pending WHERE $of_one");
	my $row = sql($node, "SELECT id FROM ${name}_pending WHERE $of_one ORDER BY id OFFSET 20 LIMIT 1");
	app($node, "INSERT INTO ${name}_emb VALUES ($first), ($row)");
	scan($node, $name);
	# 150 rows of it fail for good; the claim after that has to go past them
	my $claim = "bgw_backfill.claim('$name', %d, '1 h'" . ($group ? ", 'org-1')" : ')');
	my $ok = app($node, sprintf("SELECT bgw_backfill.fail('$name', array_agg(key), token, 'bad') FROM $claim GROUP BY token", 150));
	is($ok, '150', "$name: rows in quarantine");
	app($node, sprintf("CREATE TABLE ${name}_held AS SELECT * FROM $claim", 10));
	is(sql($node, "SELECT count(*) FROM bgw_backfill.passed WHERE job = '$name'"), '1', "$name: the group is passed");
	is(sql($node, "SELECT count(*) FROM ${name}_held h JOIN bgw_backfill.attempt a ON a.job = '$name' AND a.key = h.key"),
		'0', "$name: the claim begins behind them");

	# the first row of all, and one in their midst
	foreach my $late ($first, $row)
	{
		app($node, "DELETE FROM ${name}_emb WHERE event_id = $late");
		age($name, 'keep leases');
		scan($node, $name);
		is(app($node, sprintf("SELECT string_agg(key || ' ' || attempt, ',') FROM $claim WHERE key = '$late'", 3)),
			"$late 1", "$name: a row that becomes pending below is handed out after the next scan");
		app($node, "INSERT INTO ${name}_emb VALUES ($late)");
	}
	# a new row there
	my $new = $first - 1;
	app($node, "INSERT INTO $name (id, org, body) VALUES ($new, 'org-1', 'new')");
	age($name, 'keep leases');
	scan($node, $name);
	is(app($node, sprintf("SELECT count(*) FROM $claim WHERE key = '$new'", 3)), '1', "$name: and so is a new row");
	is(app($node, sprintf("SELECT count(*) FROM $claim c JOIN bgw_backfill.quarantine q ON q.job = '$name' AND q.key = c.key", 10000)),
		'0', "$name: never one in quarantine");
	is( app($node, "SELECT count(*) FROM ${name}_pending p WHERE $of_one AND NOT EXISTS (SELECT FROM bgw_backfill.quarantine q WHERE q.job = '$name' AND q.key = p.id::text)"),
		sql($node, "SELECT count(DISTINCT p.id) FROM bgw_backfill.claim, unnest(keys) k, ${name}_pending p WHERE job = '$name' AND p.id::text = k AND $of_one"),
		"$name: all else is handed out");

	# nothing is pending any more
	app($node, "INSERT INTO ${name}_emb SELECT id FROM ${name}_pending ON CONFLICT DO NOTHING");
	foreach (1 .. 2)
	{
		age($name);
		scan($node, $name);
	}
	is(kept($name), '0|0|0|0|0|0|t', "$name: when all is answered, nothing is kept but the last turn");

	# a target row that comes and goes while its row is handed out, again and again
	my $some = "id IN (SELECT id FROM $name WHERE body <> '' AND $of_one ORDER BY id LIMIT 30)";
	foreach (1 .. 3)
	{
		app($node, "DELETE FROM ${name}_emb WHERE event_id IN (SELECT id FROM $name WHERE $some)");
		scan($node, $name);
		is(app($node, sprintf("SELECT count(*) FROM $claim", 1000)), '30', "$name: rows whose target row has gone are handed out");
		app($node, "INSERT INTO ${name}_emb SELECT id FROM $name WHERE $some");
		# no trigger tells mode watermark: a scan finds out
		scan($node, $name) if $mode eq 'watermark';
	}
	scan($node, $name);
	is(progress($node, 'leased', $name), '0', "$name: nothing counts as handed out any more");
	foreach (1 .. 2)
	{
		age($name);
		scan($node, $name);
	}
	is(kept($name), '0|0|0|0|0|0|t', "$name: and nothing is kept of that");
	return;
}

foreach my $mode (qw(column sidecar watermark))
{
	late_rows($mode, 1);
	late_rows($mode, 0);
}
no_crash($node);
done_testing();
