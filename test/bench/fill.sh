# shellcheck shell=bash disable=SC2154
# The fill against one single UPDATE with the same writes, and against the original shell loop. Each run has
# a fresh copy of the tables.

# The worker's fill: its own clock, from the first batch's start to the last one's commit.
fill_worker()
{
	local before
	copy_database run base
	as_super run -c "CREATE EXTENSION bgw_backfill"
	settle run
	before=$(as_app run -c "SELECT pg_relation_size('events')")
	track run column batch_sleep=0
	wait_phase run "index|verify|live"
	IFS='|' read -r fill_ms fill_changed < <(progress run "fill_ms, rows_changed")
	fill_growth=$(as_app run -c "SELECT pg_relation_size('events')::numeric / $before")
	check_flags run
}

# Everything at once.
fill_single()
{
	copy_database run base
	as_app run -c "ALTER TABLE events ADD COLUMN has_embedding boolean NOT NULL DEFAULT true" \
		-c "ALTER TABLE events ALTER COLUMN has_embedding SET DEFAULT false"
	settle run
	single_ms=$(as_app run -c '\timing on' -c "UPDATE events SET has_embedding = false
		WHERE NOT EXISTS (SELECT FROM event_embeddings AS m WHERE m.event_id = events.id)" | timing)
	check_flags run
}

# The loop: 10 000 rows in a transaction until none is left, without the sleep, without the counting of the
# whole table, and in one connection, which the original did not have.
fill_loop()
{
	local start i before
	copy_database run base
	as_app run -c "ALTER TABLE events ADD COLUMN has_embedding boolean"
	settle run
	before=$(as_app run -c "SELECT pg_relation_size('events')")
	for ((i = 0; i <= ROWS; i += 10000)); do
		cat <<-'EOF'
			UPDATE events SET has_embedding = EXISTS (
			    SELECT FROM event_embeddings AS m WHERE m.event_id = events.id)
			WHERE id IN (SELECT id FROM events WHERE has_embedding IS NULL LIMIT 10000);
		EOF
	done >"$scratch/loop.sql"
	start=$EPOCHREALTIME
	as_app run -f "$scratch/loop.sql"
	loop_ms=$(elapsed_ms "$start")
	loop_growth=$(as_app run -c "SELECT pg_relation_size('events')::numeric / $before")
	check_flags run
}

# A fast wrong answer does not count.
check_flags()
{
	local wrong
	wrong=$(as_app "$1" -c "SELECT count(*) FROM events AS e WHERE has_embedding IS DISTINCT FROM
		EXISTS (SELECT FROM event_embeddings AS m WHERE m.event_id = e.id)")
	[ "$wrong" = 0 ] || fail "$wrong flags are wrong"
}

bench_fill()
{
	local i ours=() single=() loop=() growth=() value
	for ((i = 1; i <= RUNS; i++)); do
		fill_worker
		ours+=("$fill_ms")
		growth+=("$fill_growth")
		fill_single
		single+=("$single_ms")
		fill_loop
		loop+=("$loop_ms")
		note "run $i: fill $fill_ms ms ($fill_changed rows written), single UPDATE $single_ms ms, loop $loop_ms ms"
	done
	drop_database run

	value=$(median_ratio ours single)
	row "fill / one single UPDATE" "$(ms "$(median "${ours[@]}")")" "$(ms "$(median "${single[@]}")")" \
		"${value}x" "<= 1.15x" "$(judge "$value" "<=" 1.15)"
	value=$(median_ratio loop ours)
	row "fill, faster than the original loop" "$(ms "$(median "${ours[@]}")")" "$(ms "$(median "${loop[@]}")")" \
		"${value}x" ">= 8x" "$(judge "$value" ">=" 8)"
	value=$(awk -v g="$(median "${growth[@]}")" 'BEGIN { printf "%.2f", (g - 1) * 100 }')
	row "heap of events grows by (baseline: the loop)" "$value %" \
		"$(awk -v g="$loop_growth" 'BEGIN { printf "%.2f", (g - 1) * 100 }') %" "$value %" "<= 5 %" "$(judge "$value" "<=" 5)"
}
