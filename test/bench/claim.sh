# shellcheck shell=bash disable=SC2154
# Handing out: what claim(100) costs at the backlog of the workload and where all rows are pending, the pending scan at
# both, and eight claimers that drain 20 000 rows, against the plain loop over the view with FOR UPDATE SKIP LOCKED.

# Buffers and milliseconds of claim(100) in one session, which has made one before; nothing is left handed out.
# Sets claim_buffers and claim_time.
claim_measure()
{
	local b t list_b=() list_t=() runs=$((RUNS * 5)) i
	while read -r b t; do
		list_b+=("$b")
		list_t+=("$t")
	done < <({
		echo "BEGIN; SELECT count(*) FROM bgw_backfill.claim('events'); ROLLBACK;"
		for ((i = 0; i < runs; i++)); do
			echo "BEGIN; EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) SELECT * FROM bgw_backfill.claim('events'); ROLLBACK;"
		done
	} | as_app "$1" | perl -ne '
		$buffers = ($1 // 0) + ($2 // 0) if /Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?/ && !$planning;
		$planning = /^Planning/;
		print "$buffers $1\n" if /Execution Time: ([\d.]+)/;')
	[ "${#list_b[@]}" = "$runs" ] || fail "measured ${#list_b[@]} claims of $runs" || return 1
	claim_buffers=$(median "${list_b[@]}")
	claim_time=$(median "${list_t[@]}")
	note "$1: claim(100): $claim_buffers buffers, $claim_time ms"
}

# Milliseconds of the pending scan, as the job has noted them: the median of some scans. Sets scan_time.
claim_scan()
{
	local list=() before now i
	as_app "$1" -c "SELECT bgw_backfill.configure('events', 'scan_interval', '1s')" >/dev/null
	before=$(as_super "$1" -c "SELECT scans FROM bgw_backfill.job_state")
	for ((i = 0; i < RUNS; i++)); do
		while :; do
			now=$(as_super "$1" -c "SELECT scans FROM bgw_backfill.job_state")
			[ "$now" = "$before" ] || break
			sleep 0.1
		done
		before=$now
		list+=("$(as_super "$1" -c "SELECT scan_ms FROM bgw_backfill.job_state")")
	done
	as_app "$1" -c "SELECT bgw_backfill.configure('events', 'scan_interval', NULL)" >/dev/null
	scan_time=$(median "${list[@]}")
}

# All rows with text are pending.
claim_everything_pending()
{
	copy_database everything base
	as_app everything -c "TRUNCATE event_embeddings"
	as_super everything -c "CREATE EXTENSION bgw_backfill"
	track everything column batch_sleep=0
	wait_phase everything live
	as_super everything -c "VACUUM event_embeddings"
}

# Eight sessions, each with its share of the rows, a hundred at a time: claim and insert, each its own transaction;
# or choose, insert and log in one transaction that holds the rows. Sets drain_ms. $1: ours or loop, $2: rows.
claim_drain()
{
	local share=$(($2 / 8)) pids=() pid start
	copy_database run base
	as_super run -c "CREATE EXTENSION bgw_backfill"
	track run column batch_sleep=0
	wait_phase run live
	as_app run >/dev/null <<-EOF
		CREATE TABLE handed (id bigint NOT NULL);
		SELECT bgw_backfill.configure('events', 'max_leased', '1000');
		CREATE PROCEDURE drain_ours(share int) LANGUAGE plpgsql AS \$\$
		DECLARE
		  v real[] = array_fill(0.5::real, ARRAY[$INSERT_DIMS]);
		  done int = 0;
		  got bigint[];
		BEGIN
		  WHILE done < share LOOP
		    SELECT array_agg(key::bigint) INTO got FROM bgw_backfill.claim('events', least(100, share - done));
		    COMMIT;
		    INSERT INTO handed SELECT unnest(got);
		    INSERT INTO event_embeddings (event_id, embedding) SELECT unnest(got), v;
		    COMMIT;
		    done := done + coalesce(cardinality(got), 0);
		  END LOOP;
		END \$\$;
		CREATE PROCEDURE drain_loop(share int) LANGUAGE plpgsql AS \$\$
		DECLARE
		  v real[] = array_fill(0.5::real, ARRAY[$INSERT_DIMS]);
		  done int = 0;
		  got bigint[];
		BEGIN
		  WHILE done < share LOOP
		    SELECT array_agg(id) INTO got
		    FROM (SELECT id FROM events_pending LIMIT least(100, share - done) FOR UPDATE SKIP LOCKED) AS x;
		    INSERT INTO handed SELECT unnest(got);
		    INSERT INTO event_embeddings (event_id, embedding) SELECT unnest(got), v;
		    COMMIT;
		    done := done + coalesce(cardinality(got), 0);
		  END LOOP;
		END \$\$;
	EOF
	settle run
	start=$EPOCHREALTIME
	for _ in 1 2 3 4 5 6 7 8; do
		as_app run -c "CALL drain_$1($share)" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do
		wait "$pid" || fail "a session of the drain ($1) failed" || return 1
	done
	drain_ms=$(elapsed_ms "$start")
	[ "$(as_app run -c "SELECT count(*) = $share * 8 AND count(DISTINCT id) = $share * 8 FROM handed")" = t ] ||
		fail "the drain ($1) has handed out a row twice" || return 1
	drop_database run
}

bench_claim()
{
	local backlog few_buffers few_time few_scan value i arm ours=() loop=() rows=20000
	ensure_live
	backlog=$(as_app live -c "SELECT count(*) FROM truly_pending")
	[ "$rows" -lt "$backlog" ] || rows=$((backlog / 8 / 100 * 800))
	settle live
	claim_measure live
	few_buffers=$claim_buffers few_time=$claim_time
	claim_scan live
	few_scan=$scan_time
	claim_everything_pending
	settle everything
	claim_measure everything
	claim_scan everything
	drop_database everything
	row "claim(100) at $backlog pending, time" "$(ms "$few_time")" - "$(ms "$few_time")" "< 5 ms" \
		"$(judge "$few_time" "<=" 5)"
	row "claim(100) at $backlog pending, buffers" "$few_buffers" - "$few_buffers" "< 600" \
		"$(judge "$few_buffers" "<=" 600)"
	value=$(ratio "$claim_time" "$few_time")
	row "claim(100), all rows pending, time" "$(ms "$claim_time")" "$(ms "$few_time")" "${value}x" "<= 1.5x" \
		"$(judge "$value" "<=" 1.5)"
	value=$(ratio "$claim_buffers" "$few_buffers")
	row "claim(100), all rows pending, buffers" "$claim_buffers" "$few_buffers" "${value}x" "<= 1.5x" \
		"$(judge "$value" "<=" 1.5)"
	value=$(ratio "$scan_time" "$few_scan")
	row "pending scan, all rows pending" "$(ms "$scan_time")" "$(ms "$few_scan")" "${value}x" "<= 2x" \
		"$(judge "$value" "<=" 2)"

	for ((i = 1; i <= RUNS; i++)); do
		for arm in $([ $((i % 2)) = 0 ] && echo loop ours || echo ours loop); do
			claim_drain "$arm" "$rows"
			if [ "$arm" = ours ]; then ours+=("$drain_ms"); else loop+=("$drain_ms"); fi
		done
		note "run $i: 8 claimers drain $rows rows in ${ours[-1]} ms, the loop in ${loop[-1]} ms"
	done
	value=$(median_ratio loop ours)
	row "8 claimers drain $rows rows: throughput / SKIP LOCKED loop" "$(ms "$(median "${ours[@]}")")" \
		"$(ms "$(median "${loop[@]}")")" "${value}x" ">= 0.8x" "$(judge "$value" ">=" 0.8)"
}
