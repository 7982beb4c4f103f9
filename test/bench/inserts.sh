# shellcheck shell=bash disable=SC2154,SC2028,SC2034
# What the triggers cost the application: 20 000 embeddings of pending events in one statement, 2000 of them
# one by one, and an UPDATE that concerns no trigger. All arms run on the same live table, in transactions
# that are rolled back, the dead rows vacuumed away before the next: only the triggers differ, which a
# transaction without ours (or with the proposed ones) switches off for itself. The single inserts are INSERTs of
# a plpgsql loop in one transaction: neither the network nor the disk's flush at commit hides the triggers.
# Piece modes measures the other modes, and rows inserted into the source, with the same functions.

# The transaction's preamble of each arm. Mode watermark has no trigger that could be switched off: "none" is without
# the extension. $1: mode, $2: arm.
inserts_preamble()
{
	echo "BEGIN;"
	if [ "$1 $2" = "watermark none" ]; then
		echo "DROP EXTENSION bgw_backfill CASCADE;"
	fi
	echo "SET LOCAL ROLE app;"
	case $1\ $2 in
		*\ ours | watermark\ *)
			# As large a change of the catalog as the others make.
			echo "ALTER TABLE event_embeddings SET (fillfactor = 100);"
			echo "ALTER TABLE events SET (fillfactor = 100);" ;;
		*)
			echo "ALTER TABLE event_embeddings DISABLE TRIGGER USER;"
			echo "ALTER TABLE events DISABLE TRIGGER USER;" ;;
	esac
	if [ "$2" = proposed ]; then
		cat "$here/proposed_triggers.sql"
	fi
}

# What is measured, as SQL, for the keys or rows numbered $2 to $3, in key order. bulk and singles: embeddings of
# pending events; event_*: source rows that are pending then; textless_*: source rows that never are.
inserts_statement()
{
	local text=payload_text
	case $1 in
		textless_*) text=no_text ;;
	esac
	case $1 in
		bulk)
			cat <<-EOF
				INSERT INTO event_embeddings (event_id, embedding)
				SELECT id, array_fill(0.5::real, ARRAY[$INSERT_DIMS]) FROM bench_keys
				WHERE nr BETWEEN $2 AND $3 ORDER BY nr;
			EOF
			;;
		singles)
			cat <<-EOF
				DO \$\$
				DECLARE
				  v real[] = array_fill(0.5::real, ARRAY[$INSERT_DIMS]);
				  k bigint;
				BEGIN
				  FOR k IN SELECT id FROM bench_keys WHERE nr BETWEEN $2 AND $3 ORDER BY nr LOOP
				    INSERT INTO event_embeddings (event_id, embedding) VALUES (k, v);
				  END LOOP;
				END \$\$;
			EOF
			;;
		wide_bulk)
			cat <<-EOF
				INSERT INTO event_embeddings (event_id, embedding)
				SELECT id, (SELECT v FROM bench_vectors AS p WHERE p.nr = k.nr % $WIDE_POOL) FROM bench_keys AS k
				WHERE nr BETWEEN $2 AND $3 ORDER BY nr;
			EOF
			;;
		wide_singles)
			cat <<-EOF
				DO \$\$
				DECLARE
				  v real[] = (SELECT p.v FROM bench_vectors AS p LIMIT 1);
				  k bigint;
				BEGIN
				  FOR k IN SELECT id FROM bench_keys WHERE nr BETWEEN $2 AND $3 ORDER BY nr LOOP
				    INSERT INTO event_embeddings (event_id, embedding) VALUES (k, v);
				  END LOOP;
				END \$\$;
			EOF
			;;
		*_bulk)
			cat <<-EOF
				INSERT INTO events (organization_id, created_at, payload_text, metadata)
				SELECT organization_id, created_at, $text, metadata FROM bench_rows
				WHERE nr BETWEEN $2 AND $3 ORDER BY nr;
			EOF
			;;
		*_singles)
			cat <<-EOF
				DO \$\$
				DECLARE
				  r record;
				BEGIN
				  FOR r IN SELECT * FROM bench_rows WHERE nr BETWEEN $2 AND $3 ORDER BY nr LOOP
				    INSERT INTO events (organization_id, created_at, payload_text, metadata)
				    VALUES (r.organization_id, r.created_at, r.$text, r.metadata);
				  END LOOP;
				END \$\$;
			EOF
			;;
		update)
			cat <<-EOF
				UPDATE event_embeddings SET created_at = created_at + interval '1 s'
				WHERE event_id BETWEEN (SELECT id FROM bench_targets WHERE nr = $2)
				  AND (SELECT id FROM bench_targets WHERE nr = $3);
			EOF
			;;
		event_update)
			# The oldest events: their ids have no gap.
			cat <<-EOF
				UPDATE events SET created_at = created_at + interval '1 s' WHERE id BETWEEN $2 + 1 AND $3 + 1;
			EOF
			;;
	esac
}

