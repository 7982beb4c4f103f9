# shellcheck shell=bash disable=SC2154
# The fill of mode sidecar against one single INSERT .. SELECT into a table with the same columns and indexes;
# and that it does not write the source. Each run has a fresh copy of the tables.

# The worker's fill: its own clock, from the first batch's start to the last one's commit.
sidecarfill_worker()
{
	local before counted deadline=$((SECONDS + 60))
	copy_database run base
	as_super run -c "CREATE EXTENSION bgw_backfill"
	settle run
	before=$(as_app run -c "SELECT pg_relation_size('events')")
	track run sidecar batch_sleep=0
	wait_phase run "index|verify|live"
	IFS='|' read -r fill_ms fill_changed < <(progress run "fill_ms, rows_changed")
	wait_phase run live
	sidecarfill_check events_sidecar
	# The worker's statistics come a moment late; the rows that it inserted say that they have come.
	counted=0
	while [ "$counted" -lt "$fill_changed" ]; do
		[ $SECONDS -lt $deadline ] || fail "the statistics show $counted of $fill_changed inserted rows" || return 1
		sleep 0.1
		IFS='|' read -r counted fill_updated < <(as_app run -c "SELECT s.n_tup_ins, e.n_tup_upd
			FROM pg_stat_user_tables AS s, pg_stat_user_tables AS e
			WHERE s.relid = 'events_sidecar'::regclass AND e.relid = 'events'::regclass")
	done
	fill_growth=$(as_app run -c "SELECT pg_relation_size('events') - $before")
	fill_locked=$(as_app run -c "SELECT count(*) FROM events WHERE xmax <> 0")
}

# Everything at once.
sidecarfill_single()
{
	copy_database run base
	as_app run -c "CREATE TABLE sidecar (id bigint NOT NULL, organization_id text NOT NULL,
			enqueued_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (id))" \
		-c "CREATE INDEX ON sidecar (organization_id, id)"
	settle run
	single_ms=$(as_app run -c '\timing on' -c "INSERT INTO sidecar (id, organization_id)
		SELECT id, organization_id FROM events AS e WHERE payload_text IS NOT NULL AND payload_text <> ''
		  AND NOT EXISTS (SELECT FROM event_embeddings AS m WHERE m.event_id = e.id)" | timing)
	sidecarfill_check sidecar
}

# A fast wrong answer does not count. $1: the table of pending keys.
sidecarfill_check()
{
	local wrong
	wrong=$(as_app run -c "SELECT count(*) FROM (
		(TABLE truly_pending EXCEPT ALL SELECT id, organization_id FROM $1)
		UNION ALL (SELECT id, organization_id FROM $1 EXCEPT ALL TABLE truly_pending)) AS x")
	[ "$wrong" = 0 ] || fail "table $1 is wrong by $wrong rows"
}

bench_sidecarfill()
{
	local i arm ours=() single=() updated=() growth=() value
	for ((i = 1; i <= RUNS; i++)); do
		for arm in $([ $((i % 2)) = 0 ] && echo single worker || echo worker single); do
			sidecarfill_"$arm"
		done
		ours+=("$fill_ms")
		single+=("$single_ms")
		updated+=("$fill_updated")
		growth+=("$fill_growth")
		note "run $i: sidecar fill $fill_ms ms ($fill_changed rows inserted), single INSERT $single_ms ms;" \
			"events: $fill_updated rows updated, $fill_locked locked, heap larger by $fill_growth bytes"
	done
	drop_database run

	value=$(median_ratio ours single)
	row "sidecar fill / one single INSERT .. SELECT" "$(ms "$(median "${ours[@]}")")" \
		"$(ms "$(median "${single[@]}")")" "${value}x" "<= 1.15x" "$(judge "$value" "<=" 1.15)"
	value=$(printf '%s\n' "${updated[@]}" | sort -g | tail -n 1)
	row "sidecar fill: rows of events updated (most of all runs)" "$value" - "$value" "0" "$(judge "$value" "<=" 0)"
	value=$(printf '%s\n' "${growth[@]}" | sort -g | tail -n 1)
	row "sidecar fill: heap of events grows by" "$value bytes" - "$value" "0" "$(judge "$value" "<=" 0)"
}
