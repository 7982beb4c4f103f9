# shellcheck shell=bash disable=SC2154
# What the modes cost the application, each against what it is without them: embeddings and source rows inserted,
# in bulk and one by one, an UPDATE of a column that concerns no trigger; and what the pending rows cost to ask for.
# Piece inserts has the embeddings, and the UPDATE of the target, of mode column; how it is measured stands there.
# Mode watermark has no trigger: it is held against transactions that have dropped the extension, and are rolled back.

# shellcheck source=test/bench/pending.sh
. "$here/pending.sh"
# shellcheck source=test/bench/inserts.sh
. "$here/inserts.sh"

# Fan-out, and the first 100 of one organization. $1: mode. Mode column's is the baseline of the others.
modes_read()
{
	local db base_fan=- base_fan_buffers=- base_pick=- base_worst=-
	db=$(live_of "$1")
	pending_check "$db"
	settle "$db"
	pending_of "$db"
	if [ "$1" = column ]; then
		column_fan=$fan_time column_fan_buffers=$fan_buffers column_pick=$pick_time column_worst=$pick_worst
	else
		base_fan=$(ms "$column_fan") base_fan_buffers=$column_fan_buffers
		base_pick=$(ms "$column_pick") base_worst=$column_worst
	fi
	row "$1: fan-out through events_pending, time" "$(ms "$fan_time")" "$base_fan" \
		"$(ratio "$fan_time" "$column_fan")x" - ""
	row "$1: fan-out through events_pending, buffers" "$fan_buffers" "$base_fan_buffers" "$fan_buffers" - ""
	row "$1: first 100 of one organization, time" "$(ms "$pick_time")" "$base_pick" \
		"$(ratio "$pick_time" "$column_pick")x" - ""
	row "$1: first 100, buffers (worst of all)" "$pick_worst" "$base_worst" "$pick_worst" - ""
}

# $1: mode, $2: which, $3: rows, $4: in words, $5: bound, $6: runs. Time on the clock.
modes_compare()
{
	inserts_session "$1" "$2" "$3" "$6" "none ours"
	inserts_row "$1: $3 $4" ours none clock "$5"
}

# The same where there should be no difference: pairs, and processor time.
modes_within()
{
	inserts_session "$1" "$2" "$3" "$PAIRS" "ours none"
	inserts_row "$1: $3 $4" ours none processor 1.03
}

bench_modes()
{
	local mode bulk singles update sources=20000 single_runs=$((INSERT_RUNS * 3))
	local column_fan column_fan_buffers column_pick column_worst
	for mode in column sidecar watermark; do
		ensure_live "$mode"
		modes_read "$mode"
	done
	for mode in column sidecar watermark; do
		inserts_prepare "$(live_of "$mode")"
	done
	bulk=$(inserts_rows live bench_keys 20000)
	singles=$(inserts_rows live bench_keys 2000)
	update=$(inserts_rows live bench_targets 20000)
	[ "$sources" -lt "$ROWS" ] || sources=$((ROWS - 1))

	modes_compare sidecar bulk "$bulk" "embeddings, bulk / no trigger" 1.20 "$INSERT_RUNS"
	modes_compare sidecar singles "$singles" "embeddings, single / no trigger" 1.6 "$single_runs"
	modes_compare sidecar event_bulk 20000 "pending events, bulk / no trigger" 2 "$INSERT_RUNS"
	modes_compare sidecar event_singles 2000 "pending events, single / no trigger" 2 "$single_runs"
	modes_compare sidecar textless_bulk 20000 "events without text, bulk / no trigger" 1.1 "$single_runs"
	modes_compare sidecar textless_singles 2000 "events without text, single / none" 1.1 "$single_runs"

	modes_within watermark bulk "$bulk" "embeddings, bulk / no extension"
	modes_within watermark singles "$singles" "embeddings, single / no extension"
	modes_within watermark event_bulk 20000 "events, bulk / no extension"
	modes_within watermark event_singles 2000 "events, single / no extension"

	for mode in column sidecar watermark; do
		modes_within "$mode" event_update "$sources" "events, UPDATE of another column"
		[ "$mode" = column ] || modes_within "$mode" update "$update" "embeddings, UPDATE of another column"
	done

	inserts_finish live
	# Live jobs have things to do now and then, which other pieces would count.
	drop_database live_sidecar
	drop_database live_watermark
}