# A fast wrong answer does not count: SQL for what should be "check|$3" where our triggers have worked.
# $1: mode, $2: which, $3: rows.
inserts_check()
{
	case "$1 ${2#wide_}" in
		column\ bulk | column\ singles)
			echo "SELECT 'check', count(*) FROM bench_keys JOIN events USING (id)"
			echo "WHERE has_embedding AND nr BETWEEN 1 AND $3;" ;;
		sidecar\ bulk | sidecar\ singles)
			echo "SELECT 'check', $3 - count(*) FROM bench_keys JOIN events_sidecar USING (id)"
			echo "WHERE nr BETWEEN 1 AND $3;" ;;
		sidecar\ event_bulk | sidecar\ event_singles)
			# one more, which warmed up
			echo "SELECT 'check', count(*) - 1 FROM events JOIN events_sidecar USING (id, organization_id)"
			echo "WHERE id > (SELECT last_id FROM bench_last);" ;;
		sidecar\ textless_*)
			echo "SELECT 'check', $3 + count(*) FROM events_sidecar WHERE id > (SELECT last_id FROM bench_last);" ;;
	esac
}

# The tables that a transaction leaves dead rows in. $1: mode, $2: which.
inserts_written()
{
	case "$1 $2" in
		*\ update) echo event_embeddings ;;
		*\ event_update) echo events ;;
		column\ *) echo event_embeddings events ;;
		sidecar\ textless_*) echo events ;;
		sidecar\ event_*) echo events events_sidecar ;;
		sidecar\ *) echo event_embeddings events_sidecar ;;
		watermark\ *_*) echo events ;;
		*) echo event_embeddings ;;
	esac
}

# All runs of one measurement, in one session. $1: mode, $2: which, $3: rows, $4: runs, $5: arms, in each run in the
# opposite order of the run before. Leaves a line for each run of an arm in $scratch/runs: number, arm, milliseconds
# on the clock and on a processor.
inserts_session()
{
	local mode=$1 which=$2 rows=$3 runs=$4 arms=$5 turned arm i db table
	turned=$(tr ' ' '\n' <<<"$arms" | tac | xargs)
	db=$(live_of "$mode")
	settle "$db"
	{
		echo "SET client_min_messages = warning;"
		echo "SELECT pg_backend_pid() AS pid \\gset"
		echo "\\setenv BENCH_PID :pid"
		# Run 0 is not counted: it writes the WAL's full images of the pages.
		for ((i = 0; i <= runs; i++)); do
			for arm in $([ $((i % 2)) = 0 ] && echo "$arms" || echo "$turned"); do
				inserts_preamble "$mode" "$arm"
				# One row before the clock runs: relations are looked up, functions compiled, plans made.
				inserts_statement "$which" 0 0
				# shellcheck disable=SC2016
				echo '\set from `cat /proc/$BENCH_PID/schedstat`'
				echo '\timing on'
				inserts_statement "$which" 1 "$rows"
				echo '\timing off'
				# shellcheck disable=SC2016
				echo '\set to `cat /proc/$BENCH_PID/schedstat`'
				echo "\\echo run $i $arm :from :to"
				if [ "$arm" != none ]; then
					inserts_check "$mode" "$which" "$rows"
				fi
				echo "ROLLBACK;"
				# Dead rows go, from the indexes too however few they are, and their pages stay: no run has to
				# make the files longer, and each finds what the one before found.
				for table in $(inserts_written "$mode" "$which"); do
					echo "VACUUM (INDEX_CLEANUP on, TRUNCATE false) $table;"
				done
			done
		done
	} >"$scratch/session.sql"
	as_super "$db" -f "$scratch/session.sql" >"$scratch/session.out"
	if [ "$(grep -cx "check|$rows" "$scratch/session.out")" != "$(grep -c "'check'" "$scratch/session.sql")" ]; then
		grep '^check|' "$scratch/session.out" | sort | uniq -c >&2
		fail "$mode, $which: not every one of $rows rows was settled right"
	fi
	# schedstat: nanoseconds on a processor, nanoseconds waiting for one, times.
	awk '/^Time:/ { clock = $2 }
		/^run/ && $2 > 0 { print $2, $3, clock, ($7 - $4) / 1e6 }' "$scratch/session.out" >"$scratch/runs"
}

# A column of one arm's runs, in their order. $1: arm, $2: clock or processor.
inserts_times()
{
	awk -v arm="$1" -v what="$2" '$2 == arm { print what == "clock" ? $3 : $4 }' "$scratch/runs"
}

