# shellcheck shell=bash disable=SC2154
# The search for candidates, batch by batch: buffers for each examined row; and the longest statement. Every
# plan that the worker executes is written to the server's log by auto_explain, and read there.

# Sets auto_explain for the whole server: a worker takes no setting from its role or database.
search_log_plans()
{
	as_super postgres -c "ALTER SYSTEM SET auto_explain.log_min_duration = $1"
	as_super postgres -c "ALTER SYSTEM SET auto_explain.log_analyze = on" \
		-c "ALTER SYSTEM SET auto_explain.log_buffers = on" \
		-c "ALTER SYSTEM SET auto_explain.log_timing = off" \
		-c "ALTER SYSTEM SET auto_explain.log_nested_statements = on" \
		-c "ALTER SYSTEM SET auto_explain.log_format = json" \
		-c "SELECT pg_reload_conf()" >/dev/null
}

bench_search()
{
	local log=$cluster_dir/log _ begin fill_end end holder values batches first last spread longest
	copy_database run base
	as_super run -c "CREATE EXTENSION bgw_backfill"
	settle run
	trap 'search_log_plans -1' EXIT
	search_log_plans 0
	sleep 1

	# A snapshot that the index build has to wait for: so the log's part about the fill ends where the phase does.
	coproc HOLDER { as_app run; }
	holder=$HOLDER_PID
	echo "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;" >&"${HOLDER[1]}"
	read -r _ <&"${HOLDER[0]}"
	begin=$(wc -c <"$log")
	track run column batch_sleep=0
	wait_phase run "index|verify|live"
	fill_end=$(wc -c <"$log")
	echo "COMMIT;" >&"${HOLDER[1]}"
	eval "exec ${HOLDER[1]}>&-"
	wait "$holder" 2>/dev/null || true
	wait_phase run live
	end=$(wc -c <"$log")

	head -c "$fill_end" "$log" | tail -c +$((begin + 1)) >"$scratch/fill.log"
	head -c "$end" "$log" | tail -c +$((begin + 1)) >"$scratch/live.log"
	values=$(perl "$here/plans.pl" events event_embeddings "$scratch/fill.log" 2>"$scratch/notes") ||
		fail "$(cat "$scratch/notes")"
	sed 's/^/   /' "$scratch/notes"
	read -r batches first last spread longest <<<"$values"
	row "search: buffers per examined row, max / min ($batches batches)" \
		"$last last" "$first first" "${spread}x" "<= 1.2x" "$(judge "$spread" "<=" 1.2)"
	row "longest statement of the fill" "$(ms "$longest")" - "$(ms "$longest")" "<= 1000 ms" \
		"$(judge "$longest" "<=" 1000)"
	longest=$(perl "$here/plans.pl" events event_embeddings "$scratch/live.log" 2>/dev/null | cut -d ' ' -f 5)
	row "longest statement up to live (but index and vacuum)" "$(ms "$longest")" - "$(ms "$longest")" "<= 1000 ms" \
		"$(judge "$longest" "<=" 1000)"
	drop_database run
}
