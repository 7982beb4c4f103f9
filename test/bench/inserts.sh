# shellcheck shell=bash disable=SC2154,SC2028,SC2034
# What the triggers cost the application: 20 000 embeddings of pending events in one statement, 2000 of them
# one by one, and an UPDATE that concerns no trigger. All arms run on the same live table, in transactions
# that are rolled back, the dead rows vacuumed away before the next: only the triggers differ, which a
# transaction without ours (or with the proposed ones) switches off for itself. The single inserts are INSERTs of
# a plpgsql loop in one transaction: neither the network nor the disk's flush at commit hides the triggers.

# The transaction's preamble of each arm.
inserts_preamble()
{
	echo "BEGIN;"
	case $1 in
		ours)
			# As large a change of the catalog as the others make.
			echo "ALTER TABLE event_embeddings SET (fillfactor = 100);"
			echo "ALTER TABLE events SET (fillfactor = 100);" ;;
		none | proposed)
			echo "ALTER TABLE event_embeddings DISABLE TRIGGER USER;"
			echo "ALTER TABLE events DISABLE TRIGGER USER;" ;;
	esac
	if [ "$1" = proposed ]; then
		cat "$here/proposed_triggers.sql"
	fi
}

# What is measured, as SQL, for the keys numbered $2 to $3, in key order.
inserts_statement()
{
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
		update)
			cat <<-EOF
				UPDATE event_embeddings SET created_at = created_at + interval '1 s'
				WHERE event_id BETWEEN (SELECT id FROM bench_targets WHERE nr = $2)
				  AND (SELECT id FROM bench_targets WHERE nr = $3);
			EOF
			;;
	esac
}

# All runs of one measurement, in one session. $1: which, $2: rows, $3: runs, $4: arms, in each run in the
# opposite order of the run before. Leaves a line for each run of an arm in $scratch/runs: number, arm,
# milliseconds on the clock and on a processor.
inserts_session()
{
	local which=$1 rows=$2 runs=$3 arms=$4 turned arm i
	turned=$(tr ' ' '\n' <<<"$arms" | tac | xargs)
	settle live
	{
		echo "SELECT pg_backend_pid() AS pid \\gset"
		echo "\\setenv BENCH_PID :pid"
		# Run 0 is not counted: it writes the WAL's full images of the pages.
		for ((i = 0; i <= runs; i++)); do
			for arm in $([ $((i % 2)) = 0 ] && echo "$arms" || echo "$turned"); do
				inserts_preamble "$arm"
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
				if [ "$which" != update ] && [ "$arm" != none ]; then
					echo "SELECT 'flags', count(*) FROM bench_keys JOIN events USING (id)"
					echo "WHERE has_embedding AND nr BETWEEN 1 AND $rows;"
				fi
				echo "ROLLBACK;"
				# Dead rows go, from the indexes too however few they are, and their pages stay: no run has to
				# make the files longer, and each finds what the one before found.
				echo "VACUUM (INDEX_CLEANUP on, TRUNCATE false) event_embeddings;"
				if [ "$which" != update ]; then
					echo "VACUUM (INDEX_CLEANUP on, TRUNCATE false) events;"
				fi
			done
		done
	} >"$scratch/session.sql"
	as_app live -f "$scratch/session.sql" >"$scratch/session.out"
	if grep '^flags|' "$scratch/session.out" | grep -vx "flags|$rows"; then
		fail "not every one of $rows flags was set"
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

# $1: bulk or singles, $2: rows, $3: bound, $4: runs.
inserts_compare()
{
	local ours proposed none list value
	inserts_session "$1" "$2" "$4" "none ours proposed"
	mapfile -t ours < <(inserts_times ours clock)
	mapfile -t proposed < <(inserts_times proposed clock)
	mapfile -t none < <(inserts_times none clock)

	mapfile -t list < <(ratios ours proposed)
	value=$(median "${list[@]}")
	note "$1: ours / proposed $value in $4 runs, 95 % interval $(interval "${list[@]}")"
	row "$2 inserts, $1: ours / proposed trigger" "$(ms "$(median "${ours[@]}")")" \
		"$(ms "$(median "${proposed[@]}")")" "${value}x" "<= ${3}x" "$(judge "$value" "<=" "$3")"
	value=$(median_ratio ours none)
	row "$2 inserts, $1: ours / no trigger" "$(ms "$(median "${ours[@]}")")" \
		"$(ms "$(median "${none[@]}")")" "${value}x" - ""
	value=$(median_ratio proposed none)
	row "$2 inserts, $1: proposed trigger / no trigger" "$(ms "$(median "${proposed[@]}")")" \
		"$(ms "$(median "${none[@]}")")" "${value}x" - ""
}

# The UPDATE. The bound is tighter than a shared machine's clock: so it is the backend's processor time that is
# compared, which is where a trigger's cost would be; the times on the clock are noted. $1: rows, $2: runs.
inserts_update()
{
	local ours none list clock_ours clock_none clock value
	inserts_session update "$1" "$2" "ours none"
	mapfile -t ours < <(inserts_times ours processor)
	mapfile -t none < <(inserts_times none processor)
	mapfile -t clock_ours < <(inserts_times ours clock)
	mapfile -t clock_none < <(inserts_times none clock)
	mapfile -t list < <(ratios ours none)
	mapfile -t clock < <(ratios clock_ours clock_none)

	value=$(median "${list[@]}")
	note "unrelated UPDATE, $2 pairs: ratio of processor time $value, 95 % interval" \
		"$(interval "${list[@]}"); on the clock $(median "${clock[@]}"), $(interval "${clock[@]}")"
	row "UPDATE of an unrelated column, $1 rows: ours / none" "$(ms "$(median "${ours[@]}")")" \
		"$(ms "$(median "${none[@]}")")" "${value}x" "<= 1.03x" "$(judge "$value" "<=" 1.03)"
}

bench_inserts()
{
	local bulk=20000 singles=2000 update=20000 spare targets
	ensure_live
	# No scan of ours between the arms.
	as_app live -c "SELECT bgw_backfill.pause('events')" >/dev/null
	# Pending events, and embedded ones for the UPDATE; number 0 is the one that warms up.
	as_app live <<-'EOF'
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS bench_keys, bench_targets;
		CREATE TABLE bench_keys AS
		  SELECT row_number() OVER (ORDER BY id) - 1 AS nr, id FROM events_pending ORDER BY id;
		CREATE TABLE bench_targets AS
		  SELECT row_number() OVER (ORDER BY event_id) - 1 AS nr, event_id AS id
		  FROM (SELECT event_id FROM event_embeddings ORDER BY event_id LIMIT 20001) AS x;
		CREATE INDEX ON bench_keys (nr);
		CREATE INDEX ON bench_targets (nr);
		VACUUM ANALYZE bench_keys;
		VACUUM ANALYZE bench_targets;
	EOF
	spare=$(as_app live -c "SELECT max(nr) FROM bench_keys")
	targets=$(as_app live -c "SELECT max(nr) FROM bench_targets")
	[ "$bulk" -le "$spare" ] || bulk=$spare
	[ "$singles" -le "$spare" ] || singles=$spare
	[ "$update" -le "$targets" ] || update=$targets

	inserts_compare bulk "$bulk" 0.85 "$INSERT_RUNS"
	inserts_compare singles "$singles" 1.0 $((INSERT_RUNS * 3))
	inserts_update "$update" "$PAIRS"
	as_app live -c "DROP TABLE bench_keys, bench_targets" -c "SELECT bgw_backfill.resume('events')" >/dev/null
}