# The median ratio of two arms and its interval, in words. $1, $2: arms, $3: clock or processor.
inserts_ratio()
{
	local over under list
	mapfile -t over < <(inserts_times "$1" "$3")
	mapfile -t under < <(inserts_times "$2" "$3")
	mapfile -t list < <(ratios over under)
	echo "$(median "${list[@]}") ($3, 95 % interval $(interval "${list[@]}"))"
}

# A line of the table from the runs of one session. $1: name, $2 and $3: the arms that are compared, $4: clock or
# processor, $5: bound, or - for none. Where the bound is tighter than a shared machine's clock, it is the backend's
# processor time that is compared, which is where a trigger's cost would be; both are noted.
inserts_row()
{
	local ours base value bound=- verdict=""
	mapfile -t ours < <(inserts_times "$2" "$4")
	mapfile -t base < <(inserts_times "$3" "$4")
	value=$(median_ratio ours base)
	note "$1: $(inserts_ratio "$2" "$3" processor), $(inserts_ratio "$2" "$3" clock), ${#ours[@]} runs"
	if [ "$5" != - ]; then
		bound="<= ${5}x"
		verdict=$(judge "$value" "<=" "$5")
	fi
	row "$1" "$(ms "$(median "${ours[@]}")")" "$(ms "$(median "${base[@]}")")" "${value}x" "$bound" "$verdict"
}

# $1: bulk or singles, $2: rows, $3: bound, $4: runs.
inserts_compare()
{
	inserts_session column "$1" "$2" "$4" "none ours proposed"
	inserts_row "$2 inserts, $1: ours / proposed trigger" ours proposed clock "$3"
	inserts_row "$2 inserts, $1: ours / no trigger" ours none clock -
	inserts_row "$2 inserts, $1: proposed trigger / no trigger" proposed none clock -
}

# Tables of what is inserted and updated, in a database: pending events, embedded ones for the UPDATE, and rows for
# the source like those of workload.sql; number 0 is the one that warms up. No scan of ours between the arms.
inserts_prepare()
{
	as_app "$1" -c "SELECT bgw_backfill.pause('events')" >/dev/null
	as_app "$1" <<-'EOF'
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS bench_keys, bench_targets, bench_rows, bench_last;
		CREATE TABLE bench_keys AS
		  SELECT row_number() OVER (ORDER BY id) - 1 AS nr, id FROM truly_pending ORDER BY id;
		CREATE TABLE bench_targets AS
		  SELECT row_number() OVER (ORDER BY event_id) - 1 AS nr, event_id AS id
		  FROM (SELECT event_id FROM event_embeddings ORDER BY event_id LIMIT 20001) AS x;
		CREATE TABLE bench_rows AS
		  SELECT n AS nr, format('org-%s', abs(hashint8(n) % 40)) AS organization_id,
		         timestamptz '2027-01-01 00:00+00' + n * interval '10 seconds' AS created_at,
		         repeat(md5(n::text), 8) AS payload_text, CASE WHEN n % 5 = 0 THEN '' END AS no_text,
		         jsonb_build_object('src', n % 7, 'k', md5((3 * n)::text)) AS metadata
		  FROM generate_series(0::bigint, 20000) AS n;
		CREATE TABLE bench_last AS SELECT max(id) AS last_id FROM events;
		CREATE INDEX ON bench_keys (nr);
		CREATE INDEX ON bench_targets (nr);
		CREATE INDEX ON bench_rows (nr);
		VACUUM ANALYZE bench_keys;
		VACUUM ANALYZE bench_targets;
		VACUUM ANALYZE bench_rows;
	EOF
}

inserts_finish()
{
	as_app "$1" -c "DROP TABLE bench_keys, bench_targets, bench_rows, bench_last" \
		-c "SELECT bgw_backfill.resume('events')" >/dev/null
}

# The rows that there are, but no more than wanted. $1: database, $2: table, $3: rows wanted.
inserts_rows()
{
	as_app "$1" -c "SELECT least($3, max(nr)) FROM $2"
}

bench_inserts()
{
	local bulk singles update
	ensure_live
	inserts_prepare live
	bulk=$(inserts_rows live bench_keys 20000)
	singles=$(inserts_rows live bench_keys 2000)
	update=$(inserts_rows live bench_targets 20000)

	inserts_compare bulk "$bulk" 0.85 "$INSERT_RUNS"
	inserts_compare singles "$singles" 1.0 $((INSERT_RUNS * 3))
	inserts_session column update "$update" "$PAIRS" "ours none"
	inserts_row "UPDATE of an unrelated column, $update rows: ours / none" ours none processor 1.03
	inserts_finish live
}
