# shellcheck shell=bash disable=SC2154
# What the pending rows cost to ask for: by organization, and the first 100 of one; at two sizes of the table
# with the same backlog. And the original question, for comparison.

# Buffers and milliseconds of one query, execution alone. $1: database, $2: query.
pending_explain()
{
	as_app "$1" -c "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) $2" | perl -MJSON::PP -e '
		local $/;
		my $top = decode_json(<STDIN>)->[0];
		my $plan = $top->{Plan};
		printf "%d %s\n", $plan->{"Shared Hit Blocks"} + $plan->{"Shared Read Blocks"}, $top->{"Execution Time"};'
}

# Medians of RUNS runs after one that is not counted. Sets buffers and time.
pending_measure()
{
	local i b t list_b=() list_t=()
	pending_explain "$1" "$2" >/dev/null
	for ((i = 0; i < RUNS; i++)); do
		read -r b t < <(pending_explain "$1" "$2")
		list_b+=("$b")
		list_t+=("$t")
	done
	buffers=$(median "${list_b[@]}")
	time=$(median "${list_t[@]}")
}

# A tenth of the table with the same backlog: its newest embeddings are taken away again.
pending_small()
{
	local backlog=$1 rows=$((ROWS / 10))
	load_database small "$rows"
	as_app small <<-EOF
		DELETE FROM event_embeddings
		WHERE event_id IN (
		    SELECT event_id FROM event_embeddings ORDER BY event_id DESC
		    LIMIT greatest(0, $backlog - (SELECT count(*) FROM truly_pending)));
		VACUUM (FULL, ANALYZE) event_embeddings;
		VACUUM event_embeddings;
	EOF
	as_super small -c "CREATE EXTENSION bgw_backfill"
	track small column batch_sleep=0
	wait_phase small live
}

# Sets fan_*, pick_* (over all organizations) from one database.
pending_of()
{
	local db=$1 org sum=0 worst=0 times=()
	pending_measure "$db" "SELECT organization_id, count(*) FROM events_pending GROUP BY 1"
	fan_buffers=$buffers fan_time=$time
	for org in $(as_app "$db" -c "SELECT DISTINCT organization_id FROM events_pending"); do
		pending_measure "$db" "SELECT id FROM events_pending WHERE organization_id = '$org' ORDER BY id LIMIT 100"
		sum=$(awk -v a="$sum" -v b="$buffers" 'BEGIN { print a + b }')
		worst=$(printf '%s\n' "$worst" "$buffers" | sort -g | tail -n 1)
		times+=("$time")
	done
	pick_sum=$sum pick_worst=$worst pick_time=$(median "${times[@]}") pick_groups=${#times[@]}
	note "$db: $(as_app "$db" -c "SELECT count(*) FROM events_pending") pending of" \
		"$(as_app "$db" -c "SELECT count(*) FROM events"); fan-out $fan_buffers buffers, $fan_time ms;" \
		"first 100: $pick_worst buffers at worst, $sum over all $pick_groups organizations"
}

# A fast wrong answer does not count.
pending_check()
{
	local wrong
	wrong=$(as_app "$1" -c "SELECT count(*) FROM (
		(TABLE truly_pending EXCEPT SELECT id, organization_id FROM events_pending)
		UNION ALL (SELECT id, organization_id FROM events_pending EXCEPT TABLE truly_pending)) AS x")
	[ "$wrong" = 0 ] || fail "events_pending of database $1 is wrong by $wrong rows"
}

bench_pending()
{
	local backlog origin_buffers origin_time
	local large_fan large_fan_time large_sum large_worst large_pick_time value
	ensure_live
	backlog=$(as_app live -c "SELECT count(*) FROM truly_pending")
	pending_check live

	# On the table as it was, neither grown nor altered.
	settle base
	pending_measure base "SELECT organization_id, count(*) FROM truly_pending GROUP BY 1"
	origin_buffers=$buffers origin_time=$time
	pending_of live
	large_fan=$fan_buffers large_fan_time=$fan_time large_sum=$pick_sum
	large_worst=$pick_worst large_pick_time=$pick_time

	row "original discovery query, time" - "$(ms "$origin_time")" - - ""
	row "original discovery query, buffers" - "$origin_buffers" - - ""
	row "fan-out through events_pending, time" "$(ms "$large_fan_time")" "$(ms "$origin_time")" \
		"$(ratio "$large_fan_time" "$origin_time")x" - ""
	row "fan-out through events_pending, buffers" "$large_fan" "$origin_buffers" "$large_fan" "<= 120" \
		"$(judge "$large_fan" "<=" 120)"
	row "first 100 of one organization, time" "$(ms "$large_pick_time")" - - - ""
	row "first 100 of one organization, buffers (worst of all)" "$large_worst" - "$large_worst" "<= 6" \
		"$(judge "$large_worst" "<=" 6)"

	pending_small "$backlog"
	pending_of small
	value=$(ratio "$large_fan" "$fan_buffers")
	row "fan-out buffers, table ten times as large" "$large_fan" "$fan_buffers" "${value}x" "<= 1.1x" \
		"$(judge "$value" "<=" 1.1)"
	value=$(ratio "$large_sum" "$pick_sum")
	row "first 100, buffers, all organizations, ten times as large" "$large_sum" "$pick_sum" "${value}x" "<= 1.1x" \
		"$(judge "$value" "<=" 1.1)"
	drop_database small
}
