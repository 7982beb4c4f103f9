# shellcheck shell=bash disable=SC2154,SC2034
# What the triggers on a target cost where its rows are wide: embeddings of 4, 384 and 1536 random numbers, which do not
# compress, inserted and deleted, each mode against no trigger, and mode column against the proposed trigger. How it
# is measured stands in piece inserts; what is compared is the backend's processor time.

# shellcheck source=test/bench/inserts.sh
. "$here/inserts.sh"

WIDE_POOL=64

# Embeddings to insert, each a row of one page at most; $1: database, $2: numbers in one.
wide_prepare()
{
	as_app "$1" <<-EOF
		SET client_min_messages = warning;
		DROP TABLE IF EXISTS bench_vectors;
		CREATE TABLE bench_vectors (nr int PRIMARY KEY, v real[]);
		ALTER TABLE bench_vectors ALTER v SET STORAGE PLAIN;
		INSERT INTO bench_vectors
		  SELECT nr, (SELECT array_agg(random()::real) FROM generate_series(1, $2 + 0 * nr)) FROM generate_series(0, $WIDE_POOL - 1) AS nr;
		VACUUM ANALYZE bench_vectors;
	EOF
}

# $1: mode, $2: which, $3: rows, $4: numbers, $5: arms, $6: bound against no trigger, $7: against the proposed one.
wide_compare()
{
	inserts_session "$1" "$2" "$3" "$WIDE_RUNS" "$5"
	inserts_row "$1: $4 floats, $3 rows, ${2#wide_} / no trigger" ours none processor "$6"
	[ "$7" = - ] || inserts_row "$1: $4 floats, $3 rows, ${2#wide_} / proposed" ours proposed processor "$7"
}

# $1: numbers in an embedding; bounds: $2: sidecar, bulk; $3: sidecar, single.
wide_of()
{
	local mode
	for mode in sidecar column; do
		wide_prepare "$(live_of "$mode")" "$1"
	done
	wide_compare sidecar wide_bulk "$bulk" "$1" "none ours" "$2" -
	wide_compare sidecar wide_singles "$singles" "$1" "none ours" "$3" -
	wide_compare column wide_bulk "$bulk" "$1" "none ours proposed" - 0.85
	wide_compare column wide_singles "$singles" "$1" "none ours proposed" - 0.95
}

bench_wide()
{
	local mode bulk singles WIDE_RUNS=${WIDE_RUNS:-15}
	for mode in column sidecar; do
		ensure_live "$mode"
		inserts_prepare "$(live_of "$mode")"
	done
	bulk=$(inserts_rows live bench_keys 7000)
	singles=$(inserts_rows live bench_keys 2000)
	wide_of 4 - 1.2
	wide_of 384 1.15 1.2
	wide_of 1536 1.05 1.2
	inserts_finish live
	inserts_finish live_sidecar
}
